"""Likelihoods of tokens, and of responses in packed rows."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import mostly_slow
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from align.losses.lm import token_losses
from align.models.heads import ScalarModel, load_scalar, scalar_from_lm
from align.models.load import save_model
from align.models.packed import (
    before_responses,
    pack_pairs,
    response_logprobs,
    response_scores,
    response_values,
)

PROMPTS = [[7, 8, 9], [10], [11, 12, 13, 14, 15], [16, 17]]
RESPONSES = [[20, 21], [22, 23, 24, 25], [26], [27, 28, 29]]
PAIRS = list(zip(PROMPTS, RESPONSES, strict=True))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module", params=mostly_slow(["gpt2", "gpt_neox", "llama"], ["gpt2", "llama"]))
def policy(request):
    torch.manual_seed(0)
    return tiny_model(request.param, context=32)


@pytest.fixture(scope="module")
def folder(policy, tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    save_model(policy, tokenizer, place)
    return place


def plain_classifier(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, attn_implementation="eager").eval()


def plain_scalars(classifier, ids):
    """The head at every token of one sequence, by the library alone."""
    return classifier.score(classifier.base_model(input_ids=torch.tensor([ids])).last_hidden_state)[0, :, 0]


def test_token_losses_by_hand():
    got = token_losses(torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]]), torch.tensor([1, 0]))
    assert got.tolist() == pytest.approx([-math.log(0.75), math.log(2.0)], rel=1e-6)


def test_token_losses_of_bf16_logits_are_float32():
    logits = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.bfloat16)
    got = token_losses(logits, torch.tensor([0]))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(math.log(math.e + math.e**2 + math.e**4) - 1, rel=1e-6)


def test_before_responses_points_at_the_token_before():
    packed = pack_pairs(PROMPTS, RESPONSES, "cpu")
    expected, start = [], 0
    for prompt, response in PAIRS:
        expected += [start + len(prompt) - 1 + k for k in range(len(response))]
        start += len(prompt) + len(response)
    assert before_responses(packed, RESPONSES).tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_logprobs_are_log_softmax_of_an_unpacked_forward(policy, temperature):
    plain = AutoModelForCausalLM.from_config(policy.config, attn_implementation="eager").eval()
    plain.load_state_dict(policy.state_dict())
    expected = []
    for prompt, response in PAIRS:
        logits = plain(input_ids=torch.tensor([prompt + response])).logits[0].double() / temperature
        for k, token in enumerate(response):
            row = logits[len(prompt) - 1 + k]
            expected.append((row[token] - row.exp().sum().log()).item())
    got = response_logprobs(policy, pack_pairs(PROMPTS, RESPONSES, "cpu"), RESPONSES, temperature)
    assert got.tolist() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_splitting_a_batch_changes_no_logprob(policy):
    whole = response_logprobs(policy, pack_pairs(PROMPTS, RESPONSES, "cpu"), RESPONSES)
    parts = [response_logprobs(policy, pack_pairs([p], [r], "cpu"), [r]) for p, r in PAIRS]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


def test_gradients_of_parts_add_up_to_that_of_the_whole(policy):
    policy.zero_grad()
    response_logprobs(policy, pack_pairs(PROMPTS, RESPONSES, "cpu"), RESPONSES).sum().backward()
    whole = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    for rows in ([2], [0, 3], [1]):
        prompts, responses = [PROMPTS[i] for i in rows], [RESPONSES[i] for i in rows]
        response_logprobs(policy, pack_pairs(prompts, responses, "cpu"), responses).sum().backward()
    for p, expected in zip(policy.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-5)
    policy.zero_grad()


@torch.no_grad()
def test_values_are_of_the_state_before_each_response_token(folder):
    model, plain = scalar_from_lm(folder).eval(), plain_classifier(folder)
    plain.score.load_state_dict(model.classifier.score.state_dict())
    expected = []
    for prompt, response in PAIRS:
        alone = plain_scalars(plain, prompt + response)
        expected += [alone[len(prompt) - 1 + k].item() for k in range(len(response))]
    got = response_values(model, pack_pairs(PROMPTS, RESPONSES, "cpu"), RESPONSES)
    assert got.tolist() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_a_score_is_read_at_the_last_token(folder):
    model, plain = scalar_from_lm(folder).eval(), plain_classifier(folder)
    plain.score.load_state_dict(model.classifier.score.state_dict())
    expected = [plain_scalars(plain, prompt + response)[-1].item() for prompt, response in PAIRS]
    assert len(set(expected)) == 4
    got = response_scores(model, pack_pairs(PROMPTS, RESPONSES, "cpu"))
    assert got.tolist() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_the_shift_survives_saving_and_is_taken_off_scores_and_values(folder, tmp_path):
    model, packed = scalar_from_lm(folder).eval(), pack_pairs(PROMPTS, RESPONSES, "cpu")
    assert model.shift == 0.0
    scores, values = response_scores(model, packed), response_values(model, packed, RESPONSES)
    model.shift = 0.625
    model.save(tmp_path)
    again = load_scalar(tmp_path)
    assert again.shift == 0.625
    assert not again.training
    torch.testing.assert_close(response_scores(again, packed), scores - 0.625, rtol=0, atol=1e-6)
    torch.testing.assert_close(response_values(again, packed, RESPONSES), values - 0.625, rtol=0, atol=1e-6)


def test_the_shift_of_one_model_is_not_another_s(folder):
    one, other = scalar_from_lm(folder), scalar_from_lm(folder)
    one.shift = 3.0
    assert other.shift == 0.0


def test_a_fresh_head_has_variance_one_over_width_plus_one(folder):
    torch.manual_seed(0)
    weights = torch.cat([scalar_from_lm(folder).classifier.score.weight.flatten() for _ in range(40)])
    assert weights.mean().item() == pytest.approx(0.0, abs=0.02)
    assert weights.std().item() == pytest.approx(33**-0.5, rel=0.08)


@torch.no_grad()
def test_scores_stay_float32_under_autocast(folder):
    model = ScalarModel(plain_classifier(folder))
    with torch.autocast("cpu", torch.bfloat16):
        scores = response_scores(model, pack_pairs(PROMPTS, RESPONSES, "cpu"))
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())
