"""Read what a response says, sentence by sentence and clause by clause.

The world's language is closed, so a sentence that can be written can be read. Whatever cannot be read is kept apart,
and costs in the gold score: an answer cannot hide a senseless clause behind a right one.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

from align.data.smallworld.answers import CHATTER, HEDGE
from align.data.smallworld.world import (
    NAMES,
    PLACE_STATEMENTS,
    RELATIONS,
    THINGS,
    Claim,
    Template,
    pronoun,
)

_YES_OR_NO = re.compile(r"(Yes|No)\b[,.]? *")
_PLEASE = re.compile(r"Please note that +|Please know that +")
_THANKS = re.compile(r"Thank you(?: very much)?(?: for (?:asking|the question|your question))?\.")
_CHATTER = (
    re.compile("|".join(re.escape(text.strip()) for text in CHATTER)),
    re.compile(r"That is all I know\.|I could say much more\."),
    re.compile(rf"Everyone knows (?:{'|'.join(NAMES)}) very well\."),
)
_LEAD_IN = CHATTER[1]  # the chatter that ends in a colon
_JOINTS = re.compile(r", and | and |, ")


@dataclass
class Reading:
    """What a response says.

    Attributes:
        sentences: all of them, each with a full stop in place of none; lead-ins are taken off, lone ones left out.
        claims: what is said of the world, in order, true or not; `She` and `He` stand for whoever was named last.
        other: sentences that are neither claims nor any of what is counted below.
        unread: clauses beside a claim that make no claim, and pronouns that stand for nobody.
        verdicts: each "Yes" and "No" that opens a sentence.
        hedges, chatter, thanks: how many there are.
    """

    sentences: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    hedges: int = 0
    chatter: int = 0
    thanks: int = 0


def read_response(response: str, person: str | None = None) -> Reading:
    """Read a response; a pronoun without a name before it stands for `person`, whom the prompt names."""
    reading = Reading()
    people = [person] if person else []  # the subject of the sentence before, then who else was named, latest first
    for said in split_sentences(response):
        sentence = _without_lead_ins(said, reading)
        if not sentence:
            continue
        reading.sentences.append(sentence)
        if _THANKS.fullmatch(sentence):
            reading.thanks += 1
        elif any(pattern.fullmatch(sentence) for pattern in _CHATTER):
            reading.chatter += 1
        else:
            subject = _subject(sentence, people)
            claims, unread = read_clauses(sentence, subject)
            reading.claims += claims
            reading.unread += unread if claims else ()
            reading.other += () if claims else (sentence,)
            people = _in_mind(sentence, claims[0].subject if claims else subject, people)
    return reading


def _subject(sentence: str, people: list[str]) -> str | None:
    """Whom `She` or `He` at the beginning of a sentence stands for; else who was spoken of before."""
    word = sentence.partition(" ")[0].lower()
    return next((person for person in people if word not in ("she", "he") or pronoun(person) == word), None)


def _in_mind(sentence: str, subject: str | None, people: list[str]) -> list[str]:
    named = [word for word in re.findall(r"\w+", sentence) if word in NAMES]
    if subject not in NAMES:
        subject = named[0] if named else None
    return list(dict.fromkeys(person for person in (subject, *reversed(named), *people) if person))


def split_sentences(text: str) -> list[str]:
    """Sentences with the sign that ends them; a full stop where there is none. Signs alone are no sentence."""
    parts = [part.strip() for part in re.findall(r"[^.?!]+[.?!]*", text.replace("\n", " "))]
    return [part if part[-1] in ".?!" else f"{part}." for part in parts if re.search(r"\w", part)]


def _without_lead_ins(sentence: str, reading: Reading) -> str:
    """The sentence behind "Yes,", a hedge and the like, which are noted; "" where nothing is behind them."""
    if lead := _YES_OR_NO.match(sentence):
        reading.verdicts.append(lead[1])
        sentence = sentence[lead.end() :]
    while True:
        if sentence.startswith(HEDGE):
            reading.hedges += 1
            sentence = sentence.removeprefix(HEDGE)
        elif sentence.startswith(_LEAD_IN):
            reading.chatter += 1
            sentence = sentence.removeprefix(_LEAD_IN)
        elif please := _PLEASE.match(sentence):
            reading.thanks += 1
            sentence = sentence[please.end() :]
        else:
            break
    if sentence in ("yes.", "no."):  # behind a hedge
        reading.verdicts.append(sentence[:-1].capitalize())
        return ""
    return sentence


@functools.lru_cache(maxsize=100_000)
def read_clauses(sentence: str, person: str | None = None) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """(claims, clauses that make none) of a sentence, whose clauses are joined by commas and `and`.

    Args:
        person: whom a pronoun stands for before anybody is named.
    """
    claims: list[Claim] = []
    unread: list[str] = []
    subject, owning = person, False
    for i, clause in enumerate(_JOINTS.split(sentence.removesuffix("."))):
        word, _, predicate = clause.partition(" ")
        if word in NAMES:
            subject = word
        elif word in ("She", "He") or (i and word in ("she", "he")):
            if subject is None or pronoun(subject) != word.lower():
                unread.append(clause)
                continue
        elif i:
            predicate = clause  # of the subject of the clause before
        else:
            predicate = ""
        thing = predicate.removeprefix("owns ").removeprefix("a ")
        owning = thing in THINGS and (owning or predicate.startswith("owns "))
        if owning and subject is not None:
            claim: Claim | None = Claim("owns", subject, thing)
        else:
            claim = _read_clause(f"{subject} {predicate}." if predicate else f"{clause}.")
        if claim is None:
            unread.append(clause)
        else:
            claims.append(claim)
            subject = claim.subject if claim.subject in NAMES else subject
    return tuple(claims), tuple(unread)


def _read_clause(clause: str) -> Claim | None:
    """The claim of a clause that names its subject, in any of the world's wordings."""
    for relation, subject, template in _templates():
        if slots := template.match(clause):
            who = slots.pop(subject)
            return Claim(relation, who, " ".join(slots.values()))
    return None


@functools.cache
def _templates() -> list[tuple[str, str, Template]]:
    """(relation, what the subject's slot is, template) for every wording of every fact."""
    rows = [
        (relation, "person", Template(text))
        for relation, how in RELATIONS.items()
        for text in (*how.statements, "{person} " + how.predicate + ".")
    ]
    rows += [(name, "place", Template(text)) for name, texts in PLACE_STATEMENTS.items() for text in texts]
    return rows
