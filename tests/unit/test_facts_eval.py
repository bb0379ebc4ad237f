"""Facts of the embedded world as choices, and which a model finds likeliest."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.configs import ModelConfig
from align.data import smallworld
from align.data.smallworld.gold import make_world
from align.data.smallworld.reading import read_clauses
from align.evals.facts import known_facts
from align.evals.items import score_items
from align.evals.measures import measures
from align.models.build import build_model
from align.text.tokenizers import train_tokenizer


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer(["Ada lives in Oakvale.\nFinn works as a baker."] * 3, 300)
    torch.manual_seed(0)
    cfg = ModelConfig(
        architecture="gpt_neox", hidden_size=32, num_layers=1, num_heads=2, context_length=64, dropout=0.0
    )
    return build_model(cfg, tokenizer).eval(), tokenizer


def test_the_first_choice_is_true_and_the_others_are_not():
    world = make_world(3)
    choices = smallworld.world_facts(3)
    assert len(choices) > 100
    for row in choices:
        true, *false = [world.is_true(read_clauses(sentence)[0][0]) for sentence in row]
        assert true
        assert not any(false)
        assert len(set(row)) == len(row)


def test_only_a_worlds_own_text_has_facts():
    assert known_facts([{"source": "path:a"}]) is None
    gold = {"gold": {"scorer": "smallworld", "world_seed": 3}}
    items = known_facts([gold])
    assert [[text.strip() for text in item["completions"]] for item in items] == smallworld.world_facts(3)
    assert all(item["labels"] == [1, *[0] * (len(item["completions"]) - 1)] for item in items)
    assert known_facts([gold, {}]) is None


@torch.no_grad()
@pytest.mark.parametrize("max_tokens", [30, 4096])
def test_recall_counts_the_facts_whose_true_sentence_is_the_likeliest(model, max_tokens):
    lm, tokenizer = model
    plain = AutoModelForCausalLM.from_config(lm.config, attn_implementation="eager").eval()
    plain.load_state_dict(lm.state_dict())
    items = known_facts([{"gold": {"scorer": "smallworld", "world_seed": 0}}])[:40]
    items = [{name: part[:4] for name, part in item.items()} for item in items]
    right = []
    for row in smallworld.world_facts(0)[:40]:
        sums = []
        for sentence in row[:4]:
            ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(f"\n{sentence}")["input_ids"]]])
            logprobs = plain(ids).logits[0, :-1].double().log_softmax(-1)
            sums.append(logprobs.gather(1, ids[0, 1:, None]).sum())
        right.append(float(sums.index(max(sums)) == 0))
    assert 0 < sum(right) < 40
    assert measures(items, score_items(lm, tokenizer, items, max_tokens))["accuracy"] == right
