"""Text as tokens on disk, written as a stream and read as a memory map.

A corpus need not fit in memory. A folder holds <split>.npy for each split, tokens.json, and the
tokenizer. <split>.npy is a flat array in which the end-of-text token ends every document.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from align.data.records import source_name
from align.text.encoding import encoder_of

INFO = "tokens.json"
CHARS = 2**22  # characters tokenised at a time


class Counts(NamedTuple):
    """The amount of text in a split."""

    documents: int
    tokens: int  # including the end of each document
    bytes: int  # of the text as UTF-8

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


def encode_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[np.ndarray, Counts]]:
    """Yield documents as tokens end to end, some megabytes at a time.

    Each document begins with BOS if `tokenizer(text)` puts one, and ends with the end-of-text
    token. Text that looks like a control token stays text: no document can end itself or speak for
    a role.
    """
    dtype = token_dtype(len(tokenizer))
    encoder = encoder_of(tokenizer)
    begin, end = np.array(encoder.begin, dtype), np.array([tokenizer.eos_token_id], dtype)
    for group in groups_of(texts):
        encodings = encoder.encode_text(group)
        flat = np.concatenate(
            [part for e in encodings for part in (begin, np.array(e.ids, dtype), end)]
        )
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in group)
        yield flat, Counts(len(group), len(flat), size)


def groups_of(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield texts in lists of some megabytes.

    Tokenisation takes several times the memory of the text, so it handles one list at a time.
    """
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def write_tokens(
    folder: Path,
    split: str,
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    advance: Callable[[int], None],
) -> Counts:
    """Write `folder`/<split>.npy, or nothing if there are no texts.

    `advance` is called with the number of documents done.
    """
    total, path = Counts(0, 0, 0), folder / f"{split}.npy"
    dtype = np.dtype(token_dtype(len(tokenizer)))
    with path.open("wb") as file:
        _write_header(file, dtype, 0)
        for flat, counts in encode_documents(texts, tokenizer):
            file.write(flat.tobytes())
            total = total.plus(counts)
            advance(counts.documents)
        file.seek(0)
        # It has the same size as the first header: NumPy leaves room for the length to grow.
        _write_header(file, dtype, total.tokens)
    if not total.documents:
        path.unlink()
    return total


def _write_header(file: Any, dtype: np.dtype, length: int) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (length,),
    }
    np.lib.format.write_array_header_1_0(file, header)


def write_info(folder: Path, source: str, splits: dict[str, Counts]) -> None:
    info = {"source": source, "splits": {name: counts._asdict() for name, counts in splits.items()}}
    (folder / INFO).write_text(json.dumps(info, indent=1, sort_keys=True), encoding="utf-8")


class TextRows:
    """A split's tokens in rows of equal length; tokens that do not fill a last row are left out.

    Documents may continue in the next row, and see each other within a row, as in GPT-3 (section
    2.1: no mask between documents).

    Attributes:
        name: the last part of the documents' source.
        length: tokens per row.
    """

    def __init__(self, flat: np.ndarray, length: int, counts: Counts, name: str = "text"):
        self.name, self.length, self.counts = name, length, counts
        self._rows = flat[: len(flat) // length * length].reshape(-1, length)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: int | slice | torch.Tensor) -> torch.Tensor:
        """Return token ids [R, length], or [length] for one row."""
        at = rows.numpy() if isinstance(rows, torch.Tensor) else rows
        return torch.from_numpy(self._rows[at].astype(np.int64))

    @property
    def bytes_per_token(self) -> float:
        return self.counts.bytes / self.counts.tokens if self.counts.tokens else math.nan


def encode_text(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int) -> TextRows:
    """Return documents as rows of tokens in memory.

    A token takes two bytes if the vocabulary allows this.
    """
    parts, total = [np.empty(0, token_dtype(len(tokenizer)))], Counts(0, 0, 0)
    for flat, counts in encode_documents(texts, tokenizer):
        parts.append(flat)
        total = total.plus(counts)
    return TextRows(np.concatenate(parts), length, total)


def read_tokens(folder: Path, split: str, length: int) -> TextRows:
    """Return the rows of a split of a tokens artifact; none if it has no such split."""
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    path = folder / f"{split}.npy"
    flat = np.load(path, mmap_mode="r") if path.is_file() else np.empty(0, np.uint16)
    counts = Counts(**info["splits"].get(split, {"documents": 0, "tokens": 0, "bytes": 0}))
    return TextRows(flat, length, counts, source_name(info["source"]))
