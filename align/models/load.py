"""Load and save language models; a saved one is a plain Hugging Face folder with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

import align.models.gpt1
import align.models.gpt3  # noqa: F401  both make themselves known to `transformers`
from align.errors import ConfigError
from align.models.attention import ATTENTION

disable_progress_bar()  # loading a model is not what anybody waits for


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


def load_one_tokenizer(folders: Sequence[Path]) -> PreTrainedTokenizerBase:
    """The tokenizer that all of these artifacts have.

    Raises:
        ConfigError: they have several, or it is one that `load_tokenizer` refuses.
    """
    first, *others = [load_tokenizer(folder) for folder in folders]
    if any(other.get_vocab() != first.get_vocab() for other in others):
        raise ConfigError("inputs: expected tokens of one tokenizer, the model's where there is one, got several")
    return first


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` open."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def context_length(model: PreTrainedModel) -> int:
    """Tokens a sequence may have; unlimited where the architecture sets no limit."""
    return getattr(model.config, "max_position_embeddings", None) or 2**31
