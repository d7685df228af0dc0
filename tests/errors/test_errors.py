"""Errors: facts, one-line messages, pickling, and the built-in exceptions that they also are."""

from __future__ import annotations

import copy
import errno
import inspect
import pickle
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ckptstore import errors
from records import CHECKPOINT, PATH

EXAMPLES = [
    errors.StoreNotFoundError(path=PATH),
    errors.CheckpointNotFoundError(ref=7, store=PATH),
    errors.RunNotFoundError(run="a", store=PATH, known=tuple("abcdefghijklmnop")),
    errors.MetricNotFoundError(metric="auc", store=PATH, known=("loss",)),
    errors.LogNotFoundError(store=PATH, run="a", attempt=2),
    errors.StoreLockedError(path=PATH, waited_s=60.0),
    errors.SupervisorRunningError(store=PATH, run="a", host="n1", pid=3),
    errors.SaveInProgressError(store=PATH),
    errors.RunMismatchError(run="a", where="x.shape", in_run="(8, 3)", in_fit="(9, 3)"),
    errors.RunLockedError(run="a", store=PATH, host="n1", pid=3, started_at=datetime(2026, 1, 1, tzinfo=UTC)),
    errors.RunTakenOverError(
        run="a", store=PATH, host="n1", pid=3, started_at=datetime(2026, 1, 1, tzinfo=UTC)
    ),
    errors.CorruptPayloadError(path=PATH, reason="cut short"),
    errors.CorruptManifestError(path=PATH, reason="malformed"),
    errors.NoUsableCheckpointError(run="a", store=PATH, versions=tuple(range(9))),
    errors.NoResumePointError(run="a", store=PATH, latest=3),
    errors.ObjectsMismatchError(where="optimizer", in_checkpoint="AdamW", in_objects="nothing"),
    errors.RefusedByObjectError(where="scaler", reason="RuntimeError: another scale"),
    errors.SeveralProcessesError(operation="StoreCheckpoint", by="jax.distributed", processes=2, process=1),
    errors.SplitValueError(where="dense/lora_kernel_a", shape=(64, 8), parts=4),
    errors.MessageTimeoutError(process=1, key="save/3/verdict", limit_s=20.0),
    errors.MessagesLostError(
        process=1, key="save/3/verdict", service="jax.distributed", reason="UNAVAILABLE"
    ),
    errors.MessageConflictError(process=1, key="save/3/report/1", present="{}"),
    errors.PeerFailedError(process=1, failed=0, reason="its disk is gone"),
    errors.UnequalBatchesError(
        process=1, part="validation", epoch=2, batches=4, ended=False, other=0, other_batches=3
    ),
    errors.JobIncompleteError(process=0, processes=3, silent=(1, 2), limit_s=20.0),
    errors.SaveAbandonedError(
        process=0, save=3, version=7, silent=(1,), refused={2: "no room"}, limit_s=20.0
    ),
    errors.SaveEndUnknownError(process=1, save=3, version=None, limit_s=20.0),
    errors.ResumeRefusedError(process=0, version=None, silent=tuple(range(20)), limit_s=20.0),
    errors.MissingPackageError(package="pandas", needed_for="to_dataframe()", extra="pandas"),
    errors.SchemaTooOldError(path=PATH / "manifest.sqlite", found="0001", known="0002"),
    errors.SchemaTooNewError(path=PATH, found="0009", known="0002"),
    errors.ModelMismatchError(
        where="layers/dense/vars/0", in_checkpoint="(3, 8) float32", in_model="nothing"
    ),
    errors.RefusedByLayerError(reason="will not have it"),
    errors.RefusedByLayerError(reason="no memory", put_back=False),
    errors.ModelNotReadyError(model="m", missing="compiled", hint="compile it"),
    errors.UnserialisableModelError(model="m", reason="NotImplementedError: no get_config()"),
    errors.StorageError(operation="fsync", path=PATH, error=OSError(errno.EIO, "Input/output error")),
    errors.DiskFullError(path=PATH, needed=800, free=3, disk=Path("/runs")),
    errors.UnfinishedSaveError(
        checkpoint=CHECKPOINT,
        undone="showing it at best.keras",
        error=errors.StorageError(operation="rename", path=PATH, error=OSError(errno.EROFS, "Read-only")),
    ),
    errors.SaveAbandonedError(
        process=1, save=None, version=None, refused={3: "the disk is full"}, cause="disk_full", limit_s=60
    ),
    errors.StoreRemovedError(store=PATH, reason="the store was removed"),
    errors.UnsafeFileSystemError(
        path=PATH,
        lacks="has no locks",
        error=OSError(errno.ENOLCK, "No locks available"),
        hint="use another",
    ),
    errors.NotAStoreError(path=PATH, reason="it is a file"),
    errors.InvalidArgumentError(argument="epoch", value=-1, reason="must be 0 or more"),
    errors.ReadOnlyError(store=PATH, operation="save"),
]
BUILT_IN = {
    errors.NotFoundError: LookupError,
    errors.LockedError: TimeoutError,
    errors.CorruptError: ValueError,
    errors.SchemaError: ValueError,
    errors.ModelMismatchError: ValueError,
    errors.ObjectsMismatchError: ValueError,
    errors.SeveralProcessesError: RuntimeError,
    errors.SplitValueError: RuntimeError,
    errors.SaveAbandonedError: OSError,
    errors.SaveEndUnknownError: OSError,
    errors.ResumeRefusedError: RuntimeError,
    errors.MessageTimeoutError: TimeoutError,
    errors.MessagesLostError: ConnectionError,
    errors.StorageError: OSError,
    errors.InvalidArgumentError: ValueError,
    errors.ReadOnlyError: PermissionError,
}


def test_every_error_has_an_example() -> None:
    leaves = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.CheckpointStoreError)
        and not any(
            issubclass(other, kind) and other is not kind
            for other in vars(errors).values()
            if inspect.isclass(other)
        )
    }
    assert leaves <= {type(example) for example in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_facts_message_and_hint_survive_pickling_and_copying(error: errors.CheckpointStoreError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert (twin.message, twin.hint, twin.facts) == (error.message, error.hint, error.facts)
        for name, value in error.facts.items():
            assert getattr(twin, name) == value


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_the_text_is_one_line_with_a_hint(error: errors.CheckpointStoreError) -> None:
    assert "\n" not in str(error)
    assert error.hint or isinstance(error, errors.InvalidArgumentError)
    assert str(error).startswith(error.message)


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.__name__)
def test_errors_are_also_built_in_exceptions(kind: type[errors.CheckpointStoreError]) -> None:
    assert issubclass(kind, BUILT_IN[kind])
    assert issubclass(kind, errors.CheckpointStoreError)


def test_storage_errors_have_an_errno() -> None:
    assert [error.errno for error in EXAMPLES if isinstance(error, errors.StorageError)] == [
        errno.ETIMEDOUT,
        errno.ETIMEDOUT,
        errno.EIO,
        errno.ENOSPC,
        errno.EROFS,
        errno.ENOSPC,
        errno.ESTALE,
        errno.ENOLCK,
    ]
