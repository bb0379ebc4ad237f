"""Published vocabularies: GPT-1's and GPT-2's as released, beside the library's own; what AutoTokenizer opens."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
import regex
from conftest import mostly_slow
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer, OpenAIGPTTokenizer

from align.data.cards import resolve_tokenizer
from align.errors import ConfigError
from align.sampling.conversation import continued
from align.text.chat import decode_response, encode_conversations, encode_dialogues, encode_prompts
from align.text.published import open_tokenizer
from align.text.tokenizers import EOS, PAD, add_sentinels, complete, train_tokenizer

ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
SHARED = next((p / "shared/data" for p in Path(__file__).parents if (p / "shared/data/gpt1_bpe").is_dir()), None)
real = pytest.mark.skipif(SHARED is None, reason="the published vocabularies are not here")

# GPT-2's pattern as in its encoder.py [recipes: openai/gpt-2]
PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

GPT1_VOCABULARY = ["<unk>", *"abct", *(f"{c}</w>" for c in "abct"), "ca", "cat</w>"]
GPT1_MERGES = "#version: 0.2\nc a\nca t</w>\n"
GPT2_MERGES = "#version: 0.2\nc a\nca t\n\u0120 cat\n"


def gpt2_vocabulary() -> list[str]:
    return [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ca", "cat", "\u0120cat", EOS]


def folder_of(folder: Path, names: tuple[str, str], vocabulary: list[str], merges: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / names[1]).write_text(merges)
    return folder


def opened(folder: Path):
    return open_tokenizer(resolve_tokenizer(f"path:{folder}", None))


# -- small ones --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("encoder_bpe_40000.json", "vocab_40000.bpe"), ("vocab.json", "merges.txt")])
def test_gpt1_is_known_by_how_its_words_end(tmp_path: Path, names: tuple[str, str]) -> None:
    tokenizer = opened(folder_of(tmp_path, names, GPT1_VOCABULARY, GPT1_MERGES))
    ids = {token: i for i, token in enumerate(GPT1_VOCABULARY)}
    tokens = ["cat</w>", "b", "a", "t</w>", "<unk>", "ca", "t", "c</w>"]
    assert tokenizer("Cat BAT? catc")["input_ids"] == [ids[token] for token in tokens]
    assert tokenizer.decode([ids["cat</w>"], ids["b"], ids["a"], ids["t</w>"]]) == "cat bat"


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2_is_known_by_its_files(tmp_path: Path, names: tuple[str, str]) -> None:
    vocabulary = gpt2_vocabulary()
    tokenizer = opened(folder_of(tmp_path, names, vocabulary, GPT2_MERGES))
    assert [vocabulary[i] for i in tokenizer("cat cat ca t")["input_ids"]] == [
        *("cat", "\u0120cat", "\u0120", "ca", "\u0120", "t")
    ]
    assert tokenizer.eos_token_id == vocabulary.index(EOS)


def test_what_autotokenizer_opens_is_opened_by_it(tmp_path: Path) -> None:
    """Even where a vocabulary and merges lie beside it."""
    trained = train_tokenizer(["the cat sat"] * 3, 270)
    trained.save_pretrained(tmp_path)
    folder_of(tmp_path, ("vocab.json", "merges.txt"), gpt2_vocabulary(), GPT2_MERGES)
    assert opened(tmp_path).get_vocab() == trained.get_vocab()


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ("{", GPT2_MERGES, "encoder.json: not JSON"),
        ("[]", GPT2_MERGES, "encoder.json: expected tokens with the ids 0, 1, 2"),
        ('{"a": 0, "b": 2}', "", "encoder.json: expected tokens with the ids 0, 1, 2"),
        ('{"a": [0], "b": {}}', "", "encoder.json: expected tokens with the ids 0, 1, 2"),
        ("[" * 100_000, "", "encoder.json: not JSON"),
        ('{"a": 0, "b": 1}', "", "encoder.json: neither GPT-1's .* nor GPT-2's"),
        (json.dumps({EOS: 0, "a": 1, "b": 2}), "a b c\n", "vocab.bpe: expected two parts per line"),
        (json.dumps({EOS: 0, "a": 1, "b": 2}), "a b\n", "ab"),
    ],
)
def test_files_that_are_not_what_they_are_called_are_refused(
    tmp_path: Path, vocabulary: str, merges: str, message: str
) -> None:
    (tmp_path / "encoder.json").write_text(vocabulary)
    (tmp_path / "vocab.bpe").write_text(merges)
    with pytest.raises(ValueError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text("{}")
    for source in (f"path:{tmp_path}", f"path:{tmp_path}/none", "path:", "card:wikitext", "gpt2"):
        with pytest.raises(ConfigError, match=r"expected hf:ORG/NAME@COMMIT or path:FOLDER with a tokenizer in it"):
            resolve_tokenizer(source, None)
    with pytest.raises(ConfigError, match="full commit hash only"):
        resolve_tokenizer("hf:openai-community/gpt2@main", None)


def test_weights_beside_a_tokenizer_are_not_in_its_digest(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "gpt2", ("encoder.json", "vocab.bpe"), gpt2_vocabulary(), GPT2_MERGES)
    before = resolve_tokenizer(f"path:{folder}", tmp_path).digest
    (folder / "model.safetensors").write_text("weights")
    assert resolve_tokenizer(f"path:{folder}", tmp_path).digest == before
    (folder / "vocab.bpe").write_text("#version: 0.2\n")
    assert resolve_tokenizer(f"path:{folder}", tmp_path).digest != before


# -- what they lack ----------------------------------------------------------------------------------------------


def test_gpt1_gets_an_end_of_text_token_above_its_own(tmp_path: Path) -> None:
    tokenizer = opened(folder_of(tmp_path, ("vocab.json", "merges.txt"), GPT1_VOCABULARY, GPT1_MERGES))
    assert tokenizer.eos_token is None
    assert complete(tokenizer) == ["an end-of-text token", "a padding token", "our chat template"]
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == [*GPT1_VOCABULARY, EOS, PAD, *ROLES]
    assert (tokenizer.eos_token, tokenizer.pad_token) == (EOS, PAD)
    assert complete(tokenizer) == []


def test_what_the_assistant_says_is_known_where_a_space_is_no_token(tmp_path: Path) -> None:
    tokenizer = opened(folder_of(tmp_path, ("vocab.json", "merges.txt"), GPT1_VOCABULARY, GPT1_MERGES))
    complete(tokenizer)
    user, assistant = {"role": "user", "content": " Cat? "}, {"role": "assistant", "content": "A cat b"}
    empty = {"role": "assistant", "content": ""}
    (got,) = encode_conversations(tokenizer, [[user, assistant, user, empty]])
    tokens = tokenizer.convert_ids_to_tokens(got.ids)
    asked = [("<|user|>", False), ("cat</w>", False), ("<unk>", False), ("<|assistant|>", False)]
    said = [("a</w>", True), ("cat</w>", True), ("b</w>", True), (EOS, True)]
    assert list(zip(tokens, got.by_assistant, strict=True)) == [*asked, *said, *asked, (EOS, True)]
    (prompt,) = encode_prompts(tokenizer, [[user]])
    (dialogue,) = encode_dialogues(tokenizer, [[user]], [assistant["content"]])
    assert prompt == got.ids[:4]
    assert dialogue == got.ids[:8]
    assert decode_response(tokenizer, dialogue[4:]) == "a cat b"


def test_what_is_sampled_begins_with_its_space_where_a_space_is_no_token(tmp_path: Path) -> None:
    tokenizer = opened(folder_of(tmp_path, ("vocab.json", "merges.txt"), GPT1_VOCABULARY, GPT1_MERGES))
    prompt, written = (tokenizer(text)["input_ids"] for text in ("a cat", "cat b"))
    assert continued(tokenizer, prompt, written) == " cat b"


def test_another_tokenizer_without_an_end_of_text_token_is_refused() -> None:
    tokenizer = train_tokenizer(["the cat sat"] * 3, 270)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        complete(tokenizer)


def test_special_tokens_that_it_has_stay_special(tmp_path: Path) -> None:
    tokenizer = opened(folder_of(tmp_path, ("encoder.json", "vocab.bpe"), gpt2_vocabulary(), GPT2_MERGES))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mine>"]})
    complete(tokenizer)
    add_sentinels(tokenizer, 2)
    assert tokenizer.all_special_tokens == [EOS, PAD, "<mine>", *ROLES, "<extra_id_1>", "<extra_id_0>"]
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == len(tokenizer) - 1
    with pytest.raises(ValueError, match=r"sentinels .* of its own"):
        add_sentinels(tokenizer, 1)


# -- the published ones ------------------------------------------------------------------------------------------


def read_texts(num_books: int | None, num_chars: int | None, num_rows: int) -> list[str]:
    """Prose, Wikipedia with its strange marks, and instructions."""
    assert SHARED is not None
    paths = [*sorted((SHARED / "classic_books").rglob("*.md.gz"))[:num_books], SHARED / "wikitext2/valid.txt.gz"]
    found = [gzip.decompress(path.read_bytes()).decode()[:num_chars] for path in paths]
    rows = json.loads(gzip.decompress((SHARED / "alpaca/alpaca_5000.json.gz").read_bytes()))
    return [*found, *(row["instruction"] + "\n" + row["output"] for row in rows[:num_rows])]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return read_texts(4, 100_000, 300)


@pytest.fixture(scope="module")
def gpt1():
    return opened(SHARED / "gpt1_bpe")


@pytest.fixture(scope="module")
def gpt2():
    return opened(SHARED / "gpt2_bpe")


def merges_of(path: Path) -> list[tuple[str, str]]:
    return [tuple(line.split()) for line in path.read_text().split("\n")[1:-1]]


def strange_texts(count: int) -> list[str]:
    rng = random.Random(0)
    planes = [(1, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return ["".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(1, 60))) for _ in range(count)]


@real
def test_gpt1_has_its_published_ids(gpt1) -> None:
    published = json.loads((SHARED / "gpt1_bpe/encoder_bpe_40000.json").read_text())
    assert len(published) == 40_478
    assert gpt1.get_vocab() == published
    assert gpt1.unk_token_id == 0


def library_s_gpt1() -> OpenAIGPTTokenizer:
    folder = SHARED / "gpt1_bpe"
    vocabulary = json.loads((folder / "encoder_bpe_40000.json").read_text())
    return OpenAIGPTTokenizer(vocab=vocabulary, merges=merges_of(folder / "vocab_40000.bpe"))


def library_s_gpt2() -> GPT2Tokenizer:
    folder = SHARED / "gpt2_bpe"
    vocabulary = json.loads((folder / "encoder.json").read_text())
    return GPT2Tokenizer(vocab=vocabulary, merges=merges_of(folder / "vocab.bpe"))


@real
def test_gpt1_gives_the_ids_of_the_library_s_own(gpt1, texts: list[str]) -> None:
    library = library_s_gpt1()
    for given in (texts, strange_texts(300), [text.upper() for text in texts[-50:]]):
        assert gpt1(given)["input_ids"] == library(given)["input_ids"]
    assert gpt1("THE Cat")["input_ids"] == gpt1("the cat")["input_ids"]


@real
def test_gpt2_has_its_published_ids(gpt2) -> None:
    published = json.loads((SHARED / "gpt2_bpe/encoder.json").read_text())
    assert len(gpt2) == len(published) == 50_257
    assert gpt2.get_vocab() == published
    assert gpt2.eos_token_id == 50_256


@real
def test_gpt2_gives_the_ids_of_the_library_s_own(gpt2, texts: list[str]) -> None:
    library, folder = library_s_gpt2(), SHARED / "gpt2_bpe"
    bare = Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    for given in (texts, strange_texts(300)):
        ids = gpt2(given)["input_ids"]
        assert ids == library(given)["input_ids"]
        assert ids == [encoded.ids for encoded in bare.encode_batch(given)]


@real
@pytest.mark.slow
def test_both_give_the_library_s_ids_on_megabytes(gpt1, gpt2) -> None:
    every = read_texts(None, None, 5000)
    assert sum(map(len, every)) > 4e6
    for ours, library in ((gpt1, library_s_gpt1()), (gpt2, library_s_gpt2())):
        for text in every:
            assert ours(text)["input_ids"] == library(text)["input_ids"]


@real
def test_any_text_comes_back_from_gpt2_and_special_tokens_do_not_come_of_text(gpt2, texts: list[str]) -> None:
    for text in [*texts[:1], *strange_texts(1000), f"a {EOS} b{EOS}", "\x00", ""]:
        ids = gpt2(text, split_special_tokens=True)["input_ids"]
        assert gpt2.decode(ids) == text
        assert 50_256 not in ids


@real
def test_no_merge_crosses_a_piece_of_gpt2_s_pattern(gpt2, texts: list[str]) -> None:
    for text in [texts[0][:50_000], texts[-1], *strange_texts(50)]:
        pieces = PATTERN.findall(text)
        assert "".join(pieces) == text
        assert gpt2(text)["input_ids"] == [i for ids in gpt2(pieces)["input_ids"] for i in ids]


@real
@pytest.mark.parametrize("name", mostly_slow(["gpt1_bpe", "gpt2_bpe"], ["gpt2_bpe"]))
def test_a_completed_one_is_opened_as_it_was_saved(name: str, texts: list[str], tmp_path: Path) -> None:
    plain, tokenizer = opened(SHARED / name), opened(SHARED / name)
    complete(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    sample = [*texts[:1], *texts[-20:]]
    assert again(sample)["input_ids"] == plain(sample)["input_ids"]
    assert again.get_vocab() == {**plain.get_vocab(), **{t: again.convert_tokens_to_ids(t) for t in (EOS, PAD, *ROLES)}}
    assert len({again.eos_token_id, again.pad_token_id, *again.convert_tokens_to_ids(ROLES)}) == 5
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "good day"}]
    (got,) = encode_conversations(again, [turns])
    said = [i for i, mine in zip(got.ids, got.by_assistant, strict=True) if mine]
    assert said == [*again(" good day")["input_ids"], again.eos_token_id]
    assert decode_response(again, said) == "good day"
