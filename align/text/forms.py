r"""Ask a language model that learned no chat template: write the dialogue as plain text.

A form is a text with `{prompt}` and `{response}` that the model may know from its training. An
example is "Question: {prompt}\nAnswer: {response}\n\n". The form becomes a chat template, so the
model is used like any other. An answer ends where the form continues: at the text after the
response, or at the label of a speaker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Built-in forms. Askell et al. 2021 use turns of a human and an assistant; GPT-3 uses questions and
# answers (appendix G); Alpaca uses instructions and responses.
FORMS = {
    "human": "Human: {prompt}\n\nAssistant: {response}\n\n",
    "user": "User: {prompt}\nAssistant: {response}\n",
    "question": "Question: {prompt}\nAnswer: {response}\n\n",
    "short": "Q: {prompt}\nA: {response}\n\n",
    "instruction": "### Instruction:\n{prompt}\n\n### Response:\n{response}\n\n",
    "line": "{prompt}\n{response}\n",
}


class Shot(NamedTuple):
    """A solved example: the question, with its system message before it, and the answer."""

    prompt: str
    response: str


class Form(NamedTuple):
    """A form as three texts: before the prompt, between prompt and response, after the response."""

    before: str
    between: str
    after: str

    def written(self, shot: Shot) -> str:
        return f"{self.before}{shot.prompt}{self.between}{shot.response}{self.after}"

    @property
    def stop_strings(self) -> list[str]:
        """The texts that end an answer: the text after it, and the labels of the speakers.

        If the text after it is only spaces, a line break ends the answer. A label begins a word:
        "A:" does not end an answer at "USA:".
        """
        end = self.after if self.after.strip(" ") else "\n"
        labels = [label for text in (self.before, self.between) if (label := text.strip())]
        beginning = [f"{space}{label}" for label in labels for space in (" ", "\n")]
        return list(dict.fromkeys([end, *(text for text in beginning if end not in text)]))


def read_form(text: str) -> Form:
    r"""Parse a form from its text, in which a line break may be written as `\n`.

    Raises:
        ValueError: the text does not have `{prompt}` and then `{response}`, each once, with text
            between them.
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
    """Return a conversation's last answer, with everything before it as one text."""
    *asked, answer = messages
    return Shot(
        " ".join(message["content"].strip() for message in asked), answer["content"].strip()
    )


def form_template(form: Form, shots: Sequence[Shot]) -> str:
    """Return a chat template for a form with solved examples before it.

    The text begins as a document does. A space before an answer belongs to the answer, because
    words have their space before them.
    """
    opening = form.between.rstrip(" ")
    space = form.between[len(opening) :]
    examples = "".join(map(form.written, shots))
    begin, before, opening, space, after = (
        json.dumps(text, ensure_ascii=False)
        for text in (examples, form.before, opening, space, form.after)
    )
    return (
        f"{{{{ (bos_token or eos_token) + {begin} }}}}{{% for message in messages %}}{{% if"
        f" message['role'] == 'assistant' %}}{{{{ {opening} }}}}{{% generation %}}{{{{ {space} +"
        f" message['content'] | trim + {after} }}}}{{% if loop.last %}}{{{{ eos_token }}}}{{% endif"
        f" %}}{{% endgeneration %}}{{% elif message['role'] == 'system' %}}{{{{ {before} +"
        " message['content'] | trim + ' ' }}{% elif message['role'] == 'user' %}{% if"
        f" loop.first or messages[loop.index0 - 1]['role'] != 'system' %}}{{{{ {before} }}}}{{%"
        " endif %}{{ message['content'] | trim }}{% else %}{{ raise_exception('unknown"
        " role ' + message['role']) }}{% endif %}{% endfor %}{% if add_generation_prompt"
        f" %}}{{{{ {opening} }}}}{{% endif %}}"
    )
