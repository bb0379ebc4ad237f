"""The toy pipeline as W&B sees it: online against a stand-in, offline and then sent, killed, in a sweep, and down."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import CONF, manifests
from wandb_file import offline_runs
from wandb_service import Service, serving

from align.runtime.tracking import axis_of, metric_name

ROOT = Path(__file__).parent.parent
KEY = "f00dfeedf00dfeedf00dfeedf00dfeedf00dfeed"
STAGES = ("data", "tokenizer", "pretrain", "sft", "compare", "reward", "ppo", "evaluate")
sys.path.insert(0, str(ROOT / "pipelines"))


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as server:
        yield server
        assert server.unknown == []


def environment(home: Path, url: str | None) -> dict[str, str]:
    """Online at `url`, or offline; nothing of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    told = {"WANDB_MODE": "offline"} if url is None else {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
    return {**kept, "HOME": str(home), **told}


def toy(store: Path, url: str | None, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "align", "run", "pipeline=toy", "--config-dir", str(CONF), f"store={store}"]
    return [*command, *arguments]


def run(store: Path, url: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = toy(store, url, *arguments)
    done = subprocess.run(command, env=environment(store.parent, url), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def sync(store: Path, service: Service) -> None:
    folders = [str(folder) for folder in store.glob("wandb/offline-run-*")]
    command, told = [sys.executable, "-m", "wandb", "sync", *folders], environment(store.parent, service.url)
    done = subprocess.run(command, env=told, cwd=store.parent, capture_output=True, text=True, check=False)
    assert "ERROR" not in done.stderr, done.stderr


def digests(store: Path) -> dict[str, dict[str, str]]:
    return {
        step: {name: file["sha256"] for name, file in manifest["files"].items() if name != "metrics.jsonl"}
        for step, manifest in manifests(store).items()
    }


def without(finished: Path, tmp_path: Path, *stages: str) -> Path:
    """A store in which some stages have to be run again."""
    store = Path(shutil.copytree(finished, tmp_path / "artifacts"))
    for stage in stages:
        shutil.rmtree(store / "objects" / stage)
    return store


def logged(store: Path, stages: Sequence[str] = STAGES) -> set[str]:
    """What W&B knows the metrics and tables of some stages by, from the artifacts."""
    names = set()
    for manifest in manifests(store).values():
        stage, folder = manifest["stage"], store / "objects" / manifest["stage"] / manifest["key"]
        if stage not in stages:
            continue
        log = folder / "metrics.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        own = {"time/seconds", *manifest["metrics"], *(name for row in rows for name in row if name != "step")}
        tables = {name for name in ("samples", "calibration") if (folder / f"{name}.jsonl").exists()}
        names |= {metric_name(stage, name) for name in own | tables} | ({axis_of(stage)} if rows or tables else set())
    return names


def steps_of(store: Path, step: str) -> list[int]:
    """The steps whose loss the artifact's own log has."""
    made = manifests(store)[step]
    log = store / "objects" / made["stage"] / made["key"] / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) > 4
    return [row["step"] for row in rows if "loss" in row]


def shape(server: Service) -> Any:
    """What arrived, but for ids and times."""
    runs = {
        run["name"]: (
            *(run["job_type"], sorted(run["tags"]), run["exit"]),
            [{name: value for name, value in row.items() if _is_number(name, value)} for row in run["history"]],
            {name: value for name, value in run["summary"].items() if _is_number(name, value)},
            [(a["name"], a["type"], _names(a["aliases"]), a["metadata"]["version"]) for a in server.outputs(run_id)],
        )
        for run_id, run in server.runs.items()
    }
    return runs


def _names(aliases: list[str]) -> list[str]:
    """Without the digest's, which knows how long PPO's iterations took."""
    return sorted(alias for alias in aliases if not alias.startswith("sha256-"))


def _is_number(name: str, value: object) -> bool:
    return isinstance(value, int | float) and not name.startswith("_") and "time/" not in name


# -- a whole pipeline ---------------------------------------------------------------------------------------------


def test_every_panel_names_what_a_stage_logs(finished: Path) -> None:
    from dashboard import named_metrics

    # labelling/test_collect.py and the tests of these stages
    elsewhere = ("collect/", "grpo/", "rloo/", "dpo/", "kto/", "raft/", "best_of_n/", "evaluate_reward/")
    named = {name for name in named_metrics() if not name.startswith(elsewhere)}
    assert named - logged(finished) == set()


@pytest.mark.slow
@pytest.mark.parametrize("stages", [("reward", "ppo", "evaluate"), STAGES])
def test_online_and_offline_say_the_same_and_change_nothing(
    finished: Path, tmp_path: Path, service: Service, stages: Sequence[str]
) -> None:
    """One run a step, one group, all that the stages log, lineage; the same after `wandb sync`; no key anywhere."""
    store, other = (without(finished, tmp_path / name, *stages) for name in ("offline", "online"))
    online, offline = run(other, service.url), run(store, None)
    assert digests(other) == digests(store) == digests(finished)
    made = {step: manifest for step, manifest in manifests(store).items() if manifest["stage"] in stages}
    left = offline_runs(store)
    assert left.keys() == {f"toy/{step}:v0" for step in made}
    assert len({each.group for each in left.values()}) == 1
    for step, manifest in made.items():
        told = left[f"toy/{step}:v0"]
        assert (told.job_type, told.exit_code) == (manifest["stage"], 0)
        assert sorted(told.tags) == sorted(["toy", manifest["stage"]])
        assert [artifact.name for artifact in told.outputs] == [f"toy.{step}"]
        assert told.config["parents"] == manifest["inputs"]
    assert set().union(*(each.metrics for each in left.values())) == logged(store, stages)
    tables = {name for each in left.values() for name in each.tables}
    of_stages = ("compare/samples", "evaluate/samples", "evaluate/calibration", "ppo/samples", "reward/calibration")
    assert tables == set(of_stages) & logged(store, stages)

    read = {(step, source["ref"]) for step, m in made.items() for slot in m["inputs"].values() for source in slot}
    known = {(f"toy/{step}:v0", ref.replace("/", ".")) for step, ref in read if ref[4:] in made}
    assert service.edges() == known
    assert online.stderr.count("W&B does not know toy/sft") == (0 if "sft" in stages else 1)
    with serving() as later:
        sync(store, later)
        assert shape(later) == shape(service)
        assert later.unknown == []

    for folder in (other.parent, store.parent):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert not [path for path in files if KEY.encode() in path.read_bytes()]
        copies = [path for path in files if "wandb" in path.relative_to(folder).parts and path.suffix == ".safetensors"]
        assert copies == []
    assert KEY not in online.stdout + online.stderr + offline.stdout + offline.stderr


@pytest.mark.slow
def test_a_sweep_is_one_group_and_says_what_varied(finished: Path, tmp_path: Path) -> None:
    store = without(finished, tmp_path)
    run(store, None, "step=evaluate", "steps.ppo.kl_coef=0.03,0.1", "-m")
    left = offline_runs(store)
    assert sorted(left) == ["toy/evaluate:v1", "toy/evaluate:v2", "toy/ppo:v1", "toy/ppo:v2"]
    (group,) = {run.group for run in left.values()}
    assert group.startswith("sweep-")
    for version, kl_coef in (("v1", 0.03), ("v2", 0.1)):
        for step in ("ppo", "evaluate"):
            member = left[f"toy/{step}:{version}"]
            assert member.config["overrides"] == {"steps": {"ppo": {"kl_coef": kl_coef}}}
            assert sorted(member.tags) == sorted(["toy", step, group, f"ppo.kl_coef={kl_coef}"])


@pytest.mark.slow
def test_an_override_is_of_what_comes_after_it_alone(finished: Path, tmp_path: Path) -> None:
    store = without(finished, tmp_path, "compare")
    run(store, None, "step=reward", "steps.reward.learning_rate=0.002", "-m")
    left = offline_runs(store)
    assert left["toy/reward:v1"].config["overrides"] == {"steps": {"reward": {"learning_rate": 0.002}}}
    assert left["toy/compare:v0"].config["overrides"] == {}


# -- trouble ------------------------------------------------------------------------------------------------------


_CUT_BACK = """
import json, sys
from pathlib import Path
from align.configs import TrackerConfig
from align.runtime.tracking import Tracked, make_tracker

root = Path(sys.argv[1])
(root / "work/out").mkdir(parents=True)
for begin, kept, end in ((1, 0, 5), (4, 3, 6)):  # five steps, cut back to the third
    rows = [json.dumps({"step": step, "objective/kl": step / 10}) + chr(10) for step in range(1, kept + 1)]
    (root / "work/out/metrics.jsonl").write_text("".join(rows))
    tracker = make_tracker(TrackerConfig(), root)
    tracker.start(Tracked(name="mine/ppo", stage="ppo", group="mine-1"), root / "work")
    for step in range(begin, end + 1):
        tracker.log({"objective/kl": step / 10}, step)
    tracker.finish()
"""


def test_what_the_service_has_is_not_told_again(tmp_path: Path, service: Service) -> None:
    command = [sys.executable, "-c", _CUT_BACK, str(tmp_path)]
    subprocess.run(command, env=environment(tmp_path, service.url), check=True)
    ((_, told),) = service.runs.items()
    rows = [(row["ppo/iteration"], row["ppo/objective/kl"]) for row in told["history"]]
    assert rows == [(step, step / 10) for step in (1, 2, 3, 4, 5, 5, 6)]  # the last may have had more lines
    counts = [row["_step"] for row in told["history"]]
    assert counts == sorted(set(counts))


@pytest.mark.slow
def test_killed_it_goes_on_in_the_same_run_without_a_gap(finished: Path, tmp_path: Path, service: Service) -> None:
    store = without(finished, tmp_path, "ppo")
    options = ("step=ppo", "hardware.checkpoint_seconds=0", "steps.ppo.num_iterations=30")
    process = subprocess.Popen(
        toy(store, service.url, *options), env=environment(tmp_path, service.url), stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(store.glob("work/ppo/*/checkpoints/step-5")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    done = run(store, service.url, *options)
    assert "going on from" in done.stderr
    (line,) = re.findall(r"W&B does not know (.*); the digests", done.stderr)
    assert sorted(line.split(", ")) == ["toy/prompts", "toy/reward", "toy/sft", "toy/text"]  # cached, never told
    ((run_id, told),) = service.runs.items()
    assert told["name"] == "toy/ppo:v1"
    steps = [row["ppo/iteration"] for row in told["history"]]
    assert sorted(set(steps)) == list(range(1, 31))
    assert [output["name"] for output in service.outputs(run_id)] == ["toy.ppo"]
    assert service.alerts  # few toy responses end by themselves


@pytest.mark.slow
@pytest.mark.parametrize(("answers", "steps"), [("closed", ("text", "tokenizer")), ("nothing", ("reward", "ppo"))])
def test_a_service_that_is_down_costs_seconds_and_changes_nothing(
    finished: Path, tmp_path: Path, answers: str, steps: tuple[str, str]
) -> None:
    store = without(finished, tmp_path)
    made = manifests(store)
    for step in steps:
        shutil.rmtree(store / "objects" / made[step]["stage"] / made[step]["key"])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if answers == "nothing":
            listener.listen()
        begun = time.monotonic()
        done = run(store, url, f"step={steps[-1]}")
    assert time.monotonic() - begun < 60  # the question takes 5; torch and two steps are the rest; wandb alone waits 90
    assert done.stderr.count("W&B does not answer") == 1
    assert digests(store) == digests(finished)
    left = {name: told.config["step"] for name, told in offline_runs(store).items()}
    assert left == {f"toy/{step}:v0": f"toy/{step}" for step in steps}  # panels of rounds are grouped by it


@pytest.mark.slow
def test_a_service_that_falls_silent_holds_one_step_up(finished: Path, tmp_path: Path, service: Service) -> None:
    store = without(finished, tmp_path, "reward", "ppo")
    service.silent_after = "UpsertBucket"
    begun = time.monotonic()
    done = run(store, service.url, "step=ppo")
    assert time.monotonic() - begun < 120
    assert done.stderr.count("offline from here on") == 1
    assert digests(store) == digests(finished)
    assert sorted(offline_runs(store)) == ["toy/ppo:v0"]


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 429, 500])
def test_a_service_that_refuses_changes_nothing_and_gets_all_of_it_later(
    finished: Path, tmp_path: Path, service: Service, status: int
) -> None:
    """A wrong key, too many requests, a fault of the service's own."""
    store = without(finished, tmp_path, "reward", "ppo")
    service.refuses = status
    begun = time.monotonic()
    done = run(store, service.url, "step=ppo")
    assert time.monotonic() - begun < 180
    assert done.stderr.count("W&B does not answer or refuses") == 1
    assert KEY not in done.stdout + done.stderr
    assert digests(store) == digests(finished)
    assert sorted(offline_runs(store)) == ["toy/ppo:v0", "toy/reward:v0"]
    service.refuses = None
    sync(store, service)
    assert sorted(told["name"] for told in service.runs.values()) == ["toy/ppo:v0", "toy/reward:v0"]
    assert sorted(a["name"] for run_id in service.runs for a in service.outputs(run_id)) == ["toy.ppo", "toy.reward"]


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 429, 500])
def test_a_service_that_refuses_in_the_middle_of_a_run_changes_nothing(
    finished: Path, tmp_path: Path, service: Service, status: int
) -> None:
    store = without(finished, tmp_path, "reward", "ppo")
    service.refuses, service.refuses_after = status, "UpsertBucket"
    begun = time.monotonic()
    done = run(store, service.url, "step=ppo")
    assert time.monotonic() - begun < 180
    assert re.search(r"toy/reward: (not all reached W&B|W&B stopped taking)", done.stderr), done.stderr
    assert done.stderr.count("offline from here on") == 1
    assert digests(store) == digests(finished)
    assert sorted(offline_runs(store)) == ["toy/ppo:v0"]


@pytest.mark.slow
def test_a_slow_service_changes_nothing(finished: Path, tmp_path: Path, service: Service) -> None:
    store = without(finished, tmp_path, "reward")
    service.slow = 0.5
    run(store, service.url, "step=reward")
    assert digests(store) == digests(finished)
    ((run_id, told),) = service.runs.items()
    assert told["name"] == "toy/reward:v0"
    assert [row["reward/step"] for row in told["history"] if "reward/loss" in row] == steps_of(store, "reward")
    assert [output["name"] for output in service.outputs(run_id)] == ["toy.reward"]


@pytest.mark.slow
def test_without_wandb_the_results_are_the_same(finished: Path, tmp_path: Path) -> None:
    store = without(finished, tmp_path, "reward")
    script = "import sys; sys.modules['wandb'] = None; from align.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = toy(store, None, "step=reward")
    done = subprocess.run(
        [sys.executable, "-c", script, *command[3:]],
        env=environment(tmp_path, None),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("W&B stopped taking this step's numbers") == 1
    assert digests(store) == digests(finished)


@pytest.mark.slow
def test_two_processes_tell_one_run(finished: Path, tmp_path: Path, service: Service) -> None:
    store = without(finished, tmp_path, "reward")
    run(store, service.url, "step=reward", "hardware=two_processes")
    ((run_id, told),) = service.runs.items()
    assert told["name"] == "toy/reward:v0"
    steps = [row["reward/step"] for row in told["history"] if "reward/loss" in row]
    assert steps == steps_of(store, "reward")
    assert [output["name"] for output in service.outputs(run_id)] == ["toy.reward"]


# -- the dashboard ------------------------------------------------------------------------------------------------


def test_the_dashboard_is_saved_as_a_view(tmp_path: Path, service: Service) -> None:
    pytest.importorskip("wandb_workspaces")
    from dashboard import SECTIONS, named_metrics

    command = [sys.executable, str(ROOT / "pipelines" / "dashboard.py"), "--project", "mine"]
    done = subprocess.run(
        command, env=environment(tmp_path, service.url), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (view,) = service.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("us", "mine", "align")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    shown = {section["name"]: len(section["panels"]) for section in sections if section["panels"]}
    assert shown == {name: len(panels) for name, panels in SECTIONS.items()}
    assert [name for name in named_metrics() if name not in view["spec"]] == []
    kinds = Counter(panel["viewType"] for section in sections for panel in section["panels"])
    of = Counter(type(panel).__name__ for panels in SECTIONS.values() for panel in panels)
    assert (kinds["Scatter Plot"], kinds["Bar Chart"], kinds["Run History Line Plot"]) == (
        of["Dots"],
        of["Bars"],
        of["Lines"],
    )
    assert '"groupBy":"step.value"' in view["spec"].replace(" ", "")
