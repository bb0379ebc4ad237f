"""PPO iterations a second beside TRL's last PPO trainer, memory, and the share of the machine's matmul peak.

    make peers                                                  # TRL 1.12 in an environment of its own, once
    python benchmarks/ppo.py [--json FILE] [--rounds 5] [--device cuda]

Both sides are processes of their own that start from the same weights and prompts and take turns, an iteration each: 64
episodes of 32 prompt and 48 response tokens, 4 epochs of 4 minibatches, a separate critic. Ours is in bf16. TRL runs as
it comes: its config says bf16, but its trainer leaves that behind and computes in float32; `*_trl_bf16` is beside TRL
made to use bf16 by an environment variable. Ours has two AdamW optimizers with TRL's betas, TRL one with a `vf_coef`.

`toy/*`, fp32 on both sides: a small model is to say one word; the mean share of it in the responses, before and after
19 updates. Memory is what a process holds on the host beyond its imports, TRL in bf16.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _peer import PEER_PYTHON, Side
from _report import arguments, report
from _workload import EOS, MEAN_HALF, gpt2_config, prompts_of, save_workload

HERE = Path(__file__).parent
CPU = {"layers": 4, "width": 256, "heads": 4, "episodes": 64, "prompt": 32, "response": 48, "micro_batch_tokens": 4096}
CUDA = {
    **{"layers": 12, "width": 768, "heads": 12, "episodes": 256, "prompt": 128, "response": 128},
    "micro_batch_tokens": 32_768,
}
EPOCHS = MINIBATCHES = 4
# Small enough that responses keep their length: `mean_half/*_response_tokens` says which they have.
STILL = 1e-9


def race(size: dict[str, int], rounds: int, device: str, **knobs: Any) -> dict[str, Side]:
    """Both sides on one workload, turn by turn."""
    vocabulary, end = knobs.get("vocabulary", 4096), knobs.get("end", 0.0)
    rule = knobs.get("rule")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        context = size["prompt"] + size["response"]
        save_workload(
            folder,
            gpt2_config(size["layers"], size["width"], size["heads"], vocabulary, context),
            end,
            rule is not None,
        )
        settings = {
            "model": str(folder / "policy"),
            "reward_model": str(folder / "reward"),
            "value_model": str(folder / "reward"),
            "prompts": prompts_of(size["episodes"] * 4, size["prompt"], vocabulary),
            "episodes": size["episodes"],
            "response_tokens": size["response"],
            "epochs": EPOCHS,
            "minibatches": MINIBATCHES,
            "temperature": 1.0,
            "kl_coef": knobs.get("kl_coef", 0.05),
            "learning_rate": knobs.get("learning_rate", STILL),
            "iterations": rounds + 1,
            "eos_token_id": EOS if end else None,
            "device": device,
            "rule_reward": rule,
            "precision": knobs.get("precision", "bf16"),
            "lora_rank": knobs.get("lora_rank"),
            "micro_batch_tokens": size["micro_batch_tokens"],
        }
        commands = {
            "ours": ([sys.executable, str(HERE / "_ppo_child.py")], settings, {}),
            "trl": (
                [str(PEER_PYTHON), str(HERE / "peers/trl_ppo.py")],
                settings | {"model": str(folder / "policy_peer")},
                {"ACCELERATE_MIXED_PRECISION": knobs["trl_precision"]} if knobs.get("trl_precision") else {},
            ),
        }
        sides = {}
        for name in knobs.get("sides", ("ours", "trl")):
            command, own, environment = commands[name]
            sides[name] = Side(command, own, folder, environment)
            stack.callback(sides[name].close)
        for _ in range(rounds + 1):
            for side in sides.values():
                side.turn()
    return sides


def update_flops(size: dict[str, int], vocabulary: int) -> float:
    """Of one iteration's update: forward and backward of both models over every token, logits where they count."""
    tokens, answered = size["episodes"] * (size["prompt"] + size["response"]), size["episodes"] * size["response"]
    width, length = size["width"], size["prompt"] + size["response"]
    trunk = size["layers"] * (2 * 12 * width**2 + 2 * 2 * width * length / 2)
    return 3 * EPOCHS * (2 * tokens * trunk + answered * 2 * width * (vocabulary + 1))


def main() -> None:
    options = arguments(__doc__, rounds=int, device=str)
    if not PEER_PYTHON.exists():
        raise SystemExit("the peer is missing: make peers")
    device, rounds = options.device or "cpu", options.rounds or 5
    size = CPU if device == "cpu" else CUDA
    full = race(size, rounds, device)
    half = race(size, rounds, device, end=MEAN_HALF)
    fast = race(size, rounds, device, trl_precision="bf16")
    fast_half = race(size, rounds, device, end=MEAN_HALF, trl_precision="bf16")
    large = race(size, 1, device, vocabulary=50_257, trl_precision="bf16")
    lora = race(size, 1, device, vocabulary=50_257, lora_rank=16, sides=("ours",))
    bars = {
        "full_length_ratio": full["trl"].median("seconds") / full["ours"].median("seconds"),
        "mean_half_ratio": half["trl"].median("seconds") / half["ours"].median("seconds"),
        "full_length_ratio_trl_bf16": fast["trl"].median("seconds") / fast["ours"].median("seconds"),
        "mean_half_ratio_trl_bf16": fast_half["trl"].median("seconds") / fast_half["ours"].median("seconds"),
        "vocab50k_memory_ratio": large["ours"].memory() / large["trl"].memory(),
        "update_peak_share": update_flops(size, 4096)
        / full["ours"].median("update_seconds")
        / full["ours"].ready["bf16_flops"],
        "bf16_peak_gflops": full["ours"].ready["bf16_flops"] / 1e9,
        "ours/episodes_per_second": size["episodes"] / full["ours"].median("seconds"),
        "trl/episodes_per_second": size["episodes"] / full["trl"].median("seconds"),
        "ours/rollout_seconds": full["ours"].median("generate_seconds"),
        "ours/score_seconds": full["ours"].median("score_seconds"),
        "ours/update_seconds": full["ours"].median("update_seconds"),
        "trl/rollout_seconds": full["trl"].median("generate_seconds"),
        "trl/seconds": full["trl"].median("seconds"),
        "ours/seconds_slowest": max(answer["seconds"] for answer in full["ours"].answers[1:]),
        "trl/seconds_slowest": max(answer["seconds"] for answer in full["trl"].answers[1:]),
        "mean_half/ours_response_tokens": half["ours"].median("response_tokens"),
        "mean_half/trl_response_tokens": half["trl"].median("response_tokens"),
        "vocab50k/ours_mebibytes": large["ours"].memory() / 2**20,
        "vocab50k/trl_mebibytes": large["trl"].memory() / 2**20,
        "vocab50k/ours_lora_mebibytes": lora["ours"].memory() / 2**20,
        "vocab4k_memory_ratio": full["ours"].memory() / full["trl"].memory(),
    }
    toy_size = {**size, "layers": 2, "width": 64, "heads": 4, "episodes": 64}
    knobs = {"vocabulary": 64, "kl_coef": 0.0, "learning_rate": 1e-3, "rule": 7, "precision": "fp32"}
    toy = race(toy_size, 19, device, **knobs)
    for name, side in toy.items():
        bars |= {f"toy/{name}_first": side.answers[0]["score"], f"toy/{name}_last": side.answers[-1]["score"]}
    report(bars, options.json)


if __name__ == "__main__":
    main()
