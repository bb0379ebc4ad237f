"""Conversion of plain values to checked configs and back."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align.configs.knobs import require, shown
from align.errors import ConfigError

# An interpolation and the backslashes before it. `literal` doubles these, so that OmegaConf reads
# them as the same backslashes.
_INTERPOLATION = re.compile(r"(\\*)\$\{")


def plain(node: DictConfig, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the values of a composed config, with interpolations resolved.

    Args:
        node: the config.
        without: names of values to leave out.

    Raises:
        OmegaConfBaseException: an interpolation cannot be resolved.
    """
    values = {}
    for name in node:
        if name in without:
            continue
        value = node[name]
        values[str(name)] = (
            OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        )
    return values


def said_of_interpolation(error: OmegaConfBaseException) -> str:
    """Return an error line about an interpolation for users who do not know OmegaConf."""
    said = str(error).splitlines()[0]
    if found := re.search(r"Interpolation key '([^']*)' not found", said):
        return f"${{{found[1]}}}: there is no {found[1]} in the config to take the value from"
    if found := re.search(r"Environment variable '([^']*)' not found", said):
        return (
            f"${{oc.env:{found[1]}}}: the environment has no such variable; set it, or give a"
            " default behind a comma"
        )
    if found := re.search(r"Unsupported interpolation type (\S+)", said):
        return (
            f"${{{found[1]}:...}}: no such resolver; ${{NAME}} takes a value of the config,"
            " ${oc.env:NAME} a variable"
        )
    if found := re.match(r"\w+ raised while resolving interpolation: (.*)", said):
        return found[1]
    if "Recursive interpolation" in said:
        return "takes its value from itself; write a value in one of the places"
    if "Missing mandatory value" in said:
        return "expected a value, got ???"
    return said


class NoSuchKnob(ConfigError):
    """A name that a config class does not have."""

    def __init__(self, name: str):
        super().__init__(f"{name}: no such knob")
        self.name = name


def typed(cls: type, values: Mapping[str, Any]) -> Any:
    """Return an object of a config class from plain values, after a check of their types.

    A number or a truth value may be given as text, because an environment variable holds text. A
    number may be given for text. No other type is converted: 1 is not true, true is not 1, and
    true is not text.

    Raises:
        NoSuchKnob: the class has no knob of this name.
        ConfigError: a value has the wrong type or is not allowed. The message begins with the
            knob's name.
    """
    return _typed(cls, values, "")


def _typed(cls: Any, values: Mapping[str, Any], prefix: str) -> Any:
    kinds = _kinds(cls)
    for name in values:
        if name not in kinds:
            raise NoSuchKnob(f"{prefix}{name}")
    given = {}
    for name, value in values.items():
        default = cls.__dataclass_fields__[name].default_factory
        given[name] = _fitting(kinds[name], value, f"{prefix}{name}", default)
    try:
        return cls(**given)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    """Return the type of each knob by name."""
    kinds = get_type_hints(cls)
    return {knob.name: kinds[knob.name] for knob in fields(cls)}


def _fitting(kind: Any, value: Any, name: str, default: Any = MISSING) -> Any:
    """Return a value as its type requires, or raise `ConfigError`.

    Args:
        kind: the type.
        value: the plain value.
        name: the knob's name, for errors.
        default: for a knob that holds other knobs: a function that returns its default.
    """
    if isinstance(kind, UnionType) and kind not in _PLAIN:
        if value is None:
            return None
        (kind,) = [one for one in get_args(kind) if one is not type(None)]
        require(value != "", name, value, "a value, or null")
    if kind is Any:
        return value
    if value is None:
        raise ConfigError(f"{name}: expected a value, got null; leave it out for the default")
    if is_dataclass(kind):
        return _knobs_in(kind, value, name, default)
    if get_origin(kind) is dict:
        return _dictionary(get_args(kind)[1], value, name)
    if get_origin(kind) is list:
        return _list(get_args(kind)[0], value, name)
    return _PLAIN[kind](value, name)


def _knobs_in(kind: Any, value: Any, name: str, default: Callable[[], Any]) -> Any:
    if not isinstance(value, Mapping):
        example = f"{name}.{fields(kind)[0].name}=..."
        raise ConfigError(f"{name}: expected its knobs, as in {example}, got {shown(value)}")
    usual = default()
    given = {knob.name: getattr(usual, knob.name) for knob in fields(kind)} | dict(value)
    return _typed(kind, given, f"{name}.")


def _dictionary(kind: Any, value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(
            f"{name}: expected names with values, as '{name}={{NAME: VALUE}}', got {shown(value)}"
        )
    return {key: _fitting(kind, inner, f"{name}.{key}") for key, inner in value.items()}


def _list(kind: Any, value: Any, name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name}: expected a list, as '{name}=[VALUE,VALUE]', got {shown(value)}")
    return [_fitting(kind, inner, f"{name}[{i}]") for i, inner in enumerate(value)]


def _truth(value: Any, name: str) -> bool:
    found = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise ConfigError(f"{name}: expected true or false, got {shown(value)}")
    return found


def _integer(value: Any, name: str) -> int:
    found = _number_of(value, int)
    if found is None or isinstance(found, float):
        raise ConfigError(f"{name}: expected an integer, got {shown(value)}")
    if abs(found) > _LARGEST:
        raise ConfigError(f"{name}: expected an integer of at most 18 digits, got {shown(value)}")
    return int(found)


def _real(value: Any, name: str) -> float:
    found = _number_of(value, float)
    if found is None:
        raise ConfigError(f"{name}: expected a number, got {shown(value)}")
    with contextlib.suppress(OverflowError):
        if math.isfinite(found):
            return float(found)
    raise ConfigError(f"{name}: expected a finite number, got {shown(value)}")


def _number_of(value: Any, kind: type[int] | type[float]) -> int | float | None:
    """Return a value, or the number written in a text; None if it is not a number."""
    if isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{name}: expected text, got {shown(value)}; text is given in quotes")
    require("\0" not in str(value), name, value, "text without a NUL character")
    return str(value)


def _number(value: Any, name: str) -> int | float:
    found = _real(value, name)
    return int(found) if found == int(found) else found  # 100 and 1e2 are one value, with one key


_PLAIN: dict[Any, Callable[[Any, str], Any]] = {
    bool: _truth,
    int: _integer,
    float: _real,
    int | float: _number,
    str: _text,
}
_LARGEST = 10**18 - 1  # fits into 64 bits; no count is larger


def literal(value: Any) -> Any:
    """Return plain values with texts escaped, so that OmegaConf finds no interpolation in them."""
    if isinstance(value, str):
        return _INTERPOLATION.sub(r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {name: literal(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [literal(inner) for inner in value]
    return value
