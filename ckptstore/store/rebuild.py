"""Rebuilds a manifest from the payloads when it was lost or cannot be read.

All that a payload's description holds comes back: version, run, position, metrics, tags, format, training state. What
only the manifest held (pins, later tags, costs, the better directions of metrics, the metrics of epochs whose
checkpoints are removed, the next version) is read from the damaged one as far as SQLite still can. Checkpoints that a
rollback found unsound are known by the payloads that were saved after it, or by the damaged manifest.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ckptstore.commit.orphans import Described, describe
from ckptstore.commit.quarantine import quarantine_stray
from ckptstore.commit.rollbacks import Position, unsound_versions
from ckptstore.errors import CheckpointStoreError, CorruptManifestError, CorruptPayloadError, StorageError
from ckptstore.formats import payload
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.salvage import Salvaged, salvage
from ckptstore.records import NewCheckpoint, Problem
from ckptstore.storage.files import fsync_directory, link, rename_to_new, unlink
from ckptstore.storage.files import replace as rename_over
from ckptstore.storage.layout import Layout, find_store, published_path
from ckptstore.storage.locks import store_lock
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.storage.payloads.interface import PayloadRef
from ckptstore.storage.payloads.names import (
    file_of_payload,
    is_payload_name,
    leading_version,
    payload_of_file,
    without_quarantine_number,
)
from ckptstore.storage.run_lock import all_run_locks

Progress = Callable[[int], object]
# Files of SQLite beside a database: ours has a journal; other tools may have switched it to a write-ahead log.
_BESIDE = ("-journal", "-wal", "-shm")


def rebuild_at(path: str | os.PathLike[str], *, progress: Progress | None = None) -> list[Problem]:
    """Rebuild the manifest of the store at `path`; see `ckptstore.CheckpointStore.rebuild`."""
    layout = Layout(find_store(path))
    layout.make_directories()
    with store_lock(layout.locks), all_run_locks(layout.locks):
        # Another repair may have come before.
        return [] if _is_sound(layout) else rebuild(layout, progress=progress)


def _is_sound(layout: Layout) -> bool:
    if not os.path.lexists(layout.manifest):
        return False
    try:
        manifest = Manifest.open(layout.manifest)
        try:
            for _ in manifest.checkpoints.row_pages(states=None):
                pass  # each row is checked as it is read
            return not manifest.integrity_problems()
        finally:
            manifest.close()
    except CorruptManifestError:
        return False


def rebuild(layout: Layout, *, progress: Progress | None = None) -> list[Problem]:
    """Replace the manifest by a new one made from the payloads; the old one is kept.

    The new one is complete and durable under another name before one rename puts it in place; the old one is then in
    `quarantine`. A crash before that leaves everything as it was, except that damaged payloads are in quarantine, and
    intact ones that were there are put back. Run it again.

    Args:
        layout: The store's paths; the caller holds the store's lock, and nobody has the manifest open.
        progress: Called with the number of bytes of payloads that were read since the last call.

    Returns:
        The payloads that could not be adopted, with what was done about each; first of all the manifest itself.

    Raises:
        StorageError: None of the payloads can be read, or the disk failed.
    """
    fresh = layout.root / "manifest.rebuilt.sqlite"
    if _was_finished(layout, fresh):
        return [
            _first(
                layout, "the one that an earlier repair made was put in its place", _exchange(layout, fresh)
            )
        ]
    for suffix in ("", *_BESIDE):
        unlink(fresh.with_name(fresh.name + suffix))
    saved = salvage(layout.manifest)
    _return_from_quarantine(layout, saved.uuid)
    found, problems, strays = _read_payloads(layout, progress, saved.uuid)
    manifest = Manifest.open(fresh)
    try:
        _fill(layout, manifest, found, saved)
        _mark_unsound(manifest, found, saved)
        for name, reason in strays:
            quarantine_stray(layout, manifest, name, reason)
        manifest.events.add("rebuilt", detail={"checkpoints": len(found), "put_aside": len(strays)})
    finally:
        manifest.close()
    return [_first(layout, f"made again from {len(found)} payloads", _exchange(layout, fresh)), *problems]


def _first(layout: Layout, action: str, kept: Path | None) -> Problem:
    action += "" if kept is None else f"; the damaged one is kept as {kept.relative_to(layout.root)}"
    return Problem(kind="manifest", detail="lost or damaged", path=layout.manifest, action=action)


def _was_finished(layout: Layout, fresh: Path) -> bool:
    """Return True if a rebuild died after its manifest was complete, and after the old one was moved away."""
    if os.path.lexists(layout.manifest) or not fresh.is_file():
        return False
    try:
        manifest = Manifest.open(fresh, read_only=True)
    except CheckpointStoreError:
        return False
    try:
        return bool(manifest.events.find(kind="rebuilt", limit=1))
    finally:
        manifest.close()


def _return_from_quarantine(layout: Layout, uuid: str | None) -> None:
    """Put intact payloads in quarantine back: without a manifest, the reason for their quarantine is lost."""
    stores = _stores(layout) if uuid is None else {uuid}
    payloads = payloads_at(layout)
    for aside in payloads.quarantined():
        name = without_quarantine_number(aside)
        if not is_payload_name(name) or payloads.exists(name):
            continue
        try:
            found = describe(PayloadRef(payloads, aside, quarantined=True), name=name)
        except (CorruptPayloadError, StorageError):
            continue  # damaged or unreadable: it stays where it is
        if found.store in stores or not stores:
            payloads.put_back(aside, name)


def _stores(layout: Layout) -> set[str]:
    """Return the ids of stores that the payloads name, as far as they can be read."""
    found = set()
    payloads = payloads_at(layout)
    for name in payloads.names():
        with suppress(CorruptPayloadError, StorageError):
            found.add(str(payload.read_description(PayloadRef(payloads, name)).get("store")))
    return found


def _read_payloads(
    layout: Layout, progress: Progress | None, uuid: str | None
) -> tuple[list[Described], list[Problem], list[tuple[str, str]]]:
    found: list[Described] = []
    strays: list[tuple[str, str]] = []
    unread: list[Problem] = []
    failure: StorageError | None = None
    payloads = payloads_at(layout)
    for name in payloads.names():
        path = layout.root / file_of_payload(name)
        try:
            found.append(describe(PayloadRef(payloads, name)))
        except CorruptPayloadError as error:
            strays.append((name, error.reason))
        except StorageError as error:
            # It stays where it is; the next opening that can read it adopts it.
            detail, action = f"it cannot be read: {error.__cause__}", "left alone"
            unread.append(Problem(kind="unreadable", detail=detail, path=path, action=action))
            failure = error
        if progress is not None:
            progress(payloads.nbytes(name) or 0)
    if failure is not None and not found:
        raise failure  # the whole disk is unavailable, rather than single files damaged
    # The old manifest says which store this is, or else most payloads do: a copy may have come from elsewhere.
    counted = Counter(described.store for described in found)
    store = uuid if uuid in counted else next((name for name, _ in counted.most_common(1)), None)
    own: list[Described] = []
    versions: set[int] = set()
    for described in found:
        new = described.new
        if described.store != store:
            strays.append((payload_of_file(new.file), "it is another store's"))
        elif new.version in versions:
            strays.append((payload_of_file(new.file), f"version {new.version} is another's here"))
        else:
            versions.add(new.version)
            own.append(described)
    problems = [
        Problem(
            kind="orphan",
            detail=reason,
            path=layout.root / file_of_payload(name),
            action="put aside in quarantine",
        )
        for name, reason in strays
    ]
    return own, [*problems, *unread], strays


def _fill(layout: Layout, manifest: Manifest, found: list[Described], saved: Salvaged) -> None:
    highest = max((leading_version(name) for name in _all_names(layout)), default=0)
    uuid = next((described.store for described in found), saved.uuid)
    manifest.rebuild_from(
        ((_row(described.new, saved), _shown(layout, described)) for described in found),
        uuid=uuid or manifest.uuid,
        next_version=max(highest + 1, saved.next_version),
        tags=saved.tags,
        monitors=saved.monitors,
        beginnings=_beginnings(found, saved),
        epochs=saved.epochs,
        attempts=saved.attempts,
    )


def _mark_unsound(manifest: Manifest, found: list[Described], saved: Salvaged) -> None:
    """Mark the checkpoints again that were found unsound when a loss went bad."""
    positions = [
        Position(
            version=described.new.version,
            run=described.new.run,
            beginning=described.beginning,
            step=described.new.step,
            rollbacks=described.rollbacks,
        )
        for described in found
        if described.new.resumable
    ]
    known = unsound_versions(positions)
    for position in positions:
        if position.version in saved.unsound:
            known[position.run] = sorted({*known.get(position.run, ()), position.version})
    for run, versions in known.items():
        manifest.checkpoints.mark_unsound(versions, run=run, event=None)


def _beginnings(found: list[Described], saved: Salvaged) -> list[tuple[str, int, int]]:
    """Return run, number and first version of each beginning after a run's first.

    Payloads are trusted more than a damaged manifest; only the manifest knows a beginning that has saved nothing yet.
    """
    described_beginnings: dict[tuple[str, int], int] = {}
    for described in found:
        key, version = (described.new.run, described.beginning), described.new.version
        if described.beginning > 1:
            described_beginnings[key] = min(described_beginnings.get(key, version), version)
    known = saved.beginnings | described_beginnings
    return [(run, number, known[run, number]) for run, number in sorted(known)]


def _row(new: NewCheckpoint, saved: Salvaged) -> NewCheckpoint:
    blocked_s, total_s = saved.costs.get(new.version, (None, None))
    return replace(new, pinned=new.version in saved.pinned, blocked_s=blocked_s, total_s=total_s)


def _shown(layout: Layout, found: Described) -> str | None:
    """Return the path that shows a payload now, or None; a path that only was to show it is not trusted."""
    if found.published is None:
        return None
    target = published_path(layout.root, found.published)
    is_shown = payloads_at(layout).is_shown_at(payload_of_file(found.new.file), target)
    return found.published if is_shown else None


def _all_names(layout: Layout) -> list[str]:
    payloads = payloads_at(layout)
    return [*payloads.names(), *payloads.quarantined()]


def _exchange(layout: Layout, fresh: Path) -> Path | None:
    """Put the new manifest in place of the old one, which is kept in quarantine; returns its path there.

    SQLite's files beside the old one are moved first, since they would count as the new one's; a journal that could
    still be rolled back was rolled back before. Then one rename replaces the old one. Without hard links it takes two,
    and a crash between them leaves a store without a manifest: the next repair finishes.
    """
    timestamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    kept = layout.kept_manifest(timestamp)
    for suffix in _BESIDE:
        unlink(fresh.with_name(fresh.name + suffix))
        path = layout.manifest.with_name(layout.manifest.name + suffix)
        if os.path.lexists(path) and path.stat().st_size == 0:
            unlink(path)
        elif os.path.lexists(path):
            rename_to_new(path, kept.with_name(kept.name + suffix))
    there = os.path.lexists(layout.manifest)
    if there:
        try:
            link(layout.manifest, kept)
        except StorageError:
            rename_to_new(layout.manifest, kept)
    fsync_directory(kept.parent)
    fsync_directory(layout.root)
    rename_over(fresh, layout.manifest)
    fsync_directory(layout.root)
    return kept if there else None
