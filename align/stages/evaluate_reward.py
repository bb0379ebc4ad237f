"""Score a reward model on comparisons, beside chance and beside the length of the responses.

Takes: a reward model (trained here or imported; whole, an adapter, or an ensemble, whose mean
counts), and one or several datasets of comparisons.
Makes: an evaluation: metrics, scores.jsonl (a row per ranking), mistakes.jsonl (the pairs in which
the model is most sure and wrong), calibration.jsonl.
Departs from InstructGPT, section 4.1, which gives the accuracy alone. Here the accuracy of a rule
that looks only at length stands beside it, and a verdict says if the model is good enough for PPO.

Figures of all datasets together have no prefix. `data/NAME/` has those of a dataset, and
`data/NAME/GROUP/` those of one of its groups. Fractions have 95 % intervals over prompts, NAME_low
to NAME_high.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from align.configs import SPLITS, EvaluateReward, Reward
from align.data.records import Row, read_info, read_rows, source_name, whole_key
from align.errors import ConfigError, StoreError
from align.evals.calibration import reliability
from align.evals.intervals import FEW, few, few_warning
from align.evals.preferences import Scored, agreement, longer_wins
from align.evals.reward_metrics import (
    calibration_metrics,
    confidences,
    margins_of,
    reward_metrics,
    verdict_on,
)
from align.models.heads import Ensemble, ScalarModel, load_reward_model
from align.models.load import context_length, load_tokenizer
from align.models.packed import response_scores
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.store.artifacts import Artifact
from align.text.chat import TemplateRefusal, encode_dialogues
from align.text.encoding import encoder_of
from align.text.packing import micro_batches, pack

# A dataset's metrics have these heads, so a group cannot have one of these names.
_RESERVED = ("best_of", "labelers", "length", "styles", "ties")
_MOST_GROUPS = 100  # more values are no groups, but for example an id of each row
# Rows of another split that choose the length rule: its accuracy on them is known to 2 points.
_FOR_LENGTH_RULE = 2000


class Dataset(NamedTuple):
    """The comparisons of one input.

    Attributes:
        name: its name in metrics.
        rows: the rows that are scored.
        longer: the length rule: whether the longer response wins, or the shorter one.
    """

    name: str
    rows: list[Row]
    longer: bool


def run(cfg: EvaluateReward, inputs: Inputs, job: Job) -> Metrics:
    artifact = inputs.one("model")
    model, tokenizer = load_reward_model(artifact.path, job.device), load_tokenizer(artifact.path)
    datasets = _datasets(cfg, inputs, tokenizer, job)
    rows = [row for dataset in datasets for row in dataset.rows]
    scored, truncated = _scored(cfg, rows, model, tokenizer, job)
    if not job.group.is_main:
        return {}
    owners = [dataset for dataset in datasets for _ in dataset.rows]
    metrics = _measured(cfg, "", scored, [owner.longer for owner in owners])
    metrics |= _labelers("", rows)
    for dataset in datasets:
        places = [i for i, owner in enumerate(owners) if owner is dataset]
        metrics |= _of_dataset(cfg, dataset, [scored[i] for i in places])
    metrics |= _calibration(cfg, artifact, scored, job)
    metrics |= {"truncated": float(truncated)} | _seen(artifact, rows, job)
    _write_tables(cfg, owners, rows, scored, job)
    if (warning := few_warning(metrics)) is not None:
        job.log.info(warning)
    verdict = verdict_on(metrics)
    job.log.info(verdict.text)
    return {"verdict": float(verdict.sign)} | metrics


# -- the rows --------------------------------------------------------------------------------------


def _datasets(
    cfg: EvaluateReward, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, job: Job
) -> list[Dataset]:
    """Return the rows of each input with the length rule that other rows of it choose.

    Raises:
        ConfigError: an input has no rows in the split, people order no pair of any row, or a
            dataset's groups cannot be names of figures.
    """
    found: list[Dataset] = []
    names: Counter[str] = Counter()
    for artifact in inputs["data"]:
        source = read_info(artifact.path)["source"]
        name = source_name(source).replace("/", "-")
        names[name] += 1
        if names[name] > 1:
            name = f"{name}-{names[name]}"
        rows = _held_out(cfg, artifact, source)
        longer, chosen_by = _length_rule(cfg, artifact, rows, tokenizer)
        found.append(Dataset(name, rows, longer))
        job.log.info(
            f"{name}: {len(rows):,} rankings, the {cfg.split} split of {source}; length alone:"
            f" the {'longer' if longer else 'shorter'} response wins, {chosen_by}"
        )
    every = [row for dataset in found for row in dataset.rows]
    if all(len({*row["ranks"]}) == 1 for row in every):
        raise ConfigError(
            f"inputs.data: expected rows whose responses have different ranks, but all"
            f" {len(every):,} rows of the {cfg.split} split are ties; give other data"
        )
    for dataset in found:
        _check_groups(dataset)
    return found


def _held_out(cfg: EvaluateReward, artifact: Artifact, source: str) -> list[Row]:
    """Return the rows of a dataset that score the model."""
    if rows := list(read_rows([artifact.path], cfg.split)):
        return rows[: cfg.num_rankings]
    others = [split for split in SPLITS if (artifact.path / f"{split}.parquet").is_file()]
    hint = "give split=validation, or " if cfg.split == "test" and "validation" in others else ""
    raise ConfigError(
        f"inputs.data: no row of {source} is in the {cfg.split} split: they are in"
        f" {', '.join(others)}; {hint}make the data first: align data source=..."
        f" record=comparisons split={cfg.split} details=true name=mine/data"
    )


def _length_rule(
    cfg: EvaluateReward, artifact: Artifact, scored: list[Row], tokenizer: PreTrainedTokenizerBase
) -> tuple[bool, str]:
    """Return whether the longer response wins by the length rule, and what chose the rule.

    Rows that are not scored choose it. If these are too few, as for a benchmark that is all test,
    the scored rows do. Else a model that likes short responses could lead over a wrong rule.

    Args:
        scored: the rows that are scored.
    """
    others = [split for split in ("validation", "train") if split != cfg.split]
    every = itertools.chain.from_iterable(read_rows([artifact.path], split) for split in others)
    rows = list(itertools.islice(every, _FOR_LENGTH_RULE))
    said = f"as {len(rows):,} rows of {' and '.join(others)} say"
    if len(rows) < FEW:
        rows, said = scored, f"as these rows say: fewer than {FEW} are of {' and '.join(others)}"
    lengths = _lengths(tokenizer, rows)
    ranked = [Scored("", row["ranks"], own, own) for row, own in zip(rows, lengths, strict=True)]
    return longer_wins(ranked), said


def _check_groups(dataset: Dataset) -> None:
    names = {_group(row) for row in dataset.rows} - {""}
    if bad := names & {*_RESERVED}:
        raise ConfigError(
            f"inputs.data: {dataset.name}: a group cannot be called"
            f" {min(bad)}: {', '.join(_RESERVED)} are names of figures"
        )
    if len(names) > _MOST_GROUPS:
        raise ConfigError(
            f"inputs.data: {dataset.name}: expected at most {_MOST_GROUPS} different values in the"
            f" column group, got {len(names):,}; name another column as columns={{group: ...}}"
        )


def _group(row: Row) -> str:
    value = row.get("group")
    return "" if value is None else str(value).strip().replace("/", "-")


def _listed(row: Row, name: str) -> list[Any]:
    """Return a list that a dataset keeps as JSON text; an empty list if there is none."""
    value = row.get(name)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    return value if isinstance(value, list) else []


# -- the scores ------------------------------------------------------------------------------------


@torch.no_grad()
def _scored(
    cfg: EvaluateReward,
    rows: Sequence[Row],
    model: ScalarModel | Ensemble,
    tokenizer: PreTrainedTokenizerBase,
    job: Job,
) -> tuple[list[Scored], int]:
    """Return the rows with the model's scores, and how many responses were too long.

    Raises:
        ConfigError: the chat template refuses a row, or a score is not finite.
    """
    sequences, at, truncated = _sequences(
        cfg, rows, tokenizer, context_length(model.classifier), job
    )
    mine = job.group.share(sequences)
    compute, scores = job.compute(cfg.precision), torch.zeros(len(mine))
    with job.progress(len(mine), "responses") as advance:
        for chunk in micro_batches(list(map(len, mine)), job.max_tokens):
            with compute.autocast():
                packed = pack([mine[i] for i in chunk], job.device)
                scores[chunk] = response_scores(model, packed).float().cpu()
            advance(len(chunk))
    found = job.group.gather(scores.tolist())
    of_texts = iter([found[place] for place in at])
    scored = []
    for row, lengths in zip(rows, _lengths(tokenizer, rows), strict=True):
        own = list(itertools.islice(of_texts, len(lengths)))
        if not all(map(math.isfinite, own)):
            asked = row["prompt"][-1]["content"][:60]
            raise ConfigError(
                f"inputs.model: expected finite scores, got {own} for the responses to {asked!r}"
            )
        scored.append(
            Scored(
                prompt=json.dumps(row["prompt"]),
                ranks=row["ranks"],
                scores=own,
                lengths=lengths,
                group=_group(row),
                styles=_listed(row, "styles"),
                ties=str(row.get("ties") or ""),
            )
        )
    return scored, truncated


def _sequences(
    cfg: EvaluateReward,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    job: Job,
) -> tuple[list[list[int]], list[int], int]:
    """Return the sequences to score, which one each response is, and how many were too long.

    As in PPO, text that is longer than the model's context loses its end. Equal responses to a
    prompt share a sequence.

    Raises:
        ConfigError: the chat template refuses a row.
    """
    owners = [i for i, row in enumerate(rows) for _ in row["responses"]]
    texts = [text for row in rows for text in row["responses"]]
    try:
        whole = encode_dialogues(tokenizer, [rows[i]["prompt"] for i in owners], texts)
    except TemplateRefusal as error:
        raise ConfigError(
            f"inputs.data: {cfg.split} row {owners[error.index] + 1}: {error.reason}"
        ) from None
    truncated = sum(len(ids) > context for ids in whole)
    if truncated:
        job.log.info(
            f"{truncated:,} of {len(whole):,} responses are longer than the model's context with"
            f" their prompt, {context:,} tokens: they are scored without their end"
        )
    places: dict[tuple[int, tuple[int, ...]], int] = {}
    at = [
        places.setdefault((i, tuple(ids[:context])), len(places))
        for i, ids in zip(owners, whole, strict=True)
    ]
    return [list(ids) for _, ids in places], at, truncated


def _lengths(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[list[int]]:
    """Return the length of each response in tokens of the reward model, without prompt and end."""
    encodings = iter(encoder_of(tokenizer).encode([t for row in rows for t in row["responses"]]))
    return [[len(next(encodings).ids) for _ in row["responses"]] for row in rows]


# -- the figures -----------------------------------------------------------------------------------


def _measured(
    cfg: EvaluateReward, head: str, scored: Sequence[Scored], longer: Sequence[bool]
) -> Metrics:
    seed = derive_seed(cfg.random_seed, "evaluate_reward", "bootstrap")
    return reward_metrics(head, scored, longer, cfg.num_bootstrap, seed)


def _of_dataset(cfg: EvaluateReward, dataset: Dataset, scored: Sequence[Scored]) -> Metrics:
    """Return the measures of a dataset and of each of its groups.

    RewardBench 2's own figure is the mean of its subsets: best of 4, and the score of Ties. It is
    missing if one of the groups has neither.
    """
    head = f"data/{dataset.name}/"
    metrics = _measured(cfg, head, scored, [dataset.longer] * len(scored))
    metrics |= _labelers(head, dataset.rows)
    groups = sorted({ranking.group for ranking in scored} - {""})
    for group in groups:
        own = [ranking for ranking in scored if ranking.group == group]
        metrics |= _measured(cfg, f"{head}{group}/", own, [dataset.longer] * len(own))
    if f"{head}ties/score" in metrics and len(groups) > 1:
        parts = [
            metrics.get(f"{head}{group}/ties/score", metrics.get(f"{head}{group}/best_of/accuracy"))
            for group in groups
        ]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            metrics[f"{head}reward_bench_2"] = sum(known) / len(known)
    return metrics


def _labelers(head: str, rows: Sequence[Row]) -> Metrics:
    """Return how often two people order a pair of one row alike, if rows have several votes.

    The votes are in one row (PandaLM), or in several rows with the same responses and each with its
    `labeler`. No model can agree with people much more often than they agree with each other.
    """
    votes = [_listed(row, "votes") for row in rows]
    same: defaultdict[str, dict[str, list[int]]] = defaultdict(dict)
    for row in rows:
        if row.get("labeler") is not None:
            key = json.dumps([row["prompt"], row["responses"]])
            same[key].setdefault(str(row["labeler"]), row["ranks"])
    alike, ordered = agreement([*votes, *(list(each.values()) for each in same.values())])
    if not ordered:
        return {}
    name = f"{head}labelers/agreement"
    return {name: alike / ordered, f"{head}labelers/pairs": ordered} | few(name, ordered)


def _calibration(
    cfg: EvaluateReward, artifact: Artifact, scored: Sequence[Scored], job: Job
) -> Metrics:
    """Return how calibrated the model is, as it is and at the temperature of its own training."""
    margins = margins_of(scored)
    own = artifact.manifest["metrics"].get("temperature")
    curves = {"model": confidences(margins)}
    if own is not None:
        curves["at its temperature"] = confidences(margins, own)
    job.log.table(
        "calibration",
        [
            {"task": "pairs", "model": name, **each._asdict()}
            for name, curve in curves.items()
            for each in reliability(*curve)
        ],
    )
    seed = derive_seed(cfg.random_seed, "evaluate_reward", "calibration")
    return calibration_metrics(margins, own, cfg.num_bootstrap, seed)


def _seen(model: Artifact, rows: Sequence[Row], job: Job) -> Metrics:
    """Return the fraction of the prompts that the reward model learned from.

    There is no such figure for a model that was not trained here.
    """
    try:
        steps = [each for each in model.lineage() if each.stage == Reward.STAGE]
        data = [
            found
            for step in steps
            for entry in step.manifest["inputs"].get("data", ())
            if (found := model.store.get(entry["stage"], entry["key"])) is not None
        ]
    except StoreError as error:
        job.log.info(f"it is not known which prompts the reward model learned from: {error}")
        return {}
    if not data:
        return {}
    learned = {whole_key(row) for row in read_rows([each.path for each in data], "train")}
    asked = {whole_key(row) for row in rows}
    seen = len(asked & learned) / len(asked)
    if seen:
        job.log.info(
            f"{100 * seen:.1f} % of the prompts are among those that the reward model learned from:"
            " its figures may be too high"
        )
    return {"seen_in_training": seen}


# -- the tables ------------------------------------------------------------------------------------


def _write_tables(
    cfg: EvaluateReward,
    owners: Sequence[Dataset],
    rows: Sequence[Row],
    scored: Sequence[Scored],
    job: Job,
) -> None:
    """Write the scores of every ranking, and the mistakes in which the model is most sure."""
    table: list[dict[str, Any]] = []
    wrong: list[tuple[float, int, Row, int, int, Dataset]] = []
    for owner, row, ranking in zip(owners, rows, scored, strict=True):
        table.append(
            {
                "data": owner.name,
                "group": ranking.group,
                "prompt": row["prompt"][-1]["content"],
                "ranks": list(ranking.ranks),
                "scores": [round(score, 4) for score in ranking.scores],
                "tokens": list(ranking.lengths),
            }
        )
        for i, j in ranking.pairs():
            if ranking.scores[i] < ranking.scores[j]:
                wrong.append((ranking.scores[i] - ranking.scores[j], len(wrong), row, i, j, owner))
    job.log.table("scores", table)
    job.log.table(
        "mistakes",
        [
            {
                "data": owner.name,
                "prompt": row["prompt"][-1]["content"],
                "better": row["responses"][i],
                "preferred": row["responses"][j],
                "lead": -margin,
            }
            for margin, _, row, i, j, owner in sorted(wrong, key=lambda each: each[:2])[
                : cfg.num_samples
            ]
        ],
    )
