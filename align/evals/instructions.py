"""IFEval's accuracies: how often models follow instructions that a program can check.

Zhou et al. 2023, arXiv:2311.07911, section 2.2: by prompt (all of its instructions followed) and by
instruction, strict and loose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align.data.records import Row
from align.errors import ConfigError
from align.evals.intervals import bootstrap_statistic, bounds, compared, few
from align.verifiers import language
from align.verifiers.ifeval import NEEDS_LANGUAGE, Instruction, Verdicts, read_instructions

COLUMNS = ("instruction_id_list", "kwargs")


def instructions_of(rows: Sequence[Row]) -> list[list[Instruction]]:
    """Return the instructions of each prompt.

    Raises:
        ConfigError: a row lacks IFEval's columns, or they hold something wrong; or instructions
            about language are among them, and langdetect is not installed.
    """
    found = []
    for place, row in enumerate(rows):
        try:
            found.append(read_instructions(*(row.get(column) for column in COLUMNS)))
        except ValueError as error:
            raise ConfigError(f"inputs.prompts: row {place}: {error}") from None
    every = [each.kind for own in found for each in own]
    asked = sum(kind in NEEDS_LANGUAGE for kind in every)
    if asked and not language.is_installed():
        raise ConfigError(
            f"tasks: ifeval: {asked:,} of {len(every):,} instructions are about the language, which"
            f" {language.MISSING}"
        )
    return found


def instruction_metrics(
    head: str,
    instructions: Sequence[Sequence[Instruction]],
    verdicts: Sequence[Sequence[Verdicts]],
    num_bootstrap: int,
    seed: int,
) -> dict[str, float]:
    """Return every accuracy with its interval; names begin with `head`.

    The instructions of a prompt share a response, so accuracies by instruction have intervals over
    prompts. `align.evals.intervals.compared` describes the names of a baseline's metrics.

    Args:
        instructions: of each of N prompts.
        verdicts: on the model's N responses; then, if there is one, on the baseline's.
    """
    metrics = {f"{head}items": float(len(instructions))}
    kinds = [each.kind for own in instructions for each in own]
    flat: dict[str, list[list[bool]]] = {}  # way -> verdicts on all instructions, by model
    for way in ("strict", "loose"):
        by_prompt = [[getattr(verdict, way) for verdict in own] for own in verdicts]
        flat[way] = [[ok for prompt in own for ok in prompt] for own in by_prompt]
        whole = [[float(all(prompt)) for prompt in own] for own in by_prompt]
        metrics |= compared(head, f"prompt_{way}", whole, num_bootstrap, seed)
        metrics |= _by_instruction(head, f"instruction_{way}", by_prompt, num_bootstrap, seed)
    for kind in sorted(set(kinds)):
        places = [place for place, other in enumerate(kinds) if other == kind]
        part = f"{head}{kind.partition(':')[2]}/"
        metrics[f"{part}items"] = float(len(places))
        for way, own in flat.items():
            chosen = [[float(model[place]) for place in places] for model in own]
            metrics |= compared(part, way, chosen, num_bootstrap, seed)
    return metrics


def _by_instruction(
    head: str, name: str, by_prompt: Sequence[Sequence[list[bool]]], num_bootstrap: int, seed: int
) -> dict[str, float]:
    """Return the fraction of all instructions that are followed, as `compared` returns a mean."""
    counts = np.array([len(prompt) for prompt in by_prompt[0]], dtype=float)
    followed = [np.array([sum(prompt) for prompt in own], dtype=float) for own in by_prompt]
    parts = dict(zip(("", "baseline/"), followed, strict=False))
    if len(followed) == 2:
        parts["gain/"] = followed[0] - followed[1]

    def ratio(sums: np.ndarray, of: np.ndarray) -> float:
        return float(sums.sum() / of.sum())

    metrics = few(f"{head}{name}", len(counts))
    for part, own in parts.items():
        interval = bootstrap_statistic(ratio, [own, counts], num_bootstrap, seed)
        metrics |= bounds(f"{head}{part}{name}", interval)
    return metrics


def verdict_rows(
    prompts: Sequence[str],
    instructions: Sequence[Sequence[Instruction]],
    texts: Mapping[str, Sequence[str]],
    verdicts: Sequence[Sequence[Verdicts]],
) -> list[dict[str, Any]]:
    """Return each prompt with the models' answers and the instructions that they do not follow.

    Args:
        texts: the answers by the model's name, in the order of `verdicts`.
    """
    rows = []
    for place, (prompt, own) in enumerate(zip(prompts, instructions, strict=True)):
        row = {"prompt": prompt, "instructions": ", ".join(each.kind for each in own)}
        for (name, answers), judged in zip(texts.items(), verdicts, strict=True):
            row[name] = answers[place]
            missed = [
                each.kind for each, ok in zip(own, judged[place].strict, strict=True) if not ok
            ]
            row[f"{name}_missed"] = ", ".join(missed)
        rows.append(row)
    return rows
