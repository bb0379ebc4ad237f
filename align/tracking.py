"""Where a run's numbers go besides the JSON lines that are always written: Weights & Biases, or nowhere."""

from __future__ import annotations

import functools
import logging
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from align.configs import TrackerConfig

if TYPE_CHECKING:
    from align.artifacts import Artifact


class Tracker(Protocol):
    """One run: one step of a pipeline. Only the first process of a step has one that does anything."""

    def start(self, name: str, stage: str, config: dict[str, Any], folder: Path) -> None: ...
    def log(self, metrics: dict[str, float], step: int) -> None: ...
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...
    def alert(self, title: str, text: str) -> None: ...
    def log_artifact(self, name: str, version: int, artifact: Artifact) -> None: ...
    def finish(self, exit_code: int = 0) -> None: ...


class NoTracker:
    """The JSON lines in the artifact are enough."""

    def start(self, name: str, stage: str, config: dict[str, Any], folder: Path) -> None:
        pass

    def log(self, metrics: dict[str, float], step: int) -> None:
        pass

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        pass

    def alert(self, title: str, text: str) -> None:
        pass

    def log_artifact(self, name: str, version: int, artifact: Artifact) -> None:
        pass

    def finish(self, exit_code: int = 0) -> None:
        pass


class WandbTracker:
    """Weights & Biases: offline unless a key is set, one run a step, grouped by pipeline run.

    A failure of W&B is reported once and never fails the step.
    """

    def __init__(self, config: TrackerConfig, group: str, root: Path):
        self._config, self._group, self._root = config, group, root
        self._run: Any = None
        self._begin: Callable[[], None] | None = None

    def start(self, name: str, stage: str, config: dict[str, Any], folder: Path) -> None:
        """Name the run of step `name`, which begins with the first thing it is told: a refused step leaves none.

        `folder` keeps its id, so that a killed step goes on in the same run.
        """
        self._begin = functools.partial(self._init, name, stage, config, folder)

    def _init(self, name: str, stage: str, config: dict[str, Any], folder: Path) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        logging.getLogger("wandb").setLevel(logging.ERROR)
        id_file = folder / "wandb_run_id"
        if not id_file.is_file():
            id_file.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        self._root.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=self._config.project,
                entity=self._config.entity,
                group=self._group,
                job_type=stage,
                name=name,
                id=id_file.read_text(encoding="utf-8"),
                resume="allow",
                config=config,
                dir=str(self._root),
                mode=self._mode(),
                settings=wandb.Settings(console="off", silent=True),
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")  # W&B drops what is below its own last step on a resume
        except Exception as error:
            self._give_up(error)

    @staticmethod
    def _mode() -> Any:
        import wandb

        if "WANDB_MODE" in os.environ:
            return os.environ["WANDB_MODE"]
        try:
            return "online" if wandb.login(prompt=False) else "offline"
        except Exception as error:  # a key that cannot be checked now, for want of a network or of validity
            logging.getLogger("align").warning("W&B did not take the key (%s); this step is tracked offline", error)
            return "offline"

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._try(lambda run: run.log({**metrics, "step": step}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._try(send)

    def alert(self, title: str, text: str) -> None:
        self._try(lambda run: run.alert(title=title, text=text))

    def log_artifact(self, name: str, version: int, artifact: Artifact) -> None:
        """Mirror the artifact: its files by reference, our version and digest in the metadata (W&B counts its own)."""

        def send(run: Any) -> None:
            import wandb

            mirror = wandb.Artifact(
                name.replace("/", "."),
                type=artifact.kind,
                metadata={
                    "version": f"v{version}",
                    "digest": artifact.digest,
                    "key": artifact.key,
                    "stage": artifact.stage,
                    "inputs": {
                        slot: [f"{entry['stage']}@{entry['key'][:12]}" for entry in entries]
                        for slot, entries in artifact.manifest["inputs"].items()
                    },
                },
            )
            mirror.add_reference(artifact.path.as_uri())
            run.summary.update(artifact.metrics)
            run.log_artifact(mirror, aliases=[f"v{version}", "latest"])

        self._try(send)

    def finish(self, exit_code: int = 0) -> None:
        self._begin = None
        self._try(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _try(self, send: Any) -> None:
        begin, self._begin = self._begin, None
        if begin is not None:
            begin()
        if self._run is not None:
            try:
                send(self._run)
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        logging.getLogger("align").warning("W&B stopped taking this step's numbers (%s); metrics.jsonl has them", error)
        self._run = None


def make_tracker(config: TrackerConfig, group: str, store: Path) -> Tracker:
    """The tracker of one step; W&B's files go to WANDB_DIR or the store."""
    if config.backend == "none":
        return NoTracker()
    return WandbTracker(config, group, Path(os.environ.get("WANDB_DIR") or store))
