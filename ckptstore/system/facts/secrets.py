"""Leaves passwords, tokens and keys out of command lines and variables that are recorded."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "***"
_SECRET = r"(?:password|passwd|passphrase|pwd|secrets?|tokens?|api_?key|key|credentials?|auth|jwt)"
# Words of a name, as in --hf-token, DB_PASSWORD or loader.api_key; "tokenizer" and "keyboard" are other words.
_IS_SECRET = re.compile(rf"(?:^|[^a-z0-9]){_SECRET}(?:$|[^a-z0-9])", re.IGNORECASE)
_PAIR = re.compile(r"(?P<name>-{0,2}[\w.+-]+)=(?P<value>.*)", re.DOTALL)
_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s/@]+@", re.IGNORECASE)
_BEARER = re.compile(r"\b(?P<kind>bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Return True if an option or variable of this name may hold a secret.

    Example:
        >>> [is_secret(name) for name in ("--hf-token", "DB_PASSWORD", "--tokenizer", "--epochs")]
        [True, True, False, False]
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name) if not name.isupper() else name
    return bool(_IS_SECRET.search(words))


def without_secrets(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return arguments of a command with the values of options like ``--token`` and passwords in URLs hidden.

    Example:
        >>> without_secrets(["train.py", "--api-key", "k3y", "--db=postgres://me:pw@host/x", "--lr", "0.1"])
        ('train.py', '--api-key', '***', '--db=postgres://me:***@host/x', '--lr', '0.1')
    """
    shown: list[str] = []
    hides_next = False
    for argument in arguments:
        pair = _PAIR.fullmatch(argument)
        if hides_next and not argument.startswith("--"):
            shown.append(HIDDEN)
            hides_next = False
        elif pair is not None and is_secret(pair["name"]):
            shown.append(f"{pair['name']}={HIDDEN}")
            hides_next = False
        else:
            hides_next = argument.startswith("-") and pair is None and is_secret(argument)
            shown.append(without_passwords(argument))
    return tuple(shown)


def without_passwords(text: str) -> str:
    """Return text with the passwords in its URLs, and what follows ``Bearer``, hidden.

    Example:
        >>> without_passwords("https://me:pw@example.org")
        'https://me:***@example.org'
    """
    return _BEARER.sub(rf"\g<kind> {HIDDEN}", _USER.sub(rf"\g<scheme>:{HIDDEN}@", text))
