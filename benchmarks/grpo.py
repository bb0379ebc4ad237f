"""Time an iteration of GRPO beside trl.GRPOTrainer: the same weights, prompts, reward and KL.

    python benchmarks/grpo.py [--rounds 3] [--json FILE]

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
_MICRO_BATCHES = (8, 16, 32)  # TRL's, in responses


def race(folder: Path, end_probability: float, rounds: int) -> tuple[dict[str, float], int]:
    """Return the figures of one case, and TRL's fastest micro-batch size."""
    save_llama(folder / "policy", end_probability)
    prompts = [{"prompt": question(length, seed)} for seed, length in enumerate(lengths(PROMPTS, 60, seed=3))]
    iterations = rounds + 1

    def trl(size: int, iterations: int = iterations) -> Side:
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
        return trl_side(folder, "grpo", folder / "policy", prompts, config)

    size = fastest(lambda size: trl(size, 2), _MICRO_BATCHES)
    data = save_rows(folder / "prompts", "prompts", prompts)
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
    ours, other = our_side(folder, "grpo", inputs, knobs), trl(size)
    take_turns([ours, other], iterations)
    sampling = other.median("generate_seconds"), ours.median("time/rollout")
    update = other.median("seconds") - sampling[0], ours.median("seconds") - sampling[1]
    return {
        "ratio": other.median("seconds") / ours.median("seconds"),
        "cpu_ratio": other.median("cpu_seconds") / ours.median("cpu_seconds"),
        "sampling_ratio": sampling[0] / sampling[1],
        "update_ratio": update[0] / update[1],
        "memory_ratio": ours.memory() / other.memory(),
        "ours_seconds": ours.median("seconds"),
        "ours_sampling_seconds": sampling[1],
        "trl_seconds": other.median("seconds"),
        "trl_sampling_seconds": sampling[0],
        "ours_response_tokens": ours.median("response_tokens"),
        "trl_response_tokens": other.median("completions/mean_length"),
        "logprob_gap": logprob_gap(folder / "policy", other.answers[0]["rows"]),
    }, size


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
    print(f"precision: {PRECISION} on both sides")
    bars: dict[str, float] = {}
    for case, end_probability in CASES.items():
        with tempfile.TemporaryDirectory() as name:
            found, size = race(Path(name), end_probability, options.rounds or 3)
        print(f"{case}: TRL's best micro-batch: {size} of {_MICRO_BATCHES}")
        for figure, value in found.items():
            bars[f"{case}_{figure}" if figure in ("ratio", "cpu_ratio") else f"{case}/{figure}"] = value
    report(bars, options.json)


if __name__ == "__main__":
    main()
