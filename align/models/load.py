"""Load and save language models; a saved one is a plain Hugging Face folder with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

import align.models.gpt1
import align.models.gpt3  # noqa: F401  both make themselves known to `transformers`
from align.errors import ConfigError
from align.models.attention import ATTENTION
from align.models.lora import merge_adapter, read_adapter
from align.models.padded import is_padded, read_padded
from align.store.artifacts import base_folder
from align.text.chat import keep_stop_strings, stop_ids, stop_strings

disable_progress_bar()  # loading a model is not what anybody waits for


# How a model reads packed rows, in its config: absent where our attention does, else PADDED (see `padded.py`).
WAY = "align_attention"
PADDED = "padded"

USUAL_LENGTH = 2048  # tokens: few demonstrations and comparisons are longer, and memory grows with it
USUAL_ANSWER = 256  # tokens


def load_model(folder: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Load the causal language model of an artifact in float32 and in eval mode; `stored_dtype` is its type on disk.

    An adapter comes merged into its base, as a plain model.

    Raises:
        ConfigError: our attention does not fit it.
        StoreError: the base of an adapter is gone.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    stored = stored_dtype(config)
    model = AutoModelForCausalLM.from_pretrained(
        base_folder(folder),
        config=config,
        dtype=torch.float32,
        attn_implementation=attention_of(config),
        trust_remote_code=False,
    )
    model = model.to(device).eval()
    if (adapter := read_adapter(folder)) is not None:
        merge_adapter(model, adapter)
        stored = torch.float32  # rounding to half of the bits would add more noise than most adapters change
    model.stored_dtype = stored
    fit_as_recorded(model)
    if not is_padded(model):
        check_attention(model)
    return model


def attention_of(config: PreTrainedConfig) -> str:
    """What to open a model with: our attention, or the model's own where its import found that ours does not fit."""
    return "eager" if getattr(config, WAY, None) == PADDED else ATTENTION


def fit_as_recorded(model: PreTrainedModel) -> None:
    """Have an opened model read packed rows in the way that its config names."""
    if getattr(model.config, WAY, None) == PADDED:
        read_padded(model)


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
    """The tokenizer of a model or tokenizer artifact, with the stop strings of its generation_config.json.

    Raises:
        ConfigError: its padding token is its end-of-text token, so that masks would erase the end of every text.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ConfigError(
            f"{folder}: its tokenizer has no padding token apart from end-of-text; import it with hf: or path:"
        )
    generation = folder / "generation_config.json"
    if generation.is_file():
        keep_stop_strings(tokenizer, json.loads(generation.read_text()).get("stop_strings"))
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
    """A folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` open.

    The weights are left rounded to the precision they are stored in. Of what the model's publisher wrote down for
    `generate`, only where text ends is kept, in step with the tokenizer: sampling settings are the stages' own.
    """
    ends = stop_ids(tokenizer)
    strings = stop_strings(tokenizer)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        stop_strings=list(strings) if strings else None,
    )
    save_weights(model, folder)
    tokenizer.save_pretrained(folder)


def sequence_length(asked: int | None, model: PreTrainedModel, knob: str = "sequence_length") -> int:
    """Tokens of the longest sequence to train on: as asked, else the model's context, at most `USUAL_LENGTH`.

    Raises:
        ConfigError: more were asked for than the context holds.
    """
    context = context_length(model)
    if asked is not None and asked > context:
        raise ConfigError(f"{knob}: expected at most the model's context of {context} tokens, got {asked}")
    return min(context, USUAL_LENGTH) if asked is None else asked


def answer_length(asked: int | None, context: int) -> int:
    """Tokens of the longest response: as asked, else `USUAL_ANSWER`, or half the context where that is less.

    Raises:
        ConfigError: what was asked leaves no room for a prompt.
    """
    length = min(USUAL_ANSWER, context // 2) if asked is None else asked
    if length >= context:
        raise ConfigError(f"max_new_tokens: expected less than the context of {context} tokens, got {length}")
    return length


def stored_dtype(config: PreTrainedConfig) -> torch.dtype:
    """The precision that a model's weights are stored in; float32 where its config does not say."""
    named = getattr(config, "dtype", None) or torch.float32
    return getattr(torch, named) if isinstance(named, str) else named


def precision_lines(model: PreTrainedModel) -> list[str]:
    """What to tell a user of the precision of a model that was opened; nothing where it is float32 throughout."""
    stored = getattr(model, "stored_dtype", torch.float32)
    if stored == torch.float32:
        return []
    name = str(stored).removeprefix("torch.")
    return [f"the model is stored in {name}; it is trained in float32 and stored in {name} again"]


# Bits of a float32 that a half format has no room for.
_LOST_BITS = {torch.bfloat16: 16, torch.float16: 13}


@torch.no_grad()
def round_to_stored(model: PreTrainedModel, *, to_nearest: bool = False) -> bool:
    """Round float32 weights to the precision they will be stored in, so that what is measured is what is saved.

    A weight is rounded up or down at random, the nearer value more often, so that its expectation stays [Gupta et al.
    2015, section 3.1]. To the nearest, most updates would be lost: a step of 1e-5 is less than half of the distance
    between two bf16 numbers around 0.02. Weights that did not change stay as they are. The draw is always the same.

    Args:
        model: changed in place.
        to_nearest: instead, for weights that nobody trained.

    Returns:
        False where they are stored in float32 and nothing changed.
    """
    dtype = getattr(model, "stored_dtype", torch.float32)
    if dtype not in _LOST_BITS:
        return False
    lost = 2 ** _LOST_BITS[dtype]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not to_nearest and parameter.dtype == torch.float32:
            noise = torch.randint(lost, parameter.shape, generator=generator, dtype=torch.int32)
            bits = (parameter.detach().view(torch.int32) + noise.to(parameter.device)) & -lost
            parameter.copy_(bits.view(torch.float32))
        parameter.copy_(parameter.to(dtype))
    return True


@torch.no_grad()
def drift_of_storing(model: PreTrainedModel, ids: Sequence[int]) -> float:
    """Round a model to what it will be stored in; the mean change of a log-prob by that after each of `ids`, nats."""
    row = torch.tensor([list(ids)], device=model.device)
    before = model(row, use_cache=False).logits.log_softmax(-1)
    round_to_stored(model, to_nearest=True)
    after = model(row, use_cache=False).logits.log_softmax(-1)
    return float((before.exp() * (before - after).abs()).sum(-1).mean())


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Save weights and config in the precision that the model came in; weights are left rounded to it.

    Buffers stay as they are: rotary frequencies in bf16 are other frequencies.
    """
    round_to_stored(model)
    dtype = getattr(model, "stored_dtype", torch.float32)
    own = [(parameter, parameter.dtype) for parameter in model.parameters()]
    for parameter, _ in own:
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder, safe_serialization=True)
    for parameter, before in own:
        parameter.data = parameter.data.to(before)


def context_length(model: PreTrainedModel) -> int:
    """Tokens a sequence may have."""
    return context_of(model.config)


# What configs call the most tokens that a sequence may have.
_CONTEXTS = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length", "context_length")
_NO_LIMIT = 2048  # tokens, where a config names no limit: what BLOOM, which has none, was trained on


def context_of(config: PreTrainedConfig) -> int:
    """Tokens a sequence may have.

    Where rotary frequencies depend on the longest sequence of a batch, it is the length up to which they do not:
    beyond it, a sequence would have other log-probs beside a longer one.
    """
    text = config.get_text_config(decoder=True)
    named = (getattr(text, name, None) for name in _CONTEXTS)
    context = next((length for length in named if isinstance(length, int) and length > 0), _NO_LIMIT)
    return min([context, *(length for kind, length in _ropes(text) if kind in ("longrope", "dynamic") and length)])


def rope_limit(config: PreTrainedConfig) -> str | None:
    """The line that says why a model's context is shorter here than its config says; None where it is not."""
    text = config.get_text_config(decoder=True)
    written = getattr(text, "max_position_embeddings", None)
    context = context_of(config)
    kinds = [kind for kind, length in _ropes(text) if kind in ("longrope", "dynamic") and length]
    if not kinds or not written or context >= written:
        return None
    return (
        f"{kinds[0]} changes the rotary frequencies beyond {context:,} tokens with the longest sequence of a batch; "
        f"the context is {context:,} tokens, not {written:,}"
    )


def _ropes(config: PreTrainedConfig) -> list[tuple[str, int | None]]:
    """The kind of each set of rotary frequencies, and the length that it was trained on where one is named."""
    given = getattr(config, "rope_parameters", None) or {}
    sets = [given] if "rope_type" in given else [each for each in given.values() if isinstance(each, dict)]
    whole = getattr(config, "original_max_position_embeddings", None)
    return [(each.get("rope_type", ""), each.get("original_max_position_embeddings") or whole) for each in sets]
