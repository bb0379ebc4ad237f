"""Encode text so that nothing that a user wrote becomes markup.

A tokenizer finds its control tokens (`<|im_end|>`, `[INST]`, `</s>`) wherever they are spelled,
also in a user's text: a row could end its own turn or speak for the assistant. Therefore a copy of
the tokenizer encodes the text. In the copy, control tokens have the same ids but other spellings,
made of Unicode's noncharacters. The output of a chat template is respelled before it is encoded. A
user's text is not, so a control token in it is split into ordinary pieces. Everything else is as in
plain Transformers: spacing rules, whitespace entries, added words.
"""

from __future__ import annotations

import bisect
import json
import re
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import jinja2
from tokenizers import Encoding, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # [start, end) in characters

# U+FDD0 to U+FDEF: noncharacters, which text for interchange has none of [Unicode, section 23.7].
_DIGITS = "".join(map(chr, range(0xFDD0, 0xFDDA)))
_CONTROL, _QUOTE, _CLOSE = "\ufdda", "\ufddb", "\ufddc"
_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
_CONTROL_SPELLING = re.compile("<[|\uff5c].*[|\uff5c]>|<[^<>\\s]*_[^<>\\s]*>|\\[/?[A-Z_]+\\]")


class Encoder:
    """An encoder that uses a copy of a tokenizer in which no text spells a control token.

    Attributes:
        controls: the control tokens in the tokenizer's own spelling, longest first.
        begin: ids that the tokenizer puts before a text on its own: its BOS, or nothing.
        spelling: a pattern that finds respelled control tokens.
    """

    spelling = re.compile(f"{_CONTROL}[{_DIGITS}]+{_CLOSE}")

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.controls = sorted(control_tokens(tokenizer), key=len, reverse=True)
        self._numbers = {token: i for i, token in enumerate(self.controls)}
        self._any = _one_of(self.controls)
        self._rendered = re.compile(f"{_QUOTE}([{_DIGITS}]+){_CLOSE}|({self._any.pattern})")
        self._copy = _respelled(
            tokenizer, {token: self.respelled(token) for token in self.controls}
        )
        self.begin = _ids_before(tokenizer)

    def respelled(self, token: str) -> str:
        """Return the spelling of a control token in the copy."""
        return _CONTROL + _digits(self._numbers[token]) + _CLOSE

    def quoted(self, text: str, kept: Collection[str] = ()) -> str:
        """Mark the control tokens in a user's text, before a chat template renders it.

        `revealed` removes the marks.

        Args:
            text: the user's text.
            kept: control tokens that the text may contain, such as `<think>` in an answer.
        """

        def quote(match: re.Match[str]) -> str:
            return (
                match[0] if match[0] in kept else _QUOTE + _digits(self._numbers[match[0]]) + _CLOSE
            )

        return self._any.sub(quote, _without_noncharacters(text))

    def revealed(self, rendered: str, spans: Sequence[Span] = ()) -> tuple[str, list[Span]]:
        """Respell the template's own control tokens, and restore the users' texts.

        Args:
            rendered: the output of a template for quoted texts.
            spans: spans in `rendered`.

        Returns:
            The text, and the spans in it.
        """
        parts, begins, shifts = [], [0], [0]
        place = length = 0
        for match in self._rendered.finditer(rendered):
            number, control = match.groups()
            new = self.controls[_number(number)] if number else self.respelled(control)
            parts += [rendered[place : match.start()], new]
            length += match.start() - place + len(new)
            place = match.end()
            begins.append(place)
            shifts.append(length - place)
        parts.append(rendered[place:])

        def moved(at: int) -> int:
            return at + shifts[bisect.bisect_right(begins, at) - 1]

        return "".join(parts), [(moved(start), moved(end)) for start, end in spans]

    @staticmethod
    def has_control(text: str) -> bool:
        """Return whether a text contains a respelled control token."""
        return _CONTROL in text

    @staticmethod
    def without_half_a_control(text: str) -> str:
        """Return a cut text without an incomplete respelled control token at its end."""
        begin = text.rfind(_CONTROL)
        return text[:begin] if begin >= 0 and _CLOSE not in text[begin:] else text

    def encode(self, revealed: Sequence[str]) -> list[Encoding]:
        """Encode texts from `revealed`, with offsets and without BOS."""
        return self._copy.encode_batch(list(revealed), add_special_tokens=False)

    def encode_text(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode texts that people wrote, without BOS and without offsets.

        Nothing in them becomes a control token.
        """
        return self._copy.encode_batch_fast(
            [_without_noncharacters(text) for text in texts], add_special_tokens=False
        )


_ENCODERS: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, Encoder]] = (
    weakref.WeakKeyDictionary()
)


def encoder_of(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Return the encoder of a tokenizer.

    It is cached, and built again if the tokens or the template have changed.
    """
    state = (len(tokenizer), str(tokenizer.chat_template), str(tokenizer.special_tokens_map))
    known = _ENCODERS.get(tokenizer)
    if known is None or known[0] != state:
        known = _ENCODERS[tokenizer] = (state, Encoder(tokenizer))
    return known[1]


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, begin: bool = False
) -> list[list[int]]:
    """Return the token ids of texts in which nothing is markup.

    Args:
        tokenizer: of any family that has a fast version.
        texts: texts that people wrote.
        begin: put the tokenizer's BOS first, once, as `tokenizer(text)` does if it has one.
    """
    encoder = encoder_of(tokenizer)
    before = encoder.begin if begin else []
    return [[*before, *encoding.ids] for encoding in encoder.encode_text(texts)]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the added tokens that act as markup.

    These are special tokens; tokens that the tokenizer's `chat_control_tokens` lists or that the
    chat template writes, as in `apply_chat_template(sanitize_control_tokens=True)` of transformers;
    and tokens that are spelled like markup, because a model may use them outside its chat template
    (`<|file_sep|>`). Whitespace entries and added words are text.
    """
    written = _literals(tokenizer)
    listed = set(getattr(tokenizer, "chat_control_tokens", None) or ())
    found = set()
    for token in tokenizer.added_tokens_decoder.values():
        text = token.content
        spelled = text in listed or text in written or _CONTROL_SPELLING.fullmatch(text) is not None
        if token.special or (spelled and not text.isspace()):
            found.add(text)
    return found


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the text of the chat template; of several named templates, the default."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _literals(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return all literal text in a chat template.

    NUL separates the pieces, so that two of them cannot spell a token together.
    """
    template = chat_template_of(tokenizer)
    if not template:
        return ""
    try:
        pieces = list(jinja2.Environment().lex(template))
    except jinja2.TemplateSyntaxError:  # `chat_format` reports it
        return template
    return "\0".join(text for _, kind, text in pieces if kind in ("data", "string"))


def _respelled(tokenizer: PreTrainedTokenizerBase, spellings: dict[str, str]) -> Tokenizer:
    """Return a copy of the fast tokenizer, with the same ids and other spellings of some tokens."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} has no fast version (a tokenizer.json), which align needs"
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = None  # saved settings would truncate or pad documents
    letters = (
        set(pre_tokenizers.ByteLevel.alphabet())
        if '"ByteLevel"' in json.dumps(state["pre_tokenizer"])
        else set()
    )
    if taken := letters & spellings.keys() & tokenizer.get_vocab().keys():
        raise ValueError(
            f"{min(taken)!r} is a control token and a byte of ordinary text, which cannot be"
            " distinguished"
        )
    for token in state["added_tokens"]:
        token["content"] = spellings.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {spellings.get(text, text): i for text, i in model["vocab"].items()}
    else:
        model["vocab"] = [[spellings.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token") in spellings:
        model["unk_token"] = spellings[model["unk_token"]]
    if "merges" in model:
        # Drop merges into a control token: they could only make one from text.
        model["merges"] = [
            merge
            for merge in model["merges"]
            if spellings.keys().isdisjoint({*_pair(merge), "".join(_pair(merge))})
        ]
    _keep_whole_offsets(state.get("post_processor"))
    copy = Tokenizer.from_str(json.dumps(state))
    for token, spelling in spellings.items():
        if copy.token_to_id(spelling) != tokenizer.convert_tokens_to_ids(token):
            raise ValueError(
                f"the tokenizer's entry for {token!r} cannot be distinguished from text"
            )
    return copy


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _keep_whole_offsets(post_processor: Any) -> None:
    """Make a token's offsets include the space before its word.

    Otherwise a mask could not tell which span the space belongs to.
    """
    if isinstance(post_processor, dict):
        if "trim_offsets" in post_processor:
            post_processor["trim_offsets"] = False
        for part in post_processor.get("processors", ()):
            _keep_whole_offsets(part)


def _ids_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that `tokenizer(text)` puts before those of the text."""
    whole = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def _without_noncharacters(text: str) -> str:
    """Replace noncharacters by U+FFFD, as Unicode advises.

    No text can then contain the spellings of the copy's control tokens.
    """
    return text if text.isascii() else _NONCHARACTERS.sub("\ufffd", text)


def _one_of(tokens: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def _digits(number: int) -> str:
    return "".join(_DIGITS[int(digit)] for digit in str(number))


def _number(digits: str) -> int:
    return int("".join(str(_DIGITS.index(digit)) for digit in digits))


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token for an empty context: BOS, else EOS."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def encode_context(tokenizer: PreTrainedTokenizerBase, context: str) -> list[int]:
    """Return the token ids of a context that a model will continue. They are never empty."""
    (ids,) = encode_texts(tokenizer, [context], begin=True)
    return ids or [start_token(tokenizer)]
