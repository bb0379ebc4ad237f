"""The report on evaluated reward models: the verdict answers, tables hold every figure, and names are explained."""

import pytest
from small_store import add, evaluation

from align.report.gather import gather
from align.report.meanings import meaning
from align.report.page import calibration, render
from align.report.reward_tables import accuracies, by_length_and_style
from align.report.verdict import verdict
from align.store.artifacts import ArtifactStore


@pytest.fixture
def store(tmp_path):
    store = ArtifactStore(tmp_path / "store")
    sft = add(store, "toy/sft", "model", {})
    add(store, "toy/reward", "reward_model", {"model": sft})
    add(store, "toy/ppo", "model", {"policy": sft, "reward_model": store.find("toy/reward")})
    return store


def figures(head="", lead=0.1, accuracy=0.7, **more):
    """Figures with intervals of +- 0.03."""
    means = {"accuracy": accuracy, "length_accuracy": accuracy - lead, "over_length": lead}
    found = {f"{head}pairs": 500.0, f"{head}prompts": 400.0}
    for name, mean in {**means, **more}.items():
        found |= {f"{head}{name}": mean, f"{head}{name}_low": mean - 0.03, f"{head}{name}_high": mean + 0.03}
    return found


def evaluated(store, *parts, name="toy/evaluate_reward", **rows_of):
    metrics = {each: value for part in parts for each, value in part.items()}
    add(store, name, "evaluation", {"model": store.find("toy/reward")}, metrics, **rows_of)
    return gather(store, [name])


@pytest.mark.parametrize(
    ("lead", "said", "tone"),
    [
        (0.1, "Reward model reward: good enough for PPO, above chance and above length alone: accuracy 70.0 %", "good"),
        (-0.1, "Reward model reward: not good enough for PPO, not above length alone: accuracy 70.0 %", "bad"),
    ],
)
def test_the_verdict_on_a_reward_model_is_the_answer_where_nothing_else_was_evaluated(store, lead, said, tone):
    made = evaluated(store, figures(lead=lead))
    lines = verdict(made)
    assert lines[0].text.startswith(said)
    assert lines[0].text.endswith("points [+7.0, +13.0]." if lead > 0 else "points [-13.0, -7.0].")
    assert lines[0].tone == tone
    assert [line.text for line in lines[1:]] == ["No health events."]
    html, markdown = render("toy", made)
    assert "Nothing of this report was evaluated" not in html
    assert "## Reward models on comparisons" in markdown


def test_what_cannot_be_told_is_a_warning(store):
    made = evaluated(store, figures(lead=0.1, accuracy=0.9) | {"accuracy_few": 12.0})
    assert verdict(made)[0].tone == "warning"
    assert "cannot tell, fewer than 30 prompts" in verdict(made)[0].text


def test_a_policy_s_wins_come_first(store):
    models = {"model": store.find("toy/ppo"), "baseline": store.find("toy/sft")}
    add(store, "toy/evaluate_ppo", "evaluation", models, evaluation(0.68, 0.65, 0.71))
    evaluated(store, figures())
    lines = verdict(gather(store, ["toy"]))
    assert [line.text.split(" ")[0] for line in lines] == ["It", "Reward", "No"]


def test_training_prompts_and_datasets_behind_length_are_warnings(store):
    parts = (figures("", 0.1), figures("data/good/", 0.2), figures("data/bad/", -0.1))
    lines = verdict(evaluated(store, *parts, {"seen_in_training": 0.25}))
    assert [(line.text, line.tone) for line in lines[1:3]] == [
        (
            "25.0 % of the prompts that reward was evaluated on are among those that it learned from: its figures may"
            " be too high.",
            "warning",
        ),
        ("reward orders fewer pairs than length alone on bad.", "warning"),
    ]


def test_tables_have_a_row_for_each_dataset_and_group(store):
    parts = [figures(head) for head in ("", "data/a/", "data/a/Math/", "data/b/")]
    parts.append({"data/a/best_of/length_accuracy": 0.3, "data/a/best_of/accuracy": 0.4, "kendall_tau": 0.25})
    made = evaluated(store, *parts)
    table = accuracies(made)
    assert [row[:3] for row in table.rows] == [["reward", name, "500"] for name in ("all", "a", "a/Math", "b")]
    assert table.columns[3:] == ["accuracy", "length alone", "lead over length", "best of K", "Kendall's tau"]
    assert table.rows[0][3:] == ["70.0 % [67.0, 73.0]", "60.0 % [57.0, 63.0]", "+10.0 [+7.0, +13.0]", "", "0.25"]
    assert [row[0] for row in accuracies(made, brief=True).rows] == ["all", "a", "b"]
    assert accuracies(made, brief=True).rows[0][1:] == ["500", "70.0 % [67.0, 73.0]", "60.0 %", "+10.0 [+7.0, +13.0]"]
    alone = evaluated(store, figures(""), figures("data/a/"), name="toy/evaluate_reward_alone")
    assert [row[1] for row in accuracies(alone).rows] == ["a"]


def test_every_column_is_explained(store):
    names = ["length_controlled_accuracy", "best_of/accuracy", "labelers/agreement", "reward_bench_2", "kendall_tau"]
    names += [f"length/{place}/accuracy" for place in ("chosen_shorter", "about_equal", "chosen_longer")]
    names += ["styles/easy", "styles/normal", "styles/hard", "length/correlation"]
    everything = dict.fromkeys(names, 0.5)
    made = evaluated(store, figures(**everything))
    columns = [*accuracies(made).columns, *by_length_and_style(made).columns]
    assert len(columns) == 3 + 8 + 3 + 7
    assert {name for name in columns if meaning(name) is None} == set()
    assert {name for name in everything if meaning(name) is None} == set()


def test_its_calibration_is_a_chart(store):
    bins = {"task": "pairs", "low": 0.5, "answers": 9, "confidence": 0.55, "accuracy": 0.5}
    rows = [{**bins, "model": name} for name in ("model", "at its temperature")]
    (chart,) = calibration(evaluated(store, figures(), calibration=rows))
    assert chart.title == "evaluate_reward: pairs of answers"
