"""Count words, sentences and capital words of a text, without a trained model."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")
# A hyphen, period or slash between letters belongs to the word: well-known, U.S, AND/OR.
_LONG_WORD = re.compile(r"\w+(?:[-./]\w+)*")
# Marks that may end a sentence, before a space, a bracket, a quotation mark or the end. Brackets
# and quotation marks that close there still belong to the sentence.
_MARK = re.compile(r"([.!?]+)(?=[\s\"')\]};:*@({\[]|$)[\"')\]}]*")
_BORDER = re.compile(r"[\s\"'(\[*_]")  # before a word that a mark follows
_NEXT_WORD = re.compile(r"\W*(\w*)")
_TITLES = "mr mrs ms dr prof st mt messrs rev hon gen col maj capt lt sgt sen rep gov jr sr"
_SHORT = (
    "e.g i.e vs cf etc inc ltd co corp bros llc dept fig vol ed eds pp al ave blvd rd jan feb mar"
    " apr jun jul aug sep sept oct nov dec a.m p.m u.s u.k u.n ph.d d.c"
)
_ABBREVIATIONS = frozenset(f"{_TITLES} {_SHORT}".split())
# After an abbreviation such as `Inc.`, one of these words begins a sentence.
_BEGINNINGS = frozenset(
    "the this that these those it its he she they we you i in on at for and but however if when"
    " while as there here our their his her".split()
)


def count_words(text: str) -> int:
    """Return the number of runs of letters, digits and underscores, as IFEval counts words."""
    return len(_WORD.findall(text))


def count_capital_words(text: str) -> int:
    """Return the number of words without a small letter and with a capital one, such as `NASA`.

    An apostrophe ends a word, so `I'm` has the capital word `I`.
    """
    return sum(word.isupper() for word in _LONG_WORD.findall(text))


def count_sentences(text: str) -> int:
    """Return the number of sentences.

    A sentence ends at a period, question mark or exclamation mark. A period does not end it after
    an abbreviation or an initial (`Dr.`, `Inc.`, `J.`), unless a word such as `The` follows an
    abbreviation. A line break alone ends no sentence, but the period of a list item's number
    (`1.`) does, as in Punkt, which IFEval uses. Text after the last end counts.
    """
    count, begin = 0, 0
    for mark in _MARK.finditer(text):
        if _WORD.search(text, begin, mark.start()) and _ends(text, begin, mark):
            count, begin = count + 1, mark.end()
    return count + bool(_WORD.search(text, begin))


def _ends(text: str, begin: int, mark: re.Match[str]) -> bool:
    """Return whether a mark ends the sentence that begins at `begin`."""
    following = _NEXT_WORD.match(text, mark.end())
    assert following is not None  # it matches the empty text
    word = following[1]
    if mark[1] != ".":
        return mark[1][-1] in "!?" or not word.islower()  # an ellipsis may be in a sentence
    before = _BORDER.split(text[begin : mark.start()])[-1].lower()
    if before.isdigit():
        return not word.islower()
    if len(before) == 1 and before.isalpha():
        return not word
    if before not in _ABBREVIATIONS or not word:
        return True
    return word[0].isupper() and word.lower() in _BEGINNINGS
