"""A stage run in this process: its job, and what it logged."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import manifests

from align.configs import HardwareConfig, RunConfig, StageConfig
from align.runtime.job import Job
from align.runtime.signals import Stop
from align.store.artifacts import Artifact


def planned(config: StageConfig) -> Any:
    """The config as `plan` gives it to a stage on a machine without fast bf16."""
    config.fill_in(bf16_is_fast=False)
    return config


def job_at(folder: Path, kind: type[Job] = Job, stop: Stop | None = None, **hardware: Any) -> Job:
    (folder / "out").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)  # as whoever runs a stage does
    settings = RunConfig(hardware=HardwareConfig(**{"checkpoint_seconds": 1e9, "device": "cpu", **hardware}))
    return kind("test", folder, settings, stop=stop)


def log_of(folder: Path) -> list[dict[str, float]]:
    """The metrics of each step, without the times."""
    rows = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def made_by(store: Path, step: str) -> tuple[Artifact, ...]:
    """The artifact of a step of the toy pipeline, as an input of a stage."""
    found = manifests(store)[step]
    folder = store / "objects" / found["stage"] / found["key"]
    return (Artifact(found["stage"], found["key"], found["kind"], folder),)


def result_of(folder: Path) -> dict[str, str]:
    """The sha256 of every published file; the log counts without its times."""
    out = folder / "out"
    files = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    files["metrics.jsonl"] = json.dumps(log_of(folder)).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


class Dead(Exception):
    """The process of a job is gone."""


def job_with(around: Mapping[str, Callable[..., Any]]) -> type[Job]:
    """Return a job of which some public methods are called through functions.

    Args:
        around: `{"log.metrics": f}` has f(method, *arguments) called in place of job.log.metrics(*arguments).
    """

    class Changed(Job):
        def __init__(self, *arguments: Any, **given: Any):
            super().__init__(*arguments, **given)
            for place, function in around.items():
                part, _, name = place.partition(".")
                owner = getattr(self, part)
                setattr(owner, name, functools.partial(function, getattr(owner, name)))

    return Changed


def dying_after(life: int) -> type[Job]:
    """Return a job that is gone after `life` steps."""

    def save_and_die(save: Callable[..., None], step: int, state: Any) -> None:
        save(step, state)
        if step == life:
            raise Dead

    return job_with({"resume.save_if_due": save_and_die})
