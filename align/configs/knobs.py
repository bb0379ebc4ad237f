"""What a knob is, and the ranges that its name implies."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

from align.configs.curves import Curve
from align.errors import ConfigError

T = TypeVar("T")

RECORDS = ("documents", "demonstrations", "comparisons", "prompts", "items", "labelled")
SPLITS = ("train", "validation", "test")
PRECISIONS = ("fp32", "bf16")
AUTO = "auto"  # a precision that `plan` decides by the machine
MODELS = ("model", "seq2seq_model", "reward_model")  # decoder-only; encoder-decoder; sequence classifier, one label


# What a knob may name outside the store. The plan takes the digest of it into the step's key. What is read as long as
# a step runs is compared again at its end; functions, checks and tasks are loaded when it begins, and compared then.
READ_AS_IT_RUNS = ("rows", "model", "base", "tokenizer", "file")
READ_AT_START = ("functions", "checks", "tasks")
_NAMES_FILES = re.compile(r"path:[A-Z]|card:NAME|hf:ORG|MODULE:FUNCTION|FILE\b")  # in a knob's comment


def knob(default: Any, comment: str, reads: str | None = None) -> Any:
    """A dataclass field with its explanation: what it is, its unit, the source of its default.

    Args:
        reads: what it names outside the store, of READ_AS_IT_RUNS or READ_AT_START; None: nothing.
    """
    return field(default=default, metadata={"comment": comment} | ({"reads": reads} if reads else {}))


def precision_knob() -> Any:
    return knob(
        AUTO, "fp32, or bf16 autocast over fp32 weights; auto: bf16 where the machine computes it in hardware [ours]"
    )


def filled(value: T | None) -> T:
    """The value of a knob that `fill_in`, or a stage, has put in the place of None."""
    if value is None:
        raise ValueError("a knob is still None; call fill_in on its config first")
    return value


def max_new_tokens_knob() -> Any:
    return knob(None, "tokens a response; None: 256, or half the model's context where that is less [ours]")


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name}: expected {allowed}, got {value!r}")


class Trained(NamedTuple):
    """A model that a stage trains with all its weights: the input it starts from, and what its head gives.

    Attributes:
        slot: None: the stage makes the model itself, as its knob `model` says.
        head: lm: a logit for each token of the vocabulary; scalar: one number.
    """

    slot: str | None
    head: str


@dataclass(slots=True, kw_only=True)
class StageConfig:
    """The contract of a stage: what it takes and makes, and what others show of it. Its knobs are the fields.

    Kinds of artifact: the `RECORDS` and `MODELS`, tokenizer, tokens, classifier, evaluation.
    """

    STAGE: ClassVar[str]
    MODULE: ClassVar[str] = ""  # that has `run(config, inputs, job)`; "": align.stages.STAGE
    VERSION: ClassVar[int] = 1
    INPUTS: ClassVar[dict[str, str]] = {}  # name -> kind
    OPTIONAL: ClassVar[dict[str, str]] = {}
    MANY: ClassVar[tuple[str, ...]] = ()  # inputs, besides those of rows, that may be several
    OUTPUT: ClassVar[str]  # kind
    PARALLEL: ClassVar[bool] = True  # False: one process does it, whatever hardware.num_processes says
    AXIS: ClassVar[str] = "step"  # what its log counts
    CURVES: ClassVar[tuple[Curve, ...]] = ()  # charts of its log, in the report's order
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = ()  # metrics that `ls` shows, with the names it shows them by
    EXPLAINED: ClassVar[dict[str, str]] = {}  # names that are no knobs of it: what to write instead
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {}  # knobs with knobs of their own: title, their class or defaults
    inputs: dict[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls) -> None:
        """Refuse a class with a knob that names files and does not declare it: its key would not hold what they say."""
        for name, knob_ in vars(cls).items():
            if isinstance(knob_, Field):
                reads, names_files = knob_.metadata.get("reads"), _NAMES_FILES.search(knob_.metadata.get("comment", ""))
                if names_files and reads is None:
                    raise TypeError(f"{cls.__name__}.{name}: its comment names files; declare them by reads=")
                if reads not in (None, *READ_AS_IT_RUNS, *READ_AT_START):
                    raise TypeError(f"{cls.__name__}.{name}: reads={reads!r} is not known")

    @classmethod
    def reads(cls, *kinds: str) -> dict[str, str]:
        """The knobs that name things outside the store, and what: all, or those of some kinds."""
        declared = {knob_.name: knob_.metadata["reads"] for knob_ in fields(cls) if "reads" in knob_.metadata}
        return {name: kind for name, kind in declared.items() if not kinds or kind in kinds}

    @property
    def output(self) -> str:
        """The kind of artifact this stage makes."""
        return self.OUTPUT

    @property
    def random_seed(self) -> int:
        """The seed of everything random in the stage: its own, else the run's, which `plan` puts there."""
        return getattr(self, "seed", None) or 0

    def fill_in(self, bf16_is_fast: bool) -> None:
        """Replace knobs that are left to the plan by the values they stand for, so that the key holds those.

        Args:
            bf16_is_fast: whether the machine computes bf16 in hardware.
        """
        if getattr(self, "precision", None) == AUTO:
            self.precision = "bf16" if bf16_is_fast else "fp32"  # type: ignore[misc]

    def need_of_gold(self, given: Container[str]) -> str:
        """What is wrong where no gold scorer knows the prompts, by the inputs given; "" where the step needs none."""
        return ""

    def check_inputs(self) -> None:
        """Raise `ConfigError` where a knob needs an input that is not given; inputs are known when it is planned."""

    def trained(self, inputs: Mapping[str, Any]) -> tuple[Trained, ...]:
        """Return the models that are trained whole, the first of them the one that is published.

        Empty if the stage trains none, or only an adapter: then their size is known once the step has run.
        """
        return ()

    def training_tokens(self, inputs: Mapping[str, Any], context_length: int) -> tuple[int, int] | None:
        """Return (tokens in all, tokens of a sequence) of the training; None if they are not known beforehand."""
        return None

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(config: Any) -> None:
    """Raise `ConfigError` where a number is out of the range that its name implies, whatever the stage."""
    for knob_ in fields(config):
        name, value = knob_.name, getattr(config, knob_.name)
        if name == "precision":
            require(value in (AUTO, *PRECISIONS), name, value, f"{AUTO}, {' or '.join(PRECISIONS)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        require(math.isfinite(value), name, value, "a finite number")
        if name.endswith(_ABOVE_0):
            require(value > 0, name, value, "a number above 0")
        elif name.endswith(_SHARES):
            require(0 <= value <= 1, name, value, "a number from 0 to 1")
        elif name not in _ANY:
            require(value >= 0, name, value, "a number from 0 up")


_ABOVE_0 = (
    *("_size", "_tokens", "_length", "_epochs", "learning_rate", "_norm", "_epsilon", "_every", "rank", "threads"),
    *("importance_cap", "reward_clip", "stop_kl_per_token", "kl_horizon"),
    *("num_steps", "num_iterations", "num_processes", "num_layers", "num_heads", "num_labelers", "initializer_range"),
)
_ANY = ("seed", "length_coef", "missing_eos_reward")
_SHARES = ("_fraction", "_share", "dropout", "beta1", "beta2", "gamma", "gae_lambda")
