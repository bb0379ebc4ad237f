"""Sampling: what a response hangs on, and what it is drawn from."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from conftest import mostly_slow
from tiny_models import tiny_model, tiny_tokenizer, written_by_transformers

from align.models.packed import pack_pairs, response_logprobs
from align.sampling.engine import Sampling
from align.sampling.local import Ends, choose_tokens, generate, uniforms

EOS, PAD = 0, 1


def built(architecture, context=64, spread=0.3):
    tokenizer = tiny_tokenizer()
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (EOS, PAD)
    torch.manual_seed(1)
    return tiny_model(architecture, context, spread)


@pytest.fixture(
    scope="module", params=mostly_slow(["gpt2", "gpt_neox", "llama", "openai-gpt"], ["gpt_neox", "openai-gpt"])
)
def model(request):
    return built(request.param)


@pytest.fixture(scope="module")
def fixed():
    """The same distribution at every step: the last norm gives its bias whatever comes in."""
    model = built("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.randn(32, generator=torch.Generator().manual_seed(3)))
        bias = model.transformer.ln_f.bias
        model.lm_head.weight[5:] -= 6.0 * bias / (bias @ bias)  # five tokens take most of it
        logits = model.lm_head.weight @ bias
    return model, logits.double()


PROMPTS = [[7], [8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18, 19], [20, 21, 22]] * 3
SEEDS = [1000 + i for i in range(len(PROMPTS))]


def run(model, prompts, seeds, eos=EOS, **knobs):
    sampling = Sampling(**{"max_new_tokens": 12, **knobs})
    found = dict(generate(model, prompts, seeds, sampling, Ends(eos, PAD)))
    assert sorted(found) == list(range(len(prompts)))
    return [found[i] for i in range(len(prompts))]


def splitmix64(seed, count):
    """The published generator in whole numbers of any size, its state first put through the same finaliser."""

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    state, numbers = mix(seed % 2**64), []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        numbers.append((mix(state) >> 11) / 2**53)
    return numbers


def test_uniforms_are_splitmix64():
    seeds = [0, 1, 12345, 2**62 + 977, 2**63 - 1, -1]
    got = uniforms(torch.tensor(seeds), 40)
    assert got.dtype == torch.float64
    assert got.tolist() == [splitmix64(seed, 40) for seed in seeds]


def test_the_published_first_output_of_splitmix64():
    # seed 0, whose finaliser is 0: Vigna's reference gives 0xE220A8397B1DCDAF first, then 0x6E789E6AA1B965F4
    expected = [(0xE220A8397B1DCDAF >> 11) / 2**53, (0x6E789E6AA1B965F4 >> 11) / 2**53]
    assert uniforms(torch.tensor([0]), 2).tolist() == [expected]


def test_uniforms_lie_in_0_to_1_are_distinct_and_flat():
    numbers = uniforms(torch.arange(1000), 50)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert len(numbers.flatten().unique()) == 50_000
    counts = torch.histc(numbers.flatten().float(), 20, 0.0, 1.0)
    assert ((counts - 2500) ** 2 / 2500).sum() < 43.8  # chi-square, 19 degrees, p = 0.001
    correlation = torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))[0, 1]
    assert abs(correlation) < 0.02


def test_a_longer_stream_begins_like_a_shorter_one():
    seeds = torch.tensor([3, 4])
    assert torch.equal(uniforms(seeds, 30)[:, :10], uniforms(seeds, 10))


def test_a_sample_does_not_depend_on_the_batch_size(model):
    whole = run(model, PROMPTS, SEEDS)
    for size in (1, 2, 4):
        for a, b in zip(run(model, PROMPTS, SEEDS, batch_size=size), whole, strict=True):
            assert a.ids == b.ids
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_a_sample_does_not_depend_on_its_companions_or_their_order(model):
    whole = run(model, PROMPTS, SEEDS)
    back = run(model, PROMPTS[::-1], SEEDS[::-1])[::-1]
    assert [r.ids for r in back] == [r.ids for r in whole]
    some = [1, 3, 8, 13]
    part = run(model, [PROMPTS[i] for i in some], [SEEDS[i] for i in some])
    assert [r.ids for r in part] == [whole[i].ids for i in some]


def test_a_seed_is_a_response_and_another_seed_another(model):
    one, two, three = run(model, [PROMPTS[3]] * 3, [5, 5, 6])
    assert one.ids == two.ids
    assert one.ids != three.ids


def test_greedy_is_what_transformers_generates(model):
    responses = run(model, PROMPTS[:5], SEEDS[:5], temperature=0.0)
    for prompt, response in zip(PROMPTS, responses, strict=False):
        assert response.ids == written_by_transformers(model, prompt, 12, EOS, PAD)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_a_packed_forward(model, temperature):
    responses = run(model, PROMPTS, SEEDS, temperature=temperature)
    ids = [r.ids for r in responses]
    again = response_logprobs(model, pack_pairs(PROMPTS, ids, "cpu"), ids, temperature)
    assert [p for r in responses for p in r.logprobs] == pytest.approx(again.tolist(), abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_token_frequencies_match_the_softmax(fixed, temperature):
    model, logits = fixed
    draws = 6000
    responses = run(model, [[7]] * draws, range(draws), max_new_tokens=1, temperature=temperature, batch_size=3000)
    counts = torch.bincount(torch.tensor([r.ids[0] for r in responses]), minlength=len(logits)).double()
    expected = draws * torch.softmax(logits / temperature, 0)
    rare = expected < 8
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    degrees = len(counts) - 1
    assert degrees > 3
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    assert statistic < degrees + 3.1 * (2 * degrees) ** 0.5 + 6  # about p = 0.001
    likeliest = int(logits.argmax())
    hits = [r.logprobs[0] for r in responses if r.ids[0] == likeliest]
    assert hits[0] == pytest.approx(torch.log_softmax(logits / temperature, 0)[likeliest].item(), abs=1e-5)


def test_a_token_is_the_first_whose_cumulative_probability_passes_the_number(fixed):
    model, logits = fixed
    cumulative = torch.softmax(logits, 0).cumsum(0).tolist()
    for seed, response in enumerate(run(model, [[7]] * 200, range(200), max_new_tokens=3)):
        for token, number in zip(response.ids, splitmix64(seed, 3), strict=False):
            assert token == next(i for i, c in enumerate(cumulative) if c > number)


def test_a_response_ends_with_its_first_end_of_text_or_is_cut_off(fixed):
    model, _ = fixed
    responses = run(model, [[7]] * 200, range(200), max_new_tokens=6)
    for ids, logprobs in responses:
        assert len(ids) == len(logprobs)
        assert EOS not in ids[:-1]
        assert ids[-1] == EOS or len(ids) == 6
    assert {len(ids) for ids, _ in responses} == {1, 2, 3, 4, 5, 6}


def test_rows_that_end_early_change_nothing_for_the_others(model):
    prompts, seeds = [*PROMPTS, *PROMPTS], range(500, 530)
    endless = [r.ids for r in run(model, prompts, seeds, eos=-1, temperature=0.4, max_new_tokens=20)]
    assert {len(ids) for ids in endless} == {20}
    spread = {}
    for token in {token for ids in endless for token in ids}:
        cut = [ids[: ids.index(token) + 1] if token in ids else ids for ids in endless]
        spread[token] = (len({len(ids) for ids in cut}), cut)
    tokens = sorted(spread, key=lambda token: spread[token][0])[-4:]  # those that end rows at the most different times
    assert spread[tokens[-1]][0] >= 5
    for token in tokens:
        got = run(model, prompts, seeds, eos=token, temperature=0.4, max_new_tokens=20)
        assert [r.ids for r in got] == spread[token][1]
        assert [len(r.logprobs) for r in got] == [len(r.ids) for r in got]


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]] * 3)
    token, logprob = choose_tokens(logits, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64), 1.0)
    assert token.tolist() == [1, 3, 3]
    assert logprob.tolist() == pytest.approx([-math.log(2)] * 3, rel=1e-6)


def test_a_longer_limit_goes_on_where_a_shorter_one_cut_off(model):
    short, long = (run(model, PROMPTS, SEEDS, max_new_tokens=n) for n in (4, 12))
    assert [r.ids for r in short] == [r.ids[:4] for r in long]


def test_a_prompt_that_leaves_no_room_is_refused():
    model = built("gpt2", context=16)
    assert len(run(model, [[7] * 10], [0], max_new_tokens=6)) == 1
    with pytest.raises(ValueError, match=r"11 tokens and 6 new tokens do not fit .* context of 16"):
        run(model, [[7], [7] * 11], [0, 1], max_new_tokens=6)


def test_no_prompts_give_no_responses(fixed):
    assert run(fixed[0], [], []) == []


def test_a_response_ends_at_whichever_of_several_tokens_comes_first():
    """As the endless response, cut after the first of them; each token in turn ends some response alone."""
    model, prompts, seeds = tiny_model("gpt2"), [[5, 6, 7]] * 12, list(range(12))
    endless = [r.ids for r in run(model, prompts, seeds, eos=-1, max_new_tokens=30)]
    common = [token for token, _ in Counter(token for ids in endless for token in ids).most_common(3)]
    got = [r.ids for r in run(model, prompts, seeds, eos=common, max_new_tokens=30)]
    for ids, whole in zip(got, endless, strict=True):
        ends = [i for i, token in enumerate(whole) if token in common]
        assert ids == whole[: ends[0] + 1 if ends else None]
    assert {ids[-1] for ids in got} >= set(common)
