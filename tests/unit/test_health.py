"""The signs that PPO goes wrong: each rule on a series that it must speak of, and on ones near it that it must not."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from align.rl.monitors import RULES, Event, Health

KL, SCORE, HELD_OUT = "objective/kl", "objective/score", "heldout/score"
MODEL = "reward/model"
TOKENS, CORRELATION = "response_tokens", "objective/score_length_correlation"
EXPLAINED = "value/explained_variance"

Series = dict[str, Sequence[float]]


def steps(*parts: tuple[float, int]) -> list[float]:
    """Each value as often as it says."""
    return [value for value, times in parts for _ in range(times)]


# rule -> what is watched, what its one event says, in which iteration, and series that are not enough
CASES: dict[str, dict[str, Any]] = {
    "kl_blowup": {
        "kl_goal": 6.0,
        "fires": {KL: steps((1.0, 3), (12.1, 20))},
        "at": 23,
        "says": "twice its goal of 6 ",
        "quiet": [{KL: steps((12.1, 19))}, {KL: steps((12.1, 19), (12.0, 1), (12.1, 19))}],
    },
    "negative_kl": {
        "fires": {KL: steps((-0.06, 10))},
        "at": 10,
        "says": "-0.06 on average",
        "quiet": [{KL: steps((-0.06, 9))}, {KL: steps((-0.04, 40))}, {KL: [-1.0, 1.0] * 20}],
    },
    "wrong_reference": {
        "fires": {KL: [0.3, 0.3, 5.0], TOKENS: [20.0, 20.0, 20.0]},
        "at": 1,
        "says": "the KL is 0.30 nats per response before the first update",
        "quiet": [
            {KL: [0.19, 0.5, 0.5], TOKENS: [20.0] * 3},  # 0.01 a token
            {KL: [0.0, 0.5, 0.5], TOKENS: [20.0] * 3},
            {KL: [0.04], TOKENS: [1.0]},
        ],
    },
    "entropy_collapse": {
        "fires": {"policy/entropy": steps((2.0, 10), (0.5, 10))},
        "at": 20,
        "says": "from 2.00 to 0.50",
        "quiet": [
            {"policy/entropy": steps((2.0, 10), (0.5, 9))},
            {"policy/entropy": steps((2.0, 10), (0.61, 30))},
            {"policy/entropy": steps((0.5, 40))},
            {"policy/entropy": steps((0.06, 40))},
            {"policy/entropy": steps((0.04, 9))},
        ],
    },
    "length_hacking": {
        "fires": {TOKENS: steps((20.0, 10), (30.0, 10)), CORRELATION: steps((0.71, 20))},
        "at": 20,
        "says": "from 20 to 30 tokens and the longer score higher (0.71)",
        "quiet": [
            {TOKENS: steps((20.0, 10), (29.9, 30)), CORRELATION: steps((0.71, 40))},
            {TOKENS: steps((20.0, 10), (30.0, 30)), CORRELATION: steps((0.69, 40))},
            {TOKENS: steps((20.0, 10), (30.0, 30)), CORRELATION: steps((-0.9, 40))},
        ],
    },
    "cut_off": {
        "fires": {"response/ended": steps((1.0, 5), (0.0, 6))},
        "at": 11,
        "says": "only 40% of the responses",
        "quiet": [
            {"response/ended": steps((0.0, 9))},
            {"response/ended": steps((0.5, 40))},
            {"response/ended": steps((1.0, 5), (0.0, 5))},
        ],
    },
    "clip_fraction": {
        "fires": {"ppo/clip_fraction": steps((0.39, 10), (0.51, 1))},
        "at": 11,
        "says": "40% of the tokens are clipped",
        "quiet": [{"ppo/clip_fraction": steps((1.0, 9))}, {"ppo/clip_fraction": steps((0.39, 40))}],
    },
    "approx_kl": {
        "fires": {"ppo/approx_kl": steps((0.0, 10), (0.51, 2))},
        "at": 12,
        "says": "by 0.10 nats per token",
        "quiet": [{"ppo/approx_kl": steps((0.2, 9))}, {"ppo/approx_kl": steps((0.09, 40))}],
    },
    "explained_variance": {
        "warmup": 5,
        "fires": {EXPLAINED: steps((-0.1, 26))},
        "at": 26,
        "says": "(-0.10)",
        "quiet": [{EXPLAINED: steps((-0.1, 25))}, {EXPLAINED: steps((-0.1, 16), (0.02, 24))}],
    },
    "sampling_gap": {
        "fires": {"policy/sampling_kl": steps((0.001, 10), (0.1, 1))},
        "at": 11,
        "says": "0.011 nats per token",
        "quiet": [{"policy/sampling_kl": steps((0.1, 9))}, {"policy/sampling_kl": steps((0.009, 40))}],
    },
    "drowned_by_text": {
        "fires": {"ptx/policy_share": steps((0.04, 10))},
        "at": 10,
        "says": "4.0% of the policy's gradient",
        "quiet": [{"ptx/policy_share": steps((0.04, 9))}, {"ptx/policy_share": steps((0.06, 40))}],
    },
    "reward_hacking": {
        "fires": {MODEL: steps((0.0, 10), (1.0, 10), (2.0, 10)), HELD_OUT: steps((2.0, 10), (1.5, 10), (1.0, 10))},
        "at": 30,
        "says": "rose to 2.00 while that of a reward model that PPO does not see fell from 2.00 to 1.00",
        "quiet": [
            {MODEL: list(range(29)), HELD_OUT: list(range(29, 0, -1))},
            {MODEL: list(range(40)), HELD_OUT: list(range(40))},
            {MODEL: list(range(40, 0, -1)), HELD_OUT: list(range(40, 0, -1))},
            {MODEL: list(range(30)), HELD_OUT: steps((2.0, 10), (1.0, 20))},
            {MODEL: list(range(30)), HELD_OUT: steps((2.0, 20), (1.0, 10))},
            {MODEL: steps((0.0, 10), (1.0, 20)), HELD_OUT: list(range(30, 0, -1))},
            {MODEL: list(range(40))},
            # the whole reward rises by what a function adds, and the model's score does not
            {SCORE: list(range(30)), MODEL: [0.0] * 30, HELD_OUT: list(range(30, 0, -1))},
        ],
    },
    "unscored": {
        "fires": {"unscored": [0.25]},
        "at": 1,
        "says": "25% of the episodes have no score, because every reward function gave None: they are left out",
        "quiet": [{SCORE: [1.0] * 40}],
    },
    "flat_reward": {
        "fires": {"deviation/model": steps((0.5, 2), (0.0, 10))},
        "at": 12,
        "says": "nothing to learn",
        "quiet": [
            {"deviation/model": steps((0.0, 9))},
            {"deviation/model": steps((0.011, 40))},
            {"deviation/model": steps((0.0, 40)), "deviation/functions": steps((0.001, 40))},
            {"deviation/functions": steps((1e-6, 40))},
        ],
    },
    "equal_groups": {
        "fires": {"group/equal": steps((0.5, 2), (0.92, 10))},
        "at": 12,
        "says": "in 92% of the groups all responses have the same reward",
        "quiet": [{"group/equal": steps((0.95, 9))}, {"group/equal": steps((0.89, 40))}],
    },
    "few_episodes": {
        "episodes": 7,
        "fires": {SCORE: [1.0] * 20},
        "at": 1,
        "says": "a rollout of 7",
        "quiet": [],
    },
    "not_finite": {
        "fires": {HELD_OUT: [math.nan], SCORE: [1.0]},
        "at": 1,
        "says": "heldout/score: not a finite number",
        "quiet": [{HELD_OUT: [1e30, -1e30]}],
    },
}


def iterations(series: Series) -> list[dict[str, float]]:
    return [dict(zip(series, values, strict=True)) for values in zip(*series.values(), strict=True)]


def told(
    metrics: Sequence[dict[str, float]],
    kl_goal: float | None = None,
    warmup: int = 0,
    health: Health | None = None,
    first: int = 1,
    episodes: int | None = None,
) -> list[Event]:
    health = health or Health(kl_goal, warmup, episodes=episodes)
    return [event for step, each in enumerate(metrics, first) for event in health.look(step, each)]


def options(case: dict[str, Any]) -> dict[str, Any]:
    return {name: case[name] for name in ("kl_goal", "warmup", "episodes") if name in case}


def test_every_rule_has_a_case():
    assert list(CASES) == list(RULES)


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_speaks_in_the_iteration_in_which_enough_is_seen(rule):
    case = CASES[rule]
    (event,) = told(iterations(case["fires"]), **options(case))
    assert (event.step, event.name) == (case["at"], rule)
    assert case["says"] in event.message


@pytest.mark.parametrize(("rule", "place"), [(rule, i) for rule in CASES for i in range(len(CASES[rule]["quiet"]))])
def test_a_rule_is_silent_where_not_quite_enough_is_seen(rule, place):
    case = CASES[rule]
    assert told(iterations(case["quiet"][place]), **options(case)) == []


def test_without_a_goal_a_kl_of_10_is_too_much_unless_it_began_high():
    def steps_told(*parts: tuple[float, int]) -> list[tuple[int, str]]:
        return [(event.step, event.name) for event in told(iterations({KL: steps(*parts)}))]

    assert steps_told((1.0, 10), (10.0, 10)) == [(20, "kl_blowup")]
    assert steps_told((1.0, 10), (9.9, 30)) == []
    assert steps_told((4.0, 10), (20.0, 10)) == [(20, "kl_blowup")]
    assert steps_told((4.0, 10), (19.9, 30)) == []
    assert steps_told((50.0, 40)) == []


def test_a_kl_near_its_goal_is_silent_however_high_the_goal_is():
    assert told(iterations({KL: steps((1.0, 10), (30.0, 30))}), kl_goal=25.0) == []
    assert [event.step for event in told(iterations({KL: steps((1.0, 10), (30.0, 30))}))] == [14, 34]


def test_a_value_model_may_be_bad_while_it_is_warmed_up():
    bad = iterations({EXPLAINED: steps((-0.5, 60))})
    assert [event.step for event in told(bad, warmup=0)] == [21, 41]
    assert [event.step for event in told(bad, warmup=30)] == [51]


def test_a_score_that_is_length_is_told_before_responses_grow():
    (event,) = told(iterations({TOKENS: steps((20.0, 10)), CORRELATION: steps((0.86, 10))}))
    assert (event.step, event.name) == (10, "length_hacking")
    assert "correlation 0.86" in event.message
    assert told(iterations({TOKENS: steps((20.0, 40)), CORRELATION: steps((0.84, 40))})) == []


def test_a_value_model_that_is_a_constant_is_told():
    (event,) = told(iterations({EXPLAINED: steps((0.0, 25))}))
    assert (event.step, event.name) == (21, "explained_variance")
    assert "explains nothing (0.00)" in event.message


def test_what_goes_on_is_said_again_after_20_iterations_and_not_before():
    assert [event.step for event in told(iterations({"response/ended": steps((0.4, 60))}))] == [10, 30, 50]
    assert [event.step for event in told(iterations({"response/ended": steps((0.4, 29))}))] == [10]


def test_what_comes_back_within_20_iterations_waits_and_later_is_said_at_once():
    soon = steps((0.4, 10), (1.0, 7), (0.0, 13))  # bad again from iteration 23, where 6 of the last 10 are 0
    assert [event.step for event in told(iterations({"response/ended": soon}))] == [10, 30]
    late = steps((0.4, 10), (1.0, 25), (0.0, 6))
    assert [event.step for event in told(iterations({"response/ended": late}))] == [10, 41]


def test_the_silence_of_one_rule_is_not_another_s():
    metrics = iterations({"response/ended": steps((0.4, 25)), "ppo/clip_fraction": steps((0.0, 10), (0.9, 15))})
    assert [(event.step, event.name) for event in told(metrics)] == [(10, "cut_off"), (15, "clip_fraction")]


def test_iterations_that_lack_a_metric_are_passed_over():
    metrics = [{"response/ended": 0.4}] * 5 + [{KL: 1.0}] * 3 + [{"response/ended": 0.4}] * 5
    assert [(event.step, event.name) for event in told(metrics)] == [(13, "cut_off")]


def unwell(seed: int) -> list[dict[str, float]]:
    """A run in which most rules speak: the bad series of all of them side by side, late or not, with noise."""
    rng = random.Random(seed)
    metrics: list[dict[str, float]] = [{} for _ in range(120)]
    for case in CASES.values():
        for name, values in case["fires"].items():
            first = rng.choice([0, 0, 15])
            for i, each in enumerate(metrics):
                each[name] = values[min(max(i - first, 0), len(values) - 1)] + rng.uniform(-0.005, 0.005)
    return metrics


@pytest.mark.parametrize("seed", range(3))
def test_what_was_looked_at_again_gives_the_same_events_from_there_on(seed):
    """As a resumed run does: it reads its log, whose events are already told, and goes on."""
    metrics = unwell(seed)
    whole = told(metrics, 6.0, 5)
    assert len({event.name for event in whole}) >= 5
    assert whole == told(metrics, 6.0, 5)
    for cut in range(0, len(metrics), 7):
        health = Health(6.0, 5)
        logged = [json.loads(json.dumps(each)) for each in metrics[:cut]]
        before = told(logged, health=health)
        assert before == [event for event in whole if event.step <= cut]
        assert told(metrics[cut:], health=health, first=cut + 1) == [event for event in whole if event.step > cut]


@pytest.mark.parametrize("seed", range(3))
def test_no_rule_speaks_of_a_healthy_run(seed):
    rng = random.Random(seed)
    metrics = [
        {
            KL: 6.0 * min(1.0, i / 50) + rng.gauss(0, 0.3) * (i > 0),  # before the first update the policy is its start
            "policy/entropy": 2.5 - i / 200 + rng.gauss(0, 0.1),
            TOKENS: 20 + i / 20 + rng.gauss(0, 1),
            CORRELATION: rng.uniform(-0.3, 0.5),
            "response/ended": rng.uniform(0.8, 1.0),
            "ppo/clip_fraction": rng.uniform(0.0, 0.2),
            "ppo/approx_kl": rng.uniform(0.0, 0.03),
            EXPLAINED: min(0.7, i / 40 - 0.3),
            "policy/sampling_kl": rng.uniform(0.0, 1e-6),
            SCORE: i / 100 + rng.gauss(0, 0.1),
            HELD_OUT: i / 120 + rng.gauss(0, 0.1),
        }
        for i in range(150)
    ]
    assert told(metrics, 6.0, 0) == []


def test_functions_alone_are_held_against_the_held_out_model():
    rising, falling = list(range(30)), list(range(30, 0, -1))
    (event,) = told(iterations({SCORE: rising, HELD_OUT: falling}))
    assert (event.step, event.name) == (30, "reward_hacking")


def test_a_rollout_without_any_score_is_said_to_be_skipped():
    (event,) = told([{"unscored": 1.0}])
    assert event.message.endswith("the rollout is skipped")


def test_a_gap_that_is_corrected_for_is_not_told():
    far = [{"policy/sampling_kl": 0.05}] * 15
    for corrected, count in ((False, 1), (True, 0)):
        health = Health(None, 0, corrected=corrected)
        assert len([event for step, each in enumerate(far, 1) for event in health.look(step, each)]) == count


def test_what_is_not_a_number_is_named_and_counts_for_no_other_rule():
    strange = [{"objective/kl": math.nan, "policy/entropy": math.inf, "ppo/clip_fraction": math.nan}] * 20
    (event,) = told(strange)
    assert event.name == "not_finite"
    assert event.message.startswith("objective/kl, policy/entropy, ppo/clip_fraction: ")


def test_an_entropy_near_zero_is_told_from_the_start():
    (event,) = told(iterations({"policy/entropy": steps((0.04, 20))}))
    assert (event.step, event.name) == (10, "entropy_collapse")


def test_without_a_held_out_model_the_gold_score_is_held_against_the_reward():
    (event,) = told(iterations({MODEL: list(range(30)), "gold/score": list(range(30, 0, -1))}))
    assert (event.step, event.name) == (30, "reward_hacking")
    assert "while the gold score fell" in event.message


@pytest.mark.parametrize(("noise", "count"), [(0.1, 1), (1.0, 0)])
def test_a_fall_that_chance_may_explain_is_not_told(noise, count):
    """Of 0.4 a window, beside a noise of so much from one rollout to the next."""
    trained = [value + noise * (-1) ** i for i, value in enumerate(steps((0.0, 10), (0.4, 10), (0.8, 10)))]
    held_out = [-value for value in trained]
    assert len(told(iterations({MODEL: trained, HELD_OUT: held_out}))) == count


def noisy(levels: list[float], deviation: float, seed: int) -> list[float]:
    rng = random.Random(seed)
    return [level + rng.gauss(0.0, deviation) for level in levels]


@pytest.mark.parametrize("seed", range(5))
def test_a_slow_fall_is_told_by_the_whole_run(seed):
    """The gold score falls from 0.30 to 0.15 in 80 iterations and varies by 0.07: in 30 of them that is little."""
    fall = [0.30 - 0.15 * i / 79 for i in range(80)]
    rise = [-0.1 + 0.25 * i / 79 for i in range(80)]
    found = told(iterations({MODEL: noisy(rise, 0.1, seed), "gold/score": noisy(fall, 0.07, seed + 100)}))
    assert {event.name for event in found} == {"reward_hacking"}


@pytest.mark.parametrize("seed", range(5))
def test_a_fall_after_a_long_rise_is_told(seed):
    """As in over-optimisation [Gao et al. 2022]: the whole run ends above its start."""
    gold = noisy([i / 200 for i in range(200)] + [1.0 - i / 40 for i in range(30)], 0.05, seed)
    found = told(iterations({MODEL: noisy([i / 100 for i in range(230)], 0.05, seed + 100), "gold/score": gold}))
    assert found
    assert min(event.step for event in found) > 200


def test_a_held_out_score_that_only_varies_is_told_in_few_long_runs_though_the_trained_score_rises():
    false_alarms = sum(
        bool(told(iterations({MODEL: list(range(300)), HELD_OUT: noisy([0.0] * 300, 1.0, seed)}))) for seed in range(40)
    )
    assert false_alarms <= 2


def test_8_episodes_are_enough():
    assert told([{SCORE: 1.0}] * 20, episodes=8) == []
