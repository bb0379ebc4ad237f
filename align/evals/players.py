"""The models of an evaluation, their answers, and the KL divergence between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.data.records import Row
from align.models.compute import Compute
from align.models.load import context_length
from align.models.packed import pack_pairs, response_logprobs
from align.sampling.engine import Response, Sampling
from align.sampling.sampler import sampler_of
from align.text.chat import encode_prompts, show_prompt, stop_strings
from align.text.packing import micro_batches
from align.verifiers.episodes import Episodes

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Player:
    """A model that answers prompts, with its tokenizer."""

    name: str  # model or baseline
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answers:
    """A player's answers to all prompts at one temperature."""

    prompts: list[list[int]]
    responses: list[Response]
    texts: list[str]


def episodes_of(rows: Sequence[Row], answers: Answers) -> Episodes:
    """Return a player's answers in the form that scorers and checks take."""
    return Episodes(
        rows, answers.prompts, [response.ids for response in answers.responses], answers.texts
    )


@torch.no_grad()
def respond(
    player: Player,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Response]:
    """Return a response to each prompt; it ends where the player's chat template ends a turn.

    Args:
        seeds: one per prompt.
        sampling: without stop strings, because the player's own are used.
        advance: called with 1 after each response.
    """
    drawn: list[Response] = [Response([], [])] * len(prompts)
    sampling = replace(sampling, stop_strings=stop_strings(player.tokenizer))
    for place, response in sampler_of(player.model, player.tokenizer, sampling).draw(
        prompts, seeds
    ):
        drawn[place] = response
        advance(1)
    return drawn


def alike(players: Sequence[Player]) -> bool:
    """Return whether all players have the same vocabulary."""
    return all(
        player.tokenizer.get_vocab() == players[0].tokenizer.get_vocab() for player in players
    )


def fit(prompts: Sequence[Messages], players: Sequence[Player], max_new_tokens: int) -> list[bool]:
    """Return, for each prompt, whether it leaves every player room to answer."""
    fits = [True] * len(prompts)
    for player in players:
        room = context_length(player.model) - max_new_tokens
        encoded = encode_prompts(player.tokenizer, prompts)
        fits = [ok and len(ids) <= room for ok, ids in zip(fits, encoded, strict=True)]
    return fits


@torch.no_grad()
def kl(players: Sequence[Player], sampled: Answers, compute: Compute) -> list[float]:
    """Return the first player's log-prob of each sample minus the second's, in nats.

    The samples are the first player's, at temperature 1. Their mean estimates KL(first || second)
    per response.
    """
    responses = [response.ids for response in sampled.responses]
    lengths = [len(p) + len(r) for p, r in zip(sampled.prompts, responses, strict=True)]
    found: list[float] = []
    for group in micro_batches(lengths, compute.max_tokens):
        chosen = [responses[i] for i in group]
        packed = pack_pairs([sampled.prompts[i] for i in group], chosen, players[0].model.device)
        with compute.autocast():
            one, two = (response_logprobs(player.model, packed, chosen) for player in players)
        found += [float(each.sum()) for each in (one - two).double().split(list(map(len, chosen)))]
    return found


def sample_row(
    i: int,
    row: Row,
    given: Mapping[str, Sequence[Answers]],
    scores: Mapping[str, Sequence[Sequence[float | None]]],
) -> dict[str, str | float | None]:
    """Return the answers to one prompt side by side.

    Args:
        given: answers of the model, then of the baseline if there is one; sampled ("") and greedy
            ("greedy/").
        scores: the scores of these answers; empty if nothing scores them, None if a scorer does not
            apply.
    """
    shown: dict[str, str | float | None] = {"prompt": show_prompt(row["prompt"])}
    for column, prefix, player in (
        ("response", "", 0),
        ("greedy", "greedy/", 0),
        ("baseline", "", 1),
    ):
        if player < len(given[prefix]):
            shown[column] = given[prefix][player].texts[i]
            if prefix in scores:
                shown["score" if column == "response" else f"{column}_score"] = scores[prefix][
                    player
                ][i]
    return shown
