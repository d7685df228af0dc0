"""Exit codes of the `ckptstore` command, and which error gives which."""

from __future__ import annotations

import click

from ckptstore.errors import (
    CorruptError,
    InvalidArgumentError,
    LockedError,
    NotFoundError,
    SchemaError,
)

PROBLEMS_FOUND = 5
INTERRUPTED = 130
# The first class that an error belongs to gives the exit code.
EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (NotFoundError, 3),
    (LockedError, 4),
    (CorruptError, PROBLEMS_FOUND),
    (SchemaError, 6),
    (InvalidArgumentError, 2),
    (click.UsageError, 2),
    (Exception, 1),
)
EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 locked by another process, 5 problems found, "
    "6 schema version."
)


def exit_code(error: Exception) -> int:
    """Return the exit code for an error.

    Example:
        >>> exit_code(LockedError("busy")), exit_code(OSError())
        (4, 1)
    """
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
