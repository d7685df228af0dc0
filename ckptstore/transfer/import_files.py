"""Takes files that Keras saved, or that were exported, into a store: looked through first, all of them.

A file stays as it is where it lies; the store gets a payload of its own with the same variables, byte for byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.commit.request import SaveRequest
from ckptstore.errors import CorruptPayloadError, InvalidArgumentError, StorageError
from ckptstore.formats.decode import decoded, verify_file
from ckptstore.formats.snapshot import TrainingState
from ckptstore.records import SUFFIXES, Checkpoint, Format
from ckptstore.storage.files import digest_file
from ckptstore.storage.layout import absolute
from ckptstore.transfer.existing import earlier
from ckptstore.transfer.name_pattern import NamePattern
from ckptstore.validation import check_extra, check_metrics, check_position, check_run, check_tag

if TYPE_CHECKING:
    from ckptstore.store.moving import StoreMoving

IMPORTED = "imported"
_RUN = "default"
# What Keras' BackupAndRestore leaves.
_BACKUP, _POSITION, _OLDER = "latest.weights.h5", "training_metadata.json", ".bkp"
_NOT_EXACT = (
    "Keras saved weights, optimizer and position alone: a fit goes on from it, but not to the bit, for metrics, "
    "History, random generators, other callbacks and the order of the data begin anew"
)
# Training state of a backup: none, but that it may be gone on from.
_BARE = TrainingState(document={"kind": "keras-backup", "version": 1}, arrays={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file that was looked through, and what it becomes.

    Attributes:
        path: The file, absolute.
        format: What it is.
        nbytes: Its size in bytes.
        digest: Its digest.
        request: What is to be saved of it.
        is_backup: True for a backup of Keras' BackupAndRestore, which a run goes on from.
        said: What else there is to know, or "".
    """

    path: Path
    format: Format
    nbytes: int
    digest: str
    request: SaveRequest = field(hash=False)
    is_backup: bool = False
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A file that was taken in.

    Attributes:
        path: The file, which stays.
        checkpoint: What it became.
        existing: True when it had been imported before; nothing was written then.
        said: What else there is to know, or "".
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


def look_through(
    paths: Sequence[str | os.PathLike[str]],
    *,
    run: str | None = None,
    pattern: str | None = None,
    epoch: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Candidate]:
    """Look through files and folders that are to be imported, in the order of their positions; changes nothing.

    The arguments are those of `ckptstore.CheckpointStore.import_files`, which says what they are and what is raised.
    """
    if not paths:
        raise InvalidArgumentError(argument="paths", value=[], reason="names nothing to import")
    if len(paths) > 1 and (epoch is not None or metrics):
        raise InvalidArgumentError(
            argument="epoch" if epoch is not None else "metrics",
            value=epoch if epoch is not None else dict(metrics or {}),
            reason="can be said of one file only",
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
        told = replace(found[0].request, metrics={**found[0].request.metrics, **check_metrics(metrics)})
        found = [replace(found[0], request=told)]
    return sorted(found, key=_place)


def _place(candidate: Candidate) -> tuple[int, float]:
    batch = candidate.request.batch
    return candidate.request.epoch, float("inf") if batch is None else batch


def _candidate(
    path: Path,
    run: str | None,
    names: NamePattern | None,
    said: Mapping[str, int],
    progress: Callable[[int], object] | None,
) -> Candidate:
    if path.is_dir():
        return _backup(path, run, said, progress)
    if not path.exists():
        raise InvalidArgumentError(argument="path", value=str(path), reason="is not there")
    format = _format(path)
    told = {} if names is None else dict(names.read(path.name))
    digest, description = digest_file(path, progress), verify_file(path)
    if description is not None:
        request = _described(path, description, run)
    else:
        request = SaveRequest(run=run or _RUN, epoch=0, created_at=_modified(path))
    request = _with_name(request, {**told, **said}, given=said)
    return Candidate(path=path, format=format, nbytes=path.stat().st_size, digest=digest, request=request)


def _format(path: Path) -> Format:
    for format in ("keras", "weights", "h5"):
        if path.name.endswith(SUFFIXES[format]):
            return format
    raise InvalidArgumentError(
        argument="path",
        value=str(path),
        reason=f"ends in none of {', '.join(SUFFIXES.values())}",
        hint="or name a folder of Keras' BackupAndRestore",
    )


def _modified(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError as error:
        raise StorageError(operation="stat", path=path, error=error) from error


def _described(path: Path, description: Mapping[str, Any], run: str | None) -> SaveRequest:
    """Return what a file of ours says of itself."""
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
            created_at=datetime.fromisoformat(description["created_at"]).astimezone(UTC),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptPayloadError(path=path, reason=f"its description cannot be read: {error!r}") from error


def _with_name(request: SaveRequest, told: Mapping[str, float], *, given: Mapping[str, int]) -> SaveRequest:
    """Return a request with what a name tells; `epoch` and `batch` count from 1 there, and from 0 where given."""
    metrics = {name: value for name, value in told.items() if name not in ("epoch", "batch")}
    counts = {name: int(told[name]) - (name not in given) for name in ("epoch", "batch") if name in told}
    if min(counts.values(), default=0) < 0:
        raise InvalidArgumentError(
            argument="pattern", value=dict(told), reason="epoch and batch count from 1 in names"
        )
    epoch = counts.get("epoch", request.epoch)
    batch = counts.get("batch", request.batch)
    check_position(epoch, batch)
    return replace(request, epoch=epoch, batch=batch, metrics={**request.metrics, **check_metrics(metrics)})


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
        return _one_backup(newest, folder / _POSITION, run, given, progress)
    except CorruptPayloadError as error:
        if not older.exists():
            raise
        found = _one_backup(older, folder / (_POSITION + _OLDER), run, given, progress)
        damaged = f"{newest.name} is damaged ({error.reason}); the one before was taken"
        return replace(found, said=f"{damaged}; {found.said}")


def _one_backup(
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
        format="weights",
        nbytes=path.stat().st_size,
        digest=digest,
        request=request,
        is_backup=True,
        said=_NOT_EXACT,
    )


def _position(path: Path) -> tuple[int, int | None]:
    """Return where Keras' backup stands: it tells the epoch to begin next, and 0 or the batch that it came behind."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        epoch, batch = found["epoch"], found.get("batch", 0)
        check_position(epoch, batch)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptPayloadError(
            path=path, reason=f"it does not tell the backup's epoch: {error}"
        ) from error
    return (epoch - 1, None) if batch == 0 and epoch > 0 else (epoch, batch)


# --- into the store ------------------------------------------------------------------------------


def take(
    store: StoreMoving, candidate: Candidate, progress: Callable[[int], object] | None = None
) -> Imported:
    """Save one file that was looked through; one that was imported into this run before is not saved again."""
    request = candidate.request
    origin = {"file": candidate.path.name, "nbytes": candidate.nbytes, "digest": candidate.digest}
    store.claim(request.run)
    found = earlier(store, IMPORTED, origin, request, candidate.path)
    if found is not None:
        return Imported(path=candidate.path, checkpoint=found, existing=True, said=candidate.said)
    known = store.tags()
    request = replace(
        request,
        tags=tuple(tag for tag in request.tags if tag not in known),
        notes={IMPORTED: origin},
        began=SaveRequest(run=request.run, epoch=0).began,
    )
    with decoded(
        candidate.path,
        candidate.format,
        nbytes=candidate.nbytes,
        digest=candidate.digest,
        progress=progress,
    ) as opened:
        snapshot = replace(opened.snapshot, state=_BARE) if candidate.is_backup else opened.snapshot
        checkpoint = store.commit(snapshot, request)
    return Imported(path=candidate.path, checkpoint=checkpoint, existing=False, said=candidate.said)
