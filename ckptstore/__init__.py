"""Crash-safe checkpoints for Keras 3, indexed in SQLite: the public names, each imported on first use.

Importing this package imports neither Keras nor a backend, SQLAlchemy or numpy.

Example:
    >>> import ckptstore
    >>> issubclass(ckptstore.CheckpointNotFoundError, LookupError)
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ckptstore.backup_and_restore import BackupAndRestore
    from ckptstore.differences import Difference, VariableChange
    from ckptstore.errors import (
        CheckpointNotFoundError,
        CheckpointStoreError,
        CorruptError,
        CorruptManifestError,
        CorruptPayloadError,
        DiskFullError,
        InvalidArgumentError,
        LockedError,
        MetricNotFoundError,
        MissingPackageError,
        ModelMismatchError,
        ModelNotReadyError,
        NotAStoreError,
        NotFoundError,
        NoUsableCheckpointError,
        ReadOnlyError,
        RefusedByLayerError,
        RunLockedError,
        RunNotFoundError,
        SaveInProgressError,
        SchemaError,
        SchemaTooNewError,
        SchemaTooOldError,
        StorageError,
        StoreLockedError,
        StoreNotFoundError,
        UnfinishedSaveError,
        UnsafeFileSystemError,
    )
    from ckptstore.exporting import Exported
    from ckptstore.histories import History, RunSummary
    from ckptstore.importing import Imported
    from ckptstore.layout import find_store
    from ckptstore.model_checkpoint import ModelCheckpoint
    from ckptstore.pruning import Pruned
    from ckptstore.records import Checkpoint, Epoch, Event, Problem, Resumed
    from ckptstore.retention import (
        Policy,
        keep_best,
        keep_every,
        keep_last,
        keep_tagged,
        keep_within,
        max_bytes,
    )
    from ckptstore.signals import TrainingInterrupted
    from ckptstore.store import CheckpointStore
    from ckptstore.store_checkpoint import StoreCheckpoint
    from ckptstore.transfer import Copied

__all__ = [
    "BackupAndRestore",
    "Checkpoint",
    "CheckpointNotFoundError",
    "CheckpointStore",
    "CheckpointStoreError",
    "Copied",
    "CorruptError",
    "CorruptManifestError",
    "CorruptPayloadError",
    "Difference",
    "DiskFullError",
    "Epoch",
    "Event",
    "Exported",
    "History",
    "Imported",
    "InvalidArgumentError",
    "LockedError",
    "MetricNotFoundError",
    "MissingPackageError",
    "ModelCheckpoint",
    "ModelMismatchError",
    "ModelNotReadyError",
    "NoUsableCheckpointError",
    "NotAStoreError",
    "NotFoundError",
    "Policy",
    "Problem",
    "Pruned",
    "ReadOnlyError",
    "RefusedByLayerError",
    "Resumed",
    "RunLockedError",
    "RunNotFoundError",
    "RunSummary",
    "SaveInProgressError",
    "SchemaError",
    "SchemaTooNewError",
    "SchemaTooOldError",
    "StorageError",
    "StoreCheckpoint",
    "StoreLockedError",
    "StoreNotFoundError",
    "TrainingInterrupted",
    "UnfinishedSaveError",
    "UnsafeFileSystemError",
    "VariableChange",
    "__version__",
    "find_store",
    "keep_best",
    "keep_every",
    "keep_last",
    "keep_tagged",
    "keep_within",
    "max_bytes",
]

# Where each name lives; what is not listed is an error.
_HOMES = {
    "CheckpointStore": "store",
    "find_store": "layout",
    "BackupAndRestore": "backup_and_restore",
    "ModelCheckpoint": "model_checkpoint",
    "StoreCheckpoint": "store_checkpoint",
    "TrainingInterrupted": "signals",
    "Checkpoint": "records",
    "Problem": "records",
    "Policy": "retention",
    "Pruned": "pruning",
    "History": "histories",
    "RunSummary": "histories",
    "Copied": "transfer",
    "Difference": "differences",
    "Exported": "exporting",
    "Imported": "importing",
    "VariableChange": "differences",
    "Epoch": "records",
    "Event": "records",
    "Resumed": "records",
    "keep_best": "retention",
    "keep_every": "retention",
    "keep_last": "retention",
    "keep_tagged": "retention",
    "keep_within": "retention",
    "max_bytes": "retention",
}


def __getattr__(name: str) -> Any:
    """Import a public name's module on first use, and keep the name here."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
