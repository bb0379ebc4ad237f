"""What a response is worth: parts and their sum, reward models, and functions of the user's own."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import random
import sys

import numpy as np
import pytest
import torch

from align.configs import ModelConfig
from align.errors import ConfigError
from align.functions import find_source, load_function
from align.models.build import build_model
from align.models.heads import scalar_from_lm
from align.models.load import save_model
from align.models.packed import pack_pairs, response_scores
from align.rollout.rewards import Episodes, RewardModel, RewardTerms, call_function, make_episodes
from align.text.chat import encode_dialogues
from align.text.packing import pack
from align.text.tokenizers import train_tokenizer

CPU = torch.device("cpu")
NOTHING = {
    "ensemble_std_coef": 0.0,
    "functions": {},
    "length_coef": 0.0,
    "missing_eos_penalty": 0.0,
    "missing_eos_reward": None,
    "reward_clip": None,
}
ONE = torch.tensor([[1.0, -2.0, 5.0]])
THREE = torch.tensor([[1.0, -2.0, 5.0], [3.0, -2.0, 6.0], [8.0, -2.0, 10.0]])
RULES = {"m:short": [1.0, 0.0, 3.0], "m:polite": [10.0, 20.0, 30.0]}
LENGTHS = torch.tensor([4, 7, 2])
ENDED = torch.tensor([True, False, True])


def combined(scores=ONE, rules=None, lengths=LENGTHS, ended=ENDED, **knobs):
    rules = {name: torch.as_tensor(values) for name, values in (rules or {}).items()}
    return RewardTerms(**{**NOTHING, **knobs}).combine(scores, rules, lengths, ended)


def close(got: torch.Tensor, expected: list[float]) -> None:
    assert got.tolist() == pytest.approx(expected, rel=1e-6)


# -- the sum -------------------------------------------------------------------------------------------------------


def test_with_nothing_else_the_reward_is_the_model_s_score():
    got = combined()
    assert got.total.tolist() == [1.0, -2.0, 5.0]
    assert {name: part.tolist() for name, part in got.parts.items()} == {
        "model": [1.0, -2.0, 5.0],
        "length": [4.0, 7.0, 2.0],
        "missing_eos": [0.0, 1.0, 0.0],
    }


def test_an_ensemble_is_its_mean_less_so_many_population_deviations():
    deviations = [math.sqrt((9 + 1 + 16) / 3), 0.0, math.sqrt((4 + 1 + 9) / 3)]
    got = combined(THREE, ensemble_std_coef=0.5)
    close(got.total, [4 - deviations[0] / 2, -2.0, 7 - deviations[2] / 2])
    close(got.parts["model"], [4.0, -2.0, 7.0])
    close(got.parts["disagreement"], deviations)


def test_the_disagreement_is_told_where_it_costs_nothing():
    got = combined(THREE)
    close(got.total, [4.0, -2.0, 7.0])
    assert (got.parts["disagreement"] > 0).tolist() == [True, False, True]


def test_functions_are_weighed_in_the_sum_and_told_as_they_came():
    got = combined(rules=RULES, functions={"m:short": 2.0, "m:polite": -0.5})
    close(got.total, [1 + 2 - 5, -2 + 0 - 10, 5 + 6 - 15])
    assert got.parts["model"].tolist() == [1.0, -2.0, 5.0]
    assert {name: got.parts[name].tolist() for name in RULES} == RULES


def test_a_function_of_weight_0_is_watched_alone():
    got = combined(rules=RULES, functions={"m:short": 0.0, "m:polite": 0.0})
    assert got.total.tolist() == [1.0, -2.0, 5.0]
    assert got.parts["m:polite"].tolist() == [10.0, 20.0, 30.0]


def test_each_token_costs_or_earns_length_coef():
    got = combined(length_coef=-0.25)
    close(got.total, [1 - 1, -2 - 1.75, 5 - 0.5])
    assert got.parts["length"].tolist() == [4.0, 7.0, 2.0]


def test_a_response_that_was_cut_off_loses_the_penalty():
    got = combined(missing_eos_penalty=1.5)
    assert got.total.tolist() == [1.0, -3.5, 5.0]
    assert got.parts["missing_eos"].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("reward", [-1.0, 0.0])
def test_or_its_whole_reward_is_replaced(reward):
    got = combined(rules=RULES, functions={"m:short": 1.0, "m:polite": 1.0}, length_coef=1.0, missing_eos_reward=reward)
    assert got.total.tolist() == [16.0, reward, 40.0]
    assert got.parts["model"].tolist() == [1.0, -2.0, 5.0]


def test_the_sum_is_clipped_at_both_sides_and_last():
    got = combined(rules=RULES, functions={"m:short": -1.0}, reward_clip=1.5)
    assert got.total.tolist() == [0.0, -1.5, 1.5]
    assert got.parts["model"].tolist() == [1.0, -2.0, 5.0]
    assert combined(missing_eos_reward=-9.0, reward_clip=3.0).total.tolist() == [1.0, -3.0, 3.0]


@pytest.mark.parametrize("models", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_everything_at_once_by_hand(seed, models):
    rng = random.Random(seed)
    count = 9
    scores = [[rng.gauss(0, 2) for _ in range(count)] for _ in range(models)]
    short, lengths = [rng.gauss(0, 1) for _ in range(count)], [rng.randint(1, 20) for _ in range(count)]
    ended = [rng.random() < 0.6 for _ in range(count)]
    expected = []
    for i, each in enumerate(zip(*scores, strict=True)):
        mean = sum(each) / models
        std = math.sqrt(sum((x - mean) ** 2 for x in each) / models)
        total = mean - 0.7 * std + 1.3 * short[i] + 0.1 * lengths[i] - (0.0 if ended[i] else 0.9)
        expected.append(min(max(total, -2.5), 2.5))
    got = combined(
        torch.tensor(scores, dtype=torch.float64),
        {"m:short": torch.tensor(short, dtype=torch.float64)},
        torch.tensor(lengths),
        torch.tensor(ended),
        ensemble_std_coef=0.7,
        functions={"m:short": 1.3},
        length_coef=0.1,
        missing_eos_penalty=0.9,
        reward_clip=2.5,
    )
    close(got.total, expected)
    assert len({abs(x) == 2.5 for x in expected}) == 2


# -- the user's functions ------------------------------------------------------------------------------------------

ASKED = [[{"role": "user", "content": text}] for text in ("one?", "two?", "three?")]
ROWS = [
    {"prompt": ASKED[0], "answer": 1, "source": "a"},
    {"prompt": ASKED[1], "answer": 2, "source": "b"},
    {"prompt": ASKED[2], "answer": 3},
]


def episodes_of(rows, texts=("x", "yy", "zzz")) -> Episodes:
    return Episodes(rows, [[1]] * len(rows), [[2]] * len(rows), texts)


def test_a_function_is_called_once_with_prompts_completions_and_columns():
    calls = []

    def function(prompts, completions, **columns):
        calls.append((prompts, completions, columns))
        return [1, 2.5, -3]

    got = call_function("m:f", function, episodes_of(ROWS))
    assert got == [1.0, 2.5, -3.0]
    assert [type(x) for x in got] == [float] * 3
    assert calls == [(ASKED, ["x", "yy", "zzz"], {"answer": [1, 2, 3], "source": ["a", "b", None]})]


def test_a_function_may_name_the_columns_that_it_reads():
    def function(prompts, completions, answer, **others):
        return [a * 10.0 + len(c) for a, c in zip(answer, completions, strict=True)]

    assert call_function("m:f", function, episodes_of(ROWS)) == [11.0, 22.0, 33.0]


def test_an_array_or_an_iterator_is_as_good_as_a_list():
    assert call_function("m:f", lambda **_: np.array([0.5, 1.5, 2.5], dtype=np.float32), episodes_of(ROWS)) == [
        0.5,
        1.5,
        2.5,
    ]
    assert call_function("m:f", lambda completions, **_: map(len, completions), episodes_of(ROWS)) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [1.0, 2.0],
        [1.0] * 4,
        [1.0, math.nan, 1.0],
        [1.0, math.inf, 1.0],
        [1.0, "2", 1.0],
        [1.0, None, 1.0],
        [[1.0], [2.0], [3.0]],
        "123",
        None,
        1.0,
        [10**400, 1.0, 1.0],
    ],
)
def test_anything_but_a_finite_number_an_episode_is_refused(answer):
    with pytest.raises(ConfigError, match=r"^m:f: expected 3 finite numbers, got "):
        call_function("m:f", lambda prompts, completions, **columns: answer, episodes_of(ROWS))


def test_a_refusal_shows_the_beginning_of_the_answer():
    with pytest.raises(ConfigError, match="got ") as caught:
        call_function("m:f", lambda prompts, completions, **columns: ["long"] * 1000, episodes_of(ROWS))
    shown = str(caught.value).partition("got ")[2]
    assert shown == str(["long"] * 1000)[:80]


def test_a_function_is_called_by_keyword():
    def swapped(completions, prompts, **columns):
        return [float(len(text)) for text in completions]

    assert call_function("m:f", swapped, episodes_of(ROWS)) == [float(len(text)) for text in episodes_of(ROWS).texts]


def test_what_a_function_raises_is_not_hidden():
    def function(prompts, completions, **columns):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        call_function("m:f", function, episodes_of(ROWS))


# -- reward models -------------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}{{ eos_token }}"
TEXTS = ["the cat sat", "a dog", "the dog ran home and the cat sat on the mat", "home", "the mat and the cat"]
ROWS_OF_TEXT = [
    {"prompt": [{"role": "user", "content": text}]} for text in ("who sat?", "who ran home?", "what?", "a cat", "where")
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat and the dog ran home"] * 3, 280)


@pytest.fixture(scope="module")
def other_tokenizer():
    other = train_tokenizer(["who ran home? a cat or a dog; where is the mat of the cat"] * 3, 290)
    other.chat_template = TEMPLATE
    return other


def scalar(tokenizer, folder, context_length):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "dropout": 0.0, "initializer_range": 0.3}
    cfg = ModelConfig(architecture="gpt2", context_length=context_length, **sizes)
    save_model(build_model(cfg, tokenizer), tokenizer, folder)
    return scalar_from_lm(folder).eval()


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """With the policy's tokenizer."""
    return scalar(tokenizer, tmp_path_factory.mktemp("same"), 96)


@pytest.fixture(scope="module")
def other_model(other_tokenizer, tmp_path_factory):
    return scalar(other_tokenizer, tmp_path_factory.mktemp("other"), 96)


@pytest.fixture(scope="module")
def episodes(tokenizer):
    """Tokens that are not those which their text would be split into again: a letter each."""
    letters = {text: [tokenizer(letter)["input_ids"][0] for letter in text] for text in TEXTS}
    prompts = [[5 + i, *range(20, 22 + i)] for i in range(len(TEXTS))]
    responses = [[*letters[text], tokenizer.eos_token_id] for text in TEXTS]
    return make_episodes(ROWS_OF_TEXT, prompts, responses, tokenizer)


def scored(model, tokenizer, episodes, context=96, max_tokens=1000, autocast=contextlib.nullcontext):
    return RewardModel("judge", model, tokenizer, context)(episodes, CPU, max_tokens, autocast)


def alone(model, sequences) -> list[float]:
    """The score of each sequence, in a row by itself."""
    with torch.no_grad():
        return [response_scores(model, pack([ids])).item() for ids in sequences]


def test_episodes_hold_the_text_of_each_response(tokenizer, episodes):
    assert list(episodes.texts) == TEXTS
    again = make_episodes([{}], [[1]], [tokenizer("  a dog ")["input_ids"]], tokenizer)
    assert again.texts == ["a dog"]


def test_with_the_policy_s_tokenizer_the_very_tokens_are_scored(tokenizer, model, episodes):
    with torch.no_grad():
        expected = response_scores(model, pack_pairs(episodes.prompts, episodes.responses, "cpu"))
    got = scored(model, None, episodes)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert got.dtype == torch.float32
    assert got.std() > 0.1
    again = encode_dialogues(tokenizer, [row["prompt"] for row in episodes.rows], list(episodes.texts))
    assert (got - torch.tensor(alone(model, again))).abs().max() > 1e-2


def test_with_another_tokenizer_the_text_is_encoded_again_through_its_own_template(
    other_tokenizer, other_model, episodes
):
    sequences = [
        other_tokenizer(f"[user] {row['prompt'][0]['content']}[assistant] {text}")["input_ids"]
        + [other_tokenizer.eos_token_id]
        for row, text in zip(episodes.rows, TEXTS, strict=True)
    ]
    assert sequences == encode_dialogues(other_tokenizer, [row["prompt"] for row in episodes.rows], TEXTS)
    got = scored(other_model, other_tokenizer, episodes)
    assert got.tolist() == pytest.approx(alone(other_model, sequences), abs=1e-5)
    assert got.std() > 0.1


def test_text_that_is_too_long_loses_its_end(other_tokenizer, other_model, episodes):
    sequences = encode_dialogues(other_tokenizer, [row["prompt"] for row in episodes.rows], list(episodes.texts))
    room = sorted(map(len, sequences))[2]
    got = scored(other_model, other_tokenizer, episodes, context=room)
    assert got.tolist() == pytest.approx(alone(other_model, [ids[:room] for ids in sequences]), abs=1e-5)
    changed = (got - scored(other_model, other_tokenizer, episodes)).abs() > 1e-4
    assert changed.tolist() == [len(ids) > room for ids in sequences]
    assert sum(changed.tolist()) == 2


def test_a_context_as_short_as_the_model_s_is_never_overrun(other_tokenizer, tmp_path, episodes):
    short = scalar(other_tokenizer, tmp_path, 16)
    sequences = encode_dialogues(other_tokenizer, [row["prompt"] for row in episodes.rows], list(episodes.texts))
    assert max(map(len, sequences)) > 16
    got = scored(short, other_tokenizer, episodes, context=16)
    assert got.tolist() == pytest.approx(alone(short, [ids[:16] for ids in sequences]), abs=1e-5)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 40, 70])
def test_max_tokens_changes_no_score(model, other_model, other_tokenizer, episodes, max_tokens, again):
    judge = (other_model, other_tokenizer) if again else (model, None)
    whole = scored(*judge, episodes, max_tokens=10_000)
    torch.testing.assert_close(scored(*judge, episodes, max_tokens=max_tokens), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("again", [False, True])
def test_scores_stand_in_the_order_of_the_episodes(model, other_model, other_tokenizer, episodes, again):
    judge = (other_model, other_tokenizer) if again else (model, None)
    order = [3, 0, 4, 2, 1]
    turned = Episodes(*([part[i] for i in order] for part in episodes))
    torch.testing.assert_close(
        scored(*judge, turned, max_tokens=50), scored(*judge, episodes)[order], rtol=0, atol=1e-5
    )


def test_scoring_takes_no_gradient_though_the_model_could(model, episodes):
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not scored(model, None, episodes).requires_grad


def test_scoring_runs_under_the_autocast_that_is_given(model, episodes):
    half = scored(model, None, episodes, autocast=functools.partial(torch.autocast, "cpu", torch.bfloat16))
    whole = scored(model, None, episodes)
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.3


# -- where functions are written -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty present folder; modules that were imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_module_of_the_present_folder_is_found_and_loaded(folder):
    path = folder / "rewards_of_mine.py"
    path.write_text("def brevity(prompts, completions, **columns):\n    return [-len(c) for c in completions]\n")
    assert find_source("rewards_of_mine:brevity") == path
    function = load_function("rewards_of_mine:brevity")
    assert call_function("rewards_of_mine:brevity", function, episodes_of(ROWS)) == [-1.0, -2.0, -3.0]


def test_the_present_folder_is_where_one_is_when_it_is_asked_for(folder, monkeypatch):
    inner = folder / "inner"
    inner.mkdir()
    (inner / "only_in_there.py").write_text("f = len\n")
    with pytest.raises(ConfigError):
        find_source("only_in_there:f")
    monkeypatch.chdir(inner)
    assert find_source("only_in_there:f") == inner / "only_in_there.py"


def test_a_module_in_a_package_is_found(folder):
    (folder / "package_of_mine").mkdir()
    (folder / "package_of_mine" / "__init__.py").write_text("")
    (folder / "package_of_mine" / "part.py").write_text("class Reward:\n    pass\n")
    assert find_source("package_of_mine.part:Reward") == folder / "package_of_mine" / "part.py"
    assert load_function("package_of_mine.part:Reward").__name__ == "Reward"


def test_an_installed_module_is_found(folder):
    assert str(find_source("json:dumps")) == json.__file__
    assert load_function("json:dumps") is json.dumps


def test_finding_a_module_does_not_run_it(folder):
    (folder / "loud_of_mine.py").write_text("from pathlib import Path\nPath('ran').touch()\ndef f(): pass\n")
    find_source("loud_of_mine:f")
    assert not (folder / "ran").exists()
    load_function("loud_of_mine:f")
    assert (folder / "ran").exists()


@pytest.mark.parametrize("look", [find_source, load_function])
@pytest.mark.parametrize("reference", ["", "json", "json:", ":dumps", "json:dumps:loads", "json:a b", "json:a.b"])
def test_what_is_not_module_and_function_is_refused(folder, look, reference):
    with pytest.raises(ConfigError, match="expected MODULE:FUNCTION, got ") as caught:
        look(reference)
    assert repr(reference) in str(caught.value)


@pytest.mark.parametrize("look", [find_source, load_function])
@pytest.mark.parametrize(
    "module", ["no_such_module_of_mine", "no_such.module", "json.no_such", "sys", ".json", "empty"]
)
def test_a_module_without_a_file_is_refused(folder, look, module):
    (folder / "empty").mkdir()  # a folder without __init__.py is a package to Python, of no file
    with pytest.raises(ConfigError, match="in this folder or in the environment") as caught:
        look(f"{module}:f")
    assert f"no module {module!r} " in str(caught.value)


@pytest.mark.parametrize("name", ["absent", "number"])
def test_a_module_without_the_function_is_refused(folder, name):
    (folder / "half_of_mine.py").write_text("number = 3\n")
    with pytest.raises(ConfigError, match=f"^half_of_mine:{name}: half_of_mine has no function '{name}'$"):
        load_function(f"half_of_mine:{name}")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("1 / 0\n", "ZeroDivisionError while it was imported: division by zero"),
        ("import no_such_module_of_mine\n", "ModuleNotFoundError while it was imported: No module named"),
        ("def f(:\n", "SyntaxError while it was imported: "),
    ],
)
def test_a_module_that_raises_when_imported_is_told_of_in_one_line(folder, source, error):
    (folder / "broken_of_mine.py").write_text(source)
    with pytest.raises(ConfigError, match=f"^broken_of_mine:f: {error}") as caught:
        load_function("broken_of_mine:f")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
