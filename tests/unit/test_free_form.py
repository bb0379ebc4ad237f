"""Written answers: beam search against all continuations there are, and SQuAD's measures by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from chat_templates import PUBLISHED
from conftest import mostly_slow
from tiny_models import tiny_model, tiny_tokenizer, written_by_transformers

from align.evals.beam import beam_search, length_penalty
from align.evals.free_form import exact_match, f1, first_line, line_ends, write_answers
from align.sampling.local import Ends
from align.text.chat import without_end


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    torch.manual_seed(3)
    return tiny_model(request.param)


@torch.no_grad()
def best_of_all(model, prompt, allowed, ends, most, alpha):
    """The best continuation there is, each scored by a plain forward of its own."""

    def logprob(ids):
        logits = model(torch.tensor([prompt + list(ids)]), use_cache=False).logits[0].float().log_softmax(-1)
        return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(ids))

    inner = [token for token in allowed if token not in ends]
    every = [
        (*body, last)
        for length in range(1, most + 1)
        for body in itertools.product(inner, repeat=length - 1)
        for last in (allowed if length == most else ends)
    ]
    return max(every, key=lambda ids: logprob(ids) / ((5 + len(ids)) / 6) ** alpha)


@pytest.mark.parametrize("alpha", mostly_slow([0.0, 0.6, 3.0], [0.6]))
def test_a_wide_beam_finds_the_best_continuation_there_is(model, alpha):
    """Only six tokens may be written, so that all their continuations can be tried; prompts of two lengths together."""
    allowed, ends, most = [5, 6, 7, 8, 9, 10], [5, 6], 3
    barred = torch.full((model.config.vocab_size,), -1e4)
    barred[allowed] = 0.0
    hook = model.get_output_embeddings().register_forward_hook(lambda module, given, out: out + barred)
    try:
        prompts = [[20, 21, 22], [30, 31, 32, 33, 34]]
        found = beam_search(model, prompts, Ends(ends, 0), most, width=len(allowed) ** most, alpha=alpha)
        for prompt, ids in zip(prompts, found, strict=True):
            expected = list(best_of_all(model, prompt, allowed, ends, most, alpha))
            assert ids == (expected[:-1] if expected[-1] in ends else expected)
    finally:
        hook.remove()


@torch.no_grad()
def plain_beam(model, prompt, ends, most, width, alpha):
    """Beam search to the last token in plain Python, a forward of its own for every beam, nothing stopped early."""
    live, over = [(0.0, [])], []
    for length in range(1, most + 1):
        longer = []
        for score, ids in live:
            logits = model(torch.tensor([prompt + ids]), use_cache=False).logits[0, -1].float().log_softmax(-1)
            longer += [(score + float(p), [*ids, token]) for token, p in enumerate(logits)]
        longer.sort(reverse=True)
        ended = [beam for beam in longer[:width] if beam[1][-1] in ends]
        live = [beam for beam in longer if beam[1][-1] not in ends][:width]
        over += [(score / ((5 + length) / 6) ** alpha, ids) for score, ids in ended]
    over += [(score / ((5 + most) / 6) ** alpha, ids) for score, ids in live]
    best = max(over)[1]
    return best[:-1] if best[-1] in ends else best


@pytest.mark.parametrize("alpha", mostly_slow([0.0, 0.6, 2.0], [0.6]))
def test_a_narrow_beam_is_the_plain_one_though_it_stops_early(model, alpha):
    """Many tokens end a text, so that beams end at every length, and the model is sure, so that long ones may win."""
    prompts, ends = [[20 + i, 31, 40 + 2 * i, 7][: 2 + i % 3] for i in range(8)], list(range(100, 200))
    hook = model.get_output_embeddings().register_forward_hook(lambda module, given, out: 4 * out)
    expected = [plain_beam(model, prompt, ends, 5, 3, alpha) for prompt in prompts]
    assert beam_search(model, prompts, Ends(ends, 0), 5, width=3, alpha=alpha) == expected
    assert [beam_search(model, [prompt], Ends(ends, 0), 5, width=3, alpha=alpha)[0] for prompt in prompts] == expected
    hook.remove()


def test_a_beam_of_one_without_penalty_is_greedy(model):
    prompt, eos = [20, 21, 22, 23], 1
    (found,) = beam_search(model, [prompt], Ends(eos, 0), 12, width=1, alpha=0.0)
    expected = written_by_transformers(model, prompt, 12, eos, 0)
    assert found == (expected[:-1] if expected[-1] == eos else expected)


def test_the_beam_of_the_library_is_ours_where_the_penalties_are_alike(model):
    """Without a length penalty both look for the likeliest continuation."""
    prompt = [20, 21, 22, 23, 24]
    found = beam_search(model, [prompt], Ends(1, 0), 8, width=4, alpha=0.0)
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=4,
        length_penalty=0.0,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=1,
        pad_token_id=0,
        early_stopping="never",
    )[0, len(prompt) :].tolist()
    assert found == [[token for token in out if token != 1]]


def test_the_penalty_by_hand():
    assert length_penalty(1) == 1.0
    assert length_penalty(7, 0.6) == pytest.approx(2**0.6)


@pytest.mark.parametrize("way", ["greedy", "beam"])
def test_answers_end_with_their_line_and_do_not_hang_on_each_other(way):
    torch.manual_seed(3)
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    contexts = ["the cat sat on ", "", "the dog ran home and the cat", "the mat " * 30]
    together = sorted(write_answers(model, tokenizer, contexts, way, 10, 4096))
    alone = [next(write_answers(model, tokenizer, [c], way, 10, 50))[1] for c in contexts]
    assert together == list(enumerate(alone))
    assert all("\n" not in answer for answer in alone)


def test_every_token_with_a_line_break_ends_an_answer():
    tokenizer = tiny_tokenizer()
    ends = line_ends(tokenizer)
    assert ends[0] == tokenizer.eos_token_id
    assert {tokenizer("\n")["input_ids"][0]} <= set(ends)
    assert all("\n" in tokenizer.decode([i]) for i in ends[1:])


def test_the_first_line_ends_with_the_first_break():
    assert first_line("  Paris \nLondon") == "Paris"
    assert first_line("\nLondon") == ""
    assert first_line("  ") == ""


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "share"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        ("a cat sat", ["the cat"], 0.0, 2 / 3),
        ("an", ["the"], 1.0, 1.0),
        ("", ["cat"], 0.0, 0.0),
        ("cat cat", ["cat"], 0.0, 2 / 3),
        ("dog", ["cat", "big dog", "dog."], 1.0, 1.0),
    ],
)
def test_answers_are_compared_as_squad_does(answer, wanted, exact, share):
    assert exact_match(answer, wanted) == exact
    assert math.isclose(f1(answer, wanted), share)


def test_an_end_that_is_not_special_is_no_part_of_an_answer():
    """Gemma's `<end_of_turn>`, which decoding keeps."""
    tokenizer = PUBLISHED["gemma"].tokenizer()
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    answer = [*tokenizer("The cat", add_special_tokens=False)["input_ids"], end]
    assert "<end_of_turn>" in tokenizer.decode(answer, skip_special_tokens=True)
    assert tokenizer.decode(without_end(tokenizer, answer), skip_special_tokens=True).strip() == "The cat"
    assert without_end(tokenizer, answer[:-1]) == answer[:-1]
