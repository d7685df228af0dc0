"""Workloads for power cuts: what they do to a store, and what must hold at each instant.

The preparation of a workload is not recorded, and counts as durable. Then the workload runs in a child whose working
directory is the folder of the store, and reports each checkpoint as soon as its save has returned.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from ckptstore.commit.joined_save import JoinedSave
from ckptstore.commit.led_save import LedSave
from ckptstore.commit.request import SaveRequest
from ckptstore.distributed.job import Job
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.service import ServiceMessages
from ckptstore.distributed.session import JobSession
from ckptstore.errors import CorruptManifestError, CorruptPayloadError
from ckptstore.formats import payload
from ckptstore.formats.description import RESERVED
from ckptstore.manifest import manifest as manifest_module
from ckptstore.manifest import published
from ckptstore.manifest.checkpoints import Checkpoints
from ckptstore.manifest.retention import checks
from ckptstore.manifest.retention.checks import Decision, RetentionCheck
from ckptstore.records import Checkpoint, State
from ckptstore.retention import keep_last
from ckptstore.storage.durable_writer import DurableWriter
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import store_lock
from ckptstore.store.resume import ResumePointLoader
from ckptstore.store.store import CheckpointStore
from crash.invariants import Saved
from crash.sample_stores import save, shards_of, snapshot_of

_STORES = Path(__file__).resolve().parent.parent.parent / "tests" / "manifest" / "stores"
# The published path, relative to the folder.
PUBLISHED = Path("models/best.keras")


@dataclass(frozen=True, slots=True)
class Claims:
    """The checkpoints, and the published version, that must exist after a crash.

    Attributes:
        saved: The checkpoints that were reported as saved, except those that retention removes.
        removed: Versions that retention has begun to remove.
        published: The published path shows this version or a later one; 0 where it may show anything, or nothing.
    """

    saved: frozenset[Saved] = frozenset()
    removed: frozenset[int] = frozenset()
    published: int = 0

    def after(self, report: dict[str, Any]) -> Claims:
        """Return the claims after one more report of the process."""
        if "removed" in report:
            return replace(self, removed=self.removed | {*report["removed"]})
        saved = Saved(version=report["version"], digest=report["digest"], epoch=report["epoch"])
        published = saved.version if report["published"] else self.published
        return replace(self, saved=self.saved | {saved}, published=published)


class Report:
    """Reports of a workload, each written by one system call."""

    def __init__(self, marks: Path) -> None:
        self._descriptor = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def saved(self, checkpoint: Checkpoint, *, published: bool = False) -> None:
        """Report a checkpoint as saved, and whether the published path shows it."""
        facts = {"version": checkpoint.version, "digest": checkpoint.digest, "epoch": checkpoint.epoch}
        self._write({**facts, "published": published})

    def removed(self, versions: Sequence[int]) -> None:
        """Report that retention is about to remove checkpoints."""
        self._write({"removed": list(versions)})

    def _write(self, report: dict[str, Any]) -> None:
        line = json.dumps(report).encode() + b"\n"
        assert os.write(self._descriptor, line) == len(line)


@dataclass(frozen=True, slots=True)
class Workload:
    """A recorded use of a store.

    Attributes:
        prepare: Prepares the folder that it is called with; returns the claims about it.
        run: The recorded part.
        store: The store's path in the folder.
        seeded: True if all prepared checkpoints are snapshots of a seed, and so can be compared bit by bit.
        repair: Does what a person does after the cut, where opening the store is not meant to suffice; returns what
            is wrong then.
    """

    prepare: Callable[[Path], Claims]
    run: Callable[[Report], None]
    store: Path = Path("store")
    seeded: bool = True
    repair: Callable[[Path], list[str]] = lambda root: []


def run_workload(marks: Path, name: str) -> None:
    """Run a workload in this process, the child of a recording, whose working directory is the folder."""
    report, real, real_apply = Report(marks), Checkpoints.set_state, checks.apply_retention

    def set_state(checkpoints: Checkpoints, versions: Sequence[int], state: State, **options: Any) -> None:
        if state == "deleting":
            report.removed(versions)
        real(checkpoints, versions, state, **options)

    def apply(connection: Any, store: Path, run: str, check: RetentionCheck, *known: Any) -> list[Checkpoint]:
        def decide(rows: Any) -> Decision | None:
            decision = check.decide(rows)
            report.removed(
                [] if decision is None else [checkpoint.version for checkpoint in decision.expired]
            )
            return decision

        return real_apply(connection, store, run, replace(check, decide=decide), *known)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(Checkpoints, "set_state", set_state))
        for module in (checks, manifest_module, published):
            patches.enter_context(mock.patch.object(module, "apply_retention", apply))
        WORKLOADS[name].run(report)


# --- preparations ----------------------------------------------------------------------------------------------------


def _nothing(folder: Path) -> Claims:
    return Claims()


def _two(folder: Path) -> Claims:
    """Save two checkpoints, and publish the second."""
    with CheckpointStore(folder / "store") as store:
        save(store, 1, publish=folder / PUBLISHED)
        second = save(store, 2, publish=folder / PUBLISHED)
        return _claims(store, published=second.version)


def _claims(store: CheckpointStore, *, published: int) -> Claims:
    saved = (
        Saved(version=checkpoint.version, digest=checkpoint.digest, epoch=checkpoint.epoch)
        for checkpoint in store.checkpoints()
    )
    return Claims(saved=frozenset(saved), published=published)


def _leftovers(folder: Path) -> Claims:
    """Leave what dead writers leave: a row marked for deletion, a path not switched, orphans, temporary files."""
    claims = _two(folder)
    with CheckpointStore(folder / "store") as store:
        with mock.patch.object(store._committer, "_publish"):
            third = save(store, 3, publish=folder / PUBLISHED)
        _orphan(third, version=9)
        store._manifest.checkpoints.set_state([1], "deleting")
        claims = replace(_claims(store, published=claims.published), removed=frozenset({1}))
    third.path.with_name("00000008-default.keras").write_bytes(b"damaged")
    (folder / "store" / "tmp" / f"{'0' * 32}.1.keras").write_bytes(b"half")
    (folder / PUBLISHED).with_name(f".{PUBLISHED.name}.ckptstore").write_bytes(b"half")
    return claims


def _orphan(like: Checkpoint, *, version: int) -> None:
    """Write a payload without a row, as a crash between rename and COMMIT leaves it."""
    description = {**payload.read_description(like.path), "version": version, "epoch": version}
    for computed in RESERVED:
        description.pop(computed, None)
    encoded = payload.encode(snapshot_of(version), {**description, "metrics": {"loss": float(version)}})
    writer = DurableWriter(like.path.with_name(f"{version:08d}-{like.run}.keras"), reserve=encoded.nbytes)
    encoded.members[0].write(writer)
    writer.finish()


def _hot_journal(folder: Path) -> Claims:
    """Leave a manifest as a writer that died during COMMIT: some pages overwritten, the journal still there."""
    claims = _two(folder)
    manifest = folder / "store" / "manifest.sqlite"
    journal = manifest.with_name("manifest.sqlite-journal")
    with closing(sqlite3.connect(manifest, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE checkpoints SET digest = 'nonsense'")
        connection.execute("CREATE TABLE filler (x)")
        connection.executemany("INSERT INTO filler VALUES (?)", [(bytes(900),) for _ in range(99)])
        for path in (manifest, journal):
            shutil.copyfile(path, folder / path.name)
        connection.execute("ROLLBACK")
    for path in (manifest, journal):
        (folder / path.name).rename(path)
    return claims


def _older(folder: Path) -> Claims:
    """Copy the sample store of the oldest schema."""
    shutil.copytree(min(_STORES.iterdir()), folder / "store")
    with closing(sqlite3.connect(folder / "store" / "manifest.sqlite")) as connection:
        rows = connection.execute("SELECT version, digest, epoch FROM checkpoints WHERE state = 'complete'")
        return Claims(frozenset(Saved(version=row[0], digest=row[1], epoch=row[2]) for row in rows))


_DAMAGED = b"damaged"


def _one_damaged(folder: Path) -> Claims:
    """Damage the payload of a third checkpoint, and move that of the first into quarantine."""
    claims = _two(folder)
    with CheckpointStore(folder / "store") as store:
        first, third = store.get(1), save(store, 3)
    first.path.rename(folder / "store" / "quarantine" / first.path.name)
    third.path.unlink()
    third.path.write_bytes(_DAMAGED)
    return claims


def _no_manifest(folder: Path) -> Claims:
    """Destroy the manifest, leave a stale journal beside it, and a damaged payload among intact ones."""
    claims = _two(folder)
    manifest = folder / "store" / "manifest.sqlite"
    manifest.write_bytes(bytes(manifest.stat().st_size))
    manifest.with_name("manifest.sqlite-journal").write_bytes(b"stale")
    (folder / "store" / "checkpoints" / "00000003-default.keras").write_bytes(_DAMAGED)
    return claims


def _repaired(root: Path) -> list[str]:
    """Repair a store, or rebuild its manifest if need be; the damaged payload must still exist."""
    try:
        with CheckpointStore(root) as store:
            store.repair()
    except CorruptManifestError:
        CheckpointStore.rebuild(root)
    kept = (path.read_bytes() for path in (root / "quarantine").iterdir())
    return [] if _DAMAGED in kept else ["the damaged payload is gone"]


# --- what is recorded ------------------------------------------------------------------------------------------------


def _first_save(report: Report) -> None:
    with CheckpointStore("nested/deep/store") as store:
        report.saved(save(store, 1, publish=PUBLISHED.absolute()), published=True)


def _save(report: Report) -> None:
    with CheckpointStore("store") as store:
        report.saved(save(store, 3, publish=PUBLISHED.absolute()), published=True)


def _save_and_keep_two(report: Report) -> None:
    with CheckpointStore("store") as store:
        report.saved(save(store, 3, publish=PUBLISHED.absolute(), keep=keep_last(2)), published=True)


def _save_shards(report: Report) -> None:
    with CheckpointStore("store") as store:
        report.saved(save(store, 3, format="sharded"))


def _save_shards_of_two_processes(report: Report) -> None:
    """Save as process 0 of a job, with another process in a thread, which writes its own member."""
    service = MemoryService()
    sessions = [
        JobSession(
            Job(kind="memory", by="memory", process=process, processes=2, found_in="here"),
            ServiceMessages(service, process=process, service="memory"),
            "token",
        )
        for process in range(2)
    ]
    snapshots = shards_of(3, processes=2)
    request = SaveRequest(run="default", epoch=3, metrics={"loss": 3.0})
    with CheckpointStore("store") as store, ThreadPoolExecutor() as pool:
        store.claim("default")
        joined = JoinedSave(sessions[1], Layout(store.path))
        other = pool.submit(joined.save, snapshots[1], replace(request, job_save=sessions[1].next_save()))
        number = sessions[0].next_save()
        with LedSave(sessions[0], number) as led:
            saved = store.commit(snapshots[0], replace(request, job_save=number), led=led)
        assert other.result() == saved
        report.saved(saved)


def _save_twice(report: Report) -> None:
    with CheckpointStore("store") as store:
        report.saved(save(store, 3, format="weights"))
        report.saved(save(store, 4, run="other", tags=("good",)))


def _save_with_a_copy(report: Report) -> None:
    """Save where hard links fail, as on a file system without them."""
    with mock.patch("os.link", side_effect=OSError(errno.EPERM, os.strerror(errno.EPERM))):
        _save(report)


def _save_in_two_threads(report: Report) -> None:
    """Save with two writers, each with its own store object, as in two processes."""

    def write(run: str, publish: Path | None) -> None:
        with CheckpointStore("store") as store:
            report.saved(save(store, 3, run=run, publish=publish), published=publish is not None)

    with ThreadPoolExecutor() as pool:
        for writer in [pool.submit(write, "one", None), pool.submit(write, "two", PUBLISHED.absolute())]:
            writer.result()


def _open(report: Report) -> None:
    with CheckpointStore("store") as store:
        published = store.published("default").values()
        for checkpoint in store.checkpoints():
            report.saved(checkpoint, published=checkpoint.version in published)


def _repair(report: Report) -> None:
    with CheckpointStore("store") as store:
        store.repair()
        report.saved(store.get(1))


def _rebuild(report: Report) -> None:
    CheckpointStore.rebuild("store")


def _resume(report: Report) -> None:
    """Resume past the damaged checkpoint."""

    def load(checkpoint: Checkpoint) -> None:
        if checkpoint.path.read_bytes() == _DAMAGED:
            raise CorruptPayloadError(path=checkpoint.path, reason="damaged")

    with CheckpointStore("store") as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lock = partial(store_lock, store.path / "locks")
        loader = ResumePointLoader(store._layout, store._manifest, run="default", locked=lock)
        resumed = loader.load(load)
        assert resumed is not None
        assert resumed.version == 2
        report.saved(resumed)


WORKLOADS: dict[str, Workload] = {
    "first save": Workload(_nothing, _first_save, Path("nested/deep/store")),
    "save": Workload(_two, _save),
    "save and keep two": Workload(_two, _save_and_keep_two),
    "save shards": Workload(_two, _save_shards),
    "save shards of two processes": Workload(_two, _save_shards_of_two_processes),
    "save twice": Workload(_two, _save_twice),
    "save with a copy": Workload(_two, _save_with_a_copy),
    "save in two threads": Workload(_two, _save_in_two_threads),
    "open with leftovers": Workload(_leftovers, _open),
    "open with a hot journal": Workload(_hot_journal, _open),
    "repair": Workload(_one_damaged, _repair, repair=_repaired),
    "rebuild": Workload(_no_manifest, _rebuild, repair=_repaired),
    "resume over a damaged one": Workload(_one_damaged, _resume, repair=_repaired),
    "open with an older schema": Workload(_older, _open, seeded=False),
}
