"""The attention cache of a sampling engine, with slots that are filled more than once.

All rows write the same column next. A new prompt is placed so that it ends before that column.
Earlier columns in its row are masked, so that `transformers` makes its masks (causal, sliding) as
for any left-padded batch. Positions count from the prompt's first token. Keys and values are in
buffers that are allocated once, so adding a token copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from align.errors import ConfigError
from align.models.load import context_of
from align.models.packed import head_is_plain
from align.models.padded import is_padded

# Kinds of layers that need only keys and values to continue.
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


@dataclass
class _Window:
    """The part of the buffers that is in use."""

    rows: int
    begin: int  # the first column that any row may see
    end: int  # the next column


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, [rows, heads, columns, width]."""

    def __init__(self, window: _Window, columns: int):
        super().__init__()
        self._window, self._columns = window, columns

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros, because new memory may hold NaN, and a masked NaN times 0 is still NaN.
        shape = (self._window.rows, key_states.shape[1], self._columns)
        # CPUs read a slice of a float32 buffer in place, but first copy a slice of a bfloat16
        # buffer, which is 4x slower.
        dtype = torch.float32 if key_states.device.type == "cpu" else key_states.dtype
        self.keys = key_states.new_zeros(*shape, key_states.shape[3], dtype=dtype)
        self.values = value_states.new_zeros(*shape, value_states.shape[3], dtype=dtype)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, begin, end = self._window.rows, self._window.begin, self._window.end
        after = end + key_states.shape[2]
        self.keys[:rows, :, end:after], self.values[:rows, :, end:after] = key_states, value_states
        return self.keys[:rows, :, begin:after], self.values[:rows, :, begin:after]

    def get_seq_length(self) -> int:
        return self._window.end - self._window.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


def kinds_with_state(model: PreTrainedModel) -> list[str]:
    """Return the kinds of the model's layers with a state, which this cache does not hold."""
    decoder = model.config.get_text_config(decoder=True)
    kinds = sorted(set(getattr(decoder, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    return kinds or (["recurrent"] if model._is_stateful else [])


def can_sample_in_bf16(model: PreTrainedModel) -> bool:
    """Return whether all code that reads the cache accepts mixed precision.

    The cache is float32 on CPUs. Two kinds of library code reject the mix: a model's own attention,
    and the projection that makes keys and values in latent attention.
    """
    return not is_padded(model) and not hasattr(
        model.config.get_text_config(decoder=True), "kv_lora_rank"
    )


class Slots:
    """A model with its cache, for a number of responses at once.

    Args:
        count: slots.
        longest: tokens of the longest prompt to come.
        room: tokens that may be added before columns that no row sees are cleared; at least a
            response's largest length.
    """

    def __init__(
        self, model: PreTrainedModel, count: int, longest: int, room: int, pad_token_id: int
    ):
        self._model, self._longest, self._pad_token_id = model, longest, pad_token_id
        # Some of these models have a table of masks or slopes as wide as their context.
        if is_padded(model):
            room = min(room, max(1, context_of(model.config) - longest))
        self._columns = longest + room
        self._window = _Window(count, longest, longest)
        decoder = model.config.get_text_config(decoder=True)
        if kinds := kinds_with_state(model):
            raise ValueError(
                f"{decoder.model_type}: expected attention in every layer, got {', '.join(kinds)}"
            )
        self._last_position = context_of(model.config) - 1
        layers = [_Layer(self._window, self._columns) for _ in range(decoder.num_hidden_layers)]
        self._cache = Cache(layers=layers)
        # 1 at the tokens of a row, else 0.
        self._seen = torch.zeros(count, self._columns, dtype=torch.long, device=model.device)
        # The position of the next token.
        self._position = torch.zeros(count, dtype=torch.long, device=model.device)

    def admit(self, rows: torch.Tensor, prompts: Sequence[list[int]]) -> torch.Tensor:
        """Put prompts into free slots, and return the logits [len(rows), V] after each.

        A prompt that several slots get is computed once.
        """
        device, width = rows.device, max(map(len, prompts))
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        places = {prompt: i for i, prompt in enumerate(distinct)}
        which = torch.tensor([places[tuple(prompt)] for prompt in prompts], device=device)
        if self._window.end + 1 > self._columns:
            self._move()
        pad = self._pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(p)) + [*p] for p in distinct], device=device)
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in distinct], device=device
        )
        cache = DynamicCache()
        given = {
            "input_ids": input_ids,
            "attention_mask": mask,
            # Without position ids, padding would shift learned positions.
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "past_key_values": cache,
            "use_cache": True,
        }
        if head_is_plain(self._model):
            # The library's slice of the last tokens is not contiguous, and PyTorch would then copy
            # the head for each row.
            hidden = self._model.base_model(**given).last_hidden_state[:, -1].contiguous()
            logits = self._model.get_output_embeddings()(hidden)
        else:
            logits = self._model(**given, logits_to_keep=1).logits[:, -1]
        window = self._window
        begin = window.end - width
        window.begin = min(window.begin, begin)
        self._seen[rows] = 0
        self._seen[rows, begin : window.end] = mask[which]
        self._position[rows] = mask.sum(1)[which]
        if not cache.layers:
            raise ConfigError(
                f"{self._model.config.model_type}: it fills no attention cache, and align samples"
                " from one"
            )
        # In some models the last layers share the cache of earlier ones, hence `strict=False`.
        for ours, new in zip(self._cache.layers, cache.layers, strict=False):
            if not ours.is_initialized:
                ours.lazy_initialization(new.keys, new.values)
            ours.keys[rows, :, begin : window.end] = new.keys[which].to(ours.keys.dtype)
            ours.values[rows, :, begin : window.end] = new.values[which].to(ours.values.dtype)
        return logits[which]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add a token to every row, even if free, and return the logits [rows, V] after it."""
        window = self._window
        if window.end + 1 > self._columns:
            self._move()
        self._seen[: window.rows, window.end] = 1
        logits = self._model(
            input_ids=tokens[:, None],
            attention_mask=self._seen[: window.rows, window.begin : window.end + 1],
            # Free rows keep counting, so their positions may pass the end of the context.
            position_ids=self._position[: window.rows, None].clamp(max=self._last_position),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        window.end += 1
        self._position[: window.rows] += 1
        return logits

    def release(self, rows: torch.Tensor) -> None:
        """Free slots: their tokens are masked from now on."""
        self._seen[rows] = 0

    def give_up(self, count: int, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Drop all slots but the first `count`.

        Before that, `rows` move into the free slots `places` among the first `count`.
        """
        window = self._window
        used = slice(window.begin, window.end)
        for layer in self._filled():
            layer.keys[places, :, used] = layer.keys[rows, :, used]
            layer.values[places, :, used] = layer.values[rows, :, used]
        self._seen[places], self._position[places] = self._seen[rows], self._position[rows]
        window.rows = count

    def _filled(self) -> list[CacheLayerMixin]:
        return [layer for layer in self._cache.layers if layer.is_initialized]

    def _move(self) -> None:
        """Move the columns that rows still see towards the front of the buffers.

        The next column is then at least `longest`, so that the longest prompt fits before it.
        """
        window = self._window
        seen = self._seen[: window.rows].any(0).nonzero()
        first = int(seen[0]) if len(seen) else window.end  # no column, if every slot is free
        length = window.end - first
        begin = max(0, self._longest - length)
        old, new = slice(first, window.end), slice(begin, begin + length)
        for layer in self._filled():
            layer.keys[:, :, new] = layer.keys[:, :, old].clone()
            layer.values[:, :, new] = layer.values[:, :, old].clone()
        self._seen[:, new] = self._seen[:, old].clone()
        self._seen[:, new.stop :] = 0
        self._seen[:, : new.start] = 0
        window.begin, window.end = new.start, new.stop
