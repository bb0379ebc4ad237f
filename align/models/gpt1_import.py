"""Load GPT-1's released parameters as a plain `transformers` model.

Source: openai/finetune-transformer-lm, folder model/. The release is one long float32 vector in ten
files, params_0.npy to params_9.npy. File boundaries are not array boundaries. params_shapes.json
lists the shapes of the arrays, in order: positions, tokens, then for each block its attention,
first norm, feed-forward layer and second norm. Matrices have a leading axis of 1, the width of a
convolution.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import OpenAIGPTConfig

from align.errors import ConfigError
from align.models.gpt1 import OpenAIGPTLMHeadModel

SHAPES = "params_shapes.json"
_FILES = [f"params_{i}.npy" for i in range(10)]
_HEAD_WIDTH = 64  # 768 / 12 [GPT-1, section 4.1]; the files do not contain it
_PER_BLOCK = (
    *(
        "attn.c_attn.weight",
        "attn.c_attn.bias",
        "attn.c_proj.weight",
        "attn.c_proj.bias",
        "ln_1.weight",
        "ln_1.bias",
    ),
    *(
        "mlp.c_fc.weight",
        "mlp.c_fc.bias",
        "mlp.c_proj.weight",
        "mlp.c_proj.bias",
        "ln_2.weight",
        "ln_2.bias",
    ),
)


def is_gpt1_release(folder: Path) -> bool:
    """Return True if a folder holds GPT-1's parameters as they were published."""
    return (folder / SHAPES).is_file()


def gpt1_from_release(folder: Path) -> OpenAIGPTLMHeadModel:
    """Load the model from the files in `folder`, in float32 and in eval mode.

    Its head is tied to its token embedding.

    Raises:
        ConfigError: a file is missing or has the wrong content, or the shapes are not those of a
            GPT-1.
    """
    shapes = _shapes(folder)
    config = gpt1_config(shapes)
    arrays = _arrays(folder, shapes)
    state = {
        name: torch.from_numpy(array.squeeze(0) if array.ndim == 3 else array)
        for (name, _), array in zip(named_shapes(config), arrays, strict=True)
    }
    model = OpenAIGPTLMHeadModel(config)
    left = model.load_state_dict(
        {f"transformer.{name}": array for name, array in state.items()}, strict=False
    )
    assert left.missing_keys in ([], ["lm_head.weight"])
    assert not left.unexpected_keys
    return model.eval()


def gpt1_config(shapes: list[list[int]]) -> OpenAIGPTConfig:
    """Return the config that matches a list of shapes.

    Raises:
        ConfigError: the shapes are not those of a GPT-1.
    """
    blocks, rest = divmod(len(shapes) - 2, len(_PER_BLOCK))
    if blocks < 1 or rest or any(len(shape) != 2 for shape in shapes[:2]):
        raise ConfigError(
            f"{SHAPES}: expected two matrices and {len(_PER_BLOCK)} arrays per block, got"
            f" {len(shapes)} arrays"
        )
    (positions, width), (vocabulary, _) = shapes[:2]
    config = OpenAIGPTConfig(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=width,
        n_layer=blocks,
        n_head=max(1, width // _HEAD_WIDTH),
    )
    for (name, wanted), found in zip(named_shapes(config), shapes, strict=True):
        if list(wanted) != found:
            raise ConfigError(f"{SHAPES}: {name}: expected {list(wanted)}, got {found}")
    return config


def named_shapes(config: OpenAIGPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names (without `transformer.`) and shapes of the published arrays, in their order."""
    d = config.n_embd
    yield "positions_embed.weight", (config.n_positions, d)
    yield "tokens_embed.weight", (config.vocab_size, d)
    inner = ((1, d, 4 * d), (4 * d,), (1, 4 * d, d), (d,))
    per_block = ((1, d, 3 * d), (3 * d,), (1, d, d), (d,), (d,), (d,), *inner, (d,), (d,))
    for block in range(config.n_layer):
        for name, shape in zip(_PER_BLOCK, per_block, strict=True):
            yield f"h.{block}.{name}", shape


def _shapes(folder: Path) -> list[list[int]]:
    try:
        shapes = json.loads((folder / SHAPES).read_text(encoding="utf-8"))
    except ValueError:
        shapes = None
    if not isinstance(shapes, list) or not all(
        isinstance(shape, list) and shape and all(isinstance(n, int) and n > 0 for n in shape)
        for shape in shapes
    ):
        raise ConfigError(f"{folder / SHAPES}: expected a list of shapes")
    return shapes


def _arrays(folder: Path, shapes: list[list[int]]) -> list[np.ndarray]:
    """Read the vector from the files and split it into arrays of `shapes`."""
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise ConfigError(
            f"{folder}: GPT-1's release has {_FILES[0]} to {_FILES[-1]}; missing:"
            f" {', '.join(missing)}"
        )
    parts = []
    for name in _FILES:
        try:
            parts.append(np.load(folder / name, allow_pickle=False).astype(np.float32).ravel())
        except (ValueError, EOFError) as error:
            raise ConfigError(
                f"{folder / name}: not an array of numbers ({' '.join(str(error).split())})"
            ) from None
    vector = np.concatenate(parts)
    sizes = [math.prod(shape) for shape in shapes]
    if vector.size != sum(sizes):
        raise ConfigError(
            f"{folder}: {SHAPES} asks for {sum(sizes):,} numbers, the files hold {vector.size:,}"
        )
    pieces = np.split(vector, np.cumsum(sizes)[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
