"""GPT-1's tokens beside those of OpenAI's own code: how often does it matter how words are cut?

    python -m venv .venv-words && .venv-words/bin/pip install ftfy==6.3.1 spacy==3.8.18      # once
    python benchmarks/gpt1_words.py FOLDER TEXT ... [--json FILE] [--shown 20]

FOLDER holds encoder_bpe_40000.json and vocab_40000.bpe; each TEXT is a file of text, gzipped or not, or a folder of
them. They are compared a line at a time: OpenAI's code has a token for a newline and ours has none, as transformers'
has none. `lines_alike` is the share of lines with the same ids, `tokens_alike` the share of OpenAI's tokens that stand
in ours, too, in the same order.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections import Counter
from pathlib import Path

from _peer import asked
from _report import report
from _texts import PEER_PYTHON, lines_of

from align.data.cards import resolve_tokenizer
from align.text.published import open_tokenizer

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--peer", type=Path, default=PEER_PYTHON)
    parser.add_argument("--shown", type=int, default=20, help="so many of the commonest differences")
    options = parser.parse_args()
    lines = lines_of(options.text)
    given = "".join(json.dumps(line) + "\n" for line in lines)
    command = [str(options.peer), str(HERE / "peers/gpt1_words.py"), str(options.folder)]
    theirs = [json.loads(line) for line in asked(command, given)]
    tokenizer = open_tokenizer(resolve_tokenizer(f"path:{options.folder}", None))
    ours = tokenizer(lines, split_special_tokens=True)["input_ids"]

    differences: Counter[tuple[str, str]] = Counter()
    alike = 0
    for a, b in zip(theirs, ours, strict=True):
        if a == b:
            alike += len(a)
            continue
        for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
            if kind == "equal":
                alike += a1 - a0
            else:
                shown = [" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in (a[a0:a1], b[b0:b1])]
                differences[shown[0], shown[1]] += 1
    for (one, other), count in differences.most_common(options.shown):
        print(f"{count:>8,}  {one!r:<32} {other!r}")
    bars = {
        "lines": float(len(lines)),
        "lines_alike": sum(a == b for a, b in zip(theirs, ours, strict=True)) / len(lines),
        "tokens": float(sum(map(len, theirs))),
        "tokens_ours": float(sum(map(len, ours))),
        "tokens_alike": alike / sum(map(len, theirs)),
        "unknown": sum(ids.count(0) for ids in theirs) / sum(map(len, theirs)),
        "unknown_ours": sum(ids.count(0) for ids in ours) / sum(map(len, ours)),
    }
    report(bars, options.json)


if __name__ == "__main__":
    main()
