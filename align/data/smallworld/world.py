"""The embedded world: its people, towns and facts, and the sentences that state them.

A `World` depends only on `world_seed`. Everything that speaks about it (documents, demonstrations,
prompts, the gold scorer) uses the `Template`s here. So every sentence that can be written can also
be read: `render` fills the slots, `match` finds them again.
"""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass, field
from typing import NamedTuple

WOMEN = "Ada Cora Dora Elsa Gina Hana Iris Kira Mia Nina Rosa Zoe".split()
MEN = "Ben Dan Finn Gus Hugo Jack Karl Leo Otto Paul Sam Will".split()
NAMES = sorted(WOMEN + MEN)
PLACES = "Ashport Fernhill Millbrook Oakvale Redford Stonebay".split()
JOBS = "baker doctor farmer nurse painter pilot sailor teacher".split()
FOODS = "apples beans bread cake cheese corn fish jam nuts rice soup".split()
ANIMALS = "cat dog duck fox goat hen horse rabbit".split()
COLOURS = "black brown green grey red white".split()
THINGS = "bell boat book chair clock cup drum kite lamp rope".split()
SIGHTS = "bridge garden harbour lake market mill river tower".split()
GOODS = "boats clocks glass honey paper ropes salt wool".split()
NUMBERS = "zero one two three four five six seven eight".split()
CATEGORIES = {
    "animals": ANIMALS,
    "colours": COLOURS,
    "foods": FOODS,
    "jobs": JOBS,
    "things": THINGS,
    "towns": PLACES,
}

_SLOT_WORDS = {
    "person": NAMES, "other": NAMES, "place": PLACES, "job": JOBS, "food": FOODS, "animal": ANIMALS,
    "colour": COLOURS, "thing": THINGS, "sight": SIGHTS, "goods": GOODS, "number": NUMBERS[1:],
    "category": sorted(CATEGORIES), "word": sorted({*ANIMALS, *THINGS, *SIGHTS}), "pronoun": ["she", "he"],
}  # fmt: skip
_VALUES = (*NAMES, *PLACES, *JOBS, *FOODS, *ANIMALS, *THINGS, *SIGHTS, *GOODS)
_SLOT_PATTERNS = {name: "|".join(words) for name, words in _SLOT_WORDS.items()} | {
    "words": r"[a-z]+(?:, [a-z]+)+",
    "statement": r"[A-Z][A-Za-z ]+",
    "first": "|".join(word for words in CATEGORIES.values() for word in words),
    # Any value that a fact could have.
    "value": f"(?:(?:{'|'.join(COLOURS)}) )?(?:{'|'.join(_VALUES)})",
}


class Template:
    """A sentence with slots, such as `"{person} lives in {place}."`.

    `render` writes it, `match` reads it.
    """

    def __init__(self, text: str):
        self.text = text
        self.slots = re.findall(r"{(\w+)}", text)

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        pattern = re.escape(self.text)
        for slot in self.slots:
            pattern = pattern.replace(
                re.escape("{" + slot + "}"), f"(?P<{slot}>{_SLOT_PATTERNS[slot]})"
            )
        return re.compile(pattern)

    def render(self, **values: str) -> str:
        return self.text.format(**values)

    def match(self, text: str) -> dict[str, str] | None:
        found = self._pattern.fullmatch(text)
        return found.groupdict() if found else None

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


class Claim(NamedTuple):
    """One statement that can be checked: `Claim("home", "Ada", "Oakvale")`."""

    relation: str
    subject: str
    value: str


@dataclass(frozen=True)
class Relation:
    """The wordings that state one kind of fact and ask for it.

    `slots` are the slots of the value, e.g. `{colour} {animal}`. `statements[0]` is the plain
    answer. `predicate` follows a name or a pronoun, and `past` is its past tense. `short` is the
    answer in as few words as possible.
    """

    slots: str
    statements: tuple[str, ...]
    predicate: str
    past: str
    short: str
    questions: tuple[str, ...]
    checks: str  # a yes-or-no question about one value
    topic: str  # "where {person} lives", to ask for several facts at once


RELATIONS = {
    "home": Relation(
        slots="{place}",
        statements=(
            "{person} lives in {place}.",
            "The home of {person} is {place}.",
            "{person} has a house in {place}.",
            "{place} is the town where {person} lives.",
        ),
        predicate="lives in {place}",
        past="lived in {place}",
        short="In {place}.",
        questions=(
            "Where does {person} live?",
            "In which town does {person} live?",
            "Which town is the home of {person}?",
            "Tell me where {person} lives.",
        ),
        checks="Does {person} live in {place}?",
        topic="where {person} lives",
    ),
    "job": Relation(
        slots="{job}",
        statements=(
            "{person} is a {job}.",
            "{person} works as a {job}.",
            "The job of {person} is to be a {job}.",
            "{person} has worked as a {job} for years.",
        ),
        predicate="is a {job}",
        past="was a {job}",
        short="A {job}.",
        questions=(
            "What is the job of {person}?",
            "What does {person} do for work?",
            "Which job does {person} have?",
            "Tell me what {person} does for work.",
        ),
        checks="Is {person} a {job}?",
        topic="what the job of {person} is",
    ),
    "food": Relation(
        slots="{food}",
        statements=(
            "{person} likes {food}.",
            "{person} likes to eat {food}.",
            "The best food for {person} is {food}.",
            "{person} buys {food} each week.",
        ),
        predicate="likes {food}",
        past="liked {food}",
        short="It is {food}.",
        questions=(
            "What does {person} like to eat?",
            "Which food does {person} like?",
            "What food should I bring for {person}?",
            "Tell me what {person} likes to eat.",
        ),
        checks="Does {person} like {food}?",
        topic="what {person} likes to eat",
    ),
    "pet": Relation(
        slots="{colour} {animal}",
        statements=(
            "{person} has a {colour} {animal}.",
            "{person} keeps a {colour} {animal}.",
            "The pet of {person} is a {colour} {animal}.",
            "A {colour} {animal} lives with {person}.",
        ),
        predicate="has a {colour} {animal}",
        past="had a {colour} {animal}",
        short="A {colour} {animal}.",
        questions=(
            "What pet does {person} have?",
            "Which pet does {person} keep?",
            "What is the pet of {person}?",
            "Tell me what pet {person} has.",
        ),
        checks="Does {person} have a {colour} {animal}?",
        topic="what pet {person} has",
    ),
    "friend": Relation(
        slots="{other}",
        statements=(
            "{person} is a friend of {other}.",
            "The best friend of {person} is {other}.",
            "{other} is the best friend of {person}.",
            "{person} often meets a friend called {other}.",
        ),
        predicate="is a friend of {other}",
        past="was a friend of {other}",
        short="It is {other}.",
        questions=(
            "Who is the best friend of {person}?",
            "Who is a friend of {person}?",
            "Which friend does {person} have?",
            "Tell me who the friend of {person} is.",
        ),
        checks="Is {person} a friend of {other}?",
        topic="who the friend of {person} is",
    ),
}

PLACE_STATEMENTS = {
    "sight": (
        "{place} has a {sight}.",
        "There is a {sight} in {place}.",
        "People visit the {sight} of {place}.",
    ),
    "goods": (
        "{place} sells {goods}.",
        "{place} is known for {goods}.",
        "People buy {goods} in {place}.",
    ),
}


def join(items: list[str]) -> str:
    """Return a list as text: `["a", "b", "c"]` -> `"a, b and c"`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@dataclass(frozen=True)
class World:
    """All facts of one world: `facts[relation, subject]` is a value, `owns[person]` four things.

    Args:
        seed: the `world_seed`; the same seed gives the same world on every machine.
    """

    seed: int
    facts: dict[tuple[str, str], str] = field(init=False)
    owns: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(f"smallworld {self.seed}")
        facts: dict[tuple[str, str], str] = {}
        homes = PLACES * (len(NAMES) // len(PLACES))
        rng.shuffle(homes)
        friends = NAMES[:]
        while any(a == b for a, b in zip(NAMES, friends, strict=True)):
            rng.shuffle(friends)
        for person, home, friend in zip(NAMES, homes, friends, strict=True):
            facts["home", person] = home
            facts["job", person] = rng.choice(JOBS)
            facts["food", person] = rng.choice(FOODS)
            facts["pet", person] = f"{rng.choice(COLOURS)} {rng.choice(ANIMALS)}"
            facts["friend", person] = friend
        for place in PLACES:
            facts["sight", place] = rng.choice(SIGHTS)
            facts["goods", place] = rng.choice(GOODS)
        object.__setattr__(self, "facts", facts)
        object.__setattr__(self, "owns", {person: rng.sample(THINGS, 4) for person in NAMES})

    def is_true(self, claim: Claim) -> bool:
        if claim.relation == "owns":
            return claim.value in self.owns[claim.subject]
        if claim.relation == "pet":  # a green fox is also a fox, so the last word may be enough
            return self.facts["pet", claim.subject].endswith(claim.value)
        return self.facts[claim.relation, claim.subject] == claim.value

    def people_in(self, place: str) -> list[str]:
        return [person for person in NAMES if self.facts["home", person] == place]

    def slots(self, relation: str, person: str, value: str | None = None) -> dict[str, str]:
        """Return the slots for the templates of `relation`; `value` replaces the true value."""
        names = re.findall(r"{(\w+)}", RELATIONS[relation].slots)
        words = (value or self.facts[relation, person]).split()
        return {"person": person, **dict(zip(names, words, strict=True))}

    def state(self, relation: str, person: str, wording: int = 0) -> str:
        return RELATIONS[relation].statements[wording].format(**self.slots(relation, person))

    def predicate(self, relation: str, person: str) -> str:
        return RELATIONS[relation].predicate.format(**self.slots(relation, person))


def pronoun(person: str) -> str:
    return "she" if person in WOMEN else "he"


def other_values(relation: str, value: str) -> list[str]:
    """Return every value of `relation` but this one."""
    if relation == "pet":
        return [f"{c} {a}" for c in COLOURS for a in ANIMALS if f"{c} {a}" != value]
    words = {"home": PLACES, "job": JOBS, "food": FOODS, "friend": NAMES}[relation]
    return [word for word in words if word != value]
