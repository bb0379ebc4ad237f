"""Score episodes with a trained reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from align.models.compute import Compute
from align.models.packed import Scalar, response_scores
from align.text.chat import encode_dialogues
from align.text.packing import micro_batches, pack
from align.verifiers.episodes import Episodes


@dataclass(frozen=True)
class RewardModel:
    """A reward model that scores episodes.

    Attributes:
        tokenizer: encodes the text again; None if the model reads the policy's own tokens.
        context: number of tokens that the model can read.
        ends: the policy's tokens that end a response. The first one ends a turn; the model was
            trained at it.
    """

    name: str
    model: Scalar
    tokenizer: PreTrainedTokenizerBase | None
    context: int
    ends: Sequence[int] = ()

    @torch.no_grad()
    def __call__(self, episodes: Episodes, compute: Compute) -> torch.Tensor:
        """Return scores [B], float32.

        Text that is encoded again is scored as if it had ended, and loses its end if it is too
        long.
        """
        if self.tokenizer is None:
            # The tokens that were sampled: encoding their text again may split it differently.
            sequences = [
                [*p, *self._ended(r)]
                for p, r in zip(episodes.prompts, episodes.responses, strict=True)
            ]
        else:
            whole = encode_dialogues(
                self.tokenizer, [row["prompt"] for row in episodes.rows], list(episodes.texts)
            )
            sequences = [ids[: self.context] for ids in whole]
        scores = torch.zeros(len(sequences), device=compute.device)
        for group in micro_batches(list(map(len, sequences)), compute.max_tokens):
            with compute.autocast():
                scores[group] = response_scores(
                    self.model, pack([sequences[i] for i in group], compute.device)
                )
        return scores

    def _ended(self, response: Sequence[int]) -> Sequence[int]:
        """Return the response with the token that ends a turn in place of any other end token."""
        return (
            [*response[:-1], self.ends[0]] if response and response[-1] in self.ends else response
        )
