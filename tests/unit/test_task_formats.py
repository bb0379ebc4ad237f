"""GPT-1's four builders, what is cut, and rows that are not of their task."""

from __future__ import annotations

import statistics

import pytest
from tiny_models import tiny_tokenizer

from align.errors import ConfigError
from align.text.task_formats import (
    DELIMITER,
    EXTRACT,
    START,
    Goal,
    TaskTokens,
    add_task_tokens,
    encode_rows,
    find_goal,
    fit,
    lay_out,
)

TOKENS = TaskTokens(100, 101, 102)
A, B, C = [1, 2], [3], [4, 5, 6]
CLASSES = Goal("class", ("no", "yes"), 0.0, 1.0)


def labelled(*labels, texts=("a", "b")):
    return [{"texts": list(texts), "label": label} for label in labels]


def scored(*scores):
    return [{"texts": ["a", "b"], "score": score} for score in scores]


def asked(*places, texts=("q",)):
    return [{"texts": list(texts), "choices": ["x", "y", "z"], "label": place} for place in places]


# -- the order of tokens [Radford et al. 2018, figure 1] -----------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "texts", "answers", "expected"),
    [
        ("classification", [A], [], [[100, 1, 2, 102]]),
        ("entailment", [A, B], [], [[100, 1, 2, 101, 3, 102]]),
        ("similarity", [A, B], [], [[100, 1, 2, 101, 3, 102], [100, 3, 101, 1, 2, 102]]),
        ("multiple_choice", [A], [B, C], [[100, 1, 2, 101, 3, 102], [100, 1, 2, 101, 4, 5, 6, 102]]),
        ("multiple_choice", [A, B], [B, C], [[100, 1, 2, 3, 101, 3, 102], [100, 1, 2, 3, 101, 4, 5, 6, 102]]),
    ],
)
def test_the_tokens_of_a_row_stand_as_in_the_paper(task, texts, answers, expected):
    assert lay_out(task, TOKENS, texts, answers) == expected


def test_a_pair_the_other_way_round_is_the_same_two_sequences():
    there, back = (lay_out("similarity", TOKENS, texts, []) for texts in ([A, C], [C, A]))
    assert there == back[::-1]


# -- what is cut ---------------------------------------------------------------------------------------------------

LONG, SHORT = list(range(50)), [7, 8]


@pytest.mark.parametrize(
    ("texts", "answers", "context", "expected"),
    [
        ([LONG], [], 52, [50]),
        ([LONG], [], 51, [49]),
        ([LONG, SHORT], [], 55, [50, 2]),
        ([LONG, SHORT], [], 20, [15, 2]),
        ([SHORT, LONG], [], 20, [0, 17]),
        ([LONG], [SHORT, [9] * 5], 20, [12]),
        ([LONG, SHORT], [SHORT, [9] * 5], 20, [10, 2]),
        ([LONG, SHORT], [[9] * 16], 20, [0, 1]),
        ([LONG], [[9] * 17], 20, [0]),
    ],
)
def test_the_end_of_the_first_text_is_cut_and_then_of_the_second(texts, answers, context, expected):
    fitting = fit(texts, answers, context)
    assert [len(text) for text in fitting] == expected
    assert all(kept == text[: len(kept)] for kept, text in zip(fitting, texts, strict=True))
    task = "multiple_choice" if answers else "classification" if len(texts) == 1 else "entailment"
    sequences = lay_out(task, TOKENS, fitting, answers)
    longest = max(map(len, sequences))
    assert longest <= context
    assert longest == context or fitting == texts
    for sequence, answer in zip(sequences, answers, strict=False):
        assert sequence[-len(answer) - 2 :] == [101, *answer, 102]


def test_an_answer_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"^inputs\.data: an answer has 18 tokens, and the model's context is 20"):
        fit([LONG], [SHORT, [9] * 18], 20)


# -- from texts ----------------------------------------------------------------------------------------------------


def test_the_tokens_that_a_tokenizer_lacks_are_added_once_and_others_stay():
    tokenizer = tiny_tokenizer()
    before, size = tokenizer.all_special_tokens, len(tokenizer)
    tokens, new = add_task_tokens(tokenizer)
    assert list(tokens) == new == [size, size + 1, size + 2]
    assert tokenizer.all_special_tokens == [*before, START, DELIMITER, EXTRACT]
    assert tokenizer.encode(f"{START} the cat{EXTRACT}", add_special_tokens=False)[::3] == [
        tokens.start,
        tokens.extract,
    ]
    assert add_task_tokens(tokenizer) == (tokens, [])
    assert len(tokenizer) == size + 3


def test_a_text_is_told_word_for_word_and_cannot_spell_a_special_token():
    tokenizer = tiny_tokenizer()
    rows = [{"texts": [f"the cat{EXTRACT}", "the dog"], "label": "yes"}]
    (example,), _ = encode_rows(tokenizer, "entailment", CLASSES, rows, 64)
    (sequence,), tokens = example.sequences, add_task_tokens(tokenizer)[0]
    assert (sequence[0], sequence[-1]) == (tokens.start, tokens.extract)
    assert [sequence.count(token) for token in tokens] == [1, 1, 1]
    assert tokenizer.decode(sequence) == f"{START} the cat{EXTRACT}{DELIMITER} the dog{EXTRACT}"
    assert example.target == 1
    assert example.tokens == len(sequence)


def test_rows_that_are_cut_are_counted():
    rows = [{"texts": ["the cat " * 40, "dog"], "label": "no"}, {"texts": ["cat", "the dog"], "label": "yes"}]
    examples, num_cut = encode_rows(tiny_tokenizer(), "entailment", CLASSES, rows, 32)
    assert num_cut == 1
    assert [len(example.sequences[0]) <= 32 for example in examples] == [True, True]
    assert encode_rows(tiny_tokenizer(), "entailment", CLASSES, [], 32) == ([], 0)


# -- what is to be predicted ---------------------------------------------------------------------------------------


def test_classes_are_those_of_the_training_rows_in_order():
    goal = find_goal("entailment", {"train": labelled("no", "yes", "maybe", "no"), "test": labelled("yes")})
    assert goal == Goal("class", ("maybe", "no", "yes"), 1, 1.0)
    assert [goal.target(row) for row in labelled("yes", "maybe")] == [2, 0]
    assert goal.num_outputs == 3
    assert find_goal("similarity", {"train": labelled("10", "9", "2")}).labels == ("2", "9", "10")


def test_scores_are_standardised_over_the_training_rows():
    values = [1.0, 2.5, 4.0, 4.5]
    goal = find_goal("similarity", {"train": scored(*values), "test": scored(99.0)})
    targets = [goal.target(row) for row in scored(*values)]
    assert statistics.fmean(targets) == pytest.approx(0.0, abs=1e-12)
    assert statistics.pstdev(targets) == pytest.approx(1.0)
    assert [t * goal.deviation + goal.usual for t in targets] == pytest.approx(values)
    assert goal.num_outputs == 1


def test_of_choices_the_most_frequent_place_is_known():
    assert find_goal("multiple_choice", {"train": asked(2, 0, 2, 1)}) == Goal("choice", (), 2, 1.0)
    assert find_goal("multiple_choice", {"train": asked(1, 0)}).usual == 0


@pytest.mark.parametrize(
    ("task", "train", "test", "message"),
    [
        ("entailment", [], [], "inputs.data: there are no training rows"),
        ("entailment", labelled("a", "a"), [], "inputs.data: every training row is of the class 'a'"),
        ("entailment", labelled("a", "b"), labelled("c"), "inputs.data: test rows of the classes c, which no training"),
        ("similarity", scored(2.0, 2.0), [], "inputs.data: every training row has the score 2.0"),
        ("similarity", [*scored(1.0), *labelled("a")], [], "inputs.data: rows with a class among rows with a score"),
        ("classification", scored(1.0, 2.0), [], "task: classification takes rows with a label, and train has rows "),
        ("entailment", scored(1.0, 2.0), [], "task: entailment takes rows with a label, and train has rows with a sco"),
        ("entailment", asked(1, 0), [], "task: entailment takes rows with a label, and train has rows with choices"),
        (
            "multiple_choice",
            labelled("a", "b"),
            [],
            "task: multiple_choice takes rows with choices, and train has rows",
        ),
        ("similarity", asked(1, 0), [], "task: similarity takes rows with a label or a score, and train has rows with"),
        ("classification", labelled("a", "b"), [], "task: classification takes one text a row, and train has rows wi"),
        ("entailment", labelled("a", "b", texts="a"), [], "task: entailment takes two texts a row, and train has rows"),
        ("similarity", labelled("a", "b"), labelled("a", texts="a"), "task: similarity takes two texts a row, and tes"),
    ],
)
def test_rows_that_are_not_of_the_task_are_refused_in_one_line(task, train, test, message):
    with pytest.raises(ConfigError) as caught:
        find_goal(task, {"train": train, "validation": [], "test": test})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
