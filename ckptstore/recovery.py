"""Makes disk and manifest agree again when a store is opened for writing, whatever the last writer died of.

Runs under the store's lock; every step may be repeated, so that a crash here is mended by the next opening. It reads
names and sizes only; the bytes of a payload are read when it has no row, which a crash leaves at most one of.
"""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from ckptstore.commit import finish_deletions, has_its_size
from ckptstore.errors import CorruptPayloadError, InvalidArgumentError, StorageError
from ckptstore.files import digest_file, fsync_directory, rename_to_new
from ckptstore.formats import payload
from ckptstore.layout import Layout, parse_payload_name, shown_at
from ckptstore.locks import sweep
from ckptstore.manifest import Manifest
from ckptstore.names import check_extra, check_metrics, check_position, check_run, check_tag
from ckptstore.publishing import publish, tidy
from ckptstore.records import NewCheckpoint


def reconcile(layout: Layout, manifest: Manifest) -> None:
    """Finish or undo what a dead writer left; the caller holds the store's lock.

    Raises:
        StorageError: The disk cannot be read (which is not taken for absence), or a step failed.
    """
    sweep(layout.tmp)
    _finish_deletions(manifest)
    _mark_missing(layout, manifest)
    _take_in_orphans(layout, manifest)
    _finish_publishing(layout, manifest)


def _finish_deletions(manifest: Manifest) -> None:
    marked = manifest.in_state("deleting")
    if marked:
        finish_deletions(manifest, marked, nullcontext)


def _mark_missing(layout: Layout, manifest: Manifest) -> None:
    """Mark rows whose file is gone, and unmark those whose file is back; the rows stay."""
    present = set(layout.payload_names())
    rows = manifest.versions_and_files()
    missing = {checkpoint.version: checkpoint for checkpoint in manifest.in_state("missing")}
    gone = [
        version
        for version, file in rows.items()
        if Path(file).name not in present and version not in missing and not (layout.root / file).exists()
    ]
    damaged = {checkpoint.version for checkpoint in manifest.in_state("damaged")}
    gone = [version for version in gone if version not in damaged]
    back = [version for version, checkpoint in missing.items() if has_its_size(checkpoint)]
    for versions, state in ((gone, "missing"), (back, "complete")):
        if versions:
            manifest.set_state(versions, state)  # type: ignore[arg-type]
            for version in versions:
                manifest.add_event("found" if state == "complete" else state, version=version)


def _take_in_orphans(layout: Layout, manifest: Manifest) -> None:
    known = {Path(file).name for file in manifest.versions_and_files().values()}
    for name in layout.payload_names():
        if name not in known:
            path = layout.checkpoints / name
            try:
                new = describe_orphan(layout, path)
                if manifest.get(new.version) is not None:
                    raise CorruptPayloadError(path=path, reason=f"version {new.version} is another's here")
            except CorruptPayloadError as error:
                _quarantine(layout, manifest, path, error.reason)
            else:
                manifest.add_checkpoint(new, published_path=_published_path(manifest, path))
                manifest.add_event("adopted", run=new.run, version=new.version, detail={"file": new.file})


def _published_path(manifest: Manifest, path: Path) -> str | None:
    """Where the orphan was to be shown; a path that this manifest never heard of is not believed."""
    published = payload.read_description(path).get("published")
    return published if isinstance(published, str) and manifest.published_at(published) is not None else None


def describe_orphan(layout: Layout, path: Path) -> NewCheckpoint:
    """Return the row of a payload that has none, from what it says of itself, verified byte by byte.

    Raises:
        CorruptPayloadError: It is damaged, or says that it is another checkpoint than its name does.
    """
    description = payload.read_description(path)
    version, _, format = parse_payload_name(path.name)
    problems = payload.verify_payload(path)
    if problems:
        raise CorruptPayloadError(path=path, reason=problems[0])
    try:
        new = _row_of(
            description, file=os.path.relpath(path, layout.root), nbytes=path.stat().st_size, path=path
        )
    except (KeyError, TypeError, ValueError, InvalidArgumentError) as error:
        raise CorruptPayloadError(path=path, reason=f"its description cannot be read: {error!r}") from error
    if layout.payload_file(new.version, new.run, new.format) != new.file or new.version != version:
        raise CorruptPayloadError(
            path=path, reason=f"it says that it is version {new.version} of run {new.run!r} ({format})"
        )
    return new


def _row_of(description: dict[str, Any], *, file: str, nbytes: int, path: Path) -> NewCheckpoint:
    check_position(description["epoch"], description["batch"], description["step"])
    return NewCheckpoint(
        version=int(description["version"]),
        run=check_run(description["run"]),
        epoch=description["epoch"],
        batch=description["batch"],
        step=description["step"],
        metrics=check_metrics({name: float(value) for name, value in description["metrics"].items()}),
        file=file,
        nbytes=nbytes,
        digest=digest_file(path),
        created_at=datetime.fromisoformat(description["created_at"]),
        format=description["format"],
        resumable=bool(description["resumable"]),
        tags=tuple(check_tag(tag) for tag in description["tags"]),
        extra=check_extra(description["extra"]),
    )


def _quarantine(layout: Layout, manifest: Manifest, path: Path, reason: str) -> None:
    """Move a damaged payload aside, under an unused name; it is never deleted."""
    target = layout.quarantine / path.name
    count = 0
    while os.path.lexists(target):
        count += 1
        target = layout.quarantine / f"{path.name}.{count}"
    rename_to_new(path, target)
    fsync_directory(target.parent)
    fsync_directory(path.parent)
    manifest.add_event("quarantined", detail={"file": path.name, "to": target.name, "reason": reason})


def _finish_publishing(layout: Layout, manifest: Manifest) -> None:
    """Switch published paths that a crash left pending; a path that was confirmed is the user's to remove.

    The path is the user's, not the store's: where it cannot be switched now, that is said, and the next opening tries
    again; the store opens all the same.
    """
    for published in manifest.published():
        if not published.pending:
            continue
        target = shown_at(layout.root, published.path)
        checkpoint = manifest.get(published.version)
        if checkpoint is None or checkpoint.state != "complete":
            manifest.forget_published(published.path)
            continue
        try:
            tidy(target)
            publish(checkpoint.path, target)
        except StorageError as error:
            warnings.warn(f"{target} does not show version {checkpoint.version} yet: {error}", stacklevel=2)
        else:
            manifest.confirm_published(published.path)
