"""Any wrong config is refused in one line that names its place, before anything is written; a right one never is.

Commands go the whole way from the command line to the plan, in this process.
"""

import contextlib
import io
from collections.abc import Iterator

import pytest
from conftest import mostly_slow
from hostile_configs import QUICKSTART, Answer, Case, faults_of_plan, faults_of_refusal, right, wrong

from align.cli.main import main


@pytest.fixture(scope="module", autouse=True)
def _in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("fuzz"))
        patched.delenv("ALIGN_STORE", raising=False)
        yield


def answered(arguments: list[str]) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("seed", mostly_slow(range(20), range(6)))
def test_a_wrong_config_is_refused_in_one_line_at_its_place(seed: int) -> None:
    assert faults_of_refusal(wrong(seed), answered) == []


@pytest.mark.parametrize("seed", mostly_slow(range(4), range(2)))
def test_a_right_config_is_planned(seed: int) -> None:
    assert faults_of_plan(right(seed), answered) == []


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("steps.reward.seed=${hydra:nope}", "${hydra:nope}: Hydra has no setting of that name"),
        ("steps.reward.seed=${oc.select:nope}", "${oc.select:nope}: there is no nope in the config"),
        ("launcher=joblib", "launcher=joblib: of a sweep"),
        ("hydra.searchpath=[nope]", "hydra.searchpath: not supported here"),
        ("hydra.launcher.n_jobs=2", "hydra.launcher.n_jobs: of a sweep"),
    ],
)
def test_what_was_once_ignored_in_silence_is_refused(word: str, place: str) -> None:
    assert faults_of_refusal(Case([*QUICKSTART, word], word.partition("=")[0]), answered) == []
    assert f": {place}" in answered([*QUICKSTART, word])[2]
