"""Tokens a second of pretraining, of packed training and of sampling, beside a peer and the machine's limit.

    python benchmarks/throughput.py [--json FILE]

All on the quickstart's model, in fp32. The limit is the matrix product of the model's own largest shape; the peers are
`transformers`' own attention on padded rows, and its own `generate`.
"""

from __future__ import annotations

import random

import torch
from _report import arguments, medians, report
from transformers import GenerationConfig, PreTrainedModel

from align.configs import ModelConfig
from align.evals.text_loss import summed_loss
from align.losses.lm import token_losses
from align.models.build import build_model
from align.sampling.engine import Sampling
from align.sampling.local import Ends, generate
from align.text.packing import pack
from align.text.tokenizers import train_tokenizer

_TINY = ModelConfig(
    architecture="gpt_neox",
    hidden_size=96,
    num_layers=3,
    num_heads=4,
    context_length=128,
    dropout=0.0,
    initializer_range=0.1,
)
_VOCABULARY = 768


def main() -> None:
    options = arguments(__doc__)
    torch.manual_seed(0)
    tokenizer = train_tokenizer((f"{i} words and {i * i} more" for i in range(3000)), _VOCABULARY)
    model = build_model(_TINY, tokenizer)
    peer = build_model(_TINY, tokenizer)
    peer.set_attn_implementation("sdpa")
    bars = _limit() | _pretraining(model, peer) | _packed(model, peer) | _sampling(model, peer)
    report(bars, options.json)


def _limit() -> dict[str, float]:
    one, two = torch.randn(1024, 1024), torch.randn(1024, 1024)
    (seconds,) = medians([lambda: one @ two], rounds=20)
    return {"limit/fp32_gflops": 2 * 1024**3 / seconds / 1e9}


def _flops_per_token(model: PreTrainedModel) -> float:
    return 6 * model.num_parameters()


def _pretraining(model: PreTrainedModel, peer: PreTrainedModel) -> dict[str, float]:
    rows = torch.randint(5, _VOCABULARY, (8, 128))

    def step(which: PreTrainedModel) -> None:
        summed_loss(which, rows).backward()
        which.zero_grad()

    ours, theirs = medians([lambda: step(model), lambda: step(peer)], rounds=30)
    return {
        "pretrain/tokens_per_second": rows.numel() / ours,
        "pretrain/over_sdpa": theirs / ours,
        "pretrain/gflops": rows.numel() * _flops_per_token(model) / ours / 1e9,
    }


def _packed(model: PreTrainedModel, peer: PreTrainedModel) -> dict[str, float]:
    """Sequences of 15 to 60 tokens: packed in one row, against padded to the longest."""
    rng = random.Random(0)
    sequences = [[rng.randrange(5, _VOCABULARY) for _ in range(rng.randint(15, 60))] for _ in range(100)]
    tokens = sum(map(len, sequences))
    longest = max(map(len, sequences))
    padded = torch.tensor([s + [1] * (longest - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])

    def packed_step() -> None:
        packed = pack(sequences)
        logits = model(packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits[0]
        token_losses(logits[:-1], packed.input_ids[0, 1:]).sum().backward()
        model.zero_grad()

    def padded_step() -> None:
        logits = peer(padded, attention_mask=mask, use_cache=False).logits
        token_losses(logits[:, :-1].flatten(0, 1), padded[:, 1:].flatten()).sum().backward()
        peer.zero_grad()

    ours, theirs = medians([packed_step, padded_step], rounds=15)
    return {"packed/tokens_per_second": tokens / ours, "packed/over_padded_sdpa": theirs / ours}


def _sampling(model: PreTrainedModel, peer: PreTrainedModel) -> dict[str, float]:
    prompts = [[random.Random(i).randrange(5, _VOCABULARY) for _ in range(16)] for i in range(128)]
    length = 48
    settings = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=length, min_new_tokens=length, eos_token_id=0, pad_token_id=1
    )

    def ours() -> None:
        sampling = Sampling(max_new_tokens=length)
        list(generate(model, prompts, range(len(prompts)), sampling, Ends(-1, 1)))

    def theirs() -> None:
        peer.generate(torch.tensor(prompts), attention_mask=torch.ones(len(prompts), 16), generation_config=settings)

    mine, other = medians([ours, theirs], rounds=5)
    return {"sampling/tokens_per_second": len(prompts) * length / mine, "sampling/over_transformers": other / mine}


if __name__ == "__main__":
    main()
