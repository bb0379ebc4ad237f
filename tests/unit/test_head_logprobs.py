"""Log-probs and entropies straight from hidden states, against what autograd makes of a plain log_softmax."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from align.losses import lm
from align.losses.lm import head_logprobs, summed_head_loss
from align.models.packed import pack_pairs, response_likelihoods, response_logprobs

ROWS, WIDTH, VOCABULARY = 13, 8, 29
NAMES = ("hidden", "weight", "bias")


def drawn(with_bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    shapes = ((ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    hidden, weight, bias = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    return hidden, weight, bias if with_bias else None


@pytest.fixture
def targets():
    """Some of them twice, the first and the last word of the vocabulary among them."""
    found = torch.randint(0, VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(3))
    found[2] = found[7] = found[8] = 5
    found[0], found[12] = 0, VOCABULARY - 1
    return found


def weighed(logprobs, entropies):
    """A loss that gives each row's log-prob and entropy a weight of its own."""
    generator = torch.Generator().manual_seed(4)
    one, two = torch.randn(2, ROWS, generator=generator).to(logprobs.dtype)
    return (one[: len(logprobs)] * logprobs).sum() + (two[: len(entropies)] * entropies).sum()


def gradients_of(loss, inputs):
    found = torch.autograd.grad(loss, [x for x in inputs if x is not None])
    return dict(zip(NAMES, found, strict=False))


def by_autograd(inputs, targets, temperature):
    """In float64: log-probs, entropies and the gradients of `weighed`."""
    hidden, weight, bias = (None if x is None else x.detach().double().requires_grad_() for x in inputs)
    every = (F.linear(hidden, weight, bias) / temperature).log_softmax(1)
    logprobs, entropies = every[range(len(hidden)), targets], -(every.exp() * every).sum(1)
    return logprobs, entropies, (hidden, weight, bias)


def near(got, expected, tolerance=1e-5):
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance)


# -- values and gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("chunk", [2**23, 4 * VOCABULARY, 1])
def test_logprobs_entropies_and_their_gradients_are_those_of_log_softmax(
    targets, monkeypatch, temperature, with_bias, chunk
):
    monkeypatch.setattr("align.losses.lm.CHUNK", chunk)  # all rows at once, four, one
    inputs = drawn(with_bias)
    got = head_logprobs(*inputs, targets, temperature, with_entropy=True)
    logprobs, entropies, doubles = by_autograd(inputs, targets, temperature)
    assert got.logprobs.dtype == got.entropies.dtype == torch.float32
    near(got.logprobs, logprobs)
    near(got.entropies, entropies)
    expected = gradients_of(weighed(logprobs, entropies), doubles)
    found = gradients_of(weighed(*got), inputs)
    assert found.keys() == expected.keys() == set(NAMES[: 2 + with_bias])
    for name, gradient in found.items():
        near(gradient, expected[name])


@pytest.mark.parametrize("of", ["logprobs", "entropies"])
@pytest.mark.parametrize("chunk", [2**23, 4 * VOCABULARY])
def test_each_has_its_gradient_without_the_other(targets, monkeypatch, of, chunk):
    monkeypatch.setattr("align.losses.lm.CHUNK", chunk)
    inputs = drawn()
    got = head_logprobs(*inputs, targets, 0.7, with_entropy=True)
    logprobs, entropies, doubles = by_autograd(inputs, targets, 0.7)
    one, expected = (got.logprobs, logprobs) if of == "logprobs" else (got.entropies, entropies)
    found, wanted = gradients_of(one.square().sum(), inputs), gradients_of(expected.square().sum(), doubles)
    for name, gradient in found.items():
        near(gradient, wanted[name])


@pytest.mark.parametrize("chunk", [2**23, 4 * VOCABULARY])
def test_entropies_that_were_not_asked_for_are_zero_and_have_no_gradient(targets, monkeypatch, chunk):
    monkeypatch.setattr("align.losses.lm.CHUNK", chunk)
    inputs = drawn()
    got = head_logprobs(*inputs, targets, 0.7)
    assert torch.equal(got.entropies, torch.zeros(ROWS))
    logprobs, _, doubles = by_autograd(inputs, targets, 0.7)
    near(got.logprobs, logprobs)
    expected = gradients_of(weighed(logprobs, torch.zeros(ROWS)), doubles)
    for name, gradient in gradients_of(weighed(*got), inputs).items():
        near(gradient, expected[name])


def test_several_chunks_give_what_one_gives(targets, monkeypatch):
    inputs = drawn()
    one = head_logprobs(*inputs, targets, 0.7, with_entropy=True)
    gradients = gradients_of(weighed(*one), inputs)
    for rows in (1, 4, 12, 13):
        monkeypatch.setattr("align.losses.lm.CHUNK", rows * VOCABULARY)
        got = head_logprobs(*inputs, targets, 0.7, with_entropy=True)
        for part, whole in zip(got, one, strict=True):
            near(part, whole, 1e-6)
        for name, gradient in gradients_of(weighed(*got), inputs).items():
            near(gradient, gradients[name], 1e-6)


def test_logits_never_exist_for_more_rows_than_a_chunk_holds(targets, monkeypatch):
    """In the backward pass too, and what is kept between the two is smaller than the logits."""
    monkeypatch.setattr("align.losses.lm.CHUNK", 4 * VOCABULARY)
    seen, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda hidden, *rest: seen.append(len(hidden)) or linear(hidden, *rest))
    inputs, kept = drawn(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = weighed(*head_logprobs(*inputs, targets, with_entropy=True))
    assert seen == [4, 4, 4, 1]
    loss.backward()
    assert seen == [4, 4, 4, 1] * 2
    assert max(kept) < ROWS * VOCABULARY


@pytest.mark.parametrize("chunk", [2**23, 4 * VOCABULARY])
def test_a_frozen_head_passes_the_same_gradient_on_and_takes_none(targets, monkeypatch, chunk):
    monkeypatch.setattr("align.losses.lm.CHUNK", chunk)
    inputs = drawn()
    expected = gradients_of(weighed(*head_logprobs(*inputs, targets, 0.7, with_entropy=True)), inputs)
    frozen = [inputs[0].detach().requires_grad_(), *(x.detach() for x in inputs[1:])]
    weighed(*head_logprobs(*frozen, targets, 0.7, with_entropy=True)).backward()
    assert torch.equal(frozen[0].grad, expected["hidden"])
    assert frozen[1].grad is None
    assert frozen[2].grad is None


def test_one_target_for_every_row():
    inputs, same = drawn(), torch.full((ROWS,), 5)
    logprobs, entropies, doubles = by_autograd(inputs, same, 1.0)
    got = head_logprobs(*inputs, same, with_entropy=True)
    near(got.logprobs, logprobs)
    expected = gradients_of(weighed(logprobs, entropies), doubles)
    for name, gradient in gradients_of(weighed(*got), inputs).items():
        near(gradient, expected[name])


def test_rows_in_another_order_give_the_same_in_that_order(targets):
    hidden, weight, bias = drawn()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(6))
    whole = head_logprobs(hidden, weight, bias, targets, with_entropy=True)
    again = head_logprobs(hidden[order], weight, bias, targets[order], with_entropy=True)
    for part, expected in zip(again, whole, strict=True):
        near(part, expected[order], 1e-6)


def test_likely_and_unlikely_tokens_keep_their_precision():
    """A logit a hundred above the others: log 1 is 0, the entropy is 0, and the others have -100."""
    hidden, weight = torch.tensor([[1.0, 0.0]]).expand(2, -1), torch.tensor([[100.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    got = head_logprobs(hidden, weight.requires_grad_(), None, torch.tensor([0, 2]), with_entropy=True)
    assert got.logprobs.tolist() == [0.0, -100.0]
    assert got.entropies.tolist() == pytest.approx([0.0, 0.0], abs=1e-30)
    (gradient,) = torch.autograd.grad(got.logprobs.sum() + got.entropies.sum(), [weight])
    near(gradient, torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), 1e-30)


@pytest.mark.parametrize("with_bias", [True, False])
def test_no_rows_give_nothing_and_gradients_of_zero(with_bias):
    hidden, weight, bias = drawn(with_bias)
    hidden = hidden[:0].detach().requires_grad_()
    got = head_logprobs(hidden, weight, bias, torch.zeros(0, dtype=torch.long), with_entropy=True)
    assert got.logprobs.shape == got.entropies.shape == (0,)
    for gradient in gradients_of(weighed(*got), (hidden, weight, bias)).values():
        assert torch.equal(gradient, torch.zeros_like(gradient))


# -- precisions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [2**23, 4 * VOCABULARY])
def test_under_autocast_the_product_is_bf16_the_softmax_float32_and_gradients_the_parameters_own(
    targets, monkeypatch, chunk
):
    monkeypatch.setattr("align.losses.lm.CHUNK", chunk)
    inputs = drawn()
    with torch.autocast("cpu", torch.bfloat16):
        got = head_logprobs(*inputs, targets, 0.7, with_entropy=True)
    assert got.logprobs.dtype == got.entropies.dtype == torch.float32
    logits = F.linear(*(x.detach().bfloat16() for x in inputs)).float() / 0.7
    every = logits.log_softmax(1)
    near(got.logprobs, every[range(ROWS), targets], 1e-6)
    near(got.entropies, -(every.exp() * every).sum(1), 1e-6)
    logprobs, entropies, doubles = by_autograd(inputs, targets, 0.7)
    near(got.logprobs, logprobs, 0.05)
    near(got.entropies, entropies, 0.05)
    expected = gradients_of(weighed(logprobs, entropies), doubles)
    for name, gradient in gradients_of(weighed(*got), inputs).items():
        assert gradient.dtype == torch.float32
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert 1e-5 < error < 0.02


def test_bf16_weights_without_autocast_get_bf16_gradients(targets):
    inputs = drawn(dtype=torch.bfloat16)
    got = head_logprobs(*inputs, targets, with_entropy=True)
    logprobs, entropies, doubles = by_autograd(inputs, targets, 1.0)
    near(got.logprobs, logprobs, 0.05)
    expected = gradients_of(weighed(logprobs, entropies), doubles)
    for name, gradient in gradients_of(weighed(*got), inputs).items():
        assert gradient.dtype == torch.bfloat16
        assert (gradient - expected[name]).norm() / expected[name].norm() < 0.02


# -- responses in packed rows --------------------------------------------------------------------------------------

PROMPTS = [[7, 8, 9], [10], [11, 12, 13, 14, 15], [16, 17]]
RESPONSES = [[20, 21], [22, 23, 24, 25], [26], [27, 28, 29]]


def model_of(architecture, spread=0.3, **settings):
    """Ours, and the same weights under the library's own eager attention."""
    config = tiny_model(architecture, 32, spread).config
    for name, value in settings.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    torch.manual_seed(0)
    ours = AutoModelForCausalLM.from_config(config, attn_implementation="align").eval()
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def unpacked(plain, temperature):
    """Log-probs and entropies, one forward of the library's own a sequence."""
    logprobs, entropies = [], []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        logits = plain(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        every = (logits.double() / temperature).log_softmax(1)
        logprobs.append(every[range(len(response)), response])
        entropies.append(-(every.exp() * every).sum(1))
    return torch.cat(logprobs), torch.cat(entropies)


def assert_as_unpacked(ours, plain, temperature):
    """Packed log-probs, entropies and the gradients of both are those of `plain`, whose log-probs it gives."""
    got = response_likelihoods(ours, pack_pairs(PROMPTS, RESPONSES, "cpu"), RESPONSES, temperature, with_entropy=True)
    logprobs, entropies = unpacked(plain, temperature)
    near(got.logprobs, logprobs)
    near(got.entropies, entropies)
    (got.logprobs.sum() + 0.5 * got.entropies.sum()).backward()
    (logprobs.sum() + 0.5 * entropies.sum()).backward()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=name)
    return logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "qwen3", "openai-gpt"])
def test_packed_likelihoods_and_gradients_are_those_of_an_unpacked_forward(architecture, temperature):
    ours, plain = model_of(architecture)
    assert_as_unpacked(ours, plain, temperature)


NOT_PLAIN = [
    ("granite", {"logits_scaling": 8.0}),
    ("cohere", {"logit_scale": 0.0625}),
    ("gemma3_text", {"final_logit_softcapping": 5.0}),
]


@pytest.mark.parametrize(("architecture", "settings"), NOT_PLAIN)
def test_a_head_that_scales_or_caps_its_logits_gives_the_right_likelihoods(architecture, settings):
    ours, plain = model_of(architecture, **settings)
    logprobs = assert_as_unpacked(ours, plain, 0.7)
    without = response_likelihoods(ours, pack_pairs(PROMPTS, RESPONSES, "cpu"), RESPONSES, 0.7)
    assert torch.equal(without.entropies, torch.zeros(len(logprobs)))
    near(without.logprobs, logprobs)


@torch.no_grad()
def test_a_cap_is_not_overlooked_where_logits_were_small_at_first():
    ours, plain = model_of("gemma3_text", spread=0.01, final_logit_softcapping=30.0)
    packed = pack_pairs(PROMPTS, RESPONSES, "cpu")
    near(response_logprobs(ours, packed, RESPONSES), unpacked(plain, 1.0)[0], 1e-4)
    for model in (ours, plain):
        model.get_output_embeddings().weight.mul_(100.0)
    near(response_logprobs(ours, packed, RESPONSES), unpacked(plain, 1.0)[0], 1e-4)


@torch.no_grad()
def test_likelihoods_follow_the_weights_as_they_change():
    ours, plain = model_of("gpt2")
    packed = pack_pairs(PROMPTS, RESPONSES, "cpu")
    before = response_logprobs(ours, packed, RESPONSES)
    for model in (ours, plain):
        model.get_output_embeddings().weight.mul_(1.5)
    after = response_logprobs(ours, packed, RESPONSES)
    assert (after - before).abs().min() > 1e-3
    near(after, unpacked(plain, 1.0)[0])


@torch.no_grad()
def test_asking_for_entropies_changes_no_logprob():
    ours, _ = model_of("gpt2")
    packed = pack_pairs(PROMPTS, RESPONSES, "cpu")
    one = response_likelihoods(ours, packed, RESPONSES, 0.7)
    two = response_likelihoods(ours, packed, RESPONSES, 0.7, with_entropy=True)
    assert torch.equal(one.logprobs, two.logprobs)
    assert two.entropies.min() > 0


@torch.no_grad()
def test_the_head_runs_for_response_tokens_alone(monkeypatch):
    ours, _ = model_of("gpt2")
    prompts, responses = PROMPTS * 8, RESPONSES * 8
    packed = pack_pairs(prompts, responses, "cpu")
    response_logprobs(ours, packed, responses)  # finds out what kind of head it is
    seen, linear = [], F.linear
    vocabulary = ours.config.vocab_size

    def watched(hidden, weight, *rest):
        if len(weight) == vocabulary:
            seen.append(hidden.shape[:-1].numel())
        return linear(hidden, weight, *rest)

    monkeypatch.setattr(F, "linear", watched)
    response_logprobs(ours, packed, responses)
    assert seen == [64 * math.ceil(sum(map(len, responses)) / 64)]
    assert seen[0] < packed.input_ids.numel()


# -- the summed loss, whose gradient is made on the way ------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("chunk", [2**25, 4 * VOCABULARY, 1])
def test_the_summed_loss_and_its_gradient_are_those_of_cross_entropy(targets, monkeypatch, with_bias, chunk):
    monkeypatch.setattr(lm, "SUMMED_CHUNK", chunk)
    inputs = drawn(with_bias)
    loss = summed_head_loss(*inputs, targets)
    hidden, weight, bias = (None if x is None else x.detach().double().requires_grad_() for x in inputs)
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    near(loss, expected)
    found, wanted = gradients_of(loss / 7, inputs), gradients_of(expected / 7, (hidden, weight, bias))
    for name, gradient in found.items():
        near(gradient, wanted[name])


def test_the_summed_loss_of_float64_passes_the_finite_differences(targets):
    inputs = drawn(dtype=torch.float64)
    hidden, weight, bias = inputs
    loss = summed_head_loss(*inputs, targets)
    moved = torch.zeros_like(hidden)
    moved[3, 2] = 1e-6
    slope = (summed_head_loss(hidden + moved, weight, bias, targets) - summed_head_loss(*inputs, targets)) / 1e-6
    assert float(torch.autograd.grad(loss, hidden)[0][3, 2]) == pytest.approx(slope.item(), rel=1e-4)


def test_the_summed_loss_in_bf16_is_near_and_its_gradients_are_float32(targets):
    inputs = drawn()
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_head_loss(*inputs, targets)
    assert loss.dtype == torch.float32
    near(loss, -head_logprobs(*(x.detach() for x in inputs), targets).logprobs.sum(), 2e-2)
    found = gradients_of(loss, inputs)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    for name, gradient in gradients_of(summed_head_loss(*inputs, targets), inputs).items():
        near(found[name], gradient, 5e-2)


def test_a_frozen_head_gets_no_gradient(targets):
    hidden, weight, bias = drawn()
    loss = summed_head_loss(hidden, weight.detach(), bias.detach(), targets)
    (gradient,) = torch.autograd.grad(loss, [hidden])
    assert gradient.shape == hidden.shape


def test_without_a_gradient_the_sum_is_the_same(targets):
    inputs = drawn()
    with torch.no_grad():
        near(summed_head_loss(*inputs, targets), summed_head_loss(*drawn(), targets))


def test_what_is_nearly_certain_in_bf16_still_has_a_loss_and_a_gradient():
    """The target's probability is 0.9985, which bf16 rounds to 1."""
    logits = torch.tensor([[12.0, 5.0, 4.0, 4.0, 3.0]])
    weight = torch.eye(5)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = logits.clone().requires_grad_()
        loss = summed_head_loss(hidden, weight, None, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, [hidden])
    exact = logits.double().log_softmax(1)[0, 0]
    assert float(exact.exp()) > 1 - 2**-9
    assert loss.item() == pytest.approx(-float(exact), rel=1e-2)
    assert gradient[0, 0].item() == pytest.approx(float(exact.exp()) - 1, rel=1e-2)


def test_what_underflows_has_a_loss_that_is_finite():
    logits = torch.tensor([[0.0, 500.0]], requires_grad=True)
    loss = summed_head_loss(logits, torch.eye(2), None, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, [logits])
    assert loss.item() == pytest.approx(-math.log(torch.finfo(torch.float32).tiny), rel=1e-6)
    assert gradient.tolist() == [[-1.0, 1.0]]
