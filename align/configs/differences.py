"""Compare two configs knob by knob."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A knob with its two values; None if a config lacks the knob."""

    knob: str
    before: Any
    after: Any


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested knobs by their dotted names, as `model.hidden_size`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return found


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Return the knobs whose values differ, in the order of their dotted names."""
    old, new = flat(before), flat(after)
    changed = (knob for knob in sorted(old.keys() | new.keys()) if old.get(knob) != new.get(knob))
    return [Difference(knob, old.get(knob), new.get(knob)) for knob in changed]
