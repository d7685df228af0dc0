"""All errors of ckptstore: facts as attributes, a message derived from them, and a hint what to do next.

The branches follow what a caller would do: look elsewhere (`NotFoundError`), wait (`LockedError`), fall
back to an older checkpoint (`CorruptError`), upgrade (`SchemaError`), change the model (`ModelMismatchError`),
free space (`StorageError`), look at the other processes (`DistributedError`), correct the call
(`InvalidArgumentError`). Each is also the built-in exception that a Python programmer would catch. All of them pickle.

May import: printable; records, for type checkers alone.
"""

from __future__ import annotations

from ckptstore.errors.base import CheckpointStoreError
from ckptstore.errors.corrupt import (
    CorruptError,
    CorruptManifestError,
    CorruptPayloadError,
    NoUsableCheckpointError,
    SchemaError,
    SchemaTooNewError,
    SchemaTooOldError,
)
from ckptstore.errors.distributed import (
    DistributedError,
    JobIncompleteError,
    MessageConflictError,
    MessagesLostError,
    MessageTimeoutError,
    PeerFailedError,
    ResumeRefusedError,
    SaveAbandonedError,
    SaveEndUnknownError,
    UnequalBatchesError,
)
from ckptstore.errors.locked import (
    LockedError,
    RunLockedError,
    RunTakenOverError,
    SaveInProgressError,
    StoreLockedError,
    SupervisorRunningError,
)
from ckptstore.errors.not_found import (
    CheckpointNotFoundError,
    LogNotFoundError,
    MetricNotFoundError,
    NoResumePointError,
    NotFoundError,
    RunNotFoundError,
    StoreNotFoundError,
)
from ckptstore.errors.storage import (
    DiskFullError,
    StorageError,
    StoreRemovedError,
    UnfinishedSaveError,
    UnsafeFileSystemError,
)
from ckptstore.errors.usage import (
    InvalidArgumentError,
    MissingPackageError,
    ModelMismatchError,
    ModelNotReadyError,
    NotAStoreError,
    ObjectsMismatchError,
    ReadOnlyError,
    RefusedByLayerError,
    RefusedByObjectError,
    RunMismatchError,
    SeveralProcessesError,
    SplitValueError,
    UnserialisableModelError,
)

__all__ = [
    "CheckpointNotFoundError",
    "CheckpointStoreError",
    "CorruptError",
    "CorruptManifestError",
    "CorruptPayloadError",
    "DiskFullError",
    "DistributedError",
    "InvalidArgumentError",
    "JobIncompleteError",
    "LockedError",
    "LogNotFoundError",
    "MessageConflictError",
    "MessageTimeoutError",
    "MessagesLostError",
    "MetricNotFoundError",
    "MissingPackageError",
    "ModelMismatchError",
    "ModelNotReadyError",
    "NoResumePointError",
    "NoUsableCheckpointError",
    "NotAStoreError",
    "NotFoundError",
    "ObjectsMismatchError",
    "PeerFailedError",
    "ReadOnlyError",
    "RefusedByLayerError",
    "RefusedByObjectError",
    "ResumeRefusedError",
    "RunLockedError",
    "RunMismatchError",
    "RunNotFoundError",
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
    "StoreLockedError",
    "StoreNotFoundError",
    "StoreRemovedError",
    "SupervisorRunningError",
    "UnequalBatchesError",
    "UnfinishedSaveError",
    "UnsafeFileSystemError",
    "UnserialisableModelError",
]

for _name in __all__:
    # So that tracebacks show the module from which users import the error.
    globals()[_name].__module__ = __name__
