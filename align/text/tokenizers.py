"""Train tokenizers on documents, and complete published ones with what every stage needs.

Trained tokenizers are saved so that `AutoTokenizer` loads them. Both kinds work on bytes, so that
decoding restores any text exactly: byte-level BPE as in GPT-2, and a unigram model (Kudo 2018) as
in T5. Documents are encoded by `align.text.encoding`, so that no text becomes a special token.
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
PAD = "<|pad|>"  # not the end-of-text token: a padding mask would remove that from every label
SENTINEL = "<extra_id_{}>"
KEEP, ALIGN = "keep", "align"  # the chat template of a published tokenizer
_T5 = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # ids 0, 1, 2, as in T5


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    algorithm: str = "bpe",
    split_digits: bool = False,
    num_sentinels: int = 0,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on documents.

    It has special tokens, 256 bytes, tokens learned from `texts`, and sentinels above all other
    ids.

    Args:
        texts: documents; they are read once.
        vocab_size: entries in all, including special tokens, the 256 bytes and the sentinels;
            little text gives fewer.
        algorithm: bpe (as in GPT-2) or unigram (as in T5: <pad> 0, </s> 1, <unk> 2). Unlike T5's
            SentencePiece, pieces are of bytes. So text is not normalised, gets no space before it,
            and needs no token that stands for any character.
        split_digits: whether each digit is a token of its own [LLaMA, section 2.1].
        num_sentinels: tokens <extra_id_0> (the highest id), <extra_id_1> (the one below), ... [T5:
            100].

    Raises:
        ValueError: `vocab_size` leaves no room for learned tokens.
    """
    named = (
        _T5 if algorithm == "unigram" else {"eos_token": EOS, "pad_token": PAD, "bos_token": EOS}
    )
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
        tokenizer,
        **named,
        additional_special_tokens=list(ROLE_TOKENS.values()),
        chat_template=CHAT_TEMPLATE,
    )
    add_sentinels(made, num_sentinels)
    return made


def _train_bpe(
    texts: Iterable[str], size: int, special: list[str], pieces: pre_tokenizers.PreTokenizer
) -> Tokenizer:
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
    return Tokenizer(
        models.Unigram(vocabulary, unk_id=special.index(_T5["unk_token"]), byte_fallback=False)
    )


def as_fast(tokenizer: Tokenizer, **named: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer for `transformers`, padded on the left.

    Decoding leaves spaces as they are.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **named, padding_side="left", clean_up_tokenization_spaces=False
    )


def complete(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = KEEP) -> list[str]:
    """Add what the stages need and a tokenizer lacks, above its own ids.

    This may be a chat template, a padding token that ends nothing, and an end-of-text token for
    GPT-1's tokenizer. GPT-1 has none: its paper packs books without one, and its code adds _start_,
    _delimiter_ and _classify_ for tasks.

    Args:
        tokenizer: changed in place.
        chat_template: "keep": its own, or align's with role tokens if it has none; "align":
            align's; None: none is needed; else the text of another template.

    Returns:
        The names of what was added.

    Raises:
        ValueError: it has no end-of-text token and is not GPT-1's, or several chat templates and no
            default, or a chat template that needs too much time or memory.
    """
    added = []
    if chat_template == KEEP:
        _require_one_template(tokenizer)
    if tokenizer.eos_token_id is None:
        if not is_gpt1(tokenizer):
            raise ValueError(
                "its tokenizer has no end-of-text token, so no text and no response can end"
            )
        tokenizer.add_special_tokens({"eos_token": EOS, "bos_token": EOS})
        added.append("an end-of-text token")
    instead = ", in place of its own" if tokenizer.chat_template else ""
    if chat_template not in (None, KEEP, ALIGN):
        tokenizer.chat_template = chat_template
        added.append(f"the chat template given{instead}")
    came = None if chat_template == ALIGN else chat_template_of(tokenizer)
    if came not in (None, CHAT_TEMPLATE, SPACELESS_CHAT_TEMPLATE):
        try_template(came, tokenizer.special_tokens_map)  # before this process renders it
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
    """Raise `ValueError` if there are named chat templates and none is the default."""
    if tokenizer.chat_template and chat_template_of(tokenizer) is None:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise ValueError(
            f"it has several chat templates ({names}) and no default; give one by"
            " chat_template=path:FILE"
        )


def add_sentinels(tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    """Add T5's sentinels above all other ids, <extra_id_0> with the highest id, and so on down.

    Raises:
        ValueError: the tokenizer has sentinels already.
    """
    names = [SENTINEL.format(i) for i in reversed(range(count))]
    if any(name in tokenizer.get_vocab() for name in names):
        raise ValueError("its tokenizer has sentinels (<extra_id_0>, ...) of its own")
    if names:
        _add_special(tokenizer, names)


def is_gpt1(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether words end as in GPT-1's vocabulary.

    No other published causal language model marks them in this way.
    """
    return any(token.endswith("</w>") for token in tokenizer.get_vocab())


def _add_special(tokenizer: PreTrainedTokenizerBase, names: list[str]) -> None:
    tokenizer.add_special_tokens(
        {"additional_special_tokens": names}, replace_extra_special_tokens=False
    )
