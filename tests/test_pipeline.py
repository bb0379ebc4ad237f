"""The toy pipeline through the command line: caching, sweeps, single stages, kills, signals, several processes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CONF, align, manifests, mostly_slow, run_toy
from processes import left_of, ranks_of, start

from align.cli.main import main
from align.pipeline import run as pipeline
from align.report.running import unfinished
from align.store.artifacts import ArtifactStore

ROOT = Path(__file__).parent.parent
STAGES = ("pretrain", "sft", "compare", "reward", "ppo", "evaluate")


def weights(manifest: dict) -> str:
    return manifest["files"]["model.safetensors"]["sha256"]


def log_without_times(store: Path, manifest: dict) -> list[dict]:
    path = store / "objects" / manifest["stage"] / manifest["key"] / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def assert_same(one: Path, two: Path) -> None:
    """Both stores hold the same results: every file but the log to the byte, the log but for its times."""
    a, b = manifests(one), manifests(two)
    assert a.keys() == b.keys()
    for step in a:
        assert a[step]["key"] == b[step]["key"]
        assert a[step]["metrics"] == b[step]["metrics"], step
        files = [
            {name: f["sha256"] for name, f in m["files"].items() if name != "metrics.jsonl"} for m in (a[step], b[step])
        ]
        assert files[0] == files[1], step
        assert log_without_times(one, a[step]) == log_without_times(two, b[step]), step


# -- what is done is not done again ------------------------------------------------------------------------------


def test_a_second_run_runs_nothing(finished: Path) -> None:
    """Nor does it import torch, which would take seconds."""
    code = "import sys; from align.cli.main import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    command = ["run", "pipeline=toy", "--config-dir", str(CONF), f"store={finished}", "tracker=none", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    outcomes = json.loads(done.stdout)
    assert [outcome["step"] for outcome in outcomes if not outcome["cached"]] == []
    assert len(outcomes) == 11
    assert all(outcome["ref"].endswith(":v0") for outcome in outcomes)


def test_plan_says_why_a_step_is_not_cached(finished: Path) -> None:
    done = align("plan", "pipeline=toy", "--config-dir", CONF, f"store={finished}", "steps.ppo.kl_coef=0.5", "--json")
    steps = {step["step"]: step for step in json.loads(done.stdout)}
    assert steps["toy/reward"]["cached"]
    assert steps["toy/ppo"]["reason"] == "kl_coef 0.02 -> 0.5"
    assert steps["toy/evaluate"]["reason"] == "input model changed"


def test_a_function_that_changes_after_the_plan_does_not_run_under_the_key_of_the_old(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the two may be hours, in which earlier steps of the pipeline run."""
    rule = tmp_path / "late_rules.py"
    rule.write_text("def score(prompts, **_):\n    return [0.0] * len(prompts)\n")
    monkeypatch.chdir(tmp_path)
    run_pipeline = pipeline.run_pipeline

    def run_later(*given: Any) -> Any:
        rule.write_text("def score(prompts, **_):\n    return [1.0] * len(prompts)\n")
        return run_pipeline(*given)

    monkeypatch.setattr(pipeline, "run_pipeline", run_later)
    command = ["run", "pipeline=toy", "--config-dir", str(CONF), f"store={store}", "tracker=none", "step=ppo"]
    versions = sorted((store / "names/toy/ppo").glob("v*.json"))
    assert main([*command, "steps.ppo.reward_functions={late_rules:score:1.0}"]) == 2
    assert "steps.ppo: files that it reads were changed after the plan" in capsys.readouterr().err
    assert sorted((store / "names/toy/ppo").glob("v*.json")) == versions


def test_a_seed_of_the_run_reaches_every_step_that_has_one(finished: Path) -> None:
    done = align("plan", "pipeline=toy", "--config-dir", CONF, f"store={finished}", "seed=3", "--json")
    run_again = [step["stage"] for step in json.loads(done.stdout) if not step["cached"]]
    assert run_again == list(STAGES)


def test_a_sweep_shares_what_is_upstream(store: Path) -> None:
    done = run_toy(store, "steps.ppo.kl_coef=0.01,0.1", "-m", "step=ppo", "steps.ppo.num_iterations=1")
    assert done.stderr.count("not made yet") == 0
    versions = sorted(path.name for path in (store / "names/toy/ppo").glob("v*.json"))
    assert versions == ["v0.json", "v1.json", "v2.json"]
    for step in ("pretrain", "sft", "compare", "reward"):
        assert [path.name for path in (store / "names/toy" / step).glob("v*.json")] == ["v0.json"]
    keys = {json.loads(path.read_text())["key"] for path in (store / "names/toy/ppo").glob("v*.json")}
    assert len(keys) == 3


def test_a_planned_sweep_is_a_line_of_json_a_member(finished: Path) -> None:
    plan = ("plan", "pipeline=toy", "--config-dir", CONF, f"store={finished}")
    done = align(*plan, "steps.ppo.kl_coef=0.1,0.2", "-m", "--json")
    members = [json.loads(line) for line in done.stdout.splitlines()]
    assert [member["overrides"][2] for member in members] == ["steps.ppo.kl_coef=0.1", "steps.ppo.kl_coef=0.2"]
    assert all(len(member["steps"]) == 11 for member in members)


def test_a_failed_member_does_not_stop_a_sweep(store: Path) -> None:
    done = run_toy(store, "steps.tokenizer.vocab_size=300,200,320", "step=tokenizer", "-m", check=2)
    assert "error: vocab_size must exceed 261" in done.stderr
    assert len(list((store / "names/toy/tokenizer").glob("v*.json"))) == 3


ITEMS = [
    {"query": "Question: who is it?", "choices": ["Ada lives here", "no"], "gold": 0},
    {"query": "Question: what is it?", "choices": ["a cat", "a dog", "no"], "gold": 2},
]


def test_models_are_scored_on_a_user_s_items(store: Path, tmp_path: Path) -> None:
    """Alone and against a baseline; twice the same model differs nowhere."""
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ITEMS))
    given = (f"inputs.items=path:{tmp_path / 'mine.jsonl'}", f"store={store}", "tracker=none", "num_bootstrap=20")
    done = align("evaluate", "inputs.model=toy/ppo", "inputs.baseline=toy/sft", *given)
    assert "mine accuracy" in done.stdout
    (manifest,) = [m for m in store.glob("objects/evaluate/*/manifest.json") if "tasks/mine" in m.read_text()]
    metrics = json.loads(manifest.read_text())["metrics"]
    assert metrics["tasks/mine/items"] == 2
    for name in ("accuracy", "accuracy_norm"):
        own, baseline = metrics[f"tasks/mine/{name}"], metrics[f"tasks/mine/baseline/{name}"]
        assert {own, baseline} <= {0.0, 0.5, 1.0}
        assert metrics[f"tasks/mine/gain/{name}"] == own - baseline
        assert metrics[f"tasks/mine/{name}_low"] <= own <= metrics[f"tasks/mine/{name}_high"]
    assert "prompts" not in metrics
    done = align("evaluate", "inputs.model=toy/ppo", "inputs.baseline=toy/ppo", *given)
    (page,) = (line.split()[1] for line in done.stdout.splitlines() if line.startswith("report:"))
    assert "+0.0 % [0.0, 0.0]" in Path(page).read_text()


def test_an_evaluation_wants_prompts_or_items(finished: Path) -> None:
    done = align("evaluate", "inputs.model=toy/ppo", f"store={finished}", check=2)
    asked = "expected prompts, items or text, some or all, or tasks: what it is scored on"
    assert done.stderr == f"error: inputs: {asked}\n"
    short = align("evaluate", "model=toy/ppo", f"store={finished}", check=2)
    assert short.stderr == done.stderr


# -- one stage by itself -----------------------------------------------------------------------------------------

ALONE = {
    "tokenizer": ("inputs.data=card:smallworld", "vocab_size=300"),
    "pretrain": ("inputs.data=toy/text", "inputs.model=toy/pretrain", "num_steps=2", "batch_size=2"),
    "sft": ("inputs.model=toy/pretrain:latest", "inputs.data=toy/demonstrations", "batch_size=4", "num_epochs=1"),
    "compare": ("inputs.model=toy/sft", "inputs.prompts=toy/prompts:v0", "max_new_tokens=4"),
    "reward": ("inputs.model=toy/sft", "inputs.data=toy/compare", "batch_size=16"),
    "ppo": (
        *("inputs.policy=toy/sft", "inputs.reward_model=toy/reward", "inputs.prompts=toy/prompts", "num_iterations=1"),
        *("rollout_batch_size=8", "minibatch_size=8", "max_new_tokens=4"),
    ),
    "evaluate": ("inputs.model=toy/sft", "inputs.prompts=toy/prompts", "max_new_tokens=4"),
}


@pytest.mark.parametrize("stage", [name for name in ALONE if name != "tokenizer"])
def test_each_stage_runs_by_itself(store: Path, stage: str) -> None:
    done = align(stage, *ALONE[stage], f"store={store}", "tracker=none", "name=mine/it", "--json")
    *implied, outcome = json.loads(done.stdout)
    assert [other["ref"] for other in implied] == ["mine/it.tokens:v0"] * (stage == "pretrain")
    assert outcome["ref"] == "mine/it:v0"
    assert not outcome["cached"]


@pytest.mark.slow
def test_a_lora_run_publishes_its_adapter_alone(store: Path) -> None:
    align("sft", *ALONE["sft"], "lora.rank=2", f"store={store}", "tracker=none", "name=mine/lora")
    artifact = json.loads(align("artifacts", "--store", store, "show", "mine/lora", "--json").stdout)
    assert "adapter_model.safetensors" in artifact["files"]
    assert "model.safetensors" not in artifact["files"]


def test_a_model_folder_can_be_imported(store: Path, finished: Path) -> None:
    sft = manifests(store)["sft"]
    source = f"path:{finished}/objects/sft/{sft['key']}"
    done = align(
        *("evaluate", f"inputs.model={source}", "inputs.prompts=toy/prompts", "max_new_tokens=4"),
        *(f"store={store}", "tracker=none", "name=mine/it", "--json"),
    )
    imported, evaluated = json.loads(done.stdout)
    assert imported["step"] == "mine/it.model"
    path = Path(imported["path"]) / "manifest.json"
    assert weights(json.loads(path.read_text())) == weights(sft)
    assert evaluated["metrics"]["prompts"] == 26


# -- killed, stopped, in several processes -----------------------------------------------------------------------

# What shows that a stage is in the middle of its work.
MARKS = {
    "tokenizer": "out",
    "tokens": "out",
    "pretrain": "checkpoints/step-[3-9]",
    "sft": "checkpoints/step-[3-9]",
    "compare": "out",
    "reward": "checkpoints/step-[2-9]",
    "ppo": "checkpoints/step-[2-5]",
    "evaluate": "out",
}


def start_toy(store: Path, *arguments: str) -> subprocess.Popen[str]:
    toy = ("run", "pipeline=toy", "--config-dir", str(CONF), f"store={store}", "tracker=none")
    return start([*toy, "hardware.checkpoint_seconds=0", *arguments])


def wait_for(process: subprocess.Popen[str], store: Path, stage: str) -> bool:
    """True when the stage is in the middle of its work; False when the process ended before that was seen."""
    while process.poll() is None:
        if in_the_middle(store, stage):
            return True
        time.sleep(0.001)
    return False


@pytest.mark.slow
def test_killed_in_every_stage_it_goes_on_to_the_same_artifacts(finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "artifacts"
    for stage in MARKS:
        process = start_toy(store)
        assert wait_for(process, store, stage), f"{stage} was over before it could be killed"
        process.kill()
        process.wait()
        assert not list((store / "objects").glob(f"{stage}/*"))
        (step,) = unfinished(ArtifactStore(store), ["toy"])
        assert (step.stage, step.is_running) == (stage, False)
        assert step.state.startswith("did not end: it was killed")
    run_toy(store)
    assert_same(finished, store)
    assert not list((store / "work").glob("*/*"))


@pytest.mark.slow
def test_dropout_and_every_other_stream_resume_exactly(tmp_path: Path) -> None:
    dropout = "steps.pretrain.model.dropout=0.1"
    run_toy(tmp_path / "whole", dropout, "step=pretrain")
    store = tmp_path / "killed"
    process = start_toy(store, dropout, "step=pretrain")
    assert wait_for(process, store, "pretrain")
    process.kill()
    process.wait()
    done = run_toy(store, dropout, "step=pretrain")
    assert "going on from" in done.stderr
    assert_same(tmp_path / "whole", store)


@pytest.mark.slow  # 10 s: a process that imports torch twice
def test_a_stage_without_checkpoints_hears_a_stop_too(finished: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(finished, tmp_path / "artifacts"))
    for stage in ("compare", "reward"):
        shutil.rmtree(store / "objects" / stage)
    process = start_toy(store, "step=reward")
    assert wait_for(process, store, "compare")
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert not (store / "objects/reward").exists()


@contextlib.contextmanager
def sigterm_when(seen: Callable[[], bool]) -> Iterator[None]:
    """Ask this process to stop, as a terminal or a cluster does, once `seen` is true."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if seen():
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes too late ends no test run
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGTERM, before)


def in_the_middle(store: Path, stage: str) -> bool:
    return any(store.glob(f"work/{stage}/*/{MARKS[stage]}"))


def test_asked_to_stop_it_saves_and_says_so(finished: Path, store: Path) -> None:
    shutil.rmtree(store / "objects/ppo")
    with sigterm_when(lambda: in_the_middle(store, "ppo")):
        told = run_toy(store, "step=ppo", "hardware.checkpoint_seconds=0", check=143).stderr
    assert told.splitlines()[-1] == "error: stopped; give the same command to continue from here"
    assert "going on from" in run_toy(store, "step=ppo").stderr
    one, two = manifests(store)["ppo"], manifests(finished)["ppo"]
    assert weights(one) == weights(two)
    assert one["metrics"] == two["metrics"]


def test_a_stop_ends_a_sweep(store: Path) -> None:
    with sigterm_when(lambda: in_the_middle(store, "ppo")):
        run_toy(store, "step=ppo", "steps.ppo.seed=1,2", "hardware.checkpoint_seconds=0", "-m", check=143)
    assert len(list((store / "objects/ppo").iterdir())) == 1


@pytest.mark.slow
def test_every_stage_runs_in_bf16(tmp_path: Path) -> None:
    knobs = [f"steps.{stage}.precision=bf16" for stage in ("pretrain", "sft", "reward", "ppo", "evaluate")]
    outcomes = json.loads(run_toy(tmp_path / "artifacts", *knobs, "--json").stdout)
    assert len(outcomes) == 11


@pytest.mark.parametrize("stage", mostly_slow(STAGES, ["ppo"]))
def test_two_processes_do_what_one_does(finished: Path, store: Path, stage: str) -> None:
    """By default PPO alone, which has all that the others share: each starts three processes that import torch."""
    alone = manifests(store)[stage]
    shutil.rmtree(store / "objects" / stage)
    run_toy(store, f"step={stage}", "hardware=two_processes")
    together = manifests(store)[stage]
    assert together["key"] == alone["key"]
    assert together["files"].keys() == alone["files"].keys()
    first, first_alone = (
        log_without_times(where, manifest)[:1] for where, manifest in ((store, together), (finished, alone))
    )
    for row, row_alone in zip(first, first_alone, strict=True):
        assert row == pytest.approx(row_alone, rel=1e-5, abs=1e-6)
    # Adam makes a step of full size out of a gradient that is nothing but rounding, so training drifts apart a little.
    drift = 5e-3 if stage in ("pretrain", "sft", "reward", "ppo") else 1e-6
    assert together["metrics"] == pytest.approx(alone["metrics"], rel=drift, abs=drift / 10)


FROM_REWARDS = (
    *("policy=toy/sft", "reward_model=toy/reward", "prompts=toy/prompts", "num_iterations=3", "rollout_batch_size=12"),
    *("minibatch_size=12", "max_new_tokens=8"),
)
FROM_RANKINGS = ("model=toy/sft", "data=toy/compare", "learning_rate=1e-3")
BESIDE = {
    "grpo": (*FROM_REWARDS, "group_size=4", "learning_rate=1e-3"),
    "rloo": (*FROM_REWARDS, "group_size=4", "learning_rate=1e-3"),
    "dpo": (*FROM_RANKINGS, "batch_size=9"),
    "kto": (*FROM_RANKINGS, "batch_size=33"),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", BESIDE)
def test_two_processes_do_what_one_does_in_stages_beside_the_recipe(store: Path, stage: str) -> None:
    """Small passes, so that the processes have different numbers of them."""
    given = (*BESIDE[stage], "seed=1", f"store={store}", "tracker=none", "hardware.micro_batch_tokens=150")
    made = []
    for name, hardware in (("alone", "hardware.threads=1"), ("together", "hardware=two_processes")):
        align(stage, *given, hardware, f"name=mine/{name}")
        found = ArtifactStore(store).find(f"mine/{name}")
        made.append((found.manifest, log_without_times(store, found.manifest)))
        shutil.rmtree(found.path)
    (alone, log_alone), (together, log) = made
    assert together["key"] == alone["key"]
    assert together["files"].keys() == alone["files"].keys()
    assert len(log) == len(log_alone) > 2
    assert log[0] == pytest.approx(log_alone[0], rel=1e-4, abs=1e-5)
    # As above, training drifts apart a little.
    assert together["metrics"] == pytest.approx(alone["metrics"], rel=5e-3, abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_of_two_processes_is_killed_both_end_and_the_next_start_goes_on(store: Path, rank: int) -> None:
    """One line says which and by what; rewards and weights are then those of two processes that nobody disturbed."""
    shutil.rmtree(store / "objects/ppo")
    whole = Path(shutil.copytree(store, store.parent / "whole"))
    more = ("step=ppo", "hardware=two_processes", "steps.ppo.num_iterations=40")
    run_toy(whole, *more)
    process = start_toy(store, *more)
    assert wait_for(process, store, "ppo")
    os.kill(ranks_of(process.pid)[rank], signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 137
    lines = [line for line in told.splitlines() if not line.startswith(("[", "  toy/ppo: "))]
    said = f"rank {rank} was killed by SIGKILL (out of memory?); give the same command to go on"
    assert lines == [f"error: toy/ppo: {said}"]
    assert left_of(process.pid, store) == []
    (log,) = store.glob("work/ppo/*/ranks.log")
    assert "Error" in log.read_text()  # what the other rank says of it
    done = run_toy(store, *more)
    assert "going on from" in done.stderr
    one, two = manifests(store)["ppo"], manifests(whole)["ppo"]
    assert weights(one) == weights(two)
    assert log_without_times(store, one) == log_without_times(whole, two)


@pytest.mark.slow
def test_a_rank_that_is_in_a_long_step_when_its_parent_is_killed_loses_no_line_of_the_log(store: Path) -> None:
    """The command is given again before there is a checkpoint, and while rank 0 is still in the middle of a step."""
    shutil.rmtree(store / "objects/ppo")
    more = ("step=ppo", "hardware=two_processes", "steps.ppo.num_iterations=40", "hardware.checkpoint_seconds=1000")
    process = start_toy(store, *more)
    while sum(len(log.read_text().splitlines()) for log in store.glob("work/ppo/*/out/metrics.jsonl")) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    rank = ranks_of(process.pid)[0]
    os.kill(rank, signal.SIGSTOP)
    process.kill()
    process.wait()
    again = start_toy(store, *more)
    told = b""
    try:
        assert again.stderr is not None
        os.set_blocking(again.stderr.fileno(), False)
        while b"still save; waiting" not in told and not ranks_of(again.pid):
            time.sleep(0.05)
            with contextlib.suppress(BlockingIOError):
                told += os.read(again.stderr.fileno(), 2**16)
        os.set_blocking(again.stderr.fileno(), True)
    finally:
        os.kill(rank, signal.SIGCONT)
    told += again.communicate(timeout=120)[1].encode()
    assert again.returncode == 0, told.decode()
    assert b"going on from" in told
    assert [row["step"] for row in log_without_times(store, manifests(store)["ppo"])] == list(range(1, 41))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_ranks_save_and_end_with_their_parent_however_it_ends(store: Path, number: int, code: int) -> None:
    shutil.rmtree(store / "objects/ppo")
    more = ("step=ppo", "hardware=two_processes", "steps.ppo.num_iterations=40")
    process = start_toy(store, *more)
    assert wait_for(process, store, "ppo")
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == code
    assert left_of(process.pid, store) == []
    if number != signal.SIGKILL:
        assert told.splitlines()[-2:] == [
            "stopping at the next step; again to stop at once",
            "error: stopped; give the same command to continue from here",
        ]
    (work,) = store.glob("work/ppo/*")
    saved = max(int(path.name.partition("-")[2]) for path in work.glob("checkpoints/step-*"))
    logged = [json.loads(line)["step"] for line in (work / "out/metrics.jsonl").read_text().splitlines()]
    assert logged[-1] == saved  # no step is lost
    assert f"going on from {saved}" in run_toy(store, *more).stderr


@pytest.mark.slow
def test_a_defect_in_a_rank_is_one_line_and_the_log_shows_where(store: Path, tmp_path: Path) -> None:
    (tmp_path / "defect.py").write_text(
        "import align.stages.reward as r\ndef run(*_): raise RuntimeError('made up')\nr.run = run\n"
    )
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif os.environ.get('RANK') == '1':\n    import defect\n")
    shutil.rmtree(store / "objects/reward")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
        done = run_toy(store, "step=reward", "hardware=two_processes", check=1)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: toy/reward: rank 1: RuntimeError: made up (a bug in align, not in your input; ")
    (log,) = store.glob("work/reward/*/ranks.log")
    assert str(log) in last
    assert "defect.py" in log.read_text()


@pytest.mark.slow
def test_another_number_of_processes_is_refused_in_the_middle_of_a_step(tmp_path: Path, finished: Path) -> None:
    store = Path(shutil.copytree(finished, tmp_path / "artifacts"))
    shutil.rmtree(store / "objects/reward")
    process = start_toy(store, "step=reward")
    assert wait_for(process, store, "reward")
    process.kill()
    process.wait()
    done = run_toy(store, "step=reward", "hardware=two_processes", check=2)
    assert "this step was started with 1, got 2" in done.stderr


def test_a_loss_that_is_not_finite_stops_the_run(store: Path) -> None:
    knobs = ("steps.pretrain.optimizer=adamw", "steps.pretrain.learning_rate=1e30", "steps.pretrain.max_grad_norm=1e30")
    done = run_toy(store, "step=pretrain", *knobs, check=4)
    assert "lower learning_rate" in done.stderr.splitlines()[-1]
    assert len(list((store / "objects/pretrain").iterdir())) == 1


@pytest.mark.slow  # 7 s: two processes; the store alone is tested in test_artifacts_processes.py
def test_two_commands_at_once_make_an_artifact_once(tmp_path: Path) -> None:
    commands = [start_toy(tmp_path / "artifacts", "step=tokenizer") for _ in range(2)]
    told = [command.communicate()[1] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], told
    assert len(list((tmp_path / "artifacts/objects/tokenizer").iterdir())) == 1
    assert [p.name for p in (tmp_path / "artifacts/names/toy/tokenizer").glob("v*")] == ["v0.json"]


def test_an_offline_wandb_run_is_left_for_each_step(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    shutil.rmtree(store / "objects/reward")
    done = run_toy(store, "step=reward", "tracker=wandb")
    assert len(list((store / "wandb").glob("offline-run-*"))) == 1
    assert "wandb sync" in done.stdout
