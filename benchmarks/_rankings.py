"""What the benchmarks that learn from rankings share: the rankings, and our stage beside TRL's trainer on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _peer import Side
from _race import fastest, lengths, our_side, question, save_rows, take_turns, trl_side, words

CASES = {"pairs": [2] * 32, "kwise": [4, 5, 6, 7, 8, 9]}  # responses to each prompt of the batch
_MICRO_BATCHES = (2, 4, 8)  # TRL's, in pairs
_RATE = 1e-5


def rankings(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return one row of comparisons for each number of responses, the best response first."""
    asked = lengths(len(sizes), 40, seed=1)
    answered = iter(lengths(sum(sizes), 80, seed=2))
    rows = []
    for number, (size, length) in enumerate(zip(sizes, asked, strict=True)):
        responses = [words(next(answered), 1000 * (number + 1) + place) for place in range(size)]
        rows.append({"prompt": question(length, number), "responses": responses, "ranks": list(range(1, size + 1))})
    return rows


def pairs_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every ordered pair of each ranking as a row of TRL's, pairs of like length next to each other."""
    pairs = []
    for row in rows:
        for place, better in enumerate(row["responses"]):
            for worse in row["responses"][place + 1 :]:
                chosen, rejected = ([{"role": "assistant", "content": text}] for text in (better, worse))
                pairs.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return sorted(pairs, key=_longest)


def _longest(pair: Mapping[str, Any]) -> int:
    asked, chosen, rejected = (len(pair[name][0]["content"].split()) for name in ("prompt", "chosen", "rejected"))
    return asked + max(chosen, rejected)


def race(folder: Path, stage: str, case: str, rounds: int, peer: Path, config: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of our stage beside TRL's trainer on one batch of rankings.

    Args:
        folder: has our stage's model, in `model`.
        stage: reward or dpo, as TRL's trainer.
        case: one of `CASES`.
        rounds: steps that count; one more comes before them.
        peer: the folder of the model that TRL's trainer starts from.
        config: of TRL's trainer.
    """
    rows, steps = rankings(CASES[case]), rounds + 1
    pairs = pairs_of(rows)

    def trl(size: int, pairs: Sequence[Any] = pairs, steps: int = steps) -> Side:
        given = {
            "max_steps": steps,
            "learning_rate": _RATE,
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": math.ceil(len(pairs) / size),
            "train_sampling_strategy": "sequential",
        }
        return trl_side(folder, stage, peer, pairs, given | config)

    # A sixth of the pairs of large rankings has all lengths, too.
    few = pairs if case == "pairs" else pairs[::6]
    size = fastest(lambda size: trl(size, few, 2), _MICRO_BATCHES)
    data = save_rows(folder / case, "comparisons", rows)
    inputs = {"model": ("model", folder / "model"), "data": ("comparisons", data)}
    knobs = {
        "num_epochs": steps,
        "batch_size": len(rows),
        "learning_rate": _RATE,
        "warmup_steps": 0,
        "final_learning_rate_fraction": 1.0,
    }
    ours = our_side(folder, stage, inputs, knobs)
    other = trl(size)
    take_turns([ours, other], steps)
    tokens = sum(_tokens(row) for row in rows)
    print(f"{case}: {len(rows)} rankings, {tokens:,} tokens; TRL: {len(pairs)} pairs, {size} at a time")
    bars = {
        f"{case}_ratio": _whole(other, "seconds") / _whole(ours, "seconds"),
        f"{case}_cpu_ratio": _whole(other, "cpu_seconds") / _whole(ours, "cpu_seconds"),
        f"{case}/memory_ratio": ours.memory() / other.memory(),
    }
    for name, side in (("ours", ours), ("trl", other)):
        bars[f"{case}/{name}_seconds"] = _whole(side, "seconds")
        bars[f"{case}/{name}_tokens_per_second"] = tokens / _whole(side, "seconds")
    if case == "pairs":
        losses = zip(ours.answers, other.answers, strict=True)
        bars["pairs/loss_gap"] = max(abs(one["loss"] - two["loss"]) for one, two in losses)
    return bars


def _tokens(row: Mapping[str, Any]) -> int:
    """Return the words that our stage reads: the prompt once with each response."""
    asked = len(row["prompt"][0]["content"].split())
    return sum(asked + len(response.split()) for response in row["responses"])


def _whole(side: Side, name: str) -> float:
    """Return the time of one pass over the batch: a step, and what came before the first one."""
    return side.answers[-1][f"before_{name}"] + side.median(name)
