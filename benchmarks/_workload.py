"""The models that the PPO and sampling benchmarks run: a random GPT-2 that ends its text as often as asked."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from align.models.attention import ATTENTION

disable_progress_bar()
set_verbosity_error()

EOS, PAD = 0, 1
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# A chance of 3.3 % a token that a response ends: with at most 48 tokens, 24.2 of them on average.
MEAN_HALF = 0.033


def gpt2_config(layers: int, width: int, heads: int, vocabulary: int, context: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=context,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def language_model(config: GPT2Config, end_probability: float) -> torch.nn.Module:
    """Random weights; the end-of-text token has about this probability at every step (0: never)."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()
    odds = end_probability / (1 - end_probability) if end_probability else 1e-9
    with torch.no_grad():
        bias = model.transformer.ln_f.bias.normal_()
        wanted = math.log(odds * (config.vocab_size - 1))  # the other logits are near 0
        model.lm_head.weight[EOS] = wanted * bias / (bias @ bias)
    return model


def tokenizer_of(vocabulary: int, pad: str) -> PreTrainedTokenizerFast:
    """One word a token, "w7" for the seventh; `pad` may lie outside the model's vocabulary."""
    words = {"<eos>": EOS, "<pad>": PAD} | {f"w{i}": i for i in range(2, vocabulary)}
    words.setdefault(pad, vocabulary)
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token=pad)
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def save_workload(folder: Path, config: GPT2Config, end_probability: float, blind_reward: bool = False) -> None:
    """Below `folder`: policy, reward (0 everywhere where it is to be blind) and, for the peer, policy_peer.

    The peer takes the first padding token in a response for its end even where the policy sampled it, so its
    tokenizer has one that the model can not sample.
    """
    model = language_model(config, end_probability)
    for name, pad in (("policy", "<pad>"), ("policy_peer", "<outside>")):
        model.config.pad_token_id = PAD if name == "policy" else None
        model.save_pretrained(folder / name)
        tokenizer_of(config.vocab_size, pad).save_pretrained(folder / name)
    model.config.pad_token_id = PAD
    torch.manual_seed(1)
    scalar = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    if blind_reward:
        torch.nn.init.zeros_(scalar.score.weight)
    scalar.save_pretrained(folder / "reward")
    tokenizer_of(config.vocab_size, "<pad>").save_pretrained(folder / "reward")


def prompts_of(count: int, length: int, vocabulary: int) -> list[list[int]]:
    return torch.randint(2, vocabulary, (count, length), generator=torch.Generator().manual_seed(2)).tolist()
