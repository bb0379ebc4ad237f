"""Layouts of demonstrations: conversations that end with the assistant's answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from align.data.columns import from_json, number, truth
from align.data.conversations import (
    asked_in,
    assistant,
    messages_in,
    text_in,
    tools_in,
    turns_in,
    user,
    whole_conversation,
    with_system,
)
from align.data.records import Dropped, Malformed, Message, Row, check_text

Reader = Callable[[dict[str, Any]], Iterator[Row | Dropped]]


def conversation(column: str) -> Reader:
    """Read a whole conversation from one column."""

    def read(row: dict[str, Any]) -> Iterator[Row]:
        yield {"messages": with_system(row, messages_in(row, column)), **tools_in(row)}

    return read


def asked_and_answered(asked: str, answered: str) -> Reader:
    """Read a prompt from one column, and the answer, or the turns from it on, from another."""

    def read(row: dict[str, Any]) -> Iterator[Row]:
        prompt = asked_in(row, asked)
        messages = whole_conversation(prompt, turns_in(row, answered))
        yield {"messages": with_system(row, messages), **tools_in(row)}

    return read


def good_ones(read: Reader) -> Reader:
    """Wrap `read` to drop rows whose `label`, as KTO's rows have one, calls the answer bad."""

    def read_good(row: dict[str, Any]) -> Iterator[Row | Dropped]:
        if "label" in row and not is_good(row):
            raise Dropped("labelled as bad")
        yield from read(row)

    return read_good


def is_good(row: Mapping[str, Any]) -> bool:
    """Read `label`: True for a good answer (true or 1), False for a bad one (false, 0 or -1).

    Raises:
        Dropped: the label is empty.
        Malformed: the label is anything else.
    """
    label = row.get("label")
    if label in (None, ""):
        raise Dropped("no label")
    good = False if number(label) == -1 else truth(label)
    if good is None:
        said = json.dumps(label, default=str)[:60]
        raise Malformed(
            "label",
            f"expected true or false (1, or 0 or -1), whether the answer is a good one, got {said};"
            " write it so, or rename the column where it says something else",
        )
    return good


def instruction(row: dict[str, Any]) -> Iterator[Row]:
    """Read Alpaca's columns, Dolly's `context` and `response`, LLaMA-Factory's `history`.

    `history` holds earlier turns.
    """
    answered = "response" if "response" in row and "output" not in row else "output"
    answer = text_in(row.get(answered), answered)
    messages = [*_history(row), *asked_in(row, "instruction"), assistant(answer)]
    yield {"messages": with_system(row, messages), **tools_in(row)}


def _history(row: Mapping[str, Any]) -> Iterator[Message]:
    if "history" not in row:
        return
    for pair in a_list(from_json(row.get("history")) or [], "history"):
        for turn, said in zip((user, assistant), a_list(pair, "history", 2), strict=True):
            yield turn(check_text(said, "history"))


def a_list(value: Any, field: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
        raise Malformed(field, "expected a list" + (f" of {length}" if length is not None else ""))
    return list(value)


def task_instances(row: dict[str, Any]) -> Iterator[Row]:
    """Read a task of self-instruct: one instruction with several inputs and outputs."""
    asked = check_text(row.get("instruction"), "instruction")
    for instance in a_list(row.get("instances") or [], "instances"):
        if not isinstance(instance, dict):
            raise Malformed("instances", "expected objects with input and output")
        yield from instruction({**instance, "instruction": asked})
