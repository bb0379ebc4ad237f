"""Tune a model on desirable and undesirable responses by Kahneman-Tversky optimization.

Takes: a model (the SFT model, also the frozen reference), and comparisons, unpaired responses, or
both.
Makes: a model. With LoRA, it is an adapter on the base of the given model, unless lora.merged is
true.
Departs from KTO: the baseline is the mean over the whole batch, however it is split over passes and
processes. A prompt is paired only with a response to another prompt, although several responses to
one prompt may be in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.configs import Kto, filled
from align.data.records import Message, read_rows
from align.errors import ConfigError
from align.losses.kto import kl_baseline, kto_loss, labels_of_ranks
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
from align.text.chat import Encoded, TemplateRefusal, encode_responses
from align.text.packing import micro_batches
from align.training.activations import fit_activations
from align.training.loss_guard import Guard
from align.training.optimizers import adamw, clip_gradients, cosine_factor, step_all, warmup_of
from align.training.preflight import doubts
from align.training.response_logprobs import all_response_logprobs, response_logprobs
from align.training.row_order import RowOrder
from align.training.saving import save_tuned

_ADAPTER = "kto"


class Labelled(NamedTuple):
    """A response with its label.

    Attributes:
        sequence: prompt and response. The tokens of the response are marked as the assistant's.
        desirable: the label.
    """

    sequence: Encoded
    desirable: bool

    @property
    def prompt(self) -> list[int]:
        return self.sequence.ids[: self.sequence.by_assistant.index(True)]

    def answering(self, prompt: list[int]) -> Encoded:
        """Return the response after another prompt."""
        begin = self.sequence.by_assistant.index(True)
        return Encoded(
            prompt + self.sequence.ids[begin:],
            [False] * len(prompt) + self.sequence.by_assistant[begin:],
        )


def run(cfg: Kto, inputs: Inputs, job: Job) -> Metrics:
    folder = inputs.one("model").path
    model, tokenizer = load_model(folder, job.device), load_tokenizer(folder)
    if cfg.lora.rank is None:
        for line in precision_lines(model):
            job.log.info(line)
    length = sequence_length(cfg.sequence_length, model)
    train, dropped = _labelled(inputs, "train", tokenizer, length, job)
    held_out, _ = _labelled(inputs, "validation", tokenizer, length, job)
    # Rows that share a prompt stand together. In a random order each pairs with another response.
    shuffled = _order(cfg, held_out, "validation").take(0, len(held_out))
    held_out = [held_out[i] for i in shuffled.tolist()]
    if not train:
        raise ConfigError(_nothing_to_learn(inputs, dropped, length))
    job.log.info(_balance(cfg, train))
    if not held_out:
        job.log.info("there are no validation rows, so no validation loss is reported")

    num_parameters, adapters = model.num_parameters(), None
    if cfg.lora.rank is not None:
        adapters = fresh_adapter(model, folder, cfg.lora, _ADAPTER)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    before = _of_held_out(cfg, model, held_out, length, job)
    _train(cfg, model, train, length, job)
    metrics = {"responses": float(len(train)), "dropped": float(dropped)}
    metrics["desirable"] = float(sum(each.desirable for each in train))
    metrics["tokens"] = float(cfg.num_epochs * sum(len(each.sequence.ids) for each in train))
    metrics["parameters"] = float(num_parameters)
    metrics["trained_parameters"] = float(num_trained)
    model = save_tuned(model, adapters, _ADAPTER, cfg.lora.merged, tokenizer, job)
    if held_out:
        after = _of_held_out(cfg, model, held_out, length, job)
        metrics |= _validation(cfg, held_out, before, after)
    return metrics


# -- labelled responses ----------------------------------------------------------------------------


def _labelled(
    inputs: Inputs, split: str, tokenizer: PreTrainedTokenizerBase, length: int, job: Job
) -> tuple[list[Labelled], int]:
    """Return the usable responses of all inputs, and how many are not usable."""
    usable, dropped = [], 0
    for slot in ("data", "unpaired"):
        if slot in inputs:
            found, left_out = _of_slot(inputs, slot, split, tokenizer, length, job)
            usable += found
            dropped += left_out
    return usable, dropped


def _of_slot(
    inputs: Inputs, slot: str, split: str, tokenizer: PreTrainedTokenizerBase, length: int, job: Job
) -> tuple[list[Labelled], int]:
    """Return the usable responses of an input, and how many are not usable.

    Raises:
        ConfigError: the chat template refuses a row.
    """
    prompts: list[list[Message]] = []
    responses: list[str] = []
    labels: list[bool] = []
    owners, middle = [], 0
    for number, row in enumerate(read_rows(inputs.folders(slot), split), 1):
        if slot == "unpaired":
            found: list[tuple[str, bool | None]] = [(row["completion"], row["label"])]
        else:
            found = list(zip(row["responses"], labels_of_ranks(row["ranks"]), strict=True))
        for response, label in found:
            if label is None:
                middle += 1
                continue
            prompts.append(row["prompt"])
            responses.append(response)
            labels.append(label)
            owners.append(number)
    try:
        encoded = encode_responses(tokenizer, prompts, responses)
    except TemplateRefusal as error:
        raise ConfigError(
            f"inputs.{slot}: {split} row {owners[error.index]}: {error.reason}"
        ) from None
    usable = [
        Labelled(sequence, label)
        for sequence, label in zip(encoded, labels, strict=True)
        if len(sequence.ids) <= length
    ]
    total, long = len(labels) + middle, len(labels) - len(usable)
    for count, why in (
        (middle, "in the middle of their ranking"),
        (long, f"longer than sequence_length, {length:,} tokens"),
    ):
        if count:
            job.log.info(f"{count:,} of {total:,} {split} responses of {slot} left out: {why}")
    return usable, total - len(usable)


def _nothing_to_learn(inputs: Inputs, dropped: int, length: int) -> str:
    slots = " and ".join(f"inputs.{slot}" for slot in ("data", "unpaired") if slot in inputs)
    if dropped:
        return (
            f"{slots}: no response is left to learn from: all are in the middle of their ranking,"
            f" or longer than {length:,} tokens"
        )
    record = "unpaired" if "unpaired" in inputs else "comparisons"
    return (
        f"{slots}: no training rows; to train on all rows, make the data first: align data"
        f" source=... record={record} split=train name=mine/data"
    )


def _balance(cfg: Kto, train: Sequence[Labelled]) -> str:
    """Return a line with the number of each label, and with a weight if they are out of balance.

    Balance is a ratio of 1 to 4/3: KTO's equation 8, as earlier versions of TRL quote it.
    """
    num_desirable = sum(each.desirable for each in train)
    num_undesirable = len(train) - num_desirable
    line = f"{num_desirable:,} desirable and {num_undesirable:,} undesirable training responses"
    if not (num_desirable and num_undesirable):
        return f"{line}: the model learns from one kind of label alone"
    ratio = num_desirable * cfg.desirable_weight
    ratio /= max(num_undesirable * cfg.undesirable_weight, 1e-9)
    if 0.9 <= ratio <= 1.4:  # a little outside of 1 to 4/3 is no reason to act
        return line
    knob, weight = (
        ("desirable_weight", num_undesirable * cfg.undesirable_weight / num_desirable)
        if ratio < 1
        else ("undesirable_weight", num_desirable * cfg.desirable_weight / num_undesirable)
    )
    return f"{line}; {knob}={weight:.3g} weighs both alike, as KTO's authors recommend"


def _order(cfg: Kto, rows: Sequence[Labelled], purpose: str) -> RowOrder:
    return RowOrder(len(rows), cfg.random_seed, "kto", purpose)


# -- the baseline ----------------------------------------------------------------------------------


def _mismatched(cfg: Kto, rows: Sequence[Labelled], length: int) -> list[Encoded]:
    """Return the prompts of a batch, each with the response of a row before it.

    That row is the nearest one, in a circle, that answers another prompt and whose response fits
    into `length` tokens. A prompt without such a row is left out. `loss=apo_zero_unpaired` has no
    baseline, so nothing is returned.
    """
    if cfg.loss != "kto":
        return []
    prompts, pairs = [row.prompt for row in rows], []
    for place, prompt in enumerate(prompts):
        for back in range(1, len(rows)):
            if prompts[place - back] == prompt:
                continue
            pair = rows[place - back].answering(prompt)
            if len(pair.ids) <= length:
                pairs.append(pair)
                break
    return pairs


def _baseline(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the baseline in nats; 0 if the batch has no mismatched pair.

    Args:
        logprobs: [M], log p of the mismatched responses.
        reference: the same under the given model.
    """
    return kl_baseline(logprobs - reference) if len(logprobs) else logprobs.new_zeros(())


# -- steps -----------------------------------------------------------------------------------------


def _train(
    cfg: Kto, model: PreTrainedModel, train: Sequence[Labelled], length: int, job: Job
) -> None:
    """Train the parameters that require gradients.

    The model stays in eval mode: with dropout, its log-probs would differ from the reference's.
    """
    fit_activations(job, model, cfg.precision, max(len(each.sequence.ids) for each in train))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    peak = filled(cfg.learning_rate)
    optimizer = adamw(model, peak, cfg.betas, cfg.weight_decay, cfg.adam_epsilon)
    guard = Guard(cfg, job.log.event)
    order = _order(cfg, train, "rows")
    total = cfg.num_epochs * math.ceil(len(train) / cfg.batch_size)
    warmup = warmup_of(cfg.warmup_steps, total)
    rates = [
        peak * cosine_factor(step, total, warmup, cfg.final_learning_rate_fraction)
        for step in range(total)
    ]
    for line in doubts(rates, model, trains_all=cfg.lora.rank is None):
        job.log.info(line)

    def rows_of(step: int) -> list[int]:
        return order.of_step(step, cfg.batch_size).tolist()

    def pairs_of(step: int) -> list[Encoded]:
        return _mismatched(cfg, [train[i] for i in rows_of(step)], length)

    start = 0
    if saved := job.resume.last():
        start, state = saved
        reference = state["reference"].to(job.device)
        pair_reference = state["pair_reference"].to(job.device)
        restore_parameters(parameters, state["parameters"])
        optimizer.load_state_dict(state["optimizer"])
        guard.recent = state["recent"]
    else:
        reference = _logprobs_of(cfg, model, [each.sequence for each in train], "training", job)
        # The seed decides all batches, so the pairs of all steps are known before the first one.
        pair_reference = torch.zeros(total, cfg.batch_size, device=job.device)
        if cfg.loss == "kto":
            with job.progress(total, "batches of mismatched responses") as advance:
                for step in range(total):
                    found = all_response_logprobs(model, pairs_of(step), job, cfg.precision)
                    pair_reference[step, : len(found)] = found
                    advance(1)

    for step in job.steps(total, start):
        pairs = pairs_of(step)
        baseline = _baseline(
            all_response_logprobs(model, pairs, job, cfg.precision),
            pair_reference[step, : len(pairs)],
        )
        batch = [(train[i], reference[i]) for i in rows_of(step)]
        metrics = _accumulate(cfg, model, batch, baseline, job)
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
                "reference": reference,
                "pair_reference": pair_reference,
            },
        )


def _accumulate(
    cfg: Kto,
    model: PreTrainedModel,
    batch: Sequence[tuple[Labelled, torch.Tensor]],
    baseline: torch.Tensor,
    job: Job,
) -> Metrics:
    """Add the gradient of this process's responses to that of the batch's mean loss.

    Args:
        batch: responses, each with its log p under the given model.
        baseline: that of the whole batch.

    Returns:
        The metrics of the whole batch.
    """
    mine, totals = job.group.share(batch), torch.zeros(6, device=job.device)
    for chunk in micro_batches([len(each.sequence.ids) for each, _ in mine], job.max_tokens):
        rows = [mine[i][0] for i in chunk]
        logprobs = response_logprobs(model, [row.sequence for row in rows], job, cfg.precision)
        log_ratios = logprobs - torch.stack([mine[i][1] for i in chunk])
        losses = _losses(cfg, log_ratios, rows, baseline)
        (losses.sum() / len(batch)).backward()
        totals += _totals(cfg, losses.detach(), log_ratios.detach(), rows, baseline)
    job.group.all_reduce(totals)
    return _metrics(totals) | {"kl": float(baseline)}


def _losses(
    cfg: Kto, log_ratios: torch.Tensor, rows: Sequence[Labelled], baseline: torch.Tensor
) -> torch.Tensor:
    return kto_loss(
        log_ratios,
        torch.tensor([row.desirable for row in rows], device=log_ratios.device),
        baseline,
        cfg.kl_coef,
        cfg.desirable_weight,
        cfg.undesirable_weight,
    )


def _totals(
    cfg: Kto,
    losses: torch.Tensor,
    log_ratios: torch.Tensor,
    rows: Sequence[Labelled],
    baseline: torch.Tensor,
) -> torch.Tensor:
    """Return sums over responses.

    These are the loss, the responses on their side of the baseline, and for desirable and for
    undesirable responses the number and the implicit rewards.
    """
    desirable = torch.tensor([row.desirable for row in rows], device=log_ratios.device)
    above = (torch.sign(log_ratios - baseline) + 1) / 2
    rewards = cfg.kl_coef * log_ratios
    return torch.stack(
        [
            losses.sum(),
            torch.where(desirable, above, 1 - above).sum(),
            desirable.sum(),
            rewards[desirable].sum(),
            (~desirable).sum(),
            rewards[~desirable].sum(),
        ]
    )


def _metrics(totals: torch.Tensor) -> Metrics:
    """Return means; those of a label that no response has are left out."""
    loss, right, num_desirable, better, num_undesirable, worse = totals.tolist()
    count = num_desirable + num_undesirable
    metrics = {"loss": loss / count, "accuracy": right / count}
    if num_desirable:
        metrics["rewards/chosen"] = better / num_desirable
    if num_undesirable:
        metrics["rewards/rejected"] = worse / num_undesirable
    if num_desirable and num_undesirable:
        metrics["rewards/margin"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    return metrics


# -- log-probs of all responses --------------------------------------------------------------------


def _logprobs_of(
    cfg: Kto, model: PreTrainedModel, sequences: Sequence[Encoded], split: str, job: Job
) -> torch.Tensor:
    """Return log p of each response, `[N]`, and show progress."""
    with job.progress(len(job.group.share(sequences)), f"{split} responses read") as advance:
        return all_response_logprobs(model, sequences, job, cfg.precision, advance)


class HeldOut(NamedTuple):
    """Log-probs of the held-out responses [N], and of as many or fewer mismatched ones [M]."""

    own: torch.Tensor
    mismatched: torch.Tensor


def _of_held_out(
    cfg: Kto, model: PreTrainedModel, held_out: Sequence[Labelled], length: int, job: Job
) -> HeldOut:
    own = [each.sequence for each in held_out]
    both = own + _mismatched(cfg, held_out, length)
    found = _logprobs_of(cfg, model, both, "validation", job)
    return HeldOut(found[: len(own)], found[len(own) :])


def _validation(cfg: Kto, held_out: Sequence[Labelled], before: HeldOut, after: HeldOut) -> Metrics:
    """Return how the tuned model separates held-out responses by their labels, as one batch.

    Args:
        before: log-probs under the given model.
        after: log-probs under the tuned model.
    """
    baseline = _baseline(after.mismatched, before.mismatched)
    log_ratios = after.own - before.own
    losses = _losses(cfg, log_ratios, held_out, baseline)
    found = _metrics(_totals(cfg, losses, log_ratios, held_out, baseline))
    names = {"loss": "loss", "accuracy": "accuracy", "rewards/margin": "margin"}
    metrics = {f"eval/{names[name]}": value for name, value in found.items() if name in names}
    untrained = _losses(cfg, torch.zeros_like(log_ratios), held_out, torch.zeros_like(baseline))
    metrics |= {"eval/kl": float(baseline), "eval/loss_before": float(untrained.mean())}
    places = [place for place, each in enumerate(held_out) if each.desirable]
    if places:
        tokens = sum(sum(held_out[place].sequence.by_assistant) for place in places)
        metrics["eval/chosen_per_token"] = float(log_ratios[places].sum()) / tokens
    return metrics
