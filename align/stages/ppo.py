"""Tune a policy against reward models with PPO, held near where it started.

Takes: a policy (the SFT model, also the frozen reference), one or several reward models (the first also the value
model's start) and prompts; optionally pretraining text, whose gradient joins the policy's in every step (PPO-ptx), and
a reward model that is only watched.
Makes: a model, and in ema/ the average of its weights. With LoRA both are adapters on the policy's base.
Departs from InstructGPT: the value model is as large as the reward model given, not 6B; `ptx_coef` weighs the mean loss
a token, where the paper does not say what its 27.8 weighs; the average is taken every optimizer step, which it does not
say either.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from align.configs import Ppo
from align.data.records import Row, read_info, read_rows
from align.errors import ConfigError, HealthStop
from align.evals.gold import gold_scorer
from align.functions import load_function
from align.health import Health
from align.job import Inputs, Job, Metrics
from align.learner import Learner, Plan
from align.losses.ppo import (
    Advantages,
    correlation,
    explained_variance,
    gae,
    masked_mean,
    next_kl_coef,
    normalize,
    rescale,
    token_rewards,
)
from align.models.actors import Actors, load_actors
from align.models.load import context_length, context_of, load_tokenizer, precision_lines
from align.optimizers import scheduled_factor
from align.rollout.collect import Layout, Rollouts, Samples, make_samples, packed_group, padded
from align.rollout.engine import Engine, LocalEngine, Sampling
from align.rollout.rewards import (
    Episodes,
    RewardFunction,
    RewardModel,
    Rewards,
    RewardTerms,
    call_function,
    make_episodes,
)
from align.seeds import derive_seed
from align.text.chat import encode_prompts, read_alike, stop_ids
from align.text.packing import micro_batches
from align.text.tokens import TextRows, encode_text


@dataclass(frozen=True)
class Prompts:
    """What there is to train on, as rows and as tokens."""

    rows: list[Row]
    encoded: list[list[int]]


@dataclass(frozen=True)
class Judges:
    """Whatever says what a response is worth."""

    models: list[RewardModel]
    functions: dict[str, RewardFunction]
    heldout: RewardModel | None  # watched, never learned from


def run(cfg: Ppo, inputs: Inputs, job: Job) -> Metrics:
    policy, reward_models = inputs.one("policy").path, inputs.folders("reward_model")
    tokenizer = load_tokenizer(policy)
    actors = load_actors(policy, _value_start(cfg, policy, reward_models[0], tokenizer, job), cfg.lora, job.device)
    _say_precision(actors, job)
    judges = _judges(cfg, inputs, actors, tokenizer, job)
    prompts = _prompts(cfg, inputs, actors, judges, tokenizer, job)
    learner = Learner(cfg, actors, job, _text(cfg, inputs, actors, tokenizer))
    engine: Engine = LocalEngine(cfg.sampling_precision, stop_ids(tokenizer), tokenizer.pad_token_id)
    gold = gold_scorer([read_info(folder) for folder in inputs.folders("prompts")]) if job.is_main else None
    health = Health(cfg.kl_goal, cfg.value_warmup_iterations, corrected=cfg.importance_cap is not None)
    start, kl_coef = 0, cfg.kl_coef
    metrics: Metrics = {}
    if saved := job.resume():
        start, state = saved
        learner.restore(state["learner"])
        kl_coef, metrics = state["kl_coef"], state["metrics"]
    job.cut_events(start)
    for past in job.logged() if job.is_main else ():
        health.look(int(past["step"]), past)

    for iteration in job.steps(cfg.num_iterations, start, unit="iterations"):
        begun = time.monotonic()
        chosen = _choose(iteration, cfg.rollout_batch_size, len(prompts.rows), cfg.seed or 0)
        samples = _sample(cfg, actors, engine, tokenizer, job, prompts, iteration, chosen)
        sampled = time.monotonic()
        episodes = make_episodes([prompts.rows[i] for i in chosen], samples.prompts, samples.responses, tokenizer)
        layouts = [_layout(cfg, samples, job, iteration, epoch) for epoch in range(cfg.num_epochs)]
        rewards, metrics = _judge(cfg, judges, job, samples, episodes)
        rollouts = _score(cfg, actors, job, samples, rewards.total, layouts[0])
        scored = time.monotonic()
        if _is_finite(cfg, job, rollouts, iteration):
            advantages, found = _advantages(cfg, rollouts, rewards, kl_coef)
            metrics |= found
            plan = _plan(cfg, iteration, rollouts, advantages, layouts, kl_coef)
            metrics |= learner.update(plan)
            if cfg.kl_goal is not None and plan.moves_policy:
                kl = metrics["objective/kl"]
                kl_coef = next_kl_coef(kl_coef, kl, cfg.kl_goal, cfg.kl_horizon, cfg.rollout_batch_size)
        else:
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if gold is not None:
            scores = [
                gold(row["prompt"], text).overall for row, text in zip(episodes.rows, episodes.texts, strict=True)
            ]
            metrics["gold/score"] = sum(scores) / len(scores)
        updated = time.monotonic()
        metrics |= {"time/rollout": sampled - begun, "time/score": scored - sampled, "time/update": updated - scored}
        job.log(metrics, iteration + 1)
        for event in health.look(iteration + 1, metrics) if job.is_main else ():
            job.event(*event)
        job.boundary(iteration + 1, functools.partial(_state, learner, kl_coef, metrics))

    _publish(cfg, actors, learner, tokenizer, job)
    kept = ("objective/kl", "objective/score", "gold/score", "heldout/score", "value/explained_variance")
    kept_metrics = {name: metrics[name] for name in (*kept, "response_tokens") if name in metrics}
    return kept_metrics | _size(cfg, actors, job)


# -- what PPO starts from ----------------------------------------------------------------------------------------


def _value_start(cfg: Ppo, policy: Path, reward_model: Path, tokenizer: PreTrainedTokenizerBase, job: Job) -> Path:
    """The model that the value model starts from: it reads the policy's tokens, so it needs the policy's vocabulary."""
    if cfg.value_from == "policy":
        return policy
    if load_tokenizer(reward_model).get_vocab() == tokenizer.get_vocab():
        return reward_model
    job.info("the reward model has a tokenizer of its own, so the value model starts from the policy")
    return policy


def _say_precision(actors: Actors, job: Job) -> None:
    with actors.policy_model() as model:
        for line in precision_lines(model):
            job.info(line)


def _judges(cfg: Ppo, inputs: Inputs, actors: Actors, tokenizer: PreTrainedTokenizerBase, job: Job) -> Judges:
    def model(slot: str, place: int) -> RewardModel:
        folder = inputs.folders(slot)[place]
        own: PreTrainedTokenizerBase | None = load_tokenizer(folder)
        if read_alike(own, tokenizer):
            own = None
        else:
            job.info(f"{slot} {place + 1} has another tokenizer or chat template: responses are tokenized again for it")
        limit = context_of(AutoConfig.from_pretrained(folder))
        ends = stop_ids(tokenizer)
        return RewardModel(f"{slot}_{place}", actors.reward_model(folder), own, limit, ends)

    return Judges(
        models=[model("reward_model", place) for place in range(len(inputs["reward_model"]))],
        functions={name: load_function(name) for name in cfg.reward_functions},
        heldout=model("heldout_reward_model", 0) if "heldout_reward_model" in inputs else None,
    )


def _prompts(
    cfg: Ppo, inputs: Inputs, actors: Actors, judges: Judges, tokenizer: PreTrainedTokenizerBase, job: Job
) -> Prompts:
    """Training prompts that leave room for a response in the contexts of the policy and of every reward model."""
    rows = list(read_rows(inputs.folders("prompts"), "train"))
    asked = [row["prompt"] for row in rows]
    encoded = encode_prompts(tokenizer, asked, "inputs.prompts: train row")
    readers = [model for model in (*judges.models, judges.heldout) if model is not None]
    with actors.policy_model() as policy:
        context = min([context_length(policy), *(model.context for model in readers if model.tokenizer is None)])
    room = context - cfg.max_new_tokens
    if room <= 0:
        raise ConfigError(f"max_new_tokens: expected less than the context of {context} tokens")
    fitting = [i for i, ids in enumerate(encoded) if len(ids) <= room]
    if len(fitting) < len(rows):
        job.info(f"{len(rows) - len(fitting)} prompts are longer than {room} tokens and left out")
    for model in readers:
        if model.tokenizer is not None:  # also so that a prompt it does not take is named now, not in some rollout
            theirs = encode_prompts(model.tokenizer, asked, f"inputs.prompts: for {model.name}, train row")
            left = [i for i in fitting if len(theirs[i]) + cfg.max_new_tokens <= model.context]
            if len(left) < len(fitting):
                job.info(f"{len(fitting) - len(left)} prompts are too long for {model.name} and left out")
            fitting = left
    if len(fitting) < cfg.rollout_batch_size:
        raise ConfigError(f"inputs.prompts: {len(fitting)} prompts do not fill a rollout of {cfg.rollout_batch_size}")
    return Prompts([rows[i] for i in fitting], [encoded[i] for i in fitting])


def _text(cfg: Ppo, inputs: Inputs, actors: Actors, tokenizer: PreTrainedTokenizerBase) -> TextRows | None:
    if cfg.ptx_coef == 0:
        return None
    texts = (row["text"] for row in read_rows(inputs.folders("text"), "train"))
    with actors.policy_model() as policy:
        length = min(cfg.ptx_length or context_length(policy), context_length(policy))
    rows = encode_text(texts, tokenizer, length)
    if not len(rows):
        raise ConfigError(f"inputs.text: its training split does not fill one row of {length} tokens; give ptx_length")
    return rows


def _choose(iteration: int, count: int, num_prompts: int, seed: int) -> list[int]:
    """Prompts in an order of each pass's own, none twice in a pass; what does not fill a rollout waits for another."""
    epoch, place = divmod(iteration, num_prompts // count)
    generator = torch.Generator().manual_seed(derive_seed(seed, "ppo", "prompts", epoch))
    return torch.randperm(num_prompts, generator=generator)[place * count : (place + 1) * count].tolist()


# -- rollout -----------------------------------------------------------------------------------------------------


def _sample(
    cfg: Ppo,
    actors: Actors,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    job: Job,
    prompts: Prompts,
    iteration: int,
    chosen: list[int],
) -> Samples:
    """A response to each prompt; its seed is the run's, the iteration's and the prompt's, so that it is no state."""
    mine = job.share(chosen)
    sampling = Sampling(
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        batch_size=job.hardware.generation_batch_size,
    )
    seeds = [derive_seed(cfg.seed or 0, "ppo", iteration, i) for i in mine]
    drawn: list[tuple[list[int], list[float]]] = [([], [])] * len(mine)
    with actors.policy_model() as policy:
        engine.load(policy)
        for place, response in engine.generate([prompts.encoded[i] for i in mine], seeds, sampling):
            drawn[place] = (response.ids, response.logprobs)
            if job.world_size == 1:  # the others would wait for this one
                job.stop_if_asked()
    drawn = job.gather(drawn)
    responses, logprobs = [ids for ids, _ in drawn], [row for _, row in drawn]
    encoded = [prompts.encoded[i] for i in chosen]
    return make_samples(chosen, encoded, responses, logprobs, stop_ids(tokenizer), job.device)


def _layout(cfg: Ppo, samples: Samples, job: Job, iteration: int, epoch: int) -> Layout:
    """This process's share of each minibatch of one pass over the rollout, in micro-batches by tokens."""
    generator = torch.Generator().manual_seed(derive_seed(cfg.seed or 0, "ppo", "order", iteration, epoch))
    order = torch.randperm(cfg.rollout_batch_size, generator=generator).tolist()
    layout = []
    for start in range(0, len(order), cfg.minibatch_size):
        mine = job.share(order[start : start + cfg.minibatch_size])
        lengths = [samples.tokens(i) for i in mine]
        groups = micro_batches(lengths, job.hardware.micro_batch_tokens)
        layout.append([[mine[i] for i in group] for group in groups])
    return layout


def _judge(cfg: Ppo, judges: Judges, job: Job, samples: Samples, episodes: Episodes) -> tuple[Rewards, Metrics]:
    """What each response is worth, over all processes, and what a model that is only watched says."""
    everyone = torch.arange(len(samples.ids))
    mine = job.share(everyone.tolist())
    share = Episodes(*([part[i] for i in mine] for part in episodes))

    def score(model: RewardModel) -> torch.Tensor:
        scores = torch.zeros(len(samples.ids), device=job.device)
        if mine:
            max_tokens = job.hardware.micro_batch_tokens
            scores[mine] = model(share, job.device, max_tokens, lambda: job.autocast(cfg.precision))
        job.all_reduce(scores)  # each was filled in by one process and is 0 in the others
        return scores

    rules = {
        name: torch.tensor(job.gather(call_function(name, function, share) if mine else []), device=job.device)
        for name, function in judges.functions.items()
    }
    terms = RewardTerms(
        cfg.ensemble_std_coef,
        cfg.reward_functions,
        cfg.length_coef,
        cfg.missing_eos_penalty,
        cfg.missing_eos_reward,
        cfg.reward_clip,
    )
    lengths = samples.mask.sum(1)
    rewards = terms.combine(torch.stack([score(model) for model in judges.models]), rules, lengths, samples.ended)
    metrics = {f"reward/{name}": float(part.mean()) for name, part in rewards.parts.items()}
    if judges.heldout is not None:
        metrics["heldout/score"] = float(score(judges.heldout).mean())
    metrics["objective/score"] = metrics["reward/model"]
    metrics["objective/score_length_correlation"] = float(correlation(rewards.parts["model"], lengths.float()))
    return rewards, metrics


@torch.no_grad()
def _score(cfg: Ppo, actors: Actors, job: Job, samples: Samples, rewards: torch.Tensor, layout: Layout) -> Rollouts:
    """Log-probs and values of the samples, by the very passes that the first update will make over them."""
    logprobs, ref_logprobs, values, entropies = (torch.zeros(samples.mask.shape, device=job.device) for _ in range(4))
    for minibatch in layout:
        job.stop_if_asked()
        for group in minibatch:
            packed, responses, mask = packed_group(samples, group, job.device)
            with job.autocast(cfg.precision):
                new, entropy = actors.policy_likelihoods(packed, responses, cfg.temperature, with_entropy=True)
                ref = actors.ref_logprobs(packed, responses, cfg.temperature)
                value = actors.values(packed, responses)
            logprobs[group], ref_logprobs[group] = padded(new, mask), padded(ref, mask)
            values[group], entropies[group] = padded(value, mask), padded(entropy, mask)
    for part in (logprobs, ref_logprobs, values, entropies):
        job.all_reduce(part)
    return Rollouts(samples, logprobs, ref_logprobs, values, entropies, rewards)


def _is_finite(cfg: Ppo, job: Job, rollouts: Rollouts, iteration: int) -> bool:
    """False where a rollout is to be skipped; the episodes that are not finite are named."""
    bad = ~torch.isfinite(rollouts.rewards)
    for part in (rollouts.logprobs, rollouts.ref_logprobs, rollouts.values, rollouts.samples.sampled_logprobs):
        bad |= ~torch.isfinite(part).all(1)
    if not bad.any():
        return True
    named = [rollouts.samples.ids[i] for i in bad.nonzero().squeeze(1).tolist()]
    message = f"iteration {iteration}: a score, value or log-prob is not finite; episodes of prompts {named}"
    if cfg.on_nonfinite == "stop":
        raise HealthStop(f"{message}; lower learning_rate, or give on_nonfinite=skip")
    job.event(iteration + 1, "nonfinite", f"{message}; the rollout is skipped")
    return False


def _advantages(cfg: Ppo, rollouts: Rollouts, rewards: Rewards, kl_coef: float) -> tuple[Advantages, Metrics]:
    """Token rewards and advantages over the whole rollout, and what they say of it."""
    samples, mask = rollouts.samples, rollouts.samples.mask
    in_reward = kl_coef if cfg.kl_form == "reward" else 0.0
    per_token = token_rewards(rewards.total, rollouts.logprobs, rollouts.ref_logprobs, mask, in_reward)
    if cfg.whiten_rewards:
        per_token = rescale(per_token, mask)
    advantages, returns = gae(per_token, rollouts.values, mask, cfg.gamma, cfg.gae_lambda)
    kl = torch.where(mask, rollouts.logprobs - rollouts.ref_logprobs, 0.0).sum(1)
    gap = rollouts.logprobs - samples.sampled_logprobs
    metrics = {
        "objective/kl": float(kl.mean()),
        "objective/reward": float((rewards.total - kl_coef * kl).mean()),
        "objective/kl_coef": kl_coef,
        "policy/entropy": float(masked_mean(rollouts.entropies, mask)),
        "policy/sampling_gap": float(masked_mean(gap.abs(), mask)),
        "policy/sampling_kl": float(masked_mean(gap.exp() - 1 - gap, mask)),
        "value/explained_variance": float(explained_variance(rollouts.values, returns, mask)),
        "response_tokens": float(mask.sum(1).float().mean()),
        "tokens": float(sum(map(samples.tokens, range(len(samples.ids))))),
        "response/ended": float(samples.ended.float().mean()),
    }
    return Advantages(normalize(advantages, mask) if cfg.normalize_advantages else advantages, returns), metrics


def _plan(
    cfg: Ppo, iteration: int, rollouts: Rollouts, advantages: Advantages, layouts: Sequence[Layout], kl_coef: float
) -> Plan:
    """What an iteration's update is to do: at which rates, and with which of the two models."""

    def rate(passed: int) -> float:
        """Of the peak, for a model that is not trained in the first `passed` iterations."""
        at, of = iteration - passed, cfg.num_iterations - passed
        return scheduled_factor(cfg.schedule, at, of, cfg.warmup_iterations, cfg.final_learning_rate_fraction)

    warm = iteration >= cfg.value_warmup_iterations
    return Plan(
        iteration,
        rollouts,
        advantages,
        layouts,
        kl_coef,
        policy_rate=rate(cfg.value_warmup_iterations) if warm else 0.0,
        value_rate=rate(0),
        moves_policy=warm,
        moves_value=not warm or cfg.update == "joint",
    )


# -- bookkeeping -------------------------------------------------------------------------------------------------


def _state(learner: Learner, kl_coef: float, metrics: Metrics) -> dict[str, Any]:
    return {"learner": learner.state(), "kl_coef": kl_coef, "metrics": metrics}


def _size(cfg: Ppo, actors: Actors, job: Job) -> Metrics:
    """Tokens of all rollouts, times the epochs over them; parameters of both models together, and those that learn."""
    tokens = cfg.num_epochs * sum(row.get("tokens", 0.0) for row in job.logged()) if job.is_main else 0.0
    learning = (*actors.policy_parameters.values(), *actors.value_parameters.values())
    num_trained = float(sum(p.numel() for p in learning))
    return {"tokens": tokens, "parameters": actors.num_parameters(), "trained_parameters": num_trained}


def _publish(cfg: Ppo, actors: Actors, learner: Learner, tokenizer: PreTrainedTokenizerBase, job: Job) -> None:
    if not job.is_main:
        return
    actors.save(job.out, tokenizer)
    if cfg.ema_decay is not None:
        learner.use_average()
        actors.save(job.out / "ema", tokenizer)
