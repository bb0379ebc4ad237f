"""Score a model on held-out prompts and on tasks, alone and against a baseline.

Takes: a model; prompts to answer, items to be scored by likelihood, or both; optionally a baseline, a reward model
(where no gold scorer knows the prompts) and text.
Makes: an evaluation: metrics, and samples.jsonl with the answers side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.artifacts import Artifact
from align.configs import Evaluate
from align.data.records import Row, read_info, read_rows
from align.errors import ConfigError
from align.evals.facts import fact_recall, known_facts
from align.evals.gold import gold_scorer
from align.evals.intervals import bootstrap
from align.evals.items import Candidate, measures, score_items, summary
from align.evals.text_loss import encode_text, num_targets, summed_loss
from align.evals.win_rate import win_rate
from align.job import Inputs, Job, Metrics
from align.models.heads import load_scalar
from align.models.load import context_length, load_model, load_tokenizer
from align.models.packed import pack_pairs, response_logprobs, response_scores
from align.rollout.engine import Response, Sampling, generate
from align.seeds import derive_seed
from align.text.chat import decode_response, encode_dialogues, encode_prompts, show_prompt
from align.text.packing import micro_batches, pack


@dataclass(frozen=True)
class Player:
    """A model that answers, with its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answers:
    """A player's answers to all prompts at one temperature."""

    prompts: list[list[int]]
    responses: list[Response]
    texts: list[str]
    scores: list[float]


class Judge(NamedTuple):
    """Who says what an answer is worth: the world's gold scorer or a reward model."""

    name: str
    score: Callable[[Sequence[Row], Sequence[str]], list[float]]


def run(cfg: Evaluate, inputs: Inputs, job: Job) -> Metrics:
    players = [_player(cfg, slot, inputs.one(slot), job) for slot in ("model", "baseline") if slot in inputs]
    metrics = _on_prompts(cfg, inputs, job, players) if "prompts" in inputs else {}
    if "items" in inputs:
        metrics |= _on_items(cfg, inputs, job, players)
    if "text" in inputs:
        metrics["pretrain_loss"] = _text_loss(cfg, inputs, job, players[0])
        facts = known_facts([read_info(folder) for folder in inputs.folders("text")])
        if facts is not None:
            player = players[0]
            tokens = job.hardware.micro_batch_tokens
            metrics["fact_recall"] = fact_recall(player.model, player.tokenizer, facts, tokens)
    job.log(metrics, 0)
    return metrics


def _on_prompts(cfg: Evaluate, inputs: Inputs, job: Job, players: Sequence[Player]) -> Metrics:
    """The players' answers to held-out prompts, scored and compared."""
    rows = list(read_rows(inputs.folders("prompts"), "test"))[: cfg.num_prompts]
    rows = _fitting(cfg, rows, players, job)
    judge = _judge(cfg, inputs, job)
    metrics: Metrics = {"prompts": float(len(rows))}
    answers: dict[tuple[str, str], Answers] = {}
    with job.progress(2 * len(players) * len(rows), "responses") as advance:
        for prefix, temperature in (("", 1.0), ("greedy/", 0.0)):
            for player in players:
                given = _answer(cfg, judge, job, player, rows, temperature)
                answers[player.name, prefix] = given
                head = prefix if player.name == "model" else f"{prefix}baseline/"
                metrics[f"{head}{judge.name}/score"] = sum(given.scores) / len(given.scores)
                advance(len(rows))
            metrics |= _compared(cfg, answers, prefix)
    sampled = answers["model", ""]
    metrics["response_tokens"] = sum(len(r.ids) for r in sampled.responses) / len(rows)
    if len(players) == 2 and players[0].tokenizer.get_vocab() == players[1].tokenizer.get_vocab():
        metrics["kl"] = _kl(cfg, job, players, sampled)
    job.table("samples", [_sample_row(i, rows[i], answers) for i in range(min(cfg.num_samples, len(rows)))])
    return metrics


def _on_items(cfg: Evaluate, inputs: Inputs, job: Job, players: Sequence[Player]) -> Metrics:
    """The likelihood scores of each task, and of each of its groups; against the baseline item by item."""
    metrics: Metrics = {}
    for folder in inputs.folders("items"):
        name = _task_name(read_info(folder)["source"])
        items = list(read_rows([folder], "test"))[: cfg.num_items]
        scores = [_scored(cfg, player, items, job) for player in players]
        groups = sorted({item["group"] for item in items})
        for group in ("", *(groups if len(groups) > 1 else ())):
            chosen = [i for i, item in enumerate(items) if group in ("", item["group"])]
            values = [measures([items[i] for i in chosen], [own[i] for i in chosen]) for own in scores]
            head = f"tasks/{name}/{group}/" if group else f"tasks/{name}/"
            metrics |= _task_metrics(cfg, head, values)
    return metrics


def _task_name(source: str) -> str:
    """`card:lambada` is lambada; `path:here/my_items.jsonl` my_items."""
    return source.partition(":")[2].rpartition("/")[2].partition(".")[0].partition("@")[0]


def _scored(cfg: Evaluate, player: Player, items: Sequence[Row], job: Job) -> list[list[Candidate]]:
    mine = [items[i] for i in job.share(range(len(items)))]
    try:
        count = sum(len(item["completions"]) for item in mine)
        with job.progress(count, "candidates") as advance, job.autocast(cfg.precision):
            own = score_items(player.model, player.tokenizer, mine, job.hardware.micro_batch_tokens, advance)
    except ValueError as error:
        raise ConfigError(f"inputs.items: {error}") from None
    return [[Candidate(*candidate) for candidate in row] for row in job.gather(own)]


def _task_metrics(cfg: Evaluate, head: str, values: Sequence[Mapping[str, list[float]]]) -> Metrics:
    seed = derive_seed(cfg.seed or 0, "evaluate", "bootstrap")
    metrics: Metrics = {f"{head}items": float(len(values[0]["accuracy"]))}
    for prefix, own in zip(("", "baseline/"), values, strict=False):
        for name, interval in summary(own, cfg.num_bootstrap, seed).items():
            bounds = {"": interval.mean, "_low": interval.low, "_high": interval.high}
            metrics |= {f"{head}{prefix}{name}{end}": value for end, value in bounds.items()}
    if len(values) == 2:
        for name in values[0].keys() - {"logprob"}:
            gain = bootstrap(np.asarray(values[0][name]) - np.asarray(values[1][name]), cfg.num_bootstrap, seed)
            bounds = {"": gain.mean, "_low": gain.low, "_high": gain.high}
            metrics |= {f"{head}gain/{name}{end}": value for end, value in bounds.items()}
    return metrics


def _player(cfg: Evaluate, name: str, artifact: Artifact, job: Job) -> Player:
    folder = artifact.path / "ema" if name == "model" and cfg.weights == "ema" else artifact.path
    if not folder.is_dir():
        raise ConfigError(f"weights=ema: {artifact.stage}@{artifact.key[:12]} keeps no average; give weights=raw")
    return Player(name, load_model(folder, job.device), load_tokenizer(folder))


def _fitting(cfg: Evaluate, rows: list[Row], players: Sequence[Player], job: Job) -> list[Row]:
    """Prompts that leave every player room to answer."""
    prompts = [row["prompt"] for row in rows]
    fits = [True] * len(rows)
    for player in players:
        room = context_length(player.model) - cfg.max_new_tokens
        fits = [
            ok and len(ids) <= room for ok, ids in zip(fits, encode_prompts(player.tokenizer, prompts), strict=True)
        ]
    if not any(fits):
        raise ConfigError(f"inputs.prompts: no test prompt leaves room for {cfg.max_new_tokens} new tokens")
    if not all(fits):
        job.info(f"{fits.count(False)} prompts are too long and left out")
    return [row for row, ok in zip(rows, fits, strict=True) if ok]


def _answer(cfg: Evaluate, judge: Judge, job: Job, player: Player, rows: Sequence[Row], temperature: float) -> Answers:
    prompts = encode_prompts(player.tokenizer, [row["prompt"] for row in rows])
    mine = job.share(range(len(rows)))
    sampling = Sampling(
        max_new_tokens=cfg.max_new_tokens, temperature=temperature, batch_size=job.hardware.generation_batch_size
    )
    drawn: list[Response] = [Response([], [])] * len(mine)
    for place, response in generate(
        player.model,
        [prompts[i] for i in mine],
        [derive_seed(cfg.seed or 0, "evaluate", player.name, i) for i in mine],
        sampling,
        eos_token_id=player.tokenizer.eos_token_id,
        pad_token_id=player.tokenizer.pad_token_id,
    ):
        drawn[place] = response
    responses = job.gather(drawn)
    texts = [decode_response(player.tokenizer, response.ids) for response in responses]
    return Answers(prompts, responses, texts, judge.score(rows, texts))


def _judge(cfg: Evaluate, inputs: Inputs, job: Job) -> Judge:
    """Gold scores where the prompts' world has them, the reward model's otherwise, on the text in its own tokens."""
    gold = gold_scorer([read_info(folder) for folder in inputs.folders("prompts")])
    if gold is not None:
        return Judge("gold", lambda rows, texts: [gold(r["prompt"], text) for r, text in zip(rows, texts, strict=True)])
    if "reward_model" not in inputs:
        raise ConfigError("inputs.reward_model: these prompts have no gold scorer, so a reward model must judge")
    folder = inputs.one("reward_model").path
    model, tokenizer = load_scalar(folder, job.device), load_tokenizer(folder)

    @torch.no_grad()
    def score(rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
        sequences = encode_dialogues(tokenizer, [row["prompt"] for row in rows], texts)
        scores: list[float] = []
        for group in micro_batches(list(map(len, sequences)), job.hardware.micro_batch_tokens):
            with job.autocast(cfg.precision):
                scores += response_scores(model, pack([sequences[i] for i in group], job.device)).tolist()
        return scores

    return Judge("reward", score)


def _compared(cfg: Evaluate, answers: dict[tuple[str, str], Answers], prefix: str) -> Metrics:
    if ("baseline", prefix) not in answers:
        return {}
    model, baseline = answers["model", prefix], answers["baseline", prefix]
    seed = derive_seed(cfg.seed or 0, "evaluate", "bootstrap")
    won = win_rate(model.scores, baseline.scores, cfg.num_bootstrap, seed)
    return {
        f"{prefix}win_rate": won.rate,
        f"{prefix}win_rate_low": won.low,
        f"{prefix}win_rate_high": won.high,
        f"{prefix}ties": won.ties,
    }


@torch.no_grad()
def _kl(cfg: Evaluate, job: Job, players: Sequence[Player], sampled: Answers) -> float:
    """KL(model || baseline) in nats a response, from the model's samples at temperature 1."""
    responses = [response.ids for response in sampled.responses]
    lengths = [len(p) + len(r) for p, r in zip(sampled.prompts, responses, strict=True)]
    total = 0.0
    for group in micro_batches(lengths, job.hardware.micro_batch_tokens):
        chosen = [responses[i] for i in group]
        packed = pack_pairs([sampled.prompts[i] for i in group], chosen, job.device)
        with job.autocast(cfg.precision):
            one, two = (response_logprobs(player.model, packed, chosen) for player in players)
        total += float((one - two).double().sum())
    return total / len(responses)


@torch.no_grad()
def _text_loss(cfg: Evaluate, inputs: Inputs, job: Job, player: Player) -> float:
    """The loss on held-out pretraining text in nats a token: what the tuning cost, the alignment tax."""
    texts = [row["text"] for row in read_rows(inputs.folders("text"), "validation")]
    rows = encode_text(texts, player.tokenizer, context_length(player.model)).rows
    if not len(rows):
        raise ConfigError("inputs.text: its validation split fills no row")
    total = torch.zeros((), dtype=torch.float64, device=job.device)
    for chunk in rows.split(max(1, job.hardware.micro_batch_tokens // rows.shape[1])):
        with job.autocast(cfg.precision):
            total += summed_loss(player.model, chunk)
    return float(total) / num_targets(rows)


def _sample_row(i: int, row: Row, answers: dict[tuple[str, str], Answers]) -> dict[str, str | float]:
    sampled, greedy = answers["model", ""], answers["model", "greedy/"]
    shown: dict[str, str | float] = {
        "prompt": show_prompt(row["prompt"]),
        "response": sampled.texts[i],
        "score": sampled.scores[i],
        "greedy": greedy.texts[i],
        "greedy_score": greedy.scores[i],
    }
    if ("baseline", "") in answers:
        baseline = answers["baseline", ""]
        shown |= {"baseline": baseline.texts[i], "baseline_score": baseline.scores[i]}
    return shown
