"""The Python API of align: run pipelines and stages, inspect artifacts, load models.

It uses the same configs, keys and store as the command line, so each finds what the other made.
Errors are raised as `align.AlignError` and its subclasses. Nothing is printed unless
`progress=True`. The state of the process is restored after each call.
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
_ONE_AT_A_TIME = threading.RLock()  # a run uses the random numbers of the process

__all__ = [
    "PlannedStep",
    "Result",
    "StepResult",
    "artifact",
    "load",
    "plan_run",
    "plan_stage",
    "run",
    "stage",
]


@dataclass(frozen=True)
class StepResult:
    """The result of one step of a run.

    Attributes:
        name: the step's name in the pipeline.
        ref: the reference, such as `quickstart/ppo:v3`, for inputs of other steps and the command
            line.
        artifact: the artifact that the step made, now or earlier.
        cached: True if the artifact already existed.
        seconds: the time that the step took in this call.
    """

    name: str
    ref: str
    artifact: Artifact
    cached: bool
    seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        """The step's final metrics.

        The metrics over its training steps are `artifact.rows("metrics")`.
        """
        return self.artifact.metrics


class Result(Mapping[str, StepResult]):
    """The steps of a run by name, in the order in which they ran.

    Attributes:
        report: the path of the HTML page; None if nothing was evaluated.
        log: what the command line prints to standard error; empty with `progress=True`, because
            then it was printed.
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
        lines = [
            f"{step.ref}  {'cached' if step.cached else f'{step.seconds:.1f} s'}"
            for step in self.values()
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class PlannedStep:
    """A step of a plan: cached, or still to run.

    Attributes:
        name, stage: the step's name and its stage.
        key: the key of its artifact, known before the artifact is made.
        cached: True if the artifact exists.
        reason: why the step would run; for a cached step a note about it, or "".
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
    """Run a pipeline, as `align run` does. Finished steps are skipped.

    Args:
        pipeline: the name of a pipeline, such as "quickstart"; None if `config` or `overrides`
            names it.
        overrides: overrides as on the command line, such as "steps.ppo.kl_coef=0.05". No sweeps.
        config: a YAML file of a whole pipeline, or of settings and knobs on top of one.
        config_dir: a folder with configs of your own.
        store: the folder of the artifacts; None: the environment's ALIGN_STORE, else `artifacts`.
        progress: print progress to standard error, as the command line does.

    Returns:
        The artifact, reference and metrics of each step.

    Raises:
        ConfigError: a knob, an input or a row of data is invalid.
        StoreError: an artifact is missing or damaged.
        HealthStop: training was stopped because its numbers went bad.
        Preempted: SIGTERM or Ctrl-C; the same call resumes where it stopped.
    """
    words = _pipeline_words(pipeline, overrides)
    with _contained(progress) as log:
        settings, steps, artifacts = _planned(words, store, config, config_dir)
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
    """Run one stage, as `align STAGE` does, and return its artifact.

    Args:
        stage: the name of the stage, such as "sft".
        config: a YAML file of knobs; `knobs` override it.
        config_dir, store, progress: see `run`.
        knobs: the stage's inputs, knobs and settings by name, such as
            `model="quickstart/pretrain"`, `learning_rate=1e-5`, `lora={"rank": 8}`,
            `name="mine/sft"`, `tracker="none"`. An input may be an `Artifact`, or a `Path` of a
            file or folder.

    Raises:
        AlignError: see `run`.
    """
    stage_class(stage)
    with _contained(progress) as log:
        settings, steps, artifacts = _planned((), store, config, config_dir, stage, knobs)
        return [*_run(settings, steps, artifacts, log).values()][-1].artifact


def plan_run(
    pipeline: str | None = None,
    overrides: Sequence[str] = (),
    *,
    config: str | os.PathLike[str] | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    store: _StoreFolder = None,
) -> list[PlannedStep]:
    """Return what `run` would do, without running it.

    Imports no torch. For arguments and errors see `run`.
    """
    words = _pipeline_words(pipeline, overrides)
    with _contained(False):
        return _described(_planned(words, store, config, config_dir)[1])


def plan_stage(
    stage: str,
    /,
    *,
    config: str | os.PathLike[str] | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    store: _StoreFolder = None,
    **knobs: Any,
) -> list[PlannedStep]:
    """Return what `stage` would do, without running it.

    Imports no torch. For arguments and errors see `stage`.
    """
    stage_class(stage)
    with _contained(False):
        return _described(_planned((), store, config, config_dir, stage, knobs)[1])


def artifact(ref: str, *, store: _StoreFolder = None) -> Artifact:
    """Return the artifact of a reference: `PIPELINE/STEP[:vN]` or `STAGE@KEY`.

    Use its `metrics`, `config`, `path`, `manifest`, `rows("metrics")` for its logs, and
    `lineage()`.

    Raises:
        StoreError: the artifact or the store does not exist.
    """
    with naming_the_world():
        return existing_store(store).find(ref)


def load(
    ref: str | Artifact, *, store: _StoreFolder = None, device: str = "cpu", weights: str = "raw"
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Return the model of an artifact, in eval mode, and its tokenizer.

    The files are verified by sha256 first.

    Args:
        ref: a reference or an artifact of a model, an adapter (returned merged into its base), a
            reward model, an encoder-decoder or a classifier.
        store: see `run`.
        device: a torch device, such as "cuda".
        weights: "raw", or "ema" for the average that PPO keeps.

    Returns:
        (model, tokenizer): Transformers' model, in float32. For a reward model it is
        `align.models.heads.ScalarModel`, which subtracts its shift from the scores, or an
        `Ensemble` of them. For a classifier it is Transformers' sequence classifier.

    Raises:
        StoreError: the artifact does not exist, or one of its files was changed.
        ConfigError: the artifact is no model, it keeps no average, or the device does not exist.
    """
    found = ref if isinstance(ref, Artifact) else artifact(ref, store=store)
    if found.kind not in ("model", "reward_model", "seq2seq_model", "classifier"):
        raise ConfigError(
            f"{found.ref}: expected a model, a reward_model, a seq2seq_model or a classifier, got"
            f" {found.kind}"
        )
    if weights not in ("raw", "ema"):
        raise ConfigError(f"weights: expected raw or ema, got {weights!r}")
    folder = found.path / "ema" if weights == "ema" else found.path
    if not folder.is_dir():
        raise ConfigError(f"weights=ema: {found.ref} keeps no average; give weights=raw")
    with _contained(False):
        found.store.verify(found)
        _check_device(device)
        from align.models.heads import load_reward_model
        from align.models.load import load_model, load_tokenizer

        tokenizer = load_tokenizer(found.path)
        if found.kind == "reward_model":
            return load_reward_model(folder, device), tokenizer
        if found.kind == "seq2seq_model":
            from align.models.seq2seq import load_seq2seq

            return load_seq2seq(folder, device), tokenizer
        if found.kind == "classifier":
            from transformers import AutoModelForSequenceClassification

            classifier = AutoModelForSequenceClassification.from_pretrained(
                folder, trust_remote_code=False
            )
            return classifier.to(device).eval(), tokenizer
        return load_model(folder, device), tokenizer


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # AssertionError: torch was built without CUDA
        raise ConfigError(f"device: expected one that torch has here, got {device!r}") from None


def _pipeline_words(pipeline: str | None, overrides: Sequence[str]) -> list[str]:
    if isinstance(overrides, str):
        raise ConfigError(
            f"overrides: expected a list of texts, as [{overrides!r}], got {overrides!r}"
        )
    if isinstance(overrides, Mapping) or not all(isinstance(word, str) for word in overrides):
        raise ConfigError(
            f'overrides: expected a list of texts, as ["steps.ppo.kl_coef=0.05"], got {overrides!r}'
        )
    if pipeline is None:
        return list(overrides)
    return [f"pipeline={pipeline}", *overrides]


def _planned(
    overrides: Sequence[str],
    store: _StoreFolder,
    config: str | os.PathLike[str] | None,
    config_dir: str | os.PathLike[str] | None,
    stage: str | None = None,
    knobs: Mapping[str, Any] | None = None,
) -> tuple[RunConfig, list[Step], ArtifactStore]:
    """Return the settings, the planned steps and the store. Nothing runs.

    Raises:
        AlignError: something that can be known before the run is wrong.
    """
    from align.cli.hydra import composed
    from align.pipeline.plan import plan, split_config
    from align.store.artifacts import ArtifactStore

    values = dict(knobs or {})
    if store is not None:
        if any(word.startswith("store=") for word in overrides):
            raise ConfigError("store: store=FOLDER is among the overrides too; keep one")
        values["store"] = store_folder(store)
    files = [None if path is None else os.fspath(path) for path in (config, config_dir)]
    with composed(overrides, stage, values, *files) as (cfg, places), places.naming():
        settings, nodes = split_config(cfg)
        artifacts = ArtifactStore(settings.store)
        return settings, plan(settings, nodes, artifacts), artifacts


def _run(
    settings: RunConfig, steps: Sequence[Step], store: ArtifactStore, log: io.StringIO
) -> Result:
    from align.cli.output import report_on_run
    from align.pipeline.run import run_pipeline

    with naming_the_world(str(store.root)):
        outcomes = run_pipeline(steps, store, settings)
        report = report_on_run(outcomes, store, settings.name, None)
    return Result([_result(outcome) for outcome in outcomes], report, log.getvalue())


def _result(outcome: Outcome) -> StepResult:
    step = outcome.step
    return StepResult(
        step.name,
        f"{step.label}:v{outcome.version}",
        outcome.artifact,
        outcome.cached,
        outcome.seconds,
    )


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
    """Restore the state of the process afterwards, and capture standard error unless `progress`.

    This covers environment variables, the current folder, `sys.path` and Python's random numbers.
    `align.pipeline.worker` restores torch's random numbers and number of threads.

    Calls from several threads run one after the other, because a stage uses the random numbers of
    the process.

    Yields:
        What was printed to standard error; empty if `progress` is True.
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
    """A stream that captures the text of one thread, the one that made it.

    It passes on what other threads write.
    """

    def __init__(self, stream: Any, kept: io.StringIO):
        self._stream, self._kept, self._thread = stream, kept, threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            return self._kept.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        if threading.get_ident() != self._thread:
            self._stream.flush()
