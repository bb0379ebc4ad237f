"""Banded attention beside dense attention under the band's mask, computed by its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import mostly_slow
from torch.utils._python_dispatch import TorchDispatchMode

from align.models import banded
from align.models.banded import banded_attention, rows_at_once

SCALE = 0.4
SIZES = [
    (1, 1),
    (5, 1),
    (5, 4),
    (127, 3),
    (128, 127),
    (129, 16),
    (129, 128),
    (256, 17),
    (300, 130),
    (300, 299),
    (400, 64),
]


def band(length, window):
    """True where 0 <= i - j < window."""
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (distance >= 0) & (distance < window)


def dense(query, key, value, window):
    scores = (query @ key.mT * SCALE).masked_fill(~band(query.shape[2], window), -math.inf)
    return torch.softmax(scores, -1) @ value


def tensors(length, dtype=torch.float64, rows=2, heads=3, width=8, count=3):
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(rows, heads, length, width, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(count)
    ]


def gradients(function, inputs, window, weights):
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad((function(*leaves, window) * weights).sum(), leaves)


def ours(query, key, value, window):
    return banded_attention(query, key, value, window, 0.0, SCALE)


def by_the_library(query, key, value, window):
    return rows_at_once(query, key, value, window, 0.0, SCALE)


@pytest.mark.parametrize("kernel", [ours, by_the_library])
@pytest.mark.parametrize(("length", "window"), SIZES)
def test_it_is_dense_attention_under_the_bands_mask(kernel, length, window):
    inputs = tensors(length)
    torch.testing.assert_close(kernel(*inputs, window), dense(*inputs, window), rtol=1e-12, atol=1e-12)
    single = kernel(*(x.float() for x in inputs), window)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), dense(*inputs, window), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [ours, by_the_library])
@pytest.mark.parametrize(("length", "window"), SIZES)
def test_its_gradients_are_those_of_dense_attention(kernel, length, window):
    *inputs, weights = tensors(length, count=4)
    for got, expected in zip(
        gradients(kernel, inputs, window, weights), gradients(dense, inputs, window, weights), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel", [ours, by_the_library])
@pytest.mark.parametrize("window", mostly_slow([1, 3, 6, 10], [1, 6]))
def test_its_gradients_are_finite_differences(monkeypatch, kernel, window):
    monkeypatch.setattr(banded, "BLOCK", 4)
    inputs = [x.requires_grad_() for x in tensors(11, rows=1, heads=2, width=3)]
    assert torch.autograd.gradcheck(lambda *x: kernel(*x, window), inputs)


@pytest.mark.parametrize("kernel", [ours, by_the_library])
def test_the_size_of_blocks_changes_nothing(monkeypatch, kernel):
    inputs = tensors(70)
    whole = kernel(*inputs, 9)
    for size in (1, 7, 16, 70):
        monkeypatch.setattr(banded, "BLOCK", size)
        torch.testing.assert_close(kernel(*inputs, 9), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [ours, by_the_library])
def test_what_lies_outside_the_band_is_not_felt_at_all(kernel):
    query, key, value = tensors(300)
    before = kernel(query, key, value, 20)
    for x in (key, value):
        x[:, :, [150, 151]] = torch.randn(2, 3, 2, 8, dtype=torch.float64)
    changed = (kernel(query, key, value, 20) != before).any(-1).flatten(0, 1)
    assert changed.any(0).nonzero().flatten().tolist() == list(range(150, 171))


@pytest.mark.parametrize("block", [128, 4])  # small ones: a key gets its gradient as the sum of many parts
def test_bf16_is_as_near_as_its_rounding(monkeypatch, block):
    monkeypatch.setattr(banded, "BLOCK", block)
    *inputs, weights = tensors(300, torch.bfloat16, count=4)
    got = ours(*inputs, 290)
    assert got.dtype == torch.bfloat16
    exact = dense(*(x.double() for x in inputs), 290)
    assert (got.double() - exact).norm() / exact.norm() < 2**-7
    rough = gradients(ours, inputs, 290, weights)
    for a, b in zip(rough, gradients(dense, [x.double() for x in inputs], 290, weights.double()), strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() / b.norm() < 2**-7


def test_autocast_leaves_the_precision_alone():
    inputs = tensors(140, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = ours(*inputs, 20)
    assert torch.equal(got, ours(*inputs, 20))


@pytest.mark.parametrize("kernel", [banded_attention, rows_at_once])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-5)])
def test_dropout_leaves_out_probabilities_and_makes_up_for_them(kernel, dtype, tolerance):
    length, window, rate = 200, 50, 0.25
    query, key, _ = tensors(length, dtype, rows=1)
    # With the identity for values, what comes out are the probabilities themselves.
    value = torch.eye(length, dtype=dtype).expand(1, 3, -1, -1)
    torch.manual_seed(0)
    got = kernel(query, key, value, window, rate, SCALE)[0].double()
    full = dense(query.double(), key.double(), value.double(), window)[0]
    inside = band(length, window).expand(3, -1, -1)
    assert (got[~inside] == 0).all()
    kept = got[inside] > 0
    torch.testing.assert_close(got[inside][kept], full[inside][kept] / (1 - rate), rtol=tolerance, atol=1e-7)
    deviation = math.sqrt(rate * (1 - rate) / kept.numel())
    assert 1 - kept.double().mean().item() == pytest.approx(rate, abs=4 * deviation)


@pytest.mark.parametrize("kernel", [banded_attention, rows_at_once])
def test_gradients_under_dropout_are_finite_differences(monkeypatch, kernel):
    monkeypatch.setattr(banded, "BLOCK", 4)

    def dropped(*inputs):
        torch.manual_seed(1)
        return kernel(*inputs, 6, 0.3, SCALE)

    assert torch.autograd.gradcheck(dropped, [x.requires_grad_() for x in tensors(11, rows=1, heads=2, width=3)])


class _Largest(TorchDispatchMode):
    """How many numbers the largest tensor holds that anything makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("kernel", [ours, by_the_library])
def test_no_tensor_grows_with_the_square_of_the_length(kernel):
    def largest(length):
        inputs = [x.requires_grad_() for x in tensors(length, torch.float32, rows=1, heads=1)]
        with _Largest() as made:
            kernel(*inputs, 32).sum().backward()
        return made.numbers

    small, large = largest(1024), largest(4096)
    assert large <= 4 * small
    assert large < 4096**2 / 16
