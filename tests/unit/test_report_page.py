"""What makes a report readable: tones in words, names that are explained, labels, contrast, and curves."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from small_store import add, bounds, compared, evaluation

import align.report
from align.configs import STAGES
from align.report import tables
from align.report.charts import NOISY, is_noisy, line_chart, running_mean
from align.report.deciding import decided
from align.report.gather import gather
from align.report.meanings import meaning
from align.report.page import curves, render
from align.report.sweep_page import charts, verdict, write_page
from align.store.artifacts import ArtifactStore
from align.store.sweep_records import Record

STYLE = (Path(align.report.__file__).parent / "style.css").read_text()


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def evaluated(store, rate, low, high, **more):
    """A policy that is evaluated against its SFT model; gives its reward model too."""
    log = [{"step": i, "loss": 1 / i, "accuracy": 0.5, "learning_rate": 0.1, "grad_norm": 1.0} for i in range(1, 40)]
    sft = add(store, "toy/sft", "model", {}, log=log)
    pairs = {"accuracy": 0.7, "gold_accuracy": 0.8, "labeler_gold_accuracy": 0.9, "length_accuracy": 0.4}
    bins = [{"task": "pairs", "model": "model", "low": 0.5, "answers": 9, "confidence": 0.55, "accuracy": 0.5}]
    reward = add(
        store,
        *("toy/reward", "reward_model", {"model": sft}),
        pairs | {"held_out_pairs": 90.0},
        log=log,
        calibration=bins,
    )
    names = ("objective/score", "gold/score", "objective/kl", "response_tokens", "policy/entropy", "ppo/clip_fraction")
    names += ("value/clip_fraction", "value/explained_variance", "ptx/loss", "policy/learning_rate", "reward/model")
    names += ("value/learning_rate", "policy/grad_norm", "value/grad_norm", "reward/mine")
    log = [{"step": i, **dict.fromkeys(names, 0.1 * i)} for i in range(1, 9)]
    episode = {"step": 1, "prompt": "why", "response": "so", "score": 1.0, "kl": 0.1, "reward/model": 1.0}
    event = {"step": 3, "name": "cut_off", "message": "responses are cut off"}
    inputs = {"policy": sft, "reward_model": reward}
    ppo = add(store, "toy/ppo", "model", inputs, log=log, samples=[episode], events=[event])
    sample = {"prompt": "why?", "response": "so", "score": 0.5, "baseline": "yes", "baseline_score": 0.25}
    metrics = evaluation(rate, low, high) | bounds("gold/score", 0.8) | compared("", "gold/manner", 0.5, 0.4)
    metrics |= {"tasks/copa/items": 90.0} | compared("tasks/copa/", "accuracy", 0.5, 0.4)
    metrics |= {"greedy/gold/score": 0.9, "pretrain_loss": 2.5, "fact_recall": 0.9} | bounds("greedy/win_rate", rate)
    metrics |= more
    models = {"model": ppo, "baseline": sft}
    if "reward/score" in more:
        del metrics["gold/score"]
        models["reward_model"] = reward
    add(store, "toy/evaluate_ppo", "evaluation", models, metrics, samples=[sample])
    return gather(store, ["toy"])


# -- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "low", "high", "more", "tone", "word", "said"),
    [
        (0.68, 0.65, 0.71, {}, "good", "✓", "better, beyond chance"),
        (0.3, 0.2, 0.4, {}, "bad", "✕", "worse, beyond chance"),
        (0.52, 0.48, 0.56, {}, "neutral", "•", "no difference beyond chance"),
        (0.9, 0.8, 1.0, {"win_rate_few": 8.0}, "warning", "!", "too few prompts to tell, fewer than 30"),
        (0.9, 0.8, 1.0, {"reward/score": 1.0}, "warning", "!", "no evidence: PPO was trained against this judge"),
    ],
)
def test_colour_sign_and_words_follow_the_result(store, rate, low, high, more, tone, word, said):
    made = evaluated(store, rate, low, high, **more)
    (row,) = decided(made)
    assert (row.tone, row.result) == (tone, said)
    html, _ = render("toy", made)
    assert f'<span class="badge {tone}"><span aria-hidden="true">{word}</span> {said}</span>' in html
    first = re.search(r'<h2 class="hidden" id="verdict">.*?<li class="(\w+)">', html, re.DOTALL)
    assert first is not None
    assert first[1] == tone


def test_a_prompted_base_has_a_row_of_its_own(store):
    sft = add(store, "toy/sft", "model", {})
    metrics = evaluation(0.7, 0.6, 0.8) | {"prompted_base/gold/score": 0.3} | bounds("prompted_base/win_rate", 0.55)
    base = add(store, "toy/prompt", "model", {})
    add(store, "toy/evaluate_ppo", "evaluation", {"model": sft, "baseline": sft, "prompted_base": base}, metrics)
    first, second = decided(gather(store, ["toy"]))
    assert (first.over, first.its_score, first.tone) == ("sft", "0.600", "good")
    assert (second.over, second.its_score, second.tone) == ("prompt, prompted", "0.300", "neutral")


# -- names that are explained ----------------------------------------------------------------------------------------


def test_every_column_chart_and_curve_is_explained(store):
    made = evaluated(store, 0.68, 0.65, 0.71)
    found = [tables.headline(made), tables.reward_models(made), tables.costs(made), tables.changes(made)]
    found += [tables.events(made), tables.learned(made), *(table for _, table in tables.episodes(made))]
    names = {name for table in found for name in table.columns}
    for _, pictures in curves(made):
        names |= {picture.title for picture in pictures} | {line.name for p in pictures for line in p.legend}
    shown = tables.Table([], [])
    for shown in (tables.manners(tables.scored(made)), tables.tasks(tables.scored(made))):
        names |= {row[0] for row in shown.rows}
    assert {name for name in names if meaning(name) is None} == {"mine"}  # a user's own


def test_every_curve_that_any_stage_may_have_is_explained():
    curves = [curve for stage in STAGES.values() for curve in stage.CURVES]
    assert len(curves) > 20
    for curve in curves:
        assert meaning(curve.title) is not None, curve.title
        assert len(curve.metrics) == 1 or all(meaning(name) for name in curve.metrics)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        *(("tasks/copa/accuracy", "accuracy"), ("copa accuracy (n=90)", "accuracy"), ("win_rate", "win rate")),
        *(("wins", "win rate"), ("KL, nats", "kl"), ("steering/brief asked", "asked"), ("mine", None)),
        *(("gold/score against ppo.kl_coef", "a result against a setting"), ("my prompt score", "score")),
        ("gold/score against KL; the line is the Pareto front", "a result against KL"),
    ],
)
def test_a_name_is_found_whatever_stands_before_it(name, word):
    entry = meaning(name)
    assert (entry and entry.word) == word


# -- a page for everybody --------------------------------------------------------------------------------------------


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str]


class Elements(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found: list[Element] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append(Element(tag, {name: value or "" for name, value in attrs}))


def faults(page: str) -> list[str]:  # noqa: C901
    """What a reader without a mouse, without colours or without eyes would miss."""
    elements = Elements(page).found
    ids = [e.attributes["id"] for e in elements if "id" in e.attributes]
    labelled = {e.attributes["for"] for e in elements if e.tag == "label"}
    found = [f"id {name} twice" for name in set(ids) if ids.count(name) > 1]
    level = 0
    for tag, attributes in elements:
        link = attributes.get("href", "")
        if link.startswith("#") and link[1:] not in ids:
            found.append(f"link to {link}, which is not there")
        if attributes.get("role") in ("img", "group") and not attributes.get("aria-label"):
            found.append(f"{tag} without a name")
        if tag == "svg" and "aria-hidden" not in attributes and "aria-label" not in attributes:
            found.append("svg that is neither hidden nor named")
        if tag == "input" and attributes.get("id") not in labelled:
            found.append("input without a label")
        if "wide" in attributes.get("class", "").split() and attributes.get("tabindex") != "0":
            found.append("a box that the keyboard cannot scroll")
        if tag == "td" and not attributes.get("data-label", "x"):
            found.append("a cell without a name on a phone")
        if tag == "td" and "data-label" not in attributes:
            found.append("a cell without a label")
        if re.fullmatch("h[1-6]", tag):
            if int(tag[1]) > level + 1:
                found.append(f"{tag} after h{level}")
            level = int(tag[1])
    return found


def test_everything_on_the_page_has_a_name_and_every_link_a_target(store):
    html, _ = render("toy", evaluated(store, 0.68, 0.65, 0.71))
    assert faults(html) == []
    assert len(re.findall("<h1", html)) == 1
    assert html.count("<main>") == 1


def variables(dark: bool) -> dict[str, tuple[float, float, float]]:
    """The colours of the page, red, green and blue from 0 to 1."""
    light_block, dark_block = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    pairs = re.findall(r"--([\w-]+): #(\w{6})", light_block) + (re.findall(r"--([\w-]+): #(\w{6})", dark_block) * dark)
    return {name: tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)) for name, code in pairs}


def contrast(one, other) -> float:
    """The contrast ratio of two colours [WCAG 2.2, 1.4.3]."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(dark):
    colours = variables(dark)
    assert contrast((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) == pytest.approx(21)
    for paper in ("paper", "panel"):
        for text in ("ink", "faint", "good", "bad", "warning", "neutral"):
            assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
    for number in range(6):
        assert contrast(colours[f"series-{number}"], colours["paper"]) >= 3


# -- curves ----------------------------------------------------------------------------------------------------------


def test_a_running_mean_keeps_a_constant_a_slope_and_the_sum_of_noise():
    flat = [(float(i), 3.0) for i in range(60)]
    assert running_mean(flat) == flat
    slope = [(float(i), 2.0 * i) for i in range(60)]
    assert running_mean(slope)[10:50] == slope[10:50]
    noise = [(float(i), float(i % 2)) for i in range(60)]
    inner = [y for _, y in running_mean(noise)[10:50]]
    assert max(inner) - min(inner) <= 1 / 5 + 1e-9


def test_only_noisy_curves_are_smoothed():
    noise = [(float(i), float(i % 2)) for i in range(NOISY)]
    assert is_noisy(noise)
    assert not is_noisy(noise[:-1])
    assert not is_noisy([(float(i), i * i) for i in range(200)])
    assert "running mean" in line_chart("loss", "step", {"loss": noise}).note
    assert line_chart("loss", "step", {"loss": [(float(i), 0.5 * i) for i in range(200)]}).note == ""


def test_a_legend_stands_beside_its_chart(store):
    chart = line_chart("scores", "step", {"one name": [(0, 1), (1, 2)], "none": [], "another": [(0, 2), (1, 3)]})
    assert [(line.name, line.number) for line in chart.legend] == [("one name", 0), ("another", 2)]
    assert "one name" not in chart.picture
    assert 'aria-hidden="true"' in chart.picture


def test_rates_and_the_accuracy_of_pairs_have_charts_of_their_own(store):
    titles = {step: [p.title for p in pictures] for step, pictures in curves(evaluated(store, 0.7, 0.6, 0.8))}
    assert "share of pairs in the labelers' order" in titles["reward"]
    assert all("learning rate" in own for own in titles.values())
    assert titles.keys() == {"sft", "reward", "ppo"}
    (parts,) = (p for _, own in curves(gather(store, ["toy"])) for p in own if p.title.startswith("parts of the"))
    assert [line.name for line in parts.legend] == ["reward model", "mine"]


# -- a sweep ---------------------------------------------------------------------------------------------------------


def swept(store, scores: dict[tuple[str, str], float], splits: str = "validation") -> list[Record]:
    """A member for each (kl_coef, seed), whose evaluation has a gold score; `splits` of them, in turn."""
    records = []
    for number, ((value, seed), score) in enumerate(scores.items()):
        metrics = {"prompts": 90.0, "kl": number / 10, "win_rate": 0.5} | bounds("gold/score", score)
        made = add(
            store,
            f"toy/evaluate_{number}",
            "evaluation",
            {},
            metrics,
            config={"all": str(scores), "split": splits.split()[number % len(splits.split())]},
        )
        knobs = {"steps.ppo.kl_coef": value, "steps.ppo.seed": seed}
        records.append(Record(number, knobs, "done", "", {"toy/evaluate": made}))
    return records


@pytest.mark.parametrize(
    ("scores", "tone", "said"),
    [
        ({("0.1", "0"): 0.9, ("0.1", "1"): 0.91, ("0.5", "0"): 0.1, ("0.5", "1"): 0.11}, "good", "do not overlap"),
        ({("0.1", "0"): 0.9, ("0.1", "1"): 0.1, ("0.5", "0"): 0.2, ("0.5", "1"): 0.3}, "neutral", "seeds overlap"),
        ({("0.1", "0"): 0.9, ("0.5", "0"): 0.2}, "warning", "One seed each"),
        ({("0.1", "0"): 0.5, ("0.5", "0"): 0.5}, "neutral", "No setting is best"),
    ],
)
def test_a_sweep_says_which_setting_is_best_and_whether_that_is_chance(store, scores, tone, said):
    best, ends = verdict(swept(store, scores), "gold/score")
    assert (best.tone, said in best.text) == (tone, True)
    assert ends == (f"{len(scores)} members: {len(scores)} done.", "neutral")


@pytest.mark.parametrize(
    ("splits", "said"), [("test", "figure is too good"), ("test validation", "different splits (test, validation)")]
)
def test_a_choice_on_test_prompts_is_said(store, splits, said):
    lines = verdict(swept(store, {("0.1", "0"): 0.9, ("0.5", "0"): 0.2}, splits), "gold/score")
    (line,) = (line for line in lines if said in line.text)
    assert line.tone == "warning"
    assert any("Best by" in line.text for line in lines) is (splits == "test")


def test_of_members_that_are_alike_none_was_chosen(store):
    lines = verdict(swept(store, {("0.1", "0"): 0.5, ("0.5", "0"): 0.5}, "test"), "gold/score")
    assert [line.tone for line in lines] == ["neutral", "neutral"]
    assert lines[0].text.startswith("No setting is best")


def test_members_that_failed_are_said(store):
    records = swept(store, {("0.1", "0"): 0.5})
    records.append(Record(1, records[0].knobs, "failed", "no", {}))
    assert verdict(records, "gold/score")[-1] == ("2 members: 1 done, 1 failed.", "warning")


def test_intervals_of_a_sweep_are_over_seeds_or_over_prompts(store):
    def summary(scores):
        records = swept(store, scores)
        found = charts(page_runs(records), "gold/score")
        return found[0].summary, found[0].note

    said, note = summary({("0.1", "0"): 1.0, ("0.1", "1"): 2.0, ("0.1", "2"): 3.0})
    half = 4.303 / 3**0.5  # by tables of Student's t
    assert f"2 ± {half:.2g} at 0.1" in said
    assert "over seeds" in note
    said, note = summary({("0.1", "0"): 1.0, ("0.5", "0"): 2.0})
    assert "1 ± 0.1 at 0.1; 2 ± 0.1 at 0.5" in said
    assert "over prompts" in note


def page_runs(records):
    from align.report.sweep import runs_of

    return runs_of(records)


def test_the_page_of_a_sweep_has_names_too(store, tmp_path):
    scores = {(value, seed): float(seed) + 0.1 for value in ("0.1", "0.5") for seed in "01"}
    page = write_page(tmp_path, swept(store, scores), "gold/score").read_text()
    assert faults(page) == []
    assert page.count('role="img"') == 2
    assert "Best by" in page or "No setting is best" in page


def test_a_sweep_over_seeds_alone_is_a_chart_of_seeds(store, tmp_path):
    records = [
        r._replace(knobs={"steps.ppo.seed": str(r.number)}) for r in swept(store, {("a", "0"): 0.5, ("b", "0"): 0.7})
    ]
    (chart,) = charts(page_runs(records), "gold/score")
    assert chart.title == "gold/score against seed"
    assert "0.5 ± 0.1 at 0; 0.7 ± 0.1 at 1" in chart.summary
