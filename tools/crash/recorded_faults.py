"""Faults that are planted in ckptstore, in the child that a recording is made of, to prove that a check finds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptstore.commit import committer
from ckptstore.manifest import engine, manifest, published, schema
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.retention import checks
from ckptstore.records import Checkpoint, NewCheckpoint
from ckptstore.storage import durable_writer, files, publish
from ckptstore.storage.layout import published_path


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and a workload that shows it."""

    workload: str
    plant: Callable[[], None]


def plant(name: str) -> None:
    """Spoil this process."""
    fault(name).plant()


def fault(name: str) -> Fault:
    """Return a fault of either table."""
    return FAULTS[name] if name in FAULTS else MENDED[name]


def _nothing(*arguments: object, **options: object) -> None:
    """Do nothing."""


def _set(owner: Any, name: str, value: object) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more"
    setattr(owner, name, value)


def _patch(*places: tuple[Any, str], by: Callable[..., object] = _nothing) -> Callable[[], None]:
    def patch() -> None:
        for owner, name in places:
            _set(owner, name, by)

    return patch


def _skip_directory(name: str) -> Callable[[], None]:
    """Leave out the sync of directories of this name in a commit."""

    def fsync_directory(path: Path) -> None:
        if path.name != name:
            files.fsync_directory(path)

    return _patch((committer, "fsync_directory"), by=fsync_directory)


def _sqlite(**settings: tuple[str, int | str]) -> Callable[[], None]:
    """Use other settings, and what they read back as, on every connection that writes."""

    def patch() -> None:
        for owner, name in (
            (engine, "WRITER_PRAGMAS"),
            (engine, "MIGRATION_PRAGMAS"),
            (schema, "MIGRATION_PRAGMAS"),
        ):
            pragmas = getattr(owner, name)
            _set(owner, name, tuple((key, *settings.get(key, rest)) for key, *rest in pragmas))

    return patch


def _row_before_rename() -> None:
    """Commit the row first, then give the payload its name."""
    rename, fsync, add = files.rename_to_new, files.fsync_directory, Manifest.add_checkpoint
    held: list[Callable[[], None]] = []

    def add_checkpoint(manifest: Manifest, new: NewCheckpoint, **options: Any) -> Checkpoint:
        added = add(manifest, new, **options)
        for step in held:
            step()
        held.clear()
        return added

    _set(committer, "rename_to_new", lambda source, target: held.append(lambda: rename(source, target)))
    _set(committer, "fsync_directory", lambda path: held.append(lambda: fsync(path)))
    _set(Manifest, "add_checkpoint", add_checkpoint)


def _unlink_before_mark() -> None:
    """Remove the files of a retention before their rows are marked."""
    apply = checks.apply_retention

    def unlinking(connection: Any, store: Path, run: str, check: Any, *known: Any) -> Any:
        def decide(rows: Any) -> Any:
            decision = check.decide(rows)
            for checkpoint in () if decision is None else decision.expired:
                files.unlink(checkpoint.path)
            return decision

        return apply(connection, store, run, replace(check, decide=decide), *known)

    for module in (checks, manifest, published):
        _set(module, "apply_retention", unlinking)


def _rows_dropped_before_unlink() -> None:
    """Drop the rows of a retention before their files are gone."""
    add = Manifest.add_checkpoint

    def add_checkpoint(manifest: Manifest, *arguments: Any, **options: Any) -> Checkpoint:
        added = add(manifest, *arguments, **options)
        manifest.checkpoints.remove(
            [checkpoint.version for checkpoint in manifest.checkpoints.in_state("deleting")]
        )
        return added

    _set(Manifest, "add_checkpoint", add_checkpoint)


def _deletions_not_synced() -> None:
    """Drop the rows of a retention before it is durable that their files are gone."""

    def unlink_marked(checkpoints: list[Checkpoint], unlink: Callable[[Path], None]) -> None:
        for checkpoint in checkpoints:
            unlink(checkpoint.path)

    _set(committer, "unlink_marked", unlink_marked)


def _published_before_commit(*, synced: bool) -> Callable[[], None]:
    """Switch the published path before the COMMIT; or even before the payload's own name is durable."""

    def patch() -> None:
        add, fsync = Manifest.add_checkpoint, files.fsync_directory
        late: list[Path] = []

        def add_checkpoint(manifest: Manifest, new: NewCheckpoint, **options: Any) -> Checkpoint:
            root = manifest.path.parent
            publish.publish(root / new.file, published_path(root, options["published_path"]))
            for path in late:
                fsync(path)
            return add(manifest, new, **options)

        if not synced:
            _set(committer, "fsync_directory", late.append)
        _set(Manifest, "add_checkpoint", add_checkpoint)

    return patch


_DELETE = ("DELETE", "delete")

# Those that some folder shows to be faults.
FAULTS: dict[str, Fault] = {
    "payload not synced": Fault("save", _patch((durable_writer, "sync_file"))),
    "copy not synced": Fault("save with a copy", _patch((durable_writer, "sync_file"))),
    "checkpoints directory not synced": Fault("save", _skip_directory("checkpoints")),
    "published directory not synced": Fault("save", _patch((publish, "fsync_directory"))),
    "parents of the store not synced": Fault("first save", _patch((files, "fsync_directory"))),
    "row before rename": Fault("save", _row_before_rename),
    "unlink before mark": Fault("save and keep two", _unlink_before_mark),
    "published before its payload has a durable name": Fault("save", _published_before_commit(synced=False)),
    "SQLite: synchronous OFF": Fault("save and keep two", _sqlite(synchronous=("OFF", 0))),
    "SQLite: synchronous NORMAL": Fault("save and keep two", _sqlite(synchronous=("NORMAL", 1))),
    "SQLite: journal DELETE": Fault("save and keep two", _sqlite(journal_mode=_DELETE)),
    "SQLite: journal MEMORY": Fault("save and keep two", _sqlite(journal_mode=("MEMORY", "memory"))),
    "SQLite: journal OFF": Fault("save and keep two", _sqlite(journal_mode=("OFF", "off"))),
}

# Those that none does, since recovery mends what they leave.
MENDED: dict[str, Fault] = {
    # What was removed may come back, whole; it is taken in like any orphan.
    "rows dropped before unlink": Fault("save and keep two", _rows_dropped_before_unlink),
    "deletions not synced": Fault("save and keep two", _deletions_not_synced),
    "tmp directory not synced": Fault("save", _skip_directory("tmp")),
    "published before COMMIT": Fault("save", _published_before_commit(synced=True)),
}
