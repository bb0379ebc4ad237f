"""Train a reward model on rankings.

Takes: a model (the SFT model) and comparisons; optionally demonstrations, whose mean score becomes 0.
Makes: a reward model: a Hugging Face sequence classifier with its tokenizer and `align_reward_shift` in its config.
With LoRA it is an adapter with a head, on the base of the model that was given.
Departs from InstructGPT: it starts from the SFT model of the policy's own size, not from a 6B model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from align.configs import Reward
from align.data.records import read_rows
from align.errors import ConfigError, HealthStop
from align.evals.calibration import calibration_error, reliability
from align.job import Inputs, Job, Metrics
from align.losses.preference import kwise_loss, pair_confidences, pairwise_accuracy
from align.models.adapters import fresh_adapter
from align.models.heads import ScalarModel, scalar_from_lm
from align.models.load import context_length, load_tokenizer, precision_lines, round_to_stored
from align.models.packed import response_scores
from align.optimizers import adamw, cosine_factor, set_learning_rate
from align.text.chat import TemplateRefusal, encode_conversations, encode_dialogues
from align.text.packing import micro_batches, pack
from align.text.rows import RowOrder

_ADAPTER = "reward"


class Ranking(NamedTuple):
    """One prompt with its ranked responses, as token ids."""

    sequences: list[list[int]]  # prompt and response, K of them
    ranks: list[int]
    gold: list[float] | None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


def run(cfg: Reward, inputs: Inputs, job: Job) -> Metrics:
    folder = inputs.one("model").path
    model, tokenizer = scalar_from_lm(folder, job.device), load_tokenizer(folder)
    for line in precision_lines(model.classifier):
        job.info(line)
    context = context_length(model.classifier)
    train, dropped = _rankings(inputs, "train", tokenizer, context)
    held_out, _ = _rankings(inputs, "validation", tokenizer, context)
    if dropped:
        job.info(f"{dropped} rankings are left out: all tied, or longer than the context of {context} tokens")
    if not train:
        raise ConfigError("inputs.data: no ranking is left to learn from")
    num_parameters, adapters = model.classifier.num_parameters(), None
    if cfg.lora.rank is not None:
        adapters = fresh_adapter(model.classifier, folder, cfg.lora, _ADAPTER)
        model.classifier.score.requires_grad_(True)
    num_trained = _train(cfg, model, train, job)
    whole = adapters is None or cfg.lora.merged
    if adapters is not None and whole:
        model = ScalarModel(adapters.merged(_ADAPTER))
    if whole:
        round_to_stored(model.classifier)  # before it is measured
    metrics = {"rankings": float(len(train)), "dropped": float(dropped)}
    metrics["tokens"] = float(cfg.num_epochs * sum(ranking.tokens for ranking in train))
    metrics["parameters"] = float(num_parameters)
    metrics["trained_parameters"] = float(num_trained)
    metrics |= _accuracies(model, held_out, job, cfg.precision) if held_out else {}
    metrics |= _centre(model, inputs, tokenizer, context, job, cfg.precision)
    if job.is_main:
        if adapters is None or whole:
            model.save(job.out)
            tokenizer.save_pretrained(job.out)
        else:
            adapters.save(_ADAPTER, job.out, tokenizer, model.classifier.score)
    return metrics


def _train(cfg: Reward, model: ScalarModel, train: Sequence[Ranking], job: Job) -> int:
    """Train what requires a gradient; gives how many parameters that are."""
    optimizer = adamw(model, cfg.learning_rate, weight_decay=cfg.weight_decay)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    order = RowOrder(len(train), cfg.seed or 0, "reward", "rows")
    start = 0
    if saved := job.resume():
        start, state = saved
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state["model"][name])
        optimizer.load_state_dict(state["optimizer"])

    model.eval()  # dropout stays off: a score must not change when it is asked for again
    total = cfg.num_epochs * math.ceil(len(train) / cfg.batch_size)
    for step in job.steps(total, start):
        batch = [train[i] for i in order.of_step(step, cfg.batch_size).tolist()]
        loss = _accumulate(model, batch, job, cfg.precision)
        job.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.max_grad_norm)
        if not math.isfinite(loss) or not torch.isfinite(norm):
            raise HealthStop(
                f"step {step}: the loss is {loss} and the gradient's norm {float(norm)}; lower learning_rate"
            )
        factor = cosine_factor(step, total, cfg.warmup_steps, cfg.final_learning_rate_fraction)
        set_learning_rate(optimizer, cfg.learning_rate * factor)
        optimizer.step()
        optimizer.zero_grad()
        job.log({"loss": loss, "grad_norm": float(norm), "learning_rate": cfg.learning_rate * factor}, step + 1)
        job.checkpoint(step + 1, lambda: _state(trained, optimizer))
    return sum(p.numel() for p in parameters)


def _state(trained: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a checkpoint holds: a frozen base is read again."""
    return {"model": {name: p.detach() for name, p in trained.items()}, "optimizer": optimizer.state_dict()}


def _rankings(
    inputs: Inputs, split: str, tokenizer: PreTrainedTokenizerBase, context: int
) -> tuple[list[Ranking], int]:
    """Rankings with an order in them that fit into the context, and how many do not."""
    rows = list(read_rows(inputs.folders("data"), split))
    count = [len(row["responses"]) for row in rows]
    owners = [i for i, k in enumerate(count) for _ in range(k)]
    responses = [text for row in rows for text in row["responses"]]
    try:
        encoded = iter(encode_dialogues(tokenizer, [rows[i]["prompt"] for i in owners], responses))
    except TemplateRefusal as error:
        raise ConfigError(f"inputs.data: {split} row {owners[error.index] + 1}: {error.reason}") from None
    rankings = []
    for row, k in zip(rows, count, strict=True):
        sequences = [next(encoded) for _ in range(k)]
        if len(set(row["ranks"])) > 1 and max(map(len, sequences)) <= context:
            rankings.append(Ranking(sequences, row["ranks"], row.get("gold")))
    return rankings, len(rows) - len(rankings)


def _accumulate(model: ScalarModel, batch: Sequence[Ranking], job: Job, precision: str) -> float:
    """Add the gradient of the batch's mean loss over prompts, this process's share; return the whole batch's loss."""
    mine = job.share(batch)
    total = torch.zeros((), device=job.device)
    for chunk in micro_batches([ranking.tokens for ranking in mine], job.hardware.micro_batch_tokens):
        rankings = [mine[i] for i in chunk]
        rewards = _scores(model, rankings, job, precision)
        losses = [kwise_loss(r, torch.tensor(q.ranks, device=r.device)) for r, q in zip(rewards, rankings, strict=True)]
        loss = torch.stack(losses).sum() / len(batch)
        loss.backward()
        total += loss.detach()
    job.all_reduce(total)
    return float(total)


def _scores(model: ScalarModel, rankings: Sequence[Ranking], job: Job, precision: str) -> tuple[torch.Tensor, ...]:
    """The rewards of each ranking's responses, one forward for each response."""
    packed = pack([sequence for ranking in rankings for sequence in ranking.sequences], job.device)
    with job.autocast(precision):
        scores = response_scores(model, packed)
    return scores.split([len(ranking.sequences) for ranking in rankings])


@torch.no_grad()
def _accuracies(model: ScalarModel, held_out: Sequence[Ranking], job: Job, precision: str) -> Metrics:
    """Shares of ordered pairs put right: by the model and by length alone against the labelers; all against gold.

    Beside them how well its sureness of the labelers' verdicts is founded, in calibration.jsonl by bins of it.
    """
    names = ("accuracy", "length_accuracy", "gold_accuracy", "labeler_gold_accuracy")
    counts = torch.zeros(len(names), 2, device=job.device)
    pairs: list[tuple[float, float]] = []  # confidence, and whether it was right
    mine = job.share(held_out)
    for chunk in micro_batches([ranking.tokens for ranking in mine], job.hardware.micro_batch_tokens):
        rankings = [mine[i] for i in chunk]
        for rewards, ranking in zip(_scores(model, rankings, job, precision), rankings, strict=True):
            ranks = torch.tensor(ranking.ranks)
            lengths = torch.tensor([len(sequence) for sequence in ranking.sequences])
            counts[0] += torch.tensor(pairwise_accuracy(rewards.cpu(), ranks), device=job.device)
            counts[1] += torch.tensor(pairwise_accuracy(lengths, ranks), device=job.device)
            pairs += torch.stack(pair_confidences(rewards.cpu(), ranks), 1).tolist()
            if ranking.gold is not None:
                gold = -torch.tensor(ranking.gold)
                ordered = ranks[:, None] != ranks[None, :]
                counts[2] += torch.tensor(pairwise_accuracy(rewards.cpu(), gold), device=job.device)
                better = gold[:, None] < gold[None, :]
                counts[3] += torch.stack([(better & (ranks[:, None] < ranks[None, :])).sum(), (better & ordered).sum()])
    job.all_reduce(counts)
    shares = {name: float(right / n) for name, (right, n) in zip(names, counts, strict=True) if n > 0}
    if every := job.gather(pairs, even=False):
        sure, right = zip(*every, strict=True)
        bins = [{"task": "pairs", "model": "model", **each._asdict()} for each in reliability(sure, right)]
        job.table("calibration", bins)
        shares["ece"] = calibration_error(sure, right)
    return shares | {"held_out_prompts": float(len(held_out)), "held_out_pairs": float(counts[0, 1])}


@torch.no_grad()
def _centre(
    model: ScalarModel, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, context: int, job: Job, precision: str
) -> Metrics:
    """Shift the scores so that the demonstrations' mean is 0 [InstructGPT, section 3.5]."""
    if "demonstrations" not in inputs:
        job.info("no demonstrations were given, so the scores stay where they are")
        return {}
    rows = list(read_rows(inputs.folders("demonstrations"), "train"))
    conversations = [row["messages"] for row in rows]
    sequences = [e.ids for e in encode_conversations(tokenizer, conversations, "inputs.demonstrations: train row")]
    sequences = [ids for ids in sequences if len(ids) <= context]
    if not sequences:
        raise ConfigError(f"inputs.demonstrations: none fits into the context of {context} tokens")
    mine = job.share(sequences)
    total = torch.zeros(2, dtype=torch.float64, device=job.device)
    for chunk in micro_batches(list(map(len, mine)), job.hardware.micro_batch_tokens):
        with job.autocast(precision):
            scores = response_scores(model, pack([mine[i] for i in chunk], job.device)).double()
        total += torch.stack([scores.sum(), (scores**2).sum()])
    job.all_reduce(total)
    mean, square = (total / len(sequences)).tolist()
    model.shift += mean
    deviation = max(0.0, square - mean**2) ** 0.5
    return {"demonstrations/score_before_shift": mean, "demonstrations/score_deviation": deviation}
