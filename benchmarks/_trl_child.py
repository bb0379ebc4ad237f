"""One of TRL's trainers, a turn at a time: the side of a race that `_race.trl_side` starts.

A turn is `steps` optimizer steps; with GRPO they are those of one rollout. Its answer has what the trainer logged for
it, `seconds`, `generate_seconds` (GRPO) and `before_seconds`, the time in which DPO computed the reference's log-probs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from _child import answer, rss
from _race import even_words
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

datasets.disable_progress_bars()
IMPORT_RSS = rss("VmRSS")


class Stopwatch:
    """Adds up the seconds in a function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.seconds += time.perf_counter() - begun

        return timed


class Turns(TrainerCallback):
    """Waits for a line before each turn, and says afterwards what it took."""

    def __init__(self, steps: int, before: Stopwatch, generating: Stopwatch) -> None:
        self._steps, self._before, self._generating = steps, before, generating
        self._seconds: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step % self._steps == 0:
            if not sys.stdin.readline():
                raise SystemExit
            self._generating.seconds = 0.0
            self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step % self._steps == 0:
            self._seconds = time.perf_counter() - self._begun

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **others: Any) -> None:
        if self._seconds is None:
            return
        own = {
            "seconds": self._seconds,
            "generate_seconds": self._generating.seconds,
            "before_seconds": self._before.seconds,
            "peak_rss_bytes": rss("VmHWM"),
            "import_rss_bytes": IMPORT_RSS,
        }
        self._seconds = None
        answer(logs | own)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    before, generating = Stopwatch(), Stopwatch()
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    kind = AutoModelForSequenceClassification if settings["trainer"] == "reward" else AutoModelForCausalLM
    model = kind.from_pretrained(settings["model"], dtype=torch.float32, attn_implementation="sdpa")
    DPOTrainer.compute_ref_log_probs = before.around(DPOTrainer.compute_ref_log_probs)
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "model": model,
            "train_dataset": datasets.Dataset.from_list(settings["rows"]),
            "processing_class": tokenizer,
            "callbacks": [Turns(settings["steps"], before, generating)],
        }
        config = settings["config"] | {"output_dir": folder, "use_cpu": not torch.cuda.is_available()}
        if settings["trainer"] == "grpo":
            trainer = GRPOTrainer(args=GRPOConfig(**config), reward_funcs=even_words, **given)
            trainer.model.generate = generating.around(trainer.model.generate)
        elif settings["trainer"] == "reward":
            trainer = RewardTrainer(args=RewardConfig(**config), **given)
        else:
            trainer = DPOTrainer(args=DPOConfig(**config), **given)
        answer({"ready": True})
        trainer.train()


if __name__ == "__main__":
    main()
