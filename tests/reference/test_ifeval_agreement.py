"""Our verdicts beside those of lm-eval, another implementation of IFEval: near misses, and published responses.

lm-eval's checkers need langdetect, immutabledict and nltk's data `punkt_tab`. A package that is missing is replaced by
an empty one, and the kinds that need it are left out.
"""

from __future__ import annotations

import collections
import gzip
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import pytest
from instruction_cases import CASES

from align.verifiers.counting import count_sentences
from align.verifiers.ifeval import NEEDS_LANGUAGE, read_instructions, verdicts

pytestmark = pytest.mark.slow  # lm-eval takes seconds to import

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("ALIGN_DATA_ROOT", ROOT.parent / "shared/data")) / "ifeval"
NEEDS_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
# lm-eval draws a letter at random if the data asks for a character that is none.
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def lm_eval():
    """lm-eval's functions, and the kinds that cannot be checked here."""
    pytest.importorskip("lm_eval")
    nltk = pytest.importorskip("nltk")
    unknown, stand_ins = set(), {}
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        unknown |= NEEDS_PUNKT
    for name, kinds in (("langdetect", NEEDS_LANGUAGE), ("immutabledict", ())):
        if importlib.util.find_spec(name) is None:
            unknown |= {*kinds}
            stand_ins[name] = types.ModuleType(name)
    if "immutabledict" in stand_ins:
        stand_ins["immutabledict"].immutabledict = dict
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nltk, "download", lambda *names: False)
        for name, module in stand_ins.items():
            patched.setitem(sys.modules, name, module)
        from lm_eval.tasks.ifeval import utils
    if "langdetect" not in stand_ins:
        import langdetect

        langdetect.DetectorFactory.seed = 0
    return utils, unknown


def theirs(utils, kinds, arguments, response):
    asked = utils.InputExample(0, kinds, "", arguments)
    return tuple(
        function(asked, response).follow_instruction_list
        for function in (utils.test_instruction_following_strict, utils.test_instruction_following_loose)
    )


def test_near_misses(lm_eval):
    utils, unknown = lm_eval
    compared = 0
    for kind, arguments, right, wrong in CASES:
        if kind in unknown:
            continue
        for text in (*right, *wrong):
            compared += 1
            ours = verdicts(read_instructions([kind], [arguments]), text)
            assert theirs(utils, [kind], [arguments], text) == ours, (kind, arguments, text)
    assert compared >= 100


def rows():
    if not (FOLDER / "input_data.jsonl").is_file():
        pytest.skip("the local copies of the real data are not here ($ALIGN_DATA_ROOT)")
    return [json.loads(line) for line in (FOLDER / "input_data.jsonl").read_text().strip().split("\n")]


def responses():
    with gzip.open(FOLDER / "gpt4_responses.jsonl.gz", "rt") as file:
        return {row["prompt"]: row["response"] for row in map(json.loads, file)}


def test_published_responses(lm_eval):
    utils, unknown = lm_eval
    published, every = responses() if rows() else {}, 0
    differ = collections.Counter()
    for row in rows():
        own = list(zip(row["instruction_id_list"], row["kwargs"], strict=True))
        own = [(k, a) for k, a in own if k not in unknown and a.get("letter", "a") in LETTERS]
        if own and row["prompt"] in published:  # one prompt has another spelling there
            kinds, arguments = map(list, zip(*own, strict=True))
            ours = verdicts(read_instructions(kinds, arguments), published[row["prompt"]])
            other = theirs(utils, kinds, arguments, published[row["prompt"]])
            for one, two in zip(ours, other, strict=True):
                every += len(kinds)
                differ.update(k for k, a, b in zip(kinds, one, two, strict=True) if a != b)
    assert every > 1000
    # Sentences are counted without a trained model; every other kind agrees entirely.
    assert {*differ} <= {"length_constraints:number_sentences"}
    assert differ.total() / every <= 0.005


def test_sentences_of_published_responses(lm_eval):
    _, unknown = lm_eval
    if unknown & NEEDS_PUNKT:
        pytest.skip("nltk has no punkt_tab here")
    import nltk

    rows()
    texts = [*responses().values()]
    same = sum(len(nltk.sent_tokenize(text)) == count_sentences(text) for text in texts)
    assert same / len(texts) >= 0.95
