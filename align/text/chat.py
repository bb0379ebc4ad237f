"""From messages to token ids: the chat template, and which tokens the assistant wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

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
# The same for a tokenizer whose words hold no spaces, GPT-1's: what the assistant writes begins with a word, since the
# library finds where that is by the token of its first character, and there a space has none.
SPACELESS_CHAT_TEMPLATE = CHAT_TEMPLATE.replace(
    "{{ '<|assistant|>' }}{% generation %}{{ ' ' + message", "{{ '<|assistant|> ' }}{% generation %}{{ message"
)


class Encoded(NamedTuple):
    """A conversation as token ids, and True at each token that the assistant wrote."""

    ids: list[int]
    by_assistant: list[bool]


def encode_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Message]]) -> list[Encoded]:
    """Token ids of whole conversations; the end-of-text token that closes an assistant's turn is the assistant's."""
    if not conversations:
        return []
    harmless = _without_special_tokens(tokenizer, conversations)
    out = tokenizer.apply_chat_template(harmless, return_assistant_tokens_mask=True, return_dict=True)
    return [
        Encoded(ids, [bool(x) for x in mask])
        for ids, mask in zip(out["input_ids"], out["assistant_masks"], strict=True)
    ]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]]) -> list[list[int]]:
    """Token ids of prompts, up to where the assistant begins."""
    if not prompts:
        return []
    harmless = _without_special_tokens(tokenizer, prompts)
    return tokenizer.apply_chat_template(harmless, add_generation_prompt=True, return_dict=True)["input_ids"]


def encode_dialogues(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]], responses: Sequence[str]
) -> list[list[int]]:
    """Token ids of prompts, each with its response as the assistant's turn, through the tokenizer's own template."""
    turns = [[*p, {"role": "assistant", "content": r}] for p, r in zip(prompts, responses, strict=True)]
    if not turns:
        return []
    return tokenizer.apply_chat_template(_without_special_tokens(tokenizer, turns), return_dict=True)["input_ids"]


def _without_special_tokens(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Message]]
) -> list[list[Message]]:
    """The same, with a space inside whatever spells a special token: text may not open a turn or end one."""
    special = re.compile("|".join(re.escape(token) for token in sorted(tokenizer.all_special_tokens, key=len)[::-1]))

    def harmless(text: str) -> str:
        return special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    return [[{**message, "content": harmless(message["content"])} for message in turns] for turns in conversations]


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a response, without special tokens and without the space that a template puts before it."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def transcript(prompt: Sequence[Message]) -> str:
    """A prompt as somebody reads it who has no chat template: what the user says, or all turns by who says them."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)


def show_prompt(prompt: Sequence[Message]) -> str:
    """A prompt in one line, for tables of samples."""
    return " | ".join(m["content"] if m["role"] == "user" else f"[{m['role']}] {m['content']}" for m in prompt)
