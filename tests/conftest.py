"""A store in which the toy pipeline (tests/conf/pipeline/toy.yaml) has run once; tests read it or work on a copy."""

import contextlib
import fcntl
import gc
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from align.cli.main import main

os.environ.setdefault("WANDB_MODE", "offline")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody answers there: no test asks the Hub

CONF = Path(__file__).parent / "conf"


def mostly_slow(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """The cases of a test, of which a few run by default; `make test-slow` runs the others.

    A case is a value, or a tuple of values.
    """
    cases = [*cases]
    assert all(case in cases for case in fast), f"no cases of this test: {fast}"
    return [
        case if case in fast else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder that all processes of a test run read, and the first that needs it makes."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.with_suffix(".made").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed half-way
            make(folder)
            folder.with_suffix(".made").touch()
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the processes of one test run find what they share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


class Done(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def align(*arguments: object, check: int | None = 0) -> Done:
    """Run a command in this process, which has imported torch already.

    A process of its own takes 5 seconds to import it.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*map(str, arguments)])
    done = Done(code, out.getvalue(), err.getvalue())
    if check is not None:
        assert done.returncode == check, done.stderr
    return done


def run_toy(store: Path, *arguments: object, check: int | None = 0) -> Done:
    return align("run", "pipeline=toy", "--config-dir", CONF, f"store={store}", "tracker=none", *arguments, check=check)


def manifests(store: Path) -> dict[str, dict]:
    """The manifest of the latest version of each step of the toy pipeline."""
    found = {}
    for folder in sorted((store / "names" / "toy").iterdir()):
        latest = json.loads((folder / "aliases" / "latest").read_text())["version"]
        record = json.loads((folder / f"v{latest}.json").read_text())
        path = store / "objects" / record["stage"] / record["key"] / "manifest.json"
        found[folder.name] = json.loads(path.read_text())
    return found


def pytest_collection_finish() -> None:
    """Collect garbage between tests, and not all the time, which takes a tenth of it."""
    gc.disable()
    _collect_garbage()


_begun = itertools.count(1)


def pytest_runtest_setup() -> None:
    if next(_begun) % 200 == 0:
        _collect_garbage()


def _collect_garbage() -> None:
    gc.collect()
    gc.freeze()  # do not look at what is left again: most of it is modules, and thousands of tests


@pytest.fixture(scope="session")
def finished(shared: Path) -> Path:
    """Read only."""
    return made_once(shared / "finished", lambda folder: run_toy(folder / "artifacts")) / "artifacts"


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """A copy to work on."""
    return Path(shutil.copytree(finished, tmp_path / "artifacts"))


@pytest.fixture(scope="session", autouse=True)
def precision_of_any_machine() -> Iterator[None]:
    """Let `precision: auto` be fp32 in this process, so that the tests compute alike wherever they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.pipeline.plan.bf16_is_fast", lambda device: False)
        yield


class Passes(NamedTuple):
    """What went through the layers of models while a test ran."""

    tokens: list[int]  # of each pass through a layer, padding too
    learning: list[int]  # the same, of passes that a gradient was taken of
    twice: set[int]  # ids of the layers whose activations were computed again in the backward pass


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Passes]:
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook
    from transformers.modeling_layers import GradientCheckpointingLayer

    from align.training import activations

    seen, checkpoint = Passes([], [], set()), activations.checkpoint

    def note(module: Any, given: Any) -> None:
        if not isinstance(module, GradientCheckpointingLayer):
            return
        count = given[0].shape[:2].numel()
        seen.tokens.append(count)
        if torch.is_grad_enabled():
            seen.learning.append(count)

    def noting(forward: Any, *arguments: Any, **named: Any) -> Any:
        seen.twice.add(id(forward.args[0]))
        return checkpoint(forward, *arguments, **named)

    monkeypatch.setattr(activations, "checkpoint", noting)
    hook = register_module_forward_pre_hook(note)
    yield seen
    hook.remove()
