"""Model families beyond GPT-2: they build, run packed as they run alone, or are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from align.configs import ModelConfig, Pretrain
from align.errors import ConfigError
from align.models.build import build_model, fresh_model
from align.models.load import load_model
from align.text.packing import pack
from align.text.tokenizers import train_tokenizer
from align.training.optimizers import pretraining_optimizers


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat"] * 3, 275)


def tiny(tokenizer, architecture, num_heads=4, **knobs):
    cfg = ModelConfig(
        architecture=architecture,
        hidden_size=96,
        num_layers=1,
        num_heads=num_heads,
        context_length=64,
        dropout=0.0,
        initializer_range=0.3,
        **knobs,
    )
    return build_model(cfg, tokenizer).eval()


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text", "phi3"])
def test_a_sliding_window_holds_in_packed_rows(tokenizer, architecture):
    config = tiny(tokenizer, architecture, num_heads=8).config
    config.sliding_window = 4
    ours = AutoModelForCausalLM.from_config(config, attn_implementation="align").eval()
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    plain.load_state_dict(ours.state_dict())
    sequences = [list(range(5, 17)), list(range(20, 29))]
    packed = pack(sequences)
    got = ours(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits[0]
    alone = torch.cat([plain(input_ids=torch.tensor([s]), use_cache=False).logits[0] for s in sequences])
    torch.testing.assert_close(got[: len(alone)], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt_oss", "gemma2"])
def test_attention_with_sinks_or_soft_caps_is_refused(tokenizer, architecture):
    with pytest.raises(ConfigError, match="which align's has not"):
        tiny(tokenizer, architecture, num_heads=8)(torch.arange(5, 17)[None])


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["qwen3", "mistral"])
def test_a_model_that_was_built_runs(tokenizer, architecture):
    assert tiny(tokenizer, architecture)(torch.tensor([[7, 8]])).logits.isfinite().all()


def test_muon_makes_each_projection_of_gpt_neox_orthogonal(tokenizer):
    model = tiny(tokenizer, "gpt_neox")
    muon, _ = pretraining_optimizers(model, Pretrain(optimizer="muon", learning_rate=1.0, weight_decay=0.0))
    weight = model.gpt_neox.layers[0].attention.query_key_value.weight
    before = weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    heads = weight.grad.view(4, 3, 24, 96)  # GPT-NeoX lays out head by head: q, k, v of the first, then of the next
    heads[:, 0] *= 0.01
    muon.step()
    norms = (weight.detach() - before).view(4, 3, 24, 96).pow(2).sum((0, 2, 3)).sqrt()
    assert norms[0].item() == pytest.approx(norms[1].item(), rel=0.1)


def test_a_model_that_masks_or_places_by_itself_is_refused_where_no_import_fitted_it(tmp_path, tokenizer):
    """OPT makes a mask of its own, so that packed sequences would see each other; BLOOM adds a slope to its scores."""
    for name, sizes in (
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 32, "max_position_embeddings": 64}),
        ("bloom", {}),
    ):
        config = AutoConfig.for_model(
            name,
            vocab_size=280,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            init_std=0.3,
            initializer_range=0.3,
            **sizes,
        )
        folder = tmp_path / name
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        with pytest.raises(ConfigError, match=f"^{name}: "):
            load_model(folder)


@torch.no_grad()
def test_a_model_with_fresh_weights_reads_packed_rows_as_the_one_it_is_like(tmp_path):
    """OPT with its own attention, as its import found; what one sequence says does not reach another."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 32}
    config = AutoConfig.for_model("opt", vocab_size=280, ffn_dim=32, max_position_embeddings=64, init_std=0.3, **sizes)
    config.align_attention = "padded"
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = fresh_model(tmp_path)
    assert model.config._attn_implementation == "eager"
    near, far = ([packed.input_ids, packed.position_ids] for packed in (pack([[5, 6, 7], [8, 9]]), pack([[8, 9]])))
    logits = [model(input_ids=i, position_ids=p, use_cache=False).logits[0] for i, p in (near, far)]
    torch.testing.assert_close(logits[0][3:5], logits[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "architecture", ["gpt2", "openai-gpt", "gpt_neox", "llama", "qwen3", "mistral", "gemma3_text", "phi3"]
)
def test_a_model_whose_attention_is_ours_is_loaded(tmp_path, tokenizer, architecture):
    tiny(tokenizer, architecture, num_heads=8).save_pretrained(tmp_path)
    assert load_model(tmp_path).config._attn_implementation == "align"
