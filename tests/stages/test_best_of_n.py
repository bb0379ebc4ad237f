"""The stage `best_of_n` on the toy pipeline's own models: figures, resumes, memory, and the report on them."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import align, manifests, mostly_slow
from documents import ROOT
from stage_jobs import Dead, dying_after, job_at, log_of, made_by, planned, result_of

from align.configs import BestOfN
from align.data.records import read_info, read_rows
from align.errors import ConfigError
from align.evals.gold import gold_scorer
from align.runtime.job import Inputs
from align.runtime.tracking import metric_name
from align.sampling import sampler
from align.stages import best_of_n

sys.path.insert(0, str(ROOT / "pipelines"))
KNOBS: dict[str, Any] = {
    "num_responses": 5,
    "num_prompts": 7,
    "max_new_tokens": 8,
    "num_bootstrap": 50,
    "num_samples": 3,
    "seed": 5,
}
SEEN: list[tuple[str, str, float, int]] = []  # prompt, response, score, tokens of each call of `noting`, in order


def noting(prompts: Any, completions: Any, completion_ids: list[list[int]], **others: Any) -> list[float]:
    """The number of different tokens, which ties often."""
    scores = [float(len(set(ids))) for ids in completion_ids]
    SEEN.extend(
        (str(prompt), completion[0]["content"], score, len(ids))
        for prompt, completion, score, ids in zip(prompts, completions, scores, completion_ids, strict=True)
    )
    return scores


def partly(prompts: Any, completion_ids: list[list[int]], **others: Any) -> list[float | None]:
    """Nothing to say of any response to a prompt of an odd length."""
    return [None if len(str(p)) % 2 else 1.0 for p in prompts]


@pytest.fixture(scope="module")
def inputs(finished: Path) -> Inputs:
    return Inputs(
        model=made_by(finished, "sft"),
        reward_model=made_by(finished, "reward"),
        prompts=made_by(finished, "prompts"),
    )


@pytest.fixture(scope="module")
def ruled(inputs: Inputs) -> Inputs:
    """Without a reward model, for functions."""
    return Inputs(model=inputs["model"], prompts=inputs["prompts"])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many responses each batch asked for."""
    counts: list[int] = []
    draw = sampler.Sampler.draw

    def counting(self: Any, prompts: Any, seeds: Any) -> Any:
        counts.append(len(prompts))
        return draw(self, prompts, seeds)

    monkeypatch.setattr(sampler.Sampler, "draw", counting)
    return counts


def run(inputs: Inputs, folder: Path, hardware: dict[str, Any] | None = None, **knobs: Any) -> dict[str, float]:
    return best_of_n.run(planned(BestOfN(**{**KNOBS, **knobs})), inputs, job_at(folder, **(hardware or {})))


def test_every_n_has_the_scores_of_who_chose_and_of_who_did_not(inputs: Inputs, tmp_path: Path) -> None:
    from dashboard import named_metrics

    made = run(inputs, tmp_path)
    rows = log_of(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 4, 5]
    assert [row["reward/score"] for row in rows] == sorted(row["reward/score"] for row in rows)
    assert rows[0]["win_rate"] == rows[0]["win_rate_low"] == pytest.approx(0.5)
    assert (rows[0]["kl"], rows[-1]["kl"]) == (0, pytest.approx(np.log(5) - 0.8))
    assert made["n"] == 5
    assert made["prompts"] == 7
    assert {name: made[name] for name in rows[-1] if name != "step"} == {
        name: value for name, value in rows[-1].items() if name != "step"
    }
    assert made["single/gold/score"] == rows[0]["gold/score"]
    assert made["gold/score_few"] == 7
    panels = {name for name in named_metrics() if name.startswith("best_of_n/")}
    logged = {metric_name("best_of_n", name) for name in (*rows[0], *made, "samples")}
    assert panels - logged == {"best_of_n/time/seconds"}


def test_the_figures_are_those_of_the_responses(ruled: Inputs, tmp_path: Path) -> None:
    """The function that chooses sees all responses; their gold scores and an enumeration give the figures."""
    SEEN.clear()
    run(ruled, tmp_path, reward_functions={f"{__name__}:noting": 2.0})
    gold = gold_scorer([read_info(folder) for folder in ruled.folders("prompts")])
    assert gold is not None
    prompts = [row["prompt"] for row in itertools.islice(read_rows(ruled.folders("prompts"), "test"), 7)]
    by_prompt: dict[str, list[tuple[str, float, int]]] = {}
    for asked, *rest in SEEN:
        by_prompt.setdefault(asked, []).append(tuple(rest))  # type: ignore[arg-type]
    assert [len(own) for own in by_prompt.values()] == [6] * 7
    found: dict[str, list[float]] = {"gold": [], "rules": [], "win": [], "tokens": []}
    for prompt in prompts:
        own = [(gold(prompt, text).overall, score, tokens) for text, score, tokens in by_prompt[str(prompt)]]
        for pair in itertools.combinations(own[:5], 2):
            top = max(score for _, score, _ in pair)
            chosen = [each for each in pair if each[1] == top]
            found["gold"].append(sum(judged for judged, _, _ in chosen) / len(chosen))
            found["tokens"].append(sum(tokens for _, _, tokens in chosen) / len(chosen))
            found["rules"].append(2.0 * top)
        for pair in itertools.combinations(range(6), 2):
            best = [own[i][0] for i in pair if own[i][1] == max(own[j][1] for j in pair)]
            for other in (own[i][0] for i in range(6) if i not in pair):
                found["win"].append(sum((b > other) + 0.5 * (b == other) for b in best) / len(best))
    (row,) = [row for row in log_of(tmp_path) if row["step"] == 2]
    assert row["gold/score"] == pytest.approx(np.mean(found["gold"]), abs=1e-9)
    assert row["rules/score"] == pytest.approx(np.mean(found["rules"]), abs=1e-9)
    assert row["response_tokens"] == pytest.approx(np.mean(found["tokens"]), abs=1e-9)
    assert row["win_rate"] == pytest.approx(np.mean(found["win"]), abs=1e-9)
    assert len({text for text, _, _ in by_prompt[str(prompts[0])]}) > 3  # each draws for itself
    assert len({score for _, score, _ in by_prompt[str(prompts[0])]}) < 6  # there are ties
    shown = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert len(shown) == 3
    for each, prompt in zip(shown, prompts, strict=False):
        texts, scores, _ = zip(*by_prompt[str(prompt)], strict=True)
        assert each["single_response"] == texts[5]
        assert each["response"] == texts[scores.index(max(scores[:5]))]
        assert each["gold"] == gold(prompt, each["response"]).overall
        assert each["rules"] == 2.0 * max(scores[:5])


def test_a_batch_changes_nothing_and_no_more_is_sampled_at_once(
    ruled: Inputs, tmp_path: Path, drawn: list[int]
) -> None:
    rule = {f"{__name__}:noting": 1.0}
    whole = run(ruled, tmp_path / "whole", reward_functions=rule)
    assert drawn == [42]
    drawn.clear()
    parts = run(ruled, tmp_path / "parts", {"generation_batch_size": 3}, reward_functions=rule)
    assert drawn == [12, 12, 12, 6]
    assert whole == pytest.approx(parts, abs=1e-9)
    assert result_of(tmp_path / "whole") == result_of(tmp_path / "parts")


@pytest.mark.parametrize("after", mostly_slow(range(1, 13), [3]))
def test_a_run_that_died_ends_as_if_it_had_not_and_samples_nothing_twice(
    inputs: Inputs, tmp_path: Path, drawn: list[int], after: int
) -> None:
    small = {"generation_batch_size": 1, "checkpoint_seconds": 0}
    knobs = {**KNOBS, "num_prompts": 13}
    whole = run(inputs, tmp_path / "whole", small, **knobs)
    assert drawn == [6] * 13
    drawn.clear()
    with pytest.raises(Dead):
        best_of_n.run(planned(BestOfN(**knobs)), inputs, job_at(tmp_path / "died", dying_after(after), **small))
    again = run(inputs, tmp_path / "died", small, **knobs)
    assert drawn == [6] * 13
    assert again == whole
    assert result_of(tmp_path / "died") == result_of(tmp_path / "whole")


@pytest.mark.slow  # each process imports torch
def test_two_processes_do_what_one_does(finished: Path, tmp_path: Path) -> None:
    given = ["model=toy/sft", "reward_model=toy/reward", "prompts=toy/prompts", "tracker=none", "name=toy/best"]
    knobs = [f"{name}={value}" for name, value in KNOBS.items()]
    found = []
    for count in (1, 2):
        store = Path(shutil.copytree(finished, tmp_path / str(count)))
        align("best_of_n", *given, *knobs, f"store={store}", f"hardware.num_processes={count}", "hardware.device=cpu")
        found.append(manifests(store)["best"]["metrics"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_who_chooses_and_who_judges(inputs: Inputs, ruled: Inputs, tmp_path: Path) -> None:
    """A reward model chooses if there is one; functions judge beside it, and so does a held-out reward model."""
    rule = {f"{__name__}:noting": 1.0}
    both = run(inputs, tmp_path / "both", reward_functions=rule)
    alone = run(ruled, tmp_path / "alone", reward_functions=rule)
    assert {"reward/score", "gold/score", "rules/score"} <= both.keys()
    assert "reward/score" not in alone
    assert alone["rules/score"] > both["rules/score"]  # who chooses gets the most of it
    assert both["single/rules/score"] == pytest.approx(alone["single/rules/score"])
    with pytest.raises(ConfigError, match=r"inputs\.heldout_reward_model: expected another reward model"):
        run(Inputs(inputs, heldout_reward_model=inputs["reward_model"]), tmp_path / "same")


def test_prompts_without_a_score_are_left_out_and_counted(
    ruled: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [row["prompt"] for row in itertools.islice(read_rows(ruled.folders("prompts"), "test"), 7)]
    scored = sum(len(str(prompt)) % 2 == 0 for prompt in prompts)
    assert 0 < scored < 7
    made = run(ruled, tmp_path, reward_functions={f"{__name__}:partly": 1.0})
    assert made["prompts"] == scored
    assert f"{7 - scored} of 7 prompts left out: a reward function gave None" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["num_responses=1"], "num_responses: expected a number from 2 to 1,000, got 1"),
        (["num_responses=1001"], "num_responses: expected a number from 2 to 1,000, got 1001"),
        (["split=train"], "split: expected validation or test, got 'train'"),
        (["temperature=0"], "temperature: expected a number above 0: greedy responses are all alike, got 0"),
        (["num_prompts=0"], "num_prompts: expected a number above 0, or null, got 0"),
        (["reward_model=null"], "inputs.reward_model, reward_functions: expected one of them, got none"),
        (["heldout_reward_model=toy/reward"], "inputs.heldout_reward_model: expected another reward model"),
        (["reward_functions={test_best_of_n:noting: 0}"], "reward_functions: expected a weight other than 0"),
    ],
)
def test_the_plan_refuses_nonsense(finished: Path, words: list[str], said: str) -> None:
    given = ["model=toy/sft", "prompts=toy/prompts", "reward_model=toy/reward"]
    given = [word for word in given if not any(word.split("=")[0] == other.split("=")[0] for other in words)]
    given += [word for word in words if word != "reward_model=null"]
    done = align("plan", "best_of_n", *given, f"store={finished}", check=2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_terminal_and_the_report_have_a_row_for_each_n(store: Path) -> None:
    words = ["model=toy/sft", "prompts=toy/prompts", "reward_model=toy/reward", "name=toy/best"]
    knobs = [f"{name}={value}" for name, value in KNOBS.items()]
    done = align("best_of_n", *words, *knobs, f"store={store}", "tracker=none")
    first = [(line.split() or [""])[0] for line in done.stdout.splitlines()]
    assert [word for word in first if word.isdigit()][:4] == ["1", "2", "4", "5"]
    assert "one sample has a gold score of" in " ".join(done.stdout.split())
    page = (store / "reports/toy-best.html").read_text()
    for text in ("the best of n responses", "score of the best of n", "wins over one sample", "sft, best of 5"):
        assert text in page
    whole = align("report", "toy", f"store={store}")
    assert whole.returncode == 0
    page = (store / "reports/toy.html").read_text()
    evaluated = page.partition('id="evaluation"')[2].partition("best: the best of n responses")[0]
    assert "<td" in evaluated
    assert "best of 5" not in evaluated
