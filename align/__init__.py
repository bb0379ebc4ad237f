"""Train an aligned model from text: InstructGPT's recipe as a command line and as functions.

The names of `align.api` are imported on first use, so `import align` loads neither Hydra nor torch.
`run`, `stage`, `plan_run` and `plan_stage` need Hydra, and `load` needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align.errors import AlignError, ConfigError, HealthStop, Preempted, StoreError

if TYPE_CHECKING:
    from align.api import (
        PlannedStep,
        Result,
        StepResult,
        artifact,
        load,
        plan_run,
        plan_stage,
        run,
        stage,
    )
    from align.store.artifacts import Artifact

__all__ = [
    "AlignError",
    "Artifact",
    "ConfigError",
    "HealthStop",
    "PlannedStep",
    "Preempted",
    "Result",
    "StepResult",
    "StoreError",
    "artifact",
    "load",
    "plan_run",
    "plan_stage",
    "run",
    "stage",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import align.api

        return getattr(align.api, name)
    raise AttributeError(f"module 'align' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
