"""Combine reward models, user functions, length and a missing end into one reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Rewards(NamedTuple):
    total: torch.Tensor  # [B], 0 where `scored` is False
    # [B] each; a function's part is before its weight, and NaN where the function does not apply.
    parts: dict[str, torch.Tensor]
    scored: torch.Tensor  # [B] bool, False where nothing scores the response


@dataclass(frozen=True)
class RewardTerms:
    """The weights and limits of a reward's parts, named as the knobs that set them."""

    model_weights: Sequence[float]  # one per reward model; empty: their mean
    ensemble_std_coef: float
    functions: dict[str, float]  # name -> weight
    length_coef: float
    missing_eos_penalty: float
    missing_eos_reward: float | None
    reward_clip: float | None

    def combine(
        self,
        scores: torch.Tensor,
        rules: dict[str, torch.Tensor],
        lengths: torch.Tensor,
        ended: torch.Tensor,
    ) -> Rewards:
        """Return the total reward: the weighted sum of its parts.

            total = sum_i w_i * score_i - ensemble_std_coef * std_i(score_i) + sum_j v_j * f_j
                    + length_coef * tokens - missing_eos_penalty * [cut off]

        All terms are `[B]`. Without model weights, the models' scores are averaged. If a response
        was cut off and `missing_eos_reward` is given, it replaces the total. The total is then
        clipped. A function that does not apply adds nothing. A response has no score if no model
        has a weight and no function with a weight applies to it.

        Args:
            scores: `[M, B]`, one row per reward model; M may be 0.
            rules: `[B]` for each of the user's functions, NaN where it does not apply.
            lengths: response tokens, `[B]`.
            ended: `[B]`, False where the end-of-text token is missing.
        """
        parts: dict[str, torch.Tensor] = {}
        total = torch.zeros_like(lengths, dtype=scores.dtype)
        some_count = any(self.model_weights) if self.model_weights else len(scores) > 0
        scored = torch.full_like(ended, some_count)
        if len(scores):
            weights = torch.tensor(self.model_weights, dtype=scores.dtype, device=scores.device)
            parts["model"] = weights @ scores if self.model_weights else scores.mean(0)
            total = parts["model"].clone()
        if len(scores) > 1:
            parts |= {f"model_{number}": score for number, score in enumerate(scores, 1)}
            parts["disagreement"] = scores.std(0, correction=0)
            total -= self.ensemble_std_coef * parts["disagreement"]
        parts |= rules
        for name, weight in self.functions.items():
            applies = ~torch.isnan(rules[name])
            total += weight * torch.where(applies, rules[name], 0.0)
            if weight != 0:
                scored = scored | applies
        parts |= {"length": lengths.float(), "missing_eos": (~ended).float()}
        total += self.length_coef * lengths - self.missing_eos_penalty * parts["missing_eos"]
        if self.missing_eos_reward is not None:
            total = torch.where(ended, total, self.missing_eos_reward)
        if self.reward_clip is not None:
            total = total.clamp(-self.reward_clip, self.reward_clip)
        return Rewards(torch.where(scored, total, 0.0), parts, scored)
