"""Say in sentences whether a run worked, on what evidence, and what else the reader should know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from align.configs import learns_from_rewards
from align.evals.intervals import FEW, is_few
from align.report import best_of_n
from align.report.gather import Made
from align.report.reward_tables import sentences
from align.report.tables import (
    Metrics,
    Opponent,
    evaluations,
    interval,
    opponents,
    percent,
    scorer,
    side,
)

Tone = Literal["good", "bad", "neutral", "warning"]
_BETTER = {1: "better, beyond chance", -1: "worse, beyond chance", 0: "not beyond chance"}
_TONES: dict[int, Tone] = {1: "good", -1: "bad", 0: "neutral"}
_REWARD_TONES: dict[int, Tone] = {**_TONES, 0: "warning", 2: "warning"}


class Line(NamedTuple):
    """One sentence of a verdict.

    Attributes:
        tone: good or bad if a figure is better or worse beyond chance; warning if a figure is less
            certain than it looks, or if the judge proves nothing; else neutral.
    """

    text: str
    tone: Tone


def verdict(made: Sequence[Made]) -> list[Line]:
    """Answer "did it work?" in the first line; then doubts, other evaluations and health events.

    Which stage is bad is another question: `align.report.diagnosis` answers it.

    The answer comes from the last evaluation that compares a policy trained by PPO, else from the
    last evaluation that compares.
    """
    by_key = {each.key: each for each in made}
    compared = [each for each in evaluations(made) if _comparisons(each, by_key)]
    trained = [each for each in compared if _trained_by_ppo(each, by_key)]
    chosen = next(reversed(trained or compared), None)
    lines: list[Line] = []
    of_others = [
        Line(best_of_n.sentence(each, by_key[dict(each.inputs)["model"]].name), "neutral")
        for each in best_of_n.of_stage(made)
    ]
    of_others += [Line(text, _REWARD_TONES[sign]) for text, sign in sentences(made)]
    if chosen is None and (evaluations(made) or not of_others):
        lines += _without_wins(evaluations(made), by_key)
    elif chosen is not None:
        lines += [_answer(chosen, by_key), *_besides(chosen, by_key)]
        for each in compared:
            if each is not chosen:
                lines += [_result(each, by_key), *_besides(each, by_key)]
    lines += of_others
    events = sum(len(each.events) for each in made)
    if events:
        names = ", ".join(each.name for each in made if each.events)
        lines.append(Line(f"{events} health event{'s' * (events != 1)} in {names}.", "warning"))
    else:
        lines.append(Line("No health events.", "neutral"))
    return lines


# -- the wins --------------------------------------------------------------------------------------


def _comparisons(evaluation: Made, by_key: Mapping[str, Made]) -> list[Opponent]:
    """Return the opponents with a win rate: the baseline, then the prompted base model."""
    compared = opponents(evaluation, by_key)
    return [other for other in compared if interval(evaluation.artifact.metrics, other.head)]


def _side(metrics: Metrics, other: Opponent) -> int:
    """Return 1 or -1 if the model is better or worse beyond chance, else 0.

    It is 0, too, if the prompts are too few.
    """
    return 0 if _has_few(metrics, other) else side(metrics, f"{other.head}win_rate", 0.5)


def _has_few(metrics: Metrics, other: Opponent) -> bool:
    return is_few(metrics, "win_rate") or is_few(metrics, f"{other.head}win_rate")


def _answer(evaluation: Made, by_key: Mapping[str, Made]) -> Line:
    """Say whether it worked, with the result."""
    metrics, compared = evaluation.artifact.metrics, _comparisons(evaluation, by_key)
    result = _result(evaluation, by_key)
    if judge_in_training(evaluation, by_key):
        return Line(f"This does not show whether it worked: {result.text}", "warning")
    sides = [_side(metrics, other) for other in compared]
    if any(_has_few(metrics, other) for other in compared):
        said = "Too few prompts to tell"
    elif -1 in sides:
        said = "It did not work"
    elif 0 not in sides:
        said = "It worked"
    elif 1 in sides:
        said = "It worked only in part"
    else:
        said = "No difference beyond chance"
    return Line(f"{said}: {result.text}", result.tone)


def _result(evaluation: Made, by_key: Mapping[str, Made]) -> Line:
    """Say in one sentence how an evaluation's comparisons ended, and what decided them."""
    metrics, compared = evaluation.artifact.metrics, _comparisons(evaluation, by_key)
    model = by_key[dict(evaluation.inputs)["model"]].name
    trained = judge_in_training(evaluation, by_key)
    parts = []
    for other in compared:
        name = (
            f"the prompted base model {other.made.name}" if other.is_prompted else other.made.name
        )
        beyond = (
            f" (fewer than {FEW} prompts)"
            if _has_few(metrics, other)
            else f" ({_BETTER[_side(metrics, other)]})"
        )
        if trained:
            beyond = ""  # such a score is no evidence about the answers
        parts.append(f"{interval(metrics, other.head)} over {name}{beyond}")
    split = evaluation.artifact.manifest["config"].get("split", "test")
    prompts = f"{metrics['prompts']:,.0f} " + ("prompts" if split == "test" else f"{split} prompts")
    decided = f"by {scorer(metrics)} score" if scorer(metrics) else "by an unnamed score"
    if any(other.head == "judge/" for other in compared):
        decided = "by the judge"
    if trained:
        decided = (
            f"decided by {trained}: this shows how well PPO fitted it, not whether answers got"
            " better"
        )
    text = f"{model} wins {' and '.join(parts)} on {prompts}, {decided}."
    if trained or any(_has_few(metrics, other) for other in compared):
        return Line(text, "warning")
    return Line(text, _TONES[min(_side(metrics, other) for other in compared)])


def _without_wins(evaluated: Sequence[Made], by_key: Mapping[str, Made]) -> Iterator[Line]:
    """Yield the lines for a report in which no evaluation compares the answers of two models."""
    if not evaluated:
        yield Line("Nothing says whether it worked: nothing here was evaluated.", "neutral")
        return
    for each in evaluated:
        metrics, inputs = each.artifact.metrics, dict(each.inputs)
        model = by_key[inputs["model"]].name
        if "baseline" in inputs and (gains := _gains(metrics)):
            better, worse = (
                sum(side(metrics, name, 0.0) == sign for name in gains) for sign in (1, -1)
            )
            rest = len(gains) - better - worse
            tasks = "task" if len(gains) == 1 else "tasks"
            tone: Tone = "bad" if worse else "good" if better else "neutral"
            yield Line(
                f"{model} against {by_key[inputs['baseline']].name} on {len(gains)} {tasks}: better"
                f" on {better}, worse on {worse}, not beyond chance on {rest}.",
                tone,
            )
        elif "baseline" in inputs:
            yield Line(
                f"Nothing decides between {model} and {by_key[inputs['baseline']].name}: there is"
                f" no win rate, and no accuracy on a task of at least {FEW} items.",
                "neutral",
            )
        else:
            yield Line(
                f"{model} is compared with no other model; inputs.baseline gives one.", "neutral"
            )


def _gains(metrics: Metrics) -> list[str]:
    """Return the differences in accuracy to the baseline, of whole tasks and not of their parts."""
    found: dict[str, str] = {}
    for measure in ("accuracy", "acc", "exact_match", "f1", "prompt_strict"):
        for name in metrics:
            head, _, last = name.rpartition("/gain/")
            is_whole = head.startswith("tasks/") and "/" not in head.removeprefix(
                "tasks/"
            ).removeprefix("lm_eval/")
            if is_whole and last == measure and not is_few(metrics, name):
                found.setdefault(head, name)
    return list(found.values())


# -- the evidence for the result -------------------------------------------------------------------


def _trained_by_ppo(evaluation: Made, by_key: Mapping[str, Made]) -> bool:
    return next(_ppo_runs(dict(evaluation.inputs)["model"], by_key), None) is not None


def _ppo_runs(key: str, by_key: Mapping[str, Made]) -> Iterator[Made]:
    """Yield the steps in which a model learned from rewards, the last one first."""
    while key in by_key:
        step = by_key[key]
        if learns_from_rewards(step.stage):
            yield step
        before = dict(step.inputs)
        key = before.get("policy") or before.get("model") or ""


def judge_in_training(evaluation: Made, by_key: Mapping[str, Made]) -> str:
    """Return the judge of the wins if one of the two models was trained against it; else "".

    Such a score is no evidence: a policy learns what raises it, whether or not people prefer the
    answers.
    """
    inputs, decides = dict(evaluation.inputs), scorer(evaluation.artifact.metrics)
    judges = (
        {key for slot, key in evaluation.inputs if slot == "reward_model"}
        if decides == "reward"
        else set()
    )
    functions = _functions(evaluation) if decides == "rules" else set()
    for slot, who in (("model", "this policy"), ("baseline", "the baseline")):
        for ppo in _ppo_runs(inputs.get(slot, ""), by_key):
            if judges & {key for kind, key in ppo.inputs if kind == "reward_model"}:
                return f"the reward model that {who} was trained against"
            if shared := sorted(functions & _functions(ppo)):
                plural = "s" * (len(shared) > 1)
                return (
                    f"the reward function{plural} {', '.join(shared)} that {who} was trained"
                    " against"
                )
    return ""


def _functions(made: Made) -> set[str]:
    """Return the names of the reward functions that a step uses."""
    given = made.artifact.manifest["config"].get("reward_functions") or {}
    return {name for name, weight in given.items() if weight}


def _besides(evaluation: Made, by_key: Mapping[str, Made]) -> list[Line]:
    """Return further lines on an evaluation that compares: doubts, a judge's view, costs."""
    metrics, inputs = evaluation.artifact.metrics, dict(evaluation.inputs)
    model = by_key[inputs["model"]].name
    lines: list[Line] = []
    if metrics.get("seen_by_reward_model", 0.0) > 0:
        lines.append(
            Line(
                f"{percent(metrics, 'seen_by_reward_model')} of the prompts that {model} was"
                " evaluated on are among the comparisons that its reward model learned from: the"
                " win rate may be too high.",
                "warning",
            )
        )
    if metrics.get("seen_in_preferences", 0.0) > 0:
        lines.append(
            Line(
                f"{percent(metrics, 'seen_in_preferences')} of the prompts that {model} was"
                " evaluated on are among the rankings or labelled responses that it learned from:"
                " the win rate may be too high.",
                "warning",
            )
        )
    if "baseline" in inputs:
        baseline = by_key[inputs["baseline"]].name
        lines += [*_judge_says(model, baseline, metrics), *_changed(model, baseline, metrics)]
    return lines


def _judge_says(model: str, baseline: str, m: Metrics) -> Iterator[Line]:
    """Say who wins by the language model that judged, and how far it can be trusted."""
    if "judge/win_rate" not in m:
        return
    asked, trust = 2 * m["prompts"], []
    if "judge/consistent" in m:
        trust.append(f"both orders agree in {percent(m, 'judge/consistent')}")
    if "judge/favoured_first" in m:
        trust.append(
            f"{percent(m, 'judge/favoured_first')} of its choices are the answer shown first"
        )
    if m["judge/unread"]:
        trust.append(
            f"{m['judge/unread']:,.0f} of {asked:,.0f} verdicts could not be read and count as ties"
        )
    beyond, tone = _beyond(m, "judge/win_rate", 0.5, "better", "worse")
    said = "; ".join([beyond, ", ".join(trust)] if trust else [beyond])
    yield Line(f"By the judge {model} wins {interval(m, 'judge/')} over {baseline}: {said}.", tone)


def _changed(model: str, baseline: str, m: Metrics) -> Iterator[Line]:
    """Say what the win cost: false statements about facts, loss on pretraining text."""
    if "gain/hallucination" in m:
        beyond, tone = _beyond(
            m, "gain/hallucination", 0.0, "more often", "less often", more_is_better=False
        )
        yield Line(
            f"{model} states something false in {percent(m, 'hallucination')} of"
            f" {m['hallucination_prompts']:,.0f} answers about facts, {baseline} in"
            f" {percent(m, 'baseline/hallucination')}: {beyond}.",
            tone,
        )
    if m.get("gain/pretrain_loss"):  # 0 if it is the same model, asked in two forms
        mean, low, high = (m[f"gain/pretrain_loss{end}"] for end in ("", "_low", "_high"))
        yield Line(
            f"{model}'s loss on pretraining text is {mean:+.3f} [{low:+.3f}, {high:+.3f}] nats per"
            f" token against {baseline}'s: the alignment tax.",
            "neutral",
        )


def _beyond(
    m: Metrics, name: str, null: float, above: str, below: str, more_is_better: bool = True
) -> tuple[str, Tone]:
    """Say on which side of chance a figure is, in words and as a tone."""
    if is_few(m, name):
        return f"too few to tell, fewer than {FEW}", "warning"
    found = side(m, name, null)
    if not found:
        return "not beyond chance", "neutral"
    return (
        f"{above if found > 0 else below}, beyond chance",
        _TONES[found if more_is_better else -found],
    )
