"""The interface of sampling engines, and the settings of sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The settings of sampling.

    Attributes:
        max_new_tokens: tokens, including the one that ends the response.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: fraction of the probability to sample from, in its likeliest tokens. Below 1 the
            log-probs are those of the truncated distribution; PPO's ratio must be corrected for its
            normaliser.
        batch_size: responses in progress at once.
        stop_strings: a response ends with the token that completes one of them in its text, without
            the prompt.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 256
    stop_strings: tuple[str, ...] = ()


class Response(NamedTuple):
    """A sampled response; `ids` ends with the token that ended it unless it was cut off."""

    ids: list[int]
    # In nats, of the distribution that was sampled (at temperature 1 if greedy).
    logprobs: list[float]


class Engine(Protocol):
    """An engine that samples from a model. PPO logs how its log-probs differ from the trainer's."""

    def load(self, model: PreTrainedModel) -> None:
        """Take over the model's current weights."""

    def generate(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling
    ) -> Iterator[tuple[int, Response]]:
        """Yield one response to each prompt, as (index into `prompts`, response), in any order."""

    def stream(self, prompt: list[int], seed: int, sampling: Sampling) -> Iterator[int]:
        """Yield the tokens of one response, the same as in `generate`, as they are drawn."""
