"""Packages that add stages, pipelines and data cards to align, found by their entry points.

A package declares itself in its pyproject.toml:

    [project.entry-points."align.plugins"]
    my_package = "my_package"

The module may have `STAGES`, a list of `StageConfig` classes. If the module is a package, its
folder may have `conf/`, with pipelines and other configs, and `data_cards/`. Reward functions need
none of this: `my_package.rewards:brevity` names one.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Container
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.configs.knobs import StageConfig

GROUP = "align.plugins"
_FOLDERS = ("conf", "data_cards")  # of a package that adds to align
_NEEDED = ("STAGE", "MODULE", "OUTPUT")  # class variables that a stage of a plugin must have


@dataclass(frozen=True)
class Plugin:
    """An installed package that adds to align.

    Attributes:
        files: the Python files that its keys depend on.
        folder: the package's folder; None if the module is a single file or cannot be imported.
        error: why it adds nothing, in one line; "" if it does.
    """

    name: str
    version: str
    stages: tuple[type[StageConfig], ...] = ()
    files: tuple[Path, ...] = ()
    folder: Path | None = None
    error: str = ""

    @property
    def label(self) -> str:
        return f"plugin {self.name} {self.version}"

    def folders(self, name: str) -> list[Path]:
        """Return the folder `name` of the plugin in a list, which is empty if there is none."""
        found = None if self.folder is None else self.folder / name
        return [found] if found is not None and found.is_dir() else []

    @functools.cached_property
    def digest(self) -> str:
        """The sha256 of its version and its source."""
        found = hashlib.sha256(f"{self.name} {self.version}\n".encode())
        for file in self.files:
            place = file.relative_to(self.folder) if self.folder is not None else file.name
            found.update(f"{place}\n".encode())
            found.update(hashlib.sha256(file.read_bytes()).digest())
        return found.hexdigest()


@functools.cache
def plugins() -> tuple[Plugin, ...]:
    """Return every plugin, in the order of their names. One that fails stops no other."""
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return tuple(_load(entry) for entry in found)


def _load(entry: EntryPoint) -> Plugin:
    version = entry.dist.version if entry.dist is not None else "unknown"
    plugin = Plugin(entry.name, version)
    try:
        module = entry.load()
        if getattr(module.__spec__, "_initializing", False):
            raise ImportError("it was imported before align; write `import align.configs` first")
        declared = getattr(module, "STAGES", [])
        if not isinstance(declared, list | tuple):
            raise TypeError(f"STAGES: expected a list of classes, got {declared!r}")
        stages = tuple(_checked(each) for each in declared)
        folder, files = _source(module)
        if not stages and not any((folder / name).is_dir() for name in _FOLDERS if folder):
            raise TypeError("it adds nothing: it has no STAGES, conf/ or data_cards/")
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Plugin(entry.name, version, error=f"{plugin.label}: cannot be used ({said})")
    return Plugin(entry.name, version, stages, files, folder)


def _checked(cls: Any) -> type[StageConfig]:
    """Return a class of `STAGES`, or raise `TypeError` if it is no config of a stage."""
    from align.configs.curves import Curve
    from align.configs.knobs import StageConfig

    if not (isinstance(cls, type) and issubclass(cls, StageConfig)):
        raise TypeError(f"STAGES: expected subclasses of align.configs.StageConfig, got {cls!r}")
    for name in _NEEDED:
        if not getattr(cls, name, ""):
            raise TypeError(f"STAGES: {cls.__name__} has no {name}")
    if find_spec(cls.MODULE) is None:
        raise TypeError(f"STAGES: {cls.__name__}.MODULE: there is no module {cls.MODULE}")
    if cls.OUTPUT == "evaluation" and "model" not in cls.INPUTS:
        raise TypeError(f"STAGES: {cls.__name__}.INPUTS: an evaluation needs an input named model")
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in cls.HEADLINE):
        raise TypeError(
            f"STAGES: {cls.__name__}.HEADLINE: expected pairs (metric, label), got {cls.HEADLINE!r}"
        )
    if not all(isinstance(curve, Curve) for curve in cls.CURVES):
        raise TypeError(f"STAGES: {cls.__name__}.CURVES: expected Curve objects")
    _check_knobs(cls)
    cls()  # every knob needs a default
    return cls


def _check_knobs(cls: type[StageConfig]) -> None:
    """Raise `TypeError` for an annotation that was meant as a knob and is none."""
    from align.configs.knobs import StageConfig

    for each in cls.__mro__:
        if not issubclass(each, StageConfig) or each.__module__.partition(".")[0] == "align":
            continue
        for name, kind in vars(each).get("__annotations__", {}).items():
            if "ClassVar" in str(kind):
                continue
            if "__dataclass_fields__" not in vars(each):
                raise TypeError(
                    f"STAGES: {each.__name__}.{name}: write @dataclass(slots=True, kw_only=True)"
                    " above the class"
                )
            if "comment" not in each.__dataclass_fields__[name].metadata:
                raise TypeError(
                    f"STAGES: {each.__name__}.{name}: declare it by knob(DEFAULT, COMMENT)"
                )


def _source(module: ModuleType) -> tuple[Path | None, tuple[Path, ...]]:
    """Return the folder of a package, None for a single file, and its Python files."""
    assert module.__file__ is not None
    file = Path(module.__file__)
    if not hasattr(module, "__path__"):
        return None, (file,)
    return file.parent, tuple(sorted(file.parent.rglob("*.py")))


def stages_of_plugins(taken: Container[str]) -> dict[str, type[StageConfig]]:
    """Return the stages of all plugins by name.

    Args:
        taken: names that no plugin can have: of align's own stages and commands.
    """
    found: dict[str, type[StageConfig]] = {}
    for plugin in plugins():
        for cls in plugin.stages:
            if cls.STAGE not in taken:
                found.setdefault(cls.STAGE, cls)
    return found


def complaints(taken: Container[str]) -> list[str]:
    """Return a line for each thing that a plugin declares and does not add.

    Args:
        taken: as for `stages_of_plugins`.
    """
    lines, seen = [], set()
    for plugin in plugins():
        if plugin.error:
            lines.append(plugin.error)
        for cls in plugin.stages:
            if cls.STAGE in taken or cls.STAGE in seen:
                lines.append(f"{plugin.label}: stage {cls.STAGE}: the name is taken")
            seen.add(cls.STAGE)
    return lines


def plugin_of(cls: type[StageConfig]) -> Plugin | None:
    """Return the plugin that a stage is from; None for align's own stages."""
    if cls.__module__.partition(".")[0] == "align":
        return None
    return next((plugin for plugin in plugins() if cls in plugin.stages), None)


def plugin_digest(cls: type[StageConfig]) -> str | None:
    """Return the digest of the plugin that a stage is from; None for align's own stages.

    No rule says that a plugin's `VERSION` rises with its code, so its code is in the key.
    """
    plugin = plugin_of(cls)
    return None if plugin is None else plugin.digest
