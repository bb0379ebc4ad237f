"""Banded attention beside dense attention: time, memory, and how both grow with the context.

    python benchmarks/banded.py [--json FILE] [--rounds 7]

One layer's attention of GPT-3 Small (12 heads of 64, a band of 256), forward and backward, one row. Ours has the inputs
of a bf16 run and is beside the fused dense kernel in float32 or bf16, whichever is faster; `fp32/*` is float32 on both
sides. `eager` is what `transformers` computes under a mask of the same band. Memory is the peak of a process of its own
above what it held before, its allocator told to give back at once what is freed. `*_growth` is the exponent of the
context over 1024 to 16,384 tokens: 1 is linear, 2 the square.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from _banded_child import step
from _peer import asked
from _report import arguments, medians, report

from align.runtime.memory import reuse_freed_memory

CHILD = Path(__file__).parent / "_banded_child.py"
CONTEXT = 4096
CONTEXTS = (1024, 2048, 4096, 8192, 16_384)
TIMED = ("banded", "fused_fp32", "banded_fp32", "fused_bf16")
HELD = (*TIMED, "eager", "eager_fp32")  # not timed: the gigabytes that they free slow down whoever is next


def peak(way: str, context: int) -> float:
    """Bytes."""
    command = [sys.executable, str(CHILD), way, str(context)]
    environment = {"MALLOC_MMAP_THRESHOLD_": "262144"}
    return float(asked(command, environment=environment)[0])


def growth(contexts: Sequence[int], values: Sequence[float]) -> float:
    """The exponent of a power law, by least squares of the logarithms."""
    return statistics.linear_regression([math.log(c) for c in contexts], [math.log(v) for v in values]).slope


def main() -> None:
    options = arguments(__doc__, rounds=int)
    rounds = options.rounds or 7
    reuse_freed_memory()
    seconds = dict(zip(TIMED, medians([step(way, CONTEXT) for way in TIMED], rounds), strict=True))
    longer = medians([step("banded", context) for context in CONTEXTS], rounds)
    memory = {way: peak(way, CONTEXT) for way in HELD}
    held = [memory["banded"] if context == CONTEXT else peak("banded", context) for context in CONTEXTS]
    bars = {
        "banded_time_ratio": seconds["banded"] / min(seconds["fused_fp32"], seconds["fused_bf16"]),
        "banded_memory_ratio": memory["banded"] / memory["eager"],
        "banded_time_growth": growth(CONTEXTS, longer),
        "banded_memory_growth": growth(CONTEXTS, held),
        "fp32/banded_time_ratio": seconds["banded_fp32"] / seconds["fused_fp32"],
        "fp32/banded_memory_ratio": memory["banded_fp32"] / memory["eager_fp32"],
    }
    bars |= {f"{way}/milliseconds": taken * 1e3 for way, taken in seconds.items()}
    bars |= {f"{way}/mebibytes": taken / 2**20 for way, taken in memory.items()}
    for context, taken, most in zip(CONTEXTS, longer, held, strict=True):
        bars |= {f"context_{context}/milliseconds": taken * 1e3, f"context_{context}/mebibytes": most / 2**20}
    report(bars, options.json)


if __name__ == "__main__":
    main()
