"""What can go wrong, each with the exit code a shell sees. The message is one line: where, what, what is allowed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent  # align's own code
# What only a wrong call of ours leads to.
_OURS = {errno.EBADF, errno.EFAULT, errno.ECHILD, errno.ESRCH}
_SHORT = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO}
# What to do about it, where the system's own words do not say.
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
# How libraries say that memory is short, in errors that have no class for it: torch on a CPU and on a GPU, C++.
_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|can't allocate memory|cannot allocate memory|not enough memory|out of memory|bad_alloc"
    r"|ALLOC_FAILED",
    re.IGNORECASE,
)
_LONG_WORD = re.compile(r"\S{600,}(?<![:;,])")
_OF_RUST = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers raise errors of their own classes
_LOWER = (
    "lower hardware.micro_batch_tokens, hardware.generation_batch_size or the step's batch size, or give "
    "hardware.activation_checkpointing=true"
)


class AlignError(Exception):
    """An error of the user's world (a knob, a file, a folder), not a defect; shown without a traceback."""

    exit_code = 1


class ConfigError(AlignError):
    """A knob, an input reference or a row of data is not what it should be."""

    exit_code = 2


class StoreError(AlignError):
    """The artifact store holds something it should not, or lacks something it should hold."""

    exit_code = 3


class HealthStop(AlignError):
    """Training was stopped because its numbers went bad (a loss that is not finite, for example)."""

    exit_code = 4


class Preempted(AlignError):
    """The process was asked to stop; its step is saved and goes on when the same command is given again."""

    exit_code = 143


@contextlib.contextmanager
def naming_the_world(place: str = "") -> Iterator[None]:
    """Raise a full disk, a folder without rights, too little memory and the like as a `StoreError` of one line.

    A name that no file can have is what somebody wrote: a `ConfigError`.

    Args:
        place: what is written to meanwhile, for errors that do not say which file they are about.
    """
    try:
        yield
    except (AlignError, BrokenPipeError):  # the reader of a pipe that ended is no fault
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise ConfigError(too_long(error)) from error
        if (said := fault_of_world(error, place)) is None:
            raise
        raise StoreError(said) from error


def fault_of_world(error: BaseException, place: str = "") -> str | None:
    """What the machine refused, in one line; None where the error may be a defect of align.

    Libraries wrap such errors, so this looks at what an error was raised from too.
    """
    while True:
        if _is_of_memory(error):
            return f"out of memory: {_first_line(error)}; {_LOWER}"
        if isinstance(error, OSError) and _is_refused(error):
            files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
            return _line(" -> ".join(files) or place, error.errno, error.strerror or "")
        if found := _OF_RUST.search(str(error)):
            return _line(place, int(found[1]), os.strerror(int(found[1])))
        if error.__cause__ is None:
            return None
        error = error.__cause__


def too_long(error: OSError) -> str:
    """What is wrong with a name that the file system has no room for."""
    return f"{error.filename}: a path, or a name in it, longer than the file system takes; give a shorter one"


def is_short(error: BaseException | None) -> bool:
    """Whether the machine ran out of memory, disk or open files: then what was read is not at fault."""
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
    """True of an error that the system gave: libraries raise `OSError` for their own reasons too, without a number."""
    if error.errno is None or error.errno in _OURS:
        return False
    if error.errno == errno.EINVAL:  # file systems say so of names that they cannot hold
        return error.filename is not None
    return not (error.errno == errno.ENOENT and _is_ours(error.filename))


def _is_ours(file: object) -> bool:
    """Whether a file belongs to align itself: when one is missing, the installation is broken, or our code is."""
    return isinstance(file, str | os.PathLike) and Path(file).absolute().is_relative_to(PACKAGE)


def _line(place: str, number: int | None, reason: str) -> str:
    said = f"{place}: {reason}" if place else reason
    return f"{said}; {_ADVICE[number]}" if number in _ADVICE else said


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")


def one_line(text: str) -> str:
    """Text of others in one line of a terminal.

    Line breaks, control characters and what cannot be printed are escaped; a word of more than 600 characters is cut.
    """
    text = _LONG_WORD.sub(lambda word: f"{word[0][:60]}... ({len(word[0]):,} characters)", text.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
