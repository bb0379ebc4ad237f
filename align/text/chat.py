"""From messages to token ids by a model's own chat template, and which tokens the assistant wrote.

One definition of where a sequence ends holds everywhere: at the token that ends the assistant's turn. Supervised tuning
learns it, sampling stops at it, reward models are trained and read at it. What a template writes after it (a line
break, Phi-3's second end token) is left out.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import re
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jinja2
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from align.errors import ConfigError
from align.text.encoding import Encoder, Span, chat_template_of, encode_texts, encoder_of

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

# In tokenizer_config.json: further tokens at which the published model stops; whether dialogues keep what the template
# writes after the last turn, as plain Transformers reads them.
STOP_TOKENS, WHOLE_DIALOGUES = "align_stop_tokens", "align_whole_dialogues"

# What a user wrote cannot hold these (see `Encoder.quoted`): they stand before and after an answer while it is rendered.
_BEFORE, _AFTER = "\ufddd", "\ufdde"
_MARKS = re.compile(f"[{_BEFORE}{_AFTER}]")

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


class TemplateRefusal(ConfigError):
    """A chat template does not take a conversation, such as one with a system message.

    Attributes:
        index: which of those given, from 0.
        reason: what is wrong with it.
    """

    def __init__(self, where: str, index: int, reason: str):
        super().__init__(f"{where} {index + 1}: {reason}")
        self.index, self.reason = index, reason


class ChatFormat(NamedTuple):
    """How a model's chat template is read. Texts are respelled, as `Encoder.revealed` gives them.

    Attributes:
        way: what says which tokens are the assistant's: the template's generation "markers"; those of TRL's training
            version of it ("trl"); or where its "answers" stand, from the end of the prompt to the end of the turn.
        end: id of the token that ends the assistant's turn.
        stops: ids at which a response ends: `end`, the end of text, and what the published model stops at besides.
        template: what dialogues to learn from are rendered with; prompts have the model's own.
        tails: what it writes after an answer, up to the token that ends the turn; the last turn's first.
        opening: what it adds to a prompt for the assistant to go on from; `head` is as much of it as every turn has.
        head: see `opening`.
        lead: what it writes between the prompt's end and the last answer: a space, an empty thought.
        unshared: what prompts end with and no dialogue has there: the beginning of a thought. It is left out.
        own_words: control tokens that an assistant may write: those that are not special and part no turns.
        in_parts: whether contents are lists of parts, as templates of multimodal models want them.
    """

    way: str
    end: int
    stops: tuple[int, ...]
    template: str
    tails: tuple[str, ...]
    opening: str
    head: str
    lead: str
    unshared: str
    own_words: frozenset[str]
    in_parts: bool


class _Rendered(NamedTuple):
    """A dialogue as text for the encoder, and places in it."""

    text: str
    marked: list[Span]  # between the template's generation markers
    begins: list[int]  # of answers; empty where they are not marked
    closes: list[int]  # the ends of answers


class _Turn(NamedTuple):
    """A turn of the assistant in a rendered dialogue."""

    start: int  # after the prompt
    close: int  # after the answer
    stop: int  # after the token that ends the turn


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


def keep_stops(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None) -> None:
    """Note in the tokenizer the tokens at which the published model stops besides its end of text."""
    ends = getattr(generation_config, "eos_token_id", None)
    ids = [ends] if isinstance(ends, int) else list(ends or ())
    known = tokenizer.get_vocab().values()
    further = [i for i in ids if i != tokenizer.eos_token_id and i in known]
    if further:
        tokenizer.init_kwargs[STOP_TOKENS] = tokenizer.convert_ids_to_tokens(further)


def read_whole_dialogues(tokenizer: PreTrainedTokenizerBase) -> None:
    """Encode dialogues to the end of what the template writes, where a published reward model learned to be read."""
    tokenizer.init_kwargs[WHOLE_DIALOGUES] = True


def read_alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers make the same ids of a dialogue, so that one model can read what the other wrote."""
    if one.get_vocab() != other.get_vocab():
        return False
    answer = _PROBE[-1]["content"]
    both = [encode_dialogues(tokenizer, [_PROBE[:-1]], [answer]) for tokenizer in (one, other)]
    return both[0] == both[1]


def check_chat(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Encode a dialogue and check all that training, sampling and scoring count on; say what was found.

    Raises:
        ValueError: one line on what does not hold.
    """
    style = chat_format(tokenizer)
    asked, answer = _PROBE[:1], {"role": "assistant", "content": "It is a cat \U0001f408"}  # it ends with several tokens
    hint = "give chat_template=align, or path:FILE with one that marks what the assistant says"
    try:
        (encoded,) = encode_conversations(tokenizer, [[*asked, answer]], "the dialogue")
        (prompt,) = encode_prompts(tokenizer, [asked], "the dialogue")
        (answered,) = encode_dialogues(tokenizer, [asked], [answer["content"]], "the dialogue")
    except TemplateRefusal as error:
        raise ValueError(f"{error.reason}; {hint}") from None
    message = {"role": "user", "content": [{"type": "text", "text": _PROBE[0]["content"]}] if style.in_parts else _PROBE[0]["content"]}
    plain = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=True)["input_ids"]
    mine = [token for token, by in zip(encoded.ids, encoded.by_assistant, strict=True) if by]
    if prompt != plain[: len(prompt)] or (len(prompt) < len(plain) and not style.unshared):
        raise ValueError(f"its chat template encodes to other tokens than in plain Transformers; {hint}")
    if not mine or decode_response(tokenizer, mine).split() != _as_decoded(tokenizer, answer["content"]).split():
        raise ValueError(f"the assistant's words cannot be told from the rest of its chat template; {hint}")
    if mine[-1] != style.end or style.end not in style.stops:
        raise ValueError(f"its chat template ends no turn of the assistant, so no response could end; {hint}")
    if answered[: len(prompt)] != prompt or encoded.ids[: len(prompt)] != prompt:
        raise ValueError(f"its chat template writes a prompt otherwise once it is answered; {hint}")
    names = tokenizer.convert_ids_to_tokens(list(style.stops))
    ways = {
        "markers": "its own marks say what the assistant writes",
        "trl": "TRL's training version of it says what the assistant writes",
        "answers": "what follows a prompt is the assistant's",
    }
    said = [f"chat template: {ways[style.way]}; a turn ends with {names[0]}, sampling stops at {', '.join(names)}"]
    if style.unshared:
        shown = tokenizer.decode(plain[len(prompt) :])
        said.append(f"prompts leave out {shown!r}, with which its template opens a thought: dialogues have no thoughts")
    return said


def _as_decoded(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text as it comes back from a tokenizer that keeps no case or lacks characters."""
    return tokenizer.decode(encode_texts(tokenizer, [text])[0], skip_special_tokens=True)


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
        TemplateRefusal: the template does not take a conversation.
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
        TemplateRefusal: as `encode_conversations`.
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
        TemplateRefusal: as `encode_conversations`.
    """
    turns = [[*p, {"role": "assistant", "content": r}] for p, r in zip(prompts, responses, strict=True)]
    return _encoded(tokenizer, turns, where, answered=True)


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a response, without the token that ended it, special tokens and what the template writes around it."""
    ids = list(ids)
    if chat_template_of(tokenizer) is not None:
        style = chat_format(tokenizer)
        lead = encoder_of(tokenizer).encode([style.lead])[0].ids if style.lead.strip() else []
        ids = ids[len(lead) :] if ids[: len(lead)] == lead else ids
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
    render = _Renderer(tokenizer, encoder, str(chat_template_of(tokenizer)), style.in_parts, style.own_words)
    texts = []
    for i, messages in enumerate(conversations):
        try:
            if answered:
                texts.append(_up_to_the_end(tokenizer, encoder, style, render(messages)))
            else:
                texts.append(render(messages, prompt=True).text.removesuffix(style.unshared))
        except (jinja2.TemplateError, ValueError) as error:
            raise _refused(where, i, error) from None
    return [encoding.ids for encoding in encoder.encode(texts)]


def _up_to_the_end(
    tokenizer: PreTrainedTokenizerBase, encoder: Encoder, style: ChatFormat, found: _Rendered
) -> str:
    """A rendered dialogue up to the token that ends its last turn, which is added where the template writes none."""
    if tokenizer.init_kwargs.get(WHOLE_DIALOGUES):
        return found.text
    if not found.closes:
        raise ValueError("it leaves out what the assistant says")
    close = found.closes[-1]
    for tail in style.tails:
        if found.text.startswith(tail, close):
            return found.text[: close + len(tail)]
    return found.text[:close] + encoder.respelled(tokenizer.convert_ids_to_tokens(style.end))


def _refused(where: str, i: int, error: Exception) -> TemplateRefusal:
    return TemplateRefusal(where, i, f"the model's chat template refuses it: {' '.join(str(error).split())}")


# -- rendering -----------------------------------------------------------------------------------------------------


class _Renderer(NamedTuple):
    """Renders dialogues with one template; what people wrote in them stays text."""

    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    template: str
    in_parts: bool
    own_words: frozenset[str] = frozenset()
    marks_beginnings: bool = False  # a mark before an answer may hide from a template what the answer begins with

    def __call__(self, messages: Sequence[Message], *, prompt: bool = False, with_markers: bool = False) -> _Rendered:
        rendered, spans = render_jinja_template(
            conversations=[[self._shaped(message, prompt) for message in messages]],
            chat_template=self.template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=with_markers,
            **self.tokenizer.special_tokens_map,
        )
        return _unmarked(*self.encoder.revealed(rendered[0], spans[0] if with_markers else ()))

    def _shaped(self, message: Message, in_prompt: bool) -> dict[str, Any]:
        """A message as the template takes it.

        Space around an answer is left out, as it is of sampled ones: it could join the end of the prompt in one token.
        """
        text = message["content"]
        if message["role"] == "assistant":
            text = self.encoder.quoted(text.strip(), self.own_words)
            if not in_prompt:
                text = f"{_BEFORE if self.marks_beginnings else ''}{text}{_AFTER}"
        else:
            text = self.encoder.quoted(text)
        return {**message, "content": [{"type": "text", "text": text}] if self.in_parts else text}


def _unmarked(text: str, spans: Sequence[Span]) -> _Rendered:
    """A rendered text without the marks around answers, and where they stood."""
    places = [(match.start(), match[0]) for match in _MARKS.finditer(text)]
    begins = [place - i for i, (place, mark) in enumerate(places) if mark == _BEFORE]
    closes = [place - i for i, (place, mark) in enumerate(places) if mark == _AFTER]
    at = [place for place, _ in places]
    moved = [(start - bisect.bisect_left(at, start), stop - bisect.bisect_left(at, stop)) for start, stop in spans]
    return _Rendered(_MARKS.sub("", text), moved, begins, closes)


def _located(
    tokenizer: PreTrainedTokenizerBase, encoder: Encoder, style: ChatFormat, messages: Sequence[Message]
) -> tuple[str, list[Span]]:
    """A dialogue as text that ends where its last turn does, and where in it the assistant's tokens are."""
    by_control = encoder.has_control(style.head)
    render = _Renderer(tokenizer, encoder, style.template, style.in_parts, style.own_words, not by_control)
    found = render(messages, with_markers=style.way != "answers")
    turns = _turns(style, found, by_control)
    if len(turns) != sum(message["role"] == "assistant" for message in messages):
        raise ValueError("it leaves out some of what the assistant says")
    text = found.text[: turns[-1].stop]
    if turns[-1].stop == turns[-1].close:  # nothing ends it
        text += encoder.respelled(tokenizer.convert_ids_to_tokens(style.end))
        turns[-1] = turns[-1]._replace(stop=len(text))
    spans = [(turn.start, turn.stop) for turn in turns]
    return text, spans if style.way == "answers" else _within_markers(turns, found.marked)


def _turns(style: ChatFormat, found: _Rendered, by_control: bool) -> list[_Turn]:
    """The assistant's turns, each from the end of the prompt before it to the token that ends it."""
    turns, low, text = [], 0, found.text
    for i, close in enumerate(found.closes):
        if by_control:  # no text can spell it, so the last one before the answer opens its turn
            place = text.rfind(style.head, low, close)
            if place < 0:
                raise ValueError("no control token opens a turn of the assistant's")
            start = place + len(style.opening if text.startswith(style.opening, place) else style.head)
        else:
            start = found.begins[i] - len(style.lead)
        tail = next((tail for tail in style.tails if text.startswith(tail, close)), "")
        low = close + len(tail)
        turns.append(_Turn(start, close, low))
    return turns


def _within_markers(turns: Sequence[_Turn], marked: Sequence[Span]) -> list[Span]:
    """What of the turns the template marks, and the token that ends a turn with it."""
    spans: list[Span] = []
    for turn in turns:
        inside = [(max(start, turn.start), min(stop, turn.stop)) for start, stop in marked]
        inside = [(start, stop) for start, stop in inside if start < stop]
        if inside and inside[-1][1] >= turn.close:
            inside[-1] = (inside[-1][0], turn.stop)
        spans += inside
    if not spans:
        raise ValueError("it marks nothing of the assistant")
    return spans


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
    try:
        way, template = _training_template(tokenizer, own)
        in_parts = _wants_parts(tokenizer, encoder, own)
        renderers = [_Renderer(tokenizer, encoder, each, in_parts, marks_beginnings=True) for each in (template, own)]
        probes = [render(_PROBE) for render in renderers]
        if any(len(probe.begins) != 2 or len(probe.closes) != 2 for probe in probes):
            raise ValueError("its chat template leaves out some of what the assistant says")
        tails = tuple(dict.fromkeys(tail for probe in probes for tail in _tails(encoder, probe) if tail))
        unshared = _unshared(encoder, renderers)
        opening = _opening(renderers[1]).removesuffix(unshared)
        head = _head(opening, probes[0])
        lead = _lead(encoder, probes[0], renderers[1], opening, head, unshared)
    except jinja2.TemplateError as error:
        raise ValueError(f"its chat template fails: {' '.join(str(error).split())}") from None
    (end,) = encoder.encode([_controls(encoder, tails[0])[-1]])[0].ids if tails else [tokenizer.eos_token_id]
    further = tokenizer.convert_tokens_to_ids(tokenizer.init_kwargs.get(STOP_TOKENS) or [])
    stops = tuple(dict.fromkeys([end, tokenizer.eos_token_id, *further]))
    own_words = frozenset(_own_words(encoder, renderers[0], lead))
    return ChatFormat(way, end, stops, template, tails, opening, head, lead, unshared, own_words, in_parts)


def _training_template(tokenizer: PreTrainedTokenizerBase, own: str) -> tuple[str, str]:
    """What says which tokens are the assistant's, and the template that dialogues are rendered with."""
    if has_generation_markers(own):
        return "markers", own
    from trl.chat_template_utils import get_training_chat_template

    try:
        known = get_training_chat_template(tokenizer)
    except (ValueError, TypeError, jinja2.TemplateError):  # none that TRL knows
        known = None
    return ("trl", known) if known and has_generation_markers(known) else ("answers", own)


def _wants_parts(tokenizer: PreTrainedTokenizerBase, encoder: Encoder, template: str) -> bool:
    """Whether the template writes contents only where they are lists of parts."""
    for in_parts in (False, True):
        try:
            text = _Renderer(tokenizer, encoder, template, in_parts)(_PROBE).text
        except (jinja2.TemplateError, TypeError):
            continue
        if all(message["content"] in text for message in _PROBE[2:]) and "'type'" not in text:
            return in_parts
    _Renderer(tokenizer, encoder, template, False)(_PROBE)  # for the error that it raises
    raise ValueError("its chat template does not write what the user and the assistant say")


def _controls(encoder: Encoder, text: str) -> list[str]:
    """The respelled control tokens in a text."""
    return encoder.spelling.findall(text)


def _tails(encoder: Encoder, probe: _Rendered) -> list[str]:
    """What follows the last answer and the first, each up to the token that ends the turn; "" where none does.

    That is the last control token that follows both answers alike; where nothing does, the first that follows each.
    """
    after = [probe.text[close:] for close in reversed(probe.closes)]
    shared = os.path.commonprefix(after)
    whole = list(encoder.spelling.finditer(shared))
    if whole:
        return [shared[: whole[-1].end()]]
    tails = []
    for text in after:
        found = encoder.spelling.search(text)
        tails.append(text[: found.end()] if found and not text[: found.start()].strip() else "")
    return tails if tails[0] else []


def _own_words(encoder: Encoder, render: _Renderer, lead: str) -> Iterator[str]:
    """The control tokens that are not special and that the template writes nowhere but around what is thought."""
    special = {token.content for token in render.tokenizer.added_tokens_decoder.values() if token.special}
    texts = [render(_PROBE).text]
    with contextlib.suppress(jinja2.TemplateError):  # it may know no system
        texts.append(render([{"role": "system", "content": "Be brief."}, *_PROBE]).text)
    around = {token for text in texts for token in _controls(encoder, text.replace(lead, "") if lead else text)}
    for token in encoder.controls:
        if token not in special and encoder.respelled(token) not in around:
            yield token


def _opening(render: _Renderer) -> str:
    """What is added to a prompt for the assistant to go on from."""
    bare, prompt = render(_PROBE[:1]).text, render(_PROBE[:1], prompt=True).text
    return prompt.removeprefix(bare) if prompt.startswith(bare) else ""


def _unshared(encoder: Encoder, renderers: Sequence[_Renderer]) -> str:
    """The end of a prompt that no dialogue has there, token by token: `<think>` for thoughts that none holds."""
    prompt = renderers[1](_PROBE[:1], prompt=True).text
    dialogues = [render(_PROBE[:2]).text for render in renderers]
    asked, *answered = encoder.encode([prompt, *dialogues])
    shared = min(len(os.path.commonprefix([asked.ids, each.ids])) for each in answered)
    if shared == len(asked.ids):
        return ""
    rest = prompt[: asked.offsets[shared - 1][1] if shared else 0]
    # A thought that is begun and never ended: its first token goes with it, for the model writes it by itself.
    last = encoder.spelling.findall(rest)[-1:]
    if last and rest.endswith(last[0]) and _closed(encoder, last[0]) in dialogues[1][len(rest) :].strip()[:80]:
        rest = rest.removesuffix(last[0])
    return prompt[len(rest) :]


def _closed(encoder: Encoder, token: str) -> str:
    """`</think>` of `<think>`, respelled where it is a control token."""
    name = next(name for name in encoder.controls if encoder.respelled(name) == token)
    closing = name.replace("<", "</", 1)
    return encoder.respelled(closing) if closing in encoder.controls else closing


def _head(opening: str, probe: _Rendered) -> str:
    """As much of the opening as stands before every answer."""
    head, after = opening, 0
    for asked, begin in zip((_PROBE[0], _PROBE[2]), probe.begins, strict=True):
        asked_at = probe.text.rfind(asked["content"], after, begin)
        between = probe.text[asked_at + len(asked["content"]) if asked_at >= 0 else after : begin]
        while head and head not in between:
            head = head[:-1]
        after = begin
    return head if head.count("\ufdda") == head.count("\ufddc") else head[: head.rindex("\ufdda")]


def _lead(
    encoder: Encoder, probe: _Rendered, render: _Renderer, opening: str, head: str, unshared: str
) -> str:
    """What stands between the end of the prompt and the last answer."""
    begin = probe.begins[-1]
    if encoder.has_control(head):
        place = probe.text.rfind(head, 0, begin)
        start = place + len(opening if probe.text.startswith(opening, place) else head)
        return probe.text[start:begin]
    prompt, dialogue = render(_PROBE[:1], prompt=True).text.removesuffix(unshared), render(_PROBE[:2])
    if dialogue.text.startswith(prompt):
        return dialogue.text[len(prompt) : dialogue.begins[0]]
    text = probe.text[:begin]
    return text[len(text.rstrip()) :]
