"""Find the files of a user's own code without running it: a module, and the modules it imports.

Nothing is imported here, not even a module's parent packages. So `plan` can examine code that
imports torch.
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
    """Return the source file that `import name` would run; None if there is none.

    The current folder is searched first.
    """
    spec = _find_spec(name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin)


def is_own(path: Path) -> bool:
    """Return whether a file is the user's own code: not installed, and not from Python or align."""
    path = path.resolve()
    if not path.is_file() or {"site-packages", "dist-packages"} & {*path.parts}:
        return False
    return not any(path.is_relative_to(folder) for folder in (*_installed_folders(), PACKAGE))


def own_files(module: str) -> dict[str, Path]:
    """Return the file of a module and of the user's own modules that it imports, by module name.

    Imports are read from the source, including those inside functions, and followed from module to
    module. Installed modules are left out, except `module` itself. For an installed package, all
    Python files of its folder are returned.
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
        except (SyntaxError, ValueError):
            # `find_source` refuses this in `module` itself. Another module may never be imported.
            continue
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imports(tree, package):
            waiting += _with_packages(imported)
    return dict(sorted(found.items()))


def names_in(file: Path) -> set[str] | None:
    """Return the names that a module binds at its top level.

    None if the source does not show them: `import *`, `__getattr__`, `globals` or `exec`.

    Raises:
        SyntaxError: it is not Python.
    """
    found: set[str] = set()
    for node in _top_level(ast.parse(file.read_bytes(), filename=str(file))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            # Names that are only read count, too: this finds `globals` and `exec`, which may bind
            # any name.
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name.partition(".")[0])
    return None if found & {"*", "__getattr__", "globals", "exec"} else found


def _top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes of a module, except those inside functions, classes and lambdas."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from _top_level(node)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that a source may import. `from a import b` may mean the module a.b."""
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
    """Return `a`, `a.b` and `a.b.c` for `a.b.c`. An import also runs the parent packages."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _find_spec(name: str) -> ModuleSpec | None:
    """Return a module's spec, as `importlib.util.find_spec`, but without importing its parents."""
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
        except Exception:  # a finder of another package failed; ask the next one
            continue
        if spec is not None:
            return spec
    return None


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(
        Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
    )
