"""Tune a model on rankings by direct preference optimization.

Takes: a model (the SFT model, also the frozen reference) and comparisons.
Makes: a model. With LoRA, it is an adapter on the base of the given model, unless lora.merged is
true.
Departs from DPO: a ranking of K responses counts as all of its ordered pairs, and each response
goes through the model once. Rankings are weighted alike, whatever their number of pairs. AdamW
replaces RMSprop.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.configs import Dpo, filled
from align.errors import ConfigError
from align.losses.dpo import dpo_loss
from align.losses.preference import ordered_rewards, pairwise_accuracy
from align.models.adapters import fresh_adapter
from align.models.load import (
    load_model,
    load_tokenizer,
    precision_lines,
    sequence_length,
)
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.store.checkpoints import restore_parameters
from align.text.chat import Encoded, encode_responses
from align.text.packing import micro_batches
from align.text.rankings import encode_rankings, nothing_to_learn
from align.training.activations import fit_activations
from align.training.loss_guard import Guard
from align.training.optimizers import adamw, clip_gradients, cosine_factor, step_all, warmup_of
from align.training.preflight import doubts
from align.training.response_logprobs import all_response_logprobs, response_logprobs
from align.training.row_order import RowOrder
from align.training.saving import save_tuned

_ADAPTER = "dpo"


class Ranking(NamedTuple):
    """One prompt with its ranked responses.

    Attributes:
        sequences: prompt and response. The tokens of the response are marked as the assistant's.
            Equal responses share one sequence, so that the model reads it once.
        places: for each of the K responses, the index of its sequence.
        ranks: K ranks, 1 for the best.
    """

    sequences: list[Encoded]
    places: list[int]
    ranks: list[int]

    @property
    def tokens(self) -> int:
        return sum(len(sequence.ids) for sequence in self.sequences)


def run(cfg: Dpo, inputs: Inputs, job: Job) -> Metrics:
    folder = inputs.one("model").path
    model, tokenizer = load_model(folder, job.device), load_tokenizer(folder)
    if cfg.lora.rank is None:
        for line in precision_lines(model):
            job.log.info(line)
    length = sequence_length(cfg.sequence_length, model)
    train, dropped = _rankings(inputs, "train", tokenizer, length, job)
    held_out, _ = _rankings(inputs, "validation", tokenizer, length, job)
    if not train:
        raise ConfigError(nothing_to_learn(dropped, length))
    if not held_out:
        job.log.info("there are no validation rows, so no validation loss is reported")

    num_parameters, adapters = model.num_parameters(), None
    if cfg.lora.rank is not None:
        adapters = fresh_adapter(model, folder, cfg.lora, _ADAPTER)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held_out_reference = _reference(model, held_out, "validation", job, cfg.precision)
    _train(cfg, model, train, job)
    metrics = {"rankings": float(len(train)), "dropped": float(dropped)}
    metrics["tokens"] = float(cfg.num_epochs * sum(ranking.tokens for ranking in train))
    metrics["parameters"] = float(num_parameters)
    metrics["trained_parameters"] = float(num_trained)
    model = save_tuned(model, adapters, _ADAPTER, cfg.lora.merged, tokenizer, job)
    if held_out:
        metrics |= _validation(cfg, model, held_out, held_out_reference, job)
    return metrics


# -- rankings --------------------------------------------------------------------------------------


def _rankings(
    inputs: Inputs, split: str, tokenizer: PreTrainedTokenizerBase, length: int, job: Job
) -> tuple[list[Ranking], int]:
    """Return the usable rankings, and how many rows are not usable."""
    encode = functools.partial(encode_responses, tokenizer)
    found, left_out = encode_rankings(inputs.folders("data"), split, encode, length, job.log.info)
    return [Ranking(each.sequences, each.places, each.row["ranks"]) for each in found], left_out


def _reference(
    model: PreTrainedModel, rankings: Sequence[Ranking], split: str, job: Job, precision: str
) -> list[torch.Tensor]:
    """Return log p of the responses of each ranking under the given model."""
    sequences = [sequence for ranking in rankings for sequence in ranking.sequences]
    unit = f"{split} responses under the given model"
    with job.progress(len(job.group.share(sequences)), unit) as advance:
        flat = all_response_logprobs(model, sequences, job, precision, advance)
    return _by_ranking(flat, rankings)


def _by_ranking(flat: torch.Tensor, rankings: Sequence[Ranking]) -> list[torch.Tensor]:
    """Return the part of each ranking, of the numbers of all of their sequences."""
    return list(flat.split([len(ranking.sequences) for ranking in rankings])) if rankings else []


# -- steps -----------------------------------------------------------------------------------------


def _train(cfg: Dpo, model: PreTrainedModel, train: Sequence[Ranking], job: Job) -> None:
    """Train the parameters that require gradients.

    The model stays in eval mode: with dropout, its log-probs would differ from the reference's.
    """
    fit_activations(
        job, model, cfg.precision, max(len(s.ids) for ranking in train for s in ranking.sequences)
    )
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    peak = filled(cfg.learning_rate)
    optimizer = adamw(model, peak, cfg.betas, cfg.weight_decay, cfg.adam_epsilon)
    guard = Guard(cfg, job.log.event)
    order = RowOrder(len(train), cfg.random_seed, "dpo", "rows")
    total = cfg.num_epochs * math.ceil(len(train) / cfg.batch_size)
    warmup = warmup_of(cfg.warmup_steps, total)
    rates = [
        peak * cosine_factor(step, total, warmup, cfg.final_learning_rate_fraction)
        for step in range(total)
    ]
    for line in doubts(rates, model, trains_all=cfg.lora.rank is None):
        job.log.info(line)
    start = 0
    if saved := job.resume.last():
        start, state = saved
        reference = _by_ranking(state["reference"].to(job.device), train)
        restore_parameters(parameters, state["parameters"])
        optimizer.load_state_dict(state["optimizer"])
        guard.recent = state["recent"]
    else:
        reference = _reference(model, train, "training", job, cfg.precision)

    for step in job.steps(total, start):
        chosen = order.of_step(step, cfg.batch_size).tolist()
        batch = [(train[i], reference[i]) for i in chosen]
        metrics = _accumulate(cfg, model, batch, job)
        job.group.sum_gradients(list(parameters.values()))
        norm = clip_gradients(list(parameters.values()), cfg.max_grad_norm)
        left_out = guard.refuses(step + 1, metrics["loss"], norm)
        step_all([optimizer], None if left_out else rates[step])
        job.log.metrics(metrics | {"grad_norm": norm, "learning_rate": rates[step]}, step + 1)
        job.resume.save_if_due(
            step + 1,
            lambda: {
                "parameters": parameters,
                "optimizer": optimizer.state_dict(),
                "recent": guard.recent,
                "reference": torch.cat(reference),
            },
        )


def _accumulate(
    cfg: Dpo, model: PreTrainedModel, batch: Sequence[tuple[Ranking, torch.Tensor]], job: Job
) -> Metrics:
    """Add the gradient of this process's rankings to that of the batch's mean loss over prompts.

    Args:
        batch: rankings, each with log p of its responses under the given model.

    Returns:
        The metrics of the whole batch.
    """
    mine, totals = job.group.share(batch), torch.zeros(5, device=job.device)
    for chunk in micro_batches([ranking.tokens for ranking, _ in mine], job.max_tokens):
        group = [mine[i] for i in chunk]
        if group[0][0].tokens > job.max_tokens:
            logprobs = _backward_in_parts(cfg, model, group[0], len(batch), job)
        else:
            sequences = [sequence for ranking, _ in group for sequence in ranking.sequences]
            logprobs = response_logprobs(model, sequences, job, cfg.precision)
            (_losses(cfg, logprobs, group) / len(batch)).backward()
        totals += _totals(cfg, logprobs.detach(), group)
    job.group.all_reduce(totals)
    loss, right, pairs, better, worse = totals.tolist()
    return {
        "loss": loss / len(batch),
        "accuracy": right / pairs,
        "rewards/chosen": better / pairs,
        "rewards/rejected": worse / pairs,
        "rewards/margin": (better - worse) / pairs,
    }


def _losses(
    cfg: Dpo, logprobs: torch.Tensor, group: Sequence[tuple[Ranking, torch.Tensor]]
) -> torch.Tensor:
    """Return the sum of the rankings' losses.

    Args:
        logprobs: log p of all of their responses, `[N]`.
    """
    found = _by_ranking(logprobs, [ranking for ranking, _ in group])
    losses = []
    for own, (ranking, reference) in zip(found, group, strict=True):
        lengths = torch.tensor([sum(s.by_assistant) for s in ranking.sequences], device=own.device)
        losses.append(
            dpo_loss(
                (own - reference)[ranking.places],
                torch.tensor(ranking.ranks, device=own.device),
                lengths[ranking.places],
                cfg.kl_coef,
                cfg.loss,
                cfg.label_smoothing,
            )
        )
    return torch.stack(losses).sum()


def _backward_in_parts(
    cfg: Dpo,
    model: PreTrainedModel,
    each: tuple[Ranking, torch.Tensor],
    num_prompts: int,
    job: Job,
) -> torch.Tensor:
    """Add the gradient of one ranking whose responses have too many tokens for one pass.

    The loss needs all log-probs at once. So they are computed without a graph first. Then each
    response goes through the model a second time, with the gradient of its log-prob known [Gao et
    al. 2021, gradient caching].

    Returns:
        Log p of its responses.
    """
    sequences = each[0].sequences
    groups = micro_batches([len(sequence.ids) for sequence in sequences], job.max_tokens)

    def part(group: list[int]) -> torch.Tensor:
        return response_logprobs(model, [sequences[i] for i in group], job, cfg.precision)

    logprobs = torch.zeros(len(sequences), device=job.device)
    with torch.no_grad():
        for group in groups:
            logprobs[group] = part(group)
    logprobs.requires_grad_(True)
    (gradient,) = torch.autograd.grad(_losses(cfg, logprobs, [each]) / num_prompts, logprobs)
    for group in groups:
        part(group).backward(gradient[group])
    return logprobs


@torch.no_grad()
def _totals(
    cfg: Dpo, logprobs: torch.Tensor, group: Sequence[tuple[Ranking, torch.Tensor]]
) -> torch.Tensor:
    """Return sums over rankings and their pairs.

    These are the loss; then the pairs in the labelers' order, all pairs, and the implicit rewards
    of the better and of the worse responses.
    """
    totals = torch.zeros(5, device=logprobs.device)
    totals[0] = _losses(cfg, logprobs, group)
    found = _by_ranking(logprobs, [ranking for ranking, _ in group])
    for own, (ranking, reference) in zip(found, group, strict=True):
        rewards = cfg.kl_coef * (own - reference)[ranking.places].cpu()
        ranks = torch.tensor(ranking.ranks)
        right, pairs = pairwise_accuracy(rewards, ranks)
        better, worse = ordered_rewards(rewards, ranks)
        totals[1:] += torch.tensor([right, pairs, better.sum(), worse.sum()], device=totals.device)
    return totals


def _validation(
    cfg: Dpo,
    model: PreTrainedModel,
    held_out: Sequence[Ranking],
    reference: Sequence[torch.Tensor],
    job: Job,
) -> Metrics:
    """Return how the tuned model orders held-out rankings, and by what margin."""
    sequences = [sequence for ranking in held_out for sequence in ranking.sequences]
    found = all_response_logprobs(model, sequences, job, cfg.precision)
    group = list(zip(held_out, reference, strict=True))
    loss, right, pairs, better, worse = _totals(cfg, found, group).tolist()
    return {
        "eval/loss": loss / len(held_out),
        "eval/accuracy": right / pairs,
        "eval/margin": (better - worse) / pairs,
        "eval/chosen_per_token": _gain_per_token(held_out, _by_ranking(found, held_out), reference),
        "held_out_prompts": float(len(held_out)),
    }


def _gain_per_token(
    rankings: Sequence[Ranking],
    logprobs: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
) -> float:
    """Return log(p / p_ref) of the best responses of all rankings, in nats per token."""
    gained, tokens = 0.0, 0
    for ranking, own, given in zip(rankings, logprobs, reference, strict=True):
        ranked = zip(ranking.places, ranking.ranks, strict=True)
        for place in {place for place, rank in ranked if rank == min(ranking.ranks)}:
            gained += float(own[place] - given[place])
            tokens += sum(ranking.sequences[place].by_assistant)
    return gained / tokens
