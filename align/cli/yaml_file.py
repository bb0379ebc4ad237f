"""Read a user's YAML file: its values, the line of each key, and its errors in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import GrammarParseError

from align.errors import ConfigError


class YamlFile(NamedTuple):
    """The content of a YAML file.

    Attributes:
        values: nested, with keys as written: `lora.rank` may be one key.
        lines: the line of each key, counted from 1. A key is written as `steps.ppo.kl_coef`, and an
            item of `defaults` as `stage=sft`.
    """

    values: dict[str, Any]
    lines: dict[str, int]


def read_yaml(file: Path, name: str = "") -> YamlFile:
    """Read a file of names with values as Hydra reads it.

    Args:
        name: the name of the file in error lines; default: its path.

    Raises:
        ConfigError: the file is missing, unreadable or invalid; the message has its name and the
            line.
    """
    name = name or str(file)
    if not file.is_file():
        raise ConfigError(f"{name}: no such file")
    try:
        loader = get_yaml_loader()(file.read_bytes().decode("utf-8-sig"))
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(explain_yaml(error, name)) from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    if node is None:
        return YamlFile({}, {})
    if not isinstance(values, dict):
        raise ConfigError(
            f"{name}:{node.start_mark.line + 1}: expected names with values (name: value), got"
            f" {values}"
        )
    return YamlFile(values, dict(_lines(node, "", name)))


def _lines(
    node: yaml.Node, prefix: str, name: str, above: tuple[int, ...] = ()
) -> Iterator[tuple[str, int]]:
    """Yield each key below a node with its line.

    The node's values were constructed before this, so keys merged with `<<` are in the node
    already.
    """
    if id(node) in above:
        raise ConfigError(
            f"{name}:{node.start_mark.line + 1}: a value that contains itself (&NAME and *NAME)"
        )
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if prefix == "defaults.":
                yield from _choices(item)
            else:
                yield from _lines(item, prefix, name, (*above, id(node)))
    if isinstance(node, yaml.ScalarNode):
        _check_interpolation(node, name)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != _TEXT:
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or names with values"
            raise ConfigError(
                f"{name}:{line}: expected a name, got {shown}; write a name in quotes if it is"
                ' text: "..."'
            )
        yield prefix + key.value, line
        yield from _lines(value, f"{prefix}{key.value}.", name, (*above, id(node)))


def _check_interpolation(node: yaml.ScalarNode, name: str) -> None:
    """Raise `ConfigError` for a text with a `${` that does not parse."""
    try:
        OmegaConf.create({"text": node.value})
    except GrammarParseError:
        hint = "write ${NAME}, or \\${ where it is text"
        raise ConfigError(
            f"{name}:{node.start_mark.line + 1}: {node.value}: no interpolation; {hint}"
        ) from None


_TEXT = "tag:yaml.org,2002:str"


def _choices(item: yaml.Node) -> Iterator[tuple[str, int]]:
    """Yield an item of `defaults`, `/stage@steps.sft: sft`, as `stage=sft`, with its line."""
    if isinstance(item, yaml.MappingNode):
        for group, option in item.value:
            if isinstance(group, yaml.ScalarNode) and isinstance(option, yaml.ScalarNode):
                chosen = group.value.removeprefix("override ").lstrip("/").partition("@")[0]
                yield f"{chosen}={option.value}", group.start_mark.line + 1


def _is_deeper(above: str, line: str) -> bool:
    """Return whether a line is indented further than a line above it of the form `name: value`."""
    indents = [len(each) - len(each.lstrip(" ")) for each in (above, line)]
    return indents[1] > indents[0] and re.match(r"\s*[\w.]+:\s+\S", above) is not None


def _no_mapping(mark: yaml.Mark) -> str:
    """Return what is wrong with a line whose second `: ` YAML refuses."""
    lines = str(mark.buffer or "").splitlines()
    before = lines[mark.line][: mark.column] if lines else ""
    if mark.line > 0 and lines and _is_deeper(lines[mark.line - 1], before):
        return "indented further than the line above it, which has its value already"
    if ": " not in before:
        return "the line before it is no name: value; write its colon and a space behind"
    return 'a second ": " in one line; write a text that holds ": " in quotes, or begin a new line'


def explain_yaml(error: Exception, name: str = "") -> str:
    """Return one line that says where a file is not valid YAML, and what to write instead.

    Args:
        error: PyYAML's error, or a `UnicodeDecodeError`.
        name: the name of the file; "" if PyYAML's error has it.
    """
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return (
            f"{name}:{line}: not UTF-8 text (byte 0x{error.object[error.start]:02x}); save the file"
            " as UTF-8"
        )
    if isinstance(error, yaml.reader.ReaderError):
        return f"{name}: not a text file: {error.reason} at character {error.position + 1}"
    if isinstance(error, RecursionError):
        return f"{name}: values are nested too deeply"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"{name}: {' '.join(str(error).split())}"
    mark = error.problem_mark
    return f"{name or mark.name}:{mark.line + 1}: {_advice(error, mark)}"


def _advice(error: yaml.MarkedYAMLError, mark: yaml.Mark) -> str:
    """Return what to write in place of what PyYAML refuses."""
    problem, context, begun = str(error.problem), str(error.context or ""), error.context_mark
    if "expected a single document" in context:
        return "a second document (---); give one file to each"
    if "found duplicate key" in problem:
        key = problem.removeprefix("found duplicate key ")
        above = f" below line {begun.line + 1}" if begun else ""
        return f"{key} is given twice{above}; keep one"
    if "mapping values are not allowed" in problem:
        return _no_mapping(mark)
    for said, advice in _ADVICE.items():
        if said in problem:
            return advice.format(tag=problem.rpartition("tag ")[2])
    where = f" ({context}, line {begun.line + 1})" if begun and context else ""
    return f"not YAML: {problem}{where}"


# Words of PyYAML's error -> what to write.
_ADVICE = {
    "\\t": "a tab; indent with spaces",
    "could not find expected ':'": (
        "the line before it is no name: value; write its colon and a space behind"
    ),
    "could not determine a constructor": "the tag {tag} is not supported; write plain values",
    "'{'": 'a {{ in {{ }}; write a value with ${{...}} in quotes there: "${{NAME}}"',
}


def nested(values: Mapping[str, Any], opaque: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the values with `lora.rank: 8` as `lora: {rank: 8}`.

    Args:
        opaque: knobs with keys of the user's own below them; dots in those keys are kept.

    Raises:
        ConfigError: a value is given twice, as in `lora: {rank: 4}` and `lora.rank: 8`. The message
            begins with the key.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        is_opaque = key.rpartition(".")[2] in opaque
        inner = nested(value, opaque) if isinstance(value, Mapping) and not is_opaque else value
        _put(found, key, key.split("."), inner)
    return found


def _put(found: dict[str, Any], key: str, parts: list[str], value: Any) -> None:
    head, *rest = parts
    if rest:
        below = found.setdefault(head, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key}: {head} has a value already, {below!r}; keep one")
        _put(below, key, rest, value)
    elif isinstance(value, dict) and isinstance(found.get(head), dict):
        for name, inner in value.items():
            _put(found[head], f"{key}.{name}", [name], inner)
    elif head in found:
        raise ConfigError(f"{key}: given twice; keep one")
    else:
        found[head] = value
