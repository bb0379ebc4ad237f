"""The user's own functions: references in a config, their source files, loading and errors.

A config names a function by `MODULE:FUNCTION`, or by the call of a factory that returns it,
`MODULE:FACTORY(ARGUMENTS)`, as in
`trl.rewards:get_soft_overlong_punishment(max_completion_len=200, soft_punish_cache=50)`.

A name without a module, such as `numeric` or `within_length(max_words=50)`, is one of align's own
rewards, which `align.verifiers.rewards` makes.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from align.errors import PACKAGE, ConfigError, did_you_mean
from align.runtime.user_code import find_module, is_own, names_in, own_files
from align.store.artifacts import sha256_file
from align.store.references import expanded

_MAX_CHARS = 300  # of the message of a user's exception in an error line

# Reward functions of TRL that need math-verify, a package that TRL does not install.
_NEEDS_MATH_VERIFY = ("accuracy_reward", "reasoning_accuracy_reward", "get_cosine_scaled_reward")


# The module of the rewards that need no module in their reference. It is imported by name, because
# this module lies below it. Its `VERSIONS` lists the rewards.
_OWN_REWARDS = "align.verifiers.rewards"


@dataclass(frozen=True)
class Reference:
    """A parsed reference to a function.

    Attributes:
        text: the whole reference, as written.
        module: the module.
        name: the function, or the factory that returns it.
        arguments, keywords: the arguments of the factory; both None if `name` is the function.
    """

    text: str
    module: str
    name: str
    arguments: list[Any] | None = None
    keywords: dict[str, Any] | None = field(default=None)


def parse_reference(text: str) -> Reference:
    """Parse `MODULE:FUNCTION`, `MODULE:FACTORY(ARGUMENTS)`, or the same without a module.

    Arguments must be literals. No code is evaluated. Without a module it is one of align's own
    rewards, and `name` is the factory, also if no arguments are given.

    Raises:
        ConfigError: the text is neither.
    """
    module, colon, call = text.partition(":")
    is_own = not colon or "(" in module  # then the colon is in an argument
    if is_own:
        module, call = _OWN_REWARDS, text.strip()
    try:
        node = ast.parse(call, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        node = None
    if module and isinstance(node, ast.Name):
        if is_own:
            return Reference(text, module, node.id, [], {})
        return Reference(text, module, node.id)
    if not (module and isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ConfigError(
            "expected MODULE:FUNCTION or MODULE:FACTORY(ARGUMENTS), or the name of one of align's"
            f" own rewards, got {text!r}"
        )
    arguments = [_literal(text, argument) for argument in node.args]
    keywords: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ConfigError(
                f"{text}: expected arguments one by one, got **{ast.unparse(keyword.value)}"
            )
        keywords[keyword.arg] = _literal(text, keyword.value)
    return Reference(text, module, node.func.id, arguments, keywords)


def _literal(text: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ConfigError(
            f"{text}: expected a number, a string, True, False, None, or a list or dictionary of"
            f" them as an argument, got {ast.unparse(node)}"
        ) from None


def find_source(text: str) -> Path:
    """Return the file of a function's module. Modules in the current folder are found, too.

    No code of the user runs. Only the source is read, to find syntax errors and missing functions.
    One of align's own rewards is made, which checks its arguments.

    Raises:
        ConfigError: the text is not a reference, the module does not exist or does not parse, it
            has no such function, or a package that the function needs is missing.
    """
    reference = parse_reference(text)
    file = find_module(reference.module)
    if file is None:
        hint = did_you_mean(reference.module, [path.stem for path in Path.cwd().glob("*.py")])
        raise ConfigError(
            f"no module {reference.module!r} in this folder or in the environment{hint}, got"
            f" {text!r}"
        )
    if reference.module == _OWN_REWARDS:
        _own_reward(reference)
    elif file.suffix == ".py":
        try:
            names = names_in(file)
        except (SyntaxError, ValueError) as error:
            raise ConfigError(f"{text}: {describe_error(error)}") from None
        if names is not None and reference.name not in names:
            raise ConfigError(_no_function(reference, names))
    if reference.module.startswith("trl.rewards") and reference.name in _NEEDS_MATH_VERIFY:
        _require_math_verify(text)
    return file


def _own_reward(reference: Reference) -> Callable[..., Any]:
    """Make one of align's own rewards, and check its arguments."""
    module = importlib.import_module(_OWN_REWARDS)
    if reference.name not in module.VERSIONS:
        raise ConfigError(
            f"expected MODULE:FUNCTION or MODULE:FACTORY(ARGUMENTS), got {reference.text!r}, which"
            f" is none of align's own rewards either: {', '.join(module.VERSIONS)}"
            f"{did_you_mean(reference.name, module.VERSIONS)}"
        )
    try:
        made: Callable[..., Any] = getattr(module, reference.name)(
            *(reference.arguments or []), **(reference.keywords or {})
        )
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError(f"{reference.text}: {error}") from None
    return made


def _no_function(reference: Reference, names: Collection[str]) -> str:
    hint = did_you_mean(reference.name, names)
    return f"{reference.text}: {reference.module} has no function {reference.name!r}{hint}"


def _require_math_verify(text: str) -> None:
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(
            f"{text}: needs the package math-verify: pip install math-verify, or align's extra"
            " `rewards`"
        )


def source_digests(text: str) -> dict[str, str]:
    """Return the sha256 of each of the user's own files behind a function, by module.

    `user_code.own_files` says which files these are. One of align's own rewards has its name and
    version instead, and the version of the package that it computes with.

    Raises:
        ConfigError: as `find_source`.
    """
    find_source(text)
    reference = parse_reference(text)
    if reference.module == _OWN_REWARDS:
        # A version instead of the source's sha256: a changed comment computes nothing else.
        module = importlib.import_module(_OWN_REWARDS)
        found = {_OWN_REWARDS: f"{reference.name} {module.VERSIONS[reference.name]}"}
        package = module.PACKAGES.get(reference.name)
        if package is not None and importlib.util.find_spec(package) is not None:
            found[package] = metadata.version(package)
        return found
    return {name: sha256_file(file) for name, file in own_files(reference.module).items()}


def short_names(references: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Return a unique short name for each reference.

    The name is FUNCTION, else MODULE.FUNCTION, else that with a number.

    Args:
        references: the references.
        taken: names that are already used for something else.
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
    """Import the function that a reference names, or call its factory.

    Raises:
        ConfigError: the import fails, the module has no such function, or the factory fails or
            returns no function.
    """
    find_source(text)
    reference = parse_reference(text)
    if reference.module == _OWN_REWARDS:
        return _own_reward(reference)
    _see_present_folder()
    try:
        module = importlib.import_module(reference.module)
        function = getattr(module, reference.name, None)  # a lazy module imports it only here
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{describe_error(error)}; raised when {text} was imported") from error
    if not callable(function):
        raise ConfigError(
            _no_function(reference, [name for name in vars(module) if not name.startswith("_")])
        )
    if reference.arguments is None or reference.keywords is None:
        return function
    try:
        made = function(*reference.arguments, **reference.keywords)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{describe_error(error)}; raised when the factory of {text} was called"
        ) from error
    if not callable(made):
        raise ConfigError(f"{text}: expected a factory that returns a function, got {made!r:.80}")
    return made


def describe_error(error: BaseException) -> str:
    """Format a user's exception as one line: `FILE:LINE (in FUNCTION): TYPE: MESSAGE`.

    The place is the deepest line of the user's own code, else of any code outside align.
    """
    said = " ".join(_message(error).split())
    what = f"{type(error).__name__}: {said[:_MAX_CHARS]}" if said else type(error).__name__
    if (
        isinstance(error, SyntaxError)
        and error.lineno
        and error.filename
        and Path(error.filename).is_file()
    ):
        return f"{_shown(Path(error.filename))}:{error.lineno}: {what}"
    frames = traceback.extract_tb(error.__traceback__)
    outside = [
        frame for frame in frames if not Path(frame.filename).resolve().is_relative_to(PACKAGE)
    ]
    own = [frame for frame in outside if is_own(Path(frame.filename))]
    for frame in reversed(own or outside):
        inside = "" if frame.name == "<module>" else f" (in {frame.name})"
        return f"{_shown(Path(frame.filename))}:{frame.lineno}{inside}: {what}"
    return what


def _message(error: BaseException) -> str:
    try:
        return str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception:  # `__str__` of the user's exception fails, too
        return ""


def _shown(file: Path) -> str:
    """Return a path relative to the current folder if it is below that, else unchanged."""
    here = Path.cwd()
    return str(file.relative_to(here)) if file.is_relative_to(here) else str(file)


_TYPING_MISTAKE = 0.8  # least similarity: `completion` means completions, `solution` does not


def require_fit(
    text: str, function: Callable[..., Any], arguments: dict[str, Any], columns: Collection[str]
) -> None:
    """Raise `ConfigError` if a function does not accept these arguments by keyword.

    Args:
        text: the reference, for the error.
        function: the function.
        arguments: the arguments by name.
        columns: the names of the arguments that are columns of the rows.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        lacks = str(error).startswith("missing a required")
        name = str(error).rpartition(": ")[2].strip("'\"")
        near = did_you_mean(name, arguments, _TYPING_MISTAKE) if lacks else ""
        advice = (
            "end its parameters with **kwargs for the others"
            if not lacks
            else "rename the parameter"
            if near
            else "give the rows a column of that name"
        )
        raise ConfigError(
            f"{text}: {error}{near}; it is called with {', '.join(arguments)} by keyword, and the"
            f" columns of these rows are {', '.join(columns) or 'none'}; {advice}"
        ) from None


def check_file(reference: str) -> tuple[str, Path]:
    """Return the kind of a check on answers, and its file or folder.

    - `words:FILE`: words and phrases, one per line. The check is whether an answer has one of them.
    - `classifier:FOLDER#LABEL`: a text classifier in the format of `transformers`. The check is the
      probability of the label.
    - a function, called like a reward function. The check is its number for each answer.

    Raises:
        ConfigError: it is none of these, or the file, folder or module does not exist.
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
            raise ConfigError(
                f"{reference}: expected a folder with a classifier's config.json in it"
            )
        return kind, path
    return "function", find_source(reference)


def _see_present_folder() -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
