"""From messages to token ids, and whose tokens they are."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from align.errors import ConfigError
from align.text.chat import (
    decode_response,
    encode_conversations,
    encode_dialogues,
    encode_prompts,
    show_prompt,
    transcript,
)
from align.text.chat_format import has_generation_markers
from align.text.tokenizers import train_tokenizer

TEXTS = ["The cat sat on the mat. The dog ran home.", "Who sat on the mat? The cat.", "Be brief."] * 5


@pytest.fixture(scope="module", params=["trained", "loaded"])
def tokenizer(request, tmp_path_factory):
    tokenizer = train_tokenizer(TEXTS, 300)
    if request.param == "trained":
        return tokenizer
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


CONVERSATIONS = [
    [user("Who sat on the mat?"), assistant("The cat.")],
    [system("Be brief."), user("Who ran?"), assistant("The dog.")],
    [user("Who sat?"), assistant("The cat."), user("Who ran?"), assistant("The dog ran home.")],
    [
        system("Be brief."),
        user("Na\u00efve \U0001f600?"),
        assistant("\u00c9t\u00e9 \U0001f600"),
        user("?"),
        assistant("\u4f60\u597d"),
    ],
    [user("Two\nlines  here"), assistant("One\n\ntwo  three\n- four")],
]


def by_hand(tokenizer, messages):
    """Ids and marks turn by turn: the role's token, the words, and end-of-text after the assistant's."""
    ids, marks = [], []
    for message in messages:
        said = tokenizer(" " + message["content"])["input_ids"]
        mine = message["role"] == "assistant"
        said = [*said, tokenizer.eos_token_id] if mine else said
        ids += [tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>"), *said]
        marks += [False, *[mine] * len(said)]
    return ids, marks


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_mask_covers_the_assistant_s_words_and_end_of_text_alone(tokenizer, messages):
    (got,) = encode_conversations(tokenizer, [messages])
    assert (got.ids, got.by_assistant) == by_hand(tokenizer, messages)
    roles = {tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ("system", "user", "assistant")}
    assert not any(mine for token, mine in zip(got.ids, got.by_assistant, strict=True) if token in roles)
    ends = [mine for token, mine in zip(got.ids, got.by_assistant, strict=True) if token == tokenizer.eos_token_id]
    assert ends == [True] * sum(m["role"] == "assistant" for m in messages)


def test_conversations_together_are_as_each_alone(tokenizer):
    together = encode_conversations(tokenizer, CONVERSATIONS)
    assert together == [encode_conversations(tokenizer, [c])[0] for c in CONVERSATIONS]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_prompt_is_a_prefix_of_its_dialogue(tokenizer, messages):
    *prompt, answer = messages
    (asked,) = encode_prompts(tokenizer, [prompt])
    (dialogue,) = encode_dialogues(tokenizer, [prompt], [answer["content"]])
    assert dialogue[: len(asked)] == asked
    assert asked[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    (whole,) = encode_conversations(tokenizer, [messages])
    assert dialogue == whole.ids
    assert all(whole.by_assistant[len(asked) :])


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_response_decodes_to_what_was_said(tokenizer, messages):
    *prompt, answer = messages
    (asked,) = encode_prompts(tokenizer, [prompt])
    (dialogue,) = encode_dialogues(tokenizer, [prompt], [answer["content"]])
    assert decode_response(tokenizer, dialogue[len(asked) :]) == answer["content"]
    assert decode_response(tokenizer, dialogue[len(asked) : -1]) == answer["content"]


def test_space_around_a_message_changes_nothing(tokenizer):
    tidy = encode_conversations(tokenizer, [[system("Be brief."), user("Who?"), assistant("The cat.")]])
    loose = encode_conversations(tokenizer, [[system(" Be brief.\n"), user("\tWho? "), assistant("\n The cat.  ")]])
    assert loose == tidy


def test_an_empty_answer_is_a_space_and_end_of_text(tokenizer):
    (got,) = encode_conversations(tokenizer, [[user("Who?"), assistant("")]])
    assert got.ids[-2:] == [*tokenizer(" ")["input_ids"], tokenizer.eos_token_id]
    assert got.by_assistant[-3:] == [False, True, True]


def test_no_prompts_give_no_ids(tokenizer):
    assert encode_prompts(tokenizer, []) == []
    assert encode_dialogues(tokenizer, [], []) == []


def test_each_prompt_needs_its_response(tokenizer):
    with pytest.raises(ValueError, match="shorter"):
        encode_dialogues(tokenizer, [[user("Who?")], [user("What?")]], ["The cat."])


def test_an_unknown_role_is_refused(tokenizer):
    said = "inputs.data: train row 2: the model's chat template refuses it: unknown role bot"
    with pytest.raises(ConfigError, match=f"^{said}$"):
        encode_prompts(tokenizer, [[user("Who?")], [{"role": "bot", "content": "hm"}]], "inputs.data: train row")


def test_a_prompt_in_one_line():
    prompt = [system("Be brief."), user("Who sat?"), assistant("The cat."), user("Who ran?")]
    assert show_prompt(prompt) == "[system] Be brief. | Who sat? | [assistant] The cat. | Who ran?"
    assert transcript(prompt) == "System: Be brief.\n\nUser: Who sat?\n\nAssistant: The cat.\n\nUser: Who ran?"
    assert transcript(prompt[-1:]) == "Who ran?"


@pytest.mark.parametrize("token", ["<|assistant|>", "<|user|>", "<|system|>", "<|endoftext|>", "<|pad|>"])
def test_what_a_user_writes_is_never_a_special_token(tokenizer, token):
    special = tokenizer.convert_tokens_to_ids(token)
    (plain,) = encode_prompts(tokenizer, [[{"role": "user", "content": "the cat"}]])
    (spelled,) = encode_prompts(tokenizer, [[{"role": "user", "content": f"the {token} cat"}]])
    assert spelled.count(special) == plain.count(special)


def test_no_conversations_give_none(tokenizer):
    assert encode_conversations(tokenizer, []) == []


@pytest.mark.parametrize(
    ("template", "has"),
    [
        ("{% generation %}{{ m }}{% endgeneration %}", True),
        ("{%- generation -%}{{ m }}{%- endgeneration -%}", True),
        ("{%+ generation %}{{ m }}{% endgeneration %}", True),
        ("{#- uses {% generation %} markers -#}{{ m }}", False),
        ("{{ '{% generation %}' }}{{ m }}", False),
        ("{% raw %}{% generation %}{% endraw %}{{ m }}", False),
        ("{% set generation = 1 %}{{ m }}", False),
    ],
)
def test_markers_count_in_the_body_of_a_template_alone(template, has):
    assert has_generation_markers(template) == has
