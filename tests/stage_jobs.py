"""A stage run in this process: its job, and what it logged."""

from __future__ import annotations

import hashlib
import json
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


def dying_after(life: int) -> type[Job]:
    """A job that is gone after `life` steps."""

    class Dying(Job):
        def checkpoint(self, step: int, state: Any) -> None:
            super().checkpoint(step, state)
            if step == life:
                raise Dead

    return Dying
