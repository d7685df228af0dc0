"""Errors of the operating system and of disks."""

from __future__ import annotations

import errno as _errno
from pathlib import Path
from typing import TYPE_CHECKING

from ckptstore.errors.base import CheckpointStoreError

if TYPE_CHECKING:
    from ckptstore.records import Checkpoint

_HINTS = {
    _errno.EROFS: "the file system is mounted read-only; to query: read_only=True",
    _errno.EACCES: "this user lacks the permission; to query: read_only=True",
    _errno.EFBIG: "a limit forbids files of this size: see `ulimit -f`, and what the file system allows",
}
_UNAFFECTED = "older checkpoints are not affected"
_UNREADABLE = "if this persists, move the file out of the store: `resume` then steps back to the one before"


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
        usual = _UNREADABLE if operation == "read" and error.errno == _errno.EIO else _UNAFFECTED
        super().__init__(
            f"{path}: {operation} failed: {error.strerror or error}",
            hint=hint or _HINTS.get(error.errno or 0, usual),
            operation=operation,
            path=path,
            errno=error.errno,
        )


class DiskFullError(StorageError):
    """The disk is full, or the user's quota is used up.

    Attributes:
        needed: Bytes needed, or None where only something like a directory entry was needed.
        free: Bytes free, or None where unknown.
        disk: The mount point of the file system, or None where unknown.
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
        problem = "the quota is used up" if code == _errno.EDQUOT else "the disk is full"
        where = "" if disk is None else f" ({disk})"
        needed_text = "" if needed is None else f": {needed:,} bytes needed"
        free_text = "" if free is None else f", {free:,} bytes free"
        CheckpointStoreError.__init__(
            self,
            f"{path}: {problem}{where}{needed_text}{free_text}",
            hint="free some space; saving then works again",
            operation="write",
            path=path,
            needed=needed,
            free=free,
            disk=disk,
            errno=code,
        )


class StoreRemovedError(StorageError):
    """The store was removed, or another was put in its place, while this process was using it; nothing was changed.

    No store is begun in its place: if it comes back, the next save works.

    Attributes:
        store: The store's directory.
        reason: What was found there.
    """

    store: Path
    reason: str

    def __init__(self, *, store: Path, reason: str, hint: str = "") -> None:
        CheckpointStoreError.__init__(
            self,
            f"{store}: {reason} while this process was using it",
            hint=hint or "put the store back, and saving works again; or end this process",
            operation="open",
            path=store,
            store=store,
            reason=reason,
            errno=_errno.ESTALE,
        )


class UnfinishedSaveError(StorageError):
    """A checkpoint is saved, durable and listed, but a step after its commit failed.

    Attributes:
        checkpoint: The checkpoint.
        undone: The step that failed, such as ``"showing it at models/best.keras"``.
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
            hint="the next save, or the next opening of the store, completes it"
            if isinstance(error, CheckpointStoreError)
            else "the checkpoint exists anyway; fix the cause",
            checkpoint=checkpoint,
            undone=undone,
            operation=getattr(error, "operation", "finish"),
            path=getattr(error, "path", checkpoint.path),
            errno=getattr(error, "errno", None),
        )


class UnsafeFileSystemError(StorageError):
    """The file system lacks a feature that the safety of a store depends on.

    Attributes:
        lacks: The missing feature.
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
