"""The contract of every stage: what it takes, what it makes, and its knobs with default, unit and source.

A knob's comment is what `align STAGE --help` prints. A stage's key (see `pipeline.py`) holds the knobs that differ
from the defaults here, so changing a default, or what a knob means, raises the stage's `VERSION`; adding one does not.

Sources: [InstructGPT] Ouyang et al. 2022; [Ziegler] Ziegler et al. 2019 and openai/lm-human-preferences;
[GPT-2] openai/gpt-2; [GPT-3] Brown et al. 2020; [Muon] Jordan et al. 2024 with the scale of Liu et al. 2025;
[LoRA] Hu et al. 2021; [ours] measured or judged here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from align.errors import ConfigError

RECORDS = ("documents", "demonstrations", "comparisons", "prompts")
SPLITS = ("train", "validation", "test")
PRECISIONS = ("fp32", "bf16")


def knob(default: Any, comment: str) -> Any:
    """A dataclass field with its explanation: what it is, its unit, the source of its default."""
    return field(default=default, metadata={"comment": comment})


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name}: expected {allowed}, got {value!r}")


@dataclass(slots=True, kw_only=True)
class StageConfig:
    """What every stage has. Kinds of artifact: the four `RECORDS`, tokenizer, model, reward_model, evaluation."""

    STAGE: ClassVar[str]
    VERSION: ClassVar[int] = 1
    INPUTS: ClassVar[dict[str, str]] = {}  # name -> kind
    OPTIONAL: ClassVar[dict[str, str]] = {}
    OUTPUT: ClassVar[str]  # kind
    PARALLEL: ClassVar[bool] = True  # False: one process does it, whatever hardware.num_processes says
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """The kind of artifact this stage makes."""
        return self.OUTPUT

    def check_inputs(self) -> None:
        """Raise `ConfigError` where a knob needs an input that is not given; inputs are known when it is planned."""

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(config: Any) -> None:
    """Raise `ConfigError` where a number is out of the range that its name implies, whatever the stage."""
    for knob_ in fields(config):
        name, value = knob_.name, getattr(config, knob_.name)
        if name == "precision":
            require(value in PRECISIONS, name, value, " or ".join(PRECISIONS))
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name.endswith(_ABOVE_0):
            require(value > 0, name, value, "a number above 0")
        elif name.endswith(_SHARES):
            require(0 <= value <= 1, name, value, "a number from 0 to 1")
        elif name != "seed":
            require(value >= 0, name, value, "a number from 0 up")


_ABOVE_0 = (
    *("_size", "_tokens", "_length", "_epochs", "learning_rate", "_norm", "_epsilon", "_every", "rank", "threads"),
    *("num_steps", "num_iterations", "num_processes", "num_layers", "num_heads", "num_labelers", "initializer_range"),
)
_SHARES = ("_fraction", "_share", "dropout", "beta1", "beta2", "gamma", "gae_lambda")


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only model, built from the `transformers` config of that architecture."""

    architecture: str = knob("gpt2", "a model type of transformers: gpt2, gpt_neox, llama, qwen3, ... [GPT-2]")
    hidden_size: int = knob(768, "width [GPT-2 small]")
    num_layers: int = knob(12, "[GPT-2 small]")
    num_heads: int = knob(12, "attention heads [GPT-2 small]")
    intermediate_size: int | None = knob(None, "width of the MLP; None: 4 times hidden_size [GPT-2]")
    context_length: int = knob(1024, "tokens [GPT-2]")
    dropout: float = knob(0.1, "in pretraining and SFT, of embeddings, attention and residuals [GPT-2]")
    initializer_range: float = knob(0.02, "standard deviation of the initial weights [GPT-2]")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters, merged into the published weights."""

    rank: int | None = knob(None, "of each adapter, 8 in [LoRA, table 6]; None: no adapters, all weights are trained")
    alpha: float = knob(16.0, "the update is scaled by alpha / rank [ours: 2 ranks]")
    dropout: float = knob(0.0, "before the adapter [ours]")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(slots=True, kw_only=True)
class Data(StageConfig):
    """Rows from a card, a file or the Hub, checked and split, as a dataset artifact."""

    STAGE: ClassVar[str] = "data"
    PARALLEL: ClassVar[bool] = False
    source: str = knob("", "card:NAME, path:FILE_OR_FOLDER or hf:ORG/NAME@COMMIT")
    record: str = knob("documents", "what the rows become: " + ", ".join(RECORDS))
    splits: list[str] = field(
        default_factory=lambda: ["train", "validation", "test"], metadata={"comment": "which splits to keep"}
    )
    train_rows: int | None = knob(None, "at most so many rows; None: all there are")
    validation_rows: int | None = knob(None, "at most so many rows; None: all there are")
    test_rows: int | None = knob(None, "at most so many rows; None: all there are")
    max_chars: int | None = knob(None, "longer rows are dropped and counted, documents cut; characters; None: no limit")
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"comment": "of a card that generates its rows: world_seed, flaw_share"}
    )

    @property
    def output(self) -> str:
        return self.record

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.record in RECORDS, "record", self.record, "one of " + ", ".join(RECORDS))
        for split in self.splits:
            require(split in SPLITS, "splits", split, "train, validation or test")


@dataclass(slots=True, kw_only=True)
class Tokenizer(StageConfig):
    """Train a byte-level BPE tokenizer with a chat template."""

    STAGE: ClassVar[str] = "tokenizer"
    PARALLEL: ClassVar[bool] = False
    OUTPUT: ClassVar[str] = "tokenizer"
    INPUTS: ClassVar[dict[str, str]] = {"data": "documents"}
    vocab_size: int = knob(50_257, "entries, special tokens and the 256 bytes among them [GPT-2]")
    num_documents: int | None = knob(None, "train on the first so many; None: all")


@dataclass(slots=True, kw_only=True)
class Pretrain(StageConfig):
    """Train a decoder-only GPT on documents, from scratch or on from a model."""

    STAGE: ClassVar[str] = "pretrain"
    OUTPUT: ClassVar[str] = "model"
    INPUTS: ClassVar[dict[str, str]] = {"data": "documents"}
    OPTIONAL: ClassVar[dict[str, str]] = {"tokenizer": "tokenizer", "model": "model"}
    model: ModelConfig = field(default_factory=ModelConfig, metadata={"comment": "see align/configs.py, ModelConfig"})
    num_steps: int = knob(10_000, "optimizer steps")
    batch_size: int = knob(512, "rows an optimizer step [GPT-2]")
    sequence_length: int | None = knob(None, "tokens a row; None: the model's context")
    optimizer: str = knob(
        "adamw",
        "adamw, or muon for the hidden matrices with undecayed adamw for the rest [GPT-3; Muon]",
    )
    learning_rate: float = knob(6e-4, "peak [GPT-3 small]")
    warmup_steps: int = knob(200, "linear, from 0 [ours; GPT-3: 375M tokens]")
    final_learning_rate_fraction: float = knob(0.1, "of the peak, where the cosine ends [GPT-3]")
    weight_decay: float = knob(0.1, "decoupled, on matrices only [GPT-3]")
    beta1: float = knob(0.9, "Adam [GPT-3]")
    beta2: float = knob(0.95, "Adam [GPT-3]")
    max_grad_norm: float = knob(1.0, "global norm of the gradient [GPT-3]")
    eval_every: int = knob(200, "steps between held-out losses [ours]")
    precision: str = knob("fp32", "fp32, or bf16 autocast over fp32 weights")
    seed: int | None = knob(None, "None: the run's seed")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.optimizer in ("adamw", "muon"), "optimizer", self.optimizer, "adamw or muon")

    def check_inputs(self) -> None:
        given = [slot for slot in ("tokenizer", "model") if self.inputs.get(slot)]
        require(len(given) == 1, "inputs", given, "a tokenizer (to begin) or a model (to train on), and not both")


@dataclass(slots=True, kw_only=True)
class Sft(StageConfig):
    """Supervised tuning on demonstrations with trl.SFTTrainer: loss on the assistant's tokens only."""

    STAGE: ClassVar[str] = "sft"
    OUTPUT: ClassVar[str] = "model"
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "data": "demonstrations"}
    OPTIONAL: ClassVar[dict[str, str]] = {"text": "documents"}
    num_epochs: int = knob(2, "passes over the demonstrations [InstructGPT, the model RL starts from]")
    batch_size: int = knob(32, "packed rows an optimizer step [InstructGPT, 1.3B: 32 demonstrations]")
    sequence_length: int | None = knob(None, "tokens a packed row; None: the model's context")
    learning_rate: float = knob(5e-6, "peak [InstructGPT, 1.3B]")
    warmup_steps: int = knob(0, "linear [InstructGPT]")
    final_learning_rate_fraction: float = knob(0.1, "of the peak, where the cosine ends [InstructGPT]")
    weight_decay: float = knob(0.0, "decoupled [ours]")
    max_grad_norm: float = knob(1.0, "global norm of the gradient [GPT-3]")
    text_share: float = knob(0.0, "share of pretraining text in the training tokens; [InstructGPT] has 0.1 before RL")
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"comment": "see below"})
    precision: str = knob("fp32", "fp32, or bf16 autocast over fp32 weights")
    seed: int | None = knob(None, "None: the run's seed")

    def check_inputs(self) -> None:
        ok = self.text_share == 0 or (self.text_share < 1 and bool(self.inputs.get("text")))
        require(ok, "text_share", self.text_share, "0, or a share below 1 and inputs.text too")


@dataclass(slots=True, kw_only=True)
class Compare(StageConfig):
    """Sample several responses to each prompt and have simulated labelers rank them."""

    STAGE: ClassVar[str] = "compare"
    OUTPUT: ClassVar[str] = "comparisons"
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "prompts": "prompts"}
    num_prompts: int | None = knob(None, "training prompts; None: all there are")
    num_validation_prompts: int | None = knob(None, "held-out prompts; None: all there are")
    num_responses: int = knob(4, "sampled for each prompt, K [InstructGPT: 4 to 9]")
    num_strays: int = knob(0, "responses to other prompts added to each training ranking [ours; the paper has none]")
    temperature: float = knob(1.0, "of sampling [InstructGPT, RL]")
    max_new_tokens: int = knob(64, "tokens a response [ours]")
    num_labelers: int = knob(40, "[InstructGPT: about 40]")
    agreement: float = knob(0.73, "share of pairs that two labelers order alike [InstructGPT: 72.6 +- 1.5 %]")
    tie_width: float = knob(0.05, "liking closer than this is ranked a tie, in gold score [ours]")
    seed: int | None = knob(None, "None: the run's seed")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.num_responses >= 2, "num_responses", self.num_responses, "at least 2")
        require(0.5 < self.agreement < 1, "agreement", self.agreement, "a number between 0.5 and 1")


@dataclass(slots=True, kw_only=True)
class Reward(StageConfig):
    """Train a reward model on rankings with InstructGPT's K-wise loss."""

    STAGE: ClassVar[str] = "reward"
    OUTPUT: ClassVar[str] = "reward_model"
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "data": "comparisons"}
    OPTIONAL: ClassVar[dict[str, str]] = {"demonstrations": "demonstrations"}
    num_epochs: int = knob(1, "passes; a second one overfits [InstructGPT]")
    batch_size: int = knob(64, "prompts an optimizer step, all responses of each [InstructGPT]")
    learning_rate: float = knob(9e-6, "peak [InstructGPT, 6B]")
    warmup_steps: int = knob(0, "linear [InstructGPT]")
    final_learning_rate_fraction: float = knob(0.1, "of the peak, where the cosine ends [InstructGPT]")
    weight_decay: float = knob(0.0, "decoupled, on matrices only [ours]")
    max_grad_norm: float = knob(1.0, "global norm of the gradient [GPT-3]")
    precision: str = knob("fp32", "of the forward pass; the score itself is always fp32")
    seed: int | None = knob(None, "None: the run's seed")


@dataclass(slots=True, kw_only=True)
class Ppo(StageConfig):
    """Tune a policy against a reward model, held near where it started."""

    STAGE: ClassVar[str] = "ppo"
    OUTPUT: ClassVar[str] = "model"
    INPUTS: ClassVar[dict[str, str]] = {"policy": "model", "reward_model": "reward_model", "prompts": "prompts"}
    OPTIONAL: ClassVar[dict[str, str]] = {"text": "documents"}
    num_iterations: int = knob(500, "rollouts and their updates [InstructGPT: 256k episodes / 512]")
    rollout_batch_size: int = knob(512, "responses a rollout [InstructGPT]")
    minibatch_size: int = knob(64, "responses an optimizer step [InstructGPT]")
    num_epochs: int = knob(1, "passes over each rollout [InstructGPT]")
    learning_rate: float = knob(5e-6, "of the policy [InstructGPT: 2.55e-6 to 2.55e-5, final value not printed]")
    value_learning_rate: float = knob(9e-6, "of the value model [InstructGPT]")
    warmup_iterations: int = knob(10, "linear from a tenth of the peak, then constant [InstructGPT]")
    kl_coef: float = knob(0.02, "beta, per nat of KL to the first policy [InstructGPT]")
    gamma: float = knob(1.0, "discount a token [InstructGPT: none]")
    gae_lambda: float = knob(0.95, "[Ziegler]")
    clip_range: float = knob(0.2, "of the probability ratio [InstructGPT]")
    value_clip_range: float | None = knob(0.2, "of the value, in reward units; None: no clipping [Ziegler]")
    temperature: float = knob(1.0, "of sampling, and of every log-prob [InstructGPT]")
    max_new_tokens: int = knob(64, "tokens a response [ours; InstructGPT: 1,024]")
    missing_eos_penalty: float = knob(1.0, "taken off the score of a response that was cut off [ours; TRL]")
    whiten_rewards: bool = knob(False, "scale a rollout's rewards to a deviation of 1, mean kept [ours; Ziegler: on]")
    ptx_coef: float = knob(0.0, "weight of the pretraining loss (mean nats a token); needs text [InstructGPT: 27.8]")
    ptx_batch_size: int = knob(8, "rows of text an optimizer step [ours; InstructGPT: 8 examples an episode]")
    adam_epsilon: float = knob(1e-5, "[Ziegler]")
    beta2: float = knob(0.95, "Adam [InstructGPT]")
    weight_decay: float = knob(0.0, "decoupled [ours]")
    max_grad_norm: float = knob(1.0, "global norm of each gradient [ours]")
    precision: str = knob("fp32", "fp32, or bf16 autocast over fp32 weights")
    seed: int | None = knob(None, "None: the run's seed")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.rollout_batch_size % self.minibatch_size == 0,
            "minibatch_size",
            self.minibatch_size,
            f"a divisor of rollout_batch_size ({self.rollout_batch_size})",
        )
        require(self.temperature > 0, "temperature", self.temperature, "a number above 0")
        require(0 < self.clip_range < 1, "clip_range", self.clip_range, "a number between 0 and 1")

    def check_inputs(self) -> None:
        require(self.ptx_coef == 0 or bool(self.inputs.get("text")), "ptx_coef", self.ptx_coef, "0, or inputs.text too")


@dataclass(slots=True, kw_only=True)
class Evaluate(StageConfig):
    """Score a model on held-out prompts, alone and against a baseline."""

    STAGE: ClassVar[str] = "evaluate"
    OUTPUT: ClassVar[str] = "evaluation"
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "prompts": "prompts"}
    OPTIONAL: ClassVar[dict[str, str]] = {"baseline": "model", "reward_model": "reward_model", "text": "documents"}
    num_prompts: int | None = knob(None, "held-out prompts, from the test split; None: all there are")
    max_new_tokens: int = knob(64, "tokens a response [ours]")
    num_bootstrap: int = knob(2000, "resamples of the prompts for the 95 % interval [ours]")
    num_samples: int = knob(20, "rows of the table of samples [ours]")
    precision: str = knob("fp32", "fp32, or bf16 autocast")
    seed: int | None = knob(None, "None: the run's seed")


@dataclass(slots=True, kw_only=True)
class ImportModel(StageConfig):
    """Bring a causal language model in from the Hub or a local folder."""

    STAGE: ClassVar[str] = "import_model"
    PARALLEL: ClassVar[bool] = False
    OUTPUT: ClassVar[str] = "model"
    source: str = knob("", "hf:ORG/NAME@COMMIT or path:FOLDER")


@dataclass(slots=True, kw_only=True)
class HardwareConfig:
    """Where and how a step runs. Outside every key: it changes no number beyond rounding, but for dropout's draws."""

    device: str = knob("auto", "auto, cpu or cuda")
    num_processes: int = knob(1, "of one step, under torchrun; each takes its share of every batch")
    threads: int | None = knob(None, "of each process on the CPU; None: torch's own choice")
    micro_batch_tokens: int = knob(4096, "tokens of one forward and backward pass")
    generation_batch_size: int = knob(256, "responses sampled at once")
    checkpoint_seconds: float = knob(20.0, "at least so long between checkpoints; 0: one after every step")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.device in ("auto", "cpu", "cuda"), "device", self.device, "auto, cpu or cuda")


@dataclass(slots=True, kw_only=True)
class TrackerConfig:
    """Where numbers go besides metrics.jsonl."""

    backend: str = knob("wandb", "wandb (offline unless a key is set) or none")
    project: str = knob("align", "W&B project")
    entity: str | None = knob(None, "W&B team or user")

    def __post_init__(self) -> None:
        require(self.backend in ("wandb", "none"), "backend", self.backend, "wandb or none")


@dataclass(slots=True, kw_only=True)
class RunConfig:
    """What surrounds the steps. None of it is in a key, but `seed` where a step takes the run's."""

    name: str = knob("", "of the pipeline; of one stage PIPELINE/STEP, else own/STAGE")
    store: str = knob("artifacts", "folder of the artifacts")
    seed: int = knob(0, "of every step that does not set its own")
    step: str | None = knob(None, "only this step and what it needs")
    data_root: str | None = knob(None, "folder with the files that data cards name; None: the Hub")
    json: bool = knob(False, "print JSON alone on standard output; --json for short")
    debug: bool = knob(False, "show tracebacks")
    check_data: bool = knob(False, "align plan: read and check the rows of every data step")
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


STAGES: dict[str, type[StageConfig]] = {
    cls.STAGE: cls for cls in (Data, Tokenizer, Pretrain, Sft, Compare, Reward, Ppo, Evaluate, ImportModel)
}


def stage_class(name: str) -> type[StageConfig]:
    """The config class of a stage, or a `ConfigError` that suggests one."""
    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"unknown stage {name!r}{hint}; stages: {', '.join(STAGES)}")
    return STAGES[name]
