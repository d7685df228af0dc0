"""The base of all errors: facts as attributes, a message derived from them, a hint; all of it pickles."""

from __future__ import annotations

from typing import Any

from ckptstore.printable import printable


class CheckpointStoreError(Exception):
    """Base of all errors raised by ckptstore.

    Attributes:
        message: One line: what happened, and where. Names in it are escaped where they could act on a terminal.
        hint: What to do next, often a command; empty where there is no useful hint.
        facts: The keyword arguments that the error was created from; each is also an attribute.

    Example:
        >>> from ckptstore.errors import InvalidArgumentError
        >>> error = InvalidArgumentError(argument="epoch", value=-1, reason="must be 0 or more")
        >>> error.argument, error.value
        ('epoch', -1)
        >>> print(error)
        epoch=-1: must be 0 or more
    """

    message: str
    hint: str
    facts: dict[str, Any]

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        self.message = printable(message)
        self.hint = printable(hint)
        super().__init__(self.message)
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.facts, self.message, self.hint)


def _rebuild(
    kind: type[CheckpointStoreError], facts: dict[str, Any], message: str, hint: str
) -> CheckpointStoreError:
    """Create an unpickled error without calling the constructor of its class."""
    error = kind.__new__(kind)
    CheckpointStoreError.__init__(error, message, hint=hint, **facts)
    return error
