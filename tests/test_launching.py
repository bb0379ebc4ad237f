"""Members of a sweep through the launchers: checked before any begins, cores shared, killed, stopped, gone on with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import CONF, align, manifests, mostly_slow, run_toy
from processes import left_of, start

from align.cli.main import main
from align.pipeline.launch import MemberTask, Numbered, Queue, members_at_once
from align.runtime.cpu import cores
from align.store.sweep_records import Fate, fates

ROOT = Path(__file__).parent.parent
SWEEPS = [path.stem for path in (ROOT / "conf/sweep").glob("*.yaml") if path.stem != "none"]
LONG = ("step=ppo", "steps.ppo.num_iterations=16", "hardware.checkpoint_seconds=0")


# -- what is ready-made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(SWEEPS, ["good_dialogue_share"]))
def test_every_ready_made_sweep_asks_something_and_plans_by_its_own_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / f"conf/sweep/{name}.yaml").read_text()
    comment = "".join(re.findall(r"^# ?(.*)$", text, re.MULTILINE))
    assert "?" in comment
    (command,) = re.findall(rf"align run (pipeline=\w+ sweep={name}(?: step=\w+)?) -m", comment)
    varied = {k: v for k, v in yaml.safe_load(text)["hydra"]["sweeper"]["params"].items() if k != "seed"}
    # The first and the last value alone: Hydra takes half a second to compose a member.
    ends = [f"{k}={','.join(dict.fromkeys([v.split(',')[0], v.split(',')[-1]]))}" for k, v in varied.items()]
    assert main(["plan", *command.split(), *ends, "seed=0", "--json", "-m"]) == 0
    members = [json.loads(line)["steps"] for line in capsys.readouterr().out.splitlines()]
    assert len(members) == (2 if varied else 1)
    last = [steps[-1]["key"] for steps in members]
    assert len(set(last)) == len(last)
    shared = set.intersection(*({step["key"] for step in steps} for steps in members))
    assert len(shared) >= (3 if "steps.text.options.good_dialogue_share" in varied else 5)  # the text is all but data
    assert list(tmp_path.iterdir()) == []


def test_the_reward_model_s_size_changes_nothing_of_the_policy(tmp_path: Path) -> None:
    """At the policy's own width, its model is the policy's."""
    widths = "steps.pretrain_reward.model.hidden_size=96,192"
    given = ("pipeline=quickstart", "sweep=reward_model_size", widths, "seed=0", f"store={tmp_path}")
    done = align("plan", *given, "--json", "-m")
    for line in done.stdout.splitlines():
        member = json.loads(line)
        keys = {step["step"].partition("/")[2]: step["key"] for step in member["steps"]}
        alike = "steps.pretrain_reward.model.hidden_size=96" in member["overrides"]
        assert (keys["pretrain_reward"] == keys["pretrain"]) is alike
        assert (keys["sft_reward"] == keys["sft"]) is alike


@pytest.mark.parametrize("launcher", mostly_slow(["joblib", "submitit_local", "slurm"], ["submitit_local"]))
def test_a_plan_shows_every_member_and_needs_no_launcher_and_no_folder(launcher: str, tmp_path: Path) -> None:
    (tmp_path / "sweeps").touch()  # so that no sweep has a folder there
    given = ("pipeline=toy", "--config-dir", CONF, f"store={tmp_path}", f"launcher={launcher}", "seed=0,1")
    done = align("plan", *given, "--json", "-m")
    members = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["seed=0" in member["overrides"] for member in members] == [True, False]
    assert all(member["steps"] for member in members)
    assert [path.name for path in tmp_path.iterdir()] == ["sweeps"]


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ("joblib", {"n_jobs": 2}),
        ("submitit_local", {"cpus_per_task": 1, "timeout_min": 43200}),
        ("slurm", {"cpus_per_task": 16, "timeout_min": 1440, "gres": "gpu:1", "array_parallelism": 256}),
    ],
)
def test_a_launcher_composes(launcher: str, expected: dict[str, object]) -> None:
    arguments = ("run", "pipeline=quickstart", f"launcher={launcher}", "--cfg", "hydra", "--package", "hydra.launcher")
    composed = yaml.safe_load(align(*arguments).stdout)
    assert composed.items() >= expected.items()
    assert composed["_target_"].startswith("hydra_plugins.")
    if "submitit" in composed["_target_"]:
        assert composed["submitit_folder"] == "${hydra.sweep.dir}/logs/%j"


# -- before any member begins --------------------------------------------------------------------------------------

WRONG = {
    "steps.ppo.kl_coef=0.1,-1": "2 member 1 (steps.ppo.kl_coef=-1): steps.ppo.kl_coef: expected a number from 0 up",
    "steps.ppo.kl_coef=0.1,high": "2 member 1 (steps.ppo.kl_coef=high): steps.ppo.kl_coef: expected a number, got",
    "steps.ppo.kl_cof=0.1,0.2": "2 member 0 (steps.ppo.kl_cof=0.1): steps.ppo.kl_cof: no such knob (did you mean",
    "step=ppo,pppo": "2 member 1 (step=pppo): step=pppo: no such step (did you mean ppo?)",
    "steps.text.source=card:smallworld,card:no": r"2 member 1 (steps.text.source=card\:no): steps.text.source: card:no",
    "steps.ppo.inputs.policy=sft,a/b": "3 member 1 (steps.ppo.inputs.policy=a/b): steps.ppo.inputs.policy: a/b: no",
    "hardware.threads=1,0": "2 member 1 (hardware.threads=0): hardware.threads: expected",
}


@pytest.mark.parametrize(
    ("wrong", "launcher"),
    [
        *mostly_slow([(wrong, "basic") for wrong in WRONG], [(wrong, "basic") for wrong in list(WRONG)[3::3]]),
        ("steps.ppo.kl_coef=0.1,high", "joblib"),  # does not compose
        ("steps.ppo.kl_coef=0.1,-1", "joblib"),  # composes, and is refused by the plan
    ],
)
def test_a_wrong_value_stops_a_sweep_before_it_begins(
    wrong: str, launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    toy = ("pipeline=toy", "--config-dir", str(CONF))
    code = main(["run", *toy, wrong, f"launcher={launcher}", "tracker=none", "-m"])
    said = capsys.readouterr().err
    assert f"{code} {said.removeprefix('error: ')}".startswith(WRONG[wrong])
    assert said.count("\n") == 1
    assert said.endswith("; no member was run\n")
    assert list(tmp_path.iterdir()) == []


def test_of_batches_the_last_is_checked_before_the_first_begins(tmp_path: Path) -> None:
    given = ("steps.text.train_rows=10,20,-1", "step=text", "hydra.sweeper.max_batch_size=1", "-m")
    done = run_toy(tmp_path / "artifacts", *given, check=2)
    assert done.stderr.startswith("error: member 2 (steps.text.train_rows=-1): ")
    assert not (tmp_path / "artifacts").exists()


def test_an_interpolation_takes_the_value_of_each_member(tmp_path: Path) -> None:
    """And not that of the config without the sweep."""
    data = ("plan", "data", "source=card:smallworld", f"store={tmp_path}", "validation_rows=${train_rows}", "--json")
    swept = [json.loads(line) for line in align(*data, "train_rows=5,6", "-m").stdout.splitlines()]
    alone = [json.loads(align(*data, f"train_rows={count}").stdout) for count in (5, 6)]
    assert [member["steps"][0]["key"] for member in swept] == [steps[0]["key"] for steps in alone]


@pytest.mark.slow
def test_two_sweeps_of_one_second_have_a_folder_each(finished: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(finished, tmp_path / "artifacts"))
    for _ in range(2):
        run_toy(store, "step=text,prompts", f"hydra.sweep.dir={store}/sweeps/now", "-m")
    assert sorted(path.name for path in store.glob("sweeps/*")) == ["now", "now-2"]


# -- cores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "count", "expected"),
    [
        ("joblib", {"n_jobs": 2}, 12, 2),
        ("joblib", {"n_jobs": 8}, 3, 3),
        ("joblib", {"n_jobs": -1}, 12, 8),
        ("joblib", {"n_jobs": -3}, 12, 6),
        ("joblib", {"n_jobs": -20}, 12, 1),
        ("local", {"cpus_per_task": 1}, 12, 8),
        ("local", {"cpus_per_task": 3}, 12, 2),
        ("local", {"cpus_per_task": None}, 4, 4),
        ("local", {"cpus_per_task": 16}, 4, 1),
        ("slurm", {"cpus_per_task": 16}, 12, 1),
        ("basic", {}, 12, 1),
    ],
)
def test_how_many_members_share_this_machine(
    kind: str, settings: dict[str, int], count: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.pipeline.launch.cores", lambda: 8)
    assert members_at_once(kind, SimpleNamespace(**settings), count) == expected  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cores_are_those_that_this_process_may_use() -> None:
    code = "import os; from align.runtime.cpu import cores; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    done = subprocess.run([sys.executable, "-c", code + "; print(cores())"], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_lines_of_members_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Numbered(sys.stderr, 3)
    print("one\n\ntwo", end="", file=stream)
    print(" goes on", file=stream)
    assert capsys.readouterr().err == "3| one\n\n3| two goes on\n"


# -- joblib --------------------------------------------------------------------------------------------------------


def start_sweep(store: Path, *arguments: str) -> subprocess.Popen[str]:
    toy = ("run", "pipeline=toy", "--config-dir", str(CONF), f"store={store}", "tracker=none")
    return start([*toy, *arguments, "-m"])


def when(process: subprocess.Popen[str], store: Path, seen: Callable[[dict[int, Fate]], int | None]) -> int:
    """What `seen` makes of the members' fates once it makes anything of them."""
    while process.poll() is None:
        for folder in store.glob("sweeps/*"):
            found = seen(fates(folder))
            if found is not None:
                return found
        time.sleep(0.01)
    raise AssertionError(process.stderr.read() if process.stderr else "")


def process_of(number: int, tries: int, store: Path) -> Callable[[dict[int, Fate]], int | None]:
    """The process of a member at a try, once it is in the middle of its last step."""

    def seen(known: dict[int, Fate]) -> int | None:
        if number not in known or known[number].state != "running" or not list(store.glob("work/ppo/*/checkpoints/*")):
            return None
        (file,) = store.glob(f"sweeps/*/members/{number}.json")
        row = json.loads(file.read_text())  # a later try may have begun since `known` was read
        return row["pid"] if row["tries"] == tries else None

    return seen


@pytest.mark.slow
def test_a_member_killed_twice_takes_no_other_with_it_and_is_all_that_is_left(store: Path) -> None:
    command = ("steps.ppo.seed=1,2,3", *LONG, "launcher=joblib")
    process = start_sweep(store, *command)
    for tries in (1, 2):
        os.kill(when(process, store, process_of(0, tries, store)), signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == 137, told
    assert "Traceback" not in told
    assert told.count("joblib ended its pool: 0") == 1
    assert "-- 0: killed\n-- 2 of 3 members done; the same command does what is left; align sweep show" in told
    (folder,) = store.glob("sweeps/*")
    assert [fate.state for fate in fates(folder).values()] == ["killed", "done", "done"]
    assert len(list((store / "objects/ppo").iterdir())) == 3
    made = [json.loads(path.read_text()) for path in store.glob("objects/ppo/*/manifest.json")]
    shares = {m["hardware"]["threads"] for m in made if m["config"]["num_iterations"] == 16}
    assert shares == {max(1, cores() // 2)}
    plans = align("plan", "pipeline=toy", "--config-dir", CONF, f"store={store}", *command, "--json", "-m").stdout
    left = [[step["step"] for step in json.loads(line)["steps"] if not step["cached"]] for line in plans.splitlines()]
    assert sorted(left) == [[], [], ["toy/ppo"]]


@pytest.mark.slow
def test_asked_to_stop_members_side_by_side_save_and_no_other_begins(store: Path) -> None:
    command = ("steps.ppo.seed=1,2,3", *LONG, "launcher=joblib")
    process = start_sweep(store, *command)
    when(process, store, lambda known: len(list(store.glob("work/ppo/*/checkpoints"))) == 2 or None)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate()
    assert process.returncode == 143, told
    assert "Traceback" not in told
    (folder,) = store.glob("sweeps/*")
    assert [(fate.state, fate.code) for fate in fates(folder).values()] == [("stopped", 143)] * 2
    assert not (folder / "stopped").exists()
    assert not (folder / "sweep.lock").exists()
    done = run_toy(store, *command[:-1], "-m")  # in this process: what those of joblib print does not come here
    assert done.stderr.count("going on from") == 2
    assert len(list((store / "objects/ppo").iterdir())) == 4


def test_a_pool_launched_anew_does_not_do_again_what_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = MemberTask(lambda config: 0, tmp_path)
    monkeypatch.setattr(
        "align.pipeline.launch.HydraConfig", SimpleNamespace(get=lambda: SimpleNamespace(job=SimpleNamespace(num=7)))
    )
    assert task(None) == 0  # type: ignore[arg-type]
    task.ended[7] = 4
    assert task(None) == 4  # type: ignore[arg-type]
    task.ended.clear()
    (tmp_path / "stopped").write_text("2")
    assert task(None) == 130  # type: ignore[arg-type]


@pytest.mark.slow
def test_twelve_members_at_once_build_what_they_share_once_and_one_that_is_killed_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "artifacts"
    command = ("steps.ppo.seed=1,2,3,4,5,6", "steps.ppo.kl_coef=0.01,0.1", *LONG, "launcher=joblib")
    process = start_sweep(store, *command, "hydra.launcher.n_jobs=4")
    os.kill(when(process, store, process_of(5, 1, store)), signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert len(re.findall(r"joblib ended its pool: .*\b5\b.* cut off", told)) == 1
    assert re.search(r"toy/\w+: another process makes it; waiting", told)
    assert "-- 12 of 12 members done; align sweep show" in told
    shared = dict.fromkeys(("tokenizer", "tokens", "pretrain", "sft", "compare", "reward"), 1)
    made = {folder.name: len(list(folder.iterdir())) for folder in (store / "objects").iterdir()}
    assert made == {**shared, "data": 3, "ppo": 12}
    for label in ("text", "tokenizer", "pretrain", "sft", "compare", "reward"):
        built = re.findall(rf"toy/{label}  [\d.]+ s  toy/{label}:v(\d+)", told)
        assert set(built) == {"0"}, label
    done = run_toy(store, *command[:-1], "-m")
    assert len(re.findall("cached  toy/", done.stderr)) == 12 * 10
    assert align("artifacts", "--store", store, "verify").returncode == 0


# -- the sweep's process ends ----------------------------------------------------------------------------------------


def in_last_step(process: subprocess.Popen[str], store: Path, count: int) -> None:
    when(process, store, lambda known: len(list(store.glob("work/ppo/*/checkpoints/step-*"))) >= count or None)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_members_save_and_end_when_the_sweep_is_killed(store: Path, launcher: str) -> None:
    command = ("steps.ppo.seed=1,2,3", *LONG, f"launcher={launcher}")
    process = start_sweep(store, *command)
    in_last_step(process, store, 2)
    process.kill()
    process.communicate()
    assert left_of(process.pid, store) == []
    (folder,) = store.glob("sweeps/*")
    assert {fate.state for fate in fates(folder).values()} == {"stopped"}
    done = run_toy(store, *command[:-1], "-m")
    assert "going on from" in done.stderr
    assert len(list((store / "objects/ppo").iterdir())) == 4


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_sweep_ends_by_the_signal_it_is_given_and_its_members_are_stopped(
    store: Path, launcher: str, number: int, code: int
) -> None:
    process = start_sweep(store, "steps.ppo.seed=1,2,3", *LONG, f"launcher={launcher}")
    in_last_step(process, store, 1)
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:  # a terminal tells all its processes of Ctrl-C, and of being closed
        os.killpg(process.pid, number)
    _, told = process.communicate()
    assert process.returncode == code, told
    assert "Traceback" not in told
    (folder,) = store.glob("sweeps/*")
    states = [fate.state for fate in fates(folder).values()]
    assert set(states) == {"stopped"}
    assert told.count(": stopped\n") >= len(states)
    assert "-- 0 of 3 members done; the same command does what is left" in told
    assert left_of(process.pid, store) == []


# -- slurm ---------------------------------------------------------------------------------------------------------

_SQUEUE = """#!/bin/sh
cat "$SLURM_FAKE/queue" 2>/dev/null
exit 0
"""
_SCANCEL = """#!/bin/sh
echo "$@" >> "$SLURM_FAKE/cancelled"
: > "$SLURM_FAKE/queue"
"""
_SBATCH = """#!/bin/sh
printf '42_[0-1%%256]|PENDING|Resources\\n' > "$SLURM_FAKE/queue"
echo Submitted batch job 42
"""
_SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
echo '42_[0-1]|PENDING|None assigned'
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands on the path, of a cluster in which no job begins."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    scripts = {
        "squeue": _SQUEUE,
        "scancel": _SCANCEL,
        "sbatch": _SBATCH,
        "sacct": _SACCT,
        "srun": "#!/bin/sh\nexit 1\n",
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_FAKE", str(folder))
    return folder


def test_a_queue_knows_its_own_jobs_alone_and_cancels_what_is_left_of_them(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    for job in ("41_0", "42_0", "42_1"):
        if job == "42_0":
            queue = Queue(logs)  # job 41 was there before
            assert queue.left() == {}
        (logs / job).mkdir(parents=True)
        (logs / job / f"{job}_submitted.pkl").touch()
    assert queue.jobs() == ["42_0", "42_1"]
    queue.cancel()  # nothing is in the queue
    assert not (slurm / "cancelled").exists()
    (slurm / "queue").write_text("42_0|PENDING|Resources\n42_1|RUNNING|None\n")
    assert queue.left() == {"42_0": ("PENDING", "Resources"), "42_1": ("RUNNING", "None")}
    queue.cancel()
    assert (slurm / "cancelled").read_text() == "42_0 42_1\n"
    assert capsys.readouterr().err == "-- cancelled in SLURM: 42_0, 42_1\n"
    queue.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_says_why_slurm_holds_it_back_and_leaves_nothing_in_its_queue(
    store: Path, slurm: Path, number: int, code: int
) -> None:
    process = start_sweep(store, "step=ppo", "steps.ppo.seed=1,2", "launcher=slurm")
    assert process.stderr is not None
    told = ""
    while "waits in SLURM's queue" not in told:
        line = process.stderr.readline()
        assert line, told
        told += line
    assert "-- 42_[0-1%256] waits in SLURM's queue: Resources\n" in told
    process.send_signal(number)
    told += process.communicate(timeout=60)[1]
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert (slurm / "cancelled").read_text().split() == ["42_[0-1%256]"]
    assert "-- 0 of 2 members done; the same command does what is left" in told


def test_without_slurm_its_launcher_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = run_toy(tmp_path / "artifacts", "step=text", "launcher=slurm", "-m", check=2)
    assert done.stderr.splitlines()[-1].startswith("error: launcher=slurm: sbatch and srun are not on this machine")
    assert not (tmp_path / "artifacts").exists()


# -- submitit ------------------------------------------------------------------------------------------------------


def test_submitit_runs_a_process_a_member_and_says_where_it_prints(store: Path) -> None:
    """One has nothing to do, and one is refused for a damaged input: neither imports torch, which takes seconds."""
    text = manifests(store)["text"]
    (rows, *_) = (store / "objects" / text["stage"] / text["key"]).glob("*.parquet")
    content = bytearray(rows.read_bytes())
    content[-20] ^= 1
    rows.write_bytes(content)
    given = ("step=tokenizer", "steps.tokenizer.vocab_size=400,401", "launcher=submitit_local")
    done = run_toy(store, *given, "-m", check=3)
    (folder,) = store.glob("sweeps/*")
    known = fates(folder)
    assert [fate.state for fate in known.values()] == ["done", "failed"]
    assert f"what they print: {folder}/logs" in done.stderr or cores() == 1
    assert f"-- 1: failed: {known[1].error}; what it printed: {known[1].log}\n" in done.stderr
    assert known[1].error in "".join(path.read_text() for path in Path(str(known[1].log)).glob("*.err"))
    assert sorted(path.name for path in folder.iterdir()) == ["logs", "members", "multirun.yaml", "sweep.html"]


@pytest.mark.slow
def test_of_submitit_s_processes_one_is_killed_and_the_others_go_on(store: Path) -> None:
    command = ("steps.ppo.seed=1,2", *LONG, "launcher=submitit_local")
    process = start_sweep(store, *command)
    os.kill(when(process, store, process_of(0, 1, store)), signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == 137, told
    assert "Traceback" not in told
    (folder,) = store.glob("sweeps/*")
    assert [fate.state for fate in fates(folder).values()] == ["killed", "done"]
    assert f"-- 0: killed; what it printed: {folder}/logs/" in told
    done = run_toy(store, *command[:-1], "-m")
    assert "-- 2 of 2 members done" in done.stderr
    assert len(re.findall(r"toy/ppo  [\d.]+ s", done.stderr)) == 1
    assert len(list((store / "objects/ppo").iterdir())) == 3
