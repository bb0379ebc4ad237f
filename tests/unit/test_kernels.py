"""Attention's formulas beside autograd, and the precision that they keep."""

from __future__ import annotations

import pytest
import torch

from align.models.kernels import attention_gradients, attention_probs, fused_attention, unseen


def tensors(dtype, count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 20, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.mark.parametrize(("queries", "keys", "window"), [(4, 4, 4), (4, 4, 2), (3, 7, 2), (3, 7, 7), (1, 5, 1)])
def test_what_is_unseen(queries, keys, window):
    got = unseen(queries, keys, window)
    for i in range(queries):
        for j in range(keys):
            distance = i + keys - queries - j
            assert got[i, j] == (0.0 if 0 <= distance < window else -torch.inf)


def test_gradients_are_those_of_autograd():
    *inputs, weights = tensors(torch.float64, 4)
    leaves = [x.requires_grad_() for x in inputs]
    scores = leaves[0] @ leaves[1].mT * 0.3 + unseen(20, 20, 6)
    expected = torch.autograd.grad((torch.softmax(scores, -1) @ leaves[2] * weights).sum(), leaves)
    with torch.no_grad():
        probs = attention_probs(inputs[0], inputs[1], unseen(20, 20, 6), 0.3)
        torch.testing.assert_close(probs, torch.softmax(scores, -1))
        for a, b in zip(attention_gradients(*inputs, probs, weights, 0.3), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_fused_kernel_is_in_float32_or_wider_on_a_cpu(dtype):
    inputs = tensors(dtype)
    got = fused_attention(*inputs, None, 0.0, 0.3, causal=True)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    query, key, value = (x.double() for x in inputs)
    expected = torch.softmax(query @ key.mT * 0.3 + unseen(20, 20, 20), -1) @ value
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
