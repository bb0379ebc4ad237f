"""Rules for what learns from rankings or labels: reward models, DPO and KTO."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from align.configs import EvaluateReward
from align.evals.intervals import FEW
from align.evals.reward_metrics import verdict_on
from align.report.finding import Finding, Verdict, percent
from align.report.rules.curves import ends_of, loss_at_the_end, values
from align.report.running import Logged

_SIGNS: dict[int, Verdict] = {1: "good", 0: "cannot tell", -1: "bad"}
_Z = 1.96  # standard errors of a 95 % interval
# With an interval of more than this on each side, a figure at chance says little. Useful reward
# models are 13 to 19 points above chance [Huang et al. 2024, 1B to 6.9B].
_WIDEST = 0.1
_MEMORIZED = 0.2  # difference of the accuracies on training and on held-out pairs
_FALL = 1.0  # nats per token that the preferred responses may lose


def judge_reward(step: Logged, steps: Sequence[Logged]) -> Iterator[Finding]:
    """Judge a reward model: above chance and length alone, and not by heart."""
    m = step.metrics
    accuracy, prompts = m.get("accuracy"), m.get("held_out_prompts", 0.0)
    if accuracy is None:
        yield Finding(
            "accuracy",
            "cannot tell",
            "no accuracy on held-out pairs was logged",
            "above chance and length alone, by its interval",
            "chance, and the rule that a longer (or a shorter) response wins",
            "give inputs.data validation rows",
        )
    else:
        # Shorter may be better, too.
        length = m.get("length_accuracy", 0.5)
        by_length = max(length, 1 - length)
        yield _accuracy("accuracy", accuracy, prompts, max(0.5, by_length), by_length)
        gold = m.get("gold_accuracy", 1.0)
        if prompts >= FEW and gold + _Z * _error(gold, prompts) < 0.5:
            yield Finding(
                "against_gold",
                "bad",
                f"orders {percent(gold)} of pairs as the gold score does",
                "its 95 % interval not below 50 %, which is chance",
                "chance",
                "look at the labels: are the ranks upside down (1 is the best)?",
            )
        learned = values(step.log, "accuracy")
        if len(learned) >= 10:
            _, seen = ends_of(learned)
            if seen - accuracy > _MEMORIZED:
                yield Finding(
                    "memorized",
                    "bad",
                    f"{percent(seen)} of training pairs, {percent(accuracy)} of held-out ones",
                    f"at most {100 * _MEMORIZED:.0f} points apart",
                    "ours; InstructGPT trains for 1 epoch, because more overfits",
                    "train for 1 epoch, or on more prompts",
                )
    yield from _not_good_enough(step, steps)
    yield from loss_at_the_end(step.log)


def judge_reward_evaluation(step: Logged, steps: Sequence[Logged]) -> Iterator[Finding]:
    """Judge a reward model by comparisons that it did not learn from."""
    if "accuracy" not in step.metrics:
        return  # it has not ended
    verdict = verdict_on(step.metrics)
    accuracy, low, high, length = (
        100 * step.metrics[name]
        for name in ("accuracy", "accuracy_low", "accuracy_high", "length_accuracy")
    )
    yield Finding(
        "good_enough",
        _SIGNS[verdict.sign],
        f"orders {accuracy:.0f} % [{low:.0f}, {high:.0f}] of pairs; length alone {length:.0f} %",
        "above chance and above length alone, by its interval",
        "Singhal et al. 2023; intervals by a bootstrap over prompts",
        "train the reward model on more rankings, or on rankings in which length does not decide",
    )


def _not_good_enough(step: Logged, steps: Sequence[Logged]) -> Iterator[Finding]:
    """Find an evaluation by which a reward model is not good enough."""
    for each in steps:
        if each.stage == EvaluateReward.STAGE and ("model", step.key) in each.inputs:
            for finding in judge_reward_evaluation(each, steps):
                if finding.verdict == "bad":
                    figure = f"{finding.figure} ({each.name})"
                    yield finding._replace(name="not_good_enough", figure=figure)


def judge_dpo_or_kto(step: Logged, steps: Sequence[Logged]) -> Iterator[Finding]:
    """Judge a model tuned with DPO or KTO: better than no training, and near its start."""
    m, losses = step.metrics, values(step.log, "loss")
    if "eval/loss" in m and losses:
        # The first loss is that of the given model, whatever the formula. KTO's depends on the
        # labels in the batch if their weights differ, so it logs that of the held-out rows.
        after, before = m["eval/loss"], m.get("eval/loss_before", losses[0])
        yield Finding(
            "held_out_loss",
            "good" if after < before else "bad",
            f"held-out loss {after:.3g}, {before:.3g} without training",
            "below that of the given model",
            "a model that learned nothing",
            "lower learning_rate",
        )
        if "held_out_prompts" in m:
            yield _accuracy("accuracy", m["eval/accuracy"], m["held_out_prompts"], 0.5, None)
    else:
        yield Finding(
            "held_out_loss",
            "cannot tell",
            "no held-out loss was logged",
            "below that of the given model",
            "a model that learned nothing",
            "give inputs.data validation rows",
        )
    gained = m.get("eval/chosen_per_token")
    if gained is not None and gained < -_FALL:
        yield Finding(
            "likelihood_fell",
            "bad",
            f"preferred responses lost {-gained:.2g} nats per token",
            f"at most {_FALL:g}; both log-probs fall a little in a healthy run",
            "ours, healthy runs lose 0.3 or less",
            "lower learning_rate, or raise kl_coef",
        )
    yield from loss_at_the_end(step.log)


def _accuracy(
    name: str, accuracy: float, prompts: float, chance: float, by_length: float | None
) -> Finding:
    """Judge an accuracy on held-out pairs against chance.

    The interval counts prompts, not pairs, since pairs of one prompt depend on each other.

    Args:
        chance: what is to be beaten.
        by_length: accuracy of a rule that looks at length alone; None if it is not known.
    """
    error = _error(accuracy, prompts)
    low, high = accuracy - _Z * error, accuracy + _Z * error
    if prompts >= FEW and low > chance:
        verdict = "good"
    elif prompts >= FEW and _Z * error <= _WIDEST and accuracy < chance + error:
        verdict = "bad"
    else:
        verdict = "cannot tell"
    of_length = by_length is not None and by_length > 0.5
    beside = f"; length alone {percent(chance)}" if of_length else "; chance 50 %"
    is_length = of_length and low > 0.5
    return Finding(
        "length_only" if verdict == "bad" and is_length else name,
        verdict,  # type: ignore[arg-type]
        f"orders {percent(accuracy)} [{100 * max(low, 0):.0f}, {100 * min(high, 1):.0f}] of"
        f" pairs{beside}",
        "its 95 % interval above both",
        "chance, and the rule that a longer (or a shorter) response wins",
        "give rankings in which length does not decide, or give length_coef to ppo"
        if is_length
        else "look at the rankings (align data ... --show), then train on more of them",
    )


def _error(accuracy: float, prompts: float) -> float:
    """Return the standard error of a fraction; never 0, though all of the pairs may be right."""
    return math.sqrt(max(accuracy * (1 - accuracy), 1e-4) / max(prompts, 1))
