"""Train a decoder-only GPT on documents.

Takes: documents and a tokenizer; or documents and a model, to train on.
Makes: a model.
Departs from GPT-3: no ramp of the batch size; documents are shuffled as rows, once an epoch.
"""

from __future__ import annotations

import functools
import math

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.configs import Pretrain
from align.data.records import read_rows
from align.errors import ConfigError, HealthStop
from align.evals.text_loss import TextRows, encode_text, num_targets, summed_loss
from align.job import Inputs, Job, Metrics
from align.models.build import build_model
from align.models.load import context_length, load_model, load_tokenizer, save_model
from align.optimizers import cosine_factor, pretraining_optimizers, set_learning_rate
from align.seeds import derive_seed


def run(cfg: Pretrain, inputs: Inputs, job: Job) -> Metrics:
    model, tokenizer = _model(cfg, inputs, job)
    length = cfg.sequence_length or context_length(model)
    if length > context_length(model):
        raise ConfigError(
            f"sequence_length: expected at most the model's context of {context_length(model)}, got {length}"
        )
    train, _ = _text(inputs, "train", tokenizer, length)
    held_out, bytes_per_token = _text(inputs, "validation", tokenizer, length)
    if len(train) < cfg.batch_size:
        raise ConfigError(
            f"batch_size: the documents fill only {len(train)} rows of {length} tokens, got {cfg.batch_size}"
        )
    betas = (cfg.beta1, cfg.beta2)
    optimizers = pretraining_optimizers(model, cfg.optimizer, cfg.learning_rate, betas, cfg.weight_decay)
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = 0
    if saved := job.resume():
        start, state = saved
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)

    model.train()
    if job.world_size > 1 and not saved:
        torch.manual_seed(derive_seed(cfg.seed or 0, "pretrain", "dropout", job.rank))  # the weights are drawn alike
    for step in job.steps(cfg.num_steps, start):
        rate = cfg.learning_rate * cosine_factor(
            step, cfg.num_steps, cfg.warmup_steps, cfg.final_learning_rate_fraction
        )
        rows = train[_batch(step, cfg.batch_size, len(train), cfg.seed or 0)]
        loss = _accumulate(model, rows, job, cfg.precision)
        job.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.max_grad_norm)
        if not math.isfinite(loss) or not torch.isfinite(norm):
            raise HealthStop(
                f"step {step}: the loss is {loss} and the gradient's norm {float(norm)}; lower learning_rate"
            )
        for optimizer in optimizers:
            set_learning_rate(optimizer, rate)
            optimizer.step()
            optimizer.zero_grad()
        metrics = {"loss": loss, "grad_norm": float(norm), "learning_rate": rate}
        if len(held_out) and (step + 1) % cfg.eval_every == 0:
            metrics["eval/loss"] = _evaluate(model, held_out, job, cfg.precision)
        job.log(metrics, step + 1)
        job.checkpoint(
            step + 1, lambda: {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
        )

    if job.is_main:
        save_model(model, tokenizer, job.out)
    result = {"tokens": float(cfg.num_steps * cfg.batch_size * length), "parameters": float(model.num_parameters())}
    if len(held_out):
        nats = _evaluate(model, held_out, job, cfg.precision)
        result |= {"eval/loss": nats, "eval/bits_per_byte": nats / math.log(2) / bytes_per_token}
    return result


def _model(cfg: Pretrain, inputs: Inputs, job: Job) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if "model" in inputs:
        folder = inputs.one("model").path
        return load_model(folder, job.device), load_tokenizer(folder)
    tokenizer = load_tokenizer(inputs.one("tokenizer").path)
    return build_model(cfg.model, tokenizer).to(job.device), tokenizer


def _text(inputs: Inputs, split: str, tokenizer: PreTrainedTokenizerBase, length: int) -> TextRows:
    return encode_text([row["text"] for row in read_rows(inputs.folders("data"), split)], tokenizer, length)


def _batch(step: int, batch_size: int, num_rows: int, seed: int) -> torch.Tensor:
    """Which rows step `step` takes: each once an epoch, in that epoch's own order; what fills no batch is left out."""
    epoch, place = divmod(step, num_rows // batch_size)
    return _order(num_rows, seed, epoch)[place * batch_size : (place + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _order(num_rows: int, seed: int, epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "pretrain", "rows", epoch))
    return torch.randperm(num_rows, generator=generator)


def _accumulate(model: PreTrainedModel, rows: torch.Tensor, job: Job, precision: str) -> float:
    """Add the gradient of the batch's mean loss, this process's share of it; return the loss of the whole batch."""
    total = torch.zeros((), device=job.device)
    for chunk in _micro_batches(rows, job):
        with job.autocast(precision):
            loss = summed_loss(model, chunk) / num_targets(rows)
        loss.backward()
        total += loss.detach()
    job.all_reduce(total)
    return float(total)


def _micro_batches(rows: torch.Tensor, job: Job) -> tuple[torch.Tensor, ...]:
    mine = rows[job.rank :: job.world_size]
    return mine.split(max(1, job.hardware.micro_batch_tokens // rows.shape[1])) if len(mine) else ()


@torch.no_grad()
def _evaluate(model: PreTrainedModel, rows: torch.Tensor, job: Job, precision: str) -> float:
    """The mean loss over held-out rows, in nats a token."""
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=job.device)
    for chunk in _micro_batches(rows, job):
        with job.autocast(precision):
            total += summed_loss(model, chunk)
    job.all_reduce(total)
    model.train()
    return float(total) / num_targets(rows)
