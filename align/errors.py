"""What can go wrong, each with the exit code a shell sees. The message is one line: where, what, what is allowed."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

# What a disk or its rights refuse; a file that is missing may be a defect of ours and is not among them.
_WORLD = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}


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
def naming_the_world() -> Iterator[None]:
    """Raise a full disk, a folder without rights and the like as a `StoreError` of one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in _WORLD:
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise StoreError(f"{where}{error.strerror}") from error
