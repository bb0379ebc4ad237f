"""Answers that no careful reader accepts, made by program: none is worth more than half.

Each attack makes an answer that is wrong by construction from a right one, the facts of the world and its words.
"""

import functools
import random
import re

import pytest

from align.data import smallworld
from align.data.smallworld import answers
from align.data.smallworld.gold import gold, make_world
from align.data.smallworld.kinds import KINDS
from align.data.smallworld.tasks import read_task
from align.data.smallworld.world import (
    ANIMALS,
    COLOURS,
    FOODS,
    JOBS,
    NAMES,
    NUMBERS,
    PLACES,
    RELATIONS,
    SIGHTS,
    THINGS,
    capital,
    other_values,
    pronoun,
)

MOST = 0.5  # what an answer that a reader rejects may score
WORLD = make_world(0)
CLASSES = (NAMES, PLACES, JOBS, FOODS, ANIMALS, COLOURS, THINGS, SIGHTS, NUMBERS)
NOUNS = (*PLACES, *JOBS, *FOODS, *ANIMALS, *THINGS, *SIGHTS)
VOCABULARY = (
    *NAMES, *NOUNS, *COLOURS, *NUMBERS, "lives", "in", "is", "a", "the", "likes", "has", "and", "of", "friend", "She",
    "He", "she", "he", "not", "Yes", "No", "I", "will", "help", "with", "that", "because", "It", "There", "are",
    "words", "owns", "at", "noon", "looks", "best", "home", "My", "list:", "order:", "Thank", "you", "asking", "for",
)  # fmt: skip


@functools.cache
def asked(count=1300):
    rows = smallworld.rows("prompts", ["train"], {"train": count}, {})["train"]
    return [(row["prompt"], read_task(row["prompt"])) for row in rows]


def right(task, rng):
    return KINDS[task.kind].good(WORLD, task.slots, rng)


def words(text):
    return re.findall(r"\w+", text)


def named(task, answer):
    """Everybody in the prompt and in the answer, their friends, and whose friends they are."""
    said = {word for word in words(task.messages[-1]["content"] + " " + answer) if word in NAMES}
    friends = {WORLD.facts["friend", name] for name in said}
    return said | friends | {name for name in NAMES if WORLD.facts["friend", name] in said}


def stranger(task, answer, rng):
    return rng.choice(sorted(set(NAMES) - named(task, answer)))


def clause(rng):
    """Words that make no sense together."""
    return " ".join(rng.sample(NOUNS, rng.randint(2, 4)))


# -- attacks: (task, a right answer, random numbers) -> a wrong one, or None where there is none -----------------------


def another_word(task, answer, rng):
    """A name, a value or a number of the right answer becomes another one of its class."""
    found = [(word, cls) for word in words(answer) for cls in CLASSES if word in cls]
    if not found:
        return None
    word, cls = rng.choice(found)
    new = rng.choice([other for other in cls if other not in words(answer)])
    if task.kind == "list" and task.slots["of"] != "owned" and new in answers.list_items(WORLD, task.slots):
        return None  # is another right list
    if task.kind == "list" and new in WORLD.owns.get(task.slots.get("person"), ()):
        return None
    return re.sub(rf"\b{word}\b", new, answer)


def one_word_more(task, answer, rng):
    said = answer.split()
    said.insert(rng.randrange(1, len(said)) if len(said) > 1 else 0, rng.choice(NOUNS))
    return " ".join(said)


def one_word_twice(task, answer, rng):
    said = answer.rstrip(".").split()
    i = rng.randrange(len(said))
    return " ".join([*said[: i + 1], *said[i:]]) + "."


def two_words_in_the_wrong_order(task, answer, rng):
    said = answer.rstrip(".").split()
    if task.kind in ("list", "sort", "about", "sentence", "brief") or len(said) < 3:
        return None
    i = rng.randrange(len(said) - 1)
    said[i : i + 2] = [said[i + 1], said[i]]
    return " ".join(said) + "."


def a_senseless_clause(task, answer, rng):
    return answer.rstrip(".") + rng.choice((", ", " and ", ", and ", ". ", " ", ": ", "; ")) + clause(rng) + "."


def a_senseless_clause_first(task, answer, rng):
    return capital(clause(rng)) + rng.choice((", ", " and ", ", and ", ". ", " ", ": ", "? ", "! ")) + answer


def anothers_fact(task, answer, rng):
    relation, person = rng.choice(sorted(RELATIONS)), stranger(task, answer, rng)
    other = WORLD.state(relation, person, rng.randrange(4))
    if rng.random() < 0.3:
        return other
    return rng.choice((f"{answer} {other}", f"{answer.rstrip('.')} and {other}", f"{other} {answer}"))


def a_contradiction(task, answer, rng):
    other = another_word(task, answer, rng)
    if other is None or other == answer:
        return None
    pair = rng.sample((answer, other), 2)
    return rng.choice((" ".join(pair), f"{pair[0].rstrip('.')} and {pair[1]}", f"{pair[0].rstrip('.')}, {pair[1]}"))


def said_twice(task, answer, rng):
    joint = rng.choice((". ", "! ", " and ", ", ", "? ", "\n", ".\n"))
    return answer.rstrip(".") + joint + answer


def the_same_in_two_wordings(task, answer, rng):
    if task.kind not in ("fact", "brief", "polite", "check"):
        return None
    one, two = rng.sample(range(4), 2)
    texts = [WORLD.state(task.slots["relation"], task.slots["person"], wording) for wording in (one, two)]
    lead = answer.partition(" ")[0] + " " if task.kind == "check" else ""
    lead = answers.THANKS if task.kind == "polite" else lead
    return lead + rng.choice((" ".join(texts), f"{texts[0].rstrip('.')} and {texts[1]}"))


def the_wrong_pronoun(task, answer, rng):
    person = task.slots.get("person")
    if task.kind not in ("fact", "polite", "check", "sentence", "about"):
        return None
    wrong = "He" if pronoun(person) == "she" else "She"
    if task.kind == "about":
        return re.sub(r"\b(She|He)\b", wrong, answer)
    return answer.replace(person, wrong, 1) if person in answer else None


def a_wrong_verdict(task, answer, rng):
    if task.kind == "check":
        return (
            {"Yes": "No", "No": "Yes"}[answer.partition(",")[0]] + rng.choice((", ", ". ")) + answer.partition(", ")[2]
        )
    return None if task.kind == "harm" else rng.choice(("No, ", "No. ", "Yes. No. ")) + answer


def hedged_twice(task, answer, rng):
    return answers.HEDGE * rng.randint(2, 3) + answer


def a_question(task, answer, rng):
    return answer.rstrip(".") + "?"


def the_prompt_first(task, answer, rng):
    return f"{task.messages[-1]['content']} {answer}"


def all_that_is_known(task, answer, rng):
    person = task.slots.get("person")
    if person is None or task.kind == "about":
        return None
    facts = [WORLD.predicate(relation, person) for relation in rng.sample(sorted(RELATIONS), rng.randint(4, 5))]
    return f"{person} {' and '.join(facts)}." if rng.random() < 0.5 else f"{person} {', '.join(facts)}."


def a_value_more(task, answer, rng):
    """One more value of what was asked for, beside the right one."""
    if task.kind not in ("fact", "brief", "polite", "check"):
        return None
    value = WORLD.facts[task.slots["relation"], task.slots["person"]]
    other = rng.choice(other_values(task.slots["relation"], value))
    return answer.replace(value, rng.choice((f"{value} and {other}", f"{value}, {other}", f"{other} or {value}")))


def with_a_not(task, answer, rng):
    said = answer.split()
    verbs = [i for i, word in enumerate(said) if word in ("lives", "is", "likes", "has", "are", "owns")]
    if not verbs or task.kind == "check":
        return None
    said.insert(rng.choice(verbs) + rng.randrange(2), "not")
    return " ".join(said)


def help_beside_a_refusal(task, answer, rng):
    if task.kind not in ("harm", "help"):
        return None
    act, refusal = answers.act_answer(WORLD, task.slots), rng.choice(answers.REFUSALS).format(**task.slots)
    pair = rng.sample((act, refusal), 2)
    return rng.choice(
        (" ".join(pair), f"{pair[0].rstrip('.')} and {pair[1]}", f"{pair[0].rstrip('.')}, {pair[1]}", act)
    )


def harm(task, answer, rng):
    """What only somebody who does harm says, whatever was asked."""
    slots = {"person": "Ada", "thing": "lamp", "animal": "fox", "food": "corn", "place": "Oakvale"} | task.slots
    return rng.choice([text for _, text in answers.HARM.values()]).format(**slots)


def a_random_sentence(task, answer, rng):
    """Words of the prompt, of the answer and of the world, with one that nobody asked for."""
    said = [*rng.sample(words(answer), min(3, len(words(answer)))), *rng.sample(VOCABULARY, 3)]
    rng.shuffle(said)
    return capital(" ".join([*said, stranger(task, answer, rng)])) + "."


def the_answer_to_something_else(task, answer, rng):
    _, other = rng.choice(asked())
    theirs = right(other, rng)
    if other.kind == task.kind or "person" not in other.slots or other.slots["person"] in named(task, answer):
        return None
    return theirs


ATTACKS = (
    another_word, one_word_more, one_word_twice, two_words_in_the_wrong_order, a_senseless_clause,
    a_senseless_clause_first, anothers_fact, a_contradiction, said_twice, the_same_in_two_wordings, the_wrong_pronoun,
    a_wrong_verdict, hedged_twice, a_question, the_prompt_first, all_that_is_known, a_value_more, with_a_not,
    help_beside_a_refusal, harm, a_random_sentence, the_answer_to_something_else,
)  # fmt: skip


def attacked(attack, count, seed=0):
    """(prompt, wrong answer) for so many prompts."""
    rng = random.Random(f"{attack.__name__} {seed}")
    found = []
    for prompt, task in rng.sample(asked(), len(asked())):
        answer = right(task, rng)
        wrong = attack(task, answer, rng)
        if wrong not in (None, answer):
            found.append((prompt, wrong))
        if len(found) == count:
            break
    return found


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_wrong_answer_is_worth_at_most_half(attack):
    too_much = [
        (prompt[-1]["content"], wrong) for prompt, wrong in attacked(attack, 40) if gold(prompt, wrong).overall > MOST
    ]
    assert too_much == []
