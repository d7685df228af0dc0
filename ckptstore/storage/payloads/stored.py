"""`StoredPayload`: a payload that is open for reading, of one member or of several; and the digest of the whole."""

from __future__ import annotations

import errno
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import xxhash

from ckptstore.errors import CorruptPayloadError, StorageError
from ckptstore.storage.durable_writer import Written
from ckptstore.storage.files import DIGEST
from ckptstore.storage.random_access import RandomAccess

# The name of the member of a payload that is a single file.
ONLY = ""


def whole_of(members: Mapping[str, Written]) -> Written:
    """Return the size and the digest of a payload from those of its members.

    A single file's are its own. Of several members, the sizes are added, and the digest is that of the list of their
    digests, sizes and names, one a line, sorted by name: so it covers every byte of every member, and none has to be
    read again when processes that each wrote some of them report the digests.

    Example:
        >>> part = Written(nbytes=3, digest="xxh3_128:" + "0" * 32)
        >>> whole_of({"": part}) == part
        True
        >>> whole_of({"b": part, "a/0": part})
        Written(nbytes=6, digest='xxh3_128:958ca236a6b668ef3b90de0f98d3b5d4')
    """
    if members.keys() == {ONLY}:
        return members[ONLY]
    lines = (f"{one.digest} {one.nbytes} {json.dumps(name)}\n" for name, one in sorted(members.items()))
    digest = xxhash.xxh3_128_hexdigest("".join(lines).encode("ascii"))
    return Written(nbytes=sum(one.nbytes for one in members.values()), digest=f"{DIGEST}:{digest}")


class StoredPayload(ABC):
    """An open payload. All that is read through it is of the very bytes that were opened, even if its name is reused.

    Attributes:
        name: Its name.
        path: Names it in messages; only a local payload has such a path.
        members: The size of each member, by name; a payload that is a single file has one, named `ONLY`.
    """

    def __init__(self, path: Path, members: Mapping[str, int]) -> None:
        self.name = path.name
        self.path = path
        self.members = members

    @property
    def nbytes(self) -> int:
        """Size of all members in bytes."""
        return sum(self.members.values())

    @property
    def is_single_file(self) -> bool:
        """True if it is one file rather than several."""
        return self.members.keys() == {ONLY}

    def corrupt(self, reason: str) -> CorruptPayloadError:
        """Return the error for a damaged payload."""
        return CorruptPayloadError(path=self.path, reason=reason)

    @abstractmethod
    def member(self, name: str) -> RandomAccess:
        """Return a member, valid while the payload is open.

        Raises:
            CorruptPayloadError: There is no such member.
            StorageError: It cannot be read, which does not mean that it is damaged.
        """

    def file(self) -> RandomAccess:
        """Return the file that the payload is.

        Raises:
            StorageError: It is a directory.
        """
        if not self.is_single_file:
            error = IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            raise StorageError(operation="read", path=self.path, error=error)
        return self.member(ONLY)

    def digest(self, progress: Callable[[int], object] | None = None) -> str:
        """Read every byte, and return the digest of the whole, see `whole_of`.

        Args:
            progress: Called with the number of bytes of each part that was digested.

        Raises:
            CorruptPayloadError: A member is missing, or became shorter.
            StorageError: It cannot be read, which does not mean that it is damaged.
        """
        found = {}
        for name, nbytes in self.members.items():
            found[name] = Written(nbytes=nbytes, digest=self.member(name).digest(progress))
        return whole_of(found).digest

    def verify(self, nbytes: int, digest: str, progress: Callable[[int], object] | None = None) -> None:
        """Check size and digest of the whole.

        Raises:
            CorruptPayloadError: They differ from those given.
            StorageError: It cannot be read, which does not mean that it is damaged.
        """
        if self.nbytes != nbytes:
            raise self.corrupt(f"it has {self.nbytes:,} bytes, {nbytes:,} were saved")
        found = self.digest(progress)
        if found != digest:
            raise self.corrupt(f"its digest is {found}, {digest} was saved")
