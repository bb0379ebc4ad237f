"""What a response is worth: parts and their sum, reward models, and functions of the user's own."""

from __future__ import annotations

import asyncio
import math
import random

import numpy as np
import pytest
import torch

from align.configs import ModelConfig
from align.errors import ConfigError
from align.models.build import build_model
from align.models.compute import Compute
from align.models.heads import scalar_from_lm
from align.models.load import save_model
from align.models.packed import pack_pairs, response_scores
from align.rl.rewards import RewardTerms
from align.text.chat import encode_dialogues
from align.text.packing import pack
from align.text.tokenizers import train_tokenizer
from align.verifiers.episodes import Episodes, make_episodes
from align.verifiers.functions import Notes, RewardFunction, call_functions
from align.verifiers.reward_models import RewardModel

CPU = torch.device("cpu")
NOTHING = {
    "model_weights": (),
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


NO_MODEL = torch.zeros(0, 3)


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
    assert [got.parts[f"model_{number}"].tolist() for number in (1, 2, 3)] == THREE.tolist()
    close(got.parts["disagreement"], deviations)


def test_weights_of_several_models_make_their_weighted_sum():
    got = combined(THREE, model_weights=(2.0, -1.0, 0.5), ensemble_std_coef=0.5)
    weighed = [2 * 1 - 3 + 4, 2 * -2 + 2 - 1, 2 * 5 - 6 + 5]
    close(got.parts["model"], weighed)
    close(
        got.total, [score - 0.5 * std for score, std in zip(weighed, THREE.std(0, correction=0).tolist(), strict=True)]
    )
    close(combined(ONE, model_weights=(3.0,)).total, [3.0, -6.0, 15.0])


def test_functions_alone_say_what_a_response_is_worth():
    got = combined(NO_MODEL, rules={"m:short": [1.0, 0.0, 3.0]}, functions={"m:short": 2.0}, length_coef=0.5)
    close(got.total, [4.0, 3.5, 7.0])
    assert "model" not in got.parts
    assert got.scored.tolist() == [True, True, True]


def test_a_function_that_does_not_apply_adds_nothing():
    rules = {"m:short": [1.0, math.nan, math.nan], "m:polite": [10.0, 20.0, math.nan]}
    functions = {"m:short": 2.0, "m:polite": 1.0}
    got = combined(rules=rules, functions=functions)
    close(got.total, [1.0 + 2.0 + 10.0, -2.0 + 20.0, 5.0])
    assert got.scored.tolist() == [True, True, True]
    alone = combined(NO_MODEL, rules=rules, functions=functions, length_coef=1.0)
    close(alone.total, [12.0 + 4.0, 20.0 + 7.0, 0.0])
    assert alone.scored.tolist() == [True, True, False]


def test_a_model_of_weight_0_does_not_score():
    given = {"rules": {"m:short": [1.0, math.nan, 3.0]}, "functions": {"m:short": 1.0}, "model_weights": [0.0]}
    assert combined(**given).scored.tolist() == [True, False, True]


def test_a_function_that_is_only_watched_does_not_score():
    got = combined(NO_MODEL, rules={"m:short": [1.0, 2.0, 3.0]}, functions={"m:short": 0.0}, length_coef=1.0)
    assert got.scored.tolist() == [False, False, False]
    assert got.total.tolist() == [0.0, 0.0, 0.0]


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


def call(function, episodes=None, **given):
    """The answers of one function to the episodes."""
    functions = [RewardFunction("f", "m:f", function)]
    return call_functions(functions, episodes_of(ROWS) if episodes is None else episodes, **given)["f"]


def texts_of(completions):
    return [completion[0]["content"] for completion in completions]


def test_a_function_is_called_as_trl_calls_it():
    calls = []

    def function(**arguments):
        calls.append(arguments)
        return [1, 2.5, -3]

    notes = Notes(3)
    got = call(function, trainer_state="state", notes=notes)
    assert got == [1.0, 2.5, -3.0]
    assert [type(x) for x in got] == [float] * 3
    assert calls == [
        {
            "prompts": ASKED,
            "completions": [[{"role": "assistant", "content": text}] for text in ("x", "yy", "zzz")],
            "completion_ids": [[2], [2], [2]],
            "answer": [1, 2, 3],
            "source": ["a", "b", None],
            "trainer_state": "state",
            "log_extra": notes.log_extra,
            "log_metric": notes.log_metric,
        }
    ]


def test_a_function_may_name_the_columns_that_it_reads():
    def function(completions, answer, **others):
        return [a * 10.0 + len(text) for a, text in zip(answer, texts_of(completions), strict=True)]

    assert call(function) == [11.0, 22.0, 33.0]


def test_a_function_cannot_change_what_the_next_one_sees():
    def spoil(prompts, completions, completion_ids, accepted, **others):
        prompts[0][0]["content"] = completions[0][0]["content"] = "spoiled"
        completion_ids[0].append(9)
        accepted[0].pop()
        return [0.0] * 3

    def look(prompts, completions, completion_ids, accepted, **others):
        assert accepted == [["a", "b"]] * 3
        assert [prompt[0]["content"] for prompt in prompts] == ["one?", "two?", "three?"]
        assert texts_of(completions) == ["x", "yy", "zzz"]
        assert completion_ids == [[2]] * 3
        return [1.0] * 3

    functions = [RewardFunction("spoil", "m:spoil", spoil), RewardFunction("look", "m:look", look)]
    rows = [{**row, "accepted": ["a", "b"]} for row in ROWS]
    assert call_functions(functions, episodes_of(rows))["look"] == [1.0] * 3
    assert [row["accepted"] for row in rows] == [["a", "b"]] * 3


def test_none_says_that_a_function_does_not_apply():
    assert call(lambda **_: [None, 2.0, None]) == [None, 2.0, None]


def test_an_array_or_an_iterator_is_as_good_as_a_list():
    assert call(lambda **_: np.array([0.5, 1.5, 2.5], dtype=np.float32)) == [0.5, 1.5, 2.5]
    assert call(lambda **_: torch.tensor([0.5, 1.5, 2.5])) == [0.5, 1.5, 2.5]
    assert call(lambda completions, **_: map(len, texts_of(completions))) == [1.0, 2.0, 3.0]


def test_async_functions_run_side_by_side():
    met = []

    def waits_for(mine, other):
        async def function(completions, **others):
            met.append(mine)
            for _ in range(100):
                if other in met:
                    return [float(mine)] * len(completions)
                await asyncio.sleep(0)
            return [0.0] * len(completions)  # the other one has not begun

        return function

    class Third:
        async def __call__(self, completions, **others):
            return [3.0] * len(completions)

    functions = [waits_for(1, 2), waits_for(2, 1), Third(), lambda **_: [4.0] * 3]
    named = [RewardFunction(f"f{i}", f"m:f{i}", function) for i, function in enumerate(functions, 1)]
    assert call_functions(named, episodes_of(ROWS)) == {f"f{i}": [float(i)] * 3 for i in (1, 2, 3, 4)}


def test_when_an_async_function_raises_the_others_end_first_and_its_error_is_told():
    ended = []

    async def judge(**_):
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)  # as a client is closed: it needs the event loop
            ended.append("judge")

    async def broken(**_):
        await asyncio.sleep(0)
        raise ValueError("boom")

    functions = [RewardFunction("judge", "m:judge", judge), RewardFunction("broken", "m:broken", broken)]
    with pytest.raises(ConfigError, match="boom; raised by your reward function m:broken"):
        call_functions(functions, episodes_of(ROWS))
    assert ended == ["judge"]


def test_what_an_async_function_keeps_between_calls_goes_on_working():
    """A client or a lock is bound to the event loop that it first waits in."""
    lock = asyncio.Semaphore(1)

    async def function(completions, **others):
        async def one(number):
            async with lock:
                await asyncio.sleep(0)
                return float(number)

        return await asyncio.gather(*(one(number) for number in range(len(completions))))

    assert [call(function) for _ in range(2)] == [[0.0, 1.0, 2.0]] * 2


def test_what_a_function_logs_never_replaces_what_stands_in_the_table_of_samples():
    notes = Notes(3)
    for name in ("step", "prompt", "response", "score", "kl", "reward/model", "other"):
        notes.log_extra(name, [1, 2, 3])
    own = ["extra/step", "extra/prompt", "extra/response", "extra/score", "extra/kl", "extra/reward/model", "other"]
    assert list(notes.columns) == own


def test_a_metric_that_is_no_number_is_the_user_s_fault():
    with pytest.raises(ConfigError, match="log_metric: expected a finite number for 'share', got nan; raised by your"):
        call(lambda log_metric, **_: log_metric("share", math.nan))


def test_what_a_function_logs_is_kept():
    def function(log_extra, log_metric, **others):
        log_extra("words", [1, 2, 3])
        log_metric("share", 0.25)
        log_metric("share", 0.75)
        return [0.0] * 3

    notes = Notes(3)
    call(function, notes=notes)
    assert notes.columns == {"words": [1, 2, 3]}
    assert notes.metrics == {"share": [0.25, 0.75]}
    with pytest.raises(ConfigError, match="log_extra: expected 3 values for 'words', got 2"):
        call(lambda log_extra, **_: log_extra("words", [1, 2]))


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        ([], r"got 0: \[\]"),
        ([1.0, 2.0], r"got 2: \[1.0, 2.0\]"),
        ([1.0] * 4, "got 4: "),
        ([1.0, math.nan, 1.0], r"got nan \(float\) for completion 1"),
        ([1.0, math.inf, 1.0], r"got inf \(float\) for completion 1"),
        ([1.0, "2", 1.0], r"got 2 \(str\) for completion 1"),
        ([[1.0], [2.0], [3.0]], r"got \[1.0\] \(list\) for completion 0"),
        ([10**400, 1.0, 1.0], r"\(int\) for completion 0"),
        ("123", r"got 123 \(str\)"),
        ({1: 1, 2: 2, 3: 3}, r"\(dict\)"),
        (None, r"got None \(NoneType\)"),
        (1.0, r"got 1.0 \(float\)"),
        (torch.ones(3, 2), r"\(Tensor\) for completion 0"),
    ],
)
def test_anything_but_a_finite_number_or_none_an_episode_is_refused(answer, came):
    expected = "^m:f at iteration 7: expected a list of 3 finite numbers or None, one for each completion, "
    with pytest.raises(ConfigError, match=f"{expected}.*{came}") as caught:
        call(lambda **_: answer, occasion=" at iteration 7")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_function_that_does_not_take_the_call_is_told_what_the_call_is():
    def lacks(completions, solution, **others):
        return [0.0] * 3

    def closed(prompts, completions, answer, source):
        return [0.0] * 3

    with pytest.raises(
        ConfigError, match=r"^m:f: missing a required argument: 'solution'; .*are answer, source; give the rows a"
    ):
        call(lacks)

    def misspelled(completion, **others):
        return [0.0] * 3

    meant = r"^m:f: missing a required argument: 'completion' \(did you mean completions\?\); .*; rename the parameter$"
    with pytest.raises(ConfigError, match=meant):
        call(misspelled)
    with pytest.raises(ConfigError, match=r"^m:f: got an unexpected keyword argument 'completion_ids'.*\*\*kwargs"):
        call(closed)


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


def scored(model, tokenizer, episodes, context=96, max_tokens=1000, precision="fp32"):
    return RewardModel("judge", model, tokenizer, context)(episodes, Compute(CPU, max_tokens, precision))


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


def test_scoring_runs_in_the_precision_that_is_given(model, episodes):
    half = scored(model, None, episodes, precision="bf16")
    whole = scored(model, None, episodes)
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.3
