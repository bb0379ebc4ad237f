"""How many bytes a token holds: our unigram models and BPE, beside SentencePiece's and those of `tokenizers`.

    python -m venv .venv-words && .venv-words/bin/pip install sentencepiece==0.2.3               # once
    python benchmarks/unigram.py TEXT ... [--size 8000] [--json FILE]

Each TEXT is a file of text, gzipped or not, or a folder of them. All learn from nine of ten lines, in order, and are
counted on the rest. `seconds` is what our unigram model took to learn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter

from _peer import asked
from _report import report
from _texts import PEER_PYTHON, lines_of
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from align.text.tokenizers import train_tokenizer

HERE = Path(__file__).parent


def by_tokenizers(train: list[str], test: list[str], size: int) -> int:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<unk>"], unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(train, trainer)
    return sum(len(encoding.ids) for encoding in tokenizer.encode_batch(test))


def by_sentencepiece(train: list[str], test: list[str], size: int, python: Path) -> int:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"size": size, "train": train, "test": test}, file)
        file.flush()
        command = [str(python), str(HERE / "peers/sentencepiece_tokens.py"), file.name]
        return int(asked(command)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=8000)
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--peer", type=Path, default=PEER_PYTHON)
    options = parser.parse_args()
    lines = lines_of(options.text)
    cut = len(lines) * 9 // 10
    # A line's first word stands behind a space, which SentencePiece puts there by itself.
    train, test = ([" " + line for line in part] for part in (lines[:cut], lines[cut:]))
    size = sum(len(line.encode()) for line in test)
    begun = perf_counter()
    unigram = train_tokenizer(train, options.size, algorithm="unigram")
    seconds = perf_counter() - begun
    bpe = train_tokenizer(train, options.size)
    counts = {
        "unigram": sum(map(len, unigram(test)["input_ids"])),
        "bpe": sum(map(len, bpe(test)["input_ids"])),
        "tokenizers_unigram": by_tokenizers(train, test, options.size),
        "sentencepiece_unigram": by_sentencepiece(lines[:cut], lines[cut:], options.size, options.peer),
    }
    bars = {f"{name}_bytes_per_token": size / count for name, count in counts.items()}
    report({**bars, "train_bytes": float(sum(len(line.encode()) for line in train)), "seconds": seconds}, options.json)


if __name__ == "__main__":
    main()
