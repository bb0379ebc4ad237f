"""GPT-1 with align's attention: packed rows with positions per sequence, and a cache for sampling.

`transformers` has this architecture as openai-gpt. Its attention supports neither packed rows nor a
cache. The classes here have the same config, weight names, weight shapes and outputs. They replace
the library's classes when this module is imported. A folder that they saved opens with the
library's classes, and the other way round.

A block applies its norms after the sums: n = LN(x + attention(x)); LN(n + mlp(n)). No norm follows
the last block [openai/finetune-transformer-lm, train.py].

Differs from GPT-1 in dropout on embeddings. Here, as in `transformers`, it applies to the sum of
token and position embeddings. GPT-1's code applies it to the embedding matrix, so that the tied
head lacks the dropped entries, too.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Cache,
    DynamicCache,
    GenerationMixin,
    OpenAIGPTConfig,
    initialization,
)
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.openai import modeling_openai as library
from transformers.pytorch_utils import Conv1D

# The config's name of each activation, and the same function in one kernel. GPT-1's GELU is the
# tanh form.
_ACTIVATIONS = {"gelu": "gelu_pytorch_tanh", "swish": "silu"}


class _Attention(torch.nn.Module):
    def __init__(self, config: OpenAIGPTConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.head_dim = config.n_embd // config.n_head
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.attention_dropout = config.attn_pdrop
        self.resid_dropout = torch.nn.Dropout(config.resid_pdrop)

    def forward(self, x: torch.Tensor, mask: Any, cache: Cache | None) -> torch.Tensor:
        rows, length, width = x.shape
        parts = self.c_attn(x).split(width, dim=2)
        query, key, value = (p.view(rows, length, -1, self.head_dim).transpose(1, 2) for p in parts)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = AttentionInterface().get_interface(self.config._attn_implementation, _eager)
        dropout = self.attention_dropout if self.training else 0.0
        out, _ = attend(self, query, key, value, mask, dropout=dropout, scaling=self.head_dim**-0.5)
        return self.resid_dropout(self.c_proj(out.reshape(rows, length, width)))


def _eager(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.matmul(query, key.mT) * scaling
    probs = (scores if mask is None else scores + mask).softmax(-1)
    dropped = torch.nn.functional.dropout(probs, dropout, module.training)
    return torch.matmul(dropped, value).transpose(1, 2), probs


class _Block(GradientCheckpointingLayer):
    def __init__(self, config: OpenAIGPTConfig, layer_idx: int):
        super().__init__()
        self.attn = _Attention(config, layer_idx)
        self.ln_1 = torch.nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = library.MLP(4 * config.n_embd, config)
        self.mlp.act = ACT2FN[_ACTIVATIONS.get(config.afn, config.afn)]
        self.ln_2 = torch.nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, x: torch.Tensor, mask: Any, cache: Cache | None) -> torch.Tensor:
        n = self.ln_1(x + self.attn(x, mask, cache))
        return self.ln_2(n + self.mlp(n))


class _PreTrained(library.OpenAIGPTPreTrainedModel):
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _no_split_modules = ("_Block",)
    _skip_keys_device_placement = ("past_key_values",)

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        """Draw weights from N(0, `initializer_range`) and set biases to 0.

        The library's initialisation of linear layers ignores `initializer_range`.
        """
        super()._init_weights(module)
        if isinstance(module, Conv1D):
            initialization.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            initialization.zeros_(module.bias)


class OpenAIGPTModel(_PreTrained):
    """The trunk, without a head.

    Classes have the library's names, because a saved config.json contains them.
    """

    def __init__(self, config: OpenAIGPTConfig):
        super().__init__(config)
        self.tokens_embed = torch.nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embed = torch.nn.Embedding(config.n_positions, config.n_embd)
        self.drop = torch.nn.Dropout(config.embd_pdrop)
        self.h = torch.nn.ModuleList([_Block(config, i) for i in range(config.n_layer)])
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.tokens_embed

    def set_input_embeddings(self, new_embeddings: torch.nn.Embedding) -> None:
        self.tokens_embed = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """Run the trunk, like `GPT2Model.forward` of `transformers`.

        Without a mask, a row whose `position_ids` restart is treated as several sequences.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.tokens_embed(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        x = x + self.positions_embed(position_ids)
        if token_type_ids is not None:
            x = x + self.tokens_embed(token_type_ids)
        x = self.drop(x)
        for block in self.h:
            x = block(x, mask, past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=x, past_key_values=past_key_values if use_cache else None
        )


class OpenAIGPTLMHeadModel(_PreTrained, GenerationMixin):
    """The language model; its head is the token embedding, without a bias."""

    _tied_weights_keys = {"lm_head.weight": "transformer.tokens_embed.weight"}  # noqa: RUF012

    def __init__(self, config: OpenAIGPTConfig):
        super().__init__(config)
        self.transformer = OpenAIGPTModel(config)
        self.lm_head = torch.nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model.

        `labels` are shifted inside; -100 is ignored. Other arguments are passed to the trunk.
        """
        of_loss = {
            name: kwargs.pop(name)
            for name in ("num_items_in_batch", "shift_labels")
            if name in kwargs
        }
        out = self.transformer(input_ids, **kwargs)
        logits = self.lm_head(slice_logits_to_keep(out.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **of_loss)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)


class OpenAIGPTForSequenceClassification(GenericForSequenceClassification, _PreTrained):
    """A linear head without a bias, read at the last token that is not padding."""

    base_model_prefix = "transformer"


for _auto, _class in (
    (AutoModel, OpenAIGPTModel),
    (AutoModelForCausalLM, OpenAIGPTLMHeadModel),
    (AutoModelForSequenceClassification, OpenAIGPTForSequenceClassification),
):
    _auto.register(OpenAIGPTConfig, _class, exist_ok=True)
