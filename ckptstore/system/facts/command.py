"""The command line of this process, without secrets."""

from __future__ import annotations

import sys

from ckptstore.system.facts.secrets import without_secrets

# Characters of one argument, and arguments, that are kept: a program given with -c may be long.
_LONGEST = 1000
_MOST = 500


def command_line() -> tuple[str, ...]:
    """Return program and arguments of this process; the values of options like ``--token`` are hidden.

    Example:
        >>> command_line()[0] != ""
        True
    """
    arguments = without_secrets(sys.orig_argv or sys.argv)
    shown = tuple(_shortened(argument) for argument in arguments[:_MOST])
    return shown if len(arguments) <= _MOST else (*shown, f"... ({len(arguments) - _MOST} more)")


def _shortened(text: str) -> str:
    # An undecodable byte of an argument is no text that can be stored.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
