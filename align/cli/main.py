"""The command line: `align run`, `align plan`, `align STAGE`, `align model` and store commands.

Help needs neither Hydra nor torch. Planning needs no torch.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from align.errors import (
    AlignError,
    ConfigError,
    Preempted,
    Waiting,
    naming_the_world,
    one_line,
)
from align.runtime.environment import QUIET
from align.runtime.signals import no_interrupt_lost, was_interrupted

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from align.cli.config_file import Places
    from align.configs import RunConfig
    from align.pipeline.plan import Step
    from align.pipeline.run import Outcome
    from align.store.artifacts import ArtifactStore
    from align.store.sweep_records import Member

    Act = Callable[[RunConfig, list[Step], ArtifactStore, Member | None], list[Outcome]]

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

_COMPOSED = ("run", "plan", "model")
# Each is a module with a `main`.
_PARSED = ("report", "diagnose", "chat", "sample", "sweep", "label", "artifacts")
_VERBS = (*_COMPOSED, *_PARSED)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code. An error is one line on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "debug=true" in arguments
    try:
        with no_interrupt_lost(), naming_the_world():
            return _dispatch(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _told(error, debug)


def _dispatch(arguments: list[str]) -> int:
    if "-sc" in arguments or "--shell-completion" in arguments:
        return _complete(arguments)
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help", "help"):
        from align.cli.help import overview

        print(overview())
        return 0
    if verb == "--version":
        from align.store.provenance import version_line

        print(version_line())
        return 0
    from align.configs import TAKEN
    from align.configs.plugins import complaints

    for line in complaints(TAKEN):
        print(f"warning: {line}", file=sys.stderr)
    if verb in _PARSED:
        # argparse reads these words: `store=FOLDER` becomes an option, `debug=true` is removed.
        rest = [f"--{word}" if word.startswith("store=") else word for word in rest]
        main_of_verb = importlib.import_module(f"align.cli.{verb}").main
        return int(main_of_verb([word for word in rest if word != "debug=true"]))
    return _compose(verb, rest)


def _compose(verb: str, arguments: list[str]) -> int:
    """Run a verb whose config Hydra composes: `run`, `plan`, `model` or a stage."""
    from align.configs import STAGES

    planning = verb == "plan"
    # as in: align plan sft ..., align plan run ...
    if planning and arguments and arguments[0] in ("run", *STAGES):
        word, *arguments = arguments
        verb = verb if word == "run" else word
    if verb not in _COMPOSED:
        _require_stage(verb)
    if "-h" in arguments or "--help" in arguments:
        from align.cli.help import command_help

        print(command_help(verb))
        return 0
    if verb == "data" and any(word == "--show" or word.startswith("--show=") for word in arguments):
        return _show(arguments)
    from align.cli.hydra import Sweeps, run

    arguments = ["json=true" if word == "--json" else word for word in arguments]
    sweeps = Sweeps(_has_work, None if "json=true" in arguments else _compare)
    if verb == "model":
        return run("model_sizes", _of_model(arguments), _answered(_model))
    if verb in STAGES:
        given = _with_inputs(verb, arguments)
        if planning:
            return run("stage", given, _guarded(_plan), verb)
        return run("stage", given, _guarded(_run), verb, sweeps)
    if verb == "plan":
        return run("run", arguments, _guarded(_plan))
    return run("run", arguments, _guarded(_run), sweeps=sweeps)


def _require_stage(verb: str) -> None:
    """Raise `ConfigError` if a verb is no stage. The message lists the verbs."""
    from align.cli.artifacts import VERBS as OF_ARTIFACTS
    from align.configs import stage_class

    if verb in OF_ARTIFACTS:
        raise ConfigError(f"{verb}: did you mean align artifacts {verb}?")
    try:
        stage_class(verb)
    except ConfigError as error:
        raise ConfigError(f"{error}; verbs: {', '.join(_VERBS)}") from None


def _compare(folder: Path) -> None:
    """Print how the members of a sweep compare, when it has ended."""
    from align.cli.sweep import compare_ended

    compare_ended(folder)


def _with_inputs(stage: str, arguments: list[str]) -> list[str]:
    """Return the arguments with `model=REF` as `inputs.model=REF`.

    This applies to inputs whose name is not also a knob of the stage.
    """
    from align.cli.config_file import input_slots

    slots = input_slots(stage)
    return [f"inputs.{word}" if word.partition("=")[0] in slots else word for word in arguments]


def _of_model(arguments: list[str]) -> list[str]:
    """Return the arguments with `hidden_size=96` as `model.hidden_size=96`."""
    from dataclasses import fields

    from align.configs import ModelConfig

    knobs = {knob.name for knob in fields(ModelConfig)}
    return [
        f"model.{word}" if word.partition("=")[0].partition(".")[0] in knobs else word
        for word in arguments
    ]


def _model(cfg: DictConfig) -> int:
    from align.cli.hydra import chosen
    from align.cli.model import show

    return show(cfg, *chosen("model"))


def _show(arguments: list[str]) -> int:
    """Run `align data ... --show N`: show rows of a source. Nothing is stored."""
    from align.cli.hydra import run
    from align.cli.show import show_options, show_source

    options, knobs = show_options(arguments)

    return run("stage", knobs, _answered(lambda cfg: show_source(cfg, options)), "data")


def _answered(act: Callable[[DictConfig], int]) -> Callable[[DictConfig, Places], int]:
    """Return a task for Hydra that returns an exit code instead of raising.

    Hydra prints its own lines about exceptions of a task. Only `BrokenPipeError` is raised.
    """

    def task(cfg: DictConfig, places: Places) -> int:
        try:
            with naming_the_world(), places.naming():
                return act(cfg)
        except BrokenPipeError:
            raise
        except Exception as error:
            return _told(error, _setting(cfg, "debug") is True)

    return task


def _setting(cfg: DictConfig, name: str) -> Any:
    """Return the value of a setting; None if its interpolation cannot be resolved.

    The plan then reports the interpolation, with its place in the config.
    """
    from omegaconf.errors import OmegaConfBaseException

    try:
        return cfg.get(name)
    except OmegaConfBaseException:
        return None


def _planned(cfg: DictConfig, places: Places) -> tuple[RunConfig, list[Step], ArtifactStore]:
    """Return the settings, the planned steps and the store.

    Raises:
        AlignError: something that can be known before the run is wrong.
    """
    from align.pipeline.plan import plan, split_config
    from align.store.artifacts import ArtifactStore

    with places.naming():
        settings, nodes = split_config(cfg)
        store = ArtifactStore(settings.store)
        return settings, plan(settings, nodes, store), store


def _has_work(cfg: DictConfig, places: Places) -> bool:
    return not all(step.cached for step in _planned(cfg, places)[1])


def _guarded(act: Act) -> Callable[[DictConfig, Places], int]:
    """Return a task for Hydra that returns an exit code instead of raising.

    So a failed member of a sweep does not stop the others. Only `BrokenPipeError` is raised.
    """
    # The exit code of a member that was asked to stop: later members do not begin.
    stopped: list[int] = []

    def task(cfg: DictConfig, places: Places) -> int:
        if stopped:
            return stopped[0]
        from align.cli.hydra import sweep_member
        from align.store.sweep_records import recorded

        debug = _setting(cfg, "debug") is True
        member = sweep_member()
        try:
            with (
                recorded(member if act is _run else None) as outcomes,
                naming_the_world(str(_setting(cfg, "store"))),
            ):
                settings, steps, store = _planned(cfg, places)
                outcomes.extend(act(settings, steps, store, member))
            return 0
        except BrokenPipeError:
            raise
        except Preempted as error:
            stopped.append(error.exit_code)
            return _told(error, debug)
        except Exception as error:
            return _told(error, debug)

    return task


def _plan(
    settings: RunConfig, steps: list[Step], store: ArtifactStore, member: Member | None
) -> list[Outcome]:
    from align.cli.output import show_plan
    from align.pipeline.estimate import step_costs

    if settings.check_data:
        from align.configs import Data
        from align.runtime.progress import Progress
        from align.stages.data import check_rows

        for step in steps:
            if isinstance(step.config, Data):
                check_rows(step.config, settings.data_root, Progress(step.label))
    show_plan(steps, step_costs(steps, store), as_json=settings.json, member=member)
    return []


def _run(
    settings: RunConfig, steps: list[Step], store: ArtifactStore, member: Member | None
) -> list[Outcome]:
    from align.cli.output import report_on_run, show_outcomes
    from align.pipeline.run import run_pipeline

    outcomes = run_pipeline(steps, store, settings, member)
    report = report_on_run(outcomes, store, settings.name, member)
    tracked = settings.tracker.backend == "wandb"
    show_outcomes(outcomes, store, settings.json, tracked=tracked, member=member, report=report)
    return outcomes


def _told(error: Exception, debug: bool) -> int:
    """Print an error as one line, with `debug` also its traceback; return the exit code.

    An error that combines several, separated by "error: ", is one line for each.
    """
    if was_interrupted(error):
        return 130
    if debug:
        traceback.print_exc()
    if isinstance(error, AlignError):
        head = "waiting" if isinstance(error, Waiting) else "error"
        for line in str(error).split("\nerror: "):
            print(f"{head}: {one_line(line)}", file=sys.stderr)
        return error.exit_code
    said = one_line(f"{type(error).__name__}: {error}")
    print(
        f"error: {said} (a bug in align, not in your input; debug=true shows where)",
        file=sys.stderr,
    )
    return 1


def _complete(arguments: list[str]) -> int:
    """Complete words in a shell: we complete the verb, Hydra completes the rest.

    Install with: eval "$(align -sc install=bash)".
    """
    from align.cli.hydra import run
    from align.configs import STAGES

    words = os.environ.get("COMP_LINE", "").split(" ")
    verbs = [*_VERBS, *STAGES]
    if any(word.startswith("query=") for word in arguments):
        if len(words) < 3 or words[1] not in verbs:
            print(" ".join(verb for verb in verbs if verb.startswith(words[-1])))
            return 0
        stage = words[1] if words[1] in STAGES else None
        os.environ["COMP_LINE"] = " ".join(
            [words[0], *([f"stage@_global_={stage}"] if stage else []), *words[2:]]
        )
        if stage is not None:
            return run("stage", arguments, lambda cfg, places: 0, stage)
        if words[1] == "model":
            return run("model_sizes", arguments, lambda cfg, places: 0)
    return run("run", arguments, lambda cfg, places: 0)
