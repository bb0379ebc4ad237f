"""`align model`: the size and the cost of a model of conf/model/.

They are counted on the model itself, which is built without storage.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.table import Table

from align.configs import ModelConfig
from align.configs.knobs import PRECISIONS
from align.configs.pretrain import OPTIMIZERS
from align.configs.typed import plain, typed
from align.errors import ConfigError
from align.models.sizes import memory, parameters, training_flops, without_embeddings
from align.runtime.console import short, wide_console

if TYPE_CHECKING:
    from align.models.sizes import Weight

_PER_PARAMETER = 20  # tokens per parameter [Hoffmann et al. 2022 (Chinchilla), table 3]

# Tokens that a published model was trained on, and the source of that number.
_TRAINED_ON = {
    **dict.fromkeys(
        [
            f"gpt3_{size}"
            for size in ("small", "medium", "large", "xl", "2_7b", "6_7b", "13b", "175b")
        ],
        (300e9, "GPT-3, table 2.1"),
    ),
    **dict.fromkeys([f"llama_{size}" for size in ("7b", "13b")], (1.0e12, "LLaMA, table 2")),
    **dict.fromkeys([f"llama_{size}" for size in ("33b", "65b")], (1.4e12, "LLaMA, table 2")),
    **dict.fromkeys(
        [f"t5_{size}" for size in ("small", "base", "large", "3b", "11b")],
        (1.0e12, "T5, section 3.7"),
    ),
}


def show(cfg: DictConfig, chosen: str, as_published: bool) -> int:
    """Print the account of one composed config; return 0.

    Args:
        chosen: the name of the model in conf/model/.
        as_published: True if no knob of the model was changed.

    Raises:
        ConfigError: a knob is invalid, or `transformers` refuses the config that the knobs give.
    """
    model = _model_config(cfg)
    tokens, source = _tokens(cfg, chosen if as_published else "")
    from align.models.build import meta_model, weights_of

    account = _account(chosen, model, weights_of(meta_model(model)), tokens, source)
    if cfg.json:
        print(json.dumps(account, indent=1))
    else:
        _print(account)
    return 0


def _model_config(cfg: DictConfig) -> ModelConfig:
    try:
        model = typed(ModelConfig, plain(cfg.model))
    except ConfigError as error:
        raise ConfigError(f"model.{error}") from None
    assert isinstance(model, ModelConfig)
    return model


def _tokens(cfg: DictConfig, published: str) -> tuple[float | None, str]:
    if cfg.tokens is None:
        return _TRAINED_ON.get(published, (None, f"{_PER_PARAMETER} a parameter, Chinchilla"))
    try:
        tokens = float(cfg.tokens)
    except (TypeError, ValueError, OverflowError):
        tokens = 0.0
    if not 0 < tokens < float("inf"):
        raise ConfigError(
            f"tokens: expected a number above 0, as in tokens=300e9, got {cfg.tokens!r}"
        )
    return tokens, "as given"


def _account(
    name: str, model: ModelConfig, made_of: list[Weight], tokens: float | None, source: str
) -> dict[str, Any]:
    number = parameters(made_of)
    tokens = tokens if tokens is not None else float(_PER_PARAMETER * number)
    a_token = training_flops(model, made_of, model.context_length)
    return {
        "model": name,
        "architecture": model.architecture,
        "parameters": number,
        "parameters_without_embeddings": without_embeddings(made_of),
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
        "memory_bytes": {
            precision: {
                optimizer: {
                    "weights": (held := memory(made_of, optimizer, precision)).weights,
                    "gradients": held.gradients,
                    "optimizer": held.optimizer,
                    "total": held.total,
                }
                for optimizer in OPTIMIZERS
            }
            for precision in PRECISIONS
        },
        "training_flops_per_token": a_token,
        "tokens": tokens,
        "tokens_source": source,
        "training_flops": a_token * tokens,
    }


def _print(account: dict[str, Any]) -> None:
    a = account
    shape = (
        f"{a['num_layers']} layers x {a['hidden_size']:,}, {a['num_heads']} heads,"
        f" {a['vocab_size']:,} entries"
    )
    print(f"model:         {a['model']} ({a['architecture']})")
    print(
        f"parameters:    {a['parameters']:,}; {a['parameters_without_embeddings']:,} without"
        " embeddings"
    )
    print(f"shape:         {shape}")
    print(f"context:       {a['context_length']:,} tokens")
    print(
        f"FLOPs per token: {a['training_flops_per_token']:.3g}, forward and backward, rows of the"
        " whole context"
    )
    print(
        f"FLOPs in all:  {a['training_flops']:.3g} for {short(a['tokens'])} tokens"
        f" ({a['tokens_source']})"
    )
    print(
        "\nGB in training, without activations (weights in float32; bf16: and their copies under"
        " autocast)"
    )
    table = Table(box=None, pad_edge=False)
    for column in ("precision", "optimizer", "weights", "gradients", "its state", "all"):
        table.add_column(
            column, justify="left" if column in ("precision", "optimizer") else "right"
        )
    for precision, by_optimizer in a["memory_bytes"].items():
        for optimizer, held in by_optimizer.items():
            table.add_row(precision, optimizer, *(f"{held[part] / 1e9:,.3g}" for part in held))
    wide_console().print(table)
