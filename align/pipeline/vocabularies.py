"""Whether two models read the same tokens, as far as files tell before anything runs. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path

_FILE = "tokenizer.json"
# What import adds to a tokenizer, so that a source and the artifact made of it compare as one.
_ADDED = {"<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"}


def tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer of a folder; None where it has no fast one."""
    return folder / _FILE if (folder / _FILE).is_file() else None


def differ(one: Path | None, other: Path | None) -> bool:
    """True where both files are known and hold different vocabularies."""
    if one is None or other is None:
        return False
    one_bytes, other_bytes = one.read_bytes(), other.read_bytes()
    return one_bytes != other_bytes and _entries(one_bytes) != _entries(other_bytes)


def _entries(file: bytes) -> set[str]:
    try:
        state = json.loads(file)
        vocabulary = state["model"]["vocab"]
        names = vocabulary if isinstance(vocabulary, dict) else [entry[0] for entry in vocabulary]
        return {*names, *(token["content"] for token in state["added_tokens"])} - _ADDED
    except (ValueError, KeyError, TypeError):  # import says so, in its own words
        return set()
