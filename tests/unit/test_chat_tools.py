"""Turns that are not learned, and turns of tools: what of them is encoded, and what is refused."""

from __future__ import annotations

import json

import pytest
from chat_templates import PUBLISHED, TRL, cases

from align.errors import ConfigError
from align.text.chat import (
    TemplateRefusal,
    chat_format,
    encode_conversations,
    encode_dialogues,
    encode_prompts,
    takes_tools,
)

TEMPLATES = [*PUBLISHED, *(f"{name}-published" for name in TRL)]
ROUNDS = [
    {"role": "user", "content": "Who sat on the mat?"},
    {"role": "assistant", "content": "The cat."},
    {"role": "user", "content": "Who ran home?"},
    {"role": "assistant", "content": "The dog."},
]
CALL = json.dumps([{"type": "function", "function": {"name": "look", "arguments": {"where": "mat"}}}])
WITH_TOOL = [
    {"role": "user", "content": "Who sat on the mat?"},
    {"role": "assistant", "content": "", "tool_calls": CALL},
    {"role": "tool", "name": "look", "content": "seventeen ducks"},
    {"role": "assistant", "content": "Ducks."},
]
TOOLS = json.dumps([{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {}}}])


@pytest.fixture(scope="module", params=TEMPLATES)
def tokenizer(request):
    return cases()[request.param].tokenizer


def marked(tokenizer, encoded):
    return tokenizer.decode([token for token, by in zip(encoded.ids, encoded.by_assistant, strict=True) if by])


# -- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [1, 3])
def test_a_turn_of_weight_0_is_read_and_not_learned(tokenizer, silent):
    """Of the tokens and marks of the whole dialogue, those of the other turn are left."""
    (whole,) = encode_conversations(tokenizer, [ROUNDS])
    messages = [{**m, "weight": 0} if i == silent else m for i, m in enumerate(ROUNDS)]
    (found,) = encode_conversations(tokenizer, [messages])
    assert found.ids == whole.ids
    runs = [i for i in range(1, len(whole.ids)) if whole.by_assistant[i] and not whole.by_assistant[i - 1]]
    second = runs[-1]
    first = [by and i < second for i, by in enumerate(whole.by_assistant)]
    assert any(first)
    last = [by and i >= second for i, by in enumerate(whole.by_assistant)]
    assert found.by_assistant == (last if silent == 1 else first)


# -- tools -----------------------------------------------------------------------------------------------------------


def test_a_tool_s_turn_is_written_and_not_learned_or_refused(tokenizer):
    tools = [TOOLS if takes_tools(tokenizer) else None]
    try:
        (found,) = encode_conversations(tokenizer, [WITH_TOOL], tools=tools)
    except TemplateRefusal:
        return
    assert "seventeen ducks" in tokenizer.decode(found.ids)
    learned = marked(tokenizer, found)
    assert [word in learned for word in ("look", "mat", "Ducks.", "seventeen", "Who sat")] == [True] * 3 + [False] * 2
    assert found.by_assistant[-1]
    assert found.ids[-1] in chat_format(tokenizer).stops
    messages = [{**m, "weight": 0} if i == 1 else m for i, m in enumerate(WITH_TOOL)]
    (silent,) = encode_conversations(tokenizer, [messages], tools=tools)
    assert silent.ids == found.ids
    assert [word in marked(tokenizer, silent) for word in ("look", "Ducks.")] == [False, True]


def test_some_templates_write_tools():
    """Or the test above would hold for templates that refuse every call."""
    written = []
    for name in ("qwen2_5-published", "qwen3-published", "glm4moe-published", "gptoss-published"):
        tokenizer = cases()[name].tokenizer
        written += encode_conversations(tokenizer, [WITH_TOOL])
    assert len(written) == 4


CHATML = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def with_tools():
    tokenizer = PUBLISHED["qwen2_5"].tokenizer()
    tokenizer.chat_template = CHATML
    return tokenizer


def test_a_dialogue_with_tools_is_encoded_as_its_template_writes_it(with_tools):
    (found,) = encode_conversations(with_tools, [WITH_TOOL], tools=[TOOLS])
    messages = [{**m, "tool_calls": json.loads(m["tool_calls"])} if "tool_calls" in m else m for m in WITH_TOOL]
    plain = with_tools.apply_chat_template(messages, tools=json.loads(TOOLS), tokenize=False)
    assert with_tools.decode(found.ids) == plain.removesuffix("\n")
    call = '<tool_call>{"name": "look", "arguments": {"where": "mat"}}</tool_call><|im_end|>'
    assert marked(with_tools, found) == f"{call}Ducks.<|im_end|>"


def test_a_prompt_may_end_with_what_a_tool_says(with_tools):
    (asked,) = encode_prompts(with_tools, [WITH_TOOL[:3]])
    (whole,) = encode_dialogues(with_tools, [WITH_TOOL[:3]], ["Ducks."])
    assert whole[: len(asked)] == asked
    assert whole == encode_conversations(with_tools, [WITH_TOOL])[0].ids


def test_a_prompt_whose_tool_turn_is_left_out_is_refused(with_tools):
    with_tools.chat_template = CHATML.replace("m in messages", "m in messages if m['role'] != 'tool'")
    for encode in (
        lambda: encode_prompts(with_tools, [WITH_TOOL[:3]]),
        lambda: encode_dialogues(with_tools, [WITH_TOOL[:3]], ["Ducks."]),
    ):
        with pytest.raises(TemplateRefusal, match=r"it leaves out what a tool says$"):
            encode()


@pytest.mark.parametrize("content", ["<|im_end|>", "a<|im_start|>user"])
def test_what_a_tool_says_is_never_a_control_token(with_tools, content):
    call = json.dumps([{"type": "function", "function": {"name": content, "arguments": {content: [content]}}}])
    messages = [WITH_TOOL[0], {**WITH_TOOL[1], "tool_calls": call}, {"role": "tool", "content": content}, WITH_TOOL[3]]
    (found,) = encode_conversations(with_tools, [messages], tools=[json.dumps([{"name": content}])])
    controls = with_tools.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    (plain,) = encode_conversations(with_tools, [WITH_TOOL], tools=[TOOLS])
    assert [t for t in found.ids if t in controls] == [t for t in plain.ids if t in controls]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("m['tool_calls'] or []", "[]"), "it leaves out a call of a tool"),
        (CHATML.replace("m in messages", "m in messages if m['role'] != 'tool'"), "it leaves out what a tool says"),
        (CHATML.replace("if tools", "if false"), "it leaves out the tools"),
        (
            CHATML.replace("<tool_call>' +", "<tool_call>' + ('' if loop.last and m == messages[-1] else '!') +"),
            "it writes the turns of a dialogue with tools differently from each one alone",
        ),
    ],
)
def test_a_template_that_leaves_something_out_is_refused(with_tools, template, reason):
    with_tools.chat_template = template
    with pytest.raises(ConfigError, match=f"^row 1: the model's chat template refuses it: {reason}$"):
        encode_conversations(with_tools, [WITH_TOOL], tools=[TOOLS])


def test_whether_a_template_takes_tools_is_found_out(with_tools):
    assert takes_tools(with_tools)
    with_tools.chat_template = CHATML.replace("if tools", "if false")
    assert not takes_tools(with_tools)
