"""`align data ... --show 3`: the first rows of a source, raw and as records.

With a tokenizer, the records are shown as a model reads them.

Nothing is stored. torch is imported only if a tokenizer is given.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from align.configs import Data
from align.data.cards import resolve_model, resolve_tokenizer
from align.errors import ConfigError
from align.pipeline.plan import split_config, step_config
from align.runtime.console import Parser, plain_console
from align.store.artifacts import ArtifactStore
from align.store.references import hint, is_outside, pinned

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.stages.data import Look

Row = dict[str, Any]
Run = tuple[str, bool]  # (text, True if it is trained on)

_MOST = 1000  # characters shown of a text
_MOST_RAW = 300  # characters shown of a raw column
_MOST_ROWS = 5  # records shown of one raw row: a book gives many
_OPENED, _CLOSED = "[[", "]]"  # around trained text, without colours
# The meaning of the mark, for each kind of record.
_MEANING = {
    "documents": "a language model is trained on all of the text",
    "demonstrations": "marked: what the model is trained to write",
    "prompts": "nothing is trained on: the model answers after the last line",
    "comparisons": (
        "marked: the responses, best first; a reward model scores each at its last token"
    ),
    "unpaired": "marked: the response; its label says whether it is desirable",
    "items": "marked: the candidates, scored after their context",
    "labelled": "the columns that finetune reads",
}


def show_options(arguments: list[str]) -> tuple[Namespace, list[str]]:
    """Split the arguments after `align data` into (options of `--show`, knobs of the stage)."""
    parser = Parser(prog="align data", add_help=False, allow_abbrev=False)
    parser.add_argument("--show", nargs="?", metavar="N")
    parser.add_argument("--tokenizer", metavar="REF")
    options, knobs = parser.parse_known_args(arguments)
    if "=" in (options.show or "="):  # --show without a number; its value may be a knob
        knobs += [options.show] if options.show else []
        options.show = "3"
    if not options.show.isdecimal() or int(options.show) == 0:
        raise ConfigError(f"--show: expected a number of rows above 0, got {options.show}")
    options.show = int(options.show)
    return options, knobs


def show_source(cfg: DictConfig, options: Namespace) -> int:
    """Show the first rows of the source in a composed config of the data stage."""
    settings, nodes = split_config(cfg)
    ((name, node),) = nodes.items()
    data = step_config(name, node, settings.seed)
    assert isinstance(data, Data)
    data.source = pinned(data.source, "dataset")
    tokenizer = _tokenizer(options.tokenizer, settings.store) if options.tokenizer else None
    return show(data, settings.data_root, options.show, tokenizer)


def show(
    cfg: Data, data_root: str | None, count: int, tokenizer: PreTrainedTokenizerBase | None
) -> int:
    """Print the first `count` rows of a source; with a tokenizer, as its chat template writes them.

    Raises:
        ConfigError: a row is malformed (raised after all rows were shown), the source has no rows,
            or `columns` names a column that no row has.
    """
    from align.stages.data import first_rows

    console = plain_console()
    problems = []

    def say(line: str) -> None:
        console.print(Text(_visible(line), style="dim"))

    for look in first_rows(cfg, data_root, count, say):
        _show_row(console, cfg.record, look, tokenizer)
        if look.problem:
            problems.append(f"{look.where}: {look.problem}")
    by = "in colour" if _has_colours(console) else f"in {_OPENED} {_CLOSED}"
    console.print(Text(f"{cfg.record}; {_MEANING[cfg.record].replace('marked', by)}", style="dim"))
    if tokenizer is None and cfg.record != "labelled":
        console.print(
            Text(
                "--tokenizer REF shows the text as that model's chat template writes it",
                style="dim",
            )
        )
    if problems:
        raise ConfigError("\nerror: ".join(problems))
    return 0


def _show_row(
    console: Console, record: str, look: Look, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    console.print(Text(look.where, style="bold"))
    if look.raw is not None:
        _part(
            console,
            "as it came",
            [_line(f"{k}: {_short(_as_json(v), _MOST_RAW)}") for k, v in look.raw.items()],
        )
    if look.problem or look.note:
        _part(console, "no record", [_line(look.problem or look.note)])
    for split, row in look.made[:_MOST_ROWS]:
        render = _plain if tokenizer is None else _encoded
        title, blocks = render(record, row, tokenizer)
        extra = [
            f"{k}: {_short(_as_json(v), _MOST_RAW)}"
            for k, v in row.items()
            if k not in _SHOWN[record]
        ]
        _part(console, f"{record}, {split}{title}", [*blocks, *map(_line, extra)])
    if len(look.made) > _MOST_ROWS:
        console.print(Text(f"  and {len(look.made) - _MOST_ROWS:,} more of this row"))
    console.print()


_SHOWN = {  # columns that the rendering of a record already shows
    "documents": ("text",),
    "demonstrations": ("messages",),
    "prompts": ("prompt",),
    "comparisons": ("prompt", "responses", "ranks"),
    "unpaired": ("prompt", "completion", "label"),
    "items": ("contexts", "completions", "labels", "answer_context"),
    "labelled": (),
}

Block = list[Run]  # printed on lines of its own


def _line(text: str) -> Block:
    return [(text, False)]


def _plain(record: str, row: Row, tokenizer: None) -> tuple[str, list[Block]]:
    """Return a record as turns with roles, or as plain text: without a chat template."""
    if record == "documents":
        return "", [_line(row["text"])]
    if record == "items":
        return "", [
            _candidate(row, i, [(row["contexts"][i], False)])
            for i in range(len(row["completions"]))
        ]
    if record == "labelled":
        return "", []
    messages = row["messages"] if record == "demonstrations" else row["prompt"]
    blocks: list[Block] = []
    for message in messages:
        is_trained = (
            record == "demonstrations"
            and message["role"] == "assistant"
            and message.get("weight") != 0
        )
        said = " ".join(filter(None, (message["content"], message.get("tool_calls"))))
        blocks.append([(f"{message['role']}: ", False), (said, is_trained)])
    if record == "prompts":
        blocks.append(_line("assistant: ..."))
    for name, response in _answers(record, row):
        blocks.append([(f"{name}: ", False), (response, True)])
    return "", blocks


def _candidate(row: Row, i: int, context: Block) -> Block:
    return [
        ("right: " if row["labels"][i] else "wrong: ", False),
        *context,
        (row["completions"][i], True),
    ]


def _answers(record: str, row: Row) -> list[tuple[str, str]]:
    """Return the responses beside a prompt, each with its rank or label, the best first."""
    if record == "unpaired":
        return [("desirable" if row["label"] else "undesirable", row["completion"])]
    ranked = sorted(zip(row.get("ranks", ()), row.get("responses", ()), strict=True))
    return [(f"rank {rank}", response) for rank, response in ranked]


def _encoded(record: str, row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Block]]:
    """Return a record as the model reads it: encoded, then decoded back into text."""
    from align.text.chat import (
        TemplateRefusal,
        encode_conversations,
        encode_dialogues,
        encode_prompts,
        takes_tools,
    )
    from align.text.encoding import encode_texts

    try:
        if record == "documents":
            (ids,) = encode_texts(tokenizer, [row["text"]])
            return f", {len(ids):,} tokens", [[(_decoded(tokenizer, ids), False)]]
        if record == "demonstrations":
            tools = row.get("tools") if takes_tools(tokenizer) else None  # as in supervised tuning
            ((ids, by_assistant),) = encode_conversations(
                tokenizer, [row["messages"]], "row", [tools]
            )
            counts = f", {len(ids):,} tokens, {sum(by_assistant):,} of them trained on"
            if tools is None and row.get("tools") is not None:
                counts += "; this chat template writes no list of tools"
            return counts, [_runs(tokenizer, ids, by_assistant)]
        if record == "prompts":
            (ids,) = encode_prompts(tokenizer, [row["prompt"]], "row")
            return f", {len(ids):,} tokens", [[(_decoded(tokenizer, ids), False)]]
        if record in ("comparisons", "unpaired"):
            (prompt,) = encode_prompts(tokenizer, [row["prompt"]], "row")
            blocks = [[(_decoded(tokenizer, prompt), False)]]
            for name, response in _answers(record, row):
                (ids,) = encode_dialogues(tokenizer, [row["prompt"]], [response], "row")
                marks = [i >= len(prompt) for i in range(len(ids))]
                answer = [run for run in _runs(tokenizer, ids, marks) if run[1]]
                blocks.append([(f"{name}, {len(ids):,} tokens: ", False), *answer])
            return "", blocks
    except TemplateRefusal as error:
        return "", [_line(error.reason)]
    return _plain(record, row, None)


def _runs(tokenizer: PreTrainedTokenizerBase, ids: list[int], marks: list[bool]) -> Block:
    """Return tokens as text, cut where the mark changes.

    Each piece is the difference that it makes to the decoded text so far, because some decoders
    drop a piece's leading space.
    """
    runs: Block = []
    before, begin = "", 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or marks[end] != marks[begin]:
            text = _decoded(tokenizer, ids[:end])
            runs.append((text[len(before) :], marks[begin]))
            before, begin = text, end
    return runs


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _tokenizer(ref: str, store_root: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a reference names.

    A folder or a repository gives the tokenizer that importing it would make.
    """
    if not is_outside(ref):
        from align.models.load import load_tokenizer

        store = ArtifactStore(store_root)
        artifact = store.find(ref, hint)
        if not (artifact.path / "tokenizer_config.json").is_file():
            raise ConfigError(
                f"--tokenizer {ref}: expected a model or a tokenizer, got a {artifact.kind}"
            )
        return load_tokenizer(artifact.path)
    from align.text.published import open_tokenizer
    from align.text.tokenizers import complete

    resolve = resolve_model if ref.endswith(".gguf") else resolve_tokenizer
    try:
        with resolve(pinned(ref, "model"), None).alone() as source:
            tokenizer = open_tokenizer(source)
        complete(tokenizer)
    except (OSError, ValueError, ConfigError) as error:
        raise ConfigError(f"--tokenizer {ref}: {' '.join(str(error).split())[:300]}") from None
    return tokenizer


# -- on the console --------------------------------------------------------------------------------


def _part(console: Console, title: str, blocks: Iterable[Block]) -> None:
    console.print(Text(f"  {title}", style="dim"))
    for block in blocks:
        text = _text(block, _has_colours(console))
        for line in text.wrap(console, max(20, console.width - 4)):
            line.rstrip()
            console.print(Text("    ") + line)


def _text(block: Block, in_colour: bool) -> Text:
    """Return a block with its trained parts in colour or in brackets.

    A long block is cut, with a note of its full length.
    """
    text, left = Text(), _MOST
    for words, is_trained in block:
        shown = _visible(words[:left])
        left -= len(words[:left])
        if is_trained and not in_colour:
            shown = f"{_OPENED}{shown}{_CLOSED}"
        text.append(shown, style="bold green" if is_trained and in_colour else "")
    if (whole := sum(len(words) for words, _ in block)) > _MOST:
        text.append(f" ... ({whole:,} characters)", style="dim")
    return text


def _has_colours(console: Console) -> bool:
    return console.is_terminal and not console.no_color


def _visible(text: str) -> str:
    """Escape what a terminal could take as a command; keep line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} ... ({len(text):,} characters)"
