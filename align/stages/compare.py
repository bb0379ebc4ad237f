"""Sample several responses to each prompt and have simulated labelers rank them.

Takes: a model, and prompts that a gold scorer can judge.
Makes: comparisons: prompt, responses, ranks and gold scores. The ranks follow the gold scores with
noise.
Departs from InstructGPT: the labelers are simulated. A training ranking may also hold strays, which
are responses to other prompts. A reward model that never sees a stray cannot tell that an answer
misses the question, and PPO exploits that.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.configs import Compare, filled
from align.data.records import Row, read_info, read_rows, write_info, write_rows
from align.errors import ConfigError
from align.evals.gold import gold_scorer
from align.evals.players import Player, respond
from align.labelling.simulated import Judged, Labelers, agreeing_pairs, judge
from align.models.load import answer_length, context_length, load_model, load_tokenizer
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.sampling.engine import Sampling
from align.text.chat import decode_response, encode_prompts

_CALIBRATION_PROMPTS = 400  # training prompts that set the labelers' noise


def run(cfg: Compare, inputs: Inputs, job: Job) -> Metrics:
    folders = inputs.folders("prompts")
    infos = [read_info(folder) for folder in folders]
    scorer = gold_scorer(infos) if cfg.num_labelers else None
    if scorer is None and cfg.num_labelers:
        raise ConfigError(cfg.need_of_gold(inputs))
    limits = {
        "train": (cfg.skip_prompts, cfg.num_prompts),
        "validation": (0, cfg.num_validation_prompts),
    }
    folder = inputs.one("model").path
    model, tokenizer = load_model(folder, job.device), load_tokenizer(folder)
    context = context_length(model)
    max_new_tokens = answer_length(cfg.max_new_tokens, context)
    cfg = replace(cfg, max_new_tokens=max_new_tokens)
    room = context - max_new_tokens
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
            f" room for {max_new_tokens} new tokens"
        )
    responses = _sample(
        cfg, job, model, tokenizer, [row["prompt"] for split in rows for row in rows[split]]
    )
    if not job.group.is_main:
        return {}
    if scorer is None:
        return _write_candidates(cfg, job, rows, responses, infos[0])

    crew = Labelers(
        cfg.num_labelers,
        cfg.tie_width,
        np.random.default_rng(derive_seed(cfg.random_seed, "labelers")),
    )
    ranked: dict[str, list[Row]] = {}
    for split, prompts in rows.items():
        groups = [
            responses[i * cfg.num_responses : (i + 1) * cfg.num_responses]
            for i in range(len(prompts))
        ]
        responses = responses[len(prompts) * cfg.num_responses :]
        if split == "train":
            groups = _with_strays(groups, cfg)
        judged = [
            judge(group, [scorer(row["prompt"], text).overall for text in group])
            for row, group in zip(prompts, groups, strict=True)
        ]
        if split == "train":
            agreement = crew.calibrate(judged[:_CALIBRATION_PROMPTS], cfg.agreement)
        ranked[split] = [
            _ranked(row, g, j, crew) for row, g, j in zip(prompts, groups, judged, strict=True)
        ]
        write_rows(job.out, split, ranked[split], record="comparisons")
    write_info(
        job.out,
        record="comparisons",
        source="compare",
        licence="generated",
        dropped={},
        gold=infos[0]["gold"],
    )
    job.log.table(
        "samples",
        [{"prompt": r["prompt"][-1]["content"], **_shown(r)} for r in ranked["train"][:20]],
    )
    return _metrics(ranked) | {"labelers/agreement": agreement, "labelers/noise": crew.noise}


def _write_candidates(
    cfg: Compare, job: Job, rows: dict[str, list[Row]], responses: list[str], info: dict[str, Any]
) -> Metrics:
    """Write prompts with their responses, for people to rank."""
    count, metrics = cfg.num_responses, {}
    for split, prompts in rows.items():
        made = [
            {**row, "responses": responses[i * count : (i + 1) * count]}
            for i, row in enumerate(prompts)
        ]
        responses = responses[len(prompts) * count :]
        write_rows(job.out, split, made, record="candidates")
        metrics[f"prompts/{split}"] = float(len(made))
    write_info(
        job.out,
        record="candidates",
        source="compare",
        licence=info["licence"],
        dropped={},
        gold=info.get("gold"),
    )
    return metrics


def _sample(
    cfg: Compare,
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[dict[str, str]]],
) -> list[str]:
    """Return `num_responses` responses to each prompt, in the order of the prompts."""
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
    return job.group.gather([decode_response(tokenizer, response.ids) for response in drawn])


def _with_strays(groups: list[list[str]], cfg: Compare) -> list[list[str]]:
    rng = random.Random(derive_seed(cfg.random_seed, "compare", "strays"))
    return [
        group + [rng.choice(rng.choice(groups)) for _ in range(cfg.num_strays)] for group in groups
    ]


def _ranked(row: Row, responses: list[str], judged: Judged, crew: Labelers) -> Row:
    labeler = crew.pick()
    ranks = crew.rank(judged, labeler)
    return {
        **row,
        "responses": responses,
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
