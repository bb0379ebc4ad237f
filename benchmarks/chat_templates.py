"""Which published chat templates are read right: writes the table of docs/chat_templates.md.

    python benchmarks/chat_templates.py [FILE]

Reads every template of tests/chat_templates.py as training and sampling do, and compares what it finds with what is
written there by hand. Takes half a minute and no network.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from align.errors import ConfigError
from align.text.chat import chat_format, encode_conversations, encode_dialogues, encode_prompts

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from chat_templates import PUBLISHED, ROUNDS, SYSTEM, TRL, Case, cases, turns_of, turns_to_find  # noqa: E402

INTRO = """\
# Chat templates

align keeps a published model's own chat template and reads it: which tokens of a dialogue the assistant wrote, which
token ends its turn, and at which tokens sampling stops. This table shows which templates are read right. Make it again
with

```
python benchmarks/chat_templates.py
```

The assistant's tokens are found in one of three ways:

* **markers**: the template has `{{% generation %}}` blocks.
* **trl**: TRL {trl} knows the template and has a version of it with markers.
* **answers**: otherwise, a turn reaches from the end of its prompt to the token that ends it, around its answer.

A mask is right if it covers what the assistant says and the token that ends its turn, in whole tokens and in each of
two turns, with and without a system message; and if a prompt is the part of its dialogue before the mask. Some
templates end a prompt with the beginning of a thought (`<think>`), which dialogues without thoughts do not have: import
says so, and prompts leave it out. A template that align could not read would say "refused".

The formats of the first table are written after their public descriptions, with small tokenizers of the same kind; a
model's own file may differ.
"""


def verdict(case: Case) -> str:
    """Whether the assistant's tokens are found as they should be."""
    dialogues = [ROUNDS] if case.refuses_system else [ROUNDS, [SYSTEM, *ROUNDS]]
    try:
        for ids, by_assistant in encode_conversations(case.tokenizer, dialogues):
            if turns_of(case, ids, by_assistant) != turns_to_find(case) or not by_assistant[-1]:
                return "no"
            if ids[-1] != case.tokenizer.convert_tokens_to_ids(case.end):
                return "no"
        *question, answer = ROUNDS[:2]
        ((ids, by_assistant),) = encode_conversations(case.tokenizer, [ROUNDS[:2]])
        (prompt,) = encode_prompts(case.tokenizer, [question])
        (dialogue,) = encode_dialogues(case.tokenizer, [question], [answer["content"]])
    except (ConfigError, ValueError):
        return "refused"
    if dialogue[: len(prompt)] != prompt:
        return "no"
    return "yes" if ids == dialogue and by_assistant == [i >= len(prompt) for i in range(len(ids))] else "no"


def code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def found(case: Case) -> tuple[str, str, str]:
    """The way, the token that ends a turn, and the stops, as the library finds them."""
    try:
        style = chat_format(case.tokenizer)
    except ValueError:
        return "none", "", ""
    names = case.tokenizer.convert_ids_to_tokens([style.end, *style.stops])
    return style.way, code(names[0]), ", ".join(map(code, names[1:]))


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", default=ROOT / "docs/chat_templates.md")
    file = parser.parse_args().file
    known = cases()
    formats = [[name, *found(known[name]), verdict(known[name])] for name in PUBLISHED]
    versions = ("published", "training", "unknown")
    of_trl = []
    for name in TRL:
        way, end, stops = found(known[f"{name}-published"])
        of_trl.append([name, way, end, stops, *(verdict(known[f"{name}-{each}"]) for each in versions)])
    columns = ["template", "found by", "ends the turn", "sampling stops at"]
    file.write_text(
        "\n".join(
            [
                INTRO.format(trl=version("trl")),
                "## Published formats\n",
                table([*columns, "mask right"], formats),
                "## Templates that TRL has a training version of\n",
                "The mask of the published template, of TRL's training version in its place, and of the published one\n"
                "with a comment added, so that TRL does not know it.\n",
                table([*columns, "mask right", "of the training version", "of the unknown one"], of_trl),
            ]
        ),
        encoding="utf-8",
    )
    right = [row[-1] for row in formats] + [each for row in of_trl for each in row[-3:]]
    print(f"{file}: {right.count('yes')} of {len(right)} right, {right.count('no')} wrong")


if __name__ == "__main__":
    main()
