"""Build models with fresh weights from their `transformers` config, and list their weights.

Initial weights are as published, as far as that is known:

- GPT-1: N(0, 0.02) everywhere, biases 0 [openai/finetune-transformer-lm, train.py].
- GPT-2, GPT-3: N(0, 0.02), positions N(0, 0.01) [openai/gpt-2, src/model.py]; projections into the
  residual stream are divided by sqrt(2 * layers), the common reading of [GPT-2, section 2.3].
- LLaMA: N(0, 0.02); its paper does not say.
- T5: as `transformers` initialises it. Attention projections are as in Mesh TensorFlow
  (transformer/attention.py): queries have variance 1 / (width * head width), which includes the
  scale of attention; the others have variance 1 / fan-in.

Dropout is where `transformers` puts it; for GPT-1, see `align/models/gpt1.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.configs import ModelConfig
from align.errors import ConfigError, did_you_mean

# `load` also registers align's own architectures with `transformers`.
from align.models.load import attention_of, check_attention, fit_as_recorded
from align.models.padded import is_padded
from align.models.sizes import Weight

# GPT-2's activation is the tanh form of GELU. This is the same function in one kernel, not eight.
_FUSED = {"gelu_new": "gelu_pytorch_tanh"}
_DROPOUTS = (
    "embd_pdrop",
    "attn_pdrop",
    "resid_pdrop",
    "attention_dropout",
    "hidden_dropout",
    "dropout_rate",
)

# The config field for each knob, and exceptions by architecture; "": the knob cannot be set.
_FIELDS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "context_length": "max_position_embeddings",
    "initializer_range": "initializer_range",
}
_OWN_FIELDS = {
    "openai-gpt": {"intermediate_size": ""},
    "gpt2": {"intermediate_size": "n_inner"},
    "gpt3": {"intermediate_size": "n_inner"},
    "t5": {
        "intermediate_size": "d_ff",
        "context_length": "n_positions",
        "initializer_range": "initializer_factor",
    },
}
_HALVED_POSITIONS = ("gpt2", "gpt3")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def build_model(cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build a randomly initialised language model for `tokenizer`, in float32.

    t5 is an encoder-decoder; all other architectures are causal.

    Raises:
        ConfigError: `transformers` has no such architecture or option, or refuses the sizes.
    """
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,  # [T5]
    }
    return _fresh(architecture_config(cfg, len(tokenizer), tokens))


def fresh_model(folder: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Build a causal model like a saved one, with newly drawn weights.

    Architecture and sizes are those of the model in `folder`. The result is in float32 and in eval
    mode.
    """
    model = _fresh(AutoConfig.from_pretrained(folder, trust_remote_code=False)).to(device).eval()
    fit_as_recorded(model)
    if not is_padded(model):
        check_attention(model)
    return model


def meta_model(cfg: ModelConfig) -> PreTrainedModel:
    """Build the model with `cfg.vocab_size` entries on the meta device, to count its weights.

    Raises:
        ConfigError: as `build_model`.
    """
    config = architecture_config(cfg, cfg.vocab_size, dict.fromkeys(_TOKENS))
    with torch.device("meta"):
        return _fresh(config)


def weights_of(model: PreTrainedModel) -> list[Weight]:
    """Return the weights of a model with their shapes; a tied matrix is listed once."""
    tables = {id(m.weight): m for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    given, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    found = []
    for parameter in model.parameters():
        shape = tuple(parameter.shape)
        if parameter is given:
            place = "tied" if parameter is head else "tokens"
        elif parameter is head:
            place = "head"
        elif id(parameter) in tables:
            place = "positions"
        else:
            place = "matrix" if len(shape) > 1 else "vector"
        found.append(Weight(place, shape, 1))
    return found


def architecture_config(
    cfg: ModelConfig, vocab_size: int, tokens: Mapping[str, int | None]
) -> PreTrainedConfig:
    """Convert `cfg` to the `transformers` config of its architecture.

    Args:
        tokens: token ids by their names in `transformers` configs.

    Raises:
        ConfigError: `transformers` has no such architecture or option, or refuses the sizes.
    """
    if cfg.architecture not in CONFIG_MAPPING:
        hint = did_you_mean(cfg.architecture, CONFIG_MAPPING)
        raise ConfigError(
            f"model.architecture={cfg.architecture}: transformers has no such model type{hint}"
        )
    names = {**_FIELDS, **_OWN_FIELDS.get(cfg.architecture, {})}
    _check(cfg, names)
    wide = "head_dim" in cfg.options or "d_kv" in cfg.options
    if cfg.hidden_size % cfg.num_heads and not wide:
        raise ConfigError(
            f"model.num_heads: expected a divisor of hidden_size ({cfg.hidden_size}), got"
            f" {cfg.num_heads}"
        )
    sizes = {theirs: getattr(cfg, ours) for ours, theirs in names.items() if theirs}
    if names["intermediate_size"]:
        sizes[names["intermediate_size"]] = cfg.intermediate_size or 4 * cfg.hidden_size
    if cfg.architecture != "t5":
        tokens = {name: value for name, value in tokens.items() if name != "decoder_start_token_id"}
    given = {
        **sizes,
        "vocab_size": vocab_size,
        "tie_word_embeddings": True,
        **tokens,
        **cfg.options,
    }
    # Resolve aliases: T5's decoder depth follows the field `num_layers` only.
    aliases = CONFIG_MAPPING[cfg.architecture].attribute_map
    given = {aliases.get(name, name): value for name, value in given.items()}
    try:
        config = AutoConfig.for_model(cfg.architecture, **given)
        if hasattr(config, "num_key_value_heads") and "num_key_value_heads" not in cfg.options:
            config.num_key_value_heads = cfg.num_heads
        if getattr(config, "head_dim", None) and not wide:
            config.head_dim = cfg.hidden_size // cfg.num_heads
        for name in _DROPOUTS:
            if hasattr(config, name) and name not in cfg.options:
                setattr(config, name, cfg.dropout)
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise _refused(cfg.architecture, error) from None
    fuse_activation(config)
    return config


def fuse_activation(config: Any) -> None:
    for name in ("activation_function", "hidden_act"):
        if getattr(config, name, None) in _FUSED:
            setattr(config, name, _FUSED[getattr(config, name)])


def _check(cfg: ModelConfig, names: Mapping[str, str]) -> None:
    """Raise `ConfigError` for an option that is unknown or that a knob already sets.

    Also raise it for a value of `intermediate_size` that the architecture does not support.
    """
    cls: Any = CONFIG_MAPPING[cfg.architecture]
    theirs = {theirs: ours for ours, theirs in names.items() if theirs}
    theirs |= {
        cls.attribute_map[name]: ours for name, ours in theirs.items() if name in cls.attribute_map
    }
    known = {f.name for f in fields(cls)} | set(cls.attribute_map) | {"tie_word_embeddings"}
    for option in cfg.options:
        if option in theirs:
            raise ConfigError(
                f"model.options.{option}: it is the knob model.{theirs[option]}; give that"
            )
        if option in ("vocab_size", *_TOKENS):
            raise ConfigError(f"model.options.{option}: it is the tokenizer's; leave it out")
        if option not in known:
            hint = did_you_mean(option, known)
            raise ConfigError(
                f"model.options.{option}: {cls.__name__} of transformers has no such field{hint}"
            )
    if not names["intermediate_size"] and cfg.intermediate_size not in (None, 4 * cfg.hidden_size):
        raise ConfigError(
            f"model.intermediate_size: {cfg.architecture} has 4 times hidden_size and nothing else,"
            f" got {cfg.intermediate_size}"
        )


def _fresh(config: PreTrainedConfig) -> PreTrainedModel:
    try:
        if config.is_encoder_decoder:
            return AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention_of(config)
        )
    except (ValueError, KeyError) as error:
        raise _refused(config.model_type, error) from None
    if config.model_type in _HALVED_POSITIONS:
        with torch.no_grad():
            model.transformer.wpe.weight.mul_(0.5)  # 0.01 if the rest has 0.02
    return model


def _refused(architecture: str, error: Exception) -> ConfigError:
    return ConfigError(f"model.architecture={architecture}: {' '.join(str(error).split())[:300]}")
