"""align from Python: the same results as the command line, in notebooks and threads, and the process left as it was."""

import asyncio
import contextlib
import functools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONF, manifests
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from mypy import api as mypy
from omegaconf import OmegaConf
from tiny_models import sentinel_tokenizer, tiny_t5

import align
from align.models.heads import load_scalar
from align.models.load import load_model, save_model
from align.models.packed import response_scores
from align.store.artifacts import ArtifactStore
from align.text.packing import pack

TEXT = {"source": "card:smallworld", "splits": ["train"], "train_rows": 12, "tracker": "none"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGN_STORE", raising=False)
    return tmp_path


# -- importing ---------------------------------------------------------------------------------------------------


def test_importing_align_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys, align; print([m for m in ('torch', 'hydra', 'omegaconf', 'numpy', 'rich') if m in sys.modules]);"
        "align.plan_run('quickstart'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nFalse\n"
    assert done.stderr == ""


def test_every_name_that_align_offers_is_there() -> None:
    """Beside modules of like names, which other imports put into the package."""
    import align.pipeline.plan
    import align.pipeline.run
    import align.stages.sft

    assert set(align.__all__) <= set(dir(align))
    assert all(callable(getattr(align, name)) for name in align.__all__)
    assert issubclass(align.StoreError, align.AlignError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        align.nothing  # noqa: B018


USER = """\
import align

result: align.Result = align.run("quickstart", overrides=["steps.ppo.kl_coef=0.05"], store="kept", progress=True)
score: float = result["ppo"].metrics["objective/score"]
made: align.Artifact = align.stage("sft", model="a/b", data=result["data"].artifact, lora={"rank": 8}, name="mine/sft")
first: dict[str, object] = made.rows("metrics")[0]
cached: bool = align.plan_run("quickstart")[0].cached
model, tokenizer = align.load(made)
try:
    align.artifact("mine/sft:v0").lineage()
except align.StoreError as error:
    code: int = error.exit_code
wrong: int = result["ppo"].ref
"""


@pytest.mark.slow  # mypy reads all that the types lead to
def test_types_are_known_to_mypy(here: Path) -> None:
    Path("user.py").write_text(USER)
    skipped = "".join(
        f"[mypy-{name}.*]\nfollow_imports = skip\nignore_missing_imports = true\n"
        for name in ("torch", "transformers", "omegaconf", "hydra")
    )
    Path("mypy.ini").write_text(f"[mypy]\nstrict = true\nfollow_imports = silent\n{skipped}")
    said, _, code = mypy.run(["--config-file", "mypy.ini", "--cache-dir", ".cache", "user.py"])
    assert said.splitlines()[:-1] == [
        'user.py:13: error: Incompatible types in assignment (expression has type "str", variable has type "int")  '
        "[assignment]"
    ], said
    assert code == 1


# -- running -----------------------------------------------------------------------------------------------------


def test_a_run_gives_each_step_s_artifact_reference_and_metrics(
    store: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of steps that are there, and of one that is made; the command line's are the same."""
    made = manifests(store)
    result = align.run("toy", ["steps.evaluate.num_bootstrap=30", "tracker=none"], config_dir=CONF, store=store)
    assert {*result} == {*made}
    assert list(result)[-3:] == ["reward", "ppo", "evaluate"]
    assert [step.name for step in result.values() if not step.cached] == ["evaluate"]
    assert result["ppo"].ref == "toy/ppo:v0"
    assert result["ppo"].metrics == made["ppo"]["metrics"]
    assert result["evaluate"].ref == "toy/evaluate:v1"
    assert result["evaluate"].artifact.config["num_bootstrap"] == 30
    assert result.report is not None
    assert result.report.is_file()
    assert "toy/evaluate:v1" in str(result)
    assert "toy/evaluate  " in result.log
    assert capfd.readouterr() == ("", "")
    ppo = align.artifact("toy/ppo", store=store)
    assert ppo == result["ppo"].artifact
    assert [row["step"] for row in ppo.rows("metrics")] == [1, 2, 3, 4, 5, 6]
    stages = [artifact.stage for artifact in ppo.lineage()]
    assert stages[0] == "ppo"
    assert {"sft", "reward", "pretrain", "data"} <= {*stages}


def test_a_stage_gives_what_the_command_line_makes(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Inputs as an artifact and as a path, knobs as Python values; progress where it is asked for."""
    made = align.stage("data", **TEXT, name="my/text")
    assert align.artifact("my/text").path == made.path == next((here / "artifacts/objects/data").iterdir())
    assert capfd.readouterr() == ("", "")
    words = align.stage("tokenizer", data=made, vocab_size=300, tracker="none", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "[1/1] own/tokenizer" in err
    assert words.lineage()[1] == made
    assert align.plan_stage("tokenizer", data="my/text", vocab_size=300)[0].cached
    Path("some ${text}, (1).jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    other = align.stage("data", source=Path("some ${text}, (1).jsonl"), split="train", tracker="none", store="there")
    assert other.metrics["rows/train"] == 2
    assert other.store.root == here / "there"
    assert other.config["source"] == "path:some ${text}, (1).jsonl"


@pytest.mark.slow  # each process imports torch
def test_what_several_processes_print_is_kept_too(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["step=sft", "steps.sft.num_epochs=1", "hardware.num_processes=2", "tracker=none"]
    result = align.run("toy", given, config_dir=CONF, store=store)
    assert not result["sft"].cached
    assert capfd.readouterr() == ("", "")
    with pytest.raises(align.ConfigError, match="sequence_length: expected at most"):
        align.run("toy", [*given, "steps.sft.sequence_length=9999"], config_dir=CONF, store=store)


def test_files_and_overrides_are_those_of_the_command_line(here: Path) -> None:
    Path("text.yaml").write_text("source: card:smallworld\ntrain_rows: 3\nseed: 1\n")
    (step,) = align.plan_stage("data", config="text.yaml", train_rows=4, name="a/b")
    (same,) = align.plan_stage("data", source="card:smallworld", train_rows=4, seed=1)
    assert (step.name, step.key) == ("b", same.key)
    Path("toy.yaml").write_text("pipeline: toy\nsteps: {sft: {num_epochs: 3}}\n")
    by_file = align.plan_run(config="toy.yaml", config_dir=CONF)
    assert by_file == align.plan_run("toy", ["steps.sft.num_epochs=3"], config_dir=CONF)
    assert by_file != align.plan_run("toy", config_dir=CONF)
    assert not list(here.glob("artifacts"))


REFUSED = {
    "an unknown stage": (lambda: align.stage("sfft"), "unknown stage 'sfft' (did you mean sft?)"),
    "an unknown pipeline": (lambda: align.run("quikstart"), "pipeline=quikstart: no such pipeline (did you mean quick"),
    "no pipeline": (align.run, "pipeline: say which"),
    "an unknown knob": (lambda: align.stage("sft", lr=1), "lr: no such knob (did you mean learning_rate?)"),
    "an unknown nested knob": (
        lambda: align.stage("sft", lora={"rang": 1}),
        "lora.rang: no such knob (did you mean lora.",
    ),
    "a knob out of range": (
        lambda: align.stage("data", train_rows=-1, source="card:smallworld"),
        "train_rows: expected",
    ),
    "a knob of another type": (
        lambda: align.stage("sft", batch_size="many", model="a/b"),
        "batch_size: expected an integer, got 'many'",
    ),
    "a missing input": (lambda: align.stage("sft", data="card:smallworld"), "inputs.model: sft needs a model here"),
    "a list for names": (lambda: align.stage("sft", lora=[8]), "lora: expected names with values"),
    "a setting of another type": (lambda: align.stage("sft", seed=True), "seed: expected an integer, got true"),
    "a name in capitals": (lambda: align.stage("sft", name="A B"), "name: expected PIPELINE/STEP, each at most"),
    "a value of no kind": (lambda: align.stage("sft", model=3 + 1j), "model: expected text, numbers, lists or"),
    "null for hardware": (lambda: align.stage("sft", hardware=None), "hardware: expected a name, got null"),
    "a sweep": (lambda: align.run("quickstart", ["-m"]), "-m: expected name=value"),
    "values of a sweep": (
        lambda: align.run("quickstart", ["steps.ppo.seed=1,2"]),
        "steps.ppo.seed=1,2: several values",
    ),
    "a text for overrides": (lambda: align.run("quickstart", "seed=1"), "overrides: expected a list of texts"),
    "a dictionary for overrides": (
        lambda: align.run("quickstart", [{"seed": 1}]),
        "overrides: expected a list of texts",
    ),
    "two stores": (
        lambda: align.run("quickstart", ["store=a"], store="b"),
        "store: store=FOLDER is among the overrides",
    ),
    "no file": (lambda: align.stage("sft", config="none.yaml"), "none.yaml: no such file"),
    "no folder": (lambda: align.run("quickstart", config_dir="none"), "--config-dir none: no such folder"),
    "the mode of a sweep": (lambda: align.stage("sft", hydra={"mode": "MULTIRUN"}), "hydra.mode: not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_a_config_error_and_nothing_is_written(
    case: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    call, said = REFUSED[case]
    with pytest.raises(align.ConfigError) as error:
        call()
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("share", [np.float64(0.25), np.float32(0.25)], ids=["double", "single"])
def test_numbers_of_numpy_are_numbers(share: Any, here: Path) -> None:
    """A loop over `np.logspace(...)` gives these."""
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    rows = {"source": "path:rows.jsonl", "record": "documents"}
    plain = align.plan_stage("data", **rows, validation_share=0.25, seed=3)
    assert align.plan_stage("data", **rows, validation_share=share, seed=np.int64(3)) == plain


def test_a_device_that_is_not_there_is_one_line(finished: Path) -> None:
    for device in ("nope", "cuda:99"):
        with pytest.raises(align.ConfigError, match=f"device: expected one that torch has here, got '{device}'"):
            align.load("toy/sft", store=finished, device=device)


def test_what_runs_on_the_cpu_leaves_gpus_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking a GPU for its random stream starts CUDA, which takes its memory."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert align.stage("data", **TEXT, hardware={"device": "cpu"}).kind == "documents"


def test_a_store_that_is_a_file_is_a_store_error(here: Path) -> None:
    Path("store").write_text("")
    with pytest.raises(align.StoreError, match="store: is not a folder"):
        align.stage("data", **TEXT, store="store")


def test_what_is_not_there_is_a_store_error(here: Path) -> None:
    with pytest.raises(align.StoreError, match="no artifacts here yet"):
        align.artifact("a/b")
    with pytest.raises(align.StoreError, match=r"inputs\.model: a/b: no artifact of that name"):
        align.stage("sft", model="a/b", data="card:smallworld")
    align.stage("data", **TEXT)
    with pytest.raises(align.ConfigError, match=r"expected a model, a reward_model, .* got documents"):
        align.load("own/data")


# -- the process is left as it was -------------------------------------------------------------------------------


def state_of_the_process() -> dict[str, Any]:
    return {
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "module path": list(sys.path),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "streams": (sys.stdout, sys.stderr),
        "logging": (logging.getLogger().level, list(logging.getLogger().handlers), logging.root.manager.disable),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "gradients": torch.is_grad_enabled(),
        "torch's stream": torch.get_rng_state().tolist(),
        "python's stream": random.getstate(),
        "numpy's stream": str(np.random.get_state()),
        "hydra": (GlobalHydra.instance().hydra, HydraConfig.instance().cfg),
        "hydra's configs": sorted(ConfigStore.instance().repo),
        "resolvers": [OmegaConf.has_resolver(name) for name in ("now", "hydra", "mine")],
    }


def test_a_run_leaves_no_state_behind(store: Path, here: Path) -> None:
    align.plan_stage("data", **TEXT)  # whatever is imported now is
    before = state_of_the_process()
    given = {"model": "toy/pretrain", "data": "toy/demonstrations", "batch_size": 48, "num_epochs": 1}
    given |= {"hardware": {"threads": before["threads"] + 1}, "tracker": "none", "store": store, "seed": 5}
    sft = align.stage("sft", **given)
    assert sft.metrics["tokens"] > 0
    assert state_of_the_process() == before
    with pytest.raises(align.AlignError):
        align.stage("sft", **given | {"learning_rate": -1})
    assert state_of_the_process() == before
    with pytest.raises(align.AlignError):
        align.run("toy", ["steps.ppo.kl_cof=1"], config_dir=CONF, store=store)
    assert state_of_the_process() == before


def test_it_runs_beside_a_hydra_app_of_the_user_s(here: Path) -> None:
    """Whose GlobalHydra is initialised, and whose configs have the names of ours."""
    (here / "app.yaml").write_text("a: 1\n")
    ConfigStore.instance().store(group="stage", name="data", node={"theirs": True})
    ConfigStore.instance().store(group="hardware", name="schema", node={"theirs": True})
    OmegaConf.register_new_resolver("now", lambda pattern: "theirs", replace=True)
    try:
        with initialize_config_dir(str(here), version_base="1.3"):
            OmegaConf.register_new_resolver("now", lambda pattern: "theirs", replace=True)
            theirs = GlobalHydra.instance().hydra
            made = align.stage("data", **TEXT)
            assert made.metrics["rows/train"] == 12
            assert GlobalHydra.instance().hydra is theirs
            assert compose("app").a == 1
            assert compose("app", ["+stage=data"]).stage.theirs
            assert OmegaConf.create({"x": "${now:%Y}"}).x == "theirs"
    finally:
        OmegaConf.clear_resolver("now")
        for group in ("stage", "hardware"):
            del ConfigStore.instance().repo[group]


def test_it_runs_inside_a_main_of_hydra_s(here: Path) -> None:
    """In a process of its own: Hydra's main makes a folder and a log."""
    code = (
        "import hydra, align\nfrom hydra.core.hydra_config import HydraConfig\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(cfg):\n"
        "    before = HydraConfig.get().runtime.output_dir\n"
        f"    print(align.plan_stage('data', **{TEXT!r})[0].name)\n"
        "    assert HydraConfig.get().runtime.output_dir == before\n"
        "main()\n"
    )
    Path("app.py").write_text(code)
    done = subprocess.run([sys.executable, "app.py"], capture_output=True, text=True, check=False)
    assert done.stdout == "data\n", done.stderr


def test_it_runs_in_a_notebook_s_loop_and_in_threads(here: Path) -> None:
    """Side by side: one waits for the other, and neither needs the signals of the main thread."""

    async def cell() -> dict[str, float]:
        return align.stage("data", **TEXT).metrics

    assert asyncio.run(cell()) == {"rows/train": 12}
    found: list[Any] = []
    before = state_of_the_process()

    def work(rows: int) -> None:
        with contextlib.suppress(Exception):
            found.append(align.stage("data", **TEXT | {"train_rows": rows}).metrics["rows/train"])

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [3, 4, 5]
    assert state_of_the_process() == before


def test_functions_that_wait_are_rewards_in_a_notebook_s_loop() -> None:
    from align.verifiers.episodes import Episodes
    from align.verifiers.functions import RewardFunction, call_functions

    async def late(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(completion[0]["content"])) for completion in completions]

    episodes = Episodes([{"prompt": [{"role": "user", "content": "a"}]}], [[1]], [[2]], ["four"])

    async def cell() -> Any:
        return call_functions([RewardFunction("late", "here:late", late)], episodes)

    assert call_functions([RewardFunction("late", "here:late", late)], episodes) == {"late": [4.0]}
    assert asyncio.run(cell()) == {"late": [4.0]}


def test_ctrl_c_stops_at_a_step_and_the_same_call_goes_on(
    store: Path, here: Path, request: pytest.FixtureRequest
) -> None:
    """A second one would be what Ctrl-C was before: no kernel of a notebook dies of it."""
    given = {"model": "toy/pretrain", "data": "toy/demonstrations", "batch_size": 2, "num_epochs": 1, "seed": 6}
    given |= {"hardware": {"checkpoint_seconds": 0}, "tracker": "none", "store": store}
    begun = threading.Event()
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        while not list(store.glob("work/sft/*/checkpoints/*")):
            if begun.wait(0.005):
                return
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(align.Preempted) as error:
            align.stage("sft", **given)
    finally:
        begun.set()
        thread.join()
    assert error.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    stopped = align.stage("sft", **given)
    whole = align.stage("sft", **given | {"store": store, "name": "an/other"})
    assert stopped.digest == whole.digest


# -- loading -----------------------------------------------------------------------------------------------------


def test_a_reward_model_comes_with_its_shift(finished: Path) -> None:
    model, tokenizer = align.load("toy/reward", store=finished)
    folder = align.artifact("toy/reward", store=finished).path
    shift = json.loads((folder / "config.json").read_text())["align_reward_shift"]
    assert shift != 0
    ids = pack([tokenizer("Ada lives in Oakvale.")["input_ids"]])
    theirs = response_scores(load_scalar(folder), ids)
    assert torch.equal(response_scores(model, ids), theirs)
    model.shift = 0.0
    torch.testing.assert_close(response_scores(model, ids) - shift, theirs)


def test_a_policy_and_its_average_are_loaded(finished: Path) -> None:
    model, tokenizer = align.load("toy/ppo:v0", store=finished)
    folder = align.artifact("toy/ppo", store=finished).path
    ids = torch.tensor([tokenizer("Who is it?")["input_ids"]])
    assert torch.equal(model(ids).logits, load_model(folder)(ids).logits)
    assert not model.training
    average, _ = align.load("toy/ppo", store=finished, weights="ema")
    assert torch.equal(average(ids).logits, load_model(folder / "ema")(ids).logits)
    assert not torch.equal(average(ids).logits, model(ids).logits)
    with pytest.raises(align.ConfigError, match="keeps no average"):
        align.load("toy/sft", store=finished, weights="ema")
    with pytest.raises(align.ConfigError, match="weights: expected raw or ema, got 'mean'"):
        align.load("toy/ppo", store=finished, weights="mean")


def test_an_adapter_comes_merged(store: Path, here: Path) -> None:
    given = {"model": "toy/pretrain", "data": "toy/demonstrations", "batch_size": 48, "num_epochs": 1}
    adapter = align.stage("sft", **given, lora={"rank": 2}, learning_rate=0.05, tracker="none", store=store)
    assert (adapter.path / "adapter_model.safetensors").is_file()
    model, tokenizer = align.load(adapter)
    base, _ = align.load("toy/pretrain", store=store)
    ids = torch.tensor([tokenizer("Who is it?")["input_ids"]])
    assert not torch.allclose(model(ids).logits, base(ids).logits)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in base.named_parameters()}


def test_a_classifier_comes_with_its_labels(store: Path, here: Path) -> None:
    rows = [{"text": f"{word} it is", "label": word} for word in ("good", "bad") for _ in range(4)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"model": "toy/pretrain", "data": Path("rows.jsonl"), "task": "classification", "num_epochs": 1}
    made = align.stage("finetune", **given, batch_size=2, tracker="none", store=store)
    model, tokenizer = align.load(made)
    logits = model(**tokenizer("good it is", return_tensors="pt")).logits
    assert logits.shape == (1, 2)
    assert {*model.config.id2label.values()} == {"good", "bad"}


def test_an_encoder_decoder_is_loaded_and_a_changed_file_is_not(here: Path) -> None:
    tokenizer = sentinel_tokenizer(10)
    Path("out").mkdir()
    model = tiny_t5(tokenizer)
    save_model(model, tokenizer, Path("out"))
    key = "ab" * 32
    manifest = {"kind": "seq2seq_model", "inputs": {}, "metrics": {}, "config": {}}
    made = ArtifactStore("kept").commit("text_to_text", key, Path("out"), manifest)
    loaded, same = align.load(f"text_to_text@{key[:8]}", store="kept")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (loaded, model))
    torch.testing.assert_close(ours, theirs)
    assert same.get_vocab() == tokenizer.get_vocab()
    file = made.path / "config.json"
    file.write_bytes(file.read_bytes().replace(b"32", b"23"))
    with pytest.raises(align.StoreError, match=r"config\.json has sha256"):
        align.load(made)
