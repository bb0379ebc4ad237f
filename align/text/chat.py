"""Encode messages with a model's own chat template, and mark the tokens that the assistant wrote.

A sequence always ends at the token that ends the assistant's turn. Supervised tuning learns this
token, sampling stops at it, and reward models are trained and read at it. Text that a template
writes after it (a line break, Phi-3's second end token) is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from transformers import GenerationConfig, PreTrainedTokenizerBase

from align.errors import ConfigError
from align.text.chat_format import (
    PROBE,
    STOP_TOKENS,
    ChatFormat,
    Message,
    Rendered,
    Renderer,
    chat_format,
)
from align.text.encoding import Encoder, Span, chat_template_of, encode_texts, encoder_of
from align.text.forms import Form, Shot, form_template

ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}

# A space precedes the first word after a role token, as it precedes any other word, so that a word
# is the same token everywhere. The end-of-text token closes each assistant turn inside the
# generation markers: outside of them it would not be learned, and no model would learn to stop.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}{%"
    " generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}{% elif"
    " message['role'] in ('system', 'user') %}{{ '<|' + message['role'] + '|> ' +"
    " message['content'] | trim }}{% else %}{{ raise_exception('unknown role ' + message['role'])"
    " }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# The same template for a tokenizer whose tokens hold no spaces, such as GPT-1's. The space is
# outside the generation markers there, because it is not a token.
SPACELESS_CHAT_TEMPLATE = CHAT_TEMPLATE.replace(
    "{{ '<|assistant|>' }}{% generation %}{{ ' ' + message",
    "{{ '<|assistant|> ' }}{% generation %}{{ message",
)

# Keys in tokenizer_config.json. WHOLE_DIALOGUES: dialogues keep the text that the template writes
# after the last turn, as plain Transformers reads them. UNREAD_END: the token id that plain
# Transformers skips at the end.
WHOLE_DIALOGUES, UNREAD_END = "align_whole_dialogues", "align_unread_end"

# Key in tokenizer_config.json: texts that end a response. `load_tokenizer` replaces them with those
# of generation_config.json if this file exists.
STOP_STRINGS = "align_stop_strings"


class Encoded(NamedTuple):
    """A conversation as token ids, with a mask of the tokens to learn.

    The mask is True at the assistant's tokens, except in turns with weight 0.
    """

    ids: list[int]
    by_assistant: list[bool]


class _Turn(NamedTuple):
    """An assistant turn in a rendered dialogue, as character positions."""

    start: int  # the end of the prompt
    close: int  # the end of the answer
    stop: int  # the end of the token that ends the turn


class TemplateRefusal(ConfigError):
    """An error: a chat template does not accept a conversation, such as one with a system message.

    Attributes:
        index: which of the given conversations, from 0.
        reason: what is wrong with it.
    """

    def __init__(self, where: str, index: int, reason: str):
        super().__init__(f"{where} {index + 1}: {reason}")
        self.index, self.reason = index, reason


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end a text.

    These are the stop tokens of the chat template, or the end-of-text token if there is no
    template.
    """
    if chat_template_of(tokenizer) is None:
        return [tokenizer.eos_token_id]
    return list(chat_format(tokenizer).stops)


def stop_strings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the texts that end a response: `stop_strings` of the model's generation_config.json.

    `load_tokenizer` reads that file. An adapter's tokenizer has the texts of the base model that it
    was trained on.
    """
    return tuple(tokenizer.init_kwargs.get(STOP_STRINGS, ()))


def keep_stop_strings(
    tokenizer: PreTrainedTokenizerBase, strings: str | Sequence[str] | None
) -> None:
    """Store the texts that end a response in the tokenizer.

    `save_model` writes them to generation_config.json, for `generate`.
    """
    found = [strings] if isinstance(strings, str) else list(strings or ())
    tokenizer.init_kwargs.pop(STOP_STRINGS, None)
    if any(found):
        tokenizer.init_kwargs[STOP_STRINGS] = [string for string in found if string]


def ask_in_form(tokenizer: PreTrainedTokenizerBase, form: Form, shots: Sequence[Shot]) -> None:
    """Set the tokenizer's chat template to a form with solved examples before it."""
    tokenizer.chat_template = form_template(form, shots)
    keep_stop_strings(tokenizer, form.stop_strings)


def up_to_stop(text: str, stop_strings: Sequence[str]) -> str:
    """Return the text before its first stop string, or all of it if it has none."""
    places = [text.find(string) for string in stop_strings]
    return text[: min((place for place in places if place >= 0), default=None)]


def is_ended(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Return whether a response ended on its own and was not cut off.

    It ends on its own with a stop token or in a stop string.
    """
    if ids[-1] in stop_ids(tokenizer):
        return True
    strings = stop_strings(tokenizer)
    if not strings:
        return False
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return any(string in text for string in strings)


def without_end(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Sequence[int]:
    """Return sampled tokens without the stop token that ended them.

    Some stop tokens are not special tokens, so decoding may keep them.
    """
    return ids[:-1] if ids and ids[-1] in stop_ids(tokenizer) else ids


def keep_stops(
    tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None
) -> None:
    """Store the published model's stop tokens and stop strings in the tokenizer.

    The end-of-text token is not stored again.
    """
    ends = getattr(generation_config, "eos_token_id", None)
    ids = [ends] if isinstance(ends, int) else list(ends or ())
    known = tokenizer.get_vocab().values()
    further = [i for i in ids if i != tokenizer.eos_token_id and i in known]
    if further:
        tokenizer.init_kwargs[STOP_TOKENS] = tokenizer.convert_ids_to_tokens(further)
    keep_stop_strings(tokenizer, getattr(generation_config, "stop_strings", None))


def read_whole_dialogues(tokenizer: PreTrainedTokenizerBase, pad_token_id: int | None) -> None:
    """Encode dialogues up to the last token that plain Transformers reads.

    This is for published reward models.

    Args:
        tokenizer: changed in place, to record this.
        pad_token_id: of the published model's config. Transformers skips this token at the end,
            even if it ends a turn.
    """
    tokenizer.init_kwargs[WHOLE_DIALOGUES] = True
    if pad_token_id is not None:
        tokenizer.init_kwargs[UNREAD_END] = pad_token_id


def read_alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers encode a dialogue to the same ids.

    If they do, one model can read what the other wrote.
    """
    states = [(t.get_vocab(), chat_template_of(t), t.special_tokens_map) for t in (one, other)]
    if states[0] != states[1]:
        return False
    answer = PROBE[-1]["content"]
    both = [encode_dialogues(tokenizer, [PROBE[:-1]], [answer]) for tokenizer in (one, other)]
    return both[0] == both[1]


def check_chat(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Encode a dialogue, and check everything that training, sampling and scoring rely on.

    Returns:
        Lines that describe the chat template to the user.

    Raises:
        ValueError: a check fails; the message is one line.
    """
    _require_words(tokenizer)
    style = chat_format(tokenizer)
    # The last character is several tokens: the mask must cover all of them.
    asked, answer = PROBE[:1], {"role": "assistant", "content": "It is a cat \U0001f408"}
    hint = "give chat_template=align, or path:FILE with one that marks what the assistant says"
    try:
        (encoded,) = encode_conversations(tokenizer, [[*asked, answer]], "the dialogue")
        (prompt,) = encode_prompts(tokenizer, [asked], "the dialogue")
        (answered,) = encode_dialogues(tokenizer, [asked], [answer["content"]], "the dialogue")
    except TemplateRefusal as error:
        raise ValueError(f"{error.reason}; {hint}") from None
    question = PROBE[0]["content"]
    content = [{"type": "text", "text": question}] if style.in_parts else question
    message = {"role": "user", "content": content}
    plain = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    mine = [token for token, by in zip(encoded.ids, encoded.by_assistant, strict=True) if by]
    if prompt != plain[: len(prompt)] or (len(prompt) < len(plain) and not style.unshared):
        raise ValueError(
            f"its chat template encodes to other tokens than in plain Transformers; {hint}"
        )
    if (
        not mine
        or decode_response(tokenizer, mine).split()
        != _as_decoded(tokenizer, answer["content"]).split()
    ):
        raise ValueError(
            "the assistant's words cannot be distinguished from the rest of its chat template;"
            f" {hint}"
        )
    if mine[-1] != style.end or style.end not in style.stops:
        raise ValueError(
            f"its chat template ends no turn of the assistant, so no response can end; {hint}"
        )
    if answered[: len(prompt)] != prompt or encoded.ids[: len(prompt)] != prompt:
        raise ValueError(
            f"its chat template writes a prompt differently once it is answered; {hint}"
        )
    names = tokenizer.convert_ids_to_tokens(list(style.stops))
    ways = {
        "markers": "its own marks say what the assistant writes",
        "trl": "TRL's training version of it says what the assistant writes",
        "answers": "what follows a prompt is the assistant's",
    }
    said = [
        f"chat template: {ways[style.way]}; a turn ends with {names[0]}, sampling stops at"
        f" {', '.join(names)}"
    ]
    if "strftime_now" in style.template:
        said.append(
            "its chat template writes the day's date, so the same step on another day reads other"
            " tokens"
        )
    if style.unshared:
        shown = tokenizer.decode(plain[len(prompt) :])
        said.append(
            f"prompts leave out {shown!r}, with which its template opens a thought: dialogues have"
            " no thoughts"
        )
    return said


def _require_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` if the tokenizer cannot encode plain text.

    A tokenizer that was trained on nothing is an example.
    """
    try:
        known = _as_decoded(tokenizer, PROBE[0]["content"])
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises nothing narrower
            raise
        raise ValueError(
            f"its tokenizer cannot encode plain text ({' '.join(str(error).split())})"
        ) from None
    if not known.strip():
        raise ValueError("its tokenizer makes nothing but unknown tokens of plain text")


def _as_decoded(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text after encoding and decoding.

    Some tokenizers do not keep case, or lack characters.
    """
    return tokenizer.decode(encode_texts(tokenizer, [text])[0], skip_special_tokens=True)


# -- conversations, prompts and answers ------------------------------------------------------------


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[Message]],
    where: str = "row",
    tools: Sequence[str | None] | None = None,
) -> list[Encoded]:
    """Encode dialogues up to the end of the last assistant turn, and mark the assistant's tokens.

    The token that ends a turn is the assistant's.

    Args:
        tokenizer: with a chat template.
        conversations: messages; the last one is the assistant's. A turn with weight 0 is not marked
            as the assistant's.
        where: the name of a conversation in errors, which comes before its number.
        tools: the tools of each conversation as JSON text, or None.

    Raises:
        TemplateRefusal: the template rejects a conversation, or leaves out the tools, a tool call
            or a tool's result.
    """
    if not conversations:
        return []
    style, encoder = chat_format(tokenizer), encoder_of(tokenizer)
    located = []
    for i, messages in enumerate(conversations):
        try:
            located.append(
                _located(
                    tokenizer, encoder, style, messages, tools[i] if tools is not None else None
                )
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise _refused(where, i, error) from None
    encodings = encoder.encode([text for text, _ in located])
    return [
        _marked(encoding.ids, encoding.offsets, spans)
        for encoding, (_, spans) in zip(encodings, located, strict=True)
    ]


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]], responses: Sequence[str]
) -> list[Encoded]:
    """Encode prompts with their responses, and mark the tokens of the responses alone.

    Earlier answers in a prompt are not marked.

    Raises:
        TemplateRefusal: see `encode_conversations`.
    """
    conversations = []
    for prompt, response in zip(prompts, responses, strict=True):
        before = [
            message | {"weight": 0} if message["role"] == "assistant" else message
            for message in prompt
        ]
        conversations.append([*before, {"role": "assistant", "content": response}])
    return encode_conversations(tokenizer, conversations)


def takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template writes the tools that it is given."""
    style = chat_format(tokenizer)
    render = Renderer(
        tokenizer, encoder_of(tokenizer), style.template, style.in_parts, style.own_words
    )
    tool = {
        "name": "look",
        "description": "Look it up.",
        "parameters": {"type": "object", "properties": {}},
    }
    try:
        given = render(PROBE, tools=json.dumps([{"type": "function", "function": tool}]))
    except Exception:  # a template is a program, and may raise anything
        return False
    return given.text != render(PROBE).text


def uses_tools(messages: Sequence[Message]) -> bool:
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]], where: str = "prompt"
) -> list[list[int]]:
    """Encode prompts up to where the assistant's answer begins.

    Raises:
        TemplateRefusal: see `encode_conversations`.
    """
    return _encoded(tokenizer, prompts, where, answered=False)


def encode_dialogues(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[Message]],
    responses: Sequence[str],
    where: str = "dialogue",
) -> list[list[int]]:
    """Encode prompts with their responses, up to the token that ends the assistant's turn.

    Raises:
        TemplateRefusal: see `encode_conversations`.
    """
    turns = [
        [*p, {"role": "assistant", "content": r}] for p, r in zip(prompts, responses, strict=True)
    ]
    return _encoded(tokenizer, turns, where, answered=True)


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of a response.

    It contains no end token, no special tokens, and not the text that the template writes before an
    answer. It ends before the first stop string.
    """
    ids = list(ids)
    if chat_template_of(tokenizer) is not None:
        style = chat_format(tokenizer)
        lead = encoder_of(tokenizer).encode([style.lead])[0].ids if style.lead.strip() else []
        ids = ids[len(lead) :] if ids[: len(lead)] == lead else ids
    ids = without_end(tokenizer, ids)
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return up_to_stop(text, stop_strings(tokenizer)).strip()


def settled_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the beginning of an unfinished response's text that further tokens cannot change.

    It ends with a complete character, and before any text that may become a stop string.
    """
    text = decode_response(tokenizer, ids).rstrip("\ufffd")
    beginnings = [
        string[:length] for string in stop_strings(tokenizer) for length in range(1, len(string))
    ]
    held = max((len(beginning) for beginning in beginnings if text.endswith(beginning)), default=0)
    return text[: len(text) - held].rstrip()


def transcript(prompt: Sequence[Message]) -> str:
    """Return a prompt as plain text, for readers without a chat template.

    A single message is its content alone. Several messages have the role of the speaker before
    each.
    """
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {_said(m)}" for m in prompt)


def show_prompt(prompt: Sequence[Message]) -> str:
    """Return a prompt in one line, for tables of samples."""
    return " | ".join(
        m["content"] if m["role"] == "user" else f"[{m['role']}] {_said(m)}" for m in prompt
    )


def _said(message: Message) -> str:
    """Return a message's content, or its tool calls if the content is empty."""
    return message["content"] or message.get("tool_calls", "")


def _encoded(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[Message]],
    where: str,
    *,
    answered: bool,
) -> list[list[int]]:
    if not conversations:
        return []
    style, encoder = chat_format(tokenizer), encoder_of(tokenizer)
    render = Renderer(
        tokenizer, encoder, str(chat_template_of(tokenizer)), style.in_parts, style.own_words
    )
    texts = []
    for i, messages in enumerate(conversations):
        try:
            if uses_tools(messages):
                _require_tools(render, messages, None)
            if not answered:
                texts.append(render(messages, prompt=True).text.removesuffix(style.unshared))
            elif style.way == "trl" and not tokenizer.init_kwargs.get(WHOLE_DIALOGUES):
                # Use the training template for the response: the model's own template may drop the
                # assistant's thoughts.
                prompt = render(messages[:-1], prompt=True).text.removesuffix(style.unshared)
                text, turns, _ = _rendered_turns(tokenizer, encoder, style, messages)
                texts.append(prompt + text[turns[-1].start :])
            else:
                texts.append(_up_to_the_end(tokenizer, encoder, style, render(messages)))
        except Exception as error:  # a template is a program, and may raise anything
            raise _refused(where, i, error) from None
    encoded = [encoding.ids for encoding in encoder.encode(texts)]
    unread = tokenizer.init_kwargs.get(UNREAD_END)
    return encoded if unread is None else [_without_last(ids, unread) for ids in encoded]


def _without_last(ids: list[int], unread: int) -> list[int]:
    """Return ids without all copies of `unread` at the end."""
    while ids and ids[-1] == unread:
        ids = ids[:-1]
    return ids


def _up_to_the_end(
    tokenizer: PreTrainedTokenizerBase, encoder: Encoder, style: ChatFormat, found: Rendered
) -> str:
    """Return a rendered dialogue up to the token that ends its last turn.

    That token is added if the template does not write it. With `WHOLE_DIALOGUES`, all of the text
    is returned.
    """
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
    return TemplateRefusal(
        where, i, f"the model's chat template refuses it: {' '.join(str(error).split())}"
    )


def _located(
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder,
    style: ChatFormat,
    messages: Sequence[Message],
    tools: str | None = None,
) -> tuple[str, list[Span]]:
    """Return a dialogue's text up to the end of its last turn, and the spans to learn."""
    text, turns, marked = _rendered_turns(tokenizer, encoder, style, messages, tools)
    answers = (message for message in messages if message["role"] == "assistant")
    learned = [
        turn for turn, answer in zip(turns, answers, strict=True) if answer.get("weight") != 0
    ]
    spans = [(turn.start, turn.stop) for turn in learned]
    return text, spans if style.way == "answers" else _within_markers(learned, marked)


def _rendered_turns(
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder,
    style: ChatFormat,
    messages: Sequence[Message],
    tools: str | None = None,
) -> tuple[str, list[_Turn], list[Span]]:
    """Render a dialogue up to the end of its last turn.

    Returns:
        The text, the assistant's turns in it, and the spans that the template marks.
    """
    by_control = encoder.has_control(style.head)
    render = Renderer(
        tokenizer, encoder, style.template, style.in_parts, style.own_words, not by_control
    )
    found = render(messages, with_markers=style.way != "answers", tools=tools)
    if tools is not None or uses_tools(messages):
        _require_tools(render, messages, tools)
    if uses_tools(messages):
        turns = _turns_among_tools(render, style, encoder, messages, tools, found.text)
    else:
        turns = _turns(style, found, by_control)
    if len(turns) != sum(message["role"] == "assistant" for message in messages):
        raise ValueError("it leaves out some of what the assistant says")
    text = found.text[: turns[-1].stop]
    if turns[-1].stop == turns[-1].close:  # the template writes no end token
        text += encoder.respelled(tokenizer.convert_ids_to_tokens(style.end))
        turns[-1] = turns[-1]._replace(stop=len(text))
    return text, turns, found.marked


def _turns(style: ChatFormat, found: Rendered, by_control: bool) -> list[_Turn]:
    """Return the assistant's turns, each from the end of its prompt to the token that ends it."""
    turns, low, text = [], 0, found.text
    for i, close in enumerate(found.closes):
        # No text can spell a control token, so the last head before the answer opens its turn.
        if by_control:
            place = text.rfind(style.head, low, close)
            if place < 0:
                raise ValueError("no control token opens a turn of the assistant's")
            start = place + len(
                style.opening if text.startswith(style.opening, place) else style.head
            )
        elif len(found.begins) != len(found.closes):
            raise ValueError("it leaves out some of what the assistant says")
        else:
            start = found.begins[i] - len(style.lead)
        tail = next((tail for tail in style.tails if text.startswith(tail, close)), "")
        low = close + len(tail)
        turns.append(_Turn(start, close, low))
    return turns


def _turns_among_tools(
    render: Renderer,
    style: ChatFormat,
    encoder: Encoder,
    messages: Sequence[Message],
    tools: str | None,
    text: str,
) -> list[_Turn]:
    """Return the assistant's turns of a dialogue with tool calls.

    Templates write tool calls in their own ways, so a turn is the text that the dialogue up to it
    adds to its prompt. Raises `ValueError` if the template writes a turn differently once other
    turns follow: its tokens could then not be told apart from those around it.
    """
    turns = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = render(messages[:i], prompt=True, tools=tools).text.removesuffix(style.unshared)
        answered = render(messages[: i + 1], tools=tools).text.rstrip()
        controls = list(encoder.spelling.finditer(answered, len(asked)))
        stop = controls[-1].end() if controls else len(answered)
        if not text.startswith(asked) or not text.startswith(answered[:stop]) or stop <= len(asked):
            raise ValueError(
                "it writes the turns of a dialogue with tools differently from each one alone"
            )
        turns.append(_Turn(len(asked), controls[-1].start() if controls else stop, stop))
    return turns


def _require_tools(render: Renderer, messages: Sequence[Message], tools: str | None) -> None:
    """Raise `ValueError` if the template leaves out the tools, a tool call or a tool's result.

    Each is changed in turn. If the rendered text stays the same, the template leaves it out.
    """
    text = render(messages, tools=tools).text
    if tools is not None and render(messages).text == text:
        raise ValueError("it leaves out the tools")
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            changed, what = {"content": message["content"] + " and more"}, "what a tool says"
        elif message.get("tool_calls"):
            calls = json.loads(message["tool_calls"])
            for call in calls:
                call["function"]["name"] += "_more"
            changed, what = {"tool_calls": json.dumps(calls)}, "a call of a tool"
        else:
            continue
        if (
            render([*messages[:i], {**message, **changed}, *messages[i + 1 :]], tools=tools).text
            == text
        ):
            raise ValueError(f"it leaves out {what}")


def _within_markers(turns: Sequence[_Turn], marked: Sequence[Span]) -> list[Span]:
    """Return the parts of the turns that the template marks.

    A part that reaches the end of an answer is extended to the token that ends the turn.
    """
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
    """Mark each token that holds a character of a span as the assistant's.

    If several tokens hold the bytes of one character, all of them are marked.
    """
    marks = [False] * len(ids)
    token = 0
    for start, stop in spans:
        while token < len(ids) and places[token][1] <= start:
            token += 1
        while token < len(ids) and places[token][0] < stop:
            marks[token] = True
            token += 1
    return Encoded(ids, marks)
