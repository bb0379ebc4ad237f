"""Rows from a card, a file or the Hub, checked and split.

Takes: nothing from the store; a source outside it.
Makes: a dataset artifact: <split>.parquet for each split that has rows, and dataset.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

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
    hashed,
    split_key,
    split_of,
    whole_key,
    write_info,
    write_rows,
)
from align.errors import ConfigError
from align.job import Inputs, Job, Metrics

_SHOWN_ERRORS = 20


def run(cfg: Data, inputs: Inputs, job: Job) -> Metrics:
    for split in cfg.splits:
        if split not in SPLITS:
            raise ConfigError(f"splits: expected {', '.join(SPLITS)}, got {split!r}")
    source = resolve(cfg.source, job.data_root, None)
    dropped: Counter[str] = Counter()
    if source.card.generator:
        rows = smallworld.rows(cfg.record, cfg.splits, _limits(cfg), cfg.options)
        info = smallworld.info(cfg.options)
    else:
        rows, info = _read(cfg, source, dropped), {}
    metrics: Metrics = {}
    for split in cfg.splits:
        metrics[f"rows/{split}"] = write_rows(job.out, split, rows.get(split, []))
    if not any(metrics.values()):
        raise ConfigError(f"source {cfg.source!r}: no row is left; dropped: {_counted(dropped) or 'none'}")
    write_info(job.out, record=cfg.record, source=cfg.source, licence=source.card.licence, dropped=dropped, **info)
    kept = ", ".join(f"{metrics[f'rows/{split}']:,} {split}" for split in cfg.splits)
    job.info(f"{kept}" + (f"; dropped {sum(dropped.values()):,}: {_counted(dropped)}" if dropped else ""))
    return metrics | {f"dropped/{reason}": count for reason, count in dropped.items()}


def check_rows(cfg: Data, data_root: str | None) -> None:
    """Read every row of a data step and raise what `run` would; for `align plan check_data=true`."""
    source = resolve(cfg.source, data_root, None)
    if not source.card.generator:
        _read(cfg, source, Counter())


def _limits(cfg: Data) -> dict[str, int | None]:
    return {"train": cfg.train_rows, "validation": cfg.validation_rows, "test": cfg.test_rows}


def _counted(dropped: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in dropped.most_common())


def _read(cfg: Data, source: Source, dropped: Counter[str]) -> dict[str, list[Row]]:
    """Rows by split. A malformed row of the user's own file is an error; of a published set, a count."""
    splits: dict[str, dict[str, Row]] = {split: {} for split in SPLITS}
    errors: list[str] = []
    for given, raw in _raw_rows(source):
        try:
            for row in _kept(raw, cfg, source.card, dropped):
                split = given or _split(cfg, source.card, row)
                identity = repr(row)
                if identity in splits[split]:
                    dropped["duplicate"] += 1
                splits[split][identity] = row
        except Dropped as reason:
            dropped[str(reason)] += 1
        except Malformed as problem:
            dropped["malformed"] += 1
            errors.append(f"{raw.where}: {problem}")
    if errors and source.is_local_path:
        raise ConfigError(_told(errors))
    _keep_apart(splits, dropped)
    if cfg.shot_rows and not splits["train"]:
        _set_apart(splits, cfg.shot_rows)
    limits = _limits(cfg)
    return {split: _take(rows, limits[split]) for split, rows in splits.items()}


def _set_apart(splits: dict[str, dict[str, Row]], count: int) -> None:
    """Make training items of `count` test items, for a task that has none to draw shots from."""
    for identity in sorted(splits["test"], key=hashed)[:count]:
        splits["train"][identity] = splits["test"].pop(identity)


def _split(cfg: Data, card: DataCard, row: Row) -> str:
    """Items are there to score a model: all are test."""
    return "test" if cfg.record == "items" else split_of(split_key(row), card.held_out)


def _told(errors: list[str]) -> str:
    """One line an error, the first of them; where every row has the same, only that."""
    shown = 1 if len({error.partition(": ")[2] for error in errors}) == 1 else _SHOWN_ERRORS
    more = f" (and {len(errors) - shown:,} more)" if len(errors) > shown else ""
    return "\nerror: ".join(errors[:shown]) + more


def _keep_apart(splits: dict[str, dict[str, Row]], dropped: Counter[str]) -> None:
    """Where files were split by their names, what is asked in a held-out one is taken out of those before it."""
    held_out: set[str] = set()
    for split in reversed(SPLITS):
        shared = [identity for identity, row in splits[split].items() if whole_key(row) in held_out]
        for identity in shared:
            del splits[split][identity]
            dropped["also in a held-out split"] += 1
        held_out |= {whole_key(row) for row in splits[split].values()}


def _raw_rows(source: Source) -> Iterator[tuple[str | None, RawRow]]:
    """Rows, each with the split that the name of the user's file says (train.jsonl, validation.jsonl, test.jsonl)."""
    if not source.files:
        from align.data.hub import read_hub

        yield from ((None, raw) for raw in read_hub(source.card))
    for path in source.files:
        name = path.name.partition(".")[0]
        split = name if source.is_local_path and name in SPLITS else source.split_of(path)
        yield from ((split, raw) for raw in read_file(path))


def _kept(raw: RawRow, cfg: Data, card: DataCard, dropped: Counter[str]) -> Iterator[Row]:
    """What a raw row gives of the wanted record; a book gives many rows, of which some may be dropped."""
    if isinstance(raw.row, Malformed):
        raise raw.row
    record, read = reader(card.format or infer_format(raw.row, cfg.record), cfg.record)
    file = Path(raw.where.rpartition(":")[0] or raw.where).name.partition(".")[0]
    group = {"group": file} if record == "items" else {}
    for row in read(raw.row):
        try:
            found = {**group, **row}
            yield from _fitting(check_row(cfg.record, convert(found, record, cfg.record)), cfg)
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


def _take(rows: dict[str, Row], limit: int | None) -> list[Row]:
    """Rows in an order that looks random and hangs on their content alone, the first `limit` of them."""
    ordered = [rows[identity] for identity in sorted(rows, key=hashed)]
    return ordered[:limit]
