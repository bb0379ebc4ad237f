"""Values become configs by the types of the classes alone; a class says what it reads outside the store."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from align.configs import STAGES, Data, Evaluate, ModelConfig, Ppo, Pretrain, RunConfig, Sft, StageConfig, TextToText
from align.configs.knobs import knob
from align.configs.typed import NoSuchKnob, typed
from align.errors import ConfigError

WRONG = [
    (Ppo, {"normalize_advantages": 1}, "normalize_advantages: expected true or false, got 1"),
    (Ppo, {"normalize_advantages": "yes"}, "normalize_advantages: expected true or false, got 'yes'"),
    (Sft, {"num_epochs": True}, "num_epochs: expected an integer, got true"),
    (Sft, {"num_epochs": 2.0}, "num_epochs: expected an integer, got 2.0"),
    (Sft, {"num_epochs": 10**30}, f"num_epochs: expected an integer of at most 18 digits, got {10**30}"),
    (Sft, {"num_epochs": 10**400}, "num_epochs: expected an integer of at most 18 digits, got a number of about 401"),
    (Sft, {"weight_decay": 10**400}, "weight_decay: expected a finite number, got a number of about 401 digits"),
    (Sft, {"weight_decay": float("nan")}, "weight_decay: expected a finite number, got nan"),
    (Sft, {"weight_decay": False}, "weight_decay: expected a number, got false"),
    (Sft, {"weight_decay": ""}, "weight_decay: expected a number, got ''"),
    (Sft, {"weight_decay": None}, "weight_decay: expected a value, got null; leave it out for the default"),
    (Sft, {"lora": {"rank": -1}}, "lora.rank: expected a number above 0, got -1"),
    (Sft, {"lora": {"alpha": 3}}, "lora.alpha: expected lora.rank beside it"),
    (Sft, {"lora": 8}, "lora: expected its knobs, as in lora.rank=..., got 8"),
    (Data, {"source": True}, "source: expected text, got true; text is given in quotes"),
    (Data, {"source": "a\0b"}, "source: expected text without a NUL character"),
    (Data, {"splits": "train"}, "splits: expected a list, as 'splits=[VALUE,VALUE]', got 'train'"),
    (Data, {"split": ""}, "split: expected a value, or null, got ''"),
    (Data, {"columns": [1]}, "columns: expected names with values, as 'columns={NAME: VALUE}', got [1]"),
    (Data, {"columns": {1: "a"}}, "columns: expected names with values"),
    (Ppo, {"reward_functions": {"a:b": "c"}}, "reward_functions.a:b: expected a number, got 'c'"),
    (Ppo, {"reward_model_weights": [1, "x"]}, "reward_model_weights[1]: expected a number, got 'x'"),
    (Evaluate, {"checks": {"a": None}}, "checks.a: expected a value, got null"),
    (RunConfig, {"store": ""}, "store: expected a folder, got ''"),
    (RunConfig, {"hardware": {"threads": 0}}, "hardware.threads: expected a number above 0, got 0"),
    (RunConfig, {"tracker": {"project": ""}}, "tracker.project: expected a name, got ''"),
]


@pytest.mark.parametrize(("cls", "values", "said"), WRONG, ids=[said for _, _, said in WRONG])
def test_a_value_of_another_type_or_range_is_refused_by_its_key(cls: type, values: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        typed(cls, values)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(("values", "name"), [({"nope": 1}, "nope"), ({"lora": {"nope": 1}}, "lora.nope")])
def test_a_knob_that_is_none_is_named_with_what_it_lies_in(values: dict, name: str) -> None:
    with pytest.raises(NoSuchKnob) as caught:
        typed(Sft, values)
    assert caught.value.name == name


def test_what_is_right_comes_as_it_is_and_the_rest_as_the_class_has_it() -> None:
    made = typed(Sft, {"num_epochs": "2", "weight_decay": 1, "learning_rate": None, "lora": {"rank": 8}, "seed": -1})
    assert (made.num_epochs, made.weight_decay, made.learning_rate, made.lora.rank, made.seed) == (2, 1.0, None, 8, -1)
    assert type(made.weight_decay) is float
    assert made.lora.alpha == 16.0
    assert typed(TextToText, {"model": {"hidden_size": 8}}).model == ModelConfig(
        architecture="t5", initializer_range=1.0, hidden_size=8
    )  # the class's own sizes, not ModelConfig's
    assert typed(Pretrain, {}) == Pretrain()
    assert typed(Data, {"source": 2024}).source == "2024"


# -- what is read outside the store ------------------------------------------------------------------------------------


@pytest.mark.parametrize("comment", ["path:FOLDER", "card:NAME or so", "hf:ORG/NAME", "MODULE:FUNCTION", "words:FILE"])
def test_a_class_with_a_knob_that_names_files_has_to_declare_it(comment: str) -> None:
    with pytest.raises(TypeError, match=r"Forgetful\.source: its comment names files"):

        @dataclass(slots=True, kw_only=True)
        class Forgetful(StageConfig):
            STAGE: ClassVar[str] = "forgetful"
            source: str = knob("", comment)


def test_what_a_knob_reads_is_of_a_known_kind() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.source: reads='rowz' is not known"):

        @dataclass(slots=True, kw_only=True)
        class Wrong(StageConfig):
            STAGE: ClassVar[str] = "wrong"
            source: str = knob("", "path:FOLDER", reads="rowz")


def test_every_stage_s_reading_is_declared() -> None:
    assert {name: cls.reads() for name, cls in STAGES.items() if cls.reads()} == {
        "data": {"source": "rows"},
        "tokenizer": {"source": "tokenizer"},
        "import_model": {"source": "model", "base": "base", "chat_template": "file"},
        "collect": {"labels": "votes"},
        **{stage: {"reward_functions": "functions"} for stage in ("ppo", "grpo", "rloo", "raft", "best_of_n")},
        "evaluate": {"tasks": "tasks", "reward_functions": "functions", "checks": "checks"},
    }


@pytest.mark.parametrize(
    ("given", "kept"), [(100, 100), (100.0, 100), ("100", 100), ("1e2", 100), (0.0, 0), (0.5, 0.5)]
)
def test_a_number_is_one_value_however_it_is_written(given: object, kept: float) -> None:
    """The key of a step is a digest of the JSON of its knobs, and 100 and 100.0 are two texts."""
    found = typed(Sft, {"warmup_steps": given}).warmup_steps
    assert (found, type(found)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("cls", "values", "said"),
    [
        (Sft, {"beta1": 1.0}, "beta1: expected a number from 0 up, below 1, got 1.0"),
        (Ppo, {"beta2": 1.0}, "beta2: expected a number from 0 up, below 1"),
        (TextToText, {"beta1": 0.8}, "beta1: expected no value: adafactor has no such knob, got 0.8"),
        (Pretrain, {"optimizer": "adafactor", "adam_epsilon": 1e-6}, "adam_epsilon: expected no value: adafactor"),
        (Sft, {"on_nonfinite": "ignore"}, "on_nonfinite: expected stop or skip, got 'ignore'"),
    ],
)
def test_knobs_of_the_optimizer_that_mean_nothing_are_refused(cls: type, values: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        typed(cls, values)
    assert str(caught.value).startswith(said)
