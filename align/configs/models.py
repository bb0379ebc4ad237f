"""Sizes of models and adapters. Sources as in `align/configs/__init__.py`."""

from __future__ import annotations

from dataclasses import dataclass

from align.configs.knobs import check_ranges, knob


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only model, built from the `transformers` config of that architecture."""

    architecture: str = knob("gpt2", "a model type of transformers: gpt2, gpt_neox, llama, qwen3, ... [GPT-2]")
    hidden_size: int = knob(768, "width [GPT-2 small]")
    num_layers: int = knob(12, "[GPT-2 small]")
    num_heads: int = knob(12, "attention heads [GPT-2 small]")
    intermediate_size: int | None = knob(None, "width of the MLP; None: 4 times hidden_size [GPT-2]")
    context_length: int = knob(1024, "tokens [GPT-2]")
    dropout: float = knob(0.1, "in pretraining and SFT, of embeddings, attention and residuals [GPT-2]")
    initializer_range: float = knob(0.02, "standard deviation of the initial weights [GPT-2]")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters, merged into the published weights."""

    rank: int | None = knob(None, "of each adapter, 8 in [LoRA, table 6]; None: no adapters, all weights are trained")
    alpha: float = knob(16.0, "the update is scaled by alpha / rank [ours: 2 ranks]")
    dropout: float = knob(0.0, "before the adapter [ours]")

    def __post_init__(self) -> None:
        check_ranges(self)
