"""`align artifacts`: look at the store, name things in it, take things out of it.

Needs no torch, except to export an adapter as a whole model. Modules that only one verb needs are
imported in its function: importing the plan takes longer than a look at the store.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.tree import Tree

from align.configs.differences import differences, flat
from align.errors import ConfigError, StoreError
from align.report.listing import list_versions
from align.runtime.console import Parser, plain_console, print_sentence, print_table, wide_console
from align.store.artifacts import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    MANIFEST,
    Artifact,
    ArtifactStore,
    base_name,
    existing_store,
    follow_umask,
)


def main(arguments: list[str]) -> int:
    parser = Parser(prog="align artifacts", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--store", metavar="FOLDER", help="default: $ALIGN_STORE, or artifacts")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, (_, operands, what) in VERBS.items():
        sub = verbs.add_parser(verb, help=what, description=what)
        sub.add_argument("--store", default=argparse.SUPPRESS, metavar="FOLDER")
        if verb in ("ls", "show", "lineage", "diff"):
            sub.add_argument("--json", action="store_true", help="JSON alone on standard output")
        if verb == "gc":
            sub.add_argument("--yes", action="store_true", help="remove what is listed")
        for operand in operands:
            sub.add_argument(operand.rstrip("?"), nargs="?" if operand.endswith("?") else None)
    options = parser.parse_args(arguments)
    store = existing_store(options.store)
    VERBS[options.verb][0](store, options)
    return 0


def _ls(store: ArtifactStore, options: argparse.Namespace) -> None:
    rows, faults = list_versions(store)
    for line in faults:
        print(f"warning: {line}", file=sys.stderr)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    console = wide_console()
    is_narrow = console.width < _WIDE  # then kinds and keys are left out: `show` has them
    shown = []
    newest = {row["name"]: row["version"] for row in rows}
    for row in rows:
        is_newest = row["version"] == newest[row["name"]]
        others = [alias for alias in row["aliases"] if not (alias == "latest" and is_newest)]
        name = " ".join([f"{row['name']}:{row['version']}", *others])
        made = _made(row["created"])
        if is_narrow:
            shown.append(
                [name, row["figures"] or row["kind"], made.partition("-")[2], _size(row["bytes"])]
            )
        else:
            shown.append(
                [name, row["kind"], row["figures"], row["artifact"], made, _size(row["bytes"])]
            )
    columns = ["name", "figures", "made", "size"]
    print_table(
        console,
        columns if is_narrow else ["name", "kind", "figures", "artifact", "made", "size"],
        shown,
    )


def _show(store: ArtifactStore, options: argparse.Namespace) -> None:
    artifact = store.find(options.ref)
    if options.json:
        print(
            json.dumps(
                {
                    **artifact.manifest,
                    "names": store.names_of(artifact),
                    "path": str(artifact.path),
                },
                indent=1,
            )
        )
        return
    m = artifact.manifest
    console = plain_console()
    console.print(
        f"{artifact.ref}  {m['kind']}  {', '.join(store.names_of(artifact))}", soft_wrap=True
    )
    code = m["code"].get("commit") or m["code"].get("version")
    changed = " with changes" if m["code"].get("dirty") else ""
    console.print(f"made {_made(m['created'])} in {m['seconds']:.1f} s by code {code}{changed}")
    console.print(f"at {artifact.path}", soft_wrap=True)
    if (artifact.path / ADAPTER).is_file():
        stage, key = base_name(artifact.path)
        console.print(f"an adapter on {stage}@{key[:12]}", soft_wrap=True)
    for title, values in (
        (
            "inputs",
            {slot: ", ".join(e["ref"] for e in entries) for slot, entries in m["inputs"].items()},
        ),
        ("config", {k: v for k, v in flat(m["config"]).items() if not k.startswith("inputs")}),
        ("metrics", {k: f"{v:.4g}" for k, v in m["metrics"].items()}),
        (
            "files",
            {
                name: f"{_size(f['size'])}  sha256 {f['sha256'][:12]}"
                for name, f in m["files"].items()
            },
        ),
        ("hardware", m.get("hardware", {})),
        ("packages", m["packages"]),
    ):
        if values:
            console.print(f"\n{title}")
        for name, value in values.items():
            console.print(f"  {name:<34} {value}", soft_wrap=True)


def _lineage(store: ArtifactStore, options: argparse.Namespace) -> None:
    artifact = store.find(options.ref)
    order = store.lineage(artifact)
    if options.json:
        print(json.dumps([_node(a, store) for a in order], indent=1))
        return
    wide_console().print(_branch(artifact, store, "", options.ref, {}))


def _node(artifact: Artifact, store: ArtifactStore) -> dict[str, Any]:
    m = artifact.manifest
    return {
        "artifact": artifact.ref,
        "stage": artifact.stage,
        "key": artifact.key,
        "kind": artifact.kind,
        "digest": artifact.digest,
        "names": store.names_of(artifact),
        "inputs": {
            slot: [f"{e['stage']}@{e['key'][:12]}" for e in entries]
            for slot, entries in m["inputs"].items()
        },
        "config": m["config"],
        "data": m["data"],
        "code": m["code"],
    }


def _branch(
    artifact: Artifact, store: ArtifactStore, slot: str, given: str, shown: dict[str, str]
) -> Tree:
    """Return an artifact as a tree, with a branch for each of its inputs.

    An artifact that was already shown gets one line and no branches.

    Args:
        slot: the input that it fills in the step above; "" for the root.
        given: the reference that the step, or the user, used for it.
        shown: the names of the artifacts shown so far, by key; this function adds its own.
    """
    if artifact.key in shown:
        return Tree(f"{slot}: {shown[artifact.key]}  (above)")
    m = artifact.manifest
    name = shown[artifact.key] = store.name_of(artifact, {given.partition(":")[0]})
    code = str(m["code"].get("commit") or m["code"].get("version"))[:10]
    # PPO and evaluate have no source: they read a user's functions.
    read = m["config"].get("source", "files of functions")
    source = f"  {read}  data sha256 {m['data'][:12]}" if m["data"] else ""
    head = f"{slot}: " if slot else ""
    tree = Tree(
        f"{head}{name}  {artifact.kind}  {artifact.ref}  sha256 {artifact.digest[:12]}  code"
        f" {code}{source}"
    )
    for input_slot, entries in m["inputs"].items():
        for entry in entries:
            parent = store.get(entry["stage"], entry["key"])
            ref = entry["ref"]
            tree.add(
                _branch(parent, store, input_slot, ref, shown)
                if parent
                else f"{input_slot}: {ref} (gone)"
            )
    return tree


def _verify(store: ArtifactStore, options: argparse.Namespace) -> None:
    if options.ref:
        store.verify(store.find(options.ref))
        print(f"{options.ref}: every file as its manifest says")
        return
    from align.store.audit import audit

    found = audit(store)
    if found.unsealed:
        print(
            f"{found.unsealed} of earlier code without a seal: their files were checked, not their"
            " manifests"
        )
    checked = (
        f"{found.artifacts} artifacts, {found.versions} versions and {found.aliases} aliases"
        " checked"
    )
    if found.faults:
        raise StoreError(
            "\nerror: ".join([*found.faults, f"{checked}, {len(found.faults)} faults"])
        )
    print(f"{checked}: all as they were written")


def _diff(store: ArtifactStore, options: argparse.Namespace) -> None:
    from align.report.tables import Table, without_empty

    one, two = store.find(options.ref), store.find(options.other)
    rows = [
        {"what": f"{part}.{name}", "before": old, "after": new}
        for part, before, after in _parts(one, two)
        for name, old, new in differences(before, after)
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    console = wide_console()
    names = [str(row["what"]) for row in rows]
    differing = [row for row, name in zip(rows, names, strict=True) if not _is_noise(name, names)]
    files = [name.removeprefix("files.") for name in names if name.startswith("files.")]
    if not differing:
        what = f"differ in files alone: {', '.join(files)}" if files else "do not differ"
        print_sentence(console, f"{one.ref} and {two.ref} {what}")
        return
    sections: dict[str, list[list[str]]] = {}
    for row in differing:
        part, _, name = str(row["what"]).partition(".")
        change = _change(row["before"], row["after"])
        before, after = _short(row["before"]), _short(row["after"])
        if name == "commit":
            before, after = before[:12], after[:12]
        sections.setdefault(part, []).append([name, before, after, change])
    for number, (part, shown) in enumerate(sections.items()):
        if number:
            console.print()
        columns = [_TITLES.get(part, part), options.ref, options.other, "difference"]
        print_table(console, *without_empty(Table(columns, shown)))
    followers = sum(_is_noise(name, names) for name in names if name.startswith("metrics."))
    if followers:
        print_sentence(
            console,
            f"And {followers} bounds, baselines' figures and gains of these metrics: --json.",
        )
    if files:
        console.print()
        print_sentence(
            console, f"{len(files)} file{'s' * (len(files) > 1)} differ: {', '.join(files)}"
        )


def _is_noise(what: str, others: Sequence[str]) -> bool:
    """Return True if a difference follows from another one, or tells a person nothing.

    Hashes of files only show that results differ. The names of inputs repeat what the inputs' keys
    show. The bounds of a metric, its baseline's figure and the gain over it follow the metric.
    """
    part, _, name = what.partition(".")
    if part == "metrics":
        ends = ("_low", "_high", "_chance", "_chance_high", "_few")
        followed = [what.removesuffix(end) for end in ends if what.endswith(end)]
        followed += [
            what.replace(middle, "", 1) for middle in ("baseline/", "gain/") if middle in what
        ]
        return any(each in others or _is_noise(each, others) for each in followed)
    return part == "files" or (part == "config" and name.startswith("inputs."))


def _change(before: object, after: object) -> str:
    """Return the second number minus the first, with its sign; "" if one is not a number."""
    for value in (before, after):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return ""
    change = _short(float(after - before))  # type: ignore[operator]
    return change if change.startswith("-") else f"+{change}"


def _parts(one: Artifact, two: Artifact) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    a, b = one.manifest, two.manifest

    def inputs(m: dict[str, Any]) -> dict[str, str]:
        return {
            slot: ", ".join(f"{e['stage']}@{e['key'][:12]}" for e in es)
            for slot, es in m["inputs"].items()
        }

    def files(m: dict[str, Any]) -> dict[str, str]:
        return {name: f["sha256"][:12] for name, f in m["files"].items()}

    return [
        ("config", a["config"], b["config"]),
        ("inputs", inputs(a), inputs(b)),
        ("metrics", a["metrics"], b["metrics"]),
        ("code", a["code"], b["code"]),
        ("hardware", a.get("hardware", {}), b.get("hardware", {})),
        ("packages", a["packages"], b["packages"]),
        ("files", files(a), files(b)),
    ]


def _tag(store: ArtifactStore, options: argparse.Namespace) -> None:
    artifact = store.find(options.ref)
    name = options.ref.partition(":")[0]
    number = next(n for n, record in store.versions(name).items() if record["key"] == artifact.key)
    store.tag(name, number, options.alias)
    print(f"{name}:{options.alias} -> v{number}")


def _export(store: ArtifactStore, options: argparse.Namespace) -> None:
    artifact = store.find(options.ref)
    folder = Path(options.folder)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: exists and is not empty; give a new folder")
    store.verify(artifact)
    # Folders with an adapter instead of a whole model, such as ema/ with PPO's average. The adapter
    # of a classifier does not count: the classifier beside it has it merged already.
    adapters = [
        path.parent
        for path in sorted(artifact.path.rglob(ADAPTER))
        if path.with_name("config.json").is_file()
    ]

    def left_out(source: str, names: list[str]) -> set[str]:
        return {MANIFEST, ADAPTER, ADAPTER_WEIGHTS} if Path(source) in adapters else {MANIFEST}

    shutil.copytree(artifact.path, folder, ignore=left_out, dirs_exist_ok=True)
    if adapters:
        from align.models.export import write_whole

        for place in adapters:
            write_whole(artifact.kind, place, folder / place.relative_to(artifact.path))
    for path in folder.rglob("*.safetensors"):
        follow_umask(path)
    print(f"{artifact.ref} {'merged into its base and ' if adapters else ''}copied to {folder}")


def _gc(store: ArtifactStore, options: argparse.Namespace) -> None:
    from align.store.garbage import find_garbage, remove_garbage

    found = find_garbage(store)
    count = 0
    for path in remove_garbage(store) if options.yes else found.paths:
        print(path.relative_to(store.root))
        count += 1
    for line in found.unreadable:
        print(
            f"warning: {line}; until then artifacts stay, because nobody knows which of them it"
            " needs",
            file=sys.stderr,
        )
    done = "removed" if options.yes else "would be removed; --yes does it"
    print(f"{count} that no name leads to and nobody wrote to for a day {done}", file=sys.stderr)


def _made(created: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(created))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
    return "" if value is None else str(value)


_WIDE = 120  # characters that a list with kinds and keys needs
_TITLES = {"config": "knob", "inputs": "input", "metrics": "metric"}
VERBS = {  # verb -> (function, operands, what it does)
    "ls": (_ls, (), "every name with its versions"),
    "show": (_show, ("ref",), "one artifact: inputs, config, metrics, files"),
    "lineage": (_lineage, ("ref",), "all that an artifact was made from, back to the data"),
    "verify": (_verify, ("ref?",), "read every file and compare its sha256"),
    "diff": (_diff, ("ref", "other"), "what differs between two artifacts"),
    "tag": (_tag, ("ref", "alias"), "point an alias at a version"),
    "export": (
        _export,
        ("ref", "folder"),
        "copy an artifact's files to a new folder, an adapter merged into its base",
    ),
    "gc": (_gc, (), "list (and remove) what no name leads to"),
}
