"""Build, load and save language models; a saved one is a plain Hugging Face folder with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from align.configs import ModelConfig
from align.errors import ConfigError
from align.models import gpt3  # noqa: F401 - from here on `transformers` knows it
from align.models.attention import ATTENTION

disable_progress_bar()  # loading a model is not what anybody waits for

# GPT-2's activation is the tanh form of GELU; this is the same function in one kernel instead of eight.
_FUSED = {"gelu_new": "gelu_pytorch_tanh"}
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop", "attention_dropout", "hidden_dropout")


def build_model(cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A randomly initialised causal language model for `tokenizer`, in float32.

    Raises:
        ConfigError: `transformers` has no such architecture, or refuses the sizes.
    """
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "max_position_embeddings": cfg.context_length,
        "initializer_range": cfg.initializer_range,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes["n_inner" if cfg.architecture == "gpt2" else "intermediate_size"] = (
        cfg.intermediate_size or 4 * cfg.hidden_size
    )
    if cfg.hidden_size % cfg.num_heads:
        raise ConfigError(
            f"model.num_heads: expected a divisor of hidden_size ({cfg.hidden_size}), got {cfg.num_heads}"
        )
    try:
        config = AutoConfig.for_model(cfg.architecture, **sizes)
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = cfg.num_heads
        if getattr(config, "head_dim", None):
            config.head_dim = cfg.hidden_size // cfg.num_heads
        for name in _DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, cfg.dropout)
        fuse_activation(config)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=ATTENTION)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"model.architecture={cfg.architecture}: {' '.join(str(error).split())[:300]}") from None


def fuse_activation(config: Any) -> None:
    for name in ("activation_function", "hidden_act"):
        if getattr(config, name, None) in _FUSED:
            setattr(config, name, _FUSED[getattr(config, name)])


def load_model(folder: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The causal language model of a model artifact, float32, in eval mode."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=ATTENTION, trust_remote_code=False
    )
    model = model.to(device).eval()
    check_attention(model)
    return model


@torch.no_grad()
def check_attention(model: PreTrainedModel) -> None:
    """Refuse a model that our attention does not fit: where it masks by itself, or has terms that ours lacks.

    A window is narrowed meanwhile to less than the sequences have, for it is in no other way felt by so few tokens.

    Raises:
        ConfigError: two short sequences in one packed row are not what each is alone with the library's own attention.
    """
    one, two = (torch.arange(3, 7, device=model.device), torch.arange(2, 5, device=model.device))
    place = torch.cat([torch.arange(len(one)), torch.arange(len(two))])[None].to(model.device)
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    try:
        if window is not None:
            config.sliding_window = min(window, 2)
        packed = model(input_ids=torch.cat([one, two])[None], position_ids=place, use_cache=False).logits[0]
        model.set_attn_implementation("eager")
        alone = torch.cat([model(input_ids=ids[None], use_cache=False).logits[0] for ids in (one, two)])
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{model.config.model_type}: align's attention does not fit it: {error}") from None
    finally:
        model.set_attn_implementation(ATTENTION)
        if window is not None:
            config.sliding_window = window
    if not torch.allclose(packed, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
        raise ConfigError(
            f"{model.config.model_type}: its attention is not one that align computes; choose a model with plain, "
            f"grouped or sliding-window attention (gpt2, gpt_neox, llama, mistral, qwen2, qwen3, ...)"
        )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or tokenizer artifact.

    Raises:
        ConfigError: its padding token is its end-of-text token, so that masks would erase the end of every text.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ConfigError(
            f"{folder}: its tokenizer has no padding token apart from end-of-text; import it with hf: or path:"
        )
    return tokenizer


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` open."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def context_length(model: PreTrainedModel) -> int:
    """Tokens a sequence may have; unlimited where the architecture sets no limit."""
    return getattr(model.config, "max_position_embeddings", None) or 2**31
