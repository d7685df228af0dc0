"""The operating system refused, or the disk failed."""

from __future__ import annotations

import errno as _errno
from pathlib import Path
from typing import TYPE_CHECKING

from ckptstore.errors.base import CheckpointStoreError

if TYPE_CHECKING:
    from ckptstore.records import Checkpoint

_HINTS = {
    _errno.EROFS: "the file system is mounted read-only; to query: read_only=True",
    _errno.EACCES: "this user may not do that there; to query: read_only=True",
}
_UNTOUCHED = "older checkpoints are not touched by this"
_UNREAD = "if that stays so, move the file out of the store: `resume` then goes back to the one before"


class StorageError(CheckpointStoreError, OSError):
    """The operating system refused or failed an operation on the store's files.

    Attributes:
        operation: What was being done, such as ``"fsync"``.
        path: The file or directory it was done to.
        errno: The system's error number, or None.
    """

    operation: str
    path: Path
    errno: int | None

    def __init__(self, *, operation: str, path: Path, error: OSError, hint: str = "") -> None:
        usual = _UNREAD if operation == "read" and error.errno == _errno.EIO else _UNTOUCHED
        super().__init__(
            f"{path}: {operation} failed: {error.strerror or error}",
            hint=hint or _HINTS.get(error.errno or 0, usual),
            operation=operation,
            path=path,
            errno=error.errno,
        )


class DiskFullError(StorageError):
    """There is no room on the disk, or no more of the user's quota.

    Attributes:
        needed: Bytes that were needed, or None where only a directory entry or the like was.
        free: Bytes that were free, or None where unknown.
        disk: Where the file system is mounted, or None where unknown.
    """

    needed: int | None
    free: int | None
    disk: Path | None

    def __init__(
        self,
        *,
        path: Path,
        needed: int | None = None,
        free: int | None = None,
        disk: Path | None = None,
        code: int = _errno.ENOSPC,
    ) -> None:
        what = "the quota is used up" if code == _errno.EDQUOT else "the disk is full"
        where = "" if disk is None else f" ({disk})"
        needed_text = "" if needed is None else f": {needed:,} bytes needed"
        free_text = "" if free is None else f", {free:,} bytes free"
        CheckpointStoreError.__init__(
            self,
            f"{path}: {what}{where}{needed_text}{free_text}",
            hint="free some space; saving then works again",
            operation="write",
            path=path,
            needed=needed,
            free=free,
            disk=disk,
            errno=code,
        )


class UnfinishedSaveError(StorageError):
    """A checkpoint is saved, durable and listed, but what comes after that failed.

    Attributes:
        checkpoint: The checkpoint.
        undone: What was not done, such as ``"showing it at models/best.keras"``.
    """

    checkpoint: Checkpoint
    undone: str

    def __init__(self, *, checkpoint: Checkpoint, undone: str, error: Exception) -> None:
        reason = (
            error.message if isinstance(error, CheckpointStoreError) else f"{type(error).__name__}: {error}"
        )
        CheckpointStoreError.__init__(
            self,
            f"version {checkpoint.version} is saved, but {undone} failed: {reason}",
            hint="the next save, or the next opening of the store, finishes it"
            if isinstance(error, CheckpointStoreError)
            else "the checkpoint is there all the same; correct what raised it",
            checkpoint=checkpoint,
            undone=undone,
            operation=getattr(error, "operation", "finish"),
            path=getattr(error, "path", checkpoint.path),
            errno=getattr(error, "errno", None),
        )


class UnsafeFileSystemError(StorageError):
    """The file system lacks something that a store's safety rests on.

    Attributes:
        lacks: What it lacks.
    """

    lacks: str

    def __init__(self, *, path: Path, lacks: str, error: OSError | None = None, hint: str) -> None:
        cause = "" if error is None else f" ({error.strerror or error})"
        CheckpointStoreError.__init__(
            self,
            f"{path}: {lacks}{cause}",
            hint=hint,
            operation="lock",
            path=path,
            lacks=lacks,
            errno=None if error is None else error.errno,
        )
