"""Train an encoder-decoder to write text from text.

Takes: tokens, or documents and a tokenizer: spans are taken out of their rows, and the model writes
these spans. Or tasks, which are demonstrations: the user's text is the input, the assistant's the
target. Or both, mixed in every step. Optional: a model to train further.
Makes: a seq2seq_model; predictions.jsonl with some answers to held-out tasks.
Departs from T5: a task that is too long is left out (a held-out one counts as answered wrong),
where T5 cuts it. Rows of text run on across the ends of documents, which tokens mark.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.configs import TextToText
from align.data.records import read_info, read_rows, source_name
from align.errors import ConfigError
from align.evals.intervals import bootstrap, bounds, few
from align.models.build import build_model
from align.models.load import load_one_tokenizer, round_to_stored, save_model
from align.models.seq2seq import greedy_answers, load_seq2seq, target_logprobs
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.text.chat import uses_tools
from align.text.pairs import Texts, encode_pairs, pad, similar_groups, texts_of
from align.text.spans import Corruption, Pair, longest_row, sentinels_of
from align.text.tokens import TextRows, read_tokens
from align.training.activations import fit_activations
from align.training.loss_guard import Guard
from align.training.optimizers import (
    clip_gradients,
    inverse_square_root_factor,
    pretraining_optimizers,
    step_all,
    warmup_of,
)
from align.training.row_order import Mixture, RowOrder

_CHUNK = 256  # held-out rows that are made at once
_RESAMPLES = 2000  # bootstrap resamples for an interval
_SHOWN = 20  # answers of a task that predictions.jsonl keeps


class _Task(NamedTuple):
    """A split of one set of demonstrations."""

    name: str
    texts: list[Texts]
    pairs: list[Pair]
    num_left_out: int  # rows that are too long

    @property
    def num_targets(self) -> int:
        """The number of tokens to write."""
        return sum(len(pair.target) for pair in self.pairs)


class _HeldOut(NamedTuple):
    """The data that the model is measured on."""

    head: str  # prefix of its metrics' names
    text: list[TextRows]
    tasks: list[_Task]
    max_new_tokens: int


class _Score(NamedTuple):
    """The result of a model on a task."""

    name: str
    nats: float
    tokens: int
    right: list[bool]  # one per row


def run(cfg: TextToText, inputs: Inputs, job: Job) -> Metrics:
    slots = [slot for slot in ("tokenizer", "model", "data") if slot in inputs]
    tokenizer = load_one_tokenizer([folder for slot in slots for folder in inputs.folders(slot)])
    model = _model(cfg, inputs, tokenizer, job)
    corruption = _corruption(cfg, tokenizer) if "data" in inputs else None
    rows = _rows(cfg, inputs, tokenizer, corruption, job)
    held_out = [
        _HeldOut(
            head,
            _text(inputs, split, corruption),
            _tasks(cfg, inputs, split, tokenizer, job),
            cfg.target_length,
        )
        for head, split in (("eval", "validation"), ("test", "test"))
    ]
    if not any(map(len, held_out[0].text)) and not held_out[0].tasks:
        job.log.info(
            "there are no validation rows, so nothing will say how well it does on text it was not"
            " trained on"
        )
    optimizers = pretraining_optimizers(model, cfg)
    parameters = [p for p in model.parameters() if p.requires_grad]
    guard = Guard(cfg, job.log.event)
    measure = functools.partial(_evaluate, cfg, model, tokenizer, corruption, job)
    start = 0
    if saved := job.resume.last():
        start, state = saved
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        rows.text.taken, guard.recent = state["taken"], state["recent"]

    model.train()
    if job.group.world_size > 1 and not saved:
        # All processes draw the same initial weights; only their dropout differs.
        torch.manual_seed(derive_seed(cfg.random_seed, "text_to_text", "dropout", job.group.rank))
    measured = None
    for step in job.steps(cfg.num_steps, start):
        drawn, rate = rows.draw(step), _learning_rate(cfg, step)
        pairs = [rows.pair(row) for row in job.group.share(drawn)]
        loss = _accumulate(model, pairs, sum(map(rows.num_targets, drawn)), job, cfg.precision)
        job.group.sum_gradients(parameters)
        norm = clip_gradients(parameters, cfg.max_grad_norm or math.inf)
        left_out = guard.refuses(step + 1, loss, norm)
        step_all(optimizers, None if left_out else rate)
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate}
        if (step + 1) % cfg.eval_every == 0 or step + 1 == cfg.num_steps:
            measured = measure(held_out[0])
            metrics |= measured[0]
        job.log.metrics(metrics, step + 1)
        job.resume.save_if_due(
            step + 1,
            lambda: {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "taken": rows.text.taken,
                "recent": guard.recent,
            },
        )

    if _publish(model, tokenizer, job):
        measured = None
    # Nothing is measured yet if the run was resumed after its last step.
    found, answers = measured or measure(held_out[0])
    more, last_answers = measure(held_out[1])
    job.log.table("predictions", last_answers or answers)
    return {"parameters": float(model.num_parameters()), **found, **more}


def _publish(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, job: Job) -> bool:
    """Save the model; return True if this rounded its weights.

    What was measured before is then of other weights.
    """
    rounded = round_to_stored(model)
    if job.group.is_main:
        save_model(model, tokenizer, job.out)
    return rounded


# -- model and data --------------------------------------------------------------------------------


def _model(
    cfg: TextToText, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, job: Job
) -> PreTrainedModel:
    if "model" in inputs:
        model = load_seq2seq(inputs.one("model").path, job.device)
    else:
        model = build_model(cfg.model, tokenizer).to(job.device)
    fit_activations(job, model, cfg.precision, cfg.input_length + cfg.target_length)
    return model


def _learning_rate(cfg: TextToText, step: int) -> float:
    constant = cfg.schedule == "constant"
    return cfg.learning_rate * (
        1.0
        if constant
        else inverse_square_root_factor(step, warmup_of(cfg.warmup_steps, cfg.num_steps))
    )


def _corruption(cfg: TextToText, tokenizer: PreTrainedTokenizerBase) -> Corruption:
    """Return the span corruption of a row of text whose input fills `cfg.input_length`.

    Raises:
        ConfigError: the lengths do not fit, or the tokenizer has too few sentinels.
    """
    try:
        spans = longest_row(cfg.input_length, cfg.noise_density, cfg.mean_span_length)
    except ValueError:
        raise ConfigError(
            f"input_length: too short for a row with a span taken out, got {cfg.input_length}"
        ) from None
    if spans.target_length > cfg.target_length:
        raise ConfigError(
            f"target_length: what is taken out of a row makes {spans.target_length} tokens, got"
            f" {cfg.target_length}; give a longer target or a shorter input"
        )
    sentinels = sentinels_of(tokenizer)
    if len(sentinels) < spans.num_spans:
        raise ConfigError(
            f"inputs.data: a row has {spans.num_spans} spans taken out, a sentinel in place of each"
            f" (<extra_id_0> and on), and the tokenizer has {len(sentinels)}; give"
            " num_sentinels=100 when it is trained"
        )
    return Corruption(spans, sentinels, tokenizer.eos_token_id)


def _text(inputs: Inputs, split: str, corruption: Corruption | None) -> list[TextRows]:
    if corruption is None:
        return []
    return [
        read_tokens(folder, split, corruption.spans.length) for folder in inputs.folders("data")
    ]


def _tasks(
    cfg: TextToText, inputs: Inputs, split: str, tokenizer: PreTrainedTokenizerBase, job: Job
) -> list[_Task]:
    """Return each set's rows of a split that fit.

    A set's name gets a number if an earlier set has it, or if it is `text` or `tasks`, which name
    metrics over all sets.
    """
    found: list[_Task] = []
    taken = {"text", "tasks"}
    for number, folder in enumerate(inputs.folders("tasks") if "tasks" in inputs else []):
        conversations = [row["messages"] for row in read_rows([folder], split)]
        plain = [
            each for each in conversations if not uses_tools(each) and each[-1].get("weight") != 0
        ]
        if unfit := len(conversations) - len(plain):
            which = f"{unfit:,} of {len(conversations):,} {split} rows of tasks"
            job.log.info(f"{which} left out: with turns of tools, or an answer of weight 0")
        texts = [texts_of(each) for each in plain]
        texts = texts if split == "train" else texts[: cfg.eval_rows]
        both = list(zip(texts, encode_pairs(tokenizer, texts), strict=True))
        kept = [
            (t, p)
            for t, p in both
            if len(p.input) <= cfg.input_length and len(p.target) <= cfg.target_length
        ]
        name = source_name(read_info(folder)["source"])
        name = f"{name}_{number}" if name in taken else name
        taken.add(name)
        if dropped := len(both) - len(kept):
            job.log.info(
                f"{dropped:,} of {len(both):,} {split} rows of {name} left out"
                + ("" if split == "train" else ", which counts as answered wrong")
                + f": longer than {cfg.input_length} tokens, or {cfg.target_length} to write"
            )
        if kept:
            found.append(_Task(name, [t for t, _ in kept], [p for _, p in kept], dropped))
    return found


# -- rows of a step --------------------------------------------------------------------------------


class _Drawn(NamedTuple):
    """A row of a step."""

    source: int | None  # index of the source of text; None: a task
    row: int
    seed: int  # of the spans taken out of a row of text


class _Rows:
    """The rows that each step takes.

    They depend only on the seed, the step, and the rows of text taken before it.
    """

    def __init__(
        self,
        cfg: TextToText,
        text: list[TextRows],
        corruption: Corruption | None,
        tasks: list[Pair],
    ):
        self._seed, self._corruption, self._tasks = cfg.random_seed, corruption, tasks
        self.text = Mixture(text, [], self._seed)
        self._order = RowOrder(len(tasks), self._seed, "text_to_text", "tasks")
        self._num_tasks = cfg.task_rows(bool(text), bool(tasks))
        self._num_text = cfg.batch_size - self._num_tasks

    @property
    def shares(self) -> tuple[tuple[str, int, int], ...]:
        """The (name, rows per step, rows available) of text and of tasks."""
        return ("text", self._num_text, len(self.text)), (
            "tasks",
            self._num_tasks,
            len(self._tasks),
        )

    def draw(self, step: int) -> list[_Drawn]:
        drawn = []
        if self._num_text:
            pairs = self.text.draw(step, self._num_text)
            drawn += [
                _Drawn(source, row, derive_seed(self._seed, "text_to_text", "spans", step, place))
                for place, (source, row) in enumerate(pairs)
            ]
        if self._num_tasks:
            first = step * self._num_tasks
            drawn += [
                _Drawn(None, row, 0) for row in self._order.take(first, self._num_tasks).tolist()
            ]
        return drawn

    def pair(self, drawn: _Drawn) -> Pair:
        if drawn.source is None:
            return self._tasks[drawn.row]
        assert self._corruption is not None
        return self._corruption(self.text.sources[drawn.source][drawn.row], drawn.seed)

    def num_targets(self, drawn: _Drawn) -> int:
        """Return how many tokens the model writes for a row, known before the row is made."""
        if drawn.source is None:
            return len(self._tasks[drawn.row].target)
        assert self._corruption is not None
        return self._corruption.spans.target_length


def _rows(
    cfg: TextToText,
    inputs: Inputs,
    tokenizer: PreTrainedTokenizerBase,
    corruption: Corruption | None,
    job: Job,
) -> _Rows:
    text = _text(inputs, "train", corruption)
    tasks = _tasks(cfg, inputs, "train", tokenizer, job)
    if "tasks" in inputs and not tasks:
        raise ConfigError(
            f"inputs.tasks: none has at most {cfg.input_length} tokens and {cfg.target_length} to"
            " write"
        )
    if corruption is not None and not any(map(len, text)):
        raise ConfigError(
            f"inputs.data: the training documents do not fill one row of {corruption.spans.length}"
            " tokens; give input_length"
        )
    rows = _Rows(cfg, text, corruption, [pair for task in tasks for pair in task.pairs])
    for what, wanted, there in rows.shares:
        if wanted > there:
            raise ConfigError(
                f"batch_size: {wanted} rows of a step are {what}, and there are only {there}"
            )
    return rows


# -- losses and answers ----------------------------------------------------------------------------


def _accumulate(
    model: PreTrainedModel, pairs: Sequence[Pair], count: int, job: Job, precision: str
) -> float:
    """Add the gradient of this process's rows to that of the batch's mean loss.

    Args:
        count: target tokens of the whole batch.

    Returns:
        The loss of the whole batch.
    """
    total = torch.zeros((), device=job.device)
    for nats in _losses(model, pairs, job, precision):
        loss = nats / count
        loss.backward()
        total += loss.detach()
    job.group.all_reduce(total)
    return float(total)


def _losses(
    model: PreTrainedModel, pairs: Sequence[Pair], job: Job, precision: str
) -> Iterator[torch.Tensor]:
    """Yield -log p summed over the target tokens of one group of similar pairs at a time.

    The unit is nats.
    """
    for group in similar_groups(pairs, job.max_tokens):
        batch = pad([pairs[i] for i in group], model.config.pad_token_id, job.device)
        with job.compute(precision).autocast():
            nats = -target_logprobs(model, batch).sum()
        yield nats


@torch.no_grad()
def _evaluate(
    cfg: TextToText,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corruption: Corruption | None,
    job: Job,
    held_out: _HeldOut,
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Return held-out losses in nats per token, accuracies of tasks, and some answers."""
    model.eval()
    metrics: Metrics = {}
    if corruption is not None and any(map(len, held_out.text)):
        metrics[f"{held_out.head}/text/loss"] = _text_loss(
            model, corruption, held_out.text, job, cfg.precision
        )
    scores, shown = [], []
    for task in held_out.tasks:
        answers = _answers(cfg, model, tokenizer, task, held_out.max_new_tokens, job)
        right = [
            answer.strip() == text.target.strip()
            for answer, text in zip(answers, task.texts, strict=True)
        ]
        right += [False] * task.num_left_out
        scores.append(
            _Score(task.name, _nats(model, task.pairs, job, cfg.precision), task.num_targets, right)
        )
        some = list(zip(task.texts, answers, strict=True))[:_SHOWN]
        shown += [
            {"task": task.name, "prompt": t.input, "target": t.target, "answer": answer}
            for t, answer in some
        ]
    model.train()
    if len(scores) > 1:
        nats, tokens = sum(score.nats for score in scores), sum(score.tokens for score in scores)
        metrics |= _score_metrics(
            held_out.head, _Score("tasks", nats, tokens, [x for s in scores for x in s.right])
        )
    elif scores:
        scores = [scores[0]._replace(name="tasks")]
    for score in scores:
        metrics |= _score_metrics(held_out.head, score)
    return metrics, shown


def _score_metrics(head: str, score: _Score) -> Metrics:
    interval = bootstrap([float(right) for right in score.right], _RESAMPLES, 0)
    named = {
        "loss": score.nats / score.tokens,
        "rows": float(len(score.right)),
        **bounds("accuracy", interval),
    }
    named |= few("accuracy", len(score.right))
    return {f"{head}/{score.name}/{name}": value for name, value in named.items()}


def _text_loss(
    model: PreTrainedModel,
    corruption: Corruption,
    sources: Sequence[TextRows],
    job: Job,
    precision: str,
) -> float:
    """Return the loss over all rows of text, in nats per target token.

    The spans taken out of a row are always the same, for any seed.
    """
    rows = [(source, row) for source in sources for row in range(len(source))]
    nats = 0.0
    for first in range(0, len(rows), _CHUNK):
        places = range(first, min(first + _CHUNK, len(rows)))
        seeds = [derive_seed(0, "text_to_text", "held-out", place) for place in places]
        pairs = [
            corruption(rows[i][0][rows[i][1]], seed) for i, seed in zip(places, seeds, strict=True)
        ]
        nats += _nats(model, pairs, job, precision)
    return nats / (len(rows) * corruption.spans.target_length)


def _nats(model: PreTrainedModel, pairs: Sequence[Pair], job: Job, precision: str) -> float:
    """Return -log p of all targets, in nats, summed over all processes."""
    total = torch.zeros((), dtype=torch.float64, device=job.device)
    for nats in _losses(model, job.group.share(pairs), job, precision):
        total += nats
    job.group.all_reduce(total)
    return float(total)


def _answers(
    cfg: TextToText,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: _Task,
    max_new_tokens: int,
    job: Job,
) -> list[str]:
    """Return the model's greedy answer to each input."""
    mine = job.group.share([pair.input for pair in task.pairs])
    order = sorted(range(len(mine)), key=lambda i: len(mine[i]))
    written = [""] * len(mine)
    size = job.hardware.generation_batch_size
    for first in range(0, len(order), size):
        batch = order[first : first + size]
        with job.compute(cfg.precision).autocast():
            answers = greedy_answers(model, [mine[i] for i in batch], max_new_tokens)
        for i, ids in zip(batch, answers, strict=True):
            written[i] = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return job.group.gather(written)
