"""The seven records that a row can be, their checks, and the dataset artifact that holds the rows.

    documents       {"text"}
    demonstrations  {"messages"}                        the last message is the assistant's
    prompts         {"prompt"}                          messages; the last is a user's or a tool's
    comparisons     {"prompt", "responses", "ranks"}    rank 1 is best, equal ranks are ties
    unpaired        {"prompt", "completion", "label"}   a response and whether it is good, as a bool
    items           {"contexts", "completions", "labels", "group"}
                    the candidates of a task that is scored by likelihood, with label 1 for right;
                    {"answer_context"} too, to compare a candidate's likelihood after its context
                    with its likelihood after this text, such as "Answer:";
                    {"leaning": true} too, if a label says which way a candidate leans and no
                    candidate is right
    labelled        {"texts", "label"}                  one text or a pair, and its class as text;
                    {"texts", "choices", "label"}       the question, its choices, and the index of
                                                        the right choice;
                    {"texts", "score"}                  one text or a pair, and its score as a
                                                        float, such as a pair's similarity

A message is {"role": system | user | assistant | tool, "content": text}. An assistant message may
have {"weight": 0}, which means that it is not learned, and {"tool_calls"}: a list of calls as JSON
text. A tool message may have {"tool_call_id"} and {"name"}. A demonstration may have {"tools"} next
to its messages: the list of tools as JSON text. It is JSON because each tool has its own fields and
a Parquet column has one type. Extra columns are kept. Extra columns with values of several types,
or with lists or objects, are kept as JSON text.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from align.data.labelled_as_text import as_text_to_text

Row = dict[str, Any]
Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
# The records that a row can become: its own, and those that its messages or label contain.
CONVERTS = frozenset(
    [
        *(
            (record, record)
            for record in (
                "documents",
                "demonstrations",
                "prompts",
                "comparisons",
                "unpaired",
                "items",
                "labelled",
            )
        ),
        ("demonstrations", "prompts"),
        ("comparisons", "prompts"),
        ("demonstrations", "documents"),
        ("labelled", "demonstrations"),
    ]
)
SPLITS = ("train", "validation", "test")
DATASET_INFO = "dataset.json"
GROUP_ROWS = 10_000
GROUP_CHARS = 2**26
BATCH_ROWS = 1000
_FIELDS = {  # record -> its own columns; in other records these names are a user's columns
    "documents": ("text",),
    "demonstrations": ("messages",),
    "prompts": ("prompt",),
    "comparisons": ("prompt", "responses", "ranks"),
    "unpaired": ("prompt",),
    "candidates": ("prompt", "responses"),
    "items": ("contexts", "completions", "labels"),
    "labelled": (),  # none: a label may be text or a number
}
_EMPTY_RESPONSE, _TWO_RANKS = "an empty response", "an answer that has two ranks"
_MAX_DEPTH = 100  # levels of nested lists and objects; pickle stops at 500, JSON at 1000
# Stored as lists if their types allow it.
_LISTS = ("gold", "texts", "choices", *itertools.chain(*_FIELDS.values()))


def type_name(value: object) -> str:
    """Return the type of a row's value, as an error message shows it."""
    return "null" if value is None else type(value).__name__


class Malformed(Exception):
    """A row does not match its format; `field` names the wrong field."""

    def __init__(self, field: str, what: str):
        # A name in a file may hold half of a surrogate pair, which cannot be printed.
        super().__init__(f"{field}: {what}".encode(errors="backslashreplace").decode())


class OutOfTurn(Malformed):
    """Messages with two turns of one speaker in a row, or with an assistant's turn first."""


class Dropped(Exception):
    """A row is well formed but not useful; the message is the reason that is counted."""


def check_text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise Malformed(field, f"expected text, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Malformed(
            field, "expected text that UTF-8 can hold, got half of a surrogate pair"
        ) from None
    return value


def check_messages(value: Any, field: str) -> list[Message]:
    """Return `value` as messages, as the module's docstring defines them; drop other fields.

    A user's message is first, then an assistant's, and so on in turns. Messages of tools may be
    between two of an assistant's. A system message may be anywhere; empty ones are dropped.

    Raises:
        Malformed: `value` is not a list of messages, a role or a field is wrong, or the turns are
            in another order.
    """
    if not isinstance(value, list) or not value:
        raise Malformed(field, f"expected a list of messages, got {_kind(value)}")
    messages = [_check_message(message, f"{field}[{i}]") for i, message in enumerate(value)]
    messages = [
        message for message in messages if message["role"] != "system" or message["content"].strip()
    ]
    if not messages:
        raise Malformed(field, "expected a message other than an empty system message")
    _check_turns([message["role"] for message in messages if message["role"] != "system"], field)
    return messages


def _check_message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise Malformed(where, f"expected role and content, got {_kind(message)}")
    role = message.get("role")
    if role not in ROLES:
        raise Malformed(
            f"{where}.role",
            f"expected one of {', '.join(ROLES)}, got {json.dumps(role, default=str)}",
        )
    checked = {"role": role, "content": check_text(message.get("content"), f"{where}.content")}
    for name in {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}.get(role, ()):
        if message.get(name) is not None:
            checked[name] = check_text(message[name], f"{where}.{name}")
    if message.get("weight") is not None:
        if role != "assistant" or message["weight"] != 0:
            raise Malformed(
                f"{where}.weight",
                f"expected 0, of an assistant's turn, got {_kind(message['weight'])}",
            )
        checked["weight"] = 0
    return checked


def _check_turns(roles: list[str], field: str) -> None:
    may_follow = {
        "user": ("", "assistant"),
        "assistant": ("user", "tool"),
        "tool": ("assistant", "tool"),
    }
    before = ""
    for role in roles:
        if before not in may_follow[role]:
            tool = ", a tool after an assistant" if "tool" in roles else ""
            raise OutOfTurn(
                field, f"expected user and assistant in turns{tool}, got {', '.join(roles)}"
            )
        before = role


def texts_of_messages(messages: list[Message]) -> list[str]:
    """Return the contents that may not be empty: all but those of tools and of tool calls."""
    return [m["content"] for m in messages if m["role"] != "tool" and not m.get("tool_calls")]


def check_row(record: str, row: Row) -> Row:
    """Check a row and return it as a `record`.

    Raises:
        Malformed: the row does not match the record.
        Dropped: there is nothing to learn from the row, for example because a text is empty.
    """
    if record == "documents":
        texts = [check_text(row.get("text"), "text")]
    elif record == "demonstrations":
        messages = check_messages(row.get("messages"), "messages")
        if messages[-1]["role"] == "user":
            raise Dropped("a conversation that ends with the user")
        _expect_last(messages, ("assistant",), "messages")
        if all(m.get("weight") == 0 for m in messages if m["role"] == "assistant"):
            raise Dropped("every answer has weight 0")
        texts = texts_of_messages(messages)
        row = {**row, "messages": messages}
    elif record == "items":
        texts = _check_item(row)
        # One type for the column: 1, true and 1.0 have no common Arrow type.
        row = {**row, "labels": [int(label) for label in row["labels"]]}
    elif record == "labelled":
        texts = _check_labelled(row)
    else:
        prompt = check_messages(row.get("prompt"), "prompt")
        _expect_last(prompt, ("user", "tool"), "prompt")
        texts = texts_of_messages(prompt)
        row = {**row, "prompt": prompt}
        texts += _check_responses(record, row)
    if not all(text.strip() for text in texts):
        raise Dropped("empty text")
    for name, value in row.items():
        check_text(name, "column")
        _check_depth(value, name)
    return row


def _check_depth(value: Any, field: str, left: int = _MAX_DEPTH) -> None:
    """Refuse a value that is nested too deeply to be stored."""
    if not isinstance(value, dict | list):
        return
    if left == 0:
        raise Malformed(field, f"expected at most {_MAX_DEPTH} lists and objects in each other")
    for each in value.values() if isinstance(value, dict) else value:
        _check_depth(each, field, left - 1)


def _expect_last(messages: list[Message], roles: tuple[str, ...], field: str) -> None:
    last = messages[-1]["role"]
    if last not in roles:
        raise Malformed(
            f"{field}[{len(messages) - 1}].role",
            f"expected the {' or '.join(roles)} last, got {last}",
        )


def _check_responses(record: str, row: Row) -> list[str]:
    """Check the responses beside a prompt, and return their texts; prompts alone have none."""
    if record == "comparisons":
        return _check_ranking(row)
    if record == "unpaired":
        if not isinstance(row.get("label"), bool):
            raise Malformed("label", f"expected true or false, got {_kind(row.get('label'))}")
        return [check_text(row.get("completion"), "completion")]
    return []


def _check_ranking(row: Row) -> list[str]:
    responses: Any = row.get("responses")
    ranks: Any = row.get("ranks")
    if not isinstance(responses, list) or len(responses) < 2:
        raise Malformed("responses", "expected at least two")
    if not _are_ranked(responses, ranks):
        raise Malformed("ranks", "expected one whole number for each response, 1 for the best")
    if not all(abs(rank) < 2**31 for rank in ranks):
        raise Malformed("ranks", f"expected whole numbers below {2**31:,}, 1 for the best")
    texts = [check_text(text, f"responses[{i}]") for i, text in enumerate(responses)]
    if len(set(ranks)) == 1:
        raise Dropped("all tied")
    if len(set(texts)) == 1:
        raise Dropped("responses all alike")
    if len(set(zip(texts, ranks, strict=True))) > len(set(texts)):
        raise Dropped(_TWO_RANKS)
    return texts


def _are_ranked(responses: Any, ranks: Any) -> bool:
    """True for a list of responses and a list of one integer rank for each."""
    if (
        not isinstance(responses, list)
        or not isinstance(ranks, list)
        or len(responses) != len(ranks)
    ):
        return False
    return all(type(rank) is int for rank in ranks)


def _check_item(row: Row) -> list[str]:
    parts: list[list[Any]] = []
    for name in ("contexts", "completions", "labels"):
        part = row.get(name)
        if not isinstance(part, list) or not part or len(part) != len((parts or [part])[0]):
            raise Malformed(
                name, "expected a list, one entry for each candidate, as long as the others"
            )
        parts.append(part)
    contexts, completions, labels = parts
    for i, context in enumerate(contexts):
        check_text(context, f"contexts[{i}]")
    if row.get("answer_context") is not None:
        check_text(row["answer_context"], "answer_context")
    if not all(label in (0, 1) for label in labels) or 1 not in labels:
        raise Malformed(
            "labels",
            "expected 1 for each right candidate, of which there is one, and 0 for the others",
        )
    return [check_text(text, f"completions[{i}]") for i, text in enumerate(completions)]


def _check_labelled(row: Row) -> list[str]:
    texts, choices, label, score = (
        row.get(name) for name in ("texts", "choices", "label", "score")
    )
    if not isinstance(texts, list) or len(texts) not in (1, 2):
        raise Malformed("texts", "expected a list of one text, or of two")
    found = [check_text(text, f"texts[{i}]") for i, text in enumerate(texts)]
    if (label is None) == (score is None):
        raise Malformed("label", "expected a label or a score, and not both")
    if choices is not None:
        if not isinstance(choices, list) or len(choices) < 2:
            raise Malformed("choices", "expected at least two")
        if type(label) is not int or not 0 <= label < len(choices):
            raise Malformed(
                "label", f"expected the place of the right choice, 0 to {len(choices) - 1}"
            )
        return found + [check_text(choice, f"choices[{i}]") for i, choice in enumerate(choices)]
    if score is not None:
        if isinstance(score, bool) or not isinstance(score, float) or not math.isfinite(score):
            raise Malformed("score", f"expected a finite number, got {_kind(score)}")
        return found
    return [*found, check_text(label, "label")]


def _kind(value: object) -> str:
    return (
        "nothing"
        if value is None
        else f"{type(value).__name__} {json.dumps(value, default=str)[:60]}"
    )


def convert(row: Row, record: str, wanted: str, name: str = "") -> Row:
    """Return a row of one record as another record.

    Demonstrations and comparisons become prompts, demonstrations become documents, and labelled
    rows of the task `name` become demonstrations in T5's text-to-text form.

    Raises:
        ValueError: there is no such conversion.
    """
    if record == wanted:
        return row
    if wanted == "prompts" and record == "demonstrations":
        return {"prompt": [_without(message, "weight") for message in _asked_in(row["messages"])]}
    if wanted == "prompts" and record == "comparisons":
        return {"prompt": row["prompt"]}
    if wanted == "documents" and record == "demonstrations":
        return {
            "text": "\n\n".join(m["content"] or m.get("tool_calls", "") for m in row["messages"])
        }
    if wanted == "demonstrations" and record == "labelled":
        _check_labelled(row)  # check first: the text form is written from these fields
        return {"messages": as_text_to_text(row, name)}
    raise ValueError(f"{record} cannot become {wanted}")


def _asked_in(messages: list[Message]) -> list[Message]:
    """Return the messages before the last answer; all of them if the last is not an answer."""
    answered = bool(messages) and messages[-1]["role"] == "assistant"
    return messages[:-1] if answered else messages


def clear_responses(row: Row) -> tuple[Row, Counter[str]]:
    """Drop a ranking's empty responses and those with two ranks; return also the count of each.

    If fewer than two would be left, they are kept, and `check_row` reports what is wrong.
    """
    responses: Any = row.get("responses")
    ranks: Any = row.get("ranks")
    left_out: Counter[str] = Counter()
    if not _are_ranked(responses, ranks) or not all(isinstance(text, str) for text in responses):
        return row, left_out
    pairs = list(zip(responses, ranks, strict=True))
    filled = [(text, rank) for text, rank in pairs if text.strip()]
    ranks_of: dict[str, set[int]] = {}
    for text, rank in filled:
        ranks_of.setdefault(text, set()).add(rank)
    clear = [(text, rank) for text, rank in filled if len(ranks_of[text]) == 1]
    for reason, left in ((_EMPTY_RESPONSE, filled), (_TWO_RANKS, clear)):
        if 2 <= len(left) < len(pairs):
            left_out[reason] = len(pairs) - len(left)
            pairs = left
    return {
        **row,
        "responses": [text for text, _ in pairs],
        "ranks": [rank for _, rank in pairs],
    }, left_out


def _without(message: Message, field: str) -> Message:
    return {name: value for name, value in message.items() if name != field}


def split_key(row: Row) -> str:
    """Return the text that decides a row's split.

    It is the text of the question, so that one prompt is in the same split in every dataset. For
    labelled rows it is the first text, a premise or a passage, so that all questions about it are
    in one split. For a chapter it is its book. For a part of a message tree it is the first user
    message, which the whole tree shares. The name of the tree is not used: a prompt that begins two
    trees would be in two splits.
    """
    asked = messages_asked(row)
    if asked is not None:
        said = _said_by_users(asked)
        return "\n".join(said[:1] if row.get("message_tree_id") else said)
    if "texts" in row:
        return row["texts"][0]
    if "text" in row:
        return str(row.get("book") or row["text"])
    return "\n".join([*row["contexts"], *row["completions"]])


def _said_by_users(messages: list[Message]) -> list[str]:
    """Return the users' texts, lower-case and with runs of white space as one space."""
    return [" ".join(m["content"].lower().split()) for m in messages if m["role"] == "user"]


def messages_asked(row: Row) -> list[Message] | None:
    """Return the messages that an answer follows; None for other kinds of row.

    The test looks for messages, not for a missing `text`: rows may have a user's own columns.
    """
    if isinstance(row.get("messages"), list) and "prompt" not in row:
        return _asked_in(row["messages"])
    return row["prompt"] if isinstance(row.get("prompt"), list) else None


def whole_key(row: Row) -> str:
    """Return the text that identifies a row across splits: if two rows share it, they are the same.

    For labelled rows it is all texts, because published splits share premises.
    """
    asked = messages_asked(row)
    if asked is not None:
        return "\n".join(_said_by_users(asked))
    if "texts" in row:
        return "\n".join([*row["texts"], *(row.get("choices") or [])])
    return split_key(row)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def hashed(text: str) -> int:
    return int.from_bytes(digest(text)[:8], "big")


def split_of(key: str, held_out: float) -> str:
    """Return the split of a key, by its hash: no list of keys needs to be stored.

    A fraction `held_out` of all keys is validation, the same fraction is test, the rest is train.
    """
    place = hashed("split " + key) / 2**64
    return "validation" if place < held_out else "test" if place < 2 * held_out else "train"


# -- the dataset artifact --------------------------------------------------------------------------


def write_rows(
    folder: Path,
    split: str,
    rows: Iterable[Row],
    advance: Callable[[int], None] = lambda count: None,
    record: str = "",
) -> int:
    """Write `folder`/<split>.parquet and return the number of rows; write nothing without rows.

    Memory holds one row group. A column's type is wide enough for all its values: if a later group
    does not fit the type so far, the file is written again with a wider type.

    Args:
        folder: the folder to write to.
        split: the name of the split.
        rows: the rows, which may be read several times; an iterator is therefore read into memory.
        advance: called with the number of rows written since its last call; negative when the file
            is written again.
        record: the record of the rows. Its own columns must have one type each; a user's other
            columns become JSON text if they have several.
    """
    rows = list(rows) if isinstance(rows, Iterator) else rows
    types: dict[str, Any] = {}
    while True:
        written, whole = 0, True
        with _parquet_file(folder / f"{split}.parquet") as write:
            for group in _groups(rows):
                whole = write(_table(group, types, _FIELDS.get(record, ())))
                if not whole:
                    break
                written += len(group)
                advance(len(group))
        if whole:
            return written
        advance(-written)


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[Callable[[Any], bool]]:
    """Give a function that writes a table as a row group.

    It returns False for a table whose schema is not that of the first table. On an error the file
    is deleted.
    """
    import pyarrow.parquet as pq

    writer = None

    def write(table: Any) -> bool:
        nonlocal writer
        writer = writer or pq.ParquetWriter(path, table.schema)
        if table.schema != writer.schema:
            return False
        writer.write_table(table, row_group_size=GROUP_ROWS)
        return True

    try:
        yield write
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        if writer is not None:
            writer.close()


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the rows of one row group at a time: `GROUP_ROWS`, or fewer if the rows are long."""
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += _length(row)
        if len(group) == GROUP_ROWS or size >= GROUP_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _length(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_length, value.values()))
    return sum(map(_length, value)) if isinstance(value, list | tuple) else 0


def _table(rows: list[Row], types: dict[str, Any], own: tuple[str, ...]) -> Any:
    """Return rows as an Arrow table; update `types` with new columns and wider types."""
    import pyarrow as pa

    for name in dict.fromkeys(name for row in rows for name in row):
        types.setdefault(name, pa.null())
    return pa.table(
        {name: _column(name, [row.get(name) for row in rows], types, own) for name in types}
    )


def _column(name: str, values: list[Any], types: dict[str, Any], own: tuple[str, ...]) -> Any:
    """Return the values as an Arrow array.

    If types differ or nest, the array holds JSON text, except for the record's `own` columns.
    """
    import pyarrow as pa

    if types[name] is not None and (
        name in _LISTS
        or not any(isinstance(value, dict | list | tuple | bytes) for value in values)
    ):
        try:
            types[name] = _wider(types[name], pa.infer_type(values))
            return pa.array(values, types[name])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            if name in own:
                raise
    types[name] = None  # this column is JSON text from now on
    return pa.array(
        [None if value is None else json.dumps(value, default=str) for value in values], pa.string()
    )


def _wider(first: Any, second: Any) -> Any:
    """Return the Arrow type that holds values of both types; `first` if there is none."""
    import pyarrow as pa

    one, other = (pa.schema([("", kind)]) for kind in (first, second))
    with contextlib.suppress(pa.ArrowException):
        return pa.unify_schemas([one, other], promote_options="permissive").field(0).type
    return first


def read_rows(folders: Iterable[Path], split: str) -> Iterator[Row]:
    """Yield the rows of one split of several datasets in turn; skip datasets without the split."""
    for folder in folders:
        path = folder / f"{split}.parquet"
        if path.is_file():
            yield from map(_without_empty_fields, read_parquet(path))


def _without_empty_fields(row: Row) -> Row:
    """Remove the empty fields of messages.

    A Parquet column gives every message all fields that any of its messages has.
    """
    for name in ("messages", "prompt"):
        messages = row.get(name)
        if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
            continue  # a user's own column
        if messages and len(messages[0]) > 2:
            row[name] = [
                {k: v for k, v in message.items() if v is not None} for message in messages
            ]
    return row


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file; memory holds one batch, whatever the row group size."""
    for batch in read_batches(path):
        yield from batch.to_pylist()


def read_batches(path: Path) -> Iterator[Any]:
    """Yield the Arrow batches of a Parquet file, `BATCH_ROWS` rows each at most."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS)


def count_rows(folder: Path, split: str) -> int:
    """Return the number of rows in a split of a dataset, 0 if it has no such split."""
    import pyarrow.parquet as pq

    path = folder / f"{split}.parquet"
    return pq.read_metadata(path).num_rows if path.is_file() else 0


def write_info(folder: Path, **info: Any) -> None:
    """Write what the rows do not contain: where they come from and who can score them."""
    (folder / DATASET_INFO).write_text(json.dumps(info, indent=1, sort_keys=True), encoding="utf-8")


def read_info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / DATASET_INFO).read_text(encoding="utf-8"))


def source_name(source: str) -> str:
    """Return a short name for a source: the last part of its path, up to the first dot."""
    place = source.partition("@")[0] if source.startswith("hf:") else source
    return Path(place.rpartition(":")[2]).name.partition(".")[0] or "text"
