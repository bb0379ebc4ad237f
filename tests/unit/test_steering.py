"""Probes of the system message: what they ask, and which answers follow them."""

from __future__ import annotations

import pytest

from align.configs.evaluate import PROBES as NAMES
from align.evals.steering import PROBES, not_asked, variants

PROMPT = [
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "so?"},
]


def test_the_knob_names_the_probes_that_there_are():
    assert set(NAMES) == set(PROBES)


@pytest.mark.parametrize("name", PROBES)
def test_the_system_asks_and_in_the_conflict_the_user_s_last_word_is_the_opposite(name):
    probe = PROBES[name]
    assert probe.asked(PROMPT) == [{"role": "system", "content": probe.system}, *PROMPT]
    conflict = probe.in_conflict(PROMPT)
    assert conflict[:-1] == probe.asked(PROMPT)[:-1]
    assert conflict[-1] == {"role": "user", "content": f"so? {probe.opposite}"}
    assert PROMPT[-1]["content"] == "so?"


def test_every_way_of_asking_is_listed():
    asked = [way(PROMPT) for way in variants(["brief", "polite"])]
    assert asked[0] == not_asked(PROMPT)
    assert asked[0][0]["content"] not in {probe.system for probe in PROBES.values()}
    assert asked[1:] == [
        way for name in ("brief", "polite") for way in (PROBES[name].asked(PROMPT), PROBES[name].in_conflict(PROMPT))
    ]


@pytest.mark.parametrize(
    ("name", "answer", "follows"),
    [
        ("brief", "Two words", True),
        ("brief", "These are five words long", False),
        ("brief", "Four words it has", False),
        ("brief", "...", False),
        ("polite", "You are welcome.", True),
        ("polite", "Thank you for asking.", True),
        ("polite", "Mankind is a disgrace.", False),
        ("polite", "No.", False),
        ("capitals", "YES, IT IS 3.", True),
        ("capitals", "YES it is.", False),
        ("capitals", "3.", False),
        ("one_sentence", "It is so.", True),
        ("one_sentence", "Is it so?!", True),
        ("one_sentence", "It is. So.", False),
        ("one_sentence", "It is so", False),
        ("one_sentence", "", False),
    ],
)
def test_answers_follow_or_do_not(name, answer, follows):
    assert PROBES[name].follows(answer, "It has four words") is follows
