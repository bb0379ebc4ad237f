"""Run the steps of a plan one after the other, except those whose artifact exists.

The runner, not the stage, makes the artifact. It holds the step's lock, verifies the inputs, gives
the stage a work folder, commits the result and points the step's name at it. Nothing here imports
torch before a step runs.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from align.configs import HardwareConfig, RunConfig
from align.configs.knobs import READ_AS_IT_RUNS, READ_AT_START
from align.errors import AlignError, ConfigError, HealthStop, StoreError, Waiting
from align.pipeline.plan import Source, Step, data_digest
from align.report.listing import remember
from align.runtime.cpu import cores
from align.runtime.signals import Stop
from align.runtime.tracking import Tracked, make_tracker
from align.store.artifacts import NOTE, Artifact, ArtifactStore, write_json
from align.store.provenance import code_version, packages
from align.store.sweep_records import Member

if TYPE_CHECKING:
    from align.runtime.job import Inputs

Lineage = dict[str, list[dict[str, str]]]

_KEPT = ("checkpoints", "judgements.jsonl")  # in a work folder: the files that a step resumes from


@dataclass(slots=True)
class Outcome:
    """The result of a step.

    Attributes:
        step: the step.
        artifact: its artifact.
        version: the version of the step's name that points at the artifact.
        cached: whether the artifact existed before.
        seconds: the time that the step took.
    """

    step: Step
    artifact: Artifact
    version: int
    cached: bool
    seconds: float

    def described(self) -> dict[str, Any]:
        return {
            "step": self.step.label,
            "ref": f"{self.step.label}:v{self.version}",
            "artifact": self.artifact.ref,
            "key": self.artifact.key,
            "cached": self.cached,
            "seconds": round(self.seconds, 3),
            "metrics": self.artifact.metrics,
            "path": str(self.artifact.path),
        }


def run_step(step: Step, store: ArtifactStore, settings: RunConfig, tracked: Tracked) -> Outcome:
    """Make the step's artifact unless it exists, and point the step's name at it.

    Raises:
        Preempted: a signal asked to stop.
    """
    begun, stop = time.monotonic(), Stop()
    there = store.get(step.stage, step.key)
    published = store.published(step.label, there) if there is not None else None
    if there is not None and published is not None:  # nothing to write: a read-only store works
        store.clear_work(step.stage, step.key)
        return Outcome(step, there, published, cached=True, seconds=time.monotonic() - begun)
    waiting = f"  {step.label}: another process makes it; waiting"
    with store.claim(step.stage, step.key, waiting) as work:
        with store.in_use():
            artifact = store.get(step.stage, step.key)
            cached = artifact is not None
            version = store.publish(step.label, artifact) if artifact is not None else 0
        if artifact is None:
            with stop.listening():
                artifact, version = _make(step, store, settings, tracked, work, stop)
    if stop.signal is not None:  # the signal came too late for the stage to notice
        raise stop.error(f"stopped when {step.label} was done")
    return Outcome(step, artifact, version, cached, time.monotonic() - begun)


def _make(
    step: Step, store: ArtifactStore, settings: RunConfig, tracked: Tracked, work: Path, stop: Stop
) -> tuple[Artifact, int]:
    """Run the stage, and return the artifact and the number of its version."""
    from align.pipeline.worker import run_ranks, run_stage
    from align.runtime.job import Job

    if step.config.reads(*READ_AT_START):  # the plan may be hours old; functions are imported now
        _refuse_changed(step, settings, store)
    begun = time.monotonic()
    inputs, note = _begin(step, store, work)
    tracker = make_tracker(settings.tracker, store.root)
    try:
        store.verify(*(each for group in inputs.values() for each in group))
        lineage = _lineage(step, inputs)
        tracked = _with_parents(tracked, lineage, inputs, store)
        tracker.start(tracked, work)
        if settings.hardware.num_processes > 1 and step.config.PARALLEL:
            metrics = run_ranks(step.config, inputs, tracked, work, settings, stop)
        else:
            job = Job(step.label, work, settings, tracker, stop)
            metrics = run_stage(step.config, inputs, job)
        _require_finite(step, metrics, work)
        if step.config.reads(*READ_AS_IT_RUNS):
            _refuse_changed(step, settings, store)
        manifest = _manifest(step, lineage, metrics, begun, settings.hardware)
        artifact = store.commit(step.stage, step.key, work / "out", manifest)
        version = store.publish(step.label, artifact)
        remember(store, step.label, version)
        aliases = [alias for alias, number in store.each_alias(step.label) if number == version]
        tracker.log_artifact(version, aliases, artifact)
    except BaseException as error:
        tracker.finish(exit_code=0 if isinstance(error, Waiting) else 1)
        _leave(work, note, error)
        raise
    tracker.finish()
    return artifact, version


def _begin(step: Step, store: ArtifactStore, work: Path) -> tuple[Inputs, dict[str, Any]]:
    """Prepare the work folder of a step.

    The output of an earlier process is removed, unless that process saved a checkpoint.

    Returns:
        The inputs of the step, and the note in its work folder.
    """
    from align.pipeline.worker import wait_for_ranks
    from align.runtime.job import Inputs

    reads = [[source.stage, source.key] for sources in step.inputs.values() for source in sources]
    note = {"name": step.label, "begun": time.time(), "inputs": reads}
    with store.in_use():
        inputs = Inputs(
            {
                slot: tuple(_found(source, store) for source in group)
                for slot, group in step.inputs.items()
            }
        )
        write_json(work / NOTE, note)  # for garbage collection, and for reports on unfinished steps
    wait_for_ranks(work, step.label)
    if not (work / "checkpoints").exists():
        shutil.rmtree(work / "out", ignore_errors=True)
    (work / "out").mkdir(exist_ok=True)
    return inputs, note


def _require_finite(step: Step, metrics: Mapping[str, float], work: Path) -> None:
    """Raise `HealthStop` if a metric of the result is not finite: then nothing is published."""
    if broken := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise HealthStop(
            f"{step.label}: {', '.join(broken)}: not a finite number, so nothing is published; "
            f"metrics.jsonl in {work / 'out'} shows where it began"
        )


def _leave(work: Path, note: dict[str, Any], error: BaseException) -> None:
    """Clean up the work folder of a failed step.

    If the user or the store was at fault and there is nothing to resume from, the folder is
    emptied. Otherwise the error is added to the note, for the next process and for reports.
    """
    has_begun = any((work / name).exists() for name in _KEPT)
    with contextlib.suppress(OSError):  # a full disk or a missing folder must not hide the error
        if isinstance(error, ConfigError | StoreError | Waiting) and not has_begun:
            _clear(work)
        else:
            said = str(error) or type(error).__name__
            code = error.exit_code if isinstance(error, AlignError) else AlignError.exit_code
            write_json(work / NOTE, note | {"error": said, "exit_code": code})


def _refuse_changed(step: Step, settings: RunConfig, store: ArtifactStore) -> None:
    """Raise `ConfigError` if files outside the store that a step reads changed after the plan."""
    if data_digest(step.name, step.config, settings, store) != step.data_digest:
        if "votes" in step.config.reads().values():
            raise Waiting(
                f"steps.{step.name}: people gave more after the plan; give the same command again"
            )
        raise ConfigError(
            f"steps.{step.name}: files that it reads were changed after the plan; give the same"
            " command again"
        )


def _with_parents(
    tracked: Tracked,
    lineage: Lineage,
    inputs: dict[str, tuple[Artifact, ...]],
    store: ArtifactStore,
) -> Tracked:
    artifacts = [artifact for group in inputs.values() for artifact in group]
    names = [
        [name.partition(":")[0] for name in store.names_of(artifact)] for artifact in artifacts
    ]
    parents = [(known, artifact.digest) for known, artifact in zip(names, artifacts, strict=True)]
    return replace(tracked, config=tracked.config | {"parents": lineage}, parents=parents)


def _clear(work: Path) -> None:
    for path in work.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _found(source: Source, store: ArtifactStore) -> Artifact:
    artifact = store.get(source.stage, source.key)
    if artifact is None:
        raise StoreError(
            f"{source.ref}: gone since the step was planned; give the same command again"
        )
    return artifact


def _lineage(step: Step, inputs: dict[str, tuple[Artifact, ...]]) -> Lineage:
    """Return for each input the reference as written, and its resolved key, digest and seal."""
    refs = {slot: [source.ref for source in sources] for slot, sources in step.inputs.items()}
    return {
        slot: [
            {"ref": ref, "stage": a.stage, "key": a.key, "digest": a.digest, "seal": a.seal}
            for ref, a in zip(refs[slot], artifacts, strict=True)
        ]
        for slot, artifacts in inputs.items()
    }


def _manifest(
    step: Step, lineage: Lineage, metrics: dict[str, float], begun: float, hardware: HardwareConfig
) -> dict[str, Any]:
    return {
        "kind": step.config.output,
        "config": asdict(step.config),
        "data": step.data_digest,
        "inputs": lineage,
        "metrics": metrics,
        # Not in the key: hardware changes results only by rounding.
        "hardware": {**asdict(hardware), "cores": cores()},
        "seconds": round(time.monotonic() - begun, 3),
        "created": time.time(),
        "code": code_version(),
        "packages": packages(),
    }


def run_pipeline(
    steps: Sequence[Step], store: ArtifactStore, settings: RunConfig, member: Member | None = None
) -> list[Outcome]:
    """Run all steps in order, and print lines about each to standard error.

    Args:
        steps: the plan.
        store: the store.
        settings: the settings of the run.
        member: the member of a sweep that this run is; None if it is none.
    """
    group = f"{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    outcomes = []
    for number, step in enumerate(steps, 1):
        head = f"[{number}/{len(steps)}] {step.label}"
        if not step.cached:
            print(f"{head}  {step.reason}", file=sys.stderr, flush=True)
        outcome = run_step(step, store, settings, _tracked(step, steps, group, member))
        outcomes.append(outcome)
        done = "cached" if outcome.cached else f"{outcome.seconds:.1f} s"
        print(f"{head}  {done}  {step.label}:v{outcome.version}", file=sys.stderr, flush=True)
    return outcomes


def _tracked(step: Step, steps: Sequence[Step], group: str, member: Member | None) -> Tracked:
    """Return the description of a step for the tracker.

    Of a sweep member's overrides it has only those of the step and of the steps it is made from.
    """
    # The run's name gets a version, so only the config has what runs of one step share.
    tags, config = [step.pipeline, step.stage], asdict(step.config) | {"step": step.label}
    if member is not None:
        group = f"sweep-{member.folder.name}"
        own = [
            word.lstrip("+") for word in member.overrides if _matters(word.lstrip("+"), step, steps)
        ]
        tags += [group, *(word.removeprefix("steps.") for word in own)]
        config["overrides"] = OmegaConf.to_container(OmegaConf.from_dotlist(own))
    return Tracked(name=step.label, stage=step.stage, group=group, tags=tags, config=config)


def _matters(override: str, step: Step, steps: Sequence[Step]) -> bool:
    """Return whether an override changes the step or a step it is made from."""
    key = override.partition("=")[0].split(".")
    if key[0] == "steps":
        return len(key) == 1 or key[1] in _upstream(step, steps)
    # The second part: a knob in the command of a single stage, which has no `steps.` before it.
    return key[0] == "seed" or key[0] in {knob.name for knob in fields(step.config)}


def _upstream(step: Step, steps: Sequence[Step]) -> set[str]:
    """Return the names of the step and of all steps it is made from."""
    read = {source.key for sources in step.inputs.values() for source in sources}
    return {step.name}.union(*(_upstream(other, steps) for other in steps if other.key in read))
