"""The knobs of `evaluate` and `prompt`. Sources: see `align/configs/__init__.py`."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from align.configs.knobs import (
    StageConfig,
    check_ranges,
    knob,
    max_new_tokens_knob,
    precision_knob,
    require,
)
from align.errors import ConfigError
from align.text.forms import read_form

FREE_FORM = ("greedy", "beam")
PROBES = ("brief", "polite", "capitals", "one_sentence")

IFEVAL = "ifeval"  # the task that is align's own
# The metric of `prompt` by which `evaluate` chooses one of several prompted models.
VALIDATION_SCORE = "validation/score"
# Names that a group, a check or a prefix cannot have.
RESERVED = ("", "baseline", "gain", "answers")


@dataclass(slots=True, kw_only=True)
class JudgeConfig:
    """A language model that compares answers, behind an endpoint with OpenAI's chat completions.

    The key of the endpoint is read from OPENAI_API_KEY, if that is set.
    """

    url: str | None = field(
        default=None,
        metadata={
            "comment": (
                "address of the endpoint, as in http://localhost:8000/v1; None: no such judge; not"
                " in the key"
            ),
            "outside_key": True,
        },
    )
    model: str = knob("", "the judge's name at the endpoint")
    likert: bool = knob(False, "also rate every answer from 1 to 7 [InstructGPT]")


@dataclass(slots=True, kw_only=True)
class Evaluate(StageConfig):
    """Score a model on held-out prompts and on tasks, alone and against a baseline."""

    STAGE: ClassVar[str] = "evaluate"
    # 2: fact_recall
    # 3: intervals, baselines, calibration
    # 4: attention
    # 5: figures of few items are marked; functions get messages; precision is auto,
    #    max_new_tokens 256
    # 6: bare values and a wrong yes or no count as made-up facts
    # 7: seen_by_reward_model leaves out PPO's held-out reward models
    VERSION: ClassVar[int] = 7
    MANY: ClassVar[tuple[str, ...]] = ("prompted_base",)
    OUTPUT: ClassVar[str] = "evaluation"
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {
        "judge": ("a language model as judge", JudgeConfig)
    }
    INPUTS: ClassVar[dict[str, str]] = {"model": "model"}
    OPTIONAL: ClassVar[dict[str, str]] = {
        "prompts": "prompts",
        "items": "items",
        "baseline": "model",
        "prompted_base": "model",
        "reward_model": "reward_model",
        "text": "documents",
    }
    split: str = knob(
        "test",
        "split of prompts and items: validation to choose a model, test for the reported figure",
    )
    num_prompts: int | None = knob(None, "held-out prompts to use; None: all there are")
    num_items: int | None = knob(None, "items of each task; None: all there are")
    num_shots: int = knob(
        0, "solved items before each item, from the train split [GPT-3]; also for lm-eval's tasks"
    )
    free_form: str | None = knob(
        None,
        "also generate the answers to items: greedy, or beam for width 4 and length penalty 0.6"
        " [GPT-3]",
    )
    prefixes: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "comment": (
                "'prefixes={NAME: LINE}': also evaluate items and checks with this line before each"
                " item and prompt [InstructGPT: respectful]"
            )
        },
    )
    tasks: list[str] = field(
        default_factory=list,
        metadata={
            "comment": (
                "ifeval: whether answers follow the instructions of IFEval's prompts; lm_eval:NAME"
                " or lm_eval:FILE.yaml: a task of lm-eval, which needs align's extra eval"
            ),
            "reads": "tasks",
        },
    )
    reward_functions: dict[str, float] = field(
        default_factory=dict,
        metadata={
            "comment": (
                "'reward_functions={NAME: WEIGHT}', reward functions that score every answer, as in"
                " PPO: align's own (docs/reference/rewards.md), or MODULE:FUNCTION"
            ),
            "reads": "functions",
        },
    )
    checks: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "comment": (
                "'checks={NAME: \"words:FILE\"}', or classifier:FOLDER#LABEL, a reward of align's"
                " own, MODULE:FUNCTION; checks every answer"
            ),
            "reads": "checks",
        },
    )
    steering: list[str] = field(
        default_factory=list,
        metadata={
            "comment": "probes of how well the model follows a system message: " + ", ".join(PROBES)
        },
    )
    judge: JudgeConfig = field(default_factory=JudgeConfig, metadata={"comment": "see below"})
    max_new_tokens: int | None = max_new_tokens_knob()
    weights: str = knob(
        "raw", "weights of the model: raw, or ema for the moving average that PPO saved"
    )
    num_bootstrap: int = knob(
        2000, "bootstrap resamples of prompts and items for the 95 % intervals [ours]"
    )
    num_samples: int = knob(20, "rows in the table of samples [ours]")
    precision: str = precision_knob()
    seed: int | None = knob(None, "random seed; None: the run's seed")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.split in ("validation", "test"), "split", self.split, "validation or test")
        require(self.weights in ("raw", "ema"), "weights", self.weights, "raw or ema")
        require(
            self.free_form in (None, *FREE_FORM),
            "free_form",
            self.free_form,
            "null, greedy or beam",
        )
        for task in self.tasks:
            require(
                task == IFEVAL or task.startswith("lm_eval:"),
                "tasks",
                task,
                "ifeval, lm_eval:NAME or lm_eval:FILE.yaml",
            )
        for probe in self.steering:
            require(probe in PROBES, "steering", probe, "some of " + ", ".join(PROBES))
        for knob_, names in (("prefixes", self.prefixes), ("checks", self.checks)):
            for name in names:
                ok = "/" not in name and name not in RESERVED
                require(
                    ok,
                    knob_,
                    name,
                    f"a name without a slash, and none of {', '.join(RESERVED[1:])}",
                )
        if self.judge.url is not None:
            require(
                _is_address(self.judge.url),
                "judge.url",
                self.judge.url,
                "http(s)://HOST[:PORT][/PATH], without a key",
            )
            require(
                bool(self.judge.model),
                "judge.model",
                self.judge.model,
                "the judge's name at the endpoint",
            )

    def _judged(self, given: Container[str]) -> bool:
        """Return whether the config says what answers are worth."""
        return bool(
            self.reward_functions
            or self.checks
            or self.steering
            or self.judge.url
            or "reward_model" in given
        )

    def only_instructions(self, given: Container[str]) -> bool:
        """Return whether nothing but the task `ifeval` asks for answers to the prompts."""
        return IFEVAL in self.tasks and not self._judged(given)

    def need_of_gold(self, given: Container[str]) -> str:
        if self._judged(given) or IFEVAL in self.tasks or "prompts" not in given:
            return ""
        return (
            "inputs.reward_model: these prompts have no gold scorer, so a reward model,"
            " reward_functions, checks, steering or a judge.url must say what answers are worth"
        )

    def check_inputs(self) -> None:
        given = {slot for slot, refs in self.inputs.items() if refs}
        if not given & {"prompts", "items", "text"} and not self.tasks:
            raise ConfigError(
                "inputs: expected prompts, items or text, some or all, or tasks: what it is"
                " scored on"
            )
        of_prompts = {"checks": self.checks, "steering": self.steering, "judge": self.judge.url}
        for name, value in {**of_prompts, "reward_functions": self.reward_functions}.items():
            if value and "prompts" not in given:
                raise ConfigError(f"{name}: it judges answers, so expected inputs.prompts too")
        if IFEVAL in self.tasks and "prompts" not in given:
            raise ConfigError(
                "tasks: ifeval checks answers, so expected inputs.prompts too, with the columns"
                " instruction_id_list and kwargs"
            )
        if self.reward_functions and not any(self.reward_functions.values()):
            raise ConfigError(
                "reward_functions: expected a weight other than 0 for one of them, or nothing is"
                " scored"
            )
        if "prompted_base" in given and "prompts" not in given:
            raise ConfigError(
                "inputs.prompted_base: its answers are compared, so expected inputs.prompts too"
            )
        if self.judge.url and "baseline" not in given:
            raise ConfigError("judge: it compares two models, so expected inputs.baseline too")


@dataclass(slots=True, kw_only=True)
class Prompt(StageConfig):
    """Find the plain-text form in which a base model, which has no chat template, answers best.

    align prompt model=mine/base prompts=mine/prompts reward_model=mine/reward
    """

    STAGE: ClassVar[str] = "prompt"
    # 2: the chosen form is scored on other prompts than those that choose it; labels begin a word
    VERSION: ClassVar[int] = 2
    OUTPUT: ClassVar[str] = "model"
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = ((VALIDATION_SCORE, "validation score"),)
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "prompts": "prompts"}
    OPTIONAL: ClassVar[dict[str, str]] = {
        "examples": "demonstrations",
        "reward_model": "reward_model",
    }
    PARALLEL: ClassVar[bool] = False
    forms: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "comment": (
                "'forms={NAME: \"Q: {prompt} A: {response}\"}', tried in addition to the built-in"
                " forms; an answer ends at the text that follows it in the form, or at a label"
                " before {prompt} or {response}"
            )
        },
    )
    num_shots: int = knob(
        0, "solved examples before each prompt, from inputs.examples; 0: zero-shot"
    )
    num_prefixes: int = knob(
        4, "random draws of examples to try in each form [InstructGPT: the best prefix of several]"
    )
    num_prompts: int | None = knob(
        200, "validation prompts that choose the form; None: all there are [ours]"
    )
    max_new_tokens: int | None = max_new_tokens_knob()
    precision: str = precision_knob()
    seed: int | None = knob(None, "random seed; None: the run's seed")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.num_prefixes > 0, "num_prefixes", self.num_prefixes, "a number above 0")
        require(
            self.num_prompts is None or self.num_prompts > 0,
            "num_prompts",
            self.num_prompts,
            "a number above 0",
        )
        for name, text in self.forms.items():
            try:
                read_form(text)
            except ValueError as error:
                raise ConfigError(f"forms.{name}: {error}") from None

    def need_of_gold(self, given: Container[str]) -> str:
        if "reward_model" in given:
            return ""
        return (
            "inputs.reward_model: these prompts have no gold scorer, so a reward model must choose"
            " the form"
        )

    def check_inputs(self) -> None:
        if self.num_shots and not self.inputs.get("examples"):
            raise ConfigError(
                "num_shots: it draws solved examples, so expected inputs.examples too"
            )
        if self.inputs.get("examples") and not self.num_shots:
            raise ConfigError(
                "inputs.examples: give num_shots too, the number of examples before each prompt"
            )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises `ValueError` if it is not a port number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
