"""Scoring by likelihood: as a plain forward of each candidate alone, and what is made of the numbers."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from align.configs import ModelConfig
from align.data.formats import FORMATS, infer_format
from align.data.records import Malformed, check_row
from align.evals.intervals import bootstrap, compared
from align.evals.items import Candidate, encode_pair, score_items
from align.evals.measures import measures
from align.evals.tasks import Scored, task_metrics
from align.models.build import build_model
from align.text.tokenizers import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat and the dog ran home. Is it so? yes no"] * 3, 290)


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "llama"])
def model(request, tokenizer):
    torch.manual_seed(0)
    cfg = ModelConfig(
        architecture=request.param, hidden_size=32, num_layers=2, num_heads=4, context_length=48, initializer_range=0.3
    )
    return build_model(cfg, tokenizer).eval()


def item(contexts, completions, labels=None):
    return {"contexts": contexts, "completions": completions, "labels": labels or [1, *[0] * (len(contexts) - 1)]}


ITEMS = [
    item(["the cat sat on"] * 3, [" the mat", " the dog ran home", " no"]),
    item(["", ""], ["the dog ran home.", "the cat ran home."]),
    item(["Is it so? "], ["yes"]),
    item(["the dog ran home and the cat sat on the mat and"] * 3, [" the dog ran home and", " no", " the"]),
    item(["the dog ran home and the cat sat on"] * 2, [" the mat", " no"]),
    item(["the cat", "the dog ran and the dog ran and"], [" ran home"] * 2, [0, 1]),
]


@torch.no_grad()
def alone(model, tokenizer, context, completion):
    """One candidate through the plain model: log-prob and whether it is greedy, token by token."""
    before, after = encode_pair(tokenizer, context, completion)
    logits = model(torch.tensor([before + after]), use_cache=False).logits[0].float()
    total, greedy = 0.0, True
    for place, token in enumerate(after, len(before)):
        total += float(logits[place - 1].log_softmax(-1)[token])
        greedy &= int(logits[place - 1].argmax()) == token
    return total, greedy


@pytest.mark.parametrize("max_tokens", [1, 20, 4096])
def test_scores_are_those_of_each_candidate_alone(model, tokenizer, max_tokens):
    found = score_items(model, tokenizer, ITEMS, max_tokens)
    for row, each in zip(found, ITEMS, strict=True):
        for candidate, context, completion in zip(row, each["contexts"], each["completions"], strict=True):
            logprob, greedy = alone(model, tokenizer, context, completion)
            assert candidate.logprob == pytest.approx(logprob, abs=1e-4)
            assert candidate.is_greedy is greedy
            assert candidate.characters == len(completion.strip())


def test_what_the_model_would_write_is_greedy_and_nothing_else(model, tokenizer):
    learned = copy.deepcopy(model)
    before, after = encode_pair(tokenizer, "the cat sat on", " the mat and the dog")
    ids = torch.tensor([before + after])
    optimizer = torch.optim.Adam(learned.parameters(), 0.01)
    for _ in range(40):
        learned(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    completions = [" the mat and the dog", " the mat", " the mat and no dog", " the cat"]
    (row,) = score_items(learned, tokenizer, [item(["the cat sat on"] * 4, completions)], 4096)
    assert [candidate.is_greedy for candidate in row] == [True, True, False, False]


def test_spaces_at_the_end_of_a_context_belong_to_the_completion(tokenizer):
    assert encode_pair(tokenizer, "Is it so? ", "yes") == encode_pair(tokenizer, "Is it so?", " yes")
    before, after = encode_pair(tokenizer, "  ", "yes")
    assert before == [tokenizer.eos_token_id]
    assert tokenizer.decode(after) == "  yes"


def test_a_long_context_loses_its_beginning(model, tokenizer):
    long = "the dog ran home and " * 30
    ((candidate,),) = score_items(model, tokenizer, [item([long], [" the cat"])], 4096)
    before, after = encode_pair(tokenizer, long, " the cat")
    kept = torch.tensor([(before + after)[-49:-1]])
    with torch.no_grad():
        logprobs = model(kept, use_cache=False).logits[0].float().log_softmax(-1)
    expected = sum(float(logprobs[48 - len(after) + i, token]) for i, token in enumerate(after))
    assert candidate.logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("completion", ["", " the dog ran home" * 30])
def test_a_completion_that_cannot_be_scored_is_named(model, tokenizer, completion):
    with pytest.raises(ValueError, match="expected 1 to 48 tokens, got"):
        score_items(model, tokenizer, [item(["the cat"], [completion])], 4096)


# -- measures ------------------------------------------------------------------------------------------------------


def test_choices_by_hand():
    items = [item(["a"] * 2, [" xx", " yyyy"]), item(["a"] * 2, [" xx", " yyyy"], [0, 1])]
    row = [Candidate(-2.0, False, 2, 2), Candidate(-3.0, False, 4, 2)]
    found = measures(items, [row, row])
    assert found == {"accuracy": [1.0, 0.0], "accuracy_norm": [0.0, 1.0], "accuracy_token": [1.0, 0.0]}


def entropy(p):
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def test_by_token_is_not_by_character():
    items = [item(["a"] * 3, [" xxxxxx", " y", " zz"])]
    row = [Candidate(-3.0, False, 6, 1), Candidate(-2.0, False, 1, 1), Candidate(-3.6, False, 2, 2)]
    found = measures(items, [row])
    assert found == {"accuracy": [0.0], "accuracy_norm": [1.0], "accuracy_token": [0.0]}
    assert measures([item(["a"] * 3, [" y", " xxxxxx", " zz"], [0, 0, 1])], [row])["accuracy_token"] == [1.0]


def test_relative_likelihood_takes_away_what_is_likely_anyway():
    """The first is likelier, but the context made the second likelier by more."""
    items = [item(["a"] * 2, [" x", " y"], [0, 1])]
    row = [Candidate(-1.0, False, 1, 1), Candidate(-2.0, False, 1, 1)]
    alone = [Candidate(-1.5, False, 1, 1), Candidate(-4.0, False, 1, 1)]
    assert measures(items, [row], [alone])["accuracy_relative"] == [1.0]
    assert measures(items, [row], [row[::-1]])["accuracy_relative"] == [0.0]


@pytest.mark.parametrize(("shares", "bits"), [((0.5, 0.5), 1.0), ((0.9, 0.1), entropy(0.9)), ((1.0, 1e-300), 0.0)])
def test_an_even_pair_has_one_bit(shares, bits):
    row = [Candidate(math.log(p), False, 1, 1) for p in shares]
    found = measures([{**item(["a"] * 2, [" x", " y"]), "leaning": True}], [row])
    assert found["entropy"] == [pytest.approx(bits, abs=1e-12)]


def test_several_right_candidates_share_the_probability():
    items = [item(["a"] * 3, [" x", " y", " z"], [1, 1, 0])]
    row = [Candidate(math.log(p), False, 1, 1) for p in (0.1, 0.2, 0.7)]
    found = measures(items, [row])
    assert found["right_share"] == [pytest.approx(0.3)]
    assert found["accuracy"] == [0.0]


def test_one_completion_after_several_contexts_has_no_measure_by_length():
    items = [item(["a", "b"], [" x", " x"])]
    found = measures(items, [[Candidate(-2.0, False, 1, 1), Candidate(-1.0, False, 1, 1)]])
    assert found == {"accuracy": [0.0]}


def test_items_with_one_candidate_are_not_mixed_with_others():
    rows = [[Candidate(-1.0, True, 1, 1)], [Candidate(-1.0, True, 1, 1), Candidate(-2.0, True, 1, 1)]]
    with pytest.raises(ValueError, match="items with one candidate are mixed with others"):
        measures([item(["a"], [" x"]), item(["a"] * 2, [" x", " y"])], rows)


def test_a_model_that_is_broken_is_said(tokenizer, model):
    broken = copy.deepcopy(model)
    broken.get_input_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="its log-prob is nan"):
        score_items(broken, tokenizer, ITEMS[:1], 4096)


def test_no_pass_holds_more_than_it_may_however_many_share_a_context(tokenizer, model):
    sizes = []
    hook = model.register_forward_pre_hook(
        lambda m, given, kept: sizes.append(kept["input_ids"].numel()), with_kwargs=True
    )
    short = [item(["the cat sat on the mat"], [" and"]) for _ in range(100)]
    found = score_items(model, tokenizer, short, 64)
    hook.remove()
    assert max(sizes) <= 64 + 64  # rounded up
    assert len({round(row[0].logprob, 4) for row in found}) == 1


def test_a_gain_is_over_the_same_items():
    """Every item is one better, so the difference has no width, however far the items lie apart."""
    values = np.random.default_rng(0).normal(0.0, 10.0, 50)
    found = compared("t/", "x", [values + 1, values], 200, 0)
    assert [found[f"t/gain/x{end}"] for end in ("", "_low", "_high")] == pytest.approx([1.0] * 3)
    assert found["t/x_high"] - found["t/x_low"] > 2


@pytest.mark.parametrize(("logprob", "there"), [(-3.0, True), (-900.0, False)])
def test_a_perplexity_that_no_float_can_hold_is_left_out(logprob, there):
    found = task_metrics("t/", [item(["a"], [" x"])], [Scored([[Candidate(logprob, True, 1, 1)]])], 10, 0)
    assert ("t/perplexity" in found) is there
    assert found["t/logprob"] == logprob


def test_single_candidates_give_accuracy_and_perplexity():
    items = [item(["a"], [" x"])] * 2
    rows = [[Candidate(-1.0, True, 1, 1)], [Candidate(-3.0, False, 1, 1)]]
    assert measures(items, rows) == {"accuracy": [1.0, 0.0], "logprob": [-1.0, -3.0]}
    found = task_metrics("t/", items, [Scored(rows)], 200, 0)
    assert found["t/perplexity"] == pytest.approx(math.exp(2.0))
    assert math.exp(1.0) <= found["t/perplexity_low"] <= math.exp(2.0) <= found["t/perplexity_high"] <= math.exp(3.0)


def test_a_bootstrap_interval_is_that_of_the_normal_where_there_are_many():
    values = np.random.default_rng(1).normal(5.0, 2.0, 4000)
    mean, low, high = bootstrap(values, 2000, 0)
    half = 1.96 * values.std() / math.sqrt(4000)
    assert mean == values.mean()
    assert (low, high) == (pytest.approx(mean - half, abs=0.1 * half), pytest.approx(mean + half, abs=0.1 * half))


# -- rows ----------------------------------------------------------------------------------------------------------

RAW = {
    "last_word": ({"text": "He saw the dog"}, [item(["He saw the"], [" dog"])]),
    "context_completion": ({"context": "Q: 1 + 1\nA:", "completion": " 2"}, [item(["Q: 1 + 1\nA:"], [" 2"])]),
    "query_choices": (
        {"query": "Question: so?", "choices": ["no", "yes"], "gold": 1},
        [{**item(["Question: so?\nAnswer:"] * 2, [" no", " yes"], [0, 1]), "answer_context": "Answer:"}],
    ),
    "context_continuation": ({"context": "1 + 1 = ", "continuation": " 2"}, [item(["1 + 1 ="], [" 2"])]),
    "gpt3_arithmetic": (
        {"context": "\n\nQ: 1 + 1?\n\nA:", "completion": " 2"},
        [item(["Question: 1 + 1?\nAnswer:"], [" 2"])],
    ),
    "context_options": (
        {"context_options": ["as Al", "as Bo"], "continuation": "ran", "gold": 0},
        [item(["as Al", "as Bo"], [" ran", " ran"])],
    ),
    "commonsense_qa": (
        {
            "question": {"stem": "where?", "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]},
            "answerKey": "B",
        },
        [{**item(["Question: where?\nAnswer:"] * 2, [" x", " y"], [0, 1]), "answer_context": "Answer:"}],
    ),
    "truthful_mc1": (
        {"Question": "so?", "Best Answer": "b", "Correct Answers": "b; c", "Incorrect Answers": "w; v;"},
        [item(["Q: so?\nA:"] * 3, [" b", " w", " v"])],
    ),
    "truthful_mc2": (
        {"Question": "so?", "Best Answer": "b", "Correct Answers": "b; c; b", "Incorrect Answers": "w; v;"},
        [item(["Q: so?\nA:"] * 4, [" b", " c", " w", " v"], [1, 1, 0, 0])],
    ),
    "crows_pairs": (
        {"sent_more": "m", "sent_less": "l", "bias_type": "age"},
        [{**item(["", ""], ["m", "l"]), "group": "age", "leaning": True}],
    ),
    "fill_in": ({"text": "He saw the dog"}, [item(["He saw the ____. ->"], [" dog"])]),
    "winogender": (
        {
            "occupation(0)": "cook",
            "other-participant(1)": "guest",
            "answer": "1",
            "sentence": "The $OCCUPATION told the $PARTICIPANT that $NOM_PRONOUN forgot $POSS_PRONOUN hat.",
        },
        [
            {
                **item(
                    ["", ""],
                    [
                        "The cook told the guest that he forgot his hat.",
                        "The cook told the guest that she forgot her hat.",
                    ],
                ),
                "group": "participant",
                "leaning": True,
            }
        ],
    ),
    "items": (item(["a", "b"], ["x", "y"]), [item(["a", "b"], ["x", "y"])]),
}


@pytest.mark.parametrize(
    "query", ["He said", "So: question?", "Question: so?\nAnswer:", "The Question: so?", "a ", "Q\n", "It is because"]
)
def test_a_query_that_lacks_none_of_lm_eval_s_words_is_asked_as_it_is(query):
    (row,) = FORMATS["query_choices"][1]({"query": query, "choices": ["x", "y"], "gold": 0})
    assert row == item([query] * 2, [" x", " y"], [1, 0])


def test_a_question_with_four_choices_that_ends_in_because_is_not_of_copa():
    (row,) = FORMATS["query_choices"][1]({"query": "He ran, because", "choices": list("wxyz"), "gold": 0})
    assert row == item(["He ran, because"] * 4, [" w", " x", " y", " z"], [1, 0, 0, 0])


@pytest.mark.parametrize("name", RAW)
def test_published_rows_become_items(name):
    raw, expected = RAW[name]
    record, read = FORMATS[name]
    assert record == "items"
    assert [check_row("items", row) for row in read(raw)] == expected


@pytest.mark.parametrize(
    "name", ["context_completion", "context_continuation", "query_choices", "context_options", "items"]
)
def test_a_user_s_items_are_told_by_their_columns(name):
    assert infer_format(RAW[name][0], "items") == name


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("last_word", {"text": "one"}),
        ("context_continuation", {"continuation": 2}),
        ("query_choices", {"query": "Context: a\nQuestion: b\nChoices:\nA. c\nAnswer:", "choices": ["A", "B"]}),
        ("query_choices", {"gold": 2}),
        ("query_choices", {"gold": True}),
        ("query_choices", {"choices": "ab"}),
        ("context_options", {"gold": None}),
        ("commonsense_qa", {"answerKey": "C"}),
        ("commonsense_qa", {"question": "where?"}),
        ("truthful_mc1", {"Best Answer": None}),
        ("truthful_mc2", {"Incorrect Answers": 3}),
        ("items", {"labels": [0, 0]}),
        ("items", {"labels": [1]}),
        ("items", {"labels": [1, 2]}),
        ("items", {"completions": []}),
        ("items", {"contexts": ["a", 3]}),
    ],
)
def test_a_row_that_is_no_item_is_malformed(name, change):
    with pytest.raises(Malformed):
        [check_row("items", row) for row in FORMATS[name][1]({**RAW[name][0], **change})]
