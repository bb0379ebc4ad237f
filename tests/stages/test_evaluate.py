"""What an evaluation takes besides a model: averages, facts, tasks, checks, probes, judges and a baseline for all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import manifests
from judge_server import Server, says

from align.configs import Data, Evaluate, JudgeConfig, RunConfig
from align.errors import ConfigError
from align.evals.players import Answers, Player
from align.evals.scorers import Scorer
from align.evals.steering import PROBES
from align.pipeline.plan import changed_knobs, data_digest
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.sampling.engine import Response
from align.stages import data, evaluate
from align.store.artifacts import Artifact, ArtifactStore

FEW = {"num_prompts": 12, "num_bootstrap": 50, "max_new_tokens": 8, "seed": 0}


def made(finished: Path, step: str) -> tuple[Artifact, ...]:
    found = manifests(finished)[step]
    place = finished / "objects" / found["stage"] / found["key"]
    return (Artifact(found["stage"], found["key"], found["kind"], place),)


def scores(finished: Path, folder: Path, inputs: dict[str, object], **knobs: object) -> Metrics:
    (folder / "out").mkdir(parents=True)
    given = {slot: made(finished, what) if isinstance(what, str) else what for slot, what in inputs.items()}
    return evaluate.run(Evaluate(**{**FEW, **knobs}), Inputs(given), Job("test", folder, RunConfig()))


def items(folder: Path, name: str, rows: list[dict], train: list[dict] = ()) -> tuple[Artifact, ...]:
    """A data artifact of items, made by the stage as a user would."""
    place = folder / name
    place.mkdir(parents=True)
    for split, own in (("train", train), ("test", rows)):
        if own:
            (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    job = Job("data", folder / f"{name}_made", RunConfig())
    job.out.mkdir(parents=True)
    data.run(Data(source=f"path:{place}", record="items"), Inputs(), job)
    return (Artifact("data", name, "items", job.out),)


BOTH = {"model": "ppo", "baseline": "sft"}


def asked(folder: Path, more: Sequence[str] = (), **knobs: object) -> tuple[Artifact, ...]:
    """A data artifact of eight prompts, and `more`."""
    folder.mkdir(parents=True)
    prompts = [*(f"Where does Ada{i} live?" for i in range(8)), *more]
    (folder / "mine.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    job = Job("data", folder / "made", RunConfig())
    job.out.mkdir(parents=True)
    data.run(Data(source=f"path:{folder}/mine.jsonl", record="prompts", **knobs), Inputs(), job)
    return (Artifact("data", "mine", "prompts", job.out),)


def test_prompts_that_are_too_long_are_counted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = asked(tmp_path / "few", more=["Where does Ada live? " * 40], split="test")
    given = {"model": "sft", "prompts": few, "reward_model": "reward"}
    assert scores(finished, tmp_path / "run", given, num_prompts=None)["prompts"] == 8.0
    assert (
        "1 of 9 prompts left out: with 8 new tokens they are longer than a model's context" in capsys.readouterr().err
    )


def test_few_prompts_are_all_asked_and_marked(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = asked(tmp_path / "few", split="test")
    given = {**BOTH, "prompts": few, "reward_model": "reward"}
    found = scores(finished, tmp_path / "run", given, num_prompts=None)
    assert found["prompts"] == 8.0
    for name in ("win_rate", "greedy/win_rate", "reward/score", "kl"):
        assert found[f"{name}_few"] == 8.0
    said = capsys.readouterr().err
    assert f"prompts: 8 rows, the test split of path:{tmp_path}/few/mine.jsonl" in said
    assert "fewer than 30 items: the 95 % intervals of reward/score (n=8), " in said


def test_prompts_without_a_test_row_are_refused(finished: Path, tmp_path: Path) -> None:
    prompts = asked(tmp_path / "few", split="train")
    with pytest.raises(
        ConfigError, match=r"^inputs\.prompts: no row of path:.* is in the test split: they are in train\. "
    ):
        scores(finished, tmp_path / "run", {**BOTH, "prompts": prompts, "reward_model": "reward"})


def test_the_average_is_another_model(finished: Path, tmp_path: Path) -> None:
    inputs = {"model": "ppo", "prompts": "prompts", "text": "text"}
    raw, average = (scores(finished, tmp_path / w, inputs, weights=w) for w in ("raw", "ema"))
    assert raw["pretrain_loss"] != average["pretrain_loss"]
    assert raw["pretrain_loss"] == pytest.approx(average["pretrain_loss"], rel=0.05)
    assert 0 <= raw["fact_recall"] <= 1


def test_a_model_without_an_average_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights=ema: sft@.* keeps no average; give weights=raw"):
        scores(finished, tmp_path, {"model": "sft", "prompts": "prompts"}, weights="ema")


def test_every_figure_has_a_baseline_a_difference_and_an_interval(finished: Path, tmp_path: Path) -> None:
    found = scores(finished, tmp_path, {**BOTH, "prompts": "prompts", "text": "text"})
    figures = ("gold/score", "gold/truthfulness", "hallucination", "pretrain_loss", "tasks/world_facts/accuracy")
    for figure in (*figures, "tasks/world_facts/overconfidence"):
        head, _, name = figure.rpartition("/") if figure.startswith("tasks") else ("", "", figure)
        head = f"{head}/" if head else ""
        for part in ("", "baseline/", "gain/"):
            low, mean, high = (found[f"{head}{part}{name}{end}"] for end in ("_low", "", "_high"))
            assert low <= mean <= high
        change = found[f"{head}{name}"] - found[f"{head}baseline/{name}"]
        assert found[f"{head}gain/{name}"] == pytest.approx(change, abs=1e-9)
    for part in ("", "baseline/"):
        head = f"tasks/world_facts/{part}ece"
        assert 0 < found[f"{head}_chance"] < found[f"{head}_chance_high"]
        assert 0 <= found[head] <= 1
    assert found["fact_recall"] == found["tasks/world_facts/accuracy"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "calibration.jsonl").read_text().splitlines()]
    assert {row["model"] for row in rows} == {"model", "baseline"}
    assert sum(row["answers"] for row in rows if row["model"] == "model") == found["tasks/world_facts/items"]


def test_a_model_against_itself_gains_nothing(finished: Path, tmp_path: Path) -> None:
    found = scores(finished, tmp_path, {"model": "sft", "baseline": "sft", "prompts": "prompts", "text": "text"})
    assert found["kl"] == pytest.approx(0.0, abs=1e-6)
    gains = {name: value for name, value in found.items() if "gain/" in name}
    assert len(gains) > 20
    assert set(gains.values()) == {0.0}
    assert found["win_rate"] == found["greedy/win_rate"] == 0.5
    assert found["ties"] == 1.0
    for name in ("ended", "repeated", "distinct"):
        assert 0 <= found[f"response/{name}"] == found[f"baseline/response/{name}"] <= 1


def question(i: int, **more: object) -> dict:
    choices = [f" {word}" for word in ("yes", "no", "maybe")]
    contexts = [f"Question {i}: so?\nAnswer:"] * 3
    return {"contexts": contexts, "completions": choices, "labels": [int(i % 3 == k) for k in range(3)], **more}


def test_shots_come_from_the_training_split_and_change_what_is_asked(finished: Path, tmp_path: Path) -> None:
    rows, train = [question(i, answer_context="Answer:") for i in range(9)], [question(i) for i in range(100, 110)]
    both = items(tmp_path, "both", rows, train)
    plain, shots, line = (
        scores(finished, tmp_path / name, {**BOTH, "items": both}, **knobs)
        for name, knobs in (("plain", {}), ("shots", {"num_shots": 1}), ("line", {"prefixes": {"kind": "Be kind."}}))
    )
    assert plain["tasks/both/items"] == 9.0
    assert {"accuracy", "accuracy_norm", "accuracy_token", "accuracy_relative", "overconfidence"} == {
        name.removeprefix("tasks/both/").removesuffix("_low")
        for name in plain
        if name.endswith("_low") and name.count("/") == 2
    }
    assert plain["tasks/both/ece"] != shots["tasks/both/ece"]
    assert line["tasks/both/ece"] == plain["tasks/both/ece"]
    assert line["tasks/both@kind/ece"] != plain["tasks/both/ece"]
    assert {"tasks/both@kind/accuracy_relative", "tasks/both@kind/gain/accuracy_high"} <= line.keys()


def test_two_tasks_of_one_name_are_refused(finished: Path, tmp_path: Path) -> None:
    one, two = (items(tmp_path / name, "mine", [question(i) for i in range(3)]) for name in ("a", "b"))
    with pytest.raises(ConfigError, match=r"inputs\.items: two tasks, named after their files, are called mine"):
        scores(finished, tmp_path / "run", {**BOTH, "items": (*one, *two)})


def test_a_group_that_has_a_baseline_s_name_is_refused(finished: Path, tmp_path: Path) -> None:
    own = items(tmp_path, "mine", [question(i, group=("gain", "b")[i % 2]) for i in range(3)])
    with pytest.raises(
        ConfigError, match=r"inputs\.items: mine: a group \(a file, or the column\) cannot be called 'gain'"
    ):
        scores(finished, tmp_path / "run", {**BOTH, "items": own})


def test_written_answers_need_room(finished: Path, tmp_path: Path) -> None:
    own = items(tmp_path, "mine", [question(i) for i in range(3)])
    with pytest.raises(ConfigError, match="max_new_tokens: expected less than the context of 128 tokens, got 4000"):
        scores(finished, tmp_path / "run", {**BOTH, "items": own}, free_form="beam", max_new_tokens=4000)


def test_shots_without_a_training_split_are_refused(finished: Path, tmp_path: Path) -> None:
    test_only = items(tmp_path, "test_only", [question(i) for i in range(9)])
    with pytest.raises(ConfigError, match="num_shots: expected 2 training items to draw shots from, got 0; give data"):
        scores(finished, tmp_path / "run", {**BOTH, "items": test_only}, num_shots=2)


@pytest.mark.parametrize("way", ["greedy", "beam"])
def test_answers_are_written_and_compared(finished: Path, tmp_path: Path, way: str) -> None:
    own = items(tmp_path, "own", [question(i) for i in range(4)])
    found = scores(finished, tmp_path / "run", {**BOTH, "items": own}, free_form=way)
    for name in ("exact_match", "f1"):
        assert 0 <= found[f"tasks/own/{name}"] <= 1
        assert f"tasks/own/gain/{name}_high" in found
    rows = [json.loads(line) for line in (tmp_path / "run" / "out" / "answers_own.jsonl").read_text().splitlines()]
    assert {row["context"] for row in rows} == {f"Question {i}: so?\nAnswer:" for i in range(4)}
    assert {"right", "model", "baseline"} <= rows[0].keys()


def test_checks_are_asked_of_every_answer_and_behind_each_prefix(finished: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "words.txt").write_text("no_such_word\n")
    (tmp_path / "letters.py").write_text(
        "def count(completions, **others):\n    return [float(len(c[0]['content'])) for c in completions]\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    checks = {"never": f"words:{tmp_path / 'words.txt'}", "letters": "letters:count"}
    inputs = {**BOTH, "prompts": "prompts"}
    found = scores(finished, tmp_path / "run", inputs, checks=checks, prefixes={"kind": "Be kind."})
    assert found["checks/answers"] == 12.0
    assert found["checks/never"] == found["checks/kind/never_high"] == 0.0
    rows = [json.loads(line) for line in (tmp_path / "run" / "out" / "samples.jsonl").read_text().splitlines()]
    for part, column in (("", "response"), ("baseline/", "baseline")):
        mean = sum(len(row[column]) for row in rows) / len(rows)
        assert found[f"checks/{part}letters"] == pytest.approx(mean)
    assert found["checks/kind/letters"] != found["checks/letters"]


def test_rules_judge_where_they_are_given_and_gold_stands_beside_them(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "liking.py").write_text(
        "def length(completions, **others):\n    return [float(len(c[0]['content'])) for c in completions]\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    inputs = {**BOTH, "prompts": "prompts", "reward_model": "reward"}
    found = scores(finished, tmp_path / "run", inputs, reward_functions={"liking:length": 2.0})
    rows = [json.loads(line) for line in (tmp_path / "run" / "out" / "samples.jsonl").read_text().splitlines()]
    assert found["rules/score"] == pytest.approx(sum(2 * len(row["response"]) for row in rows) / 12)
    won = [
        (len(row["response"]) > len(row["baseline"])) + (len(row["response"]) == len(row["baseline"])) / 2
        for row in rows
    ]
    assert found["win_rate"] == pytest.approx(sum(won) / 12)
    assert {"gold/win_rate", "reward/win_rate", "greedy/gold/win_rate", "gain/reward/score"} <= found.keys()
    assert rows[0]["score"] == 2 * len(rows[0]["response"])


def test_prompts_to_which_rules_do_not_apply_are_left_out_and_counted(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sometimes.py").write_text(
        "def ids(completion_ids, **others):\n"
        "    return [None if i % 4 == 0 else float(len(ids)) for i, ids in enumerate(completion_ids)]\n"
        "def never(completions, **others):\n    return [None] * len(completions)\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    inputs = {"model": "sft", "prompts": "prompts"}
    knobs = {"reward_functions": {"sometimes:ids": 1.0, "sometimes:never": 5.0}, "num_samples": 12}
    found = scores(finished, tmp_path / "run", inputs, **knobs)
    rows = [json.loads(line) for line in (tmp_path / "run" / "out" / "samples.jsonl").read_text().splitlines()]
    given = [row["score"] for row in rows]
    assert [number is None for number in given] == [i % 4 == 0 for i in range(12)]
    present = [number for number in given if number is not None]
    assert found["rules/score"] == pytest.approx(sum(present) / 9)
    assert "reward_functions: 3 of 12 prompts left out, because it gave None" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"checks.no: expected a number for some prompt at least, got None for all"):
        scores(finished, tmp_path / "none", inputs, checks={"no": "sometimes:never"})


def test_a_fact_that_is_made_up_is_counted_among_the_prompts_that_ask_for_one() -> None:
    kinds, truths = ["fact", "harm", "about", "check", "rewrite"], [0.5, 0.0, 1.0, 0.0, 0.5]
    scorer = Scorer("gold", lambda episodes: truths, lambda episodes: {"truthfulness": truths})
    answers = [Answers([[1]] * 5, [Response([2], [0.0])] * 5, [""] * 5)]
    found = evaluate._parts(Evaluate(**FEW), [scorer], [{"kind": kind} for kind in kinds], answers)
    assert found["hallucination_prompts"] == 3.0
    assert found["hallucination"] == pytest.approx(2 / 3)
    assert found["gold/truthfulness"] == pytest.approx(0.4)


def test_a_system_message_is_probed(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(cfg: Evaluate, job: Job, player: Player, messages: list, temperature: float) -> Answers:
        """What was asked, as the answer: so it is known which answers a share is of."""
        texts = [f"{player.name}: {' '.join(m['content'] for m in prompt)}" for prompt in messages]
        return Answers([[1]] * len(texts), [Response([1], [0.0])] * len(texts), texts)

    def of(*words: str) -> dict[str, Callable[[str, str], bool]]:
        return {"follows": lambda answer, plain: all(word in answer for word in words) and "Be brief" not in plain}

    monkeypatch.setattr(evaluate, "answer_prompts", written)
    shares = {}
    for words in (("Be brief",), ("Answer the user",), ("Answer at length",), ("baseline:",)):
        monkeypatch.setitem(PROBES, "brief", PROBES["brief"]._replace(**of(*words)))
        folder = tmp_path / words[0].replace(" ", "_")
        found = scores(finished, folder, {**BOTH, "prompts": "prompts"}, steering=["brief"])
        kinds = ("asked", "unasked", "conflict", "opposed", "effect", "effect_in_conflict")
        shares[words[0]] = [found[f"steering/brief/{kind}"] for kind in kinds]
        assert found["steering/brief/baseline/asked"] == float(words[0] in ("Be brief", "baseline:"))
    assert shares == {
        "Be brief": [1.0, 0.0, 1.0, 0.0, 1.0, 1.0],
        "Answer the user": [0.0, 1.0, 0.0, 0.0, -1.0, 0.0],
        "Answer at length": [0.0, 0.0, 1.0, 1.0, 0.0, 0.0],
        "baseline:": [0.0] * 6,
    }


def test_the_system_s_probes_run_on_real_answers(finished: Path, tmp_path: Path) -> None:
    found = scores(finished, tmp_path, {**BOTH, "prompts": "prompts"}, steering=["brief", "capitals"])
    assert 0 < found["steering/prompts"] <= 12
    for part in ("", "baseline/"):
        effect = found[f"steering/brief/{part}asked"] - found[f"steering/brief/{part}unasked"]
        assert found[f"steering/brief/{part}effect"] == pytest.approx(effect)
        assert 0.0 <= found[f"steering/capitals/{part}asked"] <= 1.0
    assert "steering/brief/gain/conflict_low" in found


def test_a_judge_decides_and_rates(finished: Path, tmp_path: Path) -> None:
    def first_wins(asked: str) -> tuple[int, object]:
        return says("[[A]]" if "Answer B" in asked else "[[5]]")

    server, inputs = Server(first_wins), {**BOTH, "prompts": "prompts"}
    found = scores(finished, tmp_path, inputs, judge=JudgeConfig(url=server.url, model="m", likert=True))
    server.close()
    assert found["judge/win_rate"] == 0.5
    assert found["judge/ties"] == 1.0
    assert found["judge/favoured_first"] == found["judge/favoured_first_low"] == 1.0
    assert found["judge/consistent"] == 0.0
    assert found["judge/likert"] == found["judge/baseline/likert"] == 5.0
    assert found["judge/rated"] == 12.0


def test_a_task_of_lm_eval_runs_and_is_compared(finished: Path, tmp_path: Path) -> None:
    rows = [{"q": f"Question {i}: so?", "choices": ["yes", "no"], "label": i % 2} for i in range(8)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/test.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_target: label\n"
        "doc_to_choice: choices\nmetric_list: [{metric: acc}]\n"
    )
    found = scores(finished, tmp_path / "run", dict(BOTH), tasks=[f"lm_eval:{tmp_path}/mine.yaml"], num_items=6)
    assert found["tasks/lm_eval/mine/items"] == 6.0
    assert {"tasks/lm_eval/mine/baseline/acc_high", "tasks/lm_eval/mine/gain/acc_low"} <= found.keys()


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"free_form": "sampled"}, "free_form: expected null, greedy or beam, got 'sampled'"),
        ({"tasks": ["arc_easy"]}, "tasks: expected ifeval, lm_eval:NAME or lm_eval:FILE.yaml, got 'arc_easy'"),
        ({"steering": ["rude"]}, "steering: expected some of brief, polite, capitals, one_sentence, got 'rude'"),
        (
            {"judge": JudgeConfig(url="localhost:80", model="m")},
            "judge.url: expected http(s)://HOST",
        ),
        ({"judge": JudgeConfig(url="http://a")}, "judge.model: expected the judge's name at the endpoint, got ''"),
        ({"judge": JudgeConfig(url="http://me:secret@a", model="m")}, "judge.url: expected http(s)://HOST"),
        ({"checks": {"a/b": "words:x"}}, "checks: expected a name without a slash"),
        ({"checks": {"answers": "words:x"}}, "checks: expected a name without a slash"),
        ({"prefixes": {"gain": "x"}}, "prefixes: expected a name without a slash"),
    ],
)
def test_knobs_that_say_nothing_are_refused(knobs: dict, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        Evaluate(**knobs)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("knobs", "inputs", "said"),
    [
        ({}, {}, "inputs: expected prompts, items or text, some or all, or tasks"),
        ({"checks": {"a": "words:x"}}, {"items": "i"}, "checks: it judges answers, so expected inputs.prompts too"),
        ({"steering": ["brief"]}, {"items": "i"}, "steering: it judges answers, so expected inputs.prompts too"),
        (
            {"judge": JudgeConfig(url="http://a", model="m")},
            {"prompts": "p"},
            "judge: it compares two models, so expected",
        ),
    ],
)
def test_knobs_that_miss_an_input_are_refused(knobs: dict, inputs: dict, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        Evaluate(**knobs, inputs=inputs).check_inputs()
    assert str(error.value).startswith(said)


def test_what_a_named_file_holds_is_in_the_key(finished: Path, tmp_path: Path) -> None:
    words, task = tmp_path / "words.txt", tmp_path / "mine.yaml"

    def digest() -> str | None:
        config = Evaluate(checks={"bad": f"words:{words}"}, tasks=["lm_eval:arc_easy", f"lm_eval:{task}"])
        return data_digest("evaluate", config, RunConfig(), ArtifactStore(finished))

    found = []
    for said, asked in (("a", "x"), ("b", "x"), ("b", "y"), ("a", "x")):
        words.write_text(said)
        task.write_text(asked)
        found.append(digest())
    assert len(set(found)) == 3
    assert found[0] == found[3]
    assert data_digest("evaluate", Evaluate(), RunConfig(), ArtifactStore(finished)) is None
    task.unlink()
    with pytest.raises(ConfigError, match=r"steps\.evaluate\.tasks: lm_eval:.*mine\.yaml: no such file"):
        digest()
    task.write_text("x")
    words.unlink()
    with pytest.raises(ConfigError, match=r"steps\.evaluate\.checks\.bad: words:.*words\.txt: no such file"):
        digest()


def test_the_judge_s_name_is_in_the_key_and_its_address_is_not() -> None:
    keys = [changed_knobs(Evaluate(judge=JudgeConfig(url=url, model="m"))) for url in ("http://a:1", "http://b:2")]
    assert keys == [{"judge": {"model": "m"}}] * 2
