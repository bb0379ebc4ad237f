"""Train a decoder-only GPT on documents.

Takes: tokens, or documents and a tokenizer. Optional: a model to train further.
Makes: a model.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.configs import Pretrain
from align.errors import ConfigError
from align.evals.text_loss import num_targets, summed_loss
from align.models.build import build_model
from align.models.compiled import compile_layers
from align.models.load import (
    check_attention,
    context_length,
    load_model,
    load_one_tokenizer,
    round_to_stored,
    save_model,
)
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.text.packing import document_positions
from align.text.tokens import TextRows, read_tokens
from align.training.activations import fit_activations
from align.training.loss_guard import Guard
from align.training.optimizers import (
    clip_gradients,
    cosine_factor,
    inverse_square_root_factor,
    pretraining_optimizers,
    step_all,
    warmup_of,
)
from align.training.row_order import Mixture, batch_sizes

Loss = Callable[[torch.Tensor], torch.Tensor]


def run(cfg: Pretrain, inputs: Inputs, job: Job) -> Metrics:
    tokenizer = load_one_tokenizer(
        [f for slot in ("data", "model") if slot in inputs for f in inputs.folders(slot)]
    )
    model = _model(cfg, inputs, tokenizer, job)
    length = _length(cfg, model)
    text = Mixture(_text(inputs, "train", length), cfg.weights, cfg.random_seed)
    held_out = _held_out(inputs, length, job)
    sizes = _batch_sizes(cfg, text, length)
    rates = _learning_rates(cfg, sizes, length)
    optimizers = pretraining_optimizers(model, cfg)
    parameters = [p for p in model.parameters() if p.requires_grad]
    guard = Guard(cfg, job.log.event)
    loss_of = _loss(cfg, model, tokenizer)
    start = 0
    if saved := job.resume.last():
        start, state = saved
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        text.taken, guard.recent = state["taken"], state["recent"]

    model.train()
    if job.group.world_size > 1 and not saved:
        # All processes draw the same initial weights; only their dropout differs.
        torch.manual_seed(derive_seed(cfg.random_seed, "pretrain", "dropout", job.group.rank))
    seen = float(sum(sizes[:start]) * length)
    measured: Metrics = {}
    for step in job.steps(len(sizes), start):
        begun = time.perf_counter()
        pairs = text.draw(step, sizes[step])
        loss = _accumulate(
            loss_of,
            text.tokens(job.group.share(pairs)),
            len(pairs) * (length - 1),
            job,
            cfg.precision,
        )
        job.group.sum_gradients(parameters)
        norm = clip_gradients(parameters, cfg.max_grad_norm)
        left_out = guard.refuses(step + 1, loss, norm)
        step_all(optimizers, None if left_out else rates[step])
        seen += sizes[step] * length
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rates[step],
            "tokens": seen,
        } | _passes(text)
        metrics["time/tokens_per_second"] = sizes[step] * length / (time.perf_counter() - begun)
        if (step + 1) % cfg.eval_every == 0 or step + 1 == len(sizes):
            measured = _evaluate(model, loss_of, held_out, job, cfg.precision)
            metrics |= measured
        job.log.metrics(metrics, step + 1)
        job.resume.save_if_due(
            step + 1,
            lambda: {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "taken": text.taken,
                "recent": guard.recent,
            },
        )

    if round_to_stored(model):
        measured = {}  # it was measured before rounding
    if job.group.is_main:
        save_model(model, tokenizer, job.out)
    result = {"tokens": float(sum(sizes) * length), "parameters": float(model.num_parameters())}
    # Nothing is measured yet if the run was resumed after its last step.
    return result | (measured or _evaluate(model, loss_of, held_out, job, cfg.precision))


# -- model, text and schedules ---------------------------------------------------------------------


def _model(
    cfg: Pretrain, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, job: Job
) -> PreTrainedModel:
    if "model" in inputs:
        model = load_model(inputs.one("model").path, job.device)
    else:
        model = build_model(cfg.model, tokenizer).to(job.device).eval()
        check_attention(model)
    fit_activations(job, model, cfg.precision, _length(cfg, model))
    if job.hardware.compile:
        compile_layers(model)
    return model


def _length(cfg: Pretrain, model: PreTrainedModel) -> int:
    length = cfg.sequence_length or context_length(model)
    if length > context_length(model):
        raise ConfigError(
            f"sequence_length: expected at most the model's context of {context_length(model)}, got"
            f" {length}"
        )
    return length


def _text(inputs: Inputs, split: str, length: int) -> list[TextRows]:
    """Return each source's rows of a split.

    A source that is named like an earlier one gets a number in its name.
    """
    sources = [read_tokens(folder, split, length) for folder in inputs.folders("data")]
    for number, source in enumerate(sources):
        if source.name in [other.name for other in sources[:number]]:
            source.name = f"{source.name}_{number}"
    return sources


def _held_out(inputs: Inputs, length: int, job: Job) -> list[TextRows]:
    sources = _text(inputs, "validation", length)
    if lacking := [source.name for source in sources if not len(source)]:
        job.log.info(
            f"there is no row of validation text of {', '.join(lacking)}: nothing will say how well"
            " it does there"
        )
    return [source for source in sources if len(source)]


def _batch_sizes(cfg: Pretrain, text: Mixture, length: int) -> list[int]:
    """Return the number of rows of every step.

    Raises:
        ConfigError: a source does not fill one row, or all do not fill one batch.
    """
    for source in text.sources:
        if not len(source):
            raise ConfigError(
                f"inputs.data: the training documents of {source.name} do not fill one row of"
                f" {length} tokens; give sequence_length"
            )
    if len(text) < cfg.batch_size:
        raise ConfigError(
            f"batch_size: the documents fill only {len(text)} rows of {length} tokens, got"
            f" {cfg.batch_size}"
        )
    first = max(1, round(cfg.ramp_start_tokens / length))
    ramp = cfg.batch_size, (cfg.ramp_tokens or 0) / length, first
    if cfg.num_epochs is None:
        return batch_sizes(*ramp, cfg.num_steps)
    return batch_sizes(*ramp, None, cfg.num_epochs * len(text))


def _learning_rates(cfg: Pretrain, sizes: Sequence[int], length: int) -> list[float]:
    """Return the learning rate of every step.

    A cosine that is given in tokens depends on the tokens before the step.
    """
    seen: list[float] = [0, *itertools.accumulate(size * length for size in sizes)]
    final, total = cfg.final_learning_rate_fraction, len(sizes)
    warmup = warmup_of(cfg.warmup_steps, total)
    if cfg.schedule == "constant":
        factors = [min(1.0, (step + 1) / max(1, warmup)) for step in range(total)]
    elif cfg.schedule == "inverse_square_root":
        factors = [inverse_square_root_factor(step, warmup) for step in range(total)]
    elif cfg.warmup_tokens is None and cfg.decay_tokens is None:
        factors = [cosine_factor(step, total, warmup, final) for step in range(total)]
    else:
        warm = seen[min(warmup, total)] if cfg.warmup_tokens is None else cfg.warmup_tokens
        factors = [
            cosine_factor(tokens, cfg.decay_tokens or seen[-1], warm, final) for tokens in seen[:-1]
        ]
    return [cfg.learning_rate * factor for factor in factors]


def _loss(cfg: Pretrain, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Loss:
    """Return a function that gives the summed loss over rows, `[R, length]`.

    With `isolate_documents`, no token sees another document.
    """
    if not cfg.isolate_documents:
        return lambda rows: summed_loss(model, rows)
    return lambda rows: summed_loss(model, rows, document_positions(rows, tokenizer.eos_token_id))


# -- steps -----------------------------------------------------------------------------------------


def _accumulate(loss_of: Loss, mine: torch.Tensor, count: int, job: Job, precision: str) -> float:
    """Add the gradient of this process's rows to that of the batch's mean loss.

    Args:
        mine: this process's rows of the batch.
        count: tokens that the whole batch predicts.

    Returns:
        The loss of the whole batch.
    """
    total = torch.zeros((), device=job.device)
    for chunk in _micro_batches(mine, job):
        with job.compute(precision).autocast():
            loss = loss_of(chunk) / count
        loss.backward()
        total += loss.detach()
    job.group.all_reduce(total)
    return float(total)


def _micro_batches(rows: torch.Tensor, job: Job) -> Sequence[torch.Tensor]:
    return rows.split(max(1, job.max_tokens // rows.shape[1])) if len(rows) else ()


def _passes(text: Mixture) -> Metrics:
    """Return the number of passes made over each source, if there are several."""
    if len(text.sources) == 1:
        return {}
    return {
        f"passes/{source.name}": passes
        for source, passes in zip(text.sources, text.passes, strict=True)
    }


@torch.no_grad()
def _evaluate(
    model: PreTrainedModel, loss_of: Loss, held_out: Sequence[TextRows], job: Job, precision: str
) -> Metrics:
    """Return held-out loss in nats per token, perplexity, and bits per byte.

    They are over all held-out text and, with several sources, over each source.
    """
    if not held_out:
        return {}
    model.eval()
    nats, tokens, size = [], [], []
    for source in held_out:
        total = torch.zeros((), dtype=torch.float64, device=job.device)
        for first in range(job.group.rank, len(source), job.group.world_size * 64):
            rows = source[slice(first, first + job.group.world_size * 64, job.group.world_size)]
            for chunk in _micro_batches(rows, job):
                with job.compute(precision).autocast():
                    total += loss_of(chunk)
        job.group.all_reduce(total)
        nats.append(float(total))
        tokens.append(num_targets(source[:1]) * len(source))
        size.append(source.bytes_per_token * tokens[-1])
    model.train()
    metrics = _text_metrics("eval", sum(nats), sum(tokens), sum(size))
    if len(held_out) > 1:
        for source, *own in zip(held_out, nats, tokens, size, strict=True):
            metrics |= _text_metrics(f"eval/{source.name}", *own)
    return metrics


def _text_metrics(head: str, nats: float, tokens: float, size: float) -> Metrics:
    loss = nats / tokens
    return {
        f"{head}/loss": loss,
        f"{head}/perplexity": math.exp(min(loss, 700.0)),
        f"{head}/bits_per_byte": nats / math.log(2) / size,
    }
