"""Plain values to checked configs and back."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

_INTERPOLATION = re.compile(r"(\\*)\$\{")  # with the backslashes before it, each of which is to stay one


def plain(node: DictConfig, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a composed config but for those named in `without`, interpolations resolved.

    Raises:
        OmegaConfBaseException: one cannot be resolved.
    """
    values = {}
    for name in node:
        if name in without:
            continue
        value = node[name]
        values[str(name)] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return values


def typed(cls: type, values: Mapping[str, Any]) -> Any:
    """An object of a config class from plain values; `${` in a text is text, and no interpolation begins there.

    Raises:
        ConfigError: a value is not what the class takes.
        OmegaConfBaseException: it is of another type.
    """
    return OmegaConf.to_object(OmegaConf.merge(_schema(cls), literal(values)))


@functools.cache
def _schema(cls: type) -> DictConfig:
    """The fields and defaults of a config class; a merge copies them, and to make them takes longer."""
    return OmegaConf.structured(cls)


def literal(value: Any) -> Any:
    """Plain values, written so that OmegaConf reads each text as it is."""
    if isinstance(value, str):
        return _INTERPOLATION.sub(r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {name: literal(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [literal(inner) for inner in value]
    return value
