"""Leaves passwords, tokens and keys out of command lines and variables that are recorded."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "***"
_SECRET = r"(?:password|passwd|passphrase|pwd|secrets?|tokens?|api_?key|key|credentials?|auth|jwt)"
# Words of a name, as in --hf-token, DB_PASSWORD or loader.api_key; "tokenizer" and "keyboard" are other words.
_IS_SECRET = re.compile(rf"(?:^|[^a-z0-9]){_SECRET}(?:$|[^a-z0-9])", re.IGNORECASE)
_PAIR = re.compile(r"(?P<name>-{0,2}[\w.+-]+)=(?P<value>.*)", re.DOTALL)
# Each begins at one place of a word only, so that a long text takes time in proportion.
_USER = re.compile(r"(?P<scheme>(?<![a-z0-9+.-])[a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s/@]+@", re.IGNORECASE)
# In text: parameters of a URL, variables and options of a shell's command, entries of JSON or a dict.
_PARAMETER = re.compile(r"(?P<begin>[?&;](?P<name>[\w.+-]+)=)[^&;#\s'\"]+")
_VARIABLE = re.compile(r"(?P<begin>\b(?P<name>[A-Z][A-Z0-9_]*)=)[^\s'\";&]+")
_OPTION = re.compile(r"(?P<begin>(?<!\S)--(?P<name>[\w.-]+)[= ])(?!-)[^\s'\";&]+")
_ENTRY = re.compile(r"(?P<begin>(?P<quote>['\"])(?P<name>[\w.-]+)(?P=quote)\s*:\s*(?P<open>['\"]))[^'\"]+")
# Keys of services have a form of their own: GitHub, GitLab, Hugging Face, OpenAI, Slack, AWS, and signed JSON.
_KEY_OF_SERVICE = re.compile(
    r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_\w{20,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|AKIA[0-9A-Z]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)
_SIGNATURES = frozenset({"sig", "signature", "x-amz-signature", "x-goog-signature"})
# Words that in a dict or its message are seldom a secret.
_PLAIN = frozenset({"key", "token", "tokens", "auth"})
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
    """Return text with what can be told for a secret hidden.

    That are passwords and parameters like ``token`` in URLs, what follows ``Bearer``, the values of variables, options
    and entries of a dict that have such a name, and keys of the form that some services give theirs.

    Example:
        >>> without_passwords("https://me:pw@example.org/x?token=t0ken&n=1")
        'https://me:***@example.org/x?token=***&n=1'
        >>> without_passwords("HF_TOKEN=x python train.py --api-key k3y --lr 1 {'password': 'pw'}")
        "HF_TOKEN=*** python train.py --api-key *** --lr 1 {'password': '***'}"
    """
    text = _BEARER.sub(rf"\g<kind> {HIDDEN}", _USER.sub(rf"\g<scheme>:{HIDDEN}@", text))
    text = _KEY_OF_SERVICE.sub(HIDDEN, text)
    for pattern in (_PARAMETER, _VARIABLE, _OPTION, _ENTRY):
        text = pattern.sub(_without_value, text)
    return text


def _without_value(found: re.Match[str]) -> str:
    name = found["name"]
    is_plain = "quote" in found.re.groupindex and name.lower() in _PLAIN
    hides = name.lower() in _SIGNATURES or (is_secret(name) and not is_plain)
    return f"{found['begin']}{HIDDEN}" if hides else found[0]
