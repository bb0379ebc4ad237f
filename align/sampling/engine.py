"""What every sampling engine offers, and how it is asked to sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample.

    Attributes:
        max_new_tokens: tokens, the one that ends the response included.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: share of the probability that is sampled from, its likeliest tokens; below 1 the log-probs are those of
            the truncated distribution, whose normaliser PPO's ratio must be corrected for.
        batch_size: responses in flight at once.
        stop_strings: a response ends with the token that completes one of them in its text, the prompt not included.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 256
    stop_strings: tuple[str, ...] = ()


class Response(NamedTuple):
    """One sampled response; `ids` ends with the token that ended it unless it was cut off."""

    ids: list[int]
    logprobs: list[float]  # nats, of the distribution that was sampled (at temperature 1 when greedy)


class Engine(Protocol):
    """Samples from a model. Its log-probs may differ from the trainer's; PPO logs the gap."""

    def load(self, model: PreTrainedModel) -> None:
        """Take over the model's present weights."""

    def generate(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling
    ) -> Iterator[tuple[int, Response]]:
        """Yield one response to each prompt, as (index into `prompts`, response), in any order."""

    def stream(self, prompt: list[int], seed: int, sampling: Sampling) -> Iterator[int]:
        """Yield the tokens of one response as they are drawn: those that `generate` gives."""
