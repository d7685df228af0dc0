"""Leases, which prove that a writer is alive, and the removal of what dead writers left under ``tmp/``."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from filelock import Timeout

from ckptstore.errors import StorageError
from ckptstore.storage.files import remove_tree, unlink
from ckptstore.storage.locks import acquire, file_lock, release

_LEASE = ".lease"


class Lease:
    """Proof that a writer is alive: the file ``tmp/<id>.lease``, locked for the writer's life.

    Leases are made, released and removed under the store's lock. A crash leaves the file unlocked, which marks the
    writer's temporary files (``tmp/<id>.*``) as stale.

    Args:
        directory: The store's ``tmp`` directory.

    Attributes:
        directory: The store's ``tmp`` directory.
        id: The beginning of the names of the writer's temporary files, 32 hexadecimal digits.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.id = uuid.uuid4().hex
        self._path = directory / f"{self.id}{_LEASE}"
        self._lock = file_lock(self._path, timeout_s=0, per_thread=False)
        acquire(self._lock, "lease", self._path)
        self._count = 0

    def new_path(self, suffix: str) -> Path:
        """Return an unused name for a temporary file of this writer."""
        self._count += 1
        return self.directory / f"{self.id}.{self._count}{suffix}"

    def is_in_place(self) -> bool:
        """Return False if the lease's file was removed: then nothing protects the writer's files."""
        return os.path.lexists(self._path)

    def release(self) -> None:
        """End the lease and remove its file."""
        try:
            unlink(self._path)
        finally:
            release(self._lock, self._path)


def remove_stale_files(directory: Path) -> list[Path]:
    """Remove the temporary files and directories of dead writers, never those of living ones; under the store's lock.

    Returns:
        The removed files and directories. Those with names that no writer uses are left alone.
    """
    removed: list[Path] = []
    names: dict[str, list[Path]] = {}
    try:
        found = sorted(directory.iterdir())
    except OSError as error:
        raise StorageError(operation="list", path=directory, error=error) from error
    for path in found:
        owner = path.name.partition(".")[0]
        is_id = len(owner) == 32 and set(owner) <= set("0123456789abcdef")
        is_ours = path.is_file() or (path.is_dir() and path.suffix != _LEASE)
        if is_id and is_ours and not path.is_symlink():
            names.setdefault(owner, []).append(path)
    for owner, paths in names.items():
        lease = directory / f"{owner}{_LEASE}"
        if os.path.lexists(lease) and lease not in paths:
            continue
        lock = file_lock(lease, timeout_s=0, per_thread=False)
        try:
            acquire(lock, "lease", lease)
        except StorageError as error:
            if isinstance(error.__cause__, Timeout):
                continue
            raise
        # The lease goes last: after a crash here the rest is still found stale.
        for path in sorted({*paths, lease}, key=lambda path: path.suffix == _LEASE):
            remove_tree(path) if path.is_dir() else unlink(path)
            removed.append(path)
        lock.release()
    return removed
