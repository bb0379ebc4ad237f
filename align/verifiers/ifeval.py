"""IFEval's 25 kinds of instruction that a program can check (Zhou et al. 2023, arXiv:2311.07911).

An instruction is a kind, such as `punctuation:no_comma`, and its arguments. Their names are those
of the published file (google-research, instruction_following_eval/data/input_data.jsonl): the
column `instruction_id_list` has the kinds of a prompt, and `kwargs` has the arguments of each.

The verdicts are meant to be those of lm-eval's task `ifeval`; docs/reference/evaluation-measures.md
lists where they differ.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from align.errors import did_you_mean
from align.verifiers import language
from align.verifiers.counting import count_capital_words, count_sentences, count_words

RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


class Instruction(NamedTuple):
    """An instruction of a prompt: its kind, and the arguments of that kind's check."""

    kind: str
    arguments: dict[str, Any]


class Verdicts(NamedTuple):
    """Whether a response follows each instruction of its prompt.

    Attributes:
        strict: the response as it is.
        loose: the response, or one of its variants without the first line, the last line, or
            asterisks (section 2.2 of the paper).
    """

    strict: list[bool]
    loose: list[bool]


def verdicts(instructions: Sequence[Instruction], response: str) -> Verdicts:
    """Check a response against every instruction. An empty response follows none.

    Raises:
        ConfigError: an instruction is about language, and langdetect is not installed.
    """
    strict = [_follows(each, response) for each in instructions]
    variants = loose_variants(response)[1:]
    loose = [
        ok or any(_follows(each, variant) for variant in variants)
        for each, ok in zip(instructions, strict, strict=True)
    ]
    return Verdicts(strict, loose)


def loose_variants(response: str) -> list[str]:
    """Return the eight texts of the loose check; the first is the response itself.

    A model may begin with "Sure, here it is:" or set its answer in Markdown, and still follow the
    instruction.
    """
    lines = response.split("\n")
    cut = [lines[1:], lines[:-1], lines[1:-1]]
    texts = [response, *("\n".join(part).strip() for part in cut)]
    return texts + [text.replace("*", "") for text in texts]


def _follows(instruction: Instruction, response: str) -> bool:
    if not response.strip():
        return False
    return CHECKS[instruction.kind](response, **instruction.arguments)


# -- keywords --------------------------------------------------------------------------------------


def _compare(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


def _existence(response: str, keywords: list[str]) -> bool:
    """A keyword may be part of a longer word."""
    return all(keyword.lower() in response.lower() for keyword in keywords)


def _frequency(response: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(response.lower().count(keyword.strip().lower()), relation, frequency)


def _forbidden_words(response: str, forbidden_words: list[str]) -> bool:
    """Only whole words count, unlike in `_existence`."""
    return not any(
        re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in forbidden_words
    )


def _letter_frequency(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(response.lower().count(letter.lower()), let_relation, let_frequency)


# -- language and case -----------------------------------------------------------------------------


def _response_language(response: str, language: str) -> bool:
    return _is_in(language, response)


def _is_in(code: str, response: str) -> bool:
    """Return whether a text is in a language. A text without letters counts, as in IFEval."""
    found = language.detect(response)
    return found is None or found == code


def _english_capital(response: str) -> bool:
    return response.isupper() and _is_in("en", response)


def _english_lowercase(response: str) -> bool:
    return response.islower() and _is_in("en", response)


def _capital_word_frequency(response: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compare(count_capital_words(response), capital_relation, capital_frequency)


# -- length ----------------------------------------------------------------------------------------


def _number_words(response: str, num_words: int, relation: str) -> bool:
    return _compare(count_words(response), relation, num_words)


def _number_sentences(response: str, num_sentences: int, relation: str) -> bool:
    return _compare(count_sentences(response), relation, num_sentences)


def _number_paragraphs(response: str, num_paragraphs: int) -> bool:
    """The divider *** stands between paragraphs; it may also begin or end the text."""
    parts = [part.strip() for part in response.split("***")]
    inner = parts[1:-1]
    ends = [parts[0], parts[-1]] if len(parts) > 1 else parts
    return all(inner) and len(inner) + sum(map(bool, ends)) == num_paragraphs


def _nth_paragraph_first_word(
    response: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Paragraphs are separated by two line breaks; an empty one is not counted, but has a place."""
    paragraphs = [part.strip() for part in response.split("\n\n")]
    count = sum(map(bool, paragraphs))
    if count != num_paragraphs or not 1 <= nth_paragraph <= count:
        return False
    words = paragraphs[nth_paragraph - 1].split()
    if not words:
        return False
    word = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0]
    return word.lower() == first_word.lower()


# -- content and format ----------------------------------------------------------------------------


def _number_placeholders(response: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", response)) >= num_placeholders


def _postscript(response: str, postscript_marker: str) -> bool:
    """The marker may be anywhere; a space may be inside it."""
    marker = postscript_marker.strip()
    spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return re.search(spaced.get(marker, re.escape(marker.lower())), response.lower()) is not None


def _number_bullet_lists(response: str, num_bullets: int) -> bool:
    """A bullet is a line that begins with * or -. Bold text, **so**, is none."""
    lines = [line.lstrip() for line in response.split("\n")]
    bullets = [line for line in lines if line.startswith(("*", "-")) and not line.startswith("**")]
    return len(bullets) == num_bullets


def _constrained_response(response: str) -> bool:
    return any(option in response for option in OPTIONS)


def _number_highlighted_sections(response: str, num_highlights: int) -> bool:
    """Highlights are *so* or **so**, within one line and not empty."""
    single = re.findall(r"\*([^\n*]*)\*", response)
    double = re.findall(r"\*\*([^\n*]*)\*\*", response)
    return sum(bool(text.strip()) for text in [*single, *double]) >= num_highlights


def _multiple_sections(response: str, section_spliter: str, num_sections: int) -> bool:
    heads = re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", response)
    return len(heads) >= num_sections


def _json_format(response: str) -> bool:
    """The whole response is JSON, which may be in a code block."""
    try:
        json.loads(without_code_block(response))
    except (ValueError, RecursionError):
        return False
    return True


def without_code_block(text: str) -> str:
    """Return the text inside a block ``` or ```json, or the text itself if it is no such block."""
    return re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()


def _title(response: str) -> bool:
    return any(title.strip("<> ") for title in re.findall(r"<<[^\n]+>>", response))


# -- combination, start and end, punctuation -------------------------------------------------------


def _two_responses(response: str) -> bool:
    """Six asterisks stand between two different responses; they may also begin or end the text."""
    parts = [part.strip() for part in response.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _repeat_prompt(response: str, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_checker(response: str, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def _no_comma(response: str) -> bool:
    return "," not in response


# kind -> its check, f(response, **arguments) -> bool
CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
}
NEEDS_LANGUAGE = frozenset(
    ["language:response_language", "change_case:english_capital", "change_case:english_lowercase"]
)
_KINDS_OF_ARGUMENTS = {
    **dict.fromkeys(("relation", "let_relation", "capital_relation"), "relation"),
    **dict.fromkeys(("keywords", "forbidden_words"), "texts"),
    **dict.fromkeys(
        (
            "keyword",
            "letter",
            "language",
            "first_word",
            "postscript_marker",
            "section_spliter",
            "end_phrase",
            "prompt_to_repeat",
        ),
        "text",
    ),
}


# -- reading the columns ---------------------------------------------------------------------------


def read_instructions(kinds: Any, arguments: Any) -> list[Instruction]:
    """Return the instructions of a row from its columns `instruction_id_list` and `kwargs`.

    Both may be JSON text, as datasets store them. Arguments that are null count as missing: the
    Hub's copy of the data gives every instruction every argument.

    Raises:
        ValueError: a column is no such list, or a kind or an argument is wrong.
    """
    kinds, arguments = _list_of("instruction_id_list", kinds), _list_of("kwargs", arguments)
    if not kinds:
        raise ValueError("instruction_id_list: expected an instruction at least, got none")
    if len(kinds) != len(arguments):
        raise ValueError(
            f"kwargs: expected one object for each of {len(kinds)} instructions, got"
            f" {len(arguments)}"
        )
    return [
        Instruction(_checked_kind(place, kind), _checked_arguments(place, kind, given))
        for place, (kind, given) in enumerate(zip(kinds, arguments, strict=True))
    ]


def _list_of(column: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{column}: expected a list as JSON, got {value[:60]!r}") from None
    if not isinstance(value, list | tuple):
        raise ValueError(f"{column}: expected a list with an entry per instruction, got {value!r}")
    return list(value)


def _checked_kind(place: int, kind: Any) -> str:
    if not isinstance(kind, str) or kind not in CHECKS:
        hint = did_you_mean(str(kind), CHECKS)
        raise ValueError(
            f"instruction_id_list[{place}]: expected one of IFEval's 25 kinds, got {kind!r}{hint}"
        )
    return kind


def _checked_arguments(place: int, kind: str, given: Any) -> dict[str, Any]:
    where = f"kwargs[{place}]"
    if isinstance(given, str):  # JSON within JSON
        with contextlib.suppress(ValueError, RecursionError):  # reported below
            given = json.loads(given)
    if given is not None and not isinstance(given, dict):
        raise ValueError(f"{where}: expected an object, got {given!r:.60}")
    found = {name: value for name, value in (given or {}).items() if value is not None}
    expected = list(inspect.signature(CHECKS[kind]).parameters)[1:]
    if {*found} != {*expected}:
        raise ValueError(
            f"{where}: {kind} takes {', '.join(expected) or 'no argument'}, got"
            f" {', '.join(found) or 'none'}"
        )
    for name, value in found.items():
        _check_argument(f"{where}.{name}", _KINDS_OF_ARGUMENTS.get(name, "number"), value)
    return {
        name: int(value) if isinstance(value, float) else value for name, value in found.items()
    }


def _check_argument(where: str, sort: str, value: Any) -> None:
    if sort == "relation":
        ok, expected = value in RELATIONS, " or ".join(map(repr, RELATIONS))
    elif sort == "texts":
        ok = isinstance(value, list) and bool(value) and all(isinstance(x, str) for x in value)
        expected = "a list of words"
    elif sort == "text":
        ok, expected = isinstance(value, str) and bool(value.strip()), "text"
    else:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        ok = is_number and float(value).is_integer() and value >= 0
        expected = "a whole number, 0 or more"
    if not ok:
        raise ValueError(f"{where}: expected {expected}, got {value!r}")
