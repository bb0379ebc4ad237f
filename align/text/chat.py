"""From messages to token ids by a model's own chat template, and which tokens the assistant wrote.

One definition of where a sequence ends holds everywhere: at the token that ends the assistant's turn. Supervised tuning
learns it, sampling stops at it, reward models are trained and read at it. What a template writes after it (a line
break, Phi-3's second end token) is left out.
"""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from align.errors import ConfigError
from align.text.encoding import Encoder, Span, chat_template_of, encoder_of

Message = dict[str, str]

ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}

# Words follow a role token after a space, as they follow each other, so that a word is the same token everywhere. The
# end-of-text token closes each assistant turn inside the generation markers: outside, no model would learn to stop.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}"
    "{% elif message['role'] in ('system', 'user') %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] | trim }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# The same for a tokenizer whose words hold no spaces, GPT-1's: there a space is no token.
SPACELESS_CHAT_TEMPLATE = CHAT_TEMPLATE.replace(
    "{{ '<|assistant|>' }}{% generation %}{{ ' ' + message", "{{ '<|assistant|> ' }}{% generation %}{{ message"
)

STOP_TOKENS = "stop_tokens"  # in tokenizer_config.json: further tokens at which the published model stops

# Two rounds: a template may end the last turn otherwise than those before it (gpt-oss).
_PROBE = [
    {"role": "user", "content": "Who sat on the mat?"},
    {"role": "assistant", "content": "The cat."},
    {"role": "user", "content": "And who ran home?"},
    {"role": "assistant", "content": "The dog ran home."},
]


class Encoded(NamedTuple):
    """A conversation as token ids, and True at each token that the assistant wrote."""

    ids: list[int]
    by_assistant: list[bool]


class ChatFormat(NamedTuple):
    """How a model's chat template is read.

    Attributes:
        way: how the assistant's tokens are found: by the template's generation "markers", by those of TRL's training
            version of it ("trl"), or as what each turn adds to the prompt before it ("prefixes").
        end: id of the token that ends the assistant's turn.
        stops: ids at which a response ends: `end`, the end of text, and what the published model stops at besides.
        template: what dialogues to learn from are rendered with; prompts have the model's own.
        ends: respelled tokens (see `Encoder`) that end an assistant's turn, the last turn's first.
        opening: what the template writes at the end of a prompt for the assistant to go on from.
        closing: what it writes after the last answer where no token ends a turn; None where one does.
        in_parts: whether contents are lists of parts, as templates of multimodal models want them.
    """

    way: str
    end: int
    stops: tuple[int, ...]
    template: str
    ends: tuple[str, ...]
    opening: str
    closing: str | None
    in_parts: bool


_FORMATS: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Encoder, ChatFormat]] = weakref.WeakKeyDictionary()


def chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Find out how the tokenizer's chat template is read, by rendering a dialogue of two rounds.

    Raises:
        ValueError: it has no chat template, or the assistant's words cannot be found in what it writes.
    """
    encoder = encoder_of(tokenizer)
    known = _FORMATS.get(tokenizer)
    if known is None or known[0] is not encoder:
        known = _FORMATS[tokenizer] = (encoder, _find_format(tokenizer, encoder))
    return known[1]


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which text ends: those of its chat template where it has one, else the end of text."""
    if chat_template_of(tokenizer) is None:
        return [tokenizer.eos_token_id]
    return list(chat_format(tokenizer).stops)


def has_generation_markers(template: str) -> bool:
    """Whether the template's body, not a comment or a string in it, has a `{% generation %}` block."""
    pieces = [(kind, text) for _, kind, text in jinja2.Environment().lex(template) if kind != "whitespace"]
    return any(a[0] == "block_begin" and b == ("name", "generation") for a, b in itertools.pairwise(pieces))


# -- conversations, prompts and answers ----------------------------------------------------------------------------


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Message]], where: str = "row"
) -> list[Encoded]:
    """Token ids of dialogues up to the end of the last assistant's turn; the token that ends a turn is the assistant's.

    Args:
        tokenizer: with a chat template.
        conversations: messages, an assistant's last.
        where: what an error calls a conversation, before its number.

    Raises:
        ConfigError: the template refuses a conversation, such as one with a system message.
    """
    if not conversations:
        return []
    style, encoder = chat_format(tokenizer), encoder_of(tokenizer)
    located = []
    for i, messages in enumerate(conversations):
        try:
            located.append(_located(tokenizer, encoder, style, messages))
        except (jinja2.TemplateError, ValueError) as error:
            raise _refused(where, i, error) from None
    encodings = encoder.encode([text for text, _ in located])
    return [
        _marked(encoding.ids, encoding.offsets, spans)
        for encoding, (_, spans) in zip(encodings, located, strict=True)
    ]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]], where: str = "prompt"
) -> list[list[int]]:
    """Token ids of prompts, up to where the assistant begins.

    Raises:
        ConfigError: as `encode_conversations`.
    """
    return _encoded(tokenizer, prompts, where, answered=False)


def encode_dialogues(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[Message]],
    responses: Sequence[str],
    where: str = "dialogue",
) -> list[list[int]]:
    """Token ids of prompts, each with its response as the assistant's turn, up to the token that ends it.

    Raises:
        ConfigError: as `encode_conversations`.
    """
    turns = [[*p, {"role": "assistant", "content": r}] for p, r in zip(prompts, responses, strict=True)]
    return _encoded(tokenizer, turns, where, answered=True)


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a response, without the token that ended it, special tokens and space around it."""
    if ids and ids[-1] in stop_ids(tokenizer):
        ids = ids[:-1]
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def transcript(prompt: Sequence[Message]) -> str:
    """A prompt as somebody reads it who has no chat template: what the user says, or all turns by who says them."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)


def show_prompt(prompt: Sequence[Message]) -> str:
    """A prompt in one line, for tables of samples."""
    return " | ".join(m["content"] if m["role"] == "user" else f"[{m['role']}] {m['content']}" for m in prompt)


def _encoded(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Message]], where: str, *, answered: bool
) -> list[list[int]]:
    if not conversations:
        return []
    style, encoder = chat_format(tokenizer), encoder_of(tokenizer)
    own, texts = str(chat_template_of(tokenizer)), []
    for i, messages in enumerate(conversations):
        try:
            text = _render(tokenizer, encoder, own, messages, prompt=not answered, in_parts=style.in_parts)[0]
            texts.append(_ended(tokenizer, encoder, style, text) if answered else text)
        except (jinja2.TemplateError, ValueError) as error:
            raise _refused(where, i, error) from None
    return [encoding.ids for encoding in encoder.encode_fast(texts)]


def _refused(where: str, i: int, error: Exception) -> ConfigError:
    said = " ".join(str(error).split())
    return ConfigError(f"{where} {i + 1}: the model's chat template refuses it: {said}")


# -- rendering -----------------------------------------------------------------------------------------------------


def _render(
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder,
    template: str,
    messages: Sequence[Message],
    *,
    prompt: bool = False,
    marked: bool = False,
    in_parts: bool = False,
) -> tuple[str, list[Span]]:
    """A dialogue as text for `encoder`, and the spans between the template's generation markers."""
    quoted: list[dict[str, Any]] = []
    for message in messages:
        text = encoder.quoted(message["content"], by_assistant=message["role"] == "assistant")
        quoted.append({**message, "content": [{"type": "text", "text": text}] if in_parts else text})
    rendered, spans = render_jinja_template(
        conversations=[quoted],
        chat_template=template,
        add_generation_prompt=prompt,
        return_assistant_tokens_mask=marked,
        **tokenizer.special_tokens_map,
    )
    return encoder.revealed(rendered[0], spans[0] if marked else ())


def _located(
    tokenizer: PreTrainedTokenizerBase, encoder: Encoder, style: ChatFormat, messages: Sequence[Message]
) -> tuple[str, list[Span]]:
    """A dialogue as text that ends where its last answer does, and where in it the assistant's turns are."""
    if style.way == "prefixes":
        text, spans = _by_prefixes(tokenizer, encoder, style, messages)
    else:
        text, found = _render(tokenizer, encoder, style.template, messages, marked=True, in_parts=style.in_parts)
        spans = [span for span in (_trimmed(text, style, *each) for each in found) if span[0] < span[1]]
    if not spans:
        raise ValueError("it writes nothing of the assistant")
    if style.closing is not None:
        text = text[: spans[-1][1]] + encoder.respelled(tokenizer.eos_token)
        spans[-1] = (spans[-1][0], len(text))
    return text[: spans[-1][1]], spans


def _trimmed(text: str, style: ChatFormat, start: int, stop: int) -> Span:
    """A marked span without the opening of the turn, which prompts hold, and up to the token that ends the turn."""
    if style.opening and text.startswith(style.opening, start):
        start += len(style.opening)
    for end in style.ends:
        if text.startswith(end, stop):
            return start, stop + len(end)
        if text[start:stop].rstrip().endswith(end):
            return start, start + len(text[start:stop].rstrip())
    return start, stop


def _by_prefixes(
    tokenizer: PreTrainedTokenizerBase, encoder: Encoder, style: ChatFormat, messages: Sequence[Message]
) -> tuple[str, list[Span]]:
    """Each of the assistant's turns is what follows the prompt before it, up to the token that ends a turn."""

    def render(upto: int, prompt: bool) -> str:
        return _render(
            tokenizer, encoder, style.template, messages[:upto], prompt=prompt, in_parts=style.in_parts
        )[0]

    whole, spans = render(len(messages), prompt=False), []
    for i in [i for i, message in enumerate(messages) if message["role"] == "assistant"]:
        before = render(i, prompt=True)
        if not whole.startswith(before):  # it rewrites earlier turns, as to drop what the assistant thought
            return whole, _by_openings(encoder, whole, style)
        start, stop = len(before), len(whole)
        if style.closing is None:
            stop = _end_after(whole, style.ends, start)
        else:
            upto = render(i + 1, prompt=False)
            if not whole.startswith(upto[: len(upto) - len(style.closing)]):
                raise ValueError("it rewrites earlier turns and ends none by a token")
            stop = len(upto) - len(style.closing)
        spans.append((start, stop))
    return whole, spans


def _by_openings(encoder: Encoder, whole: str, style: ChatFormat) -> list[Span]:
    """Turns by the control tokens that open them, which no text can spell."""
    if style.closing is not None or not encoder.has_control(style.opening):
        raise ValueError("it rewrites earlier turns, and no control token opens the assistant's")
    spans, place = [], whole.find(style.opening)
    while place >= 0:
        start = place + len(style.opening)
        stop = _end_after(whole, style.ends, start)
        spans.append((start, stop))
        place = whole.find(style.opening, stop)
    return spans


def _end_after(text: str, ends: Sequence[str], start: int) -> int:
    """The place after the first of `ends` from `start` on."""
    found = [text.find(end, start) + len(end) for end in ends if text.find(end, start) >= 0]
    if not found:
        raise ValueError("no token ends the assistant's turn")
    return min(found)


def _ended(tokenizer: PreTrainedTokenizerBase, encoder: Encoder, style: ChatFormat, text: str) -> str:
    """A rendered dialogue up to the end of its last turn."""
    if style.closing is not None:
        return text[: len(text) - len(style.closing)] + encoder.respelled(tokenizer.eos_token)
    place = text.rfind(style.ends[0])
    if place < 0:
        raise ValueError("no token ends the assistant's turn")
    return text[: place + len(style.ends[0])]


def _marked(ids: list[int], places: Sequence[Span], spans: Sequence[Span]) -> Encoded:
    """Every token that holds a character of a span is the assistant's, all of a character's bytes with it."""
    marks = [False] * len(ids)
    token = 0
    for start, stop in spans:
        while token < len(ids) and places[token][1] <= start:
            token += 1
        while token < len(ids) and places[token][0] < stop:
            marks[token] = True
            token += 1
    return Encoded(ids, marks)


# -- finding the format --------------------------------------------------------------------------------------------


def _find_format(tokenizer: PreTrainedTokenizerBase, encoder: Encoder) -> ChatFormat:
    own = chat_template_of(tokenizer)
    if not own:
        raise ValueError("it has no chat template")
    way, template = _training_template(tokenizer, own)
    try:
        in_parts = _wants_parts(tokenizer, encoder, own)
        ends, closing = _find_ends(tokenizer, encoder, template, in_parts)
        opening = _find_opening(tokenizer, encoder, own, in_parts)
    except jinja2.TemplateError as error:
        raise ValueError(f"its chat template fails: {' '.join(str(error).split())}") from None
    last = encoder.respelled(tokenizer.eos_token) if closing is not None else ends[0]
    (end,) = encoder.encode_fast([last])[0].ids
    further = tokenizer.convert_tokens_to_ids(tokenizer.init_kwargs.get(STOP_TOKENS) or [])
    stops = tuple(dict.fromkeys([end, tokenizer.eos_token_id, *further]))
    return ChatFormat(way, end, stops, template, ends, opening, closing, in_parts)


def _training_template(tokenizer: PreTrainedTokenizerBase, own: str) -> tuple[str, str]:
    """The way to find the assistant's tokens, and the template that dialogues are rendered with."""
    if has_generation_markers(own):
        return "markers", own
    from trl.chat_template_utils import get_training_chat_template

    try:
        known = get_training_chat_template(tokenizer)
    except (ValueError, TypeError, jinja2.TemplateError):  # none that TRL knows
        known = None
    return ("trl", known) if known and has_generation_markers(known) else ("prefixes", own)


def _wants_parts(tokenizer: PreTrainedTokenizerBase, encoder: Encoder, template: str) -> bool:
    """Whether the template writes contents only where they are lists of parts."""
    for in_parts in (False, True):
        try:
            text, _ = _render(tokenizer, encoder, template, _PROBE, in_parts=in_parts)
        except (jinja2.TemplateError, TypeError):
            continue
        if all(message["content"] in text for message in _PROBE[2:]) and "'type'" not in text:
            return in_parts
    text, _ = _render(tokenizer, encoder, template, _PROBE)  # for the error that it raises
    raise ValueError("its chat template does not write what the user and the assistant say")


def _find_ends(
    tokenizer: PreTrainedTokenizerBase, encoder: Encoder, template: str, in_parts: bool
) -> tuple[tuple[str, ...], str | None]:
    """The control tokens that follow an answer, the last turn's first; or what else follows the last answer."""
    text, _ = _render(tokenizer, encoder, template, _PROBE, in_parts=in_parts)
    control = re.compile("|".join(re.escape(encoder.respelled(token)) for token in encoder.controls) or "(?!)")
    ends = []
    for answer in (_PROBE[3]["content"], _PROBE[1]["content"]):
        after = text[text.rindex(answer) + len(answer) :]
        found = control.search(after)
        if answer == _PROBE[3]["content"] and found is None:
            return (), after
        if found is not None and not after[: found.start()].strip():
            ends.append(found[0])
    return tuple(dict.fromkeys(ends)), None


def _find_opening(tokenizer: PreTrainedTokenizerBase, encoder: Encoder, template: str, in_parts: bool) -> str:
    """What is added to a prompt for the assistant to go on from."""
    bare, _ = _render(tokenizer, encoder, template, _PROBE[:1], in_parts=in_parts)
    prompt, _ = _render(tokenizer, encoder, template, _PROBE[:1], prompt=True, in_parts=in_parts)
    return prompt.removeprefix(bare) if prompt.startswith(bare) else ""
