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

from ckptstore.version import __version__

if TYPE_CHECKING:
    from ckptstore.commit.retention.prune import Pruned
    from ckptstore.errors import (
        CheckpointNotFoundError,
        CheckpointStoreError,
        CorruptError,
        CorruptManifestError,
        CorruptPayloadError,
        DiskFullError,
        DistributedError,
        InvalidArgumentError,
        JobIncompleteError,
        LockedError,
        LogNotFoundError,
        MessagesLostError,
        MessageTimeoutError,
        MetricNotFoundError,
        MissingPackageError,
        ModelMismatchError,
        ModelNotReadyError,
        NoResumePointError,
        NotAStoreError,
        NotFoundError,
        NoUsableCheckpointError,
        ObjectsMismatchError,
        PeerFailedError,
        ReadOnlyError,
        RefusedByLayerError,
        RefusedByObjectError,
        ResumeRefusedError,
        RunLockedError,
        RunMismatchError,
        RunNotFoundError,
        RunTakenOverError,
        SaveAbandonedError,
        SaveEndUnknownError,
        SaveInProgressError,
        SchemaError,
        SchemaTooNewError,
        SchemaTooOldError,
        SeveralProcessesError,
        SplitValueError,
        StorageError,
        StoreLockedError,
        StoreNotFoundError,
        StoreRemovedError,
        SupervisorRunningError,
        UnequalBatchesError,
        UnfinishedSaveError,
        UnsafeFileSystemError,
        UnserialisableModelError,
    )
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
    from ckptstore.storage.layout import find_store
    from ckptstore.store.diff import Difference, VariableChange
    from ckptstore.store.history import History, RunSummary
    from ckptstore.store.store import CheckpointStore
    from ckptstore.system.stop_signals import TrainingInterrupted
    from ckptstore.training.backup_and_restore import BackupAndRestore
    from ckptstore.training.job.open_in_job import open_in_job
    from ckptstore.training.model_checkpoint import ModelCheckpoint
    from ckptstore.training.store_checkpoint import StoreCheckpoint
    from ckptstore.transfer.copy import Copied
    from ckptstore.transfer.export import Exported
    from ckptstore.transfer.import_files import Imported

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
    "DistributedError",
    "Epoch",
    "Event",
    "Exported",
    "History",
    "Imported",
    "InvalidArgumentError",
    "JobIncompleteError",
    "LockedError",
    "LogNotFoundError",
    "MessageTimeoutError",
    "MessagesLostError",
    "MetricNotFoundError",
    "MissingPackageError",
    "ModelCheckpoint",
    "ModelMismatchError",
    "ModelNotReadyError",
    "NoResumePointError",
    "NoUsableCheckpointError",
    "NotAStoreError",
    "NotFoundError",
    "ObjectsMismatchError",
    "PeerFailedError",
    "Policy",
    "Problem",
    "Pruned",
    "ReadOnlyError",
    "RefusedByLayerError",
    "RefusedByObjectError",
    "ResumeRefusedError",
    "Resumed",
    "RunLockedError",
    "RunMismatchError",
    "RunNotFoundError",
    "RunSummary",
    "RunTakenOverError",
    "SaveAbandonedError",
    "SaveEndUnknownError",
    "SaveInProgressError",
    "SchemaError",
    "SchemaTooNewError",
    "SchemaTooOldError",
    "SeveralProcessesError",
    "SplitValueError",
    "StorageError",
    "StoreCheckpoint",
    "StoreLockedError",
    "StoreNotFoundError",
    "StoreRemovedError",
    "SupervisorRunningError",
    "TrainingInterrupted",
    "UnequalBatchesError",
    "UnfinishedSaveError",
    "UnsafeFileSystemError",
    "UnserialisableModelError",
    "VariableChange",
    "__version__",
    "find_store",
    "keep_best",
    "keep_every",
    "keep_last",
    "keep_tagged",
    "keep_within",
    "max_bytes",
    "open_in_job",
]

# The module of each public name; a name that is not listed is in `errors`.
_MODULES = {
    "CheckpointStore": "store.store",
    "find_store": "storage.layout",
    "BackupAndRestore": "training.backup_and_restore",
    "ModelCheckpoint": "training.model_checkpoint",
    "StoreCheckpoint": "training.store_checkpoint",
    "open_in_job": "training.job.open_in_job",
    "TrainingInterrupted": "system.stop_signals",
    "Checkpoint": "records",
    "Problem": "records",
    "Policy": "retention",
    "Pruned": "commit.retention.prune",
    "History": "store.history",
    "RunSummary": "store.history",
    "Copied": "transfer.copy",
    "Difference": "store.diff",
    "Exported": "transfer.export",
    "Imported": "transfer.import_files",
    "VariableChange": "store.diff",
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
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
