"""The generators of rows that a data card can name.

A generator is a module with `VERSION`, `rows(record, splits, limits, options)` and `info(options)`.
"""

from __future__ import annotations

import importlib
from typing import Any

from align.errors import ConfigError, did_you_mean

GENERATORS = ("smallworld", "instructions")  # modules of align.data


def generator(name: str) -> Any:
    """Return the module of a generator.

    Raises:
        ConfigError: there is no such generator.
    """
    if name not in GENERATORS:
        hint = did_you_mean(name, GENERATORS)
        raise ConfigError(
            f"data card generator {name!r}: no such generator; generators: "
            f"{', '.join(GENERATORS)}{hint}"
        )
    return importlib.import_module(f"align.data.{name}")
