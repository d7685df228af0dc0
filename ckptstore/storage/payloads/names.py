"""Names of payloads: version, run, and a suffix for the format; and those of payloads in quarantine.

A payload has a name, not a path: where its bytes lie is up to its `ckptstore.storage.payloads.interface.PayloadStore`.
The manifest records the name as a path relative to the store, ``checkpoints/<name>``, wherever that is.
"""

from __future__ import annotations

import re

from ckptstore.records import Format

# The suffix of each format's payloads; a longer one that ends like another comes first.
SUFFIXES: dict[Format, str] = {
    "keras": ".keras",
    "weights": ".weights.h5",
    "h5": ".h5",
    "sharded": ".sharded",
}
_FOLDER = "checkpoints"
_ANY_SUFFIX = "|".join(map(re.escape, SUFFIXES.values()))
_PAYLOAD = re.compile(
    rf"(?P<version>[0-9]{{8,18}})-(?P<run>[A-Za-z0-9_][A-Za-z0-9_.=+@-]{{0,99}}?)(?P<suffix>{_ANY_SUFFIX})"
)
# A name in quarantine, with the number that makes it unique.
_QUARANTINED = re.compile(rf"(.*?(?:{_ANY_SUFFIX}))(\.\d+)?")
_FORMATS: dict[str, Format] = {suffix: name for name, suffix in SUFFIXES.items()}


def payload_name(version: int, run: str, format: Format) -> str:
    """Return a payload's name.

    Example:
        >>> payload_name(7, "digits", "weights")
        '00000007-digits.weights.h5'
    """
    return f"{version:08d}-{run}{SUFFIXES[format]}"


def file_of_payload(name: str) -> str:
    """Return the path, relative to the store, under which the manifest records a payload.

    Example:
        >>> file_of_payload("00000007-digits.keras")
        'checkpoints/00000007-digits.keras'
    """
    return f"{_FOLDER}/{name}"


def payload_of_file(file: str) -> str:
    """Return the name of the payload that the manifest records as a path.

    Example:
        >>> payload_of_file("checkpoints/00000007-digits.keras")
        '00000007-digits.keras'
    """
    return file.removeprefix(f"{_FOLDER}/")


def leading_version(name: str) -> int:
    """Return the version at the beginning of a payload's name, also of one in quarantine; 0 if there is none.

    Example:
        >>> leading_version("00000007-a.keras.2"), leading_version("notes.txt")
        (7, 0)
    """
    head = name.partition("-")[0]
    return int(head) if 8 <= len(head) <= 18 and head.isascii() and head.isdecimal() else 0


def ends_as_payload(text: str) -> bool:
    """Return True if a path ends as the names of Keras' files do.

    Example:
        >>> ends_as_payload("models/best.weights.h5"), ends_as_payload("runs/best")
        (True, False)
    """
    return text.endswith(tuple(SUFFIXES.values()))


def is_payload_name(name: str) -> bool:
    """Return True if this is the name of a payload."""
    match = _PAYLOAD.fullmatch(name)
    if match is None:
        return False
    version = int(match["version"])
    return version >= 1 and payload_name(version, match["run"], _FORMATS[match["suffix"]]) == name


def is_payload_file(file: str) -> bool:
    """Return True if a path, relative to a store, can be a payload's.

    Example:
        >>> is_payload_file("checkpoints/00000007-a.keras"), is_payload_file("checkpoints/../a.keras")
        (True, False)
    """
    return file.startswith(f"{_FOLDER}/") and is_payload_name(payload_of_file(file))


def parse_payload_name(name: str) -> tuple[int, str, Format]:
    """Return the version, run and format in a payload's name.

    Example:
        >>> parse_payload_name("00000007-digits.weights.h5")
        (7, 'digits', 'weights')
    """
    match = _PAYLOAD.fullmatch(name)
    if match is None:
        raise ValueError(name)
    return int(match["version"]), match["run"], _FORMATS[match["suffix"]]


def payload_suffix(name: str) -> str:
    """Return the suffix of the format in a name, or "" where it ends in none.

    Example:
        >>> payload_suffix("00000007-a.b.weights.h5"), payload_suffix("notes.txt")
        ('.weights.h5', '')
    """
    return next((suffix for suffix in sorted(_FORMATS, key=len, reverse=True) if name.endswith(suffix)), "")


def without_quarantine_number(name: str) -> str:
    """Return the name that a payload in quarantine had before; another name as it is.

    Example:
        >>> without_quarantine_number("00000007-a.keras.2"), without_quarantine_number("00000007-a.keras")
        ('00000007-a.keras', '00000007-a.keras')
    """
    match = _QUARANTINED.fullmatch(name)
    return name if match is None else match[1]
