"""A form of plain text becomes a chat template: a model is shown it, and an answer ends where the form goes on."""

import pytest
from tiny_models import tiny_tokenizer

from align.text.chat import (
    ask_in_form,
    check_chat,
    decode_response,
    encode_conversations,
    encode_prompts,
    stop_strings,
)
from align.text.encoding import encode_texts
from align.text.forms import FORMS, Form, Shot, read_form, shot_of

ASKED = [{"role": "user", "content": "Where does Ada live?"}]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *ASKED]
FORMS_TO_TRY = {**FORMS, "talk": "Ada: {prompt} Ben: {response} ", "dialogue": "Ada: {prompt} Ben: {response}\n"}


def asked_in(text, shots=()):
    tokenizer = tiny_tokenizer()
    ask_in_form(tokenizer, read_form(text), shots)
    return tokenizer


def shown(tokenizer, messages):
    """What the model reads behind the token that begins a document."""
    first, *ids = encode_prompts(tokenizer, [messages])[0]
    assert first == tokenizer.eos_token_id
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", FORMS_TO_TRY.values(), ids=FORMS_TO_TRY)
def test_a_prompt_reads_as_the_form_up_to_its_answer(text):
    expected = text.partition("{response}")[0].replace("{prompt}", "Where does Ada live?").rstrip(" ")
    assert shown(asked_in(text), ASKED) == expected


@pytest.mark.parametrize("text", FORMS_TO_TRY.values(), ids=FORMS_TO_TRY)
def test_prompt_and_answer_have_the_tokens_of_the_text_as_a_whole(text):
    tokenizer = asked_in(text)
    (whole,) = encode_conversations(tokenizer, [[*ASKED, {"role": "assistant", "content": "In Oakvale."}]])
    plain = text.replace("{prompt}", "Where does Ada live?").replace("{response}", "In Oakvale.")
    assert whole.ids[0] == whole.ids[-1] == tokenizer.eos_token_id
    assert whole.ids[1:-1] == encode_texts(tokenizer, [plain])[0]
    (prompt,) = encode_prompts(tokenizer, [ASKED])
    assert whole.ids[: len(prompt)] == prompt


@pytest.mark.parametrize("text", FORMS_TO_TRY.values(), ids=FORMS_TO_TRY)
def test_a_form_is_a_chat_template_that_training_and_sampling_can_use(text):
    check_chat(asked_in(text))


def test_examples_stand_before_the_prompt_in_the_same_form():
    tokenizer = asked_in(
        "Q: {prompt}\nA: {response}\n\n", [Shot("Who?", "Ben."), Shot("What?", "A {{ cat }} é \U0001f408.")]
    )
    assert shown(tokenizer, ASKED) == (
        "Q: Who?\nA: Ben.\n\nQ: What?\nA: A {{ cat }} é \U0001f408.\n\nQ: Where does Ada live?\nA:"
    )


def test_a_system_message_stands_before_the_question_as_in_text():
    assert shown(asked_in(FORMS_TO_TRY["dialogue"]), WITH_SYSTEM) == "Ada: Be brief. Where does Ada live? Ben:"


def test_earlier_turns_go_on_in_the_form():
    history = [*ASKED, {"role": "assistant", "content": "In Oakvale."}, {"role": "user", "content": "And Ben?"}]
    assert shown(asked_in(FORMS_TO_TRY["dialogue"]), history) == (
        "Ada: Where does Ada live? Ben: In Oakvale.\nAda: And Ben? Ben:"
    )


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("Ada: {prompt} Ben: {response}\n", ("\n", " Ada:", " Ben:")),
        ("Ada: {prompt} Ben: {response} ", ("\n", " Ada:", " Ben:")),
        ("Ada: {prompt} Ben: {response}", ("\n", " Ada:", " Ben:")),
        ("{prompt}\n{response}\n\n", ("\n\n",)),
        (
            "### Ask\n{prompt}\n### Say\n{response}\n### End\n",
            ("\n### End\n", " ### Ask", "\n### Ask", " ### Say", "\n### Say"),
        ),
    ],
)
def test_an_answer_ends_at_what_follows_it_and_at_a_change_of_speaker(text, stops):
    assert stop_strings(asked_in(text)) == stops


def test_what_a_model_goes_on_to_write_is_no_part_of_its_answer():
    tokenizer = asked_in("Ada: {prompt} Ben: {response}\n")
    (ids,) = encode_texts(tokenizer, [" In Oakvale. Ada: And Ben? Ben: In Redford."])
    assert decode_response(tokenizer, ids) == "In Oakvale."


def test_a_line_break_may_be_written_with_a_backslash():
    assert read_form(r"Q: {prompt}\nA: {response}\n\n") == Form("Q: ", "\nA: ", "\n\n")


@pytest.mark.parametrize(
    "text",
    ["", "{prompt}", "Q: {prompt} A:", "{response} {prompt}", "{prompt}{response}", "{prompt} {response} {prompt}"],
)
def test_what_is_no_form_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        read_form(text)


def test_a_shot_is_the_last_answer_behind_all_that_was_said_before():
    messages = [*WITH_SYSTEM, {"role": "assistant", "content": " In Oakvale. "}]
    assert shot_of(messages) == Shot("Be brief. Where does Ada live?", "In Oakvale.")


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        ("The USA: a land.", False),
        ("In Ashport.\nA: No.", True),
        ("In Ashport. Q: Why?", True),
        ("In Ashport.\n\n", True),
    ],
)
def test_a_label_ends_an_answer_where_it_begins_a_word(answer, ends):
    form = read_form("Q: {prompt}\nA: {response}\n\n")
    assert any(stop in answer for stop in form.stop_strings) is ends
