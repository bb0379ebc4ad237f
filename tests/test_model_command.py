"""`align model`, and what `align plan` says that each step trains."""

import json
from pathlib import Path

import pytest
from conftest import CONF, manifests

from align.cli.main import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def account(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["model", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_prints_what_a_model_holds_and_costs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "model=llama_7b"]) == 0
    shown = capsys.readouterr().out
    assert "parameters:    6,738,415,616; 6,476,271,616 without embeddings" in shown
    assert "32 layers x 4,096, 32 heads, 32,000 entries" in shown
    assert "for 1.00 T tokens (LLaMA, table 2)" in shown
    assert max(map(len, (line.rstrip() for line in shown.splitlines()))) <= 100
    assert list(here.iterdir()) == []


def test_its_json_is_one_object(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = account(capsys, "model=gpt2")
    assert found["parameters"] == 124_439_808
    assert found["parameters_without_embeddings"] == 124_439_808 - 768 * (50_257 + 1024)
    assert found["memory_bytes"]["fp32"]["adamw"]["total"] == 16 * 124_439_808
    assert found["tokens"] == 20 * 124_439_808
    assert found["training_flops"] == found["tokens"] * found["training_flops_per_token"]


def test_knobs_of_the_model_need_no_prefix(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = account(capsys, "model=llama_7b", "num_layers=2", "options.num_key_value_heads=8")
    long = account(capsys, "model=llama_7b", "model.num_layers=2", "model.options.num_key_value_heads=8")
    assert short == long
    assert short["num_layers"] == 2
    assert short["tokens_source"].startswith("20 a parameter")  # it is LLaMA 7B no more
    assert account(capsys, "model=llama_7b", "tokens=5e9")["tokens"] == 5e9


def test_a_model_without_a_formula_is_counted_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = account(capsys, "model=tiny", "architecture=qwen3")
    assert found["parameters"] > 0
    assert found["architecture"] == "qwen3"


REFUSED = {
    "no model": ([], "model: say which, as in model=gpt1; there are: gpt1"),
    "an unknown model": (["model=gpt_2"], "model=gpt_2: no such model (did you mean gpt2?); there are: gpt1"),
    "an unknown knob": (
        ["model=gpt2", "model.hiden_size=4"],
        "model.hiden_size: no such knob (did you mean hidden_size?)",
    ),
    "an unknown option": (
        ["model=llama_7b", "options.rms_norm_ep=1"],
        "model.options.rms_norm_ep: LlamaConfig of transformers has no such field (did you mean rms_norm_eps?)",
    ),
    "a knob out of range": (["model=gpt2", "hidden_size=0"], "model.hidden_size: expected a number above 0, got 0"),
    "a knob of another type": (["model=gpt2", "vocab_size=x"], "model.vocab_size: expected an integer, got 'x'"),
    "heads that do not divide": (["model=gpt2", "num_heads=7"], "model.num_heads: expected a divisor of hidden_size"),
    "tokens that are none": (["model=gpt2", "tokens=many"], "tokens: expected a number above 0, as in tokens=300e9"),
    "an unknown architecture": (["model=gpt2", "architecture=gtp2"], "model.architecture=gtp2: transformers has no"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_in_one_line(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = REFUSED[case]
    assert main(["model", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {expected}")
    assert err.count("\n") == 1
    assert list(here.iterdir()) == []


# -- what a plan says --------------------------------------------------------------------------------------------


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict]:
    given = arguments if arguments and arguments[0].startswith("pipeline=") else ("pipeline=quickstart", *arguments)
    assert main(["plan", *given, "--json"]) == 0
    return {step["step"].partition("/")[2]: step for step in json.loads(capsys.readouterr().out)}


def test_a_plan_counts_what_the_steps_turn_out_to_train(
    finished: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything ran, and by formula alone: the numbers that the finished steps counted on their models."""
    steps = planned(capsys, "pipeline=toy", "--config-dir", str(CONF))
    made = manifests(finished)
    for name, manifest in made.items():
        assert steps[name]["parameters"] == manifest["metrics"].get("parameters"), name
    size, width, context = made["pretrain"]["metrics"], 32, 128  # of the toy's one layer
    assert steps["pretrain"]["flops"] == (6 * size["parameters"] + 12 * width * context) * size["tokens"]
    assert [name for name, step in steps.items() if step["flops"] is not None] == ["pretrain"]


def test_a_plan_knows_the_head_and_the_options(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama = ("model@steps.pretrain.model=llama_tiny", "steps.tokenizer.vocab_size=768")
    assert planned(capsys, *llama)["pretrain"]["parameters"] == 479_904
    assert planned(capsys, *llama)["reward"]["parameters"] == 479_904 - 768 * 96 + 96
    tied = planned(capsys, *llama, "steps.pretrain.model.options.tie_word_embeddings=true")
    assert tied["pretrain"]["parameters"] == 479_904 - 768 * 96


def test_what_a_plan_cannot_know_is_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = planned(capsys, "steps.pretrain.model.architecture=qwen3")
    assert all(step["parameters"] is None and step["flops"] is None for step in steps.values())


def test_an_encoder_decoder_is_counted_and_a_published_vocabulary_not_guessed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = here / "pipeline/mine.yaml"
    pipeline.parent.mkdir()
    pipeline.write_text(
        "# @package _global_\n"
        "defaults: [quickstart, /stage@steps.t5: text_to_text, /model@steps.t5.model: t5_tiny, _self_]\nname: mine\n"
        "steps: {t5: {inputs: {data: text, tokenizer: tokenizer}, num_steps: 10, batch_size: 4}}\n"
    )
    own = ("pipeline=mine", "--config-dir", str(here))
    tuned = planned(capsys, *own, "steps.t5.inputs={tasks: demonstrations, tokenizer: tokenizer}")["t5"]
    assert (tuned["parameters"], tuned["flops"]) == (849_760, None)  # rows of tasks have lengths of their own
    found = planned(capsys, *own)["t5"]
    numbers = 849_760 - 2 * 32 * 4  # all but the relative biases
    a_token = 3 * numbers + 12 * (3 + 3 + 3) / 2 * 96 * 512
    assert (found["parameters"], found["flops"]) == (849_760, a_token * 10 * 4 * (512 + 114))
    (here / "tokenizer.json").write_text("{}")
    taken = (f"steps.tokenizer.source='path:{here}'", "steps.tokenizer.inputs.data=null")
    unknown = planned(capsys, *own, *taken, "steps.tokenizer.vocab_size=50257")
    assert all(unknown[name]["parameters"] is None for name in ("t5", "pretrain", "ppo"))


def test_a_plan_fits_100_columns(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pipeline=miniature"]) == 0
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, shown)) <= 100
    assert any("409 k" in line and "5e+12" in line for line in shown)


# -- keys --------------------------------------------------------------------------------------------------------


def test_the_published_vocabulary_is_in_no_key_and_options_are(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [
        planned(capsys, *given)["pretrain"]["key"]
        for given in (
            (),
            ("steps.pretrain.model.vocab_size=5",),
            ("steps.pretrain.model.options.layer_norm_eps=1e-6",),
            ("steps.pretrain.model.options.layer_norm_eps=1e-4",),
        )
    ]
    assert keys[0] == keys[1]
    assert len({*keys}) == 3


def test_a_model_alone_in_its_default_but_for_the_vocabulary_adds_nothing_to_a_key() -> None:
    from align.configs import ModelConfig, Pretrain
    from align.pipeline.plan import changed_knobs

    assert changed_knobs(Pretrain(model=ModelConfig(vocab_size=7))) == {}
    assert changed_knobs(Pretrain(model=ModelConfig(vocab_size=7, num_layers=2))) == {"model": {"num_layers": 2}}


def test_why_a_step_runs_names_options_and_no_vocabulary(
    finished: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = ("pipeline=toy", "--config-dir", str(CONF), f"store={finished}", "steps.pretrain.model.vocab_size=5")
    assert planned(capsys, *toy)["pretrain"]["cached"]
    steps = planned(capsys, *toy, "steps.pretrain.model.options.layer_norm_eps=1e-6")
    assert steps["pretrain"]["reason"] == "model.options.layer_norm_eps None -> 1e-06"


def test_an_encoder_decoder_is_not_pretrained_as_a_decoder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pipeline=quickstart", "model@steps.pretrain.model=t5_tiny"]) == 2
    err = capsys.readouterr().err
    assert "/t5_tiny.yaml:2: steps.pretrain.model.architecture: expected a decoder alone" in err
    assert err.count("\n") == 1
