"""References to things outside the store: `card:NAME`, `path:FILE_OR_FOLDER`, `hf:ORG/NAME@COMMIT`.

This module also suggests a full reference for one without a prefix, and pins a repository of the
Hub to a commit.
"""

from __future__ import annotations

import difflib
import errno
import functools
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from align.errors import PACKAGE, ConfigError, suggestion, too_long
from align.store.file_kinds import PACKED, SUFFIXES

SCHEMES = ("card", "path", "hf")
_PATHS = ("/", "./", "../", "~")
_MODEL_FILES = (".gguf", ".safetensors")
_ENDINGS = (
    *SUFFIXES,
    *(f"{suffix}{packed}" for suffix in SUFFIXES for packed in PACKED),
    *_MODEL_FILES,
)
# The address of a page of a repository, with or without an organisation. In `gpt2/tree/main` the
# repository is gpt2.
_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?!(?:datasets|models|spaces)/?$)(?:datasets/)?"
    r"([\w.-]+(?:/(?!(?:tree|blob|raw|resolve|discussions|commits?|viewer)(?:/|$))[\w.-]+)?).*"
)
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 10.0  # seconds to wait for the Hub


def conf_folder() -> Path:
    """Return the folder of the configs that come with align.

    It is inside the package in a wheel, and beside it in a checkout.
    """
    return next(
        folder
        for folder in (PACKAGE / "conf", PACKAGE.parent / "conf")
        if (folder / "run.yaml").is_file()
    )


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` expanded to the home folder.

    A path that exists as written, such as a file `~x`, is not changed.

    Raises:
        ConfigError: the name is too long for a file.
    """
    written = Path(path)
    if os.path.lexists(written):
        return written
    found = Path(os.path.expanduser(written))
    try:
        found.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(too_long(error)) from None
    except ValueError:  # a NUL character: no file has such a name, so callers find none
        pass
    return found


def check_length(ref: str) -> None:
    """Raise `ConfigError` if a reference holds a name that is too long for a file."""
    expanded(ref.partition(":")[2] if is_outside(ref) else ref)


def is_outside(ref: str) -> bool:
    """Return whether a reference names something outside the store."""
    return ref.partition(":")[0] in SCHEMES


def is_path(ref: str) -> bool:
    """Return whether a reference without a prefix can only be a path, not a name in the store."""
    return ref.startswith(_PATHS) or ref.lower().endswith(_ENDINGS)


def meant(ref: str) -> str | None:
    """Return the full reference for a path, an address of the Hub or a repository without prefix.

    None if `ref` is none of these.
    """
    if page := _HUB_PAGE.fullmatch(ref):
        return f"hf:{page[1]}"
    if ref.startswith("file://"):
        return f"path:{ref.removeprefix('file://')}"
    if not ref or "://" in ref or is_outside(ref):
        return None
    if is_path(ref) or os.path.exists(ref):
        return f"path:{ref}"
    if "/" in ref and ":" not in ref and _REPOSITORY.fullmatch(ref.partition("@")[0]):
        return f"hf:{ref}"
    return None


def hint(ref: str) -> str:
    """Suggest what to write instead of `ref`, as the end of an error; "" if there is no guess.

    The suggestion is quoted for a shell.
    """
    full = meant(ref)
    if full is None:
        return "; download it, then write path:FILE" if "://" in ref else ""
    if full.startswith("path:") and not os.path.exists(
        os.path.expanduser(full.removeprefix("path:"))
    ):
        return f"; a file or folder is written {shlex.quote(full)}, and there is none at that place"
    if full.startswith("hf:"):
        return f"; a repository of the Hub is written {full}"
    return f"; did you mean {shlex.quote(full)}?"


def made_by(name: str) -> str:
    """Say how to make an artifact that a pipeline of align names; "" for all other names.

    Args:
        name: PIPELINE/STEP.
    """
    pipeline, _, step = name.partition("/")
    for file in (conf_folder() / "pipeline").glob("*.yaml"):
        # The defaults list names each step: `/stage@steps.NAME: STAGE`.
        if file.stem == pipeline and f"@steps.{step}:" in file.read_text(encoding="utf-8"):
            return f"; align run pipeline={pipeline} makes it; --store FOLDER names another store"
    return ""


def import_hint(ref: str) -> str:
    """Suggest how to import `ref` into the store, as the end of an error.

    "" for a card, and for a reference that is not outside the store.
    """
    full = ref if is_outside(ref) else meant(ref)
    if full is None or full.startswith("card:"):
        return ""
    is_data = ref.lower().endswith(_ENDINGS) and not ref.lower().endswith(_MODEL_FILES)
    command = "align data record=KIND" if is_data else "align import_model"
    return (
        f"; what is outside the store comes in by: {command} {shlex.quote(f'source={full}')}"
        " name=mine/NAME"
    )


def beside(path: Path) -> str:
    """Suggest the most similar name in the folder of a missing file, as the end of an error."""
    if not path.parent.is_dir():
        return f" ({path.parent} is not a folder)"
    # Compare without suffixes: files of one kind all have the same, which makes them too similar.
    stems = {other.stem: other.name for other in path.parent.iterdir()}
    near = difflib.get_close_matches(path.stem, stems, n=1)
    return suggestion(str(path.parent / stems[near[0]])) if near else ""


def pinned(source: str, kind: str) -> str:
    """Return a source on the Hub with the full commit hash. Other sources are not changed.

    Args:
        source: the source as written. `hf:ORG/NAME` is pinned to its newest commit,
            `hf:ORG/NAME@BRANCH` to the newest commit of that branch.
        kind: model or dataset.

    Raises:
        ConfigError: the Hub does not answer, or it has no such repository or revision.
    """
    scheme, _, rest = source.partition(":")
    repository, _, revision = rest.partition("@")
    if scheme != "hf" or not rest or _COMMIT.fullmatch(revision):
        return source
    return f"hf:{repository}@{_commit(repository, revision, kind)}"


@functools.cache  # so that all members of a sweep, and a plan and its run, read the same commit
def _commit(repository: str, revision: str, kind: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    written = f"hf:{repository}" + (f"@{revision}" if revision else "")
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{written}: expected hf:ORG/NAME@COMMIT")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    ask: Any = api.model_info if kind == "model" else api.dataset_info
    try:
        commit = ask(repository, revision=revision or None, timeout=_TIMEOUT).sha
    except RevisionNotFoundError:
        raise ConfigError(
            f"{written}: the Hub's {kind} {repository} has no revision {revision}"
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"{written}: the Hub shows no {kind} of that name; a private or gated one needs a token"
            " (hf auth login)"
        ) from None
    except Exception as error:  # the class of network errors differs by version of huggingface_hub
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ConfigError(
            f"{written}: the Hub is read at a full commit hash only, and could not be asked for it"
            f" ({reason}); write hf:{repository}@COMMIT, or give the files as path:FILE_OR_FOLDER"
        ) from None
    print(
        f"hf:{repository} is at {commit} today; write hf:{repository}@{commit} to keep it",
        file=sys.stderr,
        flush=True,
    )
    return str(commit)
