"""A stage run in this process: its job, and what it logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from align.configs import HardwareConfig, RunConfig, StageConfig
from align.job import Job
from align.stop import Stop


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
