"""The evaluation of reward models, on the toy pipeline's own: its figures, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import align, manifests
from stage_jobs import job_at, made_by, planned
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from align.configs import EvaluateReward
from align.data.records import read_rows, write_info, write_rows
from align.errors import ConfigError
from align.evals.scorers import by_reward_model
from align.models.compute import Compute
from align.models.heads import Ensemble, load_scalar
from align.runtime.job import Inputs
from align.stages import evaluate_reward
from align.store.artifacts import Artifact, read_json_lines
from align.verifiers.episodes import Episodes

KNOBS: dict[str, Any] = {"split": "validation", "num_bootstrap": 10, "seed": 0}


def ranked(prompt: str, *responses: str, **more: Any) -> dict[str, Any]:
    """A row whose first response is the best, and whose others are in order."""
    asked = [{"role": "user", "content": prompt}]
    return {"prompt": asked, "responses": [*responses], "ranks": [*range(1, len(responses) + 1)], **more}


def dataset(folder: Path, name: str, **rows_of: list[dict[str, Any]]) -> Artifact:
    """A dataset with the rows of each split."""
    place = folder / name
    place.mkdir()
    for split, rows in rows_of.items():
        write_rows(place, split, rows, record="comparisons")
    write_info(place, record="comparisons", source=f"path:{name}.jsonl", licence="", dropped={})
    return Artifact("data", "0" * 64, "comparisons", place)


def artifact_of(folder: Path) -> Artifact:
    """A reward model from elsewhere: nothing is known of its training."""
    manifest = {"kind": "reward_model", "stage": "import_model", "key": "0" * 64, "files": {}, "inputs": {}}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "metrics": {}}))
    return Artifact("import_model", "0" * 64, "reward_model", folder)


def run(model: tuple[Artifact, ...], data: Any, folder: Path, hardware: Any = None, **knobs: Any) -> dict[str, float]:
    inputs = Inputs(model=model, data=tuple(data))
    config = planned(EvaluateReward(**{**KNOBS, **knobs}))
    return evaluate_reward.run(config, inputs, job_at(folder, **(hardware or {})))


@pytest.fixture(scope="module")
def reward(finished: Path) -> tuple[Artifact, ...]:
    return made_by(finished, "reward")


ROWS = [ranked(f"Name {i} birds.", "duck " * (i + 1), "owl") for i in range(40)]


def test_it_finds_what_the_reward_stage_found_on_its_own_held_out_pairs(finished, reward, tmp_path):
    trained = manifests(finished)["reward"]["metrics"]
    found = run(reward, made_by(finished, "compare"), tmp_path)
    assert found["pairs"] == trained["held_out_pairs"]
    assert found["accuracy"] == pytest.approx(trained["accuracy"])
    for name in ("ece", "temperature"):
        assert found[name] == pytest.approx(trained[name], rel=1e-4)
    assert found["seen_in_training"] == 0


def test_scores_are_those_of_transformers_less_the_shift(finished, reward, tmp_path):
    data = dataset(tmp_path, "birds", validation=ROWS[:5])
    run(reward, [data], tmp_path / "run")
    model = AutoModelForSequenceClassification.from_pretrained(reward[0].path)
    tokenizer = AutoTokenizer.from_pretrained(reward[0].path)
    for row in read_json_lines(tmp_path / "run/out/scores.jsonl"):
        source = next(each for each in ROWS if each["prompt"][-1]["content"] == row["prompt"])
        for response, score, tokens in zip(source["responses"], row["scores"], row["tokens"], strict=True):
            turns = [*source["prompt"], {"role": "assistant", "content": response}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            hidden = model.base_model(**tokenizer(text, return_tensors="pt", add_special_tokens=False))
            end = model.score(hidden.last_hidden_state[0, -1])
            assert score == pytest.approx(float(end.detach()) - model.config.align_reward_shift, abs=1e-3)
            assert tokens == len(tokenizer(response, add_special_tokens=False).input_ids)


def test_the_mean_of_an_ensemble_counts(reward, tmp_path):
    members = [load_scalar(reward[0].path) for _ in range(2)]
    members[1].shift += 2.0
    (tmp_path / "both").mkdir()
    Ensemble(members).save(tmp_path / "both")
    AutoTokenizer.from_pretrained(reward[0].path).save_pretrained(tmp_path / "both")
    both = (artifact_of(tmp_path / "both"),)
    scores = []
    for model, name in ((reward, "one"), (both, "two")):
        run(model, [dataset(tmp_path, name, validation=ROWS[:3])], tmp_path / f"run-{name}")
        scores.append([row["scores"] for row in read_json_lines(tmp_path / f"run-{name}/out/scores.jsonl")])
    assert scores[1] == [pytest.approx([score - 1.0 for score in own], abs=2e-4) for own in scores[0]]


def test_what_bounds_memory_changes_nothing(reward, tmp_path):
    data = [dataset(tmp_path, "birds", validation=ROWS)]
    whole = run(reward, data, tmp_path / "whole")
    assert run(reward, data, tmp_path / "bounded", {"micro_batch_tokens": 40}) == pytest.approx(whole, rel=1e-3)


def test_several_datasets_count_together_and_each_alone(reward, tmp_path):
    parts = [ranked(f"Say {i}.", "one", "two three", group="ab"[i % 2]) for i in range(12)]
    data = [
        dataset(tmp_path, "birds", validation=ROWS),
        dataset(tmp_path, "words", validation=parts),
    ]
    found = run(reward, data, tmp_path / "run")
    assert found["pairs"] == found["data/birds/pairs"] + found["data/words/pairs"] == 52
    right = sum(found[f"data/{name}/pairs"] * found[f"data/{name}/accuracy"] for name in ("birds", "words"))
    assert found["accuracy"] == pytest.approx(right / 52)
    assert found["data/words/a/pairs"] == found["data/words/b/pairs"] == 6
    assert "data/birds/a/pairs" not in found
    assert run(reward, data[1:], tmp_path / "alone")["accuracy"] == found["data/words/accuracy"]
    again = run(reward, [data[1], data[1]], tmp_path / "twice")
    assert again["data/words-2/accuracy"] == again["data/words/accuracy"]


def test_the_length_rule_is_chosen_by_rows_that_are_not_scored_unless_they_are_few(reward, tmp_path, capsys):
    longer = [ranked("Say.", "a long answer", "short"), *ROWS]
    shorter = [ranked(f"Say {i}.", "short", "a much longer answer") for i in range(30)]
    for name, more, right, said in (
        ("alone", {}, 1.0, "the longer response wins, as these rows say: fewer than 30 are of train"),
        ("benchmark", {"validation": shorter}, 1.0, "the shorter response wins, as these rows say: fewer than 30"),
        ("other", {"train": shorter}, 0.0, "the shorter response wins, as 30 rows of train say"),
        ("few", {"train": shorter[1:]}, 1.0, "the longer response wins, as these rows say: fewer than 30 are"),
        ("same", {"train": longer, "test": shorter}, 1.0, "the longer response wins, as 41 rows of train say"),
    ):
        rows_of = {"validation": longer[:1], **more}
        found = run(reward, [dataset(tmp_path, name, **rows_of)], tmp_path / f"run-{name}")
        assert found["length_accuracy"] == right
        assert said in capsys.readouterr().err


def test_prompts_that_it_learned_from_are_counted(finished, reward, tmp_path, capsys):
    learned = list(read_rows([made_by(finished, "compare")[0].path], "train"))
    usable = [row for row in learned if len(set(row["ranks"])) > 1][:10]
    kept = [{name: row[name] for name in ("prompt", "responses", "ranks")} for row in usable]
    data = dataset(tmp_path, "mixed", validation=[*kept, *ROWS[: len(kept)]])
    found = run(reward, [data], tmp_path / "run")
    assert found["seen_in_training"] == pytest.approx(0.5)
    assert "50.0 % of the prompts are among those that the reward model learned from" in capsys.readouterr().err


def test_people_s_agreement_is_of_one_row_s_votes_or_of_several_rows(reward, tmp_path):
    votes = [ranked("Say.", "one", "two", votes=json.dumps([[1, 2], [1, 2], [2, 1]]))]
    assert run(reward, [dataset(tmp_path, "v", validation=votes)], tmp_path / "a")["labelers/agreement"] == 1 / 3
    several = [ranked("Say.", "one", "two", labeler=name) for name in ("ann", "bob")]
    several.append({**ranked("Say.", "one", "two", labeler="cyd"), "ranks": [2, 1]})
    found = run(reward, [dataset(tmp_path, "s", validation=several)], tmp_path / "b")
    assert (found["labelers/agreement"], found["labelers/pairs"]) == (1 / 3, 3)
    assert found["prompts"] == 1
    assert "labelers/agreement" not in run(reward, [dataset(tmp_path, "n", validation=ROWS[:3])], tmp_path / "c")


def test_rewardbench_2_s_figure_is_the_mean_of_its_subsets(reward, tmp_path):
    best = [{**ranked(f"Add {i}.", "1", "2", "3", "4"), "ranks": [1, 2, 2, 2], "group": "Math"} for i in range(6)]
    ties = [{**ranked("Colour?", "red", "blue", "ant"), "ranks": [1, 1, 2], "group": "Ties", "ties": "tied:1"}]
    ties.append({**ranked("Colour of ants?", "red", "ant"), "ranks": [1, 2], "group": "Ties", "ties": "ref:1"})
    found = run(reward, [dataset(tmp_path, "rb2", validation=[*best, *ties])], tmp_path / "run")
    parts = (found["data/rb2/Math/best_of/accuracy"], found["data/rb2/Ties/ties/score"])
    assert found["data/rb2/reward_bench_2"] == pytest.approx(sum(parts) / 2)
    assert found["data/rb2/Math/best_of/chance"] == 0.25
    pairs = [ranked(f"Pick {i}.", "duck", "owl", group="Pairs") for i in range(3)]
    found = run(reward, [dataset(tmp_path, "mixed", validation=[*best, *ties, *pairs])], tmp_path / "mixed_run")
    assert "data/mixed/reward_bench_2" not in found  # the pairs have no best of 4


def test_too_long_responses_are_scored_without_their_end_and_counted(reward, tmp_path, capsys):
    rows = [ranked("Say.", " ".join(f"{i} ducks" for i in range(900)), "owl"), ranked("Say it.", "duck", "owl")]
    found = run(reward, [dataset(tmp_path, "long", validation=rows)], tmp_path / "run")
    assert found["truncated"] == 1
    assert "1 of 4 responses are longer than the model's context" in capsys.readouterr().err
    # PPO's own scores of the same answers.
    scorer = by_reward_model(reward[0].path, Compute(torch.device("cpu"), 4096, "fp32"))
    for row, shown in zip(rows, read_json_lines(tmp_path / "run/out/scores.jsonl"), strict=True):
        scores = scorer.score(Episodes([row, row], [], [], row["responses"]))
        assert shown["scores"] == pytest.approx(scores, abs=1e-4)


def test_mistakes_are_listed_the_most_confident_first(finished, reward, tmp_path):
    run(reward, made_by(finished, "compare"), tmp_path, num_samples=7)
    leads = [row["lead"] for row in read_json_lines(tmp_path / "out/mistakes.jsonl")]
    assert len(leads) == 7
    assert leads == sorted(leads, reverse=True)
    gaps = []
    for row in read_json_lines(tmp_path / "out/scores.jsonl"):
        ranks, scores = row["ranks"], row["scores"]
        places = range(len(ranks))
        gaps += [scores[j] - scores[i] for i in places for j in places if ranks[i] < ranks[j]]
    assert leads[0] == pytest.approx(max(gaps), abs=2e-4)


@pytest.mark.parametrize(
    ("rows", "knobs", "said"),
    [
        ({"train": ROWS}, {}, "no row of path:d.jsonl is in the validation split: they are in train;"),
        ({"validation": ROWS}, {"split": "test"}, "in the test split: they are in validation; give split=validation,"),
        (
            {"validation": [ranked(f"{i}?", "a", "b", group=f"g{i}") for i in range(101)]},
            {},
            "inputs.data: d: expected at most 100 different values in the column group, got 101",
        ),
        ({"validation": [ranked("?", "a", "b", group="length")]}, {}, "cannot be called length: best_of, labelers,"),
        (
            {"train": ROWS, "validation": [{**row, "ranks": [1, 1]} for row in ROWS]},
            {},
            "inputs.data: expected rows whose responses have different ranks, but all 40 rows of the validation split",
        ),
    ],
)
def test_what_it_cannot_evaluate_is_one_line(reward, tmp_path, rows, knobs, said):
    with pytest.raises(ConfigError) as error:
        run(reward, [dataset(tmp_path, "d", **rows)], tmp_path / "run", **knobs)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_score_that_is_not_finite_is_refused(reward, tmp_path):
    """Compared with anything, NaN is neither above nor below: it would count as a tie."""
    folder = tmp_path / "model"
    model = AutoModelForSequenceClassification.from_pretrained(reward[0].path)
    torch.nn.init.constant_(model.score.weight, float("nan"))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(reward[0].path).save_pretrained(folder)
    broken = (artifact_of(folder),)
    with pytest.raises(ConfigError, match=r"^inputs.model: expected finite scores, got \[nan, nan\]"):
        run(broken, [dataset(tmp_path, "d", validation=ROWS[:1])], tmp_path / "run")


# -- from the command line -------------------------------------------------------------------------


def test_a_user_s_file_is_evaluated_whole_with_its_groups_and_the_verdict_is_printed(store, tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"Say {i}.", "chosen": "a", "rejected": "b c", "subset": "xy"[i % 2]} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("evaluate_reward", "model=toy/reward", f"data=path:{file}", f"store={store}", "tracker=none")
    done = align(*given, "num_bootstrap=100", "name=mine/check")
    assert "Reward model toy/reward: " in done.stdout
    assert "length alone" in done.stdout
    assert "compared with no other model" not in done.stdout
    shown = align("artifacts", "show", "mine/check", "--store", store, "--json").stdout
    metrics = json.loads(shown)["metrics"]
    assert metrics["data/mine/rankings"] == 40
    assert f"by length {metrics['length_accuracy']:.3g}" in align("artifacts", "ls", "--store", store).stdout
    assert metrics["data/mine/x/rankings"] == metrics["data/mine/y/rankings"] == 20
    page = (store / "reports/mine-check.md").read_text()
    assert "## Reward models on comparisons" in page
    assert "mine/x" in page


def test_a_language_model_is_refused_when_it_is_planned(finished):
    done = align("plan", "evaluate_reward", "model=toy/sft", "data=toy/compare", f"store={finished}", check=2)
    assert "inputs.model: expected reward_model, but toy/sft is model" in done.stderr
