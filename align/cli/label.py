"""`align label`: ask people which of several answers is better, and keep what they say."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from align.configs.knobs import shown
from align.data.records import SPLITS, read_info, read_rows
from align.errors import ConfigError
from align.labelling.agreement import Report, pair_agreement, ranking_alpha, reports
from align.labelling.database import FLAGS, Settings, Votes, checked_ranks
from align.labelling.exchange import TOOLS, current, of_split, read, take, write
from align.labelling.labelled import checked_list, checked_prompt, checked_responses
from align.labelling.screening import verdicts
from align.labelling.snapshots import freeze, place
from align.runtime.console import Parser
from align.store.artifacts import Artifact, ArtifactStore, store_folder
from align.store.references import hint, is_outside, meant

_LAST_PORT = 65535
_TABLES = (".parquet", ".arrow", ".csv", ".tsv")  # files that hold no JSON lines
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    store = ArtifactStore(store_folder(options.store))
    path = place(store.root, options.name)
    act = {
        "create": _create,
        "add": _add,
        "token": _token,
        "serve": _serve,
        "status": _status,
        "simulate": _simulate,
        "export": _export,
        "import": _import,
    }[options.verb]
    return act(options, store, path)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="align label", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    said = {
        "create": "begin a file of votes",
        "add": "add prompts with answers",
        "token": "make, list or revoke the links of labelers",
        "serve": "show the page",
        "status": "how many are done, and how labelers agree",
        "simulate": "let simulated labelers use the page",
        "export": "freeze the votes as a numbered snapshot, or write them for another tool",
        "import": "take items and votes from another tool's file",
    }
    made = {verb: verbs.add_parser(verb, help=text) for verb, text in said.items()}
    for verb in made.values():
        verb.add_argument("name", metavar="NAME", help="of the file of votes, labels/NAME.db")
        verb.add_argument("--store", metavar="FOLDER", help="default: $ALIGN_STORE, or artifacts")
    create = made["create"]
    create.add_argument("--instructions", metavar="FILE", help="text above every item")
    create.add_argument("--flags", metavar="A,B,...", help="what may be wrong with an answer")
    create.add_argument("--overlap", type=int, default=2, help="labelers of a shared item")
    create.add_argument("--overlap-share", type=float, default=0.1, help="share of shared items")
    create.add_argument("--gold-share", type=float, default=0.0, help="share of known items")
    add = made["add"]
    add.add_argument("data", metavar="DATA", help="PIPELINE/STEP of comparisons, or path:FILE")
    add.add_argument("--gold", action="store_true", help="their ranks are known, to test labelers")
    add.add_argument("--format", choices=TOOLS, help="the tool that FILE is from, if not clear")
    export = made["export"]
    export.add_argument("--format", choices=TOOLS, help="the tool to write for; none: a snapshot")
    export.add_argument("--out", metavar="FILE", help="with --format: the file to write")
    taken = made["import"]
    taken.add_argument("file", metavar="FILE", help="JSON of Label Studio or Argilla")
    taken.add_argument("--format", choices=TOOLS, help="the tool that FILE is from, if not clear")
    token = made["token"]
    token.add_argument("labeler", nargs="?", help="name of a new labeler; none: list them")
    token.add_argument("--admin", action="store_true", help="may see the report and decide")
    token.add_argument("--revoke", action="store_true", help="end this labeler's access")
    serve = made["serve"]
    serve.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    serve.add_argument("--port", type=int, default=8080, help="default: 8080; 0: any free one")
    serve.add_argument("--prefix", default="", metavar="/PATH", help="path behind a proxy")
    simulate = made["simulate"]
    simulate.add_argument("data", metavar="DATA", help="comparisons with gold scores")
    simulate.add_argument("--url", default="http://127.0.0.1:8080/", help="of the page")
    simulate.add_argument("--labelers", type=int, default=5)
    simulate.add_argument("--most", type=int, default=1000, help="rankings of each labeler")
    simulate.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _create(options: argparse.Namespace, store: ArtifactStore, path: Path) -> int:
    text = Path(options.instructions).read_text(encoding="utf-8") if options.instructions else ""
    flags = tuple(options.flags.split(",")) if options.flags else FLAGS
    settings = Settings(text, flags, options.overlap, options.overlap_share, options.gold_share)
    for name in ("overlap_share", "gold_share"):
        if not 0 <= getattr(settings, name) < 1 + (name == "overlap_share"):
            raise ConfigError(f"--{name.replace('_', '-')}: expected a share, from 0 to 1")
    if settings.overlap < 1:
        raise ConfigError(f"--overlap: expected 1 or more, got {settings.overlap}")
    Votes.create(path, settings).close()
    print(f"{path}: made; add answers: align label add {options.name} DATA")
    return 0


def _add(options: argparse.Namespace, store: ArtifactStore, path: Path) -> int:
    votes, added, known = Votes(path), 0, 0
    for split, rows in _rows(options, store):
        new, old = votes.add_items(rows, split)
        added, known = added + new, known + old
    print(f"{added:,} items added, {known:,} were here already")
    return 0


def _rows(
    options: argparse.Namespace, store: ArtifactStore
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the rows of each split; without `--gold`, without their ranks."""
    data, gold = options.data, options.gold
    if data.startswith("path:"):
        if data.lower().endswith(_TABLES):
            raise ConfigError(f"{data}: expected a file of JSON lines{_what_to_add(data)}")
        yield from _rows_of_file(options, Path(data.removeprefix("path:")))
        return
    if options.format:
        raise ConfigError(f"--format: expected path:FILE with it, got {data}")
    artifact = _candidates(data, store, _what_to_add)
    kept = ("prompt", "responses", "ranks") if gold else ("prompt", "responses")
    for split in SPLITS:
        yield (
            split,
            [{name: row[name] for name in kept} for row in read_rows([artifact.path], split)],
        )


def _candidates(data: str, store: ArtifactStore, suggest: Callable[[str], str]) -> Artifact:
    """Return the artifact of prompts with several responses that a reference names.

    Args:
        suggest: returns the end of an error about a reference: what to give instead.
    """
    artifact = store.find(data, suggest)
    if artifact.kind not in ("candidates", "comparisons"):
        raise ConfigError(f"{data}: expected candidates or comparisons, got {artifact.kind}")
    return artifact


def _what_to_add(ref: str) -> str:
    """Suggest what to give `add` instead of `ref`, as the end of an error."""
    full = ref if is_outside(ref) else meant(ref)
    is_file = full is not None and full.startswith("path:")
    if is_file and not ref.lower().endswith(_TABLES):
        return hint(ref)
    if full is not None and (is_file or is_outside(ref) or "://" in ref):
        source = shlex.quote(f"source={full}")
        return f"; other data comes in by: align data record=comparisons {source} name=mine/NAME"
    return "; give candidates or comparisons of the store, or path:FILE of JSON lines"


def _rows_of_file(
    options: argparse.Namespace, file: Path
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    found = read(file, options.format)
    if found is None:
        yield "train", list(_of_file(file, options.gold))
        return
    _, items = found
    rows = [(split, of_split(items, split, options.gold)) for split in SPLITS]
    yield from rows
    count = sum(len(item.votes) for item in items)
    if count and not options.gold:
        print(f"{count:,} votes left out; to take them: align label import {options.name} {file}")


def _of_file(file: Path, gold: bool) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            begun = shown(line.strip())
            raise ConfigError(
                f"{file}:{number}: expected a JSON object with prompt and responses on each line,"
                f" got {begun} ({error})"
            ) from None
        try:
            yield _checked(row, gold)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{file}:{number}: {error}") from None


def _checked(row: Any, gold: bool) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError("expected an object with prompt and responses")
    if "responses" not in row and {"chosen", "rejected"} <= row.keys():
        raise ValueError(
            "responses: expected a list of texts, got a pair; give it as"
            ' "responses": [CHOSEN, REJECTED]'
        )
    texts = checked_list(row.get("responses"), "responses", str, "a list of texts")
    responses = checked_responses(texts, "responses")
    kept = {**row, "prompt": checked_prompt(row.get("prompt"), "prompt")}
    kept.pop("ranks", None)
    return kept | ({"ranks": checked_ranks(row, len(responses))} if gold else {})


def _token(options: argparse.Namespace, store: ArtifactStore, path: Path) -> int:
    votes = Votes(path)
    if options.labeler is None:
        for each in votes.labelers():
            state = "revoked" if each["revoked"] else each["role"]
            print(f"{each['name']}  {state}")
        return 0
    if options.revoke:
        votes.revoke(options.labeler)
        print(f"{options.labeler}: the link opens nothing any more; the votes stay")
        return 0
    token = votes.add_labeler(options.labeler, "admin" if options.admin else "labeler")
    print(
        f"{options.labeler}: keep this link secret, it is shown once; put the page's address first"
    )
    print(f"{'admin' if options.admin else ''}#{token}")
    return 0


def _serve(options: argparse.Namespace, store: ArtifactStore, path: Path) -> int:
    try:
        from align.labelling.service import serve
    except ImportError as error:
        raise ConfigError(
            f"align label serve: needs the extra `label` ({error}); pip install -e '.[label]'"
        ) from error
    votes = Votes(path)
    votes.check()
    if options.prefix and (not options.prefix.startswith("/") or options.prefix.endswith("/")):
        raise ConfigError(
            f"--prefix: expected /PATH without a slash at its end, got {options.prefix}"
        )
    if not 0 <= options.port <= _LAST_PORT:
        raise ConfigError(f"--port: expected 0 to {_LAST_PORT}, got {options.port}")
    if all(each["role"] == "imported" for each in votes.labelers()):
        raise ConfigError(f"no labeler has a link yet: align label token {options.name} LABELER")
    if options.host not in _LOOPBACK:
        print(
            "warning: the page is not encrypted; put a proxy with TLS before it",
            file=sys.stderr,
        )
    serve(votes, options.host, options.port, options.prefix, lambda url: print(url, flush=True))
    return 0


def _status(options: argparse.Namespace, store: ArtifactStore, path: Path) -> int:
    votes = Votes(path)
    counts, rankings = votes.counts(), votes.rankings()
    print(f"{counts['done']:,} of {counts['items']:,} items done; {counts['votes']:,} rankings")
    agreement, alpha = pair_agreement(rankings), ranking_alpha(rankings)
    if agreement is not None and alpha is not None:
        print(f"pairs ordered alike {agreement:.1%}, Krippendorff's alpha {alpha:.3f}")
    look = verdicts(rankings)
    for each in reports(rankings):
        print(_line(each))
        for reason in look[each.name]:
            print(f"  look at this labeler: {reason}")
    return 0


def _line(report: Report) -> str:
    """Return what is known of a labeler; shares without a basis are left out."""
    shares = {
        "agreement with others": report.agreement,
        "with known rankings": report.gold,
        "on sensitive flags": report.sensitive,
        "longer is better": report.longer,
        "ties": report.ties,
    }
    said = [f"{report.name}  {report.votes:,} rankings, {report.seconds:.0f} s each"]
    said += [f"{name} {share:.1%}" for name, share in shares.items() if share is not None]
    if report.first is not None:
        said.append(f"first is best {report.first:.2f} x chance")
    return ", ".join(said)


def _simulate(options: argparse.Namespace, store: ArtifactStore, path: Path) -> int:
    from align.evals.gold import gold_scorer
    from align.labelling.crowd import answers, simulate

    votes = Votes(path)
    said = "; give candidates or comparisons of the store, which have gold scores"
    folder = _candidates(options.data, store, lambda _: said).path
    scorer = gold_scorer([read_info(folder)])
    if scorer is None:
        raise ConfigError(f"{options.data}: expected prompts with a gold scorer")
    if not answers(options.url):  # before labelers are added
        raise ConfigError(
            f"--url {options.url}: no labelling page answers; start it in another terminal: align"
            f" label serve {options.name}, and give the address that it prints"
        )
    rows = [
        {**row, "gold": [scorer(row["prompt"], text).overall for text in row["responses"]]}
        for split in SPLITS
        for row in read_rows([folder], split)
    ]
    known = {each["name"] for each in votes.labelers()}
    names = [f"simulated-{i}" for i in range(len(known), len(known) + options.labelers)]
    tokens = [votes.add_labeler(name) for name in names]
    try:
        count = simulate(options.url, tokens, rows, options.most, options.seed)
    except PermissionError as error:
        raise ConfigError(
            f"--url {options.url}: the page refuses the labelers of {options.name} ({error}); does"
            " it serve another file of votes?"
        ) from None
    print(f"{count:,} rankings by {options.labelers} simulated labelers")
    return 0


def _export(options: argparse.Namespace, store: ArtifactStore, path: Path) -> int:
    if bool(options.format) != bool(options.out):
        raise ConfigError("--format and --out: expected both, or none for a snapshot")
    if options.format:
        return _write(options, Votes(path))
    snapshot = freeze(Votes(path))
    counts = ", ".join(f"{count:,} {name}" for name, count in snapshot.counts.items())
    print(f"{snapshot.folder}: {counts}; sha256 {snapshot.digest[:12]}")
    file = snapshot.folder / "comparisons.jsonl"
    print(f"as data: align data source=path:{file} record=comparisons name=mine/labels")
    return 0


def _write(options: argparse.Namespace, votes: Votes) -> int:
    """Write the votes for another tool."""
    votes.check()
    file, items = Path(options.out), current(votes)
    beside = write(items, options.format, votes.setting("flags"), file)
    count = sum(len(item.votes) for item in items)
    print(f"{file}: {len(items):,} items, {count:,} votes")
    print(f"{beside}: prepares {options.format} for them")
    return 0


def _import(options: argparse.Namespace, store: ArtifactStore, path: Path) -> int:
    votes, file = Votes(path), Path(options.file)
    found = read(file, options.format)
    if found is None:
        raise ConfigError(
            f"{file}: expected one JSON list, of {' or '.join(TOOLS)}; items alone:"
            f" align label add {options.name} path:{file}"
        )
    tool, items = found
    done = take(votes, items, tool)
    print(f"{done.items:,} items and {done.votes:,} votes added, {done.known:,} votes were here")
    left = Counter[str]()
    for item in items:
        left.update(item.left)
    if done.other:
        left["of labelers who answered otherwise here"] = done.other
    for reason, count in sorted(left.items()):
        print(f"{count:,} votes left out: {reason}")
    return 0
