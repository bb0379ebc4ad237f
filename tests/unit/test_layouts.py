"""Each layout that people have: a small file of it becomes the records, and no column of it is lost in silence."""

from __future__ import annotations

import csv
import json
import re
import shlex
import unicodedata

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from align.data import formats
from align.data.columns import as_knob, respelled
from align.data.files import RawRow, read_file
from align.data.formats import SPELLINGS, infer_format
from align.data.records import Dropped, Malformed
from align.data.row_reader import RowReader
from align.errors import ConfigError


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def gpt(who, text):
    return {"from": who, "value": text}


def chat(*messages):
    return {"messages": list(messages)}


def asked(text):
    return [user(text)]


def ranking(prompt, *responses):
    return {"prompt": prompt, "responses": [text for text, _ in responses], "ranks": [rank for _, rank in responses]}


Q, A, B = "Can ducks swim?", "They can.", "No idea."
QA = chat(user(Q), assistant(A))
AB = ranking(asked(Q), (A, 1), (B, 2))
BA = ranking(asked(Q), (A, 2), (B, 1))
CALL = [{"type": "function", "function": {"name": "look", "arguments": {"at": "pond"}}}]
TOOL = {"name": "look", "description": "Look.", "parameters": {}}
TOOLS = json.dumps([{"type": "function", "function": TOOL}])
TREE = {
    "message_tree_id": "t1",
    "tree_state": "done",
    "prompt": {
        "message_id": "m1", "role": "prompter", "text": Q, "lang": "en",
        "replies": [
            {"message_id": "m2", "role": "assistant", "text": B, "rank": 1, "replies": []},
            {"message_id": "m3", "role": "assistant", "text": A, "rank": 0, "replies": [
                {"message_id": "m4", "role": "prompter", "text": "Far?", "replies": [
                    {"message_id": "m5", "role": "assistant", "text": "Very.", "rank": None, "replies": []}]}]},
        ],
    },
}  # fmt: skip
FLAT = [
    {
        "message_id": "m5",
        "parent_id": "m4",
        "message_tree_id": "t1",
        "text": "Very.",
        "role": "assistant",
        "rank": None,
    },
    {"message_id": "m3", "parent_id": "m1", "message_tree_id": "t1", "text": A, "role": "assistant", "rank": 0.0},
    {"message_id": "m1", "parent_id": None, "message_tree_id": "t1", "text": Q, "role": "prompter", "lang": "en"},
    {"message_id": "m2", "parent_id": "m1", "message_tree_id": "t1", "text": B, "role": "assistant", "rank": 1.0},
    {"message_id": "m4", "parent_id": "m3", "message_tree_id": "t1", "text": "Far?", "role": "prompter", "rank": None},
    {
        "message_id": "x2",
        "parent_id": "x1",
        "message_tree_id": "t2",
        "text": "Lost.",
        "role": "assistant",
        "rank": None,
    },
]
PATH = [user(Q), assistant(A), user("Far?"), assistant("Very.")]
HH = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Can ducks swim?\n\nAssistant:"
HH_PROMPT = [user("Hi."), assistant("Hello."), user(Q)]

# name: (record, raw rows, records, columns said to be unused, reasons of what was left out)
LAYOUTS = {
    # -- documents
    "text": ("documents", [{"text": A, "id": 3}], [{"text": A}], {"id": 1}, {}),
    "content": ("documents", [{"content": A}], [{"text": A}], {}, {}),
    "document": ("documents", [{"document": A}], [{"text": A}], {}, {}),
    "page_content": ("documents", [{"page_content": A, "metadata": {"a": 1}}], [{"text": A}], {"metadata": 1}, {}),
    # -- demonstrations
    "messages": (
        "demonstrations",
        [{"messages": [system("Be kind."), user(Q), assistant(A)], "id": "x"}],
        [chat(system("Be kind."), user(Q), assistant(A))],
        {"id": 1},
        {},
    ),
    "messages in parts": (
        "demonstrations",
        [
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "Can ducks "}, {"type": "text", "text": "swim?"}],
                    },
                    assistant(A),
                ]
            },
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, assistant(A)]},
        ],
        [QA],
        {},
        {"a message with a part that is no text": 1},
    ),
    "messages with weights": (
        "demonstrations",
        [
            {"messages": [user("Hi."), assistant("Hello.", weight=0), user(Q), assistant(A, weight=1)]},
            {"messages": [user("Hi."), assistant("Hello.", train=False), user(Q), assistant(A, train=True)]},
            {"messages": [user("Hi."), assistant("Hello.", loss=0.0), user(Q), assistant(A, loss=1.0)]},
            {"messages": [user(Q), assistant(A, weight=0)]},
        ],
        [chat(user("Hi."), assistant("Hello.", weight=0), user(Q), assistant(A))] * 3,
        {},
        {"every answer has weight 0": 1},
    ),
    "messages with names": (
        "demonstrations",
        [{"messages": [{**user(Q), "name": "Ann", "id": None}, assistant(A)]}],
        [QA],
        {"messages[].name": 1},
        {},
    ),
    "messages with tools": (
        "demonstrations",
        [
            {
                "messages": [
                    user(Q),
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "id": "c1",
                                "type": "function",
                                "function": {"name": "look", "arguments": '{"at": "pond"}'},
                            }
                        ],
                    },
                    {"role": "tool", "tool_call_id": "c1", "content": "ducks"},
                    assistant(A),
                ],
                "tools": [TOOL],
            }
        ],
        [
            {
                **chat(
                    user(Q),
                    assistant("", tool_calls=json.dumps([{"id": "c1", **CALL[0]}])),
                    {"role": "tool", "content": "ducks", "tool_call_id": "c1"},
                    assistant(A),
                ),
                "tools": TOOLS,
            }
        ],
        {},
        {},
    ),
    "messages beside a prompt, as UltraChat": (
        "demonstrations",
        [{"prompt": Q, "prompt_id": "7", "messages": [user(Q), assistant(A)]}],
        [QA],
        {"prompt": 1, "prompt_id": 1},
        {},
    ),
    "messages and a system column": (
        "demonstrations",
        [{"system": "Be kind.", "messages": [user(Q), assistant(A)]}],
        [chat(system("Be kind."), user(Q), assistant(A))],
        {},
        {},
    ),
    "ShareGPT": (
        "demonstrations",
        [
            {"conversations": [gpt("system", "Be kind."), gpt("human", Q), gpt("gpt", A)], "id": "1"},
            {"conversations": [gpt("human", Q), gpt("gpt", A)], "system": "Be kind."},
        ],
        [chat(system("Be kind."), user(Q), assistant(A))] * 2,
        {"id": 1},
        {},
    ),
    "ShareGPT by other names": (
        "demonstrations",
        [
            {"conversation": [gpt("human", Q), gpt("gpt", A)]},
            {"conversations": [gpt("user", Q), gpt("assistant", A)]},
            {"conversations": [gpt("user", Q), gpt("model", A)]},
            {"messages": [gpt("human", Q), gpt("gpt", A)]},
            {"conversations": [user(Q), assistant(A)]},
        ],
        [QA] * 5,
        {},
        {},
    ),
    "a developer's message": (
        "demonstrations",
        [{"messages": [{"role": "developer", "content": "Be kind."}, user(Q), assistant(A)]}],
        [chat(system("Be kind."), user(Q), assistant(A))],
        {},
        {},
    ),
    "ShareGPT with tools": (
        "demonstrations",
        [
            {
                "conversations": [
                    gpt("human", Q),
                    gpt("function_call", '{"name": "look", "arguments": {"at": "pond"}}'),
                    gpt("observation", "ducks"),
                    gpt("gpt", A),
                ],
                "tools": json.dumps([TOOL]),
                "system": "",
            },
            {"conversations": [gpt("human", Q), gpt("gpt", "<call>"), gpt("tool", "ducks"), gpt("gpt", A)]},
        ],
        [
            {
                **chat(
                    user(Q),
                    assistant("", tool_calls=json.dumps(CALL)),
                    {"role": "tool", "content": "ducks"},
                    assistant(A),
                ),
                "tools": TOOLS,
            },
            chat(user(Q), assistant("<call>"), {"role": "tool", "content": "ducks"}, assistant(A)),
        ],
        {},
        {},
    ),
    "Alpaca": (
        "demonstrations",
        [
            {
                "instruction": "Answer.",
                "input": Q,
                "output": A,
                "text": "Below is ...",
                "system": "Be kind.",
                "history": [["Hi.", "Hello."]],
            }
        ],
        [chat(system("Be kind."), user("Hi."), assistant("Hello."), user(f"Answer.\n\n{Q}"), assistant(A))],
        {"text": 1},
        {},
    ),
    "Dolly": (
        "demonstrations",
        [{"instruction": "Who?", "context": "Ann.", "response": A, "category": "qa"}] * 3,
        [chat(user("Who?\n\nAnn."), assistant(A))] * 3,
        {"category": 3},
        {},
    ),
    "headers with capitals and spaces": (
        "demonstrations",
        [{"Instruction ": Q, "INPUT": "", " Output": A, "Some Notes": "x"}],
        [QA],
        {"Some Notes": 1},
        {},
    ),
    "question, answer": ("demonstrations", [{"question": Q, "answer": A}], [QA], {}, {}),
    "prompt, response": ("demonstrations", [{"prompt": Q, "response": A}], [QA], {}, {}),
    "query, response": ("demonstrations", [{"query": Q, "response": A}], [QA], {}, {}),
    "input, output": ("demonstrations", [{"input": Q, "output": A}], [QA], {}, {}),
    "prompt, completion": (
        "demonstrations",
        [{"prompt": Q, "completion": A, "system": "Be kind."}],
        [chat(system("Be kind."), user(Q), assistant(A))],
        {},
        {},
    ),
    "system_prompt, question, response": (
        "demonstrations",
        [{"id": 1, "system_prompt": "Be kind.", "question": Q, "response": A}],
        [chat(system("Be kind."), user(Q), assistant(A))],
        {"id": 1},
        {},
    ),
    "KTO as demonstrations": (
        "demonstrations",
        [
            {"prompt": Q, "completion": A, "label": True},
            {"prompt": Q, "completion": B, "label": False},
            {"prompt": Q, "completion": B, "label": "False"},
            {"prompt": Q, "completion": B, "label": None},
        ],
        [QA],
        {},
        {"labelled as bad": 2, "no label": 1},
    ),
    "OASST trees": (
        "demonstrations",
        [TREE],
        [{**chat(*PATH), "message_tree_id": "t1"}],
        {"tree_state": 1, "replies[].lang": 1},
        {"a message beside the best-ranked path": 1},
    ),
    "OASST messages": (
        "demonstrations",
        FLAT,
        [{**chat(*PATH), "message_tree_id": "t1"}],
        {"lang": 1},
        {
            "a message beside the best-ranked path": 1,
            "a message whose parent is not there": 1,
            "a tree without its first message": 1,
        },
    ),
    "self-instruct": (
        "demonstrations",
        [{"id": 1, "instruction": Q, "instances": [{"input": "", "output": A}]}],
        [QA],
        {"id": 1},
        {},
    ),
    # -- comparisons
    "explicit prompt": (
        "comparisons",
        [
            {"prompt": Q, "chosen": A, "rejected": B},
            {"prompt": asked(Q), "chosen": [assistant(A)], "rejected": [assistant(B)]},
        ],
        [AB] * 2,
        {},
        {},
    ),
    "explicit prompt by other names": (
        "comparisons",
        [{column: Q, "chosen": A, "rejected": B} for column in ("question", "instruction", "input", "query")],
        [AB] * 4,
        {},
        {},
    ),
    "explicit prompt, turns between": (
        "comparisons",
        [
            {
                "prompt": "Hi.",
                "chosen": [assistant("Hello."), user(Q), assistant(A)],
                "rejected": [assistant("Hello."), user(Q), assistant(B)],
            },
            {
                "prompt": "Hi.",
                "chosen": [assistant("Hello."), user(Q), assistant(A)],
                "rejected": [assistant("What?"), user(Q), assistant(B)],
            },
        ],
        [ranking(HH_PROMPT, (A, 1), (B, 2))],
        {},
        {"transcripts differ before the last answer": 1},
    ),
    "LLaMA-Factory, pairs": (
        "comparisons",
        [{"conversations": [gpt("human", Q)], "chosen": gpt("gpt", A), "rejected": gpt("gpt", B)}],
        [AB],
        {},
        {},
    ),
    "implicit prompt": (
        "comparisons",
        [
            {"chosen": f"{HH} {A}", "rejected": f"{HH} {B}"},
            {"chosen": [*HH_PROMPT, assistant(A)], "rejected": [*HH_PROMPT, assistant(B)]},
        ],
        [ranking(HH_PROMPT, (A, 1), (B, 2))] * 2,
        {},
        {},
    ),
    "a prompt that is a transcript": (
        "comparisons",
        [{"prompt": HH, "chosen": A, "rejected": B}],
        [ranking(HH_PROMPT, (A, 1), (B, 2))],
        {},
        {},
    ),
    "Orca": (
        "comparisons",
        [
            {"system": "Be kind.", "question": Q, "chosen": A, "rejected": B},
            {"system": "", "question": Q, "chosen": A, "rejected": B},
        ],
        [ranking([system("Be kind."), user(Q)], (A, 1), (B, 2)), AB],
        {},
        {},
    ),
    "UltraFeedback, original": (
        "comparisons",
        [
            {
                "source": "s",
                "instruction": Q,
                "completions": [
                    {"model": "m", "response": A, "overall_score": 8.5},
                    {"model": "n", "response": B, "overall_score": 4},
                    {"model": "o", "response": "Yes.", "overall_score": 8.5},
                    {"model": "p", "response": "?", "overall_score": None},
                ],
            }
        ],
        [ranking(asked(Q), (A, 1), (B, 2), ("Yes.", 1))],
        {"source": 1, "completions[].model": 1},
        {"a response without a score": 1},
    ),
    "UltraFeedback, binarized": (
        "comparisons",
        [
            {
                "prompt": Q,
                "prompt_id": "1",
                "chosen": [user(Q), assistant(A)],
                "rejected": [user(Q), assistant(B)],
                "score_chosen": 8.0,
                "score_rejected": 7.0,
            }
        ],
        [AB],
        {"prompt_id": 1, "score_chosen": 1, "score_rejected": 1},
        {},
    ),
    "Argilla": (
        "comparisons",
        [
            {
                "instruction": Q,
                "chosen_response": A,
                "rejected_response": B,
                "chosen_avg_rating": 5,
                "rejected_avg_rating": 2,
            },
            {"prompt": Q, "chosen_response": A, "rejected_response": B},
        ],
        [AB] * 2,
        {"chosen_avg_rating": 1, "rejected_avg_rating": 1},
        {},
    ),
    "distilabel": (
        "comparisons",
        [
            {asked_in: Q, "generations": [A, B], rated: ratings}
            for asked_in in ("instruction", "input", "prompt")
            for rated, ratings in (("ratings", [4, 2]), ("rating", [1.0, 5.0]))
        ],
        [AB, BA] * 3,
        {},
        {},
    ),
    "distilabel with pairs": (
        "comparisons",
        [{"system": "Be kind.", "input": Q, "chosen": A, "rejected": B, "generations": [A, B], "rating": [9, 8]}],
        [ranking([system("Be kind."), user(Q)], (A, 1), (B, 2))],
        {"generations": 1, "rating": 1},
        {},
    ),
    "HelpSteer, pairs": (
        "comparisons",
        [{"prompt": Q, "response_1": A, "response_2": B, "preference_strength": strength} for strength in (-3, 1, 0)],
        [AB, BA],
        {},
        {"all tied": 1},
    ),
    "HelpSteer, pairs in turns": (
        "comparisons",
        [
            {
                "prompt": f"Hi.\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\n{Q}",
                "response_1": A,
                "response_2": B,
                "preference_strength": -1,
            }
        ],
        [ranking(HH_PROMPT, (A, 1), (B, 2))],
        {},
        {},
    ),
    "HelpSteer 3": (
        "comparisons",
        [
            {"context": HH_PROMPT, "response1": A, "response2": B, "overall_preference": strength, "language": "en"}
            for strength in (-2, 0, 1, 4)
        ],
        [ranking(HH_PROMPT, (A, 1), (B, 2)), ranking(HH_PROMPT, (A, 2), (B, 1))],
        {"language": 3},
        {"all tied": 1, "no preference": 1},
    ),
    "HelpSteer, attributes": (
        "comparisons",
        [
            {"prompt": Q, "response": B, "helpfulness": 1, "verbosity": 2},
            {"prompt": "Why?", "response": B, "helpfulness": 1},
            {"prompt": Q, "response": A, "helpfulness": 4, "verbosity": 2},
        ],
        [AB],
        {"verbosity": 2},
        {"the only response to its prompt": 1},
    ),
    "SHP": (
        "comparisons",
        [
            {"history": Q, "human_ref_A": A, "human_ref_B": B, "labels": 1, "score_A": 5, "score_B": 2},
            {"history": Q, "human_ref_A": A, "human_ref_B": B, "labels": 0},
        ],
        [AB, BA],
        {"score_A": 1, "score_B": 1},
        {},
    ),
    "K-wise": (
        "comparisons",
        [{"prompt": Q, "responses": [A, B, "Yes."], "ranks": [1, 2, 1], "mine": "kept"}],
        [{**ranking(asked(Q), (A, 1), (B, 2), ("Yes.", 1)), "mine": "kept"}],
        {},
        {},
    ),
    "KTO": (
        "comparisons",
        [
            {"prompt": Q, "completion": B, "label": False},
            {"prompt": "Why?", "completion": B, "label": False},
            {"prompt": Q, "completion": A, "label": True},
            {"prompt": "How?", "completion": A, "label": "true"},
            {"prompt": Q, "completion": "Yes.", "label": 1},
        ],
        [ranking(asked(Q), (A, 1), ("Yes.", 1), (B, 2))],
        {},
        {"a prompt with bad answers alone": 1, "a prompt with good answers alone": 1},
    ),
    "KTO, as responses": (
        "comparisons",
        [{"prompt": Q, "response": B, "label": 0}, {"prompt": Q, "response": A, "label": 1}],
        [AB],
        {},
        {},
    ),
    "KTO, unpaired": (
        "unpaired",
        [
            {"prompt": Q, "completion": B, "label": False},
            {"prompt": "Why?", "completion": [assistant(B)], "label": "false"},
            {"prompt": Q, "completion": A, "label": 1},
            {"prompt": Q, "completion": A, "label": -1},
            {"prompt": Q, "completion": A, "label": None},
            {"prompt": Q, "response": A, "label": True},
        ],
        [
            {"prompt": asked(Q), "completion": B, "label": False},
            {"prompt": asked("Why?"), "completion": B, "label": False},
            {"prompt": asked(Q), "completion": A, "label": True},
            {"prompt": asked(Q), "completion": A, "label": False},
            {"prompt": asked(Q), "completion": A, "label": True},
        ],
        {},
        {"no label": 1},
    ),
    "KTO in turns": (
        "comparisons",
        [
            {"prompt": "Hi.", "completion": [assistant("Hello."), user(Q), assistant(A)], "label": True},
            {"prompt": HH_PROMPT, "completion": B, "label": False},
        ],
        [ranking(HH_PROMPT, (A, 1), (B, 2))],
        {},
        {},
    ),
    "AlpacaEval": (
        "comparisons",
        [{"instruction": Q, "output_1": A, "output_2": B, "preference": p, "annotator": "x"} for p in (1, "2.0", 1.5)],
        [AB, BA],
        {"annotator": 2},
        {"no preference": 1},
    ),
    "LLMBar": ("comparisons", [{"input": Q, "output_1": A, "output_2": B, "label": 1}], [AB], {}, {}),
    "PandaLM": (
        "comparisons",
        [
            {
                "instruction": "Answer.",
                "input": Q,
                "response1": A,
                "response2": B,
                "annotator1": 1,
                "annotator2": 2,
                "annotator3": 1,
            },
            {
                "instruction": Q,
                "input": "",
                "response1": A,
                "response2": B,
                "annotator1": 0,
                "annotator2": 2,
                "annotator3": 1,
            },
        ],
        [ranking(asked(f"Answer.\n\n{Q}"), (A, 1), (B, 2))],
        {},
        {"no two annotators agree": 1},
    ),
    "Auto-J": (
        "comparisons",
        [{"scenario": "x", "prompt": Q, "response 1": A, "response 2": B, "label": v} for v in (0, 1, 2)],
        [AB, BA],
        {"scenario": 3},
        {"all tied": 1},
    ),
    "HHH": ("comparisons", [{"input": Q, "targets": {"choices": [A, B], "labels": [0, 1]}}], [BA], {}, {}),
    "HHH, as pairs": (
        "comparisons",
        [{"chosen_instruction": f"{HH} {A}", "rejected_instruction": f"{HH} {B}"}],
        [ranking(HH_PROMPT, (A, 1), (B, 2))],
        {},
        {},
    ),
    "RM-Bench": (
        "comparisons",
        [{"id": 1, "prompt": Q, "chosen": [A, "Yes."], "rejected": [B, "No."], "domain": "x"}],
        [ranking(asked(Q), (A, 1), ("Yes.", 1), (B, 2), ("No.", 2))],
        {"id": 1, "domain": 1},
        {},
    ),
    "RewardBench 2": (
        "comparisons",
        [
            {
                "id": 1,
                "prompt": Q,
                "chosen": [A],
                "rejected": [B, "No."],
                "num_correct": 1,
                "num_incorrect": 2,
                "subset": "x",
            }
        ],
        [ranking(asked(Q), (A, 1), (B, 2), ("No.", 2))],
        {"id": 1, "num_correct": 1, "num_incorrect": 1, "subset": 1},
        {},
    ),
    "JudgeBench": (
        "comparisons",
        [{"question": Q, "response_A": A, "response_B": B, "label": v} for v in ("A>B", "B>A", "A=B")],
        [AB, BA],
        {},
        {"all tied": 1},
    ),
    "OASST trees, ranked": (
        "comparisons",
        [TREE],
        [{**AB, "message_tree_id": "t1"}],
        {"tree_state": 1, "replies[].lang": 1},
        {"an answer without a rank": 1},
    ),
    "OASST messages, ranked": (
        "comparisons",
        FLAT,
        [{**AB, "message_tree_id": "t1"}],
        {"lang": 1},
        {
            "an answer without a rank": 1,
            "a message whose parent is not there": 1,
            "a tree without its first message": 1,
        },
    ),
    # -- prompts
    "prompt": (
        "prompts",
        [{"prompt": Q, "answer": "yes", "system": "Be kind."}],
        [{"prompt": [system("Be kind."), user(Q)], "answer": "yes", "system": "Be kind."}],
        {},
        {},
    ),
    "question": ("prompts", [{"question": Q, "answer": "yes"}], [{"prompt": asked(Q), "answer": "yes"}], {}, {}),
    "query": ("prompts", [{"query": Q, "answer": "yes"}], [{"prompt": asked(Q), "answer": "yes"}], {}, {}),
    "instruction": ("prompts", [{"instruction": Q, "answer": "yes"}], [{"prompt": asked(Q), "answer": "yes"}], {}, {}),
    "prompts of demonstrations": (
        "prompts",
        [{"instruction": Q, "output": A, "id": 1}],
        [{"prompt": asked(Q)}],
        {"id": 1},
        {},
    ),
    "prompts with a header of their own": (
        "prompts",
        [{" Prompt": Q, "Answer": "yes"}],
        [{"prompt": asked(Q), "Answer": "yes"}],
        {},
        {},
    ),
}


def read(rows, record, file="a.jsonl", **options):
    """The records that rows make, and the reader with its counts."""
    reader = RowReader(record, **options)
    found = []
    attempts = [(None, reader.read(RawRow(f"{file}:{i}", row))) for i, row in enumerate(rows, 1)]
    for _ in range(2):
        for _, each in attempts:
            try:
                found += [row.made for row in each]
            except Dropped as reason:
                reader.dropped[str(reason)] += 1
        attempts = reader.joined()
    return found, reader


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_the_records(name):
    record, rows, expected, unused, dropped = LAYOUTS[name]
    found, reader = read(rows, record)
    assert found == expected
    assert dict(reader.unused) == unused
    assert dict(reader.dropped) == dropped


SCALARS = (str, int, float, bool)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_column_said_to_be_unused_changes_nothing_and_every_other_one_matters(name):
    """The identity behind the counts: used and unused are all there is, and each is called what it is."""
    record, rows, expected, unused, _ = LAYOUTS[name]
    columns = dict.fromkeys(column for row in rows for column, value in row.items() if value not in (None, "", [], {}))
    for column in columns:
        changed = [{**row, column: {"no": ["such", "value"]}} if row.get(column) is not None else row for row in rows]
        try:
            found, reader = read(changed, record)
        except Malformed:
            found = None
        if column in unused:
            assert found == expected, column
        else:
            assert found != expected or reader.dropped != read(rows, record)[1].dropped, column


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_column_of_nobody_is_counted(name):
    """Records that keep a user's columns keep this one; of all others it is said, once for each row that was read."""
    record, rows, expected, unused, _ = LAYOUTS[name]
    found, reader = read([{**row, "zzz": "mine"} for row in rows], record)
    kept = all(row.get("zzz") == "mine" for row in found)
    assert kept or reader.unused["zzz"] > 0
    assert [{k: v for k, v in row.items() if k != "zzz"} for row in found] == expected
    del reader.unused["zzz"]
    assert dict(reader.unused) == unused


def test_every_layout_of_conversations_and_documents_is_among_these():
    """Items have theirs in test_formats.py."""
    read_here = set()
    for record, rows, *_ in LAYOUTS.values():
        for raw in rows:
            names = respelled(raw, SPELLINGS)
            row = {names.get(name, name): value for name, value in raw.items()}
            chosen = infer_format(row, record)
            read_here |= {layout for layout in formats.LAYOUTS if layout.format == chosen and layout.matches(row)}
    assert [layout for layout in formats.LAYOUTS if layout.record != "items" and layout not in read_here] == []


# These read no column beside a message's own, so that such a column is counted.
WHOLE_TREES = ("OASST trees", "OASST messages", "OASST trees, ranked", "OASST messages, ranked", "self-instruct")


def behind_system(row):
    """A record with the system message in front, unless it has one."""
    column = "messages" if "messages" in row else "prompt"
    first = [] if row[column][0]["role"] == "system" else [system("Be kind.")]
    return {**row, column: [*first, *row[column]]}


@pytest.mark.parametrize("name", [name for name, (record, *_) in LAYOUTS.items() if record != "documents"])
def test_a_system_column_beside_any_layout_is_the_first_message_or_is_counted(name):
    record, rows, expected, *_ = LAYOUTS[name]
    found, reader = read([{**row, "system": "Be kind."} for row in rows], record)
    found, expected = ([{k: v for k, v in row.items() if k != "system"} for row in each] for each in (found, expected))
    if name in WHOLE_TREES:
        assert found == expected
        assert reader.unused["system"] == len(rows)
    else:
        assert found == [behind_system(row) for row in expected]
        assert "system" not in reader.unused


@pytest.mark.parametrize("name", [name for name, (record, *_) in LAYOUTS.items() if record == "demonstrations"])
def test_tools_beside_any_layout_of_demonstrations_are_kept_or_counted(name):
    record, rows, expected, *_ = LAYOUTS[name]
    found, reader = read([{**row, "tools": [TOOL]} for row in rows], record)
    if name in WHOLE_TREES:
        assert found == expected
        assert reader.unused["tools"] == len(rows)
    else:
        assert found == [{**row, "tools": TOOLS} for row in expected]
        assert "tools" not in reader.unused


@pytest.mark.parametrize("name", ["Alpaca", "prompt, completion", "explicit prompt", "KTO", "AlpacaEval", "question"])
def test_a_table_gives_the_records_of_the_rows(name, tmp_path):
    """In a CSV file everything is text: numbers, truths, and lists as JSON."""
    record, rows, expected, *_ = LAYOUTS[name]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
        table.writeheader()
        for row in rows:
            table.writerow({c: json.dumps(v) if isinstance(v, list) else v for c, v in row.items()})
    found, _ = read([raw.row for raw in read_file(tmp_path / "a.csv")], record, "a.csv")
    assert found == expected


# -- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["KTO", "HelpSteer, attributes", "OASST messages", "OASST messages, ranked"])
def test_rows_that_belong_together_may_be_in_any_order(name):
    record, rows, expected, _, dropped = LAYOUTS[name]
    found, reader = read(rows[::-1], record)
    assert found == expected
    assert dict(reader.dropped) == dropped


def test_of_answers_without_ranks_the_same_one_is_taken_in_any_order():
    asked, *others = ({"message_id": f"m{i}", "parent_id": "m0" if i else None, "message_tree_id": "t1", "text": f"{i}",
                       "role": "assistant" if i else "prompter"} for i in range(4))  # fmt: skip
    made = [read([*order, asked], "demonstrations")[0] for order in (others, others[::-1])]
    assert made[0] == made[1] == [{**chat(user("0"), assistant("1")), "message_tree_id": "t1"}]


def test_rows_of_two_splits_make_no_record_together():
    reader = RowReader("comparisons")
    for split, row in zip(("train", "test"), LAYOUTS["KTO"][1][:3:2], strict=True):
        assert list(reader.read(RawRow("a.jsonl:1", row), split)) == []
    assert [row for _, found in reader.joined() for row in found] == []
    assert dict(reader.dropped) == {f"a prompt with {kind} answers alone": 1 for kind in ("good", "bad")}


# -- columns= and what an error says ---------------------------------------------------------------------------------

MINE = {"my_question": Q, "good": A, "bad": B, "prompt": "another"}
COLUMNS = {"prompt": "my_question", "chosen": "good", "rejected": "bad"}


def test_columns_name_the_file_s_own():
    found, reader = read([MINE], "comparisons", columns=COLUMNS)
    assert found == [AB]
    assert dict(reader.unused) == {"prompt": 1}
    reader.check_columns()


def test_an_unused_column_is_called_as_in_the_file():
    _, reader = read([{"Q": Q, "A": A, "Some Id": 1}], "demonstrations", columns={"question": "Q", "answer": "A"})
    assert reader.lines() == ["columns not used: Some Id (1 row)"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {**COLUMNS, "chosen": "goood"},
            "columns: chosen: no column 'goood'; the file has my_question, good, bad, prompt",
        ),
        ({**COLUMNS, "system": "sys"}, "columns.system: no row has a column 'sys'"),
        (
            {**COLUMNS, "sistem": "prompt"},
            "columns.sistem: nothing reads sistem from rows of these columns as comparisons",
        ),
    ],
)
def test_columns_that_are_wrong_are_refused(columns, message):
    with pytest.raises((Malformed, ConfigError)) as caught:
        read([MINE], "comparisons", columns=columns)[1].check_columns()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("record", "row", "knob"),
    [
        ("comparisons", {"my_question": Q, "good": A, "bad": B}, "{prompt: my_question, chosen: good, rejected: bad}"),
        (
            "comparisons",
            {"worse_answer": B, "better_answer": A, "user query": Q},
            '{prompt: "user query", chosen: better_answer, rejected: worse_answer}',
        ),
        ("demonstrations", {"ask": Q, "reply": A}, "{prompt: ask, completion: reply}"),
        ("demonstrations", {"frage": Q, "answer_text": A, "n": 3}, "{prompt: frage, completion: answer_text}"),
        ("demonstrations", {"userprompt": Q, "botanswer": A}, "{prompt: userprompt, completion: botanswer}"),
        ("demonstrations", {"promt": Q, "compleetion": A}, "{prompt: promt, completion: compleetion}"),
        ("prompts", {"task": Q}, "{prompt: task}"),
        ("documents", {"body": A, "id": 1}, "{text: body}"),
        ("comparisons", {"instruction": Q, "output": A}, "{prompt: instruction, chosen: COLUMN, rejected: COLUMN}"),
    ],
)
def test_an_error_names_the_columns_to_give(record, row, knob):
    """And where a guess was found for all, giving it reads the row."""
    with pytest.raises(Malformed) as caught:
        read([row], record)
    said = str(caught.value)
    assert said.startswith(f"columns: {record} need ")
    assert f"; the file has {', '.join(row)}" in said
    assert f"; give columns='{knob}'" in said
    if "COLUMN" not in knob:
        columns = dict(pair.replace('"', "").split(": ") for pair in knob[1:-1].split(", "))
        found, _ = read([row], record, columns=columns)
        assert len(found) == 1


@pytest.mark.parametrize(
    ("record", "row", "message"),
    [
        (
            "demonstrations",
            {"messages": [user(Q), assistant(A, weight=0.5)]},
            "messages[1].weight: expected 1 (the turn is learned) or 0 (it is not), got 0.5",
        ),
        (
            "demonstrations",
            {"messages": [system("Be rude."), user(Q), assistant(A)], "system": "Be kind."},
            "system: expected no other system message than the one in the conversation",
        ),
        (
            "demonstrations",
            {"conversations": [gpt("bot", Q), gpt("gpt", A)]},
            "conversations[0].from: expected one of ",
        ),
        (
            "demonstrations",
            {"conversations": [gpt("human", Q), gpt("function_call", "look"), gpt("tool", "x"), gpt("gpt", A)]},
            "conversations[1].value: expected JSON",
        ),
        ("demonstrations", {"messages": [user(Q), assistant(A)], "tools": "look"}, "tools: expected JSON"),
        ("comparisons", {"prompt": Q, "completion": A, "response_1": B}, "columns: comparisons need "),
    ],
)
def test_what_is_no_row_of_its_layout_is_named(record, row, message):
    with pytest.raises(Malformed) as caught:
        read([row], record)
    assert str(caught.value).startswith(message)


def test_a_conversation_of_another_prompt_is_counted():
    _, reader = read(
        [{"prompt": "Why?", "chosen": [user(Q), assistant(A)], "rejected": [user(Q), assistant(B)]}], "comparisons"
    )
    assert dict(reader.dropped) == {"the conversation holds another prompt": 1}


# -- nothing is lost in silence --------------------------------------------------------------------------------------

FIELDS = (
    *("text", "messages", "tools", "prompt", "responses", "ranks", "contexts", "completions", "labels", "group"),
    *("texts", "choices", "label", "score", "gold_label"),
)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_column_that_has_the_name_of_a_field_is_kept_or_read_or_counted(name):
    """A record's own field of that name does not hide the column."""
    record, rows, expected, _, dropped = LAYOUTS[name]
    lost = []
    for field in FIELDS:
        if any(field in row for row in rows):
            continue  # the layout has the column itself
        try:
            found, reader = read([{**row, field: "mine"} for row in rows], record)
        except Malformed:
            continue  # it makes another layout
        kept = [{**row, field: "mine"} for row in expected]
        if not (found == kept or reader.unused[field] or found != expected or dict(reader.dropped) != dropped):
            lost.append(field)
    assert lost == []


@pytest.mark.parametrize(
    ("record", "row", "unused"),
    [
        (
            "comparisons",
            {"instruction": Q, "chosen_response": A, "rejected_response": B, "prompt": "P", "responses": ["x"]},
            None,
        ),
        ("comparisons", {"question": Q, "chosen": A, "rejected": B, "responses": ["x"]}, {"responses": 1}),
        ("prompts", {"prompt": "other", "messages": [user(Q), assistant(A)]}, {"prompt": 1}),
        ("documents", {"prompt": Q, "completion": A, "text": "All of it."}, {"prompt": 1, "completion": 1}),
        ("labelled", {"premise": Q, "hypothesis": A, "label": 1, "gold_label": "neutral"}, {"label": 1}),
    ],
)
def test_a_hidden_column_is_counted(record, row, unused):
    found, reader = read([row], record)
    assert len(found) == 1
    assert dict(reader.unused) == unused if unused else sum(reader.unused.values()) == 2
    if record == "documents":
        assert found == [{"text": "All of it."}]


def test_messages_of_a_tree_are_a_tree_as_documents_too():
    found, _ = read(FLAT[:5], "documents")
    assert [row["text"] for row in found] == ["\n\n".join(message["content"] for message in PATH)]


EARLIER = [user("Hi."), assistant("Hello.")]


@pytest.mark.parametrize(
    ("prompt", "before", "expected"),
    [
        ([system("Be kind."), user(Q)], [user(Q)], [system("Be kind."), user(Q)]),
        ([*EARLIER, user(Q)], [user(Q)], [*EARLIER, user(Q)]),
        ([*EARLIER, user(Q)], [*EARLIER, user(Q)], [*EARLIER, user(Q)]),
        (Q, [system("Be kind."), user(Q)], [system("Be kind."), user(Q)]),
        (Q, [*EARLIER, user(Q)], [*EARLIER, user(Q)]),
        ([*EARLIER, user(Q)], [user("Hi."), assistant("Bye."), user(Q)], None),
        ([system("Be kind."), user(Q)], [system("Be rude."), user(Q)], None),
    ],
)
@pytest.mark.parametrize("record", ["comparisons", "demonstrations"])
def test_no_message_of_the_prompt_is_lost(record, prompt, before, expected):
    chosen, rejected = ([*before, assistant(text)] for text in (A, B))
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    made = [ranking(expected, (A, 1), (B, 2))] if expected else []
    if record == "demonstrations":
        row = {"prompt": prompt, "completion": chosen}
        made = [chat(*expected, assistant(A))] if expected else []
    found, reader = read([row], record)
    assert found == made
    assert sum(reader.dropped.values()) == (not expected)


def flat(name, parent, **fields):
    role = "prompter" if parent is None or parent in ("b", "d") else "assistant"
    row = {"message_id": name, "parent_id": parent, "message_tree_id": "a", "text": name, "role": role, **fields}
    return row | ({"rank": 0} if role == "assistant" else {})


FLAT_TREE = [flat("a", None), flat("b", "a"), flat("c", "b"), flat("d", "c")]


@pytest.mark.parametrize(
    ("change", "left", "dropped"),
    [
        ({"b": {"deleted": True}}, 0, {"a deleted message": 1, "a message below a deleted one": 2, "no answer": 1}),
        ({"d": {"deleted": True, "text": None}}, 2, {"a deleted message": 1, "a message beside": 1}),
        ({"a": {"deleted": True}}, 0, {"a deleted message": 1, "a message below a deleted one": 3, "no first": 1}),
        ({"c": {"parent_id": None}}, 2, {"a message of a second tree in one": 2}),
        ({"b": {"parent_id": "d"}}, 0, {"a message that answers itself, or one below it": 3, "no answer": 1}),
        ({"c": {"parent_id": "c"}}, 2, {"a message that answers itself, or one below it": 2}),
        ({"c": {"parent_id": "x"}}, 2, {"a message whose parent is not there": 2}),
        ({"d": {"message_id": "c"}}, 2, {"a message that is there twice": 1, "a message beside": 1}),
    ],
)
def test_every_message_of_a_tree_is_used_or_counted(change, left, dropped):
    rows = [{**row, **change.get(row["message_id"], {})} for row in FLAT_TREE]
    if "d" in change and "message_id" in change["d"]:
        rows[3] |= {"parent_id": "b", "role": "prompter"}
    short = {"no answer": "a prompt without an answer", "no first": "a tree without its first message",
             "a message beside": "a message beside the best-ranked path"}  # fmt: skip
    for order in (rows, rows[::-1]):
        found, reader = read(order, "demonstrations")
        assert sum(len(row["messages"]) for row in found) == left
        assert dict(reader.dropped) == {short.get(reason, reason): count for reason, count in dropped.items()}


@pytest.mark.parametrize("record", ["demonstrations", "comparisons"])
def test_every_message_below_a_deleted_one_of_a_whole_tree_is_counted(record):
    tree = json.loads(json.dumps(TREE))
    tree["prompt"]["replies"][1] |= {"deleted": True, "text": None}
    _, reader = read([tree], record)
    assert reader.dropped["a deleted message"] == 1
    assert reader.dropped["a message below a deleted one"] == 2


LOOKS = assistant("", tool_calls=CALL)


def kto(text, label, prompt=Q):
    return {"prompt": prompt, "completion": text, "label": label}


@pytest.mark.parametrize(
    ("record", "rows", "made", "dropped"),
    [
        # calls and weights
        ("comparisons", [kto([LOOKS], True), kto(B, False)], 0,
         {"an answer that calls a tool": 1, "a prompt with bad answers alone": 1}),
        # every answer of a group
        ("comparisons", [kto(str(i), True) for i in range(10)], 0, {"a prompt with good answers alone": 10}),
        ("comparisons", [kto(A, True), kto(A, False), kto(B, False), kto("Yes.", 1)], 1,
         {"an answer that is there with two labels or scores": 2}),
        ("comparisons", [kto(A, True), kto(A, False)], 0, {"an answer that is there with two labels or scores": 2}),
        ("comparisons", [{"prompt": Q, "response": text, "helpfulness": 3} for text in "abc"], 0, {"all tied": 3}),
        ("comparisons", [kto(A, True), kto("", False)], 0, {"empty text": 2}),
        # empty messages and responses
        ("comparisons", [{"prompt": Q, "responses": [A, " ", B], "ranks": [1, 2, 3]}], 1, {"an empty response": 1}),
        ("comparisons", [{"prompt": Q, "responses": [A, ""], "ranks": [1, 2]}], 0, {"empty text": 1}),
        ("comparisons", [kto(A, True), kto(B, False), kto("", False)], 1, {"an empty response": 1}),
        ("demonstrations", [chat(system(""), user(Q), assistant(A))], 1, {}),
        ("prompts", [{"prompt": [system(" "), user(Q)]}], 1, {}),
        # the user has the last word
        ("prompts", [chat(user(Q), assistant(A), user("Far?"))], 1, {}),
        ("prompts", [chat(user(Q))], 1, {}),
    ],
)  # fmt: skip
def test_each_row_and_response_is_used_or_counted(record, rows, made, dropped):
    found, reader = read(rows, record)
    assert len(found) == made
    assert dict(reader.dropped) == dropped


@pytest.mark.parametrize(
    ("record", "rows", "column"),
    [
        ("comparisons", [{"prompt": Q, "chosen": [assistant(A, weight=0)], "rejected": B}], "chosen"),
        ("comparisons", [{"chosen": [user(Q), assistant(A)], "rejected": [user(Q), assistant(B, train=0)]}],
         "rejected"),
        ("comparisons", [kto([assistant(A, weight=0)], True), kto(B, False)], "completion"),
        ("prompts", [chat(*EARLIER[:1], assistant("Hello.", weight=0), user(Q), assistant(A))], "messages"),
    ],
)  # fmt: skip
def test_a_weight_that_no_demonstration_gets_is_counted(record, rows, column):
    found, reader = read(rows, record)
    assert len(found) == 1
    assert "weight" not in repr(found)
    assert dict(reader.unused) == {f"{column}[].weight": 1}


@pytest.mark.parametrize("record", ["prompts", "documents"])
def test_tools_that_no_demonstration_gets_are_counted(record):
    found, reader = read([{**QA, "tools": [TOOL]}], record)
    assert len(found) == 1
    assert "tools" not in found[0]
    assert dict(reader.unused) == {"tools": 1}


def test_what_the_user_says_last_is_asked():
    found, _ = read([chat(*EARLIER, user(Q))], "prompts")
    assert found == [{"prompt": [*EARLIER, user(Q)]}]


ANSWERED = {
    "prompt, completion": {"prompt": Q, "completion": A},
    "prompt, response": {"prompt": Q, "response": A},
    "question, answer": {"question": Q, "answer": A},
    "Alpaca": {"instruction": Q, "input": "", "output": A},
    "messages": QA,
    "ShareGPT": {"conversations": [gpt("human", Q), gpt("gpt", A)]},
}


@pytest.mark.parametrize("name", ANSWERED)
def test_an_answer_that_is_labelled_as_bad_is_not_learned(name):
    """Whatever the layout, and however true and false are spelled."""
    labels = {True: (True, 1, 1.0, "1", "True"), False: (False, 0, -1, "-1", -1.0, "false")}
    for good, spellings in labels.items():
        for label in spellings:
            found, reader = read([{**ANSWERED[name], "label": label}], "demonstrations")
            assert found == ([QA] if good else [])
            assert dict(reader.dropped) == ({} if good else {"labelled as bad": 1})
    for label in ("undesirable", 2, 0.5, ["bad"]):
        with pytest.raises(Malformed, match=r"^label: expected true or false .*; .* rename the column"):
            read([{**ANSWERED[name], "label": label}], "demonstrations")
    assert len(read([{**ANSWERED[name], "label": "undesirable"}], "prompts")[0]) == 1


@pytest.mark.parametrize("column", ["completion", "response"])
def test_good_and_bad_answers_are_ranked_by_their_labels(column):
    rows = [{"prompt": Q, column: A, "label": 1}, {"prompt": Q, column: B, "label": -1}]
    assert read(rows, "comparisons")[0] == [AB]
    with pytest.raises(Malformed, match=r"^label: expected true or false .*, got \"desirable\";"):
        read([{"prompt": Q, column: A, "label": "desirable"}], "comparisons")


# -- which reader takes a row, and what of it is asked -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "made"),
    [
        ({"question": Q, "answer": A, "text": "Ducks."}, QA),
        ({"question": Q, "answer": A, "sentence": "Ducks."}, QA),
        ({"question": Q, "answer": A, "options": None}, QA),
        ({"question": Q, "answer": A, "choices": []}, QA),
        ({"question": Q, "response": A, "text": "Ducks.", "score": 0.5}, QA),
        ({"input": Q, "output": A, "text": "Ducks.", "score": 3}, QA),
        ({"question": Q, "answer": 4}, chat(user(Q), assistant("4"))),
    ],
)
def test_a_question_with_its_answer_is_a_demonstration(row, made):
    assert read([row], "demonstrations")[0] == [made]


@pytest.mark.parametrize(
    ("row", "target"),
    [
        ({"question": Q, "choices": ["no", "yes"], "answer": "yes"}, "yes"),
        ({"question": Q, "choices": ["no", "yes"], "answer": "B"}, "yes"),
        ({"question": Q, "choices": ["1", "2", "3"], "answer": 2}, "3"),
        ({"question": Q, "choices": ["2", "1", "0"], "answer": "1"}, "1"),
        ({"passage": "Ducks swim.", "question": Q, "answer": "yes"}, "yes"),
    ],
)
def test_a_question_with_choices_or_a_passage_is_a_task(row, target):
    (found,), _ = read([row], "demonstrations")
    assert found["messages"][1]["content"] == target
    assert found["messages"] != [user(Q), assistant(target)]


def test_an_answer_that_can_be_two_choices_is_refused():
    with pytest.raises(Malformed, match=r"^answer: '2' is one choice and the place of another; give the place as a"):
        read([{"question": Q, "choices": ["1", "2", "3"], "answer": "2"}], "labelled")


@pytest.mark.parametrize("text", ['["apple", "pear"]', "[2, 3]", "['a', 'b']", '[{"a": 1}]', "[1"])
@pytest.mark.parametrize("record", ["comparisons", "demonstrations"])
def test_text_in_brackets_is_an_answer(record, text):
    (found,), _ = read([{"prompt": Q, "chosen": text, "rejected": '["x"]', "completion": text}], record)
    made = {"comparisons": ranking(asked(Q), (text, 1), ('["x"]', 2)), "demonstrations": chat(user(Q), assistant(text))}
    assert found == made[record]


@pytest.mark.parametrize(
    ("chosen", "rejected", "made"),
    [
        (json.dumps([A, "Yes."]), json.dumps([B]), ranking(asked(Q), (A, 1), ("Yes.", 1), (B, 2))),
        (str([A, "Yes."]), str([B]), ranking(asked(Q), (A, 1), ("Yes.", 1), (B, 2))),
        ("[2, 3]", "[3]", ranking(asked(Q), ("[2, 3]", 1), ("[3]", 2))),
        ("['a', 'b']", B, ranking(asked(Q), ("['a', 'b']", 1), (B, 2))),
    ],
)
def test_a_cell_of_a_table_may_spell_several_answers(chosen, rejected, made):
    row = {"prompt": Q, "chosen": chosen, "rejected": rejected}
    reader = RowReader("comparisons")
    assert [each.made for each in reader.read(RawRow("a.csv.gz:2", row))] == [made]


TOLD = "\n\nHuman: Can ducks swim?\n\nAssistant:"
SUM = "Can ducks swim?\n\nDucks are birds."
PARTS = f"Hi.\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\n{Q}"


@pytest.mark.parametrize(
    ("record", "row", "made"),
    [
        # transcripts beside a prompt
        ("comparisons", {"prompt": TOLD, "chosen": f"{TOLD} {A}", "rejected": f"{TOLD} {B}"}, AB),
        ("comparisons", {"prompt": Q, "chosen": f"{TOLD} {A}", "rejected": f"{TOLD} {B}"}, AB),
        ("demonstrations", {"prompt": TOLD, "completion": f"{TOLD} {A}"}, QA),
        # the text that an instruction or a question is about
        *(
            ("comparisons", {asked_in: Q, about: "Ducks are birds.", **answers}, ranking(asked(SUM), (A, 1), (B, 2)))
            for asked_in, about, answers in (
                ("instruction", "input", {"chosen": A, "rejected": B}),
                ("instruction", "context", {"chosen": A, "rejected": B}),
                ("question", "context", {"chosen": A, "rejected": B}),
                ("instruction", "input", {"chosen_response": A, "rejected_response": B}),
                ("instruction", "input", {"generations": [A, B], "ratings": [2, 1]}),
                ("instruction", "input", {"output_1": A, "output_2": B, "preference": 1}),
            )
        ),
        ("demonstrations", {"question": Q, "context": "Ducks are birds.", "answer": A}, chat(user(SUM), assistant(A))),
        ("demonstrations", {"question": Q, "context": ["Ducks.", "Geese."], "answer": A}, QA),
        ("comparisons", {"instruction": Q, "input": Q, "chosen": A, "rejected": B}, AB),
        # HelpSteer's turns
        ("demonstrations", {"prompt": PARTS, "response": A}, chat(*HH_PROMPT, assistant(A))),
        ("prompts", {"prompt": PARTS}, {"prompt": HH_PROMPT}),
        # numbers, one message, an older name of calls
        ("demonstrations", {"prompt": Q, "completion": 4}, chat(user(Q), assistant("4"))),
        ("comparisons", {"prompt": Q, "chosen": 4, "rejected": 5.5}, ranking(asked(Q), ("4", 1), ("5.5", 2))),
        ("comparisons", {"prompt": Q, "chosen": assistant(A), "rejected": gpt("gpt", B)}, AB),
        (
            "demonstrations",
            chat(
                user(Q),
                {"role": "assistant", "content": None, "function_call": CALL[0]["function"]},
                {"role": "function", "name": "look", "content": "Ducks."},
                assistant(A),
            ),
            chat(
                user(Q),
                assistant("", tool_calls=json.dumps(CALL)),
                {"role": "tool", "content": "Ducks.", "name": "look"},
                assistant(A),
            ),
        ),
        # other spellings
        ("comparisons", {"history": Q, "human_ref_A": A, "human_ref_B": B, "labels": True}, AB),
        ("comparisons", {"history": Q, "human_ref_A": A, "human_ref_B": B, "labels": False}, BA),
        ("comparisons", {"input": Q, "targets": json.dumps({"choices": [A, B], "labels": [1, 0]})}, AB),
    ],
)  # fmt: skip
def test_a_row_is_read_whole(record, row, made):
    found, reader = read([row], record)
    assert found == [made]
    assert not reader.dropped


def test_columns_that_name_the_prompt_read_prompts():
    alpaca = {"instruction": Q, "input": "Ducks are birds.", "output": A}
    (found,), reader = read([alpaca], "prompts", columns={"prompt": "instruction"})
    assert found == {"prompt": asked(SUM), "input": "Ducks are birds.", "output": A}
    (found,), reader = read([{"messages": [user("Hi."), assistant("Hello.")], "ask": Q}], "prompts",
                            columns={"prompt": "ask"})  # fmt: skip
    assert found["prompt"] == asked(Q)
    reader.check_columns()


@pytest.mark.parametrize(
    "turns",
    [
        [gpt("gpt", "Hi."), gpt("human", Q), gpt("gpt", A)],
        [gpt("human", Q), gpt("gpt", A), gpt("human", "Far?")],
        [gpt("human", "Hi."), gpt("human", Q), gpt("gpt", A)],
        [gpt("human", Q), gpt("gpt", A), gpt("gpt", B)],
    ],
)
def test_turns_in_an_odd_order_are_counted(turns):
    found, reader = read([{"conversations": turns}], "demonstrations")
    assert found == []
    assert sum(reader.dropped.values()) == 1


def test_an_empty_list_of_answers_says_what_to_do():
    with pytest.raises(
        Malformed, match=r"^chosen: expected an answer, got an empty list; fill it in or remove the row"
    ):
        read([{"prompt": Q, "chosen": [], "rejected": [B]}], "comparisons")


# -- what an error says can be pasted ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "it's",
        'a "b"',
        "a\\b",
        'a\\"b',
        "a\\",
        "${a}",
        "a\\${b}",
        "a, b: {c}",
        "naïve frage",
        "$HOME",
        "`ls`",
        "null",
        "True",
    ],
)
def test_the_columns_of_an_error_can_be_pasted(name):
    """A shell, then Hydra, then OmegaConf read the name back."""
    (word,) = shlex.split(as_knob({"prompt": name}))
    override = OverridesParser.create().parse_override(word)
    columns = OmegaConf.to_container(OmegaConf.create({"columns": override.value()}), resolve=True)
    assert columns == {"columns": {"prompt": name}}


@pytest.mark.parametrize(
    ("record", "row", "knob"),
    [
        ("demonstrations", {"dialog": [user(Q), assistant(A)], "id": 3}, "columns='{messages: dialog}'"),
        ("prompts", {"dialog": [gpt("human", Q)]}, "columns='{messages: dialog}'"),
        ("labelled", {"review": Q, "sentiment": 1}, "columns='{text: review, label: sentiment}'"),
        ("items", {"story": Q, "ending": A}, "columns='{context: COLUMN, continuation: COLUMN}'"),
    ],
)
def test_an_error_suggests_columns_for_each_record(record, row, knob):
    with pytest.raises(Malformed) as caught:
        read([row], record)
    assert knob in str(caught.value)
    if "COLUMN" not in knob:
        (word,) = shlex.split(knob)
        columns = dict(pair.split(": ") for pair in word.removeprefix("columns={").removesuffix("}").split(", "))
        assert len(read([row], record, columns=columns)[0]) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"Sentence": Q, "Label": 1},
        {" TEXT": Q, "label ": "1"},
        {"Premise": Q, "Hypothesis": A, "Gold Label": "1"},
        {"Question": Q, "Choices": [A, B], "ANSWERKEY": "A"},
    ],
)
def test_headers_of_labelled_rows_match_in_any_spelling(row):
    found, reader = read([row], "labelled")
    assert len(found) == 1
    assert not reader.unused
    assert len(read([row], "demonstrations")[0]) == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("record", "row", "field"),
    [
        ("demonstrations", {"prompt": Q, "completion": ...}, "completion"),
        ("demonstrations", {"instruction": Q, "output": ...}, "output"),
        ("comparisons", {"prompt": Q, "chosen": ..., "rejected": B}, "chosen"),
        ("comparisons", {"prompt": Q, "chosen": [...], "rejected": [B]}, "chosen[0]"),
        ("comparisons", {"question": Q, "response_A": A, "response_B": ..., "label": "A>B"}, "response_B"),
    ],
)
def test_a_number_that_is_none_is_no_answer(record, row, field, number):
    filled = json.loads(json.dumps(row, default=lambda gap: number))
    with pytest.raises(Malformed, match=f"^{re.escape(field)}: expected text or a finite number, got {number}"):
        read([filled], record)


# -- columns that a user names are the ones that are read --------------------------------------------------------------


@pytest.mark.parametrize("own", ["prompt", " Prompt", "PROMPT"])
def test_a_row_without_the_column_that_is_named_for_a_field_does_not_fall_back_to_the_field_s_own(own):
    row = {own: "mine", "completion": A}
    found, reader = read([{**row, "x": Q}], "demonstrations", columns={"prompt": "x"})
    assert found == [QA]
    assert sum(reader.unused.values()) == 1
    with pytest.raises(Malformed, match=r"^columns: prompt: no column 'x'; the file has "):
        read([row], "demonstrations", columns={"prompt": "x"})


@pytest.mark.parametrize("spelled", ["NFC", "NFD"])
def test_a_column_is_found_however_its_accents_are_encoded(spelled):
    columns = {"prompt": "frage", "completion": unicodedata.normalize(spelled, "réponse")}
    for form in ("NFC", "NFD"):
        found, reader = read(
            [{"frage": Q, unicodedata.normalize(form, "réponse"): A}], "demonstrations", columns=columns
        )
        assert found == [QA]
        assert not reader.unused
        reader.check_columns()


# -- text that looks like messages, and messages as text ---------------------------------------------------------------


LIKE_MESSAGES = [
    '[{"from": "LHR", "to": "JFK"}]',
    '[{"role": "manager", "name": "Ann"}]',
    '[{"role": "assistant", "content": "hi"}, {"role": "clerk", "content": "no"}]',
    '[{"role": "user"}]',
    '[{"from": "gpt", "text": "hi"}]',
]


@pytest.mark.parametrize("name", ["a.jsonl:1", "a.csv:2"])
@pytest.mark.parametrize("text", LIKE_MESSAGES)
def test_an_answer_that_is_json_data_is_an_answer(name, text):
    for record, row, made in (
        ("demonstrations", {"prompt": Q, "completion": text}, chat(user(Q), assistant(text))),
        ("comparisons", {"prompt": Q, "chosen": text, "rejected": B}, ranking(asked(Q), (text, 1), (B, 2))),
        ("prompts", {"prompt": text}, {"prompt": asked(text)}),
    ):
        assert [each.made for each in RowReader(record).read(RawRow(name, row))] == [made]


@pytest.mark.parametrize(
    ("name", "expected"), [("a.csv:2", A), ("a.tsv:2", A), ("a.jsonl:1", json.dumps([assistant(A)]))]
)
def test_only_a_cell_of_a_table_holds_messages_as_text(name, expected):
    row = {"prompt": Q, "completion": json.dumps([assistant(A)])}
    (found,) = RowReader("demonstrations").read(RawRow(name, row))
    assert found.made == chat(user(Q), assistant(expected))


# -- labels as tables spell them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "good"),
    [("1.0", True), ("0.0", False), ("-1.0", False), (" TRUE ", True), ("1e0", True), ("0", False), (1.0, True)],
)
def test_a_label_is_true_or_false_as_pandas_writes_it_too(label, good):
    found, reader = read([kto(A, label), kto(B, "False" if good else "True")], "comparisons")
    assert found == [AB if good else BA_SORTED]
    assert not reader.dropped


BA_SORTED = ranking(asked(Q), (B, 1), (A, 2))


@pytest.mark.parametrize("label", ["2.0", "0.5", "nan", "inf", "yes"])
def test_a_label_of_another_number_or_word_is_refused(label):
    with pytest.raises(Malformed, match=r"^label: expected true or false "):
        read([kto(A, label)], "comparisons")


# -- fields of calls and of parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "unused"),
    [
        ({"tool_calls": [{**CALL[0], "index": 0}]}, "messages[].tool_calls[].index"),
        ({"tool_calls": [{**CALL[0], "id": 5}]}, "messages[].tool_calls[].id"),
        ({"tool_calls": [{"function": {**CALL[0]["function"], "strict": True}}]}, "messages[].tool_calls[].strict"),
        ({"tool_calls": [{**CALL[0]["function"], "parameters": {"at": "sea"}}]}, "messages[].tool_calls[].parameters"),
        ({"tool_calls": CALL, "function_call": CALL[0]["function"]}, "messages[].function_call"),
        ({"function_call": {**CALL[0]["function"], "strict": True}}, "messages[].function_call[].strict"),
        (
            {"content": [{"type": "text", "text": A, "cache_control": {"type": "ephemeral"}}]},
            "messages[].content[].cache_control",
        ),
        ({"tool_calls": [{**CALL[0], "index": None}]}, None),
        ({"tool_calls": [{"function": {"name": "look", "arguments": None, "parameters": {"at": "pond"}}}]}, None),
        ({"content": [{"type": "text", "text": A, "image_url": None}]}, None),
    ],
)
def test_every_field_of_calls_and_of_parts_is_used_or_counted(said, unused):
    (found,), reader = read([chat(user(Q), {"role": "assistant", "content": "", **said})], "demonstrations")
    assert dict(reader.unused) == ({} if unused is None else {unused: 1})
    expected = assistant(A) if "content" in said else assistant("", tool_calls=json.dumps(CALL))
    assert found == chat(user(Q), expected)


# -- an answer that stands at two ranks --------------------------------------------------------------------------------


TWO_RANKS = "an answer that has two ranks"


@pytest.mark.parametrize(
    ("row", "made", "dropped"),
    [
        ({"prompt": Q, "responses": ["a", "a", "b", "c"], "ranks": [1, 2, 3, 4]}, [("b", 3), ("c", 4)], {TWO_RANKS: 2}),
        ({"prompt": Q, "responses": ["a", "b", "a", "c", "b"], "ranks": [1, 1, 2, 2, 1]},
         [("b", 1), ("c", 2), ("b", 1)], {TWO_RANKS: 2}),
        ({"prompt": Q, "responses": ["a", "a", "b"], "ranks": [1, 2, 3]}, None, {TWO_RANKS: 1}),
        ({"prompt": Q, "chosen": ["a"], "rejected": ["b", "a"]}, None, {TWO_RANKS: 1}),
        ({"prompt": Q, "chosen": ["a", "d"], "rejected": ["b", "a"]}, [("d", 1), ("b", 2)], {TWO_RANKS: 2}),
        ({"prompt": Q, "generations": ["a", "b", "a", "c"], "ratings": [3, 2, 1, 1]}, [("b", 2), ("c", 3)],
         {TWO_RANKS: 2}),
        ({"prompt": Q, "responses": ["a", "", "a", "b", "c"], "ranks": [1, 2, 3, 4, 5]}, [("b", 4), ("c", 5)],
         {"an empty response": 1, TWO_RANKS: 2}),
        # the same answer at one rank contradicts nothing
        ({"prompt": Q, "responses": ["a", "a", "b"], "ranks": [1, 1, 2]}, [("a", 1), ("a", 1), ("b", 2)], {}),
        ({"prompt": Q, "chosen": "a", "rejected": "a"}, None, {"responses all alike": 1}),
    ],
)  # fmt: skip
def test_an_answer_that_has_two_ranks_is_left_out_and_counted(row, made, dropped):
    found, reader = read([row], "comparisons")
    assert found == ([] if made is None else [ranking(asked(Q), *made)])
    assert dict(reader.dropped) == dropped


# -- what cannot be kept or read is the row's fault --------------------------------------------------------------------


def deep(levels):
    return json.loads("[" * levels + "1" + "]" * levels)


def deep_tree(levels):
    node = {"text": A, "role": "assistant", "replies": []}
    for level in range(levels):
        node = {"text": A, "role": "prompter" if level % 2 else "assistant", "replies": [node]}
    return {"message_tree_id": "t", "prompt": {**node, "role": "prompter"}}


@pytest.mark.parametrize(
    ("record", "row", "message"),
    [
        ("prompts", {"prompt": Q, "meta": deep(900)}, "meta: expected at most 100 lists and objects in each other"),
        ("prompts", {"prompt": Q, "meta": deep(101)}, "meta: expected at most 100 lists and objects in each other"),
        ("prompts", {"prompt": Q, "a\ud800": 1}, "column: expected text that UTF-8 can hold"),
        ("demonstrations", deep_tree(900), "row: expected fewer lists and objects in each other"),
        ("comparisons", {"prompt": Q, "responses": [A, B], "ranks": [1, 10**30]},
         "ranks: expected the places of 2 responses, 1 for the best"),
        ("comparisons", {"prompt": Q, "responses": [A, B], "ranks": [-(10**30), 1]},
         "ranks: expected the places of 2 responses, 1 for the best"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_kept_or_read_is_malformed(record, row, message):
    with pytest.raises(Malformed, match=f"^{message}"):
        read([row], record)


def test_what_is_nested_a_hundred_times_is_kept():
    (found,), _ = read([{"prompt": Q, "meta": deep(100)}], "prompts")
    assert found["meta"] == deep(100)


def test_a_column_that_is_no_unicode_and_not_used_can_be_printed():
    _, reader = read([{"prompt": Q, "completion": A, "a\ud800": 1}], "demonstrations")
    assert "".join(reader.lines()).encode() == b"columns not used: a\\ud800 (1 row)"


@pytest.mark.parametrize(
    "row",
    [
        {"Context": Q, "Continuation": " yes"},
        {" CONTEXT": Q, "completion": " yes"},
        {"Contexts": [Q, Q], "COMPLETIONS": [" yes", " no"], "Labels": [1, 0]},
    ],
)
def test_headers_of_items_match_in_any_spelling(row):
    small = {name.strip().lower(): value for name, value in row.items()}
    made, reader = read([row], "items")
    assert made == read([small], "items")[0]
    assert not reader.unused


@pytest.mark.parametrize("label", [True, "true", "True", " TRUE "])
def test_true_is_one_class_however_a_file_writes_it(label):
    (found,), _ = read([{"sentence": Q, "label": label}], "labelled")
    assert found == {"texts": [Q], "label": "true"}


@pytest.mark.parametrize(
    ("record", "row", "made"),
    [
        ("demonstrations", {"prompt": 4, "completion": A}, chat(user("4"), assistant(A))),
        ("comparisons", {"prompt": 4.5, "chosen": A, "rejected": B}, ranking(asked("4.5"), (A, 1), (B, 2))),
        ("prompts", {"question": 4}, {"prompt": asked("4")}),
        ("demonstrations", {"instruction": Q, "input": 4, "output": A}, chat(user(f"{Q}\n\n4"), assistant(A))),
    ],
)
def test_a_number_is_text_wherever_it_is_asked_or_answered(record, row, made):
    found, reader = read([row], record)
    assert found == [made]
    assert not reader.unused


@pytest.mark.parametrize(
    ("record", "row", "message"),
    [
        ("demonstrations", {"messages": {"role": ["user", "assistant"], "content": [Q, A]}},
         "messages: expected a list of messages, got one object of lists; write an object for each message"),
        ("comparisons", {"prompt": Q, "chosen": {"from": ["gpt"], "value": [A]}, "rejected": B},
         "chosen: expected a list of messages, got one object of lists; write an object for each message"),
        ("comparisons", {"prompt": Q, "chosen": [A], "rejected": B},
         "rejected: expected a list of answers, as chosen is, got text; write it as a list of one"),
        ("comparisons", {"prompt": Q, "chosen": A, "rejected": [A, B]},
         "chosen: expected a list of answers, as rejected is, got text; write it as a list of one"),
        ("demonstrations", {"prompt": float("nan"), "completion": A}, "prompt: expected text or a finite number"),
    ],
)  # fmt: skip
def test_an_error_says_how_to_write_what_is_nearly_right(record, row, message):
    with pytest.raises(Malformed, match=f"^{re.escape(message)}"):
        read([row], record)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        (f"\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: {Q}", HH_PROMPT),
        (f"\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: {Q}\n", HH_PROMPT),
        (HH, HH_PROMPT),
        (f"\n\nHuman: {Q}", asked(Q)),
        (f"{Q}\n\nHuman: who?", asked(f"{Q}\n\nHuman: who?")),
    ],
)
def test_a_transcript_may_end_with_either_speaker(text, made):
    (found,), _ = read([{"prompt": text}], "prompts")
    assert found == {"prompt": made}


def test_a_transcript_that_is_answered_is_no_prompt():
    found, reader = read([{"prompt": f"\n\nHuman: {Q}\n\nAssistant: {A}"}], "prompts")
    assert found == []
    assert dict(reader.dropped) == {"a prompt that ends with an answer": 1}
