"""The end of a run and of a sweep, the list of artifacts and their differences: each fits 80 columns."""

import json
import random
import re

import pytest
from conftest import mostly_slow
from small_store import add, bounds, compared, evaluation

from align.cli.main import main
from align.cli.output import result_lines
from align.cli.sweep import compare, compare_ended
from align.errors import ConfigError
from align.report.gather import gather
from align.store.artifacts import ArtifactStore
from align.store.sweep_records import Member, read_sweep, recorded

BETTER = evaluation(0.68, 0.65, 0.71)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return ArtifactStore(tmp_path / "store")


def chain(store, pipeline="toy", tail=""):
    """The quickstart's models and evaluations, by hand: base, base with prompts, SFT, PPO."""
    base = add(store, f"{pipeline}/pretrain{tail}", "model", {}, {"eval/loss": 2.25})
    prompted = add(store, f"{pipeline}/prompt{tail}", "model", {"model": base})
    sft = add(store, f"{pipeline}/sft{tail}", "model", {"model": base}, {"eval/loss": 1.5})
    reward = add(store, f"{pipeline}/reward{tail}", "reward_model", {"model": sft}, {"accuracy": 0.8125})
    trained = {"objective/score": 0.875, "objective/kl": 3.5}
    ppo = add(store, f"{pipeline}/ppo{tail}", "model", {"policy": sft, "reward_model": reward}, trained)
    alone = {"prompts": 600.0, "gold/score": 0.012, "response_tokens": 44.0}
    over_prompted = {f"prompted_base/{name}": x for name, x in BETTER.items() if "win_rate" in name}
    for name, inputs, metrics in (
        ("base", {"model": base}, alone),
        ("prompted", {"model": prompted, "baseline": base}, BETTER),
        ("sft", {"model": sft, "baseline": base, "prompted_base": prompted}, BETTER | over_prompted),
        ("ppo", {"model": ppo, "baseline": sft, "prompted_base": prompted}, BETTER | over_prompted),
    ):
        add(store, f"{pipeline}/evaluate_{name}{tail}", "evaluation", inputs, metrics)
    return [f"{pipeline}/evaluate_{name}{tail}" for name in ("base", "prompted", "sft", "ppo")]


def ending(store, refs, **options):
    made = gather(store, refs)
    last = next(each for each in made if each.key == store.find(refs[-1]).key)
    return [line for line, _ in result_lines(made, last, 80, **options)]


def test_a_run_ends_with_its_answer_and_one_table_of_models(store):
    lines = ending(store, chain(store))
    assert lines[:3] == [
        "It worked: ppo wins 68.0 % [65.0, 71.0] over sft (better, beyond chance) and",
        "  68.0 % [65.0, 71.0] over the prompted base model prompt (better, beyond",
        "  chance) on 600 prompts, by gold score.",
    ]
    assert lines[3:-3] == [
        "",
        "model     gold score            wins, %  over        KL  tokens  seconds",
        "pretrain       0.012                                       44.0        2",
        "prompt         0.800  68.0 [65.0, 71.0]  pretrain  1.25    10.0        4",
        "sft            0.800  68.0 [65.0, 71.0]  pretrain  1.25    10.0        4",
        "                      68.0 [65.0, 71.0]  prompt",
        "ppo            0.800  68.0 [65.0, 71.0]  sft       1.25    10.0        8",
        "                      68.0 [65.0, 71.0]  prompt",
    ]
    assert lines[-3:] == [
        "Wins at temperature 1 with 95 % intervals, a tie counts half. Seconds are those",
        "  of all steps that a model was made by.",
        "",
    ]


def test_a_warning_stands_below_the_answer_and_a_good_line_does_not(store):
    sft, base = (add(store, f"toy/{name}", "model", {}) for name in ("sft", "pretrain"))
    ppo = add(store, "toy/ppo", "model", {"policy": sft})
    metrics = BETTER | {"hallucination_prompts": 260.0, "seen_by_reward_model": 0.5}
    metrics |= compared("", "hallucination", 0.1, 0.5) | compared("", "pretrain_loss", 2.75, 2.5)
    add(store, "toy/evaluate_base", "evaluation", {"model": sft, "baseline": base}, evaluation(0.2, 0.1, 0.3))
    add(store, "toy/evaluate_ppo", "evaluation", {"model": ppo, "baseline": sft}, metrics)
    text = " ".join(line.strip() for line in ending(store, ["toy/evaluate_base", "toy/evaluate_ppo"]))
    assert "50.0 % of the prompts that ppo was evaluated on" in text
    assert "sft wins 20.0 % [10.0, 30.0] over pretrain (worse, beyond chance)" in text
    assert "something false" not in text
    assert "alignment tax" not in text


def test_a_sweep_s_member_ends_with_its_answer_alone(store):
    lines = ending(store, chain(store), is_member=True)
    assert " ".join(lines).startswith("It worked: ")
    assert len(lines) == 3


def test_a_run_on_tasks_alone_has_a_row_a_task(store):
    sft, ppo = (add(store, f"toy/{name}", "model", {}) for name in ("sft", "ppo"))
    metrics = {"tasks/mine/items": 40.0, **compared("tasks/mine/", "accuracy", 0.75, 0.25)}
    metrics |= bounds("tasks/mine/part/accuracy", 0.5) | bounds("tasks/lm_eval/copa/acc", 0.5)
    add(store, "toy/evaluate_ppo", "evaluation", {"model": ppo, "baseline": sft}, metrics)
    assert ending(store, ["toy/evaluate_ppo"]) == [
        "ppo against sft on 1 task: better on 1, worse on 0, not beyond chance on 0.",
        "",
        "task                  model               figure                    gain  over",
        "lm_eval/copa acc      ppo    50.0 % [40.0, 60.0]",
        "mine accuracy (n=40)  ppo    75.0 % [65.0, 85.0]  +50.0 % [40.0, 60.0] *  sft",
        "With 95 % intervals; * is beyond chance.",
        "",
    ]


def test_a_run_without_an_evaluation_shows_its_last_step_s_figures(store):
    figures = {f"a/figure_{i}": i + 0.5 for i in range(60)}
    add(store, "toy/sft", "model", {}, figures | bounds("z/other", 0.5) | {"eval/loss": 1.25})
    lines = ending(store, ["toy/sft"])
    assert lines[:3] == ["metric        value", "eval/loss     1.250", "a/figure_0    0.500"]
    assert len(lines) <= 26
    left_out = 62 - sum(line.startswith(("eval", "a/", "z/")) for line in lines)
    assert f"{left_out} more rows: align artifacts show {store.find('toy/sft').ref}." in lines


@pytest.mark.parametrize("seed", mostly_slow(range(12), range(4)))
def test_however_long_its_names_and_many_its_models_a_run_ends_within_a_screen(store, seed):
    rng = random.Random(seed)
    tail = "_" + "_".join("".join(rng.choices("abcdefgh", k=rng.randint(2, 14))) for _ in range(rng.randint(1, 3)))
    refs = []
    for i in range(rng.randint(1, 4)):
        refs += chain(store, "a_pipeline_of_mine", f"{tail}_{i}")
    event = {"step": 1, "name": "kl_blowup", "message": "the KL is 20"}
    add(store, f"a_pipeline_of_mine/ppo_wild{tail}", "model", {}, events=[event])
    lines = ending(store, [*refs, f"a_pipeline_of_mine/ppo_wild{tail}"])
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 26  # what it cost and where the report is take four more


# -- the store -----------------------------------------------------------------------------------------------------


def printed(capsys, *arguments):
    assert main(list(map(str, arguments))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    return [line.rstrip() for line in lines]


def test_the_list_of_artifacts_says_what_came_of_each(store, capsys):
    chain(store)
    lines = printed(capsys, "artifacts", "ls", "--store", store.root)
    figures = {line.split()[0]: re.split(r"\s{2,}", line)[1] for line in lines[1:]}
    assert figures["toy/pretrain:v0"] == "eval/loss 2.250"
    assert figures["toy/reward:v0"] == "accuracy 0.812"
    assert figures["toy/ppo:v0"] == "score 0.875, KL 3.500"
    assert figures["toy/evaluate_ppo:v0"] == "gold 0.800, wins 68.0 %"


def test_an_alias_is_shown_but_for_latest_at_the_newest(store, capsys):
    add(store, "toy/sft", "model", {}, config={"seed": 1})
    store.tag("toy/sft", 0, "best")
    lines = printed(capsys, "artifacts", "ls", "--store", store.root)
    assert lines[1].startswith("toy/sft:v0 best ")


def test_differences_are_shown_with_both_values_and_nothing_that_is_equal(store, capsys):
    one = {"loss": 2.0, "same": 1.0, "tokens": 400_000.0} | compared("", "gold/score", 0.5, 0.25)
    two = one | {"loss": 1.5, "tokens": 500_000.0} | compared("", "gold/score", 0.75, 0.25)
    add(store, "toy/sft", "model", {}, one, {"learning_rate": 0.5, "seed": 3})
    add(store, "toy/sft", "model", {}, two, {"learning_rate": 0.25, "seed": 3, "lora": {"rank": 4}})
    lines = printed(capsys, "artifacts", "diff", "toy/sft:v0", "toy/sft:v1", "--store", store.root)
    assert lines == [
        "knob           toy/sft:v0  toy/sft:v1  difference",
        "learning_rate         0.5        0.25       -0.25",
        "lora.rank                           4",
        "",
        "metric      toy/sft:v0  toy/sft:v1  difference",
        "gold/score         0.5        0.75       +0.25",
        "loss                 2         1.5        -0.5",
        "tokens         400,000     500,000    +100,000",
        "And 5 bounds, baselines' figures and gains of these metrics: --json.",
    ]
    assert main(["artifacts", "diff", "toy/sft:v0", "toy/sft:v1", "--json", "--store", str(store.root)]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 10
    assert printed(capsys, "artifacts", "diff", "toy/sft:v1", "toy/sft:v1", "--store", store.root)[0].endswith(
        "do not differ"
    )


# -- sweeps --------------------------------------------------------------------------------------------------------


class Outcome:
    """What the runner knows of a step that it has made."""

    def __init__(self, label, artifact):
        self.step, self.artifact = self, artifact
        self.label = label


def swept(store, golds, split="test", tested=(), **more):
    """A sweep whose members' policies have these gold scores, and these on test prompts; None: it failed."""
    folder = store.root / "sweeps" / "one"
    sft = add(store, "toy/sft", "model", {})
    for number, gold in enumerate(golds):
        member = Member(folder, number, [f"steps.ppo.kl_coef=0.{number + 1}"])
        try:
            with recorded(member) as outcomes:
                if gold is None:
                    raise ValueError("it went wrong, and a long sentence says where, what came and what is allowed")
                ppo = add(store, "toy/ppo", "model", {"policy": sft}, config={"kl_coef": number})
                metrics = BETTER | {"gold/score": gold} | more
                config = {"split": split[number] if isinstance(split, list) else split, "kl_coef": number}
                inputs = {"model": ppo, "baseline": sft}
                made = add(store, "toy/evaluate_ppo", "evaluation", inputs, metrics, config)
                outcomes += [Outcome("toy/ppo", ppo), Outcome("toy/evaluate_ppo", made)]
                if tested:
                    metrics, config = metrics | {"gold/score": tested[number]}, {"split": "test", "kl_coef": number}
                    made = add(store, "toy/evaluate_test", "evaluation", inputs, metrics, config)
                    outcomes.append(Outcome("toy/evaluate_test", made))
        except ValueError:
            pass
    return folder


def ranks(lines):
    """The members in the order in which they stand."""
    return [line.split()[0] for line in lines if re.match(r" *\d+ ", line)]


def shown(capsys, folder):
    compare_ended(folder)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("page: ")) <= 80
    return lines


def test_a_sweep_s_members_stand_by_rank_with_those_that_failed_last(store, capsys):
    lines = shown(capsys, swept(store, [0.5, None, 0.75, 0.25]))
    assert lines[0].split()[:3] == ["member", "ppo.kl_coef", "gold/score"]
    assert ranks(lines) == ["2", "0", "3", "1"]
    assert "Member 1 failed: it went wrong, and a long sentence says where, what came and" in lines
    text = " ".join(line.strip() for line in lines)
    assert "Ranked by gold/score on test prompts, higher is better. The first one's figure is too good" in text
    assert "steps.evaluate_ppo.split=validation." in text


def test_members_that_were_evaluated_on_validation_prompts_may_be_chosen_by_them(store, capsys):
    text = " ".join(shown(capsys, swept(store, [0.5, 0.75], "validation")))
    assert "Ranked by gold/score on validation prompts, higher is better." in text
    assert "too good" not in text


def test_members_that_are_alike_are_not_ranked(store, capsys):
    text = " ".join(shown(capsys, swept(store, [0.5, 0.5])))
    assert "Not ranked: gold/score is the same for all." in text
    assert "too good" not in text


def test_validation_prompts_rank_members_that_were_evaluated_on_both(store, capsys):
    folder = swept(store, [0.5, 0.75], "validation", tested=[0.75, 0.5])
    lines = shown(capsys, folder)
    assert ranks(lines) == ["1", "0"]
    assert "Ranked by gold/score on validation prompts" in " ".join(lines)


def test_members_of_different_splits_are_not_ranked(store, capsys):
    lines = shown(capsys, swept(store, [0.25, 0.75], ["test", "validation"]))
    assert ranks(lines) == ["0", "1"]
    assert "Not ranked: the members' gold/score is of different splits (test, validation)." in " ".join(lines)


def test_without_a_member_that_is_done_an_objective_is_refused_in_a_line(store):
    folder = swept(store, [None, None])
    with pytest.raises(ConfigError, match="--objective kl: no member is done yet"):
        compare(folder, read_sweep(store, folder), "kl")


def test_a_sweep_of_one_figure_leaves_out_keys_too(store, capsys):
    folder = store.root / "sweeps" / "one"
    for number in range(2):
        with recorded(Member(folder, number, [f"train_rows={number}"])) as outcomes:
            made = add(store, "own/data", "documents", {}, {"rows/train": float(number)}, {"train_rows": number})
            outcomes.append(Outcome("own/data", made))
    compare(folder, read_sweep(store, folder), "rows/train")
    assert capsys.readouterr().out.splitlines()[0].split() == ["member", "train_rows", "rows/train", "state"]


def test_a_sweep_with_many_figures_keeps_the_objective(store, capsys):
    many = dict.fromkeys(("greedy/gold/score", "pretrain_loss", "fact_recall", "greedy/win_rate"), 123456.789)
    lines = shown(capsys, swept(store, [0.5, 0.75], **many))
    assert sum(line.startswith("member") for line in lines) == 1
    assert ranks(lines) == ["1", "0"]
    assert any("0.750" in line for line in lines)
