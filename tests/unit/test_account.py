"""A finished run beside the bands of its account."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_store import add

from align.store.artifacts import ArtifactStore

ROOT = Path(__file__).parent.parent.parent
ACCOUNTS = sorted(path.parent.name for path in (ROOT / "pipelines").glob("*/expected.yaml"))


def account(name: str, store: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks/account.py", name, "--store", store]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("wins", "code", "said"), [(0.65, 0, ""), (0.45, 1, "<- outside")])
def test_a_figure_outside_its_band_is_named_and_fails(tmp_path, wins, code, said):
    store = ArtifactStore(tmp_path)
    add(store, "instructgpt/reward", "reward_model", {}, {"accuracy": 0.7})
    add(store, "instructgpt/evaluate_ppo", "evaluation", {}, {"win_rate": wins})
    done = account("instructgpt", tmp_path)
    assert done.returncode == code, done.stderr
    reward, evaluated = done.stdout.splitlines()
    assert reward.split()[:2] == ["reward", "accuracy"]
    assert not reward.endswith("outside")
    assert evaluated.endswith(said or "[0.5, 1]")


def test_a_step_that_was_not_run_is_named(tmp_path):
    add(ArtifactStore(tmp_path), "instructgpt/reward", "reward_model", {}, {"accuracy": 0.7})
    done = account("instructgpt", tmp_path)
    assert done.returncode == 2
    assert "missing" in done.stdout.splitlines()[1]


@pytest.mark.parametrize("name", ACCOUNTS)
def test_every_band_is_of_a_step_of_its_pipeline(name):
    pipeline = yaml.safe_load((ROOT / f"conf/pipeline/{name}.yaml").read_text())
    bands = yaml.safe_load((ROOT / f"pipelines/{name}/expected.yaml").read_text())
    named = {word.partition("@steps.")[2] for each in pipeline["defaults"] if isinstance(each, dict) for word in each}
    inherited = bands.keys() - named
    assert not inherited or "quickstart" in pipeline["defaults"], inherited
    for step, expected in bands.items():
        assert all(low <= high for low, high in expected.values()), step
