"""Train a reward model on rankings.

Takes: a model (the SFT model) and comparisons. Optional: demonstrations, whose mean score becomes
0.
Makes: a reward model: a Hugging Face sequence classifier with its tokenizer and
`align_reward_shift` in its config. With LoRA, it is an adapter with a head, on the base of the
given model, unless lora.merged is true. An ensemble has its first member there and the others in
`members/`.
Departs from InstructGPT: it starts from the SFT model of the policy's own size, not from a 6B
model.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from align.configs import Reward, filled
from align.data.records import Message, Row, read_rows
from align.errors import ConfigError
from align.evals.calibration import calibration_error, reliability, temperature
from align.evals.intervals import few, few_warning
from align.labelling.labelled import ADJUDICATED
from align.losses.preference import (
    kwise_loss,
    ordered_margins,
    pair_confidences,
    pairwise_accuracy,
)
from align.models.adapters import fresh_adapter
from align.models.heads import Ensemble, ScalarModel, scalar_from_lm
from align.models.load import load_tokenizer, precision_lines, round_to_stored, sequence_length
from align.models.packed import response_scores
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.store.checkpoints import restore_parameters
from align.text.chat import Encoded, encode_conversations, encode_dialogues, takes_tools
from align.text.packing import micro_batches, pack
from align.text.rankings import encode_rankings, nothing_to_learn
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


class Pair(NamedTuple):
    """An ordered pair of held-out responses.

    Attributes:
        confidence: in the response that the model prefers, 0.5 to 1.
        right: 1 if labelers prefer it too, 0.5 if both rewards are equal, else 0.
        margin: the reward of the response that labelers prefer minus that of the other one.
        half: 0 or 1, by prompt; one half fits what the other one measures.
    """

    confidence: float
    right: float
    margin: float
    half: int


class Ranking(NamedTuple):
    """One prompt with its K ranked responses, as token ids.

    Attributes:
        sequences: prompt and response. Equal responses share one sequence, so that the model reads
            it once.
        places: for each of the K responses, the index of its sequence.
        ranks: K ranks, 1 for the best.
        gold: K gold scores; None if the data have none.
        ratings: K ratings by the labeler; None if there are none, or none are needed.
        labeler: who ranked; empty if the data do not say.
        half: 0 or 1, by prompt.
    """

    sequences: list[list[int]]
    places: list[int]
    ranks: list[int]
    gold: list[float] | None
    ratings: list[float] | None = None
    labeler: str = ""
    half: int = 0

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


def run(cfg: Reward, inputs: Inputs, job: Job) -> Metrics:
    folder = inputs.one("model").path
    members = [scalar_from_lm(folder, job.device) for _ in range(cfg.num_members)]
    first, tokenizer = members[0], load_tokenizer(folder)
    if cfg.lora.rank is None:
        for line in precision_lines(first.classifier):
            job.log.info(line)
    length = sequence_length(cfg.sequence_length, first.classifier)
    train, dropped = _training_rankings(cfg, inputs, tokenizer, length, job)
    held_out, _ = _rankings(cfg, inputs, "validation", tokenizer, length, job)
    train, held_out, others = _by_labelers(cfg, train, held_out)
    num_parameters = sum(member.classifier.num_parameters() for member in members)
    adapters = None
    if cfg.lora.rank is not None:
        adapters = fresh_adapter(first.classifier, folder, cfg.lora, _ADAPTER)
        first.classifier.score.requires_grad_(True)
    num_trained = sum(p.numel() for m in members for p in m.parameters() if p.requires_grad)
    seen = [_seen(cfg, train, number) for number in range(cfg.num_members)]
    _train(cfg, members, seen, job)
    if adapters is not None and cfg.lora.merged:
        members, adapters = [ScalarModel(adapters.merged(_ADAPTER))], None
    if adapters is None:
        for member in members:
            round_to_stored(member.classifier)  # first, so that metrics are of the saved weights
    model = _as_one(members)
    metrics = {"rankings": float(len(train)), "dropped": float(dropped)}
    metrics["tokens"] = float(cfg.num_epochs * sum(r.tokens for own in seen for r in own))
    metrics["parameters"] = float(num_parameters)
    metrics["trained_parameters"] = float(num_trained)
    metrics |= _held_out(model, held_out, others, job, cfg.precision)
    metrics |= _centre(members, inputs, tokenizer, length, job, cfg.precision)
    if job.group.is_main:
        if adapters is not None:
            adapters.save(_ADAPTER, job.out, tokenizer, first.classifier.score)
        else:
            model.save(job.out)
            tokenizer.save_pretrained(job.out)
    return metrics


def _held_out(
    model: ScalarModel | Ensemble,
    held_out: Sequence[Ranking],
    others: Sequence[Ranking],
    job: Job,
    precision: str,
) -> Metrics:
    """Return how well held-out rankings are predicted, and those of labelers who were left out."""
    if not held_out:
        job.log.info("there are no validation rows, so no accuracy is reported")
    metrics = _accuracies(model, held_out, job, precision) if held_out else {}
    metrics |= _accuracy_of_others(model, others, job, precision) if others else {}
    if (warning := few_warning(metrics)) is not None:
        job.log.info(warning)
    return metrics


def _as_one(members: Sequence[ScalarModel]) -> ScalarModel | Ensemble:
    return members[0] if len(members) == 1 else Ensemble(members)


def _seen(cfg: Reward, train: Sequence[Ranking], member: int) -> Sequence[Ranking]:
    """Return the training rankings that a member of an ensemble sees."""
    count = max(1, round(cfg.member_fraction * len(train)))
    if count == len(train):
        return train
    return random.Random(derive_seed(cfg.random_seed, "reward", "member", member)).sample(
        train, count
    )


def _by_labelers(
    cfg: Reward, train: list[Ranking], held_out: list[Ranking]
) -> tuple[list[Ranking], list[Ranking], list[Ranking]]:
    """Leave out the rankings of one group of labelers [InstructGPT, section 4.1].

    The seed deals the labelers into groups.

    Returns:
        (training rankings, validation rankings, validation rankings of the group that is left out).

    Raises:
        ConfigError: there are too few labelers, or a group has ranked nothing.
    """
    if not cfg.held_out_labelers:
        return train, held_out, []
    group, groups = cfg.labeler_group
    # Nobody is left out whose name is not known, or who decided for all: "adjudicated".
    names = sorted({ranking.labeler for ranking in [*train, *held_out]} - {"", ADJUDICATED})
    if len(names) < groups:
        raise ConfigError(
            f"held_out_labelers: expected rankings by {groups} labelers or more, with their names"
            f" in a column `labeler`; the data have {len(names)}"
        )
    random.Random(derive_seed(cfg.random_seed, "reward", "labelers")).shuffle(names)
    left_out = set(names[group - 1 :: groups])
    own = [[r for r in rows if r.labeler not in left_out] for rows in (train, held_out)]
    others = [ranking for ranking in held_out if ranking.labeler in left_out]
    if not (own[0] and own[1] and others):
        raise ConfigError(
            f"held_out_labelers: group {cfg.held_out_labelers} leaves {len(own[0]):,} training"
            f" rankings, {len(own[1]):,} validation rankings, and {len(others):,} of its own;"
            " expected some of each"
        )
    return own[0], own[1], others


def _training_rankings(
    cfg: Reward, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, length: int, job: Job
) -> tuple[list[Ranking], int]:
    """Return the usable training rankings, of which there is one at least, as `_rankings` does."""
    train, dropped = _rankings(cfg, inputs, "train", tokenizer, length, job)
    unrated = sum(ranking.ratings is None for ranking in train)
    if cfg.margin and train:
        if unrated == len(train):
            raise ConfigError(
                "inputs.data: margin needs ratings, one number for each response in a column"
                " `ratings`; no training row has them"
            )
        if unrated:
            job.log.info(f"{unrated:,} of {len(train):,} training rankings have no ratings")
    if not train:
        raise ConfigError(nothing_to_learn(dropped, length))
    return train, dropped


def _rankings(
    cfg: Reward,
    inputs: Inputs,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    job: Job,
) -> tuple[list[Ranking], int]:
    """Return the usable rankings, and how many rows are not usable."""

    def encode(prompts: Sequence[list[Message]], responses: Sequence[str]) -> list[Encoded]:
        # A reward model reads sequences as a whole, so it needs no mask.
        return [Encoded(ids, []) for ids in encode_dialogues(tokenizer, prompts, responses)]

    found, left_out = encode_rankings(inputs.folders("data"), split, encode, length, job.log.info)
    place = f"inputs.data: {split}"
    rankings = [
        Ranking(
            [sequence.ids for sequence in sequences],
            places,
            row["ranks"],
            row.get("gold"),
            _ratings(row, len(places), place) if cfg.margin else None,
            "" if row.get("labeler") is None else str(row["labeler"]),
            derive_seed(0, "reward", "half", json.dumps(row["prompt"])) % 2,
        )
        for row, sequences, places in found
    ]
    return rankings, left_out


def _ratings(row: Row, count: int, place: str) -> list[float] | None:
    """Return the labeler's ratings of a row's responses; None unless all have one.

    Raises:
        ConfigError: they are something else than one number for each response.
    """
    found = row.get("ratings")
    if isinstance(found, str):  # lists of users' own columns are kept as JSON text
        found = json.loads(found)
    if found is None or (isinstance(found, list) and None in found):
        return None
    numbers = isinstance(found, list) and all(isinstance(each, int | float) for each in found)
    if not numbers or len(found) != count:
        raise ConfigError(
            f"{place} rows: ratings: expected {count} numbers, one for each response, got {found!r}"
        )
    return [float(rating) for rating in found]


def _train(
    cfg: Reward, members: Sequence[ScalarModel], seen: Sequence[Sequence[Ranking]], job: Job
) -> None:
    """Train the parameters that require gradients.

    Args:
        seen: the training rankings of each member.
    """
    longest = max(len(ids) for own in seen for ranking in own for ids in ranking.sequences)
    for member in members:
        fit_activations(job, member.classifier, cfg.precision, longest, num_models=cfg.num_members)
    model = _as_one(members)
    peak = filled(cfg.learning_rate)
    optimizer = adamw(model, peak, cfg.betas, cfg.weight_decay, cfg.adam_epsilon)
    guard = Guard(cfg, job.log.event)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    orders = [
        RowOrder(len(own), cfg.random_seed, "reward", "rows", *([str(number)] if number else []))
        for number, own in enumerate(seen)
    ]
    total = cfg.num_epochs * math.ceil(len(seen[0]) / cfg.batch_size)
    warmup = warmup_of(cfg.warmup_steps, total)
    rates = [
        peak * cosine_factor(step, total, warmup, cfg.final_learning_rate_fraction)
        for step in range(total)
    ]
    for line in doubts(rates, members[0].classifier, trains_all=cfg.lora.rank is None):
        job.log.info(line)
    start = 0
    if saved := job.resume.last():
        start, state = saved
        restore_parameters(trained, state["parameters"])
        optimizer.load_state_dict(state["optimizer"])
        guard.recent = state.get("recent", [])  # checkpoints of earlier code have none

    model.eval()  # no dropout: the same input must always have the same score
    for step in job.steps(total, start):
        told = []
        for member, own, order in zip(members, seen, orders, strict=True):
            batch = [own[i] for i in order.of_step(step, cfg.batch_size).tolist()]
            told.append(_accumulate(cfg, member, batch, job))
        loss, accuracy, norm = (sum(values) / len(told) for values in zip(*told, strict=True))
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
    cfg: Reward, model: ScalarModel, batch: Sequence[Ranking], job: Job
) -> tuple[float, float, float]:
    """Compute the gradient of the batch's mean loss over prompts, in all processes, and clip it.

    Returns:
        The whole batch's loss, the fraction of its ordered pairs that the model orders as the
        labelers do, and the gradient's norm before clipping.
    """
    mine, max_tokens = job.group.share(batch), job.max_tokens
    total, pairs = torch.zeros((), device=job.device), torch.zeros(2, device=job.device)
    for chunk in micro_batches([ranking.tokens for ranking in mine], max_tokens):
        rankings = [mine[i] for i in chunk]
        if rankings[0].tokens > max_tokens:
            loss, scores = _backward_in_parts(cfg, model, rankings[0], len(batch), job)
        else:
            scores = _scores(model, rankings, job, cfg.precision)
            loss = _losses(cfg, scores, rankings).sum() / len(batch)
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
    parameters = [p for p in model.parameters() if p.requires_grad]
    job.group.sum_gradients(parameters)
    return float(total), float(pairs[0] / pairs[1]), clip_gradients(parameters, cfg.max_grad_norm)


def _losses(
    cfg: Reward, scores: Sequence[torch.Tensor], rankings: Sequence[Ranking]
) -> torch.Tensor:
    return torch.stack(
        [
            kwise_loss(
                own,
                torch.tensor(ranking.ranks, device=own.device),
                _leads(cfg.margin, ranking, own.device),
                cfg.center_rewards_coefficient,
            )
            for own, ranking in zip(scores, rankings, strict=True)
        ]
    )


def _leads(margin: float, ranking: Ranking, device: torch.device) -> torch.Tensor | None:
    """Return by how much each reward should exceed each other one, [K, K]; None without a margin.

    It is 0 where the labeler's ratings contradict the ranking.
    """
    if ranking.ratings is None:
        return None
    ratings = torch.tensor(ranking.ratings, device=device)
    return margin * (ratings[:, None] - ratings[None, :]).clamp(min=0)


def _backward_in_parts(
    cfg: Reward, model: ScalarModel, ranking: Ranking, num_prompts: int, job: Job
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
        with job.compute(cfg.precision).autocast():
            return response_scores(model, pack([ranking.sequences[i] for i in group], job.device))

    with torch.no_grad():
        scores = torch.cat([score(group) for group in groups])
    scores.requires_grad_(True)
    loss = _losses(cfg, [scores[ranking.places]], [ranking]).sum() / num_prompts
    (gradient,) = torch.autograd.grad(loss, scores)
    for group in groups:
        score(group).backward(gradient[group])
    return loss.detach(), [scores[ranking.places]]


def _scores(
    model: ScalarModel | Ensemble, rankings: Sequence[Ranking], job: Job, precision: str
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
def _judged(
    model: ScalarModel | Ensemble, rankings: Sequence[Ranking], job: Job, precision: str
) -> Iterator[tuple[Ranking, torch.Tensor]]:
    """Yield each ranking of this process's share with its K rewards."""
    mine = job.group.share(rankings)
    for chunk in micro_batches([ranking.tokens for ranking in mine], job.max_tokens):
        own = [mine[i] for i in chunk]
        for ranking, rewards in zip(own, _scores(model, own, job, precision), strict=True):
            yield ranking, rewards.cpu()


def _accuracies(
    model: ScalarModel | Ensemble, held_out: Sequence[Ranking], job: Job, precision: str
) -> Metrics:
    """Return fractions of ordered pairs that are ordered right, and how calibrated the model is.

    The model, and length alone, are compared with the labelers. The model and the labelers are
    compared with the gold scores. The calibration error compares the model's confidence in a pair
    with the labelers' verdicts; calibration.jsonl has it by bins of confidence.
    """
    names = ("accuracy", "length_accuracy", "gold_accuracy", "labeler_gold_accuracy")
    counts = torch.zeros(len(names), 2, device=job.device)
    pairs: list[Pair] = []
    for ranking, rewards in _judged(model, held_out, job, precision):
        ranks = torch.tensor(ranking.ranks)
        lengths = torch.tensor([len(ranking.sequences[place]) for place in ranking.places])
        counts[0] += torch.tensor(pairwise_accuracy(rewards, ranks), device=job.device)
        counts[1] += torch.tensor(pairwise_accuracy(lengths, ranks), device=job.device)
        columns = (*pair_confidences(rewards, ranks), ordered_margins(rewards, ranks))
        table = torch.stack(columns, 1).tolist()
        pairs += [Pair(sure, hit, margin, ranking.half) for sure, hit, margin in table]
        if ranking.gold is not None:
            gold = -torch.tensor(ranking.gold)
            ordered = ranks[:, None] != ranks[None, :]
            counts[2] += torch.tensor(pairwise_accuracy(rewards, gold), device=job.device)
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
        shares |= _calibration(every, job)
    return shares | {
        "held_out_prompts": float(len(held_out)),
        "held_out_pairs": float(counts[0, 1]),
    }


def _calibration(pairs: Sequence[Pair], job: Job) -> Metrics:
    """Return the calibration error as the model is and at the temperature that fits best.

    Half of the prompts give the temperature at which the other half is measured, and the other way
    round. So no prompt is measured at a temperature that it chose.
    """
    right = [pair.right for pair in pairs]
    curves = {"model": [pair.confidence for pair in pairs]}
    metrics = {
        "ece": calibration_error(curves["model"], right),
        **few("ece", len(pairs)),
        "temperature": temperature([pair.margin for pair in pairs]),
    }
    halves = [[pair.margin for pair in pairs if pair.half == half] for half in (0, 1)]
    if all(halves):
        fitted = [temperature(halves[1 - half]) for half in (0, 1)]
        tempered = [_sigmoid(abs(pair.margin) / fitted[pair.half]) for pair in pairs]
        curves["at its temperature"] = tempered
        metrics["tempered_ece"] = calibration_error(tempered, right)
    job.log.table(
        "calibration",
        [
            {"task": "pairs", "model": name, **each._asdict()}
            for name, confidences in curves.items()
            for each in reliability(confidences, right)
        ],
    )
    return metrics


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-min(value, 700.0)))


def _accuracy_of_others(
    model: ScalarModel | Ensemble, others: Sequence[Ranking], job: Job, precision: str
) -> Metrics:
    """Return how well the rankings of the labelers that were left out are predicted."""
    counts = torch.zeros(2, device=job.device)
    for ranking, rewards in _judged(model, others, job, precision):
        ranks = torch.tensor(ranking.ranks)
        counts += torch.tensor(pairwise_accuracy(rewards, ranks), device=job.device)
    job.group.all_reduce(counts)
    right, pairs = counts.tolist()
    name = "held_out_labelers/accuracy"
    return {name: right / pairs, "held_out_labelers/pairs": pairs} | few(name, pairs)


@torch.no_grad()
def _centre(
    members: Sequence[ScalarModel],
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
    # Each member, and last the ensemble: the sum of its scores and of their squares.
    totals = torch.zeros(len(members) + 1, 2, dtype=torch.float64, device=job.device)
    for chunk in micro_batches(list(map(len, mine)), job.max_tokens):
        packed = pack([mine[i] for i in chunk], job.device)
        with job.compute(precision).autocast():
            each = [response_scores(member, packed) for member in members]
        for row, scores in enumerate([*each, torch.stack(each).mean(0)]):
            totals[row] += torch.stack([scores.double().sum(), (scores.double() ** 2).sum()])
    job.group.all_reduce(totals)
    means, squares = (totals / len(sequences)).T.tolist()
    for member, mean in zip(members, means, strict=False):
        member.shift += mean
    deviation = max(0.0, squares[-1] - means[-1] ** 2) ** 0.5
    return {
        "demonstrations/score_before_shift": means[-1],
        "demonstrations/score_deviation": deviation,
    }
