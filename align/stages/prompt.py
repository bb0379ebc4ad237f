"""Find the form of plain text in which a base model answers best: InstructGPT's prompted GPT-3.

Takes: a model; prompts, whose validation split chooses the form and scores it; demonstrations to
draw solved examples from; and a reward model, if no gold scorer knows the prompts.
Makes: the same model with the best form as its chat template, and forms.jsonl with the score of
each form.
Departs from InstructGPT: its authors wrote prefixes by hand and held a competition on validation
prompts. Here forms are built in or given, and examples are drawn at random. The competition is the
same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from align.configs import Prompt, filled
from align.configs.evaluate import VALIDATION_SCORE
from align.data.records import Row, read_info, read_rows
from align.errors import ConfigError
from align.evals.gold import gold_scorer
from align.evals.intervals import FEW, bootstrap, bounds, few, few_warning
from align.evals.players import Answers, Player, episodes_of, fit, respond
from align.evals.scorers import Scorer, by_gold, by_reward_model
from align.models.load import answer_length, context_length, load_model, load_tokenizer, save_model
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.seeds import derive_seed
from align.sampling.engine import Sampling
from align.text.chat import ask_in_form, decode_response, encode_prompts
from align.text.encoding import encode_texts, encoder_of
from align.text.forms import FORMS, Form, Shot, read_form, shot_of

_NUM_BOOTSTRAP = 2000
_MOST_FRESH = 200  # prompts that score the chosen form, at most


class _Candidate(NamedTuple):
    """A form with one draw of examples before it."""

    name: str
    form: Form
    draw: int
    shots: Sequence[Shot]

    def row(self, score: float) -> dict[str, Any]:
        examples = "".join(map(self.form.written, self.shots))
        return {
            "form": self.name,
            "draw": self.draw,
            "score": score,
            "text": self.text,
            "examples": examples,
        }

    @property
    def text(self) -> str:
        return self.form.written(Shot("{prompt}", "{response}"))


def run(cfg: Prompt, inputs: Inputs, job: Job) -> Metrics:
    folder = inputs.one("model").path
    player = Player("model", load_model(folder, job.device), load_tokenizer(folder))
    cfg = replace(
        cfg, max_new_tokens=answer_length(cfg.max_new_tokens, context_length(player.model))
    )
    forms = {name: read_form(text) for name, text in {**FORMS, **cfg.forms}.items()}
    choosing, fresh = _validation_rows(cfg, inputs, player, list(forms.values()), job)
    scorer = _scorer(cfg, inputs, job)
    candidates = _candidates(cfg, inputs, player, forms, [*choosing, *fresh], job)

    def scores(candidate: _Candidate, rows: Sequence[Row]) -> list[float]:
        ask_in_form(player.tokenizer, candidate.form, candidate.shots)
        found = scorer.score(episodes_of(rows, _answers(cfg, job, player, rows, advance)))
        return [float(score or 0.0) for score in found]

    with job.progress(len(candidates) * len(choosing) + len(fresh), "answers") as advance:
        tried = [scores(candidate, choosing) for candidate in candidates]
        ranked = sorted(zip(candidates, tried, strict=True), key=lambda each: -fmean(each[1]))
        best, of_best = ranked[0]
        if fresh:  # the best of many is partly lucky on the choosing prompts
            of_best = scores(best, fresh)
    job.log.table("forms", [candidate.row(fmean(own)) for candidate, own in ranked])
    on = f"{len(fresh):,} other" if fresh else "the same"
    job.log.info(
        f"{best.name} is the best of {len(candidates)} on {len(choosing):,} validation prompts;"
        f" {scorer.name} score {fmean(of_best):.3f} on {on} validation prompts: {best.text!r}"
    )
    ask_in_form(player.tokenizer, best.form, best.shots)
    save_model(player.model, player.tokenizer, job.out)
    interval = bootstrap(
        of_best, _NUM_BOOTSTRAP, derive_seed(cfg.random_seed, "prompt", "bootstrap")
    )
    metrics = bounds(VALIDATION_SCORE, interval) | few(VALIDATION_SCORE, len(of_best))
    if (warning := few_warning(metrics)) is not None:
        job.log.info(warning)
    return metrics | {"forms": float(len(candidates))}


def _validation_rows(
    cfg: Prompt, inputs: Inputs, player: Player, forms: Sequence[Form], job: Job
) -> tuple[list[Row], list[Row]]:
    """Return the prompts that choose the form, and other prompts that score the chosen form.

    Both leave room for an answer in every form. The others are the last of the split, so that steps
    with another `num_prompts` are compared on the same prompts. If fewer than `FEW` are left, there
    are none.
    """
    every = list(read_rows(inputs.folders("prompts"), "validation"))
    choosing = every[: cfg.num_prompts]
    fresh = every[len(choosing) :][-_MOST_FRESH:]
    rows = choosing + (fresh if len(fresh) >= FEW else [])
    if not rows:
        raise ConfigError(
            "inputs.prompts: expected rows in the validation split, which choose the form, got none"
        )
    fits = [True] * len(rows)
    for form in forms:
        ask_in_form(player.tokenizer, form, [])
        own = fit([row["prompt"] for row in rows], [player], filled(cfg.max_new_tokens))
        fits = [ok and also for ok, also in zip(fits, own, strict=True)]
    if not any(fits[: len(choosing)]):
        raise ConfigError(
            f"inputs.prompts: no validation prompt leaves room for {cfg.max_new_tokens} new tokens"
        )
    if not all(fits):
        which = f"{fits.count(False):,} of {len(rows):,} prompts"
        job.log.info(
            f"{which} left out: with {cfg.max_new_tokens} new tokens they are longer than the"
            " model's context"
        )
    judged, end = list(zip(rows, fits, strict=True)), len(choosing)
    return [row for row, ok in judged[:end] if ok], [row for row, ok in judged[end:] if ok]


def _candidates(
    cfg: Prompt,
    inputs: Inputs,
    player: Player,
    forms: Mapping[str, Form],
    rows: Sequence[Row],
    job: Job,
) -> list[_Candidate]:
    """Return every form alone, or every form behind each draw of examples.

    A form is left out if no example fits.

    Raises:
        ConfigError: no example fits into any form.
    """
    if not cfg.num_shots:
        return [_Candidate(name, form, 0, []) for name, form in forms.items()]
    examples = [shot_of(row["messages"]) for row in read_rows(inputs.folders("examples"), "train")]
    found = []
    for name, form in forms.items():
        ask_in_form(player.tokenizer, form, [])
        draws = [
            _drawn(cfg, player, form, rows, examples, draw) for draw in range(cfg.num_prefixes)
        ]
        if (fewest := min(map(len, draws))) < cfg.num_shots:
            what = (
                f"only {fewest} of {cfg.num_shots} examples fit"
                if fewest
                else "it is left out: no example fits"
            )
            job.log.info(f"the form {name}: {what} in the context beside the longest prompt")
        found += [_Candidate(name, form, draw, shots) for draw, shots in enumerate(draws) if shots]
    if not found:
        raise ConfigError(
            f"num_shots: no example fits in a context of {context_length(player.model):,} tokens"
            f" beside the longest prompt and {cfg.max_new_tokens} new tokens; give num_shots=0, or"
            " less max_new_tokens"
        )
    return found


def _scorer(cfg: Prompt, inputs: Inputs, job: Job) -> Scorer:
    """Return the given reward model as a scorer, else the gold scorer of the prompts' world."""
    if "reward_model" in inputs:
        return by_reward_model(inputs.one("reward_model").path, job.compute(cfg.precision))
    if (gold := gold_scorer([read_info(folder) for folder in inputs.folders("prompts")])) is None:
        raise ConfigError(cfg.need_of_gold(inputs))
    return by_gold(gold)


def _drawn(
    cfg: Prompt,
    player: Player,
    form: Form,
    rows: Sequence[Row],
    examples: Sequence[Shot],
    draw: int,
) -> list[Shot]:
    """Return solved examples, in the order of this draw.

    There are fewer than asked for if no more leave room for every prompt and its answer.
    """
    prompts = encode_prompts(player.tokenizer, [row["prompt"] for row in rows])
    room = context_length(player.model) - filled(cfg.max_new_tokens) - max(map(len, prompts))
    controls = encoder_of(player.tokenizer).controls
    rng = random.Random(derive_seed(cfg.random_seed, "prompt", "examples", draw))
    shots: list[Shot] = []
    for example in rng.sample(examples, len(examples)):
        if len(shots) == cfg.num_shots:
            break
        text = form.written(example)
        ends_early = any(stop in example.response for stop in form.stop_strings)
        length = len(encode_texts(player.tokenizer, [text])[0])
        if length <= room and not ends_early and not any(control in text for control in controls):
            shots.append(example)
            room -= length
    return shots


def _answers(
    cfg: Prompt, job: Job, player: Player, rows: Sequence[Row], advance: Callable[[int], None]
) -> Answers:
    prompts = encode_prompts(player.tokenizer, [row["prompt"] for row in rows])
    sampling = Sampling(
        max_new_tokens=filled(cfg.max_new_tokens), batch_size=job.hardware.generation_batch_size
    )
    # The same seeds for every form.
    seeds = [derive_seed(cfg.random_seed, "prompt", "model", i) for i in range(len(prompts))]
    responses = respond(player, prompts, seeds, sampling, advance)
    return Answers(
        prompts,
        responses,
        [decode_response(player.tokenizer, response.ids) for response in responses],
    )
