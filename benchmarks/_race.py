"""What the benchmarks beside TRL's trainers share: a LLaMA, its words, and two sides that take turns.

Each side is a process of its own: `_stage_child.py` runs one of our stages, `_trl_child.py` one of TRL's trainers. Both
start from the same weights and rows. A turn is one optimizer step, or one iteration of GRPO.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _peer import Side
from _workload import tokenizer_of
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from align.data.records import write_info, write_rows
from align.runtime.precision import bf16_is_fast
from align.text.tokenizers import complete

disable_progress_bar()
set_verbosity_error()

HERE = Path(__file__).parent
# In this precision `plan` would run a step on this machine; both sides do.
PRECISION = "bf16" if bf16_is_fast("auto") else "fp32"
VOCABULARY, LAYERS, WIDTH, HEADS = 4096, 6, 256, 4
MOST = 512  # tokens of a sequence
BETA2 = 0.95  # ours; TRL's default is 0.999


def save_llama(folder: Path, end_probability: float = 0.0) -> None:
    """Save random weights that end a response with about this probability at every token, and their tokenizer.

    The first hidden unit has the same value in every token's embedding, and no layer writes to it. So it is nearly a
    constant, from which the head makes the logit of the end of a turn.
    """
    torch.manual_seed(0)
    tokenizer = tokenizer_of(VOCABULARY, "<pad>")
    complete(tokenizer, "align")
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=2 * MOST,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    odds = end_probability / (1 - end_probability) if end_probability else 1e-9
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0.1
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        words = torch.randint(2, VOCABULARY, (8, 96))
        constant = float(model.model(words).last_hidden_state[:, 32:, 0].mean())  # behind a prompt
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[end] = 0
        model.lm_head.weight[end, 0] = math.log(odds * VOCABULARY) / constant  # the other logits are near 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lengths(count: int, median: float, seed: int) -> list[int]:
    """Return numbers of words, log-normal as in public instruction sets."""
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.8 + math.log(median)
    return drawn.exp().clamp(8, MOST // 2 - 8).int().tolist()


def words(count: int, seed: int) -> str:
    """Return random words, one token each."""
    drawn = torch.randint(2, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{number}" for number in drawn.tolist())


def question(length: int, seed: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": words(length, seed)}]


def save_rows(folder: Path, record: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    folder.mkdir()
    write_rows(folder, "train", list(rows))
    write_info(folder, record=record, source="path:mine.jsonl", licence="yours", dropped={})
    return folder


def even_words(completions: list[list[dict[str, str]]], **others: object) -> list[float]:
    """Reward a response by its share of words with an even number."""
    texts = [completion[0]["content"].split() for completion in completions]
    return [sum(word[-1] in "02468" for word in text) / max(1, len(text)) for text in texts]


def our_side(folder: Path, stage: str, inputs: Mapping[str, tuple[str, Path]], knobs: Mapping[str, Any]) -> Side:
    """Start one of our stages, which waits for its turns.

    Args:
        inputs: the kind and the folder of each artifact.
        knobs: those of the stage that are not its defaults.
    """
    places = {name: [kind, str(place)] for name, (kind, place) in inputs.items()}
    given = {"seed": 0, "precision": PRECISION, "beta2": BETA2, **knobs}
    settings = {"stage": stage, "inputs": places, "knobs": given}
    return Side([sys.executable, str(HERE / "_stage_child.py")], settings, folder, {})


def trl_side(folder: Path, trainer: str, model: Path, rows: Sequence[Any], config: Mapping[str, Any]) -> Side:
    """Start one of TRL's trainers, which waits for its turns.

    Args:
        trainer: grpo, reward or dpo.
        config: fields of the trainer's config that are not as below.
    """
    best = {
        "bf16": PRECISION == "bf16",
        "gradient_checkpointing": False,
        "adam_beta2": BETA2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
    }
    settings = {"trainer": trainer, "model": str(model), "rows": list(rows), "config": best | config}
    return Side([sys.executable, str(HERE / "_trl_child.py")], settings, folder, {"HF_HUB_OFFLINE": "1"})


def take_turns(sides: Sequence[Side], turns: int) -> None:
    """Let the sides work in turns, and end them."""
    try:
        for _ in range(turns):
            for side in sides:
                side.turn()
    finally:
        for side in sides:
            side.close()


def fastest(start: Callable[[int], Side], sizes: Sequence[int]) -> int:
    """Return the size with which TRL takes least time for its second step.

    Args:
        start: starts a side with a micro-batch size.
    """
    taken = {}
    for size in sizes:
        side = start(size)
        take_turns([side], 2)
        taken[size] = side.answers[1]["seconds"]
    return min(sizes, key=taken.__getitem__)
