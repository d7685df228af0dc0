"""`repair` and `rebuild` repair what `verify` finds, lose nothing, and may be killed at any step."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ckptstore.commit.orphans import adopt
from ckptstore.errors import CorruptManifestError, RunLockedError, StorageError
from ckptstore.manifest.schema import HEAD
from ckptstore.records import Checkpoint, json_number
from ckptstore.retention import keep_last
from ckptstore.storage.files import digest_file
from ckptstore.store.store import CheckpointStore
from crash.invariants import Saved, violations
from crash.sample_stores import is_seed, save
from crash.steps import every_death
from manifests import leave_hot_journal


def _made(root: Path) -> list[Checkpoint]:
    """A store of five checkpoints in two runs, one of them shown, pinned and tagged later."""
    with CheckpointStore(root) as store:
        save(store, 1, tags=("first",), metrics={"loss": 3.0, "nan": float("nan")}, extra={"note": "ä"})
        save(store, 2, batch=7, step=99)
        save(store, 3, run="other", format="weights", state=False)
        save(store, 4, publish=root.parent / "shown.keras", monitor=("odd", "max"), metrics={"odd": 1.0})
        save(store, 5)
        store.pin(2)
        store.tag(5, "later")
        return store.checkpoints()


def _break(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def _known(checkpoints: list[Checkpoint], *without: str) -> list[dict[str, object]]:
    left_out = {"blocked_s", "total_s", *without}
    return [
        {name: value for name, value in checkpoint.to_json().items() if name not in left_out}
        for checkpoint in checkpoints
    ]


@contextmanager
def _refused(*refused: Path) -> Iterator[None]:
    """Have the disk refuse to read these files, as a bad sector or a loose cable does."""

    def refusing(open_it: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, *arguments: Any, **options: Any) -> Any:
            if path in refused:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return open_it(path, *arguments, **options)

        return opened

    with (
        mock.patch.object(os, "open", refusing(os.open)),
        mock.patch.object(Path, "open", refusing(Path.open)),
    ):
        yield


# --- repair ------------------------------------------------------------------------------------


def test_an_intact_store_needs_no_repair(tmp_path: Path) -> None:
    before = _made(tmp_path / "store")
    with CheckpointStore(tmp_path / "store") as store:
        assert store.repair() == []
        assert store.checkpoints() == before


def test_a_damaged_payload_is_quarantined_and_its_loss_recorded(tmp_path: Path) -> None:
    before = _made(tmp_path / "store")
    _break(before[4].path)
    with CheckpointStore(tmp_path / "store") as store:
        before[1].path.unlink()
        assert [(problem.kind, problem.version) for problem in store.verify()] == [
            ("missing", 2),
            ("digest", 5),
        ]
        (missing, damaged) = store.repair()
        assert (missing.action, damaged.action) == (
            "marked as missing",
            "put aside in quarantine, and marked as damaged",
        )
        assert store.verify() == []
        assert [checkpoint.version for checkpoint in store.checkpoints()] == [1, 3, 4]
        assert store.get(5).state == "damaged" and store.get(2).state == "missing"
    assert (tmp_path / "store" / "quarantine" / before[4].path.name).exists()


def test_an_unreadable_payload_is_reported_left_alone_and_does_not_stop_the_repair(tmp_path: Path) -> None:
    before = _made(tmp_path / "store")
    _break(before[4].path)
    with CheckpointStore(tmp_path / "store") as store:
        with _refused(before[0].path):
            assert [(problem.kind, problem.version) for problem in store.verify()] == [
                ("unreadable", 1),
                ("digest", 5),
            ]
            (unread, damaged) = store.repair()
            assert unread.action is None and damaged.action is not None
            assert store.get(1).state == "complete" and before[0].path.exists()
            with pytest.raises(StorageError) as caught:
                digest_file(before[0].path)
            assert "move the file out of the store" in caught.value.hint
        assert store.verify() == []


def test_a_loss_marked_at_opening_stays_a_problem_until_a_repair(tmp_path: Path) -> None:
    before = _made(tmp_path / "store")
    before[0].path.unlink()
    for _ in range(2):
        with CheckpointStore(tmp_path / "store") as store:
            assert [(problem.kind, problem.version) for problem in store.verify()] == [("missing", 1)]
    with CheckpointStore(tmp_path / "store") as store:
        store.repair()
        assert store.verify() == []


def test_two_payloads_that_were_swapped_are_put_back(tmp_path: Path) -> None:
    before = _made(tmp_path / "store")
    first, second = before[0].path, before[4].path
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    with CheckpointStore(tmp_path / "store") as store:
        problems = store.repair()
        assert {problem.action for problem in problems} == {"put back from quarantine"}
        assert store.verify() == []
        assert _known(store.checkpoints()) == _known(before)


def test_a_stray_payload_that_appears_while_the_store_is_open(tmp_path: Path) -> None:
    before = _made(tmp_path / "store")
    with CheckpointStore(tmp_path / "store") as store:
        stray = before[0].path.with_name("00000031-x.keras")
        stray.write_bytes(b"nothing of ours")
        (problem,) = store.repair()
        assert problem.kind == "orphan" and str(problem.action).startswith("put aside in quarantine")
        assert not stray.exists() and store.verify() == []
    assert (tmp_path / "store" / "quarantine" / stray.name).read_bytes() == b"nothing of ours"


def _repair(root: Path) -> None:
    with CheckpointStore(root) as store:
        store.repair()


def test_a_repair_killed_at_any_step_is_finished_by_the_next(tmp_path: Path) -> None:
    numbers = itertools.count()

    def prepare() -> tuple[Path]:
        root = tmp_path / str(next(numbers)) / "store"
        before = _made(root)
        _break(before[4].path)
        before[0].path.rename(root / "quarantine" / "00000001-default.keras")
        return (root,)

    for (root,) in every_death(_repair, prepare):
        _repair(root)
        with CheckpointStore(root) as store:
            assert [checkpoint.version for checkpoint in store.checkpoints()] == [1, 2, 3, 4]
            assert is_seed(store.get(1).path, 1)
            assert store.get(5).state == "damaged"
        assert list((root / "quarantine").glob("00000005*"))
        assert violations(root, metric="odd") == []


# --- rebuild -----------------------------------------------------------------------------------


def _manifest_of(root: Path, damage: str) -> None:
    manifest = root / "manifest.sqlite"
    content = manifest.read_bytes()
    if damage == "lost":
        manifest.unlink()
    elif damage == "empty":
        manifest.write_bytes(b"")
    elif damage == "zeros":
        manifest.write_bytes(bytes(len(content)))
    elif damage == "cut":
        manifest.write_bytes(content[: len(content) // 2 // 4096 * 4096])
    elif damage == "header":
        manifest.write_bytes(bytes(100) + content[100:])


@pytest.mark.parametrize("damage", ["lost", "empty", "zeros", "cut", "header"])
def test_a_damaged_manifest_is_not_taken_for_an_empty_store_and_is_rebuilt(
    tmp_path: Path, damage: str
) -> None:
    root = tmp_path / "store"
    before = _made(root)
    with CheckpointStore(root) as store:
        uuid = store._manifest.uuid
    _manifest_of(root, damage)
    for read_only in (False, True):
        with pytest.raises(CorruptManifestError) as caught:
            CheckpointStore(root, read_only=read_only)
        assert f"ckptstore repair {root}" in caught.value.hint
    (problem,) = CheckpointStore.rebuild(root)
    assert problem.kind == "manifest" and "made again from 5 payloads" in str(problem.action)
    with CheckpointStore(root) as store:
        assert _known(store.checkpoints(), "pinned", "tags") == _known(before, "pinned", "tags")
        assert store.get("first").version == 1
        assert (store._manifest.uuid, store.schema_version) == (uuid, HEAD)
        assert store.published("default") == {tmp_path / "shown.keras": 4}
        assert store.verify() == []
        assert [point.version for point in store._manifest.checkpoints.resume_points()] == [5, 4, 2, 1]
        assert save(store, 6).version == 6
    kept = list((root / "quarantine").glob("manifest-*.sqlite"))
    assert len(kept) == (damage != "lost")


def test_a_rebuild_skips_an_unreadable_payload_and_the_next_opening_adopts_it(tmp_path: Path) -> None:
    root = tmp_path / "store"
    before = _made(root)
    (root / "manifest.sqlite").unlink()
    with _refused(*(checkpoint.path for checkpoint in before)), pytest.raises(StorageError):
        CheckpointStore.rebuild(root)
    assert not (root / "manifest.sqlite").exists()
    with _refused(before[1].path):
        (_, unread) = CheckpointStore.rebuild(root)
        assert (unread.kind, unread.path, unread.action) == ("unreadable", before[1].path, "left alone")
        with pytest.warns(UserWarning, match="cannot be read, and is left alone"):
            store = CheckpointStore(root)
        with store:
            assert [checkpoint.version for checkpoint in store.checkpoints()] == [1, 3, 4, 5]
            assert save(store, 6).version == 6
    with CheckpointStore(root) as store:
        assert _known(store.checkpoints(), "tags", "pinned")[:5] == _known(before, "tags", "pinned")


def test_a_rebuild_salvages_what_only_the_manifest_held(tmp_path: Path) -> None:
    root = tmp_path / "store"
    _made(root)
    with CheckpointStore(root) as store:
        store.prune(keep_last(1), run="default")
        before, history = store.checkpoints(), store.history()
        assert len(history.epochs) > len(store.checkpoints("default"))
    with sqlite3.connect(root / "manifest.sqlite") as database:
        database.execute("UPDATE store SET next_version = 70")
        database.execute("DROP TABLE alembic_version")
    database.close()
    with pytest.raises(CorruptManifestError):
        CheckpointStore(root)
    CheckpointStore.rebuild(root)
    with CheckpointStore(root) as store:
        assert store.checkpoints() == before
        assert store.history() == history
        assert store.get("later").version == 5 and store.get(2).pinned
        assert store.best("odd").version == 4
        assert save(store, 6).version == 70


def test_a_manifest_that_sqlite_finds_damaged_is_rebuilt_by_repair(tmp_path: Path) -> None:
    root = tmp_path / "store"
    before = _made(root)
    with sqlite3.connect(root / "manifest.sqlite") as database:
        (page,) = database.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'events_by_version'"
        ).fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    database.close()
    content = bytearray((root / "manifest.sqlite").read_bytes())
    content[(page - 1) * size + size - 64 : page * size] = bytes(64)
    (root / "manifest.sqlite").write_bytes(content)
    with CheckpointStore(root) as store:
        assert {problem.kind for problem in store.verify()} == {"manifest"}
        (problem,) = store.repair()
        assert problem.kind == "manifest" and problem.action
        assert store.verify() == []
        assert store.checkpoints() == before
        save(store, 6)


def test_payloads_that_cannot_be_adopted_are_quarantined(tmp_path: Path) -> None:
    root, other = tmp_path / "store", tmp_path / "other"
    before = _made(root)
    _break(before[1].path)
    with CheckpointStore(other) as store:
        foreign = [save(store, seed) for seed in range(1, 10)][-1].path
    foreign.rename(before[0].path.parent / foreign.name)
    (root / "manifest.sqlite").unlink()
    _, *problems = CheckpointStore.rebuild(root)
    assert {problem.path.name: problem.kind for problem in problems if problem.path} == {
        before[1].path.name: "orphan",
        foreign.name: "orphan",
    }
    with CheckpointStore(root) as store:
        assert [checkpoint.version for checkpoint in store.checkpoints()] == [1, 3, 4, 5]
        # Its number stood on a payload that is now in quarantine: it is not given out again.
        assert save(store, 6).version == 10


def test_a_rebuild_is_refused_while_a_run_is_written(tmp_path: Path) -> None:
    root = tmp_path / "store"
    _made(root)
    with CheckpointStore(root) as store:
        store.claim("default")
        with pytest.raises(RunLockedError):
            CheckpointStore.rebuild(root)
        assert len(store.checkpoints()) == 5


def _rebuild(root: Path) -> None:
    CheckpointStore.rebuild(root)


def test_a_rebuild_killed_at_any_step_is_finished_by_the_next(tmp_path: Path) -> None:
    numbers = itertools.count()
    saved: dict[Path, list[Saved]] = {}

    def prepare() -> tuple[Path]:
        root = tmp_path / str(next(numbers)) / "store"
        with CheckpointStore(root) as store:
            made = [save(store, seed) for seed in (1, 2)]
        saved[root] = [
            Saved(version=checkpoint.version, digest=checkpoint.digest, epoch=checkpoint.epoch)
            for checkpoint in made
        ]
        manifest = root / "manifest.sqlite"
        manifest.write_bytes(b"x" * manifest.stat().st_size)
        # The journal of a writer that died: it must not be rolled back into the new manifest.
        (root / "manifest.sqlite-journal").write_bytes(b"stale")
        return (root,)

    for (root,) in every_death(_rebuild, prepare):
        try:
            CheckpointStore(root).close()
        except CorruptManifestError:
            _rebuild(root)
        assert violations(root, saved[root], save_again=lambda store: save(store, 9)) == []
        assert [path.name for path in root.iterdir() if "rebuilt" in path.name] == []


def test_json_numbers_survive(tmp_path: Path) -> None:
    root = tmp_path / "store"
    odd = {"nan": float("nan"), "inf": float("inf"), "tiny": 5e-324, "third": 1 / 3, "big": 2.0**80}
    with CheckpointStore(root) as store:
        save(store, 1, metrics=odd)
    (root / "manifest.sqlite").unlink()
    CheckpointStore.rebuild(root)
    with CheckpointStore(root, read_only=True) as store:
        found = store.get(1).metrics
    assert {name: json_number(value) for name, value in found.items()} == {
        name: json_number(value) for name, value in odd.items()
    }
    assert os.listdir(root / "quarantine") == []


def test_a_payload_whose_row_was_inserted_meanwhile_is_no_orphan(tmp_path: Path) -> None:
    """`verify` may see a payload between another writer's rename and COMMIT."""
    with CheckpointStore(tmp_path) as store:
        checkpoint = save(store, 1)
        assert adopt(store._layout, store._manifest, checkpoint.path.name) is None
        store._manifest.checkpoints.set_state([1], "deleting")
        assert adopt(store._layout, store._manifest, checkpoint.path.name) is None
        store._manifest.checkpoints.set_state([1], "complete")
        assert store.verify() == [] and checkpoint.path.exists()
    assert os.listdir(tmp_path / "quarantine") == []


def test_a_rebuild_rolls_back_the_transaction_of_a_dead_writer(tmp_path: Path) -> None:
    root = tmp_path / "store"
    before = _made(root)
    leave_hot_journal(root / "manifest.sqlite")
    CheckpointStore.rebuild(root)
    with CheckpointStore(root) as store:
        assert store.checkpoints() == before
        assert store.get("later").version == 5 and store.get(2).pinned
        assert store.verify() == []


def test_files_beside_the_old_manifest_do_not_affect_the_new_one(tmp_path: Path) -> None:
    root = tmp_path / "store"
    before = _made(root)
    (root / "manifest.sqlite").write_bytes(b"x" * 9000)
    for suffix in ("-journal", "-wal", "-shm"):
        (root / f"manifest.sqlite{suffix}").write_bytes(b"stale" * 999)
    CheckpointStore.rebuild(root)
    assert not (root / "manifest.sqlite-wal").exists()
    with CheckpointStore(root) as store:
        assert len(store.checkpoints()) == len(before) and store.verify() == []


def test_a_rebuild_takes_intact_payloads_back_and_numbers_versions_after_quarantine(tmp_path: Path) -> None:
    root = tmp_path / "store"
    before = _made(root)
    before[1].path.rename(root / "quarantine" / f"{before[1].path.name}.3")
    (root / "quarantine" / "00000044-default.keras").write_bytes(b"damaged")
    (root / "manifest.sqlite").unlink()
    CheckpointStore.rebuild(root)
    with CheckpointStore(root) as store:
        assert [checkpoint.version for checkpoint in store.checkpoints()] == [1, 2, 3, 4, 5]
        assert save(store, 6).version == 45


def test_a_rebuild_of_an_intact_manifest_does_nothing(tmp_path: Path) -> None:
    root = tmp_path / "store"
    before = _made(root)
    assert CheckpointStore.rebuild(root) == []
    with CheckpointStore(root) as store:
        assert store.checkpoints() == before


def test_a_store_with_only_quarantined_payloads_is_not_empty(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with CheckpointStore(root) as store:
        path = save(store, 1).path
    path.rename(root / "quarantine" / path.name)
    (root / "manifest.sqlite").unlink()
    with pytest.raises(CorruptManifestError):
        CheckpointStore(root)
    CheckpointStore.rebuild(root)
    with CheckpointStore(root) as store:
        assert [checkpoint.version for checkpoint in store.checkpoints()] == [1]
