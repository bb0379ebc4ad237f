"""Tune a policy on the best of its own responses, round after round.

Each iteration samples several responses to each prompt, scores them as PPO does, keeps the best of
each prompt, and takes steps of supervised tuning on those.

Takes: a policy (the SFT model, also the frozen reference of the KL) and prompts; reward models,
unless functions score the responses. Optional: a reward model that is only logged.
Makes: a model, and samples.jsonl. With LoRA, it is an adapter on the policy's base, unless
lora.merged is true.
The policy and its optimizer go on from one iteration to the next, and responses of earlier
iterations are not used again. With `min_reward` this is expert iteration; STaR [Zelikman et al.
2022] begins each round from the first model instead.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from align.configs import Raft, filled
from align.data.records import read_info
from align.evals.gold import gold_scorer, mean_gold_score
from align.losses.ppo import equal_groups, masked_mean
from align.models.load import answer_length, load_tokenizer, precision_lines
from align.rl.advantages import response_kl
from align.rl.judging import judge, load_judges, sample_rows
from align.rl.models import Actors, load_actors
from align.rl.monitors import Health
from align.rl.responses import (
    Prompts,
    load_prompts,
    policy_sampler,
    sample_rollout,
    shared_context,
)
from align.rl.rollouts import Rollouts, Samples, packed_group, score_tokens
from align.rl.selection import best_responses
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.memory import give_back_freed_memory
from align.runtime.seeds import derive_seed
from align.store.checkpoints import restore_parameters
from align.text.packing import micro_batches
from align.training.activations import fit_activations
from align.training.loss_guard import Skips, stop_unless_skipped
from align.training.optimizers import adamw_for, clip_gradients, cosine_factor, step_all
from align.training.preflight import doubts
from align.verifiers.episodes import make_episodes

_NUM_SAMPLES = 8  # episodes of an iteration that samples.jsonl keeps


def run(cfg: Raft, inputs: Inputs, job: Job) -> Metrics:
    policy = inputs.one("policy").path
    tokenizer = load_tokenizer(policy)
    actors = load_actors(
        policy, None, cfg.lora, job.device, cfg.precision, with_reference=cfg.measure_kl
    )
    judges = load_judges(cfg, inputs, actors, tokenizer, job)
    context = shared_context(actors, judges)
    cfg = replace(cfg, max_new_tokens=answer_length(cfg.max_new_tokens, context))
    prompts = load_prompts(cfg, inputs, actors, judges, tokenizer, job)
    sampler = policy_sampler(cfg, tokenizer, job)
    _prepare(cfg, actors, prompts, job)
    tuner = Tuner(cfg, actors, job)
    gold = gold_scorer([read_info(folder) for folder in inputs.folders("prompts")])
    health = Health(
        None,
        warmup=0,
        episodes=cfg.rollout_batch_size,
        kl_advice="lower learning_rate, or give fewer iterations",
    )
    start, skips = 0, Skips()
    metrics: Metrics = {}
    if saved := job.resume.last():
        start, state = saved
        tuner.restore(state["tuner"])
        metrics, skips.in_a_row = state["metrics"], state["skips"]
    # After a resume, the health rules read the iterations before it from the log.
    for past in job.log.read_metrics() if job.group.is_main else ():
        health.look(int(past["step"]), past)

    for iteration in job.steps(cfg.num_iterations, start, unit="iterations"):
        begun = time.monotonic()
        samples = sample_rollout(cfg, actors, sampler, job, prompts, iteration)
        sampled = time.monotonic()
        episodes = make_episodes(
            [prompts.rows[i] for i in samples.ids], samples.prompts, samples.responses, tokenizer
        )
        judged = judge(cfg, judges, job, samples, episodes, iteration)
        rewards, metrics = judged.rewards, dict(judged.metrics)
        kept: list[int] = []
        if _is_finite(cfg, job, samples, rewards.total, iteration):
            kept = best_responses(
                rewards, samples.responses, cfg.group_size, cfg.num_kept, cfg.min_reward
            )
            equal = equal_groups(rewards.total, rewards.scored, cfg.group_size)
            metrics["group/equal"] = float(equal.float().mean())
        else:
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        rollouts = _rollouts(cfg, actors, job, samples, rewards.total)
        metrics |= {} if rollouts is None else _kl_metrics(rollouts)
        if cfg.keeps_samples(iteration):
            kl = None if rollouts is None else response_kl(rollouts).tolist()
            rows = sample_rows(judged, episodes, _NUM_SAMPLES, kl)
            job.log.append(
                "samples", iteration + 1, [row | {"kept": i in kept} for i, row in enumerate(rows)]
            )
        if gold is not None and job.group.is_main:
            metrics["gold/score"] = mean_gold_score(gold, episodes)
        scored = time.monotonic()
        metrics |= _kept_metrics(samples, rewards.total, kept)
        metrics |= tuner.tune(iteration, samples, kept)
        skips.count(iteration + 1, skipped=metrics["policy/steps"] == 0)
        metrics |= {
            "time/rollout": sampled - begun,
            "time/score": scored - sampled,
            "time/update": time.monotonic() - scored,
        }
        job.log.metrics(metrics, iteration + 1)
        for event in health.look(iteration + 1, metrics) if job.group.is_main else ():
            job.log.event(*event)
        job.resume.save_if_due(
            iteration + 1,
            functools.partial(_state, tuner, metrics, skips.in_a_row),
        )

    if job.group.is_main:
        actors.save(job.out, tokenizer)
    return _final_metrics(metrics) | _size(cfg, actors, job)


def _prepare(cfg: Raft, actors: Actors, prompts: Prompts, job: Job) -> None:
    """Limit the memory of the policy; log any signs that it will hardly change."""
    longest = max(map(len, prompts.encoded)) + filled(cfg.max_new_tokens)
    actors.limit_activations(
        lambda model, again: fit_activations(job, model, cfg.precision, longest, again)
    )
    most = cfg.rollout_batch_size // cfg.group_size * cfg.num_kept
    steps = cfg.num_iterations * cfg.num_epochs * math.ceil(most / cfg.minibatch_size)
    full = cfg.lora.rank is None
    with actors.policy_model() as model:
        doubtful = doubts([filled(cfg.learning_rate)] * steps, model, trains_all=full)
        for line in (*(precision_lines(model) if full else ()), *doubtful):
            job.log.info(line)


def _is_finite(
    cfg: Raft, job: Job, samples: Samples, rewards: torch.Tensor, iteration: int
) -> bool:
    """Return False if the rollout must be skipped; report the episodes that are not finite.

    Raises:
        HealthStop: `on_nonfinite` is "stop".
    """
    bad = (~torch.isfinite(rewards)).nonzero().flatten().tolist()
    if not bad:
        return True
    named = list(dict.fromkeys(samples.ids[i] for i in bad))
    message = f"iteration {iteration + 1}: a reward is not finite; episodes of prompts {named}"
    stop_unless_skipped(cfg, message)
    job.log.event(iteration + 1, "nonfinite", f"{message}; the rollout is skipped")
    return False


def _rollouts(
    cfg: Raft, actors: Actors, job: Job, samples: Samples, rewards: torch.Tensor
) -> Rollouts | None:
    """Return the log-probs of all samples under the policy and its start, for the KL.

    None if the KL is not measured.
    """
    if not cfg.measure_kl:
        return None
    mine = job.group.share(range(len(samples.ids)))
    groups = micro_batches([samples.tokens(i) for i in mine], job.max_tokens)
    layout = [[[mine[i] for i in group] for group in groups]]
    return score_tokens(cfg, actors, job, samples, rewards, layout)


# -- tuning ----------------------------------------------------------------------------------------


class Tuner:
    """An optimizer of the policy, and the steps on the kept responses of each iteration."""

    def __init__(self, cfg: Raft, actors: Actors, job: Job):
        self._cfg, self._actors, self._job = cfg, actors, job
        self._peak, self._parameters = filled(cfg.learning_rate), actors.policy_parameters
        self._optimizer = adamw_for(
            self._parameters.values(), self._peak, cfg.betas, cfg.weight_decay, cfg.adam_epsilon
        )

    def state(self) -> dict[str, Any]:
        """Return everything that a step changes."""
        return {"policy": self._parameters, "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        restore_parameters(self._parameters, state["policy"])
        self._optimizer.load_state_dict(state["optimizer"])

    def tune(self, iteration: int, samples: Samples, kept: Sequence[int]) -> Metrics:
        """Take one optimizer step per minibatch of kept responses; return means over the steps."""
        cfg, parameters = self._cfg, list(self._parameters.values())
        rate = self._peak * cosine_factor(
            iteration,
            cfg.num_iterations,
            cfg.warmup_iterations,
            cfg.final_learning_rate_fraction,
        )
        give_back_freed_memory()  # freed by sampling and scoring
        losses, norms = [], []
        for batch in self._minibatches(iteration, kept):
            self._job.resume.stop_if_asked()
            loss = self._accumulate(samples, batch)
            self._job.group.sum_gradients(parameters)
            norm = clip_gradients(parameters, cfg.max_grad_norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                step_all([self._optimizer], None)
                self._refuse(iteration, f"the loss is {loss} and the gradient's norm {norm}")
                continue
            step_all([self._optimizer], rate)
            losses.append(loss)
            norms.append(norm)
        metrics = {"policy/steps": float(len(losses)), "policy/learning_rate": rate}
        if losses:
            metrics["policy/loss"] = sum(losses) / len(losses)
            metrics["policy/grad_norm"] = sum(norms) / len(norms)
        return metrics

    def _minibatches(self, iteration: int, kept: Sequence[int]) -> Iterator[list[int]]:
        """Yield the kept responses of each step; every pass has its own order."""
        for epoch in range(self._cfg.num_epochs):
            generator = torch.Generator().manual_seed(
                derive_seed(self._cfg.random_seed, "raft", "order", iteration, epoch)
            )
            order = torch.randperm(len(kept), generator=generator).tolist()
            for start in range(0, len(order), self._cfg.minibatch_size):
                yield [kept[i] for i in order[start : start + self._cfg.minibatch_size]]

    def _accumulate(self, samples: Samples, batch: Sequence[int]) -> float:
        """Add the gradient of this process's part of the batch's loss per response token.

        Returns:
            The loss of the whole batch: the mean of -log p over its response tokens, in nats.
        """
        job = self._job
        count = sum(len(samples.responses[i]) for i in batch)
        mine = job.group.share(batch)
        total = torch.zeros((), device=job.device)
        for group in micro_batches([samples.tokens(i) for i in mine], job.max_tokens):
            packed, responses, _ = packed_group(samples, [mine[i] for i in group], job.device)
            with job.compute(self._cfg.precision).autocast():
                found = self._actors.policy_likelihoods(packed, responses, 1.0, with_entropy=False)
            loss = -found.logprobs.sum() / count
            loss.backward()
            total += loss.detach()
        job.group.all_reduce(total)
        return float(total)

    def _refuse(self, iteration: int, reason: str) -> None:
        """Report a minibatch that is skipped.

        Raises:
            HealthStop: `on_nonfinite` is "stop".
        """
        message = f"iteration {iteration + 1}: {reason}"
        stop_unless_skipped(self._cfg, message)
        self._job.log.event(iteration + 1, "nonfinite", f"{message}; the minibatch is skipped")


# -- bookkeeping -----------------------------------------------------------------------------------


def _kl_metrics(rollouts: Rollouts) -> Metrics:
    return {
        "objective/kl": float(response_kl(rollouts).mean()),
        "policy/entropy": float(masked_mean(rollouts.entropies, rollouts.samples.mask)),
    }


def _kept_metrics(samples: Samples, rewards: torch.Tensor, kept: Sequence[int]) -> Metrics:
    """Return the number of kept responses, their tokens with their prompts', and their means."""
    tokens = float(sum(map(samples.tokens, kept)))
    metrics = {"kept/responses": float(len(kept)), "kept/tokens": tokens}
    if kept:
        metrics["kept/score"] = float(rewards[list(kept)].mean())
        metrics["kept/response_tokens"] = sum(len(samples.responses[i]) for i in kept) / len(kept)
    return metrics


def _state(tuner: Tuner, metrics: Metrics, skips: int) -> dict[str, Any]:
    return {"tuner": tuner.state(), "metrics": metrics, "skips": skips}


def _final_metrics(metrics: Metrics) -> Metrics:
    """Return the last iteration's metrics that the artifact's manifest keeps."""
    parts = [name for name in metrics if name.startswith("reward/")]
    names = (
        *("objective/score", *parts, "objective/kl", "gold/score", "heldout/score"),
        *("kept/score", "response_tokens"),
    )
    return {name: metrics[name] for name in names if name in metrics}


def _size(cfg: Raft, actors: Actors, job: Job) -> Metrics:
    """Return the tokens that were trained on, and numbers of parameters."""
    log = job.log.read_metrics() if job.group.is_main else []
    return {
        "tokens": cfg.num_epochs * sum(row["kept/tokens"] for row in log),
        "parameters": actors.num_parameters(),
        "trained_parameters": float(sum(p.numel() for p in actors.policy_parameters.values())),
    }
