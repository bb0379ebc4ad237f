"""Packed attention: each sequence as if alone, and as `transformers` computes it."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import alone_logits, packed_logits, sequences_of, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from align.configs import ModelConfig
from align.models.attention import packed_layout, packed_mask
from align.models.build import build_model
from align.text.packing import pack

ARCHITECTURES = ["gpt2", "gpt_neox", "llama", "openai-gpt"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def models(request):
    """Ours, and the same weights under the library's own eager attention."""
    torch.manual_seed(0)
    ours = tiny_model(request.param, context=320, spread=0.2)
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(ours.config), attn_implementation="eager").eval()
    plain.load_state_dict(ours.state_dict())
    assert ours.config._attn_implementation != plain.config._attn_implementation
    return ours, plain


def padded_logits(model, sequences):
    """One right-padded batch with an attention mask; the rows of real tokens."""
    width = max(map(len, sequences))
    ids = torch.tensor([s + [1] * (width - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[mask.bool()]


def near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def starts_of(lengths):
    starts = torch.zeros(sum(lengths), dtype=torch.bool)
    starts[[sum(lengths[:i]) for i in range(len(lengths))]] = True
    return starts


def test_layout_of_short_sequences_by_hand():
    layout = packed_layout(starts_of([3, 1, 2]))
    assert layout.shapes == ((3, 16),)
    assert layout.tokens.tolist() == [0, 1] + [2] * 14 + [3] * 16 + [4] + [5] * 15
    assert layout.places.tolist() == [0, 1, 2, 16, 32, 33]
    assert layout.padding.tolist() == [*range(3, 16), *range(17, 32), *range(34, 48)]


@pytest.mark.parametrize("lengths", [[64, 65, 128, 129, 1], [200, 3, 70, 300, 5, 90], [1], [64] * 3, [17, 257]])
def test_layout_goes_there_and_back_in_groups_of_similar_length(lengths):
    layout = packed_layout(starts_of(lengths))
    if len(set(lengths)) == 1:  # nothing to move
        assert layout.tokens is None
        layout = layout._replace(tokens=torch.arange(sum(lengths)))
    assert layout.tokens[layout.places].tolist() == list(range(sum(lengths)))
    assert sum(rows for rows, _ in layout.shapes) == len(lengths)
    assert sum(rows * width for rows, width in layout.shapes) == len(layout.tokens)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    groups = layout.tokens.split([rows * width for rows, width in layout.shapes])
    for group, (rows, width) in zip(groups, layout.shapes, strict=True):
        for row in group.view(rows, width):
            (owner,) = set(sequence[row].tolist())
            assert row[: lengths[owner]].tolist() == (sequence == owner).nonzero().flatten().tolist()
            assert width <= 64 or width < 2 * lengths[owner]


OTHERS = {
    "chunks": lambda q, k: (k <= q) & (k // 4 == q // 4),
    "both ways": lambda q, k: q + k >= 0,
    "a band both ways": lambda q, k: (q - k).abs() < 3,
    "a prefix seen by all": lambda q, k: (k <= q) | (k < 3),
    "a wider band": lambda q, k: (k <= q) & (q - k < 4),
    "a narrower band": lambda q, k: (k <= q) & (q - k < 2),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("window", [None, 3])
def test_a_mask_of_another_shape_stays_a_mask(name, window):
    def function(row, head, q, k):
        return OTHERS[name](q, k)

    got = packed_mask(2, 12, 12, function, allow_is_causal_skip=False, local_size=window)
    expected = OTHERS[name](torch.arange(12)[:, None], torch.arange(12)[None])
    if window is None and name == "chunks":  # they are sequences of 4 tokens
        assert got.shapes == ((6, 4),)
    else:
        assert torch.equal(got, expected.expand(2, 1, -1, -1))


@pytest.mark.parametrize("window", [1, 3, 11])
def test_a_band_becomes_a_layout(window):
    def function(row, head, q, k):
        return (k <= q) & (q - k < window)

    got = packed_mask(2, 12, 12, function, local_size=window)
    if window == 1:  # each token is a sequence of its own
        assert (got.shapes, got.window) == (((24, 1),), None)
    else:
        assert (got.shapes, got.window) == (((2, 12),), window)
    padding = torch.ones(2, 12, dtype=torch.bool)
    assert packed_mask(2, 12, 12, function, padding, local_size=window).shapes == got.shapes
    padding[1, :2] = False
    seen = function(None, None, torch.arange(12)[:, None], torch.arange(12)[None])
    masked = packed_mask(2, 12, 12, function, padding, local_size=window)
    assert torch.equal(masked[:, 0], seen & padding[:, None])


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[5, 9, 1, 7], [1, 1, 1], [12], [3, 250, 2], [64, 3, 65, 128, 129, 66]])
def test_a_packed_sequence_is_as_if_alone(models, lengths):
    ours, plain = models
    sequences = sequences_of(lengths)
    got = packed_logits(ours, sequences)
    near(got, alone_logits(ours, sequences))
    near(got, alone_logits(plain, sequences))


@torch.no_grad()
def test_packed_equals_a_right_padded_batch_of_eager_attention(models):
    ours, plain = models
    sequences = sequences_of([6, 11, 2, 8], seed=1)
    expected = padded_logits(plain, sequences)
    near(packed_logits(ours, sequences), expected)
    near(padded_logits(ours, sequences), expected)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[300], [300, 4, 17], [257, 256]])
def test_a_long_sequence_gives_equal_numbers(models, lengths):
    ours, plain = models
    sequences = sequences_of(lengths, seed=2)
    near(packed_logits(ours, sequences), alone_logits(plain, sequences))


@torch.no_grad()
def test_what_one_sequence_says_does_not_reach_another(models):
    ours, _ = models
    first, second, third = sequences_of([6, 7, 5], seed=3)
    one = packed_logits(ours, [first, second, third])
    other = packed_logits(ours, [first, sequences_of([7], seed=4)[0], third])
    assert torch.equal(one[:6], other[:6])
    assert torch.equal(one[13:], other[13:])
    assert not torch.equal(one[6:13], other[6:13])


@torch.no_grad()
def test_nothing_sees_its_future(models):
    ours, _ = models
    (sequence,) = sequences_of([10], seed=5)
    changed = [*sequence[:6], 77, 78, 79, 80]
    assert torch.equal(packed_logits(ours, [sequence, [9, 9]])[:6], packed_logits(ours, [changed, [9, 9]])[:6])


@torch.no_grad()
def test_several_packed_rows_at_once(models):
    ours, plain = models
    rows = [sequences_of([4, 8], seed=6), sequences_of([7, 5], seed=7)]
    packed = [pack(row) for row in rows]
    logits = ours(
        input_ids=torch.cat([p.input_ids for p in packed]),
        position_ids=torch.cat([p.position_ids for p in packed]),
        use_cache=False,
    ).logits
    near(logits[:, :12].flatten(0, 1), alone_logits(plain, rows[0] + rows[1]))


@pytest.mark.parametrize("lengths", [[5, 9, 1, 7], [270, 30]])
def test_gradients_of_a_packed_row_are_those_of_its_sequences(models, lengths):
    ours, plain = models
    sequences = sequences_of(lengths, seed=8)
    targets = torch.cat([torch.tensor(s).roll(-1) for s in sequences])
    for model, logits in ((ours, packed_logits(ours, sequences)), (plain, alone_logits(plain, sequences))):
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, targets).backward()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
def test_grouped_key_value_heads(tokenizer):
    torch.manual_seed(0)
    cfg = ModelConfig(architecture="llama", hidden_size=32, num_layers=2, num_heads=4, context_length=64, dropout=0.0)
    config = build_model(cfg, tokenizer).config
    config.num_key_value_heads, config.initializer_range = 2, 0.2
    ours = AutoModelForCausalLM.from_config(config, attn_implementation="align").eval()
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    plain.load_state_dict(ours.state_dict())
    sequences = sequences_of([5, 9, 1], seed=9)
    near(packed_logits(ours, sequences), alone_logits(plain, sequences))


@torch.no_grad()
def test_bf16_weights_are_near_float32(models):
    ours, _ = models
    sequences = sequences_of([5, 9], seed=10)
    exact = packed_logits(ours, sequences)
    rough = packed_logits(copy.deepcopy(ours).bfloat16(), sequences)
    assert rough.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(rough.float(), exact, dim=1).min() > 0.99
