"""Check which published chat templates are read correctly, and write docs/reference/chat-templates.md.

    python benchmarks/chat_templates.py [FILE]

Reads every template of tests/chat_templates.py as training and sampling do. Compares the result with what that file
says. Takes half a minute and no network.
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

align keeps the chat template of a published model and reads it. It finds which tokens of a dialogue the
assistant wrote, which token ends its turn, and at which tokens sampling stops. The tables show which
templates are read correctly. `python benchmarks/chat_templates.py` writes this page.

The tokens of the assistant are found in one of three ways:

| way | meaning |
|---|---|
| markers | the template has `{{% generation %}}` blocks |
| trl | TRL {trl} knows the template and has a version of it with markers |
| answers | otherwise: a turn goes from the end of its prompt to the token that ends it, around its answer |

A mask is right under these conditions:

* It covers what the assistant says and the token that ends its turn, in whole tokens.
* This holds in each of two turns, with and without a system message.
* A prompt is the part of its dialogue before the mask.

Some templates end a prompt with the beginning of a thought (`<think>`). Dialogues without thoughts do not
have it. Import reports this, and prompts leave it out. A template that align cannot read has the entry
"refused".

The formats of the first table follow their public descriptions, with small tokenizers of the same kind. The
file of a model may differ.
"""


def verdict(case: Case) -> str:
    """Whether the tokens of the assistant are found correctly: yes, no or refused."""
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
    """The way, the token that ends a turn, and the stops, as align finds them."""
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
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", default=ROOT / "docs/reference/chat-templates.md")
    file = parser.parse_args().file
    known = cases()
    formats = [[name, *found(known[name]), verdict(known[name])] for name in PUBLISHED]
    versions = ("published", "training", "unknown")
    of_trl = []
    for name in TRL:
        way, end, stops = found(known[f"{name}-published"])
        of_trl.append([name, way, end, stops, *(verdict(known[f"{name}-{each}"]) for each in versions)])
    columns = ["template", "found by", "turn ends at", "sampling stops at"]
    file.write_text(
        "\n".join(
            [
                INTRO.format(trl=version("trl")),
                "## Published formats\n",
                table([*columns, "mask right"], formats),
                "## Templates that TRL has a training version of\n",
                "The last three columns say whether the mask is right for three templates:\n",
                "* **published**: the published template;\n"
                "* **training version**: TRL's training version of it;\n"
                "* **unknown to TRL**: the published template with a comment added, so that TRL does not know it.\n",
                table([*columns, "published", "training version", "unknown to TRL"], of_trl),
            ]
        ),
        encoding="utf-8",
    )
    right = [row[-1] for row in formats] + [each for row in of_trl for each in row[-3:]]
    print(f"{file}: {right.count('yes')} of {len(right)} right, {right.count('no')} wrong")


if __name__ == "__main__":
    main()
