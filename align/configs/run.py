"""The settings of a run. None is part of a key, except the seed if a step takes the run's."""

from __future__ import annotations

from dataclasses import dataclass, field

from align.configs.knobs import check_ranges, knob, require


@dataclass(slots=True, kw_only=True)
class HardwareConfig:
    """Where and how a step runs.

    These settings are in no key: they change results only by rounding and by the draws of dropout.
    """

    device: str = knob("auto", "auto, cpu or cuda")
    num_processes: int = knob(
        1, "processes per step, on this machine; each computes its part of every batch"
    )
    threads: int | None = knob(None, "CPU threads of each process; None: torch's own choice")
    micro_batch_tokens: int | None = knob(
        None,
        "tokens per forward and backward pass; None: 4,096 on a GPU, 1,024 on a CPU: less memory, a"
        " little slower",
    )
    generation_batch_size: int = knob(256, "responses sampled at once")
    activation_checkpointing: bool | None = knob(
        None,
        "compute activations twice to store fewer of them; None: where they would take a quarter of"
        " the free memory",
    )
    compile: bool = knob(
        False, "pretrain only: torch.compile each layer; on a CPU this needs a C++ compiler"
    )
    checkpoint_seconds: float = knob(
        20.0,
        "least seconds between checkpoints, but at least 20 times what one takes; 0: one after"
        " every step",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.device in ("auto", "cpu", "cuda"), "device", self.device, "auto, cpu or cuda")


@dataclass(slots=True, kw_only=True)
class TrackerConfig:
    """The service that receives metrics in addition to metrics.jsonl."""

    backend: str = knob("wandb", "wandb (offline unless a key is set) or none")
    project: str = knob("align", "W&B project")
    entity: str | None = knob(None, "W&B team or user")

    def __post_init__(self) -> None:
        require(self.backend in ("wandb", "none"), "backend", self.backend, "wandb or none")
        require(self.project != "", "project", self.project, "a name")


@dataclass(slots=True, kw_only=True)
class RunConfig:
    """The settings of a run. None is part of a key, except `seed` if a step takes the run's."""

    name: str = knob(
        "", "name of the pipeline; for one stage PIPELINE/STEP, or own/STAGE if not given"
    )
    store: str = knob("artifacts", "folder of the artifacts")
    seed: int = knob(0, "random seed of every step that does not set its own")
    step: str | None = knob(None, "run only this step and the steps it needs")
    data_root: str | None = knob(None, "folder with the files that data cards name; None: the Hub")
    json: bool = knob(False, "print only JSON on standard output; --json for short")
    debug: bool = knob(False, "show tracebacks")
    check_data: bool = knob(False, "align plan: read and check the rows of every data step")
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)

    def __post_init__(self) -> None:
        require(self.store != "", "store", self.store, "a folder")
