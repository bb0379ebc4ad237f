"""Read what a response says, sentence by sentence and clause by clause.

The world's language is closed, so every sentence that the world can write can be read. Text that
cannot be read is kept separately and lowers the gold score: an answer cannot hide a senseless
clause behind a right one.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from align.data.smallworld.answers import CHATTER, HEDGE
from align.data.smallworld.world import (
    JOBS,
    NAMES,
    PLACE_STATEMENTS,
    RELATIONS,
    THINGS,
    Claim,
    Template,
    capital,
    pronoun,
)

_YES_OR_NO = re.compile(r"(Yes|No)\b[,.]? *")
_PLEASE = re.compile(r"Please note that +|Please know that +")
_THANKS_BEHIND = re.compile(r", (?:thank you|thanks)(?: for asking)?\.$")
_CHATTER = (
    re.compile("|".join(re.escape(text.strip()) for text in CHATTER)),
    re.compile(r"That is all I know\.|I could say much more\."),
    re.compile(rf"Everyone knows (?:{'|'.join(NAMES)}) very well\."),
)
_LEAD_IN = CHATTER[1]  # the chatter that ends with a colon
_JOINTS = re.compile(r", (?:and|but) | and |, ")
_VERB = r"(?:lives|is|works|has|likes|buys|keeps|often|owns)\b"
_WHO = re.compile(
    rf"\b({'|'.join(JOBS)}) who (?={_VERB})|\b({'|'.join(NAMES)}), who ({_VERB}[^,]*), (?={_VERB})"
)
_PRONOUNS = {"she": "she", "her": "she", "he": "he", "him": "he", "his": "he"}
_PRONOUN = re.compile(r"\b(?:[Ss]he|[Hh]er|[Hh]e|[Hh]im|[Hh]is)\b")
_BEHIND_A_PREPOSITION = re.compile(r"\b(?:of|for|with|to|called) $")
_HIS = re.compile(rf"\b({'|'.join(NAMES)})'s ((?:best )?[a-z]+)")
_NOT = re.compile(r"(^| )(?:(is) not|does not (live|like|have|own|keep|work|buy)) ")
_MORE_STATEMENTS = (  # wordings that answers may use although no document has them
    ("home", "{place} is the home of {person}."),
    ("home", "The town where {person} lives is {place}."),
    ("home", "The home of {person} is in {place}."),
    ("food", "The food that {person} likes is {food}."),
    ("food", "{food} is the best food for {person}."),
    ("pet", "{person} owns a {colour} {animal}."),
    ("friend", "The friend of {person} is {other}."),
    ("friend", "{other} is the friend of {person}."),
    ("friend", "{person} has a friend called {other}."),
)


@dataclass
class Reading:
    """The content of a response.

    Attributes:
        sentences: all sentences; a missing full stop is added. Introductory words such as "Yes,"
            or a hedge are removed; a sentence of nothing else is left out.
        claims: statements about the world, in order, true or not; `She` and `He` mean the person
            named last.
        denials: the claims that the response denies.
        buried: claims within clauses that cannot be read, or with a wrong pronoun. They count only
            if they are false, and they answer nothing.
        other: sentences that are neither claims nor counted below.
        unread: sentences that make a claim but also have a clause without one, or a pronoun that
            refers to nobody; one entry for each such clause.
        verdicts: each "Yes" and "No" that opens a sentence.
        hedges, chatter, thanks: the number of each.
    """

    sentences: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    denials: list[Claim] = field(default_factory=list)
    buried: list[Claim] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    hedges: int = 0
    chatter: int = 0
    thanks: int = 0


def read_response(response: str, person: str | None = None) -> Reading:
    """Read a response; a pronoun before any name means `person`, who is named in the prompt."""
    reading = Reading()
    # The subject of the last sentence, then the other people named, the latest first.
    people = [person] if person else []
    for said in split_sentences(response):
        sentence = _without_lead_ins(said, reading, person)
        if not sentence:
            continue
        reading.sentences.append(sentence)
        if _thanks(person).fullmatch(sentence):
            reading.thanks += 1
        elif any(pattern.fullmatch(sentence) for pattern in _CHATTER):
            reading.chatter += 1
        else:
            subject = _subject(sentence, people)
            read = read_clauses(sentence, subject)
            reading.claims += read.claims
            reading.denials += read.denials
            reading.buried += read.buried
            if read.claims or read.denials:
                reading.unread += [sentence] * len(read.unread)
            else:
                reading.other.append(sentence)
            people = _in_mind(sentence, read.claims[0].subject if read.claims else subject, people)
    return reading


def _subject(sentence: str, people: list[str]) -> str | None:
    """Return the person that the first pronoun of a sentence can mean if no name precedes it.

    Without a pronoun, or if nobody fits it, return the person of the sentence before.
    """
    spoken_of = people[0] if people else None
    found = _PRONOUN.search(sentence)
    if found is None:
        return spoken_of
    who = _PRONOUNS[found[0].lower()]
    return next((person for person in people if pronoun(person) == who), spoken_of)


def _in_mind(sentence: str, subject: str | None, people: list[str]) -> list[str]:
    named = [word for word in re.findall(r"\w+", sentence) if word in NAMES]
    if subject not in NAMES:
        subject = named[0] if named else None
    return list(dict.fromkeys(person for person in (subject, *reversed(named), *people) if person))


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences with their final signs; ignore signs without words.

    A missing sign and a single "!" become a full stop.
    """
    parts = [part.strip() for part in re.findall(r"[^.?!]+[.?!]*", text.replace("\n", " "))]
    return [_ended(part) for part in parts if re.search(r"\w", part)]


def _ended(sentence: str) -> str:
    bare = sentence.rstrip(".?!")
    return f"{bare}." if sentence.removeprefix(bare) in ("", "!") else sentence


@functools.cache
def _thanks(person: str | None) -> re.Pattern[str]:
    """Return a pattern for thanks for a question, also for one about `person` of the prompt."""
    about = f"| about (?:it|her|him|{person})" if person else "| about it"
    return re.compile(
        r"(?:Thank you|I thank you|Thanks)(?: very much)?"
        rf"(?: for (?:asking(?: me| me that{about})?|the question|your question))?[.,] *"
    )


def _without_lead_ins(sentence: str, reading: Reading, person: str | None) -> str:
    """Remove "Yes,", hedges and other introductory words from a sentence, and note them.

    Return "" if nothing else is left.
    """
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
        elif (
            polite := _PLEASE.match(sentence) or _thanks(person).match(sentence)
        ) and polite.end() < len(sentence):
            reading.thanks += 1
            sentence = sentence[polite.end() :]
        else:
            break
    if behind := _THANKS_BEHIND.search(sentence):
        reading.thanks += 1
        sentence = f"{sentence[: behind.start()]}."
    sentence = capital(sentence)
    if sentence in ("Yes.", "No."):  # after a hedge
        reading.verdicts.append(sentence[:-1])
        return ""
    return sentence


class Clauses(NamedTuple):
    """The content of a sentence's clauses; see `Reading`."""

    claims: tuple[Claim, ...]
    denials: tuple[Claim, ...]
    buried: tuple[Claim, ...]
    unread: tuple[str, ...]


@functools.lru_cache(maxsize=100_000)
def read_clauses(sentence: str, person: str | None = None) -> Clauses:
    """Return the claims of a sentence, and what else its clauses say.

    Clauses are joined by commas and `and`. A clause without a subject takes that of the clause
    before. In "Dora is the friend of Ada and lives in Redford" it is Dora who lives there. In "The
    home of Ada is Redford and is a farmer" nobody is a farmer.

    Args:
        person: the person that a pronoun means before any name.
    """
    claims: list[Claim] = []
    denials: list[Claim] = []
    buried: list[Claim] = []
    unread: list[str] = []
    subject, owning, asks = person, False, sentence.endswith("?")
    before: str | None = None  # the subject of the clause before, if it is a person
    for i, said in enumerate(_JOINTS.split(_WHO.sub(_without_who, sentence.removesuffix(".")))):
        clause, fits = _with_names(said, subject)
        if not fits:
            unread.append(said)
            claim = _read_clause(capital(clause))
            buried += [claim] if claim and not asks else []
            continue
        clause, denies = _without_not(clause)
        word, _, predicate = clause.partition(" ")
        if word in NAMES:
            subject = before = word
        elif i:
            predicate = clause  # its subject is that of the clause before
        else:
            predicate = ""
        thing = re.sub("^(?:owns |has )?(?:a )?", "", predicate)
        goes_on = owning and word not in NAMES
        owning = thing in THINGS and (goes_on or predicate.startswith(("owns ", "has ")))
        claim = (
            Claim("owns", before, thing)
            if owning and before is not None
            else _read_clause(capital(clause))
        )
        if claim is None and i and before is not None:
            claim = _read_clause(f"{before} {clause}")
        elif claim is not None and word not in NAMES and not owning:
            before = None
        if claim is None:
            unread.append(said)
            buried += [] if asks or denies else _buried(clause)
        else:
            (denials if denies else claims).append(claim)
            subject = claim.subject if claim.subject in NAMES else subject
    return Clauses(tuple(claims), tuple(denials), tuple(buried), tuple(unread))


def _without_who(found: re.Match[str]) -> str:
    """Replace a relative clause with "who" by a main clause.

    "a baker who lives" becomes "a baker and lives"; "Ada, who is a baker, lives" becomes "Ada is a
    baker and lives".
    """
    return f"{found[1]} and " if found[1] else f"{found[2]} {found[3]} and "


def _with_names(clause: str, subject: str | None) -> tuple[str, bool]:
    """Replace the pronouns of a clause by names; return also whether every pronoun fits.

    "Her pet" becomes "the pet of Ada". A pronoun after a name may mean that person. A pronoun that
    fits nobody is replaced by `subject`. A wrong case does not fit either: "Him lives", "the home
    of he".
    """
    fit = True
    for found in reversed(list(_PRONOUN.finditer(clause))):
        word, before, behind = found[0].lower(), clause[: found.start()], clause[found.end() :]
        named = [name for name in re.findall(r"\w+", before) if name in NAMES]
        whom = next(
            (name for name in (subject, *named) if name and pronoun(name) == _PRONOUNS[word]), None
        )
        owner = word in ("her", "his") and re.match(r" (?!is )[a-z]", behind) is not None
        right_case = owner or (word in ("she", "he")) != bool(_BEHIND_A_PREPOSITION.search(before))
        fit = fit and right_case and whom is not None
        whom = (whom or subject or found[0]) + ("'s" if owner else "")
        clause = f"{before}{whom}{behind}"
    return _HIS.sub(r"the \2 of \1", clause), fit


def _without_not(clause: str) -> tuple[str, bool]:
    """Return a clause without its "not", and whether it had one."""
    third = {"have": "has"}
    positive = _NOT.sub(lambda m: f"{m[1]}{m[2] or third.get(m[3], m[3] + 's')} ", clause, count=1)
    return positive, positive != clause


def _read_clause(clause: str) -> Claim | None:
    """Return the claim of a clause that names its subject, in any wording of the world."""
    lower = f"{clause[:1].lower()}{clause[1:]}."  # "Corn is the best food for Ada."
    for relation, subject, template in _templates():
        if slots := template.match(f"{clause}.") or template.match(lower):
            who = slots.pop(subject)
            return Claim(relation, who, " ".join(slots.values()))
    return None


def _buried(clause: str) -> list[Claim]:
    """Return the claim of the longest end of a clause that makes one, else of the longest start."""
    words = clause.split(" ")
    ends = [words[i:] for i in range(1, len(words) - 2)]
    beginnings = [words[:-i] for i in range(1, len(words) - 2)]
    for part in ends + beginnings:
        if part[0][:1].isupper() and (claim := _read_clause(" ".join(part))):
            return [claim]
    return []


@functools.cache
def _templates() -> list[tuple[str, str, Template]]:
    """Return (relation, slot of the subject, template) for every wording of every fact.

    First come the templates whose slots take only values of their relation. Then come the same ones
    with any word of the world as the value: "Ada likes horse" is then read as a false claim.
    """
    rows = [
        (relation, "person", text)
        for relation, how in RELATIONS.items()
        for text in (*how.statements, "{person} " + how.predicate + ".")
    ]
    rows += [(relation, "person", text) for relation, text in _MORE_STATEMENTS]
    rows += [(name, "place", text) for name, texts in PLACE_STATEMENTS.items() for text in texts]
    values = {name: how.slots for name, how in RELATIONS.items()} | {
        name: f"{{{name}}}" for name in PLACE_STATEMENTS
    }
    rows += [
        (relation, subject, text.replace(values[relation], "{value}"))
        for relation, subject, text in rows
    ]
    return [(relation, subject, Template(text)) for relation, subject, text in rows]
