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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from align.configs import Data
from align.data import smallworld
from align.data.cards import DataCard, Source, resolve
from align.data.files import RawRow, read_file
from align.data.formats import infer_format, reader
from align.data.records import (
    SPLITS,
    Dropped,
    Malformed,
    Row,
    check_row,
    convert,
    digest,
    split_key,
    split_of,
    whole_key,
    write_info,
    write_rows,
)
from align.data.sorting import RowSorter
from align.errors import ConfigError, StoreError
from align.job import Inputs, Job, Metrics

_SHOWN_ERRORS = 20
_TOLD_EVERY = 1000  # rows
_IN_MEMORY = 2**27  # bytes of rows; what is more goes through a file
_SHARED = "also in a held-out split"

_T = TypeVar("_T")


def run(cfg: Data, inputs: Inputs, job: Job) -> Metrics:
    for split in cfg.splits:
        if split not in SPLITS:
            raise ConfigError(f"splits: expected {', '.join(SPLITS)}, got {split!r}")
    source = resolve(cfg.source, job.data_root, None)
    dropped: Counter[str] = Counter()
    rows: Mapping[str, list[Row] | _Rows]
    with _nothing_left_on_error(job), tempfile.TemporaryFile(dir=job.work) as file:
        if source.card.generator:
            if cfg.validation_share is not None:
                raise ConfigError(f"validation_share: {cfg.source} generates its splits, so leave it out")
            rows = smallworld.rows(cfg.record, cfg.splits, _limits(cfg), cfg.options)
            info = smallworld.info(cfg.options)
        else:
            rows, info = _read(cfg, source, RowSorter(file, _IN_MEMORY), job, dropped), {}
        kept = {split: rows.get(split, []) for split in cfg.splits}
        with job.progress(sum(map(len, kept.values())), "rows written") as advance:
            metrics: Metrics = {f"rows/{s}": write_rows(job.out, s, kept[s], advance) for s in cfg.splits}
    if not any(metrics.values()):
        raise ConfigError(f"source {cfg.source!r}: no row is left; dropped: {_counted(dropped) or 'none'}")
    write_info(job.out, record=cfg.record, source=cfg.source, licence=source.card.licence, dropped=dropped, **info)
    told = ", ".join(f"{metrics[f'rows/{split}']:,} {split}" for split in cfg.splits)
    job.info(told + (f"; dropped {sum(dropped.values()):,}: {_counted(dropped)}" if dropped else ""))
    return metrics | {f"dropped/{reason}": count for reason, count in dropped.items()}


def check_rows(cfg: Data, data_root: str | None) -> None:
    """Read every row of a data step and raise what `run` would; for `align plan check_data=true`."""
    source = resolve(cfg.source, data_root, None)
    if not source.card.generator:
        for _ in _records(_raw_rows(source), cfg, source, Counter()):
            pass  # nothing is kept; what is wrong with some is raised behind the last


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
    for given, raw in itertools.islice(_raw_rows(source), count):
        dropped: Counter[str] = Counter()
        made: list[tuple[str, Row]] = []
        problem = ""
        try:
            for whole, rows in _kept(raw, cfg, source.card, dropped):
                made += [(given or _split(cfg, source.card, whole), row) for row in rows]
        except Dropped as reason:
            dropped[str(reason)] += 1
        except Malformed as error:
            problem = str(error)
        if not made and not problem:
            problem = f"dropped: {_counted(dropped)}"
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


def _read(cfg: Data, source: Source, sorter: RowSorter, job: Job, dropped: Counter[str]) -> dict[str, _Rows]:
    """Rows by split, in an order that looks random and hangs on their content alone; the first so many of a split."""
    count, any_given = 0, False
    with job.progress(None, "rows read") as advance:
        for given, whole, made in _records(_watched(_raw_rows(source), advance), cfg, source, dropped):
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
    raw_rows: Iterable[tuple[str | None, RawRow]], cfg: Data, source: Source, dropped: Counter[str]
) -> Iterator[tuple[str | None, Row, list[Row]]]:
    """The split that a row's file is, what its split hangs on otherwise, and what it makes of the wanted record.

    A malformed row of the user's own file is an error; of a published set, a count.
    """
    errors: list[str] = []
    for given, raw in raw_rows:
        try:
            for whole, made in _kept(raw, cfg, source.card, dropped):
                yield given, whole, made
        except Dropped as reason:
            dropped[str(reason)] += 1
        except Malformed as problem:
            dropped["malformed"] += 1
            error = f"{raw.where}: {problem}"
            if len(errors) < _SHOWN_ERRORS or (len(errors) == _SHOWN_ERRORS and not _alike([*errors, error])):
                errors.append(error)  # one more than is shown says that not all are alike
    if errors and source.is_local_path:
        raise ConfigError(_told(errors, dropped["malformed"]))


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


def _told(errors: list[str], count: int) -> str:
    """One line an error, the first of them; where every row has the same, only that."""
    shown = 1 if _alike(errors) else _SHOWN_ERRORS
    more = f" (and {count - shown:,} more)" if count > shown else ""
    return "\nerror: ".join(errors[:shown]) + more


def _alike(errors: list[str]) -> bool:
    return len({error.partition(": ")[2] for error in errors}) == 1


def _raw_rows(source: Source) -> Iterator[tuple[str | None, RawRow]]:
    """Rows, each with the split that its file is, where that is known."""
    if not source.files:
        from align.data.hub import read_hub

        yield from ((None, raw) for raw in read_hub(source.card))
    named = {path: _named_split(path) for path in source.files} if source.is_local_path else {}
    if any(named.values()) and not all(named.values()):
        odd = next(path.name for path, split in named.items() if split is None)
        raise ConfigError(
            f"{source.root}: {odd} is named as no split, and other files are; rename it to train, validation (dev, "
            f"val, valid) or test, or take it away"
        )
    for path in source.files:
        split = named[path] if source.is_local_path else source.split_of(path)
        yield from ((split, raw) for raw in read_file(path))


def _named_split(path: Path) -> str | None:
    """The split that the name of a user's file says: train.jsonl, dev.csv, test-00000-of-00002.parquet."""
    name = re.fullmatch(r"(train|validation|valid|val|dev|test)([-_]\d.*)?", path.name.partition(".")[0])
    return None if name is None else {"train": "train", "test": "test"}.get(name[1], "validation")


def _kept(raw: RawRow, cfg: Data, card: DataCard, dropped: Counter[str]) -> Iterator[tuple[Row, list[Row]]]:
    """What a raw row gives of the wanted record; a book gives many rows, of which some may be dropped.

    Before them stands what their split hangs on: the row as it was found, so that a labelled one is in one split
    whatever is made of it, and the pieces of a document are, too.
    """
    if isinstance(raw.row, Malformed):
        raise raw.row
    record, read = reader(card.format or infer_format(raw.row, cfg.record), cfg.record)
    file = Path(raw.where.rpartition(":")[0] or raw.where).name.partition(".")[0]
    group = {"group": file} if record == "items" else {}
    for row in read(raw.row):
        try:
            found = {**group, **row}
            made = check_row(cfg.record, convert(found, record, cfg.record, card.name))
            yield found, list(_fitting(made, cfg))
        except Dropped as reason:
            dropped[str(reason)] += 1
        except ValueError as error:
            raise Malformed("row", f"its columns make it one of {record}; {error}") from None


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
    elif _chars(row) > cfg.max_chars:
        raise Dropped("too long")
    else:
        yield row


def _chars(row: Row) -> int:
    """Characters of the longest conversation, candidate, or choice with what it answers, in a row."""
    if "completions" in row:
        return max(len(a) + len(b) for a, b in zip(row["contexts"], row["completions"], strict=True))
    if "texts" in row:
        return sum(map(len, row["texts"])) + max(map(len, row.get("choices") or [""]))
    asked = sum(len(message["content"]) for message in row.get("messages") or row["prompt"])
    return asked + max((len(text) for text in row.get("responses", [])), default=0)
