"""The losses of DPO beside TRL's own trainer, and identities."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import DPOTrainer

from align.losses.dpo import dpo_loss
from align.losses.preference import kwise_loss

LENGTHS = [5, 2, 3, 6]  # two chosen responses, then the two rejected ones
MASK = torch.arange(7)[None, :] < torch.tensor([[n] for n in LENGTHS])


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs per token [4, T] under the policy and the reference, float64, 0 behind the response."""
    rng = torch.Generator().manual_seed(seed)
    policy, reference = (-torch.rand(MASK.shape, generator=rng, dtype=torch.float64) for _ in range(2))
    return (policy * MASK).requires_grad_(), reference * MASK


def trl_loss(loss: str, beta: float, smoothing: float, policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """What TRL's trainer makes of these log-probs: its own method, on a trainer without a model."""
    whole = reference.sum(1)
    fake = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )

    def model(**_: object) -> SimpleNamespace:
        zeros = torch.zeros_like(policy)
        return SimpleNamespace(log_probs=policy, entropy=zeros, mean_logits=zeros, is_top1=zeros == 0)

    first = torch.zeros(4, 1, dtype=torch.long)
    inputs = {
        "input_ids": torch.zeros(4, 8, dtype=torch.long),
        "attention_mask": torch.ones(4, 8, dtype=torch.long),
        "completion_mask": torch.cat([first, MASK.long()], 1),
        "ref_chosen_logps": whole[:2],
        "ref_rejected_logps": whole[2:],
    }
    found: torch.Tensor = DPOTrainer._compute_loss(fake, model, inputs, return_outputs=False)
    return found


def own_loss(loss: str, beta: float, smoothing: float, policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    ratios, lengths = (policy - reference).sum(1), torch.tensor(LENGTHS)
    pairs = [
        dpo_loss(ratios[[i, i + 2]], torch.tensor([1, 2]), lengths[[i, i + 2]], beta, loss, smoothing) for i in (0, 1)
    ]
    return torch.stack(pairs).mean()


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(("loss", "smoothing"), [("sigmoid", 0.0), ("robust", 0.2), ("hinge", 0.0), ("ipo", 0.0)])
def test_a_loss_and_its_gradient_are_trl_s(loss: str, smoothing: float, beta: float) -> None:
    policy, reference = drawn()
    ours, theirs = (f(loss, beta, smoothing, policy, reference) for f in (own_loss, trl_loss))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-9)
    (mine,), (other,) = (torch.autograd.grad(each, policy) for each in (ours, theirs))
    torch.testing.assert_close(mine * MASK, other * MASK, rtol=1e-6, atol=1e-9)


def test_for_a_small_beta_the_gradient_is_that_of_the_likelihoods() -> None:
    """gradient / beta -> -1/2 the gradient of log pi(chosen) - log pi(rejected)."""
    ratios = torch.tensor([0.7, -1.3], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(ratios, torch.tensor([1, 2]), torch.tensor([3, 4]), beta=1e-7)
    (gradient,) = torch.autograd.grad(loss, ratios)
    torch.testing.assert_close(gradient / 1e-7, torch.tensor([-0.5, 0.5], dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_ranking_is_the_reward_model_s_loss_on_implicit_rewards() -> None:
    ratios = torch.tensor([0.5, -2.0, 0.1, 1.5], dtype=torch.float64)
    ranks, lengths = torch.tensor([2, 1, 2, 3]), torch.tensor([1, 2, 3, 4])
    torch.testing.assert_close(dpo_loss(ratios, ranks, lengths, 0.1), kwise_loss(0.1 * ratios, ranks))
    pairs = [(i, j) for i in range(4) for j in range(4) if ranks[i] < ranks[j]]
    each = [dpo_loss(ratios[[i, j]], torch.tensor([1, 2]), lengths[[i, j]], 0.3, "ipo") for i, j in pairs]
    torch.testing.assert_close(dpo_loss(ratios, ranks, lengths, 0.3, "ipo"), torch.stack(each).mean())


def test_at_the_reference_each_loss_is_what_one_expects() -> None:
    zeros, ranks, lengths = torch.zeros(3), torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    for loss, expected in (("sigmoid", math.log(2)), ("robust", math.log(2)), ("hinge", 1.0), ("ipo", 25.0)):
        assert dpo_loss(zeros, ranks, lengths, 0.1, loss).item() == pytest.approx(expected, rel=1e-6)
    tied = dpo_loss(zeros.requires_grad_(), torch.ones(3), lengths, 0.1)
    assert tied.item() == 0
    assert torch.autograd.grad(tied, zeros)[0].tolist() == [0.0] * 3


def test_robust_is_the_clean_loss_in_the_mean_over_wrong_labels() -> None:
    """By enumeration: a fraction e of the labels is turned round."""
    ratios, lengths, e = torch.tensor([0.9, -0.4], dtype=torch.float64), torch.tensor([1, 1]), 0.3
    right, wrong = (dpo_loss(ratios, torch.tensor(r), lengths, 0.5, "robust", e) for r in ([1, 2], [2, 1]))
    clean = dpo_loss(ratios, torch.tensor([1, 2]), lengths, 0.5)
    assert ((1 - e) * right + e * wrong).item() == pytest.approx(clean.item(), rel=1e-9)
