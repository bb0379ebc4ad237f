"""One of TRL's trainers, a turn at a time: the side of a race that `_race.trl_side` starts.

A turn is one optimizer step; with GRPO it also has the rollout. Its answer has what the trainer logged for it,
`seconds`, `cpu_seconds`, and the time in two functions: `generate_seconds` (GRPO), and `before_seconds` and
`before_cpu_seconds`, in which DPO computed the reference's log-probs before the first step. GRPO's first answer has
`rows` of its first micro-batch: tokens of prompt and response, and the reference's log-probs of the latter.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from _child import Clock, answer, rss
from _race import even_words
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

datasets.disable_progress_bars()
IMPORT_RSS = rss("VmRSS")


class Turns(TrainerCallback):
    """Waits for a line before each step, and says afterwards what it took."""

    def __init__(self) -> None:
        self.inside = {f"{name}{kind}": 0.0 for name in ("before_", "generate_") for kind in ("seconds", "cpu_seconds")}
        self.rows: list[dict[str, list[float]]] = []
        self._taken: dict[str, float] | None = None

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose time the answers have."""

        def call(*given: Any, **named: Any) -> Any:
            clock = Clock()
            try:
                return function(*given, **named)
            finally:
                for kind, taken in clock.read().items():
                    self.inside[f"{name}_{kind}"] += taken

        return call

    def seen(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        """Return GRPO's function of the loss; its first call leaves the rows that it gets."""

        def call(model: Any, inputs: dict[str, torch.Tensor], *given: Any, **named: Any) -> Any:
            if not self.rows:
                masks = inputs["prompt_mask"].bool(), inputs["completion_mask"].bool()
                parts = inputs["prompt_ids"], inputs["completion_ids"], inputs["ref_per_token_logps"], *masks
                for prompt, response, logprobs, asked, own in zip(*parts, strict=True):
                    row = {"prompt": prompt[asked], "response": response[own], "logprobs": logprobs[own]}
                    self.rows.append({name: part.tolist() for name, part in row.items()})
            return compute_loss(model, inputs, *given, **named)

        return call

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if not sys.stdin.readline():
            raise SystemExit
        self.inside |= {"generate_seconds": 0.0, "generate_cpu_seconds": 0.0}
        self._clock = Clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._taken = self._clock.read()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **others: Any) -> None:
        if self._taken is None:  # the summary after the last step
            return
        memory = {"peak_rss_bytes": rss("VmHWM"), "import_rss_bytes": IMPORT_RSS}
        first = {"rows": self.rows} if state.global_step == 1 else {}
        answer(logs | self._taken | self.inside | memory | first)
        self._taken = None


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    kind = AutoModelForSequenceClassification if settings["trainer"] == "reward" else AutoModelForCausalLM
    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "model": kind.from_pretrained(settings["model"], dtype=torch.float32, attn_implementation="sdpa"),
            "train_dataset": datasets.Dataset.from_list(settings["rows"]),
            "processing_class": AutoTokenizer.from_pretrained(settings["model"]),
            "callbacks": [turns],
        }
        config = settings["config"] | {"output_dir": folder, "use_cpu": not torch.cuda.is_available()}
        if settings["trainer"] == "grpo":
            trainer = GRPOTrainer(args=GRPOConfig(**config), reward_funcs=even_words, **given)
            trainer.model.generate = turns.timed("generate", trainer.model.generate)
            trainer.compute_loss = turns.seen(trainer.compute_loss)
        elif settings["trainer"] == "reward":
            trainer = RewardTrainer(args=RewardConfig(**config), **given)
        else:
            DPOTrainer.compute_ref_log_probs = turns.timed("before", DPOTrainer.compute_ref_log_probs)
            trainer = DPOTrainer(args=DPOConfig(**config), **given)
        answer({"ready": True})
        trainer.train()


if __name__ == "__main__":
    main()
