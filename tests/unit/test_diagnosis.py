"""Which stage is bad: each rule on metrics and curves written by hand, and the cause upstream."""

import json
import random
import time
from dataclasses import fields

import pytest
from small_store import add, evaluation, ppo_log

from align.cli.main import main
from align.configs import STAGES
from align.evals.variety import distinct_share, repeated_share
from align.report.diagnosis import advice, diagnose, of_refs
from align.report.gather import gather
from align.report.page import write_report
from align.rl.monitors import Health
from align.store.artifacts import NOTE, ArtifactStore

RISING = [0.5 + 0.01 * i for i in range(30)]
FALLING = [0.8] * 15 + [0.8 - 0.02 * i for i in range(15)]


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def curve(name, values, **more):
    """A log with one metric, and others that do not change."""
    return [{"step": i + 1, name: value, **more} for i, value in enumerate(values)]


def noisy(values, width=0.02):
    rng = random.Random(0)
    return [value + rng.gauss(0, width) for value in values]


def judged(store, step, kind="model", inputs=None, *others, **given):
    """The diagnosis of one step."""
    add(store, f"toy/{step}", kind, inputs or {}, **given)
    found = diagnose(gather(store, [f"toy/{step}", *others]))
    return next(each for each in found if each.step.endswith(step))


def names(diagnosis, verdict="bad"):
    return [finding.name for finding in diagnosis.findings if finding.verdict == verdict]


# -- supervised ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "bad"),
    [
        ([7.0] + [2.0 - 0.01 * i for i in range(99)], []),
        ([2.0] + [3.0] * 99, ["held_out_loss"]),
        ([7.0] + [2.0 - 0.02 * i for i in range(70)] + [0.6 + 0.05 * i for i in range(29)], ["loss_rose"]),
        (noisy([7.0] + [1.0] * 99, 0.2), []),
    ],
)
def test_pretraining_falls_and_is_calm_at_the_end(store, losses, bad):
    assert names(judged(store, "pretrain", log=curve("loss", losses))) == bad


def test_a_spike_at_the_end_is_found_and_one_before_is_not(store):
    calm = [7.0, *[1.0] * 499]
    early, late = ([*calm[:place], 5.0, *calm[place + 1 :]] for place in (100, 490))
    assert names(judged(store, "pretrain", log=curve("loss", early))) == []
    assert names(judged(store, "pretrain_late", log=curve("loss", late))) == ["loss_spikes"]


@pytest.mark.parametrize(
    ("held_out", "bad"),
    [
        ([1.3, 0.3, 0.2], []),
        ([1.3, 1.4], ["held_out_loss"]),
        ([1.3, 0.5, 0.4, 0.7], ["overfit"]),
        ([1.3, 0.5, 0.4, 0.41], []),
    ],
)
def test_sft_learns_and_does_not_overfit(store, held_out, bad):
    metrics = {"eval/loss": min(held_out[1:]), "eval/loss_before": held_out[0]}
    found = judged(store, "sft", log=curve("eval/loss", held_out), metrics=metrics)
    assert names(found) == bad
    assert found.verdict == ("bad" if bad else "good")


def test_without_held_out_rows_sft_cannot_be_judged(store):
    assert judged(store, "sft", log=curve("loss", [1.0, 0.5])).verdict == "cannot tell"


@pytest.mark.parametrize("ended", [0.49, 0.5])
@pytest.mark.parametrize("by", ["compare", "evaluate", "baseline", "ppo"])
def test_whoever_samples_from_sft_shows_whether_it_ends_its_turns(store, ended, by):
    sft = add(store, "toy/sft", "model", {}, log=curve("eval/loss", [1.3, 0.3]), metrics={"eval/loss": 0.3})
    metrics = {"response/ended": ended}
    if by == "compare":
        add(store, "toy/compare", "comparisons", {"model": sft}, metrics)
    elif by == "evaluate":
        add(store, "toy/evaluate", "evaluation", {"model": sft}, metrics)
    elif by == "baseline":
        other = add(store, "toy/dpo", "model", {"model": sft})
        own = {"response/ended": 1.0, "baseline/response/ended": ended}
        add(store, "toy/evaluate", "evaluation", {"model": other, "baseline": sft}, own)
    else:  # of the first iteration, before the first update
        log = [{"step": 1, "response/ended": ended}, {"step": 2, "response/ended": 1 - ended}]
        add(store, "toy/ppo", "model", {"policy": sft}, log=log)
    found = {each.step: each for each in diagnose(gather(store, ["toy"]))}
    assert ("ends_turns" in names(found["sft"])) is (ended < 0.5)


# -- rankings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "length", "prompts", "verdict", "name"),
    [
        (0.68, 0.45, 400, "good", "accuracy"),
        (0.50, 0.45, 400, "bad", "accuracy"),
        (0.45, 0.50, 400, "bad", "accuracy"),
        (0.90, 0.90, 400, "bad", "length_only"),
        (0.80, 0.20, 400, "bad", "length_only"),  # the shorter wins
        (0.95, 0.45, 20, "cannot tell", "accuracy"),  # too few
        (0.50, 0.45, 60, "cannot tell", "accuracy"),  # too wide: 13 points on each side
        (0.58, 0.55, 400, "cannot tell", "accuracy"),  # above, but not beyond its interval
    ],
)
def test_a_reward_model_has_to_beat_chance_and_length(store, accuracy, length, prompts, verdict, name):
    metrics = {"accuracy": accuracy, "length_accuracy": length, "held_out_prompts": float(prompts)}
    found = judged(store, "reward", "reward_model", metrics=metrics)
    assert (found.verdict, found.findings[0].name) == (verdict, name)


def test_the_interval_of_an_accuracy_is_the_binomial_one_over_prompts(store):
    """For 64 of 100: 0.64 +- 1.96 * sqrt(0.64 * 0.36 / 100), which is 0.546 to 0.734."""
    found = judged(store, "reward", "reward_model", metrics={"accuracy": 0.64, "held_out_prompts": 100.0})
    assert "64 % [55, 73]" in found.findings[0].figure


@pytest.mark.parametrize(
    ("accuracy", "lead", "prompts", "verdicts"),
    [
        (0.70, 0.1, 400, ("good", "good")),
        (0.70, -0.1, 400, ("bad", "bad")),
        (0.51, 0.0, 400, ("bad", "bad")),
        (0.70, -0.1, 20, ("cannot tell", "good")),  # too few
    ],
)
def test_a_reward_model_that_an_evaluation_finds_wanting_is_bad(store, accuracy, lead, prompts, verdicts):
    means = {"accuracy": accuracy, "length_accuracy": accuracy - lead, "over_length": lead}
    figures = {"pairs": 500.0, "prompts": float(prompts)} | ({"accuracy_few": 20.0} if prompts < 30 else {})
    for name, mean in means.items():
        figures |= {name: mean, f"{name}_low": mean - 0.03, f"{name}_high": mean + 0.03}
    well = {"accuracy": 0.7, "length_accuracy": 0.5, "held_out_prompts": 400.0}
    reward = add(store, "toy/reward", "reward_model", {}, metrics=well)
    add(store, "toy/evaluate_reward", "evaluation", {"model": reward}, metrics=figures)
    found = {each.step: each for each in diagnose(gather(store, ["toy/evaluate_reward"]))}
    assert (found["evaluate_reward"].verdict, found["reward"].verdict) == verdicts
    if verdicts[1] == "bad":
        first = found["reward"].findings[0]
        assert first.name == "not_good_enough"
        assert first.figure.startswith(f"orders {100 * accuracy:.0f} % [")
        assert found["evaluate_reward"].cause == "reward"


def test_upside_down_labels_and_rankings_learned_by_heart_are_found(store):
    right = {"accuracy": 0.7, "held_out_prompts": 400.0}
    for gold, bad in ((0.44, ["against_gold"]), (0.46, [])):  # its interval has 5 points on each side
        assert names(judged(store, f"reward_{gold}", "reward_model", metrics=right | {"gold_accuracy": gold})) == bad
    for end, bad in ((0.95, ["memorized"]), (0.85, [])):
        log = curve("accuracy", [0.5 + (end - 0.5) * i / 99 for i in range(80)] + [end] * 20)
        assert names(judged(store, f"reward_{end}", "reward_model", metrics=right, log=log)) == bad


@pytest.mark.parametrize(
    ("loss", "first", "gained", "bad"),
    [
        (0.54, 0.693, -0.05, []),
        (0.80, 0.693, -0.05, ["held_out_loss"]),
        (0.80, 1.000, -0.05, []),  # another formula begins elsewhere
        (0.54, 0.693, -2.0, ["likelihood_fell"]),
    ],
)
def test_dpo_is_better_than_no_training_and_stays_likely(store, loss, first, gained, bad):
    metrics = {"eval/loss": loss, "eval/accuracy": 0.7, "held_out_prompts": 400.0, "eval/chosen_per_token": gained}
    assert names(judged(store, "dpo", metrics=metrics, log=curve("loss", [first, 0.6]))) == bad


@pytest.mark.parametrize(
    ("loss", "gained", "bad"), [(0.6, 0.1, []), (0.8, 0.1, ["held_out_loss"]), (0.6, -2.0, ["likelihood_fell"])]
)
def test_kto_is_better_than_the_given_model_on_held_out_rows_whatever_the_first_batch_held(store, loss, gained, bad):
    metrics = {"eval/loss": loss, "eval/loss_before": 0.7, "eval/accuracy": 0.7, "eval/chosen_per_token": gained}
    assert names(judged(store, "kto", metrics=metrics, log=curve("loss", [0.5, 0.9]))) == bad


# -- policies ------------------------------------------------------------------------------------------------------


def calm(scores, kl=1.0, **more):
    return curve("objective/score", scores, **{"objective/kl": kl, "response_tokens": 10.0} | more)


@pytest.mark.parametrize("stage", ["ppo", "grpo", "rloo", "raft"])
@pytest.mark.parametrize(
    ("log", "verdict", "name"),
    [
        (calm(noisy(RISING)), "good", "reward"),
        (calm(noisy([0.5] * 30)), "cannot tell", "reward"),
        (calm(noisy([0.5] * 30), kl=0.05), "bad", "nothing_moved"),
        (calm(noisy(RISING), kl=0.05), "good", "reward"),
        (calm(noisy(RISING[::-1])), "bad", "reward_fell"),
        (calm(RISING[:10]), "cannot tell", "reward"),
        (calm(noisy(RISING), kl=9.0), "good", "reward"),
        (calm(noisy(RISING), kl=11.0), "bad", "kl_per_token"),
    ],
)
def test_the_score_of_a_policy_rises_and_it_stays_near(store, stage, log, verdict, name):
    found = judged(store, stage, log=log)
    assert (found.verdict, found.findings[0].name) == (verdict, name)


@pytest.mark.parametrize(
    ("gold", "score", "fires"),
    [
        (FALLING, RISING, True),
        (RISING, RISING, False),
        (FALLING, FALLING, False),
        ([0.8] * 30, RISING, False),
        (noisy([0.6] * 30, 0.3)[::-1], RISING, False),  # the best tenth of noise is not a peak
        (FALLING, noisy([0.5] * 30), False),
    ],
)
def test_over_optimisation_is_found_where_gold_falls_while_the_score_rises(store, gold, score, fires):
    assert ("over_optimised" in names(judged(store, "ppo", log=ppo_log(gold, score)))) is fires


@pytest.mark.parametrize(
    ("metric", "values", "name"),
    [
        ("response/repeated", [0.01] * 10 + [0.02 * i for i in range(20)], "repeats"),
        ("response/distinct", [0.5] * 10 + [0.5 - 0.02 * i for i in range(20)], "no_variety"),
    ],
)
def test_repetition_and_lost_variety_are_found(store, metric, values, name):
    for step, last in (("ppo", values), ("ppo_calm", [values[0]] * 30)):
        log = calm(noisy(RISING), **{"response/repeated": 0.01, "response/distinct": 0.5})
        log = [row | {metric: value} for row, value in zip(log, last, strict=True)]
        assert names(judged(store, step, log=log)) == ([name] if step == "ppo" else [])


@pytest.mark.parametrize(("at", "holds"), [(10, False), (11, True), (30, True)])
def test_an_event_counts_if_its_rule_may_still_hold_at_the_end(store, at, holds):
    event = {"step": at, "name": "clip_fraction", "message": "50% of the tokens are clipped; lower learning_rate"}
    found = judged(store, "ppo", log=calm(noisy(RISING)), events=[event])
    assert names(found) == ["clip_fraction"] * holds
    if holds:
        assert advice([found]) == ["Mend ppo first: 50% of the tokens are clipped. Lower learning_rate."]


@pytest.mark.parametrize(("last", "bad"), [(15.0, ["length_hacking"]), (14.0, [])])
def test_length_hacking_is_found_where_all_responses_have_come_to_the_limit(store, last, bad):
    event = {"step": 5, "name": "length_hacking", "message": "the score is mostly length (correlation 0.90)"}
    log = [row | {"response_tokens": 10.0 if row["step"] < 10 else last} for row in calm(noisy(RISING))]
    assert names(judged(store, "ppo", log=log, events=[event])) == bad


@pytest.mark.parametrize(("scores", "bad"), [(RISING, []), ([0.5] * 30, ["equal_groups"])])
def test_a_policy_that_has_learned_everything_is_not_bad(store, scores, bad):
    """At the end all of its responses are right, so the rewards of a group are equal."""
    event = {"step": 30, "name": "equal_groups", "message": "in 95% of the groups all responses have the same reward"}
    found = judged(store, "grpo", log=calm(noisy(scores)), events=[event])
    assert names(found) == bad


@pytest.mark.parametrize("stage", ["ppo", "grpo", "raft", "sft"])
def test_advice_names_only_knobs_that_the_stage_has(store, stage):
    start = add(store, "toy/pretrain", "model", {})
    text = {"response/repeated": 0.01, "response/distinct": 0.5}
    calm_part = calm(RISING, kl=0.0, **text)[:20]
    far_part = calm(RISING, kl=90.0, **{"response/repeated": 0.9, "response/distinct": 0.1})[20:]
    gold = [row | {"gold/score": 1.0 - 0.02 * i} for i, row in enumerate([*calm_part, *far_part])]
    log = [] if stage == "sft" else gold
    trained = add(store, f"toy/{stage}", "model", {"policy": start, "model": start}, log=log)
    add(store, "toy/evaluate", "evaluation", {"model": trained, "baseline": start}, evaluation(0.3, 0.2, 0.4))
    found = {each.step: each for each in diagnose(gather(store, ["toy"]))}[stage]
    expected = [] if stage == "sft" else ["repeats", "no_variety", "over_optimised", "kl_per_token"]
    assert names(found) == [*expected, "lost_to_start"]
    knobs = {knob.name for knob in fields(STAGES[stage])}
    for finding in found.findings:
        words = {word.strip(",;:.") for word in finding.advice.split()}
        assert {word for word in words if "_" in word} <= knobs
        assert ("kl_coef" in words) is ("kl_coef" in knobs and finding.verdict == "bad")


def test_a_wrong_reference_is_reported_once_and_found_ever_after(store):
    event = {"step": 1, "name": "wrong_reference", "message": "the KL is 9.00 nats per response"}
    assert names(judged(store, "ppo", log=calm(noisy(RISING)), events=[event])) == ["wrong_reference"]


def test_a_health_rule_that_holds_to_the_end_is_always_found(store):
    """Whatever the length of the run, since a rule that holds reports again."""
    for length in (40, 47, 59):
        health, log, events = Health(None, 0), calm(noisy([0.01 * i for i in range(length)])), []
        for row in log:
            row["ppo/clip_fraction"] = 0.5
            events += [each._asdict() for each in health.look(row["step"], row)]
        assert "clip_fraction" in names(judged(store, f"ppo_{length}", log=log, events=events))


# -- evaluations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wins", "verdict"),
    [((0.68, 0.65, 0.71), "good"), ((0.3, 0.2, 0.4), "bad"), ((0.52, 0.48, 0.56), "cannot tell")],
)
def test_a_policy_that_loses_to_its_start_is_bad_and_the_cause(store, wins, verdict):
    sft = add(store, "toy/sft", "model", {}, log=curve("eval/loss", [1.3, 0.3]), metrics={"eval/loss": 0.3})
    ppo = add(store, "toy/ppo", "model", {"policy": sft}, log=calm(noisy(RISING)))
    add(store, "toy/evaluate", "evaluation", {"model": ppo, "baseline": sft}, evaluation(*wins))
    _, of_ppo, of_evaluation = diagnose(gather(store, ["toy"]))
    assert of_evaluation.verdict == verdict
    assert names(of_ppo) == (["lost_to_start"] if verdict == "bad" else [])
    assert of_evaluation.cause == ("ppo" if verdict == "bad" else "")


def test_a_judge_that_training_used_proves_nothing(store):
    reward = add(store, "toy/reward", "reward_model", {}, {"accuracy": 0.7, "held_out_prompts": 400.0})
    sft = add(store, "toy/sft", "model", {})
    ppo = add(store, "toy/ppo", "model", {"policy": sft, "reward_model": reward}, log=calm(noisy(RISING)))
    wins = {n: v for n, v in evaluation(0.3, 0.2, 0.4).items() if "gold" not in n} | {"reward/score": 1.0}
    add(store, "toy/evaluate", "evaluation", {"model": ppo, "baseline": sft, "reward_model": reward}, wins)
    found = {each.step: each.verdict for each in diagnose(gather(store, ["toy"]))}
    assert (found["evaluate"], found["ppo"]) == ("cannot tell", "good")


@pytest.mark.parametrize(("repeated", "bad"), [(0.3, ["repeats"]), (0.1, [])])
def test_answers_that_repeat_themselves_are_found(store, repeated, bad):
    sft, ppo = add(store, "toy/sft", "model", {}), add(store, "toy/dpo", "model", {})
    metrics = evaluation(0.68, 0.65, 0.71) | {"response/repeated": repeated, "baseline/response/repeated": 0.01}
    found = judged(store, "evaluate", "evaluation", {"model": ppo, "baseline": sft}, metrics=metrics)
    assert names(found) == bad


def test_prompts_compared_with_prompts_are_not_judged(store):
    base, other = (add(store, f"toy/prompt_{n}", "model", {}) for n in ("a", "b"))
    add(store, "toy/evaluate", "evaluation", {"model": base, "baseline": other}, evaluation(0.3, 0.2, 0.4))
    found, others = of_refs(store, ["toy"], [])
    assert (found, sorted(others)) == ([], ["evaluate", "prompt_a", "prompt_b"])


# -- causes --------------------------------------------------------------------------------------------------------


def broken_run(store, accuracy=0.5):
    """A policy that lost its variety, trained on a reward model; an evaluation that it loses."""
    sft = add(store, "toy/sft", "model", {}, log=curve("eval/loss", [1.3, 0.3]), metrics={"eval/loss": 0.3})
    metrics = {"accuracy": accuracy, "held_out_prompts": 400.0, "length_accuracy": 0.5}
    reward = add(store, "toy/reward", "reward_model", {"model": sft}, metrics)
    event = {"step": 30, "name": "kl_blowup", "message": "the KL is 90.0 nats per response; raise kl_coef"}
    inputs = {"policy": sft, "reward_model": reward}
    ppo = add(store, "toy/ppo", "model", inputs, log=calm(noisy(RISING)), events=[event])
    add(store, "toy/evaluate", "evaluation", {"model": ppo, "baseline": sft}, evaluation(0.3, 0.2, 0.4))


def test_the_first_bad_step_of_the_lineage_is_the_cause(store):
    broken_run(store)
    found = diagnose(gather(store, ["toy"]))
    assert [(each.step, each.verdict, each.cause) for each in found] == [
        ("sft", "good", ""),
        ("reward", "bad", ""),
        ("ppo", "bad", "reward"),
        ("evaluate", "bad", "reward"),
    ]
    (said,) = advice(found)
    assert said.startswith("Mend reward first: orders 50 % [45, 55] of pairs; chance 50 %. Look at the rankings")
    assert said.endswith("It is the likely cause why ppo, evaluate are bad, too.")


def test_a_reward_model_that_is_in_doubt_is_named(store):
    broken_run(store, accuracy=0.53)
    (said,) = advice(diagnose(gather(store, ["toy"])))
    assert said.startswith("Mend ppo first: the KL is 90.0 nats per response. Raise kl_coef.")
    assert "More signs: lost_to_start." in said
    assert "Not shown to be good before it: reward." in said


def test_two_bad_steps_that_do_not_depend_on_each_other_are_both_named(store):
    for name in ("reward_a", "reward_b"):
        add(store, f"toy/{name}", "reward_model", {}, {"accuracy": 0.5, "held_out_prompts": 400.0})
    first, second = advice(diagnose(gather(store, ["toy"])))
    assert first.startswith("Mend reward_a first: ")
    assert second.startswith("Then mend reward_b: ")


def begin(work, reward, log, **note):
    (work / "out").mkdir()
    (work / "out/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    own = {"name": "toy/ppo", "begun": time.time(), "inputs": [["reward", reward.key]]}
    (work / NOTE).write_text(json.dumps(own | note))


@pytest.mark.parametrize(
    ("code", "verdict", "said"),
    [(4, "bad", "the loss is nan"), (143, "cannot tell", "stopped before its end"), (None, "cannot tell", "did not")],
)
def test_a_step_that_stopped_is_bad_if_its_numbers_were(store, code, verdict, said):
    reward = add(store, "toy/reward", "reward_model", {}, {"accuracy": 0.5, "held_out_prompts": 400.0})
    error = {} if code is None else {"error": "the loss is nan", "exit_code": code}
    with store.claim("ppo", "ab" * 32) as work:
        begin(work, reward, calm(RISING[:12]), **error)
    found, _ = of_refs(store, ["toy"], [])
    of_ppo = found[-1]
    assert (of_ppo.step, of_ppo.verdict) == ("toy/ppo", verdict)
    assert said in of_ppo.findings[0].figure
    assert of_ppo.cause == ("reward" if verdict == "bad" else "")


# -- what a reader sees --------------------------------------------------------------------------------------------


def test_the_command_prints_a_line_a_step_of_80_columns(store, capsys, monkeypatch):
    broken_run(store)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["diagnose", "toy", "--store", str(store.root)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["verdict", "step", "figure"]
    assert [line.split()[:2] for line in printed[1:5]] == [
        ["good", "sft"],
        ["bad", "reward"],
        ["bad", "ppo"],
        ["bad", "evaluate"],
    ]
    assert printed[6].startswith("Mend reward first: ")
    assert max(map(len, printed)) <= 80


@pytest.mark.parametrize(("accuracy", "code"), [(0.5, 4), (0.7, 0)])
def test_check_ends_with_code_4_if_a_step_is_bad(store, capsys, accuracy, code):
    add(store, "toy/reward", "reward_model", {}, {"accuracy": accuracy, "held_out_prompts": 400.0})
    assert main(["diagnose", "toy", "--check", "--store", str(store.root)]) == code
    out, err = capsys.readouterr()
    assert ("No step is bad." in out) is (code == 0)
    assert err == ("error: toy: bad: reward\n" if code else "")


def test_json_holds_every_figure_with_its_threshold_and_source(store, capsys):
    broken_run(store)
    assert main(["diagnose", "toy", "--json", "--store", str(store.root)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["step"] for each in found] == ["sft", "reward", "ppo", "evaluate"]
    assert found[2]["cause"] == "reward"
    for finding in (finding for each in found for finding in each["findings"]):
        assert {"name", "verdict", "figure", "threshold", "source", "advice"} == finding.keys()
        assert all(finding[part] for part in ("figure", "threshold", "source"))


def test_the_report_begins_with_the_same_block(store, tmp_path):
    broken_run(store)
    write_report(store, ["toy"], tmp_path / "page.html", "toy")
    found, _ = of_refs(store, ["toy"], [])
    for file in ("page.html", "page.md"):
        page = (tmp_path / file).read_text().replace("\\", "")
        places = [page.index(text) for text in (*(each.line.text for each in found), *advice(found))]
        assert places == sorted(places)
        assert places[-1] < page.index("It did not work")


def test_what_is_not_there_is_one_line(store, capsys):
    add(store, "toy/sft", "model", {})
    assert main(["diagnose", "none", "--store", str(store.root)]) == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


# -- measures ------------------------------------------------------------------------------------------------------


def test_repeated_and_distinct_n_grams_by_hand():
    # 1 2 3 1 2 3 has the 3-grams 123 231 312 123, of which one is repeated.
    assert repeated_share([[1, 2, 3, 1, 2, 3]]) == 1 / 4
    assert repeated_share([[1, 2, 3, 1, 2, 3], [1, 2]]) == 1 / 8
    assert repeated_share([[7] * 10]) == 7 / 8
    # 12 23 and 12 24: three of four 2-grams differ.
    assert distinct_share([[1, 2, 3], [1, 2, 4]]) == 3 / 4
    assert distinct_share([[1]]) == 1.0
