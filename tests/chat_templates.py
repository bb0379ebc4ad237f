"""Published chat formats, each with a small tokenizer of the right family, and TRL's templates for training.

`PUBLISHED` holds templates written for these tests after the formats' public descriptions. What matters is as in the
published models: who writes BOS, where spaces and newlines go, how a generation prompt looks, what the tokenizer calls
its end of text, and which added tokens are special. `TRL` says the same for each `*_training.jinja` of the installed
TRL, whose text is read from the package.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

Message = dict[str, Any]

SYSTEM: Message = {"role": "system", "content": "Be brief."}
# The last word is one character and several tokens, of which a mask by characters may lose all but the first.
ROUNDS: list[Message] = [
    {"role": "user", "content": "Who sat on the mat?"},
    {"role": "assistant", "content": "The cat."},
    {"role": "user", "content": "Who ran home?"},
    {"role": "assistant", "content": "The dog \U0001f436"},
]


@dataclass(frozen=True)
class PublishedTemplate:
    """A chat format as a model is published with it.

    Attributes:
        template: the Jinja text, without `{% generation %}`.
        build: makes the tokenizer, without a chat template.
        end: text of the token that ends an assistant's turn.
        stops: texts of the tokens at which sampling stops.
        forbids_system: whether the template raises on a system message.
        cue: what a generation prompt adds.
        example: the rendering of `ROUNDS`.
        example_with_system: the rendering of `SYSTEM` and `ROUNDS`; None where it is forbidden.
        adds_bos: whether the tokenizer puts BOS before plain text.
        opening: what the template writes at the start of the last answer in `example`, in the assistant's name.
        closing: what it writes between an answer and `end`.
    """

    template: str
    build: Callable[[], PreTrainedTokenizerFast]
    end: str
    stops: tuple[str, ...]
    cue: str
    example: str
    example_with_system: str | None
    forbids_system: bool = False
    adds_bos: bool = False
    opening: str = ""
    closing: str = ""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Make a new tokenizer that has the chat template."""
        tokenizer = self.build()
        tokenizer.chat_template = self.template
        return tokenizer


# Tokenizers: two families of BPE, learned from a few sentences, so that common words are one token and others several.

_TEXT = """Who sat on the mat? The cat sat on the mat. Who ran home? The dog ran home and the cat ran home.
Be brief. What is it? The answer is brief: the cat, the dog and the mat. He said: be helpful; then the dog sat.

user

assistant

system

model

User Assistant USER ASSISTANT Instruction Response INST SYS You are a helpful assistant."""

_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Words take any one character before them; signs take the newlines after them.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(
    special: Sequence[str],
    plain: Sequence[str] = (),
    *,
    split: str = _LLAMA3_SPLIT,
    nfc: bool = False,
    adds_bos: bool = False,
    **named: Any,
) -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer, as GPT-2, Llama 3 and Qwen have it.

    Args:
        special: added tokens that are special.
        plain: added tokens that are not.
        split: how text is cut into words.
        nfc: whether text is normalised to NFC.
        adds_bos: whether BOS is put before plain text.
        named: bos_token, eos_token and the like.
    """
    built = Tokenizer.from_str(_byte_level_core(split))
    if nfc:
        built.normalizer = normalizers.NFC()
    _add(built, special, plain)
    if adds_bos:
        built.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), _bos_first(built, named["bos_token"])]
        )
    return _wrapped(built, named)


@functools.cache
def _byte_level_core(split: str) -> str:
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    built.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    # The text whole, with its empty lines: two newlines are one token in all these models.
    built.train_from_iterator([_TEXT], trainer)
    return built.to_str()


def _sentencepiece(
    special: Sequence[str | AddedToken],
    plain: Sequence[str | AddedToken] = (),
    *,
    prefix: str,
    first: Sequence[str] = ("<unk>", "<s>", "</s>"),
    adds_bos: bool = True,
    **named: Any,
) -> PreTrainedTokenizerFast:
    """Make a BPE tokenizer with spaces as U+2581 and bytes as fallback, as Llama 2, Mistral and Gemma have it.

    Args:
        special: added tokens that are special, besides `first`.
        plain: added tokens that are not.
        prefix: where a space is put: "every", before the text and after each control token, as Llama 2 has it;
            "first", before the text alone, as Mistral 0.3 has it; "none", as Gemma has it.
        first: the special tokens with the lowest ids.
        adds_bos: whether BOS is put before plain text.
        named: bos_token, eos_token and the like.
    """
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator(_TEXT.splitlines(), trainers.BpeTrainer(vocab_size=150, show_progress=False))
    learned = json.loads(words.to_str())["model"]
    runs = ["\u2581\u2581", "\u2581\u2581\u2581\u2581"]  # as Llama has them, so that text may join a space before it
    pieces = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"], *runs]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [*(tuple(merge) for merge in learned["merges"]), *((run[: len(run) // 2],) * 2 for run in runs)]
    built = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "\u2581")
    undo = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "every":
        built.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    elif prefix == "first":
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        built.normalizer = spaces
    built.decoder = decoders.Sequence(undo if prefix == "none" else [*undo, decoders.Strip(" ", 1, 0)])
    _add(built, [*first, *special], plain)
    if adds_bos:
        built.post_processor = _bos_first(built, named["bos_token"])
    return _wrapped(built, named)


def _add(built: Tokenizer, special: Sequence[str | AddedToken], plain: Sequence[str | AddedToken]) -> None:
    """Add control tokens; a bare string is matched as it is, and takes no space at its sides."""
    built.add_special_tokens([t if isinstance(t, AddedToken) else AddedToken(t, normalized=False) for t in special])
    built.add_tokens([t if isinstance(t, AddedToken) else AddedToken(t, normalized=False) for t in plain])


def _bos_first(built: Tokenizer, bos: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, built.token_to_id(bos))]
    )


def _wrapped(built: Tokenizer, named: dict[str, Any]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=built, clean_up_tokenization_spaces=False, **named)


# The formats. Templates are compiled as Transformers does it: a newline after a block tag and spaces before one are
# dropped, so what is laid out here for the eye writes nothing.

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""


def _chatml_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind with ChatML added, as recipes do: the turn's end is end of text and padding at once."""
    return _byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        split=_GPT2_SPLIT,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )


LLAMA2 = """\
{%- set turns = messages %}
{%- set preface = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set turns = messages[1:] %}
    {%- set preface = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}
{%- endif %}
{%- for message in turns %}
    {%- if message['role'] != ['user', 'assistant'][loop.index0 % 2] %}
        {{- raise_exception('After the system message, user and assistant take turns.') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + ((preface if loop.first else '') + message['content']).strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'].strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""


def _llama2_tokenizer() -> PreTrainedTokenizerFast:
    """Llama 2's: `[INST]` is no token, and nothing pads."""
    return _sentencepiece([], prefix="every", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim }}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""


def _llama3_tokenizer() -> PreTrainedTokenizerFast:
    """Llama 3's: turns end by `<|eot_id|>`, which the tokenizer has no name for; nothing pads."""
    control = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return _byte_level(
        [*control, "<|reserved_special_token_0|>", "<|eom_id|>", "<|python_tag|>"],
        adds_bos=True,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    )


# The system message goes before the last question, wherever that is, so an earlier prompt has it and the later
# dialogue does not have it there.
MISTRAL = """\
{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- set questions = turns | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('User and assistant take turns, and the user begins.') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' }}
        {%- if message == questions[-1] and messages[0]['role'] == 'system' %}
            {{- messages[0]['content'] + '\n\n' }}
        {%- endif %}
        {{- message['content'] + '[/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""


def _mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Mistral 0.3's: `[INST]` and its like are special tokens; nothing pads."""
    return _sentencepiece(
        ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"],
        prefix="first",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


GEMMA = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- raise_exception('Gemma knows no system role.') }}
    {%- elif message['role'] != ['user', 'assistant'][loop.index0 % 2] %}
        {{- raise_exception('User and assistant take turns, and the user begins.') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}
    {{- message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}
"""


def _gemma_tokenizer(special_turns: bool) -> PreTrainedTokenizerFast:
    """Gemma's: runs of newlines, tabs and spaces are added tokens that are not special, and so is HTML.

    The tokens of the turns have been published both ways.
    """
    turns = ["<start_of_turn>", "<end_of_turn>"]
    runs = [sign * count for sign, most in (("\n", 6), ("\t", 4)) for count in range(1, most + 1)]
    runs += ["\u2581" * count for count in range(2, 6)]
    return _sentencepiece(
        ["<mask>", *(turns if special_turns else [])],
        [*([] if special_turns else turns), *runs, "<table>", "</table>", "<b>", "</b>"],
        prefix="none",
        first=("<pad>", "<eos>", "<bos>", "<unk>"),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


PHI3 = """\
{%- for message in messages if message['role'] in ('system', 'user', 'assistant') %}
    {{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}
{%- endfor %}
{{- '<|assistant|>\n' if add_generation_prompt else eos_token }}
"""


def _phi3_tokenizer() -> PreTrainedTokenizerFast:
    """Phi-3's: Llama 2's words; the tokens of the turns swallow the space after them; no BOS by itself."""
    names = ["<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    return _sentencepiece(
        ["<|endoftext|>", *(AddedToken(name, rstrip=True, normalized=False) for name in names)],
        prefix="every",
        adds_bos=False,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
    )


QWEN2_5 = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

QWEN3 = """\
{%- set last = namespace(question=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set last.question = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set thought = '' %}
    {%- set said = message.content %}
    {%- if message.role == 'assistant' and '</think>' in said %}
        {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
        {%- set said = said.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.index0 > last.question %}
        {{- '<think>\n' + thought + '\n</think>\n\n' + said.lstrip('\n') }}
    {%- else %}
        {{- said }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""


def _qwen_tokenizer(*, thinks: bool) -> PreTrainedTokenizerFast:
    """Qwen's: no BOS; code and tools have tokens that are not special, and Qwen3's thinking, too."""
    plain = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>"]
    if thinks:
        plain += ["<tool_response>", "</tool_response>", "<think>", "</think>"]
    return _byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"],
        plain,
        nfc=True,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"],
    )


DEEPSEEK = """\
{{- bos_token }}
{%- for message in messages if message['role'] == 'system' %}
    {{- message['content'] + ('' if loop.last else '\n\n') }}
{%- endfor %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<\uff5cUser\uff5c>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<\uff5cAssistant\uff5c>' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<\uff5cAssistant\uff5c>' }}
{%- endif %}
"""


def _deepseek_tokenizer() -> PreTrainedTokenizerFast:
    """DeepSeek-V3's: the tokens of the turns are not special, and end of text pads, too."""
    return _byte_level(
        ["<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"],
        ["<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<|EOT|>", "<\uff5ctool\u2581calls\u2581begin\uff5c>"],
        adds_bos=True,
        bos_token="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        eos_token="<\uff5cend\u2581of\u2581sentence\uff5c>",
        pad_token="<\uff5cend\u2581of\u2581sentence\uff5c>",
    )


# The newlines after an output are the template's own, so each turn and the cue end by one.
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] in ('system', 'user', 'assistant') %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
"""


def _zephyr_tokenizer() -> PreTrainedTokenizerFast:
    """Mistral 0.1's as Zephyr has it: the roles are plain text, and end of text pads, too."""
    return _sentencepiece([], prefix="every", bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>")


VICUNA = """\
{%- set preface = "A chat between a curious user and an artificial intelligence assistant. The assistant gives \
helpful, detailed, and polite answers to the user's questions." %}
{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set preface = messages[0]['content'] %}
    {%- set turns = messages[1:] %}
{%- endif %}
{{- bos_token + preface + ' ' }}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {{- 'USER: ' + message['content'] | trim + ' ' }}
    {%- elif message['role'] == 'assistant' %}
        {{- 'ASSISTANT: ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'ASSISTANT:' }}
{%- endif %}
"""


def _vicuna_tokenizer() -> PreTrainedTokenizerFast:
    """Llama's as Vicuna has it: the unknown token pads."""
    return _sentencepiece([], prefix="every", bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>")


ALPACA = """\
{%- set preface = 'Below is an instruction that describes a task. Write a response that appropriately completes the \
request.' %}
{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set preface = messages[0]['content'] | trim %}
    {%- set turns = messages[1:] %}
{%- endif %}
{{- bos_token + preface + '\n\n' }}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {{- '### Instruction:\n' + message['content'] | trim + '\n\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '### Response:\n' + message['content'] | trim + eos_token + '\n\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\n' }}
{%- endif %}
"""


def _alpaca_tokenizer() -> PreTrainedTokenizerFast:
    """Llama's as Alpaca has it: a token to pad is added."""
    return _sentencepiece(
        ["[PAD]"], prefix="every", bos_token="<s>", eos_token="</s>", pad_token="[PAD]", unk_token="<unk>"
    )


COMMAND_R = """\
{{- bos_token }}
{%- set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}
{%- for message in messages %}
    {{- '<|START_OF_TURN_TOKEN|><|' + names[message['role']] + '_TOKEN|>' }}
    {{- message['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}
{%- endif %}
"""


def _command_r_tokenizer() -> PreTrainedTokenizerFast:
    """Command R's: the tokens of the roles are not special, and the template spells them together from pieces."""
    return _byte_level(
        ["<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"],
        ["<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"],
        nfc=True,
        adds_bos=True,
        bos_token="<BOS_TOKEN>",
        eos_token="<|END_OF_TURN_TOKEN|>",
        pad_token="<PAD>",
    )


SMOLLM2 = """\
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""


def _smollm2_tokenizer() -> PreTrainedTokenizerFast:
    """SmolLM2's: what begins a turn is BOS, what ends it is end of text and padding."""
    return _byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"],
        split=_GPT2_SPLIT,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )


OLMO2 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\n' + message['content'] }}
    {%- if message['role'] == 'assistant' %}
        {{- eos_token + ('' if loop.last else '\n') }}
    {%- else %}
        {{- '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\n' }}
{%- endif %}
"""


def _olmo2_tokenizer() -> PreTrainedTokenizerFast:
    """OLMo 2's: the roles are plain text, and one token begins a text and ends it."""
    return _byte_level(
        ["<|endoftext|>", "<|pad|>"],
        ["<|fim_prefix|>", "<|fim_middle|>", "|||EMAIL_ADDRESS|||"],
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        unk_token="<|endoftext|>",
    )


def _gemma(*, special_turns: bool) -> PublishedTemplate:
    return PublishedTemplate(
        template=GEMMA,
        build=functools.partial(_gemma_tokenizer, special_turns),
        end="<end_of_turn>",
        stops=("<end_of_turn>", "<eos>"),
        forbids_system=True,
        adds_bos=True,
        cue="<start_of_turn>model\n",
        example=(
            "<bos><start_of_turn>user\nWho sat on the mat?<end_of_turn>\n"
            "<start_of_turn>model\nThe cat.<end_of_turn>\n"
            "<start_of_turn>user\nWho ran home?<end_of_turn>\n"
            "<start_of_turn>model\nThe dog \U0001f436<end_of_turn>\n"
        ),
        example_with_system=None,
    )


PUBLISHED: dict[str, PublishedTemplate] = {
    "chatml": PublishedTemplate(
        template=CHATML,
        build=_chatml_tokenizer,
        end="<|im_end|>",
        stops=("<|im_end|>",),
        cue="<|im_start|>assistant\n",
        example=(
            "<|im_start|>user\nWho sat on the mat?<|im_end|>\n"
            "<|im_start|>assistant\nThe cat.<|im_end|>\n"
            "<|im_start|>user\nWho ran home?<|im_end|>\n"
            "<|im_start|>assistant\nThe dog \U0001f436<|im_end|>\n"
        ),
        example_with_system=(
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nWho sat on the mat?<|im_end|>\n"
            "<|im_start|>assistant\nThe cat.<|im_end|>\n"
            "<|im_start|>user\nWho ran home?<|im_end|>\n"
            "<|im_start|>assistant\nThe dog \U0001f436<|im_end|>\n"
        ),
    ),
    "llama2": PublishedTemplate(
        template=LLAMA2,
        build=_llama2_tokenizer,
        end="</s>",
        stops=("</s>",),
        adds_bos=True,
        cue="",
        closing=" ",
        example=(
            "<s>[INST] Who sat on the mat? [/INST] The cat. </s><s>[INST] Who ran home? [/INST] The dog \U0001f436 </s>"
        ),
        example_with_system=(
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho sat on the mat? [/INST] The cat. </s>"
            "<s>[INST] Who ran home? [/INST] The dog \U0001f436 </s>"
        ),
    ),
    "llama3": PublishedTemplate(
        template=LLAMA3,
        build=_llama3_tokenizer,
        end="<|eot_id|>",
        stops=("<|eot_id|>", "<|end_of_text|>"),
        adds_bos=True,
        cue="<|start_header_id|>assistant<|end_header_id|>\n\n",
        example=(
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWho sat on the mat?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nThe cat.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho ran home?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nThe dog \U0001f436<|eot_id|>"
        ),
        example_with_system=(
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho sat on the mat?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nThe cat.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho ran home?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nThe dog \U0001f436<|eot_id|>"
        ),
    ),
    "mistral": PublishedTemplate(
        template=MISTRAL,
        build=_mistral_tokenizer,
        end="</s>",
        stops=("</s>",),
        adds_bos=True,
        cue="",
        example=("<s>[INST] Who sat on the mat?[/INST] The cat.</s>[INST] Who ran home?[/INST] The dog \U0001f436</s>"),
        example_with_system=(
            "<s>[INST] Who sat on the mat?[/INST] The cat.</s>"
            "[INST] Be brief.\n\nWho ran home?[/INST] The dog \U0001f436</s>"
        ),
    ),
    "gemma": _gemma(special_turns=False),
    "gemma_special_turns": _gemma(special_turns=True),
    "phi3": PublishedTemplate(
        template=PHI3,
        build=_phi3_tokenizer,
        end="<|end|>",
        stops=("<|end|>", "<|endoftext|>"),
        cue="<|assistant|>\n",
        example=(
            "<|user|>\nWho sat on the mat?<|end|>\n<|assistant|>\nThe cat.<|end|>\n"
            "<|user|>\nWho ran home?<|end|>\n<|assistant|>\nThe dog \U0001f436<|end|>\n<|endoftext|>"
        ),
        example_with_system=(
            "<|system|>\nBe brief.<|end|>\n"
            "<|user|>\nWho sat on the mat?<|end|>\n<|assistant|>\nThe cat.<|end|>\n"
            "<|user|>\nWho ran home?<|end|>\n<|assistant|>\nThe dog \U0001f436<|end|>\n<|endoftext|>"
        ),
    ),
    "qwen2_5": PublishedTemplate(
        template=QWEN2_5,
        build=functools.partial(_qwen_tokenizer, thinks=False),
        end="<|im_end|>",
        stops=("<|im_end|>",),
        cue="<|im_start|>assistant\n",
        example=(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nWho sat on the mat?<|im_end|>\n"
            "<|im_start|>assistant\nThe cat.<|im_end|>\n"
            "<|im_start|>user\nWho ran home?<|im_end|>\n"
            "<|im_start|>assistant\nThe dog \U0001f436<|im_end|>\n"
        ),
        example_with_system=(
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nWho sat on the mat?<|im_end|>\n"
            "<|im_start|>assistant\nThe cat.<|im_end|>\n"
            "<|im_start|>user\nWho ran home?<|im_end|>\n"
            "<|im_start|>assistant\nThe dog \U0001f436<|im_end|>\n"
        ),
    ),
    "qwen3": PublishedTemplate(
        template=QWEN3,
        build=functools.partial(_qwen_tokenizer, thinks=True),
        end="<|im_end|>",
        stops=("<|im_end|>",),
        cue="<|im_start|>assistant\n",
        opening="<think>\n\n</think>\n\n",
        example=(
            "<|im_start|>user\nWho sat on the mat?<|im_end|>\n"
            "<|im_start|>assistant\nThe cat.<|im_end|>\n"
            "<|im_start|>user\nWho ran home?<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\nThe dog \U0001f436<|im_end|>\n"
        ),
        example_with_system=(
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nWho sat on the mat?<|im_end|>\n"
            "<|im_start|>assistant\nThe cat.<|im_end|>\n"
            "<|im_start|>user\nWho ran home?<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\nThe dog \U0001f436<|im_end|>\n"
        ),
    ),
    "deepseek": PublishedTemplate(
        template=DEEPSEEK,
        build=_deepseek_tokenizer,
        end="<\uff5cend\u2581of\u2581sentence\uff5c>",
        stops=("<\uff5cend\u2581of\u2581sentence\uff5c>",),
        adds_bos=True,
        cue="<\uff5cAssistant\uff5c>",
        example=(
            "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
            "<\uff5cUser\uff5c>Who sat on the mat?"
            "<\uff5cAssistant\uff5c>The cat.<\uff5cend\u2581of\u2581sentence\uff5c>"
            "<\uff5cUser\uff5c>Who ran home?"
            "<\uff5cAssistant\uff5c>The dog \U0001f436<\uff5cend\u2581of\u2581sentence\uff5c>"
        ),
        example_with_system=(
            "<\uff5cbegin\u2581of\u2581sentence\uff5c>Be brief."
            "<\uff5cUser\uff5c>Who sat on the mat?"
            "<\uff5cAssistant\uff5c>The cat.<\uff5cend\u2581of\u2581sentence\uff5c>"
            "<\uff5cUser\uff5c>Who ran home?"
            "<\uff5cAssistant\uff5c>The dog \U0001f436<\uff5cend\u2581of\u2581sentence\uff5c>"
        ),
    ),
    "zephyr": PublishedTemplate(
        template=ZEPHYR,
        build=_zephyr_tokenizer,
        end="</s>",
        stops=("</s>",),
        adds_bos=True,
        cue="<|assistant|>\n",
        example=(
            "<|user|>\nWho sat on the mat?</s>\n<|assistant|>\nThe cat.</s>\n"
            "<|user|>\nWho ran home?</s>\n<|assistant|>\nThe dog \U0001f436</s>\n"
        ),
        example_with_system=(
            "<|system|>\nBe brief.</s>\n"
            "<|user|>\nWho sat on the mat?</s>\n<|assistant|>\nThe cat.</s>\n"
            "<|user|>\nWho ran home?</s>\n<|assistant|>\nThe dog \U0001f436</s>\n"
        ),
    ),
    "vicuna": PublishedTemplate(
        template=VICUNA,
        build=_vicuna_tokenizer,
        end="</s>",
        stops=("</s>",),
        adds_bos=True,
        cue="ASSISTANT:",
        example=(
            "<s>A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions. "
            "USER: Who sat on the mat? ASSISTANT: The cat.</s>"
            "USER: Who ran home? ASSISTANT: The dog \U0001f436</s>"
        ),
        example_with_system=(
            "<s>Be brief. USER: Who sat on the mat? ASSISTANT: The cat.</s>"
            "USER: Who ran home? ASSISTANT: The dog \U0001f436</s>"
        ),
    ),
    "alpaca": PublishedTemplate(
        template=ALPACA,
        build=_alpaca_tokenizer,
        end="</s>",
        stops=("</s>",),
        adds_bos=True,
        cue="### Response:\n",
        example=(
            "<s>Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nWho sat on the mat?\n\n### Response:\nThe cat.</s>\n\n"
            "### Instruction:\nWho ran home?\n\n### Response:\nThe dog \U0001f436</s>\n\n"
        ),
        example_with_system=(
            "<s>Be brief.\n\n"
            "### Instruction:\nWho sat on the mat?\n\n### Response:\nThe cat.</s>\n\n"
            "### Instruction:\nWho ran home?\n\n### Response:\nThe dog \U0001f436</s>\n\n"
        ),
    ),
    "command_r": PublishedTemplate(
        template=COMMAND_R,
        build=_command_r_tokenizer,
        end="<|END_OF_TURN_TOKEN|>",
        stops=("<|END_OF_TURN_TOKEN|>",),
        adds_bos=True,
        cue="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        example=(
            "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who sat on the mat?<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>The cat.<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who ran home?<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>The dog \U0001f436<|END_OF_TURN_TOKEN|>"
        ),
        example_with_system=(
            "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who sat on the mat?<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>The cat.<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who ran home?<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>The dog \U0001f436<|END_OF_TURN_TOKEN|>"
        ),
    ),
    "smollm2": PublishedTemplate(
        template=SMOLLM2,
        build=_smollm2_tokenizer,
        end="<|im_end|>",
        stops=("<|im_end|>",),
        cue="<|im_start|>assistant\n",
        example=(
            "<|im_start|>system\n"
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nWho sat on the mat?<|im_end|>\n"
            "<|im_start|>assistant\nThe cat.<|im_end|>\n"
            "<|im_start|>user\nWho ran home?<|im_end|>\n"
            "<|im_start|>assistant\nThe dog \U0001f436<|im_end|>\n"
        ),
        example_with_system=(
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nWho sat on the mat?<|im_end|>\n"
            "<|im_start|>assistant\nThe cat.<|im_end|>\n"
            "<|im_start|>user\nWho ran home?<|im_end|>\n"
            "<|im_start|>assistant\nThe dog \U0001f436<|im_end|>\n"
        ),
    ),
    "olmo2": PublishedTemplate(
        template=OLMO2,
        build=_olmo2_tokenizer,
        end="<|endoftext|>",
        stops=("<|endoftext|>",),
        cue="<|assistant|>\n",
        example=(
            "<|endoftext|><|user|>\nWho sat on the mat?\n<|assistant|>\nThe cat.<|endoftext|>\n"
            "<|user|>\nWho ran home?\n<|assistant|>\nThe dog \U0001f436<|endoftext|>"
        ),
        example_with_system=(
            "<|endoftext|><|system|>\nBe brief.\n"
            "<|user|>\nWho sat on the mat?\n<|assistant|>\nThe cat.<|endoftext|>\n"
            "<|user|>\nWho ran home?\n<|assistant|>\nThe dog \U0001f436<|endoftext|>"
        ),
    ),
}


# TRL's templates for training, and the published ones that they were made from.


@dataclass(frozen=True)
class TrlTemplate:
    """What is to be known of one of TRL's templates, found by reading it and the model's tokenizer.

    Attributes:
        end: text of the token that ends the assistant's last turn.
        eos: the tokenizer's end of text, which ends no turn in some models.
        bos: the tokenizer's BOS, None where it has none.
        refuses: of a system message and an unknown role at the start, those that the template raises on.
        needs_parts: whether contents must be lists of parts; strings raise, or nothing of them is written.
        openings: what the training version writes at the start of the two answers of `ROUNDS`, after what a prompt
            ends with and in the assistant's name.
        own_openings: what the published version writes there; None: the same.
        closing: what it writes between an answer and `end`.
        earlier_end: what ends the turns before the last; None: `end`.
        own_ends: what ends the two turns in the published version: a token that it does not write itself but must
            have, or nothing; None: as in the training version.
        thinks_first: whether a prompt ends inside a thought. A dialogue without thoughts has an empty one there or
            none; which, and whose tokens it is made of, is left to the reader of the template.
    """

    end: str
    eos: str
    bos: str | None = None
    refuses: tuple[str, ...] = ()
    needs_parts: bool = False
    openings: tuple[str, str] = ("", "")
    own_openings: tuple[str, str] | None = None
    closing: str = ""
    earlier_end: str | None = None
    own_ends: tuple[str, str] | None = None
    thinks_first: bool = False


_NO_THOUGHT = "<think>\n\n</think>\n\n"
_TURN, _SENTENCE = "<|END_OF_TURN_TOKEN|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
_NEMOTRON = TrlTemplate("<|im_end|>", "<|im_end|>", "<s>", thinks_first=True)
_QWEN_THINKS = TrlTemplate("<|im_end|>", "<|im_end|>", refuses=("narrator",), thinks_first=True)

TRL: dict[str, TrlTemplate] = {
    "cohere": TrlTemplate(_TURN, _TURN, "<BOS_TOKEN>", refuses=("narrator",)),
    "cohere2": TrlTemplate(_TURN, _TURN, "<BOS_TOKEN>", closing="<|END_RESPONSE|>"),
    "deepseek_r1_distill": TrlTemplate(
        _SENTENCE, _SENTENCE, "<\uff5cbegin\u2581of\u2581sentence\uff5c>", thinks_first=True
    ),
    "deepseekv3": TrlTemplate(_SENTENCE, _SENTENCE, "<\uff5cbegin\u2581of\u2581sentence\uff5c>", thinks_first=True),
    "diffusion_gemma": TrlTemplate("<turn|>", "<eos>", "<bos>"),
    "gemma": TrlTemplate("<end_of_turn>", "<eos>", "<bos>", refuses=("system", "narrator")),
    "gemma3": TrlTemplate("<end_of_turn>", "<eos>", "<bos>", refuses=("narrator",)),
    "glm4moe": TrlTemplate(
        "<|user|>",
        "<|endoftext|>",
        openings=("\n<think></think>\n", "\n<think></think>\n"),
        own_ends=("", "<|endoftext|>"),
    ),
    "gptoss": TrlTemplate(
        "<|return|>",
        "<|return|>",
        "<|startoftext|>",
        openings=("<|channel|>final<|message|>", "<|channel|>final<|message|>"),
        earlier_end="<|end|>",
    ),
    "idefics3": TrlTemplate("<end_of_utterance>", "<|end_of_text|>", "<|begin_of_text|>", needs_parts=True),
    "lfm2": TrlTemplate("<|im_end|>", "<|im_end|>", "<|startoftext|>"),
    "lfm2_v2": TrlTemplate("<|im_end|>", "<|im_end|>", "<|startoftext|>"),
    "llama3": TrlTemplate("<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>"),
    "llava_next": TrlTemplate("</s>", "</s>", "<s>", refuses=("narrator",), needs_parts=True),
    "muse_glimmer": TrlTemplate(
        "<|eot|>", "<|end_of_text|>", "<|begin_of_text|>", openings=(" to=user<|message|>", " to=user<|message|>")
    ),
    "nemotron_3_5_lightning": _NEMOTRON,
    "nemotron_3_nano": _NEMOTRON,
    "nemotron_3_super": _NEMOTRON,
    "nemotron_3_ultra": _NEMOTRON,
    "phi3": TrlTemplate("<|end|>", "<|endoftext|>", "<s>"),
    "phi3_5": TrlTemplate("<|end|>", "<|endoftext|>", "<s>"),
    "qwen2_5": TrlTemplate("<|im_end|>", "<|im_end|>"),
    "qwen2_5_vl": TrlTemplate("<|im_end|>", "<|im_end|>"),
    "qwen3": TrlTemplate(
        "<|im_end|>", "<|im_end|>", openings=(_NO_THOUGHT, _NO_THOUGHT), own_openings=("", _NO_THOUGHT)
    ),
    "qwen3_5_nothink": TrlTemplate("<|im_end|>", "<|im_end|>", refuses=("narrator",)),
    "qwen3_5_think": _QWEN_THINKS,
    "qwen3_6": _QWEN_THINKS,
    "qwen3_8": _QWEN_THINKS,
    "qwen3_instruct_2507": TrlTemplate("<|im_end|>", "<|im_end|>"),
    "qwen3_vl": TrlTemplate("<|im_end|>", "<|im_end|>"),
    "smolvlm": TrlTemplate("<end_of_utterance>", "<end_of_utterance>", "<|im_start|>", needs_parts=True),
}

_TRL_FOLDER = Path(trl.__file__).parent / "chat_templates"


def trl_training_templates() -> dict[str, str]:
    """TRL's templates with generation markers, without their comments, which spell the markers, too."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(_TRL_FOLDER.glob("*_training.jinja"))}
    comment = re.compile(r"\{#.*?#\}", flags=re.DOTALL)
    # Emptied, not cut out: a comment with dashes drops the whitespace beside it.
    return {name.removesuffix("_training.jinja"): comment.sub(_emptied, text) for name, text in texts.items()}


def _emptied(comment: re.Match[str]) -> str:
    left = "-" if comment[0].startswith("{#-") else ""
    right = "-" if comment[0].endswith("-#}") else ""
    return f"{{#{left} {right}#}}"


def trl_originals() -> dict[str, str]:
    """The published templates that `trl_training_templates` were made from, as they are."""
    return {name: (_TRL_FOLDER / f"{name}.jinja").read_text(encoding="utf-8") for name in trl_training_templates()}


_WRITTEN = re.compile(
    r"<\|[\w\"]+\|>|<\|\w+>|<\w+\|>"  # <|end|>, and Gemma 4's halves <|turn> and <turn|>
    r"|<\uff5c[^\uff5c>]+\uff5c>"  # DeepSeek's
    r"|<[a-z]+(?:_of_[a-z]+)>|<image>|<sop>|</s>"
    r"|\[/?[A-Za-z]*[A-Z]{2,}\]"  # [INST], [gMASK]
)
_WRITTEN_PLAIN = re.compile(r"</?(?:think|tool_call|tool_response|arg_key|arg_value)>")


def control_tokens(template: str) -> list[str]:
    """The control tokens that a template spells, in the order in which it does."""
    return list(dict.fromkeys(_WRITTEN.findall(template)))


def tokenizer_for(
    template: str, control_tokens: Iterable[str], *, eos: str, bos: str | None = None
) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer with a chat template.

    Args:
        template: the chat template. Tags of thinking and tools in it become added tokens that are not special, as
            Qwen3 has them.
        control_tokens: texts of the special tokens.
        eos: the end of text, which pads, too.
        bos: what a text begins with.
    """
    special = dict.fromkeys([*([bos] if bos else []), eos, "<|endoftext|>", *control_tokens])
    named = {"bos_token": bos} if bos else {}
    plain = dict.fromkeys(_WRITTEN_PLAIN.findall(template))
    tokenizer = _byte_level(list(special), list(plain), eos_token=eos, pad_token=eos, **named)
    tokenizer.chat_template = template
    return tokenizer


def trl_tokenizer(name: str, template: str) -> PreTrainedTokenizerFast:
    """Make the tokenizer for one of TRL's templates, with `template`, a version of it, as its chat template."""
    known = TRL[name]
    return tokenizer_for(template, control_tokens(trl_training_templates()[name]), eos=known.eos, bos=known.bos)


def in_parts(messages: Sequence[Message]) -> list[Message]:
    """Messages with their contents as lists of parts, as multimodal templates want them."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


# Every template with its tokenizer, and what is right for it, for the tests and for the table in the docs.


@dataclass(frozen=True)
class Case:
    """A tokenizer with a chat template, and what is to be found about it.

    Attributes:
        tokenizer: made once.
        way: how the assistant's tokens are to be found.
        end: text of the token that ends the last turn.
        stops: texts of the tokens at which a response ends.
        turns: texts of the assistant's two turns in `ROUNDS`.
        response: the text that follows the prompt where there is only the first round.
        learnt_from: the template that dialogues to learn from are rendered with.
        refuses_system: whether the template raises on a system message.
        trl: what the table says of one of TRL's.
    """

    tokenizer: PreTrainedTokenizerFast
    way: str
    end: str
    stops: tuple[str, ...]
    turns: tuple[str, str]
    response: str
    learnt_from: str
    refuses_system: bool
    trl: TrlTemplate | None = None

    @property
    def thinks_first(self) -> bool:
        """Whether a prompt ends inside a thought, see `TrlTemplate`."""
        return self.trl is not None and self.trl.thinks_first


@functools.cache
def cases() -> dict[str, Case]:
    """All of `PUBLISHED`, and of TRL's the training version, the published one, and that with a comment added.

    TRL tells a template by its text, so it does not know the one with the comment.
    """
    found = {}
    texts = (ROUNDS[1]["content"], ROUNDS[3]["content"])
    for name, published in PUBLISHED.items():
        tail = published.closing + published.end
        found[name] = Case(
            published.tokenizer(),
            "answers",
            published.end,
            published.stops,
            turns=(texts[0] + tail, published.opening + texts[1] + tail),
            response=published.opening + texts[0] + tail,
            learnt_from=published.template,
            refuses_system=published.forbids_system,
        )
    training, originals = trl_training_templates(), trl_originals()
    for name, known in TRL.items():
        ends = (known.earlier_end or known.end, known.end)
        own_ends, own_openings = known.own_ends or ends, known.own_openings or known.openings
        unknown = originals[name] + "{# kept #}"
        versions = [
            ("training", "markers", training[name], training[name], known.openings, ends),
            ("published", "trl", originals[name], training[name], known.openings, ends),
            ("unknown", "answers", unknown, unknown, own_openings, own_ends),
        ]
        for version, way, template, learnt_from, opening, end in versions:
            found[f"{name}-{version}"] = Case(
                trl_tokenizer(name, template),
                way,
                end[1],
                tuple(dict.fromkeys([end[1], known.eos])),
                turns=(
                    opening[0] + texts[0] + known.closing + end[0],
                    opening[1] + texts[1] + known.closing + end[1],
                ),
                response=opening[1] + texts[0] + known.closing + end[1],
                learnt_from=learnt_from,
                refuses_system="system" in known.refuses,
                trl=known,
            )
    return found


_EMPTY_THOUGHT = re.compile(r"(?:\s|</?think>)+")


def turns_of(case: Case, ids: Sequence[int], by_assistant: Sequence[bool]) -> tuple[str, ...]:
    """The text of each run of marked tokens, to be compared with `case.turns`.

    A space before the first word is dropped, which decoders of SentencePiece's family drop, too.
    """
    runs: list[list[int]] = [[]]
    for token, marked in zip(ids, by_assistant, strict=True):
        if marked:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    texts = [case.tokenizer.decode(run, clean_up_tokenization_spaces=False).removeprefix(" ") for run in runs if run]
    if case.thinks_first:
        texts = [text[match.end() :] if (match := _EMPTY_THOUGHT.match(text)) else text for text in texts]
    return tuple(texts)


def turns_to_find(case: Case) -> tuple[str, ...]:
    """What `turns_of` returns for `ROUNDS` where the marks are right."""
    return tuple(turn.removeprefix(" ") for turn in case.turns)
