"""Checks of the numbers that rules are made with."""

from __future__ import annotations

from ckptstore.errors import InvalidArgumentError


def check_count(argument: str, value: object) -> int:
    """Return a number of checkpoints, epochs or steps.

    Raises:
        InvalidArgumentError: It is not a positive integer.

    Example:
        >>> check_count("n", 3)
        3
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgumentError(argument=argument, value=value, reason="must be a positive integer")
    return value
