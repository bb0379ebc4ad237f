"""IFEval's checks: near misses for each kind, the loose variants, and columns with mistakes."""

from __future__ import annotations

import importlib.util
import json

import pytest
from instruction_cases import CASES

from align.verifiers.counting import count_capital_words, count_sentences, count_words
from align.verifiers.ifeval import CHECKS, NEEDS_LANGUAGE, loose_variants, read_instructions, verdicts

HAS_LANGDETECT = importlib.util.find_spec("langdetect") is not None


def follows(kind, arguments, response):
    (verdict,) = verdicts(read_instructions([kind], [arguments]), response).strict
    return verdict


def test_every_kind_of_the_paper_has_cases():
    assert {case[0] for case in CASES} == {*CHECKS}
    assert len(CHECKS) == 25


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'-'.join(map(str, case[1].values()))[:20]}")
def test_a_response_follows_and_a_near_miss_does_not(case):
    kind, arguments, right, wrong = case
    if kind in NEEDS_LANGUAGE and not HAS_LANGDETECT:
        pytest.skip("langdetect is not installed")
    assert [text for text in right if not follows(kind, arguments, text)] == []
    assert [text for text in wrong if follows(kind, arguments, text)] == []
    assert not follows(kind, arguments, " \n")


def test_the_loose_variants_are_the_eight_of_the_paper():
    assert loose_variants("Sure!\n*Tea*\nBye") == [
        "Sure!\n*Tea*\nBye",
        "*Tea*\nBye",
        "Sure!\n*Tea*",
        "*Tea*",
        "Sure!\nTea\nBye",
        "Tea\nBye",
        "Sure!\nTea",
        "Tea",
    ]


def test_a_loose_verdict_may_use_another_variant_for_each_instruction():
    asked = read_instructions(["startend:quotation", "punctuation:no_comma"], [{}, {}])
    assert verdicts(asked, 'Sure, here:\n"Tea"') == ([False, False], [True, True])
    assert verdicts(asked, 'Sure, here:\n"Tea, hot"\nBye') == ([False, False], [True, False])
    assert verdicts(asked, '"Tea, hot"') == ([True, False], [True, False])


def test_columns_may_be_json_text_and_null_arguments_are_missing():
    kinds, arguments = ["punctuation:no_comma"], [{"num_words": None, "relation": None}]
    assert read_instructions(json.dumps(kinds), json.dumps(arguments)) == [("punctuation:no_comma", {})]


@pytest.mark.parametrize(
    ("kinds", "arguments", "said"),
    [
        (["punctuation:no_coma"], [{}], r"instruction_id_list\[0\]: .* 25 kinds, .*did you mean punctuation:no_comma"),
        (["punctuation:no_comma"], [], r"kwargs: expected one object for each of 1 instructions, got 0"),
        ([], [], r"instruction_id_list: expected an instruction at least, got none"),
        (None, [{}], r"instruction_id_list: expected a list"),
        ("no_comma", [{}], r"instruction_id_list: expected a list as JSON, got 'no_comma'"),
        (["startend:end_checker"], [{}], r"kwargs\[0\]: startend:end_checker takes end_phrase, got none"),
        (["startend:quotation"], [{"x": 1}], r"kwargs\[0\]: startend:quotation takes no argument, got x"),
        (
            ["length_constraints:number_words"],
            [{"num_words": 3, "relation": "more than"}],
            r"kwargs\[0\]\.relation: expected 'less than' or 'at least', got 'more than'",
        ),
        (
            ["length_constraints:number_words"],
            [{"num_words": "3", "relation": "at least"}],
            r"kwargs\[0\]\.num_words: expected a whole number, 0 or more, got '3'",
        ),
        (["detectable_format:number_bullet_lists"], [{"num_bullets": -1}], r"expected a whole number, .* got -1"),
        (["detectable_format:number_bullet_lists"], [{"num_bullets": 2.5}], r"expected a whole number, .* got 2\.5"),
        (["keywords:existence"], [{"keywords": "tea"}], r"kwargs\[0\]\.keywords: expected a list of words, got 'tea'"),
        (["startend:end_checker"], [{"end_phrase": " "}], r"kwargs\[0\]\.end_phrase: expected text"),
        (["startend:quotation"], ["x"], r"kwargs\[0\]: expected an object, got 'x'"),
        (["startend:quotation"], ["{x"], r"kwargs\[0\]: expected an object, got '{x'"),
        *(
            (
                ["length_constraints:number_words"],
                [{"num_words": number, "relation": "at least"}],
                r"kwargs\[0\]\.num_words: expected a whole number, 0 or more, got (nan|inf)",
            )
            for number in (float("nan"), float("inf"))
        ),
    ],
)
def test_a_mistake_in_the_columns_is_named(kinds, arguments, said):
    with pytest.raises(ValueError, match=said):
        read_instructions(kinds, arguments)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("One", 1),
        ("One. Two", 2),
        ("Dr. Lee met J. Smith at 3.50 p.m. on Monday.", 1),
        ("He works at Acme Inc. The firm is old.", 2),
        ('She said "Go!" Then she left.', 2),
        ("Well... maybe not. Yes.", 2),
        ("1. Tea\n2. Milk", 3),
        ("a title\n\nA sentence. another one.", 2),
        ("Really?! Yes.", 2),
        ("(It rained.) We stayed.", 2),
        ("Tea, e.g. green tea, etc. and milk.", 1),
    ],
)
def test_sentences(text, count):
    assert count_sentences(text) == count


def test_words_and_capital_words():
    assert count_words("Well-known: 3.5 o'clock_x") == 6
    assert count_capital_words("I'm at NASA, U.S. WELL-KNOWN Abc 3D 42 it's") == 5
