"""The report: made from manifests and logs alone, and safe to open whatever a model wrote."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import subprocess
import sys

import pytest
from small_store import add, bounds, compared, evaluation, ppo_log
from stage_jobs import job_at

from align.cli.artifacts import main as artifacts
from align.cli.report import main
from align.errors import StoreError
from align.report import tables
from align.report.charts import line_chart, thinned
from align.report.gather import gather
from align.report.page import calibration, curves, file_name, render
from align.report.verdict import verdict
from align.store.artifacts import ArtifactStore

EVIL = "<script>alert('x')</script> | *bold* & </td> http://example.com"


class Elements(html.parser.HTMLParser):
    """What a page asks a browser to load or run, and all its text."""

    def __init__(self, page):
        super().__init__()
        self.loads, self.scripts, self.text, self._inside = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        names = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
        self.loads += [v for name, v in attrs if name in names and not v.startswith("#")]
        self.loads += re.findall(r"url\((?!#)[^)]*\)", " ".join(v or "" for _, v in attrs))

    def handle_data(self, data):
        (self.scripts if self._inside == "script" else self.text).append(data)

    def handle_endtag(self, tag):
        self._inside = ""


def test_a_report_shows_ppo_s_episodes_and_the_parts_of_its_reward(store):
    log = [{"step": i, "objective/score": 0.1 * i, "reward/model": 0.2, "reward/mine": -0.1 * i} for i in range(1, 9)]
    rows = [
        {"step": step, "prompt": "why?", "response": f"{EVIL}{step}", "score": 1.23456, "kl": 0.5, "reward/mine": part}
        for step, part in ((1, None), (10, 7.0), (20, 8.0), (30, 9.0))
    ]
    ppo = add(store, "mine/ppo", "model", {}, log=log, samples=rows)
    html, markdown = render("mine", gather(store, [ppo.ref]))
    for text in (html, markdown):
        assert "1.23" in text
        assert EVIL not in text
    ((name, table),) = tables.episodes(gather(store, [ppo.ref]))
    assert table.columns == ["iteration", "prompt", "response", "score", "KL, nats", "mine"]
    assert [(row[0], row[-1]) for row in table.rows] == [("1", ""), ("20", "8"), ("30", "9")]
    assert "parts of the reward, before their weights" in html
    assert name in html


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0c", "\r\n"])
def test_a_model_s_text_may_hold_any_line_break(store, tmp_path, mark):
    job = job_at(tmp_path / "job")
    rows = [{"prompt": f"a{mark}b", "response": f"{mark}c"}]
    job.log.append("samples", 1, rows)
    job.log.append("samples", 2, rows)
    job.log.table("table", rows)
    artifact = dataclasses.replace(store.find("toy/ppo"), path=tmp_path / "job/out")
    assert artifact.rows("samples") == [{"step": step, **rows[0]} for step in (1, 2)]
    assert artifact.rows("table") == rows


RISING = [0.5 + 0.01 * i for i in range(30)]


@pytest.fixture
def store(tmp_path):
    store = ArtifactStore(tmp_path / "store")
    text = add(store, "toy/data_text", "documents", {}, created=50.0)  # by a clock that went ahead
    base = add(store, "toy/pretrain", "model", {"data": text}, {"parameters": 10.0, "tokens": 100.0}, created=1.0)
    sft = add(store, "toy/sft", "model", {"model": base, "data": text}, created=2.0)
    ppo = add(store, "toy/ppo", "model", {"policy": sft}, log=ppo_log(RISING, RISING), created=3.0)
    sample = {"prompt": f"why? {EVIL}", "response": EVIL, "score": 0.5, "baseline": "so", "baseline_score": 0.25}
    inputs = {"model": ppo, "baseline": sft}
    add(store, "toy/evaluate_ppo", "evaluation", inputs, evaluation(0.68, 0.65, 0.71), samples=[sample], created=4.0)
    return store


# -- what is in it -------------------------------------------------------------------------------------------------


def test_a_reference_brings_all_it_was_made_from_inputs_first(store):
    made = gather(store, ["toy/evaluate_ppo:v0"])
    assert [each.name for each in made] == ["data_text", "pretrain", "sft", "ppo", "evaluate_ppo"]
    seen = set()
    for each in made:
        assert {key for _, key in each.inputs} <= seen
        seen.add(each.key)


def test_a_pipeline_stands_for_the_latest_of_all_its_steps(store):
    add(store, "toy/other_aside", "model", {}, created=9.0)
    assert {each.name for each in gather(store, ["toy"])} == {
        *("data_text", "pretrain", "sft", "ppo", "evaluate_ppo", "other_aside")
    }
    assert "other_aside" not in {each.name for each in gather(store, ["toy/evaluate_ppo"])}


def test_a_pipeline_s_report_mixes_no_members_of_a_sweep(store):
    """The last policy that was made is not the one that was evaluated last."""
    add(store, "toy/ppo", "model", {"policy": store.find("toy/sft")}, config={"kl_coef": 0.5}, created=8.0)
    made = gather(store, ["toy"])
    assert [each.version for each in made if each.name == "ppo"] == ["v0"]
    assert [each.name for each in gather(store, ["toy/ppo"])][-1] == "ppo"


def test_of_several_names_the_one_that_a_step_was_given_is_shown(store, capsys):
    inputs = {"model": store.find("toy/ppo"), "baseline": store.find("toy/sft")}
    add(store, "mine/judged", "evaluation", inputs, evaluation(0.68, 0.65, 0.71), created=5.0)
    store.publish("another/sft", inputs["baseline"])  # as a run that shares it does
    assert [each.name for each in gather(store, ["mine/judged"])][-3:] == ["toy/sft", "toy/ppo", "judged"]
    assert "sft" in {each.name for each in gather(store, ["another/sft"])}
    for ref, shown in (("mine/judged", "baseline: toy/sft:v0"), ("another/sft", "another/sft:v0  model")):
        assert artifacts(["lineage", ref, "--store", str(store.root)]) == 0
        assert shown in capsys.readouterr().out
    assert artifacts(["lineage", "toy/sft", "--store", str(store.root)]) == 0
    assert capsys.readouterr().out.startswith("toy/sft:v0  model")
    assert "toy/sft" in {each.name for each in gather(store, ["toy/sft", "mine/judged"])}
    store.publish("toy/copy", inputs["baseline"])  # before toy/sft, as letters go
    assert [each.name for each in gather(store, ["toy/evaluate_ppo"])][-3:] == ["sft", "ppo", "evaluate_ppo"]


def test_what_stands_above_in_a_lineage_is_called_as_it_is_there(store, capsys):
    ppo = store.find("toy/ppo")
    store.publish("a/sft", store.find("toy/sft"))  # the evaluation is given it by this name, and PPO by the other
    add(store, "mine/judged", "evaluation", {"model": ppo, "baseline": store.find("a/sft")}, {"win_rate": 0.5})
    assert artifacts(["lineage", "mine/judged", "--store", str(store.root)]) == 0
    out = capsys.readouterr().out
    (again,) = re.findall(r": (\S+)  \(above\)\n", "\n".join(line for line in out.split("\n") if "sft" in line) + "\n")
    assert f" {again}  model  sft@" in out


def test_two_versions_of_a_step_are_told_apart_and_their_knobs_compared(store):
    sft = store.find("toy/sft")
    second = add(store, "toy/ppo", "model", {"policy": sft}, config={"kl_coef": 0.5}, created=5.0)
    inputs = {"model": second, "baseline": sft}
    add(store, "toy/evaluate_both", "evaluation", inputs, evaluation(0.5, 0.4, 0.6), created=6.0)
    made = gather(store, ["toy"])
    assert {"ppo:v0", "ppo:v1"} <= {each.name for each in made}
    assert ["ppo:v1", "kl_coef", "None", "0.5"] in tables.changes(made).rows
    assert tables.matrix(made) == (
        ["", "sft"],
        [["ppo:v0", "68.0 % [65.0, 71.0]"], ["ppo:v1", "50.0 % [40.0, 60.0]"]],
    )
    assert tables.matrix(gather(store, ["toy/ppo", "toy/evaluate_ppo"])) is None  # one pair needs no matrix


@pytest.mark.parametrize("ref", ["nope", "toy/nope", "toy/ppo:v7", "ppo@ffff"])
def test_what_is_not_there_is_one_line(store, ref):
    with pytest.raises(StoreError, match=re.escape(ref)):
        gather(store, [ref])


def test_too_few_prompts_are_marked_and_prove_nothing(store):
    inputs = {"model": store.find("toy/ppo"), "baseline": store.find("toy/sft")}
    few = {"prompts": 8.0, "win_rate_few": 8.0, "gold/score_few": 8.0}
    add(store, "toy/evaluate_few", "evaluation", inputs, evaluation(1.0, 0.9, 1.0) | few)
    reward = {"accuracy": 0.75, "held_out_pairs": 12.0}
    add(store, "toy/reward", "reward_model", {"model": store.find("toy/sft")}, reward)
    made = gather(store, ["toy/evaluate_few", "toy/reward"])
    page, markdown = render("toy", made)
    for text in (page, markdown):
        assert text.count(tables.FEW_NOTE) == 1
        for figure in ("0.800†", "100.0 % [90.0, 100.0]†", "12†"):
            assert figure in text.replace("\\", "")
    assert tables.FEW_NOTE not in "".join(render("toy", gather(store, ["toy/evaluate_ppo"])))


def test_tasks_are_a_row_a_measure_with_the_gain_over_the_baseline():
    def bounds(name, mean):
        return {name: mean, f"{name}_low": mean - 0.1, f"{name}_high": mean + 0.1}

    metrics = {"prompts": 3.0, "tasks/bargain/items": 4.0, **bounds("tasks/bargain/accuracy", 0.5)}
    metrics |= bounds("tasks/bargain/baseline/accuracy", 0.25) | bounds("tasks/bargain/gain/accuracy", 0.25)
    metrics |= bounds("tasks/bargain/part/perplexity", 12345.6)
    assert tables.tasks(
        [
            ("e", "ppo", "sft", metrics),
            ("f", "base", "", {"tasks/bargain/items": 4.0, **bounds("tasks/bargain/accuracy", 0.1)}),
        ]
    ) == (
        ["task", "ppo", "sft", "ppo - sft", "base"],
        [
            [
                "bargain accuracy (n=4)",
                "50.0 % [40.0, 60.0]",
                "25.0 % [15.0, 35.0]",
                "+25.0 % [15.0, 35.0] *",
                "10.0 % [0.0, 20.0]",
            ],
            ["bargain/part perplexity", "1.23e+04 [1.23e+04, 1.23e+04]", "", "", ""],
        ],
    )
    assert tables.tasks([("e", "ppo", "", {"prompts": 3.0})]).rows == []


def test_manners_are_all_that_is_neither_a_task_s_nor_in_the_headline():
    metrics = {
        "prompts": 3.0,
        **compared("", "gold/score", 0.5, 0.4),
        **compared("greedy/", "gold/score", 0.5, 0.4),
        **compared("", "gold/manner", 0.5, 0.25),
        **compared("checks/kind/", "toxic", 0.5, 0.25),
        **compared("checks/", "letters", 12.0, 10.0),
        **compared("tasks/copa/", "accuracy", 0.5, 0.25),
        **bounds("judge/win_rate", 0.6),
        **bounds("win_rate", 0.6),
        "judge/unread": 3.0,
    }
    assert tables.manners([("e", "ppo", "sft", metrics)]) == (
        ["answers", "ppo", "sft", "ppo - sft"],
        [
            ["gold/manner", "50.0 % [40.0, 60.0]", "25.0 % [15.0, 35.0]", "+25.0 % [15.0, 35.0] *"],
            ["checks/kind toxic", "0.5 [0.4, 0.6]", "0.25 [0.15, 0.35]", "+0.25 [0.15, 0.35] *"],
            ["checks letters", "12 [11.9, 12.1]", "10 [9.9, 10.1]", "+2 [1.9, 2.1] *"],
            ["judge win_rate", "60.0 % [50.0, 70.0]", "", ""],
        ],
    )


def test_a_model_that_figures_differently_twice_has_a_column_more():
    one, two = bounds("tasks/copa/accuracy", 0.5), bounds("tasks/copa/accuracy", 0.75)
    table = tables.tasks([("plain", "ppo", "", one), ("shots", "ppo", "", two), ("again", "ppo", "", one)])
    assert table.columns == ["task", "ppo", "ppo (shots)"]
    assert table.rows == [["copa accuracy", "50.0 % [40.0, 60.0]", "75.0 % [65.0, 85.0]"]]


def test_a_calibration_error_stands_beside_what_chance_makes_of_it():
    def ece(value):
        return {"tasks/copa/ece": value, "tasks/copa/ece_chance": 0.03, "tasks/copa/ece_chance_high": 0.05}

    table = tables.tasks([("e", "ppo", "", ece(0.2)), ("f", "sft", "", ece(0.04))])
    assert table.rows == [["copa ece", "20.0 % (chance: to 5.0) *", "4.0 % (chance: to 5.0)"]]


def test_who_decides_the_wins_is_named_and_no_score_is_lost(store):
    inputs = {"model": store.find("toy/ppo"), "baseline": store.find("toy/sft")}
    metrics = evaluation(0.9, 0.8, 0.95) | {"rules/score": 40.0} | compared("", "gold/score", 0.2, 0.3)
    add(store, "toy/evaluate_more", "evaluation", inputs, metrics)
    made = gather(store, ["toy/evaluate_more"])
    (row,) = tables.headline(made).rows
    assert dict(zip(tables.headline(made).columns, row, strict=True))["rules score"] == "40.000"
    assert verdict(made)[0].text.endswith("by rules score.")
    assert tables.manners(tables.scored(made)).rows[0][0] == "gold/score"


def test_calibration_is_a_chart_a_task_and_a_reward_model(store):
    bins = [{"low": 0.5, "high": 0.6, "answers": 9, "confidence": 0.55, "accuracy": 0.5}]
    of_reward = [{"task": "pairs", "model": "model", **row} for row in bins]
    less_sure = [{**bins[0], "answers": 4}, {**bins[0], "low": 0.6, "high": 0.7, "answers": 5}]
    of_reward += [{"task": "pairs", "model": "at its temperature", **row} for row in less_sure]
    reward = add(store, "toy/reward", "reward_model", {}, calibration=of_reward)
    of_task = [{"task": "copa", "model": model, **row} for model in ("model", "baseline") for row in bins]
    inputs = {"model": store.find("toy/ppo"), "baseline": store.find("toy/sft"), "reward_model": reward}
    add(store, "toy/evaluate_more", "evaluation", inputs, evaluation(0.6, 0.5, 0.7), calibration=of_task)
    one, two = calibration(gather(store, ["toy/evaluate_more"]))
    assert (one.title, two.title) == ("reward: pairs of answers", "copa")
    assert [line.name for line in one.legend] == ["reward", "reward at its temperature"]
    assert [line.name for line in two.legend] == ["ppo", "sft"]
    assert "ppo is 55 % sure on average and right in 50 %" in two.summary


def test_training_steps_tell_what_they_came_to_on_held_out_rows(store):
    text = {"eval/loss": 2.5, "eval/books/loss": 2.25, "tokens": 9.0}
    add(store, "toy/pretrain_books", "model", {}, text, log=[{"step": 1, "loss": 3.0}])
    ends = {"": 0.5, "_low": 0.5, "_high": 0.75}
    task = {f"test/{part}accuracy{end}": x for part in ("", "baseline/", "gain/") for end, x in ends.items()}
    log = [{"step": 1, "loss": 2.0, "task_loss": 1.0, "lm_loss": 2.0}]
    add(store, "toy/finetune_snli", "classifier", {}, {"rows/test": 8.0, "validation/accuracy": 0.9, **task}, log=log)
    made = gather(store, ["toy/pretrain_books", "toy/finetune_snli"])
    assert tables.learned(made) == tables.Table(
        ["step", "measure", "figure", "baseline", "difference"],
        [
            ["pretrain_books", "books/loss", "2.250", "", ""],
            ["pretrain_books", "loss", "2.500", "", ""],
            ["finetune_snli", "accuracy", *["50.0 % [50.0, 75.0]"] * 2, "+50.0 % [50.0, 75.0] *"],
        ],
    )
    assert [(own.step, len(own.pictures)) for own in curves(made)] == [("finetune_snli", 2), ("pretrain_books", 1)]
    page, markdown = render("toy", made)
    assert "Held-out rows" in page
    assert "Held-out rows" in markdown
    assert "No evaluation" not in page


def test_costs_add_up(store):
    table = tables.costs(gather(store, ["toy"]))
    rows = {row[0]: row for row in table.rows}
    assert rows["all"][3] == "10.0"
    assert rows["pretrain"][4:6] == ["100", "6e+03"]
    assert rows["sft"][4:6] == ["", ""]


# -- the page ------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_runs_no_word_of_a_model(store):
    page, _ = render("toy", gather(store, ["toy"]))
    elements = Elements(page)
    assert elements.loads == []
    assert not any("alert" in script for script in elements.scripts)
    assert EVIL in elements.text  # shown as it is
    assert "<script>alert" not in page


def test_markdown_shows_what_a_model_wrote_as_text(store):
    _, markdown = render("toy", gather(store, ["toy"]))
    assert "<script>" not in markdown
    assert r"\| \*bold\*" in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert "| ppo | sft | 600 | 0.800 | 68.0 % \\[65.0, 71.0\\] | 40 % | 1.25 | 10.0 | " in table


def test_the_same_store_gives_the_same_page(store):
    assert render("toy", gather(store, ["toy"])) == render("toy", gather(store, ["toy"]))


def test_every_step_is_a_box_right_of_its_inputs(store):
    made = gather(store, ["toy"])
    page, _ = render("toy", made)
    left = {key: float(x) for key, x in re.findall(r'data-key="(\w+)">.*?<rect x="([\d.]+)"', page)}
    assert left.keys() == {each.key for each in made}
    for each in made:
        assert all(left[key] < left[each.key] for _, key in each.inputs)
    assert page.count('class="edge"') == sum(len(each.inputs) for each in made)


# -- charts --------------------------------------------------------------------------------------------------------


def test_a_long_series_is_thinned_to_means():
    points = [(float(i), float(i % 2)) for i in range(4800)]
    thin = thinned(points)
    assert len(thin) == 240
    assert {y for _, y in thin} == {0.5}
    assert thinned(points[:240]) == points[:240]


def test_a_chart_takes_its_colours_from_the_page_and_skips_what_is_not_finite():
    series = {"one": [(1.0, float("nan")), (2.0, float("inf"))], "two": [(1.0, 2.0), (2.0, 3.0), (3.0, float("nan"))]}
    chart = line_chart("a < b", "step", series)
    svg = chart.picture
    assert [(line.name, line.number) for line in chart.legend] == []
    assert "two from 2 to 3" in chart.summary
    assert "var(--series-1)" in svg
    assert "var(--series-0)" not in svg
    assert not re.search(r"#01020\w", svg)
    assert "nan" not in svg.lower().replace("finance", "")


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_both_files_and_says_where(store, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    assert main(["toy", "--store", str(store.root), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_text().startswith("<!doctype html>")
    assert out.with_suffix(".md").read_text().startswith("# toy\n")
    assert sorted(p.name for p in out.parent.iterdir()) == ["page.html", "page.md"]
    main(["toy/ppo:v0", "--store", str(store.root)])
    assert (store.root / "reports" / "toy-ppo-v0.html").is_file()


def test_a_sweep_s_override_is_a_file_name():
    assert file_name("toy.steps.ppo.kl_coef=0.1.x=a/b c") == "toy.steps.ppo.kl_coef=0.1.x=a-b-c.html"


def test_the_command_needs_no_torch(store):
    code = "import sys; from align.cli.report import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    arguments = ["toy", "--store", str(store.root)]
    out = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "False"
