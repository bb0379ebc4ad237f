"""Convert the messages of data sets to those of a record: OpenAI's, ShareGPT's and transcripts."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from align.data.columns import Columns, first_of, from_json, in_table, plain_name, skip, truth
from align.data.records import (
    Dropped,
    Malformed,
    Message,
    OutOfTurn,
    Row,
    check_messages,
    check_text,
    type_name,
)

SYSTEM = ("system", "system_prompt")  # columns next to a conversation

_OPENAI_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}
_CALLS = ("tool_calls", "function_call")  # the second is OpenAI's older name, for a single call
# Whether a turn is learned, in the names of OpenAI, Axolotl and ms-swift.
_WEIGHTS = ("weight", "train", "loss")
_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURN_OF_HELPSTEER = re.compile(r"\n<extra_id_1>(User|Assistant)(?:\n|$)")
# Columns with the text that a prompt is about, see `asked_in`.
_ABOUT = {"instruction": ("input", "context"), "question": ("context",), "query": ("context",)}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def messages_in(row: Mapping[str, Any], column: str) -> list[Message]:
    """Read a column of messages, each with `role` and `content` or with `from` and `value`.

    Raises:
        Malformed: the column does not hold messages, or a role or a weight is unknown.
        Dropped: a message has a part that is not text, or the turns are in an odd order.
    """
    try:
        return check_messages(_messages(row, column), column)
    except OutOfTurn:
        raise Dropped("a conversation whose turns are in an odd order") from None


def _messages(row: Mapping[str, Any], column: str) -> Any:
    """Return the messages with canonical fields, turns unchecked; other values unchanged."""
    value = from_json(row.get(column))
    if isinstance(value, dict) and ("role" in value or "from" in value):
        # The form that `datasets` gives a list of objects.
        if isinstance(value.get("role", value.get("from")), list):
            advice = "write an object for each message"
            raise Malformed(
                column, f"expected a list of messages, got one object of lists; {advice}"
            )
        value = [value]  # a single message
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        return value
    return [_message(row, column, i, message) for i, message in enumerate(value)]


def _message(row: Mapping[str, Any], column: str, place: int, raw: dict[str, Any]) -> Message:
    where = f"{column}[{place}]"
    in_sharegpt = "from" in raw and raw.get("role") is None
    names = ("from", "value") if in_sharegpt else ("role", "content")
    roles = _SHAREGPT_ROLES if in_sharegpt else _OPENAI_ROLES
    said = raw.get(names[0])
    if not isinstance(said, str) or said not in roles:
        allowed = ", ".join(roles)
        raise Malformed(
            f"{where}.{names[0]}", f"expected one of {allowed}, got {json.dumps(said, default=str)}"
        )
    message: Message = {"role": roles[said], "content": raw.get(names[1])}
    used = [*names]
    if message["role"] == "assistant":
        calls = [name for name in _CALLS if raw.get(name)]
        if in_sharegpt and said == "function_call":
            message["content"] = ""
            calls = [name for name in ("value", *calls) if raw.get(name)]
        if calls:
            message["tool_calls"] = _calls(row, column, place, calls[0], raw[calls[0]])
            message["content"] = message["content"] or ""
        used += [*(name for name in _CALLS if name not in calls[1:]), *_WEIGHTS]
        if not _is_learned(raw, where):
            message["weight"] = 0
    if message["role"] == "tool":
        used += ["tool_call_id", "name"]
        message |= {
            name: raw[name] for name in ("tool_call_id", "name") if raw.get(name) is not None
        }
    message["content"] = _text(row, column, place, names[1], message["content"])
    skip(
        row,
        column,
        (str(name) for name, value in raw.items() if name not in used and value is not None),
    )
    return message


def _text(row: Mapping[str, Any], column: str, place: int, name: str, content: Any) -> str:
    """Return a content as text; it may be a list of text parts."""
    where = f"{column}[{place}].{name}"
    if not isinstance(content, list):
        return check_text(content, where)
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise Malformed(f"{where}[{i}]", "expected a part with a type")
        if part["type"] not in ("text", "input_text", "output_text"):
            raise Dropped("a message with a part that is no text")
        texts.append(check_text(part.get("text"), f"{where}[{i}].text"))
        _skip_but(("type", "text"), part, row, column, name)
    return "".join(texts)


def _is_learned(raw: dict[str, Any], where: str) -> bool:
    for name in _WEIGHTS:
        if raw.get(name) is None:
            continue
        learned = truth(raw[name])
        if learned is None:
            said = json.dumps(raw[name], default=str)
            raise Malformed(
                f"{where}.{name}", f"expected 1 (the turn is learned) or 0 (it is not), got {said}"
            )
        if not learned:
            return False
    return True


def _skip_but(
    read: Iterable[str], fields: Mapping[str, Any], row: Mapping[str, Any], column: str, within: str
) -> None:
    """Note the fields of a call or of a part that are not in `read`."""
    unread = [name for name, value in fields.items() if value is not None and name not in read]
    skip(row, column, (f"{within}[].{name}" for name in unread))


def _calls(row: Mapping[str, Any], column: str, place: int, name: str, value: Any) -> str:
    """Return tool calls as JSON text, as chat templates need them.

    Each call has a `function` with `name` and `arguments`.
    """
    where = f"{column}[{place}].{name}"
    if isinstance(value, str):
        value = _json(value, where)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Malformed(where, "expected calls of tools, each with a name and arguments")
        given = "parameters" if function.get("arguments") is None else "arguments"
        arguments = function.get(given)
        if isinstance(arguments, str):
            arguments = _json(arguments, where)
        made = {
            "type": "function",
            "function": {"name": function["name"], "arguments": arguments or {}},
        }
        own = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        calls.append({**own, **made})
        _skip_but((*own, *made, "name", given), {**call, **function}, row, column, name)
    return json.dumps(calls)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(where, f"expected JSON ({error})") from None


def tools_in(row: Mapping[str, Any]) -> Row:
    """Return {"tools": JSON text} if a row has tools, else {}.

    Each tool is {"type": "function", "function": {...}}.
    """
    if first_of(row, ("tools",)) is None:
        return {}
    tools = row.get("tools")
    tools = _json(tools, "tools") if isinstance(tools, str) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Malformed("tools", "expected a list of tools, or such a list as JSON text")
    wrapped = [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]
    return {"tools": json.dumps(wrapped)} if wrapped else {}


def with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Return the messages after the system message that a row has in its own column."""
    name = first_of(row, SYSTEM)
    if name is None:
        return messages
    said = check_text(row.get(name), name)
    own = [message["content"] for message in messages if message["role"] == "system"]
    if not said.strip() or said in own:
        return messages
    if own:
        raise Malformed(name, "expected no other system message than the one in the conversation")
    return [{"role": "system", "content": said}, *messages]


def asked_in(row: Mapping[str, Any], column: str) -> list[Message]:
    """Return a prompt, with the text that it is about appended.

    An instruction or a question may have this text in another column, as Alpaca's input and Dolly's
    context. It is appended after an empty line.
    """
    *before, asked = prompt_in(row, column)
    own_name = plain_name(row.called.get(column, column) if isinstance(row, Columns) else column)
    about = first_of(row, _ABOUT.get(own_name, ()))
    if about is None or asked["role"] != "user":
        return [*before, asked]
    # Lists of paragraphs, such as HotpotQA's, are not used.
    if own_name != "instruction" and not isinstance(dict(row)[about], str):
        return [*before, asked]
    given = text_in(row.get(about), about).strip()
    if not given or given == asked["content"].strip():
        return [*before, asked]
    return [*before, {**asked, "content": f"{asked['content']}\n\n{given}"}]


def prompt_in(row: Mapping[str, Any], column: str) -> list[Message]:
    """Read a prompt: messages, a transcript, or the user's text.

    A transcript ends with the human's turn or with an empty assistant's turn. HelpSteer writes
    earlier turns into the prompt, with a marker line before each turn but the first.

    Raises:
        Malformed: the column holds none of these.
        Dropped: the transcript ends with an answer.
    """
    value = row.get(column)
    if isinstance(value, list) or _is_messages(row, value):
        return messages_in(row, column)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Malformed(column, f"expected text or messages, got {type_name(value)}")
    value = text_in(value, column)
    if value.startswith("\n\nHuman:"):
        begun = value.rstrip().removesuffix("\n\nAssistant:")
        if _SPEAKER.split(begun)[-2] == "Assistant":
            raise Dropped("a prompt that ends with an answer")
        return turns_of_transcript(f"{begun}\n\nAssistant: ", column, answered=False)
    first, *others = _TURN_OF_HELPSTEER.split(value)
    turns = [
        {"role": who.lower(), "content": said}
        for who, said in zip(others[::2], others[1::2], strict=True)
    ]
    if turns and turns[-1] == assistant(""):  # the place for the answer
        turns.pop()
    return [user(first), *turns]


def text_in(value: Any, field: str) -> str:
    """Return a prompt or an answer as text; a number becomes text.

    Infinite numbers and NaN are refused: pandas reads an empty cell as NaN.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise Malformed(
            field, f"expected text or a finite number, got {value}; fill it in or remove the row"
        )
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return check_text(str(value) if is_number else value, field)


def _is_messages(row: Mapping[str, Any], text: Any) -> bool:
    """True if a table's cell holds messages as JSON text, and not a user's text that is JSON."""
    found = from_json(text) if in_table(row) else None
    return isinstance(found, list) and bool(found) and all(map(_is_message, found))


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if str(value.get("role")) in _OPENAI_ROLES:
        return any(name in value for name in ("content", *_CALLS))
    return str(value.get("from")) in _SHAREGPT_ROLES and "value" in value


def turns_of_transcript(transcript: Any, column: str, *, answered: bool = True) -> list[Message]:
    """Return the turns of a transcript in hh-rlhf's form.

    Without `answered`, drop the last turn: the assistant's, which is only begun.
    """
    parts = _SPEAKER.split(check_text(transcript, column))
    turns = [
        {"role": _SPEAKERS[who], "content": said.strip()}
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if parts[0].strip() or len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise Malformed(column, 'expected "\\n\\nHuman: ...\\n\\nAssistant: ..."')
    if any(a["role"] == b["role"] for a, b in itertools.pairwise(turns)):
        raise Dropped("two turns of one speaker in a row")
    return turns if answered else turns[:-1]


def turns_in(row: Mapping[str, Any], column: str) -> list[Message]:
    """Return the turns after a prompt, from text or messages.

    If the messages begin with those of the prompt, return the whole conversation.
    """
    value = row.get(column)
    if isinstance(value, str) and value.startswith("\n\nHuman:"):
        with contextlib.suppress(Malformed):
            return turns_of_transcript(value, column)
    if isinstance(value, int | float | str) and not _is_messages(row, value):
        return [assistant(text_in(value, column))]
    messages = _messages(row, column)
    if not isinstance(messages, list):
        raise Malformed(column, f"expected text or messages, got {type_name(value)}")
    if not messages:
        raise Malformed(
            column, "expected an answer, got an empty list; fill it in or remove the row"
        )
    begins = (
        isinstance(messages[0], dict) and messages[0].get("role") == "assistant"
        if messages
        else True
    )
    # No conversation begins with the assistant, so an answer alone is checked after a dummy prompt.
    turns = (
        check_messages([user(" "), *messages], column)[1:]
        if begins
        else check_messages(messages, column)
    )
    if not turns or turns[-1]["role"] != "assistant":
        raise Malformed(column, "expected the assistant last")
    return turns


def whole_conversation(prompt: list[Message], turns: list[Message]) -> list[Message]:
    """Return the prompt with the turns after it, each message once.

    The turns may be the answer alone. They may hold the whole prompt, as UltraFeedback's do. Or
    they may begin with the last messages of the prompt, if only the prompt has the system message
    or the earlier turns.

    Raises:
        Dropped: the turns do not continue this prompt.
    """
    if turns[0]["role"] == "assistant":
        return [*prompt, *turns]
    asked, said = (
        [(m["role"], m["content"].strip()) for m in messages] for messages in (prompt, turns)
    )
    if any(said[begin : begin + len(asked)] == asked for begin in range(len(said) - len(asked))):
        return turns
    for missing in range(1, len(asked)):
        if said[: len(asked) - missing] == asked[missing:]:
            return [*prompt[:missing], *turns]
    raise Dropped("the conversation holds another prompt")
