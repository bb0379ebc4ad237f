"""Trackers, which get a run's metrics in addition to the JSON lines: Weights & Biases, or none."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from align.configs import STAGES, StageConfig, TrackerConfig
from align.store.artifacts import read_json_lines

if TYPE_CHECKING:
    from align.store.artifacts import Artifact

_ASK_SECONDS = 5.0  # to wait for any answer of W&B; without one the rest of the command is offline
_INIT_SECONDS = 15.0  # to wait for W&B to accept a run
_LOOKUP_SECONDS = 10  # for one lookup of an artifact, and for all lookups of a step
# To wait for uploads at the end. The rest stays in W&B's folder, for `wandb sync`.
_FINISH_SECONDS = 30.0
_TAG_LENGTH = 64  # W&B refuses longer tags
_said: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """A description of a step for its tracker.

    All values are plain, so that it can be sent to a rank in another process.

    Attributes:
        name: PIPELINE/STEP.
        stage: the step's stage.
        group: the name of this run of a pipeline, or of the sweep.
        tags: the pipeline, the stage, and in a sweep its name and the overrides that change this
            step.
        config: the step's knobs, with `step` (PIPELINE/STEP), `overrides` and `parents`.
        parents: for each input artifact all its names (`PIPELINE/STEP`) and its digest.
    """

    name: str
    stage: str
    group: str
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    parents: list[tuple[list[str], str]] = field(default_factory=list)


class Tracker(Protocol):
    """A tracker of one run, that is, of one step of a pipeline.

    Of several ranks only rank 0 has one that sends anything.
    """

    def start(self, tracked: Tracked, folder: Path) -> None: ...
    def log(self, metrics: dict[str, float], step: int) -> None: ...
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...
    def alert(self, title: str, text: str) -> None: ...
    def log_artifact(self, version: int, aliases: Sequence[str], artifact: Artifact) -> None: ...
    def finish(self, exit_code: int = 0) -> None: ...


class NoTracker:
    """A tracker that does nothing."""

    def start(self, tracked: Tracked, folder: Path) -> None:
        pass

    def log(self, metrics: dict[str, float], step: int) -> None:
        pass

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        pass

    def alert(self, title: str, text: str) -> None:
        pass

    def log_artifact(self, version: int, aliases: Sequence[str], artifact: Artifact) -> None:
        pass

    def finish(self, exit_code: int = 0) -> None:
        pass


class WandbTracker:
    """A tracker that writes to Weights & Biases, offline unless a key is set.

    Each step is one run. Runs are grouped by pipeline run or by sweep. A failure of W&B is reported
    once. It never fails the step, and delays it at most by the limits above.
    """

    def __init__(self, config: TrackerConfig, root: Path):
        self._config, self._root = config, root
        self._run: Any = None
        self._tracked = Tracked(name="", stage="", group="")
        self._folder: Path | None = None  # the step's folder until the run has started
        self._seen = 0.0  # the last step that the service has from an earlier process

    def start(self, tracked: Tracked, folder: Path) -> None:
        """Prepare the run of a step.

        The run starts with the first thing that is sent, so that a refused step leaves no run.

        Args:
            tracked: the description of the step.
            folder: the step's work folder. It keeps the run's id, so that a killed step continues
                in the same run.
        """
        self._tracked, self._folder = tracked, folder

    def log(self, metrics: dict[str, float], step: int) -> None:
        def send(run: Any) -> None:
            if step >= self._seen:  # steps repeated after a kill have the same metrics as before
                run.log({**self._named(metrics), axis_of(self._tracked.stage): step})

        self._try(send)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        def send(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            run.log(self._named({name: table}))

        self._try(send)

    def alert(self, title: str, text: str) -> None:
        self._try(lambda run: run.alert(title=title, text=text))

    def log_artifact(self, version: int, aliases: Sequence[str], artifact: Artifact) -> None:
        """Log the artifact: its files by reference, our version and digest in metadata and aliases.

        W&B has its own version numbers, and its client fails on an artifact with two aliases like
        `v3`. So our alias is `align-v3`. The run's name gets the version only now, because a failed
        step has no version.
        """

        def send(run: Any) -> None:
            import wandb

            mirror = wandb.Artifact(
                _mirror_name(self._tracked.name),
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
            run.summary.update(
                self._named({**artifact.metrics, "time/seconds": artifact.manifest["seconds"]})
            )
            run.log_artifact(
                mirror, aliases=[*aliases, f"align-v{version}", _digest_alias(artifact.digest)]
            )
            run.name = f"{self._tracked.name}:v{version}"

        self._try(send)

    def finish(self, exit_code: int = 0) -> None:
        self._folder = None
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            os.environ["WANDB_MODE"] = "offline"
            kept = Path(run.dir).parent
            _say(
                self._tracked.name,
                f"not all reached W&B ({error}); wandb sync {kept} sends it; offline from here on",
            )

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {metric_name(self._tracked.stage, name): value for name, value in values.items()}

    # -- failures ----------------------------------------------------------------------------------

    def _try(self, send: Callable[[Any], None]) -> None:
        folder, self._folder = self._folder, None
        try:
            if folder is not None:
                self._begin(folder)
            if self._run is not None:
                send(self._run)
        except Exception as error:
            _say(
                self._tracked.name,
                f"W&B stopped taking this step's numbers ({error}); metrics.jsonl has them",
            )
            self.finish(exit_code=1)

    def _begin(self, folder: Path) -> None:
        """Start the run, or resume it.

        If the service does not accept it, this run and the rest of the command are tracked offline.

        Args:
            folder: the step's work folder, which keeps the run's id.
        """
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(_LOOKUP_SECONDS))
        # Otherwise `wandb sync` would need this user's home folder.
        os.environ.setdefault("WANDB_DATA_DIR", str(self._root / "wandb"))
        import wandb

        logging.getLogger("wandb").setLevel(logging.ERROR)
        self._root.mkdir(parents=True, exist_ok=True)
        id_file = folder / "wandb_run_id"
        if not id_file.is_file():
            id_file.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        run_id = id_file.read_text(encoding="utf-8")
        # Missing once the artifact is committed. By then rank 0, which may be another process, has
        # sent everything.
        out = folder / "out"
        for left in self._root.glob(f"wandb/offline-run-*-{run_id}") if out.is_dir() else ():
            # From a killed process: often incomplete, so that `wandb sync` refuses it.
            shutil.rmtree(left, ignore_errors=True)
        mode = os.environ.get("WANDB_MODE", "")
        try:
            mode = mode or ("online" if wandb.login(prompt=False, verify=False) else "offline")
            if mode == "online":
                _ask(wandb.setup().settings.base_url)
            self._run = self._init(run_id, mode)
        except Exception as error:
            if mode not in ("", "online"):
                raise
            what = "W&B does not answer or refuses; tracked offline from here on, for wandb sync"
            _say(self._tracked.name, f"{what} ({error})")
            os.environ["WANDB_MODE"] = "offline"
            wandb.teardown()  # else it keeps the run's id, and tries again until the command ends
            self._run = self._init(run_id, "offline")
        _use_parents(self._run, self._tracked)
        self._catch_up(out)

    def _catch_up(self, out: Path) -> None:
        """Send what a killed process had logged. The service may lack all of it, or the end."""
        if self._run.resumed:
            self._seen = self._run.summary.get(axis_of(self._tracked.stage)) or 0.0
        else:
            for event in read_json_lines(out / "events.jsonl"):
                self._run.alert(title=event["name"], text=event["message"])
        for row in read_json_lines(out / "metrics.jsonl"):
            self.log(row, int(row.pop("step")))

    def _init(self, run_id: str, mode: str) -> Any:
        import wandb

        tracked = self._tracked
        run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            group=tracked.group,
            job_type=tracked.stage,
            name=tracked.name,
            tags=[tag[:_TAG_LENGTH] for tag in tracked.tags],
            id=run_id,
            resume="allow",
            reinit="create_new",  # leave runs of the user alone, such as one in a reward function
            config=tracked.config,
            dir=str(self._root),
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=_INIT_SECONDS,
                finish_timeout=_FINISH_SECONDS,
                finish_timeout_raises=True,
                x_graphql_retry_max=1,
            ),
        )
        # W&B's own step counts calls: a table counts as one, and a resumed run does not start at 0.
        run.define_metric(axis_of(tracked.stage))
        run.define_metric(f"{tracked.stage}/*", step_metric=axis_of(tracked.stage))
        return run


def metric_name(stage: str, name: str) -> str:
    """Return W&B's name of a metric, such as `pretrain/loss`.

    The stage is part of it, because W&B's panels show all stages together.
    """
    return name if name.startswith(f"{stage}/") else f"{stage}/{name}"


def axis_of(stage: str) -> str:
    """Return the metric that counts a stage's steps."""
    return f"{stage}/{STAGES.get(stage, StageConfig).AXIS}"


def make_tracker(config: TrackerConfig, store: Path) -> Tracker:
    """Return the tracker of one step. W&B's files go to WANDB_DIR, else to the store."""
    if config.backend == "none":
        return NoTracker()
    return WandbTracker(config, Path(os.environ.get("WANDB_DIR") or store).absolute())


def _ask(url: str) -> None:
    """Raise an error if nothing answers at `url`.

    The client of W&B would try for longer, and delay the end of the command.
    """
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(url, timeout=_ASK_SECONDS).close()


def _use_parents(run: Any, tracked: Tracked) -> None:
    """Tell W&B which artifacts the step reads.

    An offline run cannot do this. It has the digests in its config.
    """
    if run.offline:
        return
    begun, missing = time.monotonic(), []
    for names, digest in tracked.parents:
        for name in names:
            try:
                if time.monotonic() - begun < _LOOKUP_SECONDS:
                    run.use_artifact(f"{_mirror_name(name)}:{_digest_alias(digest)}")
                    break
            except Exception:  # the artifact was made without W&B, or under another name
                continue
        else:
            missing.append(names[0] if names else digest[:12])
    if unsaid := [name for name in missing if name not in _said]:
        _said.update(unsaid)
        _say(
            tracked.name,
            f"W&B does not know {', '.join(unsaid)}; the digests are in the run's config",
        )


def _mirror_name(name: str) -> str:
    return name.replace("/", ".")


def _digest_alias(digest: str) -> str:
    return f"sha256-{digest[:12]}"


def _say(name: str, message: str) -> None:
    print(f"  {name}: {' '.join(message.split())}", file=sys.stderr, flush=True)
