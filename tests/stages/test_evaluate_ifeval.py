"""`evaluate` with tasks=[ifeval]: its figures and answers, what is left out, and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stage_jobs import made_by

from align.configs import Data, Evaluate, RunConfig
from align.errors import ConfigError
from align.evals.players import Answers
from align.pipeline.plan import data_digest
from align.runtime.job import Inputs, Job
from align.sampling.engine import Response
from align.stages import data, evaluate
from align.store.artifacts import Artifact, ArtifactStore
from align.verifiers import rewards

ROWS = [
    {"prompt": f"Where does Ada{i} live?", "instruction_id_list": kinds, "kwargs": arguments}
    for i, (kinds, arguments) in enumerate(
        [
            (["punctuation:no_comma", "startend:quotation"], [{}, {}]),
            (["length_constraints:number_words"], [{"num_words": 1000, "relation": "less than"}]),
            (["length_constraints:number_words"], [{"num_words": 1000, "relation": "at least"}]),
        ]
    )
]


def asked(folder: Path, rows: list[dict[str, Any]]) -> tuple[Artifact, ...]:
    folder.mkdir(parents=True)
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = Job("data", folder / "made", RunConfig())
    job.out.mkdir(parents=True)
    data.run(Data(source=f"path:{folder}/mine.jsonl", record="prompts", split="test"), Inputs(), job)
    return (Artifact("data", "mine", "prompts", job.out),)


def evaluated(finished: Path, folder: Path, rows: list[dict[str, Any]], **inputs: str) -> tuple[dict[str, float], Path]:
    job = Job("test", folder / "run", RunConfig())
    job.out.mkdir(parents=True)
    given = {slot: made_by(finished, step) for slot, step in inputs.items()}
    cfg = Evaluate(tasks=["ifeval"], max_new_tokens=8, num_bootstrap=50, seed=0)
    return evaluate.run(cfg, Inputs({**given, "prompts": asked(folder / "data", rows)}), job), job.out


def test_figures_and_answers(finished: Path, tmp_path: Path) -> None:
    found, out = evaluated(finished, tmp_path, ROWS, model="sft", baseline="sft")
    head = "tasks/ifeval/"
    assert found[f"{head}items"] == 3
    # No answer of 8 tokens has 1000 words, and each has fewer: the arithmetic of two of the kinds is known.
    assert found[f"{head}number_words/strict"] == found[f"{head}number_words/loose"] == 0.5
    assert found[f"{head}gain/prompt_strict"] == found[f"{head}gain/instruction_loose"] == 0.0
    assert found[f"{head}baseline/prompt_strict"] == found[f"{head}prompt_strict"]
    assert "response_tokens" not in found  # nothing was sampled for any other measure
    rows = [json.loads(line) for line in (out / "answers_ifeval.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert all(row["model"] == row["baseline"] for row in rows)
    (long,) = [row for row in rows if "Ada2" in row["prompt"]]
    assert long["model_missed"] == "length_constraints:number_words"
    missed = sum(len(row["model_missed"].split(", ")) for row in rows if row["model_missed"])
    assert found[f"{head}instruction_strict"] == pytest.approx(1 - missed / 4)


def test_prompts_that_do_not_fit_are_counted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {**ROWS[0], "prompt": "Where does Ada live? " * 40}
    found, _ = evaluated(finished, tmp_path, [*ROWS, long], model="sft")
    assert (found["tasks/ifeval/items"], found["tasks/ifeval/left_out"]) == (3, 1)
    assert "1 of 4 prompts left out" in capsys.readouterr().err


def test_an_answer_that_ends_with_its_last_token_is_not_cut_off(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(cfg, job, player, prompts, temperature):
        words = player.tokenizer.encode("a", add_special_tokens=False)[:1] * 7
        ended, cut = [*words, player.tokenizer.eos_token_id], [*words, words[0]]
        responses = [Response(ids, [0.0] * len(ids)) for ids in (ended, cut, cut)]
        return Answers([[1]] * 3, responses, ["a"] * 3)

    monkeypatch.setattr(evaluate, "answer_prompts", answers)
    found, _ = evaluated(finished, tmp_path, ROWS, model="sft")
    assert found["tasks/ifeval/cut_off"] == pytest.approx(2 / 3)


def test_prompts_without_instructions_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"inputs\.prompts: row 0: instruction_id_list: expected a list"):
        evaluated(finished, tmp_path, [{"prompt": "Where does Ada live?"}], model="sft")


def test_the_config_needs_prompts() -> None:
    with pytest.raises(ConfigError, match=r"^tasks: ifeval checks answers, so expected inputs\.prompts too"):
        Evaluate(tasks=["ifeval"], inputs={"model": ["a/b"]}).check_inputs()
    with pytest.raises(ConfigError, match=r"tasks: expected ifeval, lm_eval:NAME or lm_eval:FILE\.yaml, got 'ifevl'"):
        Evaluate(tasks=["ifevl"])
    assert Evaluate(tasks=["ifeval"]).need_of_gold({"prompts"}) == ""
    assert Evaluate().need_of_gold({"prompts"}) != ""


def test_the_key_has_the_version_of_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(*tasks: str) -> str | None:
        return data_digest("e", Evaluate(tasks=[*tasks]), RunConfig(), ArtifactStore(tmp_path))

    both, alone, other = digest("ifeval", "lm_eval:x"), digest("ifeval"), digest("lm_eval:x")
    assert len({both, alone, other, digest()}) == 4
    monkeypatch.setitem(rewards.VERSIONS, "ifeval", 99)
    assert digest("ifeval") != alone
    assert digest("lm_eval:x") == other
