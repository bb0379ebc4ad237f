"""Wait until people have ranked or answered enough candidates, and take what they gave.

Takes: candidates, which are prompts with several responses.
Makes: comparisons (prompt, responses, ranks, and who gave them), or demonstrations: the answers
that people wrote to the prompts.
Departs from InstructGPT: nothing; a labeler ranks K responses, and all pairs of a ranking count.

While it waits, the step ends with exit code 75 and leaves nothing. It has put the candidates into
the file of votes by then, so `align label serve` can show them.
"""

from __future__ import annotations

import json
from typing import Any

from align.configs import Collect
from align.data.records import SPLITS, Row, read_info, read_rows, write_info, write_rows
from align.errors import ConfigError, Waiting
from align.labelling.agreement import pair_agreement
from align.labelling.database import Settings, Votes, item_id
from align.labelling.snapshots import all_rows, collected, place
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics


def run(cfg: Collect, inputs: Inputs, job: Job) -> Metrics:
    path = place(job.store, cfg.labels)
    votes = Votes(path) if path.is_file() else Votes.create(path, Settings())
    folders = inputs.folders("candidates")
    split_of: dict[str, str] = {}  # of each item, and of each prompt
    for split in SPLITS:
        rows = [
            {name: row[name] for name in ("prompt", "responses")}
            for row in read_rows(folders, split)
        ]
        added, _ = votes.add_items(rows, split)
        if added:
            job.log.info(f"{added:,} {split} candidates are ready for people")
        split_of |= {item_id(row["prompt"], row["responses"]): split for row in rows}
        split_of |= {json.dumps(row["prompt"]): split for row in rows}
    found = collected(job.store, cfg.labels, cfg.record, cfg.num_rows)
    if found is None:
        raise Waiting(_what_is_missing(cfg, votes))
    by_split: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in found:
        row.pop("split", None)
        of_answers = cfg.record == "demonstrations"
        split = split_of.get(json.dumps(row["messages"][:-1]) if of_answers else row["item"], "")
        if not split:
            raise ConfigError(
                f"labels: {cfg.labels} has {cfg.record} of other candidates; give each collect step"
                " a file of its own: labels=NAME"
            )
        by_split[split].append(row)
    for split, rows in by_split.items():
        write_rows(job.out, split, rows, record=cfg.record)
    info = read_info(folders[0])
    write_info(
        job.out,
        record=cfg.record,
        source=f"votes:{cfg.labels}",
        licence=info["licence"],
        dropped={},
        gold=info.get("gold"),
    )
    return _metrics(votes, found, by_split)


def _what_is_missing(cfg: Collect, votes: Votes) -> str:
    noun = "answers" if cfg.record == "demonstrations" else "rankings"
    # Not all votes: known items give no row, and a decided item gives one.
    given, counts = len(all_rows(votes, cfg.record)), votes.counts()
    said = f"{given:,} of {cfg.num_rows:,} {noun} are in"
    if counts["done"] == counts["items"]:
        return f"{said}, and all items are done; lower num_rows, or add candidates"
    return (
        f"{said}; people give them at align label serve {cfg.labels} (links: align label token"
        f" {cfg.labels} NAME); then give the same command again"
    )


def _metrics(votes: Votes, found: list[Row], by_split: dict[str, list[Row]]) -> Metrics:
    metrics = {
        "rows": float(len(found)),
        "labelers": float(len({row["labeler"] for row in found})),
        **{f"rows/{split}": float(len(rows)) for split, rows in by_split.items() if rows},
    }
    kept = {(row.get("item"), row["labeler"]) for row in found}
    used: list[dict[str, Any]] = [
        each for each in votes.rankings() if (each["item"], each["labeler"]) in kept
    ]
    if (agreement := pair_agreement(used)) is not None:
        metrics["labelers/agreement"] = agreement
    return metrics
