"""Documents for pretraining: the world's facts in many wordings, and the skills its tasks need.

The passages are narration (people, towns, scenes), dialogue, lists, and lessons (counting, sorting,
retelling). A small model does not learn a skill from a few thousand demonstrations if no document
shows it.

Dialogue is like that on the web: a stated fraction of it answers well. The rest hedges, chats,
evades, is wrong or changes the subject. So the text has all that good answers need, but a model
that imitates it does not answer well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from align.data.smallworld.answers import EMPTY_SCENES, SCENES, Slots
from align.data.smallworld.kinds import KINDS
from align.data.smallworld.tasks import Task, ask, split_of
from align.data.smallworld.world import (
    ANIMALS,
    CATEGORIES,
    NAMES,
    NUMBERS,
    PLACE_STATEMENTS,
    PLACES,
    RELATIONS,
    SIGHTS,
    THINGS,
    World,
    capital,
    join,
    pronoun,
)

Register = Callable[[World, random.Random], str]


# -- narration -------------------------------------------------------------------------------------


def _profile(world: World, rng: random.Random) -> str:
    person = rng.choice(NAMES)
    lines: list[str] = []
    for relation in rng.sample(sorted(RELATIONS), rng.randint(2, 5)):
        if lines and rng.random() < 0.5:
            lines.append(f"{capital(pronoun(person))} {world.predicate(relation, person)}.")
        else:
            lines.append(world.state(relation, person, rng.randrange(4)))
    if rng.random() < 0.4:
        lines.append(
            f"{person} owns {join(['a ' + thing for thing in _shuffled(world.owns[person], rng)])}."
        )
    return " ".join(lines)


def _town(world: World, rng: random.Random) -> str:
    place = rng.choice(PLACES)
    lines = [
        rng.choice(PLACE_STATEMENTS[name]).format(place=place, **{name: world.facts[name, place]})
        for name in _shuffled(list(PLACE_STATEMENTS), rng)
    ]
    lines += [
        world.state("home", person, rng.randrange(4))
        for person in rng.sample(world.people_in(place), 2)
    ]
    return " ".join(lines)


def _day(world: World, rng: random.Random) -> str:
    person = rng.choice(NAMES)
    lines = []
    for _ in range(rng.randint(2, 4)):
        scene = rng.choice(SCENES if rng.random() < 0.7 else EMPTY_SCENES)
        lines.append(scene.format(person=person, word=rng.choice([*ANIMALS, *THINGS, *SIGHTS])))
    return " ".join(lines)


def _pair(world: World, rng: random.Random) -> str:
    person = rng.choice(NAMES)
    one, two = rng.sample(sorted(RELATIONS), 2)
    first = f"{person} {world.predicate(one, person)} and {world.predicate(two, person)}."
    friend = world.facts["friend", person]
    return f"{first} {world.state(rng.choice(sorted(RELATIONS)), friend, rng.randrange(4))}"


# -- dialogue --------------------------------------------------------------------------------------


# Fraction of the dialogues that answer well. Most of what people write to each other is no good
# example of an answer.
GOOD_DIALOGUE_SHARE = 0.25

_EVASIONS = (
    "I do not know.",
    "Please ask someone else.",
    "Why do you ask me that?",
    "I have no time for that now.",
    "We can talk about it later.",
)


def _talk(world: World, rng: random.Random, good_share: float) -> str:
    """Return a dialogue of one or two questions and answers, all of them good or all of them poor.

    Only questions of the training split are asked.
    """
    one, two = rng.sample(NAMES, 2)
    answer = _good_answer if rng.random() < good_share else _poor_answer
    lines = []
    for _ in range(rng.randint(1, 2)):
        kind = KINDS[rng.choice(_ASKED)]
        wording = rng.choice(kind.wordings)
        task = ask(kind.name, wording, kind.draw(world, rng, wording.fixed))
        if split_of(task, world) == "train":
            asked = " ".join(message["content"] for message in task.messages)
            lines.append(f"{one}: {asked} {two}: {answer(world, task, rng)}")
    return " ".join(lines) or _pair(world, rng)


def _good_answer(world: World, task: Task, rng: random.Random) -> str:
    return KINDS[task.kind].good(world, task.slots, rng)


def _poor_answer(world: World, task: Task, rng: random.Random) -> str:
    """Return a flawed answer in half of the cases, else an evasion, another subject or an error.

    An error is the right answer in another world.
    """
    if rng.random() < 0.5:
        return KINDS[task.kind].flawed(world, task.slots, rng)
    way = rng.choice(("evade", "change the subject", "be wrong"))
    if way == "evade":
        return rng.choice(_EVASIONS)
    if way == "change the subject":
        return (
            _day(world, rng)
            if rng.random() < 0.5
            else world.state(*_any_fact(rng), rng.randrange(4))
        )
    elsewhere = World(rng.randrange(1000, 1_000_000))  # a new world each time: no error is repeated
    return KINDS[task.kind].good(elsewhere, _others(world, task, rng), rng)


def _any_fact(rng: random.Random) -> tuple[str, str]:
    return rng.choice(sorted(RELATIONS)), rng.choice(NAMES)


def _others(world: World, task: Task, rng: random.Random) -> Slots:
    """Return the slots for a wrong answer in another world.

    They are the task's own slots. If the answer does not depend on the world, they are those of
    another task of the same kind.
    """
    if task.kind in _OF_NO_WORLD:
        wording = rng.choice(
            [w for w in KINDS[task.kind].wordings if w.fixed.items() <= task.slots.items()]
        )
        return wording.fixed | KINDS[task.kind].draw(world, rng, wording.fixed)
    return task.slots


# Kinds whose answers do not depend on the world.
_OF_NO_WORLD = ("count", "sort", "word", "rewrite", "harm", "help")


# -- lists and lessons -----------------------------------------------------------------------------


def _shuffled(items: list[str], rng: random.Random) -> list[str]:
    return rng.sample(items, len(items))


def _some_list(world: World, rng: random.Random) -> str:
    number = rng.randint(2, 4)
    which = rng.randrange(3)
    if which == 0:
        person = rng.choice(NAMES)
        title, items = f"things that {person} owns", world.owns[person]
    elif which == 1:
        place = rng.choice(PLACES)
        title, items = f"people who live in {place}", world.people_in(place)
    else:
        category = rng.choice(sorted(CATEGORIES))
        title, items = category, CATEGORIES[category]
    return f"A list of {NUMBERS[number]} {title}: {join(rng.sample(items, number))}."


def _words(rng: random.Random, most: int) -> list[str]:
    return rng.sample(sorted({*ANIMALS, *THINGS}), rng.randint(2, most))


def _counting(world: World, rng: random.Random) -> str:
    words = _words(rng, 5)
    told = f"There are {NUMBERS[len(words)]} words."
    return rng.choice(
        (f"The words are: {', '.join(words)}. {told}", f"Count: {', '.join(words)}. {told}")
    )


def _sorting(world: World, rng: random.Random) -> str:
    words = _words(rng, 4)
    return f"The words are: {', '.join(words)}. In order: {', '.join(sorted(words))}."


def _retelling(world: World, rng: random.Random) -> str:
    person, relation = rng.choice(NAMES), rng.choice(sorted(RELATIONS))
    other = rng.choice(NAMES)
    how = RELATIONS[relation]
    slots = world.slots(relation, person)
    now = f"{person} {how.predicate.format(**slots)}."
    retold = (
        f"In the past: {person} {how.past.format(**slots)}.",
        f"With a short word: {capital(pronoun(person))} {how.predicate.format(**slots)}.",
        f"The same of {other}: {other} {how.predicate.format(**slots)}.",
    )
    return f"{now} {rng.choice(retold)}"


_ASKED = (*KINDS, "sort", "sort", "check", "list", "about")  # the harder kinds are asked more often
_NARRATION: tuple[Register, ...] = (_profile, _town, _day, _pair)
_LESSONS: tuple[Register, ...] = (_some_list, _counting, _sorting, _retelling)
_TALKS = 8  # dialogues for every nine other passages


def documents(
    world: World, split: str, good_dialogue_share: float = GOOD_DIALOGUE_SHARE
) -> Iterator[str]:
    """Yield documents without end, each of two to five passages; none has a held-out question.

    Args:
        good_dialogue_share: fraction of the dialogues that answer well.
    """
    rng = random.Random(f"smallworld {world.seed} {split} documents")
    others = (_profile, *_NARRATION, *_LESSONS)
    registers: tuple[Register, ...] = (
        *others,
        *[lambda world, rng: _talk(world, rng, good_dialogue_share)] * _TALKS,
    )
    while True:
        yield "\n".join(rng.choice(registers)(world, rng) for _ in range(rng.randint(2, 5)))
