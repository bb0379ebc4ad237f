"""What a row is: six records, the checks that make a row one of them, and the dataset artifact that holds them.

    documents       {"text"}
    demonstrations  {"messages"}                        the last message is the assistant's
    prompts         {"prompt"}                          messages, the last one the user's
    comparisons     {"prompt", "responses", "ranks"}    rank 1 is best, equal ranks are ties
    items           {"contexts", "completions", "labels", "group"}   candidates of a task that is scored by likelihood;
                    {"answer_context"} too, where that of a candidate is to be held against its own after "Answer:";
                    and {"leaning": true}, where a label says which side a candidate is of, and neither is right
    labelled        {"texts", "label"}                  one text or a pair, and the class of it as text;
                    {"texts", "choices", "label"}       what is asked, the answers, and the place of the right one;
                    {"texts", "score"}                  a pair, and how alike its texts are, as a number

A message is {"role": system | user | assistant | tool, "content": text}. An assistant's may have {"weight": 0}, which
means that it is not learned, and {"tool_calls"}: a list of calls as JSON text. A tool's may have {"tool_call_id"} and
{"name"}. A demonstration may have {"tools"} beside its messages: the list of tools as JSON text. It is JSON because
each tool has fields of its own and a column of Parquet has one type. Extra columns are kept; those with values of
several types, or with lists or objects, as JSON text.
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
# Which records a row can become besides its own: what was answered or compared can be asked again.
CONVERTS = frozenset(
    [
        *(
            (record, record)
            for record in ("documents", "demonstrations", "prompts", "comparisons", "items", "labelled")
        ),
        ("demonstrations", "prompts"),
        ("comparisons", "prompts"),
        ("demonstrations", "documents"),
        ("labelled", "demonstrations"),
    ]
)
SPLITS = ("train", "validation", "test")
DATASET_INFO = "dataset.json"
_GROUP_ROWS = 10_000
_GROUP_CHARS = 2**26
_BATCH_ROWS = 1000
_FIELDS = {  # record -> its columns; in another record a column of that name is a user's own
    "documents": ("text",),
    "demonstrations": ("messages",),
    "prompts": ("prompt",),
    "comparisons": ("prompt", "responses", "ranks"),
    "items": ("contexts", "completions", "labels"),
    "labelled": (),  # a label is text or a number
}
_EMPTY_RESPONSE, _TWO_RANKS = "an empty response", "an answer that has two ranks"
_MAX_DEPTH = 100  # lists and objects in each other: pickle stops at 500, JSON at 1000
_LISTS = ("gold", "texts", "choices", *itertools.chain(*_FIELDS.values()))  # kept as lists where their types allow it


def type_name(value: object) -> str:
    """What kind of value a row holds, for an error line."""
    return "null" if value is None else type(value).__name__


class Malformed(Exception):
    """A row is not what its format says; `field` names the place."""

    def __init__(self, field: str, what: str):
        # A name in a file may hold half of a surrogate pair, which cannot be printed.
        super().__init__(f"{field}: {what}".encode(errors="backslashreplace").decode())


class OutOfTurn(Malformed):
    """Messages of which two of one speaker follow each other, or the first is an assistant's."""


class Dropped(Exception):
    """A row is well formed but of no use; the message is the reason it is counted under."""


def check_text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise Malformed(field, f"expected text, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Malformed(field, "expected text that UTF-8 can hold, got half of a surrogate pair") from None
    return value


def check_messages(value: Any, field: str) -> list[Message]:
    """Return `value` as messages as the module's docstring describes them; other fields of a message are left out.

    Raises:
        Malformed: it is no list of messages, a role or a field is unknown, or the turns are in no order: a user's
            first, then an assistant's, with tools' between two of an assistant's. A system message may be anywhere.
            An empty one is left out.
    """
    if not isinstance(value, list) or not value:
        raise Malformed(field, f"expected a list of messages, got {_kind(value)}")
    messages = [_check_message(message, f"{field}[{i}]") for i, message in enumerate(value)]
    messages = [message for message in messages if message["role"] != "system" or message["content"].strip()]
    if not messages:
        raise Malformed(field, "expected a message besides an empty system message")
    _check_turns([message["role"] for message in messages if message["role"] != "system"], field)
    return messages


def _check_message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise Malformed(where, f"expected role and content, got {_kind(message)}")
    role = message.get("role")
    if role not in ROLES:
        raise Malformed(f"{where}.role", f"expected one of {', '.join(ROLES)}, got {json.dumps(role, default=str)}")
    checked = {"role": role, "content": check_text(message.get("content"), f"{where}.content")}
    for name in {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}.get(role, ()):
        if message.get(name) is not None:
            checked[name] = check_text(message[name], f"{where}.{name}")
    if message.get("weight") is not None:
        if role != "assistant" or message["weight"] != 0:
            raise Malformed(f"{where}.weight", f"expected 0, of an assistant's turn, got {_kind(message['weight'])}")
        checked["weight"] = 0
    return checked


def _check_turns(roles: list[str], field: str) -> None:
    may_follow = {"user": ("", "assistant"), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
    before = ""
    for role in roles:
        if before not in may_follow[role]:
            tool = ", a tool after an assistant" if "tool" in roles else ""
            raise OutOfTurn(field, f"expected user and assistant in turns{tool}, got {', '.join(roles)}")
        before = role


def texts_of_messages(messages: list[Message]) -> list[str]:
    """The contents that may not be empty: all but a call's, which may be nothing but the call, and a tool's answer."""
    return [m["content"] for m in messages if m["role"] != "tool" and not m.get("tool_calls")]


def check_row(record: str, row: Row) -> Row:
    """`row` as a `record`, or `Malformed`, or `Dropped` when it teaches nothing, as with an empty text."""
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
        row = {**row, "labels": [int(label) for label in row["labels"]]}  # 1, true and 1.0 have no common type
    elif record == "labelled":
        texts = _check_labelled(row)
    else:
        prompt = check_messages(row.get("prompt"), "prompt")
        _expect_last(prompt, ("user", "tool"), "prompt")
        texts = texts_of_messages(prompt)
        row = {**row, "prompt": prompt}
        if record == "comparisons":
            texts += _check_ranking(row)
    if not all(text.strip() for text in texts):
        raise Dropped("empty text")
    for name, value in row.items():
        check_text(name, "column")
        _check_depth(value, name)
    return row


def _check_depth(value: Any, field: str, left: int = _MAX_DEPTH) -> None:
    """Refuse lists and objects in each other that are too many to be stored."""
    if not isinstance(value, dict | list):
        return
    if left == 0:
        raise Malformed(field, f"expected at most {_MAX_DEPTH} lists and objects in each other")
    for each in value.values() if isinstance(value, dict) else value:
        _check_depth(each, field, left - 1)


def _expect_last(messages: list[Message], roles: tuple[str, ...], field: str) -> None:
    last = messages[-1]["role"]
    if last not in roles:
        raise Malformed(f"{field}[{len(messages) - 1}].role", f"expected the {' or '.join(roles)} last, got {last}")


def _check_ranking(row: Row) -> list[str]:
    responses: Any = row.get("responses")
    ranks: Any = row.get("ranks")
    if not isinstance(responses, list) or len(responses) < 2:
        raise Malformed("responses", "expected at least two")
    if not _are_ranked(responses, ranks):
        raise Malformed("ranks", "expected one whole number a response, 1 for the best")
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
    """True for a list of responses beside one with a whole number for each."""
    if not isinstance(responses, list) or not isinstance(ranks, list) or len(responses) != len(ranks):
        return False
    return all(type(rank) is int for rank in ranks)


def _check_item(row: Row) -> list[str]:
    parts: list[list[Any]] = []
    for name in ("contexts", "completions", "labels"):
        part = row.get(name)
        if not isinstance(part, list) or not part or len(part) != len((parts or [part])[0]):
            raise Malformed(name, "expected a list, an entry a candidate, as long as the others")
        parts.append(part)
    contexts, completions, labels = parts
    for i, context in enumerate(contexts):
        check_text(context, f"contexts[{i}]")
    if row.get("answer_context") is not None:
        check_text(row["answer_context"], "answer_context")
    if not all(label in (0, 1) for label in labels) or 1 not in labels:
        raise Malformed("labels", "expected 1 for each right candidate, of which there is one, and 0 for the others")
    return [check_text(text, f"completions[{i}]") for i, text in enumerate(completions)]


def _check_labelled(row: Row) -> list[str]:
    texts, choices, label, score = (row.get(name) for name in ("texts", "choices", "label", "score"))
    if not isinstance(texts, list) or len(texts) not in (1, 2):
        raise Malformed("texts", "expected a list of one text, or of two")
    found = [check_text(text, f"texts[{i}]") for i, text in enumerate(texts)]
    if (label is None) == (score is None):
        raise Malformed("label", "expected a label or a score, and not both")
    if choices is not None:
        if not isinstance(choices, list) or len(choices) < 2:
            raise Malformed("choices", "expected at least two")
        if type(label) is not int or not 0 <= label < len(choices):
            raise Malformed("label", f"expected the place of the right choice, 0 to {len(choices) - 1}")
        return found + [check_text(choice, f"choices[{i}]") for i, choice in enumerate(choices)]
    if score is not None:
        if isinstance(score, bool) or not isinstance(score, float) or not math.isfinite(score):
            raise Malformed("score", f"expected a finite number, got {_kind(score)}")
        return found
    return [*found, check_text(label, "label")]


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {json.dumps(value, default=str)[:60]}"


def convert(row: Row, record: str, wanted: str, name: str = "") -> Row:
    """A row of one record as another, where that makes sense: what was answered or compared can be asked again.

    A labelled row of the task `name` becomes a demonstration as T5 writes tasks.
    """
    if record == wanted:
        return row
    if wanted == "prompts" and record == "demonstrations":
        return {"prompt": [_without(message, "weight") for message in _asked_in(row["messages"])]}
    if wanted == "prompts" and record == "comparisons":
        return {"prompt": row["prompt"]}
    if wanted == "documents" and record == "demonstrations":
        return {"text": "\n\n".join(m["content"] or m.get("tool_calls", "") for m in row["messages"])}
    if wanted == "demonstrations" and record == "labelled":
        _check_labelled(row)  # what is written out must be what it is called
        return {"messages": as_text_to_text(row, name)}
    raise ValueError(f"{record} cannot become {wanted}")


def _asked_in(messages: list[Message]) -> list[Message]:
    """The messages before the last answer; all of them where the user has the last word."""
    answered = bool(messages) and messages[-1]["role"] == "assistant"
    return messages[:-1] if answered else messages


def clear_responses(row: Row) -> tuple[Row, Counter[str]]:
    """A ranking without its empty responses and without those that have two ranks, and how many of each there were.

    Where fewer than two would be left, they stay, and `check_row` says what is wrong with the row.
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
    return {**row, "responses": [text for text, _ in pairs], "ranks": [rank for _, rank in pairs]}, left_out


def _without(message: Message, field: str) -> Message:
    return {name: value for name, value in message.items() if name != field}


def split_key(row: Row) -> str:
    """Return the text that decides a row's split: what is asked, so that one prompt is in one split of any dataset.

    For labelled rows it is the first text: a premise, or a passage, with all that is asked about it. For a chapter it
    is its book. For a part of a tree of messages it is the first message, which all of the tree begins with: by the
    tree's name, one prompt of two trees would be in two splits.
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
    """What users say, without regard to capitals and to white space."""
    return [" ".join(m["content"].lower().split()) for m in messages if m["role"] == "user"]


def messages_asked(row: Row) -> list[Message] | None:
    """The messages that an answer follows; None for a row of another kind. Rows may have columns of a user's own, so
    it is by the messages that one is known, and not by the lack of a `text`.
    """
    if isinstance(row.get("messages"), list) and "prompt" not in row:
        return _asked_in(row["messages"])
    return row["prompt"] if isinstance(row.get("prompt"), list) else None


def whole_key(row: Row) -> str:
    """What makes two rows of two splits the same: what is asked; of labelled rows every text, for published splits
    share premises.
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
    """`held_out` of all keys are validation, as many are test, the rest train; by hash, so nothing need be kept."""
    place = hashed("split " + key) / 2**64
    return "validation" if place < held_out else "test" if place < 2 * held_out else "train"


# -- the dataset artifact ----------------------------------------------------------------------------------------


def write_rows(
    folder: Path,
    split: str,
    rows: Iterable[Row],
    advance: Callable[[int], None] = lambda count: None,
    record: str = "",
) -> int:
    """Write `folder`/<split>.parquet and return the number of rows; nothing is written when there are none.

    Memory is that of a row group. The type of a column is that of all its values: where a later group has what the
    groups before it cannot hold, the file is begun again with a wider type.

    Args:
        folder: where.
        split: its name.
        rows: to be read once or several times; an iterator, which cannot be, is held in memory.
        advance: called with the number of rows written since its last call; negative when the file is begun again.
        record: what the rows are. Its own columns must have one type each; a user's beside them become JSON text where
            they have several.
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
    """Give a function that adds a table as a row group, or is False of one with other columns than the first."""
    import pyarrow.parquet as pq

    writer = None

    def write(table: Any) -> bool:
        nonlocal writer
        writer = writer or pq.ParquetWriter(path, table.schema)
        if table.schema != writer.schema:
            return False
        writer.write_table(table, row_group_size=_GROUP_ROWS)
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
    """Rows as they are written together: many, or fewer where they are long."""
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += _length(row)
        if len(group) == _GROUP_ROWS or size >= _GROUP_CHARS:
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
    """Rows as Arrow has them; `types` learns of new columns, and of what those that it knows hold besides."""
    import pyarrow as pa

    for name in dict.fromkeys(name for row in rows for name in row):
        types.setdefault(name, pa.null())
    return pa.table({name: _column(name, [row.get(name) for row in rows], types, own) for name in types})


def _column(name: str, values: list[Any], types: dict[str, Any], own: tuple[str, ...]) -> Any:
    """The values as Arrow has them; as JSON text where types differ or nest, if the column is none of the `own`."""
    import pyarrow as pa

    if types[name] is not None and (
        name in _LISTS or not any(isinstance(value, dict | list | tuple | bytes) for value in values)
    ):
        try:
            types[name] = _wider(types[name], pa.infer_type(values))
            return pa.array(values, types[name])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            if name in own:
                raise
    types[name] = None  # JSON, from now on
    return pa.array([None if value is None else json.dumps(value, default=str) for value in values], pa.string())


def _wider(first: Any, second: Any) -> Any:
    """The type that Arrow finds for values of one type and then of another; the first where there is none."""
    import pyarrow as pa

    one, other = (pa.schema([("", kind)]) for kind in (first, second))
    with contextlib.suppress(pa.ArrowException):
        return pa.unify_schemas([one, other], promote_options="permissive").field(0).type
    return first


def read_rows(folders: Iterable[Path], split: str) -> Iterator[Row]:
    """The rows of one split of several datasets, one after the other; none where a dataset lacks the split."""
    for folder in folders:
        path = folder / f"{split}.parquet"
        if path.is_file():
            yield from map(_without_empty_fields, read_parquet(path))


def _without_empty_fields(row: Row) -> Row:
    """A column of Parquet gives every message all the fields that one of them has; take the empty ones out again."""
    for name in ("messages", "prompt"):
        messages = row.get(name)
        if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
            continue  # a column of the user's own
        if messages and len(messages[0]) > 2:
            row[name] = [{k: v for k, v in message.items() if v is not None} for message in messages]
    return row


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, in the memory of some of them however long its row groups are."""
    for batch in read_batches(path):
        yield from batch.to_pylist()


def read_batches(path: Path) -> Iterator[Any]:
    """The Arrow batches of a Parquet file, of some rows each."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=_BATCH_ROWS)


def count_rows(folder: Path, split: str) -> int:
    """How many rows a split of a dataset has."""
    import pyarrow.parquet as pq

    path = folder / f"{split}.parquet"
    return pq.read_metadata(path).num_rows if path.is_file() else 0


def write_info(folder: Path, **info: Any) -> None:
    """What the rows do not say of themselves: where they come from and who can score them."""
    (folder / DATASET_INFO).write_text(json.dumps(info, indent=1, sort_keys=True), encoding="utf-8")


def read_info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / DATASET_INFO).read_text(encoding="utf-8"))


def source_name(source: str) -> str:
    """What a source is called: the last part of where its rows come from, without what follows a dot."""
    place = source.partition("@")[0] if source.startswith("hf:") else source
    return Path(place.rpartition(":")[2]).name.partition(".")[0] or "text"
