"""Train a reward model on rankings.

Takes: a model (the SFT model) and comparisons. Optional: demonstrations, whose mean score becomes
0.
Makes: a reward model: a Hugging Face sequence classifier with its tokenizer and
`align_reward_shift` in its config. With LoRA, it is an adapter with a head, on the base of the
given model, unless lora.merged is true.
Departs from InstructGPT: it starts from the SFT model of the policy's own size, not from a 6B
model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from align.configs import Reward, filled
from align.data.records import read_rows
from align.errors import ConfigError
from align.evals.calibration import calibration_error, reliability
from align.evals.intervals import few, few_warning
from align.losses.preference import kwise_loss, pair_confidences, pairwise_accuracy
from align.models.adapters import fresh_adapter
from align.models.heads import ScalarModel, scalar_from_lm
from align.models.load import load_tokenizer, precision_lines, round_to_stored, sequence_length
from align.models.packed import response_scores
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.store.checkpoints import restore_parameters
from align.text.chat import TemplateRefusal, encode_conversations, encode_dialogues, takes_tools
from align.text.packing import micro_batches, pack
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

_ADAPTER = "reward"


class Ranking(NamedTuple):
    """One prompt with its K ranked responses, as token ids.

    Attributes:
        sequences: prompt and response. Equal responses share one sequence, so that the model reads
            it once.
        places: for each of the K responses, the index of its sequence.
        ranks: K ranks, 1 for the best.
        gold: K gold scores; None if the data have none.
    """

    sequences: list[list[int]]
    places: list[int]
    ranks: list[int]
    gold: list[float] | None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


def run(cfg: Reward, inputs: Inputs, job: Job) -> Metrics:
    folder = inputs.one("model").path
    model, tokenizer = scalar_from_lm(folder, job.device), load_tokenizer(folder)
    if cfg.lora.rank is None:
        for line in precision_lines(model.classifier):
            job.log.info(line)
    length = sequence_length(cfg.sequence_length, model.classifier)
    train, dropped = _training_rankings(inputs, tokenizer, length, job)
    held_out, _ = _rankings(inputs, "validation", tokenizer, length, job)
    if not held_out:
        job.log.info("there are no validation rows, so no accuracy will be reported")
    num_parameters, adapters = model.classifier.num_parameters(), None
    if cfg.lora.rank is not None:
        adapters = fresh_adapter(model.classifier, folder, cfg.lora, _ADAPTER)
        model.classifier.score.requires_grad_(True)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    _train(cfg, model, train, job)
    if adapters is not None and cfg.lora.merged:
        model, adapters = ScalarModel(adapters.merged(_ADAPTER)), None
    if adapters is None:
        round_to_stored(model.classifier)  # first, so that metrics are of the saved weights
    metrics = {"rankings": float(len(train)), "dropped": float(dropped)}
    metrics["tokens"] = float(cfg.num_epochs * sum(ranking.tokens for ranking in train))
    metrics["parameters"] = float(num_parameters)
    metrics["trained_parameters"] = float(num_trained)
    metrics |= _accuracies(model, held_out, job, cfg.precision) if held_out else {}
    metrics |= _centre(model, inputs, tokenizer, length, job, cfg.precision)
    if job.group.is_main:
        if adapters is not None:
            adapters.save(_ADAPTER, job.out, tokenizer, model.classifier.score)
        else:
            model.save(job.out)
            tokenizer.save_pretrained(job.out)
    return metrics


def _training_rankings(
    inputs: Inputs, tokenizer: PreTrainedTokenizerBase, length: int, job: Job
) -> tuple[list[Ranking], int]:
    """Return the usable training rankings, of which there is one at least, as `_rankings` does."""
    train, dropped = _rankings(inputs, "train", tokenizer, length, job)
    if train:
        return train, dropped
    if dropped:
        raise ConfigError(f"inputs.data: no ranking is left to learn from within {length:,} tokens")
    raise ConfigError(
        "inputs.data: it has no training rows; to train on all of its rows, make the data"
        " first: align data source=... record=comparisons split=train name=mine/data"
    )


def _rankings(
    inputs: Inputs, split: str, tokenizer: PreTrainedTokenizerBase, length: int, job: Job
) -> tuple[list[Ranking], int]:
    """Return the usable rankings, and how many rows are not usable.

    A usable ranking has an order, and its sequences fit into `length` tokens.

    Raises:
        ConfigError: the chat template refuses a row.
    """
    rows = list(read_rows(inputs.folders("data"), split))
    count = [len(row["responses"]) for row in rows]
    owners = [i for i, k in enumerate(count) for _ in range(k)]
    responses = [text for row in rows for text in row["responses"]]
    try:
        encoded = iter(encode_dialogues(tokenizer, [rows[i]["prompt"] for i in owners], responses))
    except TemplateRefusal as error:
        raise ConfigError(
            f"inputs.data: {split} row {owners[error.index] + 1}: {error.reason}"
        ) from None
    rankings, tied = [], 0
    for row, k in zip(rows, count, strict=True):
        found: dict[tuple[int, ...], int] = {}
        places = [found.setdefault(tuple(next(encoded)), len(found)) for _ in range(k)]
        if len(set(row["ranks"])) == 1:
            tied += 1
        elif max(map(len, found)) <= length:
            rankings.append(Ranking(list(map(list, found)), places, row["ranks"], row.get("gold")))
    dropped = len(rows) - len(rankings)
    if dropped:
        why = [f"{tied:,} all tied"] if tied else []
        why += (
            [f"{dropped - tied:,} longer than sequence_length, {length:,} tokens"]
            if dropped > tied
            else []
        )
        job.log.info(f"{dropped:,} of {len(rows):,} {split} rankings left out: {'; '.join(why)}")
    return rankings, dropped


def _train(cfg: Reward, model: ScalarModel, train: Sequence[Ranking], job: Job) -> None:
    """Train the parameters that require gradients."""
    longest = max(len(ids) for ranking in train for ids in ranking.sequences)
    fit_activations(job, model.classifier, cfg.precision, longest)
    peak = filled(cfg.learning_rate)
    optimizer = adamw(model, peak, cfg.betas, cfg.weight_decay, cfg.adam_epsilon)
    guard = Guard(cfg, job.log.event)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    order = RowOrder(len(train), cfg.random_seed, "reward", "rows")
    total = cfg.num_epochs * math.ceil(len(train) / cfg.batch_size)
    warmup = warmup_of(cfg.warmup_steps, total)
    rates = [
        peak * cosine_factor(step, total, warmup, cfg.final_learning_rate_fraction)
        for step in range(total)
    ]
    for line in doubts(rates, model.classifier, trains_all=cfg.lora.rank is None):
        job.log.info(line)
    start = 0
    if saved := job.resume.last():
        start, state = saved
        restore_parameters(trained, state["parameters"])
        optimizer.load_state_dict(state["optimizer"])
        guard.recent = state.get("recent", [])  # checkpoints of earlier code have none

    model.eval()  # no dropout: the same input must always have the same score
    for step in job.steps(total, start):
        batch = [train[i] for i in order.of_step(step, cfg.batch_size).tolist()]
        loss, accuracy = _accumulate(model, batch, job, cfg.precision)
        job.group.sum_gradients(parameters)
        norm = clip_gradients(parameters, cfg.max_grad_norm)
        left_out = guard.refuses(step + 1, loss, norm)
        step_all([optimizer], None if left_out else rates[step])
        job.log.metrics(
            {"loss": loss, "accuracy": accuracy, "grad_norm": norm, "learning_rate": rates[step]},
            step + 1,
        )
        job.resume.save_if_due(
            step + 1,
            lambda: {
                "parameters": trained,
                "optimizer": optimizer.state_dict(),
                "recent": guard.recent,
            },
        )


def _accumulate(
    model: ScalarModel, batch: Sequence[Ranking], job: Job, precision: str
) -> tuple[float, float]:
    """Add the gradient of this process's rankings to that of the batch's mean loss over prompts.

    Returns:
        The whole batch's loss, and the fraction of its ordered pairs that the model orders as the
        labelers do.
    """
    mine, max_tokens = job.group.share(batch), job.max_tokens
    total, pairs = torch.zeros((), device=job.device), torch.zeros(2, device=job.device)
    for chunk in micro_batches([ranking.tokens for ranking in mine], max_tokens):
        rankings = [mine[i] for i in chunk]
        if rankings[0].tokens > max_tokens:
            loss, scores = _backward_in_parts(model, rankings[0], len(batch), job, precision)
        else:
            scores = _scores(model, rankings, job, precision)
            loss = _losses(scores, rankings).sum() / len(batch)
            loss.backward()
        total += loss.detach()
        found = (
            torch.cat(list(scores))
            .detach()
            .cpu()
            .split([len(ranking.ranks) for ranking in rankings])
        )
        for own, ranking in zip(found, rankings, strict=True):
            pairs += torch.tensor(
                pairwise_accuracy(own, torch.tensor(ranking.ranks)), device=job.device
            )
    job.group.all_reduce(total)
    job.group.all_reduce(pairs)
    return float(total), float(pairs[0] / pairs[1])


def _losses(scores: Sequence[torch.Tensor], rankings: Sequence[Ranking]) -> torch.Tensor:
    pairs = zip(scores, rankings, strict=True)
    return torch.stack(
        [kwise_loss(own, torch.tensor(r.ranks, device=own.device)) for own, r in pairs]
    )


def _backward_in_parts(
    model: ScalarModel, ranking: Ranking, num_prompts: int, job: Job, precision: str
) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """Add the gradient of one ranking whose responses have too many tokens for one pass.

    The loss needs all scores at once. So they are computed without a graph first. Then each
    response goes through the model a second time, with the gradient of its score known [Gao et al.
    2021, gradient caching].

    Returns:
        Its part of the loss, and its scores in the form that `_scores` returns.
    """
    groups = micro_batches(list(map(len, ranking.sequences)), job.max_tokens)

    def score(group: list[int]) -> torch.Tensor:
        with job.compute(precision).autocast():
            return response_scores(model, pack([ranking.sequences[i] for i in group], job.device))

    with torch.no_grad():
        scores = torch.cat([score(group) for group in groups])
    scores.requires_grad_(True)
    loss = _losses([scores[ranking.places]], [ranking]).sum() / num_prompts
    (gradient,) = torch.autograd.grad(loss, scores)
    for group in groups:
        score(group).backward(gradient[group])
    return loss.detach(), [scores[ranking.places]]


def _scores(
    model: ScalarModel, rankings: Sequence[Ranking], job: Job, precision: str
) -> Sequence[torch.Tensor]:
    """Return the rewards of each ranking's K responses, `[K]` each.

    Equal responses share one forward pass.
    """
    packed = pack([sequence for ranking in rankings for sequence in ranking.sequences], job.device)
    with job.compute(precision).autocast():
        scores = response_scores(model, packed)
    own = scores.split([len(ranking.sequences) for ranking in rankings])
    return [each[ranking.places] for each, ranking in zip(own, rankings, strict=True)]


@torch.no_grad()
def _accuracies(
    model: ScalarModel, held_out: Sequence[Ranking], job: Job, precision: str
) -> Metrics:
    """Return fractions of ordered pairs that are ordered right, and the calibration error.

    The model, and length alone, are compared with the labelers. The model and the labelers are
    compared with the gold scores. The calibration error compares the model's confidence in a pair
    with the labelers' verdicts; calibration.jsonl has it by bins of confidence.
    """
    names = ("accuracy", "length_accuracy", "gold_accuracy", "labeler_gold_accuracy")
    counts = torch.zeros(len(names), 2, device=job.device)
    pairs: list[tuple[float, float]] = []  # (confidence, whether it was right)
    mine = job.group.share(held_out)
    for chunk in micro_batches([ranking.tokens for ranking in mine], job.max_tokens):
        rankings = [mine[i] for i in chunk]
        for rewards, ranking in zip(
            _scores(model, rankings, job, precision), rankings, strict=True
        ):
            ranks = torch.tensor(ranking.ranks)
            lengths = torch.tensor([len(ranking.sequences[place]) for place in ranking.places])
            counts[0] += torch.tensor(pairwise_accuracy(rewards.cpu(), ranks), device=job.device)
            counts[1] += torch.tensor(pairwise_accuracy(lengths, ranks), device=job.device)
            pairs += torch.stack(pair_confidences(rewards.cpu(), ranks), 1).tolist()
            if ranking.gold is not None:
                gold = -torch.tensor(ranking.gold)
                ordered = ranks[:, None] != ranks[None, :]
                counts[2] += torch.tensor(pairwise_accuracy(rewards.cpu(), gold), device=job.device)
                better = gold[:, None] < gold[None, :]
                counts[3] += torch.stack(
                    [(better & (ranks[:, None] < ranks[None, :])).sum(), (better & ordered).sum()]
                )
    job.group.all_reduce(counts)
    shares: Metrics = {}
    for name, (right, n) in zip(names, counts, strict=True):
        if n > 0:
            shares |= {name: float(right / n)} | few(name, float(n))
    if every := job.group.gather(pairs, even=False):
        sure, right = zip(*every, strict=True)
        bins = [
            {"task": "pairs", "model": "model", **each._asdict()}
            for each in reliability(sure, right)
        ]
        job.log.table("calibration", bins)
        shares |= {"ece": calibration_error(sure, right)} | few("ece", len(every))
    if (warning := few_warning(shares)) is not None:
        job.log.info(warning)
    return shares | {
        "held_out_prompts": float(len(held_out)),
        "held_out_pairs": float(counts[0, 1]),
    }


@torch.no_grad()
def _centre(
    model: ScalarModel,
    inputs: Inputs,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    job: Job,
    precision: str,
) -> Metrics:
    """Shift the scores so that the demonstrations' mean is 0 [InstructGPT, section 3.5].

    Raises:
        ConfigError: no demonstration fits into `length` tokens.
    """
    if "demonstrations" not in inputs:
        job.log.info("no demonstrations were given, so the scores stay where they are")
        return {}
    rows = list(read_rows(inputs.folders("demonstrations"), "train"))
    conversations = [row["messages"] for row in rows]
    tools = [row.get("tools") for row in rows] if takes_tools(tokenizer) else None
    encoded = encode_conversations(
        tokenizer, conversations, "inputs.demonstrations: train row", tools
    )
    sequences = [e.ids for e in encoded if len(e.ids) <= length]
    if not sequences:
        raise ConfigError(f"inputs.demonstrations: none fits into {length:,} tokens")
    if dropped := len(encoded) - len(sequences):
        which = f"{dropped:,} of {len(encoded):,} demonstrations"
        job.log.info(
            f"{which} left out of the mean that is 0: longer than sequence_length, {length:,}"
            " tokens"
        )
    mine = job.group.share(sequences)
    total = torch.zeros(2, dtype=torch.float64, device=job.device)
    for chunk in micro_batches(list(map(len, mine)), job.max_tokens):
        with job.compute(precision).autocast():
            scores = response_scores(model, pack([mine[i] for i in chunk], job.device)).double()
        total += torch.stack([scores.sum(), (scores**2).sum()])
    job.group.all_reduce(total)
    mean, square = (total / len(sequences)).tolist()
    model.shift += mean
    deviation = max(0.0, square - mean**2) ** 0.5
    return {"demonstrations/score_before_shift": mean, "demonstrations/score_deviation": deviation}
