"""Tune a policy against a reward model with PPO, held near where it started.

Takes: a policy (the SFT model, also the frozen reference), a reward model (also the value model's start) and prompts;
optionally pretraining text, whose gradient joins the policy's in every step (PPO-ptx).
Makes: a model.
Departs from InstructGPT: the value model starts from the policy-sized reward model; no average of the weights is kept;
`ptx_coef` weighs the mean loss a token, where the paper does not say what its 27.8 weighs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.configs import Ppo
from align.data.records import Row, read_info, read_rows
from align.errors import ConfigError, HealthStop
from align.evals.gold import gold_scorer
from align.evals.text_loss import encode_text, num_targets, summed_loss
from align.job import Inputs, Job, Metrics
from align.losses.ppo import (
    Advantages,
    explained_variance,
    gae,
    masked_mean,
    normalize,
    policy_loss,
    rescale,
    token_rewards,
    value_loss,
)
from align.models.heads import ScalarModel, load_scalar
from align.models.load import context_length, load_model, load_tokenizer, save_model
from align.models.packed import pack_pairs, response_logprobs, response_scores, response_values
from align.optimizers import adamw, set_learning_rate
from align.rollout.collect import Rollouts, Samples, make_samples, padded, penalize_cut_off
from align.rollout.engine import Sampling, generate
from align.seeds import derive_seed
from align.text.chat import decode_response, encode_prompts
from align.text.packing import Packed, micro_batches

Layout = list[list[list[int]]]  # minibatches of micro-batches of responses


@dataclass(frozen=True)
class Models:
    """The four models, dropout off in all (with it, the first ratio would not be 1), and what moves two of them."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    value: ScalarModel
    reward: ScalarModel
    tokenizer: PreTrainedTokenizerBase
    policy_optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer

    def state(self) -> dict[str, Any]:
        """All of it that changes."""
        return {name: part.state_dict() for name, part in self._changing().items()}

    def restore(self, state: dict[str, Any]) -> None:
        for name, part in self._changing().items():
            part.load_state_dict(state[name])

    def _changing(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        names = ("policy", "value", "policy_optimizer", "value_optimizer")
        return {name: getattr(self, name) for name in names}


def run(cfg: Ppo, inputs: Inputs, job: Job) -> Metrics:
    models = _load(cfg, inputs, job)
    prompts, encoded = _prompts(cfg, inputs, models, job)
    text = _text(cfg, inputs, models)
    gold = gold_scorer([read_info(folder) for folder in inputs.folders("prompts")])
    start = 0
    metrics: Metrics = {}
    if saved := job.resume():
        start, state = saved
        models.restore(state["models"])
        metrics = state["metrics"]

    for iteration in job.steps(cfg.num_iterations, start, unit="iterations"):
        begun = time.monotonic()
        chosen = _choose(iteration, cfg.rollout_batch_size, len(prompts), cfg.seed or 0)
        samples = _sample(cfg, models, job, iteration, chosen, encoded)
        layouts = [_layout(cfg, samples, job, iteration, epoch) for epoch in range(cfg.num_epochs)]
        rollouts = _score(cfg, models, job, samples, layouts[0])
        collected = time.monotonic()
        advantages, metrics = _advantages(cfg, rollouts)
        factor = min(1.0, 0.1 + 0.9 * iteration / cfg.warmup_iterations) if cfg.warmup_iterations else 1.0
        set_learning_rate(models.policy_optimizer, cfg.learning_rate * factor)
        set_learning_rate(models.value_optimizer, cfg.value_learning_rate * factor)
        metrics |= _update(cfg, models, job, rollouts, advantages, layouts, text, iteration)
        if gold is not None:
            metrics["gold/score"] = _mean_gold(models.tokenizer, [prompts[i] for i in chosen], samples, gold)
        metrics |= {"time/rollout": collected - begun, "time/update": time.monotonic() - collected}
        job.log(metrics, iteration + 1)
        job.checkpoint(iteration + 1, functools.partial(_state, models, metrics))

    if job.is_main:
        save_model(models.policy, models.tokenizer, job.out)
    kept = ("objective/kl", "objective/score", "gold/score", "value/explained_variance", "response_tokens")
    return {name: metrics[name] for name in kept if name in metrics}


# -- what PPO starts from ----------------------------------------------------------------------------------------


def _load(cfg: Ppo, inputs: Inputs, job: Job) -> Models:
    policy, reward = inputs.one("policy").path, inputs.one("reward_model").path
    tokenizer, other = load_tokenizer(policy), load_tokenizer(reward)
    if tokenizer.get_vocab() != other.get_vocab() or tokenizer.chat_template != other.chat_template:
        raise ConfigError("inputs.reward_model: expected one with the policy's own tokenizer and chat template")
    learner, value_model = load_model(policy, job.device), load_scalar(reward, job.device)
    betas = (0.9, cfg.beta2)
    return Models(
        policy=learner,
        reference=load_model(policy, job.device).requires_grad_(False),
        value=value_model,
        reward=load_scalar(reward, job.device).requires_grad_(False),
        tokenizer=tokenizer,
        policy_optimizer=adamw(learner, cfg.learning_rate, betas, cfg.weight_decay, cfg.adam_epsilon),
        value_optimizer=adamw(value_model, cfg.value_learning_rate, betas, cfg.weight_decay, cfg.adam_epsilon),
    )


def _prompts(cfg: Ppo, inputs: Inputs, models: Models, job: Job) -> tuple[list[Row], list[list[int]]]:
    """Training prompts that leave room for a response, as rows and as token ids."""
    rows = list(read_rows(inputs.folders("prompts"), "train"))
    encoded = encode_prompts(models.tokenizer, [row["prompt"] for row in rows])
    room = context_length(models.policy) - cfg.max_new_tokens
    if room <= 0:
        raise ConfigError(f"max_new_tokens: expected less than the context of {context_length(models.policy)} tokens")
    fitting = [i for i, ids in enumerate(encoded) if len(ids) <= room]
    if len(fitting) < len(rows):
        job.info(f"{len(rows) - len(fitting)} prompts are longer than {room} tokens and left out")
    if len(fitting) < cfg.rollout_batch_size:
        raise ConfigError(f"inputs.prompts: {len(fitting)} prompts do not fill a rollout of {cfg.rollout_batch_size}")
    return [rows[i] for i in fitting], [encoded[i] for i in fitting]


def _text(cfg: Ppo, inputs: Inputs, models: Models) -> torch.Tensor | None:
    if cfg.ptx_coef == 0:
        return None
    texts = [row["text"] for row in read_rows(inputs.folders("text"), "train")]
    rows = encode_text(texts, models.tokenizer, context_length(models.policy)).rows
    if len(rows) < cfg.ptx_batch_size:
        raise ConfigError(f"ptx_batch_size: the text fills only {len(rows)} rows, got {cfg.ptx_batch_size}")
    return rows


def _choose(iteration: int, count: int, num_prompts: int, seed: int) -> list[int]:
    """Prompts without repetition until all are used, in an order of each pass's own."""
    epoch, place = divmod(iteration, num_prompts // count)
    generator = torch.Generator().manual_seed(derive_seed(seed, "ppo", "prompts", epoch))
    return torch.randperm(num_prompts, generator=generator)[place * count : (place + 1) * count].tolist()


# -- rollout -----------------------------------------------------------------------------------------------------


def _sample(
    cfg: Ppo, models: Models, job: Job, iteration: int, chosen: Sequence[int], encoded: Sequence[list[int]]
) -> Samples:
    mine = job.share(chosen)
    sampling = Sampling(
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
        batch_size=job.hardware.generation_batch_size,
    )
    drawn: list[tuple[list[int], list[float]]] = [([], [])] * len(mine)
    # In fp32 whatever the precision: bf16 rounds by the shapes of a batch, and which responses share one is no knob.
    for place, response in generate(
        models.policy,
        [encoded[i] for i in mine],
        [derive_seed(cfg.seed or 0, "ppo", iteration, i) for i in mine],
        sampling,
        eos_token_id=models.tokenizer.eos_token_id,
        pad_token_id=models.tokenizer.pad_token_id,
    ):
        drawn[place] = (response.ids, response.logprobs)
    drawn = job.gather(drawn)
    responses, logprobs = [ids for ids, _ in drawn], [row for _, row in drawn]
    return make_samples([encoded[i] for i in chosen], responses, logprobs, models.tokenizer.eos_token_id, job.device)


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


@torch.no_grad()
def _score(cfg: Ppo, models: Models, job: Job, samples: Samples, layout: Layout) -> Rollouts:
    """Log-probs, values and scores of the samples, from the passes that the first update will make over them."""
    logprobs, ref_logprobs, values = (torch.zeros(samples.mask.shape, device=job.device) for _ in range(3))
    scores = torch.zeros(len(samples.responses), device=job.device)
    for group in (group for minibatch in layout for group in minibatch):
        packed, responses, mask = _packed(samples, group, job)
        with job.autocast(cfg.precision):
            new = response_logprobs(models.policy, packed, responses, cfg.temperature)
            ref = response_logprobs(models.reference, packed, responses, cfg.temperature)
            value = response_values(models.value, packed, responses)
            scores[group] = response_scores(models.reward, packed)
        logprobs[group], ref_logprobs[group], values[group] = (padded(x, mask) for x in (new, ref, value))
    for part in (logprobs, ref_logprobs, values, scores):
        job.all_reduce(part)  # each row was filled in by one process and is 0 in the others
    if not all(torch.isfinite(part).all() for part in (logprobs, ref_logprobs, values, scores)):
        raise HealthStop("a log-prob, value or score of the rollout is not finite; lower learning_rate")
    return Rollouts(samples, logprobs, ref_logprobs, values, scores)


def _packed(samples: Samples, group: Sequence[int], job: Job) -> tuple[Packed, list[list[int]], torch.Tensor]:
    """A micro-batch: the packed row, its responses, and their mask."""
    responses = [samples.responses[i] for i in group]
    return pack_pairs([samples.prompts[i] for i in group], responses, job.device), responses, samples.mask[group]


def _advantages(cfg: Ppo, rollouts: Rollouts) -> tuple[Advantages, Metrics]:
    """Rewards, advantages over the whole rollout, and what they say of it."""
    samples, mask = rollouts.samples, rollouts.samples.mask
    scores = penalize_cut_off(rollouts.scores, samples.ended, cfg.missing_eos_penalty)
    rewards = token_rewards(scores, rollouts.logprobs, rollouts.ref_logprobs, mask, cfg.kl_coef)
    if cfg.whiten_rewards:
        rewards = rescale(rewards, mask)
    advantages, returns = gae(rewards, rollouts.values, mask, cfg.gamma, cfg.gae_lambda)
    kl = torch.where(mask, rollouts.logprobs - rollouts.ref_logprobs, 0.0).sum(1)
    gap = masked_mean((samples.sampled_logprobs - rollouts.logprobs).abs(), mask)
    metrics = {
        "objective/score": float(rollouts.scores.mean()),
        "objective/kl": float(kl.mean()),
        "objective/reward": float((scores - cfg.kl_coef * kl).mean()),
        "policy/entropy": float(-masked_mean(rollouts.logprobs, mask)),
        "policy/sampling_gap": float(gap),
        "value/explained_variance": float(explained_variance(rollouts.values, returns, mask)),
        "response_tokens": float(mask.sum(1).float().mean()),
        "response/ended": float(samples.ended.float().mean()),
    }
    return Advantages(normalize(advantages, mask), returns), metrics


# -- update ------------------------------------------------------------------------------------------------------


def _update(
    cfg: Ppo,
    models: Models,
    job: Job,
    rollouts: Rollouts,
    advantages: Advantages,
    layouts: Sequence[Layout],
    text: torch.Tensor | None,
    iteration: int,
) -> Metrics:
    """One optimizer step of policy and value model a minibatch; losses are means over all its response tokens."""
    sums: dict[str, torch.Tensor] = {}
    steps = 0
    for number, minibatch in enumerate(minibatch for layout in layouts for minibatch in layout):
        count = _total_tokens(minibatch, rollouts.samples, job)
        totals = _backward(cfg, models, job, rollouts, advantages, minibatch, count)
        if text is not None:
            totals["ptx/loss"] = _ptx_backward(cfg, models.policy, job, text, (iteration, number))
        for part in totals.values():
            job.all_reduce(part)
        for name, model, optimizer in (
            ("policy", models.policy, models.policy_optimizer),
            ("value", models.value, models.value_optimizer),
        ):
            parameters = list(model.parameters())
            job.sum_gradients(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.max_grad_norm)
            if not torch.isfinite(norm):
                raise HealthStop(f"iteration {iteration}: the {name}'s gradient is not finite; lower learning_rate")
            optimizer.step()
            optimizer.zero_grad()
            totals[f"{name}/grad_norm"] = norm
        steps += 1
        for key, value in totals.items():
            sums[key] = sums.get(key, torch.zeros_like(value)) + value
    return {key: float(value) / steps for key, value in sums.items()}


def _total_tokens(minibatch: list[list[int]], samples: Samples, job: Job) -> torch.Tensor:
    """Response tokens of a minibatch over all processes."""
    count = torch.tensor(float(sum(len(samples.responses[i]) for group in minibatch for i in group)), device=job.device)
    job.all_reduce(count)
    return count


def _backward(
    cfg: Ppo,
    models: Models,
    job: Job,
    rollouts: Rollouts,
    advantages: Advantages,
    minibatch: list[list[int]],
    count: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Add both models' gradients over this process's share of a minibatch; give its part of the mean metrics."""
    names = ("policy/loss", "value/loss", "ppo/clip_fraction", "ppo/approx_kl", "ppo/ratio", "value/clip_fraction")
    totals = {name: torch.zeros((), device=job.device) for name in names}
    for group in minibatch:
        packed, responses, mask = _packed(rollouts.samples, group, job)
        old, advantage = rollouts.logprobs[group][mask], advantages.advantages[group][mask]
        with job.autocast(cfg.precision):
            new = response_logprobs(models.policy, packed, responses, cfg.temperature)
            values = response_values(models.value, packed, responses)
        policy = policy_loss(new, old, advantage, cfg.clip_range)
        value = value_loss(values, rollouts.values[group][mask], advantages.returns[group][mask], cfg.value_clip_range)
        (policy.losses.sum() / count).backward()
        (value.losses.sum() / count).backward()
        with torch.no_grad():
            parts = (
                policy.losses,
                value.losses,
                policy.clipped.float(),
                0.5 * (new - old) ** 2,
                policy.ratio,
                value.clipped.float(),
            )
            for name, part in zip(names, parts, strict=True):
                totals[name] += part.sum() / count
    return totals


def _ptx_backward(
    cfg: Ppo, policy: PreTrainedModel, job: Job, text: torch.Tensor, place: tuple[int, int]
) -> torch.Tensor:
    """Add `ptx_coef` times the gradient of the mean pretraining loss; give this process's part of that loss."""
    generator = torch.Generator().manual_seed(derive_seed(cfg.seed or 0, "ppo", "text", *place))
    rows = text[torch.randperm(len(text), generator=generator)[: cfg.ptx_batch_size]]
    total = torch.zeros((), device=job.device)
    per_pass = max(1, job.hardware.micro_batch_tokens // text.shape[1])
    for chunk in rows[job.rank :: job.world_size].split(per_pass):
        with job.autocast(cfg.precision):
            loss = summed_loss(policy, chunk) / num_targets(rows)
        (cfg.ptx_coef * loss).backward()
        total += loss.detach()
    return total


# -- bookkeeping -------------------------------------------------------------------------------------------------


def _state(models: Models, metrics: Metrics) -> dict[str, Any]:
    return {"models": models.state(), "metrics": metrics}


def _mean_gold(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], samples: Samples, gold: Callable[..., float]
) -> float:
    """What the responses are really worth. The training never sees it."""
    texts: Iterator[str] = (decode_response(tokenizer, ids) for ids in samples.responses)
    scores = [gold(row["prompt"], text) for row, text in zip(rows, texts, strict=True)]
    return sum(scores) / len(scores)
