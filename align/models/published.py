"""Open a published model, and refuse it if weights are missing, unexpected or broken.

`transformers` initialises missing weights at random and drops unexpected ones, at most with a
warning. Here, both are errors.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file

from align.data.cards import Source, kind_of
from align.data.model_files import WEIGHTS_NAME, is_weights_name, weight_files
from align.errors import ConfigError, is_short
from align.models.gpt1_import import gpt1_from_release, is_gpt1_release
from align.models.heads import SHIFT, open_classifier
from align.models.vocabulary import DRAWN
from align.store.artifacts import ADAPTER_WEIGHTS

_NAMES = {
    "model": "a decoder-only language model",
    "seq2seq_model": "an encoder-decoder",
    "reward_model": "a sequence classifier",
}

# A config may name an attention kernel on the Hub, which `transformers` would download and run. So
# models are opened with the library's eager attention. Pickled weights can run code, too.
_SAFE = {"attn_implementation": "eager", "use_safetensors": True}


def open_model(source: Source, kind: str) -> PreTrainedModel:
    """Open a complete published model, in float32 and in eval mode.

    The attribute `stored_dtype` of the result is the dtype in which it was published; bfloat16 for
    a GGUF file.

    Args:
        source: a folder, a GGUF file, or a repository at a commit.
        kind: model, seq2seq_model or reward_model.

    Raises:
        ValueError: one line that says what is wrong with it.
    """
    if source.root is not None and is_gpt1_release(source.root):
        released = gpt1_from_release(source.root)
        released.stored_dtype = released.dtype
        return released.eval()
    gguf = {"gguf_file": source.gguf} if source.gguf else {}
    config = _open_config(source, gguf)
    _require_fitting(config, kind)
    if not gguf:
        _require_full_weights(config)
    try:
        dtype = torch.float32 if gguf else _dtype_of_files(source) or "auto"
        given = {**source.pretrained, **gguf, "dtype": dtype, **_SAFE}
        if kind == "reward_model":
            model, info = open_classifier(config, **given)
        else:
            auto = AutoModelForCausalLM if kind == "model" else AutoModelForSeq2SeqLM
            # Pass the config: if it is read again, its attention setting overrides `_SAFE`.
            given |= {} if gguf else {"config": config}
            model, info = auto.from_pretrained(**given, output_loading_info=True)
    except Exception as error:  # for broken files, libraries raise dozens of exception types
        if is_short(error):
            raise
        raise ValueError(_one_line(error, source.gguf)) from None
    _require_whole(model, info, kind)
    if gguf:
        return _dequantised(model)
    _keep_apart(model)
    model.stored_dtype = model.dtype
    return model.float().eval()


def open_adapted(adapter: Source, base: Source, kind: str) -> PreTrainedModel:
    """Open a published LoRA adapter merged into its base.

    The result is a whole model in float32 and in eval mode.

    Args:
        adapter: a folder as `peft` saves it, or a repository at a commit.
        base: as for `open_model`. For a reward model, it may be a language model; then the adapter
            provides the head.
        kind: the kind of the resulting model.

    Raises:
        ValueError: one line that says what is wrong with the adapter or the base.
    """
    model = _open_base(base, kind)
    name = str(adapter.pretrained["pretrained_model_name_or_path"])
    where = {} if adapter.root is not None else {"revision": adapter.pretrained["revision"]}
    try:
        # Without this file, `peft` would unpickle another one.
        cached_file(name, ADAPTER_WEIGHTS, **where)
        config = peft.PeftConfig.from_pretrained(name, **where)
        weights = peft.load_peft_weights(name, device="cpu", **where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on GPT-2's transposed matrices
            adapted = peft.get_peft_model(model, config)
            needed = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
            # `peft` also saves whole embeddings if they are adapted or the vocabulary has grown.
            allowed = peft.get_peft_model_state_dict(adapted, save_embedding_layers=True)
        _require_fitting_adapter(needed.keys(), allowed, weights)
        peft.set_peft_model_state_dict(adapted, weights)
        merged = adapted.merge_and_unload()
    except Exception as error:  # as in `open_model`
        if is_short(error):
            raise
        raise ValueError(f"the adapter: {_one_line(error)}") from None
    _require_whole(merged, {}, kind)
    own = cached_file(name, "config.json", **where, _raise_exceptions_for_missing_entries=False)
    if kind == "reward_model" and own is not None:
        setattr(
            merged.config, SHIFT, json.loads(Path(own).read_text(encoding="utf-8")).get(SHIFT, 0.0)
        )
    if config.trainable_token_indices is not None and hasattr(merged.config, DRAWN):
        delattr(merged.config, DRAWN)
    # In 16 bits, rounding would remove much of a small change.
    merged.stored_dtype = torch.float32
    return merged.float().requires_grad_(True).eval()


def _open_base(base: Source, kind: str) -> PreTrainedModel:
    """Open the base of an adapter.

    For a reward model on a language model, add a head that the adapter fills.
    """
    try:
        if kind != "reward_model":
            return open_model(base, kind)
        config = _open_config(base, {})
        if kind_of(config.architectures, config.is_encoder_decoder) != "model":
            return open_model(base, kind)
        config.num_labels = 1
        model, info = open_classifier(config, **base.pretrained, dtype=torch.float32, **_SAFE)
        info["missing_keys"] = {
            name for name in info["missing_keys"] if not name.startswith("score.")
        }
        info["unexpected_keys"] = {
            name for name in info["unexpected_keys"] if not name.startswith("lm_head.")
        }
        _require_whole(model, info, kind)
        return model
    except ValueError as error:
        raise ValueError(f"the adapter's base: {error}") from None


def _require_fitting_adapter(
    needed: Collection[str], allowed: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]
) -> None:
    """Raise `ValueError` if an adapter's weights do not match its config on this base.

    Args:
        needed: names of the required weights.
        allowed: all weights that the adapter may have.
        weights: the adapter's weights.
    """
    if missing := set(needed) - weights.keys():
        raise ValueError(f"missing weights: {_some(missing)}")
    if left := weights.keys() - allowed.keys():
        raise ValueError(f"weights that its base has no place for: {_some(left)}")
    for name, weight in weights.items():
        if weight.shape != allowed[name].shape:
            raise ValueError(
                f"{name} is {list(weight.shape)}, and on this base it is"
                f" {list(allowed[name].shape)}: it was trained on another model"
            )


def _open_config(source: Source, gguf: dict[str, str]) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(**source.pretrained, **gguf)
    except Exception as error:  # as in `open_model`
        if is_short(error):
            raise
        raise ValueError(_one_line(error, source.gguf)) from None
    chosen = getattr(config, "transformers_weights", None)
    # `transformers` would unpickle any other file.
    if chosen is not None and not is_weights_name(chosen):
        raise ValueError(
            f"config.json: transformers_weights: expected {WEIGHTS_NAME}, got {str(chosen)[:60]!r}"
        )
    if isinstance(pad := getattr(config, "pad_token_id", None), int) and pad < 0:
        # Some configs write -1 for no token; torch would index the last embedding row.
        config.pad_token_id = None
    return config


def _require_fitting(config: PreTrainedConfig, kind: str) -> None:
    """Raise `ValueError` if the config is that of another kind of model.

    Also raise it for a reward model with more or less than one label.
    """
    found = kind_of(getattr(config, "architectures", None), config.is_encoder_decoder)
    if found != kind:
        raise ValueError(f"it is {_NAMES[found]}, not {_NAMES[kind]}; give kind={found}")
    if kind == "reward_model" and config.num_labels != 1:
        raise ValueError(f"it has {config.num_labels} labels, and a reward model has one")


def _require_full_weights(config: PreTrainedConfig) -> None:
    """Raise `ValueError` if the weights are quantised, because they cannot be trained."""
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        method = (
            quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        )
        raise ValueError(
            f"its weights are quantised ({method}), which cannot be trained on; take the full"
            " weights, or a GGUF file"
        )


def _require_whole(model: PreTrainedModel, info: dict[str, Any], kind: str) -> None:
    """Raise `ValueError` if checkpoint and model do not match, or a weight is NaN or infinite."""
    for name, said in (
        ("missing_keys", "missing weights:"),
        ("unexpected_keys", "unexpected weights:"),
        ("mismatched_keys", "its weights have other sizes than its config says:"),
    ):
        if info.get(name):
            hint = (
                "; a reward model has ...ForSequenceClassification in the architectures of its"
                " config.json"
            )
            hint = hint if kind == "model" and _has_score(info) else ""
            raise ValueError(f"{said} {_some(info[name])}{hint}")
    if info.get("error_msgs"):
        raise ValueError(_one_line(info["error_msgs"][0]))
    broken = [
        name for name, weight in model.state_dict().items() if not torch.isfinite(weight).all()
    ]
    if broken:
        raise ValueError(f"its weights hold NaN or infinity: {_some(broken)}")


def _dtype_of_files(source: Source) -> torch.dtype | None:
    """Return the widest floating dtype of the weights in a local folder.

    The config may name a narrower dtype; loading would then round the weights.
    """
    widths = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    found = set()
    for path in weight_files(source.files):
        with safe_open(path, "pt") as file:
            found |= {widths.get(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    found.discard(None)
    if len(found) > 1:  # bfloat16 and float16 cannot represent each other
        return torch.float32
    return found.pop() if found else None


def _keep_apart(model: PreTrainedModel) -> None:
    """Set `tie_word_embeddings` to False if the head is not tied to the embeddings.

    Otherwise, growing the vocabulary would tie them.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        for config in (model.config, model.config.get_text_config(decoder=True)):
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False


def _has_score(info: dict[str, Any]) -> bool:
    return any(
        "score" in str(name) or "classifier" in str(name)
        for name in info.get("unexpected_keys") or ()
    )


def _some(names: Collection[Any]) -> str:
    """Return the first three of the names, and the number of others."""
    every = sorted(name if isinstance(name, str) else str(name[0]) for name in names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return ", ".join(every[:3]) + more


def _dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """Return a plain model with the weights of a GGUF file.

    The model as opened counts as quantised and cannot be saved.
    """
    config = type(model.config)(
        **{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    plain = type(model)._from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    # Quantised weights have less precision than bfloat16; float32 would only double the size.
    plain.stored_dtype = torch.bfloat16
    return plain.eval()


def _one_line(error: Exception | str, gguf: str | None = None) -> str:
    """Convert a library's error to one line.

    Known errors get align's own text, without the library's hints on how to disable its checks.
    """
    text = " ".join(str(error).split())
    if gguf:
        return (
            "its GGUF file is cut or damaged, or of an architecture that transformers cannot read"
            f" ({text[:200]})"
        )
    if "custom code" in text or "trust_remote_code" in text:
        return (
            "it needs code of its own repository, and align runs no such code (trust_remote_code"
            " stays off)"
        )
    if "does not recognize this architecture" in text:
        named = text.partition("model type `")[2].partition("`")[0]
        return f"its config.json names the model type {named}, which transformers does not know"
    if "no file named model.safetensors" in text:
        return "it holds no weights (model.safetensors)"
    if type(error).__name__ == "SafetensorError":
        return f"a file of weights is cut or damaged ({text})"
    if "ignore_mismatched_sizes" in text:
        return "its weights have other sizes than its config says"
    # Name the type, because the text of a KeyError is only the key.
    if not isinstance(error, str | OSError | ValueError | ConfigError):
        return f"its files are not what transformers expects ({type(error).__name__}: {text[:300]})"
    return text[:300]
