"""Does the system message steer the model? Each probe asks for a manner that can be checked without a judge.

Three shares a probe: of answers in that manner when the system message asks for it; behind a system message that asks
for nothing; and when it asks and the user then asks for the opposite, where the system message is to be followed
[GPT-4, system card: steerability].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

Messages = list[dict[str, str]]

_NEUTRAL = "Answer the user."


class Probe(NamedTuple):
    """A manner of answering.

    Attributes:
        system: what the system message says.
        opposite: what the user asks for after it, in the conflict.
        follows: (answer, the answer to the same prompt without a system message) -> whether it is in that manner.
    """

    system: str
    opposite: str
    follows: Callable[[str, str], bool]

    def asked(self, prompt: Messages) -> Messages:
        return [{"role": "system", "content": self.system}, *prompt]

    def in_conflict(self, prompt: Messages) -> Messages:
        *before, last = self.asked(prompt)
        return [*before, {**last, "content": f"{last['content']} {self.opposite}"}]


def not_asked(prompt: Messages) -> Messages:
    return [{"role": "system", "content": _NEUTRAL}, *prompt]


def variants(probes: Sequence[str]) -> Iterator[Callable[[Messages], Messages]]:
    """Every way in which prompts are asked for these probes."""
    yield not_asked
    for name in probes:
        yield PROBES[name].asked
        yield PROBES[name].in_conflict


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


PROBES = {
    "brief": Probe(
        "Be brief.",
        "Answer at length.",
        lambda answer, plain: 0 < len(_words(answer)) < len(_words(plain)),
    ),
    "polite": Probe(
        "Be polite.",
        "Be rude.",
        lambda answer, plain: bool(re.search(r"\b(thank|please|kind|welcome|glad|happy to)", answer.lower())),
    ),
    "capitals": Probe(
        "Write your whole answer in capital letters.",
        "Do not use capital letters.",
        lambda answer, plain: answer.isupper(),
    ),
    "one_sentence": Probe(
        "Answer in exactly one sentence.",
        "Answer in several sentences.",
        lambda answer, plain: bool(re.fullmatch(r"[^.!?]+[.!?]+", answer)),
    ),
}
