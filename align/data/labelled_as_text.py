"""Tasks of classes, scores and choices written as text to text, in T5's manner [T5, section 2.4 and appendix D].

Nothing here imports torch: rows are written when data is made.
"""

from __future__ import annotations

from typing import Any

Message = dict[str, str]

# What the two texts of a pair are called; others are sentence1 and sentence2, one alone sentence.
_PAIRS = {
    "snli": ("premise", "hypothesis"),
    "mnli": ("premise", "hypothesis"),
    "cb": ("premise", "hypothesis"),
    "qqp": ("question1", "question2"),
    "qnli": ("sentence", "question"),
    "boolq": ("passage", "question"),
}


def as_text_to_text(row: dict[str, Any], name: str) -> list[Message]:
    """A labelled row as a demonstration: the task's name and what is given, and the answer.

        mnli hypothesis: He is awake. premise: A man sleeps.                      contradiction
        stsb sentence1: A man sleeps. sentence2: A boy sleeps.                    3.2
        copa choice1: He was tired. choice2: He woke. question: The man slept.    He was tired.

    What is given stands in the order of its names, as T5 has it. A score becomes the nearest multiple of 0.2, so that
    it is one of few texts; unlike T5, the answer to choices is written out, not its name.

    Args:
        row: {"texts", "label"}, {"texts", "choices", "label"} or {"texts", "score"}.
        name: of the task, which decides what its texts are called.
    """
    texts = row["texts"]
    choices = row.get("choices")
    if choices is not None:
        given = {f"choice{i}": choice for i, choice in enumerate(choices, 1)} | {"question": " ".join(texts)}
        answer = choices[row["label"]]
    else:
        names = ("sentence",) if len(texts) == 1 else _PAIRS.get(name, ("sentence1", "sentence2"))
        given = dict(sorted(zip(names, texts, strict=True)))
        score = row.get("score")
        answer = row["label"] if score is None else f"{round(score * 5) / 5:.1f}"
    asked = " ".join([name, *(f"{key}: {text}" for key, text in given.items())])
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
