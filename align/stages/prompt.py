"""Find the form in which a language model answers best that was never taught a chat template: InstructGPT's prompted
GPT-3.

Takes: a model; prompts, whose validation split chooses the form; demonstrations to draw solved examples from; a reward
model where no gold scorer knows the prompts.
Makes: the same model with the best form as its chat template, and forms.jsonl, with what each form was worth.
Departs from InstructGPT: its authors wrote prefixes by hand and held a competition on validation prompts; here forms
and examples are drawn, and the competition is the same.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from align.configs import Prompt, filled
from align.configs.evaluate import VALIDATION_SCORE
from align.data.records import Row, read_info, read_rows
from align.errors import ConfigError
from align.evals.gold import gold_scorer
from align.evals.intervals import bootstrap, bounds
from align.evals.players import Answers, Player, episodes_of, respond
from align.evals.scorers import Scorer, by_gold, by_reward_model
from align.job import Inputs, Job, Metrics
from align.models.load import answer_length, context_length, load_model, load_tokenizer, save_model
from align.rollout.engine import Sampling
from align.seeds import derive_seed
from align.text.chat import decode_response, encode_prompts
from align.text.encoding import encode_texts, encoder_of
from align.text.forms import FORMS, Form, Shot, ask_in_form, read_form, shot_of

_NUM_BOOTSTRAP = 2000


class _Trial(NamedTuple):
    """A form behind one draw of examples, and the scores of its answers to the validation prompts."""

    player: Player
    form: Form
    draw: int
    shots: Sequence[Shot]
    scores: Sequence[float]

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def row(self) -> dict[str, Any]:
        examples = "".join(map(self.form.written, self.shots))
        form = self.form.written(Shot("{prompt}", "{response}"))
        return {"form": self.player.name, "draw": self.draw, "score": self.mean, "text": form, "examples": examples}


def run(cfg: Prompt, inputs: Inputs, job: Job) -> Metrics:
    folder = inputs.one("model").path
    model, tokenizer = load_model(folder, job.device), load_tokenizer(folder)
    cfg = replace(cfg, max_new_tokens=answer_length(cfg.max_new_tokens, context_length(model)))
    rows = list(read_rows(inputs.folders("prompts"), "validation"))[: cfg.num_prompts]
    if not rows:
        raise ConfigError("inputs.prompts: expected rows in the validation split, which choose the form, got none")
    scorer = _scorer(cfg, inputs, job)
    examples = list(map(shot_of, _conversations(inputs))) if cfg.num_shots else []
    drawn = []
    for name, form in _forms(cfg).items():
        for draw in range(cfg.num_prefixes if cfg.num_shots else 1):
            player = Player(name, model, copy.deepcopy(tokenizer))
            ask_in_form(player.tokenizer, form, [])
            shots = _drawn(cfg, player, form, rows, examples, draw)
            if len(shots) < cfg.num_shots:
                job.info(f"the form {name} is left out: {len(shots)} of {cfg.num_shots} examples fit in the context")
                break
            ask_in_form(player.tokenizer, form, shots)
            drawn.append((draw, form, shots, player))
    if not drawn:
        raise ConfigError(
            f"num_shots: expected as many as leave room for a prompt and {cfg.max_new_tokens} new tokens in a context "
            f"of {context_length(model):,} tokens, got {cfg.num_shots}"
        )
    trials = []
    with job.progress(len(drawn) * len(rows), "answers") as advance:
        for draw, form, shots, player in drawn:
            scores = scorer.score(episodes_of(rows, _answers(cfg, job, player, rows, advance)))
            trials.append(_Trial(player, form, draw, shots, [float(score or 0.0) for score in scores]))
    best = max(trials, key=lambda trial: trial.mean)
    job.table("forms", [trial.row for trial in sorted(trials, key=lambda trial: -trial.mean)])
    job.info(
        f"{best.player.name} is the best of {len(trials)} on {len(rows):,} validation prompts, "
        f"{scorer.name} score {best.mean:.3f}: {best.form.written(Shot('{prompt}', '{response}'))!r}"
    )
    save_model(model, best.player.tokenizer, job.out)
    interval = bootstrap(best.scores, _NUM_BOOTSTRAP, derive_seed(cfg.seed or 0, "prompt", "bootstrap"))
    return {**bounds(VALIDATION_SCORE, interval), "forms": float(len(trials))}


def _conversations(inputs: Inputs) -> Iterator[list[dict[str, str]]]:
    return (row["messages"] for row in read_rows(inputs.folders("examples"), "train"))


def _forms(cfg: Prompt) -> dict[str, Form]:
    found = {}
    for name, text in {**FORMS, **cfg.forms}.items():
        try:
            found[name] = read_form(text)
        except ValueError as error:
            raise ConfigError(f"forms.{name}: {error}") from None
    return found


def _scorer(cfg: Prompt, inputs: Inputs, job: Job) -> Scorer:
    """The reward model that was given, else the gold scorer of the prompts' world."""
    if "reward_model" in inputs:
        autocast = functools.partial(job.autocast, cfg.precision)
        return by_reward_model(inputs.one("reward_model").path, job.device, job.micro_batch_tokens, autocast)
    if (gold := gold_scorer([read_info(folder) for folder in inputs.folders("prompts")])) is None:
        raise ConfigError(
            "inputs.reward_model: these prompts have no gold scorer, so a reward model must choose the form"
        )
    return by_gold(gold)


def _drawn(
    cfg: Prompt, player: Player, form: Form, rows: Sequence[Row], examples: Sequence[Shot], draw: int
) -> list[Shot]:
    """Solved examples, fewer where no more leave room for every prompt and its answer, in this draw's own order."""
    prompts = encode_prompts(player.tokenizer, [row["prompt"] for row in rows])
    room = context_length(player.model) - filled(cfg.max_new_tokens) - max(map(len, prompts))
    controls = encoder_of(player.tokenizer).controls
    rng = random.Random(derive_seed(cfg.seed or 0, "prompt", "examples", draw))
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


def _answers(cfg: Prompt, job: Job, player: Player, rows: Sequence[Row], advance: Callable[[int], None]) -> Answers:
    prompts = encode_prompts(player.tokenizer, [row["prompt"] for row in rows])
    sampling = Sampling(max_new_tokens=filled(cfg.max_new_tokens), batch_size=job.hardware.generation_batch_size)
    seeds = [derive_seed(cfg.seed or 0, "prompt", "model", i) for i in range(len(prompts))]  # the same for every form
    responses = respond(player, prompts, seeds, sampling, advance)
    return Answers(prompts, responses, [decode_response(player.tokenizer, response.ids) for response in responses])
