"""Rows out of data sets on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator

import datasets

from align.data.cards import DataCard
from align.data.files import RawRow


def read_hub(card: DataCard) -> Iterator[RawRow]:
    """Every row of a card's splits at its pinned commit, downloaded or from the local cache of `datasets`."""
    repository, _, commit = str(card.hub).partition("@")
    for split in card.hub_splits:
        rows = datasets.load_dataset(repository, card.hub_config, data_dir=card.hub_dir, split=split, revision=commit)
        for number, row in enumerate(rows):
            yield RawRow(f"hf:{repository}/{split}[{number}]", dict(row))
