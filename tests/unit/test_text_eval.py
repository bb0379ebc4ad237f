"""The loss of a language model on text, against sums done by hand."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from align.evals.text_loss import encode_text, num_targets, summed_loss

END, FIRST = 0, 1  # ids: the end-of-text token, then one for each byte


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, so that every length can be told by looking."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": END, **{letter: FIRST + i for i, letter in enumerate(letters)}}
    built = Tokenizer(models.BPE(vocabulary, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<end>")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_positions=8, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    return GPT2LMHeadModel(config).eval()


def test_documents_end_with_the_end_and_lie_end_to_end(tokenizer):
    rows, bytes_per_token = encode_text(["abc", "de", "f"], tokenizer, 3)
    ids = {letter: tokenizer(letter)["input_ids"][0] for letter in "abcdef"}
    a, b, c, d, e, f = (ids[letter] for letter in "abcdef")
    assert rows.tolist() == [[a, b, c], [END, d, e], [END, f, END]]
    assert bytes_per_token == 6 / 9  # the three ends are tokens of no byte


@pytest.mark.parametrize(("letters", "count"), [(2, 0), (3, 1), (4, 1), (6, 1), (7, 2), (8, 2), (11, 3)])
def test_the_tail_that_fills_no_row_is_left_out(tokenizer, letters, count):
    rows, bytes_per_token = encode_text(["x" * letters], tokenizer, 4)
    assert tuple(rows.shape) == (count, 4)
    assert rows.dtype == torch.long
    assert num_targets(rows) == 3 * count
    assert bytes_per_token == letters / (letters + 1)  # of all the text, the tail too


def test_bytes_are_counted_not_letters(tokenizer):
    rows, bytes_per_token = encode_text(["é🌍", "a"], tokenizer, 9)
    assert tuple(rows.shape) == (1, 9)
    assert bytes_per_token == (2 + 4 + 1) / 9


def test_no_text_gives_no_rows(tokenizer):
    rows, bytes_per_token = encode_text([], tokenizer, 5)
    assert tuple(rows.shape) == (0, 5)
    assert math.isnan(bytes_per_token)
    assert num_targets(rows) == 0


def test_an_empty_document_is_its_end_alone(tokenizer):
    rows, bytes_per_token = encode_text(["", "", "ab"], tokenizer, 5)
    assert rows[0, :2].tolist() == [END, END]
    assert bytes_per_token == 2 / 5


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
    rows, _ = encode_text(["The hen sat.", "Röd", "a long line of text"], tokenizer, 8)
    assert rows.shape[0] == 4
    assert float(summed_loss(model, rows)) == pytest.approx(by_hand(model, rows), rel=1e-5)


@torch.no_grad()
def test_rows_apart_and_together_have_one_sum(tokenizer, model):
    rows, _ = encode_text(["The hen sat by the lake and slept."], tokenizer, 8)
    apart = sum(float(summed_loss(model, row[None])) for row in rows)
    assert float(summed_loss(model, rows)) == pytest.approx(apart, rel=1e-5)


@torch.no_grad()
def test_bits_per_byte_of_a_model_that_knows_nothing(tokenizer, model):
    blank = GPT2LMHeadModel(model.config).eval()
    for parameter in blank.parameters():
        parameter.zero_()
    rows, bytes_per_token = encode_text(["abcdefg"], tokenizer, 8)
    nats = float(summed_loss(blank, rows)) / num_targets(rows)
    assert nats == pytest.approx(math.log(257), rel=1e-6)
    # seven letters and an end: each token costs log2(257) bits and stands for 7/8 of a byte
    assert nats / math.log(2) / bytes_per_token == pytest.approx(8.005625 * 8 / 7, rel=1e-5)


@torch.no_grad()
def test_a_loss_in_half_precision_is_summed_in_full(tokenizer, model):
    rows, _ = encode_text(["The hen sat by the lake and slept. " * 20], tokenizer, 8)
    half = GPT2LMHeadModel(model.config).eval()
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    loss = summed_loss(half, rows)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(by_hand(model, rows), rel=0.02)


def test_the_loss_can_be_learned_from(tokenizer, model):
    rows, _ = encode_text(["abcdefgh"], tokenizer, 8)
    model.zero_grad()
    summed_loss(model, rows).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
