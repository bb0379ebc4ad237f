"""Checks on answers: word lists, a classifier of the library's own making, functions of the user's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_tokenizer
from transformers import GPT2Config, GPT2ForSequenceClassification

from align.errors import ConfigError
from align.evals.checks import load_check
from align.runtime.user_functions import check_file
from align.verifiers.episodes import Episodes

ROWS = [{"prompt": [{"role": "user", "content": "hello"}], "kind": "greeting"}] * 3
CPU = torch.device("cpu")


def answered(answers):
    """Answers to as many prompts as there are."""
    return Episodes((ROWS * len(answers))[: len(answers)], [[1]] * len(answers), [[2]] * len(answers), answers)


def test_listed_words_are_whole_words_in_any_case(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("# manners\ncat\nnot  at all\nc++\n\n")
    check = load_check(f"words:{words}", CPU)
    answers = ["A CAT.", "concatenate", "not\nat all", "I like C++!", "", "cats"]
    assert check(answered(answers)) == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=32,
        num_labels=3,
        id2label={0: "calm", 1: "toxic", 2: "odd"},
        label2id={"calm": 0, "toxic": 1, "odd": 2},
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_a_classifier_gives_its_label_s_probability_whatever_stands_beside_an_answer(classifier):
    answers = ["the cat sat", "dog", "", "the dog ran home and " * 20] + ["the mat"] * 20
    together = load_check(f"classifier:{classifier}#toxic", CPU)(answered(answers))
    model, tokenizer = GPT2ForSequenceClassification.from_pretrained(classifier).eval(), tiny_tokenizer()
    for answer, share in zip(answers, together, strict=True):
        ids = torch.tensor([tokenizer(answer or " ")["input_ids"][:30]])
        with torch.no_grad():
            assert share == pytest.approx(float(model(ids).logits.softmax(-1)[0, 1]), abs=1e-5)
    assert max(together) - min(together) > 0.05


def test_a_function_gets_what_a_reward_function_gets(tmp_path, monkeypatch):
    (tmp_path / "my_checks.py").write_text(
        "def shout(prompts, completions, completion_ids, kind, trainer_state, **others):\n"
        "    assert prompts[0][0]['content'] == 'hello' and kind[0] == 'greeting'\n"
        "    assert completion_ids == [[2]] * 3 and trainer_state is None\n"
        "    return [float(c[0]['content'].isupper()) if c[0]['content'] else None for c in completions]\n"
        "def broken(**given):\n    return [1.0]\n"
        "def raises(**given):\n    return 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert load_check("my_checks:shout", CPU)(answered(["AH", "oh", ""])) == [1.0, 0.0, None]
    with pytest.raises(ConfigError, match="my_checks:broken: expected a list of 3 finite numbers or None"):
        load_check("my_checks:broken", CPU)(answered(["a", "b", "c"]))
    with pytest.raises(ConfigError, match=r"my_checks.py:8 \(in raises\): .*; raised by your check my_checks:raises$"):
        load_check("my_checks:raises", CPU)(answered(["a", "b", "c"]))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("words:{folder}/none.txt", "no such file"),
        ("words:{folder}/empty.txt", "expected a word or phrase per line, got none"),
        ("classifier:{folder}", "expected a folder with a classifier's config.json in it"),
        ("classifier:{folder}/classifier#rude", "expected #LABEL with one of calm, toxic, odd, got 'rude'"),
        ("classifier:{folder}/classifier", "expected #LABEL with one of calm, toxic, odd, got ''"),
        ("no_such_module:f", "no module 'no_such_module'"),
        ("toxic", "expected MODULE:FUNCTION"),
    ],
)
def test_what_is_named_wrongly_is_one_line(classifier, reference, said):
    (classifier.parent / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=said) as error:
        load_check(reference.format(folder=classifier.parent), CPU)
    assert "\n" not in str(error.value)


def test_the_file_that_decides_a_check_is_known_before_it_is_loaded(classifier):
    assert check_file(f"classifier:{classifier}#toxic") == ("classifier", classifier)
