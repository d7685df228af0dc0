"""Makes a manifest again from the payloads, when it was lost or cannot be read.

All that a payload says of itself comes back: version, run, position, metrics, tags, format, training state. What only
the manifest knew (pins, later tags, costs, which way metrics are better, the number of the next version) is read from
the damaged one as far as SQLite still can.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ckptstore.adoption import Described, describe
from ckptstore.errors import CorruptPayloadError, StorageError
from ckptstore.files import fsync_directory, is_same_file, link, rename_to_new, unlink
from ckptstore.files import replace as rename_over
from ckptstore.layout import Layout, find_store, shown_at
from ckptstore.locks import no_run_is_written, store_lock
from ckptstore.manifest import Manifest
from ckptstore.manifest_salvage import Salvaged, salvage
from ckptstore.quarantine import quarantine_stray
from ckptstore.records import NewCheckpoint, Problem

Progress = Callable[[int], object]
_JOURNAL = "-journal"


def rebuild_at(path: str | os.PathLike[str], *, progress: Progress | None = None) -> list[Problem]:
    """Make the manifest of the store at `path` again; `ckptstore.CheckpointStore.rebuild` says how."""
    layout = Layout(find_store(path))
    layout.make_directories()
    with store_lock(layout.locks), no_run_is_written(layout.locks):
        return rebuild(layout, progress=progress)


def rebuild(layout: Layout, *, progress: Progress | None = None) -> list[Problem]:
    """Put a new manifest, made from the payloads, in the place of the one that is there; that one is kept.

    The new one is complete and durable under another name before it takes the place, in one rename; the old one is then
    in `quarantine`. A crash before that leaves everything as it was, but for damaged payloads, which are put aside.

    Args:
        layout: Where the store lies; the caller holds its lock, and nobody has the manifest open.
        progress: Called with the number of bytes of payloads that were read since the last call.

    Returns:
        What could not be taken in, with what was done about it; first of all the manifest itself.

    Raises:
        StorageError: A payload cannot be read, or the disk failed.
    """
    fresh = layout.root / "manifest.rebuilt.sqlite"
    for leftover in (fresh, fresh.with_name(fresh.name + _JOURNAL)):
        unlink(leftover)
    saved = salvage(layout.manifest)
    found, problems, strays = _read_payloads(layout, progress)
    manifest = Manifest.open(fresh)
    try:
        _fill(layout, manifest, found, saved)
        for path, reason in strays:
            quarantine_stray(layout, manifest, path, reason)
        manifest.add_event("rebuilt", detail={"checkpoints": len(found), "put_aside": len(strays)})
    finally:
        manifest.close()
    kept = _exchange(layout, fresh)
    action = f"made again from {len(found)} payloads"
    action += "" if kept is None else f"; the damaged one is kept as {kept.relative_to(layout.root)}"
    first = Problem(kind="manifest", detail="lost or damaged", path=layout.manifest, action=action)
    return [first, *problems]


def _read_payloads(
    layout: Layout, progress: Progress | None
) -> tuple[list[Described], list[Problem], list[tuple[Path, str]]]:
    found: list[Described] = []
    strays: list[tuple[Path, str]] = []
    for name in layout.payload_names():
        path = layout.checkpoints / name
        try:
            found.append(describe(path))
        except CorruptPayloadError as error:
            strays.append((path, error.reason))
        if progress is not None:
            progress(path.stat().st_size)
    # Most of them say which store this is; a copy from elsewhere may have come among them.
    stores = Counter(one.store for one in found).most_common(1)
    own: list[Described] = []
    versions: set[int] = set()
    for one in found:
        if one.store != stores[0][0]:
            strays.append((layout.root / one.new.file, "it is another store's"))
        elif one.new.version in versions:
            strays.append((layout.root / one.new.file, f"version {one.new.version} is another's here"))
        else:
            versions.add(one.new.version)
            own.append(one)
    problems = [
        Problem(kind="orphan", detail=reason, path=path, action="put aside in quarantine")
        for path, reason in strays
    ]
    return own, problems, strays


def _fill(layout: Layout, manifest: Manifest, found: list[Described], saved: Salvaged) -> None:
    highest = max((_version_in(name) for name in _all_names(layout)), default=0)
    uuid = next((one.store for one in found), saved.uuid)
    manifest.refill(
        ((_row(one.new, saved), _shown(layout, one)) for one in found),
        uuid=uuid or manifest.uuid,
        next_version=max(highest + 1, saved.next_version),
        tags=saved.tags,
        monitors=saved.monitors,
    )


def _row(new: NewCheckpoint, saved: Salvaged) -> NewCheckpoint:
    blocked_s, total_s = saved.costs.get(new.version, (None, None))
    return replace(new, pinned=new.version in saved.pinned, blocked_s=blocked_s, total_s=total_s)


def _shown(layout: Layout, found: Described) -> str | None:
    """Return the path that shows a payload now; what only was to show it is not believed."""
    if found.published is None:
        return None
    shows = is_same_file(shown_at(layout.root, found.published), layout.root / found.new.file)
    return found.published if shows else None


def _all_names(layout: Layout) -> list[str]:
    return [*layout.payload_names(), *os.listdir(layout.quarantine)]


def _version_in(name: str) -> int:
    """Return the version that a payload's name begins with, also with the number that quarantine adds; else 0."""
    head = name.partition("-")[0]
    return int(head) if head.isdecimal() and len(head) >= 8 else 0


def _exchange(layout: Layout, fresh: Path) -> Path | None:
    """Put the new manifest in the place of the old one, which is kept in quarantine; returns where.

    Its journal goes first: one that stayed would be rolled back into the new manifest.
    """
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    kept = layout.quarantine / f"manifest-{moment}.sqlite"
    journal = layout.manifest.with_name(layout.manifest.name + _JOURNAL)
    if os.path.lexists(journal) and journal.stat().st_size == 0:
        unlink(journal)
    elif os.path.lexists(journal):
        rename_to_new(journal, kept.with_name(kept.name + _JOURNAL))
    there = os.path.lexists(layout.manifest)
    if there:
        try:
            link(layout.manifest, kept)
        except StorageError:
            # No hard links here: a crash between the two renames leaves no manifest, and a repair starts again.
            rename_to_new(layout.manifest, kept)
        fsync_directory(layout.quarantine)
    unlink(fresh.with_name(fresh.name + _JOURNAL))
    rename_over(fresh, layout.manifest)
    fsync_directory(layout.root)
    return kept if there else None
