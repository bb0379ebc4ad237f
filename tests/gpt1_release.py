"""A GPT-1 written as OpenAI published its parameters, by what is known of that folder and of the code that read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

VOCABULARY = ["<unk>", *"abct", *(f"{c}</w>" for c in "abct"), "ca", "cat</w>"]


def random_gpt1() -> OpenAIGPTLMHeadModel:
    """Two layers of two heads, 64 wide each as in the real one."""
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=len(VOCABULARY), n_positions=16, n_embd=128, n_layer=2, n_head=2)
    model = OpenAIGPTLMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model


def write_release(model: OpenAIGPTLMHeadModel, folder: Path) -> list[list[int]]:
    """Ten files of one vector, the shapes of what it holds, and the vocabulary; the shapes are returned."""
    folder.mkdir(parents=True, exist_ok=True)
    body = model.transformer
    tensors = [body.positions_embed.weight, body.tokens_embed.weight]
    for block in body.h:
        for part in (block.attn.c_attn, block.attn.c_proj, block.ln_1, block.mlp.c_fc, block.mlp.c_proj, block.ln_2):
            matrix = part.weight.ndim == 2
            tensors += [part.weight[None] if matrix else part.weight, part.bias]
    shapes = [list(tensor.shape) for tensor in tensors]
    vector = np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])
    for i, part in enumerate(np.array_split(vector, 10)):
        np.save(folder / f"params_{i}.npy", part)
    (folder / "params_shapes.json").write_text(json.dumps(shapes))
    (folder / "encoder_bpe_40000.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (folder / "vocab_40000.bpe").write_text("#version: 0.2\nc a\nca t</w>\n")
    return shapes
