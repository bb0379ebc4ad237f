"""Tokenizers trained on documents, saved so that `AutoTokenizer` loads them; and what every tokenizer here must have.

Both kinds work on bytes, so that any text comes back as it was: byte-level BPE as GPT-2 has it, and a unigram model
(Kudo 2018), T5's kind. A special token is outside what text can become: GPT-2's pattern cuts its spelling apart, which
is why documents are encoded with `split_special_tokens=True`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from align.text.chat import CHAT_TEMPLATE, ROLE_TOKENS, SPACELESS_CHAT_TEMPLATE, stop_ids
from align.text.encoding import chat_template_of
from align.text.template_trial import try_template
from align.text.unigram import learn_pieces

EOS = "<|endoftext|>"
PAD = "<|pad|>"  # never the end-of-text token: a mask made from padding would erase it from every label
SENTINEL = "<extra_id_{}>"
KEEP, ALIGN = "keep", "align"  # which chat template a published tokenizer gets
_T5 = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # ids 0, 1, 2, as in T5


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    algorithm: str = "bpe",
    split_digits: bool = False,
    num_sentinels: int = 0,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer: special tokens, 256 bytes, what is learned from `texts`, and sentinels above all of it.

    Args:
        texts: documents; they are read once.
        vocab_size: entries in all, special tokens, the 256 bytes and the sentinels among them; little text gives fewer.
        algorithm: bpe (GPT-2's kind) or unigram (T5's: <pad> 0, </s> 1, <unk> 2). Departs from T5's SentencePiece:
            pieces are of bytes, so no text needs to be normalised, gets a space before it or falls back to a token
            that stands for any character.
        split_digits: whether each digit is a token of its own [LLaMA, section 2.1].
        num_sentinels: tokens <extra_id_0> (the highest id), <extra_id_1> (the one below), ... [T5: 100].

    Raises:
        ValueError: `vocab_size` leaves no room for what is to be learned.
    """
    named = _T5 if algorithm == "unigram" else {"eos_token": EOS, "pad_token": PAD, "bos_token": EOS}
    special = list(dict.fromkeys([*named.values(), *ROLE_TOKENS.values()]))
    least = 256 + len(special) + num_sentinels
    if vocab_size <= least:
        counted = f"256 bytes and {len(special) + num_sentinels} special tokens"
        raise ValueError(f"vocab_size must exceed {least} ({counted}), got {vocab_size}")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    pieces = pre_tokenizers.Sequence([digits, byte_level]) if split_digits else byte_level
    train = _train_unigram if algorithm == "unigram" else _train_bpe
    tokenizer = train(texts, vocab_size - num_sentinels, special, pieces)
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    made = as_fast(
        tokenizer, **named, additional_special_tokens=list(ROLE_TOKENS.values()), chat_template=CHAT_TEMPLATE
    )
    add_sentinels(made, num_sentinels)
    return made


def _train_bpe(texts: Iterable[str], size: int, special: list[str], pieces: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pieces
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_unigram(
    texts: Iterable[str], size: int, special: list[str], pieces: pre_tokenizers.PreTokenizer
) -> Tokenizer:
    words = Counter(word for text in texts for word, _ in pieces.pre_tokenize_str(text))
    learned = learn_pieces(words, pre_tokenizers.ByteLevel.alphabet(), size - len(special))
    vocabulary = [*((token, 0.0) for token in special), *learned]
    return Tokenizer(models.Unigram(vocabulary, unk_id=special.index(_T5["unk_token"]), byte_fallback=False))


def as_fast(tokenizer: Tokenizer, **named: Any) -> PreTrainedTokenizerFast:
    """A tokenizer as `transformers` has it, padded on the left and decoded as it is."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **named, padding_side="left", clean_up_tokenization_spaces=False
    )


def complete(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = KEEP) -> list[str]:
    """Give a tokenizer what the stages count on and it lacks, above its own ids, and say what that was.

    An end-of-text token for GPT-1's, which has none (its paper packs books without one, and its code adds _start_,
    _delimiter_ and _classify_ for tasks); a chat template; a padding token that ends nothing.

    Args:
        tokenizer: it is changed.
        chat_template: "keep" its own, and give it ours (with role tokens) only where it has none; "align": ours; the
            text of another; None: it needs none.

    Raises:
        ValueError: it has no end-of-text token and is not GPT-1's, or several chat templates and no default, or a chat
            template that needs too much time or memory.
    """
    added = []
    if chat_template == KEEP:
        _require_one_template(tokenizer)
    if tokenizer.eos_token_id is None:
        if not is_gpt1(tokenizer):
            raise ValueError("its tokenizer has no end-of-text token, so no text and no response could end")
        tokenizer.add_special_tokens({"eos_token": EOS, "bos_token": EOS})
        added.append("an end-of-text token")
    instead = ", in place of its own" if tokenizer.chat_template else ""
    if chat_template not in (None, KEEP, ALIGN):
        tokenizer.chat_template = chat_template
        added.append(f"the chat template given{instead}")
    came = None if chat_template == ALIGN else chat_template_of(tokenizer)
    if came not in (None, CHAT_TEMPLATE, SPACELESS_CHAT_TEMPLATE):
        try_template(came, tokenizer.special_tokens_map)  # before anything renders it in this process
    ours = chat_template == ALIGN or (chat_template == KEEP and chat_template_of(tokenizer) is None)
    ends = [tokenizer.eos_token_id] if ours or chat_template is None else stop_ids(tokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        tokenizer.add_special_tokens({"pad_token": PAD})
        added.append("a padding token")
    if ours:
        _add_special(tokenizer, list(ROLE_TOKENS.values()))
        tokenizer.chat_template = SPACELESS_CHAT_TEMPLATE if is_gpt1(tokenizer) else CHAT_TEMPLATE
        added.append(f"our chat template{instead}")
    return added


def _require_one_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` where the tokenizer has named chat templates and none of them is the default."""
    if tokenizer.chat_template and chat_template_of(tokenizer) is None:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise ValueError(f"it has several chat templates ({names}) and no default; give one by chat_template=path:FILE")


def add_sentinels(tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    """Add T5's sentinels above every other id: <extra_id_0> gets the highest, <extra_id_1> the one below it, ...

    Raises:
        ValueError: it has some of its own.
    """
    names = [SENTINEL.format(i) for i in reversed(range(count))]
    if any(name in tokenizer.get_vocab() for name in names):
        raise ValueError("its tokenizer has sentinels (<extra_id_0>, ...) of its own")
    if names:
        _add_special(tokenizer, names)


def is_gpt1(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words end as in GPT-1's vocabulary: no other published causal language model marks them so."""
    return any(token.endswith("</w>") for token in tokenizer.get_vocab())


def _add_special(tokenizer: PreTrainedTokenizerBase, names: list[str]) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": names}, replace_extra_special_tokens=False)
