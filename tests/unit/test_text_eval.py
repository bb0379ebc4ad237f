"""The loss of a language model on text, against sums done by hand."""

import itertools
import math

import pytest
import torch
from tiny_models import END, byte_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from align.evals.text_loss import num_targets, row_losses, summed_loss
from align.models.attention import ATTENTION
from align.text.packing import document_positions
from align.text.tokens import encode_text


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_positions=8, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    return GPT2LMHeadModel(config).eval()


def rows_of(texts, tokenizer, length):
    return encode_text(texts, tokenizer, length)[:]


def by_hand(model, rows):
    """-log of the softmax at each next token, in float64, one row and one place at a time."""
    total = 0.0
    for row in rows:
        logits = model(input_ids=row[None]).logits[0].double()
        for place in range(len(row) - 1):
            weights = torch.exp(logits[place] - logits[place].max())
            total -= math.log(float(weights[row[place + 1]] / weights.sum()))
    return total


@torch.no_grad()
def test_the_loss_is_the_sum_of_minus_log_p_over_all_targets(tokenizer, model):
    rows = rows_of(["The hen sat.", "Röd", "a long line of text"], tokenizer, 8)
    assert rows.shape[0] == 4
    assert float(summed_loss(model, rows)) == pytest.approx(by_hand(model, rows), rel=1e-5)


@torch.no_grad()
def test_rows_apart_and_together_have_one_sum(tokenizer, model):
    rows = rows_of(["The hen sat by the lake and slept."], tokenizer, 8)
    apart = sum(float(summed_loss(model, row[None])) for row in rows)
    assert float(summed_loss(model, rows)) == pytest.approx(apart, rel=1e-5)


@torch.no_grad()
def test_bits_per_byte_of_a_model_that_knows_nothing(tokenizer, model):
    blank = GPT2LMHeadModel(model.config).eval()
    for parameter in blank.parameters():
        parameter.zero_()
    text = encode_text(["abcdefg"], tokenizer, 8)
    rows, bytes_per_token = text[:], text.bytes_per_token
    nats = float(summed_loss(blank, rows)) / num_targets(rows)
    assert nats == pytest.approx(math.log(257), rel=1e-6)
    # seven letters and an end: each token costs log2(257) bits and stands for 7/8 of a byte
    assert nats / math.log(2) / bytes_per_token == pytest.approx(8.005625 * 8 / 7, rel=1e-5)


@torch.no_grad()
def test_a_loss_in_half_precision_is_summed_in_full(tokenizer, model):
    rows = rows_of(["The hen sat by the lake and slept. " * 20], tokenizer, 8)
    half = GPT2LMHeadModel(model.config).eval()
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    loss = summed_loss(half, rows)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(by_hand(model, rows), rel=0.02)


def test_the_loss_can_be_learned_from(tokenizer, model):
    rows = rows_of(["abcdefgh"], tokenizer, 8)
    model.zero_grad()
    summed_loss(model, rows).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_a_row_s_loss_is_its_mean(tokenizer, model):
    rows = rows_of(["The hen sat by the lake and slept."], tokenizer, 8)
    assert row_losses(model, rows).sum() * 7 == pytest.approx(float(summed_loss(model, rows)), rel=1e-6)


@torch.no_grad()
def test_documents_apart_have_the_loss_that_each_has_alone(tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    plain = GPT2LMHeadModel(config).eval()
    ours = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()
    ours.load_state_dict(plain.state_dict())
    (row,) = rows_of(["abcd", "xyz", "some"], tokenizer, 14)
    ends = [0, 5, 9, 14]
    alone = 0.0
    for begin, end in itertools.pairwise(ends):
        logits = plain(input_ids=row[None, begin:end]).logits[0].log_softmax(-1)
        following = row[begin + 1 : end + 1]  # the first token of the next document is predicted from this one's end
        alone -= float(logits[: len(following)].gather(1, following[:, None]).sum())
    apart = float(summed_loss(ours, row[None], document_positions(row[None], END)))
    assert apart == pytest.approx(alone, rel=1e-5)
    assert float(summed_loss(ours, row[None])) != pytest.approx(apart, rel=1e-3)
