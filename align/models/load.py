"""Load and save language models, as plain Hugging Face folders with their tokenizers."""

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
import align.models.gpt3  # noqa: F401  both register with `transformers` on import
from align.errors import ConfigError
from align.models.attention import ATTENTION
from align.models.lora import merge_adapter, read_adapter
from align.models.padded import is_padded, read_padded
from align.store.artifacts import base_folder
from align.text.chat import keep_stop_strings, stop_ids, stop_strings

disable_progress_bar()  # loading a model is not the long part of a run


# Config field: how the model reads packed rows. Absent: with align's attention. PADDED: as a padded
# batch, see `padded.py`.
WAY = "align_attention"
PADDED = "padded"

# Tokens: few demonstrations and comparisons are longer, and memory grows with the length.
USUAL_LENGTH = 2048
USUAL_ANSWER = 256  # tokens


def load_model(folder: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Load the causal language model of an artifact in float32 and in eval mode.

    The attribute `stored_dtype` of the result is the dtype of its weights on disk. An adapter is
    merged into its base, which gives a plain model with `stored_dtype` float32.

    Raises:
        ConfigError: align's attention does not fit the model.
        StoreError: the base of an adapter is missing.
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
        # Rounding to 16 bits would add more noise than the change that most adapters make.
        stored = torch.float32
    model.stored_dtype = stored
    fit_as_recorded(model)
    if not is_padded(model):
        check_attention(model)
    return model


def attention_of(config: PreTrainedConfig) -> str:
    """Return the `attn_implementation` to open a model with.

    This is align's attention, or the model's own ("eager") if import found that align's does not
    fit.
    """
    return "eager" if getattr(config, WAY, None) == PADDED else ATTENTION


def fit_as_recorded(model: PreTrainedModel) -> None:
    """Make a loaded model read packed rows as its config specifies."""
    if getattr(model.config, WAY, None) == PADDED:
        read_padded(model)


@torch.no_grad()
def check_attention(model: PreTrainedModel) -> None:
    """Check that align's attention fits a model.

    It does not fit if the model applies its own mask, or has terms that align's attention lacks. A
    sliding window is reduced to at most 2 tokens during the check, because a larger one has no
    effect on the short test sequences.

    Raises:
        ConfigError: the logits of two short sequences in one packed row differ from those of each
            sequence alone with the library's eager attention.
    """
    one, two = (torch.arange(3, 7, device=model.device), torch.arange(2, 5, device=model.device))
    place = torch.cat([torch.arange(len(one)), torch.arange(len(two))])[None].to(model.device)
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    try:
        if window is not None:
            config.sliding_window = min(window, 2)
        packed = model(
            input_ids=torch.cat([one, two])[None], position_ids=place, use_cache=False
        ).logits[0]
        model.set_attn_implementation("eager")
        alone = torch.cat(
            [model(input_ids=ids[None], use_cache=False).logits[0] for ids in (one, two)]
        )
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"{model.config.model_type}: align's attention does not fit it: {error}"
        ) from None
    finally:
        model.set_attn_implementation(ATTENTION)
        if window is not None:
            config.sliding_window = window
    if not torch.allclose(packed, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
        raise ConfigError(
            f"{model.config.model_type}: its attention is not one that align computes; choose a"
            " model with plain, grouped or sliding-window attention (gpt2, gpt_neox, llama,"
            " mistral, qwen2, qwen3, ...)"
        )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model or tokenizer artifact.

    It includes the stop strings of the folder's generation_config.json.

    Raises:
        ConfigError: there is no padding token, or it equals the end-of-text token. Masks would then
            remove the end of every text.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ConfigError(
            f"{folder}: its tokenizer has no padding token apart from end-of-text; import it with"
            " hf: or path:"
        )
    generation = folder / "generation_config.json"
    if generation.is_file():
        keep_stop_strings(tokenizer, json.loads(generation.read_text()).get("stop_strings"))
    return tokenizer


def load_one_tokenizer(folders: Sequence[Path]) -> PreTrainedTokenizerBase:
    """Load the tokenizer that all these artifacts share.

    Raises:
        ConfigError: their tokenizers differ, or `load_tokenizer` refuses one.
    """
    first, *others = [load_tokenizer(folder) for folder in folders]
    if any(other.get_vocab() != first.get_vocab() for other in others):
        raise ConfigError(
            "inputs: expected tokens of one tokenizer, the model's where there is one, got several"
        )
    return first


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` can open.

    The weights in memory are left rounded to the precision they are stored in. The publisher's
    generation config is replaced: only the settings for where text ends are kept, taken from the
    tokenizer. The stages set their own sampling parameters.
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


def sequence_length(
    asked: int | None, model: PreTrainedModel, knob: str = "sequence_length"
) -> int:
    """Return the number of tokens of the longest sequence to train on.

    This is `asked`, or else the model's context, at most `USUAL_LENGTH`.

    Raises:
        ConfigError: `asked` is more than the context.
    """
    context = context_length(model)
    if asked is not None and asked > context:
        raise ConfigError(
            f"{knob}: expected at most the model's context of {context} tokens, got {asked}"
        )
    return min(context, USUAL_LENGTH) if asked is None else asked


def answer_length(asked: int | None, context: int) -> int:
    """Return the number of tokens of the longest response.

    This is `asked`, or else `USUAL_ANSWER`, or half the context if that is less.

    Raises:
        ConfigError: the length leaves no room for a prompt.
    """
    length = min(USUAL_ANSWER, context // 2) if asked is None else asked
    if length >= context:
        raise ConfigError(
            f"max_new_tokens: expected less than the context of {context} tokens, got {length}"
        )
    return length


def stored_dtype(config: PreTrainedConfig) -> torch.dtype:
    """Return the dtype that a model's weights are stored in; float32 if its config names none."""
    named = getattr(config, "dtype", None) or torch.float32
    return getattr(torch, named) if isinstance(named, str) else named


def precision_lines(model: PreTrainedModel) -> list[str]:
    """Return the messages for the user about the stored precision of a model.

    Empty if it is float32.
    """
    stored = getattr(model, "stored_dtype", torch.float32)
    if stored == torch.float32:
        return []
    name = str(stored).removeprefix("torch.")
    return [f"the model is stored in {name}; it is trained in float32 and stored in {name} again"]


# Low bits of a float32's mantissa that a 16-bit format cannot store.
_LOST_BITS = {torch.bfloat16: 16, torch.float16: 13}


@torch.no_grad()
def round_to_stored(model: PreTrainedModel, *, to_nearest: bool = False) -> bool:
    """Round float32 weights to the precision in which they are stored.

    So what is measured is what is saved. A weight is rounded up or down at random, the nearer value
    more often, so that its expectation is unchanged [Gupta et al. 2015, section 3.1]. Rounding to
    nearest would lose most updates: a step of 1e-5 is less than half of the distance between two
    bf16 numbers around 0.02. Weights that the format can represent do not change. The random
    numbers are the same in each call.

    Args:
        model: changed in place.
        to_nearest: round to nearest instead, for untrained weights.

    Returns:
        False if the stored dtype is not bfloat16 or float16; nothing changes then.
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
    """Round a model to its stored precision and return the mean change of its log-probs.

    At each position of `ids`, the absolute changes of the next token's log-probs are averaged with
    the probabilities before rounding. The result is the mean over positions, in nats. The model is
    changed in place.
    """
    row = torch.tensor([list(ids)], device=model.device)
    before = model(row, use_cache=False).logits.log_softmax(-1)
    round_to_stored(model, to_nearest=True)
    after = model(row, use_cache=False).logits.log_softmax(-1)
    return float((before.exp() * (before - after).abs()).sum(-1).mean())


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Save weights and config in the model's stored precision.

    The weights in memory are left rounded to it. Buffers are not rounded, because rotary
    frequencies in bf16 would be different frequencies.
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
    """Return the maximum number of tokens of a sequence."""
    return context_of(model.config)


# Names of the maximum sequence length in configs.
_CONTEXTS = (
    "max_position_embeddings",
    "max_seq_len",
    "n_positions",
    "seq_length",
    "context_length",
)
# Tokens, if a config has no limit: the training length of BLOOM, whose config has none.
_NO_LIMIT = 2048


def context_of(config: PreTrainedConfig) -> int:
    """Return the maximum number of tokens of a sequence.

    For some models, rotary frequencies change if the longest sequence of a batch exceeds a limit.
    Then the context is that limit: beyond it, log-probs of a sequence would depend on the others in
    the batch.
    """
    text = config.get_text_config(decoder=True)
    named = (getattr(text, name, None) for name in _CONTEXTS)
    context = next(
        (length for length in named if isinstance(length, int) and length > 0), _NO_LIMIT
    )
    return min(
        [
            context,
            *(
                length
                for kind, length in _ropes(text)
                if kind in ("longrope", "dynamic") and length
            ),
        ]
    )


def rope_limit(config: PreTrainedConfig) -> str | None:
    """Return a message that says why a model's context is shorter than its config says.

    None if it is not shorter.
    """
    text = config.get_text_config(decoder=True)
    written = getattr(text, "max_position_embeddings", None)
    context = context_of(config)
    kinds = [kind for kind, length in _ropes(text) if kind in ("longrope", "dynamic") and length]
    if not kinds or not written or context >= written:
        return None
    return (
        f"{kinds[0]} changes the rotary frequencies beyond {context:,} tokens with the longest"
        f" sequence of a batch; the context is {context:,} tokens, not {written:,}"
    )


def _ropes(config: PreTrainedConfig) -> list[tuple[str, int | None]]:
    """Return the type of each set of rotary frequencies, and the length it was trained with.

    The length is `original_max_position_embeddings`; None if the config does not give it.
    """
    given = getattr(config, "rope_parameters", None) or {}
    sets = (
        [given]
        if "rope_type" in given
        else [each for each in given.values() if isinstance(each, dict)]
    )
    whole = getattr(config, "original_max_position_embeddings", None)
    return [
        (each.get("rope_type", ""), each.get("original_max_position_embeddings") or whole)
        for each in sets
    ]
