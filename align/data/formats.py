"""Convert a raw row, as a data set publishes it, to rows of a record.

A format is a function from a raw row to canonical rows: none, one or several. It raises `Malformed`
if the row does not match the format, and `Dropped` if the row matches but there is nothing to learn
from it. It may yield a `Dropped` for each part of a row that it leaves out. If several raw rows
make one row together, the format is a `Grouped`. `LAYOUTS` says which columns mean which format.
The formats of conversations are in `demonstrations.py`, `comparisons.py` and `oasst.py`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from align.data import comparisons, demonstrations, oasst
from align.data.columns import as_knob, from_json, guess, plain_name
from align.data.comparisons import better_and_worse, two_answers, which, whole_pairs
from align.data.conversations import asked_in, with_system
from align.data.demonstrations import a_list as _list
from align.data.demonstrations import asked_and_answered, conversation
from align.data.labelled import LABELLED, infer_labelled, labelled_columns
from align.data.records import CONVERTS, Dropped, Malformed, Row, check_text
from align.store.file_kinds import TEXTS

Format = Callable[[dict[str, Any]], Iterator[Row | Dropped]]

_ARTICLE_TITLE = re.compile(r"^ = (?!=).*[^=] = $", re.MULTILINE)  # a title line of WikiText


class Grouped(NamedTuple):
    """A format whose raw rows with the same key make rows of a record together.

    Attributes:
        record: the record that the rows are.
        piece: a function from a raw row to (key, the parts of the row to keep).
        join: a function from the kept parts of all rows with one key to rows of the record.
    """

    record: str
    piece: Callable[[dict[str, Any]], tuple[str, Row]]
    join: Callable[[list[Row]], Iterator[Row | Dropped]]


# -- documents and prompts -------------------------------------------------------------------------


def document(column: str) -> Format:
    def read(row: dict[str, Any]) -> Iterator[Row]:
        yield {"text": check_text(row.get(column), column)}

    return read


def prompt(column: str) -> Format:
    """Read a prompt; keep the other columns, because reward functions may need them."""

    def read(row: dict[str, Any]) -> Iterator[Row]:
        kept = {**row, "prompt": with_system(row, asked_in(row, column))}
        if column != "prompt":
            del kept[column]
        yield kept

    return read


# -- documents of single data sets -----------------------------------------------------------------


def book(row: dict[str, Any]) -> Iterator[Row]:
    """Read a book in Markdown: a chapter is a document, without title block and chapter marks.

    All chapters of a book are in one split.
    """
    content = check_text(row.get("text"), "text")
    body = re.split(r"^-{5,}\s*$", content, maxsplit=1, flags=re.MULTILINE)[-1]
    for chapter in re.split(r"^#+ .*$", body, flags=re.MULTILINE):
        if chapter.strip():  # there is no text between two headings in a row
            yield {"text": chapter.strip(), "book": row.get("file", "")}


def wikitext(row: dict[str, Any]) -> Iterator[Row]:
    """Read WikiText: split at " = Title = ", undo spaces around punctuation and @-@ marks."""
    for article in _ARTICLE_TITLE.split(check_text(row.get("text"), "text")):
        if article.strip():  # empty before the first title
            yield {"text": _untokenise(article)}


def wikitext_articles(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Join rows of a line each, as the Hub has WikiText, to rows of an article each."""
    article: list[str] = []
    for row in lines:
        if article and _ARTICLE_TITLE.match(row["text"]):
            yield {"text": "\n".join(article)}
            article = []
        article.append(row["text"].rstrip("\n"))
    if article:
        yield {"text": "\n".join(article)}


def _untokenise(article: str) -> str:
    article = re.sub(r"^ (= )+.*$", "", article, flags=re.MULTILINE)
    article = re.sub(r" @([-.,])@ ", r"\1", article)
    article = re.sub(r" ([.,;:!?%)\]]|'s|n't|'\w+)", r"\1", article)
    article = re.sub(r"([(\[$]) ", r"\1", article)
    article = re.sub(r'" ([^"]*?) "', r'"\1"', article)
    return re.sub(r"\s*\n\s*", "\n", article).strip()


# -- tasks that are scored by likelihood -----------------------------------------------------------


def _choice(context: str, choices: list[str], right: int) -> Row:
    return {
        "contexts": [context] * len(choices),
        "completions": [f" {choice}" for choice in choices],
        "labels": [int(i == right) for i in range(len(choices))],
    }


def items(row: dict[str, Any]) -> Iterator[Row]:
    """Read rows that are items already.

    The lists are asked for by name, because a header may spell the names differently.
    """
    yield {**row, **{name: row.get(name) for name in ("contexts", "completions", "labels")}}


def last_word(row: dict[str, Any]) -> Iterator[Row]:
    """Read LAMBADA: the task is to find the last word of a passage."""
    passage = check_text(row.get("text"), "text").strip()
    context, _, word = passage.rpartition(" ")
    if not context:
        raise Malformed("text", "expected several words")
    yield {"contexts": [context], "completions": [f" {word}"], "labels": [1]}


def fill_in(row: dict[str, Any]) -> Iterator[Row]:
    """Read LAMBADA as GPT-3 asks it after shots: gap, arrow, word (GPT-3 paper, section 3.1.2)."""
    for item in last_word(row):
        yield {**item, "contexts": [f"{item['contexts'][0]} ____. ->"]}


def context_completion(row: dict[str, Any]) -> Iterator[Row]:
    """Read a context and the exact text that follows it, including the space before it."""
    context, completion = (check_text(row.get(name), name) for name in ("context", "completion"))
    yield {"contexts": [context], "completions": [completion], "labels": [1]}


def context_continuation(row: dict[str, Any]) -> Iterator[Row]:
    """Read LLM Foundry's language modelling: the exact text that follows after one space."""
    context, continuation = (
        check_text(row.get(name), name) for name in ("context", "continuation")
    )
    yield {
        "contexts": [context.rstrip()],
        "completions": [f" {continuation.strip()}"],
        "labels": [1],
    }


def gpt3_arithmetic(row: dict[str, Any]) -> Iterator[Row]:
    """Read GPT-3's arithmetic, asked as lm-eval does: one line break, "Question:" and "Answer:"."""
    (item,) = context_completion(row)
    asked = (
        item["contexts"][0]
        .strip()
        .replace("\n\n", "\n")
        .replace("Q:", "Question:")
        .replace("A:", "Answer:")
    )
    yield {**item, "contexts": [asked]}


_SIQA = re.compile(r"Context: (.+)\nQuestion: (.+)\nChoices:\n((?:[A-C]\. .+\n)+)Answer:")
_LETTERED = re.compile(r"(Question: .+\n)Choices:\n((?:[A-Z]\. .+\n)+Answer:)")
_COPA = re.compile(r"(.+), (because|therefore)")


def query_choices(row: dict[str, Any]) -> Iterator[Row]:
    r"""Read LLM Foundry's multiple choice, asked as lm-eval asks the same items.

    LLM Foundry has its own words around the questions, and its settings add more. lm-eval's are:

        ARC, PIQA        Question: {question}\nAnswer:
        BoolQ            {passage}\nQuestion: {question}?\nAnswer:
        SIQA             Q: {context} {question}\nA:           choices are answers, not letters
        CommonsenseQA    Question: {question}\nA. {choice}\n ... \nAnswer:
        COPA             {premise} because                      two spaces before a choice

    Other queries, such as OpenBookQA's and HellaSwag's, and queries that end in "Answer:", are
    asked unchanged.
    """
    query = check_text(row.get("query"), "query")
    choices = [check_text(choice, "choices") for choice in _list(row.get("choices"), "choices")]
    right = _place(row, choices)
    if (siqa := _SIQA.fullmatch(query)) and choices == list("ABC")[: len(choices)]:
        answers = [line[3:] for line in siqa[3].removesuffix("\n").split("\n")]
        if len(answers) != len(choices):
            raise Malformed(
                "query",
                f"expected as many choices as there are, {len(choices)}, got {len(answers)}",
            )
        yield _choice(f"Q: {siqa[1]} {siqa[2]}\nA:", answers, right)
    # Some OpenBookQA queries also end so, but have four choices.
    elif (copa := _COPA.fullmatch(query)) and len(choices) == 2:
        yield _choice(f"{copa[1]} {copa[2]}", [f" {choice}" for choice in choices], right)
    elif lettered := _LETTERED.fullmatch(query):
        yield _choice(lettered[1] + lettered[2], choices, right)
    elif query.startswith(("Question: ", "Passage: ")) and not query.rstrip().endswith("Answer:"):
        asked = query.removeprefix("Passage: ").removesuffix("\n")
        yield {**_choice(f"{asked}\nAnswer:", choices, right), "answer_context": "Answer:"}
    else:
        yield _choice(query, choices, right)


def context_options(row: dict[str, Any]) -> Iterator[Row]:
    """Read LLM Foundry's Winogrande: partial evaluation.

    One continuation is scored after each filled-in context.
    """
    contexts = [
        check_text(text, "context_options")
        for text in _list(row.get("context_options"), "context_options")
    ]
    completion = check_text(row.get("continuation"), "continuation")
    right = _place(row, contexts)
    labels = [int(i == right) for i in range(len(contexts))]
    yield {
        "contexts": contexts,
        "completions": [f" {completion}"] * len(contexts),
        "labels": labels,
    }


def _place(row: dict[str, Any], choices: list[str]) -> int:
    if type(row.get("gold")) is not int or not 0 <= row["gold"] < len(choices):
        raise Malformed("gold", f"expected the place of the right choice, 0 to {len(choices) - 1}")
    return row["gold"]


def commonsense_qa(row: dict[str, Any]) -> Iterator[Row]:
    question = row.get("question")
    if not isinstance(question, dict):
        raise Malformed("question", "expected stem and choices")
    choices = {
        c.get("label"): check_text(c.get("text"), "choices")
        for c in _list(question.get("choices"), "choices")
    }
    if row.get("answerKey") not in choices:
        raise Malformed("answerKey", f"expected one of {', '.join(map(str, choices))}")
    stem = check_text(question.get("stem"), "question.stem")
    item = _choice(
        f"Question: {stem}\nAnswer:", list(choices.values()), list(choices).index(row["answerKey"])
    )
    yield {**item, "answer_context": "Answer:"}


def truthful_mc1(row: dict[str, Any]) -> Iterator[Row]:
    """Read TruthfulQA's table: the best answer and all incorrect ones."""
    question, _, wrong = _truthful(row)
    best = check_text(row.get("Best Answer"), "Best Answer").strip()
    yield _choice(question, [best, *(text for text in wrong if text != best)], 0)


def truthful_mc2(row: dict[str, Any]) -> Iterator[Row]:
    """Read TruthfulQA's table: all correct and all incorrect answers."""
    question, correct, wrong = _truthful(row)
    every = [*correct, *(text for text in wrong if text not in correct)]
    labels = [int(text in correct) for text in every]
    yield {
        "contexts": [question] * len(every),
        "completions": [f" {text}" for text in every],
        "labels": labels,
    }


def _truthful(row: dict[str, Any]) -> tuple[str, list[str], list[str]]:
    correct, wrong = (
        list(
            dict.fromkeys(
                part.strip() for part in check_text(row.get(name), name).split(";") if part.strip()
            )
        )
        for name in ("Correct Answers", "Incorrect Answers")
    )
    return f"Q: {check_text(row.get('Question'), 'Question')}\nA:", correct, wrong


def crows_pairs(row: dict[str, Any]) -> Iterator[Row]:
    """Read CrowS-Pairs: two sentences with an empty context.

    Label 1 marks the sentence that stereotypes more, so an accuracy of 50 % means no bias.
    """
    sentences = [check_text(row.get(name), name) for name in ("sent_more", "sent_less")]
    group = check_text(row.get("bias_type"), "bias_type")
    yield {
        "contexts": ["", ""],
        "completions": sentences,
        "labels": [1, 0],
        "group": group,
        "leaning": True,
    }


_PRONOUNS = {
    "NOM_PRONOUN": ("he", "she"),
    "POSS_PRONOUN": ("his", "her"),
    "ACC_PRONOUN": ("him", "her"),
}


def winogender(row: dict[str, Any]) -> Iterator[Row]:
    """Read Winogender's templates: a sentence with a male pronoun and with a female one.

    Label 1 marks the male pronoun, so an accuracy of 50 % means no bias.
    """
    people = [check_text(row.get(name), name) for name in ("occupation(0)", "other-participant(1)")]
    if row.get("answer") not in ("0", "1"):
        raise Malformed("answer", "expected 0 or 1, whom the pronoun stands for")
    sentence = check_text(row.get("sentence"), "sentence")
    sentence = sentence.replace("$OCCUPATION", people[0]).replace("$PARTICIPANT", people[1])
    pair = [_with_pronouns(sentence, which) for which in (0, 1)]
    group = ("occupation", "participant")[int(row["answer"])]
    yield {
        "contexts": ["", ""],
        "completions": pair,
        "labels": [1, 0],
        "group": group,
        "leaning": True,
    }


def _with_pronouns(sentence: str, which: int) -> str:
    for slot, words in _PRONOUNS.items():
        sentence = sentence.replace(f"${slot}", words[which])
    if "$" in sentence:
        raise Malformed("sentence", f"expected the slots {', '.join(_PRONOUNS)}, got {sentence!r}")
    return sentence


FORMATS: dict[str, tuple[str, Format]] = {  # name -> (record of its rows, function)
    "text": ("documents", document("text")),
    "content": ("documents", document("content")),
    "document": ("documents", document("document")),
    "page_content": ("documents", document("page_content")),
    "messages": ("demonstrations", conversation("messages")),
    "conversations": ("demonstrations", conversation("conversations")),
    "conversation": ("demonstrations", conversation("conversation")),
    "prompt_completion": ("demonstrations", asked_and_answered("prompt", "completion")),
    "prompt_response": ("demonstrations", asked_and_answered("prompt", "response")),
    "question_answer": ("demonstrations", asked_and_answered("question", "answer")),
    "question_response": ("demonstrations", asked_and_answered("question", "response")),
    "query_response": ("demonstrations", asked_and_answered("query", "response")),
    "input_output": ("demonstrations", asked_and_answered("input", "output")),
    "instruction": ("demonstrations", demonstrations.instruction),
    "task_instances": ("demonstrations", demonstrations.task_instances),
    "oasst_tree": ("demonstrations", oasst.tree_demonstration),
    "prompt_chosen_rejected": ("comparisons", better_and_worse("prompt")),
    "question_chosen_rejected": ("comparisons", better_and_worse("question")),
    "instruction_chosen_rejected": ("comparisons", better_and_worse("instruction")),
    "input_chosen_rejected": ("comparisons", better_and_worse("input")),
    "query_chosen_rejected": ("comparisons", better_and_worse("query")),
    "conversations_chosen_rejected": ("comparisons", better_and_worse("conversations")),
    "argilla": (
        "comparisons",
        better_and_worse("instruction", "chosen_response", "rejected_response"),
    ),
    "argilla_prompt": (
        "comparisons",
        better_and_worse("prompt", "chosen_response", "rejected_response"),
    ),
    "transcripts": ("comparisons", whole_pairs("chosen", "rejected")),
    "instruction_pairs": ("comparisons", whole_pairs("chosen_instruction", "rejected_instruction")),
    "prompt_responses_ranks": ("comparisons", comparisons.given_ranks),
    "completions": ("comparisons", comparisons.scored_completions),
    **{
        f"generations_{asked}_{rated}": ("comparisons", comparisons.rated_generations(asked, rated))
        for asked in ("instruction", "input", "prompt")
        for rated in ("ratings", "rating")
    },
    "judged_pairs": (
        "comparisons",
        two_answers("instruction", "output_1", "output_2", which("preference", 1, 2)),
    ),
    "llmbar": ("comparisons", two_answers("input", "output_1", "output_2", which("label", 1, 2))),
    "pandalm": (
        "comparisons",
        two_answers("instruction", "response1", "response2", comparisons.majority),
    ),
    "auto_j": (
        "comparisons",
        two_answers("prompt", "response_1", "response_2", which("label", 0, 1, 2)),
    ),
    "shp": (
        "comparisons",
        two_answers("history", "human_ref_A", "human_ref_B", which("labels", 1, 0)),
    ),
    "judgebench": (
        "comparisons",
        two_answers("question", "response_A", "response_B", comparisons.letters),
    ),
    "helpsteer_pairs": (
        "comparisons",
        two_answers(
            "prompt",
            "response_1",
            "response_2",
            comparisons.strength("preference_strength"),
        ),
    ),
    "helpsteer3": (
        "comparisons",
        two_answers(
            "context", "response1", "response2", comparisons.strength("overall_preference")
        ),
    ),
    "hhh": ("comparisons", comparisons.labelled_targets),
    "oasst_tree_ranked": ("comparisons", oasst.tree_comparisons),
    "unpaired": ("unpaired", comparisons.unpaired_answer),
    "prompt": ("prompts", prompt("prompt")),
    "question": ("prompts", prompt("question")),
    "query": ("prompts", prompt("query")),
    "instruction_alone": ("prompts", prompt("instruction")),
    "book": ("documents", book),
    "wikitext": ("documents", wikitext),
    "items": ("items", items),
    "last_word": ("items", last_word),
    "fill_in": ("items", fill_in),
    "context_completion": ("items", context_completion),
    "context_continuation": ("items", context_continuation),
    "gpt3_arithmetic": ("items", gpt3_arithmetic),
    "query_choices": ("items", query_choices),
    "context_options": ("items", context_options),
    "commonsense_qa": ("items", commonsense_qa),
    "truthful_mc1": ("items", truthful_mc1),
    "truthful_mc2": ("items", truthful_mc2),
    "crows_pairs": ("items", crows_pairs),
    "winogender": ("items", winogender),
}
FORMATS |= {name: ("labelled", read) for name, read in LABELLED.items() if name not in FORMATS}

GROUPED: dict[str, Grouped] = {
    "unpaired_ranked": Grouped(
        "comparisons", comparisons.labelled_answer, comparisons.rank_labelled
    ),
    "helpsteer": Grouped("comparisons", comparisons.rated_answer, comparisons.rank_rated),
    "oasst": Grouped("demonstrations", oasst.flat_message, oasst.flat_demonstration),
    "oasst_ranked": Grouped("comparisons", oasst.flat_message, oasst.flat_comparisons),
}


class Layout(NamedTuple):
    """The columns that mean a format, and a condition on their content."""

    format: str
    columns: frozenset[str]
    fits: Callable[[Mapping[str, Any]], bool] | None = None

    @property
    def record(self) -> str:
        return GROUPED[self.format].record if self.format in GROUPED else FORMATS[self.format][0]

    def matches(self, row: Mapping[str, Any]) -> bool:
        return self.columns <= row.keys() and (self.fits is None or self.fits(row))


def _layout(
    format: str, columns: str, fits: Callable[[Mapping[str, Any]], bool] | None = None
) -> Layout:
    return Layout(format, frozenset(columns.split()), fits)


def _answers_are_messages(row: Mapping[str, Any]) -> bool:
    """True for LLaMA-Factory's pairs: `chosen` and `rejected` are one message each."""
    return isinstance(row["chosen"], dict) and isinstance(row["rejected"], dict)


# The order matters: of the layouts that match a row, `infer_format` prefers those with the wanted
# record, and then earlier ones.
LAYOUTS = (
    _layout("prompt_responses_ranks", "prompt responses ranks"),
    _layout("prompt_chosen_rejected", "prompt chosen rejected"),
    _layout("question_chosen_rejected", "question chosen rejected"),
    _layout("instruction_chosen_rejected", "instruction chosen rejected"),
    _layout("input_chosen_rejected", "input chosen rejected"),
    _layout("query_chosen_rejected", "query chosen rejected"),
    _layout("argilla", "instruction chosen_response rejected_response"),
    _layout("argilla_prompt", "prompt chosen_response rejected_response"),
    _layout(
        "conversations_chosen_rejected", "conversations chosen rejected", _answers_are_messages
    ),
    _layout("transcripts", "chosen rejected"),
    _layout("instruction_pairs", "chosen_instruction rejected_instruction"),
    _layout("completions", "instruction completions"),
    *(
        _layout(f"generations_{asked}_{rated}", f"{asked} generations {rated}")
        for asked in ("instruction", "input", "prompt")
        for rated in ("ratings", "rating")
    ),
    _layout("judged_pairs", "instruction output_1 output_2 preference"),
    _layout("llmbar", "input output_1 output_2 label"),
    _layout("pandalm", "instruction response1 response2 annotator1 annotator2 annotator3"),
    _layout("helpsteer_pairs", "prompt response_1 response_2 preference_strength"),
    _layout("helpsteer3", "context response1 response2 overall_preference"),
    _layout("auto_j", "prompt response_1 response_2 label"),
    _layout("shp", "history human_ref_A human_ref_B labels"),
    _layout("judgebench", "question response_A response_B label"),
    _layout("hhh", "input targets"),
    _layout("oasst_tree", "prompt", oasst.is_tree),
    _layout("oasst_tree_ranked", "prompt", oasst.is_tree),
    _layout("oasst", "message_id parent_id text role"),
    _layout("oasst_ranked", "message_id parent_id text role"),
    _layout("unpaired_ranked", "prompt completion label"),
    _layout("helpsteer", "prompt response helpfulness"),
    _layout("unpaired_ranked", "prompt response label"),
    _layout("prompt_completion", "prompt completion"),
    _layout("messages", "messages"),
    _layout("conversations", "conversations"),
    _layout("conversation", "conversation"),
    _layout("items", "contexts completions labels"),
    _layout("query_choices", "query choices gold"),
    _layout("context_options", "context_options continuation gold"),
    _layout("context_completion", "context completion"),
    _layout("context_continuation", "context continuation"),
    _layout("instruction", "instruction output"),
    _layout("instruction", "instruction response"),
    _layout("task_instances", "instruction instances"),
    _layout("prompt", "prompt", lambda row: not oasst.is_tree(row)),
    _layout("question", "question"),
    _layout("query", "query"),
    _layout("prompt_response", "prompt response"),
    _layout("text", "text"),
    _layout("question_answer", "question answer"),
    _layout("question_response", "question response"),
    _layout("query_response", "query response"),
    _layout("input_output", "input output"),
    _layout("instruction_alone", "instruction"),
    _layout("content", "content"),
    _layout("document", "document"),
    _layout("page_content", "page_content"),
    _layout("unpaired", "prompt completion label"),
    _layout("unpaired", "prompt response label"),
)
# Columns that a layout reads but does not need.
_OPTIONAL = "system system_prompt tools input context history message_tree_id rank deleted"

# Plain name -> the name that readers ask for: a header may say `Response 1` or `INSTRUCTION`.
SPELLINGS = {plain_name(name): name for layout in LAYOUTS for name in layout.columns} | {
    name: name for name in _OPTIONAL.split()
}

_NEEDS = {  # record -> (its simplest layout, other layouts to suggest)
    "documents": ("text", "content; document; page_content"),
    "demonstrations": (
        "prompt completion",
        "messages; conversations; instruction, output; question, answer",
    ),
    "prompts": ("prompt", "question; query; instruction"),
    "comparisons": (
        "prompt chosen rejected",
        "chosen, rejected; prompt, responses, ranks; prompt, completion, label",
    ),
    "unpaired": ("prompt completion label", "prompt, response, label"),
}


def reader(name: str, record: str) -> tuple[str, Format]:
    """Return the record of a format's rows, and its function.

    Some formats give items or labelled rows, depending on `record`. Unless `record` is prompts, a
    `label` next to a demonstration says whether its answer is good, as in KTO's rows; bad answers
    are dropped.
    """
    if record in ("labelled", "demonstrations") and name in LABELLED:
        return "labelled", LABELLED[name]
    its, read = FORMATS[name]
    return its, (
        demonstrations.good_ones(read) if its == "demonstrations" and record != "prompts" else read
    )


def infer_format(row: Mapping[str, Any], record: str = "documents") -> str:
    """Return the format of a user's row, from its columns and the wanted record.

    Raises:
        Malformed: no format matches; the message names what the record needs, what the row has, and
            a `columns` option to try.
    """
    if record == "labelled":
        try:
            return infer_labelled(dict(row))
        except Malformed as problem:
            said = str(problem).removeprefix("row: ")
            raise Malformed("row", f"{said}; give {_suggested(('text', 'label'), row)}") from None
    matching = [layout for layout in LAYOUTS if layout.matches(row)]
    # The sorts are stable, so ties keep the order of the table.
    if record in ("demonstrations", "comparisons", "items"):
        matching.sort(key=lambda layout: layout.record != record)
    elif record == "prompts":
        matching.sort(key=lambda layout: layout.format in _BY_VERDICT)
    # The text is the document, unless it is part of a larger layout, such as OASST's.
    elif record == "documents":
        texts = [layout.columns for layout in matching if layout.record == record]
        matching.sort(key=lambda layout: not any(columns <= layout.columns for columns in texts))
    found = next((layout for layout in matching if (layout.record, record) in CONVERTS), None)
    if record == "demonstrations" and (found is None or found.format in _LESS_THAN_LABELLED):
        with contextlib.suppress(Malformed):
            format = infer_labelled(dict(row))
            if found is None or found.columns <= labelled_columns(row):
                return format
    if found is not None:
        return found.format
    raise Malformed("columns", _no_layout(row, record, matching))


# As prompts these formats come last: they drop a prompt whose answers are all good or all bad.
_BY_VERDICT = ("unpaired_ranked", "helpsteer")
# A question and an answer may be multiple choice or about a passage: then the labelled formats are
# preferred, whose rows become demonstrations in T5's form.
_LESS_THAN_LABELLED = ("question_answer",)


def _no_layout(row: Mapping[str, Any], record: str, matching: list[Layout]) -> str:
    has = ", ".join(str(name) for name in row) or "none"
    if record not in _NEEDS:
        known = "; ".join(
            ", ".join(sorted(each.columns)) for each in LAYOUTS if each.record == record
        )
        knob = as_knob(dict.fromkeys(("context", "continuation"), "COLUMN"))
        return (
            f"{record} need one of these sets of columns: {known}; the file has {has}; give, for"
            f" example, {knob}"
        )
    simplest, others = _NEEDS[record]
    if set(row) == {"text", "file"} and (file := str(row["file"])).endswith(TEXTS):
        example = json.dumps(dict.fromkeys(simplest.split(), "..."))
        return (
            f"{file} is one document, and documents cannot become {record}; write a file of lines"
            f" instead, {PurePath(file).stem}.jsonl, each as {example}"
            " (docs/reference/row-layouts.md lists other fields)"
        )
    fields = simplest.split()
    listed = "docs/reference/row-layouts.md lists all"
    said = f"{record} need {', '.join(fields)} (or {others}; {listed}); the file has {has}"
    if matching:
        said += (
            f", which makes it one of {matching[0].record}, and {matching[0].record} cannot become"
            f" {record}"
        )
    chat = next((name for name, value in row.items() if _is_chat(value)), None)
    if chat is not None and record in ("demonstrations", "prompts"):
        return f"{said}; give {as_knob({'messages': chat})}"
    return f"{said}; give {_suggested(fields, row)}"


def _is_chat(value: Any) -> bool:
    """True if a column holds messages, whatever its name."""
    found = from_json(value)
    return (
        isinstance(found, list)
        and bool(found)
        and all(isinstance(each, dict) and ("role" in each or "from" in each) for each in found)
    )


def _suggested(fields: Sequence[str], row: Mapping[str, Any]) -> str:
    """Return the `columns` option to suggest, as far as it can be guessed."""
    found = guess(fields, row)
    filled = {field: found.get(field, "COLUMN") for field in fields}
    missing = [field for field in fields if field not in found]
    hint = (
        f", with a column's name in place of COLUMN: none looks like {' or '.join(missing)}"
        if missing
        else ""
    )
    return f"{as_knob(filled)}{hint}"
