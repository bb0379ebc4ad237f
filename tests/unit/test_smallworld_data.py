"""The embedded world's rows: splits that never meet, the same on every machine, and readable back."""

import functools
import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
from conftest import mostly_slow

from align.data import smallworld
from align.data.smallworld import tasks
from align.data.smallworld.kinds import KINDS
from align.data.smallworld.reading import read_clauses, read_response
from align.data.smallworld.tasks import read_task
from align.data.smallworld.world import NAMES, PLACES, RELATIONS, Claim, Template, World, other_values
from align.errors import ConfigError

COUNTS = {"train": 2600, "validation": 650, "test": 650}
SPLITS = tuple(COUNTS)


@functools.cache
def made(record, seed=0):
    limits = COUNTS if record != "documents" else {"train": 1500, "validation": 200, "test": 200}
    return smallworld.rows(record, SPLITS, limits, {"world_seed": seed})


def asked(record, split, seed=0):
    """What is asked in a split: messages up to the last user's."""
    rows = made(record, seed)[split]
    return [row["prompt"] if record == "prompts" else row["messages"][:-1] for row in rows]


def texts(record, split):
    return {" | ".join(message["content"] for message in prompt) for prompt in asked(record, split)}


def question(prompt):
    """What a prompt asks beneath its wording and its system message, read off with patterns of this test."""
    said = prompt[-1]["content"].rstrip("?.")
    names = [word for word in re.findall(r"\w+", said) if word in NAMES]
    for relation, words in {"home": "live|home", "job": "job|work", "pet": "pet", "friend": "friend"}.items():
        if len(names) == 1 and len(said.split()) < 10 and re.fullmatch(rf"(W|Tell me w).*\b({words})s?\b.*", said):
            return relation, names[0]
    listed = re.search(r": ([a-z]+(?:, [a-z]+)+)$|these: ([a-z]+(?:, [a-z]+)+)$", said)
    return ("words", listed[1] or listed[2]) if listed else ("said", said)


def held_out_and_train():
    for held_out in ("validation", "test"):
        for record in ("prompts", "demonstrations"):
            for trained in ("prompts", "demonstrations"):
                yield record, held_out, trained


@pytest.mark.parametrize(("record", "held_out", "trained"), held_out_and_train())
def test_no_held_out_prompt_is_trained_on(record, held_out, trained):
    assert not texts(record, held_out) & texts(trained, "train")


@pytest.mark.parametrize(("record", "held_out", "trained"), held_out_and_train())
def test_no_held_out_question_is_trained_on_in_another_wording(record, held_out, trained):
    ours = {question(prompt) for prompt in asked(record, held_out)}
    assert sum(kind != "said" for kind, _ in ours) > 50
    assert not ours & {question(prompt) for prompt in asked(trained, "train")}


@pytest.mark.parametrize("record", ["prompts", "demonstrations"])
def test_validation_and_test_ask_different_things(record):
    validation, test = ({question(prompt) for prompt in asked(record, split)} for split in ("validation", "test"))
    assert not validation & test


@pytest.mark.parametrize("split", SPLITS)
def test_no_held_out_question_stands_in_a_document(split):
    held_out = {
        " ".join(message["content"] for message in prompt)
        for record in ("prompts", "demonstrations")
        for name in ("validation", "test")
        for prompt in asked(record, name)
    }
    told = []
    for row in made("documents")[split]:
        for line in row["text"].split("\n"):
            turns = re.split(rf" ?\b(?:{'|'.join(NAMES)}): ", line)[1:]
            told += turns[::2]
    assert len(told) > 200
    assert not held_out & set(told)
    plain = {text.rpartition("| ")[2] for name in ("validation", "test") for text in texts("prompts", name)}
    assert not [text for text in told if any(text.endswith(f" {said}") or text == said for said in plain)][:3]


@pytest.mark.parametrize("record", ["prompts", "demonstrations"])
@pytest.mark.parametrize("split", SPLITS)
def test_no_prompt_comes_twice(record, split):
    assert len(texts(record, split)) == COUNTS[split]


@pytest.mark.parametrize("record", ["prompts", "demonstrations", "documents"])
def test_a_fresh_process_with_another_hash_seed_makes_the_same_rows(record):
    code = (
        "import json, random, sys; random.seed(99)\n"
        "from align.data import smallworld\n"
        f"rows = smallworld.rows({record!r}, ['train', 'test'], {{'train': 300, 'test': 90}}, {{}})\n"
        "json.dump(rows, sys.stdout)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for split, rows in json.loads(out.stdout).items():
        assert rows == made(record)[split][: len(rows)]


def test_global_random_state_neither_matters_nor_changes():
    first = smallworld.rows("demonstrations", ["train"], {"train": 50}, {})
    random.seed(7)
    state = random.getstate()
    assert smallworld.rows("demonstrations", ["train"], {"train": 50}, {}) == first
    assert random.getstate() == state


def test_more_rows_begin_with_the_same_rows():
    few = smallworld.rows("demonstrations", ["train"], {"train": 40}, {})["train"]
    assert few == made("demonstrations")["train"][:40]


def test_another_world_has_other_facts_and_other_test_prompts():
    facts, others = World(0).facts, World(1).facts
    assert facts.keys() == others.keys()
    assert sum(facts[key] != others[key] for key in facts) > 0.6 * len(facts)
    ours, theirs = (
        {row["prompt"][-1]["content"] for row in made("prompts", seed)["test"] if row["kind"] == "fact"}
        for seed in (0, 1)
    )
    assert len(ours - theirs) > 0.5 * len(ours)


@pytest.mark.parametrize("seed", range(5))
def test_a_world_is_whole(seed):
    world = World(seed)
    homes = [world.facts["home", person] for person in NAMES]
    assert {homes.count(place) for place in PLACES} == {4}
    assert sorted(world.facts["friend", person] for person in NAMES) == NAMES
    assert all(world.facts["friend", person] != person for person in NAMES)
    assert all(len(set(things)) == 4 for things in world.owns.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawn_prompt_is_read_back_as_what_was_asked(kind):
    world, rng = World(0), random.Random(11)
    for wording in KINDS[kind].wordings:
        for _ in range(8):
            drawn = KINDS[kind].draw(world, rng, wording.fixed)
            task = tasks.ask(kind, wording, drawn)
            read = read_task(task.prompt)
            assert (read.kind, read.slots) == (kind, {**wording.fixed, **drawn})


def test_the_rows_say_their_kind_and_hold_every_kind():
    for record in ("prompts", "demonstrations"):
        for split in SPLITS:
            kinds = [row["kind"] for row in made(record)[split]]
            assert min(kinds.count(kind) for kind in KINDS) >= 20
            assert [row["kind"] for row in made(record)["train"][:13]] == list(KINDS)


def test_the_share_of_flawed_demonstrations_is_as_asked():
    def chatty(share):
        rows = smallworld.rows("demonstrations", ["train"], {"train": 1300}, {"flaw_share": share})["train"]
        facts = [row["messages"][-1]["content"] for row in rows if row["kind"] == "fact"]
        return sum(said.startswith("I am not sure") for said in facts) / len(facts)

    assert chatty(0.0) == 0.0
    assert chatty(1.0) == 1.0
    assert 0.4 < chatty(0.55) < 0.7


def test_more_rows_than_there_are_is_an_error_with_their_number(monkeypatch):
    monkeypatch.setattr(
        tasks, "KINDS", {"fact": KINDS["fact"]}
    )  # 480 prompts in all, where the whole world has millions
    everything = [len(list(itertools.islice(tasks.draw_tasks(World(0), split, "prompts"), 500))) for split in SPLITS]
    assert sum(everything) == 24 * 5 * 4
    with pytest.raises(ConfigError, match=rf"^test_rows: .* {everything[2]} prompts there, got {everything[2] + 1}$"):
        smallworld.rows("prompts", ["test"], {"test": everything[2] + 1}, {})
    assert len(smallworld.rows("prompts", ["test"], {"test": everything[2]}, {})["test"]) == everything[2]


@pytest.mark.parametrize(
    ("record", "limits", "options", "message"),
    [
        ("comparisons", {"test": 1}, {}, "comparisons are made by compare"),
        ("prompts", {"test": 1}, {"seed": 1}, r"options\.seed"),
        ("prompts", {"test": 1}, {"world_seed": "x"}, r"options\.world_seed"),
        ("prompts", {"test": 1}, {"world_seed": True}, r"options\.world_seed: expected a whole number, got True"),
        ("demonstrations", {"test": 1}, {"flaw_share": 3}, r"options\.flaw_share: expected a number .*, got 3"),
        ("documents", {"test": 1}, {"good_dialogue_share": True}, r"options\.good_dialogue_share: .*, got True"),
        ("documents", {"test": 1}, {"good_dialogue_share": float("nan")}, r"options\.good_dialogue_share: .*, got nan"),
        ("prompts", {"test": 1}, {"flaw_share": 0.5}, r"options\.flaw_share: prompts .* have world_seed alone"),
        ("documents", {"test": 1}, {"flaw_share": 0.5}, r"options\.flaw_share: .* and good_dialogue_share"),
        ("demonstrations", {"test": 1}, {"good_dialogue_share": 0.5}, r"options\.good_dialogue_share: .*flaw_share"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_a_config_error(record, limits, options, message):
    with pytest.raises(ConfigError, match=message):
        smallworld.rows(record, ["test"], limits, options)


def test_an_unknown_split_is_a_config_error():
    with pytest.raises(ConfigError, match="dev"):
        smallworld.rows("prompts", ["dev"], {"train": 1, "validation": 1, "test": 1}, {})


# -- templates and claims ----------------------------------------------------------------------------------------


def test_a_template_reads_what_it_writes_and_nothing_else():
    template = Template("{person} has a {colour} {animal}.")
    slots = {"person": "Ada", "colour": "red", "animal": "fox"}
    assert template.render(**slots) == "Ada has a red fox."
    assert template.match("Ada has a red fox.") == slots
    for text in (
        "Ada has a red fox",
        "Ada has a red fox. ",
        "Ada has a pink fox.",
        "So Ada has a red fox.",
        "",
        "Ada has a red foxx.",
    ):
        assert template.match(text) is None


def test_marks_in_a_template_stand_for_themselves():
    assert Template("Is it {place}?").match("Is i {place}") is None
    assert Template("Is it {place}?").match("Is it Oakvale?") == {"place": "Oakvale"}
    assert Template("{person} is in. Yes.").match("Ada is inx Yes.") is None


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_statement_is_read_as_the_claim_it_states(relation):
    world = World(0)
    for person in NAMES:
        true = world.facts[relation, person]
        for value in (true, other_values(relation, true)[0]):
            how, slots = RELATIONS[relation], world.slots(relation, person, value)
            for said in (*how.statements, "{person} " + how.predicate + "."):
                assert read_clauses(said.format(**slots))[0] == (Claim(relation, person, value),)
                assert world.is_true(Claim(relation, person, value)) == (value == true)


def test_two_facts_in_one_sentence_are_two_claims():
    assert read_clauses("Ada lives in Oakvale and has a red fox.")[0] == (
        Claim("home", "Ada", "Oakvale"), Claim("pet", "Ada", "red fox"),
    )  # fmt: skip


def test_belongings_are_a_claim_each():
    assert read_clauses("Ada owns a bell, a boat and a lamp.")[0] == tuple(
        Claim("owns", "Ada", t) for t in ("bell", "boat", "lamp")
    )


@pytest.mark.parametrize(
    "text", ["", "Ada.", "Ada lives in Paris.", "Where does Ada live?", "Adam lives in Oakvale.", "Ada owns a car."]
)
def test_what_states_no_fact_makes_no_claim(text):
    assert read_clauses(text)[0] == ()


# -- the honest part of the text: dialogues -----------------------------------------------------------------------


def told(share, documents=1500):
    """(question, answer) of the dialogues in documents, one task a turn."""
    rows = smallworld.rows("documents", ["train"], {"train": documents}, {"good_dialogue_share": share})["train"]
    turns = []
    for line in (line for row in rows for line in row["text"].split("\n")):
        speakers = rf"(?:^| )(?<!of )(?<!about )(?:{'|'.join(NAMES)}): "  # "Say the same of Ada: ..." is no speaker
        spoken = re.split(speakers, line)[1:]
        turns += zip(spoken[::2], spoken[1::2], strict=True)
    return turns


@functools.cache
def share_of_good(share):
    scores = []
    for asked, answer in told(share):
        prompt = [{"role": "user", "content": asked}]
        if read_task(prompt) is None:  # it begins with its system message
            system = next(text for text in SYSTEMS if asked.startswith(text))
            prompt = [{"role": "system", "content": system}, {"role": "user", "content": asked[len(system) + 1 :]}]
        scores.append(smallworld.gold(prompt, answer).overall >= 0.9)
    return mean(scores)


SYSTEMS = sorted({w.system for kind in KINDS.values() for w in kind.wordings if w.system})


def test_all_dialogues_answer_well_where_that_is_asked_for():
    assert share_of_good(1) == 1.0


@pytest.mark.slow
def test_of_the_others_few_happen_to_be_right():
    assert share_of_good(0) < 0.03


def test_a_quarter_of_the_dialogues_answers_well_by_default():
    rows = smallworld.rows("documents", ["train"], {"train": 50}, {})["train"]
    assert rows == smallworld.rows("documents", ["train"], {"train": 50}, {"good_dialogue_share": 0.25})["train"]
    assert 0.22 < share_of_good(0.25) < 0.3


@pytest.mark.parametrize("share", mostly_slow([0, 1], [1]))
def test_what_is_not_dialogue_states_the_facts_at_any_share(share):
    rows = smallworld.rows("documents", ["train"], {"train": 1500}, {"good_dialogue_share": share})["train"]
    lines = [line for row in rows for line in row["text"].split("\n") if not re.match(r"\w+: ", line)]
    claims = [claim for line in lines for claim in read_response(line).claims]
    assert all(World(0).is_true(claim) for claim in claims)
    assert {claim[:2] for claim in claims} >= {(relation, person) for relation in RELATIONS for person in NAMES}


# -- a version of the generator -----------------------------------------------------------------------------------


def digest(*values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


ANSWERS = Path(__file__).parent.parent / "data/gold_answers_after.jsonl"
VERSION_2 = {
    "documents": "9eef168302849d37",
    "demonstrations": "f93af7861feaccf8",
    "prompts": "2815996bc3e6e0c4",
    "gold": "e88843d351c5dc4f",
}


def test_rows_and_gold_scores_change_with_the_version_alone():
    rows = {record: made(record) for record in ("documents", "demonstrations", "prompts")}
    scores = []
    for row in rows["demonstrations"]["train"] + rows["demonstrations"]["test"]:
        *prompt, answer = row["messages"]
        scores.append([round(part, 6) for part in smallworld.gold(prompt, answer["content"])])
    for line in ANSWERS.read_text().splitlines():
        row = json.loads(line)
        system = [{"role": "system", "content": row["system"]}] if "system" in row else []
        scored = smallworld.gold([*system, {"role": "user", "content": row["prompt"]}], row["answer"])
        scores.append([round(part, 6) for part in scored])
    found = {record: digest(of_record) for record, of_record in rows.items()} | {"gold": digest(scores)}
    assert (smallworld.VERSION, found) == (2, VERSION_2)
