"""Sample several responses to each prompt and have simulated labelers rank them.

Takes: a model, and prompts that a gold scorer can judge. Optional: an ensemble of reward models,
which chooses the prompts to rank.
Makes: comparisons: prompt, responses, ranks and gold scores. The ranks follow the gold scores with
noise. Without simulated labelers it makes candidates: prompts with responses, for people to rank.
Departs from InstructGPT: the labelers are simulated. A training ranking may also hold strays, which
are responses to other prompts. A reward model that never sees a stray cannot tell that an answer
misses the question, and PPO exploits that.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.configs import Compare, filled
from align.data.records import Row, read_info, read_rows, write_info, write_rows
from align.errors import ConfigError
from align.evals.disagreement import disagreement, load_members
from align.evals.gold import GoldScorer, gold_scorer
from align.evals.players import Player, respond
from align.labelling.simulated import Judged, Labelers, agreeing_pairs, judge
from align.models.load import answer_length, context_length, load_model, load_tokenizer
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.sampling.engine import Sampling
from align.text.chat import decode_response, encode_prompts, is_ended
from align.verifiers.reward_models import RewardModel

_CALIBRATION_PROMPTS = 400  # training prompts that set the labelers' noise


class Asked(NamedTuple):
    """A prompt's row, and the responses to it."""

    row: Row
    responses: list[str]


def run(cfg: Compare, inputs: Inputs, job: Job) -> Metrics:
    folders = inputs.folders("prompts")
    infos = [read_info(folder) for folder in folders]
    scorer = gold_scorer(infos) if cfg.num_labelers else None
    if scorer is None and cfg.num_labelers:
        raise ConfigError(cfg.need_of_gold(inputs))
    members: list[RewardModel] = []
    if "reward_model" in inputs:
        members = load_members(inputs.one("reward_model").path, job.device)
    folder = inputs.one("model").path
    model, tokenizer = load_model(folder, job.device), load_tokenizer(folder)
    cfg = replace(cfg, max_new_tokens=answer_length(cfg.max_new_tokens, context_length(model)))
    rows = _prompts(cfg, folders, tokenizer, context_length(model), job)
    sampled, ended = _sample(
        cfg, job, model, tokenizer, [row["prompt"] for split in rows for row in rows[split]]
    )
    if not job.group.is_main:
        return {}
    each = iter(sampled)
    asked = {
        split: [Asked(row, list(itertools.islice(each, cfg.num_responses))) for row in own]
        for split, own in rows.items()
    }
    chosen, metrics = list(range(len(asked["train"]))), {"response/ended": ended}
    if members:
        chosen, found = _chosen(cfg, members, asked["train"], job)
        metrics |= found
    asked["train"] = _with_strays(asked["train"], cfg)
    if scorer is None:
        asked["train"] = [asked["train"][place] for place in chosen]
        return metrics | _write_candidates(asked, infos[0], job)
    return metrics | _write_comparisons(cfg, asked, chosen, scorer, infos[0], job)


def _prompts(
    cfg: Compare, folders: list[Path], tokenizer: PreTrainedTokenizerBase, context: int, job: Job
) -> dict[str, list[Row]]:
    """Return the prompts of each split that leave room for a response.

    Raises:
        ConfigError: no training prompt is left.
    """
    limits = {
        "train": (cfg.skip_prompts, cfg.choose_from or cfg.num_prompts),
        "validation": (0, cfg.num_validation_prompts),
    }
    room = context - filled(cfg.max_new_tokens)
    rows: dict[str, list[Row]] = {}
    for split, (skipped, limit) in limits.items():
        found = list(read_rows(folders, split))
        encoded = encode_prompts(
            tokenizer, [row["prompt"] for row in found], f"inputs.prompts: {split} row"
        )
        fitting = [row for row, ids in zip(found, encoded, strict=True) if len(ids) <= room]
        if len(fitting) < len(found):
            which = f"{len(found) - len(fitting):,} of {len(found):,} {split} prompts"
            job.log.info(f"{which} left out: longer than {room:,} tokens")
        rows[split] = fitting[skipped:][:limit]
    if not rows["train"]:
        raise ConfigError(
            f"inputs.prompts: after {cfg.skip_prompts} that are skipped, no training prompt leaves"
            f" room for {cfg.max_new_tokens} new tokens"
        )
    return rows


def _chosen(
    cfg: Compare, members: Sequence[RewardModel], asked: Sequence[Asked], job: Job
) -> tuple[list[int], Metrics]:
    """Return the places of the prompts on which the members disagree most, in order."""
    found = disagreement(
        members,
        [each.row for each in asked],
        [each.responses for each in asked],
        job.compute("fp32"),
    )
    by_doubt = sorted(range(len(asked)), key=lambda place: -found[place])
    places = sorted(by_doubt[: filled(cfg.num_prompts)])
    return places, {
        "disagreement/all": float(np.mean(found)),
        "disagreement/chosen": float(np.mean([found[place] for place in places])),
    }


def _write_candidates(asked: dict[str, list[Asked]], info: dict[str, Any], job: Job) -> Metrics:
    """Write prompts with their responses, for people to rank."""
    for split, own in asked.items():
        rows = [{**each.row, "responses": each.responses} for each in own]
        write_rows(job.out, split, rows, record="candidates")
    _write_info(job, "candidates", info["licence"], info.get("gold"))
    return {f"prompts/{split}": float(len(own)) for split, own in asked.items()}


def _write_comparisons(
    cfg: Compare,
    asked: dict[str, list[Asked]],
    chosen: Sequence[int],
    scorer: GoldScorer,
    info: dict[str, Any],
    job: Job,
) -> Metrics:
    """Let simulated labelers rank the responses, and write the rankings.

    Args:
        chosen: the places of the training prompts that are ranked. The labelers' noise is set on
            all of them: on doubtful prompts alone it would be set too low.
    """
    crew = Labelers(
        cfg.num_labelers,
        cfg.tie_width,
        np.random.default_rng(derive_seed(cfg.random_seed, "labelers")),
    )
    judged = {
        split: [
            judge(texts, [scorer(row["prompt"], text).overall for text in texts])
            for row, texts in own
        ]
        for split, own in asked.items()
    }
    agreement = crew.calibrate(judged["train"][:_CALIBRATION_PROMPTS], cfg.agreement)
    places = {"train": chosen, "validation": range(len(asked["validation"]))}
    ranked = {
        split: [_ranked(asked[split][i], judged[split][i], crew) for i in own]
        for split, own in places.items()
    }
    for split, rows in ranked.items():
        write_rows(job.out, split, rows, record="comparisons")
    _write_info(job, "comparisons", "generated", info["gold"])
    job.log.table(
        "samples",
        [{"prompt": r["prompt"][-1]["content"], **_shown(r)} for r in ranked["train"][:20]],
    )
    return _metrics(ranked) | {"labelers/agreement": agreement, "labelers/noise": crew.noise}


def _write_info(job: Job, record: str, licence: str, gold: Any) -> None:
    write_info(job.out, record=record, source="compare", licence=licence, dropped={}, gold=gold)


def _sample(
    cfg: Compare,
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[dict[str, str]]],
) -> tuple[list[str], float]:
    """Return `num_responses` responses to each prompt, in the order of the prompts.

    The second value is the fraction of them that end by themselves.
    """
    requests = [
        (i, ids, derive_seed(cfg.random_seed, "compare", i, k))
        for i, ids in enumerate(encode_prompts(tokenizer, prompts))
        for k in range(cfg.num_responses)
    ]
    mine = job.group.share(requests)
    sampling = Sampling(
        max_new_tokens=filled(cfg.max_new_tokens),
        temperature=cfg.temperature,
        batch_size=job.hardware.generation_batch_size,
    )
    player = Player("model", model, tokenizer)
    with job.progress(len(mine), "responses") as advance:
        drawn = respond(
            player, [ids for _, ids, _ in mine], [seed for _, _, seed in mine], sampling, advance
        )
    texts = job.group.gather([decode_response(tokenizer, response.ids) for response in drawn])
    ended = job.group.gather([is_ended(tokenizer, response.ids) for response in drawn])
    return texts, sum(ended) / len(ended)


def _with_strays(asked: Sequence[Asked], cfg: Compare) -> list[Asked]:
    rng = random.Random(derive_seed(cfg.random_seed, "compare", "strays"))
    groups = [each.responses for each in asked]
    return [
        Asked(row, own + [rng.choice(rng.choice(groups)) for _ in range(cfg.num_strays)])
        for row, own in asked
    ]


def _ranked(asked: Asked, judged: Judged, crew: Labelers) -> Row:
    labeler = crew.pick()
    ranks = crew.rank(judged, labeler)
    return {
        **asked.row,
        "responses": asked.responses,
        "ranks": ranks,
        "gold": judged.gold.tolist(),
        "labeler": labeler,
    }


def _shown(row: Row) -> dict[str, str]:
    best = sorted(zip(row["ranks"], row["responses"], row["gold"], strict=True))
    return {
        f"{i}.": f"rank {rank}, gold {gold:.2f}: {text}"
        for i, (rank, text, gold) in enumerate(best, 1)
    }


def _metrics(ranked: dict[str, list[Row]]) -> Metrics:
    """Return counts, ties, the mean gold score, and the agreement of the rankings with gold.

    All but the counts are of validation rows. Without any, they are of training rows, with their
    strays.
    """
    held_out = ranked["validation"] or ranked["train"]
    pairs = [agreeing_pairs(row["ranks"], [-score for score in row["gold"]]) for row in held_out]
    tied = [1 - len(set(row["ranks"])) / len(row["ranks"]) for row in held_out]
    return {
        "prompts/train": float(len(ranked["train"])),
        "prompts/validation": float(len(ranked["validation"])),
        "gold/score": float(np.mean([score for row in held_out for score in row["gold"]])),
        "labelers/gold_agreement": sum(a for a, _ in pairs) / max(sum(n for _, n in pairs), 1),
        "ties": float(np.mean(tied)),
    }
