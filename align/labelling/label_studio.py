"""Tasks of Label Studio: a `List` of responses with a `Ranker`, and controls for each response.

The ranker has a bucket for each rank, because Label Studio's plain ranking has no ties. Responses
are the `body` of the list's items and never their `html`: Label Studio shows that as HTML, and
scripts in it run (CVE-2024-26152).

Label Studio refuses a file in which `completed_by` is nobody whom it knows, and drops names of its
own for the rest. So the labeler's name is an answer like the note, and `completed_by` counts only
in annotations without it.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from align.labelling.labelled import (
    MOST_RATING,
    Labelled,
    Vote,
    Wrong,
    checked_list,
    checked_object,
    checked_prompt,
    checked_responses,
    checked_split,
    checked_text,
    labeler_name,
    without_gaps,
    wrong,
)

_OWN = ("prompt", "items", "split", "columns")  # the rest of a task's data are columns
_BUCKET = re.compile(r"rank_([1-9])")
_LONGEST = 999_999.0  # seconds: a page may stay open for weeks
_UNRANKED = "_"  # the bucket of what was not moved


def setup(most: int, flags: Sequence[str]) -> str:
    """Return the labeling config with which tasks of up to `most` responses open."""
    view = ET.Element("View")
    _add(view, "Paragraphs", "prompt", value="$prompt", layout="dialogue")
    view[-1].attrib |= {"nameKey": "role", "textKey": "content"}
    _add(view, "List", "responses", value="$items", title="Responses")
    ranker = _add(view, "Ranker", "ranking", toName="responses")
    for rank in range(1, most + 1):
        title = "1 (best)" if rank == 1 else str(rank)
        ET.SubElement(ranker, "Bucket", {"name": f"rank_{rank}", "title": title})
    for number in range(1, most + 1):
        ET.SubElement(view, "Header", {"value": f"Response {number}"})
        _add(view, "Rating", f"rating_{number}", toName="prompt", maxRating=str(MOST_RATING))
        choices = _add(view, "Choices", f"flags_{number}", toName="prompt", choice="multiple")
        for flag in flags:
            ET.SubElement(choices, "Choice", {"value": flag})
    ET.SubElement(view, "Header", {"value": "Note"})
    _add(view, "TextArea", "note", toName="prompt", maxSubmissions="1")
    ET.SubElement(view, "Header", {"value": "Labeler of an imported ranking (leave it as it is)"})
    _add(view, "TextArea", "labeler", toName="prompt", maxSubmissions="1")
    ET.indent(view)
    return ET.tostring(view, encoding="unicode") + "\n"


def _add(view: ET.Element, tag: str, name: str, **attributes: str) -> ET.Element:
    return ET.SubElement(view, tag, {"name": name, **attributes})


def write(item: Labelled, most: int) -> dict[str, Any]:
    """Return a task with an annotation for each vote."""
    columns = {k: v for k, v in item.row.items() if k not in ("prompt", "responses")}
    return {
        "data": {
            "prompt": item.row["prompt"],
            "items": [
                {"id": f"response_{i}", "title": f"Response {i}", "body": text}
                for i, text in enumerate(item.row["responses"], 1)
            ],
            "split": item.split,
            "columns": columns,
        },
        "annotations": [_annotation(vote) for vote in item.votes],
    }


def _annotation(vote: Vote) -> dict[str, Any]:
    buckets: dict[str, list[str]] = {f"rank_{rank}": [] for rank in sorted(set(vote.ranks))}
    for i, rank in enumerate(vote.ranks, 1):
        buckets[f"rank_{rank}"].append(f"response_{i}")
    results = [
        _result("ranking", "ranker", buckets, "responses"),
        _result("labeler", "textarea", [vote.labeler], field="text"),
    ]
    for i, (rating, flags) in enumerate(zip(vote.ratings, vote.flags, strict=True), 1):
        if rating is not None:
            results.append(_result(f"rating_{i}", "rating", rating))
        if flags:
            results.append(_result(f"flags_{i}", "choices", flags))
    if vote.note:
        results.append(_result("note", "textarea", [vote.note], field="text"))
    made: dict[str, Any] = {
        "result": results,
        "ground_truth": vote.decides,
        "was_cancelled": False,
        "lead_time": vote.seconds,
    }
    if vote.at is not None:
        made["created_at"] = datetime.fromtimestamp(vote.at, UTC).isoformat()
    return made


def _result(
    name: str, kind: str, value: Any, to: str = "prompt", field: str | None = None
) -> dict[str, Any]:
    return {
        "id": name,
        "from_name": name,
        "to_name": to,
        "type": kind,
        "value": {field or kind: value},
    }


def read(task: Mapping[str, Any]) -> Labelled:
    """Return the item of a task and the votes in its annotations.

    Raises:
        Wrong: something in it is not as expected.
    """
    data = checked_object(task["data"], "data")
    wanted = "a list of objects with id and body"
    items = checked_list(data.get("items"), "data.items", dict, wanted)
    ids = [_id(each, f"data.items[{i}].id") for i, each in enumerate(items)]
    if len(set(ids)) != len(ids):
        raise Wrong(f"data.items: expected ids that differ, got {', '.join(ids)}"[:200])
    texts = [_text(each, f"data.items[{i}]") for i, each in enumerate(items)]
    columns = {name: value for name, value in data.items() if name not in _OWN}
    columns |= checked_object(data.get("columns"), "data.columns")
    columns.pop("ranks", None)
    row = {
        **columns,
        "prompt": checked_prompt(data.get("prompt"), "data.prompt"),
        "responses": checked_responses(texts, "data.items"),
    }
    votes, left = [], Counter[str]()
    given = task.get("annotations") or []
    for i, annotation in enumerate(checked_list(given, "annotations", dict, "a list of objects")):
        try:
            vote = _vote(annotation, ids)
        except Wrong as error:
            raise Wrong(f"annotations[{i}].{error}") from None
        if isinstance(vote, Vote):
            votes.append(vote)
        else:
            left[vote] += 1
    return Labelled(row, checked_split(data.get("split"), "data.split"), votes, left)


def _id(item: Mapping[str, Any], place: str) -> str:
    if isinstance(item.get("id"), bool) or not isinstance(item.get("id"), str | int):
        raise wrong(place, "text or a whole number", item.get("id"))
    return str(item["id"])


def _text(item: Mapping[str, Any], place: str) -> str:
    """Return an item's text, as it is written; markup in it stays text."""
    name = next((name for name in ("body", "html", "title") if item.get(name) is not None), "body")
    return checked_text(item.get(name), f"{place}.{name}")


def _vote(annotation: Mapping[str, Any], ids: Sequence[str]) -> Vote | str:
    """Return the vote in an annotation, or the reason why it is none."""
    if annotation.get("was_cancelled"):
        return "skipped"
    results = checked_list(annotation.get("result"), "result", dict, "a list of objects")
    ranks, answers = None, {}
    for i, result in enumerate(results):
        kind, place = result.get("type"), f"result[{i}].value"
        value = checked_object(result.get("value"), place)
        if kind == "ranker":
            ranks = _ranks(checked_object(value.get("ranker"), f"{place}.ranker"), ids, place)
        elif kind in ("rating", "choices", "textarea"):
            answers[str(result.get("from_name"))] = _answer(kind, value, place)
    if ranks is None:
        return "without a full ranking"
    numbers = range(1, len(ids) + 1)
    return Vote(
        labeler_name(answers.get("labeler") or _who(annotation.get("completed_by"))),
        ranks,
        [answers.get(f"rating_{number}") for number in numbers],
        [answers.get(f"flags_{number}") or [] for number in numbers],
        answers.get("note") or "",
        _number(annotation.get("lead_time"), "lead_time"),
        _time(annotation.get("created_at")),
        annotation.get("ground_truth") is True,
    )


def _answer(kind: str, value: Mapping[str, Any], place: str) -> Any:
    if kind == "rating":
        return value.get("rating")
    name = "choices" if kind == "choices" else "text"
    found = value.get(name)
    listed = [found] if isinstance(found, str) else found
    texts = checked_list(listed, f"{place}.{name}", str, "a list of texts")
    return texts if kind == "choices" else "\n".join(texts)


def _ranks(buckets: Mapping[str, Any], ids: Sequence[str], place: str) -> list[int] | None:
    """Return the rank of each response; None if one was not ranked."""
    ranks: dict[str, int] = {}
    for name, own in buckets.items():
        checked_list(own, f"{place}.ranker.{name}", str, "a list of ids")
        unknown = [each for each in own if each not in ids]
        if unknown:
            raise wrong(f"{place}.ranker.{name}", "ids of data.items", unknown[0])
        if len({*own}) < len(own) or ranks.keys() & {*own}:
            raise wrong(f"{place}.ranker.{name}", "each id once", own)
        bucket = _BUCKET.fullmatch(name)
        if bucket:
            ranks |= dict.fromkeys(own, int(bucket[1]))
        elif name != _UNRANKED and len(buckets) == 1:  # a plain ranking, best first
            ranks = {each: i for i, each in enumerate(own, 1)}
        elif name != _UNRANKED:
            raise wrong(f"{place}.ranker", "buckets rank_1, rank_2 and so on, or one list", name)
    return without_gaps([ranks[each] for each in ids]) if set(ranks) == set(ids) else None


def _who(user: Any) -> str:
    """Return what Label Studio calls somebody: an email if it gives one, else a number."""
    if isinstance(user, dict):
        user = user.get("email") or user.get("id")
    if isinstance(user, str) and user:
        return user
    if isinstance(user, int) and not isinstance(user, bool):
        return f"label-studio-{user}"
    raise wrong("completed_by", "the number or the email of a user", user)


def _number(value: Any, place: str) -> float | None:
    if value is None:
        return None
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    if not whole or not math.isfinite(value) or value < 0:
        raise wrong(place, "a number of seconds", value)
    return min(float(value), _LONGEST)


def _time(value: Any) -> float | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(checked_text(value, "created_at"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise wrong("created_at", "a date with a time", value) from None
