"""Sizes of models and adapters. Sources: see `align/configs/__init__.py`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from align.configs.knobs import check_ranges, knob, require
from align.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The size of a model. The model is built from the `transformers` config of its architecture.

    t5 has an encoder and a decoder; all others are decoders.
    """

    architecture: str = knob(
        "gpt2",
        "a model type of transformers: gpt2, openai-gpt, gpt3, gpt_neox, llama, t5, qwen3, ..."
        " [GPT-2]",
    )
    hidden_size: int = knob(768, "width of the hidden states [GPT-2 small]")
    num_layers: int = knob(
        12, "blocks; t5 has this many in the encoder and as many in the decoder [GPT-2 small]"
    )
    num_heads: int = knob(12, "attention heads per block [GPT-2 small]")
    intermediate_size: int | None = knob(
        None, "width of the MLP; None: 4 times hidden_size [GPT-2]"
    )
    context_length: int = knob(1024, "context length in tokens [GPT-2]")
    dropout: float = knob(
        0.1,
        "dropout of embeddings, attention and residuals, in pretraining and fine-tuning [GPT-2]",
    )
    initializer_range: float = knob(
        0.02,
        "standard deviation of the initial weights; t5: a factor on the architecture's own, 1.0 as"
        " published [GPT-2]",
    )
    vocab_size: int = field(
        default=50_257,
        metadata={
            "comment": (
                "entries of the embedding that `align model` counts with, by default the published"
                " model's; a model that is trained has its tokenizer's; not in the key [GPT-2]"
            ),
            "outside_key": True,
        },
    )
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "comment": (
                "other fields of the architecture's transformers config, by their names there, as"
                " rms_norm_eps"
            )
        },
    )

    def __post_init__(self) -> None:
        check_ranges(self)


def require_one_model(given: ModelConfig, left_out: ModelConfig, inputs: dict[str, Any]) -> None:
    """Raise `ConfigError` if sizes are given together with an input model, which has its own sizes.

    Args:
        given: the sizes in the config.
        left_out: the sizes in the config if nobody gives any: the stage's defaults.
        inputs: the inputs of the step.
    """
    if inputs.get("model") and given != left_out:
        raise ConfigError(
            f"model: sizes of a {given.architecture} are given beside inputs.model, which has its"
            " own; leave one out"
        )


@dataclass(slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on the linear layers; the rest of the model is frozen."""

    rank: int | None = knob(
        None,
        "rank of each adapter, 8 in [LoRA, table 6]; None: no adapters, all weights are trained",
    )
    alpha: float = knob(16.0, "scale of the update: alpha / rank [ours: 2 ranks]")
    dropout: float = knob(0.0, "dropout before the adapter [ours]")
    merged: bool = knob(
        False,
        "true: publish a whole model with the adapter merged into its weights; false: publish the"
        " adapter and a reference to its base, which `align artifacts export` merges. A classifier"
        " of finetune is always whole [ours]",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.alpha > 0, "alpha", self.alpha, "a number above 0")
        require(self.dropout < 1, "dropout", self.dropout, "a number from 0 to below 1")
        for knob_ in fields(self):
            value = getattr(self, knob_.name)
            ok = self.rank is not None or value == knob_.default
            require(
                ok, knob_.name, value, "lora.rank beside it: without one all weights are trained"
            )
