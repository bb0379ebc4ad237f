"""IFEval's accuracies beside hand calculations, lm-eval's definition, and identities of their intervals."""

from __future__ import annotations

import random

import pytest

from align.errors import ConfigError
from align.evals.instructions import instruction_metrics, instructions_of, verdict_rows
from align.verifiers import language
from align.verifiers.ifeval import Instruction, Verdicts

COMMA, QUOTE = Instruction("punctuation:no_comma", {}), Instruction("startend:quotation", {})


def measured(instructions, *verdicts, num_bootstrap=200):
    return instruction_metrics("t/", instructions, verdicts, num_bootstrap, seed=0)


def test_accuracies_are_those_of_the_paper():
    found = measured(
        [[COMMA, QUOTE], [COMMA], [QUOTE]],
        [Verdicts([True, False], [True, True]), Verdicts([True], [True]), Verdicts([False], [False])],
    )
    expected = {
        "items": 3,
        "prompt_strict": 1 / 3,
        "prompt_loose": 2 / 3,
        "instruction_strict": 2 / 4,
        "instruction_loose": 3 / 4,
        "no_comma/items": 2,
        "no_comma/strict": 1,
        "quotation/items": 2,
        "quotation/strict": 0,
        "quotation/loose": 1 / 2,
    }
    assert {name: found[f"t/{name}"] for name in expected} == pytest.approx(expected)
    for name in ("prompt_strict", "instruction_loose", "quotation/loose"):
        assert found[f"t/{name}_low"] <= found[f"t/{name}"] <= found[f"t/{name}_high"]
    assert found["t/prompt_strict_few"] == found["t/instruction_strict_few"] == 3


def drawn(count, size, seed):
    rng = random.Random(seed)
    return [Verdicts(*([rng.random() < p for _ in range(size)] for p in (0.4, 0.7))) for _ in range(count)]


def test_instructions_of_one_prompt_are_drawn_together():
    """Three verdicts that are always alike say no more than one: the interval is that of one."""
    alone = drawn(60, 1, seed=1)
    three = [Verdicts(own.strict * 3, own.loose * 3) for own in alone]
    one, same = measured([[COMMA]] * 60, alone), measured([[COMMA] * 3] * 60, three)
    for name in ("instruction_strict", "instruction_loose"):
        for end in ("", "_low", "_high"):
            assert one[f"t/{name}{end}"] == pytest.approx(same[f"t/{name}{end}"], abs=1e-12)
            assert one[f"t/{name}{end}"] == pytest.approx(one[f"t/{name.replace('instruction', 'prompt')}{end}"])


def test_gains_are_paired():
    model, base = drawn(50, 2, seed=2), drawn(50, 2, seed=3)
    asked = [[COMMA, QUOTE]] * 50
    both, same = measured(asked, model, base), measured(asked, model, model)
    for name in ("prompt_strict", "instruction_strict", "no_comma/loose"):
        head, _, last = f"t/{name}".rpartition("/")
        gain = both[f"{head}/gain/{last}"]
        assert gain == pytest.approx(both[f"{head}/{last}"] - both[f"{head}/baseline/{last}"])
        assert both[f"{head}/gain/{last}_low"] < gain < both[f"{head}/gain/{last}_high"]
        assert [same[f"{head}/gain/{last}{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]


def test_the_table_says_what_was_missed():
    (row,) = verdict_rows(["Write."], [[COMMA, QUOTE]], {"model": ["a"]}, [[Verdicts([True, False], [True, True])]])
    assert row == {
        "prompt": "Write.",
        "instructions": "punctuation:no_comma, startend:quotation",
        "model": "a",
        "model_missed": "startend:quotation",
    }


def test_rows_without_the_columns_are_refused():
    good = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    assert instructions_of([good]) == [[COMMA]]
    with pytest.raises(
        ConfigError, match=r"^inputs\.prompts: row 1: instruction_id_list: expected a list .* got None$"
    ):
        instructions_of([good, {"prompt": []}])


def test_a_missing_langdetect_is_said_before_anything_is_sampled(monkeypatch):
    monkeypatch.setattr(language, "is_installed", lambda: False)
    rows = [{"instruction_id_list": [kind], "kwargs": [{}]} for kind in (COMMA.kind, "change_case:english_capital")]
    assert instructions_of(rows[:1]) == [[COMMA]]
    with pytest.raises(ConfigError, match=r"^tasks: ifeval: 1 of 2 instructions .* needs the package langdetect: pip"):
        instructions_of(rows)
