"""Parameters by formula and as `transformers` builds them; memory against real optimizers; FLOPs against papers."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import mostly_slow
from tiny_models import tiny_tokenizer

from align.configs import ModelConfig, Pretrain
from align.errors import ConfigError
from align.models.build import build_model, meta_model, weights_of
from align.models.sizes import Weight, memory, parameters, training_flops, weights, without_embeddings
from align.training.optimizers import pretraining_optimizers

FILES = sorted((Path(__file__).parents[2] / "conf/model").glob("*.yaml"))

# Counts of the papers' tables and of published checkpoints.
PUBLISHED = {
    "gpt1": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "llama_7b": 6_738_415_616,
}
MILLIONS = {  # GPT-3, table 2.1, by its shapes; LLaMA, table 2, by its shapes
    "gpt3_small": 125.2,
    "gpt3_medium": 355.9,
    "gpt3_large": 760.3,
    "gpt3_xl": 1315.7,
    "gpt3_2_7b": 2651.6,
    "gpt3_6_7b": 6658.4,
    "gpt3_13b": 12853.4,
    "gpt3_175b": 174604.3,
    "llama_13b": 13015.9,
    "llama_33b": 32528.9,
    "llama_65b": 65285.7,
}
OPTIONS = {
    "llama": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "head_dim": 12},
    "gpt_neox": {"attention_bias": False, "tie_word_embeddings": False},
    "gpt2": {"tie_word_embeddings": False},
    "t5": {"num_decoder_layers": 1, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8, "d_kv": 10},
}


def published(name: str) -> ModelConfig:
    return ModelConfig(**yaml.safe_load((FILES[0].parent / f"{name}.yaml").read_text()))


def small(architecture: str, **knobs: object) -> ModelConfig:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "context_length": 64, "vocab_size": 280}
    return ModelConfig(architecture=architecture, dropout=0.0, **sizes, **knobs)


def shapes(made_of: list[Weight]) -> Counter:
    counted: Counter = Counter()
    for weight in made_of:
        counted[weight.place, weight.shape] += weight.copies
    return counted


def test_there_is_a_config_of_every_published_size() -> None:
    assert PUBLISHED.keys() | MILLIONS.keys() <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", mostly_slow(FILES, FILES[::3]), ids=lambda path: path.stem)
def test_the_formula_has_each_weight_of_the_model_that_is_built(path: Path) -> None:
    cfg = published(path.stem)
    model = meta_model(cfg)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    found = weights(cfg, cfg.vocab_size)
    assert found is not None
    assert shapes(found) == shapes(weights_of(model))
    assert parameters(found) == model.num_parameters()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_model_s_file_says_how_many_parameters_it_has(path: Path) -> None:
    text, cfg = path.read_text(), published(path.stem)
    assert text.count("\n") < 30
    (said,) = re.findall(r"([\d,]+) parameters", text.partition("\n")[0])
    number = parameters(weights(cfg, cfg.vocab_size) or [])
    assert int(said.replace(",", "")) == number
    assert PUBLISHED.get(path.stem, number) == number
    assert MILLIONS.get(path.stem, round(number / 1e6, 1)) == round(number / 1e6, 1)


@pytest.mark.parametrize("architecture", OPTIONS)
def test_the_formula_follows_the_options_that_change_shapes(architecture: str) -> None:
    cfg = small(architecture, options=OPTIONS[architecture])
    assert shapes(weights(cfg, cfg.vocab_size) or []) == shapes(weights_of(meta_model(cfg)))


def test_what_has_no_formula_is_not_guessed() -> None:
    assert weights(small("qwen3"), 280) is None
    assert weights(small("gpt2", options={"add_cross_attention": True}), 280) is None


def test_parameters_without_embeddings_are_those_of_blocks_and_norms() -> None:
    assert without_embeddings(weights(small("gpt2"), 280) or []) == 2 * (12 * 32**2 + 13 * 32) + 2 * 32


# -- memory ------------------------------------------------------------------------------------------------------


def in_state(optimizers: list[torch.optim.Optimizer]) -> int:
    """Numbers that optimizers keep; a counter of steps is none."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return sum(value.numel() for state in states for name, value in state.items() if name != "step")


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "openai-gpt", "t5"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
def test_the_state_of_an_optimizer_is_as_large_as_it_says(architecture: str, optimizer: str) -> None:
    model = build_model(small(architecture), tiny_tokenizer())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    used = pretraining_optimizers(model, Pretrain(optimizer=optimizer))
    for each in used:
        each.step()
    said = memory(weights_of(model), optimizer, "fp32")
    assert said.optimizer == 4 * in_state(used)
    assert said.weights == said.gradients == sum(4 * parameter.numel() for parameter in model.parameters())


def test_autocast_copies_what_is_multiplied() -> None:
    """The weights that a bf16 backward pass keeps copies of are those that a linear layer or the head saved."""
    cfg = small("llama", options={"tie_word_embeddings": False})
    model = build_model(cfg, tiny_tokenizer())
    sizes = {tuple(p.shape) for p in model.parameters() if p.dim() > 1}
    sizes |= {shape[::-1] for shape in sizes}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in sizes:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.arange(3, 20)[None]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, use_cache=False).logits.float().sum()
        loss.backward()
    made_of = weights_of(model)
    assert memory(made_of, "adamw", "bf16").weights - memory(made_of, "adamw", "fp32").weights == sum(saved.values())


# -- floating-point operations -----------------------------------------------------------------------------------


def test_gpt_3_took_the_operations_that_its_paper_counts() -> None:
    """Its appendix D has 3.14e23 for 300B tokens, without attention's products of keys and queries."""
    cfg = replace(published("gpt3_175b"), options={})
    found = weights(cfg, cfg.vocab_size) or []
    flops = training_flops(cfg, found, 0) * 300e9
    assert flops == pytest.approx(3.14e23, rel=2e-3)


def test_t5_took_the_operations_that_gpt_3_s_paper_counts() -> None:
    """Its appendix D has 6.60e20 for T5-Base on 1T tokens, by 220M parameters of which half are at work."""
    cfg = published("t5_base")
    flops = training_flops(cfg, weights(cfg, cfg.vocab_size) or [], 0) * 1e12
    assert flops == pytest.approx(6.60e20, rel=0.02)


@pytest.mark.parametrize(
    ("architecture", "tied"),
    [("gpt2", True), ("openai-gpt", True), ("llama", True), ("llama", False), ("gpt_neox", True), ("t5", True)],
)
def test_operations_are_those_that_pytorch_counts(architecture: str, tied: bool) -> None:
    """PyTorch's own counter of a forward and backward pass with attention as plain products over whole rows."""
    from torch.utils.flop_counter import FlopCounterMode

    length = 64
    cfg = small(architecture, options={"tie_word_embeddings": tied})
    model = build_model(cfg, tiny_tokenizer())
    model.set_attn_implementation("eager")
    ids = torch.randint(3, 280, (1, length), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "labels": ids}
    with FlopCounterMode(display=False) as counter:
        model(**given, use_cache=False).loss.backward()
    tokens = 2 * length if architecture == "t5" else length  # as many of the encoder as of the decoder
    made_of = weights_of(model)
    vectors = sum(weight.numbers for weight in made_of if weight.place == "vector")
    said = training_flops(cfg, made_of, length) - (3 if architecture == "t5" else 6) * vectors  # products alone
    assert said * tokens == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_banded_layer_counts_its_band() -> None:
    cfg = small("gpt3", options={"sliding_window": 16})
    made_of = weights(cfg, 280) or []
    dense = training_flops(replace(cfg, options={}), made_of, 64)
    assert dense - training_flops(cfg, made_of, 64) == 12 * 32 * (64 - 16)
    assert training_flops(cfg, made_of, 8) == training_flops(replace(cfg, options={}), made_of, 8)


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (small("gtp2"), r"model\.architecture=gtp2: transformers has no such model type \(did you mean gpt2\?\)"),
        (small("llama", options={"rms_norm_ep": 1}), r"rms_norm_ep: LlamaConfig .* \(did you mean rms_norm_eps\?\)"),
        (small("gpt2", options={"n_layer": 3}), "n_layer: it is the knob model.num_layers; give that"),
        (small("t5", options={"d_model": 3}), "d_model: it is the knob model.hidden_size; give that"),
        (small("gpt2", options={"eos_token_id": 3}), "eos_token_id: it is the tokenizer's; leave it out"),
        (small("openai-gpt", intermediate_size=64), "openai-gpt has 4 times hidden_size and nothing else, got 64"),
        (small("gpt2", options={"layer_norm_epsilon": "x"}), r"model\.architecture=gpt2: .*layer_norm_epsilon"),
    ],
)
def test_what_the_architecture_has_not_is_refused(cfg: ModelConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        build_model(cfg, tiny_tokenizer())
    assert "\n" not in str(refused.value)
