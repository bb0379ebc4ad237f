"""`align chat` and `align sample`: a tiny model's answers, by Transformers' own, in a pipe and at a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer, written_by_transformers

from align.cli.main import main
from align.errors import ConfigError
from align.models.load import load_model, load_tokenizer, save_model
from align.models.vocabulary import draw_rows
from align.runtime.console import harmless
from align.sampling.conversation import Conversation, learned_dialogues, set_system
from align.sampling.engine import Sampling
from align.sampling.local import Ends, generate, stream
from align.store.artifacts import Artifact, ArtifactStore
from align.text.chat import ROLE_TOKENS, decode_response, encode_prompts, keep_stop_strings, settled_text

CONTEXT, MOST = 64, 8
QUESTIONS = ["the cat", "sat on the mat", "and the dog"]
CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
Make = Callable[..., Artifact]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("chat") / "artifacts")


@pytest.fixture(scope="module")
def make(store: ArtifactStore) -> Make:
    """A function that puts a tiny model into the store, as if a stage had made it."""

    def made(
        name: str, stage: str, seed: int = 1, template: str = "", parent: Artifact | None = None, **left
    ) -> Artifact:
        torch.manual_seed(seed)
        model, tokenizer = tiny_model("llama", left.get("context", CONTEXT)), tiny_tokenizer()
        tokenizer.chat_template = template or tokenizer.chat_template
        if left.get("drawn"):
            draw_rows(model, tokenizer.convert_tokens_to_ids(list(ROLE_TOKENS.values())), 0)
        payload = store.root.parent / f"payload_{name}"
        save_model(model, tokenizer, payload)
        if left.get("ema"):
            torch.manual_seed(seed + 100)
            save_model(tiny_model("llama", CONTEXT), tokenizer, payload / "ema")
        inputs = {}
        if parent is not None:
            read = {"ref": parent.ref, "stage": parent.stage, "key": parent.key, "digest": parent.digest}
            inputs = {"model": [read]}
        key = f"{len(list(store.objects())):064x}"
        kind = left.get("kind", "model")
        artifact = store.commit(stage, key, payload, {"kind": kind, "inputs": inputs, "metrics": {}, "config": {}})
        store.publish(f"mine/{name}", artifact)
        return artifact

    return made


@pytest.fixture(scope="module")
def tuned(make: Make) -> Artifact:
    return make("tuned", "sft", ema=True)


@pytest.fixture(scope="module")
def base(make: Make) -> Artifact:
    return make("base", "pretrain", seed=2)


@pytest.fixture(scope="module")
def scorer(make: Make) -> Artifact:
    return make("scorer", "reward", kind="reward_model")


def by_transformers(folder: Path, questions: list[str], system: str = "") -> list[str]:
    """Greedy answers to the turns of one conversation, each by the library's own template and `generate`."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    messages, answers = ([{"role": "system", "content": system}] if system else []), []
    for question in questions:
        messages.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        written = written_by_transformers(model, ids, MOST, tokenizer.eos_token_id, tokenizer.pad_token_id)
        answers.append(tokenizer.decode(written, skip_special_tokens=True).strip())
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def chat(monkeypatch, store: ArtifactStore, piped: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
    return main(["chat", *arguments, "--store", str(store.root), "--temperature", "0", "--tokens", str(MOST)])


# -- a pipe --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["", "the mat"])
def test_a_line_is_a_turn_and_the_answers_alone_are_printed(monkeypatch, capsys, store, tuned, system):
    given = ["--system", system] if system else []
    assert chat(monkeypatch, store, "\n".join([QUESTIONS[0], "", QUESTIONS[1]]), "mine/tuned", *given) == 0
    expected = by_transformers(tuned.path, QUESTIONS[:2], system)
    assert capsys.readouterr().out == "".join(f"{harmless(text)}\n" for text in expected)
    assert all(expected)


def test_two_models_answer_the_same_prompts_each_with_its_name(monkeypatch, capsys, store, make, tuned):
    other = make("other", "ppo", seed=7)
    assert chat(monkeypatch, store, "the cat\nsat on\n", "mine/tuned", "mine/other") == 0
    one, two = (by_transformers(each.path, ["the cat", "sat on"]) for each in (tuned, other))
    parts = [
        f"{name}:\n{harmless(text)}\n"
        for pair in zip(one, two, strict=True)
        for name, text in zip(("mine/tuned", "mine/other"), pair, strict=True)
    ]
    assert capsys.readouterr().out == "".join(parts)
    assert one != two


def test_the_average_of_the_weights_answers(monkeypatch, capsys, store, tuned):
    assert chat(monkeypatch, store, "the cat", "mine/tuned", "--ema") == 0
    (expected,) = by_transformers(tuned.path / "ema", ["the cat"])
    assert capsys.readouterr().out == f"{harmless(expected)}\n"
    assert [expected] != by_transformers(tuned.path, ["the cat"])


def test_raw_text_is_continued(monkeypatch, capsys, store, base):
    assert chat(monkeypatch, store, "the cat", "mine/base", "--raw") == 0
    model, tokenizer = load_model(base.path), load_tokenizer(base.path)
    written = written_by_transformers(
        model, tokenizer("the cat")["input_ids"], MOST, tokenizer.eos_token_id, tokenizer.pad_token_id
    )
    assert capsys.readouterr().out == f"{harmless(tokenizer.decode(written, skip_special_tokens=True))}\n"


@pytest.mark.parametrize(
    ("arguments", "piped", "code_and_line"),
    [
        (["mine/base"], "hi", (2, "mine/base: a base model, which no step taught to answer")),
        (["mine/scorer"], "hi", (2, "mine/scorer: expected a model that answers, got a reward_model")),
        (["mine/tunedd"], "hi", (3, "did you mean mine/tuned?")),
        (["mine/tuned"], "\n \n", (2, "standard input is empty: expected a line for each turn")),
        (["mine/tuned"], "cat " * 60, (2, "mine/tuned reads 56 before an answer of 8; shorten it")),
        (["mine/tuned", "--tokens", "64"], "hi", (2, "--tokens: expected less than the context of 64 tokens, got 64")),
        (["mine/tuned", "--temperature", "-1"], "hi", (2, "--temperature: expected a number from 0 up, got -1")),
        (["mine/base", "--ema", "--raw"], "hi", (2, "--ema: mine/base keeps no average of its weights")),
        (["mine/base", "--raw", "--system", "x"], "hi", (2, "--system: --raw uses no chat template")),
        (["a", "b", "c"], "hi", (2, "align chat: expected one or two models, got 3")),
        (["card:lima"], "hi", (2, "card:lima: expected a model, and a card names data")),
    ],
)
@pytest.mark.usefixtures("tuned", "base", "scorer")
def test_what_is_wrong_is_one_line(monkeypatch, capsys, store, arguments, piped, code_and_line):
    code, said = code_and_line
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
    assert main(["chat", "--store", str(store.root), "--tokens", "8", *arguments]) == code
    told = capsys.readouterr()
    assert told.out == ""
    *loading, line = told.err.splitlines()
    assert said in line
    assert all(each.startswith("loading ") for each in loading)


def test_input_that_is_no_text_is_said_and_what_came_before_is_answered(monkeypatch, capsys, store, tuned):
    written = b"the cat\n" + b"\n" * 10_000 + b"\xff\xfe\n"  # not in the first block that is read
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(written), "utf-8"))
    given = ["--store", str(store.root), "--temperature", "0", "--tokens", str(MOST)]
    assert main(["chat", "mine/tuned", *given]) == 2
    told = capsys.readouterr()
    assert told.out == f"{harmless(by_transformers(tuned.path, ['the cat'])[0])}\n"
    assert "error: standard input: expected UTF-8, got other bytes after line " in told.err


# -- who answers ---------------------------------------------------------------------------------------------------


def test_a_model_that_was_taught_dialogues_answers_and_a_base_model_does_not(store, make, tuned, base):
    assert learned_dialogues(store, tuned)
    assert not learned_dialogues(store, base)
    assert learned_dialogues(store, make("policy", "ppo", parent=base))
    assert learned_dialogues(store, make("further", "pretrain", parent=tuned))
    assert not learned_dialogues(store, make("longer", "pretrain", parent=base))
    assert learned_dialogues(store, make("published", "import_model", template=CHATML))
    assert learned_dialogues(store, make("exported", "import_model"))
    assert not learned_dialogues(store, make("gpt", "import_model", drawn=True))


def sampled(capsys, store: ArtifactStore, *arguments: str) -> str:
    assert main(["sample", *arguments, "--store", str(store.root), "--temperature", "0", "--tokens", str(MOST)]) == 0
    return capsys.readouterr().out


def test_sample_asks_a_tuned_model_and_continues_for_a_base_model(capsys, store, tuned, base):
    (answer,) = by_transformers(tuned.path, ["the cat"])
    assert sampled(capsys, store, "mine/tuned", "the cat") == f"temperature 0\nthe cat\n{harmless(answer)}\n\n"
    for artifact, given in ((tuned, ["mine/tuned", "the cat", "--raw"]), (base, ["mine/base", "the cat"])):
        tokenizer = load_tokenizer(artifact.path)
        ids = tokenizer("the cat")["input_ids"]
        written = written_by_transformers(load_model(artifact.path), ids, MOST, tokenizer.eos_token_id, 1)
        text = tokenizer.decode(written, skip_special_tokens=True)
        assert sampled(capsys, store, *given) == f"temperature 0\nthe cat{harmless(text)}\n\n"


# -- turns ---------------------------------------------------------------------------------------------------------


def conversation(artifact: Artifact, most: int = MOST, system: str = "", **given) -> Conversation:
    sampling = Sampling(max_new_tokens=most, temperature=0.0)
    talk = Conversation("it", load_model(artifact.path), load_tokenizer(artifact.path), sampling, **given)
    talk.set_system(system)
    return talk


def answered(talk: Conversation, question: str) -> str:
    talk.ask(question)
    return list(talk.answer())[-1]


def test_the_oldest_turns_are_dropped_when_the_context_is_full(tuned):
    talk, tokenizer, dropped = conversation(tuned, system="the mat"), load_tokenizer(tuned.path), 0
    for number in range(8):
        question = f"{QUESTIONS[number % 3]} {number}"
        newly = talk.ask(question)
        before = talk.turns[newly:]
        dropped += newly
        assert dropped == number - len(before)
        kept = [{"role": "system", "content": "the mat"}]
        for asked, answer in before:
            kept += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        (prompt,) = encode_prompts(tokenizer, [[*kept, {"role": "user", "content": question}]])
        assert len(prompt) <= CONTEXT - MOST
        text = list(talk.answer())[-1]
        assert talk.turns == [*before, (question, text)]
        fresh = conversation(tuned, system="the mat")
        fresh.turns = before
        assert answered(fresh, question) == text
    assert 0 < dropped < 8


def test_undo_reset_and_a_system_message(tuned):
    talk = conversation(tuned)
    first = answered(talk, "the cat")
    second = answered(talk, "sat on")
    assert talk.undo()
    assert answered(talk, "sat on") == second
    talk.reset()
    assert not talk.undo()
    assert answered(talk, "the cat") == first
    talk.reset()
    talk.set_system("the dog ran home")
    assert answered(talk, "the cat") == by_transformers(tuned.path, ["the cat"], "the dog ran home")[0]


def test_a_question_with_an_empty_answer_is_a_turn_too(tuned):
    """Else `/undo` would forget an earlier question, and two models would not talk of the same ones."""
    model, tokenizer = load_model(tuned.path), load_tokenizer(tuned.path)
    torch.nn.init.zeros_(model.get_parameter("model.norm.weight"))  # all tokens are alike: the first ends the answer
    silent = Conversation("it", model, tokenizer, Sampling(max_new_tokens=MOST, temperature=0.0))
    assert [answered(silent, question) for question in ("the cat", "sat on")] == ["", ""]
    assert silent.turns == [("the cat", ""), ("sat on", "")]
    assert silent.undo()
    assert silent.turns == [("the cat", "")]


def test_a_system_message_that_one_of_two_models_refuses_is_set_for_none(tuned):
    talks = [conversation(tuned), conversation(tuned)]
    tokenizer = load_tokenizer(tuned.path)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}" + CHATML
    )
    strict = Conversation("strict", load_model(tuned.path), tokenizer, Sampling(max_new_tokens=MOST))
    with pytest.raises(ConfigError, match="no system message"):
        set_system([talks[0], strict], "the dog ran home")
    assert answered(talks[0], "the cat") == answered(talks[1], "the cat")


@pytest.mark.parametrize("temperatures", ["0.7,nan", "nan", "inf", "1,-1"])
def test_sample_takes_temperatures_that_are_numbers(capsys, store, tuned, temperatures):
    assert main(["sample", "mine/tuned", "hi", "--store", str(store.root), "--temperature", temperatures]) == 2
    assert "--temperature: expected numbers from 0 up, got" in capsys.readouterr().err


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_was_written(tuned):
    talk = conversation(tuned)
    whole = answered(talk, "the cat")
    assert talk.cut_off
    talk.reset()
    talk.ask("the cat")
    growing = talk.answer()
    text = ""
    while not text:
        text = next(growing)
    growing.close()
    ((question, kept),) = talk.turns
    assert question == "the cat"
    assert whole.startswith(kept)
    assert len(kept) < len(whole)


# -- streaming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streamed_tokens_are_those_of_generate(tuned, temperature):
    model, settings = load_model(tuned.path), Sampling(max_new_tokens=20, temperature=temperature)
    for seed, prompt in enumerate(([7], [8, 9, 10])):
        ((_, response),) = generate(model, [prompt], [seed], settings, Ends(0, 1))
        assert list(stream(model, prompt, seed, settings, Ends(0, 1))) == response.ids


@pytest.mark.parametrize("strings", [(), ("\n\nQ:",), ("## ", "\n\nQ:")])
def test_a_growing_text_shows_whole_characters_and_no_part_of_a_stop_string(strings):
    tokenizer = tiny_tokenizer()
    keep_stop_strings(tokenizer, strings)
    ids = tokenizer("the cat \U0001f408 saß\n\non # the mat\n\nQ: and")["input_ids"]
    final, before = decode_response(tokenizer, ids), ""
    assert final.endswith("mat" if strings else "and")
    for length in range(len(ids) + 1):
        text = settled_text(tokenizer, ids[:length])
        assert text.startswith(before)
        assert final.startswith(text)
        before = text
    assert len(before) > 15


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nhere é 🐈", "plain\ttext\nhere é 🐈"),
        ("a\x1b[31mred\x1b[0m b", "ared b"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]8;;http://x\x1b\\b", "ab"),
        ("a\x1bPq#0\x1b\\b", "ab"),
        ("a\x1bcb", "ab"),
        ("a\x9b2Jb\x07\x08\r\x7f", "ab"),
        ("a\x1b", "a"),
        ("a\x1b[3", "a"),
        ("a\x1b]0;tit", "a"),
        ("a\u202eb", "ab"),
        ("a[31mb", "a[31mb"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out(text, shown):
    assert harmless(text) == shown
    for length in range(len(text) + 1):
        assert shown.startswith(harmless(text[:length]))


# -- a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """The command line in a process behind a terminal of its own."""

    def __init__(self, *arguments: str):
        self.shown = ""
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell that started the tests behind it ignores it
            os.execv(sys.executable, [sys.executable, "-m", "align", *arguments])

    def until(self, text: str, seconds: float = 120.0) -> str:
        """What is shown up to a text that was not yet there."""
        begin, end = len(self.shown), time.monotonic() + seconds
        while text not in self.shown[begin:]:
            if not select.select([self._file], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError(f"expected {text!r}, got {self.shown[begin:]!r}")
            self.shown += os.read(self._file, 4096).decode(errors="replace").replace("\r\n", "\n")
        return self.shown[begin:]

    def more(self) -> None:
        """Wait until anything else is shown."""
        self.shown += os.read(self._file, 4096).decode(errors="replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.slow  # a process of its own, and what people type takes time
def test_commands_and_ctrl_c_at_a_terminal(store, make):
    """Ctrl-C ends an answer, then a line that was begun, then the chat."""
    make("endless", "sft", context=2048)
    terminal = Terminal(
        "chat", "mine/endless", "--store", str(store.root), "--temperature", "0", "--tokens", "1500", "--seed", "3"
    )
    try:
        _talk_at(terminal)
    finally:
        terminal.close()


def _talk_at(terminal: Terminal) -> None:
    assert "/undo" in terminal.until("\n> ")
    terminal.type("the cat\n")
    terminal.until("the cat\n")
    terminal.more()  # of the answer, which goes on for seconds
    terminal.type("\x03")
    assert "[stopped]" in terminal.until("\n> ")
    for line, reply in (
        ("/undo", "forgot the last question and its answer"),
        ("/undo", "there is no turn to forget"),
        ("/system be brief", "the system message is set"),
        ("/what", "/what: no such command"),
        ("/reset", "forgot all turns"),
    ):
        terminal.type(f"{line}\n")
        assert reply in terminal.until("\n> ")
    terminal.type("half a line")
    terminal.until("half a line")
    terminal.type("\x03")
    terminal.until("\n> ")
    terminal.type("\x03")
    assert terminal.code() == 0
