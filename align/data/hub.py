"""Read rows from data sets on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import datasets

from align.data.cards import DataCard
from align.data.files import RawRow
from align.data.formats import wikitext_articles
from align.errors import ConfigError


def load_splits(card: DataCard) -> dict[str, Any]:
    """Load a card's splits at its pinned commit, by name; all splits if the card names none.

    The splits are downloaded or come from the local cache of `datasets`.

    Raises:
        ConfigError: the splits cannot be loaded.
    """
    repository, _, commit = str(card.hub).partition("@")
    where: dict[str, Any] = {"data_dir": card.hub_dir, "revision": commit}
    wanted = f", split {', '.join(card.hub_splits)}" if card.hub_splits else ""
    try:
        if not card.hub_splits:
            found: Mapping[str, Any] = datasets.load_dataset(repository, card.hub_config, **where)
            return {str(name): rows for name, rows in found.items()}
        return {
            split: datasets.load_dataset(repository, card.hub_config, split=split, **where)
            for split in card.hub_splits
        }
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        files = "with data_root=FOLDER" if card.hub_splits else "as path:FILE_OR_FOLDER"
        raise ConfigError(f"hf:{card.hub}{wanted}: {reason}; give the files {files}") from None


def read_split(card: DataCard, split: str, rows: Any) -> Iterator[RawRow]:
    """Yield every row of one split of `load_splits`."""
    repository = str(card.hub).partition("@")[0]
    for number, row in enumerate(wikitext_articles(rows) if card.format == "wikitext" else rows):
        yield RawRow(f"hf:{repository}/{split}[{number}]", dict(row))
