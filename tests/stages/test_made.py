"""What the toy pipeline's artifacts hold, stage by stage."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import align, manifests
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.models.heads import load_scalar
from align.models.packed import response_scores
from align.text.chat import encode_conversations
from align.text.packing import pack


def folder(store: Path, step: str) -> Path:
    manifest = manifests(store)[step]
    return store / "objects" / manifest["stage"] / manifest["key"]


def logged(store: Path, step: str) -> list[dict]:
    return [json.loads(line) for line in (folder(store, step) / "metrics.jsonl").read_text().splitlines()]


def rows(store: Path, step: str, split: str) -> list[dict]:
    return pq.read_table(folder(store, step) / f"{split}.parquet").to_pylist()


@pytest.fixture(scope="module")
def one_minibatch(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the first iteration logs of a PPO whose rollout is one minibatch."""
    store = shutil.copytree(finished, tmp_path_factory.mktemp("ppo") / "artifacts")
    inputs = ("inputs.policy=toy/sft", "inputs.reward_model=toy/reward", "inputs.prompts=toy/prompts")
    knobs = (
        "precision=fp32",
        "num_iterations=1",
        "rollout_batch_size=16",
        "minibatch_size=16",
        "max_new_tokens=8",
        "kl_coef=0.5",
    )
    done = align("ppo", *inputs, *knobs, f"store={store}", "tracker=none", "name=mine/ppo", "--json")
    (outcome,) = json.loads(done.stdout)
    return json.loads((Path(outcome["path"]) / "metrics.jsonl").read_text())


def test_a_published_model_opens_as_a_plain_hugging_face_folder(finished: Path) -> None:
    for step in ("pretrain", "sft", "ppo"):
        model = AutoModelForCausalLM.from_pretrained(folder(finished, step))
        tokenizer = AutoTokenizer.from_pretrained(folder(finished, step))
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Who is Ada?"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        assert torch.isfinite(model(**ids).logits).all()


def test_published_models_hold_no_pickle(finished: Path) -> None:
    for step, manifest in manifests(finished).items():
        assert not [name for name in manifest["files"] if name.endswith((".bin", ".pt", ".pkl", ".pth"))], step


def test_pretraining_learns_something(finished: Path) -> None:
    losses = [row["loss"] for row in logged(finished, "pretrain")]
    assert losses[-1] < losses[0] - 0.5
    held_out = manifests(finished)["pretrain"]["metrics"]
    assert held_out["eval/loss"] == pytest.approx(losses[-1], abs=0.5)


def test_sft_lowers_the_loss_on_answers(finished: Path) -> None:
    losses = [row["eval/loss"] for row in logged(finished, "sft") if "eval/loss" in row]
    assert losses[-1] < losses[0]


def test_only_training_rankings_hold_strays(finished: Path) -> None:
    assert {len(row["responses"]) for row in rows(finished, "compare", "train")} == {5}
    assert {len(row["responses"]) for row in rows(finished, "compare", "validation")} == {4}


def test_rankings_have_a_first_place_and_a_gold_score_each(finished: Path) -> None:
    for row in rows(finished, "compare", "validation"):
        assert min(row["ranks"]) == 1
        assert len(row["gold"]) == len(row["ranks"]) == len(row["responses"])
        assert all(0 <= score <= 1 for score in row["gold"])


@torch.no_grad()
def test_demonstrations_score_0_on_average(finished: Path) -> None:
    model = load_scalar(folder(finished, "reward"))
    tokenizer = AutoTokenizer.from_pretrained(folder(finished, "reward"))
    conversations = [row["messages"] for row in rows(finished, "demonstrations", "train")]
    scores = response_scores(model, pack([e.ids for e in encode_conversations(tokenizer, conversations)]))
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(scores.std()) > 1e-3


def test_the_first_ratio_of_ppo_is_1_and_its_kl_is_0(one_minibatch: dict) -> None:
    assert one_minibatch["ppo/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert one_minibatch["ppo/approx_kl"] == pytest.approx(0.0, abs=1e-10)
    assert one_minibatch["ppo/clip_fraction"] == 0.0
    assert one_minibatch["objective/kl"] == 0.0
    assert one_minibatch["policy/sampling_gap"] < 1e-5


def test_the_reward_of_the_first_rollout_is_the_score_less_what_cut_off_answers_cost(one_minibatch: dict) -> None:
    penalty = 1.0 - one_minibatch["response/ended"]
    assert one_minibatch["objective/reward"] == pytest.approx(one_minibatch["reward/model"] - penalty, abs=1e-5)
    assert one_minibatch["objective/score"] == one_minibatch["objective/reward"]  # the KL is 0


def test_ppo_moves_the_policy_away_from_its_reference(finished: Path) -> None:
    kl = [row["objective/kl"] for row in logged(finished, "ppo")]
    assert kl[0] == 0.0
    assert any(abs(value) > 1e-5 for value in kl[1:])
    assert all(row["ptx/loss"] > 0 for row in logged(finished, "ppo"))


def test_an_evaluation_has_the_metrics_that_programs_read(finished: Path) -> None:
    metrics = manifests(finished)["evaluate"]["metrics"]
    compared = {"win_rate", "win_rate_low", "win_rate_high", "ties", "gold/score", "baseline/gold/score"}
    assert compared | {f"greedy/{name}" for name in compared} <= metrics.keys()
    assert {"kl", "response_tokens", "pretrain_loss"} <= metrics.keys()
    assert metrics["win_rate_low"] <= metrics["win_rate"] <= metrics["win_rate_high"]


def test_samples_stand_side_by_side(finished: Path) -> None:
    lines = (folder(finished, "evaluate") / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 20
    assert {"prompt", "response", "greedy", "baseline", "score"} <= json.loads(lines[0]).keys()


def test_a_manifest_says_where_everything_comes_from(finished: Path) -> None:
    for manifest in manifests(finished).values():
        wanted = {"stage", "key", "kind", "config", "inputs", "files", "metrics", "seconds", "code", "packages"}
        assert wanted <= manifest.keys()
        for entries in manifest["inputs"].values():
            assert all({"ref", "stage", "key", "digest"} <= entry.keys() for entry in entries)


def test_lineage_leads_from_the_policy_to_the_data(finished: Path) -> None:
    nodes = json.loads(align("artifacts", "--store", finished, "lineage", "toy/ppo", "--json").stdout)
    assert nodes[0]["stage"] == "ppo"
    data = [node for node in nodes if node["stage"] == "data"]
    assert {node["config"]["source"] for node in data} == {"card:smallworld"}
    assert all(len(node["data"]) == 64 for node in data)
    made_by = {"ppo", "sft", "reward", "compare", "pretrain", "tokens", "tokenizer", "data"}
    assert {node["stage"] for node in nodes} == made_by
