"""Read rows from a card, a file or the Hub, check them and split them.

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
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

from align.configs import Data
from align.data.cards import DataCard, Source, resolve
from align.data.comparisons import BAD_ALONE, GOOD_ALONE
from align.data.files import Place, RawRow, read_file
from align.data.formats import FORMATS
from align.data.generators import generator
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
from align.data.split_names import doubtful_word, split_of_name
from align.errors import ConfigError, StoreError
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.progress import Progress

_SHOWN_ERRORS = 20
_SHOWN_FILES = 3
REPORT_EVERY = 1000  # rows between reports of progress
_READ_ON = 100_000  # rows that `first_rows` reads on to complete records of several rows
IN_MEMORY = 2**27  # bytes of rows; beyond that, rows go through a file
_SHARED = "also in a held-out split"

_MB = 10**6

_T = TypeVar("_T")
# The type of `Job.progress`.
_Shown = Callable[[int | None, str], contextlib.AbstractContextManager[Callable[[int], None]]]


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
                raise ConfigError(
                    f"validation_share: {cfg.source} generates its splits, so leave it out"
                )
            if cfg.split is not None:
                raise ConfigError(f"split: {cfg.source} generates its splits, so leave it out")
            made_by = generator(source.card.generator)
            rows = made_by.rows(cfg.record, cfg.splits, _limits(cfg), cfg.options)
            info = made_by.info(cfg.options)
        else:
            rows, info = _read(cfg, source, RowSorter(file, IN_MEMORY), job, reader), {}
        kept = {split: rows.get(split, []) for split in cfg.splits}
        with job.progress(sum(map(len, kept.values())), "rows written") as advance:
            metrics: Metrics = {
                f"rows/{s}": write_rows(job.out, s, kept[s], advance, cfg.record)
                for s in cfg.splits
            }
    if not any(metrics.values()):
        why = f"; dropped: {_counted(dropped)}{_unpaired_keeps(dropped)}" if dropped else ""
        raise ConfigError(f"source: {cfg.source}: no rows for {', '.join(cfg.splits)}{why}")
    if reader.unused:
        info["columns_not_used"] = dict(reader.unused)
    write_info(
        job.out,
        record=cfg.record,
        source=cfg.source,
        licence=source.card.licence,
        dropped=dropped,
        **info,
    )
    for line in reader.lines():
        job.log.info(line)
    told = ", ".join(f"{metrics[f'rows/{split}']:,} {split}" for split in cfg.splits)
    job.log.info(
        told + (f"; dropped {sum(dropped.values()):,}: {_counted(dropped)}" if dropped else "")
    )
    if hint := _unpaired_keeps(dropped):
        job.log.info(hint.removeprefix("; "))
    return metrics | {f"dropped/{reason}": count for reason, count in dropped.items()}


def _unpaired_keeps(dropped: Counter[str]) -> str:
    """Return a hint if labelled answers were dropped because they made no ranking; else ""."""
    if count := dropped[GOOD_ALONE] + dropped[BAD_ALONE]:
        return (
            f"; record=unpaired keeps {count:,} of them: align kto inputs.unpaired=... learns from"
            " answers without a counterpart"
        )
    return ""


def check_rows(cfg: Data, data_root: str | None, shown: Progress) -> None:
    """Read every row and raise what `run` would raise, for `align plan check_data=true`."""

    def progress(
        total: int | None, unit: str
    ) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        return shown.over(total, 0, unit)

    source = resolve(cfg.source, data_root, None)
    _refuse_columns_of_generated(cfg, source)
    if not source.card.generator:
        reader = _reader(cfg, source, None)
        for _ in _records(_shown_rows(source, cfg, progress), cfg, source, reader):
            pass  # keep nothing; problems are raised after the last row


def _refuse_columns_of_generated(cfg: Data, source: Source) -> None:
    if source.card.generator and cfg.columns:
        raise ConfigError(
            f"columns: {cfg.source} generates its rows, so there are no columns to name; leave"
            " it out"
        )


def _reader(cfg: Data, source: Source, folder: Path | None) -> RowReader:
    card = source.card
    return RowReader(cfg.record, card.format, cfg.columns, card.name, folder, cfg.details)


class Look(NamedTuple):
    """A row of a source, and the rows that the stage makes of it.

    Attributes:
        where: its place, as in `file.jsonl:17`.
        raw: the row as the file has it; None if it is generated, joined from others, or cannot be
            read.
        made: (split, row) for each row that it gives.
        problem: what is wrong with it; "" if nothing is.
        note: why it gives no record although nothing is wrong with it; "" if it gives one.
    """

    where: str
    raw: Row | None
    made: list[tuple[str, Row]]
    problem: str = ""
    note: str = ""


def first_rows(
    cfg: Data, data_root: str | None, count: int, say: Callable[[str], None]
) -> Iterator[Look]:
    """Yield the first `count` rows of a source, as read and as the wanted record; store nothing.

    If some of them make a record only together with other rows, the first `count` such records
    follow.

    Args:
        cfg: the config of the data step.
        data_root: folder with the files that cards name.
        count: the number of rows.
        say: called with each line that the stage would print about the files and their columns.

    Raises:
        ConfigError: there is no row, or `columns` names a column that no row has.
    """
    source = resolve(cfg.source, data_root, None)
    if source.card.generator:
        generated = generator(source.card.generator).rows(
            cfg.record, ["train"], {**_limits(cfg), "train": count}, cfg.options
        )
        yield from (
            Look(f"{cfg.source}[{i}]", None, [("train", row)])
            for i, row in enumerate(generated["train"])
        )
        return
    reader = _reader(cfg, source, None)
    raw_rows = _raw_rows(source, cfg, say)
    num_read, num_waiting = 0, 0
    for given, raw in itertools.islice(raw_rows, count):
        num_read += 1
        look = _look(cfg, source, reader, raw.where, reader.read(raw, given))
        if not (look.made or look.problem or look.note):
            num_waiting += 1
            look = look._replace(note="it makes a record together with other rows, shown below")
        yield look._replace(raw=None if isinstance(raw.row, Malformed) else raw.row)
    if num_read == 0:
        raise ConfigError(f"source: {cfg.source}: it has no rows")
    if num_waiting:
        for given, raw in itertools.islice(raw_rows, _READ_ON):
            num_read += 1
            _look(cfg, source, reader, raw.where, reader.read(raw, given))
        say(f"joined: of the first {num_read:,} rows")
        for where, found in itertools.islice(reader.joined(), count):
            yield _look(cfg, source, reader, where, found)
    for line in reader.lines():
        say(line)
    try:
        reader.check_columns()
    except ConfigError as error:
        raise ConfigError(f"{error} (of the {num_read:,} that were read)") from None


def _look(cfg: Data, source: Source, reader: RowReader, where: str, found: Iterator[Read]) -> Look:
    """Return what a row gives, or rows that make a record together."""
    before = reader.dropped.copy()
    made: list[tuple[str, Row]] = []
    problem = ""
    try:
        for split, whole, row in found:
            made += [
                (split or _split(cfg, source.card, whole), piece) for piece in _fitting(row, cfg)
            ]
    except Dropped as reason:
        reader.dropped[str(reason)] += 1
    except Malformed as error:
        problem = str(error)
    dropped = reader.dropped - before
    note = f"dropped: {_counted(dropped)}" if dropped and not made and not problem else ""
    return Look(where, None, made, problem, note)


def _limits(cfg: Data) -> dict[str, int | None]:
    return {"train": cfg.train_rows, "validation": cfg.validation_rows, "test": cfg.test_rows}


def _counted(dropped: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in dropped.most_common())


@contextlib.contextmanager
def _nothing_left_on_error(job: Job) -> Iterator[None]:
    """Remove incomplete files on an error, and report a full disk in one line."""
    try:
        yield
    except BaseException as error:
        for path in job.out.glob("*.parquet"):
            path.unlink()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                f"{job.work}: {os.strerror(error.errno)}; rows beyond what memory holds take twice"
                " their space for a while, sorted and as a dataset: make room, or give"
                " store=FOLDER on a larger disk"
            ) from None
        raise


@dataclass(frozen=True)
class _Rows:
    """The rows of a split from `begin` to `end`, which can be read several times.

    Rows that ask what a row of `held_out` asks are left out first.
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


def _tell_of_empty(splits: Mapping[str, _Rows], job: Job) -> None:
    """Log which split that training needs is empty, if rows were split by their content."""
    left = sum(map(len, splits.values()))
    if left and not splits["train"].end:
        job.log.info(
            f"no training row is left, {left:,} in other splits: no step can train on these"
        )
    if left and not splits["validation"].end:
        job.log.info(
            f"no validation row is left, {left:,} in other splits, so training reports no figures"
            " of held-out rows; a larger validation_share (0.05 is usual) holds out more"
        )


def _read(
    cfg: Data, source: Source, sorter: RowSorter, job: Job, reader: RowReader
) -> dict[str, _Rows]:
    """Return rows by split, each split cut to its limit of rows.

    Their order looks random and depends only on their content.
    """
    count, any_given, dropped = 0, False, reader.dropped
    raw_rows = _shown_rows(source, cfg, job.progress, job.log.info)
    for given, whole, made in _records(raw_rows, cfg, source, reader, job.log.info):
        if given is not None and cfg.validation_share is not None:
            raise ConfigError(
                f"validation_share: the files of {cfg.source} say their splits, so leave it out"
            )
        split = given or _split(cfg, source.card, whole)
        for row in made:
            sorter.add(split, row)
        count, any_given = count + len(made), any_given or given is not None
    # `count` includes duplicates, so fewer rows may follow. If splits are given, each row is also
    # compared by what it asks.
    with job.progress(2 * count if any_given else count, "rows compared") as advance:
        splits = _kept_apart(sorter, any_given, advance, dropped)
    if duplicates := count - sum(map(len, splits.values())) - dropped[_SHARED]:
        dropped["duplicate"] = duplicates
    if cfg.shot_rows and not splits["train"]:  # a task without training rows to draw shots from
        test = splits["test"]
        shots = min(cfg.shot_rows, test.end)
        splits |= {"train": replace(test, end=shots), "test": replace(test, begin=shots)}
    if not any_given and cfg.split is None and cfg.record != "items":
        _tell_of_empty(splits, job)
    limits = _limits(cfg)
    for split, rows in splits.items():
        if (limit := limits[split]) is not None:
            splits[split] = replace(rows, end=min(rows.end, rows.begin + limit))
    return splits


def _kept_apart(
    sorter: RowSorter, any_given: bool, advance: Callable[[int], None], dropped: Counter[str]
) -> dict[str, _Rows]:
    """Return all rows by split, without rows that ask what a later split of `SPLITS` asks.

    Splits can share a prompt only if files give them: `any_given`. In that case, the sha256 of what
    each held-out row asks is in memory. That takes 120 bytes with Python's object and its place in
    a set.
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


def _shown_rows(
    source: Source, cfg: Data, progress: _Shown, say: Callable[[str], None] = lambda note: None
) -> Iterator[tuple[str | None, RawRow]]:
    """Yield the rows of `_raw_rows` with progress.

    The unit of progress is megabytes of the files, or rows of the Hub.
    """
    if not source.files:
        with progress(None, "rows read") as advance:
            yield from _watched(_raw_rows(source, cfg, say), advance)
        return
    place, told = Place(), 0
    with progress(sum(path.stat().st_size for path in source.files) // _MB, "MB read") as advance:
        for number, row in enumerate(_raw_rows(source, cfg, say, place), 1):
            yield row
            if number % REPORT_EVERY == 0:
                advance(place.bytes() // _MB - told)
                told = place.bytes() // _MB
        advance(place.bytes() // _MB - told)


def _watched(rows: Iterable[_T], advance: Callable[[int], None]) -> Iterator[_T]:
    """Yield the rows; call `advance` after every thousand rows and after the last.

    `advance` may raise to stop here.
    """
    number = 0
    for number, row in enumerate(rows, 1):
        yield row
        if number % REPORT_EVERY == 0:
            advance(REPORT_EVERY)
    advance(number % REPORT_EVERY)


def _records(
    raw_rows: Iterable[tuple[str | None, RawRow]],
    cfg: Data,
    source: Source,
    reader: RowReader,
    say: Callable[[str], None] = lambda note: None,
) -> Iterator[tuple[str | None, Row, list[Row]]]:
    """Yield, per raw row, (the split of its file, the row that decides its split, its records).

    The split is None if the file gives none. The second item is the row before conversion. So a
    labelled row is in one split for every record that is made of it, and the pieces of a document
    are in one split, too.

    A malformed row of the user's own file is an error, raised after the last row. In a published
    dataset, malformed rows are counted, and they are an error only if no row is left. If the
    dataset has no card, `say` also reports the first row of each kind of problem.
    """
    problems = _Problems()
    any_made = False

    def attempts() -> Iterator[tuple[str, Iterator[Read]]]:
        yield from ((raw.where, reader.read(raw, split)) for split, raw in raw_rows)
        yield from reader.joined()

    for where, found in attempts():
        try:
            for split, whole, made in found:
                try:
                    fitting = list(_fitting(made, cfg))
                    any_made = any_made or bool(fitting)
                    yield split, whole, fitting
                except Dropped as reason:
                    reader.dropped[str(reason)] += 1
        except Dropped as reason:
            reader.dropped[str(reason)] += 1
        except Malformed as problem:
            reader.dropped["malformed"] += 1
            problems.add(where, str(problem))
    if problems.count and (source.is_local_path or not any_made):
        raise ConfigError(problems.told())
    if problems.count and source.is_without_card:
        for line in problems.lines():
            say(f"left out: {line}")
    reader.check_columns()


class _Problems:
    """Problems in rows: the first place of each kind, and how many rows have it."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._rows: Counter[str] = Counter()
        self.count = 0

    def add(self, where: str, problem: str) -> None:
        self.count += 1
        before, _, got = problem.partition(", got ")
        # Rows with the same problem differ in numbers and values; these must not make another kind.
        # After "got", a bare word is the type of the value: str, int, nothing. The value itself is
        # in quotes, or a number.
        held = got.split(" ")[0]
        kind = re.sub(r"\d+", "0", before) + (held if held.isalpha() else "")
        if kind in self._first or len(self._first) < _SHOWN_ERRORS:
            self._first.setdefault(kind, f"{where}: {problem}")
            self._rows[kind] += 1

    def told(self) -> str:
        """Return all problems as one error message."""
        return "\nerror: ".join(self.lines())

    def lines(self) -> list[str]:
        """Return one line per kind."""
        lines = []
        for kind, first in self._first.items():
            others = self._rows[kind] - 1
            rows = "row" if others == 1 else "rows"
            lines.append(first + (f" (and {others:,} more {rows} like it)" if others else ""))
        rest = self.count - sum(self._rows.values())
        if rest:
            lines[-1] += f" (and {rest:,} rows with other problems)"
        return lines


def _split(cfg: Data, card: DataCard, row: Row) -> str:
    """Return the split of a row whose file gives none.

    That is the split in the config, else a hash of what the row asks decides. Items are for scoring
    a model, so without a split in the config all are test.
    """
    if cfg.split is not None:
        return cfg.split
    if cfg.record == "items":
        return "test"
    share = card.held_out if cfg.validation_share is None else cfg.validation_share
    return split_of(split_key(row), share)


def _raw_rows(
    source: Source,
    cfg: Data,
    say: Callable[[str], None] = lambda note: None,
    place: Place | None = None,
) -> Iterator[tuple[str | None, RawRow]]:
    """Yield each row with the split of its file, if known; report what is unusual."""
    if not source.files:
        yield from _rows_of_hub(source, cfg, say)
        return
    splits = _file_splits(source, cfg)
    for note in _what_is_read(source, splits, cfg):
        say(note)
    labelled = (
        cfg.record == "labelled" or FORMATS.get(source.card.format or "", ("",))[0] == "labelled"
    )
    # Some tables of GLUE have no header: their first row, such as `Some question?,1`, is data.
    # In other tables, such a row is a header.
    unnamed = {"columns_of": columns_without_header} if labelled else {}
    for path, split in splits.items():
        for raw in read_file(path, say, text_tables=labelled, place=place, **unnamed):
            yield split, raw


def _rows_of_hub(
    source: Source, cfg: Data, say: Callable[[str], None]
) -> Iterator[tuple[str | None, RawRow]]:
    """Yield rows of a dataset of the Hub; without a card, the names of its splits count.

    The Hub calls rows that are not split `train`. So a single split of that name is split by
    content.
    """
    from align.data.hub import load_splits, read_split

    loaded = load_splits(source.card)
    splits: dict[str, str | None] = dict.fromkeys(loaded)
    if source.is_without_card and [*splits] != ["train"]:
        splits = {name: split_of_name(PurePath(name)) for name in loaded}
    named = {split for split in splits.values() if split is not None}
    if named and (unread := [name for name, split in splits.items() if split is None]):
        say(f"not read: {', '.join(unread)}: named as no split, and others are")
    for known in SPLITS:
        if names := [name for name, its in splits.items() if its == known]:
            say(f"{known}: {', '.join(names)}")
    if cfg.split is not None and len(named) > 1:
        if cfg.split not in named:
            raise ConfigError(
                f"split={cfg.split}: {cfg.source} has the splits {', '.join(loaded)}; download the"
                " one that you mean, and give its files as path:FILE_OR_FOLDER"
            )
        say(f"split={cfg.split}: the rows of that split alone")
        named = {cfg.split}
    for name, split in splits.items():
        if split in named or not named:
            its = None if cfg.split is not None else split
            yield from ((its, raw) for raw in read_split(source.card, name, loaded[name]))


def _file_splits(source: Source, cfg: Data) -> dict[Path, str | None]:
    """Return the split of each file; None if each of its rows has its own.

    `split=` overrides the name of a file, or of several files that are all one split. Items are for
    scoring: if no file of the user's is test, the validation files are.

    Raises:
        ConfigError: the names are not clear, or name several splits although `split` is given.
    """
    if cfg.split is not None:
        named = source.named_splits()
        if len(named) > 1:
            said = ", ".join(
                f"{split}: {_listed([named[split]], source.root)}"
                for split in SPLITS
                if split in named
            )
            raise ConfigError(
                f"split={cfg.split}: the files of {cfg.source} say their splits ({said}); leave"
                " split out, or give one of the files"
            )
        return dict.fromkeys(source.files)
    splits = source.file_splits()
    if cfg.record == "items" and source.is_local_path and "test" not in splits.values():
        splits = {
            path: "test" if split == "validation" else split for path, split in splits.items()
        }
    return splits


def _what_is_read(source: Source, splits: dict[Path, str | None], cfg: Data) -> Iterator[str]:
    """Yield lines that report which files are read, and as which split.

    There is one line for each split that file names give, one for all files that hold no rows, and
    one per doubtful name. A doubtful name gives no split but looks as if it did.
    """
    for split in SPLITS:
        files = [path for path, its in splits.items() if its == split]
        if files:
            yield f"{split}: {_listed(files, source.root)}{_by_folder(source, files)}"
    if (
        source.is_local_path
        and source.root is not None
        and cfg.split is None
        and cfg.record != "items"
    ):
        for path in [path for path, split in splits.items() if split is None][:_SHOWN_FILES]:
            named = PurePath(source.root.name) / path.relative_to(source.root)
            if (word := doubtful_word(named)) is not None:
                yield (
                    f"{named}: {word!r} in its name is read as no split; where its rows are all one"
                    " split, give split=train, split=validation or split=test"
                )
    if source.left_out:
        yield f"not read: {_listed(source.left_out, source.root)}"


def _by_folder(source: Source, files: Sequence[Path]) -> str:
    """Return why files are a split if their own names do not give it."""
    root = source.root
    if (
        not source.is_local_path
        or root is None
        or split_of_name(files[0].relative_to(root)) is not None
    ):
        return ""
    return f" (their folder is named {root.name})"


def _listed(paths: Sequence[Path], root: Path | None) -> str:
    names = [str(path.relative_to(root or path.anchor)) for path in paths]
    more = f" and {len(names) - _SHOWN_FILES:,} more" if len(names) > _SHOWN_FILES else ""
    return ", ".join(names[:_SHOWN_FILES]) + more


def _fitting(row: Row, cfg: Data) -> Iterator[Row]:
    """Yield a row; cut a long document into pieces that end with a line.

    Raises:
        Dropped: another row is too long.
    """
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
    """Return the length of a row in characters.

    It is that of the longest conversation, candidate, or choice, together with what it answers.
    """
    if messages_asked(row) is not None:
        messages = row["prompt"] if "prompt" in row else row["messages"]
        said = sum(
            len(message["content"]) + len(message.get("tool_calls", "")) for message in messages
        )
        if record == "unpaired":
            return said + len(row["completion"])
        responses = row["responses"] if record == "comparisons" else []
        return said + max(map(len, responses), default=0)
    if "texts" in row:
        return sum(map(len, row["texts"])) + max(map(len, row.get("choices") or [""]))
    return max(len(a) + len(b) for a, b in zip(row["contexts"], row["completions"], strict=True))
