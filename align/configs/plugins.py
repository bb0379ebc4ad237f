"""Packages that add stages, pipelines and data cards to align, found by their entry points.

A package declares itself in its pyproject.toml:

    [project.entry-points."align.plugins"]
    my_package = "my_package"

The module may have `STAGES`, a list of `StageConfig` classes. The folder of the module may have
`conf/`, with pipelines and other configs, and `data_cards/`. Reward functions need none of this:
`my_package.rewards:brevity` names one.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Container
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.configs.knobs import StageConfig

GROUP = "align.plugins"


@dataclass(frozen=True)
class Plugin:
    """An installed package that adds stages, pipelines or data cards to align.

    Attributes:
        name: the name of its entry point.
        version: the version of its package.
        folder: the folder of its module; None if the module cannot be imported.
        stages: the classes in the module's `STAGES`.
        error: why the module cannot be imported, in one line; "" if it can.
    """

    name: str
    version: str
    folder: Path | None = None
    stages: tuple[type[StageConfig], ...] = ()
    error: str = ""

    def folders(self, name: str) -> list[Path]:
        """Return the folder `name` of the plugin in a list, which is empty if there is none."""
        found = None if self.folder is None else self.folder / name
        return [found] if found is not None and found.is_dir() else []


@functools.cache
def plugins() -> tuple[Plugin, ...]:
    """Return all plugins in the order of their names. A plugin that fails does not stop others."""
    return tuple(
        _load(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    )


def _load(entry: EntryPoint) -> Plugin:
    version = entry.dist.version if entry.dist is not None else "unknown"
    try:
        module = entry.load()
        stages = tuple(getattr(module, "STAGES", ()))
        folder = Path(module.__file__).parent
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Plugin(
            entry.name, version, error=f"plugin {entry.name} {version}: cannot be imported ({said})"
        )
    return Plugin(entry.name, version, folder, stages)


def stages_of_plugins(taken: Container[str]) -> dict[str, type[StageConfig]]:
    """Return the stages of all plugins by name.

    Args:
        taken: the names of align's own stages, which no plugin can replace.
    """
    found: dict[str, type[StageConfig]] = {}
    for plugin in plugins():
        found |= {
            cls.STAGE: cls
            for cls in plugin.stages
            if cls.STAGE not in taken and cls.STAGE not in found
        }
    return found


def complaints(taken: Container[str]) -> list[str]:
    """Return a line for each plugin that adds less than it declares.

    Args:
        taken: the names of align's own stages.
    """
    lines, seen = [], set()
    for plugin in plugins():
        if plugin.error:
            lines.append(plugin.error)
        for cls in plugin.stages:
            if cls.STAGE in taken or cls.STAGE in seen:
                lines.append(
                    f"plugin {plugin.name} {plugin.version}: stage {cls.STAGE}: there is one of"
                    " that name"
                )
            seen.add(cls.STAGE)
    return lines


def plugin_digest(cls: type[StageConfig]) -> str | None:
    """Return a digest of the version and the source of a stage's plugin; None for align's stages.

    align's own stages bump their `VERSION` when their code changes. Plugins do not have to follow
    this rule, so their code is part of the key.
    """
    for plugin in plugins():
        if cls in plugin.stages and plugin.folder is not None:
            digest = hashlib.sha256(f"{plugin.name} {plugin.version}\n".encode())
            for file in sorted(plugin.folder.rglob("*.py")):
                digest.update(f"{file.relative_to(plugin.folder).as_posix()}\n".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            return digest.hexdigest()
    return None
