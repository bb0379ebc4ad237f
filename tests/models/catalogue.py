"""Every architecture that the tests and the benchmark try, as a tiny model with random weights."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import align.models.load  # noqa: F401  it registers align's own architectures

VOCABULARY = 280  # entries, as `tiny_models.tiny_tokenizer` has
CONTEXT = 120  # tokens; no power of two, so that padding to a round number would leave it
WINDOW = 8  # tokens a sliding window has, so that a short sequence holds three
SPREAD = 0.2  # deviation of the weights: with the usual 0.02 a wrong mask would hardly show

# Sizes by the names that configs give them; each config takes those that it has.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "sliding_window": WINDOW,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
_DROPOUTS = ("dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "embd_pdrop", "attn_pdrop")
_DROPOUTS += ("resid_pdrop", "resid_dropout", "embed_dropout", "embedding_dropout", "layerdrop", "attn_dropout")
_DROPOUTS += (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout_prob",
    "resid_dropout_p",
    "residual_dropout",
)

_LONG = {"rope_type": "longrope", "long_factor": [4.0] * 4, "short_factor": [1.0] * 4, "rope_theta": 10000.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}

# name -> fields that differ from the sizes above; `model_type` where the name is not the model type.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # plain, grouped and multi-query attention
    "gpt2": {},
    "gpt3": {},
    "openai-gpt": {},
    "gpt_neox": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "bloom": {},
    "mpt": {"max_seq_len": CONTEXT},
    "falcon": {},
    "falcon_alibi": {"model_type": "falcon", "alibi": True, "new_decoder_architecture": False, "multi_query": False},
    "xglm": {"ffn_dim": 48},
    "biogpt": {},
    "ctrl": {"dff": 48},
    "gpt_neox_japanese": {},
    "persimmon": {},
    "stablelm": {},
    "starcoder2": {},
    "phi": {},
    "phi3": {"original_max_position_embeddings": CONTEXT},
    "phi3_longrope": {"model_type": "phi3", "original_max_position_embeddings": 32, "rope_parameters": _LONG},
    "llama": {},
    "llama_dynamic": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    },
    "llama_yarn": {"model_type": "llama", "rope_parameters": _YARN},
    "llama3": {"model_type": "llama", "rope_parameters": _LLAMA3},
    "mistral": {},
    "ministral": {},
    "ministral3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {"logits_scaling": 2.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "olmo": {"clip_qkv": 1.0},
    "olmo2": {},
    "olmo3": {},
    "ernie4_5": {},
    "apertus": {},
    "bitnet": {},
    "nemotron": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "glm": {},
    "glm4": {},
    "cwm": {},
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    "granite_swa": {},
    "hyperclovax": {},
    "iquestcoder": {},
    "diffllama": {},
    "doge": {},
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"]},
    "hunyuan_v1_dense": {},
    "helium": {},
    "arcee": {},
    "seed_oss": {},
    "internlm3": {},
    "vaultgemma": {"query_pre_attn_scalar": 8},
    "nanochat": {},
    "jais2": {},
    "modernbert-decoder": {"local_attention": 2 * WINDOW, "global_attn_every_n_layers": 2},
    "moshi": {},
    # latent attention
    "deepseek_v2": _DEEPSEEK | {"topk_method": "greedy"},
    "deepseek_v3": _DEEPSEEK,
    "minicpm3": _DEEPSEEK,
    "youtu": _DEEPSEEK,
    "glm4_moe_lite": _DEEPSEEK,
    # mixtures of experts
    "mixtral": {},
    "qwen2_moe": {"sliding_window": 0, "use_sliding_window": False},
    "qwen3_moe": {},
    "phimoe": {},
    "granitemoe": {},
    "granitemoeshared": {"shared_intermediate_size": 16},
    "olmoe": {},
    "flex_olmo": {},
    "gpt_oss": {},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "hunyuan_v1_moe": {"moe_topk": 2},
    "glm4_moe": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "minimax": {"layer_types": ["full_attention", "full_attention"]},
    "minimax_linear": {"model_type": "minimax", "layer_types": ["linear_attention", "full_attention"]},
    "minimax_m2": {},
    "exaone_moe": {},
    "cohere2_moe": {},
    "afmoe": {},
    "solar_open": {},
    "hy_v3": {},
    "mimo_v2_flash": {},
    "laguna": {},
    "mellum": {},
    "llama4_text": {"intermediate_size_mlp": 48, "attention_chunk_size": WINDOW, "no_rope_layers": [1, 0]},
    "jetmoe": {"kv_channels": 8},
    # layers that keep a state
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "falcon_mamba": {},
    "rwkv": {"context_length": CONTEXT},
    "jamba": {"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 8},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": WINDOW, "block_types": ["recurrent", "attention"]},
    "zamba2": {
        "layer_types": ["mamba", "hybrid"],
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
    },
    "qwen3_next": {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {
        "shared_intermediate_size": 16,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "xlstm": {},
    # shells around a language model, and models of another kind
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", "query_pre_attn_scalar": 8},
        "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    },
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma3n_shared": {
        "model_type": "gemma3n_text",
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [48] * 4,
    },
    "xlnet": {"n_layer": 2, "n_head": 4, "d_model": 32, "d_inner": 48},
    "bert-generation": {"is_decoder": True},
    "bert": {},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "local"]},
}

# name -> what its refusal says.
_STATE = "keep a state, and align samples from attention caches only"
REFUSED: dict[str, str] = {
    "minimax": "cache of its own",
    "minimax_linear": f"layers of kind linear_attention {_STATE}",
    "llama4_text": "transformers gives no trunk of it apart from its head",
    "mamba": _STATE,
    "mamba2": _STATE,
    "falcon_mamba": _STATE,
    "rwkv": f"layers of kind recurrent {_STATE}",
    "jamba": _STATE,
    "bamba": _STATE,
    "falcon_h1": f"layers of kind hybrid {_STATE}",
    "recurrent_gemma": _STATE,
    "zamba2": _STATE,
    "qwen3_next": _STATE,
    "lfm2": f"layers of kind conv {_STATE}",
    "granitemoehybrid": _STATE,
    "xlstm": _STATE,
    "xlnet": "not causal: later tokens change earlier predictions",
    "bert": "not causal: later tokens change earlier predictions",
    "reformer": "it fails in transformers",
}


def tiny_config(name: str, **changes: Any) -> PreTrainedConfig:
    """Two layers, 32 wide."""
    own = dict(ARCHITECTURES[name])
    kind = own.pop("model_type", name)
    cls = CONFIG_MAPPING[kind]
    if "text_config" in own:
        inner = dict(own["text_config"])
        inner_cls = CONFIG_MAPPING[inner.pop("model_type")]
        own["text_config"] = inner_cls(**_known(inner_cls) | inner)
        return cls(**own, **changes)
    return cls(**_known(cls) | own | changes)


def _known(cls: Any) -> dict[str, Any]:
    """The sizes that this config has, by its own names, and no dropout."""
    names = {f.name for f in fields(cls)}
    aliases = cls.attribute_map
    sizes = {aliases.get(name, name): size for name, size in _SIZES.items() if aliases.get(name, name) in names}
    return sizes | {name: 0.0 for name in _DROPOUTS if name in names}


def tiny(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """The model, in eval mode, its weights drawn so wide that each part of it shows in the logits."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(name, **changes), attn_implementation="eager").eval()
    widen(model, seed)
    return model


@torch.no_grad()
def widen(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw matrices anew; move biases, norms and whatever else is a vector away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(SPREAD * noise)
        else:
            parameter.add_(0.1 * noise)
