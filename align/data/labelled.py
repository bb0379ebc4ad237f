"""Convert raw rows of classification, entailment, similarity and multiple choice to labelled rows.

The rows are as GLUE and others publish them. `align/data/formats.py` explains what a format is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from align.data.columns import plain_name
from align.data.records import Dropped, Malformed, Row, check_text, type_name

# Columns of two texts. The second one is judged: a hypothesis after its premise, a question after
# its passage.
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("sentence_A", "sentence_B"),
    ("passage", "question"),
    ("sentence", "question"),
    ("#1 String", "#2 String"),  # MRPC
)
_SINGLES = ("sentence", "text")
# The last two are of MRPC and QQP.
_LABELS = ("gold_label", "label", "answer", "score", "Quality", "is_duplicate")
# Columns of GLUE's files that are neither text nor label. GLUE's test files have one, and no label.
_OTHERS = {
    *("index", "idx", "id", "pairID", "promptID", "qid1", "qid2", "#1 ID", "#2 ID"),
    *("genre", "filename", "year", "old_index", "source1", "source2", "captionID"),
    *(f"sentence{i}{parse}" for i in (1, 2) for parse in ("_parse", "_binary_parse")),
}
_ASKED = (
    ("article", "question"),
    ("context", "question"),
    ("question",),
    ("context",),
    ("sent1",),
    ("ctx",),
)
_CHOICES = ("choices", "options", "endings")
_RIGHT = ("answerKey", "label", "answer", "gold")


def labelled(row: dict[str, Any]) -> Iterator[Row]:
    """Read rows that are labelled rows already; a class or a score may be a number."""
    if row.get("choices") is not None:
        yield row
    else:
        others = {
            name: value for name, value in row.items() if name not in ("label", "score", "choices")
        }
        yield {**others, **_labelled(row, ("label", "score"))}


def columns_without_header(cells: list[str]) -> tuple[str, ...] | None:
    """Return the columns of a GLUE table without a header, by its first row; None if unsure.

    CoLA has source, label, the source's own mark, and sentence. Copies of SST-2 have the label
    first or last.
    """
    if len(cells) == 4 and cells[1] in ("0", "1") and cells[2] in ("", "*", "?", "??"):
        return ("source", "label", "mark", "sentence")
    if len(cells) == 2 and cells[0] in ("0", "1"):
        return ("label", "sentence")
    if len(cells) == 2 and cells[1] in ("0", "1"):
        return ("sentence", "label")
    return None


def labelled_texts(row: dict[str, Any]) -> Iterator[Row]:
    """Read one text or a pair in their own columns, with a label (a class) or a score (a number).

    GLUE's columns have this form.
    """
    yield {"texts": _texts(row), **_labelled(row, _LABELS)}


def _texts(row: dict[str, Any]) -> list[str]:
    pair = next((pair for pair in _PAIRS if row.keys() >= set(pair)), None)
    names = pair or next(((name,) for name in _SINGLES if name in row), None)
    if names is None:
        raise Malformed("row", f"expected a text, or two: {', '.join(_SINGLES)}; {_listed(_PAIRS)}")
    return [check_text(row[name], name) for name in names]


def _labelled(row: dict[str, Any], names: tuple[str, ...]) -> Row:
    """Return {"label": text} for a class, or {"score": float}.

    A float is a score, whatever its column is called.
    """
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise Dropped("no label")
    value = row[name]
    if name == "score" or isinstance(value, float):
        return {"score": _number(value, name)}
    if isinstance(value, bool | int):
        value = str(value).lower()
    label = check_text(value, name).strip()
    # SNLI's annotators did not agree ("-"), or the row is of a GLUE test set ("-1").
    if label in ("", "-", "-1"):
        raise Dropped("no label")
    # JSON's true and CSV's True are the same class.
    return {"label": label.lower() if label.lower() in ("true", "false") else label}


def _number(value: Any, field: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise Malformed(field, f"expected a number, got {type_name(value)}") from None


def labelled_choices(row: dict[str, Any]) -> Iterator[Row]:
    """Read multiple choice: the question, the answers, and the right one by place or letter.

    The answers are texts, or have letters.
    """
    asked = row.get("question")
    if isinstance(asked, dict):  # the original files of CommonsenseQA and ARC
        # `|` keeps the record of read columns; a copy would lose it, see `Columns`.
        row = row | {"question": asked.get("stem"), "choices": asked.get("choices")}
    names = next((names for names in _ASKED if row.keys() >= set(names)), None)
    column = next((name for name in _CHOICES if row.get(name) is not None), None)
    if names is None or column is None:
        raise Malformed(
            "row", f"expected what is asked ({_listed(_ASKED)}) and one of {', '.join(_CHOICES)}"
        )
    letters, choices = _lettered(row[column], column)
    texts = [check_text(row[name], name) for name in names]
    yield {"texts": texts, "choices": choices, "label": _right(row, letters, choices)}


def _lettered(value: Any, field: str) -> tuple[list[str], list[str]]:
    """Return the names of the choices (A, B, ... if they have none) and their texts."""
    if isinstance(value, dict):  # the Hub's form: two lists
        names, texts = value.get("label"), value.get("text")
    elif isinstance(value, list) and all(isinstance(choice, dict) for choice in value):
        names, texts = ([choice.get(key) for choice in value] for key in ("label", "text"))
    else:
        names, texts = None, value
    if not isinstance(texts, list) or (
        names is not None and (not isinstance(names, list) or len(names) != len(texts))
    ):
        raise Malformed(field, "expected a list of texts, or of label and text")
    called = names or [chr(ord("A") + i) for i in range(len(texts))]
    return [str(name) for name in called], [check_text(text, field) for text in texts]


def _right(row: dict[str, Any], letters: list[str], choices: list[str]) -> int:
    """Return the index of the right choice; the row names it by letter, index from 0, or text."""
    name = next((name for name in _RIGHT if row.get(name) not in (None, "", -1, "-1")), None)
    if name is None:
        raise Dropped("no label")
    value = row[name]
    if value in letters:
        return letters.index(value)
    if isinstance(value, str) and choices.count(value) == 1:
        if value.isdecimal() and int(value) < len(choices) and choices[int(value)] != value:
            raise Malformed(
                name,
                f"{value!r} is one choice and the place of another; give the place as a number",
            )
        return choices.index(value)
    if isinstance(value, bool) or not (
        isinstance(value, int) or (isinstance(value, str) and value.isdecimal())
    ):
        raise Malformed(
            name, f"expected one of {', '.join(letters)}, its place from 0, or its text"
        )
    return int(value)


def query_choices(row: dict[str, Any]) -> Iterator[Row]:
    """Read LLM Foundry's multiple choice; BoolQ becomes pairs.

    A pair is a passage and a yes-no question, with class yes or no.
    """
    query = check_text(row.get("query"), "query")
    (found,) = labelled_choices(
        {"question": query.strip(), "choices": row.get("choices"), "gold": row.get("gold")}
    )
    passage, _, question = query.rpartition("\nQuestion: ")
    if passage and sorted(found["choices"]) == ["no", "yes"] and found["label"] in (0, 1):
        texts = [passage.removeprefix("Passage: ").strip(), question.strip()]
        found = {"texts": texts, "label": found["choices"][found["label"]]}
    yield found


_RTE = {
    **dict.fromkeys(("TRUE", "YES", "ENTAILMENT"), "entailment"),
    **dict.fromkeys(("FALSE", "NO", "UNKNOWN", "CONTRADICTION"), "not_entailment"),
}


def rte_pairs(row: dict[str, Any]) -> Iterator[Row]:
    """Read RTE 1 to 3: a text and a hypothesis.

    Three vocabularies of labels become the two classes of GLUE's RTE.
    """
    texts = [check_text(row.get(name), name) for name in ("t", "h")]
    name = next((name for name in ("value", "entailment") if row.get(name)), None)
    if name is None:  # a test file for participants has no labels
        raise Dropped("no label")
    label = _RTE.get(check_text(row[name], name).strip().upper())
    if label is None:
        raise Malformed(name, f"expected one of {', '.join(_RTE)}, got {row[name]!r}")
    yield {"texts": texts, "label": label}


def sick_entailment(row: dict[str, Any]) -> Iterator[Row]:
    """Read SICK's pairs with a class.

    The first text entails the second, contradicts it, or neither.
    """
    label = row.get("entailment_judgment", row.get("label"))
    yield {"texts": _texts(row), **_labelled({"label": label}, ("label",))}


def sick_relatedness(row: dict[str, Any]) -> Iterator[Row]:
    """Read SICK's pairs with a score for how related the texts are, 1 to 5."""
    yield {"texts": _texts(row), **_labelled({"score": row.get("relatedness_score")}, ("score",))}


def _listed(names: tuple[tuple[str, ...], ...]) -> str:
    return "; ".join(" and ".join(each) for each in names)


LABELLED: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "labelled": labelled,
    "labelled_texts": labelled_texts,
    "labelled_choices": labelled_choices,
    "query_choices": query_choices,
    "commonsense_qa": labelled_choices,
    "sick_entailment": sick_entailment,
    "sick_relatedness": sick_relatedness,
    "rte_pairs": rte_pairs,
}


# Plain name -> the name that readers ask for: a header may say `Sentence` or `LABEL`.
SPELLINGS_OF_LABELLED = {
    plain_name(name): name
    for name in (
        *(name for names in (*_PAIRS, *_ASKED) for name in names),
        *(*_SINGLES, *_LABELS, *_CHOICES, *_RIGHT, *_OTHERS, "texts", "query"),
    )
}


def labelled_columns(row: Mapping[str, Any]) -> set[str]:
    """Return the columns of a row that make one question with its answer.

    They are the question, its choices or its passage, and the right answer.
    """
    asked = next((set(names) for names in _ASKED if row.keys() >= set(names)), set())
    choices = {name for name in _CHOICES if row.get(name)}
    if asked and choices:
        return {*asked, *choices, *_RIGHT}
    return {"passage", "question", *_LABELS} if row.get("passage") else set()


def infer_labelled(row: dict[str, Any]) -> str:
    """Return the format of a user's labelled row, by its columns.

    Raises:
        Malformed: the columns do not make a labelled row.
    """
    if "texts" in row:
        return "labelled"
    if {"query", "choices", "gold"} <= row.keys():
        return "query_choices"
    if {"t", "h"} <= row.keys():
        return "rte_pairs"
    asked = any(row.keys() >= set(names) for names in _ASKED)
    if asked and (any(row.get(name) for name in _CHOICES) or isinstance(row.get("question"), dict)):
        return "labelled_choices"
    pair = next((pair for pair in _PAIRS if row.keys() >= set(pair)), None)
    texts = pair or tuple(name for name in _SINGLES if name in row)
    # A test file of GLUE has known columns but no label.
    unlabelled = row.keys() & _OTHERS and row.keys() <= _OTHERS | set(texts)
    if texts and (unlabelled or any(name in row for name in _LABELS)):
        return "labelled_texts"
    raise Malformed(
        "row",
        f"columns {', '.join(map(str, row)) or 'none'} make no labelled row; expected a text"
        f" ({', '.join(_SINGLES)}) or a pair ({_listed(_PAIRS)}) with one of {', '.join(_LABELS)};"
        f" or what is asked ({_listed(_ASKED)}) with one of {', '.join(_CHOICES)} and one of"
        f" {', '.join(_RIGHT)}",
    )
