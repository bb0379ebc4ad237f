"""Rewards that can be checked by rule, usable by their names alone.

    align grpo ... 'reward_functions={numeric: 1.0}'
    align evaluate ... 'checks={right: numeric, short: "within_length(max_words=50)"}'

Each name is a function here that makes the reward function, so it may have arguments. A reward
function has TRL's signature, f(prompts, completions, **columns) -> one number or None for each
completion. What it checks against comes from columns of the prompts' rows. It returns None for a
row whose column is empty.

To add one, write it here and give it a row in `VERSIONS`.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from align.errors import ConfigError
from align.verifiers import ifeval as checks
from align.verifiers import language as languages
from align.verifiers.counting import count_words
from align.verifiers.numbers import answer_part, final_number

RewardFn = Callable[..., list[float | None]]

# Every reward that a config can name, and the version of what it computes, which is in the keys of
# the steps that use it. Raise it when the same response gets another number; a change in
# `counting`, `ifeval`, `language` or `numbers` may need this for several rewards.
VERSIONS = {
    "ifeval": 1,
    "numeric": 1,
    "exact_match": 1,
    "fuzzy_match": 1,
    "bleu": 1,
    "chrf": 1,
    "rouge": 1,
    "json_schema": 1,
    "within_length": 1,
    "language": 1,
    "regex": 1,
    "format_tags": 1,
}
# The package that a reward computes with; its version is in the keys, too.
PACKAGES = {
    "ifeval": "langdetect",  # for instructions on the language alone
    "bleu": "sacrebleu",
    "chrf": "sacrebleu",
    "rouge": "rouge_score",
    "json_schema": "jsonschema",
    "language": "langdetect",
}
_SOLUTIONS = ("solution", "answer", "reference")


# -- instructions ----------------------------------------------------------------------------------


def ifeval(*, loose: bool = False, all_or_nothing: bool = False) -> RewardFn:
    """Return the fraction of its prompt's instructions that a response follows.

    The rows have IFEval's columns `instruction_id_list` and `kwargs`.

    Args:
        loose: check the eight variants of the response, as the paper's loose verdicts do.
        all_or_nothing: 1 if the response follows all of them, else 0.
    """

    def ifeval(
        completions: Any, instruction_id_list: Any, kwargs: Any, **columns: Any
    ) -> list[float | None]:
        found: list[float | None] = []
        for text, kinds, given in zip(
            _texts(completions), instruction_id_list, kwargs, strict=True
        ):
            if kinds is None:
                found.append(None)
                continue
            verdicts = checks.verdicts(_instructions(kinds, given), text)
            own = verdicts.loose if loose else verdicts.strict
            found.append(float(all(own)) if all_or_nothing else sum(own) / len(own))
        return found

    return ifeval


def _instructions(kinds: Any, given: Any) -> list[checks.Instruction]:
    try:
        return checks.read_instructions(kinds, given)
    except ValueError as error:
        raise ConfigError(f"the column {error}") from None


# -- answers that are known ------------------------------------------------------------------------


def numeric(*, tolerance: float = 0.0, column: str | None = None) -> RewardFn:
    r"""Return 1 if a response ends with the right number, else 0.

    The number of a response, and of the solution, is the one after `####` as in GSM8K, or in
    `\boxed{}`, or the last one. `align.verifiers.numbers.final_number` says what is read.

    Args:
        tolerance: largest difference to the right number that counts as right.
        column: the column with the solution; None: `solution`, else `answer`, else `reference`.
    """
    _check_bound("tolerance", tolerance)
    # Read as it is written: 0.3 as a float is a little less than three tenths.
    most = Fraction(0 if tolerance is None else str(tolerance))

    def score(text: str, solution: Any) -> float:
        found = final_number(answer_part(text))
        for one in _several(solution):
            right = final_number(one)
            if right is None:
                raise ConfigError(f"expected a number in the solution, got {one!r:.80}")
            if found is not None and abs(found - right) <= most:
                return 1.0
        return 0.0

    return _against_solution(score, column)


def exact_match(*, ignore_case: bool = False, column: str | None = None) -> RewardFn:
    """Return 1 if a response is one of the solutions, else 0. Runs of white space are one space.

    Args:
        ignore_case: small and capital letters are the same.
        column: as in `numeric`.
    """

    def score(text: str, solution: Any) -> float:
        answer = _spaced(answer_part(text), ignore_case)
        return float(any(answer == _spaced(one, ignore_case) for one in _several(solution)))

    return _against_solution(score, column)


def fuzzy_match(*, column: str | None = None) -> RewardFn:
    """Return the similarity of a response to the nearest solution, from 0 to 1, in any case.

    It is difflib's ratio: twice the letters in matching blocks, over the letters of both texts.
    """

    def score(text: str, solution: Any) -> float:
        answer = _spaced(answer_part(text), True)
        return max(
            difflib.SequenceMatcher(None, answer, _spaced(one, True), autojunk=False).ratio()
            for one in _several(solution)
        )

    return _against_solution(score, column)


def bleu(*, column: str | None = None) -> RewardFn:
    """Return sacrebleu's sentence BLEU of a response against its solutions, from 0 to 1."""
    _require("sacrebleu", "eval")

    def score(text: str, solution: Any) -> float:
        from sacrebleu import sentence_bleu

        return float(sentence_bleu(text, _several(solution)).score) / 100

    return _against_solution(score, column)


def chrf(*, column: str | None = None) -> RewardFn:
    """Return sacrebleu's sentence chrF2 of a response against its solutions, from 0 to 1."""
    _require("sacrebleu", "eval")

    def score(text: str, solution: Any) -> float:
        from sacrebleu import sentence_chrf

        return float(sentence_chrf(text, _several(solution)).score) / 100

    return _against_solution(score, column)


def rouge(*, n: int | None = None, column: str | None = None) -> RewardFn:
    """Return rouge-score's F1 of a response, from 0 to 1: the best over one or several solutions.

    Args:
        n: length of the n-grams, 1 to 9; None: ROUGE-L, the longest common subsequence.
        column: as in `numeric`.
    """
    _require("rouge_score", "eval")
    if n is not None and n not in range(1, 10):
        raise ConfigError(f"n: expected a whole number from 1 to 9, or None for ROUGE-L, got {n}")
    kind = "rougeL" if n is None else f"rouge{n}"

    @functools.cache
    def scorer() -> Any:
        # Its package absl keeps the standard error of this moment, and closes it later when logging
        # is set up again, unless it is the process's own.
        with contextlib.redirect_stderr(sys.__stderr__):
            from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer([kind], use_stemmer=True)

    def score(text: str, solution: Any) -> float:
        return max(scorer().score(one, text)[kind].fmeasure for one in _several(solution))

    return _against_solution(score, column)


def _against_solution(score: Callable[[str, Any], float], column: str | None) -> RewardFn:
    """Return a reward function that calls `score` with each response and its row's solution."""
    if column is not None and not isinstance(column, str):
        raise ConfigError(f"column: expected the name of a column, got {column!r}")

    def reward(completions: Any, **columns: Any) -> list[float | None]:
        names = _SOLUTIONS if column is None else (column,)
        name = next((name for name in names if name in columns), None)
        if name is None:
            raise ConfigError(f"the prompts' rows need a column {' or '.join(names)}")
        return [
            None if solution is None or not _several(solution) else score(text, solution)
            for text, solution in zip(_texts(completions), columns[name], strict=True)
        ]

    return reward


# -- forms -----------------------------------------------------------------------------------------


def json_schema(*, schema: dict[str, Any] | None = None) -> RewardFn:
    """Return 1 if a response is JSON that fits a JSON schema, else 0. A code block is accepted.

    Args:
        schema: the schema; None: the column `schema` of each row, an object or its JSON text.
    """
    _require("jsonschema", "rewards")

    @functools.lru_cache(maxsize=1024)
    def validator(text: str) -> Any:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for
        from jsonschema_specifications import REGISTRY

        try:
            read = json.loads(text)
            kind = validator_for(read)
            kind.check_schema(read)
        except (ValueError, SchemaError) as error:
            said = getattr(error, "message", str(error))
            raise ConfigError(f"schema: expected a JSON schema, got {text:.80} ({said})") from None
        return kind(read, registry=REGISTRY)  # it has no way to fetch a schema from elsewhere

    def score(text: str, given: Any) -> float:
        from referencing.exceptions import Unresolvable

        check = validator(given if isinstance(given, str) else json.dumps(given))
        try:
            value = json.loads(checks.without_code_block(text))
        except (ValueError, RecursionError):
            return 0.0
        try:
            return float(check.is_valid(value))
        except Unresolvable as error:
            raise ConfigError(
                f"schema: expected a $ref to a part of the schema itself, got {error.ref!r}"
            ) from None

    if schema is not None:
        validator(json.dumps(schema))  # a wrong schema is reported when the run is planned
    return _by_column("schema", schema, score)


def within_length(
    *,
    min_words: int | None = None,
    max_words: int | None = None,
    min_characters: int | None = None,
    max_characters: int | None = None,
    min_tokens: int | None = None,
    max_tokens: int | None = None,
) -> RewardFn:
    """Return 1 if a response is as long as asked, else 0.

    Each bound is inclusive. A row's column of the same name replaces it. Words are counted as in
    IFEval; tokens are the policy's, with the end token. A row without any bound gives None.
    """
    given = {
        "min_words": min_words,
        "max_words": max_words,
        "min_characters": min_characters,
        "max_characters": max_characters,
        "min_tokens": min_tokens,
        "max_tokens": max_tokens,
    }
    for name, value in given.items():
        _check_bound(name, value)
    for unit in ("words", "characters", "tokens"):
        least, most = given[f"min_{unit}"], given[f"max_{unit}"]
        if least is not None and most is not None and least > most:
            raise ConfigError(f"min_{unit}: expected at most max_{unit}, {most}, got {least}")

    def within_length(
        completions: Any, completion_ids: Any = None, **columns: Any
    ) -> list[float | None]:
        found: list[float | None] = []
        for place, text in enumerate(_texts(completions)):
            bounds = dict(given)
            for name in given:
                if name in columns and columns[name][place] is not None:
                    bounds[name] = columns[name][place]
                    _check_bound(name, bounds[name])
            found.append(_within(text, completion_ids[place] if completion_ids else (), bounds))
        return found

    return within_length


def _check_bound(name: str, value: Any) -> None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    if value is not None and not ok:
        raise ConfigError(f"{name}: expected a number, 0 or more, got {value!r}")


def _within(text: str, ids: Sequence[int], bounds: dict[str, Any]) -> float | None:
    if all(bound is None for bound in bounds.values()):
        return None
    sizes = {"words": count_words(text), "characters": len(text), "tokens": len(ids)}
    for unit, size in sizes.items():
        least, most = bounds[f"min_{unit}"], bounds[f"max_{unit}"]
        if (least is not None and size < least) or (most is not None and size > most):
            return 0.0
    return 1.0


def language(*, code: str | None = None) -> RewardFn:
    """Return 1 if a response is in a language, else 0. It needs the package langdetect.

    Args:
        code: the language by ISO 639-1, such as `de`; None: the column `language` of each row.
    """
    _require("langdetect", "rewards")

    def known(wanted: Any, name: str) -> Any:
        if wanted not in languages.codes():
            raise ConfigError(
                f"{name}: expected one of {', '.join(languages.codes())}, got {wanted!r}"
            )
        return wanted

    def score(text: str, wanted: Any) -> float:
        return float(languages.detect(text) == known(wanted, "language"))

    if code is not None:
        known(code, "code")
    return _by_column("language", code, score)


def regex(*, pattern: str | None = None) -> RewardFn:
    r"""Return 1 if a regular expression of Python is found in a response, else 0.

    Write `\A...\Z` for one that must match the whole response.

    Args:
        pattern: the expression; None: the column `pattern` of each row.
    """

    def compiled(text: Any) -> re.Pattern[str]:
        try:
            return re.compile(text)
        except (re.error, TypeError) as error:
            raise ConfigError(
                f"pattern: expected a regular expression, got {text!r:.80} ({error})"
            ) from None

    if pattern is not None:
        compiled(pattern)
    return _by_column(
        "pattern", pattern, lambda text, own: float(compiled(own).search(text) is not None)
    )


def format_tags(*, tags: Sequence[str] = ("think", "answer")) -> RewardFn:
    """Return 1 if a response is <think>...</think> and then <answer>...</answer>, else 0.

    Each tag stands there once, with text inside, and there is only white space around.

    Args:
        tags: the names of the tags, in order.
    """
    if not tags or not all(isinstance(tag, str) and tag.isidentifier() for tag in tags):
        raise ConfigError(f"tags: expected a list of names, got {tags!r}")
    whole = re.compile(r"\s*".join(rf"<{tag}>(.*?)</{tag}>" for tag in tags), re.DOTALL)
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]

    def format_tags(completions: Any, **columns: Any) -> list[float | None]:
        found: list[float | None] = []
        for text in _texts(completions):
            once = all(text.count(mark) == 1 for mark in marks)
            match = whole.fullmatch(text.strip()) if once else None
            found.append(float(match is not None and all(map(str.strip, match.groups()))))
        return found

    return format_tags


def _by_column(name: str, fixed: Any, score: Callable[[str, Any], float]) -> RewardFn:
    """Return a reward function that scores each response against `fixed`, or its row's column."""

    def reward(completions: Any, **columns: Any) -> list[float | None]:
        texts = _texts(completions)
        if fixed is None and name not in columns:
            raise ConfigError(f"the prompts' rows need a column {name}")
        wanted = [fixed] * len(texts) if fixed is not None else columns[name]
        return [
            None if one is None else score(text, one)
            for text, one in zip(texts, wanted, strict=True)
        ]

    return reward


# -- reading arguments -----------------------------------------------------------------------------


def _texts(completions: Sequence[Any]) -> list[str]:
    """Return the responses as text. TRL gives messages, or plain text for plain prompts."""
    return [each if isinstance(each, str) else each[-1]["content"] for each in completions]


def _several(solution: Any) -> list[str]:
    """Return the solutions of a row: a list, also as JSON text, or one value."""
    if isinstance(solution, str) and solution.lstrip().startswith("["):
        try:
            solution = json.loads(solution)
        except (ValueError, RecursionError):
            return [solution]
    return [str(one) for one in solution] if isinstance(solution, list) else [str(solution)]


def _spaced(text: str, ignore_case: bool) -> str:
    spaced = " ".join(text.split())
    return spaced.casefold() if ignore_case else spaced


def _require(package: str, extra: str) -> None:
    """Raise `ConfigError` if an optional package is not installed."""
    if importlib.util.find_spec(package) is None:
        name = package.replace("_", "-")
        raise ConfigError(
            f"it needs the package {name}: pip install {name}, or align's extra `{extra}`"
        )
