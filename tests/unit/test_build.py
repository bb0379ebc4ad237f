"""Initial weights, as published; ids of special tokens; what the architecture's config is told."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import tiny_tokenizer
from transformers import PreTrainedModel, T5ForConditionalGeneration

from align.configs import ModelConfig
from align.models.build import architecture_config, build_model

WIDTH, LAYERS = 128, 3


@torch.no_grad()
def built(architecture: str, **knobs: object) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": 4, "context_length": 128, "dropout": 0.0}
    return build_model(ModelConfig(architecture=architecture, **{**sizes, **knobs}), tiny_tokenizer())


def deviations(model: PreTrainedModel) -> dict[str, float]:
    """Of each matrix by its name; a block's by its name within it, all of them together."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            kept = [part for part in name.split(".") if not part.isdigit()]
            found.setdefault(".".join(kept[-4:-1]), []).append(parameter.flatten())
    return {name: float(torch.cat(parts).detach().std()) for name, parts in found.items()}


def near(value: float):
    return pytest.approx(value, rel=0.05)


def test_gpt_2_begins_as_its_code_and_paper_say() -> None:
    model = built("gpt2")
    residual = 0.02 / math.sqrt(2 * LAYERS)
    assert deviations(model) == {
        "transformer.wte": near(0.02),
        "transformer.wpe": near(0.01),
        "h.attn.c_attn": near(0.02),
        "h.attn.c_proj": near(residual),
        "h.mlp.c_fc": near(0.02),
        "h.mlp.c_proj": near(residual),
    }


def test_gpt_1_begins_alike_everywhere() -> None:
    found = deviations(built("openai-gpt"))
    assert len(found) == 6
    assert all(value == near(0.02) for value in found.values())


def test_initializer_range_reaches_every_matrix_of_gpt_1() -> None:
    assert all(value == near(0.07) for value in deviations(built("openai-gpt", initializer_range=0.07)).values())


def test_llama_begins_at_0_02() -> None:
    found = deviations(built("llama", options={"tie_word_embeddings": False}))
    assert len(found) == 9
    assert all(value == near(0.02) for value in found.values())


@pytest.mark.parametrize("architecture", ["openai-gpt", "gpt2", "llama", "t5"])
def test_biases_begin_at_0_and_gains_at_1(architecture: str) -> None:
    for name, parameter in built(architecture, initializer_range=1.0).named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if name.endswith("bias") else 1.0)), name


@torch.no_grad()
def test_t5_begins_with_the_scale_of_attention_in_its_queries() -> None:
    """Deviations of Mesh TensorFlow: queries (width * head width) ** -0.5, else 1 over the root of what comes in."""
    model = built("t5", initializer_range=1.0, intermediate_size=512, options={"d_kv": 16})
    assert isinstance(model, T5ForConditionalGeneration)
    for stack in (model.encoder, model.decoder):
        block = stack.block[0].layer
        for attention in [block[0].SelfAttention, *([block[1].EncDecAttention] if stack is model.decoder else [])]:
            assert float(attention.q.weight.std()) == near((WIDTH * 16) ** -0.5)
            assert float(attention.k.weight.std()) == near(WIDTH**-0.5)
            assert float(attention.v.weight.std()) == near(WIDTH**-0.5)
            assert float(attention.o.weight.std()) == near((4 * 16) ** -0.5)
        dense = block[-1].DenseReluDense
        assert float(dense.wi.weight.std()) == near(WIDTH**-0.5)
        assert float(dense.wo.weight.std()) == near(512**-0.5)
    assert float(model.shared.weight.std()) == near(1.0)


def test_t5_is_an_encoder_and_a_decoder_over_one_embedding() -> None:
    model, tokenizer = built("t5", initializer_range=1.0, dropout=0.25, context_length=96), tiny_tokenizer()
    config = model.config
    assert config.num_decoder_layers == config.num_layers == LAYERS
    assert (config.d_kv, config.dropout_rate, config.n_positions) == (WIDTH // 4, 0.25, 96)
    assert config.decoder_start_token_id == config.pad_token_id == tokenizer.pad_token_id
    tables = {m.weight.data_ptr() for m in (model.shared, model.encoder.embed_tokens, model.decoder.embed_tokens)}
    assert tables == {model.lm_head.weight.data_ptr()}
    ids = torch.arange(3, 20)[None]
    assert model(input_ids=ids, labels=ids).loss.isfinite()


@pytest.mark.parametrize("architecture", ["openai-gpt", "gpt2", "gpt_neox", "llama"])
def test_a_head_is_tied_unless_it_is_asked_not_to(architecture: str) -> None:
    for tied in (True, False):
        model = built(architecture, options={} if tied else {"tie_word_embeddings": False})
        given, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert (given.data_ptr() == head.data_ptr()) == tied


def test_a_model_has_its_tokenizer_s_entries_and_ids() -> None:
    tokenizer = tiny_tokenizer()
    model = built("llama", vocab_size=32_000)
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().num_embeddings
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_options_are_the_config_s_and_win_over_what_follows_from_knobs() -> None:
    cfg = ModelConfig(
        architecture="llama",
        hidden_size=64,
        num_heads=4,
        dropout=0.1,
        options={"num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 3e-5, "attention_dropout": 0.0},
    )
    config = architecture_config(cfg, 300, {"eos_token_id": 2})
    assert (config.num_key_value_heads, config.head_dim) == (2, 24)
    assert (config.rms_norm_eps, config.attention_dropout, config.eos_token_id) == (3e-5, 0.0, 2)
