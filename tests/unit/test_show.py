"""`align data ... --show`: what a user looks at before anything is stored."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_tokenizer

from align.cli.main import main
from align.text.chat import encode_conversations, encode_prompts
from align.text.tokenizers import complete

CHAT = [
    {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "sat on [the] mat é🐈"},
    {"role": "user", "content": "and the dog"},
    {"role": "assistant", "content": "ran home"},
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def written(folder: Path, *rows: object) -> str:
    (folder / "mine.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return "source=path:mine.jsonl"


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["data", *arguments]) == code
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines()), out
    return out


def test_rows_are_shown_as_they_came_and_as_records(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(here, {"messages": CHAT, "id": 7}, {"messages": CHAT[:2]}, {"messages": CHAT[2:]})
    out = shown(capsys, source, "record=demonstrations", "--show", "2")
    assert "mine.jsonl:1" in out
    assert "mine.jsonl:2" in out
    assert "mine.jsonl:3" not in out
    assert '    messages: [{"role": "user"' in out
    assert "    id: 7" in out
    assert re.findall(r"\[\[(.*?)\]\]", out)[:3] == ["sat on [the] mat é🐈", "ran home", "sat on [the] mat é🐈"]
    assert "user: the cat?\n    assistant: [[sat on [the] mat é🐈]]" in out
    assert [path.name for path in here.iterdir()] == ["mine.jsonl"]


def unspaced(text: str) -> str:
    """Text without the spaces and line ends that wrapping moves."""
    return "".join(text.split())


def test_the_marked_text_is_what_is_trained_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the tokens that supervised tuning gives a loss."""
    tokenizer = tiny_tokenizer()
    complete(tokenizer)
    tokenizer.save_pretrained(here / "tokenizer")
    (encoded,) = encode_conversations(tokenizer, [CHAT])
    trained = [token for token, by in zip(encoded.ids, encoded.by_assistant, strict=True) if by]
    source = written(here, {"messages": CHAT})
    out = shown(capsys, source, "record=demonstrations", "--show", "1", "--tokenizer", "path:tokenizer")
    assert f"{len(encoded.ids)} tokens, {len(trained)} of them trained on" in out
    text = unspaced(out.partition("trained on\n")[2].partition("\n\n")[0])
    assert "".join(re.findall(r"\[\[(.*?)\]\]", text)) == unspaced(tokenizer.decode(trained))
    assert re.sub(r"\[\[(.*?)\]\]", r"\1", text) == unspaced(tokenizer.decode(encoded.ids))

    (prompt,) = encode_prompts(tokenizer, [CHAT[:3]])
    out = shown(capsys, source, "record=prompts", "--show", "1", "--tokenizer", "path:tokenizer")
    assert f", {len(prompt)} tokens\n" in out
    assert unspaced(tokenizer.decode(prompt)) in unspaced(out)


@pytest.mark.parametrize("tokenizer", [[], ["--tokenizer", "path:tokenizer"]], ids=["plain", "encoded"])
def test_responses_are_shown_by_rank(tokenizer: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    complete(own := tiny_tokenizer())
    own.save_pretrained(here / "tokenizer")
    source = written(here, {"prompt": "the cat", "responses": ["ran", "sat", "on"], "ranks": [3, 1, 2]})
    out = shown(capsys, source, "record=comparisons", "--show", *tokenizer)
    found = re.findall(r"rank (\d)[^\[]*\[\[ ?(\w+)", out)
    assert found == [("1", "sat"), ("2", "on"), ("3", "ran")]


ITEM = {"contexts": ["the cat"] * 2, "completions": [" sat", " ran"], "labels": [0, 1]}


@pytest.mark.parametrize("tokenizer", [[], ["--tokenizer", "path:tokenizer"]], ids=["plain", "encoded"])
@pytest.mark.parametrize(
    ("record", "row", "lines"),
    [
        ("items", ITEM, ["wrong: the cat[[ sat]]", "right: the cat[[ ran]]"]),
        ("documents", {"text": "the cat"}, ["the cat"]),
        ("prompts", {"prompt": "the cat"}, ["the cat"]),
        ("labelled", {"text": "the cat", "label": "x"}, ['texts: ["the cat"]', 'label: "x"']),
    ],
)
def test_other_records_mark_what_is_scored_alone(
    record: str, row: dict, lines: list[str], tokenizer: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete(own := tiny_tokenizer())
    own.save_pretrained(here / "tokenizer")
    out = shown(capsys, written(here, row), f"record={record}", "--show", *tokenizer)
    made = out.partition("as it came")[2].partition(f"\n  {record}, ")[2].partition("\n\n")[0]
    assert all(line in made for line in lines)
    assert made.count("[[") == sum(line.count("[[") for line in lines)


def test_colours_stand_for_brackets_on_a_terminal(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    source = written(here, {"prompt": "the cat", "completion": "sat"})
    assert main(["data", source, "record=demonstrations", "--show"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[1;32msat\x1b[0m" in out
    assert "[[" not in out


def test_what_gives_no_record_says_why(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(here, {"prompt": "the cat"}, {"prompt": " "}, {"prompt": True}, {"zzz": "\x1b[31mwhy"})
    assert main(["data", source, "record=prompts", "--show", "9"]) == 2
    out, err = capsys.readouterr()
    assert "dropped: empty text 1" in out
    assert "\x1b" not in out
    assert [line.partition(" ")[2].partition(": ")[0] for line in err.splitlines()] == ["mine.jsonl:3", "mine.jsonl:4"]
    assert out.index("user: the cat") < out.index('zzz: "')


CALL = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
WITH_TOOLS = {
    "messages": [
        {"role": "user", "content": "the cat?"},
        {"role": "assistant", "content": "", "tool_calls": CALL},
        {"role": "tool", "content": "sat", "tool_call_id": "1"},
        {"role": "assistant", "content": "ran", "weight": 1},
    ],
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}],
}


@pytest.mark.parametrize("tokenizer", [[], ["--tokenizer", "path:tokenizer"]], ids=["plain", "encoded"])
def test_a_turn_that_is_not_learned_is_not_marked(
    tokenizer: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete(own := tiny_tokenizer())
    own.save_pretrained(here / "tokenizer")
    source = written(here, {"messages": [CHAT[0], {**CHAT[1], "weight": 0}, *CHAT[2:]]})
    out = unspaced(shown(capsys, source, "record=demonstrations", "--show", *tokenizer).partition("demonstrations,")[2])
    (marked,) = re.findall(r"\[\[(\w.*?)\]\]", out)
    assert marked.removesuffix(own.eos_token) == "ranhome"
    assert "saton[the]mat" in out


def test_a_call_of_a_tool_is_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, written(here, WITH_TOOLS), "record=demonstrations", "--show")
    assert "[[]]" not in out
    assert 'assistant: [[[{"id": "1", ' in out


TEMPLATE = (
    "{% if tools %}{% for tool in tools %}<{{ tool.function.name }}>{% endfor %}{% endif %}{% for m in messages %}"
    "{{ m.role + ' ' + m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}"
    "{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def test_tools_are_shown_as_the_chat_template_writes_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    complete(tokenizer)
    tokenizer.save_pretrained(here / "tokenizer")
    source = written(here, WITH_TOOLS)
    out = shown(capsys, source, "record=demonstrations", "--show", "--tokenizer", "path:tokenizer")
    assert "<look>" in unspaced(out)


VOTES = [{"prompt": p, "completion": c, "label": c == "sat"} for c in ("sat", "ran") for p in ("the cat", "the dog")]


def test_rows_that_make_a_record_together_are_read_on_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, written(here, *VOTES), "record=comparisons", "--show", "1")
    assert "it makes a record together with other rows, shown below" in out
    assert "joined: of the first 4 rows" in out
    assert re.findall(r"rank (\d): \[\[(\w+)", out) == [("1", "sat"), ("2", "ran")]
    assert out.count("user: the cat") == 1
    assert "the dog" not in out


def test_what_is_unusual_of_a_file_is_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.csv").write_bytes("prompt;completion;zzz\ncafé;oui;1\n".encode("latin-1"))
    out = shown(capsys, "source=path:a.csv", "record=demonstrations", "--show")
    assert "read as Latin-1" in out
    assert "separated by semicolons" in out
    source = written(here, {"messages": CHAT, "zzz": 1})
    assert "columns not used: zzz (1 row)\n" in shown(capsys, source, "record=demonstrations", "--show")


@pytest.mark.parametrize("record", ["documents", "demonstrations", "prompts"])
def test_a_generated_source_is_shown(record: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "source=card:smallworld", f"record={record}", "--show=2")
    assert "card:smallworld[1]" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--show", "0"], "--show: expected a number of rows above 0, got 0"),
        (["--show", "two"], "--show: expected a number of rows above 0, got two"),
        (["--show", "--tokenizer", "./folder"], "a file or folder is written path:./folder"),
        (["--show", "--tokenizer", "path:mine.jsonl"], "--tokenizer path:mine.jsonl: "),
        (["--show", "source=hf:off/line"], "hf:off/line: the Hub is read at a full commit hash only, and could not be"),
        (["--show", "columns={prompt: zz}"], "columns.prompt: no row has a column 'zz' (of the 1 that were read)"),
        (["--show", "source=path:empty.jsonl"], "source: path:empty.jsonl: it has no rows"),
        (["--show", "max_char=3"], "max_char: no such knob (did you mean max_chars?)"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty.jsonl").touch()
    assert main(["data", written(here, {"prompt": "the cat"}), "record=prompts", *arguments]) in (2, 3)
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_without_a_tokenizer_torch_stays_away(here: Path) -> None:
    code = (
        f"import sys; from align.cli.main import main; code = main(['data', {written(here, {'prompt': 'a'})!r}, "
        "'record=prompts', '--show']); sys.exit(code or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
