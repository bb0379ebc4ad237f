"""Sizes of models and adapters. Sources as in `align/configs/__init__.py`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from align.configs.knobs import check_ranges, knob, require
from align.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """A model's size, built from the `transformers` config of that architecture; t5 is encoder and decoder."""

    architecture: str = knob(
        "gpt2", "a model type of transformers: gpt2, openai-gpt, gpt3, gpt_neox, llama, t5, qwen3, ... [GPT-2]"
    )
    hidden_size: int = knob(768, "width [GPT-2 small]")
    num_layers: int = knob(12, "blocks; of t5 in the encoder, and as many in the decoder [GPT-2 small]")
    num_heads: int = knob(12, "attention heads [GPT-2 small]")
    intermediate_size: int | None = knob(None, "width of the MLP; None: 4 times hidden_size [GPT-2]")
    context_length: int = knob(1024, "tokens [GPT-2]")
    dropout: float = knob(0.1, "in pretraining and fine-tuning, of embeddings, attention and residuals [GPT-2]")
    initializer_range: float = knob(
        0.02, "standard deviation of the initial weights; of t5 a factor on its own, 1.0 as published [GPT-2]"
    )
    vocab_size: int = field(
        default=50_257,
        metadata={
            "comment": "entries of the published model's embedding, for which `align model` counts; what is trained "
            "has its tokenizer's; not in the key [GPT-2]",
            "outside_key": True,
        },
    )
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "comment": "further fields of the architecture's transformers config, as it names them: rms_norm_eps"
        },
    )

    def __post_init__(self) -> None:
        check_ranges(self)


def require_one_model(given: ModelConfig, left_out: ModelConfig, inputs: dict[str, Any]) -> None:
    """Raise `ConfigError` where sizes are given beside a model that has its own."""
    if inputs.get("model") and given != left_out:
        raise ConfigError(
            f"model: sizes of a {given.architecture} are given beside inputs.model, which has its own; leave one out"
        )


@dataclass(slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on the linear layers; the rest of the model is frozen."""

    rank: int | None = knob(None, "of each adapter, 8 in [LoRA, table 6]; None: no adapters, all weights are trained")
    alpha: float = knob(16.0, "the update is scaled by alpha / rank [ours: 2 ranks]")
    dropout: float = knob(0.0, "before the adapter [ours]")
    merged: bool = knob(
        False,
        "publish a whole model with the adapter in its weights; false: the adapter and a reference to its base, which "
        "`align artifacts export` merges. A classifier of finetune is always whole [ours]",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.alpha > 0, "alpha", self.alpha, "a number above 0")
        require(self.dropout < 1, "dropout", self.dropout, "a number from 0 to below 1")
        for knob_ in fields(self):
            value = getattr(self, knob_.name)
            ok = self.rank is not None or value == knob_.default
            require(ok, knob_.name, value, "lora.rank beside it: without one all weights are trained")
