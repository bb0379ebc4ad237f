"""Measure the bits per byte that `xz -9` needs for the held-out text of a run, by source.

    python pipelines/gpt2/compression.py [--store artifacts] [--pipeline gpt2] SOURCE ...

The held-out documents of each source are compressed as one file. They are compressed again behind
the training documents of all sources, whose own compressed size is subtracted. So xz has then seen
what the model has seen.
"""

from __future__ import annotations

import argparse
import lzma

from align.data.records import read_rows
from align.store.artifacts import ArtifactStore


def text_of(store: ArtifactStore, ref: str, split: str) -> bytes:
    folder = store.find(ref).path
    return "\n\n".join(row["text"] for row in read_rows([folder], split)).encode()


def compressed(data: bytes) -> int:
    """Bytes; the dictionary is as large as the data, so that nothing is out of reach."""
    return len(
        lzma.compress(
            data,
            format=lzma.FORMAT_XZ,
            filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 2**27}],
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a data step of the pipeline")
    parser.add_argument("--store", default="artifacts")
    parser.add_argument("--pipeline", default="gpt2")
    options = parser.parse_args()
    store = ArtifactStore(options.store)
    refs = {source: f"{options.pipeline}/{source}" for source in options.sources}
    seen = b"\n\n".join(text_of(store, ref, "train") for ref in refs.values())
    alone = compressed(seen)
    for source, ref in refs.items():
        held_out = text_of(store, ref, "validation")
        bits = 8 * compressed(held_out) / len(held_out)
        after = 8 * (compressed(seen + b"\n\n" + held_out) - alone) / len(held_out)
        size = f"{source:<12} {len(held_out):>10,} bytes"
        print(f"{size}  {bits:.3f} bits per byte alone, {after:.3f} behind the training text")


if __name__ == "__main__":
    main()
