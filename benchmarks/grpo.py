"""Time an iteration of GRPO beside trl.GRPOTrainer: the same weights, prompts, reward and KL.

    python benchmarks/grpo.py [--rounds 2] [--json FILE]

A small LLaMA with random weights samples eight responses of at most 64 tokens to each of eight prompts; then one
optimizer step learns from all 64, as both libraries do by default. The reward is a plain function, the KL to the
reference counts, and the learning rate is so small that responses keep their length. `full`: no response ends early.
`half`: one ends with a chance of 2.5 % a token, after 32 tokens on average. Both sides compute in fp32, or in bf16
where this machine's bf16 products are fast. TRL is in its best form here: no gradient checkpointing, `generate` over
the whole rollout, and the micro-batch size that was fastest in a warm-up.

    CASE_ratio          seconds of an iteration of TRL over ours
    CASE_cpu_ratio      the same in CPU time, which other work on the machine disturbs less
    CASE/sampling_ratio the same of sampling alone
    CASE/update_ratio   the same of all the rest: rewards, log-probs of policy and reference, the step
    CASE/memory_ratio   peak memory of our process beyond its imports over that of TRL's
    CASE/SIDE_response_tokens
                        mean length of a response
    CASE/logprob_gap    largest difference, in nats, between TRL's log-probs of tokens that it sampled and ours
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from _peer import Side
from _race import (
    PRECISION,
    fastest,
    lengths,
    our_side,
    question,
    save_llama,
    save_rows,
    take_turns,
    trl_side,
)
from _report import arguments, report

from align.models.compute import Compute
from align.models.load import load_model
from align.models.packed import pack_pairs, response_logprobs
from align.runtime.distributed import choose_device

CASES = {"full": 0.0, "half": 0.025}  # chance a token that a response ends
PROMPTS, GROUP, RESPONSE, KL_COEF = 8, 8, 64, 0.04
STILL = 1e-9  # a learning rate with which responses keep their length
_MICRO_BATCHES = (4, 8, 16)  # TRL's, in responses


def questions() -> list[dict[str, Any]]:
    """Return the prompts of one rollout; every iteration asks all of them."""
    return [{"prompt": question(length, seed)} for seed, length in enumerate(lengths(PROMPTS, 60, seed=3))]


def trl(folder: Path, size: int, iterations: int) -> Side:
    """Start TRL's side with a micro-batch size."""
    config = {
        "max_steps": iterations,
        "learning_rate": STILL,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": PROMPTS * GROUP // size,
        "num_generations": GROUP,
        "max_completion_length": RESPONSE,
        "loss_type": "grpo",
        "beta": KL_COEF,
    }
    return trl_side(folder, "grpo", folder / "policy", questions(), config)


def ours(folder: Path, iterations: int) -> Side:
    data = save_rows(folder / "prompts", "prompts", questions())
    inputs = {"policy": ("model", folder / "policy"), "prompts": ("prompts", data)}
    knobs = {
        "num_iterations": iterations,
        "rollout_batch_size": PROMPTS * GROUP,
        "minibatch_size": PROMPTS * GROUP,
        "group_size": GROUP,
        "max_new_tokens": RESPONSE,
        "learning_rate": STILL,
        "warmup_iterations": 0,
        "kl_coef": KL_COEF,
        "reward_functions": {"_race:even_words": 1.0},
        "sampling_precision": PRECISION,
    }
    return our_side(folder, "grpo", inputs, knobs)


def figures(case: str, own: Side, other: Side) -> dict[str, float]:
    sampling = other.median("generate_seconds"), own.median("time/rollout")
    update = other.median("seconds") - sampling[0], own.median("seconds") - sampling[1]
    return {
        f"{case}_ratio": other.median("seconds") / own.median("seconds"),
        f"{case}_cpu_ratio": other.median("cpu_seconds") / own.median("cpu_seconds"),
        f"{case}/sampling_ratio": sampling[0] / sampling[1],
        f"{case}/update_ratio": update[0] / update[1],
        f"{case}/memory_ratio": own.memory() / other.memory(),
        f"{case}/ours_seconds": own.median("seconds"),
        f"{case}/ours_sampling_seconds": sampling[1],
        f"{case}/trl_seconds": other.median("seconds"),
        f"{case}/trl_sampling_seconds": sampling[0],
        f"{case}/ours_response_tokens": own.median("response_tokens"),
        f"{case}/trl_response_tokens": other.median("completions/mean_length"),
    }


@torch.no_grad()
def logprob_gap(policy: Path, rows: list[dict[str, Any]]) -> float:
    """Return the largest difference between our log-probs of response tokens and those that came with them."""
    compute = Compute(choose_device("auto"), 1024, PRECISION)
    model, responses = load_model(policy, compute.device), [row["response"] for row in rows]
    with compute.autocast():
        packed = pack_pairs([row["prompt"] for row in rows], responses, compute.device)
        found = response_logprobs(model, packed, responses)
    theirs = [logprob for row in rows for logprob in row["logprobs"]]
    return float((found.cpu() - torch.tensor(theirs)).abs().max())


def main() -> None:
    options = arguments(__doc__, rounds=int)
    iterations = 1 + (options.rounds or 2)
    print(f"precision: {PRECISION} on both sides")
    bars: dict[str, float] = {}
    size = None
    for case, end_probability in CASES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_llama(folder / "policy", end_probability)
            if size is None:
                size = fastest(functools.partial(trl, folder, iterations=2), _MICRO_BATCHES)
                print(f"TRL's best micro-batch: {size} of {_MICRO_BATCHES} responses")
            own, other = ours(folder, iterations), trl(folder, size, iterations)
            take_turns([own, other], iterations)
            bars |= figures(case, own, other)
            bars[f"{case}/logprob_gap"] = logprob_gap(folder / "policy", other.answers[0]["rows"])
    report(bars, options.json)


if __name__ == "__main__":
    main()
