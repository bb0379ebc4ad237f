"""A store that is written by hand: artifacts with the manifests and the files that stages leave."""

import contextlib
import json
import re

from align.configs import STAGES
from align.errors import StoreError
from align.store.artifacts import Artifact
from align.store.seals import digest_of, seal_of, with_check


def add(store, name, kind, inputs, metrics=None, config=None, created=0.0, **rows_of):
    """One artifact of a step, with the files that a stage leaves: `log`, `samples` and `events` are rows."""
    step = name.partition("/")[2]
    known = [stage for stage in STAGES if re.fullmatch(rf"{stage}([_:].*)?", step)]
    stage = max(known, key=len, default=re.split(r"[_:]", step)[0])
    config = {"seed": 0, "inputs": {}} | (config or {})
    key = digest_of([name, config, rows_of])
    with store.claim(stage, key) as work:
        (work / "out").mkdir()
        for what, rows in rows_of.items():
            file = {"log": "metrics"}.get(what, what)
            (work / "out" / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (work / "out" / "data.txt").write_text(name)
        given = {slot: each if isinstance(each, list) else [each] for slot, each in inputs.items()}
        entries = {
            slot: [
                {"ref": [*store.names_of(a), a.ref][0], "stage": a.stage, "key": a.key, "digest": a.digest}
                for a in several
            ]
            for slot, several in given.items()
        }
        made = {
            **{"kind": kind, "inputs": entries, "metrics": metrics or {}, "config": config, "data": None},
            **{"seconds": 2.0, "created": created, "code": {"commit": "c0ffee" * 6, "dirty": False}, "packages": {}},
        }
        artifact = store.commit(stage, key, work / "out", made)
    store.publish(name, artifact)
    return artifact


def seal_again(root):
    """Compute every seal of a store again, as an attacker could."""
    digests = {}
    for file in sorted(root.glob("objects/*/*/manifest.json")):
        manifest = json.loads(file.read_text())
        manifest["seal"] = seal_of(manifest)
        file.write_text(json.dumps(manifest))
        artifact = Artifact(file.parent.parent.name, file.parent.name, "", file.parent)
        with contextlib.suppress(StoreError):
            digests[file.parent.name] = {"digest": artifact.digest, "seal": artifact.seal}
    for file in sorted(root.glob("names/*/*/v*.json")):
        name, number = file.parent.relative_to(root / "names").as_posix(), int(file.stem[1:])
        record = {field: value for field, value in json.loads(file.read_text()).items() if field != "check"}
        file.write_text(json.dumps(with_check(record | digests.get(record["key"], {}), name, number)))


def evaluation(rate, low, high):
    return {
        **{"prompts": 600.0, "gold/score": 0.8, "baseline/gold/score": 0.6, "win_rate": rate},
        **{"win_rate_low": low, "win_rate_high": high, "ties": 0.4, "kl": 1.25, "response_tokens": 10.0},
    }


def ppo_log(gold, score):
    return [
        {"step": i + 1, "gold/score": g, "objective/score": s, "objective/kl": 0.1 * i}
        for i, (g, s) in enumerate(zip(gold, score, strict=True))
    ]


def bounds(name, mean):
    return {name: mean, f"{name}_low": mean - 0.1, f"{name}_high": mean + 0.1}


def compared(head, name, model, baseline):
    return {
        **bounds(f"{head}{name}", model),
        **bounds(f"{head}baseline/{name}", baseline),
        **bounds(f"{head}gain/{name}", model - baseline),
    }
