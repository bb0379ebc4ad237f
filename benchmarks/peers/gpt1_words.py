"""GPT-1's token ids by the rules of OpenAI's own code (text_utils.py of openai/finetune-transformer-lm), restated.

    .venv-words/bin/python benchmarks/peers/gpt1_words.py FOLDER < lines.jsonl

FOLDER holds encoder_bpe_40000.json and vocab_40000.bpe. Each line of standard input is a text as JSON, each line that
is written (to the descriptor in ANSWERS_FD, or to standard output) its ids. The rules: ftfy mends the text; dashes
become -, an ellipsis three dots; runs of marks stand apart; spaces run together and newlines stay; spaCy's English
rules cut words; words in lower case are merged from characters, of which the last is marked </w>.
"""

import itertools
import json
import math
import os
import re
import sys
from pathlib import Path

import ftfy
import spacy

_SAME = {"\u2014": "-", "\u2013": "-", "\u2015": "-", "\u2026": "...", "\u00b4": "'"}
_RUNS = re.compile("(" + "|".join(re.escape(mark) + "+" for mark in '-~!";?+,)(\\/*[]}{|_') + ")")


def standardised(text: str) -> str:
    for found, wanted in _SAME.items():
        text = text.replace(found, wanted)
    text = _RUNS.sub(r" \1 ", text)
    text = re.sub(r"\s*\n\s*", " \n ", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def merged(word: str, ranks: dict[tuple[str, str], int], known: dict[str, list[str]]) -> list[str]:
    if word not in known:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: ranks.get(pair, math.inf))
            if best not in ranks:
                break
            joined, place = [], 0
            while place < len(parts):
                here = tuple(parts[place : place + 2]) == best
                joined.append("".join(parts[place : place + 2]) if here else parts[place])
                place += 2 if here else 1
            parts = joined
        known[word] = ["\n</w>"] if word.strip(" ") == "\n" else parts
    return known[word]


def main(folder: Path) -> None:
    ids = json.loads((folder / "encoder_bpe_40000.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab_40000.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}
    known: dict[str, list[str]] = {}
    words = spacy.blank("en")
    words.max_length = 10**9
    with os.fdopen(int(os.environ.get("ANSWERS_FD", "1")), "w") as answers:
        for line in sys.stdin:
            text = standardised(ftfy.fix_text(json.loads(line)))
            found = [ids.get(part, 0) for word in words(text) for part in merged(word.text.lower(), ranks, known)]
            print(json.dumps(found), file=answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
