"""Every error that ckptstore raises: facts as attributes, a message derived from them, a hint for what to do next.

The branches follow what a caller would do: look elsewhere (`NotFoundError`), wait (`LockedError`), fall
back to an older checkpoint (`CorruptError`), upgrade (`SchemaError`), change the model (`ModelMismatchError`),
free space (`StorageError`), correct the call (`InvalidArgumentError`). Each is also the built-in exception
that a Python programmer would catch. All of them pickle.
"""

from __future__ import annotations

import errno as _errno
from datetime import datetime
from pathlib import Path
from typing import Any


class CheckpointStoreError(Exception):
    """Base of every error raised by ckptstore.

    Attributes:
        message: One line that says what happened and where.
        hint: What to do next; often a command. Empty where there is nothing useful to say.
        facts: The keyword arguments that the error was built from, also attributes of their own.

    Example:
        >>> error = InvalidArgumentError(argument="epoch", value=-1, reason="must be 0 or more")
        >>> error.argument, error.value
        ('epoch', -1)
        >>> print(error)
        epoch=-1: must be 0 or more
    """

    message: str
    hint: str
    facts: dict[str, Any]

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.facts, self.message, self.hint)


def _rebuild(
    kind: type[CheckpointStoreError], facts: dict[str, Any], message: str, hint: str
) -> CheckpointStoreError:
    """Make an unpickled error without running the subclass's own constructor."""
    error = kind.__new__(kind)
    CheckpointStoreError.__init__(error, message, hint=hint, **facts)
    return error


class NotFoundError(CheckpointStoreError, LookupError):
    """What was asked for is not in the store, or the store is not there."""


class StoreNotFoundError(NotFoundError):
    """There is no store at this path."""

    path: Path

    def __init__(self, *, path: Path) -> None:
        super().__init__(
            f"{path}: no store here (no manifest.sqlite)",
            hint="a store is made by the first save; check the path",
            path=path,
        )


class CheckpointNotFoundError(NotFoundError):
    """No checkpoint answers to this ref."""

    ref: str
    store: Path

    def __init__(self, *, ref: object, store: Path) -> None:
        super().__init__(
            f"{store}: no checkpoint {str(ref)!r}",
            hint=f"list what there is: ckptstore ls {store}",
            ref=str(ref),
            store=store,
        )


class RunNotFoundError(NotFoundError):
    """The store has no run of this name."""

    run: str
    store: Path
    known: tuple[str, ...]

    def __init__(self, *, run: str, store: Path, known: tuple[str, ...] = ()) -> None:
        super().__init__(
            f"{store}: no run {run!r}",
            hint=f"runs here: {_listed(known)}",
            run=run,
            store=store,
            known=known,
        )


class MetricNotFoundError(NotFoundError):
    """No checkpoint recorded this metric."""

    metric: str
    store: Path
    known: tuple[str, ...]

    def __init__(self, *, metric: str, store: Path, known: tuple[str, ...] = ()) -> None:
        super().__init__(
            f"{store}: no checkpoint has a metric {metric!r}",
            hint=f"metrics here: {_listed(known)}",
            metric=metric,
            store=store,
            known=known,
        )


class LockedError(CheckpointStoreError, TimeoutError):
    """Somebody else holds the lock that is needed."""


class StoreLockedError(LockedError):
    """The store's commit lock was not free within the time allowed."""

    path: Path
    waited_s: float

    def __init__(self, *, path: Path, waited_s: float) -> None:
        super().__init__(
            f"{path}: another process has held the store's lock for over {waited_s:g} s",
            hint=f"see who has it open: lsof {path}",
            path=path,
            waited_s=waited_s,
        )


class RunLockedError(LockedError):
    """Another writer has this run; `host`, `pid` and `started_at` name it (None where unknown)."""

    run: str
    store: Path
    host: str | None
    pid: int | None
    started_at: datetime | None

    def __init__(
        self,
        *,
        run: str,
        store: Path,
        host: str | None = None,
        pid: int | None = None,
        started_at: datetime | None = None,
    ) -> None:
        since = f" since {started_at.isoformat(timespec='seconds')}" if started_at else ""
        holder = f"process {pid} on {host}{since}" if pid is not None else "another process"
        super().__init__(
            f"{store}: run {run!r} is being written by {holder}",
            hint="wait for it to end, or write to a run of another name",
            run=run,
            store=store,
            host=host,
            pid=pid,
            started_at=started_at,
        )


class CorruptError(CheckpointStoreError, ValueError):
    """Bytes on disk are not what was written."""


class CorruptPayloadError(CorruptError):
    """A payload file is damaged, or is not the one that its manifest row describes."""

    path: Path
    reason: str

    def __init__(self, *, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: damaged payload: {reason}",
            hint="the other checkpoints are not touched by this; ckptstore verify tells which are whole",
            path=path,
            reason=reason,
        )


class CorruptManifestError(CorruptError):
    """`manifest.sqlite` cannot be read as a manifest."""

    path: Path
    reason: str

    def __init__(self, *, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: damaged manifest: {reason}",
            hint="nothing was changed; the payloads beside it are whole files that Keras loads by themselves",
            path=path,
            reason=reason,
        )


class SchemaError(CheckpointStoreError, ValueError):
    """The manifest has a schema that this ckptstore does not work with as it is."""


class SchemaTooOldError(SchemaError):
    """The manifest's schema is older, and this open may not upgrade it."""

    path: Path
    found: str
    known: str

    def __init__(self, *, path: Path, found: str, known: str) -> None:
        super().__init__(
            f"{path}: schema {found} is older than {known}, and a read-only open does not change it",
            hint=f"run: ckptstore upgrade {path.parent}",
            path=path,
            found=found,
            known=known,
        )


class SchemaTooNewError(SchemaError):
    """The manifest was written by a newer ckptstore."""

    path: Path
    found: str
    known: str

    def __init__(self, *, path: Path, found: str, known: str) -> None:
        super().__init__(
            f"{path}: schema {found} is unknown to this ckptstore, which knows up to {known}",
            hint="run: pip install --upgrade ckptstore",
            path=path,
            found=found,
            known=known,
        )


class ModelMismatchError(CheckpointStoreError, ValueError):
    """The checkpoint does not fit the model; nothing was changed.

    Attributes:
        where: Path of the first variable that differs, as in the payload.
        in_checkpoint: What the checkpoint has there, such as ``"(3, 8) float32"`` or ``"nothing"``.
        in_model: What the model has there.
    """

    where: str
    in_checkpoint: str
    in_model: str

    def __init__(self, *, where: str, in_checkpoint: str, in_model: str, hint: str = "") -> None:
        super().__init__(
            f"the checkpoint does not fit the model: {where} is {in_checkpoint} in the checkpoint "
            f"and {in_model} in the model",
            hint=hint or "the model was left as it was; build and compile it as it was when it was saved",
            where=where,
            in_checkpoint=in_checkpoint,
            in_model=in_model,
        )


class ModelNotReadyError(CheckpointStoreError, ValueError):
    """The model is not built, or not compiled, and so cannot be saved or restored as asked."""

    model: str
    missing: str

    def __init__(self, *, model: str, missing: str, hint: str) -> None:
        super().__init__(f"model {model!r} is not {missing}", hint=hint, model=model, missing=missing)


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
        super().__init__(
            f"{path}: {operation} failed: {error.strerror or error}",
            hint=hint or "older checkpoints are not touched by this",
            operation=operation,
            path=path,
            errno=error.errno,
        )


class DiskFullError(StorageError):
    """There is no room on the disk.

    Attributes:
        needed: Bytes that were needed, or None where only a directory entry or the like was.
        free: Bytes that were free, or None where unknown.
    """

    needed: int | None
    free: int | None

    def __init__(
        self, *, path: Path, needed: int | None = None, free: int | None = None, code: int = _errno.ENOSPC
    ) -> None:
        needed_text = "" if needed is None else f": {needed:,} bytes needed"
        free_text = "" if free is None else f", {free:,} bytes free"
        CheckpointStoreError.__init__(
            self,
            f"{path}: the disk is full{needed_text}{free_text}",
            hint="free some space; older checkpoints are not touched by this",
            operation="write",
            path=path,
            needed=needed,
            free=free,
            errno=code,
        )


class NotAStoreError(CheckpointStoreError, ValueError):
    """The path holds something that is not a store and must not be written to."""

    path: Path
    reason: str

    def __init__(self, *, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: not a ckptstore store: {reason}",
            hint="nothing was changed; choose an empty or new directory",
            path=path,
            reason=reason,
        )


class InvalidArgumentError(CheckpointStoreError, ValueError):
    """An argument has a value that cannot be used; nothing was changed."""

    argument: str
    value: object
    reason: str

    def __init__(self, *, argument: str, value: object, reason: str, hint: str = "") -> None:
        shown = repr(value)
        if len(shown) > 80:
            shown = f"{shown[:60]}… ({len(shown)} characters)"
        super().__init__(
            f"{argument}={shown}: {reason}", hint=hint, argument=argument, value=value, reason=reason
        )


class ReadOnlyError(CheckpointStoreError, PermissionError):
    """A change was asked of a store that is open for reading only."""

    store: Path
    operation: str

    def __init__(self, *, store: Path, operation: str) -> None:
        super().__init__(
            f"{store}: {operation} needs a store that is open for writing",
            hint="open it with CheckpointStore(path)",
            store=store,
            operation=operation,
        )


def _listed(names: tuple[str, ...], most: int = 12) -> str:
    if not names:
        return "none"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
