"""Rounding weights to the precision that they are stored in."""

from __future__ import annotations

import pytest
import torch

from align.models.load import round_to_stored


def trained(dtype: torch.dtype, step: float) -> tuple[torch.nn.Linear, torch.Tensor]:
    """A layer whose lower half moved by `step` either way from weights in `dtype`, and those weights."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(400, 400, bias=False)
    before = (0.05 * torch.randn(400, 400)).to(dtype).float()
    update = step * torch.randn(400, 400).sign()
    update[:200] = 0.0
    layer.weight.data = before + update
    layer.stored_dtype = dtype
    return layer, before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [1e-5, 1e-4])
def test_updates_far_below_a_step_of_the_format_are_kept_on_average(dtype, step):
    layer, before = trained(dtype, step)
    update = layer.weight.detach() - before
    assert round_to_stored(layer)
    kept = layer.weight.detach() - before
    assert float((kept * update).sum() / (update * update).sum()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(kept[:200], torch.zeros(200, 400))  # what did not move stays
    assert torch.equal(layer.weight, layer.weight.to(dtype).float())


def test_to_the_nearest_most_of_a_small_update_is_lost():
    """Why trained weights are not rounded so."""
    layer, before = trained(torch.bfloat16, 1e-5)
    update = layer.weight.detach() - before
    round_to_stored(layer, to_nearest=True)
    kept = layer.weight.detach() - before
    assert float((kept * update).sum() / (update * update).sum()) < 0.1


def test_a_rounded_model_is_left_as_it_is_and_every_draw_is_the_same():
    (one, _), (other, _) = trained(torch.bfloat16, 1e-4), trained(torch.bfloat16, 1e-4)
    for layer in (one, other):
        round_to_stored(layer)
    assert torch.equal(one.weight, other.weight)
    again = one.weight.detach().clone()
    round_to_stored(one)
    assert torch.equal(one.weight, again)


def test_float32_is_not_rounded():
    layer, _ = trained(torch.float32, 1e-5)
    before = layer.weight.detach().clone()
    assert not round_to_stored(layer)
    assert torch.equal(layer.weight, before)
