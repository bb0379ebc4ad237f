"""Score a model on held-out prompts and on tasks, alone and against a baseline.

Takes: a model, and one or several of: prompts to answer, prompts with IFEval's instructions, items
to score, pretraining text, tasks of lm-eval. Optional: a baseline; prompted models (with several,
the one that was best on validation prompts is used); and a reward model (for prompts that no gold
scorer knows).
Makes: an evaluation: metrics, samples.jsonl (answers side by side), calibration.jsonl,
answers_TASK.jsonl.

Means have 95 % intervals, NAME_low to NAME_high. `baseline/` is the baseline's mean, and `gain/` is
the model's minus the baseline's. `prompted_base/` is the prompted model's score, and the model's
wins over it. NAME_few is the number of items if they are too few for the interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from align.configs import Evaluate, filled, learns_from_preferences, learns_from_rewards
from align.configs.evaluate import IFEVAL, RESERVED, VALIDATION_SCORE
from align.data.records import SPLITS, Row, read_info, read_rows
from align.errors import ConfigError, StoreError
from align.evals.checks import load_check
from align.evals.facts import TASK, known_facts
from align.evals.free_form import write_answers
from align.evals.gold import asks_for_facts, gold_scorer
from align.evals.instructions import instruction_metrics, instructions_of, verdict_rows
from align.evals.intervals import compared, few, few_warning
from align.evals.items import Candidate, encode_pair, score_items
from align.evals.judge import Endpoint
from align.evals.players import (
    Answers,
    Messages,
    Player,
    alike,
    episodes_of,
    fit,
    kl,
    respond,
    sample_row,
)
from align.evals.scorers import Scorer, by_gold, by_reward_model, by_rules
from align.evals.shots import prefixed, prefixed_prompt, with_shots
from align.evals.steering import PROBES, Probe, effects, not_asked, variants
from align.evals.tasks import Scored, reliability_rows, task_metrics, written_rows
from align.evals.text_loss import row_losses
from align.evals.variety import distinct_share, repeated_share
from align.evals.win_rate import win_rate
from align.models.load import answer_length, context_length, load_model, load_tokenizer
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.sampling.engine import Sampling
from align.store.artifacts import Artifact, ArtifactStore
from align.text.chat import decode_response, encode_prompts, is_ended, show_prompt, transcript
from align.text.tokens import encode_text
from align.verifiers.episodes import Episodes
from align.verifiers.ifeval import Verdicts, verdicts

# Most new tokens for an answer to a prompt of IFEval, if `max_new_tokens` is not given; as in
# lm-eval's task.
_IFEVAL_TOKENS = 1280


def run(cfg: Evaluate, inputs: Inputs, job: Job) -> Metrics:
    players = [
        _player(cfg, slot, inputs.one(slot), job)
        for slot in ("model", "baseline")
        if slot in inputs
    ]
    context = min(context_length(player.model) for player in players)
    metrics: Metrics = {}
    if IFEVAL in cfg.tasks:  # first, because it has its own length of answers
        length = min(_IFEVAL_TOKENS, context // 2) if cfg.max_new_tokens is None else None
        ours = replace(cfg, max_new_tokens=answer_length(length or cfg.max_new_tokens, context))
        metrics |= _on_instructions(ours, inputs, job, players)
    cfg = replace(cfg, max_new_tokens=answer_length(cfg.max_new_tokens, context))
    reliability: list[dict[str, Any]] = []
    for name, items in _tasks(cfg, inputs, players, job):
        metrics |= _on_items(cfg, job, players, name, items, reliability)
    if f"tasks/{TASK}/accuracy" in metrics:
        metrics["fact_recall"] = metrics[f"tasks/{TASK}/accuracy"]
    if any(task != IFEVAL for task in cfg.tasks):
        metrics |= _on_harness(cfg, job, players)
    if "text" in inputs:
        metrics |= _on_text(cfg, inputs, job, players)
    if "prompts" in inputs and not cfg.only_instructions(inputs):
        metrics |= _on_prompts(cfg, inputs, job, players)
    job.log.table("calibration", reliability)
    if (warning := few_warning(metrics)) is not None:
        job.log.info(warning)
    job.log.metrics(metrics, 0)
    return metrics


def _player(cfg: Evaluate, name: str, artifact: Artifact, job: Job) -> Player:
    folder = artifact.path / "ema" if name == "model" and cfg.weights == "ema" else artifact.path
    if not folder.is_dir():
        raise ConfigError(
            f"weights=ema: {artifact.stage}@{artifact.key[:12]} keeps no average; give weights=raw"
        )
    return Player(name, load_model(folder, job.device), load_tokenizer(folder))


def _prompted(cfg: Evaluate, inputs: Inputs, job: Job) -> Player | None:
    """Return the prompted model; None if none is given.

    With several, it is the one with the best score on validation prompts.
    """
    given = inputs.get("prompted_base", ())
    if not given:
        return None
    best = given[0]
    if len(given) > 1:
        named = list(zip(cfg.inputs["prompted_base"], given, strict=True))
        unknown = [name for name, artifact in named if VALIDATION_SCORE not in artifact.metrics]
        if unknown:
            raise ConfigError(
                f"inputs.prompted_base: expected models that `align prompt` made, got {unknown[0]}"
            )
        name, best = max(named, key=lambda each: each[1].metrics[VALIDATION_SCORE])
        job.log.info(f"prompted_base: {name} is the best on validation prompts")
    return Player("prompted_base", load_model(best.path, job.device), load_tokenizer(best.path))


def _held_out(artifact: Artifact, slot: str, split: str, job: Job) -> list[Row]:
    """Return the rows of a dataset that score a model.

    These are the rows of `split`. For pretraining text, these are the validation rows, or the test
    rows if there are none.

    Raises:
        ConfigError: there are no such rows.
    """
    for held_out in ("validation", "test") if slot == "text" else (split,):
        if rows := list(read_rows([artifact.path], held_out)):
            count = f"{len(rows):,} row{'s' if len(rows) != 1 else ''}"
            job.log.info(
                f"{slot}: {count}, the {held_out} split of {read_info(artifact.path)['source']}"
            )
            return rows
    others = [split for split in SPLITS if (artifact.path / f"{split}.parquet").is_file()]
    info = read_info(artifact.path)
    whole = (
        f"align data source={info['source']} record={info['record']} split={split} name=mine/all"
    )
    raise ConfigError(
        f"inputs.{slot}: no row of {info['source']} is in the {split} split: they are in"
        f" {', '.join(others)}. Of a source that a model here was trained on, the test rows are"
        f" those that training held out. To evaluate all rows: {whole}, then inputs.{slot}=mine/all"
    )


def _compared(cfg: Evaluate, head: str, name: str, values: Sequence[Sequence[float]]) -> Metrics:
    return compared(
        head, name, values, cfg.num_bootstrap, derive_seed(cfg.random_seed, "evaluate", "bootstrap")
    )


# -- answers to prompts ----------------------------------------------------------------------------


def _on_prompts(cfg: Evaluate, inputs: Inputs, job: Job, players: Sequence[Player]) -> Metrics:
    """Score, compare, check and judge the players' answers to held-out prompts."""
    rows = _prompt_rows(cfg, inputs, job)
    prompted = _prompted(cfg, inputs, job)
    rows = _fitting(cfg, rows, [*players, prompted] if prompted else players, job)
    prompts = [row["prompt"] for row in rows]
    scorers = _scorers(cfg, inputs, job)
    metrics: Metrics = {"prompts": float(len(rows))} | _seen(inputs, job, prompts)
    given: dict[str, list[Answers]] = {}
    scores: dict[str, list[Sequence[float | None]]] = {}  # by the first scorer
    for prefix, temperature in (("", 1.0), ("greedy/", 0.0)):
        given[prefix] = [
            answer_prompts(cfg, job, player, prompts, temperature) for player in players
        ]
        of_model = []  # the model's scores, per scorer
        for scorer in scorers:
            found = [scorer.score(episodes_of(rows, own)) for own in given[prefix]]
            of_model.append(found[0])
            scores.setdefault(prefix, found)
            scored = _applying(job, "reward_functions", found)
            metrics |= _compared(cfg, prefix, f"{scorer.name}/score", scored)
            metrics |= _won(
                cfg, prefix if scorer is scorers[0] else f"{prefix}{scorer.name}/", scored
            )
        if prompted:
            answers = answer_prompts(cfg, job, prompted, prompts, temperature)
            metrics |= _over_prompted(
                cfg, job, prefix, scorers, of_model, episodes_of(rows, answers)
            )
    sampled, greedy = given[""], given["greedy/"]
    metrics |= _parts(cfg, scorers, rows, sampled)
    metrics["response_tokens"] = sum(len(r.ids) for r in sampled[0].responses) / len(rows)
    for prefix, player, own in zip(("", "baseline/"), players, sampled, strict=False):
        metrics |= _shapes(f"{prefix}response/", player, own)
    if len(players) == 2 and alike(players):
        metrics |= _compared(cfg, "", "kl", [kl(players, sampled[0], job.compute(cfg.precision))])
    metrics |= _checked(cfg, job, players, rows, sampled)
    metrics |= _steered(cfg, job, players, prompts, greedy)
    job.log.table(
        "samples",
        [sample_row(i, rows[i], given, scores) for i in range(min(cfg.num_samples, len(rows)))],
    )
    # Last, because the other processes wait for nothing after it.
    if cfg.judge.url is not None and job.group.is_main:
        metrics |= _judged(cfg, job, prompts, sampled)
    return metrics


def _prompt_rows(cfg: Evaluate, inputs: Inputs, job: Job) -> list[Row]:
    return [
        row
        for artifact in inputs["prompts"]
        for row in _held_out(artifact, "prompts", cfg.split, job)
    ][: cfg.num_prompts]


def _shapes(head: str, player: Player, answers: Answers) -> Metrics:
    """Return the fraction of sampled answers that end by themselves, and how varied all are."""
    given = [response.ids for response in answers.responses]
    return {
        f"{head}ended": sum(is_ended(player.tokenizer, ids) for ids in given) / len(given),
        f"{head}repeated": repeated_share(given),
        f"{head}distinct": distinct_share(given),
    }


def _over_prompted(
    cfg: Evaluate,
    job: Job,
    prefix: str,
    scorers: Sequence[Scorer],
    of_model: Sequence[Sequence[float | None]],
    prompted: Episodes,
) -> Metrics:
    """Return the scores of the prompted model's answers, and how often the model's are better.

    Args:
        of_model: each scorer's scores of the model's answers.
    """
    metrics: Metrics = {}
    for scorer, own in zip(scorers, of_model, strict=True):
        scores = _applying(job, "reward_functions", [own, scorer.score(prompted)])
        head = f"{prefix}prompted_base/"
        metrics |= _compared(cfg, head, f"{scorer.name}/score", scores[1:])
        metrics |= _won(cfg, head if scorer is scorers[0] else f"{head}{scorer.name}/", scores)
    return metrics


def _seen(inputs: Inputs, job: Job, prompts: Sequence[Messages]) -> Metrics:
    """Return the fractions of the prompts that reward models, and the model itself, learned from.

    The reward models are those that trained the policy, and the one that judges here. A held-out
    reward model, which PPO only logs, does not count. The model itself learned from the rankings
    and labels of `dpo` and `kto`. A fraction is missing if nothing learned from such rows.
    """
    store = ArtifactStore(job.store)
    judges = inputs.get("reward_model", ())
    try:
        of_model = [artifact for each in inputs["model"] for artifact in store.lineage(each)]
        of_judges = [artifact for each in judges for artifact in store.lineage(each)]
    except StoreError as error:
        job.log.info(f"it is not known which prompts the model and its rewards saw: {error}")
        return {}
    trained = [
        reward
        for step in (*of_model, *of_judges)
        if learns_from_rewards(step.stage)
        for reward in _inputs_of(store, step, "reward_model")
    ]
    rewards = [artifact for artifact in (*judges, *trained) if artifact.stage == "reward"]
    learned_from = {
        "seen_by_reward_model": [(reward, "data") for reward in rewards],
        "seen_in_preferences": [
            (step, slot)
            for step in of_model
            if learns_from_preferences(step.stage)
            for slot in ("data", "unpaired")
        ],
    }
    metrics: Metrics = {}
    for name, sources in learned_from.items():
        data = [found.path for step, slot in sources for found in _inputs_of(store, step, slot)]
        if data:
            learned = {_asked(row["prompt"]) for row in read_rows(data, "train")}
            metrics[name] = sum(_asked(prompt) in learned for prompt in prompts) / len(prompts)
    return metrics


def _inputs_of(store: ArtifactStore, artifact: Artifact, slot: str) -> list[Artifact]:
    entries = artifact.manifest["inputs"].get(slot, ())
    return [
        found for entry in entries if (found := store.get(entry["stage"], entry["key"])) is not None
    ]


def _asked(prompt: Messages) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"].strip()) for message in prompt)


def _fitting(cfg: Evaluate, rows: list[Row], players: Sequence[Player], job: Job) -> list[Row]:
    """Return the rows whose prompts leave every player room to answer."""
    fits = fit([row["prompt"] for row in rows], players, filled(cfg.max_new_tokens))
    if not any(fits):
        raise ConfigError(
            f"inputs.prompts: no {cfg.split} prompt leaves room for {cfg.max_new_tokens} new tokens"
        )
    if not all(fits):
        which = f"{fits.count(False):,} of {len(rows):,} prompts"
        job.log.info(
            f"{which} left out: with {cfg.max_new_tokens} new tokens they are longer than a model's"
            " context"
        )
    return [row for row, ok in zip(rows, fits, strict=True) if ok]


def answer_prompts(
    cfg: Evaluate, job: Job, player: Player, messages: Sequence[Messages], temperature: float
) -> Answers:
    prompts = encode_prompts(player.tokenizer, messages)
    mine = job.group.share(range(len(prompts)))
    sampling = Sampling(
        max_new_tokens=filled(cfg.max_new_tokens),
        temperature=temperature,
        batch_size=job.hardware.generation_batch_size,
    )
    # The same seeds for every player, so that equal models give equal answers.
    seeds = [derive_seed(cfg.random_seed, "evaluate", "model", i) for i in mine]
    manner = "greedy" if temperature == 0 else "sampled"
    with job.progress(len(mine), f"{manner} responses of {player.name}") as advance:
        drawn = respond(player, [prompts[i] for i in mine], seeds, sampling, advance)
    responses = job.group.gather(drawn)
    return Answers(
        prompts,
        responses,
        [decode_response(player.tokenizer, response.ids) for response in responses],
    )


def _scorers(cfg: Evaluate, inputs: Inputs, job: Job) -> list[Scorer]:
    """Return the scorers of answers.

    These are the given functions, the gold scorer if the prompts have one, and the given reward
    model.
    """
    found = [by_rules(cfg.reward_functions)] if cfg.reward_functions else []
    if (
        gold := gold_scorer([read_info(folder) for folder in inputs.folders("prompts")])
    ) is not None:
        found.append(by_gold(gold))
    if "reward_model" in inputs:
        folder = inputs.one("reward_model").path
        found.append(by_reward_model(folder, job.compute(cfg.precision)))
    if gold is None and (need := cfg.need_of_gold(inputs)):
        raise ConfigError(need)
    return found


def _applying(job: Job, knob: str, values: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """Return the players' numbers for the prompts for which all players have one.

    A function may give None for the others.
    """
    kept: list[list[float]] = [[] for _ in values]
    for numbers in zip(*values, strict=True):
        present = [number for number in numbers if number is not None]
        if len(present) == len(values):
            for own, number in zip(kept, present, strict=True):
                own.append(number)
    if not kept[0]:
        raise ConfigError(f"{knob}: expected a number for some prompt at least, got None for all")
    if len(kept[0]) < len(values[0]):
        job.log.info(
            f"{knob}: {len(values[0]) - len(kept[0])} of {len(values[0])} prompts left out, because"
            " it gave None"
        )
    return kept


def _won(cfg: Evaluate, head: str, scores: Sequence[Sequence[float]]) -> Metrics:
    if len(scores) < 2:
        return {}
    won = win_rate(
        scores[0],
        scores[1],
        cfg.num_bootstrap,
        derive_seed(cfg.random_seed, "evaluate", "bootstrap"),
    )
    named = {
        "win_rate": won.rate,
        "win_rate_low": won.low,
        "win_rate_high": won.high,
        "ties": won.ties,
    }
    return {f"{head}{name}": value for name, value in named.items()} | few(
        f"{head}win_rate", len(scores[0])
    )


def _parts(
    cfg: Evaluate, scorers: Sequence[Scorer], rows: Sequence[Row], answers: Sequence[Answers]
) -> Metrics:
    """Return the parts of each score.

    If the world's facts are known, add how often a model makes one up when asked.
    """
    metrics: Metrics = {}
    for scorer in scorers:
        if scorer.parts is not None:
            parts = [scorer.parts(episodes_of(rows, own)) for own in answers]
            for name in parts[0]:
                metrics |= _compared(cfg, "", f"{scorer.name}/{name}", [own[name] for own in parts])
            asked = [i for i, row in enumerate(rows) if asks_for_facts(row)]
            if asked:
                made_up = [[float(own["truthfulness"][i] < 1) for i in asked] for own in parts]
                metrics |= {"hallucination_prompts": float(len(asked))} | _compared(
                    cfg, "", "hallucination", made_up
                )
    return metrics


def _checked(
    cfg: Evaluate,
    job: Job,
    players: Sequence[Player],
    rows: Sequence[Row],
    sampled: Sequence[Answers],
) -> Metrics:
    """Return the mean of each check.

    It is over the sampled answers, and over the answers to the prompts behind each prefix.
    """
    metrics: Metrics = {}
    if not cfg.checks:
        return metrics
    checks = {name: load_check(reference, job.device) for name, reference in cfg.checks.items()}
    for prefix in ("", *cfg.prefixes):
        asked, answers = list(rows), list(sampled)
        if prefix:
            asked = [
                {**row, "prompt": prefixed_prompt(row["prompt"], cfg.prefixes[prefix])}
                for row in rows
            ]
            fits = fit([row["prompt"] for row in asked], players, filled(cfg.max_new_tokens))
            asked = [row for row, ok in zip(asked, fits, strict=True) if ok]
            if not asked:
                raise ConfigError(f"prefixes.{prefix}: no prompt leaves room for it")
            answers = [
                answer_prompts(cfg, job, player, [row["prompt"] for row in asked], 1.0)
                for player in players
            ]
        head = f"checks/{prefix}/" if prefix else "checks/"
        metrics[f"{head}answers"] = float(len(asked))
        for name, check in checks.items():
            found = [check(episodes_of(asked, own)) for own in answers]
            metrics |= _compared(cfg, head, name, _applying(job, f"checks.{name}", found))
    return metrics


def _steered(
    cfg: Evaluate,
    job: Job,
    players: Sequence[Player],
    prompts: Sequence[Messages],
    greedy: Sequence[Answers],
) -> Metrics:
    """Return fractions of greedy answers in the manner that a system message asks for.

    They are measured with the message, with a neutral one, and when the user asks for the opposite.
    """
    metrics: Metrics = {}
    if not cfg.steering:
        return metrics
    own = [i for i, prompt in enumerate(prompts) if prompt[0]["role"] != "system"]
    room = [
        fit([asked(prompts[i]) for i in own], players, filled(cfg.max_new_tokens))
        for asked in variants(cfg.steering)
    ]
    own = [i for i, *fits in zip(own, *room, strict=True) if all(fits)]
    if not own:
        raise ConfigError("steering: no prompt without a system message leaves room for one")
    metrics["steering/prompts"] = float(len(own))

    def answers(asked: Callable[[Messages], Messages]) -> list[list[str]]:
        return [
            answer_prompts(cfg, job, player, [asked(prompts[i]) for i in own], 0.0).texts
            for player in players
        ]

    def follow(probe: Probe, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        each = zip(texts, greedy, strict=True)
        return [
            [float(probe.follows(a, plain.texts[i])) for a, i in zip(t, own, strict=True)]
            for t, plain in each
        ]

    neutral = answers(not_asked)
    for name in cfg.steering:
        probe, head = PROBES[name], f"steering/{name}/"
        asked, unasked = follow(probe, answers(probe.asked)), follow(probe, neutral)
        metrics |= _compared(cfg, head, "asked", asked) | _compared(cfg, head, "unasked", unasked)
        metrics |= _compared(cfg, head, "effect", effects(asked, unasked))
        conflict, opposed = (
            follow(probe, answers(probe.in_conflict)),
            follow(probe, answers(probe.opposed)),
        )
        metrics |= _compared(cfg, head, "conflict", conflict) | _compared(
            cfg, head, "opposed", opposed
        )
        metrics |= _compared(cfg, head, "effect_in_conflict", effects(conflict, opposed))
    return metrics


def _judged(
    cfg: Evaluate, job: Job, prompts: Sequence[Messages], sampled: Sequence[Answers]
) -> Metrics:
    """Return a language model's verdicts on the answers.

    They are who wins, whether the position of an answer helped it, and how good each answer is.
    """
    endpoint = Endpoint(
        str(cfg.judge.url), cfg.judge.model, job.work / "judgements.jsonl", job.log.info
    )
    asked, texts = [transcript(prompt) for prompt in prompts], [own.texts for own in sampled]
    with job.progress(2 * len(asked), "verdicts") as advance:
        verdicts = endpoint.compare(asked, texts[0], texts[1], advance)
    metrics = _won(cfg, "judge/", [verdicts.scores, [1 - score for score in verdicts.scores]])
    metrics["judge/unread"] = float(verdicts.unread)
    for name, values in (
        ("consistent", verdicts.consistent),
        ("favoured_first", verdicts.favoured_first),
    ):
        metrics |= _compared(cfg, "judge/", name, [values]) if values else {}
    if cfg.judge.likert:
        with job.progress(2 * len(asked), "ratings") as advance:
            ratings = [endpoint.rate(asked, own, advance) for own in texts]
        both = [pair for pair in zip(*ratings, strict=True) if not any(map(math.isnan, pair))]
        metrics["judge/rated"] = float(len(both))
        if both:
            metrics |= _compared(
                cfg, "judge/", "likert", [list(own) for own in zip(*both, strict=True)]
            )
    return metrics


# -- tasks -----------------------------------------------------------------------------------------


def _tasks(
    cfg: Evaluate, inputs: Inputs, players: Sequence[Player], job: Job
) -> Iterator[tuple[str, list[list[Row]]]]:
    """Yield (name, the items as each player reads them) for each task and prefix.

    If the text states known facts, they are a task, too.
    """
    known: set[str] = set()
    for artifact in inputs.get("items", ()):
        folder = artifact.path
        name = _task_name(read_info(folder)["source"])
        items = _held_out(artifact, "items", cfg.split, job)[: cfg.num_items]
        if name in known:
            raise ConfigError(
                f"inputs.items: two tasks, named after their files, are called {name}"
            )
        groups = {item["group"] for item in items}
        if len(groups) > 1 and (bad := groups & {*RESERVED}):
            raise ConfigError(
                f"inputs.items: {name}: a group (a file, or the column) cannot be called"
                f" {min(bad)!r}"
            )
        known.add(name)
        pool = list(read_rows([folder], "train")) if cfg.num_shots else []
        for prefix, line in {"": "", **cfg.prefixes}.items():
            yield (
                (f"{name}@{prefix}" if prefix else name),
                [_behind(cfg, p, items, pool, line) for p in players],
            )
    if "text" in inputs:
        facts = known_facts([read_info(folder) for folder in inputs.folders("text")])
        if facts is not None:
            yield TASK, [facts] * len(players)


def _task_name(source: str) -> str:
    """Return a task's name: lambada for `card:lambada`, my_items for `path:here/my_items.jsonl`."""
    return (
        source.partition(":")[2].rstrip("/").rpartition("/")[2].partition(".")[0].partition("@")[0]
    )


def _behind(
    cfg: Evaluate, player: Player, items: list[Row], pool: Sequence[Row], line: str
) -> list[Row]:
    """Return the items with the shots and, if given, the prefix line before them."""
    limit = context_length(player.model)

    def behind_line(item: Mapping[str, Any]) -> Row:
        return dict(prefixed(item, line) if line else item)

    def fits(item: Mapping[str, Any]) -> bool:
        pairs = zip(behind_line(item)["contexts"], item["completions"], strict=True)
        return all(
            sum(map(len, encode_pair(player.tokenizer, *pair))) <= limit + 1 for pair in pairs
        )

    try:
        shown = (
            with_shots(items, pool, cfg.num_shots, cfg.random_seed, fits)
            if cfg.num_shots
            else items
        )
    except ValueError as error:
        raise ConfigError(f"num_shots: {error}") from None
    return [behind_line(item) for item in shown]


def _on_items(
    cfg: Evaluate,
    job: Job,
    players: Sequence[Player],
    name: str,
    items: list[list[Row]],
    reliability: list[Row],
) -> Metrics:
    """Return the measures of a task and of each of its groups.

    They are compared with the baseline item by item.
    """
    scored = [
        _scored(cfg, player, own, job, name) for player, own in zip(players, items, strict=True)
    ]
    by_player = {player.name: own for player, own in zip(players, scored, strict=True)}
    reliability += reliability_rows(name, items[0], by_player)
    job.log.table(f"answers_{name}", written_rows(items[0][: cfg.num_samples], by_player))
    groups = sorted({item["group"] for item in items[0]})
    seed = derive_seed(cfg.random_seed, "evaluate", "bootstrap")
    metrics: Metrics = {}
    for group in ("", *(groups if len(groups) > 1 else ())):
        places = [i for i, item in enumerate(items[0]) if group in ("", item["group"])]
        head = f"tasks/{name}/{group}/" if group else f"tasks/{name}/"
        chosen = [items[0][i] for i in places]
        metrics |= task_metrics(
            head, chosen, [own.only(places) for own in scored], cfg.num_bootstrap, seed
        )
    return metrics


def _scored(cfg: Evaluate, player: Player, items: Sequence[Row], job: Job, task: str) -> Scored:
    """Return the likelihoods of the items' candidates and, if asked for, the written answers.

    If all items have an answer context, the likelihoods after that context alone are included.
    """
    mine = [items[i] for i in job.group.share(range(len(items)))]
    most = job.max_tokens

    def likelihoods(rows: Sequence[Row]) -> list[list[Candidate]]:
        count = sum(len(item["completions"]) for item in rows)
        with job.progress(count, "candidates") as advance, job.compute(cfg.precision).autocast():
            own = score_items(player.model, player.tokenizer, rows, most, advance)
        return [[Candidate(*candidate) for candidate in row] for row in job.group.gather(own)]

    def written() -> list[str]:
        contexts = [item["contexts"][item["labels"].index(1)] for item in mine]
        model, tokenizer, way = player.model, player.tokenizer, str(cfg.free_form)
        with job.progress(len(mine), "answers") as advance, job.compute(cfg.precision).autocast():
            most_new, texts = filled(cfg.max_new_tokens), [""] * len(mine)
            for index, text in write_answers(model, tokenizer, contexts, way, most_new, most):
                texts[index] = text
                advance(1)
        return job.group.gather(texts)

    try:
        rows, alone, answers = likelihoods(mine), None, None
        if all(item.get("answer_context") is not None for item in items):
            alone = likelihoods(
                [{**i, "contexts": [i["answer_context"]] * len(i["contexts"])} for i in mine]
            )
        asks = all(item["contexts"][0].strip() and not item.get("leaning") for item in items)
        if cfg.free_form is not None and asks:
            answers = written()
        return Scored(rows, alone, answers)
    except ValueError as error:
        raise ConfigError(f"inputs.items: {task}: {error}") from None


def _on_instructions(cfg: Evaluate, inputs: Inputs, job: Job, players: Sequence[Player]) -> Metrics:
    """Return IFEval's accuracies of greedy answers (`align.evals.instructions`)."""
    asked = _prompt_rows(cfg, inputs, job)
    instructions_of(asked)  # a wrong row is reported before anything is sampled
    rows = _fitting(cfg, asked, players, job)
    instructions = instructions_of(rows)
    prompts = [row["prompt"] for row in rows]
    answers = [answer_prompts(cfg, job, player, prompts, 0.0) for player in players]
    judged: list[list[Verdicts]] = []
    with job.progress(len(players) * len(rows), "answers checked") as advance:
        for own in answers:
            judged.append([])
            for each, text in zip(instructions, own.texts, strict=True):
                judged[-1].append(verdicts(each, text))
                advance(1)
    texts = {player.name: own.texts for player, own in zip(players, answers, strict=True)}
    table = verdict_rows([show_prompt(prompt) for prompt in prompts], instructions, texts, judged)
    job.log.table("answers_ifeval", table[: cfg.num_samples])
    seed = derive_seed(cfg.random_seed, "evaluate", "bootstrap")
    head = f"tasks/{IFEVAL}/"
    metrics: Metrics = dict(
        instruction_metrics(head, instructions, judged, cfg.num_bootstrap, seed)
    )
    if len(rows) < len(asked):
        metrics[f"{head}left_out"] = float(len(asked) - len(rows))
    for player, own in zip(players, answers, strict=True):
        part = "" if player is players[0] else "baseline/"
        cut = sum(not is_ended(player.tokenizer, each.ids) for each in own.responses)
        metrics[f"{head}{part}cut_off"] = cut / len(rows)
    return metrics


def _on_harness(cfg: Evaluate, job: Job, players: Sequence[Player]) -> Metrics:
    """Run lm-eval's tasks; every process of the step runs all of them."""
    try:
        from align.evals.harness import Scorer as HarnessScorer
        from align.evals.harness import run_tasks
    except ImportError as error:
        raise ConfigError(
            f"tasks: lm-eval is not installed ({error}); pip install -e '.[eval]'"
        ) from None
    names = [task.partition(":")[2] for task in cfg.tasks if task != IFEVAL]
    found = []
    for player in players:
        most, seed = job.max_tokens, cfg.random_seed
        scorer = HarnessScorer(
            player.model, player.tokenizer, most, seed, lambda n: job.progress(n, "requests")
        )
        with job.compute(cfg.precision).autocast():
            try:
                found.append(run_tasks(scorer, names, cfg.num_shots or None, cfg.num_items, seed))
            except ValueError as error:
                raise ConfigError(f"tasks: {error}") from error
    metrics: Metrics = {}
    for task, own in found[0].items():
        head = f"tasks/lm_eval/{task}/"
        for name in [
            name for name in own.by_item if all(name in scores[task].by_item for scores in found)
        ]:
            metrics[f"{head}items"] = float(len(own.by_item[name]))
            metrics |= _compared(cfg, head, name, [scores[task].by_item[name] for scores in found])
        for part, scores in zip(("", "baseline/"), found, strict=False):
            metrics |= {f"{head}{part}{name}": value for name, value in scores[task].whole.items()}
    return metrics


# -- pretraining text ------------------------------------------------------------------------------


@torch.no_grad()
def _on_text(cfg: Evaluate, inputs: Inputs, job: Job, players: Sequence[Player]) -> Metrics:
    """Return the loss on held-out pretraining text, in nats per token.

    Its increase over the baseline's is the alignment tax.
    """
    texts = [
        row["text"]
        for artifact in inputs["text"]
        for row in _held_out(artifact, "text", cfg.split, job)
    ]
    losses, length = [], min(context_length(player.model) for player in players)
    # Losses per token compare only if the tokens are the same.
    for player in players if alike(players) else players[:1]:
        rows = encode_text(texts, player.tokenizer, length)
        if not len(rows):
            raise ConfigError(f"inputs.text: its held-out documents fill no row of {length} tokens")
        own: list[float] = []
        for chunk in rows[:].split(max(1, job.max_tokens // length)):
            with job.compute(cfg.precision).autocast():
                own += row_losses(player.model, chunk).tolist()
        losses.append(own)
    return _compared(cfg, "", "pretrain_loss", losses)
