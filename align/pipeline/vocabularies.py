"""Compare two models' vocabularies by their files before a run. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path

_FILE = "tokenizer.json"
# Tokens that `import_model` adds. They are left out, so that a source equals its artifact.
_ADDED = {"<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"}


def tokenizer_file(folder: Path) -> Path | None:
    """Return the tokenizer's file in a folder; None if the folder has no fast tokenizer."""
    return folder / _FILE if (folder / _FILE).is_file() else None


def differ(one: Path | None, other: Path | None) -> bool:
    """Return whether two files hold different vocabularies; false if one of them is unknown."""
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
    except (ValueError, KeyError, TypeError):  # the import step reports a damaged file
        return set()
