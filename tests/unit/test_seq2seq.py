"""Encoder-decoders: log-probs, padding and answers as `transformers` itself computes them."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import sentinel_tokenizer, tiny_t5
from transformers import T5Config, T5ForConditionalGeneration

from align.configs import ModelConfig
from align.errors import ConfigError
from align.models import seq2seq
from align.models.build import build_model
from align.models.load import save_model
from align.models.seq2seq import greedy_answers, load_seq2seq, target_logprobs
from align.text.pairs import Texts, encode_pairs, pad, similar_groups, texts_of
from align.text.spans import Pair


@pytest.fixture(scope="module")
def tokenizer():
    return sentinel_tokenizer(20)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return tiny_t5(tokenizer)


def pairs_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [[torch.randint(5, 260, (n - 1,), generator=generator).tolist() for n in both] for both in lengths]
    return [Pair(*([*side, 0] for side in both)) for both in ids]


def library_loss(model, pairs, attention="sdpa"):
    """The mean loss that the library's own forward gives, with labels of -100 where nothing is to be written."""
    width, height = (max(len(pair[side]) for pair in pairs) for side in (0, 1))
    ids = torch.tensor([p.input + [1] * (width - len(p.input)) for p in pairs])
    mask = torch.tensor([[1] * len(p.input) + [0] * (width - len(p.input)) for p in pairs])
    labels = torch.tensor([p.target + [-100] * (height - len(p.target)) for p in pairs])
    model.set_attn_implementation(attention)
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    model.set_attn_implementation("sdpa")
    return loss


ALIKE = [(24, 7)] * 4
VARIED = [(24, 7), (5, 2), (40, 1), (17, 19), (24, 3)]


@pytest.mark.parametrize("lengths", [ALIKE, VARIED], ids=["alike", "varied"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tied", [True, False], ids=["t5", "t5 1.1"])
def test_the_loss_and_its_gradient_are_transformers_own(tokenizer, lengths, attention, tied):
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="relu" if tied else "gated-gelu",
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = T5ForConditionalGeneration(config).eval()
    assert model.config.scale_decoder_outputs is tied
    pairs = pairs_of(lengths)
    theirs = library_loss(model, pairs, attention)
    theirs.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    logprobs = target_logprobs(model, pad(pairs, tokenizer.pad_token_id))
    assert len(logprobs) == sum(len(pair.target) for pair in pairs)
    ours = -logprobs.mean()
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_pair_is_worth_the_same_alone_and_among_others(model):
    pairs = pairs_of(VARIED)
    together = target_logprobs(model, pad(pairs, 1)).split([len(pair.target) for pair in pairs])
    for pair, own in zip(pairs, together, strict=True):
        torch.testing.assert_close(target_logprobs(model, pad([pair], 1)), own, rtol=1e-5, atol=1e-5)


def test_pairs_of_one_length_are_not_padded_and_others_are_marked():
    alike = pad(pairs_of(ALIKE), 1)
    assert alike.input_mask is None
    assert alike.input_ids.shape == (4, 24)
    assert alike.target_ids.shape == (4, 7)
    assert bool(alike.target_mask.all())
    pairs = pairs_of(VARIED)
    varied = pad(pairs, 1)
    assert varied.input_mask is not None
    for row, pair in enumerate(pairs):
        assert varied.input_ids[row][varied.input_mask[row]].tolist() == pair.input
        assert varied.target_ids[row][varied.target_mask[row]].tolist() == pair.target
        assert set(varied.input_ids[row][~varied.input_mask[row]].tolist()) <= {1}


def test_groups_hold_every_pair_once_within_the_limit_and_of_like_lengths():
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 60, (200, 2), generator=generator).tolist()
    pairs = pairs_of([tuple(both) for both in lengths])
    groups = list(similar_groups(pairs, 400))
    assert sorted(i for group in groups for i in group) == list(range(200))
    for group in groups:
        batch = pad([pairs[i] for i in group], 1)
        assert len(group) == 1 or batch.input_ids.numel() + batch.target_ids.numel() <= 400
    inputs = [len(pairs[i].input) for group in groups for i in group]
    assert inputs == sorted(inputs)
    assert [len(group) for group in similar_groups(pairs_of([(30, 10)] * 10), 160)] == [4, 4, 2]
    assert list(similar_groups(pairs_of([(30, 10)] * 2), 8)) == [[0], [1]]


@torch.no_grad()
def test_answers_are_the_likeliest_tokens_one_after_the_other(tokenizer):
    torch.manual_seed(3)
    model = tiny_t5(tokenizer)
    inputs = [pair.input for pair in pairs_of(VARIED)]
    answers = greedy_answers(model, inputs, 12)
    assert any(len(answer) == 12 for answer in answers)
    for ids, answer in zip(inputs, answers, strict=True):
        written = [tokenizer.pad_token_id]
        while len(written) <= 12:
            logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([written])).logits[0, -1]
            written.append(int(logits.argmax()))
            if written[-1] == tokenizer.eos_token_id:
                break
        assert answer == [token for token in written[1:] if token != tokenizer.eos_token_id]


def test_a_saved_model_opens_as_it_was_and_as_a_plain_one(tokenizer, model, tmp_path):
    save_model(model, tokenizer, tmp_path)
    pairs = pairs_of(VARIED)
    expected = target_logprobs(model, pad(pairs, 1))
    assert torch.equal(target_logprobs(load_seq2seq(tmp_path), pad(pairs, 1)), expected)
    plain = T5ForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(library_loss(plain, pairs), -expected.mean(), rtol=1e-5, atol=1e-5)
    assert plain.config.decoder_start_token_id == tokenizer.pad_token_id
    assert plain.shared.weight.data_ptr() == plain.lm_head.weight.data_ptr()


def test_a_model_whose_head_is_another_is_refused(tokenizer, model, tmp_path):
    model.config.scale_decoder_outputs = False
    save_model(model, tokenizer, tmp_path)
    model.config.scale_decoder_outputs = True
    other = load_seq2seq(tmp_path)  # as T5 1.1 has it: no scale, which its config says
    assert other.config.scale_decoder_outputs is False

    class Odd(T5ForConditionalGeneration):
        def forward(self, *arguments, **named):
            out = super().forward(*arguments, **named)
            out.logits = out.logits / 2
            return out

    odd = Odd(model.config).eval()
    with pytest.raises(ConfigError, match="its head is not one that align computes"):
        seq2seq._check_head(odd)


@torch.no_grad()
def test_initial_weights_are_t5s_own(tokenizer):
    """Mesh TensorFlow's deviations: 1 for embeddings, 1 / sqrt(inner width) elsewhere, and no 1 / sqrt(d_kv) later."""
    torch.manual_seed(0)
    cfg = ModelConfig(architecture="t5", hidden_size=64, num_layers=1, num_heads=4, initializer_range=1.0)
    attention = build_model(cfg, tokenizer).encoder.block[0].layer[0].SelfAttention
    assert float(attention.q.weight.std()) == pytest.approx((64 * 16) ** -0.5, rel=0.05)
    assert float(attention.k.weight.std()) == pytest.approx(64**-0.5, rel=0.05)
    assert attention.scaling == 1.0
    assert math.isclose(float(build_model(cfg, tokenizer).shared.weight.std()), 1.0, rel_tol=0.05)


def test_demonstrations_become_pairs_that_end(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat"}]
    assert texts_of([*messages, {"role": "assistant", "content": "sat"}]) == Texts("Be brief.\nthe cat", "sat")
    assert texts_of([messages[1], {"role": "assistant", "content": "sat"}]) == Texts("the cat", "sat")
    (pair,) = encode_pairs(tokenizer, [Texts("the cat", "sat")])
    assert pair.input[-1] == pair.target[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(pair.input[:-1]) == "the cat"
    assert tokenizer.decode(pair.target[:-1]) == "sat"


def test_no_text_can_spell_a_sentinel_or_an_end(tokenizer):
    (pair,) = encode_pairs(tokenizer, [Texts("<extra_id_0> <|endoftext|>", "<|pad|>")])
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<extra_id_0>")}
    assert special.isdisjoint(pair.input[:-1])
    assert special.isdisjoint(pair.target[:-1])
    assert tokenizer.decode(pair.input[:-1]) == "<extra_id_0> <|endoftext|>"
