"""Published chat templates: the catalogue itself, and what the library finds in them."""

from __future__ import annotations

import re

import jinja2
import pytest
from chat_templates import (
    PUBLISHED,
    ROUNDS,
    SYSTEM,
    TRL,
    cases,
    in_parts,
    tokenizer_for,
    trl_originals,
    trl_training_templates,
    turns_of,
    turns_to_find,
)
from conftest import mostly_slow
from transformers.utils.chat_template_utils import render_jinja_template

from align.errors import ConfigError
from align.text.chat import (
    chat_format,
    check_chat,
    decode_response,
    encode_conversations,
    encode_dialogues,
    encode_prompts,
)

OF_TRL = [f"{name}-published" for name in TRL]
OTHERS = [f"{name}-{version}" for name in TRL for version in ("training", "unknown")]
TRL_CASES = mostly_slow([*OF_TRL, *OTHERS], OF_TRL)
ANSWERS = (ROUNDS[1]["content"], ROUNDS[3]["content"])


# Module-wide, so that all tests of a template run side by side while Transformers has it compiled.
@pytest.fixture(scope="module", params=[*PUBLISHED, *TRL_CASES])
def case(request):
    return cases()[request.param]


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request):
    return PUBLISHED[request.param]


@pytest.fixture(scope="module", params=TRL_CASES)
def trl_case(request):
    return cases()[request.param]


def render(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def added(tokenizer, token):
    """The entry of an added token, which is one token in any text."""
    index = tokenizer.convert_tokens_to_ids(token)
    assert tokenizer(f"cat{token}cat", add_special_tokens=False)["input_ids"].count(index) == 1
    return tokenizer.added_tokens_decoder[index]


def plainly(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


# -- the catalogue -------------------------------------------------------------------------------------------------


def test_a_template_writes_the_example(published):
    assert render(published.tokenizer(), ROUNDS) == published.example


def test_a_template_writes_the_system_message_or_refuses_it(published):
    tokenizer = published.tokenizer()
    assert published.forbids_system == (published.example_with_system is None)
    if published.forbids_system:
        with pytest.raises(jinja2.TemplateError, match="system"):
            render(tokenizer, [SYSTEM, *ROUNDS])
    else:
        assert render(tokenizer, [SYSTEM, *ROUNDS]) == published.example_with_system


def test_a_generation_prompt_begins_the_example_and_ends_by_the_cue(published):
    tokenizer = published.tokenizer()
    prompt = render(tokenizer, ROUNDS[:3], add_generation_prompt=True)
    assert published.example.startswith(prompt)
    assert prompt.endswith(published.cue)
    before = render(tokenizer, ROUNDS[:3]).removesuffix("<|endoftext|>")  # Phi-3's, which no prompt has
    assert prompt == before + published.cue


def test_the_last_turn_is_the_opening_the_answer_the_closing_and_the_end(published):
    rest = published.example[published.example.rindex("Who ran home?") :]
    assert published.opening + ANSWERS[1] + published.closing + published.end in rest


def test_no_template_of_the_catalogue_marks_the_assistant(published):
    assert "generation %}" not in published.template
    assert published.template not in trl_originals().values()


def test_text_comes_back_as_it_was(published):
    tokenizer = published.tokenizer()
    for text in ("Who sat on the mat?", "Na\u00efve  \U0001f436\n\n\tran", "home  ", "\u4f60\u597d, cat\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids


def test_the_last_word_of_the_example_is_several_tokens(published):
    assert len(plainly(published.tokenizer(), " \U0001f436")) >= 4


def test_end_and_stops_are_tokens(published):
    tokenizer = published.tokenizer()
    for token in published.stops:
        assert added(tokenizer, token).content == token
    assert published.stops == tuple(dict.fromkeys([published.end, tokenizer.eos_token]))


def test_bos_comes_before_plain_text_where_the_model_has_it_so(published):
    tokenizer = published.tokenizer()
    ids = tokenizer("cat")["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) == published.adds_bos


@pytest.mark.parametrize(
    ("name", "ends_turns", "eos", "pad"),
    [
        ("llama3", "<|eot_id|>", "<|end_of_text|>", None),
        ("gemma", "<end_of_turn>", "<eos>", "<pad>"),
        ("phi3", "<|end|>", "<|endoftext|>", "<|endoftext|>"),
        ("deepseek", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "same"),
        ("zephyr", "</s>", "</s>", "same"),
        ("vicuna", "</s>", "</s>", "<unk>"),
        ("qwen2_5", "<|im_end|>", "<|im_end|>", "<|endoftext|>"),
        ("smollm2", "<|im_end|>", "<|im_end|>", "same"),
        ("mistral", "</s>", "</s>", None),
    ],
)
def test_end_of_text_and_padding_are_as_published(name, ends_turns, eos, pad):
    tokenizer = PUBLISHED[name].tokenizer()
    assert (PUBLISHED[name].end, tokenizer.eos_token) == (ends_turns, eos)
    assert tokenizer.pad_token == (eos if pad == "same" else pad)


@pytest.mark.parametrize(
    ("name", "token", "special"),
    [
        ("llama3", "<|eot_id|>", True),
        ("gemma", "<end_of_turn>", False),
        ("gemma", "\n\n", False),
        ("gemma", "\t", False),
        ("gemma_special_turns", "<end_of_turn>", True),
        ("qwen2_5", "<|im_end|>", True),
        ("qwen2_5", "<|file_sep|>", False),
        ("qwen3", "<think>", False),
        ("qwen3", "</think>", False),
        ("qwen3", "<tool_call>", False),
        ("mistral", "[INST]", True),
        ("deepseek", "<\uff5cUser\uff5c>", False),
        ("command_r", "<|CHATBOT_TOKEN|>", False),
        ("command_r", "<|END_OF_TURN_TOKEN|>", True),
    ],
)
def test_added_tokens_are_special_as_published(name, token, special):
    assert added(PUBLISHED[name].tokenizer(), token).special == special


def test_roles_of_some_formats_are_plain_text():
    for name, role in (
        ("zephyr", "<|user|>"),
        ("olmo2", "<|user|>"),
        ("llama2", "[INST]"),
        ("alpaca", "### Response:"),
    ):
        assert len(plainly(PUBLISHED[name].tokenizer(), role)) > 2


def test_each_family_has_its_own_spaces():
    def spaced(name, text):
        return "".join(plainly(PUBLISHED[name].tokenizer(), text))

    assert spaced("llama2", "Who</s>Who ran") == "\u2581Who</s>\u2581Who\u2581ran"
    assert spaced("mistral", "Who</s>Who ran") == "\u2581Who</s>Who\u2581ran"
    assert spaced("gemma", "Who<eos>Who ran") == "Who<eos>Who\u2581ran"
    assert spaced("llama3", "Who ran") == "Who\u0120ran"
    # Phi-3's tokens take the space after them along.
    assert spaced("phi3", "<|user|>\n Who") == "<|user|>\u2581Who"
    # A user's newline and the template's next to it merge into one token.
    assert plainly(PUBLISHED["llama3"].tokenizer(), "<|end_header_id|>\n\nWho")[1] == "\u010a\u010a"


def test_a_thought_of_qwen3_is_shown_in_the_last_turn_alone():
    tokenizer = PUBLISHED["qwen3"].tokenizer()
    first, last = ({**ROUNDS[i], "content": "<think>\nHm.\n</think>\n\n" + ROUNDS[i]["content"]} for i in (1, 3))
    assert render(tokenizer, [ROUNDS[0], first, ROUNDS[2], last]) == (
        "<|im_start|>user\nWho sat on the mat?<|im_end|>\n<|im_start|>assistant\nThe cat.<|im_end|>\n"
        "<|im_start|>user\nWho ran home?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nThe dog \U0001f436<|im_end|>\n"
    )
    silent = render(tokenizer, ROUNDS[:1], add_generation_prompt=True, enable_thinking=False)
    assert silent.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


# -- TRL's templates -----------------------------------------------------------------------------------------------


def test_the_table_has_all_of_trl_s_training_templates():
    assert sorted(TRL) == sorted(trl_training_templates()) == sorted(trl_originals())
    assert len(TRL) == 31


def test_training_versions_spell_the_markers_in_their_body_alone():
    for name, template in trl_training_templates().items():
        assert re.search(r"{%-? generation -?%}", template), name
        assert "Modifications" not in template
        assert not re.search(r"{%-? generation", trl_originals()[name]), name


def test_trl_s_markers_end_by_the_token_of_the_table(trl_case):
    if trl_case.way != "markers":
        pytest.skip("it has no markers")
    known = trl_case.trl
    (text,), (spans,) = render_jinja_template(
        conversations=[in_parts(ROUNDS) if known.needs_parts else ROUNDS],
        chat_template=trl_case.tokenizer.chat_template,
        return_assistant_tokens_mask=True,
        **trl_case.tokenizer.special_tokens_map,
    )
    assert added(trl_case.tokenizer, known.end).special
    marked = "".join(text[start:stop] for start, stop in spans)
    after = marked[marked.rindex(ANSWERS[1]) + len(ANSWERS[1]) :]
    # Phi-3 marks a second token at the end of all.
    assert after.replace("<|endoftext|>", "").rstrip() == known.closing + known.end


def test_trl_s_templates_refuse_the_roles_of_the_table(trl_case):
    for role in ("system", "narrator"):
        messages = [{"role": role, "content": "Be brief."}, *ROUNDS]
        messages = in_parts(messages) if trl_case.trl.needs_parts else messages
        try:
            render(trl_case.tokenizer, messages)
        except jinja2.TemplateError:
            refused = True
        else:
            refused = False
        assert refused == (role in trl_case.trl.refuses), role


def test_strings_are_lost_where_parts_are_needed_alone(trl_case):
    assert shows_strings(trl_case.tokenizer) != trl_case.trl.needs_parts


def shows_strings(tokenizer):
    try:
        return ANSWERS[0] in render(tokenizer, ROUNDS)
    except jinja2.TemplateError:
        return False


# -- what the library finds ----------------------------------------------------------------------------------------


def conversations_of(case):
    return [ROUNDS] if case.refuses_system else [ROUNDS, [SYSTEM, *ROUNDS]]


def test_the_assistant_is_found_by_the_way_that_the_template_allows(case):
    assert chat_format(case.tokenizer).way == case.way


def test_end_and_stops_are_found(case):
    found = chat_format(case.tokenizer)
    assert case.tokenizer.convert_ids_to_tokens(found.end) == case.end
    assert set(case.tokenizer.convert_ids_to_tokens(list(found.stops))) == set(case.stops)


def test_marked_are_the_assistant_s_words_and_what_ends_its_turns(case):
    for messages in conversations_of(case):
        ((ids, by_assistant),) = encode_conversations(case.tokenizer, [messages])
        assert turns_of(case, ids, by_assistant) == turns_to_find(case)
        assert ids[-1] == case.tokenizer.convert_tokens_to_ids(case.end)
        assert by_assistant[-1]


def test_a_prompt_is_the_unmarked_beginning_of_its_dialogue(case):
    for messages in conversations_of(case):
        *prompt, answer = messages[:-2]
        (asked,) = encode_prompts(case.tokenizer, [prompt])
        (dialogue,) = encode_dialogues(case.tokenizer, [prompt], [answer["content"]])
        assert dialogue[: len(asked)] == asked
        (learnt,) = encode_conversations(case.tokenizer, [messages[:-2]])
        assert learnt.ids == dialogue
        assert learnt.by_assistant == [i >= len(asked) for i in range(len(dialogue))]
        response = case.tokenizer.decode(dialogue[len(asked) :], clean_up_tokenization_spaces=False)
        if case.thinks_first:  # the model is to write the empty thought that its dialogues have
            assert response.endswith(case.response)
            assert response.removesuffix(case.response) in ("", "<think>\n\n</think>\n\n", "<think></think>")
        else:
            assert response.removeprefix(" ") == case.response.removeprefix(" ")


def test_a_later_prompt_is_the_beginning_of_its_dialogue(case):
    for messages in conversations_of(case):
        *prompt, answer = messages
        (asked,) = encode_prompts(case.tokenizer, [prompt])
        (dialogue,) = encode_dialogues(case.tokenizer, [prompt], [answer["content"]])
        assert dialogue[: len(asked)] == asked
        assert dialogue[-1] == chat_format(case.tokenizer).end


def test_a_response_decodes_to_what_was_said(case):
    (asked,) = encode_prompts(case.tokenizer, [ROUNDS[:3]])
    (dialogue,) = encode_dialogues(case.tokenizer, [ROUNDS[:3]], [ANSWERS[1]])
    said = decode_response(case.tokenizer, dialogue[len(asked) :])
    assert said.endswith(ANSWERS[1])  # a thought may come before it


def test_ids_are_those_of_transformers(case):
    """Up to the token that ends the last turn; where a template writes none, one is added."""
    format_ = chat_format(case.tokenizer)
    needs_parts = not shows_strings(case.tokenizer)
    for messages in conversations_of(case):
        theirs = in_parts(messages) if needs_parts else messages
        ours = encode_conversations(case.tokenizer, [messages])[0].ids
        whole = case.tokenizer.apply_chat_template(theirs, chat_template=case.learnt_from)["input_ids"]
        cut = len(ours) if ours[-1] in whole[-4:] else len(ours) - 1
        assert ours[:cut] == whole[:cut]
        assert format_.end not in whole[cut:]
        asked = case.tokenizer.apply_chat_template(theirs[:-1], add_generation_prompt=True)["input_ids"]
        if not case.thinks_first:
            assert encode_prompts(case.tokenizer, [messages[:-1]]) == [asked]


def test_the_template_is_kept(case):
    def state():
        tokenizer = case.tokenizer
        return tokenizer.chat_template, tokenizer.added_tokens_decoder, tokenizer.special_tokens_map

    before = state()
    encode_conversations(case.tokenizer, [ROUNDS])
    encode_prompts(case.tokenizer, [ROUNDS[:1]])
    assert state() == before


def test_a_system_message_that_the_template_forbids_is_refused_in_a_line(case):
    if not case.refuses_system:
        assert encode_prompts(case.tokenizer, [[SYSTEM, ROUNDS[0]]])[0]
        return
    for encode in (encode_conversations, encode_prompts):
        with pytest.raises(ConfigError, match=r"1: .*[Ss]ystem.*") as refused:
            encode(case.tokenizer, [[SYSTEM, *ROUNDS]])
        assert "\n" not in str(refused.value)


def test_the_check_at_import_says_how_a_turn_ends_and_what_prompts_leave_out(case):
    said = " ".join(check_chat(case.tokenizer))
    assert f"a turn ends with {case.end}," in said
    assert ("prompts leave out" in said) == case.thinks_first


# Added tokens that are words or layout, not markup: text may become them.
TEXT = {"<table>", "</table>", "<b>", "</b>", "|||EMAIL_ADDRESS|||"}
# Not special, and yet what turns are made of: not even the assistant's text may become these.
TURNS = {
    "<start_of_turn>",
    "<end_of_turn>",
    "<\uff5cUser\uff5c>",
    "<\uff5cAssistant\uff5c>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
}


def markup(tokenizer, *, in_turns_alone):
    tokens = [
        t for t in tokenizer.added_tokens_decoder.values() if t.content not in TEXT and t.content.strip("\u2581\n\t")
    ]
    return [t.content for t in tokens if not in_turns_alone or t.special or t.content in TURNS]


def counts(tokenizer, ids, tokens):
    return {token: ids.count(tokenizer.convert_tokens_to_ids(token)) for token in tokens}


def test_what_a_user_writes_is_no_markup(case):
    for messages in conversations_of(case):
        tokens = markup(case.tokenizer, in_turns_alone=False)
        forged = [{**m, "content": f"The {''.join(tokens)} dog"} if m["role"] != "assistant" else m for m in messages]
        plain, spelled = (encode_conversations(case.tokenizer, [each])[0] for each in (messages, forged))
        assert counts(case.tokenizer, spelled.ids, tokens) == counts(case.tokenizer, plain.ids, tokens)
        assert turns_of(case, *spelled) == turns_of(case, *plain)


def test_what_an_assistant_writes_opens_no_turn_and_ends_none(case):
    tokens = markup(case.tokenizer, in_turns_alone=True)
    forged = [*ROUNDS[:3], {"role": "assistant", "content": f"The {' '.join(tokens)} dog."}]
    plain, spelled = (encode_conversations(case.tokenizer, [each])[0] for each in (ROUNDS, forged))
    assert counts(case.tokenizer, spelled.ids, tokens) == counts(case.tokenizer, plain.ids, tokens)
    assert turns_of(case, *spelled)[-1].endswith("dog." + case.turns[1].partition(ANSWERS[1])[2])


def test_space_around_an_answer_moves_no_boundary(case):
    (asked,) = encode_prompts(case.tokenizer, [ROUNDS[:1]])
    answers = ["\n\nThe cat.", "  The cat. \n", "The cat.\n\n\n", "\tThe cat.\t"]
    dialogues = [[ROUNDS[0], {"role": "assistant", "content": answer}] for answer in answers]
    for ids, by_assistant in encode_conversations(case.tokenizer, dialogues):
        assert ids[: len(asked)] == asked
        assert by_assistant == [i >= len(asked) for i in range(len(ids))]
        assert ids[-1] == chat_format(case.tokenizer).end


def test_conversations_together_are_as_each_alone():
    for name in ("llama2", "gemma", "qwen3", "llama3-training"):
        tokenizer = cases()[name].tokenizer
        both = encode_conversations(tokenizer, [ROUNDS, ROUNDS[:2]])
        assert both == [encode_conversations(tokenizer, [each])[0] for each in (ROUNDS, ROUNDS[:2])]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",  # nothing of the assistant
        "{{ raise_exception('no') }}",
        "{{ messages[0]['nowhere']['at all'] }}",
        "",
    ],
)
def test_a_template_in_which_the_assistant_is_not_found_is_refused_in_a_line(template):
    tokenizer = tokenizer_for(template, ["<|user|>", "<|end|>"], eos="<|end|>")
    with pytest.raises(ValueError, match="template") as refused:
        chat_format(tokenizer)
    assert "\n" not in str(refused.value)
