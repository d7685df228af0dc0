"""Parses a successful system call, as strace prints it with strings in hexadecimal."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_BUFFER = re.compile(r'iov_base="((?:\\x[0-9a-f]{2})*)"')
_FLAG = re.compile(r"(?:__)?O_\w+")
_AT = re.compile(r"(?:^|, )(AT_FDCWD|\d+), $")


@dataclass(frozen=True, slots=True)
class Call:
    """One successful call: its arguments as strace prints them, and the number of operations before its entry."""

    name: str
    inside: str
    returned: int
    entered: int

    @property
    def descriptor(self) -> int:
        """The first argument."""
        return int(self.inside.partition(", ")[0])

    @property
    def paths(self) -> list[str]:
        """The strings among the arguments, as paths."""
        return [os.fsdecode(_bytes_of(found)) for found in _STRING.findall(self.inside)]

    @property
    def flags(self) -> set[str]:
        """The flags for opening a file, among the arguments."""
        return set(_FLAG.findall(self.inside))

    @property
    def data(self) -> bytes:
        """The written bytes of all buffers."""
        pattern = _BUFFER if "iov_base" in self.inside else _STRING
        return b"".join(map(_bytes_of, pattern.findall(self.inside)))

    def at(self, number: int) -> str:
        """Return the descriptor that a string among the arguments is relative to."""
        before = self.inside[: list(_STRING.finditer(self.inside))[number].start()]
        match = _AT.search(before)
        return match[1] if match else "AT_FDCWD"


def _bytes_of(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))
