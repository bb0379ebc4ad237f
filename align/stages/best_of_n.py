"""Score the best of n sampled responses to held-out prompts, for n = 1, 2, 4, ... up to N.

Takes: a model and prompts; a reward model that chooses, unless functions do. Optional: a held-out
reward model that judges what was chosen. The prompts' gold scorer judges, too, if they have one.
Makes: an evaluation: metrics of n = N; metrics.jsonl, a line for each n; and samples.jsonl.

For each n it gives the expected score of the chosen response by who chose and by who did not, with
95 % intervals over prompts; the KL to one sample; how often the judge prefers the best of n to one
sample; and the chosen response's length. N + 1 responses are sampled to each prompt. The scores are
of the first N, and the comparison leaves out each of the N + 1 in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from align.configs import BestOfN, filled
from align.data.records import SPLITS, Row, read_info, read_rows
from align.errors import ConfigError, HealthStop
from align.evals.best_of_n import best_weights, kl_of_best, win_rates
from align.evals.gold import gold_scorer
from align.evals.intervals import bootstrap, bounds, few, few_warning
from align.evals.players import Player, fit
from align.evals.scorers import Scorer, by_gold, by_reward_model, by_rules
from align.models.load import answer_length, context_length, load_model, load_tokenizer
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.sampling.engine import Sampling
from align.sampling.sampler import Sampler, sampler_of
from align.text.chat import encode_prompts, show_prompt, stop_strings
from align.verifiers.episodes import Episodes, make_episodes

_BATCH = 4  # responses of a batch, in units of hardware.generation_batch_size


@dataclass(frozen=True)
class Sampled:
    """What is kept of N + 1 responses to each of P prompts. Their texts are not.

    Attributes:
        scores: by each scorer, [S, P, N + 1]; NaN where a scorer does not apply.
        lengths: response tokens, [P, N + 1].
        shown: rows of the table of samples.
    """

    scores: torch.Tensor
    lengths: torch.Tensor
    shown: list[dict[str, Any]]


def run(cfg: BestOfN, inputs: Inputs, job: Job) -> Metrics:
    folder = inputs.one("model").path
    player = Player("model", load_model(folder, job.device), load_tokenizer(folder))
    length = answer_length(cfg.max_new_tokens, context_length(player.model))
    cfg = replace(cfg, max_new_tokens=length)
    rows = _rows(cfg, inputs, player, job)
    chooser, *judges = _scorers(cfg, inputs, job)
    sampled = _sample(cfg, job, player, rows, [chooser, *judges])
    applies = ~sampled.scores.isnan().any(2).any(0)  # [P]
    if not applies.any():
        raise ConfigError("reward_functions: each prompt has a response for which they gave None")
    if not applies.all():
        job.log.info(
            f"{int((~applies).sum()):,} of {len(rows):,} prompts left out: a reward function gave"
            " None for a response"
        )
    scores, lengths = sampled.scores[:, applies].numpy(), sampled.lengths[applies].numpy()
    names = [scorer.name for scorer in (chooser, *judges)]
    by_n = _by_n(cfg, names, scores, lengths)
    for n, row in zip(cfg.counts, by_n, strict=True):
        job.log.metrics(row, n)
    job.log.table("samples", sampled.shown)
    single = {f"single/{name}/score": by_n[0][f"{name}/score"] for name in names}
    metrics = {"n": float(cfg.num_responses)} | by_n[-1] | single
    metrics["prompts"] = float(applies.sum())
    if (warning := few_warning(metrics)) is not None:
        job.log.info(warning)
    return metrics


# -- prompts and scorers ---------------------------------------------------------------------------


def _rows(cfg: BestOfN, inputs: Inputs, player: Player, job: Job) -> list[Row]:
    """Return the held-out prompts that leave the model room to answer.

    Raises:
        ConfigError: there are none.
    """
    folders = inputs.folders("prompts")
    rows = list(read_rows(folders, cfg.split))[: cfg.num_prompts]
    if not rows:
        others = [s for s in SPLITS if any((f / f"{s}.parquet").is_file() for f in folders)]
        raise ConfigError(
            f"inputs.prompts: no row is in the {cfg.split} split: they are in {', '.join(others)};"
            " give split=validation, or make the prompts again with `align data ... split=test`"
        )
    fits = fit([row["prompt"] for row in rows], [player], filled(cfg.max_new_tokens))
    if not any(fits):
        raise ConfigError(
            f"inputs.prompts: no {cfg.split} prompt leaves room for {cfg.max_new_tokens} new tokens"
        )
    if not all(fits):
        job.log.info(
            f"{fits.count(False):,} of {len(rows):,} prompts left out: with {cfg.max_new_tokens}"
            " new tokens they are longer than the model's context"
        )
    return [row for row, ok in zip(rows, fits, strict=True) if ok]


def _scorers(cfg: BestOfN, inputs: Inputs, job: Job) -> list[Scorer]:
    """Return the scorer that chooses, then those that judge the choice.

    Raises:
        ConfigError: the held-out reward model is the one that chooses.
    """
    compute = job.compute(cfg.precision)
    found = []
    if "reward_model" in inputs:
        found.append(by_reward_model(inputs.one("reward_model").path, compute))
    gold = gold_scorer([read_info(folder) for folder in inputs.folders("prompts")])
    rules = [by_rules(cfg.reward_functions)] if cfg.reward_functions else []
    if not found:
        found, rules = rules, []
    if gold is not None:
        found.append(by_gold(gold))
    if "heldout_reward_model" in inputs:
        heldout = inputs.one("heldout_reward_model")
        if "reward_model" in inputs and heldout.key == inputs.one("reward_model").key:
            raise ConfigError(
                "inputs.heldout_reward_model: expected another reward model than the one that"
                " chooses, got the same"
            )
        found.append(by_reward_model(heldout.path, compute)._replace(name="heldout"))
    found += rules
    if len(found) == 1:
        job.log.info(
            f"only {found[0].name} scores the responses, and it chooses: its score rises with n"
            " whether or not the responses get better; inputs.heldout_reward_model would judge"
        )
    return found


# -- sampling --------------------------------------------------------------------------------------


def _sample(
    cfg: BestOfN, job: Job, player: Player, rows: Sequence[Row], scorers: Sequence[Scorer]
) -> Sampled:
    """Sample and score N + 1 responses to each prompt, a batch of prompts at a time.

    Only numbers are kept of a batch, so memory does not grow with the texts. A checkpoint after a
    batch holds them, so a resumed run does not sample it again.
    """
    prompts = encode_prompts(player.tokenizer, [row["prompt"] for row in rows])
    sampling = Sampling(
        max_new_tokens=filled(cfg.max_new_tokens),
        temperature=cfg.temperature,
        batch_size=job.hardware.generation_batch_size,
        stop_strings=stop_strings(player.tokenizer),
    )
    sampler = sampler_of(player.model, player.tokenizer, sampling)
    size = cfg.num_responses + 1
    per_batch = max(1, _BATCH * sampling.batch_size // size)
    job.log.info(f"{len(rows):,} prompts, {size:,} responses to each")
    sampled = Sampled(
        torch.full((len(scorers), len(rows), size), math.nan, dtype=torch.float64),
        torch.zeros(len(rows), size, dtype=torch.int64),
        [],
    )
    start = 0
    if saved := job.resume.last():
        start, state = saved
        sampled = Sampled(**state)
    for batch in job.steps(math.ceil(len(rows) / per_batch), start, unit="batches"):
        places = range(batch * per_batch, min(len(rows), (batch + 1) * per_batch))
        mine = job.group.share([(i, number) for i in places for number in range(size)])
        drawn = _draw(cfg, sampler, job, [prompts[i] for i, _ in mine], mine)
        episodes = make_episodes(
            [rows[i] for i, _ in mine], [prompts[i] for i, _ in mine], drawn, player.tokenizer
        )
        for scorer, scores in zip(scorers, sampled.scores, strict=True):
            found = job.group.gather(_scores(scorer, episodes))
            scores[places] = torch.tensor(found, dtype=torch.float64).view(-1, size)
        lengths = job.group.gather([len(ids) for ids in drawn])
        sampled.lengths[places] = torch.tensor(lengths).view(-1, size)
        texts = job.group.gather(list(episodes.texts))
        for i in range(places.start, min(places.stop, cfg.num_samples)):
            own = texts[(i - places.start) * size :][:size]
            sampled.shown.append(_shown(rows[i], own, sampled.scores[:, i], scorers))
        job.resume.save_if_due(batch + 1, lambda: vars(sampled))
    return sampled


def _draw(
    cfg: BestOfN,
    sampler: Sampler,
    job: Job,
    prompts: Sequence[list[int]],
    mine: Sequence[tuple[int, int]],
) -> list[list[int]]:
    """Return the tokens of a response to each prompt.

    Args:
        mine: for each, the place of its prompt and the number of the response.
    """
    seeds = [derive_seed(cfg.random_seed, "best_of_n", i, number) for i, number in mine]
    drawn: list[list[int]] = [[]] * len(prompts)
    for place, response in sampler.draw(prompts, seeds):
        drawn[place] = response.ids
        if job.group.world_size == 1:  # with several, the others would wait for this one
            job.resume.stop_if_asked()
    return drawn


def _scores(scorer: Scorer, episodes: Episodes) -> list[float]:
    """Return the scores of episodes, NaN where the scorer does not apply.

    Raises:
        HealthStop: a score is not finite.
    """
    scores = scorer.score(episodes) if episodes.texts else []
    for score, row in zip(scores, episodes.rows, strict=True):
        if score is not None and not math.isfinite(score):
            asked = show_prompt(row["prompt"])
            raise HealthStop(f"the {scorer.name} score of a response to {asked!r} is {score}")
    return [math.nan if score is None else score for score in scores]


def _shown(
    row: Row, texts: Sequence[str], scores: torch.Tensor, scorers: Sequence[Scorer]
) -> dict[str, Any]:
    """Return a row of the table of samples: the best of the first N responses beside the last."""
    best = int(scores[0, :-1].nan_to_num(-math.inf).argmax())
    shown: dict[str, Any] = {"prompt": show_prompt(row["prompt"])}
    for head, place in (("", best), ("single_", -1)):
        shown[f"{head}response"] = texts[place]
        for scorer, own in zip(scorers, scores, strict=True):
            score = float(own[place])
            shown[f"{head}{scorer.name}"] = None if math.isnan(score) else score
    return shown


# -- figures ---------------------------------------------------------------------------------------


def _by_n(
    cfg: BestOfN, names: Sequence[str], scores: np.ndarray, lengths: np.ndarray
) -> list[Metrics]:
    """Return the metrics of each n.

    Args:
        names: of the scorers; the first one chooses, and the second one decides who wins.
        scores: [S, P, N + 1].
        lengths: [P, N + 1].
    """
    seed = derive_seed(cfg.random_seed, "best_of_n", "bootstrap")
    proxy = scores[0]
    wins = np.array(
        [win_rates(own, judge, cfg.counts) for own, judge in zip(proxy, scores[1], strict=True)]
        if len(scores) > 1
        else []
    )
    found = []
    for place, n in enumerate(cfg.counts):
        weights = np.array([best_weights(own[:-1], n) for own in proxy])
        kl = kl_of_best(n)
        row: Metrics = {"kl": kl, "sqrt_kl": math.sqrt(kl)}
        measures = {
            f"{name}/score": (weights * own[:, :-1]).sum(1)
            for name, own in zip(names, scores, strict=True)
        }
        if len(wins):
            measures["win_rate"] = wins[:, place]
        for name, values in measures.items():
            row |= bounds(name, bootstrap(values, cfg.num_bootstrap, seed))
            row |= few(name, len(values))
        row["response_tokens"] = float((weights * lengths[:, :-1]).sum(1).mean())
        found.append(row)
    return found
