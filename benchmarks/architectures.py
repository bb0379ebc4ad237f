"""Run each architecture of `transformers` as a tiny random model through five stages, and write a table of the results.

    python benchmarks/architectures.py [--json FILE] [--table docs/reference/architectures.md]
    python benchmarks/architectures.py --only NAME,NAME --json FILE --table docs/reference/architectures.md

With `--only`, the results of the other architectures come from FILE.

For each architecture the table has three things: how packed rows are read; the largest difference of a packed log-prob
from plain `transformers` (its own eager attention, each sequence alone, 1 to 3 sliding windows long); and how many of
import, supervised tuning, reward model, PPO and evaluation succeed. An import refuses a model in one line; any other
error counts as a crash.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "models")]

from catalogue import ARCHITECTURES, WINDOW, tiny  # noqa: E402
from five_stages import STAGES, run_stages, write_data, write_source  # noqa: E402
from tiny_models import sequences_of  # noqa: E402

from align.errors import ConfigError  # noqa: E402
from align.evals.model_check import fit_model  # noqa: E402
from align.models.load import context_of  # noqa: E402
from align.models.packed import response_logprobs  # noqa: E402
from align.models.padded import is_padded  # noqa: E402
from align.text.packing import pack  # noqa: E402

LENGTHS = (1, 3 * WINDOW, 2, WINDOW, 70, 1, WINDOW + 1, 3 * WINDOW - 1, 5)
BOUND = 1e-4  # nats

HEAD = f"""# Architectures

`align import_model` checks by numbers whether a model runs. It compares the model with itself. It refuses,
in one line, a model that would not run or would give wrong numbers. See
[Import a model](../how-to/import-a-model.md).

`python benchmarks/architectures.py --table docs/reference/architectures.md` writes this page. Each
architecture is a model of two layers with random weights.

| column | meaning |
|---|---|
| packed rows | how the model reads packed rows, see below |
| difference | the largest difference of a log-prob, in nats, between packed rows and plain Transformers |
| stages | how many of import, supervised tuning, reward model, PPO and evaluation ran, of 5 |

* **packed**: by the attention of align, without padding.
* **padded**: by the model's own attention on right-padded batches. This is slower and gives the same
  numbers.
* **refused**: import refuses the model; the cell gives the reason.

Plain Transformers reads each sequence alone. Sequences have 1 to {3 * WINDOW} tokens, which is three
sliding windows. One sequence has 70 tokens.

For some models the rotary frequencies depend on the longest sequence of a batch (longrope, dynamic). There
the context ends where this begins, so a sequence has the same log-probs alone and beside others.
`import_model` reports it.
"""


class Outcome(NamedTuple):
    """The result of one architecture."""

    way: str
    difference: float | None
    done: int
    error: str


@torch.no_grad()
def difference(name: str) -> tuple[str, float]:
    """How packed rows are read, and the largest difference of a log-prob from plain `transformers`."""
    ours, plain = tiny(name), tiny(name)
    fit_model(ours)
    sequences = sequences_of([n for n in LENGTHS if n <= context_of(ours.config)])
    got = response_logprobs(ours, pack(sequences), [ids[1:] for ids in sequences])
    expected = []
    for ids in sequences:
        logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        expected.append(logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0])
    return "padded" if is_padded(ours) else "packed", float((got - torch.cat(expected)).abs().max())


def outcome(name: str, folder: Path) -> Outcome:
    """Run one architecture in an empty folder."""
    try:
        way, gap = difference(name)
    except ConfigError as error:
        way, gap = f"refused: {str(error).partition(': ')[2]}", None
    write_source(tiny(name), folder / "source")
    write_data(folder)
    os.chdir(folder)
    done, error = run_stages(folder / "source", folder)
    return Outcome(way, gap, len(done), error)


def verdict(found: Outcome) -> str:
    """runs, refused (in one line, by the import) or crashed."""
    if found.difference is None:
        ok = found.done == 0 and found.error.startswith("error: source ") and "a bug in align" not in found.error
        return "refused" if ok else "crashed"
    return "runs" if found.done == len(STAGES) and found.difference <= BOUND else "crashed"


def table(found: dict[str, Outcome]) -> str:
    verdicts = [verdict(each) for each in found.values()]
    runs, refused, crashed = (verdicts.count(each) for each in ("runs", "refused", "crashed"))
    summary = f"Of {len(found)} architectures, {runs} run all five stages, {refused} are refused, "
    summary += f"and {crashed} crash or differ by more than {BOUND:g} nats."
    rows = ["| architecture | packed rows | difference | stages |", "|---|---|---|---|"]
    for name, each in found.items():
        gap = "" if each.difference is None else f"{each.difference:.1e}"
        rows.append(f"| `{name}` | {each.way.replace('|', ' ')} | {gap} | {each.done} |")
    return f"{HEAD}\n{summary}\n\n" + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, with commas between them; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome there")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    targets = {file: file.resolve() for file in (options.json, options.table) if file is not None}
    found: dict[str, Outcome] = {}
    if options.only and options.json and options.json.exists():
        for name, each in json.loads(options.json.read_text()).items():
            found[name] = Outcome(*(each[field] for field in Outcome._fields))
    for name in options.only.split(",") if options.only else ARCHITECTURES:
        begun = perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found[name] = outcome(name, Path(folder))
            os.chdir(ROOT)
        each = found[name]
        gap = "" if each.difference is None else f"{each.difference:.1e}"
        print(f"{name:20} {verdict(each):8} {each.way[:40]:40} {gap:8} {each.done} {perf_counter() - begun:.1f} s")
        if verdict(each) == "crashed":
            print(f"    {each.error}")
        sys.stdout.flush()
    found = {name: found[name] for name in ARCHITECTURES if name in found}
    if options.json:
        rows = {name: each._asdict() | {"verdict": verdict(each)} for name, each in found.items()}
        targets[options.json].write_text(json.dumps(rows, indent=1) + "\n")
    if options.table:
        targets[options.table].write_text(table(found), encoding="utf-8")
    if any(verdict(each) == "crashed" for each in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
