"""Parameters, training memory and floating-point operations of a model, by formula. No torch.

All results are computed from the list of the model's weights (`weights`) and their shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from align.configs import ModelConfig

_GPT3_WINDOW = 256  # tokens, the default in align/models/gpt3.py

# Options that change no weight's shape, in all architectures below.
_SHAPELESS = (
    *(
        "layer_norm_epsilon",
        "layer_norm_eps",
        "rms_norm_eps",
        "initializer_factor",
        "use_cache",
        "layer_types",
    ),
    *(
        "sliding_window",
        "activation_function",
        "hidden_act",
        "afn",
        "rope_parameters",
        "use_parallel_residual",
    ),
    *(
        "embd_pdrop",
        "attn_pdrop",
        "resid_pdrop",
        "attention_dropout",
        "hidden_dropout",
        "dropout_rate",
    ),
    *("relative_attention_max_distance", "scale_attn_weights"),
)


class Weight(NamedTuple):
    """One or more weights of the same shape.

    Attributes:
        place: tokens (the embedding), head, tied (both in one), positions (learned, or relative
            biases), matrix or vector.
        shape: of each weight.
        copies: the number of weights.
    """

    place: str
    shape: tuple[int, ...]
    copies: int

    @property
    def numbers(self) -> int:
        return self.copies * math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes needed for training, without activations, which grow with the batch."""

    # float32 weights and, with autocast, the bfloat16 copies that a backward pass needs.
    weights: int
    gradients: int  # float32
    optimizer: int  # float32

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def parameters(weights: Sequence[Weight]) -> int:
    return sum(weight.numbers for weight in weights)


def without_embeddings(weights: Sequence[Weight]) -> int:
    """Count parameters without tokens, positions and head [Kaplan et al. 2020, section 2.1]."""
    return sum(weight.numbers for weight in weights if weight.place in ("matrix", "vector"))


def memory(weights: Sequence[Weight], optimizer: str, precision: str) -> Memory:
    """Compute the memory that `align` needs for full training, in bytes.

    adamw keeps two numbers per parameter. muon keeps one for a matrix of the blocks, and two like
    adamw for all else. adafactor, without momentum, keeps one for each row and each column of a
    matrix and one for each number of a vector [Shazeer and Stern 2018, section 3].
    """
    state = {"adamw": _adamw, "muon": _muon, "adafactor": _adafactor}[optimizer]
    cast = (
        sum(w.numbers for w in weights if w.place in ("matrix", "head", "tied"))
        if precision == "bf16"
        else 0
    )
    number = parameters(weights)
    return Memory(
        weights=4 * number + 2 * cast,
        gradients=4 * number,
        optimizer=4 * sum(w.copies * state(w) for w in weights),
    )


def _adamw(weight: Weight) -> int:
    return 2 * math.prod(weight.shape)


def _muon(weight: Weight) -> int:
    return math.prod(weight.shape) * (1 if weight.place == "matrix" else 2)


def _adafactor(weight: Weight) -> int:
    return sum(weight.shape)


def training_flops(cfg: ModelConfig, weights: Sequence[Weight], length: int) -> int:
    """Count floating-point operations of forward and backward pass per token, in rows of `length`.

    6 N + 12 * layers * width of all heads * keys [Chowdhery et al. 2022 (PaLM), appendix B].

    N leaves out weights that are only looked up: positions, and the token embedding if the head has
    its own matrix. Keys are those of the whole row, not halved for the causal mask, as in PaLM. A
    layer with a window has at most that many keys. The formula counts every parameter for every
    token, which is not true for a mixture of experts.

    In an encoder-decoder, a token passes through one half: 3 N [GPT-3, appendix D]. A token of the
    decoder has the same number of keys again from the encoder.
    """
    numbers = sum(w.numbers for w in weights if w.place not in ("tokens", "positions"))
    width = cfg.num_heads * _head_width(cfg)
    if cfg.architecture == "t5":
        layers = (
            cfg.num_layers + 2 * (cfg.options.get("num_decoder_layers") or cfg.num_layers)
        ) / 2
        return round(3 * numbers + 12 * layers * width * length)
    return 6 * numbers + 12 * width * sum(_keys(cfg, length))


def _keys(cfg: ModelConfig, length: int) -> Iterator[int]:
    """Yield the number of keys that a token may see, for each layer."""
    window: int = cfg.options.get("sliding_window") or _GPT3_WINDOW
    alternating = [("full_attention", "sliding_attention")[i % 2] for i in range(cfg.num_layers)]
    kinds = cfg.options.get("layer_types") or (alternating if cfg.architecture == "gpt3" else [])
    for layer in range(cfg.num_layers):
        banded = layer < len(kinds) and kinds[layer] == "sliding_attention"
        yield min(length, window) if banded else length


def _head_width(cfg: ModelConfig) -> int:
    return (
        cfg.options.get("head_dim") or cfg.options.get("d_kv") or cfg.hidden_size // cfg.num_heads
    )


# -- the weights of each architecture ----------------------------------------------------------


def weights(cfg: ModelConfig, vocab_size: int) -> list[Weight] | None:
    """Return the weights of `cfg` with `vocab_size` entries; None if there is no formula for it."""
    if cfg.architecture not in _FORMULAS:
        return None
    formula, shaping = _FORMULAS[cfg.architecture]
    if set(cfg.options) - {*_SHAPELESS, *shaping}:
        return None
    return formula(cfg, vocab_size, cfg.options)


def _matrices(count: int, *shapes: tuple[int, int]) -> list[Weight]:
    return [Weight("matrix", shape, count) for shape in shapes]


def _vectors(count: int, *widths: int) -> list[Weight]:
    return [Weight("vector", (width,), count) for width in widths]


def _tables(cfg: ModelConfig, vocab_size: int, tied: bool) -> list[Weight]:
    shape = (vocab_size, cfg.hidden_size)
    return (
        [Weight("tied", shape, 1)]
        if tied
        else [Weight("tokens", shape, 1), Weight("head", shape, 1)]
    )


def _gpt2(cfg: ModelConfig, vocab_size: int, options: dict[str, Any]) -> list[Weight]:
    """Return the weights of GPT-1, GPT-2 and GPT-3.

    Matrices are [inputs, outputs], and each has a bias. Each block has two norms with gain and
    bias.
    """
    d, f, n = cfg.hidden_size, cfg.intermediate_size or 4 * cfg.hidden_size, cfg.num_layers
    return [
        *_tables(cfg, vocab_size, options.get("tie_word_embeddings", True)),
        Weight("positions", (cfg.context_length, d), 1),
        *_matrices(n, (d, 3 * d), (d, d), (d, f), (f, d)),
        *_vectors(n, 3 * d, d, f, d, *4 * (d,)),
        *(_vectors(2, d) if cfg.architecture != "openai-gpt" else []),  # GPT-1 has no final norm
    ]


def _gpt_neox(cfg: ModelConfig, vocab_size: int, options: dict[str, Any]) -> list[Weight]:
    d, f, n = cfg.hidden_size, cfg.intermediate_size or 4 * cfg.hidden_size, cfg.num_layers
    return [
        *_tables(cfg, vocab_size, options.get("tie_word_embeddings", True)),
        *_matrices(n, (3 * d, d), (d, d), (f, d), (d, f)),
        *(_vectors(n, 3 * d, d) if options.get("attention_bias", True) else []),
        *_vectors(n, f, d, *4 * (d,)),
        *_vectors(2, d),
    ]


def _llama(cfg: ModelConfig, vocab_size: int, options: dict[str, Any]) -> list[Weight]:
    d, f, n = cfg.hidden_size, cfg.intermediate_size or 4 * cfg.hidden_size, cfg.num_layers
    width = _head_width(cfg)
    q, kv = cfg.num_heads * width, options.get("num_key_value_heads", cfg.num_heads) * width
    return [
        *_tables(cfg, vocab_size, options.get("tie_word_embeddings", True)),
        *_matrices(n, (q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)),
        *(_vectors(n, q, kv, kv, d) if options.get("attention_bias") else []),
        *(_vectors(n, f, f, d) if options.get("mlp_bias") else []),
        *_vectors(2 * n + 1, d),
    ]


def _t5(cfg: ModelConfig, vocab_size: int, options: dict[str, Any]) -> list[Weight]:
    """Return the weights of T5.

    There are no biases, and norms have only a gain. Encoder and decoder have one table of relative
    position biases each.
    """
    d, f = cfg.hidden_size, cfg.intermediate_size or 4 * cfg.hidden_size
    inner = cfg.num_heads * _head_width(cfg)
    encoder, decoder = cfg.num_layers, options.get("num_decoder_layers") or cfg.num_layers
    gates = 2 if str(options.get("feed_forward_proj", "relu")).startswith("gated-") else 1
    attention = ((inner, d), (inner, d), (inner, d), (d, inner))
    return [
        *_tables(cfg, vocab_size, tied=True),
        Weight("positions", (options.get("relative_attention_num_buckets", 32), cfg.num_heads), 2),
        *_matrices(encoder + 2 * decoder, *attention),
        *_matrices(encoder + decoder, *gates * ((f, d),), (d, f)),
        *_vectors(2 * encoder + 3 * decoder + 2, d),
    ]


_Formula = Callable[[ModelConfig, int, dict[str, Any]], list[Weight]]

# The formula of each architecture, and the options that it reads.
_FORMULAS: dict[str, tuple[_Formula, tuple[str, ...]]] = {
    "openai-gpt": (_gpt2, ("tie_word_embeddings",)),
    "gpt2": (_gpt2, ("tie_word_embeddings",)),
    "gpt3": (_gpt2, ("tie_word_embeddings",)),
    "gpt_neox": (_gpt_neox, ("tie_word_embeddings", "attention_bias")),
    "llama": (
        _llama,
        ("tie_word_embeddings", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"),
    ),
    "t5": (
        _t5,
        (
            "tie_word_embeddings",
            "d_kv",
            "num_decoder_layers",
            "feed_forward_proj",
            "relative_attention_num_buckets",
        ),
    ),
}
