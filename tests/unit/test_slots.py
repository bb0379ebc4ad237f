"""Slots that are filled, filled again, moved and given up: none of it may show in a response."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import mostly_slow
from tiny_models import tiny_model, written_by_transformers
from transformers import AutoConfig, AutoModelForCausalLM

from align.models import kernels
from align.models.packed import pack_pairs, response_logprobs
from align.sampling.engine import Response, Sampling
from align.sampling.kv_slots import Slots
from align.sampling.local import Ends, LocalEngine, choose_tokens, generate

EOS, PAD = 0, 1
WINDOW = 5  # tokens that a sliding layer sees: fewer than nearly every prompt with its response
LENGTHS = [1, 40, 2, 33, 3, 1, 27, 8, 5, 40, 1, 2, 19, 4, 36, 6, 1, 12, 9, 3, 22, 1, 7, 30, 2, 15, 1, 38, 11, 4]
GENERATOR = torch.Generator().manual_seed(11)
PROMPTS = [torch.randint(5, 270, (n,), generator=GENERATOR).tolist() for n in LENGTHS]
SEEDS = [7000 + i for i in range(len(PROMPTS))]


def built(architecture, context=64, spread=0.3, ending=4.0, seed=1):
    """A model that ends a response with one token in some ten; `ending` is added to that token's logit."""
    config = tiny_model(architecture, context, spread).config
    if architecture in ("mistral", "qwen3"):
        config.sliding_window = WINDOW
        config.num_key_value_heads = 2  # of 4 query heads
    if architecture == "qwen3":
        config.use_sliding_window, config.layer_types = True, ["sliding_attention", "full_attention"]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="align").eval()
    bias = torch.zeros(config.vocab_size)
    bias[EOS] = ending
    model.get_output_embeddings().bias = torch.nn.Parameter(bias)
    return model


@pytest.fixture(
    scope="module", params=mostly_slow(["gpt2", "gpt_neox", "llama", "mistral", "qwen3"], ["gpt2", "mistral"])
)
def model(request):
    return built(request.param)


@pytest.fixture(scope="module")
def whole(model):
    """A slot for each prompt, so that none is filled twice."""
    return run(model, PROMPTS, SEEDS, batch_size=len(PROMPTS))


def run(model, prompts, seeds, eos=EOS, **knobs):
    sampling = Sampling(**{"max_new_tokens": 14, **knobs})
    return in_order(generate(model, prompts, seeds, sampling, Ends(eos, PAD)), prompts)


def in_order(responses, prompts):
    found = dict(responses)
    assert sorted(found) == list(range(len(prompts)))
    return [found[i] for i in range(len(prompts))]


def assert_same(some, others):
    assert [r.ids for r in some] == [r.ids for r in others]
    for a, b in zip(some, others, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


@torch.no_grad()
def packed_logprobs(model, prompts, responses, temperature=1.0):
    ids = [r.ids for r in responses]
    return response_logprobs(model, pack_pairs(prompts, ids, "cpu"), ids, temperature).tolist()


@pytest.fixture
def calls(monkeypatch):
    """How often a method of `Slots` was called, by name."""
    counts = {}

    def counted(name):
        original = getattr(Slots, name)

        def method(self, *arguments):
            counts[name] = counts.get(name, 0) + 1
            return original(self, *arguments)

        monkeypatch.setattr(Slots, name, method)

    for name in ("admit", "step", "give_up", "_move"):
        counted(name)
    return counts


# -- the same responses, however many slots ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_queue_through_few_slots_gives_what_a_slot_each_gives(model, whole, calls, size):
    assert len({len(r.ids) for r in whole}) > 5  # slots come free at different times
    assert_same(run(model, PROMPTS, SEEDS, batch_size=size), whole)
    assert calls["admit"] >= 5  # slots were filled again
    assert calls["_move"] >= 1


def test_greedy_responses_of_refilled_slots_are_those_of_transformers(model):
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    plain.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    plain.load_state_dict(model.state_dict())
    for prompt, response in zip(PROMPTS, run(model, PROMPTS, SEEDS, temperature=0.0, batch_size=4), strict=True):
        assert response.ids == written_by_transformers(plain, prompt, 14, EOS, PAD)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_refilled_slots_are_those_of_a_packed_forward(model, temperature):
    responses = run(model, PROMPTS, SEEDS, temperature=temperature, batch_size=4)
    got = [p for r in responses for p in r.logprobs]
    assert got == pytest.approx(packed_logprobs(model, PROMPTS, responses, temperature), abs=1e-5)


@pytest.mark.parametrize("architecture", ["mistral", "qwen3"])
def test_a_window_shorter_than_the_text_is_felt(architecture):
    """Or else the two would test nothing here that the others do not."""
    narrow = built(architecture)
    config = copy.deepcopy(narrow.config)
    config.sliding_window = 64
    wide = AutoModelForCausalLM.from_config(config, attn_implementation="align").eval()
    wide.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(config.vocab_size))
    wide.load_state_dict(narrow.state_dict())
    short, long = [[7]], [PROMPTS[1]]
    assert_same(run(wide, short, [1], eos=-1, max_new_tokens=4), run(narrow, short, [1], eos=-1, max_new_tokens=4))
    assert run(wide, long, [1])[0].logprobs[0] != pytest.approx(run(narrow, long, [1])[0].logprobs[0], abs=1e-4)


# -- the buffers ---------------------------------------------------------------------------------------------------


def test_columns_are_moved_again_and_again_as_short_responses_follow_one_another(model, calls):
    prompts = [ids[:6] for ids in PROMPTS]
    seeds = range(100, 130)
    got = run(model, prompts, seeds, max_new_tokens=6, batch_size=2)
    assert calls["_move"] >= 4
    moved = calls["_move"]
    alone = [run(model, [prompt], [seed], max_new_tokens=6)[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert calls["_move"] == moved
    assert_same(got, alone)


def test_a_long_prompt_finds_room_after_a_move(calls):
    """The queue goes from short to long: what was moved to the front must leave as many columns as the longest has."""
    model = built("llama")
    prompts = [[9]] * 9 + [PROMPTS[1]] * 3
    got = run(model, prompts, range(12), max_new_tokens=4, batch_size=3)
    assert calls["_move"] >= 1
    alone = [run(model, [prompt], [seed], max_new_tokens=4)[0] for prompt, seed in zip(prompts, range(12), strict=True)]
    assert_same(got, alone)


@pytest.mark.parametrize(("size", "limit"), [(1, 3), (2, 2), (3, 2)])
def test_the_buffer_may_be_full_when_every_slot_is_free(size, limit):
    """All responses end at once, and they end in the last column: no row sees anything that could be moved."""
    model = built("gpt2")
    prompts = [ids[:4] for ids in PROMPTS]
    whole = run(model, prompts, SEEDS, eos=-1, max_new_tokens=limit, batch_size=30)
    assert_same(run(model, prompts, SEEDS, eos=-1, max_new_tokens=limit, batch_size=size), whole)


def test_slots_that_are_given_up_leave_the_others_as_they_are(model, whole, calls):
    assert_same(run(model, PROMPTS, SEEDS, batch_size=len(PROMPTS)), whole)
    assert calls["admit"] == 1
    assert calls["give_up"] >= 2


def test_a_slot_is_filled_again_before_all_have_ended():
    """In five slots with one response of 30 tokens among many of a few, the long one is written to its end once."""
    model = built("gpt2")
    lengths = [len(r.ids) for r in run(model, [[9]] * 400, range(400), max_new_tokens=30)]
    seeds = sorted(range(400), key=lambda seed: -lengths[seed])
    chosen = [seeds[0], *[seed for seed in seeds if lengths[seed] <= 3][:24]]
    assert lengths[chosen[0]] >= 20
    steps = []
    sampling = Sampling(max_new_tokens=30, batch_size=5)
    for i, response in generate(model, [[9]] * 25, chosen, sampling, Ends(EOS, PAD)):
        steps.append(i)
        assert len(response.ids) == lengths[chosen[i]]
    assert steps.index(0) >= 20  # the others passed it by


def test_free_slots_never_run_past_the_learned_positions(monkeypatch):
    """GPT-2 has as many positions as it learned; a slot that has used them all waits while others are written."""
    model = built("gpt2", context=16)
    prompt = PROMPTS[1][:10]
    lengths = [len(r.ids) for r in run(model, [prompt] * 300, range(300), max_new_tokens=6)]
    (first, *others), short = ([seed for seed in range(300) if lengths[seed] == n] for n in (6, 3))
    seeds = [first, *short[:7], *others[:7]]  # the last seven begin when the first is half written, and outlast it
    positions, step = [], Slots.step

    def watched(self, tokens):
        positions.append(int(self._position[: len(tokens)].max()))
        return step(self, tokens)

    monkeypatch.setattr(Slots, "step", watched)
    responses = run(model, [prompt] * 15, seeds, max_new_tokens=6, batch_size=8)
    assert max(positions) > 15
    assert [len(r.ids) for r in responses] == [6] + [3] * 7 + [6] * 7
    got = [p for r in responses for p in r.logprobs]
    assert got == pytest.approx(packed_logprobs(model, [prompt] * 15, responses), abs=1e-5)


# -- bf16 ----------------------------------------------------------------------------------------------------------


def test_bf16_samples_are_near_float32_and_end_at_the_first_end_of_text(model):
    engine = LocalEngine("bf16", Ends(EOS, PAD))
    smooth = copy.deepcopy(model)  # with weights of an ordinary size: the logits of the fixture's err by more than 0.05
    with torch.no_grad():
        for weight in smooth.parameters():
            if weight.dim() == 2:
                weight.mul_(0.3)
    smooth.get_output_embeddings().bias.data[EOS] = 3.0
    engine.load(smooth)
    responses = in_order(engine.generate(PROMPTS, SEEDS, Sampling(max_new_tokens=14, batch_size=7)), PROMPTS)
    for ids, logprobs in responses:
        assert len(ids) == len(logprobs)
        assert EOS not in ids[:-1]
        assert ids[-1] == EOS or len(ids) == 14
        assert all(map(math.isfinite, logprobs))
    got = [p for r in responses for p in r.logprobs]
    exact = packed_logprobs(smooth, PROMPTS, responses)
    assert got == pytest.approx(exact, abs=0.05)
    assert got != pytest.approx(exact, abs=1e-5)  # it is bf16 that was sampled with
    assert len({len(r.ids) for r in responses}) > 5


# -- top_p ---------------------------------------------------------------------------------------------------------


def nucleus(logits, top_p):
    """The likeliest tokens until their probabilities reach `top_p`, by a plain loop; with what they then have."""
    probabilities = torch.softmax(logits.double(), 0).tolist()
    kept, total = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda t: -probabilities[t]):
        if total >= top_p:
            break
        kept.append(token)
        total += probabilities[token]
    return {token: probabilities[token] / total for token in kept}


@pytest.fixture(scope="module")
def logits():
    return torch.randn(40, generator=torch.Generator().manual_seed(5)) * 2


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_only_the_nucleus_is_drawn_from_and_its_probabilities_add_up_to_one(logits, top_p, temperature):
    draws = 4000
    numbers = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    tokens, logprobs = choose_tokens(logits.expand(draws, -1), numbers, temperature, top_p)
    found = dict(zip(tokens.tolist(), logprobs.double().exp().tolist(), strict=True))
    expected = nucleus(logits / temperature, top_p)
    assert found == pytest.approx(expected, abs=1e-6)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    counts = torch.bincount(tokens, minlength=40) / draws
    assert [counts[token].item() for token in expected] == pytest.approx([*expected.values()], abs=2 / draws)


def test_the_nucleus_by_hand():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[[2, 0, 3, 1]].expand(4, -1)
    numbers = torch.tensor([0.05, 0.4, 0.7, 0.99], dtype=torch.float64)
    expected = {0.4: [1, 1, 1, 1], 0.6: [1, 1, 3, 3], 0.9: [0, 1, 3, 3], 0.99: [0, 1, 2, 3]}
    for top_p, tokens in expected.items():
        assert choose_tokens(logits, numbers, 1.0, top_p)[0].tolist() == tokens
    assert choose_tokens(logits, numbers, 1.0, 0.4)[1].tolist() == pytest.approx([0.0] * 4, abs=1e-6)


def test_top_p_of_one_changes_nothing(logits):
    numbers = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    tokens, logprobs = choose_tokens(logits.expand(500, -1), numbers, 1.0, 1.0)
    cumulative = logits.double().softmax(0).cumsum(0)
    assert tokens.tolist() == [int((cumulative <= number).sum()) for number in numbers]
    assert torch.equal(logprobs, logits.log_softmax(0)[tokens])


def test_responses_under_top_p_do_not_depend_on_the_slots_and_stay_in_the_nucleus():
    model = built("llama")
    whole = run(model, PROMPTS, SEEDS, top_p=0.7, batch_size=30)
    assert [r.ids for r in whole] != [r.ids for r in run(model, PROMPTS, SEEDS, batch_size=30)]
    assert_same(run(model, PROMPTS, SEEDS, top_p=0.7, batch_size=4), whole)
    for prompt, response in zip(PROMPTS[:6], whole[:6], strict=True):
        with torch.no_grad():
            rows = model(input_ids=torch.tensor([prompt + response.ids])).logits[0, len(prompt) - 1 : -1]
        for row, token, logprob in zip(rows, response.ids, response.logprobs, strict=True):
            assert logprob == pytest.approx(math.log(nucleus(row, 0.7)[token]), abs=1e-4)


# -- what has no such cache ----------------------------------------------------------------------------------------

SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": PAD}


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ({"architecture": "mamba", "state_size": 4}, "linear_attention"),
        ({"architecture": "lfm2", "layer_types": ["conv", "full_attention"], "num_key_value_heads": 2}, "conv"),
        ({"architecture": "rwkv", "context_length": 32}, "recurrent"),
    ],
)
def test_a_model_with_layers_that_are_not_attention_is_refused(kind, layers):
    sizes = {**SIZES, **kind}
    architecture = sizes.pop("architecture")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes)).eval()
    with pytest.raises(ValueError, match=f"^{architecture}: expected attention in every layer, got {layers}$"):
        run(model, [[7, 8]], [0])


# -- the local engine ----------------------------------------------------------------------------------------------


def shifted(model, seed):
    """The same model with other weights."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def engine_run(engine):
    return in_order(engine.generate(PROMPTS[:8], SEEDS[:8], Sampling(max_new_tokens=10, batch_size=3)), PROMPTS[:8])


def test_the_float32_engine_samples_with_the_weights_as_they_are_now():
    policy, engine = built("llama"), LocalEngine("fp32", Ends(EOS, PAD))
    engine.load(policy)
    first = engine_run(engine)
    shifted(policy, 3)
    second = engine_run(engine)
    assert [r.ids for r in first] != [r.ids for r in second]
    assert_same(second, run(policy, PROMPTS[:8], SEEDS[:8], max_new_tokens=10))


def test_the_bf16_engine_samples_with_the_weights_that_were_loaded_last():
    policy, engine = built("llama"), LocalEngine("bf16", Ends(EOS, PAD))
    engine.load(policy)
    first = engine_run(engine)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in policy.parameters())
    shifted(policy, 3)
    assert engine_run(engine) == first
    engine.load(policy)
    second = engine_run(engine)
    assert [r.ids for r in first] != [r.ids for r in second]
    fresh = LocalEngine("bf16", Ends(EOS, PAD))
    fresh.load(policy)
    assert engine_run(fresh) == second


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_the_bf16_engine_keeps_rotary_frequencies_exact(architecture):
    """Rounded to eight bits they are other frequencies, which shows far from the first token alone."""
    policy, engine = built(architecture), LocalEngine("bf16", Ends(EOS, PAD))
    engine.load(policy)
    exact = dict(policy.named_buffers())
    found = {name: buffer for name, buffer in engine._model.named_buffers() if "inv_freq" in name}
    assert found
    assert all(torch.equal(buffer, exact[name]) for name, buffer in found.items())
    assert all(p.dtype == torch.bfloat16 for p in engine._model.parameters())


def test_a_response_is_ids_and_logprobs_as_plain_numbers():
    engine = LocalEngine("fp32", Ends(EOS, PAD))
    engine.load(built("gpt2"))
    for response in engine_run(engine):
        assert isinstance(response, Response)
        assert all(type(i) is int for i in response.ids)
        assert all(type(p) is float for p in response.logprobs)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "qwen3", "openai-gpt"])
def test_a_model_that_sampled_first_can_be_trained(architecture):
    """What sampling makes is of no use in training if it is kept: masks, positions, tables of rotations."""
    kernels._kept_unseen.cache_clear()
    model = built(architecture)
    prompts = [[9] * 11] * 3
    ids = [r.ids for r in run(model, prompts, [1, 2, 3], eos=-1, max_new_tokens=5)]
    whole = [[*prompt, *response] for prompt, response in zip(prompts, ids, strict=True)]
    run(model, whole, [1, 2, 3], max_new_tokens=2)  # now of the very lengths that training will see
    response_logprobs(model, pack_pairs(prompts, ids, "cpu"), ids).sum().backward()
    fresh = built(architecture)
    kernels._kept_unseen.cache_clear()
    response_logprobs(fresh, pack_pairs(prompts, ids, "cpu"), ids).sum().backward()
    for (name, a), b in zip(model.named_parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_the_caller_is_not_in_inference_mode_between_responses():
    model = built("gpt2")
    weight = torch.nn.Parameter(torch.ones(2))
    sampling = Sampling(max_new_tokens=8, batch_size=2)
    for _ in generate(model, PROMPTS[:4], SEEDS[:4], sampling, Ends(EOS, PAD)):
        assert not torch.is_inference_mode_enabled()
        (weight * 2.0).sum().backward()
    assert weight.grad.tolist() == [8.0, 8.0]


def test_responses_to_one_prompt_read_it_once_and_are_those_of_a_pass_each(model):
    prompts = [prompt for prompt in PROMPTS[:6] for _ in range(4)]
    seeds = range(len(prompts))
    rows = []
    watched = model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    try:
        together = run(model, prompts, seeds, batch_size=len(prompts))
    finally:
        watched.remove()
    assert rows[0] == len({tuple(prompt) for prompt in prompts}) == 6
    alone = [run(model, [prompt], [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert_same(together, alone)
    assert len({tuple(r.ids) for r in together[:4]}) > 1  # each has its own seed
