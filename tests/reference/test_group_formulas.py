"""The advantages and losses of GRPO, Dr. GRPO, DAPO and RLOO beside TRL's own trainers, and identities."""

from __future__ import annotations

import itertools
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.grpo_trainer import nanstd

from align.losses.ppo import (
    equal_groups,
    group_advantages,
    kl_loss,
    leave_one_out_advantages,
    policy_loss,
    response_weights,
)

K = 4
LENGTHS = [3, 1, 7, 5, 2, 6, 4, 7]
MOST = 7
MASK = torch.arange(MOST)[None, :] < torch.tensor(LENGTHS)[:, None]


def drawn(seed: int = 0) -> dict[str, torch.Tensor]:
    """Log-probs of two updates and the reference, and rewards: [B, T] and [B], float64."""
    rng = torch.Generator().manual_seed(seed)
    shape = MASK.shape

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    old = -normal(*shape).abs() - 0.1
    return {
        "old": old,
        "new": (old + 0.3 * normal(*shape)).requires_grad_(),
        "ref": old + 0.2 * normal(*shape),
        "rewards": normal(shape[0]),
    }


def trl_loss(trainer: Any, loss_type: str, numbers: dict[str, torch.Tensor], **args: float) -> torch.Tensor:
    """What TRL's trainer makes of the numbers: its own method, on a trainer that has no model."""
    beta, high = args.get("beta", 0.0), args.get("epsilon_high", 0.2)
    entropies = torch.zeros_like(numbers["old"])

    class Gathered:
        num_processes = 1

        def gather(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def reduce(self, x: torch.Tensor, reduction: str) -> torch.Tensor:
            return x

    fake = SimpleNamespace(
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, entropy_coef=0.0, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        loss_type=loss_type,
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=high,
        max_completion_length=MOST,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        accelerator=Gathered(),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (numbers["new"], entropies, None),
    )
    nothing = torch.zeros(len(LENGTHS), 1, dtype=torch.long)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": MASK.long(),
        "completion_mask": MASK.long(),
        "advantages": numbers["advantages"],
        "old_per_token_logps": numbers["old"],
        "ref_per_token_logps": numbers["ref"],
        "old_logps": (numbers["old"] * MASK).sum(1),
        "num_items_in_batch": MASK.sum(),
    }
    loss: torch.Tensor = trainer._compute_loss(fake, None, inputs)
    return loss


def own_loss(loss_mean: str, numbers: dict[str, torch.Tensor], beta: float = 0.0, high: float = 0.2) -> torch.Tensor:
    """The policy's loss as the update computes it."""
    advantages = numbers["advantages"][:, None].expand_as(MASK)
    losses = policy_loss(numbers["new"], numbers["old"], advantages, 0.2, high).losses
    losses = losses + beta * kl_loss(numbers["new"], numbers["ref"], "k3")
    if loss_mean == "tokens":
        return losses[MASK].sum() / MASK.sum()
    return (losses * response_weights(MASK, loss_mean, MOST)).sum() / len(MASK)


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("loss_type", "loss_mean", "high"),
    [
        ("grpo", "responses", 0.2),
        ("grpo", "responses", 0.28),
        ("bnpo", "tokens", 0.2),
        ("dapo", "tokens", 0.28),
        ("dr_grpo", "constant", 0.2),
    ],
)
def test_a_loss_is_trl_s(loss_type: str, loss_mean: str, high: float, beta: float) -> None:
    numbers = drawn()
    numbers["advantages"] = group_advantages(numbers["rewards"], MASK[:, 0], K, divide_by_std=True)
    ours, theirs = (
        own_loss(loss_mean, numbers, beta, high),
        trl_loss(GRPOTrainer, loss_type, numbers, beta=beta, epsilon_high=high),
    )
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6, rel=1e-6)
    if beta == 0:  # our KL has the gradient of the KL; theirs that of its estimate
        (mine,), (other,) = (torch.autograd.grad(loss, numbers["new"]) for loss in (ours, theirs))
        torch.testing.assert_close(mine * MASK, other * MASK, rtol=1e-6, atol=1e-9)


def test_one_step_a_rollout_has_rloo_s_gradient() -> None:
    """Then all ratios are 1; TRL's loss is a sum over the tokens, ours is that over max_new_tokens."""
    numbers = drawn()
    numbers["new"] = numbers["old"].clone().requires_grad_()
    numbers["advantages"] = leave_one_out_advantages(numbers["rewards"], MASK[:, 0], K)
    (mine,) = torch.autograd.grad(own_loss("constant", numbers), numbers["new"])
    (theirs,) = torch.autograd.grad(trl_loss(RLOOTrainer, "", numbers), numbers["new"])
    torch.testing.assert_close(MOST * mine, theirs, rtol=1e-6, atol=1e-9)


def test_advantages_are_trl_s() -> None:
    """The lines of TRL 1.16: trl/trainer/grpo_trainer.py 2760 to 2787 and rloo_trainer.py 1682 to 1699."""
    rewards, scored = drawn()["rewards"], torch.ones(8, dtype=torch.bool)
    scored[5] = False
    told = torch.where(scored, rewards, torch.nan)
    grouped = told.view(-1, K)
    plain = told - grouped.nanmean(1).repeat_interleave(K)
    scaled = plain / (nanstd(grouped, dim=1).repeat_interleave(K) + 1e-4)
    others = (grouped.nansum(1, keepdim=True) - grouped) / ((~grouped.isnan()).sum(1, keepdim=True) - 1)
    left_out = told - others.flatten()
    for got, expected in (
        (group_advantages(rewards, scored, K), plain),
        (group_advantages(rewards, scored, K, divide_by_std=True), scaled),
        (leave_one_out_advantages(rewards, scored, K), left_out),
    ):
        torch.testing.assert_close(got, expected.nan_to_num(0.0), rtol=1e-6, atol=1e-9)


def test_of_two_responses_the_group_s_is_half_of_leave_one_out() -> None:
    rewards, scored = drawn()["rewards"], torch.ones(8, dtype=torch.bool)
    pair = group_advantages(rewards, scored, 2)
    torch.testing.assert_close(2 * pair, leave_one_out_advantages(rewards, scored, 2))
    first, second = rewards.view(-1, 2).unbind(1)
    torch.testing.assert_close(leave_one_out_advantages(rewards, scored, 2).view(-1, 2)[:, 0], first - second)


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_is_unbiased_and_the_group_s_mean_shrinks_it(size: int) -> None:
    """By enumeration of every group of a policy of three answers: the expectation of A * grad log p is the gradient
    of the expected reward.
    """
    logits = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64, requires_grad=True)
    worth = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64)
    logprobs = logits.log_softmax(0)
    (true,) = torch.autograd.grad((logprobs.exp() * worth).sum(), logits, retain_graph=True)
    scored = torch.ones(size, dtype=torch.bool)
    for estimate, factor in ((leave_one_out_advantages, 1.0), (group_advantages, (size - 1) / size)):
        total = torch.zeros(3, dtype=torch.float64)
        for group in itertools.product(range(3), repeat=size):
            mine = logprobs[list(group)]
            chance = mine.sum().exp().detach()
            advantages = estimate(worth[list(group)], scored, size)
            (gradient,) = torch.autograd.grad((advantages * mine).mean(), logits, retain_graph=True)
            total += chance * gradient
        torch.testing.assert_close(total, factor * true, rtol=1e-9, atol=1e-12)


def test_a_group_of_equal_rewards_teaches_nothing() -> None:
    rewards = torch.tensor([0.7, 0.7, 0.7, 0.7, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    scored = torch.ones(8, dtype=torch.bool)
    for advantages in (
        group_advantages(rewards, scored, K, divide_by_std=True),
        leave_one_out_advantages(rewards, scored, K),
    ):
        assert advantages[:4].abs().max() < 1e-9
        assert advantages[4:].abs().min() > 0
    assert equal_groups(rewards, scored, K).tolist() == [True, False]
    scored[4] = False  # of those that have a score, all are equal
    assert equal_groups(rewards, scored, K).tolist() == [True, True]
    scored[:] = False
    assert equal_groups(rewards, scored, K).tolist() == [True, True]
    assert group_advantages(rewards, scored, K, divide_by_std=True).tolist() == [0.0] * 8
    assert leave_one_out_advantages(rewards, scored, K).tolist() == [0.0] * 8
