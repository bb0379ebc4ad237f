"""Read what a response says, sentence by sentence and clause by clause.

The world's language is closed, so a sentence that can be written can be read. Whatever cannot be read is kept apart,
and costs in the gold score: an answer cannot hide a senseless clause behind a right one.
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
_LEAD_IN = CHATTER[1]  # the chatter that ends in a colon
_JOINTS = re.compile(r", (?:and|but) | and |, ")
_VERB = r"(?:lives|is|works|has|likes|buys|keeps|often|owns)\b"
_WHO = re.compile(rf"\b({'|'.join(JOBS)}) who (?={_VERB})|\b({'|'.join(NAMES)}), who ({_VERB}[^,]*), (?={_VERB})")
_PRONOUNS = {"she": "she", "her": "she", "he": "he", "him": "he", "his": "he"}
_PRONOUN = re.compile(r"\b(?:[Ss]he|[Hh]er|[Hh]e|[Hh]im|[Hh]is)\b")
_BEHIND_A_PREPOSITION = re.compile(r"\b(?:of|for|with|to|called) $")
_HIS = re.compile(rf"\b({'|'.join(NAMES)})'s ((?:best )?[a-z]+)")
_NOT = re.compile(r"(^| )(?:(is) not|does not (live|like|have|own|keep|work|buy)) ")
_MORE_STATEMENTS = (  # what an answer may say and documents do not
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
    """What a response says.

    Attributes:
        sentences: all of them, each with a full stop in place of none; lead-ins are taken off, lone ones left out.
        claims: what is said of the world, in order, true or not; `She` and `He` mean the person named last.
        denials: what is said not to be so.
        buried: claims inside of clauses that cannot be read, or with the wrong pronoun; they count if they are false,
            and answer nothing.
        other: sentences that are neither claims nor any of what is counted below.
        unread: sentences with a claim that also hold a clause without one, or a pronoun that means nobody; one entry
            for each such clause.
        verdicts: each "Yes" and "No" that opens a sentence.
        hedges, chatter, thanks: how many there are.
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
    """Read a response; a pronoun without a name before it stands for `person`, whom the prompt names."""
    reading = Reading()
    people = [person] if person else []  # the subject of the sentence before, then who else was named, latest first
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
    """Whom the first pronoun of a sentence can stand for, where nobody is named before it; else who was spoken of."""
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
    """Sentences with the sign that ends them; a full stop for none and for one "!". Signs alone are no sentence."""
    parts = [part.strip() for part in re.findall(r"[^.?!]+[.?!]*", text.replace("\n", " "))]
    return [_ended(part) for part in parts if re.search(r"\w", part)]


def _ended(sentence: str) -> str:
    bare = sentence.rstrip(".?!")
    return f"{bare}." if sentence.removeprefix(bare) in ("", "!") else sentence


@functools.cache
def _thanks(person: str | None) -> re.Pattern[str]:
    """Thanks for a question, also for one about `person`, whom the prompt names."""
    about = f"| about (?:it|her|him|{person})" if person else "| about it"
    return re.compile(
        r"(?:Thank you|I thank you|Thanks)(?: very much)?"
        rf"(?: for (?:asking(?: me| me that{about})?|the question|your question))?[.,] *"
    )


def _without_lead_ins(sentence: str, reading: Reading, person: str | None) -> str:
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
        elif (polite := _PLEASE.match(sentence) or _thanks(person).match(sentence)) and polite.end() < len(sentence):
            reading.thanks += 1
            sentence = sentence[polite.end() :]
        else:
            break
    if behind := _THANKS_BEHIND.search(sentence):
        reading.thanks += 1
        sentence = f"{sentence[: behind.start()]}."
    sentence = capital(sentence)
    if sentence in ("Yes.", "No."):  # behind a hedge
        reading.verdicts.append(sentence[:-1])
        return ""
    return sentence


class Clauses(NamedTuple):
    """What the clauses of a sentence say; see `Reading`."""

    claims: tuple[Claim, ...]
    denials: tuple[Claim, ...]
    buried: tuple[Claim, ...]
    unread: tuple[str, ...]


@functools.lru_cache(maxsize=100_000)
def read_clauses(sentence: str, person: str | None = None) -> Clauses:
    """The claims of a sentence, whose clauses are joined by commas and `and`, and what else its clauses say.

    A clause without a subject has that of the clause before: in "Dora is the friend of Ada and lives in Redford" it is
    Dora who lives there, and in "The home of Ada is Redford and is a farmer" nobody is a farmer.

    Args:
        person: whom a pronoun stands for before anybody is named.
    """
    claims: list[Claim] = []
    denials: list[Claim] = []
    buried: list[Claim] = []
    unread: list[str] = []
    subject, owning, asks = person, False, sentence.endswith("?")
    before: str | None = None  # the person who is the subject of the clause before
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
            predicate = clause  # of the subject of the clause before
        else:
            predicate = ""
        thing = re.sub("^(?:owns |has )?(?:a )?", "", predicate)
        goes_on = owning and word not in NAMES
        owning = thing in THINGS and (goes_on or predicate.startswith(("owns ", "has ")))
        claim = Claim("owns", before, thing) if owning and before is not None else _read_clause(capital(clause))
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
    """Write "a baker who lives" as "a baker and lives", "Ada, who is a baker, lives" as "Ada is a baker and lives"."""
    return f"{found[1]} and " if found[1] else f"{found[2]} {found[3]} and "


def _with_names(clause: str, subject: str | None) -> tuple[str, bool]:
    """(the clause with the name in place of each pronoun, "Her pet" as "The pet of Ada"; whether the pronouns fit).

    A pronoun after a name may mean that person; one that fits nobody is taken to mean `subject`. "Him lives" and "the
    home of he" do not fit either.
    """
    fit = True
    for found in reversed(list(_PRONOUN.finditer(clause))):
        word, before, behind = found[0].lower(), clause[: found.start()], clause[found.end() :]
        named = [name for name in re.findall(r"\w+", before) if name in NAMES]
        whom = next((name for name in (subject, *named) if name and pronoun(name) == _PRONOUNS[word]), None)
        owner = word in ("her", "his") and re.match(r" (?!is )[a-z]", behind) is not None
        right_case = owner or (word in ("she", "he")) != bool(_BEHIND_A_PREPOSITION.search(before))
        fit = fit and right_case and whom is not None
        whom = (whom or subject or found[0]) + ("'s" if owner else "")
        clause = f"{before}{whom}{behind}"
    return _HIS.sub(r"the \2 of \1", clause), fit


def _without_not(clause: str) -> tuple[str, bool]:
    """(the clause as it stands without its "not", whether it had one)."""
    third = {"have": "has"}
    positive = _NOT.sub(lambda m: f"{m[1]}{m[2] or third.get(m[3], m[3] + 's')} ", clause, count=1)
    return positive, positive != clause


def _read_clause(clause: str) -> Claim | None:
    """The claim of a clause that names its subject, in any of the world's wordings."""
    lower = f"{clause[:1].lower()}{clause[1:]}."  # "Corn is the best food for Ada."
    for relation, subject, template in _templates():
        if slots := template.match(f"{clause}.") or template.match(lower):
            who = slots.pop(subject)
            return Claim(relation, who, " ".join(slots.values()))
    return None


def _buried(clause: str) -> list[Claim]:
    """The claim of the longest end of a clause that makes one, or of the longest beginning."""
    words = clause.split(" ")
    ends = [words[i:] for i in range(1, len(words) - 2)]
    beginnings = [words[:-i] for i in range(1, len(words) - 2)]
    for part in ends + beginnings:
        if part[0][:1].isupper() and (claim := _read_clause(" ".join(part))):
            return [claim]
    return []


@functools.cache
def _templates() -> list[tuple[str, str, Template]]:
    """(relation, what the subject's slot is, template) for every wording of every fact.

    Those with what belongs to them come first, then the same with whatever else the world has a word for: who says
    that Ada likes horse says what is not so.
    """
    rows = [
        (relation, "person", text)
        for relation, how in RELATIONS.items()
        for text in (*how.statements, "{person} " + how.predicate + ".")
    ]
    rows += [(relation, "person", text) for relation, text in _MORE_STATEMENTS]
    rows += [(name, "place", text) for name, texts in PLACE_STATEMENTS.items() for text in texts]
    values = {name: how.slots for name, how in RELATIONS.items()} | {name: f"{{{name}}}" for name in PLACE_STATEMENTS}
    rows += [(relation, subject, text.replace(values[relation], "{value}")) for relation, subject, text in rows]
    return [(relation, subject, Template(text)) for relation, subject, text in rows]
