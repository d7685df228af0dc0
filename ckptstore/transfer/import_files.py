"""Imports files that Keras saved, or that were exported, into a store; all are checked before the first is imported.

A file stays as it is in its place; the store gets its own payload with the same variables, byte for byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptstore.commit.earlier_epochs import read_earlier_epochs
from ckptstore.commit.request import SaveRequest
from ckptstore.errors import CorruptPayloadError, InvalidArgumentError, StorageError
from ckptstore.formats.payload import decoded, verify_file
from ckptstore.formats.registry import all_formats, by_file_name
from ckptstore.formats.snapshot import TrainingState
from ckptstore.records import Checkpoint
from ckptstore.storage.files import digest_file
from ckptstore.storage.layout import absolute
from ckptstore.storage.payloads.local_reading import LooseFile
from ckptstore.transfer.existing import find_existing
from ckptstore.transfer.name_pattern import NamePattern
from ckptstore.transfer.target import TransferTarget
from ckptstore.validation import check_extra, check_metrics, check_position, check_run, check_tag

IMPORTED = "imported"
_RUN = "default"
# Files of Keras' BackupAndRestore.
_BACKUP, _POSITION, _OLDER = "latest.weights.h5", "training_metadata.json", ".bkp"
_NOT_EXACT = (
    "Keras saved weights, optimizer and position alone: a fit resumes from it, but not bit for bit, since "
    "metrics, History, random generators, other callbacks and the order of the data start over"
)
# Training state of a backup: empty, but there, which makes it a resume point.
_BACKUP_STATE = TrainingState(document={"kind": "keras-backup", "version": 1}, arrays={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file that was checked and can be imported.

    Attributes:
        path: The file, absolute.
        nbytes: Its size in bytes.
        digest: Its digest.
        request: The save to make of it.
        is_backup: True for a backup of Keras' BackupAndRestore, which a run resumes from.
        said: A remark for the user, or "".
    """

    path: Path
    nbytes: int
    digest: str
    request: SaveRequest = field(hash=False)
    is_backup: bool = False
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A file that was imported.

    Attributes:
        path: The file, which stays.
        checkpoint: The checkpoint made from it.
        existing: True if it had been imported before; nothing was written then.
        said: A remark for the user, or "".
    """

    path: Path
    checkpoint: Checkpoint
    existing: bool
    said: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "file": str(self.path),
            "checkpoint": self.checkpoint.to_json(),
            "existing": self.existing,
            "said": self.said,
        }


def check_files(
    paths: Sequence[str | os.PathLike[str]],
    *,
    run: str | None = None,
    pattern: str | None = None,
    epoch: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Candidate]:
    """Check files and folders to be imported, and return them in the order of their positions; changes nothing.

    Arguments and errors are those of `ckptstore.CheckpointStore.import_files`.
    """
    if not paths:
        raise InvalidArgumentError(argument="paths", value=[], reason="names nothing to import")
    if len(paths) > 1 and (epoch is not None or metrics):
        raise InvalidArgumentError(
            argument="epoch" if epoch is not None else "metrics",
            value=epoch if epoch is not None else dict(metrics or {}),
            reason="can be given for one file only",
            hint="pattern= reads them from the names",
        )
    if run is not None:
        check_run(run)
    names = None if pattern is None else NamePattern(pattern)
    found = [
        _candidate(absolute(path), run, names, {} if epoch is None else {"epoch": epoch}, progress)
        for path in paths
    ]
    if metrics:
        with_metrics = replace(
            found[0].request, metrics={**found[0].request.metrics, **check_metrics(metrics)}
        )
        found = [replace(found[0], request=with_metrics)]
    return sorted(found, key=_place)


def _place(candidate: Candidate) -> tuple[int, float]:
    batch = candidate.request.batch
    return candidate.request.epoch, float("inf") if batch is None else batch


def _candidate(
    path: Path,
    run: str | None,
    names: NamePattern | None,
    given: Mapping[str, int],
    progress: Callable[[int], object] | None,
) -> Candidate:
    format = by_file_name(path.name)
    if path.is_dir() and (format is None or not format.is_directory):
        return _backup(path, run, given, progress)
    if not path.exists():
        raise InvalidArgumentError(argument="path", value=str(path), reason="is not there")
    _check_format(path)
    values = {} if names is None else dict(names.read(path.name))
    with LooseFile(path).open() as stored:
        nbytes, digest = stored.nbytes, stored.digest(progress)
    description = verify_file(path)
    if description is not None:
        request = _described(path, description, run)
    else:
        request = SaveRequest(run=run or _RUN, epoch=0, created_at=_modified(path))
    request = _with_name(request, {**values, **given}, given=given)
    return Candidate(path=path, nbytes=nbytes, digest=digest, request=request)


def _check_format(path: Path) -> None:
    """Refuse a file whose name stands for no format."""
    if by_file_name(path.name) is not None:
        return
    raise InvalidArgumentError(
        argument="path",
        value=str(path),
        reason=f"ends in none of {', '.join(format.suffix for format in all_formats())}",
        hint="or name a folder of Keras' BackupAndRestore",
    )


def _modified(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError as error:
        raise StorageError(operation="stat", path=path, error=error) from error


def _described(path: Path, description: Mapping[str, Any], run: str | None) -> SaveRequest:
    """Return the save that the description inside a file asks for, every part of it checked."""
    try:
        check_position(description["epoch"], description["batch"], description["step"])
        return SaveRequest(
            run=check_run(description["run"] if run is None else run),
            epoch=description["epoch"],
            batch=description["batch"],
            step=description["step"],
            metrics=check_metrics({name: float(value) for name, value in description["metrics"].items()}),
            tags=tuple(check_tag(tag) for tag in description["tags"]),
            extra=check_extra(description["extra"]),
            earlier_epochs=read_earlier_epochs(description),
            created_at=datetime.fromisoformat(description["created_at"]).astimezone(UTC),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptPayloadError(path=path, reason=f"its description cannot be read: {error!r}") from error


def _with_name(request: SaveRequest, values: Mapping[str, float], *, given: Mapping[str, int]) -> SaveRequest:
    """Return a request with values read from a name, which counts `epoch` and `batch` from 1; those given from 0."""
    metrics = {name: value for name, value in values.items() if name not in ("epoch", "batch")}
    counts = {name: int(values[name]) - (name not in given) for name in ("epoch", "batch") if name in values}
    if min(counts.values(), default=0) < 0:
        raise InvalidArgumentError(
            argument="pattern", value=dict(values), reason="epoch and batch count from 1 in names"
        )
    epoch = counts.get("epoch", request.epoch)
    batch = counts.get("batch", request.batch)
    check_position(epoch, batch)
    return replace(
        request,
        epoch=epoch,
        batch=batch,
        metrics={**request.metrics, **check_metrics(metrics)},
        # Under another number the epochs before it would be others too.
        earlier_epochs=request.earlier_epochs if epoch == request.epoch else (),
    )


# --- Keras' BackupAndRestore ---------------------------------------------------------------------


def _backup(
    folder: Path, run: str | None, given: Mapping[str, int], progress: Callable[[int], object] | None
) -> Candidate:
    newest, older = folder / _BACKUP, folder / (_BACKUP + _OLDER)
    if not newest.exists() and not older.exists():
        raise InvalidArgumentError(
            argument="path",
            value=str(folder),
            reason=f"holds no {_BACKUP}, as a folder of Keras' BackupAndRestore does",
            hint="name the files in it",
        )
    try:
        return _backup_at(newest, folder / _POSITION, run, given, progress)
    except CorruptPayloadError as error:
        if not older.exists():
            raise
        found = _backup_at(older, folder / (_POSITION + _OLDER), run, given, progress)
        damaged = f"{newest.name} is damaged ({error.reason}); the one before was imported"
        return replace(found, said=f"{damaged}; {found.said}")


def _backup_at(
    path: Path,
    position: Path,
    run: str | None,
    given: Mapping[str, int],
    progress: Callable[[int], object] | None,
) -> Candidate:
    digest = digest_file(path, progress)
    verify_file(path)
    epoch, batch = (given["epoch"], None) if "epoch" in given else _position(position)
    request = SaveRequest(run=run or _RUN, epoch=epoch, batch=batch, created_at=_modified(path))
    return Candidate(
        path=path,
        nbytes=path.stat().st_size,
        digest=digest,
        request=request,
        is_backup=True,
        said=_NOT_EXACT,
    )


def _position(path: Path) -> tuple[int, int | None]:
    """Return epoch and batch of Keras' backup, whose file has the next epoch, and 0 or the last finished batch."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        epoch, batch = found["epoch"], found.get("batch", 0)
        check_position(epoch, batch)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptPayloadError(
            path=path, reason=f"it does not hold the backup's epoch: {error}"
        ) from error
    return (epoch - 1, None) if batch == 0 and epoch > 0 else (epoch, batch)


# --- into the store ------------------------------------------------------------------------------


def import_file(
    target: TransferTarget, candidate: Candidate, progress: Callable[[int], object] | None = None
) -> Imported:
    """Save one file that was checked; a file that was imported into this run before is not saved again."""
    request = candidate.request
    origin = {"file": candidate.path.name, "nbytes": candidate.nbytes, "digest": candidate.digest}
    target.claim(request.run)
    found = find_existing(target, IMPORTED, origin, request, candidate.path)
    if found is not None:
        return Imported(path=candidate.path, checkpoint=found, existing=True, said=candidate.said)
    known = target.tags()
    request = replace(
        request,
        tags=tuple(tag for tag in request.tags if tag not in known),
        notes={IMPORTED: origin},
        began=SaveRequest(run=request.run, epoch=0).began,
    )
    with decoded(
        candidate.path,
        nbytes=candidate.nbytes,
        digest=candidate.digest,
        progress=progress,
    ) as opened:
        snapshot = replace(opened.snapshot, state=_BACKUP_STATE) if candidate.is_backup else opened.snapshot
        checkpoint = target.commit(snapshot, request)
    return Imported(path=candidate.path, checkpoint=checkpoint, existing=False, said=candidate.said)
