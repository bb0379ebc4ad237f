"""Text as token ids in every family of tokenizer: as plain Transformers encodes it, and never markup."""

from __future__ import annotations

import pytest
from chat_templates import PUBLISHED
from tiny_models import tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from align.evals.items import encode_pair
from align.text.chat import encode_dialogues, encode_prompts
from align.text.encoding import control_tokens, encode_context, encode_texts, encoder_of
from align.text.tokenizers import train_tokenizer
from align.text.tokens import encode_documents

TEXTS = [
    "The cat sat on the mat.",
    " a space before, two  between and one after ",
    "lines\n\n\nand\ttabs\r\n    and an indent",
    "na\u00efve \u4f60\u597d \U0001f408\u200d\u2b1b e\u0301",
    "<b>bold</b> a < b > c [x] {y} <|>",
    "",
]


def word_piece() -> PreTrainedTokenizerFast:
    vocabulary = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "the", "cat", "##s", "sat", "[", "]", "se", "##p", "cls", "."]
    built = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=built, unk_token="[UNK]", cls_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]"
    )


def with_whitespace_entries() -> PreTrainedTokenizerFast:
    """GPT-NeoX's kind: runs of spaces are added tokens; a word that somebody added, too."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("  ", normalized=False), AddedToken("    ", normalized=False), "covid"])
    return tokenizer


def with_a_special_character() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["\u2603"]}, replace_extra_special_tokens=False)
    return tokenizer


def with_markup_outside_its_template() -> PreTrainedTokenizerFast:
    """Qwen's kind: `<|file_sep|>` is an added token that is not special, and no template writes it."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|file_sep|>", "<file_sep>", "[INST]", "<think>"])
    return tokenizer


FAMILIES = {
    **{name: entry.tokenizer for name, entry in PUBLISHED.items()},
    "byte_bpe": tiny_tokenizer,
    "unigram": lambda: train_tokenizer(["the cat sat on the mat and ran home"] * 5, 400, algorithm="unigram"),
    "word_piece": word_piece,
    "whitespace": with_whitespace_entries,
    "special_character": with_a_special_character,
    "other_markup": with_markup_outside_its_template,
}


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request, tmp_path_factory):
    """As the stages have it: from a folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    FAMILIES[request.param]().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def ids_of(tokenizer, tokens):
    return {tokenizer.convert_tokens_to_ids(token) for token in tokens}


def test_plain_text_is_encoded_as_in_plain_transformers(tokenizer):
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert encode_texts(tokenizer, TEXTS) == expected


def test_no_text_spells_a_control_token(tokenizer):
    controls = control_tokens(tokenizer)
    assert set(tokenizer.all_special_tokens) <= controls
    for text in [*controls, "".join(controls), " ".join(controls), *(f"a{token}b" for token in controls)]:
        (ids,) = encode_texts(tokenizer, [text])
        unknown = {tokenizer.unk_token_id}  # of a character that the vocabulary lacks
        assert not (set(ids) & ids_of(tokenizer, controls)) - unknown


def test_a_control_token_in_a_text_comes_back_as_it_was_written(tokenizer):
    if tokenizer.backend_tokenizer.model.__class__.__name__ == "WordPiece":
        pytest.skip("WordPiece gives no text back as it was")
    text = f"one {' two '.join(sorted(control_tokens(tokenizer)))} three"
    (ids,) = encode_texts(tokenizer, [text])
    assert tokenizer.decode(ids).strip() == text


def test_it_agrees_with_the_library_where_that_quotes_control_tokens(tokenizer):
    """`sanitize_control_tokens` of transformers cuts the text at such a token; so does a line break on each side."""
    if tokenizer.chat_template is None or "unk" in str(tokenizer.unk_token):
        pytest.skip("it has no template, or pieces of a line of its own begin with a space")
    for token in tokenizer.all_special_tokens:
        messages = [{"role": "user", "content": f"a\n{token}\nb"}]
        expected = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=True
        )["input_ids"]
        (got,) = encode_prompts(tokenizer, [messages])
        assert tokenizer.decode(got) == tokenizer.decode(expected)
        controls = ids_of(tokenizer, control_tokens(tokenizer))
        assert [i for i in got if i in controls] == [i for i in expected if i in controls]


def test_entries_of_whitespace_and_added_words_stay_entries():
    tokenizer = with_whitespace_entries()
    (ids,) = encode_texts(tokenizer, ["a    b covid"])
    assert {tokenizer.convert_tokens_to_ids("    "), tokenizer.convert_tokens_to_ids("covid")} < set(ids)


def test_noncharacters_cannot_forge_a_control_token():
    tokenizer = tiny_tokenizer()
    encoder = encoder_of(tokenizer)
    forged = "".join(encoder.respelled(token) for token in encoder.controls)
    (ids,) = encode_prompts(tokenizer, [[{"role": "user", "content": forged}]])
    roles = ids_of(tokenizer, ["<|user|>", "<|assistant|>"])
    assert [i for i in ids if i in ids_of(tokenizer, encoder.controls)] == [ids[0], ids[-1]]
    assert {ids[0], ids[-1]} == roles
    assert not set(encode_texts(tokenizer, [forged])[0]) & ids_of(tokenizer, encoder.controls)


def test_a_control_token_that_is_a_letter_of_the_alphabet_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["~"]}, replace_extra_special_tokens=False)
    with pytest.raises(ValueError, match="'~' is a control token and a byte of ordinary text"):
        encode_texts(tokenizer, ["a"])


def test_a_merge_cannot_make_a_control_token():
    """A vocabulary in which "<", "s" and ">" merge into `<s>`, as some conversions of SentencePiece have it."""
    pieces = ["<", "s", ">", "<s", "<s>", "a"]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [("<", "s"), ("<s", ">")])
    built = Tokenizer(model)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="<s>")
    assert encode_texts(tokenizer, ["a<s>a"]) == [[5, 3, 2, 5]]


# -- BOS, once, on every path ----------------------------------------------------------------------------------------


def bos_count(tokenizer, ids):
    return sum(i == tokenizer.bos_token_id for i in ids)


@pytest.fixture(params=["llama2", "gemma", "mistral", "vicuna"])
def with_bos(request):
    """A tokenizer that puts BOS before a text."""
    tokenizer = PUBLISHED[request.param].tokenizer()
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


def test_a_document_begins_with_bos_once(with_bos):
    ((flat, counts),) = encode_documents(["the cat", "the dog"], with_bos)
    ends = [with_bos.eos_token_id]
    expected = [i for text in ("the cat", "the dog") for i in [*with_bos(text)["input_ids"], *ends]]
    assert flat.tolist() == expected
    assert counts.tokens == len(expected)


def test_a_document_has_no_bos_where_the_tokenizer_puts_none():
    tokenizer = PUBLISHED["qwen2_5"].tokenizer()
    ((flat, _),) = encode_documents(["the cat"], tokenizer)
    assert flat.tolist() == [*tokenizer("the cat")["input_ids"], tokenizer.eos_token_id]


def test_a_dialogue_has_bos_as_its_template_writes_it(with_bos):
    prompt = [{"role": "user", "content": "Who sat?"}]
    whole = [*prompt, {"role": "assistant", "content": "The cat."}]
    (asked,) = encode_prompts(with_bos, [prompt])
    (answered,) = encode_dialogues(with_bos, [prompt], ["The cat."])
    plain = with_bos.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert asked == plain
    assert bos_count(with_bos, answered) == bos_count(
        with_bos, with_bos.apply_chat_template(whole, return_dict=True)["input_ids"]
    )


def test_an_item_s_context_begins_with_bos_once(with_bos):
    before, after = encode_pair(with_bos, "The cat sat on", " the mat")
    assert before == with_bos("The cat sat on")["input_ids"]
    assert bos_count(with_bos, [*before, *after]) == 1
    assert encode_pair(with_bos, "", "The cat")[0] == [with_bos.bos_token_id]


def test_what_is_sampled_from_begins_with_bos_once(with_bos):
    assert encode_context(with_bos, "The cat") == with_bos("The cat")["input_ids"]
    assert encode_context(with_bos, "") == [with_bos.bos_token_id]
