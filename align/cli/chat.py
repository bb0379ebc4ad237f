"""`align chat`: talk with a language model, or with two at once."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import AlignError, ConfigError
from align.runtime.console import Parser, harmless
from align.store.artifacts import Artifact, ArtifactStore, existing_store, store_folder
from align.store.references import is_outside

if TYPE_CHECKING:
    from align.sampling.conversation import Conversation

_COMMANDS = """\
/reset         forget what was said
/undo          forget the last question and its answer
/system TEXT   give the model a system message; without TEXT, remove it
/help          show this
/exit          end, as Ctrl-D does; Ctrl-C ends an answer, else the chat"""

_PIPED = "Piped input is one conversation, one line for each turn; only answers go to the output."


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    store = ArtifactStore(store_folder(options.store))
    artifacts = [_artifact(ref, store, options) for ref in options.ref]
    lines: Iterator[str] | None = None if sys.stdin.isatty() else _piped(sys.stdin)
    conversations = [
        _open(ref, artifact, options) for ref, artifact in zip(options.ref, artifacts, strict=True)
    ]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if lines is None:
        return _talk(conversations, options)
    for line in lines:
        _answer(conversations, line)
    return 0


def _options(arguments: list[str]) -> Namespace:
    parser = Parser(
        prog="align chat",
        description=f"{__doc__.partition(': ')[2]}\n{_PIPED}",
        epilog=f"commands:\n{_COMMANDS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "ref",
        metavar="REF",
        nargs="+",
        help=(
            "one or two models: PIPELINE/STEP[:vN], STAGE@KEY, path:FOLDER, path:FILE.gguf or"
            " hf:ORG/NAME@COMMIT"
        ),
    )
    parser.add_argument(
        "--system", default="", metavar="TEXT", help="the system message; default: none"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.7, metavar="T", help="0: the likeliest; default: 0.7"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="sampled from; default: 1"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="of an answer at most; default: 256, half the context where that is less",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--raw", action="store_true", help="continue each line as plain text, without chat template"
    )
    parser.add_argument(
        "--ema", action="store_true", help="the average of its weights that PPO kept"
    )
    parser.add_argument("--store", metavar="FOLDER", help="default: $ALIGN_STORE, or artifacts")
    options = parser.parse_args(arguments)
    for name, value, ok, allowed in (
        (
            "--temperature",
            options.temperature,
            0 <= options.temperature < float("inf"),
            "a number from 0 up",
        ),
        (
            "--tokens",
            options.tokens,
            options.tokens is None or options.tokens > 0,
            "a number above 0",
        ),
        ("--top-p", options.top_p, 0 < options.top_p <= 1, "a number above 0 and at most 1"),
    ):
        if not ok:
            raise ConfigError(f"{name}: expected {allowed}, got {value:g}")
    if len(options.ref) > 2:
        raise ConfigError(f"align chat: expected one or two models, got {len(options.ref)}")
    if options.raw and options.system:
        raise ConfigError(
            "--system: --raw uses no chat template, so it has no system message; leave one out"
        )
    return options


# -- the models ------------------------------------------------------------------------------------


def _artifact(ref: str, store: ArtifactStore, options: Namespace) -> Artifact:
    """Return the model that a reference names, verified.

    A model from outside the store is imported first.
    """
    from align.sampling.conversation import learned_dialogues

    artifact = _imported(ref, store) if is_outside(ref) else existing_store(options.store).find(ref)
    if artifact.kind != "model":
        raise ConfigError(f"{ref}: expected a model that answers, got a {artifact.kind}")
    if options.ema and not (artifact.path / "ema").is_dir():
        raise ConfigError(f"--ema: {ref} keeps no average of its weights; leave --ema out")
    store.verify(artifact)
    if not options.raw and not learned_dialogues(store, artifact):
        raise ConfigError(
            f"{ref}: a base model, which no step taught to answer; train it with align sft"
            f" inputs.model={ref}, or give --raw to have it continue each line"
        )
    return artifact


def _imported(ref: str, store: ArtifactStore) -> Artifact:
    """Import a model as `align import_model source=REF` does.

    A model that was imported before is found in the store.
    """
    from omegaconf import OmegaConf

    from align.configs import ImportModel, RunConfig
    from align.data.cards import model_kind
    from align.pipeline.plan import plan
    from align.pipeline.run import run_pipeline

    if ref.startswith("card:"):
        raise ConfigError(f"{ref}: expected a model, and a card names data")
    if (kind := model_kind(ref) or "model") != "model":
        raise ConfigError(f"{ref}: expected a model that answers, got a {kind}")
    settings = RunConfig(name="own", store=str(store.root))
    settings.tracker.backend = "none"
    steps = plan(
        settings,
        {"import_model": OmegaConf.create({"stage": ImportModel.STAGE, "source": ref})},
        store,
    )
    (outcome,) = run_pipeline(steps, store, settings)
    return outcome.artifact


def _open(ref: str, artifact: Artifact, options: Namespace) -> Conversation:
    from align.models.load import answer_length, context_length, load_model, load_tokenizer
    from align.sampling.conversation import Conversation
    from align.sampling.engine import Sampling

    folder: Path = artifact.path / "ema" if options.ema else artifact.path
    print(f"loading {ref}", file=sys.stderr, flush=True)
    model = load_model(folder)
    try:
        most = answer_length(options.tokens, context_length(model))
    except ConfigError as error:
        raise ConfigError(str(error).replace("max_new_tokens", "--tokens")) from None
    sampling = Sampling(max_new_tokens=most, temperature=options.temperature, top_p=options.top_p)
    tokenizer = load_tokenizer(folder)
    talk = Conversation(ref, model, tokenizer, sampling, seed=options.seed, raw=options.raw)
    talk.set_system(options.system)  # this also tries the chat template
    return talk


# -- turns -----------------------------------------------------------------------------------------


def _piped(lines: Iterable[str]) -> Iterator[str]:
    """Return the lines that are not blank.

    Raises:
        ConfigError: there is no such line, or a line is not UTF-8 (raised when it is read).
    """
    spoken = _spoken(lines)
    first = next(spoken, None)
    if first is None:
        raise ConfigError("standard input is empty: expected a line for each turn")
    return itertools.chain([first], spoken)


def _spoken(lines: Iterable[str]) -> Iterator[str]:
    read = 0
    try:
        for line in lines:
            read += 1
            if line.strip():
                yield line.strip()
    except UnicodeDecodeError:
        raise ConfigError(
            f"standard input: expected UTF-8, got other bytes after line {read}"
        ) from None


def _talk(conversations: Sequence[Conversation], options: Namespace) -> int:
    """Read turns from a terminal until the user ends the chat."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  lets input() edit lines and keep a history
    names = " and ".join(conversation.name for conversation in conversations)
    print(f"{'continuing text with' if options.raw else 'chat with'} {names}")
    print(_COMMANDS)
    for line in _typed_lines():
        try:
            if line.startswith("/"):
                print(_command(conversations, line))
            else:
                _answer(conversations, line)
        except AlignError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:  # between two answers
            print()
    return 0


def _typed_lines() -> Iterator[str]:
    """Yield the lines that the user types, without empty ones, until the user ends the chat.

    Ctrl-C discards a line. On an empty line it ends the chat, as Ctrl-D and /exit do.
    """
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            print()
            return
        except UnicodeDecodeError:
            print("error: that line is not UTF-8", file=sys.stderr)
            continue
        except KeyboardInterrupt:
            print()
            if not _typed():
                return
            continue
        if line == "/exit":
            return
        if line:
            yield line


def _typed() -> str:
    """Return the text of the line that Ctrl-C discarded."""
    try:
        import readline
    except ImportError:
        return ""
    return readline.get_line_buffer().strip()


def _command(conversations: Sequence[Conversation], line: str) -> str:
    """Run a command that begins with a slash; return the reply."""
    from align.sampling.conversation import set_system

    word, _, rest = line.partition(" ")
    if word == "/reset":
        for conversation in conversations:
            conversation.reset()
        return "forgot all turns"
    if word == "/undo":
        done = [conversation.undo() for conversation in conversations]
        return (
            "forgot the last question and its answer" if any(done) else "there is no turn to forget"
        )
    if word == "/system":
        set_system(conversations, rest.strip())
        return "the system message is set" if rest.strip() else "no system message"
    if word == "/help":
        return _COMMANDS
    return f"{word}: no such command\n{_COMMANDS}"


def _answer(conversations: Sequence[Conversation], line: str) -> None:
    """Print each model's answer while it is generated. Ctrl-C ends the current answer."""
    # All are asked before one answers: if a model refuses the line, none takes it.
    num_dropped = [conversation.ask(line) for conversation in conversations]
    for conversation, dropped in zip(conversations, num_dropped, strict=True):
        if dropped:
            turns = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
            print(
                f"{conversation.name}: {turns} dropped, because the context is full",
                file=sys.stderr,
            )
        if len(conversations) > 1:
            print(_label(conversation.name))
        _write(conversation)


def _write(conversation: Conversation) -> None:
    shown, answer = "", conversation.answer()
    try:
        for text in answer:
            plain = harmless(text)
            if plain.startswith(shown):
                print(plain[len(shown) :], end="", flush=True)
                shown = plain
        print()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        answer.close()
        print(" [stopped]")
    if not shown.strip():
        print(f"{conversation.name}: an empty answer", file=sys.stderr)
    elif conversation.cut_off:
        print(f"{conversation.name}: cut off; --tokens N lets it write more", file=sys.stderr)


def _label(name: str) -> str:
    return f"\033[1m{name}:\033[0m" if sys.stdout.isatty() else f"{name}:"
