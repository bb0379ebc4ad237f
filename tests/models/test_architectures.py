"""Architectures that `transformers` has: each runs as it runs there, or is refused in one line.

Six of different kinds are in the default tests: plain, grouped, latent and multi-query attention, mixtures of experts,
and three that keep their own attention. The others are slow only because there are so many.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from catalogue import ARCHITECTURES, CONTEXT, REFUSED, WINDOW, tiny
from conftest import mostly_slow
from five_stages import STAGES, run_stages, write_data, write_source
from tiny_models import sequences_of, tiny_tokenizer, written_by_transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from align.configs import LoraConfig
from align.errors import ConfigError
from align.evals.model_check import fit_model, fit_reward_model
from align.models.adapters import Adapters, fresh_adapter
from align.models.heads import ScalarModel, load_scalar, open_classifier, scalar_from_lm
from align.models.load import context_of, load_model, rope_limit, save_model
from align.models.packed import response_logprobs, response_scores
from align.models.padded import is_padded, read_padded
from align.sampling.engine import Sampling
from align.sampling.local import Ends, LocalEngine, generate
from align.text.packing import pack

RUN = [name for name in ARCHITECTURES if name not in REFUSED]
FAST = ["opt", "gemma2", "qwen2_moe", "deepseek_v2"]
PADDED = ["opt", "bloom", "mpt", "gpt_neo", "gptj", "falcon_alibi", "gemma2", "gpt_oss", "xglm", "bert-generation"]
EOS, PAD = 0, 1


def fitted(name: str, folder: Path) -> PreTrainedModel:
    """The model as the stages open it after an import."""
    model = tiny(name)
    fit_model(model)
    save_model(model, tiny_tokenizer(), folder)
    return load_model(folder)


def plainly(folder: Path) -> PreTrainedModel:
    """The same files as `transformers` opens them, with the model's own attention."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def lengths_of(model: PreTrainedModel) -> list[int]:
    """Lengths from 1 token to 3 windows, short next to long, and one long enough for a group of its own."""
    context = context_of(model.config)
    return [n for n in (1, 3 * WINDOW, 2, WINDOW, 70, 1, WINDOW + 1, 3 * WINDOW - 1, 5) if n <= context]


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """log p of each token but the first, by `transformers` alone."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("name", mostly_slow(RUN, FAST))
def test_packed_log_probs_are_those_of_each_sequence_alone(name: str, tmp_path: Path) -> None:
    ours, plain = fitted(name, tmp_path), plainly(tmp_path)
    sequences = sequences_of(lengths_of(ours))
    got = response_logprobs(ours, pack(sequences), [ids[1:] for ids in sequences])
    expected = torch.cat([plain_logprobs(plain, ids) for ids in sequences])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", mostly_slow(RUN, FAST))
def test_greedy_samples_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """With two slots for four prompts, so that one is filled while another is written."""
    ours, plain = fitted(name, tmp_path), plainly(tmp_path)
    prompts, most = sequences_of([3, 2 * WINDOW + 1, 1, WINDOW], seed=1), WINDOW
    sampling = Sampling(max_new_tokens=most, temperature=0.0, batch_size=2)
    found = dict(generate(ours, prompts, range(4), sampling, Ends(EOS, PAD)))
    for i, prompt in enumerate(prompts):
        if name != "moshi":  # whose `generate` departs from its own forward pass once the window is full
            assert found[i].ids == written_by_transformers(plain, prompt, most, EOS, PAD)
        whole = plain_logprobs(plain, [*prompt, *found[i].ids])
        torch.testing.assert_close(
            torch.tensor(found[i].logprobs), whole[len(prompt) - 1 :], rtol=0, atol=1e-4, msg=f"prompt {i}"
        )
        logits = plain(input_ids=torch.tensor([[*prompt, *found[i].ids]]), use_cache=False).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == found[i].ids


@pytest.mark.parametrize("name", mostly_slow(RUN, ["qwen2_moe"]))
def test_the_recipe_runs_from_import_to_evaluation(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_source(tiny(name), tmp_path / "source")
    write_data(tmp_path)
    assert run_stages(tmp_path / "source", tmp_path) == (list(STAGES), "")


@pytest.mark.parametrize("name", mostly_slow(REFUSED, [*REFUSED][::4]))
def test_what_does_not_run_is_refused_by_the_import_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(name)
    with pytest.raises(ConfigError, match=f"^{model.config.model_type}: .*{REFUSED[name]}"):
        fit_model(model)
    monkeypatch.chdir(tmp_path)
    write_source(model, tmp_path / "source")
    done, error = run_stages(tmp_path / "source", tmp_path)
    assert done == []
    assert error.startswith("error: source: ")
    assert REFUSED[name] in error


@pytest.mark.parametrize(
    ("name", "way"),
    mostly_slow(
        [
            *[(name, "padded") for name in ("opt", "biogpt", "bert-generation", "gemma2", "gpt_oss")],
            *[(name, "packed") for name in ("llama", "qwen2_moe", "deepseek_v2", "cohere2", "gemma3_text")],
        ],
        [("opt", "padded"), ("gemma2", "padded"), ("llama", "packed"), ("qwen2_moe", "packed")],
    ),
)
def test_which_way_fits_is_told_of_weak_weights_as_well(name: str, way: str) -> None:
    """With weights as they are drawn before any training, a wrong mask moves log-probs by as little as 0.005 nats."""
    torch.manual_seed(0)
    weak = AutoModelForCausalLM.from_config(tiny(name).config, attn_implementation="eager")
    for model in (weak, tiny(name)):
        fit_model(model)
        assert ("padded" if is_padded(model) else "packed") == way


def test_a_weak_model_that_reads_both_ways_is_refused() -> None:
    torch.manual_seed(0)
    both_ways = AutoModelForCausalLM.from_config(tiny("bert").config, attn_implementation="eager")
    with pytest.raises(ConfigError, match="not causal: later tokens change earlier predictions"):
        fit_model(both_ways)


def test_a_model_with_several_end_tokens_is_fitted() -> None:
    """LLaMA 3 ends a text with one token and a turn with another."""
    model = tiny("llama")
    model.config.eos_token_id, model.config.pad_token_id = [0, 3], None
    assert fit_model(model) == []


# -- packed rows as padded batches ---------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", PADDED)
def test_a_packed_row_goes_through_a_padded_batch_and_back(name: str) -> None:
    """Two rows at once, sequences of a token, and lengths so far apart that they make several batches."""
    plain, ours = tiny(name), tiny(name)
    read_padded(ours)
    rows = [sequences_of([1, CONTEXT - 1, 3, 2]), sequences_of([70, 1, 24, 1], seed=1)]
    packed = [pack(row) for row in rows]
    width = min(p.input_ids.shape[1] for p in packed)
    ids, places = (torch.cat([p[k][:, :width] for p in packed]) for k in (0, 1))
    logits = ours(input_ids=ids, position_ids=places, use_cache=False).logits
    assert logits.shape[:2] == ids.shape
    for row, sequences in zip(logits, rows, strict=True):
        expected = torch.cat([plain(input_ids=torch.tensor([s]), use_cache=False).logits[0] for s in sequences])
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["opt", "mpt", "gemma2"])
def test_gradients_through_a_padded_batch_are_those_of_each_sequence(name: str) -> None:
    plain, ours = tiny(name), tiny(name)
    read_padded(ours)
    sequences = sequences_of([1, 70, 3, 12])
    packed = pack(sequences)
    logits = ours(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits[0]
    alone = torch.cat([plain(input_ids=torch.tensor([s]), use_cache=False).logits[0] for s in sequences])
    targets = torch.cat([torch.tensor(s).roll(-1) for s in sequences])
    for found in (logits[: len(alone)], alone):
        torch.nn.functional.cross_entropy(found, targets).backward()
    for (where, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=where)


@torch.no_grad()
def test_a_copy_of_a_padded_model_is_a_model_of_its_own() -> None:
    """Sampling in bf16 makes one."""
    model = tiny("opt")
    read_padded(model)
    twin = copy.deepcopy(model)
    packed = pack(sequences_of([5, 9, 1]))
    where = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "use_cache": False}
    before = model(**where).logits
    for parameter in model.parameters():
        parameter.zero_()
    assert is_padded(twin)
    assert torch.equal(twin(**where).logits, before)


@pytest.mark.parametrize("name", ["opt", "deepseek_v2"])
def test_what_cannot_sample_in_bf16_samples_as_in_fp32(name: str, tmp_path: Path) -> None:
    """On CPUs the cache is float32, which the library's own attention and latent attention refuse beside bf16."""
    model = fitted(name, tmp_path)
    found = []
    for precision in ("fp32", "bf16"):
        engine = LocalEngine(precision, Ends(EOS, PAD))
        engine.load(model)
        found.append(dict(engine.generate(sequences_of([3, 9]), [0, 1], Sampling(max_new_tokens=8))))
    assert found[0] == found[1]


@torch.no_grad()
def test_what_is_no_packed_row_passes_untouched() -> None:
    plain, ours = tiny("gptj"), tiny("gptj")
    read_padded(ours)
    ids = torch.tensor(sequences_of([9, 9]))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    for given in ({}, {"attention_mask": mask, "position_ids": places}, {"position_ids": torch.arange(9)[None]}):
        got = ours(input_ids=ids, use_cache=True, **given)
        expected = plain(input_ids=ids, use_cache=True, **given)
        assert torch.equal(got.logits, expected.logits)
        assert got.past_key_values.get_seq_length() == 9


@torch.no_grad()
def test_the_router_s_logits_come_back_token_by_token() -> None:
    model = tiny("mixtral")
    read_padded(model)
    sequences = sequences_of([3, 70, 1])
    packed = pack(sequences)
    where = {"position_ids": packed.position_ids, "use_cache": False, "output_router_logits": True}
    got = model(input_ids=packed.input_ids, **where).router_logits
    alone = [model(input_ids=torch.tensor([s]), output_router_logits=True).router_logits for s in sequences]
    for layer, found in enumerate(got):
        expected = torch.cat([each[layer] for each in alone])
        torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-4, atol=1e-4)


# -- contexts ------------------------------------------------------------------------------------------------------


def test_a_context_ends_where_frequencies_begin_to_depend_on_the_batch() -> None:
    config = tiny("phi3_longrope").config
    assert context_of(config) == 32
    assert rope_limit(config).startswith("longrope changes the rotary frequencies beyond 32 tokens")
    assert context_of(tiny("llama_dynamic").config) == CONTEXT
    assert rope_limit(tiny("llama_yarn").config) is None
    assert context_of(tiny("gemma3").config) == CONTEXT  # of the language model in a shell
    assert context_of(tiny("bloom").config) == 2048  # which has no limit of its own


def test_no_sample_goes_beyond_such_a_context(tmp_path: Path) -> None:
    model = fitted("phi3_longrope", tmp_path)
    with pytest.raises(ValueError, match="context of 32"):
        list(generate(model, sequences_of([25]), [0], Sampling(max_new_tokens=8), Ends(EOS, PAD)))


# -- scalar heads --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", mostly_slow(RUN, FAST))
def test_a_scalar_head_stands_on_the_trunk_of_the_language_model(name: str, tmp_path: Path) -> None:
    """What it reads are the hidden states of plain `transformers`; saved and loaded, it says the same."""
    fitted(name, tmp_path / "model")
    torch.manual_seed(3)
    scalar, plain = scalar_from_lm(tmp_path / "model").eval(), tiny(name)
    sequences = sequences_of([5, 1, 12])
    scores = response_scores(scalar, pack(sequences))
    hidden = [plain.base_model(torch.tensor([s]), use_cache=False).last_hidden_state[0, -1] for s in sequences]
    expected = scalar.classifier.score(torch.stack(hidden))[:, 0]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    scalar.shift = 0.25
    scalar.save(tmp_path / "reward")
    loaded = load_scalar(tmp_path / "reward")
    for one, other in zip(loaded.classifier.parameters(), scalar.classifier.parameters(), strict=True):
        assert torch.equal(one, other)
    assert loaded.shift == scalar.shift == 0.25
    # A file's tensors lie elsewhere in memory, and some processors round by that: by a last bit.
    torch.testing.assert_close(response_scores(loaded, pack(sequences)), scores - 0.25, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_classifier_that_transformers_has_no_class_for_opens_without_its_head(tmp_path: Path) -> None:
    fitted("bitnet", tmp_path / "model")
    scalar_from_lm(tmp_path / "model").save(tmp_path / "reward")
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    trunk, plain = AutoModel.from_pretrained(tmp_path / "reward"), tiny("bitnet")
    ids = torch.tensor(sequences_of([9]))
    torch.testing.assert_close(trunk(ids).last_hidden_state, plain.model(ids).last_hidden_state, rtol=1e-4, atol=1e-5)


def published_reward_model(name: str, folder: Path, bias: float | None) -> PreTrainedModel:
    config = tiny(name).config
    config.num_labels = 1
    torch.manual_seed(4)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    if bias is not None:
        model.score = torch.nn.Linear(32, 1)
        torch.nn.init.constant_(model.score.bias, bias)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "bias"),
    mostly_slow(
        [(name, bias) for name in ("llama", "opt", "qwen3_moe") for bias in (None, 0.7)],
        [("llama", 0.7), ("opt", None)],
    ),
)
def test_a_published_head_is_read_as_it_is_with_a_bias_or_without(
    name: str, bias: float | None, tmp_path: Path
) -> None:
    plain = published_reward_model(name, tmp_path, bias)
    sequences = sequences_of([4, 11, 1])
    expected = torch.cat([plain(torch.tensor([s])).logits[:, 0] for s in sequences])
    classifier, _ = open_classifier(plain.config, pretrained_model_name_or_path=tmp_path, dtype=torch.float32)
    fit_reward_model(classifier.eval())  # as an import does
    ScalarModel(classifier).save(tmp_path / "imported")
    scores = response_scores(load_scalar(tmp_path / "imported"), pack(sequences))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    fitted("llama", tmp_path)
    with pytest.raises(ConfigError, match=r"missing weights: score\.weight"):
        load_scalar(tmp_path)


# -- adapters ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", mostly_slow(RUN, ["opt", "qwen2_moe"]))
def test_adapters_on_top_of_each_other_say_alone_what_they_say_together(name: str, tmp_path: Path) -> None:
    """Merged, and read back as one. Of a mixture, peft wraps the experts once for each of their matrices."""
    sequences = sequences_of([3, 14, 1])
    packed, rests = pack(sequences), [ids[1:] for ids in sequences]
    base = tmp_path / "import_model" / "aaaa"
    model, folder = fitted(name, base), base
    before = response_logprobs(model, packed, rests)
    generator = torch.Generator().manual_seed(5)
    for rank, stage in ((2, "sft"), (3, "ppo")):
        adapters = fresh_adapter(model, folder, LoraConfig(rank=rank), "one")
        for parameter in adapters.parameters("one").values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        with_adapter = response_logprobs(model, packed, rests)
        assert (with_adapter - before).abs().max() > 0.01
        merged = response_logprobs(adapters.merged("one"), packed, rests)
        torch.testing.assert_close(merged, with_adapter, rtol=0, atol=1e-4)
        folder = tmp_path / stage / "aaaa"
        adapters.save("one", folder, tiny_tokenizer())
        beside = Adapters(load_model(base), base)
        beside.load("other", folder)
        with beside.using("other") as other:
            torch.testing.assert_close(response_logprobs(other, packed, rests), with_adapter, rtol=0, atol=5e-5)
        model, before = load_model(folder), with_adapter
