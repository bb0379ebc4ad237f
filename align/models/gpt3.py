"""GPT-3: GPT-2 with alternating layers of full attention and banded attention (section 2.1).

The paper does not say which layers are banded and how wide the band is, so both are options of the
config. align registers this architecture with `transformers` and opens its folders everywhere.
`transformers` alone refuses the `model_type`. With GPT-2's type, it would open the folder, but
compute dense attention in every layer.
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

_MASKS = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
}


class Gpt3Config(GPT2Config):
    """GPT-2's config and two options.

    Attributes:
        layer_types: "full_attention" or "sliding_attention" for each layer; None: alternating,
            beginning with the former.
        sliding_window: tokens that a token of a banded layer sees, itself included. The paper gives
            no value; 256 is align's choice.

    Raises:
        ConfigError: `layer_types` has the wrong length or an unknown entry, or the window is less
            than 1.
    """

    model_type = "gpt3"

    layer_types: list[str] | None = None
    sliding_window: int = 256

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.layer_types is None:
            self.layer_types = [list(_MASKS)[layer % 2] for layer in range(self.n_layer)]
        if len(self.layer_types) != self.n_layer or not all(
            kind in _MASKS for kind in self.layer_types
        ):
            raise ConfigError(
                f"gpt3: layer_types: expected {self.n_layer} of {' or '.join(_MASKS)}, one a layer,"
                f" got {self.layer_types!r}"
            )
        window = self.sliding_window
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise ConfigError(
                f"gpt3: sliding_window: expected a number of tokens from 1 up, got {window!r}"
            )


class _Named:
    """The settings that all three models share."""

    config_class = Gpt3Config

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False.

        Otherwise, the library skips GPT-2's scaling of the initial weights of residual projections.
        """
        return False


class Gpt3Model(_Named, GPT2Model):
    """A `GPT2Model` that gives each layer the mask of its type."""

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
        """Run the trunk, like `GPT2Model.forward` without an encoder and without token types.

        `attention_mask` may be a dict of masks by layer type.
        """
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
                hidden,
                past_key_values,
                masks[kind],
                use_cache=use_cache,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.ln_f(hidden),
            past_key_values=past_key_values if use_cache else None,
        )


class Gpt3LMHeadModel(_Named, GPT2LMHeadModel):
    """A `GPT2LMHeadModel` on a `Gpt3Model`."""

    def __init__(self, config: Gpt3Config):
        super(GPT2LMHeadModel, self).__init__(config)
        self.transformer = Gpt3Model(config)
        self.lm_head = torch.nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()


class Gpt3ForSequenceClassification(_Named, GPT2ForSequenceClassification):
    """A `GPT2ForSequenceClassification` on a `Gpt3Model`."""

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
