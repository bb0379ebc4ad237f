"""Rows out of data sets on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator

import datasets

from align.data.cards import DataCard
from align.data.files import RawRow
from align.data.formats import wikitext_articles
from align.errors import ConfigError


def read_hub(card: DataCard) -> Iterator[RawRow]:
    """Every row of a card's splits at its pinned commit, downloaded or from the local cache of `datasets`."""
    repository, _, commit = str(card.hub).partition("@")
    for split in card.hub_splits:
        where = {"data_dir": card.hub_dir, "split": split, "revision": commit}
        try:
            rows = datasets.load_dataset(repository, card.hub_config, **where)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"hf:{card.hub}, split {split}: {reason}; give the files with data_root=FOLDER") from None
        for number, row in enumerate(wikitext_articles(rows) if card.format == "wikitext" else rows):
            yield RawRow(f"hf:{repository}/{split}[{number}]", dict(row))
