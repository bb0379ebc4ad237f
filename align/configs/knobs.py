"""Knobs and their ranges, and the base class of every stage's config."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

from align.configs.curves import Curve
from align.errors import ConfigError

T = TypeVar("T")

RECORDS = (
    *("documents", "demonstrations", "comparisons", "unpaired", "prompts", "items", "labelled"),
)
SPLITS = ("train", "validation", "test")
PRECISIONS = ("fp32", "bf16")
ON_NONFINITE = ("stop", "skip")
AUTO = "auto"  # a precision that `plan` replaces by the one that suits the machine
# Decoder-only; encoder-decoder; sequence classifier with one label.
MODELS = ("model", "seq2seq_model", "reward_model")


# Kinds of things outside the store that a knob may name. Their digest is part of the step's key.
# The runner compares the digest again, so that no result is published under the key of other files:
# at the end of a step for what the step reads while it runs, and at the start for functions, checks
# and tasks, because they are loaded then.
READ_AS_IT_RUNS = ("rows", "model", "base", "tokenizer", "file", "votes")
READ_AT_START = ("functions", "checks", "tasks")
# A knob whose comment matches this names files, so it must declare `reads`.
_NAMES_FILES = re.compile(r"path:[A-Z]|card:NAME|hf:ORG|MODULE:FUNCTION|FILE\b")


def knob(default: Any, comment: str, reads: str | None = None) -> Any:
    """Return a dataclass field for a knob.

    Args:
        default: the default value.
        comment: the meaning, the unit and the source of the default.
        reads: the kind of thing outside the store that the knob names, one of `READ_AS_IT_RUNS` or
            `READ_AT_START`; None: nothing.
    """
    return field(
        default=default, metadata={"comment": comment} | ({"reads": reads} if reads else {})
    )


def precision_knob() -> Any:
    return knob(
        AUTO,
        "fp32, or bf16 autocast with fp32 weights; auto: bf16 if the machine computes it in"
        " hardware [ours]",
    )


def filled(value: T | None) -> T:
    """Return the value of a knob whose None `fill_in`, or the stage, has replaced.

    Raises:
        ValueError: the value is still None.
    """
    if value is None:
        raise ValueError("a knob is still None; call fill_in on its config first")
    return value


def max_new_tokens_knob() -> Any:
    return knob(
        None,
        "most tokens per response; None: 256, or half the model's context where that is less"
        " [ours]",
    )


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name}: expected {allowed}, got {shown(value)}")


def shown(value: Any) -> str:
    """Return a value as text for an error line, written as in a config. A long text is cut."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) > 10**40:
        return f"a number of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


class Trained(NamedTuple):
    """A model that a stage trains with all its weights.

    Attributes:
        slot: the input that the model starts from; None: the stage builds a new model by its knob
            `model`.
        head: the output of the head: `lm`: a logit for each token of the vocabulary; `scalar`: one
            number.
    """

    slot: str | None
    head: str


@dataclass(slots=True, kw_only=True)
class StageConfig:
    """The contract of a stage: inputs, output, knobs, and what reports show of it.

    The fields of the class are the knobs, except `inputs`.

    Kinds of artifact: the `RECORDS` and `MODELS`, tokenizer, tokens, classifier, evaluation.
    """

    STAGE: ClassVar[str]
    MODULE: ClassVar[str] = ""  # the module with `run(config, inputs, job)`; "": align.stages.STAGE
    VERSION: ClassVar[int] = 1
    INPUTS: ClassVar[dict[str, str]] = {}  # name -> kind
    OPTIONAL: ClassVar[dict[str, str]] = {}
    # Inputs that take several artifacts. Inputs whose kind is one of `RECORDS` always may.
    MANY: ClassVar[tuple[str, ...]] = ()
    OUTPUT: ClassVar[str]  # kind
    # False: the stage runs in one process, whatever `hardware.num_processes` is.
    PARALLEL: ClassVar[bool] = True
    AXIS: ClassVar[str] = "step"  # the unit that the log counts
    CURVES: ClassVar[tuple[Curve, ...]] = ()  # charts of the log, in the report's order
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = ()  # (metric, label) pairs that `ls` shows
    # Names that are not knobs of this stage -> a hint what to write instead.
    EXPLAINED: ClassVar[dict[str, str]] = {}
    # Inherited knobs that say nothing in this stage: help and documentation leave them out.
    UNUSED: ClassVar[tuple[str, ...]] = ()
    # Knobs that hold other knobs -> (title, class or defaults of those).
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {}
    inputs: dict[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls) -> None:
        """Refuse a class with a knob that names files but has no `reads`.

        Without `reads` the key of a step would not depend on the content of these files.

        Raises:
            TypeError: a knob's comment names files and the knob has no `reads`, or its `reads` is
                unknown.
        """
        for name, knob_ in vars(cls).items():
            if isinstance(knob_, Field):
                reads, names_files = (
                    knob_.metadata.get("reads"),
                    _NAMES_FILES.search(knob_.metadata.get("comment", "")),
                )
                if names_files and reads is None:
                    raise TypeError(
                        f"{cls.__name__}.{name}: its comment names files; declare them by reads="
                    )
                if reads not in (None, *READ_AS_IT_RUNS, *READ_AT_START):
                    raise TypeError(f"{cls.__name__}.{name}: reads={reads!r} is not known")

    @classmethod
    def reads(cls, *kinds: str) -> dict[str, str]:
        """Return the knobs that name things outside the store, with the kind of each.

        Args:
            kinds: return only knobs of these kinds; none given: all.
        """
        declared = {
            knob_.name: knob_.metadata["reads"]
            for knob_ in fields(cls)
            if "reads" in knob_.metadata
        }
        return {name: kind for name, kind in declared.items() if not kinds or kind in kinds}

    @property
    def output(self) -> str:
        """The kind of artifact this stage makes."""
        return self.OUTPUT

    @property
    def random_seed(self) -> int:
        """The seed of all random draws in the stage; if it is None, `plan` sets the run's seed."""
        return getattr(self, "seed", None) or 0

    def fill_in(self, bf16_is_fast: bool) -> None:
        """Replace defaults that `plan` decides by their values, so that the key holds the values.

        Which defaults these are depends on the stage.

        Args:
            bf16_is_fast: whether the machine computes bf16 in hardware.
        """
        if getattr(self, "precision", None) == AUTO:
            self.precision = "bf16" if bf16_is_fast else "fp32"  # type: ignore[misc]

    def need_of_gold(self, given: Container[str]) -> str:
        """Return the error for prompts without a gold scorer; "" if the step does not need one.

        Args:
            given: the names of the inputs that the step has.
        """
        return ""

    def check_inputs(self) -> None:
        """Raise `ConfigError` if a knob needs an input that is missing.

        This is apart from `__post_init__` because the inputs are complete only in `plan`.
        """

    def trained(self, inputs: Mapping[str, Any]) -> tuple[Trained, ...]:
        """Return the models that are trained with all their weights. The first one is published.

        Empty if the stage trains no model, or only an adapter. An adapter's size is known only
        after the step has run.
        """
        return ()

    def training_tokens(
        self, inputs: Mapping[str, Any], context_length: int
    ) -> tuple[int, int] | None:
        """Return (training tokens in total, tokens per sequence); None if not known in advance."""
        return None

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(slots=True, kw_only=True)
class TrainingConfig(StageConfig):
    """The knobs that all stages with an optimizer share.

    A stage whose paper has another default declares the knob again.
    """

    weight_decay: float = knob(0.0, "decoupled weight decay, on matrices only [ours]")
    beta1: float = knob(
        0.9, "Adam: decay of the gradient's mean, per step [GPT-1, GPT-3, InstructGPT]"
    )
    beta2: float = knob(
        0.95,
        "Adam: decay of the squared gradient's mean, per step [GPT-3, InstructGPT; GPT-1: 0.999]",
    )
    adam_epsilon: float = knob(
        1e-8, "Adam: added to the root of the squared gradient's mean [GPT-1, GPT-3]"
    )
    max_grad_norm: float = knob(1.0, "clip the gradient to this global norm [GPT-1, GPT-3]")
    on_nonfinite: str = knob(
        "stop", "if a loss or gradient is not finite: stop, or skip the step [ours]"
    )
    precision: str = precision_knob()
    seed: int | None = knob(None, "random seed; None: the run's seed")

    def check_adam(self, optimizer: str) -> None:
        """Raise `ConfigError` for knobs of Adam beside an optimizer that has none of them."""
        for name in ("beta1", "beta2", "adam_epsilon") if optimizer == "adafactor" else ():
            usual = type(self).__dataclass_fields__[name].default
            value = getattr(self, name)
            require(value == usual, name, value, "no value: adafactor has no such knob")

    @property
    def betas(self) -> tuple[float, float]:
        """Adam's two rates of decay, as PyTorch takes them."""
        return self.beta1, self.beta2


@dataclass(slots=True, kw_only=True)
class SupervisedConfig(TrainingConfig):
    """The knobs that all training stages but PPO share."""

    warmup_steps: int | float = knob(
        0, "optimizer steps of linear warm-up; below 1: a fraction of all steps [InstructGPT]"
    )
    max_loss_rise: float | None = knob(
        None,
        "leave out a step whose loss is this many nats above the recent median [ours]; None:"
        " none is",
    )


def knobs_in_order(config: Any) -> list[Field[Any]]:
    """Return the knobs of a config class or object: its own first, then those that it shares."""
    cls = config if isinstance(config, type) else type(config)
    names = dict.fromkeys(
        name for each in cls.__mro__ for name in vars(each).get("__annotations__", ())
    )
    unused = getattr(cls, "UNUSED", ())
    known = {each.name: each for each in fields(config) if each.name not in unused}
    return [known[name] for name in names if name in known]


def default_of(each: Field[Any], config: Any) -> Any:
    """Return a knob's default in a config class, or its value in an object."""
    if not isinstance(config, type):
        return getattr(config, each.name)
    if each.default_factory is not MISSING:
        return each.default_factory()
    return "" if each.default is MISSING else each.default


def check_ranges(config: Any) -> None:
    """Raise `ConfigError` if a number is outside the range that its name implies in every stage."""
    for knob_ in fields(config):
        name, value = knob_.name, getattr(config, knob_.name)
        if name == "precision":
            require(value in (AUTO, *PRECISIONS), name, value, f"{AUTO}, {' or '.join(PRECISIONS)}")
        if name == "on_nonfinite":
            require(value in ON_NONFINITE, name, value, " or ".join(ON_NONFINITE))
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        require(math.isfinite(value), name, value, "a finite number")
        if name.endswith(_ABOVE_0):
            require(value > 0, name, value, "a number above 0")
        elif name in ("beta1", "beta2"):
            require(0 <= value < 1, name, value, "a number from 0 up, below 1")
        elif name.endswith(_SHARES):
            require(0 <= value <= 1, name, value, "a number from 0 to 1")
        elif name not in _ANY:
            require(value >= 0, name, value, "a number from 0 up")
        if name == "warmup_steps":
            whole = value < 1 or value == int(value)
            require(whole, name, value, "a whole number of steps, or a fraction of them below 1")


_ABOVE_0 = (
    *(
        "_size",
        "_tokens",
        "_length",
        "_epochs",
        "learning_rate",
        "_norm",
        "_epsilon",
        "_every",
        "rank",
        "threads",
    ),
    *("importance_cap", "reward_clip", "stop_kl_per_token", "kl_horizon"),
    *(
        "num_steps",
        "num_iterations",
        "num_processes",
        "num_layers",
        "num_heads",
        "num_members",
        "num_rows",
        "initializer_range",
    ),
)
_ANY = ("seed", "length_coef", "missing_eos_reward", "min_reward")
_SHARES = ("_fraction", "_share", "dropout", "gamma", "gae_lambda")
