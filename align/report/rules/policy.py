"""Rules for policies that learn from rewards: PPO, GRPO, RLOO and RAFT.

Most limits are those of the health rules (`align.rl.monitors`), which report while the policy
trains. Here their events are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from align.evals.trends import (
    COLLAPSED,
    GROWN,
    REPEATED_RISE,
    REPORT_EVERY,
    kl_of_rounding,
    mean,
    standard_errors,
    thirds,
)
from align.report.finding import Finding, has_kl_coef, percent, train_nearer
from align.report.rules.curves import ends_of, error_of_change, tenths, values
from align.report.running import Logged

_LEAST = 20  # iterations: fewer say nothing of a trend
_ROSE, _FELL = 2.0, -3.0  # standard errors
_KL_PER_TOKEN = 1.0  # nats
# Of over-optimisation: a fall of the gold score from its best tenth, in units of the gold score and
# in standard errors, and a rise of the learned score since then. The best of ten is high by chance,
# so the fall needs more than the usual 2 standard errors.
_GOLD_FALL, _GOLD_ERRORS, _SCORE_ERRORS = 0.05, 4.0, 1.0
# Reported before the first update only, and no reader wants to miss it later.
_ONCE = {"wrong_reference"}
# Events that are no defect of the policy.
_NO_DEFECT = {"unscored", "few_episodes", "nonfinite"}
# What a policy comes to that has learned everything: all of its responses are right. So these are
# no defects if the score rose.
_NO_DEFECT_AFTER_A_RISE = {"equal_groups", "flat_reward"}


def judge_policy(step: Logged, steps: Sequence[Logged]) -> Iterator[Finding]:
    """Judge a policy: the score rose, held-out scores did not fall, nothing collapsed."""
    reward = _reward(step)
    yield reward
    # What went wrong comes before its general signs, because a reader acts on the first finding.
    yield from _variety(step)
    yield from _events(step, rose=reward.verdict == "good")
    yield from _over_optimised(step)
    yield from _far_from_start(step)


def _reward(step: Logged) -> Finding:
    """Judge whether the score that the policy learns from rose."""
    learned = _learned_score(step)
    scores, kl = values(step.log, learned), values(step.log, "objective/kl")
    lengths = values(step.log, "response_tokens")
    if len(scores) < _LEAST:
        return Finding(
            "reward",
            "cannot tell",
            f"{len(scores)} iterations with a score",
            f"at least {_LEAST}",
            "ours",
            "compare it with its start: align evaluate",
        )
    begun, _, ended = thirds(scores)
    moved, first, last = standard_errors(begun, ended), mean(begun), mean(ended)
    figure, threshold = f"score {first:.2f} to {last:.2f}", "rises by 2 standard errors"
    if moved > _ROSE:
        name, verdict, advice = "reward", "good", ""
    elif moved < _FELL:
        name, verdict, advice = "reward_fell", "bad", "lower learning_rate"
    elif kl and lengths and ends_of(kl)[1] < kl_of_rounding(mean(lengths)):
        name, verdict = "nothing_moved", "bad"
        figure = f"{figure}, KL {ends_of(kl)[1]:.2g} nats: it did not move"
        threshold = f"a KL above {kl_of_rounding(mean(lengths)):.2g} nats, or a rising score"
        advice = f"{'lower kl_coef, or ' * has_kl_coef(step.stage)}raise learning_rate"
    else:
        name, verdict = "reward", "cannot tell"
        figure, advice = f"{figure}: not beyond chance", "train longer, or raise learning_rate"
    return Finding(
        name,
        verdict,  # type: ignore[arg-type]
        figure,
        threshold,
        "ours; the KL is NeMo RL's limit of what rounding explains",
        advice,
    )


def _learned_score(step: Logged) -> str:
    """Return the metric that a policy learns from.

    It is the reward models' score. The whole reward may rise because of a function.
    """
    is_model = any("reward/model" in row for row in step.log)
    return "reward/model" if is_model else "objective/score"


def _events(step: Logged, rose: bool) -> Iterator[Finding]:
    """Yield a finding for each health rule that still holds at the end.

    Args:
        rose: True if the score that the policy learns from rose.
    """
    no_defect = _NO_DEFECT | (_NO_DEFECT_AFTER_A_RISE if rose else set())
    end = step.log[-1]["step"] if step.log else 0
    latest = {event["name"]: event for event in step.events}
    lasting = _ONCE | ({"length_hacking"} if _is_grown(step) else set())
    for name, event in latest.items():
        still_holds = event["step"] > end - REPORT_EVERY
        if name in no_defect or not (still_holds or name in lasting):
            continue
        said, _, advice = event["message"].partition("; ")
        yield Finding(
            name,
            "bad",
            said,
            "no event in the last 20 iterations",
            f"health rule {name}",
            advice,
        )


def _is_grown(step: Logged) -> bool:
    """Return whether the responses are longer at the end than at the start.

    Once all are as long as the limit, length no longer decides the score, and its rule is silent.
    """
    lengths = values(step.log, "response_tokens")
    return bool(lengths) and ends_of(lengths)[1] >= GROWN * ends_of(lengths)[0]


def _over_optimised(step: Logged) -> Iterator[Finding]:
    """Find a gold score that fell from its best while the score that the policy learns from rose.

    Both are compared as means over tenths of the run [Gao et al. 2022].
    """
    learned = _learned_score(step)
    pairs = [row for row in step.log if "gold/score" in row and learned in row]
    gold, score = values(pairs, "gold/score"), values(pairs, learned)
    if len(gold) < _LEAST or len(score) != len(gold):
        return
    of_gold, of_score = tenths(gold), tenths(score)
    best = max(range(10), key=lambda i: mean(of_gold[i]))
    fall = mean(of_gold[best]) - mean(of_gold[-1])
    rise = mean(of_score[-1]) - mean(of_score[best])
    if fall <= max(_GOLD_FALL, _GOLD_ERRORS * error_of_change(of_gold)):
        return
    if rise <= _SCORE_ERRORS * error_of_change(of_score):
        return
    yield Finding(
        "over_optimised",
        "bad",
        f"gold score fell from {mean(of_gold[best]):.2f} to {mean(of_gold[-1]):.2f} while its"
        " score rose",
        f"a fall of at most {_GOLD_FALL}, or of {_GOLD_ERRORS:g} standard errors",
        "Gao et al. 2022; limits ours",
        f"stop earlier, or train nearer to the start: {train_nearer(step.stage)}",
    )


def _far_from_start(step: Logged) -> Iterator[Finding]:
    kl, tokens = values(step.log, "objective/kl"), values(step.log, "response_tokens")
    if not kl or not tokens:
        return
    per_token = ends_of(kl)[1] / max(ends_of(tokens)[1], 1.0)
    if per_token > _KL_PER_TOKEN:
        yield Finding(
            "kl_per_token",
            "bad",
            f"KL {ends_of(kl)[1]:.1f} nats, {per_token:.2g} per token",
            f"at most {_KL_PER_TOKEN:g} nats per token",
            "Huang et al. 2024: over-optimised at 50 to 85 nats of 53 tokens",
            train_nearer(step.stage),
        )


def _variety(step: Logged) -> Iterator[Finding]:
    """Find responses that come to repeat themselves, or each other."""
    repeated, distinct = (values(step.log, f"response/{n}") for n in ("repeated", "distinct"))
    if len(repeated) < _LEAST or len(distinct) < _LEAST:
        return
    before, after = ends_of(repeated)
    if after - before > REPEATED_RISE:
        yield Finding(
            "repeats",
            "bad",
            f"{percent(after)} of 3-grams repeat the response, {percent(before)} at the start",
            f"a rise of at most {100 * REPEATED_RISE:.0f} points",
            "ours, healthy quickstarts",
            "look at samples.jsonl: the reward pays repetition; change it, or"
            f" {train_nearer(step.stage)}",
        )
    before, after = ends_of(distinct)
    if after < COLLAPSED * before:
        yield Finding(
            "no_variety",
            "bad",
            f"{percent(after)} of 2-grams are distinct, {percent(before)} at the start",
            f"at least {percent(COLLAPSED)} of the start",
            "ours, as for the entropy",
            "look at samples.jsonl;"
            f" {'raise entropy_coef, or ' * has_kl_coef(step.stage)}{train_nearer(step.stage)}",
        )
