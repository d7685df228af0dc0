"""Local payloads that are open for reading: a file, or the files of a directory; also files outside a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckptstore.errors import StorageError
from ckptstore.storage.payloads.stored import ONLY, StoredPayload
from ckptstore.storage.random_access import RandomAccess, RandomAccessFile, open_random_access


@contextmanager
def open_local(path: Path) -> Iterator[StoredPayload]:
    """Open a file, or a directory of files, as a payload.

    Raises:
        CorruptPayloadError: There is none.
        StorageError: It cannot be opened.
    """
    if path.is_dir():
        with ExitStack() as stack:
            yield _Directory(path, stack)
        return
    with open_random_access(path) as file:
        yield _File(path, file)


@dataclass(frozen=True, slots=True)
class LooseFile:
    """A file outside a store that is read as a payload is: one that Keras saved, or that was exported."""

    path: Path

    def open(self) -> AbstractContextManager[StoredPayload]:
        """Open it; raises as `open_local`."""
        return open_local(self.path)


def member_sizes(directory: Path) -> dict[str, int]:
    """Return the size of each file in a directory and those below it, by its relative path with ``/``.

    Raises:
        StorageError: It cannot be listed.
    """
    sizes = {}
    try:
        for folder, _, names in os.walk(directory, onerror=_raise):
            for name in names:
                path = Path(folder, name)
                sizes[path.relative_to(directory).as_posix()] = path.stat().st_size
    except OSError as error:
        raise StorageError(operation="list", path=directory, error=error) from error
    return dict(sorted(sizes.items()))


def _raise(error: OSError) -> None:
    raise error


class _File(StoredPayload):
    """A payload that is one file."""

    def __init__(self, path: Path, file: RandomAccessFile) -> None:
        super().__init__(path, {ONLY: file.nbytes})
        self._file = file

    def member(self, name: str) -> RandomAccess:
        if name != ONLY:
            raise self.corrupt(f"it is one file, without a member {name!r}")
        return self._file


class _Directory(StoredPayload):
    """A payload that is a directory; a member is opened when it is asked for, and stays open."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        super().__init__(path, member_sizes(path))
        self._stack = stack
        self._opened: dict[str, RandomAccess] = {}

    def member(self, name: str) -> RandomAccess:
        if name not in self.members:
            raise self.corrupt(f"its member {name!r} is missing")
        if name not in self._opened:
            self._opened[name] = self._stack.enter_context(open_random_access(self.path / name))
        return self._opened[name]
