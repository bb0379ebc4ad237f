"""From messages to token ids: the chat template, and which tokens the assistant wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}

# One line per turn would read better but would put line breaks into the prompt. The end-of-text token closes each
# assistant turn inside the generation markers: left out there, the model would never learn to stop.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] in ('system', 'user') %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Encoded(NamedTuple):
    """A conversation as token ids, and True at each token that the assistant wrote."""

    ids: list[int]
    by_assistant: list[bool]


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Message]]
) -> list[Encoded]:
    """Token ids of whole conversations; the end-of-text token that closes an assistant's turn is the assistant's."""
    out = tokenizer.apply_chat_template(list(conversations), return_assistant_tokens_mask=True, return_dict=True)
    return [
        Encoded(ids, [bool(x) for x in mask])
        for ids, mask in zip(out["input_ids"], out["assistant_masks"], strict=True)
    ]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]]) -> list[list[int]]:
    """Token ids of prompts, up to where the assistant begins."""
    out = tokenizer.apply_chat_template(list(prompts), add_generation_prompt=True, return_dict=True)
    return out["input_ids"]


def encode_responses(tokenizer: PreTrainedTokenizerBase, responses: Sequence[str]) -> list[list[int]]:
    """Token ids of the assistant's words as they follow a prompt, closed by the end-of-text token."""
    return [ids + [tokenizer.eos_token_id] for ids in tokenizer(list(responses), add_special_tokens=False)["input_ids"]]


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a response, without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def show_prompt(prompt: Sequence[Message]) -> str:
    """A prompt in one line, for tables of samples."""
    return " | ".join(m["content"] if m["role"] == "user" else f"[{m['role']}] {m['content']}" for m in prompt)
