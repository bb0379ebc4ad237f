"""Find how a chat template begins and ends an assistant's turn, and what precedes the answer.

A dialogue of two rounds is rendered with marks around its answers. No template is a special case.
TRL's training version of a template is used if there is one.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import re
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from align.text.encoding import Encoder, Span, chat_template_of, encoder_of

Message = dict[str, Any]

# Key in tokenizer_config.json: further tokens at which the published model stops.
STOP_TOKENS = "align_stop_tokens"

# Marks around an answer while it is rendered. Text from users cannot hold them (see
# `Encoder.quoted`).
_BEFORE, _AFTER = "\ufddd", "\ufdde"
_MARKS = re.compile(f"[{_BEFORE}{_AFTER}]")

# Two rounds, because a template may end the last turn differently from the turns before it
# (gpt-oss).
PROBE = [
    {"role": "user", "content": "Who sat on the mat?"},
    {"role": "assistant", "content": "The cat."},
    {"role": "user", "content": "And who ran home?"},
    {"role": "assistant", "content": "The dog ran home."},
]


class ChatFormat(NamedTuple):
    """A description of a model's chat template.

    Texts are respelled, as `Encoder.revealed` returns them.

    Attributes:
        way: how the assistant's tokens are found: "markers" are the template's generation markers;
            "trl" are those of TRL's training version of it; "answers" are all tokens from the end
            of the prompt to the end of the turn.
        end: id of the token that ends the assistant's turn.
        stops: ids that end a response: `end`, the end of text, and the further stop tokens of the
            published model.
        template: the template that renders dialogues to learn from; prompts use the model's own.
        tails: the texts after an answer, up to the token that ends the turn; the last turn's first.
        opening: the text that is added to a prompt for the assistant to continue.
        head: the longest prefix of `opening` that every turn has.
        lead: the text between the prompt's end and the last answer, such as a space or an empty
            thought.
        unshared: a suffix of prompts that dialogues lack, such as an opened `<think>`; prompts drop
            it.
        own_words: control tokens that an assistant may write: those that are not special and that
            separate no turns.
        in_parts: whether contents are lists of parts, as templates of multimodal models expect.
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


class Rendered(NamedTuple):
    """A dialogue as text for the encoder, and character positions in it."""

    text: str
    marked: list[Span]  # between the template's generation markers
    begins: list[int]  # the starts of answers; empty if these are not marked
    closes: list[int]  # the ends of answers


_FORMATS: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Encoder, ChatFormat]] = (
    weakref.WeakKeyDictionary()
)


def chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Return the format of the tokenizer's chat template.

    It is found by rendering a dialogue of two rounds, and cached for each tokenizer.

    Raises:
        ValueError: there is no chat template, or the assistant's words cannot be found in its
            output.
    """
    encoder = encoder_of(tokenizer)
    known = _FORMATS.get(tokenizer)
    if known is None or known[0] is not encoder:
        known = _FORMATS[tokenizer] = (encoder, _find_format(tokenizer, encoder))
    return known[1]


def has_generation_markers(template: str) -> bool:
    """Return whether the template has a `{% generation %}` block.

    Comments and strings in the template do not count.
    """
    pieces = [
        (kind, text) for _, kind, text in jinja2.Environment().lex(template) if kind != "whitespace"
    ]
    return any(
        a[0] == "block_begin" and b == ("name", "generation") for a, b in itertools.pairwise(pieces)
    )


# -- rendering -------------------------------------------------------------------------------------


class Renderer(NamedTuple):
    """A renderer of dialogues with one template. Text that people wrote in them stays text."""

    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    template: str
    in_parts: bool
    own_words: frozenset[str] = frozenset()
    # Off by default: a mark before an answer may hide from a template how the answer begins.
    marks_beginnings: bool = False

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        prompt: bool = False,
        with_markers: bool = False,
        tools: str | None = None,
    ) -> Rendered:
        """Render messages in the form of a record; `tools` is their list as JSON text."""
        rendered, spans = render_jinja_template(
            conversations=[[self._shaped(message, prompt) for message in messages]],
            tools=None if tools is None else self._quoted(json.loads(tools)),
            chat_template=self.template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=with_markers,
            **self.tokenizer.special_tokens_map,
        )
        return _unmarked(*self.encoder.revealed(rendered[0], spans[0] if with_markers else ()))

    def _shaped(self, message: Message, in_prompt: bool) -> dict[str, Any]:
        """Return a message in the form that templates expect.

        The weight is removed, because only align uses it, and tool calls become objects. Space
        around an answer is removed, as it is from sampled answers: it could join the end of the
        prompt in one token. A turn with tool calls has no marks, because a template may write the
        calls in place of the content.
        """
        text = message["content"]
        shaped = {
            name: value for name, value in message.items() if name != "weight" and value is not None
        }
        if shaped.get("tool_calls"):
            shaped["tool_calls"] = self._quoted(json.loads(shaped["tool_calls"]))
        if message["role"] == "assistant":
            text = self.encoder.quoted(text.strip(), self.own_words)
            if not in_prompt and "tool_calls" not in shaped:
                text = f"{_BEFORE if self.marks_beginnings else ''}{text}{_AFTER}"
        else:
            text = self.encoder.quoted(text)
        return {**shaped, "content": [{"type": "text", "text": text}] if self.in_parts else text}

    def _quoted(self, value: Any) -> Any:
        """Return a JSON value whose texts are marked where they spell control tokens."""
        if isinstance(value, str):
            return self.encoder.quoted(value)
        if isinstance(value, dict):
            return {self.encoder.quoted(name): self._quoted(each) for name, each in value.items()}
        return [self._quoted(each) for each in value] if isinstance(value, list) else value


def _unmarked(text: str, spans: Sequence[Span]) -> Rendered:
    """Return a rendered text without the marks around answers, and the positions of the marks."""
    places = [(match.start(), match[0]) for match in _MARKS.finditer(text)]
    begins = [place - i for i, (place, mark) in enumerate(places) if mark == _BEFORE]
    closes = [place - i for i, (place, mark) in enumerate(places) if mark == _AFTER]
    at = [place for place, _ in places]
    moved = [
        (start - bisect.bisect_left(at, start), stop - bisect.bisect_left(at, stop))
        for start, stop in spans
    ]
    return Rendered(_MARKS.sub("", text), moved, begins, closes)


# -- finding the format ----------------------------------------------------------------------------


def _find_format(tokenizer: PreTrainedTokenizerBase, encoder: Encoder) -> ChatFormat:
    own = chat_template_of(tokenizer)
    if not own:
        raise ValueError("it has no chat template")
    try:
        way, template = _training_template(tokenizer, own)
        in_parts = _wants_parts(tokenizer, encoder, own)
        renderers = [
            Renderer(tokenizer, encoder, each, in_parts, marks_beginnings=True)
            for each in (template, own)
        ]
        probes = [render(PROBE) for render in renderers]
        if any(len(probe.begins) != 2 or len(probe.closes) != 2 for probe in probes):
            raise ValueError("its chat template leaves out some of what the assistant says")
        tails = tuple(
            dict.fromkeys(tail for probe in probes for tail in _tails(encoder, probe) if tail)
        )
        unshared = _unshared(encoder, renderers)
        opening = _opening(renderers[1]).removesuffix(unshared)
        head = _head(encoder, opening, probes[0])
        lead = _lead(encoder, probes[0], renderers[1], opening, head, unshared)
    except ValueError:
        raise
    except Exception as error:  # a template is a program, and may raise anything
        said = " ".join(str(error).split())
        raise ValueError(f"its chat template fails: {type(error).__name__}: {said}") from None
    (end,) = (
        encoder.encode([_controls(encoder, tails[0])[-1]])[0].ids
        if tails
        else [tokenizer.eos_token_id]
    )
    further = tokenizer.convert_tokens_to_ids(tokenizer.init_kwargs.get(STOP_TOKENS) or [])
    stops = tuple(dict.fromkeys([end, tokenizer.eos_token_id, *further]))
    own_words = frozenset(_own_words(encoder, renderers[0], lead))
    return ChatFormat(
        way, end, stops, template, tails, opening, head, lead, unshared, own_words, in_parts
    )


def _training_template(tokenizer: PreTrainedTokenizerBase, own: str) -> tuple[str, str]:
    """Return how the assistant's tokens are found, and the template that renders dialogues.

    See `ChatFormat.way` and `ChatFormat.template`.
    """
    if has_generation_markers(own):
        return "markers", own
    from trl.chat_template_utils import get_training_chat_template

    try:
        known = get_training_chat_template(tokenizer)
    except (ValueError, TypeError, jinja2.TemplateError):  # TRL does not know the template
        known = None
    return ("trl", known) if known and has_generation_markers(known) else ("answers", own)


def _wants_parts(tokenizer: PreTrainedTokenizerBase, encoder: Encoder, template: str) -> bool:
    """Return whether the template writes contents only if they are lists of parts."""
    for in_parts in (False, True):
        try:
            text = Renderer(tokenizer, encoder, template, in_parts)(PROBE).text
        except Exception:  # a template is a program, and may raise anything
            continue
        if all(message["content"] in text for message in PROBE[2:]) and "'type'" not in text:
            return in_parts
    Renderer(tokenizer, encoder, template, False)(PROBE)  # to raise the template's own error
    raise ValueError("its chat template does not write what the user and the assistant say")


def _controls(encoder: Encoder, text: str) -> list[str]:
    """Return the respelled control tokens in a text."""
    return encoder.spelling.findall(text)


def _alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the common prefix of two sequences."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


def _tails(encoder: Encoder, probe: Rendered) -> list[str]:
    """Return the texts after the last answer and the first, up to the token that ends the turn.

    If a common text with control tokens follows both answers, its last control token ends the turn,
    and there is one tail. Otherwise the first control token after each answer ends the turn; the
    tail is "" if there is none, or if other text comes before it. The result is empty if the last
    answer has no tail.
    """
    after = [probe.text[close:] for close in reversed(probe.closes)]
    shared = after[0][: _alike(*after)]
    whole = list(encoder.spelling.finditer(shared))
    if whole:
        return [shared[: whole[-1].end()]]
    tails = []
    for text in after:
        found = encoder.spelling.search(text)
        tails.append(text[: found.end()] if found and not text[: found.start()].strip() else "")
    return tails if tails[0] else []


def _own_words(encoder: Encoder, render: Renderer, lead: str) -> Iterator[str]:
    """Yield the control tokens that are not special and that the template writes only in `lead`.

    `lead` may be an empty thought, so these are the tokens around thoughts and those that are
    unused.
    """
    special = {
        token.content for token in render.tokenizer.added_tokens_decoder.values() if token.special
    }
    texts = [render(PROBE).text]
    with contextlib.suppress(jinja2.TemplateError):  # the template may reject system messages
        texts.append(render([{"role": "system", "content": "Be brief."}, *PROBE]).text)
    around = {
        token
        for text in texts
        for token in _controls(encoder, text.replace(lead, "") if lead else text)
    }
    for token in encoder.controls:
        if token not in special and encoder.respelled(token) not in around:
            yield token


def _opening(render: Renderer) -> str:
    """Return the text that is added to a prompt for the assistant to continue."""
    bare, prompt = render(PROBE[:1]).text, render(PROBE[:1], prompt=True).text
    return prompt.removeprefix(bare) if prompt.startswith(bare) else ""


def _unshared(encoder: Encoder, renderers: Sequence[Renderer]) -> str:
    """Return the suffix of a prompt that no dialogue has in its place.

    An example is `<think>`, which opens a thought: dialogues hold no thoughts. Texts are compared
    token by token.
    """
    prompt = renderers[1](PROBE[:1], prompt=True).text
    dialogues = [render(PROBE[:2]).text for render in renderers]
    asked, *answered = encoder.encode([prompt, *dialogues])
    shared = min(_alike(asked.ids, each.ids) for each in answered)
    if shared == len(asked.ids):
        return ""
    rest = prompt[: asked.offsets[shared - 1][1] if shared else 0]
    # The prompt opens a thought, and the dialogue closes it at once. Drop the opening token, too:
    # the model writes it on its own.
    last = encoder.spelling.findall(rest)[-1:]
    if (
        last
        and rest.endswith(last[0])
        and _closed(encoder, last[0]) in dialogues[1][len(rest) :].strip()[:80]
    ):
        rest = rest.removesuffix(last[0])
    return prompt[len(rest) :]


def _closed(encoder: Encoder, token: str) -> str:
    """Return the token that closes a thought: `</think>` for `<think>`.

    The result is respelled if it is a control token.
    """
    name = next(name for name in encoder.controls if encoder.respelled(name) == token)
    closing = name.replace("<", "</", 1)
    return encoder.respelled(closing) if closing in encoder.controls else closing


def _head(encoder: Encoder, opening: str, probe: Rendered) -> str:
    """Return the longest prefix of the opening that precedes every answer."""
    head, after = opening, 0
    for asked, begin in zip((PROBE[0], PROBE[2]), probe.begins, strict=True):
        asked_at = probe.text.rfind(asked["content"], after, begin)
        between = probe.text[asked_at + len(asked["content"]) if asked_at >= 0 else after : begin]
        while head and head not in between:
            head = head[:-1]
        after = begin
    return encoder.without_half_a_control(head)


def _lead(
    encoder: Encoder, probe: Rendered, render: Renderer, opening: str, head: str, unshared: str
) -> str:
    """Return the template's text between the end of the prompt and the last answer."""
    begin = probe.begins[-1]
    if encoder.has_control(head):
        place = probe.text.rfind(head, 0, begin)
        start = place + len(opening if probe.text.startswith(opening, place) else head)
        return probe.text[start:begin]
    prompt, dialogue = render(PROBE[:1], prompt=True).text.removesuffix(unshared), render(PROBE[:2])
    if dialogue.text.startswith(prompt):
        return dialogue.text[len(prompt) : dialogue.begins[0]]
    text = probe.text[:begin]
    return text[len(text.rstrip()) :]
