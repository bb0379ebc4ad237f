"""What a response is worth: a sum of named parts, from models, from the user's functions and from its length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from align.errors import ConfigError
from align.models.packed import Scalar, response_scores
from align.text.chat import decode_response, encode_dialogues
from align.text.packing import micro_batches, pack

Conversation = Sequence[dict[str, str]]
RewardFunction = Callable[..., Sequence[float]]  # f(prompts=, completions=, **columns) -> floats, as TRL calls them


class Episodes(NamedTuple):
    """What is to be scored: B prompts, as rows and as tokens, with a response to each."""

    rows: Sequence[dict[str, Any]]
    prompts: Sequence[list[int]]
    responses: Sequence[list[int]]
    texts: Sequence[str]


def make_episodes(
    rows: Sequence[dict[str, Any]],
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> Episodes:
    return Episodes(rows, prompts, responses, [decode_response(tokenizer, ids) for ids in responses])


@dataclass(frozen=True)
class RewardModel:
    """A reward model that scores episodes.

    Attributes:
        tokenizer: None where it reads the policy's own tokens; else the text is encoded again with this one.
        context: tokens that it can read.
        ends: the policy's tokens that end a response, the one that ends a turn first; it was trained at that one.
    """

    name: str
    model: Scalar
    tokenizer: PreTrainedTokenizerBase | None
    context: int
    ends: Sequence[int] = ()

    @torch.no_grad()
    def __call__(
        self,
        episodes: Episodes,
        device: torch.device,
        max_tokens: int,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> torch.Tensor:
        """Scores [B], float32.

        Text that is encoded again is scored as if it had ended, and loses its end where it is too long.
        """
        if self.tokenizer is None:
            # The very tokens that were sampled: encoding their text again may split it otherwise.
            sequences = [[*p, *self._ended(r)] for p, r in zip(episodes.prompts, episodes.responses, strict=True)]
        else:
            whole = encode_dialogues(self.tokenizer, [row["prompt"] for row in episodes.rows], list(episodes.texts))
            sequences = [ids[: self.context] for ids in whole]
        scores = torch.zeros(len(sequences), device=device)
        for group in micro_batches(list(map(len, sequences)), max_tokens):
            with autocast():
                scores[group] = response_scores(self.model, pack([sequences[i] for i in group], device))
        return scores

    def _ended(self, response: Sequence[int]) -> Sequence[int]:
        """The response with the token that ends a turn in the place of any other that ended it."""
        return [*response[:-1], self.ends[0]] if response and response[-1] in self.ends else response


class Rewards(NamedTuple):
    total: torch.Tensor  # [B]
    parts: dict[str, torch.Tensor]  # [B] each, as they came, before weights


@dataclass(frozen=True)
class RewardTerms:
    """How parts become one reward; as the knobs of the same names say."""

    ensemble_std_coef: float
    functions: dict[str, float]  # name -> weight
    length_coef: float
    missing_eos_penalty: float
    missing_eos_reward: float | None
    reward_clip: float | None

    def combine(
        self, scores: torch.Tensor, rules: dict[str, torch.Tensor], lengths: torch.Tensor, ended: torch.Tensor
    ) -> Rewards:
        """Models' mean, less their disagreement, plus rules, plus length, less what is missing; clipped; all [B].

        Args:
            scores: [M, B], a row a reward model.
            rules: [B] a function of the user's.
            lengths: response tokens.
            ended: False where the end-of-text token is missing.
        """
        parts = {"model": scores.mean(0), **rules, "length": lengths.float(), "missing_eos": (~ended).float()}
        total = parts["model"].clone()
        if len(scores) > 1:
            parts["disagreement"] = scores.std(0, correction=0)
            total -= self.ensemble_std_coef * parts["disagreement"]
        for name, weight in self.functions.items():
            total += weight * rules[name]
        total += self.length_coef * lengths - self.missing_eos_penalty * parts["missing_eos"]
        if self.missing_eos_reward is not None:
            total = torch.where(ended, total, self.missing_eos_reward)
        if self.reward_clip is not None:
            total = total.clamp(-self.reward_clip, self.reward_clip)
        return Rewards(total, parts)


def call_function(name: str, function: RewardFunction, episodes: Episodes) -> list[float]:
    """A user's function on all episodes, its answer checked; a column that a row lacks is None there.

    Raises:
        ConfigError: it gave something other than a finite number an episode.
    """
    names = {key: None for row in episodes.rows for key in row if key not in ("prompt", "prompts", "completions")}
    columns = {key: [row.get(key) for row in episodes.rows] for key in names}
    found = function(prompts=[row["prompt"] for row in episodes.rows], completions=list(episodes.texts), **columns)
    try:
        numbers = [float(x) for x in found if not isinstance(x, str)]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != len(episodes.texts) or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{name}: expected {len(episodes.texts)} finite numbers, got {str(found)[:80]}")
    return numbers
