"""The races beside TRL: both sides get the same work, and every benchmark that `make bench` runs is explained."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def races(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("_race")


@pytest.fixture
def ranked(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("_rankings")


def test_make_bench_runs_what_the_documentation_lists():
    (names,) = re.findall(r"^BENCHMARKS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    page = (ROOT / "docs/explanation/how-figures-are-made.md").read_text()
    listed = re.findall(r"^\| `benchmarks/(\w+)\.py`", page.partition("\n## Speed\n")[2], re.MULTILINE)
    assert sorted(names.split()) == sorted(listed)
    assert all((ROOT / f"benchmarks/{name}.py").is_file() for name in listed)


def test_every_ordered_pair_of_a_ranking_is_a_row_of_the_peer(ranked):
    rows = ranked.rankings([2, 4, 9])
    pairs = ranked.pairs_of(rows)
    places = {answer: place for row in rows for place, answer in enumerate(row["responses"])}
    counts = Counter(pair["prompt"][0]["content"] for pair in pairs)
    assert [counts[row["prompt"][0]["content"]] for row in rows] == [1, 6, 36]
    found = {(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs}
    assert len(found) == len(pairs)
    assert all(places[better] < places[worse] for better, worse in found)


def test_a_step_of_the_peer_holds_pairs_of_like_length_together(ranked):
    pairs = ranked.pairs_of(ranked.rankings([6, 7]))
    asked = [len(pair["prompt"][0]["content"].split()) for pair in pairs]
    answers = [max(len(pair[name][0]["content"].split()) for name in ("chosen", "rejected")) for pair in pairs]
    whole = [one + other for one, other in zip(asked, answers, strict=True)]
    assert whole == sorted(whole)


@pytest.mark.parametrize("chance", [0.0, 0.025])
def test_a_response_ends_as_often_as_asked(races, tmp_path, chance):
    races.save_llama(tmp_path, chance)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    prompts = [tokenizer.apply_chat_template(races.question(60, seed))["input_ids"] for seed in range(8)]
    with torch.no_grad():
        ends = model(torch.tensor(prompts)).logits.softmax(-1)[..., tokenizer.eos_token_id]
    behind_a_prompt = ends[:, -32:]
    assert float(behind_a_prompt.mean()) == pytest.approx(chance, rel=0.1, abs=1e-6)
    assert float(behind_a_prompt.std()) <= 0.15 * chance + 1e-6
