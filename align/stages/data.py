"""Rows from a card, a file or the Hub, checked and split.

Takes: nothing from the store; a source outside it.
Makes: a dataset artifact: <split>.parquet for each split that has rows, and dataset.json.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from align.configs import Data
from align.data import smallworld
from align.data.cards import DataCard, Source, resolve
from align.data.files import RawRow, read_file
from align.data.formats import FORMATS
from align.data.labelled import columns_without_header
from align.data.records import (
    SPLITS,
    Dropped,
    Malformed,
    Row,
    digest,
    messages_asked,
    split_key,
    split_of,
    whole_key,
    write_info,
    write_rows,
)
from align.data.row_reader import Read, RowReader
from align.data.sorting import RowSorter
from align.errors import ConfigError, StoreError
from align.job import Inputs, Job, Metrics

_SHOWN_ERRORS = 20
_SHOWN_FILES = 3
_TOLD_EVERY = 1000  # rows
_IN_MEMORY = 2**27  # bytes of rows; what is more goes through a file
_SHARED = "also in a held-out split"

_T = TypeVar("_T")


def run(cfg: Data, inputs: Inputs, job: Job) -> Metrics:
    for split in cfg.splits:
        if split not in SPLITS:
            raise ConfigError(f"splits: expected {', '.join(SPLITS)}, got {split!r}")
    source = resolve(cfg.source, job.data_root, None)
    _refuse_columns_of_generated(cfg, source)
    reader = _reader(cfg, source, job.work)
    dropped = reader.dropped
    rows: Mapping[str, list[Row] | _Rows]
    with _nothing_left_on_error(job), tempfile.TemporaryFile(dir=job.work) as file:
        if source.card.generator:
            if cfg.validation_share is not None:
                raise ConfigError(f"validation_share: {cfg.source} generates its splits, so leave it out")
            rows = smallworld.rows(cfg.record, cfg.splits, _limits(cfg), cfg.options)
            info = smallworld.info(cfg.options)
        else:
            rows, info = _read(cfg, source, RowSorter(file, _IN_MEMORY), job, reader), {}
        kept = {split: rows.get(split, []) for split in cfg.splits}
        with job.progress(sum(map(len, kept.values())), "rows written") as advance:
            metrics: Metrics = {f"rows/{s}": write_rows(job.out, s, kept[s], advance, cfg.record) for s in cfg.splits}
    if not any(metrics.values()):
        raise ConfigError(f"source {cfg.source!r}: no row is left; dropped: {_counted(dropped) or 'none'}")
    if reader.unused:
        info["columns_not_used"] = dict(reader.unused)
    write_info(job.out, record=cfg.record, source=cfg.source, licence=source.card.licence, dropped=dropped, **info)
    for line in reader.lines():
        job.info(line)
    told = ", ".join(f"{metrics[f'rows/{split}']:,} {split}" for split in cfg.splits)
    job.info(told + (f"; dropped {sum(dropped.values()):,}: {_counted(dropped)}" if dropped else ""))
    return metrics | {f"dropped/{reason}": count for reason, count in dropped.items()}


def check_rows(cfg: Data, data_root: str | None) -> None:
    """Read every row of a data step and raise what `run` would; for `align plan check_data=true`."""
    source = resolve(cfg.source, data_root, None)
    _refuse_columns_of_generated(cfg, source)
    if not source.card.generator:
        for _ in _records(_raw_rows(source, cfg.record), cfg, source, _reader(cfg, source, None)):
            pass  # nothing is kept; what is wrong with some is raised behind the last


def _refuse_columns_of_generated(cfg: Data, source: Source) -> None:
    if source.card.generator and cfg.columns:
        raise ConfigError(f"columns: {cfg.source} generates its rows, so there are no columns to name; leave it out")


def _reader(cfg: Data, source: Source, folder: Path | None) -> RowReader:
    return RowReader(cfg.record, source.card.format, cfg.columns, source.card.name, folder)


class Look(NamedTuple):
    """A row of a source, and what the stage makes of it.

    Attributes:
        where: `file.jsonl:17`.
        raw: as the file has it; None of a row that is generated, or cannot be read.
        made: (split, row) of each row that it gives.
        problem: why it gives none; "" where it does.
    """

    where: str
    raw: Row | None
    made: list[tuple[str, Row]]
    problem: str = ""


def first_rows(cfg: Data, data_root: str | None, count: int) -> Iterator[Look]:
    """The first `count` rows of a source, as they came and as the wanted record; nothing is stored."""
    source = resolve(cfg.source, data_root, None)
    if source.card.generator:
        generated = smallworld.rows(cfg.record, ["train"], {**_limits(cfg), "train": count}, cfg.options)
        yield from (Look(f"{cfg.source}[{i}]", None, [("train", row)]) for i, row in enumerate(generated["train"]))
        return
    for given, raw in itertools.islice(_raw_rows(source, cfg.record), count):
        reader = _reader(cfg, source, None)
        made: list[tuple[str, Row]] = []
        problem = ""
        try:
            for split, whole, row in reader.read(raw, given):
                made += [(split or _split(cfg, source.card, whole), piece) for piece in _fitting(row, cfg)]
        except Dropped as reason:
            reader.dropped[str(reason)] += 1
        except Malformed as error:
            problem = str(error)
        if not made and not problem:
            waits = "it makes a row together with the others of its prompt"
            problem = f"dropped: {_counted(reader.dropped)}" if reader.dropped else waits
        yield Look(raw.where, None if isinstance(raw.row, Malformed) else raw.row, made, problem)


def _limits(cfg: Data) -> dict[str, int | None]:
    return {"train": cfg.train_rows, "validation": cfg.validation_rows, "test": cfg.test_rows}


def _counted(dropped: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in dropped.most_common())


@contextlib.contextmanager
def _nothing_left_on_error(job: Job) -> Iterator[None]:
    """Take back files that lack rows, and tell of a full disk in one line."""
    try:
        yield
    except BaseException as error:
        for path in job.out.glob("*.parquet"):
            path.unlink()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                f"{job.work}: {os.strerror(error.errno)}; rows beyond what memory holds are there twice for a while, "
                f"sorted and as a dataset: make room, or give store=FOLDER on a larger disk"
            ) from None
        raise


@dataclass(frozen=True)
class _Rows:
    """Rows of a split, as often as they are asked for: those from `begin` to `end`, when the ones that ask what a
    held-out split asks are taken out.
    """

    sorter: RowSorter
    split: str
    held_out: tuple[set[bytes], ...]
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    def __iter__(self) -> Iterator[Row]:
        rows = self.sorter.rows(self.split)
        if any(self.held_out):
            rows = (row for row in rows if not any(_asked(row) in asked for asked in self.held_out))
        return itertools.islice(rows, self.begin, self.end)


def _read(cfg: Data, source: Source, sorter: RowSorter, job: Job, reader: RowReader) -> dict[str, _Rows]:
    """Rows by split, in an order that looks random and hangs on their content alone; the first so many of a split."""
    count, any_given, dropped = 0, False, reader.dropped
    raw_rows = _raw_rows(source, cfg.record, job.info)
    with job.progress(None, "rows read") as advance:
        for given, whole, made in _records(_watched(raw_rows, advance), cfg, source, reader):
            if given is not None and cfg.validation_share is not None:
                raise ConfigError(f"validation_share: the files of {cfg.source} say their splits, so leave it out")
            split = given or _split(cfg, source.card, whole)
            for row in made:
                sorter.add(split, row)
            count, any_given = count + len(made), any_given or given is not None
    with job.progress(None, "rows compared") as advance:
        splits = _kept_apart(sorter, any_given, advance, dropped)
    if duplicates := count - sum(map(len, splits.values())) - dropped[_SHARED]:
        dropped["duplicate"] = duplicates
    if cfg.shot_rows and not splits["train"]:  # for a task that has none to draw shots from
        test = splits["test"]
        shots = min(cfg.shot_rows, test.end)
        splits |= {"train": replace(test, end=shots), "test": replace(test, begin=shots)}
    if not any_given and cfg.split is None and cfg.record != "items" and count and not splits["validation"].end:
        job.info(
            f"no validation row among {count:,}, so training reports no figures of held-out rows; "
            "a larger validation_share (0.05 is usual) holds out more"
        )
    limits = _limits(cfg)
    for split, rows in splits.items():
        if (limit := limits[split]) is not None:
            splits[split] = replace(rows, end=min(rows.end, rows.begin + limit))
    return splits


def _kept_apart(
    sorter: RowSorter, any_given: bool, advance: Callable[[int], None], dropped: Counter[str]
) -> dict[str, _Rows]:
    """All rows by split, where what is asked in a held-out one is taken out of those before it.

    Only where a file's name said its split can that be: `any_given`. Then 32 bytes of each held-out row are in memory.
    """
    splits: dict[str, _Rows] = {}
    held_out: tuple[set[bytes], ...] = ()
    for split in reversed(SPLITS):
        differ = sum(1 for _ in _watched(sorter.keys(split), advance))
        rows = _Rows(sorter, split, held_out, 0, differ)
        if any_given:
            asked, left = set(), 0
            for row in _watched(rows, advance):
                left += 1
                if split != "train":
                    asked.add(_asked(row))
            if left < differ:
                dropped[_SHARED] += differ - left
            rows, held_out = replace(rows, end=left), (*held_out, asked)
        splits[split] = rows
    return splits


def _asked(row: Row) -> bytes:
    return digest(whole_key(row))


def _watched(rows: Iterable[_T], advance: Callable[[int], None]) -> Iterator[_T]:
    """The rows; after every thousand, and the last, `advance` is told, which may stop here."""
    number = 0
    for number, row in enumerate(rows, 1):
        yield row
        if number % _TOLD_EVERY == 0:
            advance(_TOLD_EVERY)
    advance(number % _TOLD_EVERY)


def _records(
    raw_rows: Iterable[tuple[str | None, RawRow]], cfg: Data, source: Source, reader: RowReader
) -> Iterator[tuple[str | None, Row, list[Row]]]:
    """The split that a row's file is, the row that its split depends on otherwise, and the rows of the wanted record.

    The second is the row as it was found, so that a labelled one is in one split whatever is made of it, and the pieces
    of a document are, too. A malformed row of the user's own file is an error; of a published set, a count.
    """
    problems = _Problems()

    def attempts() -> Iterator[tuple[str, Iterator[Read]]]:
        yield from ((raw.where, reader.read(raw, split)) for split, raw in raw_rows)
        yield from reader.joined()

    for where, found in attempts():
        try:
            for split, whole, made in found:
                try:
                    yield split, whole, list(_fitting(made, cfg))
                except Dropped as reason:
                    reader.dropped[str(reason)] += 1
        except Dropped as reason:
            reader.dropped[str(reason)] += 1
        except Malformed as problem:
            reader.dropped["malformed"] += 1
            problems.add(where, str(problem))
    if problems.count and source.is_local_path:
        raise ConfigError(problems.told())
    reader.check_columns()


class _Problems:
    """What is wrong with rows: the first place of each kind, and how many rows there are of it."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._rows: Counter[str] = Counter()
        self.count = 0

    def add(self, where: str, problem: str) -> None:
        self.count += 1
        before, _, got = problem.partition(", got ")
        # Rows differ in numbers and in what they hold, and have one thing wrong with them all the same.
        kind = re.sub(r"\d+", "0", before) + got.split(" ")[0]
        if kind in self._first or len(self._first) < _SHOWN_ERRORS:
            self._first.setdefault(kind, f"{where}: {problem}")
            self._rows[kind] += 1

    def told(self) -> str:
        """One line a kind."""
        lines = []
        for kind, first in self._first.items():
            others = self._rows[kind] - 1
            rows = "row" if others == 1 else "rows"
            lines.append(first + (f" (and {others:,} more {rows} like it)" if others else ""))
        rest = self.count - sum(self._rows.values())
        return "\nerror: ".join(lines) + (f" (and {rest:,} rows with other problems)" if rest else "")


def _split(cfg: Data, card: DataCard, row: Row) -> str:
    """The split of a row whose file says none: the one that was given, else by hash of what is asked.

    Items are there to score a model: all are test.
    """
    if cfg.split is not None:
        return cfg.split
    if cfg.record == "items":
        return "test"
    share = card.held_out if cfg.validation_share is None else cfg.validation_share
    return split_of(split_key(row), share)


def _raw_rows(
    source: Source, record: str, say: Callable[[str], None] = lambda note: None
) -> Iterator[tuple[str | None, RawRow]]:
    """Yield rows, each with the split that its file is, where that is known; what is unusual is reported."""
    if not source.files:
        from align.data.hub import read_hub

        yield from ((None, raw) for raw in read_hub(source.card))
        return
    splits = _file_splits(source, record)
    for note in _what_is_read(source, splits):
        say(note)
    labelled = record == "labelled" or FORMATS.get(source.card.format or "", ("",))[0] == "labelled"
    for path, split in splits.items():
        for raw in read_file(path, say, text_tables=labelled, columns_of=columns_without_header):
            yield split, raw


def _file_splits(source: Source, record: str) -> dict[Path, str | None]:
    """The split of each file. Items are there to be scored: a user's validation files are test where no file is."""
    splits = source.file_splits()
    if record == "items" and source.is_local_path and "test" not in splits.values():
        splits = {path: "test" if split == "validation" else split for path, split in splits.items()}
    return splits


def _what_is_read(source: Source, splits: dict[Path, str | None]) -> Iterator[str]:
    """A line for each split that files are by their names, and one of the files that hold no rows."""
    for split in SPLITS:
        files = [path for path, its in splits.items() if its == split]
        if files:
            yield f"{split}: {_listed(files, source.root)}"
    if source.left_out:
        yield f"not read: {_listed(source.left_out, source.root)}"


def _listed(paths: Sequence[Path], root: Path | None) -> str:
    names = [str(path.relative_to(root or path.anchor)) for path in paths]
    more = f" and {len(names) - _SHOWN_FILES:,} more" if len(names) > _SHOWN_FILES else ""
    return ", ".join(names[:_SHOWN_FILES]) + more


def _fitting(row: Row, cfg: Data) -> Iterator[Row]:
    """Long documents in pieces that end with a line; other rows that are too long are dropped."""
    if cfg.max_chars is None:
        yield row
    elif cfg.record == "documents":
        piece = ""
        for line in row["text"].splitlines(keepends=True):
            if piece.strip() and len(piece) + len(line) > cfg.max_chars:
                yield {**row, "text": piece}
                piece = ""
            piece += line
        if piece.strip():
            yield {**row, "text": piece}
    elif _chars(row, cfg.record) > cfg.max_chars:
        raise Dropped("too long")
    else:
        yield row


def _chars(row: Row, record: str) -> int:
    """Characters of the longest conversation, candidate, or choice with what it answers, in a row."""
    if messages_asked(row) is not None:
        messages = row["prompt"] if "prompt" in row else row["messages"]
        said = sum(len(message["content"]) + len(message.get("tool_calls", "")) for message in messages)
        responses = row["responses"] if record == "comparisons" else []
        return said + max(map(len, responses), default=0)
    if "texts" in row:
        return sum(map(len, row["texts"])) + max(map(len, row.get("choices") or [""]))
    return max(len(a) + len(b) for a, b in zip(row["contexts"], row["completions"], strict=True))
