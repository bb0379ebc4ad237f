"""Functions of the user's own: how a config names them, where they are written, and what they raise.

A config names one by `MODULE:FUNCTION`, or by the call that makes it, `MODULE:FACTORY(ARGUMENTS)`, as in
`trl.rewards:get_soft_overlong_punishment(max_completion_len=200, soft_punish_cache=50)`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import PACKAGE, ConfigError
from align.runtime.user_code import find_module, is_own, names_in, own_files
from align.store.artifacts import sha256_file
from align.store.references import expanded

_MAX_CHARS = 300  # of what a user's exception says, in an error line

# Reward functions of TRL that call a package which it does not install.
_NEEDS_MATH_VERIFY = ("accuracy_reward", "reasoning_accuracy_reward", "get_cosine_scaled_reward")


@dataclass(frozen=True)
class Reference:
    """A function as a config names it.

    Attributes:
        text: the whole, as given.
        arguments, keywords: of the call of a factory; both None where `name` is the function itself.
    """

    text: str
    module: str
    name: str
    arguments: list[Any] | None = None
    keywords: dict[str, Any] | None = field(default=None)


def parse_reference(text: str) -> Reference:
    """Read `MODULE:FUNCTION` or `MODULE:FACTORY(ARGUMENTS)`; arguments are literals, and nothing is evaluated.

    Raises:
        ConfigError: it is neither.
    """
    module, _, call = text.partition(":")
    try:
        node = ast.parse(call, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        node = None
    if module and isinstance(node, ast.Name):
        return Reference(text, module, node.id)
    if not (module and isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ConfigError(f"expected MODULE:FUNCTION or MODULE:FACTORY(ARGUMENTS), got {text!r}")
    arguments = [_literal(text, argument) for argument in node.args]
    keywords: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ConfigError(f"{text}: expected arguments one by one, got **{ast.unparse(keyword.value)}")
        keywords[keyword.arg] = _literal(text, keyword.value)
    return Reference(text, module, node.func.id, arguments, keywords)


def _literal(text: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ConfigError(
            f"{text}: expected a number, a string, True, False, None, or a list or dictionary of them as an "
            f"argument, got {ast.unparse(node)}"
        ) from None


def find_source(text: str) -> Path:
    """The file that a function is written in; modules of the present folder are found as `python` finds them.

    No code of the user's runs: a module that does not parse, or that has no such function, is found by its source.

    Raises:
        ConfigError: it is no reference, there is no such module or function, or a package that it needs is missing.
    """
    reference = parse_reference(text)
    file = find_module(reference.module)
    if file is None:
        near = difflib.get_close_matches(reference.module, [path.stem for path in Path.cwd().glob("*.py")], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"no module {reference.module!r} in this folder or in the environment{hint}, got {text!r}")
    if file.suffix == ".py":
        try:
            names = names_in(file)
        except (SyntaxError, ValueError) as error:
            raise ConfigError(f"{text}: {describe_error(error)}") from None
        if names is not None and reference.name not in names:
            raise ConfigError(_no_function(reference, names))
    if reference.module.startswith("trl.rewards") and reference.name in _NEEDS_MATH_VERIFY:
        _require_math_verify(text)
    return file


def _no_function(reference: Reference, names: Collection[str]) -> str:
    near = difflib.get_close_matches(reference.name, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{reference.text}: {reference.module} has no function {reference.name!r}{hint}"


def _require_math_verify(text: str) -> None:
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(f"{text}: needs the package math-verify: pip install math-verify, or align's extra `rewards`")


def source_digests(text: str) -> dict[str, str]:
    """Return the sha256 of each of the user's own files that a function is made of, by module (see `user_code`).

    Raises:
        ConfigError: as `find_source`.
    """
    find_source(text)
    return {name: sha256_file(file) for name, file in own_files(parse_reference(text).module).items()}


def short_names(references: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """A short name for each reference, unique among them: FUNCTION, else MODULE.FUNCTION, else with a number.

    Args:
        taken: names that mean something else already.
    """
    parsed = [parse_reference(text) for text in references]
    count = Counter(reference.name for reference in parsed)
    found: dict[str, str] = {}
    for reference in parsed:
        plain = count[reference.name] == 1 and reference.name not in taken
        name = base = reference.name if plain else f"{reference.module}.{reference.name}"
        number = 1
        while name in found.values() or name in taken:
            number += 1
            name = f"{base}_{number}"
        found[reference.text] = name
    return found


def load_function(text: str) -> Callable[..., Any]:
    """Import what a reference names; call a factory with its arguments.

    Raises:
        ConfigError: the module does not hold it, or fails to be imported; a factory fails or makes no function.
    """
    find_source(text)
    reference = parse_reference(text)
    _see_present_folder()
    try:
        module = importlib.import_module(reference.module)
        function = getattr(module, reference.name, None)  # a lazy module imports it here
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{describe_error(error)}; raised when {text} was imported") from error
    if not callable(function):
        raise ConfigError(_no_function(reference, [name for name in vars(module) if not name.startswith("_")]))
    if reference.arguments is None or reference.keywords is None:
        return function
    try:
        made = function(*reference.arguments, **reference.keywords)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{describe_error(error)}; raised when the factory of {text} was called") from error
    if not callable(made):
        raise ConfigError(f"{text}: expected a factory that returns a function, got {made!r:.80}")
    return made


def describe_error(error: BaseException) -> str:
    """`FILE:LINE (in FUNCTION): TYPE: MESSAGE` of a user's exception on one line: the deepest line of their code."""
    said = " ".join(_message(error).split())
    what = f"{type(error).__name__}: {said[:_MAX_CHARS]}" if said else type(error).__name__
    if isinstance(error, SyntaxError) and error.lineno and error.filename and Path(error.filename).is_file():
        return f"{_shown(Path(error.filename))}:{error.lineno}: {what}"
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not Path(frame.filename).is_relative_to(PACKAGE)]
    own = [frame for frame in outside if is_own(Path(frame.filename))]
    for frame in reversed(own or outside):
        inside = "" if frame.name == "<module>" else f" (in {frame.name})"
        return f"{_shown(Path(frame.filename))}:{frame.lineno}{inside}: {what}"
    return what


def _message(error: BaseException) -> str:
    try:
        return str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception:  # the user's class of exceptions has a fault of its own
        return ""


def _shown(file: Path) -> str:
    """The path from the present folder, where it is below it."""
    here = Path.cwd()
    return str(file.relative_to(here)) if file.is_relative_to(here) else str(file)


def require_fit(text: str, function: Callable[..., Any], arguments: dict[str, Any], columns: Collection[str]) -> None:
    """Raise `ConfigError` where a function does not take the arguments of a call by keyword.

    Args:
        columns: which of the arguments are columns of the rows.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        lacks = str(error).startswith("missing a required")
        raise ConfigError(
            f"{text}: {error}; it is called with {', '.join(arguments)} by keyword, and the columns of these rows are "
            f"{', '.join(columns) or 'none'}; "
            + ("give the rows a column of that name" if lacks else "end its parameters with **kwargs for the others")
        ) from None


def check_file(reference: str) -> tuple[str, Path]:
    """What kind of check on answers `reference` is, and the file or folder that decides it.

    - `words:FILE`: words and phrases, a line each; the answer holds one of them.
    - `classifier:FOLDER#LABEL`: a text classifier as `transformers` saves it; the probability of that label.
    - a function: called as a reward function is; a number an answer.

    Raises:
        ConfigError: it is none of these, or there is no such file, folder or module.
    """
    kind, _, rest = reference.partition(":")
    if kind == "words":
        path = expanded(rest)
        if not path.is_file():
            raise ConfigError(f"{reference}: no such file")
        return kind, path
    if kind == "classifier":
        path = expanded(rest.rpartition("#")[0] or rest)
        if not (path / "config.json").is_file():
            raise ConfigError(f"{reference}: expected a folder with a classifier's config.json in it")
        return kind, path
    return "function", find_source(reference)


def _see_present_folder() -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
