"""Sweeps: what their members leave behind, and what is made of it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
from conftest import align, made_once, run_toy

from align.errors import AlignError, Preempted, StoreError
from align.evals.intervals import mean_and_half, student
from align.report.sweep import (
    Run,
    lower_is_better,
    members_table,
    objective_of,
    pareto,
    runs_of,
    settings_of,
    settings_table,
)
from align.report.sweep_charts import axis
from align.runtime.signals import stopped
from align.store.artifacts import ArtifactStore
from align.store.sweep_records import Member, Record, fates, read_sweep, recorded, sweeps


def run_of(number, value, seed="0", **metrics):
    return Run(number, {"steps.ppo.kl_coef": value}, seed, metrics)


# -- records -------------------------------------------------------------------------------------------------------


def member(folder, number, *overrides):
    return Member(folder, number, ["pipeline=toy", "step=ppo", *overrides])


def test_members_say_how_they_ended(tmp_path):
    store, folder = ArtifactStore(tmp_path), tmp_path / "sweeps" / "one"
    with recorded(member(folder, 0, "seed=0")):
        assert read_sweep(store, folder)[0].state == "running"
    with pytest.raises(AlignError), recorded(member(folder, 1, "seed=1")):
        raise AlignError("it went wrong")
    with pytest.raises(Preempted), recorded(member(folder, 2, "seed=3")):
        raise stopped(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), recorded(member(folder, 10, "seed=2")):  # as one that is killed
        raise KeyboardInterrupt
    records = read_sweep(store, folder)
    assert [(r.number, r.state, r.error, r.knobs) for r in records] == [
        (0, "done", "", {"seed": "0"}),
        (1, "failed", "it went wrong", {"seed": "1"}),
        (2, "stopped", "", {"seed": "3"}),
        (10, "killed", "", {"seed": "2"}),
    ]
    assert sweeps(store) == [folder]
    assert [(fate.state, fate.code) for fate in fates(folder).values()] == [
        ("done", 0),
        ("failed", 1),
        ("stopped", 130),
        ("killed", 137),
    ]


def test_a_member_that_begins_again_says_how_often(tmp_path):
    store, folder = ArtifactStore(tmp_path), tmp_path / "sweeps" / "one"
    with pytest.raises(KeyboardInterrupt), recorded(member(folder, 0, "seed=0")):
        raise KeyboardInterrupt
    with recorded(member(folder, 0, "seed=0")):
        assert fates(folder)[0].pid == os.getpid()
    (record,) = read_sweep(store, folder)
    assert (record.state, record.tries) == ("done", 2)
    assert members_table([record]).rows[0][-1] == "done at try 2"


def test_a_folder_that_is_no_sweep_s_is_one_line(tmp_path):
    with pytest.raises(StoreError, match="no sweep's members"):
        read_sweep(ArtifactStore(tmp_path), tmp_path)


def test_outside_a_sweep_nothing_is_recorded(tmp_path):
    with recorded(None) as outcomes:
        outcomes.append(1)
    assert list(tmp_path.iterdir()) == []


# -- tables --------------------------------------------------------------------------------------------------------


def test_settings_are_means_over_seeds():
    runs = [
        run_of(i, value, str(i), **{"gold/score": gold})
        for i, (value, gold) in enumerate(zip("aabb", (1, 3, 5, 5), strict=True))
    ]
    table = settings_table(runs)
    assert table.columns == ["ppo.kl_coef", "seeds", "gold/score"]
    half = 12.706 * math.sqrt(2) / math.sqrt(2)
    assert table.rows == [["a", "2", f"2.000 +- {half:.3f}"], ["b", "2", "5.000 +- 0.000"]]
    assert settings_table([runs[0], runs[2]]) is None
    assert [len(setting.runs) for setting in settings_of(runs)] == [2, 2]


def test_seeds_are_told_from_other_knobs_and_members_that_are_not_done_left_out(tmp_path):
    records = [
        Record(0, {"steps.ppo.seed": "1", "steps.ppo.kl_coef": "0.1"}, "done", "", {}),
        Record(1, {"steps.ppo.seed": "1", "steps.ppo.kl_coef": "0.1"}, "failed", "no", {}),
    ]
    assert runs_of(records) == []


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1.0, 1.0), (2.0, 2.0), (3.0, 1.5), (0.5, 0.5)], [3, 0, 1]),
        ([(1.0, 1.0), (1.0, 2.0)], [1]),
        ([(1.0, 2.0), (2.0, 2.0)], [0]),
        ([], []),
    ],
)
def test_the_front_is_what_nothing_beats(points, front):
    assert pareto(points) == front
    for i, (cost, worth) in enumerate(points):
        beaten = any((c <= cost and w >= worth) and (c, w) != (cost, worth) for c, w in points)
        assert beaten is (i not in front)


def test_the_objective_is_the_first_that_every_member_has():
    runs = [run_of(0, "a", **{"win_rate": 1.0, "loss": 2.0}), run_of(1, "b", loss=1.0)]
    assert objective_of(runs, None) == "loss"
    assert objective_of(runs[:1], None) == "win_rate"
    assert objective_of(runs, "win_rate") == "loss"
    assert objective_of([run_of(0, "a", odd=1.0)], None) is None


@pytest.mark.parametrize(
    ("objective", "is_lower"),
    [
        *[("hallucination", True), ("gain/hallucination", True), ("tasks/wiki/bits_per_byte", True), ("kl", True)],
        *[("reward/missing_eos", True), ("pretrain_loss", True), ("tasks/copa/ece", True), ("eval/loss", True)],
        *[("gold/score", False), ("judge/win_rate", False), ("accuracy", False), ("reward/niece", False)],
    ],
)
def test_members_are_ranked_by_the_better_side_of_a_metric(objective, is_lower):
    assert lower_is_better(objective) is is_lower


def test_a_judge_s_wins_go_before_the_score_that_was_trained_on():
    judged = {"objective/score": 1.0, "judge/win_rate": 0.6}
    assert objective_of([run_of(0, "a", **judged)], None) == "judge/win_rate"


@pytest.mark.parametrize(
    ("values", "places"),
    [
        (["1", "3", "2"], [1.0, 3.0, 2.0]),
        (["0", "0.01", "1", "10"], [0.0, 1.0, 2.0, 3.0]),
        (["joint", "policy", "joint"], [0.0, 1.0, 0.0]),
    ],
)
def test_a_knob_s_values_stand_by_size_by_order_or_in_turn(values, places):
    assert axis(values)[0] == places


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (9, 2.262), (10, 2.2281), (30, 2.0423)])
def test_student_s_quantile(freedom, quantile):
    """Tables of the t distribution, 97.5 %."""
    assert student(freedom) == pytest.approx(quantile, abs=3e-4)


def test_an_interval_by_hand():
    mean, half = mean_and_half([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert math.isnan(mean_and_half([1.0])[1])


# -- the command, on a sweep of the toy pipeline -------------------------------------------------------------------


SHORT = ("step=evaluate", "~steps.evaluate.inputs.text", "steps.evaluate.steering=[]", "steps.evaluate.num_bootstrap=2")


@pytest.fixture(scope="module")
def swept(finished: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def sweep(store: Path) -> None:
        # Another process may plan a sweep over `finished` just now, whose folder stands there as long as that takes.
        shutil.copytree(finished, store, ignore=shutil.ignore_patterns("sweeps"))
        run_toy(store, *SHORT, "steps.evaluate.num_prompts=4,0,6", "steps.evaluate.seed=0,1", "-m", check=2)

    made = made_once(shared / "swept", sweep)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("swept") / "artifacts"))


def test_a_sweep_is_a_table_with_every_member(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    done = align("sweep", "show", "--store", swept)
    head, *rows = done.stdout.splitlines()
    assert head.split()[:3] == ["member", "evaluate.num_prompts", "evaluate.seed"]
    assert sorted(row.split()[:3] for row in rows[:6]) == [
        [str(i), value, seed] for i, (value, seed) in enumerate((v, s) for v in ("4", "0", "6") for s in "01")
    ]
    assert [row.split()[-1] for row in rows[:6]] == ["done"] * 4 + ["failed"] * 2
    assert rows[6] == "Members 2, 3 failed: inputs.prompts: no test prompt leaves room for 12 new tokens"
    assert "Means over seeds" in done.stdout


def test_a_sweep_ends_with_the_comparison_of_its_members(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where members failed, too; what is printed is what `align sweep show` prints."""
    monkeypatch.setenv("COLUMNS", "80")
    done = run_toy(swept, *SHORT, "steps.evaluate.num_prompts=4,0", "-m", check=2)
    shown = align("sweep", "show", "--store", swept).stdout
    assert done.stdout.endswith(shown)
    assert "Member 1 failed: inputs.prompts: no test prompt leaves room for 12 new" in shown
    assert max(len(line) for line in shown.splitlines() if not line.startswith("page: ")) <= 80
    shutil.rmtree(max(swept.glob("sweeps/*")))  # other tests read the first sweep


def test_its_page_and_those_of_its_members_lie_with_it(swept: Path) -> None:
    (folder,) = swept.glob("sweeps/*")
    align("sweep", "show", folder, "--store", swept)
    page = (folder / "sweep.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 2  # the objective against the knob, and against KL
    assert sorted(path.name for path in folder.glob("[0-9]*.html")) == ["0.html", "1.html", "4.html", "5.html"]
    assert "steps.evaluate.num_prompts=4 steps.evaluate.seed=0" in (folder / "0.html").read_text()


def test_json_has_what_the_table_has(swept: Path) -> None:
    rows = json.loads(align("sweep", "show", "--store", swept, "--json").stdout)
    assert [row["state"] for row in rows] == ["done", "done", "failed", "failed", "done", "done"]
    assert rows[0]["metrics"]["prompts"] == 4
    assert rows[2]["metrics"] is None


def test_sweeps_are_listed(swept: Path) -> None:
    assert (
        "4 of 6 done  steps.evaluate.num_prompts steps.evaluate.seed" in align("sweep", "ls", "--store", swept).stdout
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "--objective", "nope"], "--objective nope: not every member has it; they have: "),
        (["show", "nowhere"], "nowhere: no sweep's members are recorded here"),
        (["sho"], "align sweep: argument verb: invalid choice"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(swept: Path, arguments: list[str], said: str) -> None:
    done = align("sweep", *arguments, *(["--store", swept] if arguments[0] == "show" else []), check=None)
    assert done.returncode in (2, 3)
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_sweep_is_found_by_its_path_alone_and_by_its_name(swept: Path) -> None:
    (folder,) = swept.glob("sweeps/*")
    expected = align("sweep", "show", "--store", swept, "--json").stdout
    assert align("sweep", "show", folder, "--json").stdout == expected
    assert align("sweep", "show", folder.name, "--store", swept, "--json").stdout == expected
    assert '"metrics": {' in expected
