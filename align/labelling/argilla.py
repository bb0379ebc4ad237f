"""Records of Argilla, as `rg.Dataset.records.to_json` writes and `rg.Record.from_dict` reads them.

All records of a dataset have the same questions. Responses that an item lacks are ranked last, as
Argilla wants a rank for each. Fields show plain text: Markdown, which may hold HTML, is off.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from align.labelling.database import item_id
from align.labelling.labelled import (
    ADJUDICATED,
    MOST_RATING,
    Labelled,
    Vote,
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

_RESPONSE = re.compile(r"response[_-]?([1-9])")
_PROMPTS = ("prompt", "instruction")  # the latter is of Argilla's own template of a ranking
_OWN = ("split", "labelers", "columns", "messages")  # other metadata are columns
# Argilla's users have a uuid. One that follows from the name alone needs no list of users.
_PEOPLE = uuid.uuid5(uuid.NAMESPACE_OID, "align labelers")


def user_id(name: str) -> str:
    """Return the id of the Argilla user that stands for a labeler."""
    return str(uuid.uuid5(_PEOPLE, name))


def setup(most: int, flags: Sequence[str]) -> str:
    """Return the dataset's settings, for `rg.Settings.from_json`."""
    numbers = range(1, most + 1)
    responses = [f"response_{number}" for number in numbers]
    chat = {"type": "chat", "use_markdown": False}
    fields = [{"name": "prompt", "title": "Prompt", "required": True, "settings": chat}]
    for number, name in enumerate(responses, 1):
        text = {"type": "text", "use_markdown": False}
        fields.append(
            {
                "name": name,
                "title": f"Response {number}",
                "required": number <= 2,  # an item has at least two
                "settings": text,
            }
        )
    ranks = [{"value": name, "text": f"Response {i}"} for i, name in enumerate(responses, 1)]
    ratings = [{"value": rating} for rating in range(1, MOST_RATING + 1)]
    marks = [{"value": flag, "text": flag} for flag in flags]
    questions = [_question("ranking", "Ranking, 1 is best", "ranking", options=ranks)]
    for i in numbers:
        questions.append(
            _question(f"rating_{i}", f"Rating of response {i}", "rating", options=ratings)
        )
        title = f"What is wrong with response {i}"
        questions.append(_question(f"flags_{i}", title, "multi_label_selection", options=marks))
    questions.append(_question("note", "Note", "text", use_markdown=False))
    metadata = [
        {
            "name": name,
            "title": name,
            # A labeler who sees who ranked an item is not independent of them.
            "visible_for_annotators": False,
            "settings": {"type": "terms", "visible_for_annotators": False, "values": None},
        }
        for name in ("split", "labelers")
    ]
    settings = {
        "guidelines": "Rank the responses. Equal ranks are ties.",
        "fields": fields,
        "questions": questions,
        "metadata": metadata,
        "vectors": [],
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "mapping": None,
    }
    return json.dumps(settings, indent=1) + "\n"


def _question(name: str, title: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "required": kind == "ranking",
        "settings": {"type": kind, **settings},
    }


def write(item: Labelled, most: int) -> dict[str, Any]:
    """Return a record with the responses of Argilla users for each vote."""
    prompt, texts = item.row["prompt"], item.row["responses"]
    shown = [{name: message[name] for name in ("role", "content")} for message in prompt]
    columns = {k: v for k, v in item.row.items() if k not in ("prompt", "responses")}
    metadata: dict[str, Any] = {"split": item.split}
    if item.votes:
        metadata["labelers"] = [vote.labeler for vote in item.votes]
    if columns:
        metadata["columns"] = json.dumps(columns)
    if shown != prompt:  # Argilla's messages have a role and a content, and nothing else
        metadata["messages"] = json.dumps(prompt)
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for vote in item.votes:
        for question, value in _answers(vote, most).items():
            answers[question].append(
                {"value": value, "user_id": user_id(vote.labeler), "status": "submitted"}
            )
    return {
        "id": item_id(prompt, texts),
        "fields": {
            "prompt": shown,
            **{f"response_{i}": text for i, text in enumerate(texts, 1)},
        },
        "metadata": metadata,
        "suggestions": {},
        "responses": dict(answers),
        "vectors": {},
    }


def _answers(vote: Vote, most: int) -> dict[str, Any]:
    lacking = [max(vote.ranks) + 1] * (most - len(vote.ranks))
    found: dict[str, Any] = {
        "ranking": [
            {"value": f"response_{i}", "rank": rank}
            for i, rank in enumerate([*vote.ranks, *lacking], 1)
        ]
    }
    for i, (rating, flags) in enumerate(zip(vote.ratings, vote.flags, strict=True), 1):
        if rating is not None:
            found[f"rating_{i}"] = rating
        if flags:  # Argilla refuses an empty list
            found[f"flags_{i}"] = flags
    if vote.note:
        found["note"] = vote.note
    return found


def read(record: Mapping[str, Any]) -> Labelled:
    """Return the item of a record and the votes in its responses.

    Raises:
        Wrong: something in it is not as expected.
    """
    fields = checked_object(record["fields"], "fields")
    metadata = checked_object(record.get("metadata"), "metadata")
    name = next((name for name in _PROMPTS if fields.get(name) is not None), _PROMPTS[0])
    prompt = checked_prompt(fields.get(name), f"fields.{name}")
    named = sorted(
        (int(found[1]), each)
        for each in fields
        if (found := _RESPONSE.fullmatch(each)) and fields[each] is not None
    )
    texts = [checked_text(fields[each], f"fields.{each}") for _, each in named]
    columns = {k: v for k, v in fields.items() if k != name and not _RESPONSE.fullmatch(k)}
    columns |= {k: v for k, v in metadata.items() if k not in _OWN}
    columns |= _loaded(metadata.get("columns"), "metadata.columns", dict)
    columns.pop("ranks", None)
    row = {
        **columns,
        "prompt": _whole(prompt, metadata),
        "responses": checked_responses(texts, "fields: response_1, response_2 and so on"),
    }
    votes, left = _votes(record, metadata, named)
    return Labelled(row, checked_split(metadata.get("split"), "metadata.split"), votes, left)


def _whole(prompt: list[dict[str, Any]], metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages with what Argilla's fields have no place for."""
    if "messages" not in metadata:
        return prompt
    place = "metadata.messages"
    whole = checked_prompt(_loaded(metadata["messages"], place, list), place)
    same = [{name: message[name] for name in ("role", "content")} for message in whole]
    return whole if same == prompt else prompt


def _loaded(value: Any, place: str, kind: type) -> Any:
    if value is None:
        return kind()
    try:
        found = json.loads(checked_text(value, place))
    except (ValueError, RecursionError):
        raise wrong(place, "JSON", value) from None
    if not isinstance(found, kind):
        raise wrong(place, f"JSON of a {kind.__name__}", value)
    return found


def _votes(
    record: Mapping[str, Any], metadata: Mapping[str, Any], named: Sequence[tuple[int, str]]
) -> tuple[list[Vote], Counter[str]]:
    """Return the votes, and for each reason the number of users without one.

    Args:
        named: the number and the name of the field of each response.
    """
    listed = metadata.get("labelers") or []
    listed = [listed] if isinstance(listed, str) else listed
    people = {
        user_id(name): name
        for name in checked_list(listed, "metadata.labelers", str, "a list of names")
    }
    votes, left = [], Counter[str]()
    for user, answers in _by_user(record).items():
        if answers is None:
            left["draft or discarded"] += 1
            continue
        ranks = _ranks(answers.get("ranking"), [name for _, name in named])
        if ranks is None:
            left["without a full ranking"] += 1
            continue
        known = people.get(user, f"argilla-{user}")
        numbers = [number for number, _ in named]
        flags = [
            checked_list(answers.get(f"flags_{i}") or [], f"responses.flags_{i}", str, "texts")
            for i in numbers
        ]
        votes.append(
            Vote(
                labeler_name(known),
                ranks,
                [answers.get(f"rating_{i}") for i in numbers],
                flags,
                checked_text(answers.get("note") or "", "responses.note"),
                decides=known == ADJUDICATED,
            )
        )
    return votes, left


def _by_user(record: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Return the answers of each user; None if they were not submitted."""
    users: dict[str, dict[str, Any] | None] = {}
    for question, given in checked_object(record.get("responses"), "responses").items():
        place = f"responses.{question}"
        for i, answer in enumerate(checked_list(given, place, dict, "a list of objects")):
            user = checked_text(answer.get("user_id"), f"{place}[{i}].user_id")
            own = users.setdefault(user, {})
            if answer.get("status") not in (None, "submitted"):
                users[user] = None
            elif own is not None:
                own[question] = answer.get("value")
    return users


def _ranks(value: Any, names: Sequence[str]) -> list[int] | None:
    """Return the rank of each response; None if one was not ranked.

    Argilla's client writes rankings as names and ranks, or as names alone, best first.
    """
    place = "responses.ranking"
    if value is None:
        return None
    ranks: dict[str, int] = {}
    for i, each in enumerate(checked_list(value, place, str | dict, "a list of responses"), 1):
        name, rank = (each, i) if isinstance(each, str) else (each.get("value"), each.get("rank"))
        if not isinstance(name, str) or not _RESPONSE.fullmatch(name):
            raise wrong(f"{place}[{i - 1}]", "response_1, response_2 and so on", name)
        if rank is None:
            return None
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise wrong(f"{place}[{i - 1}].rank", "a whole number", rank)
        ranks[name] = rank
    return without_gaps([ranks[name] for name in names]) if ranks.keys() >= {*names} else None
