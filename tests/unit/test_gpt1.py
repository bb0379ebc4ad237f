"""GPT-1: its block, its agreement with `transformers`' own openai-gpt, packed rows, the cache, the classifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_model, tiny_tokenizer, written_by_transformers
from transformers.models.openai import modeling_openai as library

from align.models.heads import load_scalar, scalar_from_lm
from align.models.load import load_model, save_model
from align.text.packing import pack

GENERATOR = torch.Generator().manual_seed(3)
IDS = torch.randint(3, 280, (3, 20), generator=GENERATOR)


@pytest.fixture(scope="module")
def model():
    return tiny_model("openai-gpt")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gpt1")
    save_model(model, tiny_tokenizer(), place)
    return place


@torch.no_grad()
def test_a_block_without_attention_and_mlp_is_two_norms_one_after_the_other() -> None:
    """Post-norm: LN(LN(x)), with the gains and biases of both, and nothing after the last block."""
    model = tiny_model("openai-gpt")
    for block in model.transformer.h:
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
        for norm in (block.ln_1, block.ln_2):
            norm.weight.normal_(1.0, 0.5, generator=GENERATOR)
            norm.bias.normal_(0.0, 0.5, generator=GENERATOR)
    x = model.transformer.tokens_embed(IDS) + model.transformer.positions_embed(torch.arange(20))
    for block in model.transformer.h:
        for norm in (block.ln_1, block.ln_2):
            x = F.layer_norm(x, (32,), norm.weight, norm.bias, eps=1e-5)
    torch.testing.assert_close(model.base_model(IDS).last_hidden_state, x, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("place", [1, 10, 19])
def test_a_token_changes_no_logits_before_it(model, place: int) -> None:
    changed = IDS.clone()
    changed[:, place] = (changed[:, place] + 7) % 270 + 3
    before, after = model(IDS).logits, model(changed).logits
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.allclose(before[:, place], after[:, place])


def test_the_head_is_the_embedding_of_tokens(model) -> None:
    assert model.lm_head.weight.data_ptr() == model.transformer.tokens_embed.weight.data_ptr()
    assert model.lm_head.bias is None


@torch.no_grad()
def test_a_saved_folder_opens_with_the_library_s_own_classes(model, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("openai-gpt", ["OpenAIGPTLMHeadModel"])
    plain = library.OpenAIGPTLMHeadModel.from_pretrained(folder).eval()
    assert not isinstance(plain, type(model))
    assert plain.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=2e-5)
    padded = torch.ones_like(IDS)
    padded[1, :6] = 0
    at = {"attention_mask": padded, "position_ids": (padded.cumsum(1) - 1).clamp(min=0)}
    torch.testing.assert_close(model(IDS, **at).logits[:, -1], plain(IDS, **at).logits[:, -1], rtol=1e-5, atol=2e-5)


def test_gradients_are_the_library_s(folder: Path) -> None:
    ours, plain = load_model(folder), library.OpenAIGPTLMHeadModel.from_pretrained(folder).eval()
    for each in (ours, plain):
        each(input_ids=IDS, labels=IDS).loss.backward()
    wanted = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-6, msg=name)


@torch.no_grad()
def test_sequences_in_a_packed_row_are_each_alone(folder: Path) -> None:
    ours, plain = load_model(folder), library.OpenAIGPTLMHeadModel.from_pretrained(folder).eval()
    sequences = [IDS[0, :17].tolist(), IDS[1, :9].tolist(), IDS[2].tolist()]
    packed = pack(sequences)
    got = ours(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits[0]
    alone = torch.cat([plain(torch.tensor([sequence])).logits[0] for sequence in sequences])
    torch.testing.assert_close(got[: len(alone)], alone, rtol=1e-4, atol=1e-4)


def test_it_writes_with_a_cache_what_the_library_writes_without(folder: Path) -> None:
    ours, plain = load_model(folder), library.OpenAIGPTLMHeadModel.from_pretrained(folder).eval()
    prompt = IDS[0, :7].tolist()
    assert ours.generate(torch.tensor([prompt]), max_new_tokens=2, use_cache=True, return_dict_in_generate=True)[
        "past_key_values"
    ]
    for eos in (0, 5):
        wanted = written_by_transformers(plain, prompt, 30, eos, 1)
        assert written_by_transformers(ours, prompt, 30, eos, 1) == wanted


@torch.no_grad()
def test_dropout_falls_where_the_library_s_does(folder: Path) -> None:
    """With the same draws: on the sum of embeddings and on what each block adds; attention's own is off."""
    ours, plain = load_model(folder), library.OpenAIGPTLMHeadModel.from_pretrained(folder)
    for each in (ours, plain):
        for module in each.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0 if module in [block.attn.attn_dropout for block in plain.transformer.h] else 0.3
        each.train()
    logits = []
    for each in (ours, plain):
        torch.manual_seed(5)
        logits.append(each(IDS, use_cache=False).logits if each is ours else each(IDS).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits[0], ours.eval()(IDS).logits, atol=0.1)


@torch.no_grad()
def test_a_classifier_is_the_library_s(folder: Path, tmp_path: Path) -> None:
    scalar = scalar_from_lm(folder)
    scalar.save(tmp_path)
    plain = library.OpenAIGPTForSequenceClassification.from_pretrained(tmp_path).eval()
    plain.config.pad_token_id = 1
    got = load_scalar(tmp_path)(IDS[:1], torch.arange(20)[None], torch.tensor([19]))
    torch.testing.assert_close(got, plain(IDS[:1]).logits[:, 0], rtol=1e-5, atol=1e-5)


def test_attention_drops_out_in_training_alone() -> None:
    model = tiny_model("openai-gpt")
    for block in model.transformer.h:
        block.attn.attention_dropout = 0.5
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS, use_cache=False).logits, model(IDS, use_cache=False).logits)
