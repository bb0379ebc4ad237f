"""Byte-level BPE: trained on documents, saved so that `AutoTokenizer` loads it."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from align.text.chat import CHAT_TEMPLATE, ROLE_TOKENS

EOS = "<|endoftext|>"
PAD = "<|pad|>"  # never the end-of-text token: a mask made from padding would erase it from every label


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train GPT-2's kind of tokenizer: special tokens, 256 bytes, and merges learned from `texts`.

    Args:
        texts: documents; they are read once.
        vocab_size: entries in all, special tokens and the 256 bytes among them.

    Raises:
        ValueError: `vocab_size` leaves no room for merges.
    """
    special = [EOS, PAD, *ROLE_TOKENS.values()]
    if vocab_size <= 256 + len(special):
        raise ValueError(f"vocab_size must exceed {256 + len(special)} (256 bytes and {len(special)} special tokens)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        bos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(ROLE_TOKENS.values()),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
