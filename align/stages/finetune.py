"""Fine-tune a language model on a labelled task, as GPT-1 was.

Takes: a model and labelled rows.
Makes: a classifier: a Hugging Face sequence classifier with its tokenizer, read at the token
`<|extract|>`. With LoRA, adapter/ has the adapter that was merged into it. predictions.jsonl has
the test rows.
Departs from GPT-1: the linear layer has no bias, as in every sequence classifier of `transformers`.
Scores are standardized and learned by squared error. If a row exceeds the context, the first text
is cut first; the paper's code halves the context between both texts. No step has the learning rate
0. The last weights are kept, not those that did best on validation rows. With LoRA, the embeddings
of the task's tokens are not trained, and the classifier is published whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from align.configs import Finetune
from align.data.records import SPLITS, Row, read_rows
from align.errors import ConfigError
from align.evals.glue import choice_metrics, class_metrics, score_metrics
from align.losses.tasks import joint_loss, row_outputs, task_loss
from align.models.adapters import fresh_adapter
from align.models.build import fresh_model
from align.models.classifier import TaskModel, add_embeddings, require_classifier, save_classifier
from align.models.load import context_length, load_model, load_tokenizer
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.store.checkpoints import restore_parameters
from align.text.packing import micro_batches
from align.text.task_formats import Example, Goal, add_task_tokens, encode_rows, find_goal
from align.training.activations import fit_activations
from align.training.loss_guard import Guard
from align.training.optimizers import adamw, clip_gradients, linear_factor, step_all
from align.training.preflight import doubts
from align.training.row_order import RowOrder

_ADAPTER = "finetune"


def run(cfg: Finetune, inputs: Inputs, job: Job) -> Metrics:
    rows = {split: list(read_rows(inputs.folders("data"), split)) for split in SPLITS}
    rows["train"] = rows["train"][: cfg.num_train_rows]
    goal = find_goal(cfg.task, rows)
    folder = inputs.one("model").path
    model, tokenizer = _model(cfg, folder, goal, job)
    context = context_length(model.lm)
    encoded = {
        split: encode_rows(tokenizer, cfg.task, goal, rows[split], context) for split in SPLITS
    }
    examples = {split: found for split, (found, _) in encoded.items()}
    num_cut = sum(cut for _, cut in encoded.values())
    _tell(goal, num_cut, rows, context, job)
    if cfg.batch_size > (count := len(examples["train"])):
        raise ConfigError(
            f"batch_size: expected at most the {count} training rows, got {cfg.batch_size}"
        )
    num_parameters = model.lm.num_parameters() + model.score.weight.numel()
    adapters = (
        None if cfg.lora.rank is None else fresh_adapter(model.lm, folder, cfg.lora, _ADAPTER)
    )
    _train(cfg, model, examples["train"], goal.kind, job)

    metrics = {f"rows/{split}": float(len(found)) for split, found in examples.items()}
    metrics["cut"] = float(num_cut)
    metrics["tokens"] = float(cfg.num_epochs * sum(example.tokens for example in examples["train"]))
    metrics["parameters"] = float(num_parameters)
    for split in ("validation", "test"):
        if rows[split]:
            outputs = _predict(model, examples[split], goal, job, cfg.precision)
            metrics |= _scored(f"{split}/", goal, rows[split], outputs, cfg.random_seed)
            if split == "test":
                job.log.table("predictions", _predictions(goal, rows[split], outputs))
    if job.group.is_main:
        lm = model.lm
        if adapters is not None:
            adapters.weights(_ADAPTER).save(job.out / "adapter")
            lm = adapters.merged(_ADAPTER)
        save_classifier(lm, model.score.weight, tokenizer, cfg.task, goal, job.out)
    return metrics


def _model(
    cfg: Finetune, folder: Path, goal: Goal, job: Job
) -> tuple[TaskModel, PreTrainedTokenizerBase]:
    """Return the language model under a fresh linear layer, and its tokenizer.

    Both have the tokens that the task needs.
    """
    lm, tokenizer = (
        (fresh_model if cfg.from_scratch else load_model)(folder, job.device),
        load_tokenizer(folder),
    )
    require_classifier(lm.config)
    _, new = add_task_tokens(tokenizer)
    add_embeddings(lm, new)
    return TaskModel(lm, goal.num_outputs, cfg.classifier_dropout), tokenizer


def _tell(goal: Goal, num_cut: int, rows: dict[str, list[Row]], context: int, job: Job) -> None:
    if num_cut:
        job.log.info(
            f"{num_cut:,} of {sum(map(len, rows.values())):,} rows cut: longer than the context of"
            f" {context:,} tokens, they lose the end of their first text, or all of it and the end"
            " of the second"
        )
    if len(goal.labels) == 2:
        job.log.info(f"f1 is of the class {goal.labels[1]!r}")
    if lacking := [split for split in ("validation", "test") if not rows[split]]:
        job.log.info(
            f"there are no {' and no '.join(lacking)} rows, so nothing will say how well it does on"
            " them"
        )


def _train(cfg: Finetune, model: TaskModel, train: list[Example], kind: str, job: Job) -> None:
    fit_activations(job, model.lm, cfg.precision, max(example.tokens for example in train))
    optimizer = adamw(model, cfg.learning_rate, cfg.betas, cfg.weight_decay, cfg.adam_epsilon)
    guard = Guard(cfg, job.log.event)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    order = RowOrder(len(train), cfg.random_seed, "finetune", "rows")
    total = cfg.num_epochs * math.ceil(len(train) / cfg.batch_size)
    # `linear_factor` counts training from 0 to total + 1.
    warmup = cfg.warmup_steps if cfg.warmup_steps < 1 else cfg.warmup_steps / (total + 1)
    rates = [cfg.learning_rate * linear_factor(step, total, warmup) for step in range(total)]
    for line in doubts(rates, model.lm, trains_all=cfg.lora.rank is None):
        job.log.info(line)
    start = 0
    if saved := job.resume.last():
        start, state = saved
        restore_parameters(trained, state["parameters"])
        optimizer.load_state_dict(state["optimizer"])
        guard.recent = state.get("recent", [])  # checkpoints of earlier code have none

    model.train()
    if job.group.world_size > 1 and not saved:
        # All processes draw the same initial weights; only their dropout differs.
        torch.manual_seed(derive_seed(cfg.random_seed, "finetune", "dropout", job.group.rank))
    for step in job.steps(total, start):
        batch = [train[i] for i in order.of_step(step, cfg.batch_size).tolist()]
        losses = _accumulate(cfg, model, batch, kind, job)
        job.group.sum_gradients(parameters)
        norm = clip_gradients(parameters, cfg.max_grad_norm)
        left_out = guard.refuses(step + 1, losses["loss"], norm)
        step_all([optimizer], None if left_out else rates[step])
        job.log.metrics(losses | {"grad_norm": norm, "learning_rate": rates[step]}, step + 1)
        job.resume.save_if_due(
            step + 1,
            lambda: {
                "parameters": trained,
                "optimizer": optimizer.state_dict(),
                "recent": guard.recent,
            },
        )


def _accumulate(
    cfg: Finetune, model: TaskModel, batch: Sequence[Example], kind: str, job: Job
) -> Metrics:
    """Add the gradient of this process's rows to that of the batch's mean loss over rows.

    Returns:
        The losses of the whole batch.
    """
    mine = job.group.share(batch)
    totals = torch.zeros(2, device=job.device)
    for chunk in micro_batches([example.tokens for example in mine], job.max_tokens):
        examples = [mine[i] for i in chunk]
        counts = [len(example.sequences) for example in examples]
        with job.compute(cfg.precision).autocast():
            logits, lm_losses = model(examples, with_lm=cfg.lm_coef > 0)
        outputs = row_outputs(logits, counts, kind)
        task = torch.stack(
            [task_loss(o, e.target, kind) for o, e in zip(outputs, examples, strict=True)]
        ).sum()
        lm = torch.zeros_like(task)
        if lm_losses is not None:
            lm = torch.stack([part.mean() for part in lm_losses.split(counts)]).sum()
        (joint_loss(task, lm, cfg.lm_coef) / len(batch)).backward()
        totals += torch.stack([task.detach(), lm.detach()]) / len(batch)
    job.group.all_reduce(totals)
    named: Metrics = {
        "loss": float(joint_loss(totals[0], totals[1], cfg.lm_coef)),
        "task_loss": float(totals[0]),
    }
    return named | ({"lm_loss": float(totals[1])} if cfg.lm_coef > 0 else {})


# -- evaluation ------------------------------------------------------------------------------------


@torch.no_grad()
def _predict(
    model: TaskModel, examples: Sequence[Example], goal: Goal, job: Job, precision: str
) -> list[torch.Tensor]:
    """Return each example's logits of classes or of choices; for scores, its score.

    The score is on the scale of the rows' scores.
    """
    model.eval()
    mine = job.group.share(examples)
    found: list[list[float]] = []
    for chunk in micro_batches([example.tokens for example in mine], job.max_tokens):
        group = [mine[i] for i in chunk]
        with job.compute(precision).autocast():
            logits = model(group, with_lm=False).logits
        found += [
            o.tolist() for o in row_outputs(logits, [len(e.sequences) for e in group], goal.kind)
        ]
    outputs = [torch.tensor(output) for output in job.group.gather(found)]
    return [o * goal.deviation + goal.usual for o in outputs] if goal.kind == "score" else outputs


def _scored(
    head: str, goal: Goal, rows: Sequence[Row], outputs: Sequence[torch.Tensor], seed: int
) -> Metrics:
    gold = [goal.place(row) for row in rows]
    if goal.kind == "score":
        return score_metrics(head, gold, [float(output) for output in outputs], goal.usual, seed)
    truth, said = [int(place) for place in gold], [int(output.argmax()) for output in outputs]
    if goal.kind == "choice":
        return choice_metrics(head, truth, said, int(goal.usual), seed)
    return class_metrics(head, truth, said, int(goal.usual), len(goal.labels), seed)


def _predictions(
    goal: Goal, rows: Sequence[Row], outputs: Sequence[torch.Tensor]
) -> list[dict[str, Any]]:
    """Return each row's texts and label, with the predicted label and its probability."""
    table = []
    for row, output in zip(rows, outputs, strict=True):
        texts = {"texts": row["texts"]} | (
            {"choices": row["choices"]} if goal.kind == "choice" else {}
        )
        if goal.kind == "score":
            table.append({**texts, "score": row["score"], "predicted": float(output)})
            continue
        best = int(output.argmax())
        predicted = goal.labels[best] if goal.kind == "class" else best
        probability = float(output.softmax(0)[best])
        table.append(
            {**texts, "label": row["label"], "predicted": predicted, "probability": probability}
        )
    return table
