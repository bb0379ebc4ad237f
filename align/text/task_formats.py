"""Labelled rows as token sequences: GPT-1's input transformations, which do not change the model.

    classification   start text extract
    entailment       start premise delimiter hypothesis extract
    similarity       start a delimiter b extract, and start b delimiter a extract
    multiple_choice  start context question delimiter answer extract, for each answer

Source: Radford et al. 2018, section 3.3 and figure 1.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from align.errors import ConfigError
from align.text.encoding import encode_texts

Row = dict[str, Any]
Ids = list[int]

START, DELIMITER, EXTRACT = "<|start|>", "<|delimiter|>", "<|extract|>"


class TaskTokens(NamedTuple):
    start: int
    delimiter: int
    extract: int


class Example(NamedTuple):
    """A row in the form that the model reads."""

    # Similarity: both orders of the pair; multiple choice: one per answer; else one.
    sequences: list[Ids]
    target: float  # the class, the index of the right answer, or the standardised score

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


class Goal(NamedTuple):
    """The quantity to predict."""

    kind: str  # class, choice or score
    labels: tuple[str, ...]  # the classes; empty for other kinds
    usual: float  # in the training rows: the most frequent class or index, or the mean score
    deviation: float  # standard deviation of the training rows' scores; 1 for other kinds

    @property
    def num_outputs(self) -> int:
        return max(1, len(self.labels))

    def place(self, row: Row) -> float:
        """Return a row's class, the index of its right choice, or its score, as a number."""
        if self.kind == "class":
            return self.labels.index(row["label"])
        return row["label"] if self.kind == "choice" else row["score"]

    def target(self, row: Row) -> float:
        """Return `place`; for a score, its distance from the mean in standard deviations."""
        return (
            (self.place(row) - self.usual) / self.deviation
            if self.kind == "score"
            else self.place(row)
        )


# -- the goal --------------------------------------------------------------------------------------


def find_goal(task: str, splits: dict[str, list[Row]]) -> Goal:
    """Find what `task` predicts for these rows.

    Raises:
        ConfigError: there is nothing to learn, or the rows do not fit the task.
    """
    if not splits["train"]:
        raise ConfigError("inputs.data: there are no training rows")
    kind = _kind(splits["train"][0])
    for split, rows in splits.items():
        for row in rows:
            _check(task, kind, split, row)
    if kind == "score":
        scores = [row["score"] for row in splits["train"]]
        if len(set(scores)) == 1:
            raise ConfigError(
                f"inputs.data: every training row has the score {scores[0]}; there is nothing to"
                " learn"
            )
        return Goal(kind, (), statistics.fmean(scores), statistics.pstdev(scores))
    counts = Counter(row["label"] for row in splits["train"])
    if kind == "choice":
        return Goal(kind, (), _most_frequent(counts), 1.0)
    labels = sorted(
        counts,
        key=lambda label: (not label.isdecimal(), int(label) if label.isdecimal() else 0, label),
    )
    if len(labels) == 1:
        raise ConfigError(
            f"inputs.data: every training row is of the class {labels[0]!r}; there is nothing to"
            " learn"
        )
    for split, rows in splits.items():
        if unknown := sorted({row["label"] for row in rows} - counts.keys()):
            raise ConfigError(
                f"inputs.data: {split} rows of the classes {', '.join(unknown)}, which no training"
                f" row has; training rows are of {', '.join(labels)}; take more of them, or leave"
                " such rows out"
            )
    return Goal(kind, tuple(labels), labels.index(_most_frequent(counts)), 1.0)


def _most_frequent(counts: Counter[Any]) -> Any:
    """Return the most frequent label; if several are equally frequent, the first in order."""
    return min(counts, key=lambda label: (-counts[label], label))


def _kind(row: Row) -> str:
    return (
        "choice"
        if row.get("choices") is not None
        else "score"
        if row.get("score") is not None
        else "class"
    )


def _check(task: str, kind: str, split: str, row: Row) -> None:
    own = _kind(row)
    if own != kind:
        raise ConfigError(
            f"inputs.data: rows with a {own} among rows with a {kind}; give them to a step each"
        )
    allowed = {"multiple_choice": ("choice",), "similarity": ("class", "score")}.get(
        task, ("class",)
    )
    if own not in allowed:
        what = {"class": "a label", "choice": "choices", "score": "a score"}
        fits = {
            "class": "classification, entailment or similarity",
            "choice": "multiple_choice",
            "score": "similarity",
        }
        score = ", or write labels without a fraction: 1, not 1.0" if own == "score" else ""
        raise ConfigError(
            f"task: {task} takes rows with {' or '.join(what[k] for k in allowed)}, and {split} has"
            f" rows with {what[own]}; give task={fits[own]}{score}"
        )
    pair = len(row["texts"]) == 2
    if task != "multiple_choice" and pair == (task == "classification"):
        takes, has, other = ("one text", "two", "entailment or similarity")
        if not pair:
            takes, has, other = ("two texts", "one", "classification")
        raise ConfigError(
            f"task: {task} takes {takes} a row, and {split} has rows with {has}; give task={other}"
        )


# -- tokens ----------------------------------------------------------------------------------------


def add_task_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[TaskTokens, list[int]]:
    """Add the start, delimiter and extract tokens that the tokenizer lacks.

    Returns:
        The ids of the three tokens, and the ids that are new.
    """
    lacking = [token for token in (START, DELIMITER, EXTRACT) if token not in tokenizer.get_vocab()]
    if lacking:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": lacking}, replace_extra_special_tokens=False
        )
    ids = [tokenizer.convert_tokens_to_ids(token) for token in (START, DELIMITER, EXTRACT)]
    return TaskTokens(*ids), [tokenizer.convert_tokens_to_ids(token) for token in lacking]


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, task: str, goal: Goal, rows: Sequence[Row], context: int
) -> tuple[list[Example], int]:
    """Encode rows as examples that fit in `context` tokens.

    Returns:
        The examples, and the number of rows that were cut.

    Raises:
        ConfigError: an answer alone is longer than the context.
    """
    tokens, _ = add_task_tokens(tokenizer)
    texts = [text for row in rows for text in (*row["texts"], *(row.get("choices") or []))]
    encoded = iter(_encode(tokenizer, texts))
    examples, num_cut = [], 0
    for row in rows:
        asked = [next(encoded) for _ in row["texts"]]
        answers = [next(encoded) for _ in row.get("choices") or []]
        fitting = fit(asked, answers, context)
        num_cut += fitting != asked
        examples.append(Example(lay_out(task, tokens, fitting, answers), goal.target(row)))
    return examples, num_cut


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Ids]:
    """Encode each text with a space before it, like a word in the middle of a text.

    Text that spells a special token stays text.
    """
    return encode_texts(tokenizer, [f" {text.strip()}" for text in texts])


def fit(texts: list[Ids], answers: list[Ids], context: int) -> list[Ids]:
    """Return `texts` without their ends, so that the whole sequence fits in `context` tokens.

    The first text is cut first; the second only if that is not enough. Special tokens and answers
    stay whole, and the same text precedes every answer.

    Raises:
        ConfigError: an answer alone is longer than the context.
    """
    longest = max(map(len, answers), default=0)
    room = context - (2 if len(texts) == 1 and not answers else 3) - longest
    if room < 0:
        raise ConfigError(
            f"inputs.data: an answer has {longest} tokens, and the model's context is {context};"
            " leave such rows out (align data max_chars=N), or take a model with a longer context"
        )
    excess = max(0, sum(map(len, texts)) - room)
    kept = []
    for text in texts:
        cut = min(excess, len(text))
        kept.append(text[: len(text) - cut])
        excess -= cut
    return kept


def lay_out(task: str, tokens: TaskTokens, texts: list[Ids], answers: list[Ids]) -> list[Ids]:
    """Return the sequences of one row; the model is read at their last token, extract."""
    start, delimiter, extract = ([token] for token in tokens)
    if task == "multiple_choice":
        asked = [token for text in texts for token in text]
        return [start + asked + delimiter + answer + extract for answer in answers]
    if task == "classification":
        return [start + texts[0] + extract]
    first, second = texts
    orders = [(first, second), (second, first)] if task == "similarity" else [(first, second)]
    return [start + one + delimiter + other + extract for one, other in orders]
