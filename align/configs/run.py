"""What surrounds the steps: none of it is in a key, but the seed that steps take over."""

from __future__ import annotations

from dataclasses import dataclass, field

from align.configs.knobs import check_ranges, knob, require


@dataclass(slots=True, kw_only=True)
class HardwareConfig:
    """Where and how a step runs. Outside every key: it changes no number beyond rounding, but for dropout's draws."""

    device: str = knob("auto", "auto, cpu or cuda")
    num_processes: int = knob(1, "of one step, on this machine; each takes its share of every batch")
    threads: int | None = knob(None, "of each process on the CPU; None: torch's own choice")
    micro_batch_tokens: int | None = knob(
        None, "tokens of one pass; None: 4,096 on a GPU, 1,024 on a CPU: less memory, a little slower"
    )
    generation_batch_size: int = knob(256, "responses sampled at once")
    activation_checkpointing: bool | None = knob(
        None, "compute activations twice, to hold fewer; None: where they would take a quarter of the free memory"
    )
    compile: bool = knob(False, "of pretrain: torch.compile each layer, which needs a C++ compiler on a CPU")
    checkpoint_seconds: float = knob(
        20.0, "at least so long between checkpoints, and 20 times what one takes; 0: one after every step"
    )

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
        require(self.project != "", "project", self.project, "a name")


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

    def __post_init__(self) -> None:
        require(self.store != "", "store", self.store, "a folder")
