"""Encode ranked responses: what the reward model and direct preference optimization learn from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from align.data.records import Message, Row, read_rows
from align.errors import ConfigError
from align.text.chat import Encoded, TemplateRefusal

# From prompts and as many responses to sequences.
Encode = Callable[[Sequence[list[Message]], Sequence[str]], list[Encoded]]


class EncodedRanking(NamedTuple):
    """One row of comparisons as token ids.

    Attributes:
        row: the row.
        sequences: prompt and response. Equal responses share one sequence, so that the model reads
            it once.
        places: for each of the K responses, the index of its sequence.
    """

    row: Row
    sequences: list[Encoded]
    places: list[int]


def encode_rankings(
    folders: Sequence[Path], split: str, encode: Encode, length: int, say: Callable[[str], None]
) -> tuple[list[EncodedRanking], int]:
    """Return the usable rankings of a split, and how many rows are not usable.

    A usable ranking has an order, and its sequences fit into `length` tokens.

    Args:
        folders: datasets of comparisons.
        encode: encodes prompts with their responses.
        length: most tokens of a sequence.
        say: called with a line that counts the rows that are left out, if there are some.

    Raises:
        ConfigError: the chat template refuses a row.
    """
    rows = list(read_rows(folders, split))
    owners = [i for i, row in enumerate(rows) for _ in row["responses"]]
    responses = [response for row in rows for response in row["responses"]]
    try:
        encoded = iter(encode([rows[i]["prompt"] for i in owners], responses))
    except TemplateRefusal as error:
        raise ConfigError(
            f"inputs.data: {split} row {owners[error.index] + 1}: {error.reason}"
        ) from None
    rankings, tied = [], 0
    for row in rows:
        found: dict[tuple[int, ...], int] = {}
        sequences: list[Encoded] = []
        places = []
        for sequence in itertools.islice(encoded, len(row["responses"])):
            place = found.setdefault(tuple(sequence.ids), len(sequences))
            if place == len(sequences):
                sequences.append(sequence)
            places.append(place)
        if len(set(row["ranks"])) == 1:
            tied += 1
        elif max(len(sequence.ids) for sequence in sequences) <= length:
            rankings.append(EncodedRanking(row, sequences, places))
    left_out = len(rows) - len(rankings)
    reasons = {"all tied": tied, _too_long(length): left_out - tied}
    if left_out:
        why = "; ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
        say(f"{left_out:,} of {len(rows):,} {split} rankings left out: {why}")
    return rankings, left_out


def _too_long(length: int) -> str:
    return f"longer than sequence_length, {length:,} tokens"


def nothing_to_learn(left_out: int, length: int) -> str:
    """Return the error for comparisons of which no training ranking is usable."""
    if left_out:
        return (
            "inputs.data: no ranking is left to learn from: all are tied, or longer than"
            f" {length:,} tokens"
        )
    return (
        "inputs.data: it has no training rows; to train on all of its rows, make the data"
        " first: align data source=... record=comparisons split=train name=mine/data"
    )
