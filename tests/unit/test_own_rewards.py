"""align's own rewards: what they give, the columns that they read, and mistakes in their references."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from align.errors import ConfigError
from align.runtime.user_functions import find_source, load_function, short_names, source_digests
from align.verifiers.episodes import Episodes
from align.verifiers.functions import call_functions, load_functions
from align.verifiers.numbers import answer_part, final_number
from align.verifiers.rewards import PACKAGES, VERSIONS

needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    for name in ("jsonschema", "langdetect", "rouge_score", "sacrebleu")
}


def scores(called, texts, ids=None, **columns):
    """What a reward gives when PPO calls it; the columns are lists."""
    rows = [
        {"prompt": [{"role": "user", "content": "?"}], **{name: values[i] for name, values in columns.items()}}
        for i in range(len(texts))
    ]
    (function,) = load_functions([called])
    episodes = Episodes(rows, [[1]] * len(texts), ids or [[2]] * len(texts), texts)
    return call_functions([function], episodes)[function.name]


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 apples and 3 pears are 5 fruits.", 5),
        ("He earns $1,234.50.", 1234.5),
        ("= 12\n#### 72,000 km (not 5)", 72000),
        ("#### -3", -3),
        ("####-1/4", -0.25),
        ("so \\boxed{42}, not 7", 42),
        ("from 5-10 pages", 10),
        ("10 - 3 = 7", 7),
        ("It is \u22123 \u00b0C", -3),
        ("1.5e3 m", 1500),
        ("half is .5", 0.5),
        ("1,2,3", 3),
        ("version v2", None),
        ("9 #### unknown, then 3", 3),
        ("none", None),
        ("Both:\n- 12", 12),  # a bullet of a list is no sign
        ("-$ 5", -5),
        ("\\boxed{\\frac{3}{4}}", 0.75),
        ("-\\dfrac{1}{2}", -0.5),
        ("1e999", None),
        ("7, then " + "9" * 5000, None),  # Python reads no whole number of more than 4,300 digits
        ("1/" + "9" * 5000, None),
        ("1e" + "9" * 5000, None),
    ],
)
def test_the_number_of_an_answer(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize("seed", range(3))
def test_numbers_that_python_writes_are_read_back(seed):
    rng = random.Random(seed)
    for _ in range(200):
        number = rng.choice([rng.randint(-(10**9), 10**9), round(rng.uniform(-1e6, 1e6), 3)])
        for written in (f"{number}", f"{number:,}", f"${number:,}" if number >= 0 else f"-${-number:,}"):
            assert float(final_number(f"It costs 7 or {written} dollars.")) == number, written


def test_numeric_reads_gsm8k_and_tags():
    texts = ["<think>3 or 4</think><answer>4</answer> 9", "4.0", "four", "3"]
    assert scores("numeric", texts, answer=["2+2 = <<2+2=4>>4\n#### 4"] * 4) == [1.0, 1.0, 0.0, 0.0]
    assert scores("numeric", ["5", "5", "5"], solution=[5, 5.0, None]) == [1.0, 1.0, None]
    assert scores("numeric(tolerance=0.1)", ["3.14", "3.3"], solution=["3.2"] * 2) == [1.0, 1.0]
    assert scores("numeric(column='gold')", ["1"], gold=["1"], solution=["2"]) == [1.0]


def test_numeric_takes_several_solutions_and_a_tolerance_as_written():
    texts = ["3", "4", "5"]
    assert scores("numeric", texts, solution=[["3", "4"]] * 3) == [1.0, 1.0, 0.0]
    assert scores("numeric", texts, solution=["[3, 4]"] * 3) == [1.0, 1.0, 0.0]
    for written in ("0.1", "0.3", "0.7", "1e-3"):  # as floats, 0.3 and 0.7 are a little less
        assert scores(f"numeric(tolerance={written})", [written], solution=["0"]) == [1.0], written
    assert scores("numeric(tolerance=None)", ["1"], solution=["1"]) == [1.0]


@pytest.mark.parametrize("name", ["numeric", "exact_match", "fuzzy_match"])
def test_a_row_with_an_empty_list_of_solutions_has_no_score(name):
    assert scores(name, ["5", "5", "5"], solution=[[], "[]", "5"]) == [None, None, 1.0]


def test_a_solution_without_a_number_is_a_mistake_of_the_data():
    with pytest.raises(ConfigError, match=r"^numeric: expected a number in the solution, got 'five'$"):
        scores("numeric", ["5"], solution=["five"])


def test_several_answers_in_tags_are_not_one():
    assert answer_part("<answer>1</answer> <answer>2</answer>") == "<answer>1</answer> <answer>2</answer>"
    assert answer_part("x<answer> 1\n</answer>y") == "1"


# -- texts ---------------------------------------------------------------------------------------------------------


def test_exact_and_fuzzy_match():
    solutions = ["The cat", json.dumps(["a", "The  cat"]), "a dog"]
    assert scores("exact_match", ["The\ncat", "The cat", "A dog"], solution=solutions) == [1.0, 1.0, 0.0]
    assert scores("exact_match(ignore_case=True)", ["A Dog"], solution=["a dog"]) == [1.0]
    # difflib's definition: 2 * matching letters / all letters; "ab" against "abcd" is 2 * 2 / 6.
    assert scores("fuzzy_match", ["AB", "ab"], solution=["abcd", ["x", "ab"]]) == [pytest.approx(2 / 3), 1.0]


@needs["sacrebleu"]
def test_bleu_and_chrf_are_sacrebleus():
    import sacrebleu

    text, refs = "the cat sat on a mat", ["the cat sat on the mat", "a cat on the mat"]
    given = {"reference": [json.dumps(refs)]}
    assert scores("bleu", [text], **given) == [sacrebleu.sentence_bleu(text, refs).score / 100]
    assert scores("chrf", [text], **given) == [sacrebleu.sentence_chrf(text, refs).score / 100]
    assert scores("bleu", [refs[0]], **given) == [pytest.approx(1.0)]


@needs["rouge_score"]
def test_rouge_does_not_close_the_standard_error_of_its_caller():
    program = """
import io, logging.config, sys
from align.runtime.user_functions import load_function
own = sys.stderr = io.StringIO()
load_function("rouge")(prompts=[""], completions=[[{"role": "assistant", "content": "a"}]], solution=["a"])
sys.stderr = sys.__stderr__
logging.config.dictConfig({"version": 1})  # as Hydra does for each command
own.write("still open")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@needs["rouge_score"]
def test_rouge_is_by_hand():
    # 5 of 6 words are common in order, so precision and recall are 5/6; bigrams: 3 of 5.
    text, reference = "the cat sat on a mat", "the cat sat on the mat"
    assert scores("rouge", [text], solution=[reference]) == [pytest.approx(5 / 6)]
    assert scores("rouge(n=2)", [text], solution=[reference]) == [pytest.approx(3 / 5)]
    assert scores("rouge", [text], solution=[["no", reference]]) == [pytest.approx(5 / 6)]


# -- forms ---------------------------------------------------------------------------------------------------------


@needs["jsonschema"]
def test_json_schema():
    schema = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}
    texts = ['{"age": 3}', '```json\n{"age": 3}\n```', '{"age": "3"}', "age: 3"]
    assert scores("json_schema", texts, schema=[json.dumps(schema)] * 4) == [1.0, 1.0, 0.0, 0.0]
    assert scores(f"json_schema(schema={schema})", texts[:1]) == [1.0]
    with pytest.raises(ConfigError, match=r"json_schema: schema: expected a JSON schema, got .*'thing'"):
        scores("json_schema", ["1"], schema=['{"type": "thing"}'])
    own = {"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a"}
    assert scores("json_schema", ["1", '"1"'], schema=[own, own]) == [1.0, 0.0]
    for elsewhere in ("#/$defs/none", "http://127.0.0.1:9/schema.json"):
        with pytest.raises(ConfigError, match=r"schema: expected a \$ref to a part of the schema itself, got '.*'"):
            scores("json_schema", ["1"], schema=[{"$ref": elsewhere}])


def test_within_length():
    assert scores("within_length(max_words=2)", ["a b", "a b c"]) == [1.0, 0.0]
    assert scores("within_length(min_characters=3)", ["abc", "ab"]) == [1.0, 0.0]
    assert scores("within_length(max_tokens=2)", ["a", "b"], ids=[[1, 2], [1, 2, 3]]) == [1.0, 0.0]
    rows = {"min_words": [2, None, None], "max_words": [3, 1, None]}
    assert scores("within_length", ["a b", "a b", "a"], **rows) == [1.0, 0.0, None]
    with pytest.raises(ConfigError, match=r"min_words: expected at most max_words, 2, got 3$"):
        scores("within_length(min_words=3, max_words=2)", ["a"])
    with pytest.raises(ConfigError, match=r"^within_length: max_words: expected a number, 0 or more, got 'five'$"):
        scores("within_length", ["a"], max_words=["five"])


@needs["langdetect"]
def test_language():
    german = "Der alte Bahnhof liegt am Rand der kleinen Stadt."
    assert scores("language", [german, german], language=["de", "en"]) == [1.0, 0.0]
    assert scores("language(code='de')", [german, "123"]) == [1.0, 0.0]
    with pytest.raises(ConfigError, match=r"code: expected one of af, .*, zh-tw, got 'German'$"):
        find_source("language(code='German')")
    with pytest.raises(ConfigError, match=r"language: expected one of af, .*, got 'zh'"):
        scores("language", [german], language=["zh"])


def test_regex():
    assert scores("regex", ["a1", "b"], pattern=[r"\d", r"\Aa"]) == [1.0, 0.0]
    with pytest.raises(ConfigError, match=r"^regex: pattern: expected a regular expression, got '\('"):
        scores("regex", ["a"], pattern=["("])


def test_format_tags():
    texts = [
        "<think>a</think>\n<answer>b</answer>\n",
        "<think>a</think><answer></answer>",
        "<answer>b</answer><think>a</think>",
        "<think>a</think><answer>b</answer> end",
        "<think>a<think></think><answer>b</answer>",
    ]
    assert scores("format_tags", texts) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert scores("format_tags(tags=['plan'])", ["<plan>a</plan>"]) == [1.0]


# -- instructions --------------------------------------------------------------------------------------------------


def test_ifeval_is_the_fraction_of_the_instructions():
    columns = {
        "instruction_id_list": [json.dumps(["punctuation:no_comma", "startend:quotation"])] * 3,
        "kwargs": ["[{}, {}]"] * 3,
    }
    texts = ['"Tea"', "Tea", 'Sure, this:\n"Tea"']
    assert scores("ifeval", texts, **columns) == [1.0, 0.5, 0.0]
    assert scores("ifeval(all_or_nothing=True)", texts, **columns) == [1.0, 0.0, 0.0]
    assert scores("ifeval(loose=True)", texts, **columns) == [1.0, 0.5, 1.0]


def test_rows_without_instructions_do_not_apply_and_mistakes_are_named():
    assert scores("ifeval", ["a"], instruction_id_list=[None], kwargs=[None]) == [None]
    with pytest.raises(ConfigError, match=r"^ifeval: the column instruction_id_list\[0\]: expected one of IFEval's"):
        scores("ifeval", ["a"], instruction_id_list=[["x"]], kwargs=[[{}]])
    with pytest.raises(ConfigError, match=r"missing a required argument: 'instruction_id_list'"):
        scores("ifeval", ["a"], solution=["b"])


def test_a_missing_langdetect_is_said_in_one_line(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "langdetect" else found(name))
    with pytest.raises(ConfigError, match=r"^language: it needs the package langdetect: pip install langdetect, or "):
        find_source("language")
    columns = {"instruction_id_list": [["change_case:english_capital"]], "kwargs": [[{}]]}
    with pytest.raises(ConfigError, match=r"^ifeval: language detection needs the package langdetect: pip install"):
        scores("ifeval", ["TEA"], **columns)


# -- references ----------------------------------------------------------------------------------------------------


def test_every_reward_is_made_by_its_name_alone():
    for name in VERSIONS:
        if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]) is not None:
            assert callable(load_function(name)), name


def test_the_key_has_the_version_and_not_the_source(monkeypatch):
    assert source_digests("numeric(tolerance=1)") == {"align.verifiers.rewards": f"numeric {VERSIONS['numeric']}"}
    before = source_digests("numeric")
    monkeypatch.setitem(VERSIONS, "numeric", 99)
    assert source_digests("numeric") != before
    assert find_source("numeric").name == "rewards.py"


def test_the_key_has_the_version_of_the_package_that_computes(monkeypatch):
    before = source_digests("bleu")
    assert before["sacrebleu"] == metadata.version("sacrebleu")
    monkeypatch.setattr(metadata, "version", lambda _: "99")
    assert source_digests("bleu") != before


def test_names_in_the_log_are_short():
    names = short_names(["numeric", "numeric(tolerance=1)", "bleu", "mine:bleu"])
    assert names["numeric"] == "align.verifiers.rewards.numeric"
    assert names["mine:bleu"] == "mine.bleu"
    assert short_names(["within_length(max_words=2)"]) == {"within_length(max_words=2)": "within_length"}


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("numerc", r"^expected MODULE:FUNCTION .*, got 'numerc', .* own rewards either: ifeval, .* mean numeric\?\)$"),
        ("my.rewards", r"^expected MODULE:FUNCTION or .*, got 'my\.rewards'$"),
        ("numeric(tolerance=-1)", r"^numeric\(tolerance=-1\): tolerance: expected a number, 0 or more, got -1$"),
        ("numeric(tol=1)", r"unexpected keyword argument 'tol'"),
        ("rouge(n=0)", r"n: expected a whole number from 1 to 9|needs the package rouge-score"),
        ("regex(pattern='[')", r"pattern: expected a regular expression, got '\['"),
        ("format_tags(tags=[])", r"tags: expected a list of names, got \[\]"),
        ("exact_match(column=3)", r"column: expected the name of a column, got 3"),
    ],
)
def test_mistakes_in_a_reference_are_found_by_the_plan(reference, said):
    with pytest.raises(ConfigError, match=said):
        source_digests(reference)


def test_a_missing_column_is_named():
    with pytest.raises(ConfigError, match=r"^numeric: the prompts' rows need a column solution or answer or reference"):
        scores("numeric", ["5"], gold=["5"])
    with pytest.raises(ConfigError, match=r"^regex: the prompts' rows need a column pattern$"):
        scores("regex", ["5"])


def test_plain_text_completions_work_too():
    assert load_function("numeric")(completions=["it is 5"], solution=["5"]) == [1.0]


def test_every_reward_is_in_the_docs():
    page = (Path(__file__).parents[2] / "docs/reference/rewards.md").read_text()
    assert [name for name in VERSIONS if f"| `{name}" not in page] == []
