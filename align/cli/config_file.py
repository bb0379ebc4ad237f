"""The values that a config file or a call from Python gives, and where each knob is written.

A file uses the names of the command line: knobs, inputs, settings, and names of configs such as
`model: gpt2`. A file with a `defaults` list is a whole pipeline.
"""

from __future__ import annotations

import contextlib
import numbers
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

from omegaconf.errors import OmegaConfBaseException

from align.cli.yaml_file import YamlFile, nested
from align.configs import STAGES, stage_class
from align.configs.typed import literal, said_of_interpolation
from align.errors import ConfigError, StoreError
from align.store.artifacts import Artifact

# Groups of conf/: a name given for one chooses a config.
GROUPS = ("pipeline", "hardware", "tracker", "launcher", "sweep", "model")
# Knobs that hold names of the user's own.
_OPEN = frozenset(
    knob.name
    for stage in STAGES.values()
    for knob in fields(stage)
    if knob.default_factory is dict and knob.name != "inputs"
)
_PIPELINE = "config_file"  # the name of a pipeline's file in Hydra's group
GIVEN = "given_"  # prefix of Hydra's groups that hold other values
MODE = "hydra.mode: not supported here; give -m (--multirun) for a sweep"


# Knobs and settings that hold other knobs.
_HOLDERS = {"steps", "inputs", "hardware", "tracker", "hydra", *_OPEN} | {
    knob.name
    for stage in STAGES.values()
    for knob in fields(stage)
    if is_dataclass(knob.default_factory)
}


class Given(NamedTuple):
    """Values that the command line's overrides override.

    Attributes:
        group, name: the group and the name under which Hydra finds the node.
        words: Hydra overrides that select the node and the configs that it names.
        node: the values.
    """

    group: str
    name: str
    words: list[str]
    node: dict[str, Any]


def input_slots(stage: str) -> set[str]:
    """Return the inputs that may be given as `model=...` instead of `inputs.model=...`.

    These are the inputs of the stage whose name is not also a knob's.
    """
    cls = stage_class(stage)
    return {*cls.INPUTS, *cls.OPTIONAL} - {knob.name for knob in fields(cls)}


def from_file(file: YamlFile, stage: str | None, stem: str, overridden: Iterable[str]) -> Given:
    """Return the values of a config file.

    Args:
        stage: the stage that runs on its own; None for a pipeline.
        stem: the stem of the file's name; it names a pipeline that has no name.
        overridden: keys of the command line, which choose another config than the file does.

    Raises:
        ConfigError: the file is invalid; the message begins with the key at fault.
    """
    values = dict(file.values)
    if "defaults" in values and stage is not None:
        raise ConfigError(
            f"defaults: a whole pipeline; run it with align run --config, not align {stage}"
        )
    if "defaults" in values:
        values.setdefault("name", stem)
        return Given("pipeline", _PIPELINE, [f"pipeline={_PIPELINE}"], values)
    return _given(values, stage, "file", overridden)


def from_call(values: Mapping[str, Any], stage: str | None) -> Given:
    """Return the values of a call from Python. Text is literal: `${` begins no interpolation."""
    return _given(
        {name: literal(_plain(name, value)) for name, value in values.items()}, stage, "call", ()
    )


def _plain(name: str, value: Any) -> Any:
    """Convert a Python value to one that YAML can hold.

    A path becomes `path:FOLDER`, and an artifact becomes a reference.
    """
    if isinstance(value, Artifact):
        return f"{value.stage}@{value.key}"
    if isinstance(value, os.PathLike):
        return f"path:{os.fspath(value)}"
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, inner) for inner in value]
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, numbers.Integral):  # includes NumPy's numbers
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise ConfigError(f"{name}: expected text, numbers, lists or dictionaries, got {value!r}")


def _given(
    values: Mapping[str, Any], stage: str | None, name: str, overridden: Iterable[str]
) -> Given:
    values = nested(values, _OPEN)
    if "mode" in (values.get("hydra") or {}):
        raise ConfigError(MODE)
    if stage is not None:
        values = _of_stage(values, stage)
    elif "stage" in values:
        raise ConfigError(
            f"stage: a file for one stage; run it with align {values['stage']} --config"
        )
    for key in _lists(values, ""):
        if is_holder(key):
            raise ConfigError(expected_names(key))
    words = []
    for group in GROUPS:
        chosen = values.get(group)
        if isinstance(chosen, str) or (group in values and chosen is None):
            del values[group]
            if group not in overridden:
                words.append(f"{group}={'null' if chosen is None else chosen}")
    return Given(f"{GIVEN}{name}", "values", [*words, f"+{GIVEN}{name}@_global_=values"], values)


def _of_stage(values: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Return the values of a file for one stage, with inputs such as `model` below `inputs`."""
    found = dict(values)
    if found.pop("stage", stage) != stage:
        raise ConfigError(f"stage: expected {stage}, the stage of the command; or leave it out")
    if "steps" in found:
        raise ConfigError(
            f"steps: only of a pipeline; write the knobs of {stage} without it, as learning_rate:"
            " 1e-5"
        )
    inputs = found.get("inputs", {})
    for slot in sorted(input_slots(stage) & found.keys()):
        if not isinstance(inputs, dict) or slot in inputs:
            raise ConfigError(f"{slot}: given twice, as inputs.{slot} too; keep one")
        inputs = found["inputs"] = {**inputs, slot: found.pop(slot)}
    return found


class Written(NamedTuple):
    """A file of a composed config; `is_ours` is True if the file comes with align."""

    name: str
    package: str
    file: YamlFile
    is_ours: bool = False


@dataclass
class Places:
    """The places where the knobs of a composed config are written, for error lines.

    Attributes:
        stage: the stage that runs on its own; None for a pipeline.
        overridden: the keys that the command line or a call gives: their values are in no file.
        files: returns each file with the package of its keys, in the order of composition. It is
            called only after an error.
    """

    stage: str | None
    overridden: set[str]
    files: Callable[[], list[Written]]

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Add the place to the error lines of this block."""
        try:
            yield
        except (ConfigError, StoreError) as error:
            located = self.located(str(error))
            if located == str(error):
                raise
            raise type(error)(located) from error
        except OmegaConfBaseException as error:  # from an interpolation
            raise ConfigError(
                self.located(f"{error.full_key}: {said_of_interpolation(error)}")
            ) from error

    def located(self, text: str) -> str:
        """Return an error line that begins with a key, with the key's file and line in front.

        No place is added if the key is in no file of the user's. If a stage runs on its own, the
        step's name is always removed.
        """
        found = re.match(r"[\w./-]+(?:=[^\s:]*)?", text)
        if found is None:
            return text
        exact = found[0]
        if self._is_overridden(exact):
            return self.as_written(text)
        places: dict[str, str] = {}
        ours: set[str] = set()
        for name, package, file, is_ours in self.files():
            head = f"{package}." if package else ""
            keys = {
                key if "=" in key else head + key: f"{name}:{line}"
                for key, line in file.lines.items()
            }
            places |= keys
            ours = ours | keys.keys() if is_ours else ours - keys.keys()
        for key in self._keys(exact, places):
            if self._is_overridden(key):
                return self.as_written(text)
            # Name align's own files only for the exact key: they are correct unless somebody edited
            # them.
            if key in places and (key == exact or key not in ours):
                return f"{places[key]}: {self.as_written(text)}"
        return self.as_written(text)

    def _is_overridden(self, key: str) -> bool:
        return any(key == other or key.startswith(f"{other}.") for other in self.overridden)

    def list_for_names(self) -> str | None:
        """Return the first key with a list instead of names with values; None if there is none."""
        for _, package, file, _ in self.files():
            for key in _lists(nested(file.values, _OPEN), f"{package}." if package else ""):
                if is_holder(key):
                    return key
        return None

    def as_written(self, text: str) -> str:
        """Return an error line with knobs as in a stage's file: without the step's name."""
        head = re.match(r"steps\.[^.:]+\.", text) if self.stage is not None else None
        return text.replace(head[0], "") if head else text

    def _keys(self, text: str, places: Mapping[str, str]) -> Iterator[str]:
        """Yield the keys that a file may use for an error's key.

        These are the key unchanged, its short names, and the keys that contain it.
        """
        yield text
        key = text.partition("=")[0]
        if self.stage is not None:
            key = re.sub(r"^steps\.[^.]+\.", "", key)
        yield key
        if self.stage is not None and key.startswith("inputs."):
            yield key.removeprefix("inputs.")
        head, _, last = key.rpartition(".")
        alike = [
            other for other in places if other.rpartition(".")[2] == last and other.startswith(head)
        ]
        if len(alike) == 1:
            yield alike[0]
        parts = key.split(".")
        for length in range(len(parts) - 1, 0, -1):
            if parts[:length] != ["steps"]:
                yield ".".join(parts[:length])


def is_holder(key: str) -> bool:
    """Return True if a key holds names with values."""
    head, _, last = key.rpartition(".")
    return last in _HOLDERS or head == "steps"


def expected_names(key: str) -> str:
    return f"{key}: expected names with values, as '{key}={{NAME: VALUE}}', got a list"


def _lists(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield the keys whose values are lists."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _lists(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield prefix + key
