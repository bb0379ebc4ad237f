"""The recipe on next to nothing, for any model in a folder: import, supervised tuning, reward model, PPO, evaluation.

    (or, before any of it runs, the one line that the import refuses the model with)

Every stage runs by the command line, in the present process and folder.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from tiny_models import tiny_tokenizer
from transformers import PreTrainedModel

from align.cli.main import main

STAGES = ("import_model", "sft", "reward", "ppo", "evaluate")

_WORDS = ("cat", "dog", "mat", "home", "hat", "sun", "red", "ran", "sat", "big", "log", "tea")


def write_source(model: PreTrainedModel, folder: Path) -> None:
    """A folder as somebody would publish it."""
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)


def write_data(folder: Path) -> None:
    """Demonstrations, rankings, prompts, items and text, of a few tokens each: some windows are no longer."""
    said = [{"role": "user", "content": word} for word in _WORDS]
    answers = [{"role": "assistant", "content": word[::-1]} for word in _WORDS]
    _write(folder / "demonstrations.jsonl", [{"messages": list(pair)} for pair in zip(said, answers, strict=True)])
    rankings = []
    for prompt, answer in zip(said, answers, strict=True):
        echo = {"role": "assistant", "content": prompt["content"]}
        rankings.append({"prompt": [prompt], "chosen": [answer], "rejected": [echo]})
    _write(folder / "comparisons.jsonl", rankings)
    _write(folder / "prompts.jsonl", [{"prompt": [message]} for message in said])
    long = " ".join(["the cat sat"] * 5)  # a context that is read once for all of its choices
    items = [{"query": word, "choices": ["a", "bad"], "gold": 1} for word in _WORDS[:3]]
    _write(folder / "items.jsonl", [*items, {"query": long, "choices": [" ab", " cde"], "gold": 0}])
    _write(folder / "text.jsonl", [{"text": "the cat sat on the mat and the dog ran home " * 8}] * 2)


def _write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_stages(source: Path, data: Path) -> tuple[list[str], str]:
    """Run all five; those that ended well, and the error of the one that did not."""
    small = ("batch_size=4", "num_epochs=1", "learning_rate=0.001")
    given = {
        "import_model": (f"source=path:{source}",),
        "sft": ("inputs.model=all/import_model", f"inputs.data=path:{data / 'demonstrations.jsonl'}", *small),
        "reward": (
            *("inputs.model=all/sft", f"inputs.data=path:{data / 'comparisons.jsonl'}", *small),
            f"inputs.demonstrations=path:{data / 'demonstrations.jsonl'}",
        ),
        "ppo": (
            *("inputs.policy=all/sft", "inputs.reward_model=all/reward", "num_iterations=2", "max_new_tokens=6"),
            *(f"inputs.prompts=path:{data / 'prompts.jsonl'}", f"inputs.text=path:{data / 'text.jsonl'}"),
            *("rollout_batch_size=4", "minibatch_size=2", "ptx_coef=0.5", "ptx_examples_per_episode=0.5"),
            *("ptx_length=16", "learning_rate=0.001", "value_learning_rate=0.001"),
        ),
        "evaluate": (
            *("inputs.model=all/ppo", "inputs.baseline=all/sft", "inputs.reward_model=all/reward"),
            *(f"inputs.prompts=path:{data / 'prompts.jsonl'}", f"inputs.items=path:{data / 'items.jsonl'}"),
            *("max_new_tokens=6", "num_prompts=4", "num_bootstrap=10"),
        ),
    }
    done: list[str] = []
    for stage in STAGES:
        arguments = [stage, *given[stage], f"name=all/{stage}", "store=artifacts", "tracker=none", "seed=1"]
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = main(arguments)
        if code:
            lines = [line for line in said.getvalue().splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("error: ")]
            return done, errors[-1] if errors else f"internal error: {lines[-1] if lines else code}"
        done.append(stage)
    return done, ""
