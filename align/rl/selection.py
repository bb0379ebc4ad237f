"""Choose the responses of a rollout that a policy is tuned on."""

from __future__ import annotations

from collections.abc import Sequence

from align.rl.rewards import Rewards


def best_responses(
    rewards: Rewards,
    responses: Sequence[Sequence[int]],
    group_size: int,
    num_kept: int,
    min_reward: float | None = None,
) -> list[int]:
    """Return the indices of the best responses of each group, the best of a group first.

    Of equal rewards, the response that was drawn first is better. Equal responses count once. A
    response without a score is never kept. So a group may keep fewer than `num_kept`, or none.

    Args:
        rewards: of B responses; those to one prompt follow each other.
        responses: the tokens of each.
        group_size: responses per prompt; it divides B.
        num_kept: the most responses to keep per group.
        min_reward: the least reward of a kept response; None: any.
    """
    total, scored = rewards.total.tolist(), rewards.scored.tolist()
    kept = []
    for start in range(0, len(total), group_size):
        group = [
            i
            for i in range(start, start + group_size)
            if scored[i] and (min_reward is None or total[i] >= min_reward)
        ]
        distinct: dict[tuple[int, ...], int] = {}
        for i in sorted(group, key=lambda i: -total[i]):  # stable: equal ones stay as drawn
            distinct.setdefault(tuple(responses[i]), i)
        kept += list(distinct.values())[:num_kept]
    return kept
