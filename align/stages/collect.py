"""Wait until people have ranked enough candidates, and take their comparisons.

Takes: candidates, which are prompts with several responses.
Makes: comparisons: prompt, responses, ranks, and who gave them.
Departs from InstructGPT: nothing; a labeler ranks K responses, and all pairs of a ranking count.

While it waits, the step ends with exit code 75 and leaves nothing. It has put the candidates into
the file of votes by then, so `align label serve` can show them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from align.configs import Collect
from align.data.records import SPLITS, Row, read_info, read_rows, write_info, write_rows
from align.errors import Waiting
from align.labelling.agreement import pair_agreement
from align.labelling.database import Settings, Votes
from align.labelling.snapshots import collected, place
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics


def run(cfg: Collect, inputs: Inputs, job: Job) -> Metrics:
    path = place(job.store, cfg.labels)
    votes = Votes(path) if path.is_file() else Votes.create(path, Settings())
    folders = inputs.folders("candidates")
    for split in SPLITS:
        rows = [
            {name: row[name] for name in ("prompt", "responses")}
            for row in read_rows(folders, split)
        ]
        added, _ = votes.add_items(rows, split)
        if added:
            job.log.info(f"{added:,} {split} candidates are ready to be ranked")
    found = collected(job.store, cfg.labels, cfg.num_rankings)
    if found is None:
        raise Waiting(
            f"{votes.counts()['votes']:,} of {cfg.num_rankings:,} rankings are in; people rank at"
            f" align label serve {cfg.labels} (links: align label token {cfg.labels} NAME); then"
            " give the same command again"
        )
    by_split: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        by_split[row.pop("split")].append(row)
    for split in SPLITS:
        write_rows(job.out, split, by_split[split], record="comparisons")
    info = read_info(folders[0])
    write_info(
        job.out,
        record="comparisons",
        source=f"votes:{cfg.labels}",
        licence=info["licence"],
        dropped={},
        gold=info.get("gold"),
    )
    return _metrics(votes, found, by_split)


def _metrics(votes: Votes, found: list[Row], by_split: dict[str, list[Row]]) -> Metrics:
    metrics = {
        "rankings": float(len(found)),
        "labelers": float(len({row["labeler"] for row in found})),
        **{f"prompts/{split}": float(len(rows)) for split, rows in by_split.items()},
    }
    kept = {(row["item"], row["labeler"]) for row in found}
    used: list[dict[str, Any]] = [
        each for each in votes.rankings() if (each["item"], each["labeler"]) in kept
    ]
    if (agreement := pair_agreement(used)) is not None:
        metrics["labelers/agreement"] = agreement
    return metrics
