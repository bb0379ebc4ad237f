"""Our PPO stage, one iteration at a time, by the protocol of peers/trl_ppo.py.

It is the stage itself that runs, as `align ppo` runs it: the lines in between only wait for a turn.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from _child import answer, rss

from align.configs import HardwareConfig, LoraConfig, Ppo, RunConfig
from align.data.records import write_info, write_rows
from align.runtime.job import Inputs, Job
from align.runtime.memory import reuse_freed_memory
from align.stages import ppo
from align.store.artifacts import Artifact

IMPORT_RSS = rss("VmRSS")
TARGET = 7  # of the toy task, where `rule_reward` is on


def share_of_target(completions: list[list[dict[str, str]]], **others: object) -> list[float]:
    """The toy task: which share of a response is one certain word."""
    words = [completion[0]["content"].split() for completion in completions]
    return [each.count(f"w{TARGET}") / max(1, len(each)) for each in words]


class Turns(Job):
    """A job that waits for a line before each iteration, and says afterwards what it took."""

    def steps(self, total: int, start: int = 0, unit: str = "steps") -> Iterator[int]:
        for iteration in range(start, total):
            if not sys.stdin.readline():
                return
            begun = time.perf_counter()
            yield iteration
            latest = self.log.read_metrics()[-1]
            line = {
                "iteration": iteration + 1,
                "seconds": time.perf_counter() - begun,
                "generate_seconds": latest["time/rollout"],
                "score_seconds": latest["time/score"],
                "update_seconds": latest["time/update"],
                "score": latest["objective/reward"] + latest["objective/kl_coef"] * latest["objective/kl"],
                "kl": latest["objective/kl"],
                "response_tokens": latest["response_tokens"],
                "peak_rss_bytes": rss("VmHWM"),
                "import_rss_bytes": IMPORT_RSS,
            }
            answer(line)


def bf16_peak(device: torch.device) -> float:
    """FLOP/s of a large bf16 matrix product: the limit that the update is held against."""
    size = 2048 if device.type == "cpu" else 8192
    one, two = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        begun = time.perf_counter()
        product = one @ two
        product[0, 0].item()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    reuse_freed_memory()  # as `run_stage` does
    rule = settings["rule_reward"] is not None
    with tempfile.TemporaryDirectory() as folder:
        work, data = Path(folder, "work"), Path(folder, "prompts")
        (work / "out").mkdir(parents=True)
        data.mkdir()
        rows = [{"prompt": [{"role": "user", "content": " ".join(f"w{i}" for i in p)}]} for p in settings["prompts"]]
        write_rows(data, "train", rows)
        write_info(data, record="prompts")
        inputs = Inputs(
            policy=(Artifact("bench", "policy", "model", Path(settings["model"])),),
            reward_model=(Artifact("bench", "reward", "reward_model", Path(settings["reward_model"])),),
            prompts=(Artifact("bench", "prompts", "prompts", data),),
        )
        cfg = Ppo(
            num_iterations=settings["iterations"],
            rollout_batch_size=settings["episodes"],
            minibatch_size=settings["episodes"] // settings["minibatches"],
            num_epochs=settings["epochs"],
            learning_rate=settings["learning_rate"],
            value_learning_rate=settings["learning_rate"],
            warmup_iterations=0,
            value_warmup_iterations=0,
            schedule="linear",
            kl_coef=settings["kl_coef"],
            temperature=settings["temperature"],
            max_new_tokens=settings["response_tokens"],
            missing_eos_penalty=0.0,
            reward_functions={"_ppo_child:share_of_target": 1.0} if rule else {},
            lora=LoraConfig(rank=settings["lora_rank"]),
            value_from="reward_model" if settings["lora_rank"] is None else "policy",
            ema_decay=None,  # the peer keeps none
            beta2=0.999,  # the peer's AdamW has the defaults of transformers
            adam_epsilon=1e-8,
            precision=settings["precision"],
            sampling_precision=settings["precision"],
            seed=settings.get("seed", 0),
        )
        hardware = HardwareConfig(
            device=settings["device"],
            micro_batch_tokens=settings["micro_batch_tokens"],
            checkpoint_seconds=1e9,  # the peer writes none
        )
        job = Turns("bench", work, RunConfig(hardware=hardware))
        answer({"ready": True, "bf16_flops": bf16_peak(job.device)})
        ppo.run(cfg, inputs, job)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
