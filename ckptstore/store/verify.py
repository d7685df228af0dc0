"""Compares disk and manifest both ways, and every payload with its digest; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from ckptstore.errors import CorruptPayloadError, StorageError
from ckptstore.formats import payload
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint, Problem
from ckptstore.storage.files import digest_file
from ckptstore.storage.layout import Layout

Progress = Callable[[int], object]
_LOOKS = 4
_BETWEEN_LOOKS_S = 0.05


def verify(
    layout: Layout, manifest: Manifest, *, deep: bool = True, progress: Progress | None = None
) -> list[Problem]:
    """Return all that is wrong with a store; an empty list when it is whole.

    A checkpoint that was found missing or damaged before stays a problem until a repair has noted the loss.

    Args:
        layout: Where the store lies.
        manifest: Its manifest.
        deep: Read and digest every payload; False compares names and sizes only.
        progress: Called with the number of bytes that have been read, or passed over, since the last call.

    Raises:
        StorageError: A directory cannot be read, which does not say that anything is missing.
    """
    problems = [
        Problem(kind="manifest", detail=detail, path=layout.manifest)
        for detail in manifest.integrity_problems()
    ]
    if problems:
        # What it says of the payloads means little, and asking it may fail.
        return problems
    on_disk = set(layout.payload_names())
    noted = manifest.events.acknowledged_losses()
    for checkpoint in manifest.checkpoints.iterate(states=None):
        on_disk.discard(checkpoint.path.name)
        if checkpoint.state != "deleting":
            problems += _check(manifest, checkpoint, noted, deep=deep, progress=progress)
    problems += _orphans(layout, manifest, on_disk)
    return problems


def unacknowledged(manifest: Manifest) -> list[Checkpoint]:
    """Return the checkpoints that are known to be missing or damaged, and whose loss no repair has noted yet."""
    lost = (*manifest.checkpoints.in_state("missing"), *manifest.checkpoints.in_state("damaged"))
    noted = manifest.events.acknowledged_losses() if lost else set()
    return [checkpoint for checkpoint in lost if checkpoint.version not in noted]


def _check(
    manifest: Manifest, checkpoint: Checkpoint, noted: set[int], *, deep: bool, progress: Progress | None
) -> list[Problem]:
    def passed_over() -> list[Problem]:
        if progress is not None:
            progress(checkpoint.nbytes)
        return []

    def problem(kind: str, detail: str) -> list[Problem]:
        passed_over()
        return [Problem(kind=kind, detail=detail, version=checkpoint.version, path=checkpoint.path)]

    try:
        size = checkpoint.path.stat().st_size
    except FileNotFoundError:
        now = manifest.checkpoints.get(checkpoint.version)
        gone = now is None or now.state == "deleting"  # a writer's retention has come by since we listed it
        if gone or (checkpoint.state != "complete" and checkpoint.version in noted):
            return passed_over()
        if checkpoint.state == "damaged":
            return problem("damaged", "the payload was found damaged and put aside")
        return problem("missing", "the payload is not there")
    except OSError as error:
        raise StorageError(operation="stat", path=checkpoint.path, error=error) from error
    if size != checkpoint.nbytes:
        return problem("size", f"the payload has {size:,} bytes instead of {checkpoint.nbytes:,}")
    if not deep:
        marked = f"marked as {checkpoint.state}; only reading it would tell whether it is whole"
        return passed_over() if checkpoint.state == "complete" else problem("found", marked)
    try:
        found = digest_file(checkpoint.path, progress)
    except StorageError as error:
        detail = f"the payload cannot be read, which does not say that it is damaged: {error.__cause__}"
        return [Problem(kind="unreadable", detail=detail, version=checkpoint.version, path=checkpoint.path)]
    if found == checkpoint.digest:
        if checkpoint.state == "complete":
            return []
        detail = f"marked as {checkpoint.state}, and whole; the next opening for writing marks it complete"
        return [Problem(kind="found", detail=detail, version=checkpoint.version, path=checkpoint.path)]
    detail = f"the payload's digest is {found} instead of {checkpoint.digest}"
    kind, where = _locate(checkpoint)
    return [Problem(kind=kind, detail=detail + where, version=checkpoint.version, path=checkpoint.path)]


def _locate(checkpoint: Checkpoint) -> tuple[str, str]:
    """Say which part of a damaged payload differs, from the digests inside it, as far as it can still be read."""
    try:
        description = payload.read_description(checkpoint.path)
        if (description.get("version"), description.get("run")) != (checkpoint.version, checkpoint.run):
            return (
                "identity",
                f"; it is version {description.get('version')} of run {description.get('run')!r}",
            )
        differing = payload.verify_payload(checkpoint.path)
    except CorruptPayloadError as error:
        return "digest", f"; {error.reason}"
    except StorageError as error:
        return "digest", f"; then it could not be read again: {error.__cause__}"
    return "digest", f"; {differing[0]}" if differing else "; no variable differs"


def _orphans(layout: Layout, manifest: Manifest, names: set[str]) -> list[Problem]:
    # A writer may have committed the row between our look at the directory and at the rows.
    for _ in range(_LOOKS):
        known = (
            {file.partition("/")[2] for file in manifest.checkpoints.files_by_version().values()}
            if names
            else set()
        )
        names = {name for name in names - known if (layout.checkpoints / name).exists()}
        if not names:
            return []
        # The rename and the row of a living writer are milliseconds apart.
        time.sleep(_BETWEEN_LOOKS_S)
    return [
        Problem(
            kind="orphan",
            detail="a payload without a manifest row; the next opening for writing takes it in",
            path=layout.checkpoints / name,
        )
        for name in sorted(names)
    ]
