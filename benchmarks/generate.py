"""Sampled tokens a second beside `transformers`' own `generate`, in bf16.

    python benchmarks/generate.py [--json FILE] [--rounds 7] [--device cuda]

The same model and prompts for both: 64 of 32 tokens, at most 48 new ones. `full_length`: no response ends early;
`mean_half`: one ends with a chance of 3.3 % a token, 24 tokens on average. `queue`: 256 prompts for 64 slots, which we
fill again as they come free; the peer takes four batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from _report import arguments, medians, report
from _workload import EOS, MEAN_HALF, PAD, gpt2_config, language_model, prompts_of
from transformers import GenerationConfig

from align.sampling.engine import Sampling
from align.sampling.local import Ends, generate

BATCH, PROMPT, LENGTH, VOCABULARY = 64, 32, 48, 4096


def main() -> None:
    options = arguments(__doc__, rounds=int, device=str)
    device, rounds = torch.device(options.device or "cpu"), options.rounds or 7
    bars: dict[str, float] = {}
    for name, end, count in (("full_length", 0.0, BATCH), ("mean_half", MEAN_HALF, BATCH), ("queue", MEAN_HALF, 256)):
        ours, theirs, written = _sides(device, end, count)
        mine, other = medians([ours, theirs], rounds)
        bars[f"{name}_ratio"] = (written[0] / mine) / (written[1] / other)
        bars[f"{name}/ours_tokens_per_second"] = written[0] / mine
        bars[f"{name}/transformers_tokens_per_second"] = written[1] / other
    report(bars, options.json)


def _sides(
    device: torch.device, end: float, count: int
) -> tuple[Callable[[], object], Callable[[], object], list[int]]:
    """Both ways to sample, and how many tokens each wrote in its last call."""
    config = gpt2_config(4, 256, 4, VOCABULARY, PROMPT + LENGTH)
    model = language_model(config, end).to(device, torch.bfloat16)
    peer = copy.deepcopy(model)
    peer.set_attn_implementation("sdpa")
    prompts = prompts_of(count, PROMPT, VOCABULARY)
    settings = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=LENGTH, eos_token_id=EOS, pad_token_id=PAD, use_cache=True
    )
    written = [0, 0]

    def ours() -> None:
        sampling = Sampling(max_new_tokens=LENGTH, batch_size=BATCH)
        found = generate(model, prompts, range(count), sampling, Ends(EOS, PAD))
        written[0] = sum(len(response.ids) for _, response in found)

    def theirs() -> None:
        written[1] = 0
        for start in range(0, count, BATCH):
            batch = torch.tensor(prompts[start : start + BATCH], device=device)
            out = peer.generate(batch, attention_mask=torch.ones_like(batch), generation_config=settings)[:, PROMPT:]
            ended = (out == EOS).cumsum(1)
            written[1] += int(((ended == 0) | ((ended == 1) & (out == EOS))).sum())

    return ours, theirs, written


if __name__ == "__main__":
    main()
