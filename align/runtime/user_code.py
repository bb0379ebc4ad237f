"""Find the files of a user's own code without running it: a module's file, and the modules that it imports.

Nothing is imported here, not even the packages around a module, so that `plan` can look at code that imports torch.
"""

from __future__ import annotations

import ast
import functools
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from align.errors import PACKAGE


def find_module(name: str) -> Path | None:
    """The source file that `import name` would run, the present folder searched first; None where there is none."""
    spec = _find_spec(name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin)


def is_own(path: Path) -> bool:
    """True for a user's own code: neither installed, nor of Python, nor of align."""
    path = path.resolve()
    if not path.is_file() or {"site-packages", "dist-packages"} & {*path.parts}:
        return False
    return not any(path.is_relative_to(folder) for folder in (*_installed_folders(), PACKAGE))


def own_files(module: str) -> dict[str, Path]:
    """The files behind a module by module name: its own, and those of user's own modules that it imports.

    Imports are read from the source, those inside functions too, and followed from module to module. Installed modules
    are left out, but for `module` itself: of an installed package, all files of its folder are given.
    """
    first = find_module(module)
    assert first is not None, f"{module} was found before"
    if not is_own(first):
        files = sorted(first.parent.glob("*.py")) if first.name == "__init__.py" else [first]
        return {f"{module}/{file.name}": file for file in files}
    found: dict[str, Path] = {}
    waiting = _with_packages(module)
    while waiting:
        name = waiting.pop()
        file = find_module(name) if name not in found else None
        if file is None or not is_own(file):
            continue
        found[name] = file
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # `find_source` refuses the first; another may never be imported
            continue
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imports(tree, package):
            waiting += _with_packages(imported)
    return dict(sorted(found.items()))


def names_in(file: Path) -> set[str] | None:
    """The names that a module's source binds at its top; None where the source cannot say (`import *`, `__getattr__`).

    Raises:
        SyntaxError: it is not Python.
    """
    found: set[str] = set()
    for node in _top_level(ast.parse(file.read_bytes(), filename=str(file))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name):  # a name that is read counts too: globals() and exec() bind what they like
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name.partition(".")[0])
    return None if found & {"*", "__getattr__", "globals", "exec"} else found


def _top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run when a module is imported, which those inside functions and classes do not."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from _top_level(node)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules that a source file may import; `from a import b` may mean the module a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield base
            for alias in node.names:
                yield f"{base}.{alias.name}"


def _with_packages(name: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` for `a.b.c`: importing a module runs the packages around it."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _find_spec(name: str) -> ModuleSpec | None:
    """As `importlib.util.find_spec`, which would import the packages around the module."""
    where: list[str] | None = None
    spec: ModuleSpec | None = None
    for part in _with_packages(name):
        if not part.rpartition(".")[2].isidentifier():
            return None
        loaded = sys.modules.get(part)
        spec = getattr(loaded, "__spec__", None) or _ask_finders(part, where)
        if spec is None:
            return None
        where = [*(spec.submodule_search_locations or [])]
    return spec


def _ask_finders(name: str, where: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        places = [str(Path.cwd()), *sys.path] if finder is PathFinder and where is None else where
        try:
            spec = finder.find_spec(name, places)
        except Exception:  # somebody else's finder; the next one may know
            continue
        if spec is not None:
            return spec
    return None


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
