"""Faults planted in a child process, by name, to prove that the crash tests can find them.

`FAULTS` are for processes that are killed or meet errors. `POWER_CUT_FAULTS` leave something wrong behind after a power
cut; `RECOVERED_FAULTS` do not, since recovery repairs what they leave.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ckptstore.commit import committer, orphans, recovery
from ckptstore.manifest import engine, manifest, published, schema
from ckptstore.manifest.checkpoints import Checkpoints
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.retention import checks
from ckptstore.manifest.retention.checks import RunRetention
from ckptstore.records import Checkpoint, NewCheckpoint
from ckptstore.storage import durable_writer, files, leases, locks, publish
from ckptstore.storage.layout import published_path
from ckptstore.storage.payloads import local_writing
from ckptstore.storage.payloads.interface import PayloadStore

# The name of the leases of a process that has called `fix_lease_name`.
LEASE = "f" * 32


@dataclass(frozen=True, slots=True)
class PowerCutFault:
    """A fault, and the workload during which a power cut shows it."""

    workload: str
    plant: Callable[[], None]


def plant(name: str) -> None:
    """Plant a fault of `FAULTS` in this process; none for ``""``."""
    if name:
        FAULTS[name]()


def power_cut_fault(name: str) -> PowerCutFault:
    """Return a fault of `POWER_CUT_FAULTS` or `RECOVERED_FAULTS`."""
    return POWER_CUT_FAULTS[name] if name in POWER_CUT_FAULTS else RECOVERED_FAULTS[name]


def fix_lease_name() -> None:
    """Make this process call its next leases `LEASE`, so that the names of the files that it writes are known."""
    vars(leases)["uuid"] = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=LEASE))


# --- kills and errors ---


def _replace_everywhere(original: Callable[..., Any], faulty: Callable[..., Any]) -> None:
    """Replace a function where it is defined, and in every module that has imported it."""
    for name, module in list(sys.modules.items()):
        if name == "ckptstore" or name.startswith("ckptstore."):
            for attribute, value in list(vars(module).items()):
                if value is original:
                    setattr(module, attribute, faulty)


def _row_before_rename() -> None:
    rename, add = files.rename_to_new, Manifest.add_checkpoint
    later: list[tuple[Path, Path]] = []

    def add_first(self: Manifest, *arguments: Any, **options: Any) -> Any:
        added = add(self, *arguments, **options)
        while later:
            rename(*later.pop())
        return added

    _replace_everywhere(rename, lambda source, target: later.append((source, target)))
    Manifest.add_checkpoint = add_first  # type: ignore[method-assign]


def _removed_before_marked() -> None:
    expire = RunRetention.expire

    def remove_first(self: RunRetention, run: str, versions: Sequence[int]) -> None:
        for checkpoint in filter(None, map(Checkpoints(self._transactions).get, versions)):
            checkpoint.path.unlink()
        expire(self, run, versions)

    RunRetention.expire = remove_first  # type: ignore[method-assign]


def _no_adoption() -> None:
    _replace_everywhere(orphans.adopt, lambda layout, manifest, name: None)


def _no_publishing_after_a_crash() -> None:
    _replace_everywhere(recovery.finish_publishing, lambda layout, manifest: None)


def _written_in_place() -> None:
    """Publish a checkpoint by overwriting the existing file."""

    def overwrite(payload: Path, target: Path) -> None:
        with target.open("r+b" if target.exists() else "wb", buffering=0) as file:
            data = payload.read_bytes()
            file.write(data[: len(data) // 2])
            file.write(data[len(data) // 2 :])
            file.truncate()

    _replace_everywhere(publish.publish, overwrite)


def _leaves_temporary_files() -> None:
    """Leave the temporary file of a failed save."""
    unlink = files.unlink

    def leave(path: Path) -> None:
        if path.parent.name != "tmp" or path.suffix == ".lease":
            unlink(path)

    _replace_everywhere(unlink, leave)


def _ignores_sync_errors() -> None:
    sync = files.sync_file

    def ignore(descriptor: int, path: Path) -> None:
        with suppress(OSError):
            sync(descriptor, path)

    _replace_everywhere(sync, ignore)


def _retries_a_sync() -> None:
    sync = files.sync_file

    def retry(descriptor: int, path: Path) -> None:
        try:
            sync(descriptor, path)
        except OSError:
            sync(descriptor, path)

    _replace_everywhere(sync, retry)


def _no_store_lock() -> None:
    @contextmanager
    def no_lock(directory: Path, **options: Any) -> Iterator[None]:
        yield

    _replace_everywhere(locks.store_lock, no_lock)


def _removes_files_in_use() -> None:
    """Treat every temporary file as one of a dead writer."""

    def remove_all(directory: Path) -> list[Path]:
        removed = [path for path in directory.iterdir() if path.suffix != ".lease"]
        for path in removed:
            path.unlink(missing_ok=True)
        return removed

    _replace_everywhere(leases.remove_stale_files, remove_all)


FAULTS: dict[str, Callable[[], None]] = {
    "row before rename": _row_before_rename,
    "removed before marked": _removed_before_marked,
    "no adoption": _no_adoption,
    "no publishing after a crash": _no_publishing_after_a_crash,
    "written in place": _written_in_place,
    "leaves temporary files": _leaves_temporary_files,
    "ignores sync errors": _ignores_sync_errors,
    "retries a sync": _retries_a_sync,
    "no store lock": _no_store_lock,
    "removes files in use": _removes_files_in_use,
}


# --- power cuts ---


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
    """Omit the sync of directories of this name in a commit."""

    def fsync_directory(path: Path) -> None:
        if path.name != name:
            files.fsync_directory(path)

    return _patch((local_writing, "fsync_directory"), by=fsync_directory)


def _sqlite(**settings: tuple[str, int | str]) -> Callable[[], None]:
    """Use other settings, given with the value they read back as, on every connection that writes."""

    def patch() -> None:
        for owner, name in (
            (engine, "WRITER_PRAGMAS"),
            (engine, "MIGRATION_PRAGMAS"),
            (schema, "MIGRATION_PRAGMAS"),
        ):
            pragmas = getattr(owner, name)
            _set(owner, name, tuple((key, *settings.get(key, rest)) for key, *rest in pragmas))

    return patch


def _row_before_rename_on_disk() -> None:
    """Commit the row before the payload gets its final name."""
    rename, fsync, add = files.rename_to_new, files.fsync_directory, Manifest.add_checkpoint
    held: list[Callable[[], None]] = []

    def add_checkpoint(manifest: Manifest, new: NewCheckpoint, **options: Any) -> Checkpoint:
        added = add(manifest, new, **options)
        for step in held:
            step()
        held.clear()
        return added

    _set(local_writing, "rename_to_new", lambda source, target: held.append(lambda: rename(source, target)))
    _set(local_writing, "fsync_directory", lambda path: held.append(lambda: fsync(path)))
    _set(Manifest, "add_checkpoint", add_checkpoint)


def _unlink_before_mark() -> None:
    """Remove pruned files before their rows are marked."""
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
    """Drop the rows of pruned checkpoints before their files are removed."""
    add = Manifest.add_checkpoint

    def add_checkpoint(manifest: Manifest, *arguments: Any, **options: Any) -> Checkpoint:
        added = add(manifest, *arguments, **options)
        manifest.checkpoints.remove(
            [checkpoint.version for checkpoint in manifest.checkpoints.in_state("deleting")]
        )
        return added

    _set(Manifest, "add_checkpoint", add_checkpoint)


def _deletions_not_synced() -> None:
    """Drop the rows of pruned checkpoints before the removal of their files is durable."""

    def remove_marked(payloads: PayloadStore, checkpoints: list[Checkpoint], **options: bool) -> None:
        for checkpoint in checkpoints:
            files.unlink(checkpoint.path)

    _set(committer, "remove_marked", remove_marked)


def _published_before_commit(*, synced: bool) -> Callable[[], None]:
    """Switch the published path before the COMMIT, or even before the name of the payload is durable."""

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
            _set(local_writing, "fsync_directory", late.append)
        _set(Manifest, "add_checkpoint", add_checkpoint)

    return patch


def _reported_before_synced() -> None:
    """Let the processes but 0 report their members before these are durable."""
    sync = files.sync_file

    def sync_own(descriptor: int, path: Path) -> None:
        if path.name != "00001.h5":
            sync(descriptor, path)

    _set(durable_writer, "sync_file", sync_own)


_DELETE = ("DELETE", "delete")

# Faults that some folder after a power cut reveals.
POWER_CUT_FAULTS: dict[str, PowerCutFault] = {
    "payload not synced": PowerCutFault("save", _patch((durable_writer, "sync_file"))),
    "copy not synced": PowerCutFault("save with a copy", _patch((durable_writer, "sync_file"))),
    "checkpoints directory not synced": PowerCutFault("save", _skip_directory("checkpoints")),
    "folder of shards not synced": PowerCutFault("save shards", _skip_directory("shards")),
    "member of another process reported before it is synced": PowerCutFault(
        "save shards of two processes", _reported_before_synced
    ),
    "published directory not synced": PowerCutFault("save", _patch((publish, "fsync_directory"))),
    "parents of the store not synced": PowerCutFault("first save", _patch((files, "fsync_directory"))),
    "row before rename": PowerCutFault("save", _row_before_rename),
    "unlink before mark": PowerCutFault("save and keep two", _unlink_before_mark),
    "published before its payload has a durable name": PowerCutFault(
        "save", _published_before_commit(synced=False)
    ),
    "SQLite: synchronous OFF": PowerCutFault("save and keep two", _sqlite(synchronous=("OFF", 0))),
    "SQLite: synchronous NORMAL": PowerCutFault("save and keep two", _sqlite(synchronous=("NORMAL", 1))),
    "SQLite: journal DELETE": PowerCutFault("save and keep two", _sqlite(journal_mode=_DELETE)),
    "SQLite: journal MEMORY": PowerCutFault("save and keep two", _sqlite(journal_mode=("MEMORY", "memory"))),
    "SQLite: journal OFF": PowerCutFault("save and keep two", _sqlite(journal_mode=("OFF", "off"))),
}

# Faults that none reveals, since recovery repairs what they leave.
RECOVERED_FAULTS: dict[str, PowerCutFault] = {
    # A removed payload may come back intact; it is adopted like any orphan.
    "rows dropped before unlink": PowerCutFault("save and keep two", _rows_dropped_before_unlink),
    "deletions not synced": PowerCutFault("save and keep two", _deletions_not_synced),
    "tmp directory not synced": PowerCutFault("save", _skip_directory("tmp")),
    "published before COMMIT": PowerCutFault("save", _published_before_commit(synced=True)),
}
