"""Write classes, scores and choices as text to text, as T5 does [T5, section 2.4, appendix D].

Nothing here imports torch: rows are written when data is made.
"""

from __future__ import annotations

from typing import Any

Message = dict[str, str]

# The names of a pair's two texts. For other tasks they are sentence1 and sentence2; a single text
# is sentence.
_PAIRS = {
    "snli": ("premise", "hypothesis"),
    "mnli": ("premise", "hypothesis"),
    "cb": ("premise", "hypothesis"),
    "qqp": ("question1", "question2"),
    "qnli": ("sentence", "question"),
    "boolq": ("passage", "question"),
}


def as_text_to_text(row: dict[str, Any], name: str) -> list[Message]:
    """Return a labelled row as a demonstration: the task's name with its fields, and the answer.

        mnli hypothesis: He is awake. premise: A man sleeps.                      contradiction
        stsb sentence1: A man sleeps. sentence2: A boy sleeps.                    3.2
        copa choice1: He was tired. choice2: He woke. question: The man slept.    He was tired.

    The fields are in the order of their names, as in T5. A score becomes the nearest multiple of
    0.2, so that there are few different answers. Unlike T5, the answer to choices is the text of
    the choice, not its name.

    Args:
        row: {"texts", "label"}, {"texts", "choices", "label"} or {"texts", "score"}.
        name: the name of the task, which decides the names of its texts.
    """
    texts = row["texts"]
    choices = row.get("choices")
    if choices is not None:
        given = {f"choice{i}": choice for i, choice in enumerate(choices, 1)} | {
            "question": " ".join(texts)
        }
        answer = choices[row["label"]]
    else:
        names = ("sentence",) if len(texts) == 1 else _PAIRS.get(name, ("sentence1", "sentence2"))
        given = dict(sorted(zip(names, texts, strict=True)))
        score = row.get("score")
        answer = row["label"] if score is None else f"{round(score * 5) / 5:.1f}"
    asked = " ".join([name, *(f"{key}: {text}" for key, text in given.items())])
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
