"""Layouts of comparisons: a prompt and its ranked responses.

Rank 1 is best and equal ranks are ties.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from align.data.columns import from_json, in_table, listed_in, number, skip
from align.data.conversations import (
    asked_in,
    messages_in,
    prompt_in,
    text_in,
    turns_in,
    turns_of_transcript,
    whole_conversation,
    with_system,
)
from align.data.demonstrations import Reader, a_list, is_good
from align.data.records import Dropped, Malformed, Message, Row, check_messages, check_text

Verdict = Callable[[Mapping[str, Any]], list[int]]

_EARLIER = "transcripts differ before the last answer"


def ranked(
    row: Mapping[str, Any], prompt: list[Message], responses: Sequence[str], ranks: Sequence[int]
) -> Row:
    return {"prompt": with_system(row, prompt), "responses": list(responses), "ranks": list(ranks)}


def ranks_of(scores: Sequence[float]) -> list[int]:
    """Return ranks by score: 1 for the highest; equal scores share a rank."""
    order = sorted(set(scores), reverse=True)
    return [order.index(score) + 1 for score in scores]


# -- a better answer and a worse one ---------------------------------------------------------------


def better_and_worse(asked: str, chosen: str = "chosen", rejected: str = "rejected") -> Reader:
    """Read a prompt and two answers: texts, messages, or conversations that begin with the prompt.

    If a side has several answers, as in RM-Bench and RewardBench 2, they make one ranking: each
    chosen answer above each rejected one.
    """

    def read(row: dict[str, Any]) -> Iterator[Row]:
        prompt = asked_in(row, asked)
        good, bad = (_several(row, name) for name in (chosen, rejected))
        if good and bad:
            yield ranked(row, prompt, [*good, *bad], [1] * len(good) + [2] * len(bad))
            return
        for answers, name, other in ((good, chosen, rejected), (bad, rejected, chosen)):
            if answers and not in_table(row) and isinstance(row.get(other), str):
                advice = (
                    f"expected a list of answers, as {name} is, got text; write it as a list of one"
                )
                raise Malformed(other, advice)
        better, worse = (
            whole_conversation(prompt, turns_in(row, name)) for name in (chosen, rejected)
        )
        yield _of_conversations(row, {chosen: better, rejected: worse})

    return read


def _several(row: Mapping[str, Any], column: str) -> list[str] | None:
    """Return several answers from one column: a list, or a table's cell that spells a list.

    None if the column holds one answer.
    """
    value = row.get(column)
    if isinstance(value, str):
        found = listed_in(value) if in_table(row) else None
        return (
            found
            if isinstance(found, list) and all(isinstance(each, str) for each in found)
            else None
        )
    if not isinstance(value, list) or any(isinstance(each, dict) for each in value):
        return None
    return [text_in(each, f"{column}[{i}]") for i, each in enumerate(value)]


def whole_pairs(chosen: str, rejected: str) -> Reader:
    """Read two conversations that differ only in their last answer.

    They are transcripts (hh-rlhf) or messages (TRL).
    """

    def read(row: dict[str, Any]) -> Iterator[Row]:
        yield _of_conversations(row, {name: _whole(row, name) for name in (chosen, rejected)})

    return read


def _whole(row: Mapping[str, Any], column: str) -> list[Message]:
    value = from_json(row.get(column))
    if not isinstance(value, list):
        return check_messages(turns_of_transcript(value, column), column)
    messages = messages_in(row, column)
    if messages[-1]["role"] != "assistant":
        raise Malformed(column, "expected the assistant last")
    return messages


def _of_conversations(row: Mapping[str, Any], sides: Mapping[str, list[Message]]) -> Row:
    """Make the last answers responses to the prompt that both conversations share.

    `sides` holds the better conversation, then the worse one.

    Raises:
        Dropped: the conversations differ before the last answer.
    """
    (prompt, good), (other, bad) = (
        _prompt_and_answer(row, name, messages) for name, messages in sides.items()
    )
    if prompt != other:
        raise Dropped(_EARLIER)
    return ranked(row, prompt, [good, bad], [1, 2])


def _prompt_and_answer(
    row: Mapping[str, Any], column: str, messages: list[Message]
) -> tuple[list[Message], str]:
    """Split a conversation into the messages before its last answer, and this answer as text.

    Weights are removed, because rankings do not use them.
    """
    if any("weight" in message for message in messages):
        skip(row, column, ["weight"])
    if messages[-1].get("tool_calls"):
        raise Dropped("an answer that calls a tool")
    prompt = [
        {name: value for name, value in message.items() if name != "weight"}
        for message in messages[:-1]
    ]
    return prompt, messages[-1]["content"]


# -- two answers and a verdict ---------------------------------------------------------------------


def two_answers(asked: str, first: str, second: str, verdict: Verdict) -> Reader:
    """Read two answers in their own columns, and which one is better."""

    def read(row: dict[str, Any]) -> Iterator[Row]:
        ranks = verdict(row)
        yield ranked(
            row,
            asked_in(row, asked),
            [text_in(row.get(name), name) for name in (first, second)],
            ranks,
        )

    return read


def _first(is_first: bool) -> list[int]:
    return [1, 2] if is_first else [2, 1]


def which(column: str, first: float, second: float, tie: float | None = None) -> Verdict:
    """Read a number that names the better answer; any other value is dropped as no preference."""

    def read(row: Mapping[str, Any]) -> list[int]:
        value = row.get(column)
        found = float(value) if isinstance(value, bool) else number(value)
        if found is None or found not in (first, second, tie):
            raise Dropped("no preference")
        return [1, 1] if found == tie else _first(found == first)

    return read


def strength(column: str) -> Verdict:
    """Read HelpSteer's strength, from -3 (first much better) to 3 (second much better); 0: tie."""

    def read(row: Mapping[str, Any]) -> list[int]:
        found = number(row.get(column))
        if found is None or not -3 <= found <= 3:
            raise Dropped("no preference")
        return [1, 1] if found == 0 else _first(found < 0)

    return read


def letters(row: Mapping[str, Any]) -> list[int]:
    """Read JudgeBench's verdict: A>B, B>A, or A=B for a tie."""
    found = "".join(str(row.get("label")).split())
    if found not in ("A>B", "B>A", "A=B", "B=A"):
        raise Dropped("no preference")
    return [1, 1] if "=" in found else _first(found == "A>B")


def majority(row: Mapping[str, Any]) -> list[int]:
    """Read PandaLM's three annotators (1, 2, or 0 for a tie): the verdict of at least two."""
    votes = [number(row.get(f"annotator{i}")) for i in (1, 2, 3)]
    for i, vote in enumerate(votes, 1):
        if vote not in (0, 1, 2):
            raise Malformed(
                f"annotator{i}", f"expected 1, 2 or 0 for a tie, got {row.get(f'annotator{i}')!r}"
            )
    agreed = next((vote for vote in (0, 1, 2) if votes.count(vote) >= 2), None)
    if agreed is None:
        raise Dropped("no two annotators agree")
    return [1, 1] if agreed == 0 else _first(agreed == 1)


# -- several answers -------------------------------------------------------------------------------


def scored_completions(row: dict[str, Any]) -> Iterator[Row | Dropped]:
    """Read UltraFeedback's original rows: completions, each with an overall score."""
    found = []
    for i, completion in enumerate(a_list(from_json(row.get("completions")), "completions")):
        if not isinstance(completion, dict):
            raise Malformed(
                f"completions[{i}]", "expected an object with response and overall_score"
            )
        used = ("response", "overall_score")
        skip(
            row,
            "completions",
            (name for name, value in completion.items() if name not in used and value is not None),
        )
        score = number(completion.get("overall_score"))
        if score is None:
            yield Dropped("a response without a score")
        else:
            found.append((text_in(completion.get("response"), f"completions[{i}].response"), score))
    yield _by_score(row, asked_in(row, "instruction"), found)


def rated_generations(asked: str, rated: str) -> Reader:
    """Read distilabel's lists of generations and of their ratings."""

    def read(row: dict[str, Any]) -> Iterator[Row | Dropped]:
        generations = a_list(from_json(row.get("generations")), "generations")
        ratings = a_list(from_json(row.get(rated)), rated, len(generations))
        found = []
        for i, (text, rating) in enumerate(zip(generations, map(number, ratings), strict=True)):
            if rating is None:
                yield Dropped("a response without a score")
            else:
                found.append((text_in(text, f"generations[{i}]"), rating))
        yield _by_score(row, asked_in(row, asked), found)

    return read


def _by_score(row: Mapping[str, Any], prompt: list[Message], found: list[tuple[str, float]]) -> Row:
    if len(found) < 2:
        raise Dropped("fewer than two responses with a score")
    return ranked(row, prompt, [text for text, _ in found], ranks_of([score for _, score in found]))


def labelled_targets(row: dict[str, Any]) -> Iterator[Row]:
    """Read HHH's choices: label 1 for a good choice and 0 for the others."""
    targets = from_json(row.get("targets"))
    if not isinstance(targets, dict):
        raise Malformed("targets", "expected choices and labels")
    skip(row, "targets", (name for name in targets if name not in ("choices", "labels")))
    choices = [
        check_text(text, "targets.choices")
        for text in a_list(targets.get("choices"), "targets.choices")
    ]
    labels = list(map(number, a_list(targets.get("labels"), "targets.labels", len(choices))))
    if any(label is None for label in labels) or len(labels) < 2:
        raise Malformed("targets.labels", "expected a number for each of two choices or more")
    yield ranked(row, asked_in(row, "input"), choices, ranks_of([label or 0.0 for label in labels]))


def given_ranks(row: dict[str, Any]) -> Iterator[Row]:
    """Read align's own columns `responses` and `ranks`; keep other columns."""
    lists = {name: from_json(row.get(name)) for name in ("responses", "ranks")}
    _check_places(lists["responses"], lists["ranks"])
    yield {**row, **lists, "prompt": with_system(row, prompt_in(row, "prompt"))}


def _check_places(responses: Any, ranks: Any) -> None:
    """Refuse ranks that are not the places of a ranking.

    They may be scores, where the highest is best, and the ranking would be inverted. Both ways of
    counting after a tie are allowed: 1, 1, 2 and 1, 1, 3.
    """
    if (
        not isinstance(responses, list)
        or not isinstance(ranks, list)
        or len(ranks) != len(responses)
    ):
        return  # `check_row` reports what is wrong
    if not all(type(rank) is int for rank in ranks):
        return
    places = [1 + sum(other < rank for other in ranks) for rank in ranks]
    if ranks not in (places, [1 + sorted(set(ranks)).index(rank) for rank in ranks]):
        shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
        raise Malformed(
            "ranks",
            f"expected the places of {len(ranks)} responses, 1 for the best, 2 for the next, and"
            f" the same for a tie, got {shown}; where these are scores, and more is better, write"
            " places instead",
        )


# -- one answer per row: rows that share a prompt are one ranking ----------------------------------


def labelled_answer(row: dict[str, Any]) -> tuple[str, Row]:
    """Read KTO's row: an answer, and whether it is good."""
    column = "completion" if "completion" in row else "response"
    return _answer(row, asked_in(row, "prompt"), column, 1.0 if is_good(row) else 0.0)


def unpaired_answer(row: dict[str, Any]) -> Iterator[Row]:
    """Read KTO's row as it is: an answer, and whether it is good; no other answer is needed."""
    _, answer = labelled_answer(row)
    yield {
        "prompt": answer["prompt"],
        "completion": answer["text"],
        "label": answer["score"] == 1.0,
    }


def rated_answer(row: dict[str, Any]) -> tuple[str, Row]:
    """Read HelpSteer's row: an answer and its attributes; helpfulness is its score."""
    score = number(row.get("helpfulness"))
    if score is None:
        raise Dropped("a response without a score")
    return _answer(row, asked_in(row, "prompt"), "response", score)


def _answer(
    row: Mapping[str, Any], prompt: list[Message], column: str, score: float
) -> tuple[str, Row]:
    turns = with_system(row, whole_conversation(prompt, turns_in(row, column)))
    prompt, answer = _prompt_and_answer(row, column, turns)
    return repr(prompt), {"prompt": prompt, "text": answer, "score": score}


# Reasons for answers that make no ranking; as record=unpaired they are rows.
GOOD_ALONE = "a prompt with good answers alone"
BAD_ALONE = "a prompt with bad answers alone"


def rank_labelled(answers: list[Row]) -> Iterator[Row | Dropped]:
    answers = yield from _without_contradictions(answers)
    if len({answer["score"] for answer in answers}) == 1:
        for answer in answers:
            yield Dropped(GOOD_ALONE if answer["score"] else BAD_ALONE)
        return
    yield from _rank(answers)


def rank_rated(answers: list[Row]) -> Iterator[Row | Dropped]:
    answers = yield from _without_contradictions(answers)
    if len(answers) == 1:
        raise Dropped("the only response to its prompt")
    yield from _rank(answers)


def _without_contradictions(answers: list[Row]) -> Generator[Dropped, None, list[Row]]:
    """Return the answers whose text has one score only; yield a `Dropped` for each other answer."""
    scores: dict[str, set[float]] = {}
    for answer in answers:
        scores.setdefault(answer["text"], set()).add(answer["score"])
    clear = [answer for answer in answers if len(scores[answer["text"]]) == 1]
    for _ in range(len(answers) - len(clear)):
        yield Dropped("an answer that is there with two labels or scores")
    return clear


def _rank(answers: list[Row]) -> Iterator[Row | Dropped]:
    """Yield one ranking, whose order does not depend on the file's order."""
    ordered = sorted({(-answer["score"], answer["text"]) for answer in answers})
    for _ in range(len(answers) - len(ordered)):
        yield Dropped("a response that is there twice")
    if not ordered:
        return
    ranks = ranks_of([-score for score, _ in ordered])
    yield {
        "prompt": answers[0]["prompt"],
        "responses": [text for _, text in ordered],
        "ranks": ranks,
    }
