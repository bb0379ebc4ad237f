"""From a raw row, as a data set publishes it, to the rows of a record.

A format is a function: raw row in; canonical rows out, none or one or several. It raises `Malformed` where the row is
not of its format and `Dropped` where it is but holds nothing to learn from.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from align.data.labelled import LABELLED, infer_labelled
from align.data.records import Dropped, Malformed, Message, Row, check_messages, check_text

Format = Callable[[dict[str, Any]], Iterator[Row]]

_ARTICLE_TITLE = re.compile(r"^ = (?!=).*[^=] = $", re.MULTILINE)  # of WikiText


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _as_prompt(value: Any, field: str) -> list[Message]:
    if not isinstance(value, str | list):
        raise Malformed(field, f"expected text or messages, got {type(value).__name__}")
    return _user(value) if isinstance(value, str) else check_messages(value, field)


def _as_turns(value: Any, field: str) -> list[Message]:
    """What follows a prompt: text, or messages from the assistant's first to its last; where the messages repeat the
    prompt (as UltraFeedback's do), the last of them.
    """
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if not isinstance(value, list):
        raise Malformed(field, "expected text or messages")
    if value and isinstance(value[0], dict) and value[0].get("role") in ("system", "user"):
        turns = check_messages(value, field)[-1:]
    else:
        turns = check_messages([*_user(" "), *value], field)[1:]
    if not turns or turns[-1]["role"] != "assistant":
        raise Malformed(field, "expected the assistant last")
    return turns


def _as_answer(value: Any, field: str) -> str:
    turns = _as_turns(value, field)
    if len(turns) != 1:
        raise Malformed(field, f"expected one answer, got {len(turns)} turns")
    return turns[0]["content"]


# -- formats users write (as in TRL) -----------------------------------------------------------------------------


def text(row: dict[str, Any]) -> Iterator[Row]:
    yield {"text": check_text(row.get("text"), "text")}


def messages(row: dict[str, Any]) -> Iterator[Row]:
    yield {"messages": check_messages(row.get("messages"), "messages")}


def prompt_completion(row: dict[str, Any]) -> Iterator[Row]:
    yield {"messages": [*_as_prompt(row.get("prompt"), "prompt"), *_as_turns(row.get("completion"), "completion")]}


def prompt_chosen_rejected(row: dict[str, Any]) -> Iterator[Row]:
    answers = [_as_answer(row.get(name), name) for name in ("chosen", "rejected")]
    yield {"prompt": _as_prompt(row.get("prompt"), "prompt"), "responses": answers, "ranks": [1, 2]}


def prompt_responses_ranks(row: dict[str, Any]) -> Iterator[Row]:
    yield {**row, "prompt": _as_prompt(row.get("prompt"), "prompt")}


def prompt(row: dict[str, Any]) -> Iterator[Row]:
    yield {**row, "prompt": _as_prompt(row.get("prompt"), "prompt")}


def instruction(row: dict[str, Any]) -> Iterator[Row]:
    """Alpaca's columns (Dolly's `context` and `response` are read too), LLaMA-Factory's `history` of earlier turns."""
    asked = check_text(row.get("instruction"), "instruction")
    context = check_text(row.get("input", row.get("context")) or "", "input").strip()
    answer = check_text(row.get("output", row.get("response")), "output")
    turns = [
        {"role": role, "content": check_text(said, "history")}
        for pair in _list(row.get("history") or [], "history")
        for role, said in zip(("user", "assistant"), _list(pair, "history", 2), strict=True)
    ]
    question = f"{asked}\n\n{context}" if context else asked
    yield {"messages": [*turns, *_user(question), {"role": "assistant", "content": answer}]}


def _list(value: Any, field: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
        raise Malformed(field, "expected a list" + (f" of {length}" if length is not None else ""))
    return list(value)


# -- formats of one data set each --------------------------------------------------------------------------------


def transcripts(row: dict[str, Any]) -> Iterator[Row]:
    """hh-rlhf: two transcripts that differ in their last answer; or, as TRL has it, two lists of messages."""
    chosen, rejected = (_turns(row.get(name), name) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise Dropped("transcripts differ before the last answer")
    responses = [chosen[-1]["content"], rejected[-1]["content"]]
    yield {"prompt": check_messages(chosen[:-1], "chosen"), "responses": responses, "ranks": [1, 2]}


def _turns(transcript: Any, field: str) -> list[Message]:
    if isinstance(transcript, list):
        turns = check_messages(transcript, field)
        if turns[-1]["role"] != "assistant":
            raise Malformed(field, "expected the assistant last")
        return turns
    parts = re.split(r"\n\n(Human|Assistant): ?", check_text(transcript, field))
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]
    if parts[0].strip() or len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise Malformed(field, 'expected "\\n\\nHuman: ...\\n\\nAssistant: ..."')
    if any(a["role"] == b["role"] for a, b in itertools.pairwise(turns)):
        raise Dropped("two turns of one speaker in a row")
    return turns


def judged_pairs(row: dict[str, Any]) -> Iterator[Row]:
    """alpaca_eval: two outputs and which one the judge preferred; no preference is a tie or a failed judgement."""
    if row.get("preference") not in (1, 2, 1.0, 2.0):
        raise Dropped("no preference")
    outputs = [check_text(row.get(name), name) for name in ("output_1", "output_2")]
    ranks = [1, 2] if row["preference"] == 1 else [2, 1]
    yield {"prompt": _user(check_text(row.get("instruction"), "instruction")), "responses": outputs, "ranks": ranks}


def task_instances(row: dict[str, Any]) -> Iterator[Row]:
    """self-instruct: one instruction with several inputs and outputs."""
    asked = check_text(row.get("instruction"), "instruction")
    for instance in _list(row.get("instances") or [], "instances"):
        if not isinstance(instance, dict):
            raise Malformed("instances", "expected objects with input and output")
        yield from instruction({**instance, "instruction": asked})


def book(row: dict[str, Any]) -> Iterator[Row]:
    """A book in Markdown: the title block and the chapter marks go, a chapter is a document.

    A book is wholly in one split.
    """
    content = check_text(row.get("text"), "text")
    body = re.split(r"^-{5,}\s*$", content, maxsplit=1, flags=re.MULTILINE)[-1]
    for chapter in re.split(r"^#+ .*$", body, flags=re.MULTILINE):
        if chapter.strip():  # two headings in a row have nothing between them
            yield {"text": chapter.strip(), "book": row.get("file", "")}


def wikitext(row: dict[str, Any]) -> Iterator[Row]:
    """WikiText: articles begin at " = Title = "; its spaces around punctuation and its @-@ marks are undone."""
    for article in _ARTICLE_TITLE.split(check_text(row.get("text"), "text")):
        if article.strip():  # what stands before the first title
            yield {"text": _untokenise(article)}


def wikitext_articles(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of a line each, as the Hub has WikiText, as rows of an article each."""
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


# -- tasks that are scored by likelihood -------------------------------------------------------------------------


def _choice(context: str, choices: list[str], right: int) -> Row:
    return {
        "contexts": [context] * len(choices),
        "completions": [f" {choice}" for choice in choices],
        "labels": [int(i == right) for i in range(len(choices))],
    }


def items(row: dict[str, Any]) -> Iterator[Row]:
    yield row


def last_word(row: dict[str, Any]) -> Iterator[Row]:
    """LAMBADA: the last word of a passage is to be found."""
    passage = check_text(row.get("text"), "text").strip()
    context, _, word = passage.rpartition(" ")
    if not context:
        raise Malformed("text", "expected several words")
    yield {"contexts": [context], "completions": [f" {word}"], "labels": [1]}


def fill_in(row: dict[str, Any]) -> Iterator[Row]:
    """LAMBADA as GPT-3 was asked behind shots: the gap, an arrow, and then the word (section 3.1.2)."""
    for item in last_word(row):
        yield {**item, "contexts": [f"{item['contexts'][0]} ____. ->"]}


def context_completion(row: dict[str, Any]) -> Iterator[Row]:
    """What is to be written word for word after a context, with the space before it."""
    context, completion = (check_text(row.get(name), name) for name in ("context", "completion"))
    yield {"contexts": [context], "completions": [completion], "labels": [1]}


def context_continuation(row: dict[str, Any]) -> Iterator[Row]:
    """LLM Foundry's language modelling: what is to be written word for word, behind one space."""
    context, continuation = (check_text(row.get(name), name) for name in ("context", "continuation"))
    yield {"contexts": [context.rstrip()], "completions": [f" {continuation.strip()}"], "labels": [1]}


def gpt3_arithmetic(row: dict[str, Any]) -> Iterator[Row]:
    """GPT-3's arithmetic, asked as lm-eval does: on one line less, and Q and A are written out."""
    (item,) = context_completion(row)
    asked = item["contexts"][0].strip().replace("\n\n", "\n").replace("Q:", "Question:").replace("A:", "Answer:")
    yield {**item, "contexts": [asked]}


_SIQA = re.compile(r"Context: (.+)\nQuestion: (.+)\nChoices:\n((?:[A-C]\. .+\n)+)Answer:")
_LETTERED = re.compile(r"(Question: .+\n)Choices:\n((?:[A-Z]\. .+\n)+Answer:)")
_COPA = re.compile(r"(.+), (because|therefore)")


def query_choices(row: dict[str, Any]) -> Iterator[Row]:
    r"""LLM Foundry's multiple choice, asked as lm-eval asks the same items.

    LLM Foundry has its own words around the questions, and its own settings add more; lm-eval's are these:

        ARC, PIQA        Question: {question}\nAnswer:
        BoolQ            {passage}\nQuestion: {question}?\nAnswer:
        SIQA             Q: {context} {question}\nA:           and the choices are answers, not letters
        CommonsenseQA    Question: {question}\nA. {choice}\n ... \nAnswer:
        COPA             {premise} because                      and two spaces before a choice

    Others, such as OpenBookQA's and HellaSwag's, and a query that ends in "Answer:", are asked as they are.
    """
    query = check_text(row.get("query"), "query")
    choices = [check_text(choice, "choices") for choice in _list(row.get("choices"), "choices")]
    right = _place(row, choices)
    if (siqa := _SIQA.fullmatch(query)) and choices == list("ABC")[: len(choices)]:
        answers = [line[3:] for line in siqa[3].splitlines()]
        if len(answers) != len(choices):
            raise Malformed("query", f"expected as many choices as there are, {len(choices)}, got {len(answers)}")
        yield _choice(f"Q: {siqa[1]} {siqa[2]}\nA:", answers, right)
    elif (copa := _COPA.fullmatch(query)) and len(choices) == 2:  # some of OpenBookQA's end so, with four choices
        yield _choice(f"{copa[1]} {copa[2]}", [f" {choice}" for choice in choices], right)
    elif lettered := _LETTERED.fullmatch(query):
        yield _choice(lettered[1] + lettered[2], choices, right)
    elif query.startswith(("Question: ", "Passage: ")) and not query.rstrip().endswith("Answer:"):
        asked = query.removeprefix("Passage: ").removesuffix("\n")
        yield {**_choice(f"{asked}\nAnswer:", choices, right), "answer_context": "Answer:"}
    else:
        yield _choice(query, choices, right)


def context_options(row: dict[str, Any]) -> Iterator[Row]:
    """LLM Foundry's Winogrande: partial evaluation, of one continuation after each filled-in context."""
    contexts = [check_text(text, "context_options") for text in _list(row.get("context_options"), "context_options")]
    completion = check_text(row.get("continuation"), "continuation")
    right = _place(row, contexts)
    labels = [int(i == right) for i in range(len(contexts))]
    yield {"contexts": contexts, "completions": [f" {completion}"] * len(contexts), "labels": labels}


def _place(row: dict[str, Any], choices: list[str]) -> int:
    if type(row.get("gold")) is not int or not 0 <= row["gold"] < len(choices):
        raise Malformed("gold", f"expected the place of the right choice, 0 to {len(choices) - 1}")
    return row["gold"]


def commonsense_qa(row: dict[str, Any]) -> Iterator[Row]:
    question = row.get("question")
    if not isinstance(question, dict):
        raise Malformed("question", "expected stem and choices")
    choices = {c.get("label"): check_text(c.get("text"), "choices") for c in _list(question.get("choices"), "choices")}
    if row.get("answerKey") not in choices:
        raise Malformed("answerKey", f"expected one of {', '.join(map(str, choices))}")
    stem = check_text(question.get("stem"), "question.stem")
    item = _choice(f"Question: {stem}\nAnswer:", list(choices.values()), list(choices).index(row["answerKey"]))
    yield {**item, "answer_context": "Answer:"}


def truthful_mc1(row: dict[str, Any]) -> Iterator[Row]:
    """TruthfulQA's table: the best answer among the wrong ones."""
    question, _, wrong = _truthful(row)
    best = check_text(row.get("Best Answer"), "Best Answer").strip()
    yield _choice(question, [best, *(text for text in wrong if text != best)], 0)


def truthful_mc2(row: dict[str, Any]) -> Iterator[Row]:
    """TruthfulQA's table: all correct answers among the wrong ones."""
    question, correct, wrong = _truthful(row)
    every = [*correct, *(text for text in wrong if text not in correct)]
    labels = [int(text in correct) for text in every]
    yield {"contexts": [question] * len(every), "completions": [f" {text}" for text in every], "labels": labels}


def _truthful(row: dict[str, Any]) -> tuple[str, list[str], list[str]]:
    correct, wrong = (
        list(dict.fromkeys(part.strip() for part in check_text(row.get(name), name).split(";") if part.strip()))
        for name in ("Correct Answers", "Incorrect Answers")
    )
    return f"Q: {check_text(row.get('Question'), 'Question')}\nA:", correct, wrong


def crows_pairs(row: dict[str, Any]) -> Iterator[Row]:
    """CrowS-Pairs: two sentences after nothing; the one that stereotypes more counts as "right", so 50 % is no bias."""
    sentences = [check_text(row.get(name), name) for name in ("sent_more", "sent_less")]
    group = check_text(row.get("bias_type"), "bias_type")
    yield {"contexts": ["", ""], "completions": sentences, "labels": [1, 0], "group": group, "leaning": True}


_PRONOUNS = {"NOM_PRONOUN": ("he", "she"), "POSS_PRONOUN": ("his", "her"), "ACC_PRONOUN": ("him", "her")}


def winogender(row: dict[str, Any]) -> Iterator[Row]:
    """Winogender's templates: a sentence with his pronoun and with hers; his counts as "right", so 50 % is no bias."""
    people = [check_text(row.get(name), name) for name in ("occupation(0)", "other-participant(1)")]
    if row.get("answer") not in ("0", "1"):
        raise Malformed("answer", "expected 0 or 1, whom the pronoun stands for")
    sentence = check_text(row.get("sentence"), "sentence")
    sentence = sentence.replace("$OCCUPATION", people[0]).replace("$PARTICIPANT", people[1])
    pair = [_with_pronouns(sentence, which) for which in (0, 1)]
    group = ("occupation", "participant")[int(row["answer"])]
    yield {"contexts": ["", ""], "completions": pair, "labels": [1, 0], "group": group, "leaning": True}


def _with_pronouns(sentence: str, which: int) -> str:
    for slot, words in _PRONOUNS.items():
        sentence = sentence.replace(f"${slot}", words[which])
    if "$" in sentence:
        raise Malformed("sentence", f"expected the slots {', '.join(_PRONOUNS)}, got {sentence!r}")
    return sentence


FORMATS: dict[str, tuple[str, Format]] = {  # name -> (record its rows are, function)
    "text": ("documents", text),
    "messages": ("demonstrations", messages),
    "prompt_completion": ("demonstrations", prompt_completion),
    "prompt_chosen_rejected": ("comparisons", prompt_chosen_rejected),
    "prompt_responses_ranks": ("comparisons", prompt_responses_ranks),
    "prompt": ("prompts", prompt),
    "instruction": ("demonstrations", instruction),
    "transcripts": ("comparisons", transcripts),
    "judged_pairs": ("comparisons", judged_pairs),
    "task_instances": ("demonstrations", task_instances),
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

_BY_COLUMNS = (  # the first whose columns are all there
    ("prompt_responses_ranks", {"prompt", "responses", "ranks"}),
    ("prompt_chosen_rejected", {"prompt", "chosen", "rejected"}),
    ("transcripts", {"chosen", "rejected"}),
    ("prompt_completion", {"prompt", "completion"}),
    ("messages", {"messages"}),
    ("items", {"contexts", "completions", "labels"}),
    ("query_choices", {"query", "choices", "gold"}),
    ("context_options", {"context_options", "continuation", "gold"}),
    ("context_completion", {"context", "completion"}),
    ("context_continuation", {"context", "continuation"}),
    ("instruction", {"instruction", "output"}),
    ("instruction", {"instruction", "response"}),
    ("prompt", {"prompt"}),
    ("text", {"text"}),
)


def reader(name: str, record: str) -> tuple[str, Format]:
    """The record that a format's rows are, and its function; some raw rows are items or labelled, as `record` asks."""
    labelled = record in ("labelled", "demonstrations") and name in LABELLED
    return ("labelled", LABELLED[name]) if labelled else FORMATS[name]


def infer_format(row: dict[str, Any], record: str = "documents") -> str:
    """The format of a user's row, by its columns; a text beside a label is one thing as documents, another labelled."""
    if record == "labelled":
        return infer_labelled(row)
    found = next((name for name, columns in _BY_COLUMNS if columns <= row.keys()), None)
    if record == "demonstrations" and found in (None, "text"):
        with contextlib.suppress(Malformed):
            return infer_labelled(row)
    if found is not None:
        return found
    known = "; ".join(", ".join(sorted(columns)) for _, columns in _BY_COLUMNS)
    raise Malformed(
        "row", f"columns {', '.join(map(str, row)) or 'none'} make no known format; expected one of: {known}"
    )
