"""GPT-3: GPT-2 whose layers see, in turn, all that precedes a token and only a band of it (section 2.1).

Which layers are banded and how wide the band is was not published; both are options of the config. A folder of this
kind is opened by all of align, which registers it with `transformers`; `transformers` alone refuses its `model_type`,
where it would compute dense attention in every layer if the type were GPT-2's.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from align.errors import ConfigError

_MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


class Gpt3Config(GPT2Config):
    """GPT-2's config and two options.

    Attributes:
        layer_types: "full_attention" or "sliding_attention", one a layer; None: in turn, beginning with the former.
        sliding_window: tokens that a token of a banded layer sees, itself included [ours: 256; the paper has none].

    Raises:
        ConfigError: another number or kind of layers, or a window that holds no token.
    """

    model_type = "gpt3"

    layer_types: list[str] | None = None
    sliding_window: int = 256

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.layer_types is None:
            self.layer_types = [list(_MASKS)[layer % 2] for layer in range(self.n_layer)]
        if len(self.layer_types) != self.n_layer or not all(kind in _MASKS for kind in self.layer_types):
            raise ConfigError(
                f"gpt3: layer_types: expected {self.n_layer} of {' or '.join(_MASKS)}, one a layer, "
                f"got {self.layer_types!r}"
            )
        window = self.sliding_window
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise ConfigError(f"gpt3: sliding_window: expected a number of tokens from 1 up, got {window!r}")


class _Named:
    """What the three models share."""

    config_class = Gpt3Config

    @classmethod
    def is_custom_code(cls) -> bool:
        """False, or the library leaves out what GPT-2 does to the initial weights of residual projections."""
        return False


class Gpt3Model(_Named, GPT2Model):
    """`GPT2Model` that gives each layer the mask of its kind."""

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """As `GPT2Model`, without an encoder and token types; `attention_mask` may be a dict of masks by layer type."""
        for name in ("token_type_ids", "encoder_hidden_states", "encoder_attention_mask"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"gpt3: it takes no {name}")
        embedded = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            before = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = before + torch.arange(embedded.shape[1], device=embedded.device)[None]
        masks = attention_mask
        if not isinstance(masks, dict):
            given = (self.config, embedded, attention_mask, past_key_values, position_ids)
            masks = {kind: _MASKS[kind](*given) for kind in set(self.config.layer_types)}
        hidden = self.drop(embedded + self.wpe(position_ids))
        for block, kind in zip(self.h, self.config.layer_types, strict=True):
            hidden = block(
                hidden, past_key_values, masks[kind], use_cache=use_cache, position_ids=position_ids, **kwargs
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.ln_f(hidden), past_key_values=past_key_values if use_cache else None
        )


class Gpt3LMHeadModel(_Named, GPT2LMHeadModel):
    """`GPT2LMHeadModel` on a `Gpt3Model`."""

    def __init__(self, config: Gpt3Config):
        super(GPT2LMHeadModel, self).__init__(config)
        self.transformer = Gpt3Model(config)
        self.lm_head = torch.nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()


class Gpt3ForSequenceClassification(_Named, GPT2ForSequenceClassification):
    """`GPT2ForSequenceClassification` on a `Gpt3Model`."""

    def __init__(self, config: Gpt3Config):
        super(GPT2ForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.transformer = Gpt3Model(config)
        self.score = torch.nn.Linear(config.n_embd, config.num_labels, bias=False)
        self.post_init()


AutoConfig.register(Gpt3Config.model_type, Gpt3Config)
AutoModel.register(Gpt3Config, Gpt3Model)
AutoModelForCausalLM.register(Gpt3Config, Gpt3LMHeadModel)
AutoModelForSequenceClassification.register(Gpt3Config, Gpt3ForSequenceClassification)
