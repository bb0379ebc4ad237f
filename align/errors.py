"""The errors that users can cause, each with the exit code that a shell sees.

A message is one line: where, what, and what is allowed.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent  # the folder of align's code
# Only a bug in align leads to these.
_OURS = {errno.EBADF, errno.EFAULT, errno.ECHILD, errno.ESRCH}
_SHORT = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO}
# Advice for errors whose text from the system has none.
_ADVICE = {
    errno.ENOSPC: "free some space, then give the same command again",
    errno.EDQUOT: "free some space, then give the same command again",
    errno.EFBIG: "the limit on the size of a file is too low (ulimit -f, or the file system's own)",
    errno.EROFS: "give a store that can be written, as --store FOLDER",
    errno.EACCES: "change its rights, or give another store, as --store FOLDER",
    errno.EPERM: "change its rights, or give another store, as --store FOLDER",
    errno.ENOLCK: "this file system has no locks; give a store on another one, as --store FOLDER",
    errno.EMFILE: "the limit on open files is too low (ulimit -n)",
    errno.ENFILE: "the machine has too many files open",
    errno.EAGAIN: "the limit on processes is too low (ulimit -u), or the machine has too many",
}
# Messages for a lack of memory in errors without a class of their own: torch on CPU and GPU, C++.
_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|can't allocate memory|cannot allocate memory|not enough memory|out of"
    r" memory|bad_alloc"
    r"|ALLOC_FAILED",
    re.IGNORECASE,
)
_LONG_WORD = re.compile(r"\S{600,}(?<![:;,])")
# Errors of safetensors and tokenizers have no errno attribute, only this text.
_OF_RUST = re.compile(r"\(os error (\d+)\)")
_LOWER = (
    "lower hardware.micro_batch_tokens, hardware.generation_batch_size or the step's batch size, or"
    " give hardware.activation_checkpointing=true"
)


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the end of an error line that suggests the most similar name; "" if none is similar.

    Args:
        cutoff: least similarity of a suggestion, from 0 to 1 (difflib's ratio).
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return suggestion(near[0]) if near else ""


def suggestion(meant: str) -> str:
    """Return the end of an error line that suggests a name."""
    return f" (did you mean {meant}?)"


class AlignError(Exception):
    """An error in the user's input or environment (a knob, a file, a folder), not a bug in align.

    The command line shows it without a traceback.
    """

    exit_code = 1


class ConfigError(AlignError):
    """A knob, an input reference or a row of data is invalid."""

    exit_code = 2


class StoreError(AlignError):
    """The artifact store is damaged, or it lacks something that it should hold.

    `naming_the_world` also raises it if the machine refuses something: no disk space, no memory.
    """

    exit_code = 3


class HealthStop(AlignError):
    """Training was stopped because its numbers went bad, for example a loss that is not finite."""

    exit_code = 4


class Preempted(AlignError):
    """The process was asked to stop. Its step is saved, and the same command resumes it."""

    exit_code = 143


class Waiting(AlignError):
    """A step waits for people. The same command goes on when they are done.

    75 is what `sendmail` and others return if they should be tried again later (EX_TEMPFAIL).
    """

    exit_code = 75


@contextlib.contextmanager
def naming_the_world(place: str = "") -> Iterator[None]:
    """Raise a one-line `StoreError` for errors of the machine: full disk, no rights, no memory.

    Raise a `ConfigError` if a file name is too long for the file system, because a user wrote that
    name.

    Args:
        place: what is written to in this block, for errors that name no file.
    """
    try:
        yield
    except (AlignError, BrokenPipeError):  # a closed pipe is no fault
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise ConfigError(too_long(error)) from error
        if (said := fault_of_world(error, place)) is None:
            raise
        raise StoreError(said) from error


def fault_of_world(error: BaseException, place: str = "") -> str | None:
    """Return what the machine refused, in one line; None if the error may be a bug in align.

    Libraries wrap such errors, so the chain of causes (`__cause__`) is searched, too.
    """
    while True:
        if _is_of_memory(error):
            return f"out of memory: {_first_line(error)}; {_LOWER}"
        if isinstance(error, OSError) and _is_refused(error):
            files = [
                os.fsdecode(name)
                for name in (error.filename, error.filename2)
                if isinstance(name, str | bytes)
            ]
            return _line(" -> ".join(files) or place, error.errno, error.strerror or "")
        if found := _OF_RUST.search(str(error)):
            return _line(place, int(found[1]), os.strerror(int(found[1])))
        if error.__cause__ is None:
            return None
        error = error.__cause__


def too_long(error: OSError) -> str:
    """Return the error line for a path, or a name in it, that is too long for the file system."""
    return (
        f"{error.filename}: a path, or a name in it, longer than the file system takes; give a"
        " shorter one"
    )


def is_short(error: BaseException | None) -> bool:
    """Return True if memory, disk space or open files ran out, or if reading or writing failed.

    Then the file that was being read is not at fault.
    """
    while error is not None:
        if _is_of_memory(error) or (isinstance(error, OSError) and error.errno in _SHORT):
            return True
        error = error.__cause__
    return False


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def _is_refused(error: OSError) -> bool:
    """Return True if the operating system refused something.

    Libraries also raise `OSError` for their own reasons, without an error number. Numbers that only
    a bug in align causes do not count. Neither does a missing file of align itself.
    """
    if error.errno is None or error.errno in _OURS:
        return False
    if error.errno == errno.EINVAL:  # file systems return it for names that they cannot store
        return error.filename is not None
    return not (error.errno == errno.ENOENT and _is_ours(error.filename))


def _is_ours(file: object) -> bool:
    """Return True if a file belongs to align itself.

    If such a file is missing, the installation or align's code is broken.
    """
    return isinstance(file, str | os.PathLike) and Path(file).absolute().is_relative_to(PACKAGE)


def _line(place: str, number: int | None, reason: str) -> str:
    said = f"{place}: {reason}" if place else reason
    return f"{said}; {_ADVICE[number]}" if number in _ADVICE else said


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")


def one_line(text: str) -> str:
    """Return foreign text as one line for a terminal.

    Line breaks, control characters and unprintable characters are escaped. A word of 600 or more
    characters is cut to its first 60.
    """
    text = _LONG_WORD.sub(
        lambda word: f"{word[0][:60]}... ({len(word[0]):,} characters)", text.strip()
    )
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
