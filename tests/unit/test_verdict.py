"""Whether a run worked, in sentences: the answer follows the result, and an answer that proves nothing says so."""

import re
from types import SimpleNamespace

import pytest
from small_store import add, compared, evaluation

from align.report import best_of_n
from align.report.deciding import decided
from align.report.gather import gather
from align.report.summary import models_table
from align.report.verdict import verdict
from align.store.artifacts import ArtifactStore


@pytest.fixture
def store(tmp_path):
    """A base model, a reward model and another from the same comparisons, SFT, and PPO against the first."""
    store = ArtifactStore(tmp_path / "store")
    base = add(store, "toy/pretrain", "model", {})
    sft = add(store, "toy/sft", "model", {"model": base})
    add(store, "toy/prompt", "model", {"model": base})
    reward = add(store, "toy/reward", "reward_model", {"model": sft})
    add(store, "toy/reward_other", "reward_model", {"model": sft}, config={"seed": 1})
    rules = {"reward_functions": {"my_rules:brief": 1.0, "my_rules:unused": 0.0}}
    add(store, "toy/ppo", "model", {"policy": sft, "reward_model": reward}, config=rules)
    return store


def evaluated(store, metrics, name="toy/evaluate_it", config=None, **inputs):
    """The lines on one evaluation of PPO over SFT."""
    names = {"model": "toy/ppo", "baseline": "toy/sft"} | inputs
    add(store, name, "evaluation", {s: store.find(n) for s, n in names.items() if n}, metrics, config)
    return verdict(gather(store, [name]))


def rewarded(rate, low, high, scorer="reward"):
    """Wins that another scorer than gold decides."""
    return {name: x for name, x in evaluation(rate, low, high).items() if "gold" not in name} | {f"{scorer}/score": 1.0}


def over_prompted(rate, low, high):
    return {f"prompted_base/{name}": x for name, x in evaluation(rate, low, high).items() if "win_rate" in name}


@pytest.mark.parametrize(
    ("wins", "answer", "said", "tone"),
    [
        ((0.68, 0.65, 0.71), "It worked", "better, beyond chance", "good"),
        ((0.3, 0.2, 0.4), "It did not work", "worse, beyond chance", "bad"),
        ((0.52, 0.48, 0.56), "No difference beyond chance", "not beyond chance", "neutral"),
        ((0.52, 0.52, 0.52), "No difference beyond chance", "not beyond chance", "neutral"),
    ],
)
def test_the_first_line_follows_the_result(store, wins, answer, said, tone):
    rate, low, high = (f"{100 * x:.1f}" for x in wins)
    first = evaluated(store, evaluation(*wins))[0]
    assert first == (
        f"{answer}: ppo wins {rate} % [{low}, {high}] over sft ({said}) on 600 prompts, by gold score.",
        tone,
    )


BETTER, SAME, WORSE = (0.68, 0.65, 0.71), (0.5, 0.45, 0.55), (0.3, 0.2, 0.4)


@pytest.mark.parametrize(
    ("over_sft", "over_base", "answer", "tone"),
    [
        (BETTER, BETTER, "It worked: ", "good"),
        (BETTER, SAME, "It worked only in part: ", "neutral"),
        (BETTER, WORSE, "It did not work: ", "bad"),
        (SAME, BETTER, "It worked only in part: ", "neutral"),
        (WORSE, BETTER, "It did not work: ", "bad"),
        (SAME, SAME, "No difference beyond chance: ", "neutral"),
    ],
)
def test_a_prompted_base_model_has_to_be_beaten_too(store, over_sft, over_base, answer, tone):
    metrics = evaluation(*over_sft) | over_prompted(*over_base)
    first = evaluated(store, metrics, prompted_base="toy/prompt")[0]
    assert first.text.startswith(answer)
    assert f"{100 * over_base[0]:.1f} % [" in first.text
    assert "over the prompted base model prompt (" in first.text
    assert first.tone == tone


@pytest.mark.parametrize("best", ["zero_shot", "few_shot"])
def test_of_several_prompted_base_models_the_one_that_was_evaluated_is_named(store, best):
    for name in ("zero_shot", "few_shot"):
        score = {"validation/score": 0.3 if name == best else 0.2}
        add(store, f"toy/{name}", "model", {}, score, {"num_shots": len(name)})
    inputs = {"model": "toy/ppo", "baseline": "toy/sft"}
    found = {slot: store.find(name) for slot, name in inputs.items()}
    found["prompted_base"] = [store.find("toy/zero_shot"), store.find("toy/few_shot")]
    add(store, "toy/evaluate_it", "evaluation", found, evaluation(*BETTER) | over_prompted(*BETTER))
    made = gather(store, ["toy/evaluate_it"])
    assert f"over the prompted base model {best} (" in verdict(made)[0].text
    assert {row.over for row in decided(made)} == {"sft", f"{best}, prompted"}
    assert [row[3] for row in models_table(made).rows] == ["sft", best]


def test_few_prompts_answer_nothing(store):
    first = evaluated(store, evaluation(1.0, 0.9, 1.0) | {"prompts": 8.0, "win_rate_few": 8.0})[0]
    assert first == (
        "Too few prompts to tell: ppo wins 100.0 % [90.0, 100.0]† over sft (fewer than 30 prompts) on 8 prompts, "
        "by gold score.",
        "warning",
    )


def test_the_split_is_named_where_it_is_not_test(store):
    wins = evaluation(0.68, 0.65, 0.71)
    assert "on 600 validation prompts," in evaluated(store, wins, config={"split": "validation"})[0].text
    assert "on 600 prompts," in evaluated(store, wins, config={"split": "test"})[0].text


TRAINED = "This does not show whether it worked: "


@pytest.mark.parametrize("wins", [(0.9, 0.85, 0.95), (0.1, 0.05, 0.15)])
def test_a_reward_model_that_the_policy_was_trained_against_proves_nothing(store, wins):
    first = evaluated(store, rewarded(*wins), reward_model="toy/reward")[0]
    assert first.text.startswith(TRAINED)
    assert first.text.endswith(
        "decided by the reward model that this policy was trained against: this shows how well PPO fitted it, not "
        "whether answers got better."
    )
    assert "beyond chance" not in first.text
    assert first.tone == "warning"


def test_a_held_out_reward_model_is_a_judge_like_another(store):
    first = evaluated(store, rewarded(0.9, 0.85, 0.95), reward_model="toy/reward_other")[0]
    assert first.text.startswith("It worked: ")
    assert first.text.endswith("by reward score.")


def test_a_reward_model_that_does_not_decide_the_wins_is_not_named(store):
    metrics = evaluation(0.9, 0.85, 0.95) | {"reward/score": 2.0}  # gold decides where there is gold
    assert evaluated(store, metrics, reward_model="toy/reward")[0].text.startswith("It worked: ")


def test_the_judge_is_found_behind_what_was_trained_after_ppo(store):
    add(store, "toy/sft_after", "model", {"model": store.find("toy/ppo")})
    metrics = rewarded(0.9, 0.85, 0.95)
    first = evaluated(store, metrics, model="toy/sft_after", reward_model="toy/reward")[0]
    assert first.text.startswith(TRAINED)
    as_baseline = evaluated(
        store, metrics, "toy/evaluate_turned", model="toy/sft", baseline="toy/ppo", reward_model="toy/reward"
    )[0]
    assert "the reward model that the baseline was trained against" in as_baseline.text


@pytest.mark.parametrize(
    ("functions", "named"),
    [
        ({"my_rules:brief": 2.0, "my_rules:polite": 1.0}, "my_rules:brief"),
        ({"my_rules:polite": 1.0}, ""),
        ({"my_rules:unused": 1.0}, ""),  # PPO gave it the weight 0
        ({"my_rules:brief": 0.0, "my_rules:polite": 1.0}, ""),
    ],
)
def test_a_reward_function_that_the_policy_was_trained_against_is_named(store, functions, named):
    first = evaluated(store, rewarded(0.9, 0.85, 0.95, "rules"), config={"reward_functions": functions})[0]
    assert first.text.startswith(TRAINED if named else "It worked: ")
    assert (f"decided by the reward function {named} that this policy" in first.text) is bool(named)


@pytest.mark.parametrize(("share", "warned"), [(0.125, True), (0.0, False), (None, False)])
def test_prompts_that_the_reward_model_saw_are_a_warning(store, share, warned):
    seen = {} if share is None else {"seen_by_reward_model": share}
    lines = evaluated(store, evaluation(0.68, 0.65, 0.71) | seen)
    found = [line for line in lines if "its reward model learned from" in line.text]
    assert [line.tone for line in found] == ["warning"] * warned
    assert all(line.text.startswith("12.5 % of the prompts") for line in found)


def test_the_answer_is_that_of_the_last_policy_of_ppo(store):
    base, sft, ppo = (store.find(f"toy/{name}") for name in ("pretrain", "sft", "ppo"))
    add(store, "toy/evaluate_a", "evaluation", {"model": ppo, "baseline": sft}, evaluation(0.3, 0.2, 0.4), created=1.0)
    add(store, "toy/evaluate_b", "evaluation", {"model": ppo, "baseline": base}, evaluation(0.7, 0.6, 0.8), created=2.0)
    add(store, "toy/evaluate_c", "evaluation", {"model": sft, "baseline": base}, evaluation(0.6, 0.5, 0.7), created=3.0)
    first, *others = verdict(gather(store, ["toy/evaluate_a", "toy/evaluate_b", "toy/evaluate_c"]))
    assert first.text.startswith("It worked: ppo wins 70.0 % [60.0, 80.0] over pretrain")
    assert [line.text.split(" on ")[0] for line in others[:2]] == [
        "ppo wins 30.0 % [20.0, 40.0] over sft (worse, beyond chance)",
        "sft wins 60.0 % [50.0, 70.0] over pretrain (not beyond chance)",
    ]


@pytest.mark.parametrize(
    ("change", "said", "tone"),
    [
        (0.3, "more often, beyond chance", "bad"),
        (-0.3, "less often, beyond chance", "good"),
        (0.05, "not beyond chance", "neutral"),
    ],
)
def test_what_winning_cost_is_said(store, change, said, tone):
    metrics = evaluation(0.6, 0.5, 0.7) | {"hallucination_prompts": 260.0}
    metrics |= compared("", "hallucination", 0.5 + change, 0.5) | compared("", "pretrain_loss", 2.75, 2.5)
    _, facts, tax, *_ = evaluated(store, metrics)
    assert facts == (
        f"ppo states something false in {50 + 100 * change:.1f} % of 260 answers about facts, sft in 50.0 %: {said}.",
        tone,
    )
    assert tax.text == (
        "ppo's loss on pretraining text is +0.250 [+0.150, +0.350] nats per token against sft's: the alignment tax."
    )


def test_without_wins_the_tasks_are_counted(store):
    metrics = compared("tasks/copa/", "accuracy", 0.9, 0.5) | compared("tasks/rte/", "accuracy", 0.2, 0.5)
    metrics |= compared("tasks/wic/", "accuracy", 0.5, 0.5) | compared("tasks/wic/part/", "accuracy", 0.9, 0.5)
    assert evaluated(store, metrics)[0] == (
        "ppo against sft on 3 tasks: better on 1, worse on 1, not beyond chance on 1.",
        "bad",
    )
    alone = evaluated(store, {"prompts": 3.0, "gold/score": 0.5}, "toy/evaluate_alone", baseline="")
    assert alone[0].text == "ppo is compared with no other model; inputs.baseline gives one."
    assert verdict(gather(store, ["toy/ppo"]))[0].text.startswith("Nothing says whether it worked")


JUDGED = {"prompts": 100.0, "judge/win_rate": 0.6, "judge/win_rate_low": 0.52, "judge/win_rate_high": 0.68}


def test_a_judge_decides_where_nothing_else_scored(store):
    first, *_ = evaluated(store, JUDGED | {"judge/unread": 0.0})
    result = "ppo wins 60.0 % [52.0, 68.0] over sft (better, beyond chance) on 100 prompts, by the judge."
    assert first == (f"It worked: {result}", "good")
    (row,) = decided(gather(store, ["toy/evaluate_it"]))
    assert (row.over, row.rate, row.tone) == ("sft", 0.6, "good")


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (compared("tasks/squad/", "f1", 0.9, 0.5), "ppo against sft on 1 task: better on 1,"),
        (
            compared("tasks/nq/", "exact_match", 0.9, 0.5) | compared("tasks/nq/", "f1", 0.9, 0.5),
            "ppo against sft on 1 task: better on 1,",
        ),
        (compared("tasks/wiki/", "perplexity", 9.0, 8.0), "Nothing decides between ppo and sft: there is no win rate"),
        (
            compared("tasks/copa/", "accuracy", 0.9, 0.5) | {"tasks/copa/gain/accuracy_few": 9.0},
            "Nothing decides between ppo and sft",
        ),
    ],
)
def test_the_first_line_is_an_answer_whatever_was_measured(store, metrics, said):
    assert evaluated(store, metrics)[0].text.startswith(said)


def test_health_events_are_a_warning(store):
    event = {"step": 3, "name": "kl_blowup", "message": "the KL is 20.0 nats per response"}
    ppo = add(store, "toy/ppo_wild", "model", {}, events=[event, event])
    assert verdict(gather(store, [ppo.ref]))[-1] == ("2 health events in toy/ppo_wild.", "warning")
    assert verdict(gather(store, ["toy/sft"]))[-1] == ("No health events.", "neutral")


def test_every_line_is_a_sentence(store):
    for line in evaluated(store, evaluation(0.68, 0.65, 0.71)):
        assert re.fullmatch(r"[A-Za-z0-9].*\.", line.text)


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        ([0.5, 0.6, 0.7], "one sample has a gold score of 0.500, and the best of 4 has 0.700, the highest mean."),
        ([0.5, 0.6, 0.4], "0.500, and the best of 2 has 0.600, the highest mean; the best of 4 has 0.400."),
        ([0.5, 0.3, 0.4], "one sample has a gold score of 0.500, the highest mean; the best of 4 has 0.400."),
    ],
)
def test_the_best_of_n_is_told_beside_one_sample(gold, said):
    log = [{"step": n, "reward/score": 1.0, "gold/score": score} for n, score in zip((1, 2, 4), gold, strict=True)]
    assert best_of_n.sentence(SimpleNamespace(log=log), "sft").endswith(said)
