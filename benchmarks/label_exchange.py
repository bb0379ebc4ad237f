r"""Give exported votes to Label Studio's and Argilla's own client packages, and read back what they write.

Simulated people vote on hostile texts: 2 to 9 responses, ties, flags, notes, several turns. Both exports are read by
the clients: Label Studio's parses the labeling config and checks each task and each annotation; Argilla's loads the
settings and the records, makes what it would send to a server, and writes the records again. Each broken copy of an
annotation must be refused, else the check means nothing. What the clients write is imported and must be the same votes.

The clients are no dependencies of the project; give them an environment of their own:

    python3 -m venv clients && clients/bin/pip install label-studio-sdk argilla
    .venv/bin/python benchmarks/label_exchange.py --python clients/bin/python
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _report import arguments, report

ITEMS = 200
LABELERS = 5

# In the environment of the clients. It prints one JSON object.
LABEL_STUDIO = r"""
import copy, json, sys
from importlib.metadata import version
from pathlib import Path
from label_studio_sdk.label_interface import LabelInterface

tasks = json.loads(Path(sys.argv[1]).read_text())
interface = LabelInterface(Path(sys.argv[2]).read_text())
interface.validate()
annotations = [annotation for task in tasks for annotation in task["annotations"]]
broken = accepted = 0
for annotation in annotations:
    for i, result in enumerate(annotation["result"]):
        copied = copy.deepcopy(annotation)
        wrong = {"ranker": {"ranker": ["response_1"]}, "rating": {"rating": 8}, "choices": {"choices": ["no flag"]},
            "textarea": {"text": 1}}
        copied["result"][i]["value"] = wrong[result["type"]]
        accepted += interface.validate_annotation(copied)
        copied["result"][i] = {**result, "from_name": "nobody"}
        accepted += interface.validate_annotation(copied)
        broken += 2
lacking = [
    {"data": {k: v for k, v in task["data"].items() if k != name}} for task in tasks for name in ("prompt", "items")
]
print(json.dumps({
    "version": version("label-studio-sdk"),
    "controls": len(list(interface.controls)),
    "tasks": len(tasks),
    "tasks accepted": sum(interface.validate_task({"data": task["data"]}) for task in tasks),
    "annotations": len(annotations),
    "annotations accepted": sum(interface.validate_annotation(annotation) for annotation in annotations),
    "results": sum(len(annotation["result"]) for annotation in annotations),
    "broken": broken + len(lacking),
    "broken accepted": accepted + sum(interface.validate_task(task) for task in lacking),
}))
"""
ARGILLA = r"""
import json, sys, warnings
from importlib.metadata import version
from pathlib import Path
from unittest.mock import MagicMock
import argilla as rg
from argilla.records._io import JsonIO

warnings.simplefilter("error")  # such as: a key of a message is ignored
rg.Argilla._default_client = MagicMock()  # settings want a client; nothing is sent
settings = rg.Settings.from_json(sys.argv[2])
settings.validate()
again = Path(sys.argv[3]).with_suffix(".settings.json")
settings.to_json(again)
dataset = rg.Dataset(name="votes", workspace=MagicMock(), settings=settings, client=MagicMock())
given = json.loads(Path(sys.argv[1]).read_text())
records = [rg.Record.from_dict(record, dataset=dataset) for record in given]
questions = {question.name: question for question in settings.questions}
ranks = {option["value"] for option in questions["ranking"].serialize()["settings"]["options"]}
sent = wrong = values = 0
for record in records:
    model = record.api_model()
    model.model_dump()
    for response in model.responses:
        sent += 1
        wrong += response.status != "submitted"
        for name, value in response.values.items():
            values += 1
            value, kind = value["value"], questions[name].serialize()["settings"]
            if kind["type"] == "ranking":  # what the server asks of a submitted ranking
                wrong += {each["value"] for each in value} != ranks or len(value) != len(ranks)
                wrong += not {each["rank"] for each in value} <= set(range(1, len(ranks) + 1))
            elif kind["type"] == "rating":
                wrong += {"value": value} not in kind["options"]
            elif kind["type"] == "multi_label_selection":
                known = {option["value"] for option in kind["options"]}
                wrong += not value or not set(value) <= known or len(set(value)) != len(value)
            else:
                wrong += not isinstance(value, str)
    known = {field.name for field in settings.fields}
    wrong += not {field.name for field in settings.fields if field.required} <= set(record.fields) <= known
JsonIO.to_json(records, Path(sys.argv[3]))
print(json.dumps({
    "version": version("argilla"),
    "questions": len(questions),
    "settings the same": rg.Settings.from_json(again) == settings,
    "records": len(records),
    "votes": sent,
    "values": values,
    "wrong": wrong,
}))
"""


def made(folder: Path) -> Any:
    """A file of votes by simulated people; an item has up to two of them."""
    from label_pages import payloads

    from align.labelling.database import FLAGS, Settings, Votes

    path = folder / "labels/mine.db"
    Votes.create(path, Settings(overlap=2, overlap_share=1.0)).close()
    votes, rng, texts = Votes(path), random.Random(0), payloads()
    for _ in range(ITEMS):
        turns = [
            {"role": ("user", "assistant")[i % 2], "content": rng.choice(texts)} for i in range(rng.choice((1, 3)))
        ]
        if len(turns) > 1 and rng.random() < 0.2:
            turns[1]["weight"] = 0
        row = {"prompt": turns, "responses": rng.sample(texts, rng.randint(2, 9)), "source": rng.choice(texts)}
        votes.add_items([row], rng.choice(("train", "validation")))
    for number in range(LABELERS):
        labeler = votes.of_token(votes.add_labeler(f"simulated-{number}"))
        for _ in range(2 * ITEMS // LABELERS):
            if (item := votes.next_item(labeler)) is None:
                break
            count = len(item.shown)
            vote = {
                "ranks": [rng.randint(1, count) for _ in range(count)],
                "ratings": [rng.randint(1, 7) for _ in range(count)],
                "flags": [rng.sample(FLAGS, rng.choice((0, 0, 1, 3))) for _ in range(count)],
                "note": rng.choice(["", *texts]),
                "seconds": rng.uniform(1, 300),
            }
            votes.vote(labeler, item.id, f"request {item.id}", vote)
    return votes


def counted(votes: Any, without: str) -> list[Any]:
    from align.labelling.snapshots import comparisons

    rows = comparisons(votes, votes.counts()["last"])
    return sorted(json.dumps({k: v for k, v in row.items() if k != without}, sort_keys=True) for row in rows)


def same_votes(folder: Path, file: Path, votes: Any, without: str) -> bool:
    """Import a file into a new file of votes; True if items and votes are those of `votes`."""
    from align.labelling.database import Settings, Votes
    from align.labelling.exchange import read, take

    path = folder / f"labels/{file.stem}.db"
    Votes.create(path, Settings(overlap=2, overlap_share=1.0)).close()
    other = Votes(path)
    tool, items = read(file, None)
    take(other, items, tool)
    return other.items() == votes.items() and counted(other, without) == counted(votes, without)


def main() -> int:
    options = arguments(__doc__, python=Path)
    if options.python is None:
        raise SystemExit("--python: give the Python of an environment with label-studio-sdk and argilla")
    from align.labelling.exchange import current, write

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        votes = made(folder)
        bars: dict[str, float] = {"items": len(votes.items()), "votes": len(votes.rankings())}
        faults = []
        for tool, code, without in (("label-studio", LABEL_STUDIO, ""), ("argilla", ARGILLA, "seconds")):
            file, again = folder / f"{tool}.json", folder / f"{tool}-again.json"
            beside = write(current(votes), tool, votes.setting("flags"), file)
            command = [options.python, "-c", code, file, beside, again]
            # The clients print advice on standard output, so the last line counts.
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            found = json.loads(said)
            print(f"{tool}: version {found.pop('version')}")
            bars |= {f"{tool}: {name}": value for name, value in found.items()}
            faults += [f"{tool}: {fault}" for fault in _faults(found, len(votes.rankings()))]
            for each in [file, again] if again.exists() else [file]:
                same = same_votes(folder, each, votes, without)
                bars[f"{each.name} comes back the same"] = same
                faults += [] if same else [f"{each.name}: other votes come back"]
    report(bars, options.json)
    for fault in faults:
        print(fault)
    return int(bool(faults))


def _faults(found: dict[str, Any], votes: int) -> list[str]:
    wanted = {
        "tasks accepted": ITEMS,
        "annotations accepted": votes,
        "broken accepted": 0,
        "records": ITEMS,
        "votes": votes,
        "wrong": 0,
        "settings the same": True,
    }
    return [
        f"{name}: expected {wanted[name]}, got {found[name]}"
        for name in wanted
        if found.get(name, wanted[name]) != wanted[name]
    ]


if __name__ == "__main__":
    sys.exit(main())
