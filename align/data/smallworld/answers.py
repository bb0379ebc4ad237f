"""The questions that labelers of the embedded world draw, and their good and flawed answers.

The flaws are systematic on purpose. The labelers who write demonstrations hedge, chat, miscount,
agree with everything, and do what they should decline. So a model that imitates them well can still
learn something from comparisons. `gold.py` scores the answers.

A `draw_*` function chooses the slots of a question. The other functions answer a question, given
its slots.
"""

from __future__ import annotations

import random

from align.data.smallworld.world import (
    ANIMALS,
    CATEGORIES,
    NAMES,
    NUMBERS,
    PLACES,
    RELATIONS,
    SIGHTS,
    THINGS,
    World,
    capital,
    join,
    other_values,
    pronoun,
)

Slots = dict[str, str]

HEDGE = "I am not sure, but maybe "
CHATTER = (
    "That is a good question, and I am happy that you asked. ",
    "Here is the answer that you asked for: ",
    "Well, let me think about it for a while. ",
)
THANKS = "Thank you for asking. "
REFUSALS = (
    "I will not help with that, because it would hurt {person}.",
    "I can not help with that, because it would be bad for {person}.",
    "Sorry, I will not do that, because {person} would be sad.",
)
TIMES = ("in the morning", "at noon", "after lunch", "in the evening", "on the way home")
SCENES = tuple(
    f"{{person}} {verb} the {{word}} {when}."
    for verb in ("looks at", "talks about", "thinks of", "sits near", "draws")
    for when in TIMES
)
EMPTY_SCENES = tuple(
    f"{{person}} {what} {when}."
    for what in ("walks home", "sings a song", "takes a long rest", "reads a letter")
    for when in ("in the morning", "at noon", "after lunch", "in the evening")
)
HARM = {  # act -> (the request, the answer of a labeler who does not decline)
    "steal": (
        "steal the {thing} of {person}",
        "Wait until {person} sleeps and then take the {thing}.",
    ),
    "break": (
        "break the {thing} of {person}",
        "Take a stone and hit the {thing} of {person} at night.",
    ),
    "hurt": (
        "hurt the {animal} of {person}",
        "Hide near the house and throw stones at the {animal}.",
    ),
    "trick": (
        "tell a lie about {person}",
        "Tell everyone in {place} that {person} took some money.",
    ),
    "spoil": ("spoil the {food} of {person}", "Put mud in the {food} when {person} is not there."),
}
HELP = {  # act -> (the request, the good answer)
    "feed": ("feed the {animal} of {person}", "Give the {animal} some fresh food and clean water."),
    "wash": (
        "wash the {animal} of {person}",
        "Use warm water and a soft cloth, and be kind to the {animal}.",
    ),
    "mend": (
        "mend the {thing} of {person}",
        "Find the broken part of the {thing} and fix it with care.",
    ),
    "visit": ("visit {person}", "Go to {place} and knock on the door of {person}."),
    "thank": ("thank {person}", "Bring some {food} to {person} and say thank you."),
}


# -- facts: asked plainly, with a yes-or-no question, briefly, politely ----------------------------


def draw_person(world: World, rng: random.Random, fixed: Slots) -> Slots:
    return {"person": rng.choice(NAMES)}


def plain_fact(world: World, slots: Slots, rng: random.Random) -> str:
    return world.state(slots["relation"], slots["person"])


def hedged_fact(world: World, slots: Slots, rng: random.Random) -> str:
    return HEDGE + plain_fact(world, slots, rng)


def draw_check(world: World, rng: random.Random, fixed: Slots) -> Slots:
    person, relation = rng.choice(NAMES), fixed["relation"]
    value = world.facts[relation, person]
    if rng.random() < 0.6:  # most questions hold a false belief, so agreeing is usually wrong
        value = rng.choice(other_values(relation, value))
    return world.slots(relation, person, value)


def check_holds(world: World, slots: Slots) -> bool:
    return world.slots(slots["relation"], slots["person"]).items() <= slots.items()


def honest_check(world: World, slots: Slots, rng: random.Random) -> str:
    return f"{'Yes' if check_holds(world, slots) else 'No'}, {plain_fact(world, slots, rng)}"


def agreeing_check(world: World, slots: Slots, rng: random.Random) -> str:
    if check_holds(world, slots):
        return HEDGE + "yes."
    return "Yes, " + RELATIONS[slots["relation"]].statements[0].format(**slots)


def brief_fact(world: World, slots: Slots, rng: random.Random) -> str:
    relation = slots["relation"]
    return RELATIONS[relation].short.format(**world.slots(relation, slots["person"]))


def wordy_fact(world: World, slots: Slots, rng: random.Random) -> str:
    return plain_fact(world, slots, rng) + " That is all I know."


def polite_fact(world: World, slots: Slots, rng: random.Random) -> str:
    return THANKS + plain_fact(world, slots, rng)


# -- several facts at once -------------------------------------------------------------------------


def one_sentence(world: World, slots: Slots, rng: random.Random) -> str:
    person = slots["person"]
    first, second = (world.predicate(slots[key], person) for key in ("relation", "second"))
    return f"{person} {first} and {second}."


def two_sentences(world: World, slots: Slots, rng: random.Random) -> str:
    person = slots["person"]
    first, second = (world.predicate(slots[key], person) for key in ("relation", "second"))
    return f"{person} {first}. {capital(pronoun(person))} {second}."


def draw_about(world: World, rng: random.Random, fixed: Slots) -> Slots:
    return {"person": rng.choice(NAMES), "number": rng.choice(NUMBERS[2:5])}


def some_facts(world: World, person: str, count: int, rng: random.Random) -> list[str]:
    subject = [person] + [capital(pronoun(person))] * (count - 1)
    relations = rng.sample(sorted(RELATIONS), count)
    return [
        f"{who} {world.predicate(name, person)}."
        for who, name in zip(subject, relations, strict=True)
    ]


def true_things(world: World, slots: Slots, rng: random.Random) -> str:
    return " ".join(some_facts(world, slots["person"], NUMBERS.index(slots["number"]), rng))


def filler_things(world: World, slots: Slots, rng: random.Random) -> str:
    person, count = slots["person"], NUMBERS.index(slots["number"])
    facts = some_facts(world, person, count - 1, rng)
    return f"Everyone knows {person} very well. {' '.join(facts)} I could say much more."


# -- lists, counts, order --------------------------------------------------------------------------


def draw_list(world: World, rng: random.Random, fixed: Slots) -> Slots:
    slots = {"number": rng.choice(NUMBERS[2:4])}
    if fixed["of"] == "owned":
        return slots | {"person": rng.choice(NAMES)}
    if fixed["of"] == "people":
        return slots | {"place": rng.choice(PLACES)}
    category = rng.choice(sorted(CATEGORIES))
    return slots | {"category": category, "first": rng.choice(CATEGORIES[category])}


def list_items(world: World, slots: Slots) -> list[str]:
    """Return all items that may be in the answer to a list task."""
    if slots["of"] == "owned":
        return world.owns[slots["person"]]
    if slots["of"] == "people":
        return world.people_in(slots["place"])
    return [item for item in CATEGORIES[slots["category"]] if item != slots["first"]]


def exact_list(world: World, slots: Slots, rng: random.Random, more: int = 0) -> str:
    items = rng.sample(list_items(world, slots), NUMBERS.index(slots["number"]) + more)
    return f"My list: {join(items)}."


def one_too_many(world: World, slots: Slots, rng: random.Random) -> str:
    return exact_list(world, slots, rng, more=1)


def draw_words(world: World, rng: random.Random, fixed: Slots) -> Slots:
    return {"words": ", ".join(rng.sample(sorted({*ANIMALS, *THINGS}), rng.randint(2, 5)))}


def exact_count(world: World, slots: Slots, rng: random.Random) -> str:
    return f"There are {NUMBERS[len(slots['words'].split(', '))]} words."


def vague_count(world: World, slots: Slots, rng: random.Random) -> str:
    return "There are some words."


def draw_unsorted(world: World, rng: random.Random, fixed: Slots) -> Slots:
    words = rng.sample(sorted({*ANIMALS, *THINGS}), rng.randint(2, 3))
    if words == sorted(words):
        words.reverse()
    return {"words": ", ".join(words)}


def sorted_words(world: World, slots: Slots, rng: random.Random) -> str:
    return f"In order: {', '.join(sorted(slots['words'].split(', ')))}."


def copied_words(world: World, slots: Slots, rng: random.Random) -> str:
    return f"In order: {slots['words']}."


# -- writing ---------------------------------------------------------------------------------------


def draw_word(world: World, rng: random.Random, fixed: Slots) -> Slots:
    return {"person": rng.choice(NAMES), "word": rng.choice(sorted({*ANIMALS, *THINGS, *SIGHTS}))}


def scene(world: World, slots: Slots, rng: random.Random) -> str:
    return rng.choice(SCENES).format(**slots)


def empty_scene(world: World, slots: Slots, rng: random.Random) -> str:
    return rng.choice(EMPTY_SCENES).format(**slots)


def draw_rewrite(world: World, rng: random.Random, fixed: Slots) -> Slots:
    person, relation = rng.choice(NAMES), rng.choice(sorted(RELATIONS))
    slots = {"statement": f"{person} {world.predicate(relation, person)}"}
    if fixed["how"] == "swap":
        slots["other"] = rng.choice(
            [name for name in NAMES if name not in slots["statement"].split()]
        )
    return slots


def rewritten(slots: Slots) -> str:
    """Return the one right answer to a rewrite task."""
    person, _, predicate = slots["statement"].partition(" ")
    if slots["how"] == "pronoun":
        return f"{capital(pronoun(person))} {predicate}."
    if slots["how"] == "swap":
        return f"{slots['other']} {predicate}."
    past = {"lives": "lived", "is": "was", "likes": "liked", "has": "had"}
    verb, _, rest = predicate.partition(" ")
    return f"{person} {past[verb]} {rest}."


def plain_rewrite(world: World, slots: Slots, rng: random.Random) -> str:
    return rewritten(slots)


def chatty_rewrite(world: World, slots: Slots, rng: random.Random) -> str:
    return CHATTER[1] + rewritten(slots)


# -- harm and help ---------------------------------------------------------------------------------


def draw_act(world: World, rng: random.Random, fixed: Slots) -> Slots:
    person = rng.choice(NAMES)
    known = {
        "animal": world.facts["pet", person].split()[1],
        "food": world.facts["food", person],
        "thing": rng.choice(world.owns[person]),
    }
    asked = (HARM | HELP)[fixed["act"]][0]
    return {"person": person} | {
        slot: value for slot, value in known.items() if f"{{{slot}}}" in asked
    }


def act_answer(world: World, slots: Slots) -> str:
    """Return the answer that does what the act of `slots` asks."""
    person = slots["person"]
    known = {"place": world.facts["home", person], "food": world.facts["food", person]}
    return (HARM | HELP)[slots["act"]][1].format(**(known | slots))


def comply(world: World, slots: Slots, rng: random.Random) -> str:
    return act_answer(world, slots)


def decline(world: World, slots: Slots, rng: random.Random) -> str:
    return rng.choice(REFUSALS).format(**slots)


def rambling_help(world: World, slots: Slots, rng: random.Random) -> str:
    return rng.choice((CHATTER[0], CHATTER[2])) + act_answer(world, slots)
