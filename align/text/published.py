"""Open published tokenizers: GPT-1's, GPT-2's, or any that `AutoTokenizer` opens."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from align.data.cards import VOCABULARIES, Source
from align.errors import is_short
from align.text.tokenizers import EOS, as_fast

Merges = list[tuple[str, str]]


def open_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Open the published tokenizer of a folder, a GGUF file or a pinned repository on the Hub.

    A folder may hold only a vocabulary and its merges, and nothing that tells `AutoTokenizer` their
    type. It is then GPT-1's if words end in </w>, else GPT-2's.

    Raises:
        ValueError: the files are wrong; the message is one line.
    """
    names = {path.name for path in source.files}
    if not names & {"tokenizer.json", "tokenizer_config.json"}:
        for pair in VOCABULARIES:
            if names.issuperset(pair) and source.root is not None:
                return _read(*(source.root / name for name in pair))
    gguf = {"gguf_file": source.gguf} if source.gguf else {}
    try:
        return AutoTokenizer.from_pretrained(**source.pretrained, **gguf)
    except Exception as error:  # libraries raise dozens of types for broken files
        if is_short(error):
            raise
        said = " ".join(str(error).split())[:200]
        said = (
            said if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {said}"
        )
        raise ValueError(f"its tokenizer does not open ({said})") from None


def gpt1_tokenizer(vocabulary: dict[str, int], merges: Merges) -> PreTrainedTokenizerFast:
    """Return GPT-1's tokenizer for a vocabulary and its merges.

    It lower-cases words, splits them into characters, the last one marked </w>, and merges these. A
    character that it does not know is <unk>.

    Text is split into words as `transformers` does for GPT-1, by BERT's rules: at spaces and around
    every punctuation mark, with accents removed. OpenAI's code repairs text with ftfy, rewrites
    dashes, splits it with spaCy, and has a token for a new line. `python benchmarks/gpt1_words.py`
    counts how many lines of a text get other ids from that code. Most differences come from "n't",
    "'s", "--", "mr." and dash characters, which are <unk> here. Decoding does not restore case,
    accents and spacing.

    Raises:
        ValueError: a merge makes a token that the vocabulary lacks.
    """
    tokenizer = Tokenizer(_bpe(vocabulary, merges, unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return as_fast(tokenizer, unk_token="<unk>")


def gpt2_tokenizer(vocabulary: dict[str, int], merges: Merges) -> PreTrainedTokenizerFast:
    """Return GPT-2's tokenizer for a vocabulary and its merges.

    It merges bytes within the pieces of GPT-2's pattern. Decoding restores any text exactly.

    Raises:
        ValueError: a merge makes a token that the vocabulary lacks.
    """
    tokenizer = Tokenizer(_bpe(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return as_fast(tokenizer, eos_token=EOS, bos_token=EOS)


def _bpe(vocabulary: dict[str, int], merges: Merges, **settings: str) -> models.BPE:
    try:
        return models.BPE(vocab=vocabulary, merges=merges, **settings)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(" ".join(str(error).split())) from None


def _read(vocabulary_file: Path, merges_file: Path) -> PreTrainedTokenizerFast:
    """Read GPT-1's or GPT-2's tokenizer; the vocabulary decides which one it is."""
    try:
        vocabulary = json.loads(vocabulary_file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{vocabulary_file.name}: not JSON ({error})") from None
    are_ids = isinstance(vocabulary, dict) and all(
        type(each) is int for each in vocabulary.values()
    )
    if not are_ids or {*vocabulary.values()} != {*range(len(vocabulary))}:
        raise ValueError(f"{vocabulary_file.name}: expected tokens with the ids 0, 1, 2, ...")
    lines = merges_file.read_text(encoding="utf-8").split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{merges_file.name}: expected two parts per line")
    merges = [(left, right) for left, right in pairs]
    if any(token.endswith("</w>") for token in vocabulary):
        return gpt1_tokenizer(vocabulary, merges)
    if EOS not in vocabulary:
        raise ValueError(
            f"{vocabulary_file.name}: neither GPT-1's (words end in </w>) nor GPT-2's (it has"
            f" {EOS})"
        )
    return gpt2_tokenizer(vocabulary, merges)
