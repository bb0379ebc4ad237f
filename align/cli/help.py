"""The help texts, made from the dataclasses and the files in conf/.

Needs neither Hydra nor torch.
"""

from __future__ import annotations

import functools
import shutil
import textwrap
from dataclasses import Field, is_dataclass
from inspect import cleandoc
from typing import Any

from align.configs import (
    STAGES,
    HardwareConfig,
    ModelConfig,
    RunConfig,
    TrackerConfig,
)
from align.configs.knobs import default_of, knobs_in_order
from align.configs.plugins import plugins
from align.errors import PACKAGE

_OVERVIEW = """\
align: text -> tokenizer -> GPT -> supervised tuning -> reward model -> PPO -> evaluation

  align run pipeline=NAME [step=STEP] [knob=value ...] [-m]   run a pipeline; finished steps are not run again
  align plan pipeline=NAME [--json]                           what would run, what is cached, and why
  align model model=NAME [knob=value ...] [--json]            what a model holds and costs: parameters, memory, FLOPs
  align STAGE inputs.NAME=... [knob=value ...]                one stage by itself; align STAGE --help lists its knobs
  align plan STAGE ...                                        what that stage would do
  align data source=path:FILE record=KIND --show 3            look at your own rows: as they came, as trained on
  align report PIPELINE|PIPELINE/STEP[:vN] ...                did it work? one HTML page, and Markdown
  align diagnose PIPELINE|PIPELINE/STEP[:vN] ... [--check]    which stage is bad, and what to do first
  align chat REF [REF] [--system TEXT] [--temperature T]      talk with a model, or with two at once
  align sample PIPELINE/STEP [TEXT] [--temperature T,T]       what a language model writes
  align sweep show|ls [FOLDER]                                what a sweep's members did, as a table and a page
  align artifacts ls|show|lineage|verify|diff|tag|export|gc   what has been made

first try:  align run pipeline=quickstart

pipelines:  {pipelines}
stages:     {stages}

A knob of a step is steps.STEP.KNOB=value. Several values, as in steps.ppo.kl_coef=0.05,0.1 seed=0,1 -m, are a sweep.
Knobs, inputs and settings in a file: align STAGE --config FILE.yaml, align run --config FILE.yaml.
The artifacts: store=FOLDER or --store FOLDER, else $ALIGN_STORE, else artifacts. From Python: import align.
Your own configs: --config-dir FOLDER. Tab completion: eval "$(align -sc install=bash)"."""


_SHOW_HELP = """\
align data source=... record=KIND --show [N] [--tokenizer REF]
  Shows the first N rows (3) as they came and as records, and stores nothing. With a tokenizer (PIPELINE/STEP,
  path:FOLDER or hf:ORG/NAME) they are written by its chat template. What is trained on is marked.

"""


_MODEL_HELP = """\
align model model=NAME [knob=value ...] [tokens=N] [--json]

What a model holds and costs, counted on the model itself, built without storage: parameters, the memory of training
by precision and optimizer, and floating-point operations. Nothing is trained or written.

models:
{models}

knobs (model. may be left out):
{knobs}
  tokens                              null           trained on, for the FLOPs; null: as published, else 20 a parameter

Your own models: FOLDER/model/NAME.yaml with --config-dir FOLDER."""


def overview() -> str:
    text = _OVERVIEW.format(pipelines=", ".join(pipelines()), stages=", ".join(STAGES))
    return _fitted(text)


def pipelines() -> list[str]:
    return _group("pipeline")


def models() -> list[str]:
    return _group("model")


def _models_for(default: Any) -> list[str]:
    """Return the models that a stage with this default can train: T5's, or all others."""
    is_t5 = default.architecture == "t5"
    return [name for name in models() if name.startswith("t5") == is_t5]


def _group(name: str) -> list[str]:
    """Return the names of the configs in a group, including those of plugins."""
    of_plugins = [plugin.folder for plugin in plugins() if plugin.folder is not None]
    folders = (PACKAGE, PACKAGE.parent, *of_plugins)
    return sorted({p.stem for folder in folders for p in folder.glob(f"conf/{name}/*.yaml")})


def command_help(verb: str) -> str:
    """Return the help of `run`, `plan`, `model` or a stage.

    It lists the inputs and every knob with its default, unit and source.
    """
    if verb in ("run", "plan"):
        what = (
            "Run a pipeline."
            if verb == "run"
            else "Show what would run, what is cached, and why a step is not."
        )
        head = [
            f"align {verb} pipeline=NAME [knob=value ...]",
            "",
            what,
            f"Pipelines: {', '.join(pipelines())}",
            "",
        ]
        lines = head
    elif verb == "model":
        return _fitted(
            _MODEL_HELP.format(
                models=_folded(models()), knobs="\n".join(_knobs(ModelConfig, "model."))
            )
        )
    else:
        cls = STAGES[verb]
        given = " inputs.NAME=..." if cls.INPUTS or cls.OPTIONAL else ""
        lines = [f"align {verb}{given} [knob=value ...]", "", cleandoc(str(cls.__doc__)), ""]
        if cls.INPUTS or cls.OPTIONAL:
            lines += [
                "inputs (a PIPELINE/STEP[:version], STAGE@KEY, card:NAME, path:FILE or"
                " hf:ORG/NAME[@COMMIT]), also as NAME=... where no knob has that name:"
            ]
            lines += [f"  inputs.{slot:<28} {kind}" for slot, kind in cls.INPUTS.items()]
            lines += [
                f"  inputs.{slot:<28} {kind} (optional)" for slot, kind in cls.OPTIONAL.items()
            ]
            lines += [""]
        if verb == "data":
            lines += _SHOW_HELP.splitlines()
        lines += ["knobs:", *_knobs(cls)]
        for knob, (title, group) in cls.GROUPS.items():
            names = [_folded(_models_for(group))] if knob == "model" else []
            lines += ["", f"{title}:", *names, *_knobs(group, f"{knob}.")]
    lines += ["", "the run, which changes no result but by its seed:", *_knobs(RunConfig)]
    lines += _knobs(HardwareConfig, "hardware.") + _knobs(TrackerConfig, "tracker.")
    lines += [
        "",
        (
            "[GPT-3] etc.: where a default is from, see align/configs/__init__.py; [ours]: measured"
            " or judged"
        ),
    ]
    lines += [
        "--config FILE.yaml: any of these in a file; the command line wins. --store FOLDER: as"
        " store=FOLDER"
    ]
    lines += ["Hydra's own: --cfg job, --info, --config-dir FOLDER, -m / --multirun"]
    return _fitted("\n".join(lines))


def _fitted(text: str) -> str:
    """Wrap the text to the terminal's width.

    Without a terminal lines stay whole, so that the text can be searched.
    """
    width = shutil.get_terminal_size((_NO_TERMINAL, 24)).columns
    return "\n".join(part for line in text.splitlines() for part in _parts(line, width))


def _parts(line: str, width: int) -> list[str]:
    """Split a line that is too long. Its last column goes below the others."""
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    fold = functools.partial(
        textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False
    )
    head, _, said = line.rpartition("  ")
    if not head.strip():
        return fold(line.strip(), initial_indent=indent, subsequent_indent=indent)
    below = f"{indent}    "
    return [
        *fold(head.strip(), initial_indent=indent, subsequent_indent=below),
        *fold(said, initial_indent=below, subsequent_indent=below),
    ]


_NO_TERMINAL = 100_000


def _folded(names: list[str]) -> str:
    return f"  {', '.join(names)}"


def _knobs(config: Any, prefix: str = "") -> list[str]:
    """Return one line for each knob: with the defaults of a class, or the values of an object."""
    return [
        f"  {prefix + knob.name:<35} {_default(knob, config):<14}"
        f" {knob.metadata['comment'].replace('None:', 'null:')}"
        for knob in knobs_in_order(config)
        if "comment" in knob.metadata
    ]


def _default(knob: Field[Any], config: Any) -> str:
    value = default_of(knob, config)
    if is_dataclass(value):
        return "..."
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'
