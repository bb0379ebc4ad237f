"""Fine-tune a language model on demonstrations. The loss is on the assistant's tokens only.

Takes: a model and demonstrations. Optional: pretraining text to mix in.
Makes: a model. With LoRA, it is an adapter on the base of the given model, unless lora.merged is
true.
Departs from InstructGPT: the epoch with the lowest validation loss is kept; InstructGPT chooses by
a reward model's score. Mixtures of experts are trained without the loss that balances their
experts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.configs import Sft, filled
from align.data.records import Row, read_rows
from align.errors import ConfigError, StoreError
from align.models.adapters import fresh_adapter
from align.models.load import (
    load_model,
    load_tokenizer,
    precision_lines,
    sequence_length,
)
from align.models.packed import learned_logprobs
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.store.artifacts import replacing, sha256_file
from align.store.checkpoints import Parameters, restore_parameters
from align.text.chat import Encoded, TemplateRefusal, encode_conversations, takes_tools, uses_tools
from align.text.packing import micro_batches, pack
from align.text.tokens import encode_text
from align.training.activations import fit_activations
from align.training.loss_guard import Guard
from align.training.optimizers import (
    adamw,
    clip_gradients,
    cosine_factor,
    step_all,
    warmup_of,
)
from align.training.preflight import doubts
from align.training.row_order import RowOrder
from align.training.saving import save_tuned

_ADAPTER = "sft"


class Example(NamedTuple):
    """A sequence of token ids, with True at each token whose loss counts."""

    ids: list[int]
    learned: list[bool]

    @property
    def num_learned(self) -> int:
        return sum(self.learned)


def run(cfg: Sft, inputs: Inputs, job: Job) -> Metrics:
    folder = inputs.one("model").path
    model, tokenizer = load_model(folder, job.device), load_tokenizer(folder)
    if cfg.lora.rank is None:
        for line in precision_lines(model):
            job.log.info(line)
    length = sequence_length(cfg.sequence_length, model)
    train, dropped = _demonstrations(inputs, "train", tokenizer, length, job)
    held_out, _ = _demonstrations(inputs, "validation", tokenizer, length, job)
    if not train and not dropped:
        raise ConfigError(
            "inputs.data: it has no training rows; to train on all of its rows, make the data"
            " first: align data source=... record=demonstrations split=train name=mine/data"
        )
    if not train:
        raise ConfigError(
            f"inputs.data: no demonstration is left to learn from within {length:,} tokens"
        )
    if not held_out:
        job.log.info("there are no validation rows, so no validation loss will be reported")
    text = _text(cfg, inputs, train, tokenizer, length, job)

    num_parameters, adapters = model.num_parameters(), None
    if cfg.lora.rank is not None:
        adapters = fresh_adapter(model, folder, cfg.lora, _ADAPTER)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    _train(cfg, model, train, text, held_out, job)
    model = save_tuned(model, adapters, _ADAPTER, cfg.lora.merged, tokenizer, job)
    metrics = {"demonstrations": float(len(train)), "dropped": float(dropped)}
    metrics["tokens"] = float(cfg.num_epochs * sum(len(example.ids) for example in [*train, *text]))
    metrics["parameters"] = float(num_parameters)
    metrics["trained_parameters"] = float(num_trained)
    return metrics | (_validation(cfg, model, held_out, job) if held_out else {})


# -- examples --------------------------------------------------------------------------------------


def _demonstrations(
    inputs: Inputs, split: str, tokenizer: PreTrainedTokenizerBase, length: int, job: Job
) -> tuple[list[Example], int]:
    """Return the usable demonstrations, and how many rows are not usable.

    A usable demonstration has tokens to learn and fits into `length` tokens.
    """
    rows = list(read_rows(inputs.folders("data"), split))
    encoded = _encode(rows, split, tokenizer, job)
    examples = [Example(e.ids, e.by_assistant) for e in encoded]
    learned = [example for example in examples if example.num_learned]
    if nothing := len(examples) - len(learned):
        job.log.info(
            f"{nothing:,} of {len(examples):,} {split} demonstrations left out: no token of theirs"
            " is learned"
        )
    fitting = [example for example in learned if len(example.ids) <= length]
    if long := len(learned) - len(fitting):
        which = f"{long:,} of {len(learned):,} {split} demonstrations"
        job.log.info(f"{which} left out: longer than sequence_length, {length:,} tokens")
    return fitting, len(rows) - len(fitting)


def _encode(
    rows: list[Row], split: str, tokenizer: PreTrainedTokenizerBase, job: Job
) -> list[Encoded]:
    """Encode demonstrations; leave out and log those with tools that the template cannot write.

    Raises:
        ConfigError: the chat template refuses another conversation.
    """
    with_tools = takes_tools(tokenizer)
    if unread := sum(row.get("tools") is not None for row in rows) * (not with_tools):
        job.log.info(
            f"the model's chat template writes no list of tools: {unread:,} {split} rows are read"
            " without theirs"
        )
    encoded: list[Encoded | None] = [None] * len(rows)
    plain = [
        i
        for i, row in enumerate(rows)
        if row.get("tools") is None and not uses_tools(row["messages"])
    ]
    conversations = [rows[i]["messages"] for i in plain]
    try:
        for i, found in zip(plain, encode_conversations(tokenizer, conversations), strict=True):
            encoded[i] = found
    except TemplateRefusal as error:
        raise ConfigError(
            f"inputs.data: {split} row {plain[error.index] + 1}: {error.reason}"
        ) from None
    refused: Counter[str] = Counter()
    for i in sorted(set(range(len(rows))).difference(plain)):
        tools = rows[i].get("tools") if with_tools else None
        try:
            (encoded[i],) = encode_conversations(tokenizer, [rows[i]["messages"]], tools=[tools])
        except TemplateRefusal as error:
            refused[error.reason] += 1
    for reason, count in refused.items():
        job.log.info(f"{count:,} of {len(rows):,} {split} rows left out, with tools: {reason}")
    return [found for found in encoded if found is not None]


def _text(
    cfg: Sft,
    inputs: Inputs,
    train: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    job: Job,
) -> list[Example]:
    """Return rows of pretraining text that make up `text_share` of the training tokens.

    All tokens of a row but the first are learned.
    """
    if cfg.text_share == 0:
        if "text" in inputs:
            job.log.info("inputs.text is not read: text_share is 0")
        return []
    tokens = sum(len(example.ids) for example in train) * cfg.text_share / (1 - cfg.text_share)
    rows = encode_text(
        (row["text"] for row in read_rows(inputs.folders("text"), "train")), tokenizer, length
    )
    if len(rows) * length < tokens:
        job.log.info(
            f"text_share={cfg.text_share} takes {tokens:,.0f} tokens, and the text has"
            f" {len(rows) * length:,}"
        )
    generator = torch.Generator().manual_seed(derive_seed(cfg.random_seed, "sft", "text"))
    chosen = rows[
        torch.randperm(len(rows), generator=generator)[: math.ceil(tokens / length)]
    ].tolist()
    return [Example(ids, [False, *[True] * (length - 1)]) for ids in chosen]


def _text_of_step(text: Sequence[Example], step: int, steps: int) -> Sequence[Example]:
    """Return the rows of text for step `step` of an epoch of `steps`.

    The rows are spread evenly, each once per epoch.
    """
    return text[step * len(text) // steps : (step + 1) * len(text) // steps]


# -- steps -----------------------------------------------------------------------------------------


def _train(
    cfg: Sft,
    model: PreTrainedModel,
    train: Sequence[Example],
    text: Sequence[Example],
    held_out: Sequence[Example],
    job: Job,
) -> None:
    """Train the parameters that require gradients; in the end, restore those of the best epoch."""
    model.train()
    fit_activations(job, model, cfg.precision, max(len(example.ids) for example in [*train, *text]))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    peak = filled(cfg.learning_rate)
    optimizer = adamw(model, peak, cfg.betas, cfg.weight_decay, cfg.adam_epsilon)
    guard = Guard(cfg, job.log.event)
    order = RowOrder(len(train), cfg.random_seed, "sft", "rows")
    steps_per_epoch = math.ceil(len(train) / cfg.batch_size)
    total = cfg.num_epochs * steps_per_epoch
    warmup = warmup_of(cfg.warmup_steps, total)
    rates = [
        peak * cosine_factor(step, total, warmup, cfg.final_learning_rate_fraction)
        for step in range(total)
    ]
    for line in doubts(rates, model, trains_all=cfg.lora.rank is None):
        job.log.info(line)
    best = BestEpoch(job.work, parameters, job)
    start = 0
    if saved := job.resume.last():
        start, state = saved
        restore_parameters(parameters, state["parameters"])
        optimizer.load_state_dict(state["optimizer"])
        guard.recent = state.get("recent", [])  # checkpoints of earlier code have none
        best.load_state(state["best"])
    else:
        if job.group.world_size > 1:
            torch.manual_seed(derive_seed(cfg.random_seed, "sft", "dropout", job.group.rank))
        if held_out:
            job.log.metrics({"eval/loss": response_loss(model, held_out, job, cfg.precision)}, 0)

    for step in job.steps(total, start):
        batch = [train[i] for i in order.of_step(step, cfg.batch_size).tolist()]
        batch += _text_of_step(text, step % steps_per_epoch, steps_per_epoch)
        loss = _accumulate(model, batch, job, cfg.precision)
        job.group.sum_gradients(list(parameters.values()))
        norm = clip_gradients(list(parameters.values()), cfg.max_grad_norm)
        left_out = guard.refuses(step + 1, loss, norm)
        step_all([optimizer], None if left_out else rates[step])
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rates[step]}
        if held_out and (step + 1) % steps_per_epoch == 0:
            metrics["eval/loss"] = response_loss(model, held_out, job, cfg.precision)
            best.look(step + 1, metrics["eval/loss"])
        job.log.metrics(metrics, step + 1)
        job.resume.save_if_due(
            step + 1,
            lambda: {
                "parameters": parameters,
                "optimizer": optimizer.state_dict(),
                "recent": guard.recent,
                "best": best.state(),
            },
        )

    best.put_back(total)


def _accumulate(
    model: PreTrainedModel, batch: Sequence[Example], job: Job, precision: str
) -> float:
    """Add the gradient of this process's examples to that of the batch's loss per learned token.

    Returns:
        The loss of the whole batch.
    """
    count = sum(example.num_learned for example in batch)
    mine = job.group.share(batch)
    total = torch.zeros((), device=job.device)
    for group in micro_batches([len(example.ids) for example in mine], job.max_tokens):
        with job.compute(precision).autocast():
            loss = _summed_loss(model, [mine[i] for i in group]) / count
        loss.backward()
        total += loss.detach()
    job.group.all_reduce(total)
    return float(total)


def _summed_loss(model: PreTrainedModel, examples: Sequence[Example]) -> torch.Tensor:
    """Return the sum of -log p over the learned tokens, in nats."""
    packed = pack([example.ids for example in examples], model.device)
    learned = torch.tensor(
        [flag for example in examples for flag in example.learned], device=model.device
    )
    return -learned_logprobs(model, packed, learned).sum()


@torch.no_grad()
def response_loss(
    model: PreTrainedModel, examples: Sequence[Example], job: Job, precision: str
) -> float:
    """Return the mean loss over the learned tokens, in nats."""
    training = model.training
    model.eval()
    mine = job.group.share(examples)
    total = torch.zeros(2, dtype=torch.float64, device=job.device)
    for group in micro_batches([len(example.ids) for example in mine], job.max_tokens):
        chosen = [mine[i] for i in group]
        with job.compute(precision).autocast():
            total[0] += _summed_loss(model, chosen).double()
        total[1] += sum(example.num_learned for example in chosen)
    job.group.all_reduce(total)
    model.train(training)
    return float(total[0] / total[1])


def _validation(cfg: Sft, model: PreTrainedModel, held_out: Sequence[Example], job: Job) -> Metrics:
    """Return the validation loss of the trained model, and that of the given model.

    Only the main process returns the second.
    """
    after = response_loss(model, held_out, job, cfg.precision)
    if not job.group.is_main:  # only the main process has the log and publishes metrics
        return {"eval/loss": after}
    before = job.log.read_metrics()[0]["eval/loss"]
    if not after < before:
        job.log.info(
            f"the validation loss did not fall: {before:.4g} before training, {after:.4g} after"
        )
    return {"eval/loss": after, "eval/loss_before": before}


# -- the best epoch --------------------------------------------------------------------------------


class BestEpoch:
    """The trained weights after the epoch with the lowest validation loss, in a file until the end.

    The files that the last two checkpoints refer to are kept, because training may resume from
    either.
    """

    def __init__(self, folder: Path, parameters: Parameters, job: Job):
        self._folder, self._parameters, self._job = folder, parameters, job
        self.loss, self.step = math.inf, 0
        self._digest = ""  # sha256 of the kept weights' file
        self._of_checkpoints = [0, 0]  # the steps that the last two checkpoints refer to

    def look(self, step: int, loss: float) -> None:
        """Keep the weights after `step` if their validation loss is the lowest so far."""
        if not loss < self.loss:  # also true for NaN
            return
        self.loss, self.step = loss, step
        if not self._job.group.is_main:
            return
        tensors = {name: p.detach().contiguous() for name, p in self._parameters.items()}
        with replacing(self._file(step)) as part:
            save_file(tensors, part)
            self._digest = sha256_file(part)
        for other in self._folder.glob(self._file("*").name):
            if other not in [self._file(each) for each in (step, *self._of_checkpoints)]:
                other.unlink()

    def put_back(self, last_step: int) -> None:
        """Restore the kept weights if training went on after them.

        Raises:
            StoreError: the file is damaged.
        """
        if self.step in (0, last_step):
            return
        self._job.group.barrier()  # the main process may still be writing
        file = self._file(self.step)
        if self._job.group.is_main and not (file.is_file() and sha256_file(file) == self._digest):
            raise StoreError(
                f"{file}: is damaged; remove {self._folder} and give the same command to start the"
                " step again"
            )
        restore_parameters(self._parameters, load_file(file, device=str(self._job.device)))
        self._job.log.info(
            f"the weights of step {self.step} are kept: their validation loss is the lowest"
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold; keep the file that this checkpoint refers to."""
        self._of_checkpoints = [self._of_checkpoints[1], self.step]
        before, _ = self._of_checkpoints
        return {"loss": self.loss, "step": self.step, "digest": self._digest, "before": before}

    def load_state(self, state: dict[str, Any]) -> None:
        self.loss, self.step, self._digest = state["loss"], state["step"], state["digest"]
        self._of_checkpoints = [state["before"], self.step]

    def _file(self, step: int | str) -> Path:
        return self._folder / f"best-{step}.safetensors"
