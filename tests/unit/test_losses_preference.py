"""The ranking loss: identities."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from trl import RewardTrainer

from align.losses.preference import kwise_loss, pairwise_accuracy


def rewards_of(k: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("margin", [-30.0, -1.5, 0.0, 0.3, 30.0])
def test_two_responses_give_the_pairwise_logistic_loss(margin):
    rewards = torch.tensor([margin, 0.0], dtype=torch.float64)
    for ranks, sign in (([1, 2], 1), ([2, 1], -1)):
        expected = F.binary_cross_entropy_with_logits(sign * rewards[0], torch.tensor(1.0, dtype=torch.float64))
        torch.testing.assert_close(kwise_loss(rewards, torch.tensor(ranks)), expected, rtol=1e-12, atol=1e-14)


def test_equal_rewards_cost_log_two():
    assert kwise_loss(torch.zeros(5), torch.tensor([3, 1, 2, 5, 4])).item() == pytest.approx(math.log(2), rel=1e-6)


def test_only_the_order_of_ranks_counts():
    rewards = rewards_of(4)
    one, two = kwise_loss(rewards, torch.tensor([1, 2, 2, 3])), kwise_loss(rewards, torch.tensor([2, 7, 7, 90]))
    assert one.item() == two.item()


def test_a_shift_of_all_rewards_changes_nothing():
    rewards, ranks = rewards_of(5), torch.tensor([2, 1, 3, 3, 4])
    torch.testing.assert_close(kwise_loss(rewards + 11.0, ranks), kwise_loss(rewards, ranks), rtol=1e-12, atol=0)


def test_a_permutation_changes_nothing():
    rewards, ranks = rewards_of(4), torch.tensor([2, 1, 3, 3])
    whole = kwise_loss(rewards, ranks)
    for order in itertools.permutations(range(4)):
        torch.testing.assert_close(kwise_loss(rewards[list(order)], ranks[list(order)]), whole, rtol=1e-12, atol=0)
        assert pairwise_accuracy(rewards[list(order)], ranks[list(order)]) == pairwise_accuracy(rewards, ranks)


def test_a_tied_pair_pulls_neither():
    rewards = rewards_of(3).requires_grad_()
    loss = kwise_loss(rewards, torch.tensor([1, 2, 2]))
    with torch.no_grad():
        pairs = [F.softplus(rewards[j] - rewards[0]) for j in (1, 2)]
    assert loss.item() == pytest.approx(sum(pairs).item() / 2, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_all_tied_is_zero_with_a_gradient_of_zero(k):
    rewards = rewards_of(k).requires_grad_()
    loss = kwise_loss(rewards, torch.ones(k, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0
    assert rewards.grad.tolist() == [0.0] * k


def test_the_gradient_is_the_numerical_one():
    ranks = torch.tensor([2, 1, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda r: kwise_loss(r, ranks), rewards_of(5).requires_grad_(), atol=1e-8)


def test_gradients_of_a_prompt_sum_to_zero():
    rewards = rewards_of(6).requires_grad_()
    kwise_loss(rewards, torch.tensor([3, 1, 2, 2, 4, 5])).backward()
    assert rewards.grad.sum().item() == pytest.approx(0.0, abs=1e-15)
    assert rewards.grad[1] < 0 < rewards.grad[5]


def test_extreme_margins_stay_finite():
    rewards = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = kwise_loss(rewards, torch.tensor([2, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert rewards.grad.tolist() == [1.0, -1.0]


def test_accuracy_of_the_right_and_of_the_wrong_order():
    ranks = torch.tensor([1, 2, 3, 4])
    assert pairwise_accuracy(torch.tensor([4.0, 3.0, 2.0, 1.0]), ranks) == (6.0, 6)
    assert pairwise_accuracy(torch.tensor([1.0, 2.0, 3.0, 4.0]), ranks) == (0.0, 6)


def test_equal_rewards_are_half_right():
    assert pairwise_accuracy(torch.zeros(3), torch.tensor([1, 2, 2])) == (1.0, 2)
    assert pairwise_accuracy(torch.zeros(3), torch.tensor([1, 1, 1])) == (0.0, 0)


@pytest.mark.parametrize("margin", [None, 0.7])
@pytest.mark.parametrize("center", [None, 0.01, 2.0])
def test_margin_and_centring_are_those_of_trl(margin, center):
    """Pairs through trl's own loss; only what surrounds it (logging, processes) is left out."""
    pairs = rewards_of(12).view(6, 2)

    def gathered(value: torch.Tensor) -> torch.Tensor:
        return value

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=center),
        accelerator=SimpleNamespace(gather=gathered, gather_for_metrics=gathered),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    batch = {} if margin is None else {"margin": torch.full((6,), margin, dtype=torch.float64)}

    def model(**given: object) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.cat([pairs[:, 0], pairs[:, 1]])[:, None])

    theirs = RewardTrainer.compute_loss(trainer, model, batch)
    leads = None if margin is None else torch.full((2, 2), margin, dtype=torch.float64)
    ours = [kwise_loss(pair, torch.tensor([1, 2]), leads, center or 0.0) for pair in pairs]
    torch.testing.assert_close(torch.stack(ours).mean(), theirs, rtol=1e-12, atol=0)


def test_of_k_responses_every_ordered_pair_has_its_own_margin():
    rewards, ranks = rewards_of(5), torch.tensor([2, 1, 3, 3, 4])
    leads = torch.rand(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = [(i, j) for i in range(5) for j in range(5) if ranks[i] < ranks[j]]
    one_by_one = [
        -F.logsigmoid(rewards[i] - rewards[j] - leads[i, j]) + 0.3 * (rewards[i] + rewards[j]) ** 2 for i, j in pairs
    ]
    expected = torch.stack(one_by_one).mean()
    torch.testing.assert_close(kwise_loss(rewards, ranks, leads, 0.3), expected, rtol=1e-12, atol=0)
