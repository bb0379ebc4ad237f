"""Score a rollout: combine reward models and the user's functions into one reward per response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase, TrainerState

from align.configs.rollouts import RolloutConfig
from align.evals.variety import distinct_share, repeated_share
from align.losses.ppo import correlation
from align.models.load import context_of, load_tokenizer
from align.rl.models import Actors
from align.rl.rewards import Rewards, RewardTerms
from align.rl.rollouts import Samples
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.text.chat import read_alike, show_prompt, stop_ids, stop_strings
from align.verifiers.episodes import Episodes
from align.verifiers.functions import Notes, RewardFunction, call_functions, load_functions
from align.verifiers.reward_models import RewardModel


@dataclass(frozen=True)
class Judges:
    """The reward models and functions that score responses."""

    models: list[RewardModel]
    functions: list[RewardFunction]
    heldout: RewardModel | None  # logged only, never trained on

    @property
    def readers(self) -> list[RewardModel]:
        """All reward models, including the held-out one."""
        return [*self.models, *([self.heldout] if self.heldout is not None else [])]


class Judged(NamedTuple):
    """The rewards of a rollout's responses, with their metrics."""

    rewards: Rewards
    metrics: Metrics
    columns: list[dict[str, Any]]  # what functions logged per episode, for the samples table


def load_judges(
    cfg: RolloutConfig, inputs: Inputs, actors: Actors, tokenizer: PreTrainedTokenizerBase, job: Job
) -> Judges:
    def model(slot: str, place: int) -> RewardModel:
        folder = inputs.folders(slot)[place]
        own: PreTrainedTokenizerBase | None = load_tokenizer(folder)
        if stop_strings(tokenizer):
            job.log.info(
                f"{slot} {place + 1} reads responses up to their stop strings: they are tokenized"
                " again for it"
            )
        elif read_alike(own, tokenizer):
            own = None  # it reads the policy's own tokens
        else:
            job.log.info(
                f"{slot} {place + 1} has another tokenizer or chat template: responses are"
                " tokenized again for it"
            )
        limit = context_of(AutoConfig.from_pretrained(folder))
        ends = stop_ids(tokenizer)
        return RewardModel(f"{slot}_{place}", actors.reward_model(folder), own, limit, ends)

    return Judges(
        models=[
            model("reward_model", place) for place in range(len(inputs.get("reward_model", ())))
        ],
        functions=load_functions(list(cfg.reward_functions)),
        heldout=model("heldout_reward_model", 0) if "heldout_reward_model" in inputs else None,
    )


def judge(
    cfg: RolloutConfig,
    judges: Judges,
    job: Job,
    samples: Samples,
    episodes: Episodes,
    iteration: int,
) -> Judged:
    """Score every response, with the work shared over all processes.

    The held-out reward model only adds a metric.
    """
    everyone = torch.arange(len(samples.ids))
    mine = job.group.share(everyone.tolist())
    share = Episodes(*([part[i] for i in mine] for part in episodes))

    def score(model: RewardModel) -> torch.Tensor:
        scores = torch.zeros(len(samples.ids), device=job.device)
        if mine:
            scores[mine] = model(share, job.compute(cfg.precision))
        job.group.all_reduce(scores)  # each process filled in its own part; the rest is 0
        return scores

    notes = Notes(len(mine))
    answers: dict[str, list[float | None]] = {function.name: [] for function in judges.functions}
    if mine:
        state = TrainerState(global_step=iteration, max_steps=cfg.num_iterations)
        answers = call_functions(
            judges.functions, share, state, notes, f" at iteration {iteration + 1}"
        )
    rules: dict[str, torch.Tensor] = {}
    for name, own in answers.items():
        numbers = [math.nan if number is None else number for number in job.group.gather(own)]
        rules[name] = torch.tensor(numbers, device=job.device)
    scores = torch.zeros(len(judges.models), len(samples.ids), device=job.device)
    for place, model in enumerate(judges.models):
        scores[place] = score(model)
    terms = RewardTerms(
        cfg.reward_model_weights,
        cfg.ensemble_std_coef,
        {function.name: cfg.reward_functions[function.reference] for function in judges.functions},
        cfg.length_coef,
        cfg.missing_eos_penalty,
        cfg.missing_eos_reward,
        cfg.reward_clip,
    )
    lengths = samples.mask.sum(1)
    rewards = terms.combine(scores, rules, lengths, samples.ended)
    metrics = (
        _reward_metrics(rewards, lengths)
        | _length_metrics(samples)
        | _deviations(scores, rules, terms.functions)
    )
    if judges.heldout is not None:
        metrics["heldout/score"] = float(score(judges.heldout).mean())
    logged: dict[str, list[float]] = {}
    for name, values in job.group.gather(list(notes.metrics.items()), even=False):
        logged.setdefault(name, []).extend(values)
    metrics |= {f"functions/{name}": sum(values) / len(values) for name, values in logged.items()}
    columns = job.group.gather(
        [{name: values[i] for name, values in notes.columns.items()} for i in range(len(mine))]
    )
    return Judged(rewards, metrics, columns)


def _reward_metrics(rewards: Rewards, lengths: torch.Tensor) -> Metrics:
    """Return means over the rollout: the whole reward before the KL, and each part of it.

    The mean of a part is over the episodes that the part applies to.
    """
    metrics: Metrics = {}
    scored = rewards.scored
    if scored.any():
        total = rewards.total[scored]
        metrics["objective/score"] = float(total.mean())
        metrics["objective/score_length_correlation"] = float(
            correlation(total, lengths[scored].float())
        )
    for name, part in rewards.parts.items():
        applies = ~torch.isnan(part)
        if applies.any():
            metrics[f"reward/{name}"] = float(part[applies].mean())
        if not applies.all():
            metrics[f"applies/{name}"] = float(applies.float().mean())
    if not scored.all():
        metrics["unscored"] = float((~scored).float().mean())
    return metrics


def _deviations(
    scores: torch.Tensor, rules: dict[str, torch.Tensor], weights: dict[str, float]
) -> Metrics:
    """Return the largest standard deviation of scores over the rollout's responses.

    There is one for the reward models and one for the functions with a weight. `Health.flat_reward`
    reads both.
    """
    metrics: Metrics = {}
    if len(scores):
        metrics["deviation/model"] = float(scores.std(1, correction=0).max())
    applied = [
        rules[name][~torch.isnan(rules[name])] for name, weight in weights.items() if weight != 0
    ]
    if found := [float(part.std(correction=0)) for part in applied if len(part)]:
        metrics["deviation/functions"] = max(found)
    return metrics


def _length_metrics(samples: Samples) -> Metrics:
    return {
        "response_tokens": float(samples.mask.sum(1).float().mean()),
        "tokens": float(sum(map(samples.tokens, range(len(samples.ids))))),
        "response/ended": float(samples.ended.float().mean()),
        "response/repeated": repeated_share(samples.responses),
        "response/distinct": distinct_share(samples.responses),
    }


def sample_rows(
    judged: Judged, episodes: Episodes, count: int, kl: Sequence[float] | None
) -> list[dict[str, Any]]:
    """Return the first `count` episodes of a rollout with their scores, for the table of samples.

    Prompts are in random order, so the first are as good as any.

    Args:
        kl: nats per response, of each episode; None if it is not measured.
    """
    rewards = judged.rewards
    rows = []
    for i in range(min(count, len(episodes.texts))):
        row = {
            "prompt": show_prompt(episodes.rows[i]["prompt"]),
            "response": episodes.texts[i],
            "score": float(rewards.total[i]) if rewards.scored[i] else None,
        }
        if kl is not None:
            row["kl"] = kl[i]
        for name, part in rewards.parts.items():
            value = float(part[i])
            row[f"reward/{name}"] = None if math.isnan(value) else value
        rows.append(row | judged.columns[i])
    return rows
