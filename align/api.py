"""align from Python: run pipelines and stages, look at what was made, load models.

The same configs, keys and store as the command line: what one has made, the other finds. Errors are raised as
`align.AlignError` and its subclasses. Nothing is printed unless `progress=True`, and the process is left as it was.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.configs import stage_class
from align.errors import ConfigError, naming_the_world
from align.runtime.environment import QUIET
from align.store.artifacts import Artifact, existing_store, store_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from align.configs import RunConfig
    from align.pipeline.plan import Step
    from align.pipeline.run import Outcome
    from align.store.artifacts import ArtifactStore

_StoreFolder = str | os.PathLike[str] | None
_ONE_AT_A_TIME = threading.RLock()  # a run's random numbers are those of the process

__all__ = ["PlannedStep", "Result", "StepResult", "artifact", "load", "plan_run", "plan_stage", "run", "stage"]


@dataclass(frozen=True)
class StepResult:
    """One step of a run.

    Attributes:
        name: as in the pipeline.
        ref: the reference, `quickstart/ppo:v3`, for inputs of other steps and for the command line.
        artifact: what the step made, or had made before.
        cached: True where it was there already.
        seconds: that the step took in this call.
    """

    name: str
    ref: str
    artifact: Artifact
    cached: bool
    seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        """The step's metrics; those over its steps are `artifact.rows("metrics")`."""
        return self.artifact.metrics


class Result(Mapping[str, StepResult]):
    """The steps of a run by their names, in the order in which they ran.

    Attributes:
        report: the HTML page; None where nothing was evaluated.
        log: what the command line prints to standard error; empty with `progress=True`, which printed it.
    """

    def __init__(self, steps: Sequence[StepResult], report: Path | None, log: str):
        self._steps = {step.name: step for step in steps}
        self.report, self.log = report, log

    def __getitem__(self, name: str) -> StepResult:
        return self._steps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        lines = [f"{step.ref}  {'cached' if step.cached else f'{step.seconds:.1f} s'}" for step in self.values()]
        return "\n".join(lines)


@dataclass(frozen=True)
class PlannedStep:
    """A step that would run, or is there.

    Attributes:
        name, stage: of the step.
        key: of its artifact, known before it is made.
        cached: True where the artifact is there.
        reason: why the step would run; or what to know of one that is there.
        inputs: the references that each input reads.
    """

    name: str
    stage: str
    key: str
    cached: bool
    reason: str
    inputs: dict[str, list[str]]


def run(
    pipeline: str | None = None,
    overrides: Sequence[str] = (),
    *,
    config: str | os.PathLike[str] | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    store: _StoreFolder = None,
    progress: bool = False,
) -> Result:
    """Run a pipeline, as `align run` does: what is there already is not made again.

    Args:
        pipeline: the name of a pipeline, as "quickstart"; None where `config` or `overrides` says which.
        overrides: in the words of the command line, as "steps.ppo.kl_coef=0.05". No sweeps.
        config: a YAML file of a whole pipeline, or of settings and knobs on top of one.
        config_dir: a folder with configs of your own.
        store: the artifacts' folder; None: the environment's ALIGN_STORE, else `artifacts`.
        progress: print progress to standard error, as the command line does.

    Returns:
        Each step's artifact, reference and metrics.

    Raises:
        ConfigError: a knob, an input or a row of data is not what it should be.
        StoreError: an artifact is gone or damaged.
        HealthStop: training was stopped because its numbers went bad.
        Preempted: SIGTERM or Ctrl-C; the same call goes on from where it stopped.
    """
    words = _pipeline_words(pipeline, overrides)
    with _contained(progress) as log:
        settings, steps, artifacts = _planned("run", words, store, config, config_dir)
        return _run(settings, steps, artifacts, log)


def stage(
    stage: str,
    /,
    *,
    config: str | os.PathLike[str] | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    store: _StoreFolder = None,
    progress: bool = False,
    **knobs: Any,
) -> Artifact:
    """Run one stage, as `align STAGE` does, and give what it made.

    Args:
        stage: its name, as "sft".
        config: a YAML file of knobs; those given here win.
        config_dir, store, progress: as of `run`.
        knobs: the stage's inputs, knobs and settings by name, as `model="quickstart/pretrain"`, `learning_rate=1e-5`,
            `lora={"rank": 8}`, `name="mine/sft"`, `tracker="none"`. An input may be an `Artifact`, or a `Path` of
            a file or folder.

    Raises:
        AlignError: as `run`.
    """
    stage_class(stage)
    with _contained(progress) as log:
        settings, steps, artifacts = _planned("stage", (), store, config, config_dir, stage, knobs)
        return [*_run(settings, steps, artifacts, log).values()][-1].artifact


def plan_run(
    pipeline: str | None = None,
    overrides: Sequence[str] = (),
    *,
    config: str | os.PathLike[str] | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    store: _StoreFolder = None,
) -> list[PlannedStep]:
    """What `run` would do, without doing it; imports no torch. For arguments and errors see `run`."""
    words = _pipeline_words(pipeline, overrides)
    with _contained(False):
        return _described(_planned("run", words, store, config, config_dir)[1])


def plan_stage(
    stage: str,
    /,
    *,
    config: str | os.PathLike[str] | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    store: _StoreFolder = None,
    **knobs: Any,
) -> list[PlannedStep]:
    """What `stage` would do, without doing it; imports no torch. For arguments and errors see `stage`."""
    stage_class(stage)
    with _contained(False):
        return _described(_planned("stage", (), store, config, config_dir, stage, knobs)[1])


def artifact(ref: str, *, store: _StoreFolder = None) -> Artifact:
    """The artifact of a reference: `PIPELINE/STEP[:vN]` or `STAGE@KEY`.

    Its attributes: `metrics`, `config`, `path`, `rows("metrics")` of its logs, `manifest`, `lineage()`.

    Raises:
        StoreError: there is no such artifact or store.
    """
    with naming_the_world():
        return existing_store(store).find(ref)


def load(
    ref: str | Artifact, *, store: _StoreFolder = None, device: str = "cpu", weights: str = "raw"
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """The model of an artifact and its tokenizer, verified by sha256, in eval mode.

    Args:
        ref: a reference or an artifact of a model, an adapter (it comes merged into its base), a reward model, an
            encoder-decoder or a classifier.
        store: as of `run`.
        device: of torch, as "cuda".
        weights: raw, or ema for the average that PPO keeps.

    Returns:
        (model, tokenizer): Transformers' model, in float32. Of a reward model `align.models.heads.ScalarModel`, whose
        scores are less its shift; of a classifier Transformers' sequence classifier.

    Raises:
        StoreError: there is no such artifact, or a file of it is not as it was made.
        ConfigError: it is no model, or keeps no average; or there is no such device.
    """
    found = ref if isinstance(ref, Artifact) else artifact(ref, store=store)
    if found.kind not in ("model", "reward_model", "seq2seq_model", "classifier"):
        raise ConfigError(
            f"{found.ref}: expected a model, a reward_model, a seq2seq_model or a classifier, got {found.kind}"
        )
    if weights not in ("raw", "ema"):
        raise ConfigError(f"weights: expected raw or ema, got {weights!r}")
    folder = found.path / "ema" if weights == "ema" else found.path
    if not folder.is_dir():
        raise ConfigError(f"weights=ema: {found.ref} keeps no average; give weights=raw")
    with _contained(False):
        found.store.verify(found)
        _check_device(device)
        from align.models.heads import load_scalar
        from align.models.load import load_model, load_tokenizer

        tokenizer = load_tokenizer(found.path)
        if found.kind == "reward_model":
            return load_scalar(folder, device), tokenizer
        if found.kind == "seq2seq_model":
            from align.models.seq2seq import load_seq2seq

            return load_seq2seq(folder, device), tokenizer
        if found.kind == "classifier":
            from transformers import AutoModelForSequenceClassification

            classifier = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False)
            return classifier.to(device).eval(), tokenizer
        return load_model(folder, device), tokenizer


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # the latter where torch was built without CUDA
        raise ConfigError(f"device: expected one that torch has here, got {device!r}") from None


def _pipeline_words(pipeline: str | None, overrides: Sequence[str]) -> list[str]:
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: expected a list of texts, as [{overrides!r}], got {overrides!r}")
    if isinstance(overrides, Mapping) or not all(isinstance(word, str) for word in overrides):
        raise ConfigError(f'overrides: expected a list of texts, as ["steps.ppo.kl_coef=0.05"], got {overrides!r}')
    if pipeline is None:
        return list(overrides)
    return [f"pipeline={pipeline}", *overrides]


def _planned(
    config_name: str,
    overrides: Sequence[str],
    store: _StoreFolder,
    config: str | os.PathLike[str] | None,
    config_dir: str | os.PathLike[str] | None,
    stage: str | None = None,
    knobs: Mapping[str, Any] | None = None,
) -> tuple[RunConfig, list[Step], ArtifactStore]:
    """Everything that can be known before it runs."""
    from align.cli.hydra import composed
    from align.pipeline.plan import plan, split_config
    from align.store.artifacts import ArtifactStore

    values = dict(knobs or {})
    if store is not None:
        if any(word.startswith("store=") for word in overrides):
            raise ConfigError("store: store=FOLDER is among the overrides too; keep one")
        values["store"] = store_folder(store)
    files = [None if path is None else os.fspath(path) for path in (config, config_dir)]
    with composed(config_name, overrides, stage, values, *files) as (cfg, places), places.naming():
        settings, nodes = split_config(cfg)
        artifacts = ArtifactStore(settings.store)
        return settings, plan(settings, nodes, artifacts), artifacts


def _run(settings: RunConfig, steps: Sequence[Step], store: ArtifactStore, log: io.StringIO) -> Result:
    from align.cli.output import report_on_run
    from align.pipeline.run import run_pipeline

    with naming_the_world(str(store.root)):
        outcomes = run_pipeline(steps, store, settings)
        report = report_on_run(outcomes, store, settings.name, None)
    return Result([_result(outcome) for outcome in outcomes], report, log.getvalue())


def _result(outcome: Outcome) -> StepResult:
    step = outcome.step
    return StepResult(step.name, f"{step.label}:v{outcome.version}", outcome.artifact, outcome.cached, outcome.seconds)


def _described(steps: Sequence[Step]) -> list[PlannedStep]:
    return [
        PlannedStep(
            step.name,
            step.stage,
            step.key,
            step.cached,
            step.reason,
            {slot: [source.ref for source in sources] for slot, sources in step.inputs.items()},
        )
        for step in steps
    ]


@contextlib.contextmanager
def _contained(progress: bool) -> Iterator[io.StringIO]:
    """Leave the process as it was: environment, folder, module path, random numbers, threads, what libraries print.

    Calls from several threads come one after the other: a stage's random numbers are the process's.

    Yields:
        What was printed to standard error, where `progress` is False.
    """
    log = io.StringIO()
    with _ONE_AT_A_TIME, naming_the_world(), contextlib.ExitStack() as restored:
        restored.callback(_restore_environment, dict(os.environ))
        restored.callback(_restore_list, sys.path, list(sys.path))
        restored.callback(random.setstate, random.getstate())
        restored.callback(os.chdir, Path.cwd())
        os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
        if not progress:
            restored.enter_context(contextlib.redirect_stderr(_OneThread(sys.stderr, log)))
        yield log


def _restore_environment(before: Mapping[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _restore_list(values: list[str], before: list[str]) -> None:
    values[:] = before


class _OneThread(io.TextIOBase):
    """A stream that keeps what this thread writes, and passes on what others do."""

    def __init__(self, stream: Any, kept: io.StringIO):
        self._stream, self._kept, self._thread = stream, kept, threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            return self._kept.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        if threading.get_ident() != self._thread:
            self._stream.flush()
