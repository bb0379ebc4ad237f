"""Time an optimizer step of supervised tuning beside trl.SFTTrainer on the same demonstrations.

    python benchmarks/sft.py [--rounds 5] [--json FILE]

A LLaMA with random weights in the shape of SmolLM2-135M learns 32 demonstrations a step, both sides in bf16 autocast
over fp32 weights, all weights trained. The lengths are drawn from a log-normal of median 120 tokens, at most 1,024, the
shape of public instruction sets. TRL is in its best form here: micro-batches of like length, without which it pads
more; no gradient checkpointing; and the micro-batch size that was fastest in a warm-up.

    ratio           seconds of a step of TRL over ours
    loss_gap        largest difference of the two losses of the first step, nats per token
    trl_loss_spread the same among TRL's own micro-batch sizes: what bf16 makes of another split of one batch
    peak_share      share of the machine's bf16 matrix product that our step reaches, at 6 FLOPs a parameter and token
    tokens_per_second, trl_tokens_per_second
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import torch
from _report import arguments, report
from _workload import tokenizer_of
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

from align.configs import HardwareConfig, RunConfig, Sft
from align.data.records import write_info, write_rows
from align.runtime.job import Inputs, Job
from align.stages import sft
from align.store.artifacts import Artifact
from align.text.chat import encode_conversations
from align.text.tokenizers import complete

BATCH, STEPS, MOST = 32, 3, 1024
MICRO_BATCHES = (4, 8, 16)


def make_model(folder: Path) -> None:
    """The shape of SmolLM2-135M, with a word a token."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(49_000, "<pad>")
    complete(tokenizer, "align")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows() -> list[dict[str, Any]]:
    """One batch of demonstrations; a third of each is the question."""
    torch.manual_seed(1)
    lengths = torch.exp(torch.randn(BATCH) * 0.8 + torch.tensor(120.0).log()).clamp(24, MOST - 8).int().tolist()
    rows = []
    for length in lengths:
        words = [f"w{i}" for i in torch.randint(2, 49_000, (length,)).tolist()]
        asked, answer = words[: length // 3], words[length // 3 :]
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": " ".join(asked)},
                    {"role": "assistant", "content": " ".join(answer)},
                ]
            }
        )
    return rows


def ours(model: Path, data: Path, work: Path) -> tuple[float, float]:
    """Median seconds of a step after the first, and the loss of the first."""
    work.mkdir(parents=True)
    (work / "out").mkdir()
    config = Sft(num_epochs=STEPS, batch_size=BATCH, learning_rate=1e-5, precision="bf16")
    settings = RunConfig(hardware=HardwareConfig(checkpoint_seconds=1e9))
    inputs = Inputs(
        model=(Artifact("import_model", "0" * 64, "model", model),),
        data=(Artifact("data", "0" * 64, "demonstrations", data),),
    )
    times: list[float] = []

    job = Job("sft", work, settings)
    log = job.log.metrics

    def timed(metrics: dict[str, float], step: int) -> None:
        times.append(time.perf_counter())
        log(metrics, step)

    job.log.metrics = timed
    sft.run(config, inputs, job)
    first = json.loads((work / "out/metrics.jsonl").read_text().splitlines()[0])
    return statistics.median(b - a for a, b in itertools.pairwise(times)), first["loss"]


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *arguments: Any, **given: Any) -> None:
        self.times.append(time.perf_counter())


def theirs(model: Path, rows: list[dict[str, Any]], work: Path, micro_batch: int) -> tuple[float, float]:
    """The same of TRL's trainer, on the token ids and labels that ours has."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = encode_conversations(tokenizer, [row["messages"] for row in rows])
    examples = [
        {
            "input_ids": e.ids,
            "labels": [token if by else -100 for token, by in zip(e.ids, e.by_assistant, strict=True)],
        }
        for e in sorted(encoded, key=lambda e: len(e.ids))
    ]
    clock = Clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa"),
        args=SFTConfig(
            output_dir=str(work),
            max_steps=STEPS,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=BATCH // micro_batch,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            adam_beta2=0.95,
            max_length=None,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            log_level="error",
        ),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    first = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    return statistics.median(b - a for a, b in zip(clock.times, clock.times[1:], strict=False)), first


def peak_flops() -> float:
    """The machine's bf16 matrix product, FLOPs a second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16, device=device) for _ in range(2))
    taken = []
    for _ in range(12):
        begun = time.perf_counter()
        (a @ b).sum().item()
        taken.append(time.perf_counter() - begun)
    return 2 * 2048**3 / statistics.median(taken[2:])


def alone(work: Callable[..., tuple[float, float]], *given: Any) -> tuple[float, float]:
    """Call `work` in a process of its own: what a trainer leaves in memory must not slow the next one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def main() -> None:
    options = arguments(__doc__, rounds=int)
    datasets.disable_progress_bars()
    rows = make_rows()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        (folder / "data").mkdir()
        write_rows(folder / "data", "train", rows)
        write_info(folder / "data", record="demonstrations", source="path:mine.jsonl", licence="yours", dropped={})
        trials = {size: alone(theirs, folder / "model", rows, folder / "trl", size) for size in MICRO_BATCHES}
        best = min(trials, key=lambda size: trials[size][0])
        their_losses = [loss for _, loss in trials.values()]
        mine, other, peaks, gaps = [], [], [], []
        for number in range(options.rounds or 5):
            peaks.append(peak_flops())
            seconds, loss = alone(ours, folder / "model", folder / "data", folder / f"ours-{number}")
            their_seconds, their_loss = alone(theirs, folder / "model", rows, folder / "trl", best)
            mine.append(seconds)
            other.append(their_seconds)
            gaps.append(abs(loss - their_loss))
        parameters = AutoModelForCausalLM.from_pretrained(folder / "model").num_parameters()
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        encoded = encode_conversations(tokenizer, [row["messages"] for row in rows])
    tokens = sum(len(e.ids) for e in encoded)
    step, their_step = statistics.median(mine), statistics.median(other)
    print(f"{BATCH} demonstrations, {tokens:,} tokens; TRL's best micro-batch: {best} of {MICRO_BATCHES}")
    report(
        {
            "ratio": statistics.median(b / a for a, b in zip(mine, other, strict=True)),
            "loss_gap": max(gaps),
            "trl_loss_spread": max(their_losses) - min(their_losses),
            "peak_share": 6 * parameters * tokens / step / statistics.median(peaks),
            "tokens_per_second": tokens / step,
            "trl_tokens_per_second": tokens / their_step,
        },
        options.json,
    )


if __name__ == "__main__":
    main()
