"""Draw responses: rollouts, comparisons, evaluations, benchmark tasks and chat all use this."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.sampling.engine import Engine, Response, Sampling
from align.sampling.local import Ends, LocalEngine
from align.text.chat import stop_ids


@dataclass(frozen=True, slots=True)
class Sampler:
    """An engine with its settings.

    A response depends only on its prompt, its seed and the settings: callers give one seed for each
    (prompt, sample).
    """

    engine: Engine
    sampling: Sampling

    def draw(
        self, prompts: Sequence[list[int]], seeds: Sequence[int]
    ) -> Iterator[tuple[int, Response]]:
        """Yield one response to each prompt, as (index into `prompts`, response), in any order."""
        return self.engine.generate(prompts, seeds, self.sampling)

    def stream(self, prompt: list[int], seed: int) -> Iterator[int]:
        """Yield the tokens of one response as they are drawn."""
        return self.engine.stream(prompt, seed, self.sampling)


def engine_for(tokenizer: PreTrainedTokenizerBase, precision: str = "fp32") -> Engine:
    """Return an engine whose responses end where the tokenizer's chat template ends a turn."""
    ends = Ends(stop_ids(tokenizer), tokenizer.pad_token_id, tokenizer)
    return LocalEngine(precision, ends)


def sampler_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling
) -> Sampler:
    """Return a sampler of a model that does not change."""
    engine = engine_for(tokenizer)
    engine.load(model)
    return Sampler(engine, sampling)
