r"""Ask a language model that was never taught a chat template: write the dialogue as plain text of a form it may know.

A form is one text with `{prompt}` and `{response}`, such as "Question: {prompt}\nAnswer: {response}\n\n". It becomes a
chat template, so that a model asked in a form is a model like any other. An answer ends where the form goes on: with
the text after the response, or with the label of a speaker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Built in. Askell et al. 2021 ask in turns of a human and an assistant; GPT-3 in questions and answers (appendix G);
# Alpaca in instructions and responses.
FORMS = {
    "human": "Human: {prompt}\n\nAssistant: {response}\n\n",
    "user": "User: {prompt}\nAssistant: {response}\n",
    "question": "Question: {prompt}\nAnswer: {response}\n\n",
    "short": "Q: {prompt}\nA: {response}\n\n",
    "instruction": "### Instruction:\n{prompt}\n\n### Response:\n{response}\n\n",
    "line": "{prompt}\n{response}\n",
}


class Shot(NamedTuple):
    """A solved example: what was asked, with its system message before it, and the answer."""

    prompt: str
    response: str


class Form(NamedTuple):
    """The text before a prompt, between it and its response, and after the response."""

    before: str
    between: str
    after: str

    def written(self, shot: Shot) -> str:
        return f"{self.before}{shot.prompt}{self.between}{shot.response}{self.after}"

    @property
    def stop_strings(self) -> list[str]:
        """What ends an answer: the text behind it, of spaces alone a line break, and the labels of the speakers.

        A label begins a word: "A:" ends no answer at "USA:".
        """
        end = self.after if self.after.strip(" ") else "\n"
        labels = [label for text in (self.before, self.between) if (label := text.strip())]
        beginning = [f"{space}{label}" for label in labels for space in (" ", "\n")]
        return list(dict.fromkeys([end, *(text for text in beginning if end not in text)]))


def read_form(text: str) -> Form:
    r"""Read a form from its text, in which `\n` may stand for a line break.

    Raises:
        ValueError: it has not `{prompt}` and then `{response}`, each once and apart.
    """
    text = text.replace("\\n", "\n")
    parts = re.split(r"{prompt}|{response}", text)
    if len(parts) != 3 or text.find("{prompt}") > text.find("{response}"):
        raise ValueError(f"expected {{prompt}} and then {{response}}, each once, got {text!r}")
    form = Form(*parts)
    if not form.between:
        raise ValueError(f"expected some text between {{prompt}} and {{response}}, got {text!r}")
    return form


def shot_of(messages: Sequence[Mapping[str, str]]) -> Shot:
    """The last answer of a conversation, and what was said before it as one text."""
    *asked, answer = messages
    return Shot(" ".join(message["content"].strip() for message in asked), answer["content"].strip())


def form_template(form: Form, shots: Sequence[Shot]) -> str:
    """A form behind solved examples as a chat template.

    A text begins as a document does. A space before an answer is the answer's, as words have theirs before them.
    """
    opening = form.between.rstrip(" ")
    space = form.between[len(opening) :]
    examples = "".join(map(form.written, shots))
    begin, before, opening, space, after = (
        json.dumps(text, ensure_ascii=False) for text in (examples, form.before, opening, space, form.after)
    )
    return (
        f"{{{{ (bos_token or eos_token) + {begin} }}}}"
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}"
        f"{{{{ {opening} }}}}{{% generation %}}{{{{ {space} + message['content'] | trim + {after} }}}}"
        "{% if loop.last %}{{ eos_token }}{% endif %}{% endgeneration %}"
        "{% elif message['role'] == 'system' %}"
        f"{{{{ {before} + message['content'] | trim + ' ' }}}}"
        "{% elif message['role'] == 'user' %}"
        "{% if loop.first or messages[loop.index0 - 1]['role'] != 'system' %}"
        f"{{{{ {before} }}}}{{% endif %}}{{{{ message['content'] | trim }}}}"
        "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {opening} }}}}{{% endif %}}"
    )
