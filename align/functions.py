"""What users name to judge answers by: functions of their own (MODULE:FUNCTION), word lists, classifiers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.errors import ConfigError


def find_source(reference: str) -> Path:
    """The file that MODULE:FUNCTION is written in; modules of the present folder are found as `python` finds them.

    Raises:
        ConfigError: it is no such reference, or no such module.
    """
    module, _, function = reference.partition(":")
    if not module or not function.isidentifier():
        raise ConfigError(f"expected MODULE:FUNCTION, got {reference!r}")
    _see_present_folder()
    try:
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit):  # a parent package is run to look inside it
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(f"no module {module!r} in this folder or in the environment, got {reference!r}")
    return Path(spec.origin)


def load_function(reference: str) -> Callable[..., Any]:
    """What MODULE:FUNCTION names.

    Raises:
        ConfigError: the module does not hold it, or fails to be imported.
    """
    find_source(reference)
    name, _, function = reference.partition(":")
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{reference}: {type(error).__name__} while it was imported: {error}") from error
    if not callable(getattr(module, function, None)):
        raise ConfigError(f"{reference}: {name} has no function {function!r}")
    return getattr(module, function)


def check_file(reference: str) -> tuple[str, Path]:
    """What kind of check on answers `reference` is, and the file or folder that decides it.

    - `words:FILE`: words and phrases, a line each; the answer holds one of them.
    - `classifier:FOLDER#LABEL`: a text classifier as `transformers` saves it; the probability of that label.
    - `MODULE:FUNCTION`: called as a reward function is; a number an answer.

    Raises:
        ConfigError: it is none of these, or there is no such file, folder or module.
    """
    kind, _, rest = reference.partition(":")
    if kind == "words":
        path = Path(rest).expanduser()
        if not path.is_file():
            raise ConfigError(f"{reference}: no such file")
        return kind, path
    if kind == "classifier":
        path = Path(rest.rpartition("#")[0] or rest).expanduser()
        if not (path / "config.json").is_file():
            raise ConfigError(f"{reference}: expected a folder with a classifier's config.json in it")
        return kind, path
    return "function", find_source(reference)


def _see_present_folder() -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
