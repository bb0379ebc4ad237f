"""A published chat model through the stages: its own template, ends, precision and rows of new tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from chat_templates import PUBLISHED
from conftest import mostly_slow
from safetensors.torch import load_file
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from align.cli.main import main
from align.models.compute import Compute
from align.models.heads import load_scalar
from align.models.load import context_length, load_model, load_tokenizer
from align.text.chat import encode_conversations, encode_prompts, read_alike, stop_ids
from align.verifiers.episodes import make_episodes
from align.verifiers.reward_models import RewardModel

QUESTIONS = ["Who sat on the mat?", "And who ran home?", "Who is brief?", "Is the cat kind?"]
ANSWERS = ["The cat.", "The dog ran home.", "The mat is brief.", "Yes, the cat is kind."]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("demonstrations.jsonl", [{"messages": dialogue(i)} for i in range(60)])
    write("comparisons.jsonl", [comparison(i) for i in range(40)])
    write("prompts.jsonl", [{"prompt": f"{QUESTIONS[i % 4]} {i}"} for i in range(60)])
    return tmp_path


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("\n".join(map(json.dumps, rows)))


def dialogue(i: int, system: str | None = None) -> list[dict]:
    asked = {"role": "user", "content": f"{QUESTIONS[i % 4]} {i}"}
    turns = [asked, {"role": "assistant", "content": ANSWERS[i % 4]}]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def comparison(i: int) -> dict:
    return {"prompt": f"{QUESTIONS[i % 4]} {i}", "chosen": ANSWERS[i % 4], "rejected": ANSWERS[(i + 1) % 4]}


def publish(
    folder: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype = torch.float32, kind=LlamaForCausalLM, **more
) -> Path:
    """A folder as somebody publishes it: a small LLaMA with this tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = LlamaConfig(**{"vocab_size": len(tokenizer), "initializer_range": 0.2, **sizes, **ids, **more})
    kind(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def run(*arguments: str) -> int:
    return main([*arguments, "tracker=none", "hardware.threads=1"])


def made(name: str) -> Path:
    """The folder of the newest artifact of that name."""
    (file,) = Path("artifacts/names").glob(f"{name}/v0.json")
    record = json.loads(file.read_text())
    return Path("artifacts/objects") / record["stage"] / record["key"]


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())["metrics"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


SFT = ("num_epochs=1", "batch_size=8", "sequence_length=512", "learning_rate=0.01")


def sft(model: str, *more: str, name: str = "mine/sft", data: str = "demonstrations.jsonl") -> int:
    return run("sft", f"inputs.model={model}", f"inputs.data=path:{data}", f"name={name}", *SFT, *more)


def imported(name: str, *more: str, **published) -> Path:
    publish("published", PUBLISHED[name].tokenizer(), **published)
    assert run("import_model", "source=path:published", "name=mine/model", *more) == 0
    return made("mine/model")


# -- what is learned of a conversation --------------------------------------------------------------------------------


def test_a_file_with_weights_and_tools_is_learned_as_it_says(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The held-out loss is plain Transformers' over the turns of weight 1; a call that cannot be written is counted."""
    publish("published", PUBLISHED["chatml"].tokenizer())
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    rows = []
    for i in range(30):
        first, second = dialogue(i), dialogue(i + 1)
        first[1]["weight"] = 0
        rows.append({"messages": [*first, *second]})
    called = [call, {"role": "tool", "content": "ducks"}, dialogue(1)[1]]
    tools = [{"name": "look", "parameters": {}}]
    Path("mine").mkdir()
    asked = [[{"role": "user", "content": f"{i}"}, *called] for i in range(3)]
    write("mine/train.jsonl", [*rows[:20], *({"messages": messages, "tools": tools} for messages in asked)])
    write("mine/validation.jsonl", rows[20:])
    assert sft("path:published", "learning_rate=1e-12", data="mine") == 0
    lines = capsys.readouterr().err
    assert "the model's chat template writes no list of tools: 3 train rows are read without theirs" in lines
    assert (
        "3 of 23 train rows left out, with tools: the model's chat template refuses it: it leaves out a call" in lines
    )
    assert metrics_of(made("mine/sft"))["demonstrations"] == 20
    assert metrics_of(made("mine/sft"))["dropped"] == 3
    folder = made("mine/sft")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    losses = []
    for row in rows[20:]:
        messages = [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
        asked = tokenizer.apply_chat_template(messages[:3], add_generation_prompt=True, return_dict=True)["input_ids"]
        ends = (ids[0] == tokenizer.eos_token_id).nonzero()[-1].item()  # what follows it is not learned
        logprobs = model(ids).logits[0].log_softmax(-1)
        losses += [-logprobs[i - 1, ids[0, i]].item() for i in range(len(asked), ends + 1)]
    assert metrics_of(folder)["eval/loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_a_mistake_in_the_data_is_told_before_the_model_is_imported(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To import a large model takes minutes."""
    publish("published", PUBLISHED["chatml"].tokenizer())
    Path("mine.jsonl").write_text('{"question": "Who sat?", "answer": null}\n')
    assert sft("path:published", data="mine.jsonl") == 2
    assert "mine.jsonl" in said(capsys)
    assert not list(Path("artifacts").glob("objects/import_model/*"))


# -- the template ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(["chatml", "llama3", "gemma", "mistral"], ["gemma"]))
def test_import_keeps_the_template_and_stages_go_on_with_it(here: Path, name: str) -> None:
    folder = imported(name)
    own = PUBLISHED[name].tokenizer()
    assert load_tokenizer(folder).chat_template == own.chat_template
    assert sft("mine/model") == 0
    tokenizer = load_tokenizer(made("mine/sft"))
    assert tokenizer.chat_template == own.chat_template
    assert tokenizer.convert_ids_to_tokens(stop_ids(tokenizer)) == list(PUBLISHED[name].stops)


@pytest.mark.parametrize(("given", "end"), [("align", "</s>"), ("path:other.jinja", "[STOP]")])
def test_another_template_on_demand(here: Path, given: str, end: str) -> None:
    Path("other.jinja").write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[STOP]{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = PUBLISHED["vicuna"].tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["[STOP]", "[assistant]"]}, replace_extra_special_tokens=False
    )
    publish("published", tokenizer)
    assert run("import_model", "source=path:published", "name=mine/model", f"chat_template={given}") == 0
    got = load_tokenizer(made("mine/model"))
    assert got.chat_template != tokenizer.chat_template
    assert got.convert_ids_to_tokens(stop_ids(got))[0] == end


def test_the_file_of_a_template_is_in_the_key(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish("published", PUBLISHED["vicuna"].tokenizer())
    own = PUBLISHED["vicuna"].template
    keys = []
    for text in (own, own + "\n"):
        Path("t.jinja").write_text(text)
        assert run("import_model", "source=path:published", "chat_template=path:t.jinja", "--json") == 0
        keys.append(json.loads(capsys.readouterr().out)[0]["key"])
    assert keys[0] != keys[1]
    assert run("import_model", "source=path:published", "chat_template=path:none.jinja") == 2
    assert "chat_template=path:none.jinja: no such file" in said(capsys)


def test_only_a_model_without_a_template_gets_ours(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = PUBLISHED["vicuna"].tokenizer()
    tokenizer.chat_template = None
    publish("published", tokenizer)
    assert run("import_model", "source=path:published", "name=mine/model") == 0
    assert "our chat template" in capsys.readouterr().err
    assert "<|assistant|>" in load_tokenizer(made("mine/model")).get_vocab()


def test_further_tokens_at_which_the_published_model_stops_are_kept(here: Path) -> None:
    tokenizer = PUBLISHED["llama3"].tokenizer()
    folder = publish("published", tokenizer)
    further = tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    config = json.loads((folder / "generation_config.json").read_text())
    ends = [tokenizer.eos_token_id, further]
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": ends}))
    assert run("import_model", "source=path:published", "name=mine/model") == 0
    got = load_tokenizer(made("mine/model"))
    assert got.convert_ids_to_tokens(stop_ids(got)) == ["<|eot_id|>", "<|end_of_text|>", "<|start_header_id|>"]
    kept = json.loads((made("mine/model") / "generation_config.json").read_text())
    assert kept["eos_token_id"] == stop_ids(got)


def test_sampling_settings_of_the_publisher_do_not_stop_a_save(here: Path) -> None:
    """Vicuna's temperature beside greedy decoding, which `save_pretrained` refuses."""
    folder = publish("published", PUBLISHED["vicuna"].tokenizer())
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "temperature": 0.9, "top_p": 0.6}))
    assert sft("path:published") == 0
    kept = json.loads((made("mine/sft") / "generation_config.json").read_text())
    assert kept.keys() - {"transformers_version", "_from_model_config"} == {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    }


def test_a_row_that_the_template_refuses_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imported("gemma")
    write("demonstrations.jsonl", [{"messages": dialogue(i, "Be brief." if i == 7 else None)} for i in range(30)])
    assert sft("mine/model") == 2
    line = said(capsys)
    (place,) = [
        i + 1
        for i, row in enumerate(pq.read_table(next(Path("artifacts").glob("objects/data/*/train.parquet"))).to_pylist())
        if row["messages"][0]["role"] == "system"
    ]
    assert line.startswith(f"error: inputs.data: train row {place}: the model's chat template refuses it: ")


# -- where a sequence ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(["chatml", "phi3", "llama3"], ["chatml"]))
def test_a_reward_model_is_read_where_it_was_trained(here: Path, name: str) -> None:
    """By sampled tokens, by text, and as a dialogue: one sequence, which ends at the token that ends a turn."""
    imported(name)
    assert sft("mine/model") == 0
    knobs = ("batch_size=8", "learning_rate=0.003", "name=mine/reward")
    assert run("reward", "inputs.model=mine/sft", "inputs.data=path:comparisons.jsonl", *knobs) == 0
    folder = made("mine/reward")
    scalar, tokenizer = load_scalar(folder), load_tokenizer(folder)
    rows = [{"prompt": dialogue(i)[:1]} for i in range(4)]
    prompts = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    whole = [encode_conversations(tokenizer, [dialogue(i)])[0].ids for i in range(4)]
    responses = [ids[len(prompt) :] for ids, prompt in zip(whole, prompts, strict=True)]
    # Sampled responses may end by another stop token, or be ended by the template's own.
    ended_otherwise = [[*ids[:-1], stop_ids(tokenizer)[-1]] for ids in responses]
    context = context_length(scalar.classifier)
    plain = torch.stack([scalar(torch.tensor([s]), torch.arange(len(s))[None], torch.tensor([-1]))[0] for s in whole])
    for own, given in ((None, responses), (None, ended_otherwise), (tokenizer, responses)):
        model = RewardModel("r", scalar, own, context, stop_ids(tokenizer))
        episodes = make_episodes(rows, prompts, given, tokenizer)
        got = model(episodes, Compute(torch.device("cpu"), 4096))
        torch.testing.assert_close(got, plain.detach(), rtol=0, atol=1e-5)
    assert all(ids[-1] == tokenizer.convert_tokens_to_ids(PUBLISHED[name].end) for ids in whole)


# -- rows of new tokens ----------------------------------------------------------------------------------------------


def without_roles() -> PreTrainedTokenizerFast:
    tokenizer = PUBLISHED["vicuna"].tokenizer()
    tokenizer.chat_template = None
    return tokenizer


@pytest.mark.parametrize("rows", [0, 64])
def test_new_rows_are_drawn_apart_as_the_trained_ones_are_spread(here: Path, rows: int) -> None:
    """In rows of their own, or in those of a vocabulary that was padded with zeros."""
    tokenizer = without_roles()
    known = len(tokenizer)
    folder = publish("published", tokenizer, vocab_size=known + rows, tie_word_embeddings=False)
    if rows:
        model = AutoModelForCausalLM.from_pretrained(folder)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight.data[known:] = 0.0
        model.save_pretrained(folder)
    assert run("import_model", "source=path:published", "name=mine/model") == 0
    model, tokenizer = load_model(made("mine/model")), load_tokenizer(made("mine/model"))
    ids = tokenizer.convert_tokens_to_ids(["<|system|>", "<|user|>", "<|assistant|>"])
    assert min(ids) >= known
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        new, old = layer.weight[ids], layer.weight[:known]
        alike = torch.nn.functional.cosine_similarity(new[:, None], new[None], dim=-1)
        assert alike[~torch.eye(3, dtype=torch.bool)].max() < 0.6
        assert new.norm(dim=1).mean().item() == pytest.approx(old.norm(dim=1).mean().item(), rel=0.3)


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_the_rows_of_new_tokens_and_no_others(here: Path, tied: bool) -> None:
    publish("published", without_roles(), tie_word_embeddings=tied)
    assert run("import_model", "source=path:published", "name=mine/model") == 0
    assert sft("mine/model", "lora.rank=4") == 0
    before, after = (load_model(made(name)) for name in ("mine/model", "mine/sft"))
    ids = load_tokenizer(made("mine/model")).convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    old = slice(0, min(ids) - 4)
    one, two = (model.get_input_embeddings().weight for model in (before, after))
    assert torch.equal(one[old], two[old])
    assert (one[ids] - two[ids]).norm(dim=1).min() > 1e-3
    assert "align_drawn_tokens" not in json.loads((made("mine/sft") / "config.json").read_text())


# -- precision -------------------------------------------------------------------------------------------------------


def test_bf16_stays_bf16_and_what_is_measured_is_what_is_stored(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish("published", PUBLISHED["llama3"].tokenizer(), dtype=torch.bfloat16)
    assert run("import_model", "source=path:published", "name=mine/model") == 0
    published, kept = (load_file(folder / "model.safetensors") for folder in (Path("published"), made("mine/model")))
    for name, weight in published.items():
        assert torch.equal(kept[name][: len(weight)], weight), name
    assert sft("mine/model") == 0
    assert "stored in bfloat16" in capsys.readouterr().err
    stored = load_file(made("mine/sft") / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert any(not torch.equal(stored[name], kept[name]) for name in kept)
    assert sft("mine/sft", "learning_rate=1e-12", name="mine/again") == 0  # measures what it was given
    first, again = (metrics_of(made(name))["eval/loss"] for name in ("mine/sft", "mine/again"))
    assert first == pytest.approx(again, abs=1e-6)
    assert load_model(made("mine/sft")).dtype == torch.float32


def test_the_scores_of_a_bf16_reward_model_are_shifted_as_it_is_stored(here: Path) -> None:
    """The stored model's mean score of the demonstrations is 0, not that of the weights before they were rounded."""
    publish("published", PUBLISHED["llama3"].tokenizer(), dtype=torch.bfloat16)
    inputs = ("inputs.model=path:published", "inputs.data=path:comparisons.jsonl")
    given = ("inputs.demonstrations=path:demonstrations.jsonl", "batch_size=8", "learning_rate=0.003")
    assert run("reward", *inputs, *given, "name=mine/reward") == 0
    scalar, tokenizer = load_scalar(made("mine/reward")), load_tokenizer(made("mine/reward"))
    (data,) = [path.parent for path in Path("artifacts/objects/data").glob("*/manifest.json") if rows_of(path.parent)]
    dialogues = encode_conversations(tokenizer, [row["messages"] for row in rows_of(data)])
    with torch.no_grad():
        scores = [
            scalar(torch.tensor([ids]), torch.arange(len(ids))[None], torch.tensor([len(ids) - 1]))[0]
            for ids, _ in dialogues
        ]
    assert torch.stack(scores).mean().item() == pytest.approx(0.0, abs=1e-5)


def rows_of(folder: Path) -> list[dict]:
    """The training rows of a data artifact of demonstrations; none of another record."""
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    return rows if "messages" in rows[0] else []


# -- the config ------------------------------------------------------------------------------------------------------


def test_the_trainer_leaves_nothing_in_the_config(here: Path) -> None:
    """Of a mixture of experts it asks for the router's logits, which later stages do not take."""
    tokenizer = PUBLISHED["chatml"].tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = MixtralConfig(vocab_size=len(tokenizer), num_local_experts=4, num_key_value_heads=2, **sizes)
    MixtralForCausalLM(config).save_pretrained("published")
    tokenizer.save_pretrained("published")
    assert run("import_model", "source=path:published", "name=mine/model") == 0
    assert sft("mine/model") == 0
    before, after = (json.loads((made(name) / "config.json").read_text()) for name in ("mine/model", "mine/sft"))
    assert before["output_router_logits"] is False
    assert before == after


def test_a_head_of_its_own_under_a_config_that_ties_it_is_kept(here: Path) -> None:
    """Also where a padding token makes the vocabulary grow, which would tie them."""
    folder = publish("published", PUBLISHED["llama3"].tokenizer(), tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert run("import_model", "source=path:published", "name=mine/model") == 0
    model, published = load_model(made("mine/model")), load_file(folder / "model.safetensors")
    head = model.get_output_embeddings().weight
    assert torch.equal(head[: len(published["lm_head.weight"])], published["lm_head.weight"])
    assert not torch.equal(head, model.get_input_embeddings().weight)


def test_weights_are_stored_as_their_files_hold_them_whatever_the_config_says(here: Path) -> None:
    folder = publish("published", PUBLISHED["llama3"].tokenizer())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert run("import_model", "source=path:published", "name=mine/model") == 0
    published, kept = (load_file(path / "model.safetensors") for path in (folder, made("mine/model")))
    assert all(torch.equal(kept[name][: len(weight)], weight) for name, weight in published.items())


FAILING = {
    "{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}": "its chat template fails: TypeError",
    "{{ 'abc }}": "its chat template fails: TemplateSyntaxError",
    "{{ 1 / 0 }}": "its chat template fails: ZeroDivisionError",
}


@pytest.mark.parametrize(
    ("template", "reason"),
    mostly_slow(FAILING.items(), [*FAILING.items()][:1]),
)
def test_a_template_that_fails_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], template: str, reason: str
) -> None:
    publish("published", PUBLISHED["chatml"].tokenizer())
    Path("t.jinja").write_text(template)
    assert run("import_model", "source=path:published", "chat_template=path:t.jinja") == 2
    assert reason in said(capsys)


def test_several_templates_without_a_default_ask_for_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = PUBLISHED["chatml"].tokenizer()
    tokenizer.chat_template = {"rag": tokenizer.chat_template, "tool_use": tokenizer.chat_template}
    publish("published", tokenizer)
    assert run("import_model", "source=path:published") == 2
    assert "several chat templates (rag, tool_use) and no default" in said(capsys)


def test_another_kind_than_asked_for_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish("published", PUBLISHED["chatml"].tokenizer())
    assert run("import_model", "source=path:published", "kind=reward_model") == 2
    assert "path:published is a model by its config.json, got 'reward_model'" in said(capsys)


# -- nothing to learn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (models.WordPiece({"[UNK]": 0, "</s>": 1}, unk_token="[UNK]"), "nothing but unknown tokens of plain text"),
        (models.WordLevel({"[UNK]": 0, "</s>": 1}, unk_token="[NONE]"), "its tokenizer cannot encode plain text"),
    ],
)
def test_a_tokenizer_that_was_trained_on_nothing_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], model: models.Model, reason: str
) -> None:
    built = Tokenizer(model)
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]", eos_token="</s>")
    publish("published", tokenizer)
    assert run("import_model", "source=path:published") == 2
    assert reason in said(capsys)


def test_demonstrations_without_a_token_of_the_assistant_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers of which the vocabulary has no character, under a template that ends no turn inside its marks."""
    publish("published", PUBLISHED["chatml"].tokenizer())
    tokenizer = Path("published/chat_template.jinja")
    marked = "{% if m['content'].startswith('The') %}{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}"
    tokenizer.write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        + marked
        + "{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    answer = {"role": "assistant", "content": "It is a cat"}
    rows = [{"messages": [{"role": "user", "content": f"Who? {i}"}, answer]} for i in range(20)]
    write("demonstrations.jsonl", rows)
    assert sft("path:published") == 2
    assert "marks nothing of the assistant" in said(capsys)


def test_a_metric_that_is_no_number_is_never_published(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported("chatml")
    monkeypatch.setattr("align.stages.sft.response_loss", lambda *given: float("nan"))
    assert sft("mine/model") == 4
    assert "eval/loss, eval/loss_before: not a finite number, so nothing is published" in said(capsys)
    assert not list(Path("artifacts/objects/sft").glob("*/manifest.json"))


# -- reward models of others -----------------------------------------------------------------------------------------

OTHERS = {
    "another tokenizer": ("qwen2_5", {}),
    "another head": ("llama3", {"bias": True}),
    "the policy's tokens, read after the line break that its template ends with": ("chatml", {}),
    "an end that is padding, too, before which plain Transformers reads": ("vicuna", {"pad": "</s>"}),
    "a padding token that is a word": ("qwen2_5", {"pad": "a"}),
}


@pytest.mark.parametrize("name", mostly_slow(OTHERS, [*OTHERS][:1]))
def test_a_published_reward_model_scores_in_ppo_as_in_plain_transformers(
    here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    family, head = OTHERS[name]
    tokenizer = PUBLISHED[family].tokenizer()
    pad = tokenizer.convert_tokens_to_ids(head["pad"]) if "pad" in head else None
    publish("reward", tokenizer, kind=LlamaForSequenceClassification, num_labels=1, pad_token_id=pad)
    classifier = LlamaForSequenceClassification.from_pretrained("reward").eval()
    if "bias" in head:
        weight = classifier.score.weight.data
        classifier.score = torch.nn.Linear(32, 1)
        classifier.score.weight.data, classifier.score.bias.data = weight, torch.tensor([0.7])
        classifier.save_pretrained("reward")
    publish("policy", PUBLISHED["chatml"].tokenizer())
    knobs = ("num_iterations=1", "rollout_batch_size=8", "minibatch_size=8", "max_new_tokens=8", "name=mine/ppo")
    inputs = ("inputs.policy=path:policy", "inputs.reward_model=path:reward", "inputs.prompts=path:prompts.jsonl")
    assert run("ppo", *inputs, *knobs) == 0
    told = capsys.readouterr().err
    same = family == "chatml"
    planned = "not made yet; the reward model has a tokenizer of its own, so text is encoded for it again"
    assert (planned in told) == (not same)
    assert ("so the value model starts from the policy" in told) == (not same)
    assert "has another tokenizer or chat template: responses are tokenized again for it" in told
    every = [path.parent for path in Path("artifacts/objects/import_model").glob("*/manifest.json")]
    (folder,) = [folder for folder in every if kind_of(folder) == "reward_model"]
    own = load_tokenizer(folder)
    scalar = load_scalar(folder)
    model = RewardModel("r", scalar, own, context_length(scalar.classifier))
    rows = [{"prompt": dialogue(i)[:1]} for i in range(4)]
    policy = AutoTokenizer.from_pretrained("policy")
    responses = [policy(ANSWERS[i])["input_ids"] for i in range(4)]
    episodes = make_episodes(rows, encode_prompts(policy, [row["prompt"] for row in rows]), responses, policy)
    got = model(episodes, Compute(torch.device("cpu"), 4096))
    expected = []
    for i in range(4):
        ids = tokenizer.apply_chat_template(dialogue(i), return_tensors="pt", return_dict=True)["input_ids"]
        expected.append(classifier(ids).logits[0, 0])
    torch.testing.assert_close(got, torch.stack(expected).detach(), rtol=0, atol=1e-4)


def kind_of(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["kind"]


def test_a_reward_model_without_a_template_needs_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    publish("reward", tokenizer, kind=LlamaForSequenceClassification, num_labels=1)
    assert run("import_model", "source=path:reward") == 2
    assert "a reward model reads dialogues in the format that it was trained on" in said(capsys)
    assert run("import_model", "source=path:reward", "chat_template=align") == 2
    assert "a reward model reads dialogues in the format that it was trained on" in said(capsys)


def test_a_prompt_that_a_reward_model_does_not_take_is_named_before_the_first_rollout(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("reward", PUBLISHED["gemma"].tokenizer(), kind=LlamaForSequenceClassification, num_labels=1)
    publish("policy", PUBLISHED["chatml"].tokenizer())
    write("prompts.jsonl", [{"prompt": dialogue(i, "Be brief.")[:2]} for i in range(30)])
    inputs = ("inputs.policy=path:policy", "inputs.reward_model=path:reward", "inputs.prompts=path:prompts.jsonl")
    assert run("ppo", *inputs, "num_iterations=1", "rollout_batch_size=8", "minibatch_size=8") == 2
    line = said(capsys)
    assert "inputs.prompts: for reward_model_0, train row 1: the model's chat template refuses it" in line


def test_two_templates_that_differ_in_the_system_message_alone_are_not_read_alike(here: Path) -> None:
    one, other = PUBLISHED["llama3"].tokenizer(), PUBLISHED["llama3"].tokenizer()
    assert read_alike(one, other)
    other.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + (
        one.chat_template
    )
    assert not read_alike(one, other)
