"""Models small enough for a test, of any family, and what `transformers` itself makes of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from align.configs import ModelConfig
from align.models.build import build_model
from align.text.packing import pack
from align.text.tokenizers import train_tokenizer

END, FIRST = 0, 1  # ids of `byte_tokenizer`: the end-of-text token, then one for each byte


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the mat and the dog ran home"] * 3, 280)


def tiny_model(architecture: str, context: int = 64, spread: float = 0.3) -> PreTrainedModel:
    """Two layers, 32 wide, for `tiny_tokenizer`; `spread` is the deviation of its weights."""
    cfg = ModelConfig(
        architecture=architecture,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        context_length=context,
        dropout=0.0,
        initializer_range=spread,
    )
    return build_model(cfg, tiny_tokenizer()).eval()


def tiny_mixture() -> PreTrainedModel:
    """Two layers, 32 wide, the second with four experts whose matrices lie in one tensor."""
    config = Glm4MoeConfig(
        vocab_size=280,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return Glm4MoeForCausalLM(config).eval()


def written_by_transformers(model: PreTrainedModel, prompt: list[int], most: int, eos: int, pad: int) -> list[int]:
    """What the library's own `generate` writes greedily."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return out[0, len(prompt) :].tolist()


def sentinel_tokenizer(num_sentinels: int = 100) -> PreTrainedTokenizerFast:
    """`tiny_tokenizer` with T5's sentinels: <extra_id_0> is the last entry of the vocabulary, the others go down."""
    tokenizer = tiny_tokenizer()
    names = [f"<extra_id_{i}>" for i in range(num_sentinels)]
    tokenizer.add_special_tokens({"additional_special_tokens": names[::-1]}, replace_extra_special_tokens=False)
    return tokenizer


def tiny_t5(tokenizer: PreTrainedTokenizerFast, layers: int = 2) -> PreTrainedModel:
    """An encoder and a decoder, 32 wide."""
    cfg = ModelConfig(
        architecture="t5", hidden_size=32, num_layers=layers, num_heads=4, dropout=0.0, initializer_range=1.0
    )
    return build_model(cfg, tokenizer).eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that every length can be told by looking."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": END, **{letter: FIRST + i for i, letter in enumerate(letters)}}
    built = Tokenizer(models.BPE(vocabulary, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<end>")


def sequences_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Random tokens of `tiny_tokenizer`, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 260, (n,), generator=generator).tolist() for n in lengths]


def packed_logits(model: PreTrainedModel, sequences: Sequence[list[int]]) -> torch.Tensor:
    """Of sequences one behind the other in a packed row."""
    packed = pack(sequences)
    logits = model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits[0]
    return logits[: sum(map(len, sequences))]


def alone_logits(model: PreTrainedModel, sequences: Sequence[list[int]]) -> torch.Tensor:
    """Of each sequence by itself."""
    return torch.cat([model(input_ids=torch.tensor([s]), use_cache=False).logits[0] for s in sequences])
