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

A message is {"role": system | user | assistant, "content": text}. Extra columns are kept as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Message = dict[str, str]

ROLES = ("system", "user", "assistant")
SPLITS = ("train", "validation", "test")
DATASET_INFO = "dataset.json"
_GROUP_ROWS = 10_000
_COLUMNS = ("text", "messages", "prompt", "responses", "ranks", "gold", "contexts", "completions", "labels")
_LISTS = ("texts", "choices")  # of labelled rows; in others a user's own


class Malformed(Exception):
    """A row is not what its format says; `field` names the place."""

    def __init__(self, field: str, what: str):
        super().__init__(f"{field}: {what}")


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
    """`value` as messages with a role of ours and text, the first not the assistant's, turns in alternation."""
    if not isinstance(value, list) or not value:
        raise Malformed(field, f"expected a list of messages, got {_kind(value)}")
    messages = []
    for i, message in enumerate(value):
        where = f"{field}[{i}]"
        if not isinstance(message, dict):
            raise Malformed(where, f"expected role and content, got {_kind(message)}")
        if message.get("role") not in ROLES:
            raise Malformed(
                f"{where}.role",
                f"expected one of {', '.join(ROLES)}, got {json.dumps(message.get('role'), default=str)}",
            )
        content = check_text(message.get("content"), f"{where}.content")
        messages.append({"role": message["role"], "content": content})
    turns = [m["role"] for m in messages if m["role"] != "system"]
    if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(turns)):
        raise Malformed(field, f"expected user and assistant in turns, got {', '.join(turns)}")
    return messages


def check_row(record: str, row: Row) -> Row:
    """`row` as a `record`, or `Malformed`, or `Dropped` when a text that matters is empty."""
    if record == "documents":
        texts = [check_text(row.get("text"), "text")]
    elif record == "demonstrations":
        messages = check_messages(row.get("messages"), "messages")
        _expect_last(messages, "assistant", "messages")
        texts = [m["content"] for m in messages]
        row = {**row, "messages": messages}
    elif record == "items":
        texts = _check_item(row)
    elif record == "labelled":
        texts = _check_labelled(row)
    else:
        prompt = check_messages(row.get("prompt"), "prompt")
        _expect_last(prompt, "user", "prompt")
        texts = [m["content"] for m in prompt]
        row = {**row, "prompt": prompt}
        if record == "comparisons":
            texts += _check_ranking(row)
    if not all(text.strip() for text in texts):
        raise Dropped("empty text")
    return row


def _expect_last(messages: list[Message], role: str, field: str) -> None:
    if messages[-1]["role"] != role:
        raise Malformed(f"{field}[{len(messages) - 1}].role", f"expected the {role} last, got {messages[-1]['role']}")


def _check_ranking(row: Row) -> list[str]:
    responses, ranks = row.get("responses"), row.get("ranks")
    if not isinstance(responses, list) or len(responses) < 2:
        raise Malformed("responses", "expected at least two")
    if not isinstance(ranks, list) or len(ranks) != len(responses) or not all(type(r) is int for r in ranks):
        raise Malformed("ranks", "expected one whole number a response, 1 for the best")
    texts = [check_text(text, f"responses[{i}]") for i, text in enumerate(responses)]
    if len(set(ranks)) == 1:
        raise Dropped("all tied")
    if len(set(texts)) == 1:
        raise Dropped("responses all alike")
    return texts


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


def convert(row: Row, record: str, wanted: str) -> Row:
    """A row of one record as another, where that makes sense: what was answered or compared can be asked again."""
    if record == wanted:
        return row
    if wanted == "prompts" and record == "demonstrations":
        return {"prompt": row["messages"][:-1]}
    if wanted == "prompts" and record == "comparisons":
        return {"prompt": row["prompt"]}
    if wanted == "documents" and record == "demonstrations":
        return {"text": "\n\n".join(m["content"] for m in row["messages"])}
    raise ValueError(f"{record} cannot become {wanted}")


def split_key(row: Row) -> str:
    """What a row's split hangs on: what is asked, so that the same prompt never stands in two splits of any dataset.

    Of labelled rows it is the first text: a premise, or a passage, with all that is asked of it.
    """
    if "texts" in row:
        return row["texts"][0]
    if "text" in row:
        return row["text"]
    if "completions" in row:
        return "\n".join([*row["contexts"], *row["completions"]])
    asked = row["prompt"] if "prompt" in row else row["messages"][:-1]
    return "\n".join(" ".join(m["content"].lower().split()) for m in asked if m["role"] == "user")


def whole_key(row: Row) -> str:
    """What makes two rows of two splits the same: what is asked; of labelled rows every text, for published splits
    share premises.
    """
    return "\n".join([*row["texts"], *(row.get("choices") or [])]) if "texts" in row else split_key(row)


def hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def split_of(key: str, held_out: float) -> str:
    """`held_out` of all keys are validation, as many are test, the rest train; by hash, so nothing need be kept."""
    place = hashed("split " + key) / 2**64
    return "validation" if place < held_out else "test" if place < 2 * held_out else "train"


# -- the dataset artifact ----------------------------------------------------------------------------------------


def write_rows(folder: Path, split: str, rows: Iterable[Row]) -> int:
    """Write `folder`/<split>.parquet and return the number of rows; nothing is written when there are none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = list(rows)
    names = dict.fromkeys(name for row in kept for name in row)
    if kept:
        table = pa.table({name: _column(name, [row.get(name) for row in kept]) for name in names})
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=_GROUP_ROWS)
    return len(kept)


def _column(name: str, values: list[Any]) -> Any:
    """The values as Arrow has them; a user's own column that mixes types, or nests them, as JSON text."""
    import pyarrow as pa

    if name in (*_COLUMNS, *_LISTS) or not any(isinstance(value, dict | list | tuple | bytes) for value in values):
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            if name in _COLUMNS:
                raise
    return pa.array([None if value is None else json.dumps(value, default=str) for value in values])


def read_rows(folders: Iterable[Path], split: str) -> Iterator[Row]:
    """The rows of one split of several datasets, one after the other; none where a dataset lacks the split."""
    import pyarrow.parquet as pq

    for folder in folders:
        path = folder / f"{split}.parquet"
        if path.is_file():
            for batch in pq.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()


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
