"""Quote paths and references on the command line for Hydra's grammar.

A shell passes `source=path:/tmp/my data (1)/x=y.jsonl` as one word. Hydra would parse its space,
brackets or commas as grammar, so such a value is quoted before Hydra sees it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from align.configs.typed import literal
from align.errors import ConfigError
from align.store.references import SCHEMES, hint, is_path

_STARTS = (
    *(f"{scheme}:" for scheme in SCHEMES),
    "/",
    "./",
    "../",
    "~/",
    "http://",
    "https://",
    "file://",
)
_IN_NAMES, _BACKSLASH = re.compile(r"[:()=,\s\[\]{}]"), r"\\\g<0>"
_DICTIONARY = re.compile(r"\{([^{}]*)\}")
_PLAIN = re.compile(r"[A-Za-z0-9_/\-+.%@?|:]*")  # text that Hydra reads unchanged


def quoted(overrides: Sequence[str], is_sweep: bool) -> list[str]:
    """Return the overrides with paths and references quoted where Hydra would misread them.

    A comma separates references if a reference begins after every comma. In a sweep and in a list
    every comma separates, except if the text with the comma is the path of an existing file or
    folder.
    """
    return [_quoted(word, is_sweep) for word in overrides]


def _quoted(word: str, is_sweep: bool) -> str:
    key, equals, value = word.partition("=")
    if not equals or key.startswith("~"):
        return word
    if key.endswith("reward_functions") and value.startswith("{") and "\\" not in value:
        return f"{key}={_DICTIONARY.sub(_escaped_names, value)}"
    if value.startswith("[") and value.endswith("]"):
        parts = [part.strip() for part in value[1:-1].split(",")]
        if any(part.startswith(("'", '"')) for part in parts) or not any(
            part.startswith(_STARTS) for part in parts
        ):
            return word
        return f"{key}=[{','.join(map(_quoted_reference, _rejoined(parts)))}]"
    if not value.startswith(_STARTS):
        return word
    parts = value.split(",")
    if not is_sweep and not all(part.startswith(_STARTS) for part in parts):
        return f"{key}={_quoted_reference(value)}"
    return f"{key}={','.join(map(_quoted_reference, _rejoined(parts)))}"


def _escaped_names(dictionary: re.Match[str]) -> str:
    """Escape Hydra's special characters in the names of `{MODULE:FUNCTION(A=1):0.5,NAME(A=1):1}`.

    The weight follows the last colon. Text that is no such dictionary is returned unchanged.
    """
    items, depth = [""], 0
    for sign in dictionary[1]:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            items.append("")
        else:
            items[-1] += sign
    pairs = [item.strip().rpartition(":") for item in items]
    if not all(name for name, _, _ in pairs):
        return dictionary[0]
    return (
        "{"
        + ",".join(f"{_IN_NAMES.sub(_BACKSLASH, name)}:{weight}" for name, _, weight in pairs)
        + "}"
    )


def _rejoined(parts: Sequence[str]) -> list[str]:
    """Join parts, split at commas, that together are the path of an existing file or folder."""
    found, begin = [], 0
    while begin < len(parts):
        end = begin + 1
        for longer in range(len(parts), begin + 1, -1):
            whole = ",".join(parts[begin:longer])
            path = os.path.expanduser(whole.removeprefix("path:"))
            if parts[begin].startswith(_STARTS) and os.path.exists(path):
                end = longer
                break
        found.append(",".join(parts[begin:end]))
        begin = end
    return found


def _quoted_reference(text: str) -> str:
    """Put a path or reference into Hydra's single quotes; return other and plain text unchanged.

    A `${` in a name is text, so it is escaped: it must not begin an interpolation.
    """
    if not text.startswith(_STARTS) or _PLAIN.fullmatch(text):
        return text
    return in_quotes(literal(text))


def in_quotes(text: str) -> str:
    """Return text in quotes for Hydra's grammar. An interpolation in it still works."""
    return QuotedString(text, Quote.single).with_quotes()


def check_grammar(overrides: Sequence[str]) -> None:
    """Raise `ConfigError` for an override that Hydra cannot parse.

    The message has the override in quotes, ready to be copied.
    """
    parser = OverridesParser.create()
    for word in overrides:
        try:
            parser.parse_override(word)
        except (HydraException, ValueError, RecursionError):
            # ValueError and RecursionError: huge numbers, and lists nested too deeply.
            key, _, value = word.partition("=")
            if is_path(value):
                raise ConfigError(f"{key}: Hydra cannot read {value!r}{hint(value)}") from None
            if "reward_functions" in key:
                raise ConfigError(
                    f"{key}: Hydra cannot read this; give"
                    " 'reward_functions={MODULE:FUNCTION:WEIGHT}', or write it in YAML where a"
                    " name has quotation marks or a backslash"
                ) from None
            again = shlex.quote(f"{key}={_as_text(value)}")
            raise ConfigError(
                f"{key}: Hydra cannot read {value!r}; if it is meant as text, write it with quotes"
                f" inside: {again}"
            ) from None


def _as_text(value: str) -> str:
    """Return the value in quotes; for a list, each item in quotes."""
    if value.startswith("[") and value.endswith("]"):
        return f"[{','.join(in_quotes(part.strip()) for part in value[1:-1].split(','))}]"
    return in_quotes(value)
