"""One side of the pretraining race, an optimizer step at a time: our stage, `transformers.Trainer`, or a plain loop.

The stage is run as `align pretrain` runs it, and the trainer as its defaults have it; a line is waited for before each
step, and one is said after it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _ppo_child import ANSWERS, IMPORT_RSS, bf16_peak, rss
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from align.configs import HardwareConfig, Pretrain, RunConfig
from align.runtime.job import Inputs, Job
from align.runtime.memory import reuse_freed_memory
from align.stages import pretrain
from align.store.artifacts import Artifact
from align.text.tokens import Counts, TextRows, write_info


def wait() -> None:
    if not sys.stdin.readline():
        sys.exit()


def tell(begun: float, loss: float | None, loading: float = 0.0) -> None:
    seconds = time.perf_counter() - begun
    told = {"seconds": seconds, "loss": loss, "loading_seconds": loading, "peak_rss_bytes": rss("VmHWM")}
    print(json.dumps(told | {"import_rss_bytes": IMPORT_RSS}), file=ANSWERS, flush=True)


class Turns(Job):
    """A job that waits for a line before each step."""

    loading = 0.0

    def steps(self, total: int, start: int = 0, unit: str = "steps") -> Iterator[int]:
        for step in range(start, total):
            wait()
            begun, Turns.loading = time.perf_counter(), 0.0
            yield step
            tell(begun, self.log.read_metrics()[-1]["loss"], Turns.loading)


def timed(load: Any) -> Any:
    def wrapped(*arguments: Any) -> Any:
        begun = time.perf_counter()
        try:
            return load(*arguments)
        finally:
            Turns.loading += time.perf_counter() - begun

    return wrapped


def ours(settings: dict[str, Any], folder: Path) -> None:
    work, data = folder / "work", folder / "tokens"
    (work / "out").mkdir(parents=True)
    data.mkdir()
    flat = np.load(settings["tokens"])
    np.save(data / "train.npy", flat)
    write_info(data, "path:benchmark", {"train": Counts(1, len(flat), len(flat))})
    for file in Path(settings["model"]).glob("*token*"):
        (data / file.name).write_bytes(file.read_bytes())
    cfg = Pretrain(
        num_steps=settings["steps"],
        batch_size=settings["batch_size"],
        sequence_length=settings["length"],
        learning_rate=settings["learning_rate"],
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        beta2=0.999,
        precision=settings["precision"],
        seed=0,
    )
    hardware = HardwareConfig(checkpoint_seconds=1e9, compile=settings["compile"])
    job = Turns("bench", work, RunConfig(hardware=hardware))
    pretrain.Mixture.draw = timed(pretrain.Mixture.draw)
    pretrain.Mixture.tokens = timed(pretrain.Mixture.tokens)
    inputs = Inputs(
        data=(Artifact("bench", "tokens", "tokens", data),),
        model=(Artifact("bench", "model", "model", Path(settings["model"])),),
    )
    pretrain.run(cfg, inputs, job)


class Callback(TrainerCallback):
    """Takes turns."""

    begun = 0.0

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        wait()
        self.begun = time.perf_counter()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        tell(self.begun, None)


def trainer(settings: dict[str, Any], folder: Path) -> None:
    rows = batches(settings).flatten(0, 1)
    model = AutoModelForCausalLM.from_pretrained(settings["model"])
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    examples = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(model, arguments, train_dataset=examples, callbacks=[Callback()]).train()


def plain(settings: dict[str, Any], folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), settings["learning_rate"], weight_decay=0.0)
    for rows in batches(settings):
        wait()
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16"):
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tell(begun, float(loss))


def batches(settings: dict[str, Any]) -> torch.Tensor:
    """[steps, batch, length]: the same rows in the same order as ours takes them."""
    flat = np.load(settings["tokens"])
    text = pretrain.Mixture([TextRows(flat, settings["length"], Counts(1, len(flat), len(flat)))], [], 0)
    draws = [text.tokens(text.draw(step, settings["batch_size"])) for step in range(settings["steps"])]
    return torch.stack(draws)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        if settings["side"] == "ours":
            reuse_freed_memory()  # as `run_stage` does
        ready = {"ready": True, "bf16_flops": bf16_peak(torch.device("cpu")) if settings["side"] == "ours" else None}
        print(json.dumps(ready), file=ANSWERS, flush=True)
        {"ours": ours, "trainer": trainer, "plain": plain}[settings["side"]](settings, Path(folder))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
