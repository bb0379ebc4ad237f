"""Train a policy with PPO on reward models, user functions or both, and keep it near its start.

The stages `grpo` and `rloo` are this one with other advantages, which need no value model.

Takes: a policy (the SFT model, also the frozen reference) and prompts; reward models (the value
model starts from the first), unless functions score the responses. Optional: a start for the value
model; pretraining text, whose gradient is added to the policy's in every step (PPO-ptx); and a
reward model that is only logged.
Makes: a model; in ema/, the average of its weights; and samples.jsonl. With LoRA, both are adapters
on the policy's base, unless lora.merged is true.
Departs from InstructGPT: the value model is as large as the given reward model, not 6B. `ptx_coef`
weights the mean loss per token; the paper does not say what its 27.8 weights. The average is
updated every optimizer step; the paper does not say how often.
Departs from GRPO: the KL in the loss has the gradient of the KL itself (see
`align.losses.ppo.kl_loss`), not that of its k3 estimate. With `drop_equal_groups`, no other prompts
are sampled in place of the dropped ones, as DAPO does.
Departs from RLOO: each token has its own clipped ratio. With one step per rollout all ratios are 1,
so the gradient is RLOO's, divided by `max_new_tokens`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from align.configs import Ppo, filled
from align.data.records import read_info, read_rows
from align.errors import ConfigError
from align.evals.gold import gold_scorer, mean_gold_score
from align.losses.ppo import next_kl_coef
from align.models.load import (
    answer_length,
    load_tokenizer,
    precision_lines,
    sequence_length,
)
from align.rl.advantages import Targets, estimate_advantages, response_kl
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
from align.rl.rollouts import Layout, Rollouts, lay_out, score_tokens
from align.rl.update import Learner, Plan
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.text.tokens import TextRows, encode_text
from align.training.activations import fit_activations
from align.training.loss_guard import Skips, stop_unless_skipped
from align.training.optimizers import scheduled_factor
from align.training.preflight import doubts
from align.verifiers.episodes import make_episodes

_NUM_SAMPLES = 4  # episodes of an iteration that samples.jsonl keeps


def run(cfg: Ppo, inputs: Inputs, job: Job) -> Metrics:
    policy = inputs.one("policy").path
    tokenizer = load_tokenizer(policy)
    value = _value_start(cfg, inputs, tokenizer, job) if cfg.has_value_model else None
    actors = load_actors(policy, value, cfg.lora, job.device, cfg.precision)
    judges = load_judges(cfg, inputs, actors, tokenizer, job)
    cfg = replace(
        cfg, max_new_tokens=answer_length(cfg.max_new_tokens, shared_context(actors, judges))
    )
    prompts = load_prompts(cfg, inputs, actors, judges, tokenizer, job)
    learner = _learner(cfg, actors, prompts, _text(cfg, inputs, actors, tokenizer, job), job)
    sampler = policy_sampler(cfg, tokenizer, job)
    gold = (
        gold_scorer([read_info(folder) for folder in inputs.folders("prompts")])
        if job.group.is_main
        else None
    )
    health = Health(
        cfg.kl_goal,
        filled(cfg.value_warmup_iterations),
        corrected=cfg.importance_cap is not None,
        episodes=cfg.rollout_batch_size,
    )
    start, kl_coef, skips = 0, cfg.kl_coef, Skips()
    metrics: Metrics = {}
    if saved := job.resume.last():
        start, state = saved
        learner.restore(state["learner"])
        kl_coef, metrics, skips.in_a_row = state["kl_coef"], state["metrics"], state["skips"]
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
        layouts = [lay_out(cfg, samples, job, iteration, epoch) for epoch in range(cfg.num_epochs)]
        judged = judge(cfg, judges, job, samples, episodes, iteration)
        rewards, metrics = judged.rewards, dict(judged.metrics)
        rollouts = score_tokens(cfg, actors, job, samples, rewards.total, layouts[0])
        scored = time.monotonic()
        finite = _is_finite(cfg, job, rollouts, iteration)
        if finite and cfg.keeps_samples(iteration):
            rows = sample_rows(judged, episodes, _NUM_SAMPLES, response_kl(rollouts).tolist())
            job.log.append("samples", iteration + 1, rows)
        if finite and rewards.scored.any():
            targets, found = estimate_advantages(cfg, rollouts, rewards, kl_coef)
            metrics |= found
            plan = _plan(cfg, iteration, rollouts, targets, layouts, kl_coef)
            metrics |= learner.update(plan)
            if cfg.kl_goal is not None and plan.moves_policy:
                kl = metrics["objective/kl"]
                kl_coef = next_kl_coef(
                    kl_coef, kl, cfg.kl_goal, cfg.kl_horizon, cfg.rollout_batch_size
                )
        else:
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        skips.count(iteration + 1, skipped=not finite or metrics.get("ppo/steps") == 0)
        if gold is not None:
            metrics["gold/score"] = mean_gold_score(gold, episodes)
        updated = time.monotonic()
        metrics |= {
            "time/rollout": sampled - begun,
            "time/score": scored - sampled,
            "time/update": updated - scored,
        }
        job.log.metrics(metrics, iteration + 1)
        for event in health.look(iteration + 1, metrics) if job.group.is_main else ():
            job.log.event(*event)
        job.resume.save_if_due(
            iteration + 1, functools.partial(_state, learner, kl_coef, metrics, skips.in_a_row)
        )

    _publish(cfg, actors, learner, tokenizer, job)
    return _final_metrics(metrics) | _size(cfg, actors, job)


# -- models, prompts and text ----------------------------------------------------------------------


def _value_start(cfg: Ppo, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, job: Job) -> Path:
    """Return the model that the value model starts from.

    It reads the policy's tokens, so it needs the policy's vocabulary. A reward model with another
    vocabulary is replaced by the policy.

    Raises:
        ConfigError: `inputs.value_model` has another vocabulary.
    """
    policy = inputs.one("policy").path
    slot = cfg.value_start(inputs)
    start = inputs.folders(slot)[0]
    if start == policy or load_tokenizer(start).get_vocab() == tokenizer.get_vocab():
        return start
    if slot == "value_model":
        raise ConfigError(
            "inputs.value_model: expected a model with the policy's tokenizer, whose tokens it"
            " values"
        )
    job.log.info(
        "the reward model has a tokenizer of its own, so the value model starts from the policy"
    )
    return policy


def _learner(
    cfg: Ppo, actors: Actors, prompts: Prompts, text: TextRows | None, job: Job
) -> Learner:
    """Limit the memory of the models that train, and return their learner.

    Log any signs that the models will hardly change.
    """
    longest = max(map(len, prompts.encoded)) + filled(cfg.max_new_tokens)
    if text is not None:
        longest = max(longest, text.length)
    actors.limit_activations(
        lambda model, again: fit_activations(job, model, cfg.precision, longest, again)
    )
    iterations = cfg.num_iterations - filled(cfg.value_warmup_iterations)
    steps = iterations * cfg.num_epochs * (cfg.rollout_batch_size // cfg.minibatch_size)
    full = cfg.lora.rank is None
    with actors.policy_model() as policy:
        doubtful = doubts([filled(cfg.learning_rate)] * steps, policy, trains_all=full)
        for line in (*(precision_lines(policy) if full else ()), *doubtful):
            job.log.info(line)
    return Learner(cfg, actors, job, text)


def _text(
    cfg: Ppo, inputs: Inputs, actors: Actors, tokenizer: PreTrainedTokenizerBase, job: Job
) -> TextRows | None:
    if cfg.ptx_coef == 0:
        if "text" in inputs:
            job.log.info("inputs.text is not read: ptx_coef is 0")
        return None
    texts = (row["text"] for row in read_rows(inputs.folders("text"), "train"))
    with actors.policy_model() as policy:
        length = sequence_length(cfg.ptx_length, policy, "ptx_length")
    rows = encode_text(texts, tokenizer, length)
    if not len(rows):
        raise ConfigError(
            f"inputs.text: its training split does not fill one row of {length} tokens; give"
            " ptx_length"
        )
    return rows


# -- rollout ---------------------------------------------------------------------------------------


def _is_finite(cfg: Ppo, job: Job, rollouts: Rollouts, iteration: int) -> bool:
    """Return False if the rollout must be skipped; report the episodes that are not finite.

    Raises:
        HealthStop: `on_nonfinite` is "stop".
    """
    bad = ~torch.isfinite(rollouts.rewards)
    for part in (
        rollouts.logprobs,
        rollouts.ref_logprobs,
        rollouts.values,
        rollouts.samples.sampled_logprobs,
    ):
        bad |= ~torch.isfinite(part).all(1)
    if not bad.any():
        return True
    named = list(dict.fromkeys(rollouts.samples.ids[i] for i in bad.nonzero().flatten().tolist()))
    message = (
        f"iteration {iteration + 1}: a score, value or log-prob is not finite; episodes of prompts"
        f" {named}"
    )
    stop_unless_skipped(cfg, message)
    job.log.event(iteration + 1, "nonfinite", f"{message}; the rollout is skipped")
    return False


def _plan(
    cfg: Ppo,
    iteration: int,
    rollouts: Rollouts,
    targets: Targets,
    layouts: Sequence[Layout],
    kl_coef: float,
) -> Plan:
    """Choose the learning rates and which models to train."""

    def rate(passed: int) -> float:
        """Return a model's fraction of the peak learning rate.

        The model is not trained in the first `passed` iterations.
        """
        at, of = iteration - passed, cfg.num_iterations - passed
        return scheduled_factor(
            cfg.schedule, at, of, cfg.warmup_iterations, cfg.final_learning_rate_fraction
        )

    warmup = filled(cfg.value_warmup_iterations)
    warm = iteration >= warmup
    return Plan(
        iteration,
        rollouts,
        targets,
        layouts,
        kl_coef,
        policy_rate=rate(warmup) if warm else 0.0,
        value_rate=rate(0),
        moves_policy=warm,
        moves_value=cfg.has_value_model and (not warm or cfg.update == "joint"),
    )


# -- bookkeeping -----------------------------------------------------------------------------------


def _state(learner: Learner, kl_coef: float, metrics: Metrics, skips: int) -> dict[str, Any]:
    return {"learner": learner.state(), "kl_coef": kl_coef, "metrics": metrics, "skips": skips}


def _final_metrics(metrics: Metrics) -> Metrics:
    """Return the last iteration's metrics that the artifact's manifest keeps."""
    parts = [name for name in metrics if name.startswith("reward/")]
    names = (
        "objective/score",
        *parts,
        "objective/kl",
        "gold/score",
        "heldout/score",
        "value/explained_variance",
    )
    return {name: metrics[name] for name in (*names, "response_tokens") if name in metrics}


def _size(cfg: Ppo, actors: Actors, job: Job) -> Metrics:
    """Return the tokens of all rollouts, times the epochs over them, and numbers of parameters.

    These are the parameters of both models together, and those that are trained.
    """
    tokens = (
        cfg.num_epochs * sum(row.get("tokens", 0.0) for row in job.log.read_metrics())
        if job.group.is_main
        else 0.0
    )
    learning = (*actors.policy_parameters.values(), *actors.value_parameters.values())
    num_trained = float(sum(p.numel() for p in learning))
    return {
        "tokens": tokens,
        "parameters": actors.num_parameters(),
        "trained_parameters": num_trained,
    }


def _publish(
    cfg: Ppo, actors: Actors, learner: Learner, tokenizer: PreTrainedTokenizerBase, job: Job
) -> None:
    if not job.group.is_main:
        return
    actors.save(job.out, tokenizer)
    if cfg.ema_decay is not None:
        learner.use_average()
        actors.save(job.out / "ema", tokenizer)
