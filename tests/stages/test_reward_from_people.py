"""Reward models of what people said: ensembles, groups of labelers, ratings as margins, a temperature."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import mostly_slow
from stage_jobs import Dead, dying_after, job_at, log_of, made_by, planned, result_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from align.configs import Compare, LoraConfig, Reward
from align.data.records import read_rows
from align.errors import ConfigError
from align.evals.calibration import temperature
from align.evals.scorers import by_reward_model
from align.models.compute import Compute
from align.models.export import write_whole
from align.models.heads import load_reward_model, load_scalar, scalar_from_lm
from align.runtime.job import Inputs
from align.stages import compare, reward
from align.store.artifacts import Artifact
from align.training import activations
from align.verifiers.episodes import Episodes

KNOBS: dict[str, Any] = {"batch_size": 6, "learning_rate": 1e-3, "seed": 5}
FLOAT32 = Compute(torch.device("cpu"), 4096, "fp32")


@pytest.fixture(scope="module")
def inputs(finished: Path) -> Inputs:
    return Inputs(
        model=made_by(finished, "sft"),
        data=made_by(finished, "compare"),
        demonstrations=made_by(finished, "demonstrations"),
    )


def run(inputs: Inputs, folder: Path, **knobs: Any) -> dict[str, float]:
    return reward.run(planned(Reward(**{**KNOBS, **knobs})), inputs, job_at(folder))


@pytest.fixture(scope="module")
def three(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    run(inputs, folder, num_members=3)
    return folder


def with_column(inputs: Inputs, folder: Path, name: str, values: Any) -> Inputs:
    """The inputs with another column of comparisons: what `values` returns for each row."""
    given = inputs.one("data")
    place = Path(shutil.copytree(given.path, folder))
    for split in ("train", "validation"):
        table = pq.read_table(place / f"{split}.parquet")
        made = pa.array([values(row) for row in table.to_pylist()])
        if name in table.column_names:
            table = table.drop_columns([name])
        pq.write_table(table.append_column(name, made), place / f"{split}.parquet")
    return Inputs({**inputs, "data": (dataclasses.replace(given, path=place),)})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).state_dict()


# -- ensembles -------------------------------------------------------------------------------------------------------


def test_the_first_member_is_the_model_that_one_alone_is_and_no_two_are_equal(inputs, three, tmp_path):
    run(inputs, tmp_path)
    alone, first = weights(tmp_path / "out"), weights(three / "out")
    assert alone.keys() == first.keys()
    assert all(torch.equal(alone[name], first[name]) for name in alone)
    second, third = (weights(three / "out/members" / name) for name in ("1", "2"))
    for one, other in ((first, second), (first, third), (second, third)):
        assert not torch.equal(one["score.weight"], other["score.weight"])


def test_an_ensemble_scores_with_its_members_mean_everywhere(inputs, three, tmp_path):
    out = three / "out"
    rows = list(read_rows(inputs.folders("data"), "validation"))[:8]
    tokenizer = AutoTokenizer.from_pretrained(out)
    episodes = Episodes(rows, [], [], [row["responses"][0] for row in rows])
    alone = []
    for number, place in enumerate([out, out / "members/1", out / "members/2"]):
        member = tmp_path / str(number)
        write_whole("reward_model", place, member)
        shutil.rmtree(member / "members", ignore_errors=True)
        tokenizer.save_pretrained(member)
        alone.append(torch.tensor(by_reward_model(member, FLOAT32).score(episodes)))
    whole = torch.tensor(by_reward_model(out, FLOAT32).score(episodes))
    torch.testing.assert_close(whole, torch.stack(alone).mean(0), rtol=0, atol=1e-6)
    assert (torch.stack(alone).std(0) > 1e-3).all()
    assert isinstance(load_scalar(out), type(load_scalar(tmp_path / "0")))  # a value model starts from the first


def test_of_each_member_demonstrations_have_a_mean_of_zero(inputs, three):
    rows = list(read_rows(inputs.folders("demonstrations"), "train"))
    episodes = Episodes(
        [{"prompt": row["messages"][:-1]} for row in rows], [], [], [row["messages"][-1]["content"] for row in rows]
    )
    tokenizer = AutoTokenizer.from_pretrained(three / "out")
    for number, member in enumerate(load_reward_model(three / "out")):
        folder = three / f"member-{number}"
        folder.mkdir()
        member.save(folder)
        tokenizer.save_pretrained(folder)
        scores = torch.tensor(by_reward_model(folder, FLOAT32).score(episodes))
        assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
        assert float(scores.std()) > 1e-3


class Kept:
    """Bytes that a backward pass waits for, and the most at once."""

    now = most = 0

    def pack(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        held, size = Held([tensor]), tensor.nbytes
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(held, self.free, size)
        return held

    def free(self, size: int) -> None:
        self.now -= size


class Held(list):
    """A list that can be referred to weakly."""


def most_kept(inputs: Inputs, folder: Path, members: int) -> int:
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held[0]):
        run(inputs, folder, num_members=members)
    assert kept.now == 0
    return kept.most


def test_an_ensemble_keeps_the_activations_of_one_member_at_a_time(inputs, tmp_path):
    one, three = (most_kept(inputs, tmp_path / str(members), members) for members in (1, 3))
    assert 0 < three < 1.5 * one


def test_the_states_of_all_members_count_when_activations_are_fitted(inputs, tmp_path, monkeypatch, passes):
    weights = sum(p.numel() for p in scalar_from_lm(inputs.one("model").path, FLOAT32.device).parameters())
    # Room for gradients and moments of two members, 12 bytes a weight each; the activations themselves need little.
    monkeypatch.setattr(activations, "free_memory", lambda device: 24 * weights)
    monkeypatch.setattr(activations, "activation_bytes", lambda model, autocast: 1.0)
    run(inputs, tmp_path / "one")
    assert passes.twice == set()
    run(inputs, tmp_path / "three", num_members=3)
    assert len(passes.twice) == 3, "the only layer of each member"


@pytest.mark.parametrize("after", mostly_slow([1, 3, 5], [3]))
def test_an_ensemble_that_died_ends_as_if_it_had_not(inputs, three, tmp_path, after):
    config = {**KNOBS, "num_members": 3}
    job = job_at(tmp_path, dying_after(after), checkpoint_seconds=0)
    with pytest.raises(Dead):
        reward.run(planned(Reward(**config)), inputs, job)
    reward.run(planned(Reward(**config)), inputs, job_at(tmp_path, checkpoint_seconds=0))
    assert result_of(tmp_path) == result_of(three)


def test_members_that_see_a_part_see_other_parts(inputs, tmp_path):
    count = len(list(read_rows(inputs.folders("data"), "train")))
    whole = run(inputs, tmp_path / "whole", num_members=2)
    half = run(inputs, tmp_path / "half", num_members=2, member_fraction=0.5)
    assert half["rankings"] == whole["rankings"] <= count
    assert half["tokens"] == pytest.approx(whole["tokens"] / 2, rel=0.1)
    assert len(log_of(tmp_path / "half")) == math.ceil(round(whole["rankings"] / 2) / 6)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"num_members": 0}, "num_members: expected a number above 0, got 0"),
        ({"member_fraction": 0.0}, "member_fraction: expected a number above 0, at most 1, got 0.0"),
        ({"num_members": 2, "lora": LoraConfig(rank=2)}, "num_members: expected 1 with lora.rank"),
        ({"margin": -1.0}, "margin: expected a number from 0 up, got -1.0"),
        ({"held_out_labelers": "6/5"}, "held_out_labelers: expected GROUP/GROUPS, such as 1/5, got '6/5'"),
        ({"held_out_labelers": "1 of 5"}, "held_out_labelers: expected GROUP/GROUPS, such as 1/5"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(knobs, said):
    with pytest.raises(ConfigError) as refused:
        Reward(**knobs)
    assert str(refused.value).startswith(said)


# -- what ensembles choose -------------------------------------------------------------------------------------------


def test_the_prompts_on_which_members_disagree_most_are_ranked_with_the_noise_of_all(finished, three, tmp_path):
    given = {"model": made_by(finished, "sft"), "prompts": made_by(finished, "prompts")}
    ensemble = (Artifact("reward", "0" * 64, "reward_model", three / "out"),)
    knobs = {"num_responses": 3, "num_validation_prompts": 4, "max_new_tokens": 8, "seed": 1}

    def rows(folder: Path, inputs: Inputs, **more: Any) -> tuple[list[dict[str, Any]], dict[str, float]]:
        metrics = compare.run(planned(Compare(**knobs, **more)), inputs, job_at(folder))
        return list(read_rows([folder / "out"], "train")), metrics

    pool, of_pool = rows(tmp_path / "pool", Inputs(given), num_prompts=30)
    chosen, of_chosen = rows(
        tmp_path / "chosen", Inputs({**given, "reward_model": ensemble}), num_prompts=8, choose_from=30
    )
    members = load_reward_model(three / "out")
    tokenizer = AutoTokenizer.from_pretrained(three / "out")

    def doubt(row: dict[str, Any]) -> float:
        """The variance of the members' probabilities, as a mean over pairs, one pair after the other."""
        scores = []
        for number, member in enumerate(members):
            folder = tmp_path / f"member-{number}"
            if not folder.exists():
                folder.mkdir()
                member.save(folder)
                tokenizer.save_pretrained(folder)
            episodes = Episodes([row] * 3, [], [], row["responses"])
            scores.append(by_reward_model(folder, FLOAT32).score(episodes))
        pairs = []
        for i, j in ((0, 1), (0, 2), (1, 2)):
            shares = [1 / (1 + math.exp(own[j] - own[i])) for own in scores]
            mean = sum(shares) / 3
            pairs.append(sum((share - mean) ** 2 for share in shares) / 3)
        return sum(pairs) / 3

    doubts = {row["prompt"][-1]["content"]: doubt(row) for row in pool}
    expected = sorted(doubts, key=lambda prompt: -doubts[prompt])[:8]
    assert {row["prompt"][-1]["content"] for row in chosen} == set(expected)
    assert of_chosen["disagreement/all"] == pytest.approx(sum(doubts.values()) / len(doubts), rel=1e-4)
    assert of_chosen["disagreement/chosen"] > of_chosen["disagreement/all"] > 0
    assert of_chosen["labelers/noise"] == of_pool["labelers/noise"]


def test_one_model_chooses_nothing(inputs, finished, tmp_path):
    run(inputs, tmp_path)
    single = (Artifact("reward", "0" * 64, "reward_model", tmp_path / "out"),)
    given = Inputs(model=made_by(finished, "sft"), prompts=made_by(finished, "prompts"), reward_model=single)
    with pytest.raises(ConfigError, match=r"inputs\.reward_model: expected an ensemble"):
        compare.run(planned(Compare(num_prompts=2, choose_from=4)), given, job_at(tmp_path / "compare"))


# -- labelers --------------------------------------------------------------------------------------------------------


def test_groups_of_labelers_share_all_rankings_between_them(inputs, tmp_path):
    whole = run(inputs, tmp_path / "whole")
    folds = [run(inputs, tmp_path / str(i), held_out_labelers=f"{i}/3") for i in (1, 2, 3)]
    assert sum(fold["held_out_labelers/pairs"] for fold in folds) == whole["held_out_pairs"]
    for fold in folds:
        assert fold["held_out_labelers/pairs"] + fold["held_out_pairs"] == whole["held_out_pairs"]
        assert 0 <= fold["held_out_labelers/accuracy"] <= 1
    assert sum(fold["rankings"] for fold in folds) == 2 * whole["rankings"]


def test_a_ranking_of_a_labeler_that_is_left_out_is_not_learned(inputs, tmp_path):
    """Another ranking by such a labeler changes nothing; another ranking by one of the others does."""
    names = sorted({row["labeler"] for row in read_rows(inputs.folders("data"), "train")})

    def learned(name: str | None) -> str:
        folder = tmp_path / str(name)
        given = with_column(
            inputs,
            folder / "data",
            "ranks",
            lambda row: (
                [max(row["ranks"]) + 1 - rank for rank in row["ranks"]] if row["labeler"] == name else row["ranks"]
            ),
        )
        run(given, folder, held_out_labelers="1/2")
        return result_of(folder)["model.safetensors"]

    unchanged = learned(None)
    same = [learned(name) == unchanged for name in names[:6]]
    assert True in same
    assert False in same


def test_rows_without_a_labeler_are_nobody_s(inputs, tmp_path):
    given = with_column(inputs, tmp_path / "some", "labeler", lambda row: "ada" if len(row["ranks"]) % 2 else None)
    with pytest.raises(ConfigError, match=r"the data have [01]\b"):
        run(given, tmp_path / "run", held_out_labelers="1/2")


def test_groups_need_labelers(inputs, tmp_path):
    given = with_column(inputs, tmp_path / "few", "labeler", lambda row: "ada")
    with pytest.raises(ConfigError, match=r"expected rankings by 5 labelers or more.* the data have 1"):
        run(given, tmp_path / "run", held_out_labelers="1/5")


# -- ratings ---------------------------------------------------------------------------------------------------------


def test_a_margin_needs_ratings_and_moves_rewards_apart(inputs, tmp_path):
    with pytest.raises(ConfigError, match="margin needs ratings"):
        run(inputs, tmp_path / "without", margin=1.0)
    rated = with_column(
        inputs, tmp_path / "rated", "ratings", lambda row: json.dumps([8 - rank for rank in row["ranks"]])
    )
    plain = run(rated, tmp_path / "plain", learning_rate=1e-12)
    asked = run(rated, tmp_path / "asked", learning_rate=1e-12, margin=1.0)
    # With weights that stand still, only the loss differs: all pairs are asked to be further apart.
    assert plain["accuracy"] == asked["accuracy"]
    for one, other in zip(log_of(tmp_path / "plain"), log_of(tmp_path / "asked"), strict=True):
        assert other["loss"] > one["loss"] + 0.5


def test_without_ratings_a_ranking_asks_for_no_margin(inputs, tmp_path, capsys):
    mixed = with_column(
        inputs,
        tmp_path / "mixed",
        "ratings",
        lambda row: (
            None
            if row["labeler"] % 2
            else json.dumps([None, *row["ranks"][1:]])
            if row["labeler"] == 2
            else json.dumps([8 - rank for rank in row["ranks"]])
        ),
    )
    run(mixed, tmp_path / "run", margin=1.0)
    assert "training rankings have no ratings" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["4.5", '{"a": 1}', '["good", "bad"]', "[1, 2]"])
def test_a_column_ratings_of_another_kind_matters_only_for_a_margin(inputs, tmp_path, value):
    given = with_column(inputs, tmp_path / "data", "ratings", lambda row: value)
    run(given, tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"inputs\.data: train rows: ratings: expected \d numbers, one for each response"
    ):
        run(given, tmp_path / "margin", margin=1.0)


def test_centring_makes_rewards_smaller(inputs, tmp_path):
    kept = Inputs({name: given for name, given in inputs.items() if name != "demonstrations"})
    sizes = {}
    for weight in (0.0, 3.0):
        folder = tmp_path / str(weight)
        run(kept, folder, center_rewards_coefficient=weight, num_epochs=4)
        rows = list(read_rows(kept.folders("data"), "validation"))[:20]
        score = by_reward_model(folder / "out", FLOAT32).score
        found = torch.tensor(score(Episodes(rows, [], [], [row["responses"][0] for row in rows])))
        sizes[weight] = float(found.abs().mean())
    assert sizes[3.0] < sizes[0.0] / 2


# -- calibration -----------------------------------------------------------------------------------------------------


def test_the_temperature_is_of_the_margins_of_all_held_out_pairs(inputs, tmp_path):
    metrics = run(inputs, tmp_path, num_epochs=12)
    margins = []
    for row in read_rows(inputs.folders("data"), "validation"):
        episodes = Episodes([row] * len(row["ranks"]), [], [], row["responses"])
        scores = by_reward_model(tmp_path / "out", FLOAT32).score(episodes)
        ranked = list(zip(row["ranks"], scores, strict=True))
        margins += [a - b for rank, a in ranked for other, b in ranked if rank < other]
    assert len(margins) == metrics["held_out_pairs"]
    assert metrics["temperature"] == pytest.approx(temperature(margins), rel=1e-3)
    bins = [json.loads(line) for line in (tmp_path / "out/calibration.jsonl").read_text().splitlines()]
    counts = {name: sum(b["answers"] for b in bins if b["model"] == name) for name in {b["model"] for b in bins}}
    assert counts == dict.fromkeys(("model", "at its temperature"), len(margins))
