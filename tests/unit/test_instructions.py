"""Generated prompts with instructions: one response can follow all, splits share nothing, and none is IFEval's."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import re
from pathlib import Path

import pytest

from align.configs import Data, RunConfig
from align.data import instructions
from align.data.instructions.kinds import KINDS, compatible
from align.data.records import SPLITS, read_rows
from align.errors import ConfigError
from align.runtime.job import Inputs, Job
from align.stages import data
from align.verifiers.ifeval import CHECKS, NEEDS_LANGUAGE, read_instructions, verdicts

ROOT = Path(__file__).parents[2]
IFEVAL = Path(os.environ.get("ALIGN_DATA_ROOT", ROOT.parent / "shared/data")) / "ifeval/input_data.jsonl"
LIMITS = {"train": 300, "validation": 60, "test": 100}
HAS_LANGDETECT = importlib.util.find_spec("langdetect") is not None


def generated(limits=LIMITS, splits=SPLITS, **options):
    return instructions.rows("prompts", splits, limits, options)


def text_of(row):
    return row["prompt"][-1]["content"]


# -- one response follows all --------------------------------------------------------------------------------------

ENGLISH = "The sun is warm and the old road is long"
FOREIGN = {
    "de": "Die alte Straße ist lang und die Sonne scheint warm auf das kleine Dorf",
    "es": "El viejo camino es largo y el sol calienta la pequeña plaza del pueblo",
    "fr": "La vieille route est longue et le soleil chauffe la petite place du village",
    "it": "La vecchia strada è lunga e il sole scalda la piccola piazza del paese",
    "pt": "A velha estrada é longa e o sol aquece a pequena praça da aldeia",
    "nl": "De oude weg is lang en de zon schijnt warm op het kleine dorp",
    "pl": "Stara droga jest długa i słońce grzeje mały rynek we wsi",
    "sv": "Den gamla vägen är lång och solen värmer det lilla torget i byn",
    "fi": "Vanha tie on pitkä ja aurinko lämmittää kylän pientä toria",
    "tr": "Bu eski yol çok uzun ve bizim köyümüz çok güzel bir yer",
}


def at_least(of, kind, number, relation="relation"):
    """The number that an instruction asks for at least; 0 if it asks for fewer than that, or is not there."""
    own = of.get(kind, {})
    return own[number] if own and own.get(relation, "at least") == "at least" else 0


def body_of(of, sentence):
    """Sentences and words, as many as asked for."""
    body = [f"{sentence}."]
    if {"change_case:english_capital", "change_case:english_lowercase"} & {*of}:
        body = [f"{sentence} and it is good to be here with all of you"]  # langdetect needs some text
    body += of.get("keywords:existence", {}).get("keywords", [])
    body += [of.get("keywords:frequency", {}).get("keyword")] * at_least(of, "keywords:frequency", "frequency")
    # The sentence has every common letter.
    body += [sentence] * at_least(of, "keywords:letter_frequency", "let_frequency", "let_relation")
    body += [f"{sentence}."] * -(-at_least(of, "length_constraints:number_words", "num_words") // 8)
    body += [f"{sentence}."] * at_least(of, "length_constraints:number_sentences", "num_sentences")
    capitals = at_least(of, "change_case:capital_word_frequency", "capital_frequency", "capital_relation")
    body += ["SUN"] * capitals
    body += ["[name]"] * at_least(of, "detectable_content:number_placeholders", "num_placeholders")
    body += ["*warm*"] * at_least(of, "detectable_format:number_highlighted_sections", "num_highlights")
    body += ["<<warm>>"] * ("detectable_format:title" in of)
    body += ["My answer is maybe."] * ("detectable_format:constrained_response" in of)
    return " ".join(body)


def divided(text, of, sentence):
    """The text in paragraphs, sections, bullets, versions or JSON."""
    text += "\n***\nwarm" * (at_least(of, "length_constraints:number_paragraphs", "num_paragraphs") - 1)
    if own := of.get("length_constraints:nth_paragraph_first_word"):
        parts = [text, *["warm"] * (own["num_paragraphs"] - 1)]
        parts[own["nth_paragraph"] - 1] = f"{own['first_word']} {parts[own['nth_paragraph'] - 1]}"
        text = "\n\n".join(parts)
    if own := of.get("detectable_format:multiple_sections"):
        text += "".join(f"\n{own['section_spliter']} {number + 1}" for number in range(own["num_sections"]))
    if own := of.get("detectable_format:number_bullet_lists"):
        text += f"\n* {sentence}" * own["num_bullets"] + "\n"
    text += "\n******\nA road" * ("combination:two_responses" in of)
    return json.dumps({"text": text}) if "detectable_format:json_format" in of else text


def response_to(asked):
    """Write a response that follows all instructions, as a person with these in mind would."""
    of = dict(asked)
    sentence = FOREIGN.get(of.get("language:response_language", {}).get("language"), ENGLISH)
    text = divided(body_of(of, sentence), of, sentence)
    if own := of.get("combination:repeat_prompt"):
        text = f"{own['prompt_to_repeat']} {text}"
    if own := of.get("detectable_content:postscript"):
        text += f"\n{own['postscript_marker']} warm"
    if own := of.get("startend:end_checker"):
        text += f" {own['end_phrase']}"
    if "startend:quotation" in of:
        text = f'"{text}"'
    if "change_case:english_capital" in of:
        return text.upper()
    return text.lower() if "change_case:english_lowercase" in of else text


def missed(row):
    """The instructions of a row that the response written for it does not follow."""
    asked = read_instructions(row["instruction_id_list"], row["kwargs"])
    if not HAS_LANGDETECT:
        asked = [each for each in asked if each.kind not in NEEDS_LANGUAGE]
    response = response_to(read_instructions(row["instruction_id_list"], row["kwargs"]))
    strict = verdicts(asked, response).strict
    return [(each.kind, response) for each, ok in zip(asked, strict, strict=True) if not ok]


def test_a_response_can_follow_all_instructions_of_a_prompt():
    rows = generated({"train": 500}, ["train"])["train"]
    assert [found for row in rows for found in missed(row)] == []
    seen = {pair for row in rows for pair in itertools.combinations(sorted(row["instruction_id_list"]), 2)}
    possible = {pair for pair in itertools.combinations(sorted(KINDS), 2) if compatible(*pair)}
    assert len(seen & possible) > 0.85 * len(possible)


def test_kinds_are_those_of_the_checks():
    assert [*KINDS] == [*CHECKS]
    used = {kind for row in generated()["train"] for kind in row["instruction_id_list"]}
    assert used == {*CHECKS}


# -- splits --------------------------------------------------------------------------------------------------------


def test_prompts_state_one_to_three_instructions_each():
    counts = {len(row["instruction_id_list"]) for own in generated().values() for row in own}
    assert counts == {1, 2, 3}
    alone = generated(max_instructions=1)["train"]
    assert {len(row["instruction_id_list"]) for row in alone} == {1}


def test_no_prompt_and_no_task_is_in_two_splits():
    from align.data.instructions.tasks import topics_of

    rows = generated()
    texts = [text_of(row) for own in rows.values() for row in own]
    assert len(set(texts)) == len(texts) == sum(LIMITS.values())
    topics = {split: {*topics_of(split)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not topics[one] & topics[other]
    for split, own in rows.items():
        strange = {topic for other in SPLITS if other != split for topic in topics[other]} - topics[split]
        longest = {topic for topic in strange if len(topic.split()) > 1}
        assert [text_of(row) for row in own if any(f" {topic} " in text_of(row) for topic in longest)] == []


def test_held_out_kinds_are_in_the_test_split_alone():
    held_out = ["punctuation:no_comma", "startend:quotation"]
    rows = generated(held_out_kinds=held_out)
    used = {s: {kind for row in own for kind in row["instruction_id_list"]} for s, own in rows.items()}
    assert not used["train"] & {*held_out}
    assert not used["validation"] & {*held_out}
    assert {*held_out} <= used["test"]


def test_the_seed_and_the_version_decide_the_rows():
    assert generated() == generated()
    assert generated(seed=1) != generated()
    digest = hashlib.sha256(json.dumps(generated()).encode()).hexdigest()
    # If this changes, raise VERSION and write the new digest.
    assert (instructions.VERSION, digest[:16]) == (1, "ee818338de3baadd")


def test_no_text_is_ifevals():
    if not IFEVAL.is_file():
        pytest.skip("the local copies of the real data are not here ($ALIGN_DATA_ROOT)")

    def grams(text):
        # The three answers that constrained_response allows are part of the kind.
        words = re.findall(r"\w+", re.sub(r'["\']?My answer is (yes|no|maybe)\.?["\']?', "", text).lower())
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    lines = IFEVAL.read_text().strip().split("\n")
    known = {gram for line in lines for gram in grams(json.loads(line)["prompt"])}
    assert len(known) > 10_000
    rows = generated({"train": 3000, "validation": 500, "test": 500})
    assert {gram for own in rows.values() for row in own for gram in grams(text_of(row))} & known == set()


# -- options and the stage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"world_seed": 1}, r"options\.world_seed: card:instructions has seed, .* got 'world_seed'"),
        ({"seed": "a"}, r"options\.seed: expected a whole number, got 'a'"),
        ({"max_instructions": 0}, r"options\.max_instructions: expected a whole number, 1 or more, got 0"),
        ({"kinds": "no_comma"}, r"options\.kinds: expected a list of IFEval's kinds, got 'no_comma'"),
        ({"kinds": ["punctuation:no_coma"]}, r"options\.kinds: .*got 'punctuation:no_coma' \(did you mean"),
        ({"kinds": []}, r"no kind is left for training"),
        ({"held_out_kinds": [*KINDS]}, r"no kind is left for training"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        generated(**options)


def test_too_many_prompts_are_refused():
    with pytest.raises(ConfigError, match=r"^validation_rows: .* different prompts there, got 3,000$"):
        generated({"validation": 3_000}, ["validation"], kinds=["detectable_format:constrained_response"])


def test_another_record_is_refused():
    with pytest.raises(ConfigError, match="record: card:instructions has prompts alone, got documents"):
        instructions.rows("documents", ["train"], LIMITS, {})


def test_the_stage_keeps_the_columns(tmp_path):
    job = Job("data", tmp_path, RunConfig())
    job.out.mkdir(parents=True)
    cfg = Data(source="card:instructions", record="prompts", train_rows=5, validation_rows=2, test_rows=3)
    assert data.run(cfg, Inputs(), job) == {"rows/train": 5, "rows/validation": 2, "rows/test": 3}
    for row, made in zip(read_rows([job.out], "train"), generated({"train": 5}, ["train"])["train"], strict=True):
        asked = read_instructions(row["instruction_id_list"], row["kwargs"])
        assert asked == read_instructions(made["instruction_id_list"], made["kwargs"])
        assert row["prompt"] == made["prompt"]
