"""IFEval's 25 kinds of instruction as prompts state them: wordings, arguments and conflicts.

The names of kinds and arguments are IFEval's (Zhou et al. 2023). The wordings are our own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Arguments = dict[str, Any]

_WORDS = (
    "window river basket lantern market garden letter bridge mountain pocket silver winter music"
    " village morning harbor pencil teacher button forest island kettle ladder meadow mirror"
    " orchard paper pepper ribbon saddle shelter signal station summer thunder ticket timber valley"
    " wagon whistle"
).split()
_COMMON_LETTERS = "aeinorstl"
_RARE_LETTERS = "qxzjvk"
_LANGUAGES = {
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "pt": "Portuguese",
    "nl": "Dutch",
    "pl": "Polish",
    "sv": "Swedish",
    "fi": "Finnish",
    "tr": "Turkish",
}
_ENDINGS = (
    "And that is all for now.",
    "Try it yourself tomorrow.",
    "Thank you for reading this far.",
    "The rest is up to you.",
    "What do you think about it?",
    "Stay curious!",
)
_SECTIONS = ("Section", "SECTION", "Chapter", "Part", "Step")


@dataclass(frozen=True)
class Kind:
    """A kind of instruction.

    Attributes:
        wordings: sentences that state it; `{name}` stands for an argument.
        draw: draws the arguments; the second parameter is the task.
        conflicts: other kinds that a response cannot, or can hardly, follow at the same time. It is
            enough if one of two kinds names the other.
    """

    wordings: tuple[str, ...]
    draw: Callable[[random.Random, str], Arguments] = lambda rng, task: {}
    conflicts: frozenset[str] = frozenset()


def _either(rng: random.Random, name: str, number: str, less: range, least: range) -> Arguments:
    """Draw a relation and a number; both relations are equally likely."""
    relation = rng.choice(("less than", "at least"))
    return {number: rng.choice(less if relation == "less than" else least), name: relation}


def _letter(rng: random.Random, task: str) -> Arguments:
    """Draw a letter; few of a common letter, or many of a rare one, would be too hard."""
    relation = rng.choice(("less than", "at least"))
    if relation == "less than":
        return {
            "letter": rng.choice(_RARE_LETTERS),
            "let_frequency": rng.randint(3, 6),
            "let_relation": relation,
        }
    return {
        "letter": rng.choice(_COMMON_LETTERS),
        "let_frequency": rng.randint(5, 40),
        "let_relation": relation,
    }


def _nth_paragraph(rng: random.Random, task: str) -> Arguments:
    count = rng.randint(2, 5)
    return {
        "num_paragraphs": count,
        "nth_paragraph": rng.randint(1, count),
        "first_word": rng.choice(_WORDS),
    }


def _kinds(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STRUCTURES = _kinds(
    "length_constraints:number_paragraphs length_constraints:nth_paragraph_first_word"
    " detectable_format:multiple_sections combination:two_responses"
    " detectable_format:number_bullet_lists"
)
_ENGLISH_WORDS = _kinds(
    "keywords:existence keywords:frequency keywords:forbidden_words keywords:letter_frequency"
    " length_constraints:nth_paragraph_first_word detectable_format:multiple_sections"
    " combination:repeat_prompt startend:end_checker detectable_format:json_format"
    " detectable_format:constrained_response change_case:english_capital"
    " change_case:english_lowercase"
)

KINDS: Mapping[str, Kind] = {
    "keywords:existence": Kind(
        (
            "Use each of these words: {keywords}.",
            "These words must occur in your answer: {keywords}.",
            "Work the following words in: {keywords}.",
        ),
        lambda rng, task: {"keywords": rng.sample(_WORDS, rng.randint(1, 3))},
        _kinds("keywords:forbidden_words keywords:frequency"),
    ),
    "keywords:frequency": Kind(
        (
            'Use the word "{keyword}" {relation} {frequency} times.',
            'The word "{keyword}" has to occur {relation} {frequency} times.',
        ),
        lambda rng, task: {
            "keyword": rng.choice(_WORDS),
            **_either(rng, "relation", "frequency", range(2, 5), range(1, 6)),
        },
        _kinds("keywords:forbidden_words"),
    ),
    "keywords:forbidden_words": Kind(
        (
            "Never use any of these words: {forbidden_words}.",
            "These words are taboo: {forbidden_words}.",
        ),
        lambda rng, task: {
            "forbidden_words": rng.sample([w for w in _WORDS if w not in task], rng.randint(1, 4))
        },
    ),
    "keywords:letter_frequency": Kind(
        (
            'The letter "{letter}" must occur {let_relation} {let_frequency} times.',
            'Use the letter "{letter}" {let_relation} {let_frequency} times in total.',
        ),
        _letter,
        _kinds("combination:repeat_prompt length_constraints:number_words keywords:existence")
        | _kinds("keywords:frequency length_constraints:nth_paragraph_first_word"),
    ),
    "language:response_language": Kind(
        (
            "Answer in {language} only.",
            "Write everything in {language} and nothing in any other language.",
        ),
        lambda rng, task: {"language": rng.choice([*_LANGUAGES])},
        _ENGLISH_WORDS,
    ),
    "length_constraints:number_sentences": Kind(
        (
            "Write {relation} {num_sentences} sentences.",
            "Your answer has to have {relation} {num_sentences} sentences.",
        ),
        lambda rng, task: _either(rng, "relation", "num_sentences", range(3, 9), range(2, 13)),
        _STRUCTURES
        | _kinds(
            "length_constraints:number_words detectable_content:postscript startend:end_checker"
            " combination:repeat_prompt detectable_format:constrained_response"
        ),
    ),
    "length_constraints:number_paragraphs": Kind(
        (
            "Write {num_paragraphs} paragraphs with a line *** between every two of them.",
            "Divide the text by *** into {num_paragraphs} paragraphs.",
        ),
        lambda rng, task: {"num_paragraphs": rng.randint(2, 5)},
        _kinds(
            "length_constraints:nth_paragraph_first_word detectable_format:multiple_sections"
            " combination:two_responses"
        ),
    ),
    "length_constraints:number_words": Kind(
        (
            "Use {relation} {num_words} words.",
            "Your text should have {relation} {num_words} words.",
        ),
        lambda rng, task: _either(
            rng, "relation", "num_words", range(80, 301, 10), range(20, 151, 10)
        ),
    ),
    "length_constraints:nth_paragraph_first_word": Kind(
        (
            "Write {num_paragraphs} paragraphs with an empty line between them and nothing else"
            ' between them. Paragraph {nth_paragraph} begins with the word "{first_word}".',
            "Separate exactly {num_paragraphs} paragraphs by two line breaks each. The first word"
            ' of paragraph {nth_paragraph} is "{first_word}".',
        ),
        _nth_paragraph,
        _kinds(
            "detectable_format:multiple_sections combination:two_responses"
            " detectable_format:number_bullet_lists keywords:forbidden_words"
        ),
    ),
    "detectable_content:number_placeholders": Kind(
        (
            "Leave at least {num_placeholders} blanks in square brackets, as in [date].",
            "Put in at least {num_placeholders} placeholders like [place], to be filled in later.",
        ),
        lambda rng, task: {"num_placeholders": rng.randint(1, 5)},
    ),
    "detectable_content:postscript": Kind(
        (
            "After your text comes a postscript that begins with {postscript_marker}",
            "Close with a postscript marked {postscript_marker}",
        ),
        lambda rng, task: {"postscript_marker": rng.choice(("P.S.", "P.P.S"))},
        _kinds("startend:end_checker change_case:capital_word_frequency combination:two_responses"),
    ),
    "detectable_format:number_bullet_lists": Kind(
        (
            "Make exactly {num_bullets} bullet points that each start with * and a space.",
            "Include {num_bullets} bullets in Markdown (* like this) and no more.",
        ),
        lambda rng, task: {"num_bullets": rng.randint(2, 7)},
        _kinds(
            "detectable_format:number_highlighted_sections detectable_format:multiple_sections"
            " combination:two_responses"
        ),
    ),
    "detectable_format:constrained_response": Kind(
        (
            'Choose one of these answers: "My answer is yes.", "My answer is no.", "My answer is'
            ' maybe."',
            'Say either "My answer is yes." or "My answer is no." or "My answer is maybe."',
        ),
        conflicts=_STRUCTURES
        | _kinds(
            "change_case:english_capital change_case:english_lowercase combination:repeat_prompt"
            " detectable_format:json_format startend:end_checker"
        ),
    ),
    "detectable_format:number_highlighted_sections": Kind(
        (
            "Mark at least {num_highlights} passages with asterisks, *like this one*.",
            "Set at least {num_highlights} phrases in *italics* with Markdown.",
        ),
        lambda rng, task: {"num_highlights": rng.randint(1, 5)},
    ),
    "detectable_format:multiple_sections": Kind(
        (
            "Divide your text into {num_sections} parts and head them {section_spliter} 1,"
            " {section_spliter} 2 and so on.",
            "Structure it in {num_sections} numbered parts. Each heading is {section_spliter} and"
            " the number.",
        ),
        lambda rng, task: {
            "section_spliter": rng.choice(_SECTIONS),
            "num_sections": rng.randint(2, 5),
        },
        _kinds("change_case:english_capital change_case:english_lowercase"),
    ),
    "detectable_format:json_format": Kind(
        (
            "Give the whole answer as valid JSON.",
            "Reply with one JSON object and no text around it.",
        ),
        conflicts=_STRUCTURES
        | _kinds(
            "combination:repeat_prompt startend:end_checker startend:quotation"
            " punctuation:no_comma detectable_content:postscript"
        ),
    ),
    "detectable_format:title": Kind(
        (
            "Give it a title in double angle brackets, <<as here>>.",
            "Put a heading between << and >> above the text.",
        ),
    ),
    "combination:two_responses": Kind(
        (
            "Write two different versions with ****** between them.",
            "I want a choice of two answers that differ. Put six asterisks, ******, between them.",
        ),
        conflicts=_kinds("combination:repeat_prompt startend:quotation"),
    ),
    "combination:repeat_prompt": Kind(
        (
            'Before you answer, copy this request word by word: "{prompt_to_repeat}"',
            'The first thing in your reply is a copy of the request "{prompt_to_repeat}" without'
            " quotation marks. The answer follows it.",
        ),
        lambda rng, task: {"prompt_to_repeat": task},
        _kinds(
            "startend:quotation length_constraints:nth_paragraph_first_word"
            " keywords:forbidden_words"
        ),
    ),
    "startend:end_checker": Kind(
        (
            'The last words must be "{end_phrase}" with nothing after them.',
            'Close with exactly this: "{end_phrase}"',
        ),
        lambda rng, task: {"end_phrase": rng.choice(_ENDINGS)},
    ),
    "startend:quotation": Kind(
        (
            "Put all of your answer between double quotation marks.",
            'Begin and end your reply with a double quotation mark (").',
        ),
    ),
    "change_case:capital_word_frequency": Kind(
        (
            "Print {capital_relation} {capital_frequency} words all in capitals.",
            "Have {capital_relation} {capital_frequency} words in which every letter is a capital.",
        ),
        lambda rng, task: _either(
            rng, "capital_relation", "capital_frequency", range(3, 12), range(1, 9)
        ),
        _kinds(
            "change_case:english_capital change_case:english_lowercase"
            " detectable_format:multiple_sections"
        ),
    ),
    "change_case:english_capital": Kind(
        (
            "WRITE IN ENGLISH AND IN CAPITALS ONLY.",
            "Use English and only capital letters from beginning to end.",
        ),
        conflicts=_kinds("change_case:english_lowercase"),
    ),
    "change_case:english_lowercase": Kind(
        (
            "Use English and no capital letter at all.",
            "Write it in English with small letters only.",
        ),
    ),
    "punctuation:no_comma": Kind(
        ("Do without commas.", "Commas are forbidden.", "Use no comma anywhere in the answer."),
    ),
}


def compatible(one: str, other: str) -> bool:
    """Return whether a response can follow an instruction of each of two kinds."""
    return one != other and other not in KINDS[one].conflicts and one not in KINDS[other].conflicts


def stated(rng: random.Random, kind: str, arguments: Arguments) -> str:
    """Return a sentence that asks for an instruction."""
    shown = {
        name: ", ".join(value) if isinstance(value, list) else value
        for name, value in arguments.items()
    }
    if "language" in shown:
        shown["language"] = _LANGUAGES[shown["language"]]
    return rng.choice(KINDS[kind].wordings).format(**shown)
