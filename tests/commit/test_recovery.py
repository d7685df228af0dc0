"""Opening for writing makes disk and manifest agree by itself."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ckptstore.storage.files import io_hook
from ckptstore.storage.layout import Layout
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import is_seed, save
from crash.steps import dies_at, run_in_child


def _events(store: CheckpointStore) -> list[str]:
    return [event.kind for event in store._manifest.events.find()]


def _state(root: Path) -> list[tuple[int, str]]:
    with CheckpointStore(root, read_only=True) as store:
        return [(point.version, point.state) for point in store.checkpoints(states=None)]


def _orphan(root: Path, target: Path | None = None) -> None:
    """Save version 2, and die between the rename and the manifest's transaction."""

    def die(operation: str, path: Path, phase: str) -> None:
        if (
            (operation, phase) == ("fsync", "before")
            and path.name == "checkpoints"
            and len(os.listdir(path)) == 2
        ):
            os._exit(0)

    with CheckpointStore(root) as store, io_hook(die):
        save(store, 2, publish=target, tags=("mine",), extra={"note": 1}, metrics={"nan": float("nan")})
    os._exit(1)


def test_an_orphan_is_adopted_with_all_of_its_description(tmp_path: Path) -> None:
    root, target = tmp_path / "store", tmp_path / "shown.keras"
    with CheckpointStore(root) as store:
        save(store, 1, publish=target)
    assert run_in_child(_orphan, root, target) == 0
    assert len(Layout(root).payload_names()) == 2 and _state(root) == [(1, "complete")]
    with CheckpointStore(root) as store:
        adopted = store.get(2)
        assert (adopted.epoch, adopted.run, adopted.tags, adopted.extra) == (
            2,
            "default",
            ("mine",),
            {"note": 1},
        )
        assert str(adopted.metrics["nan"]) == "nan" and adopted.resumable
        assert store.verify() == [] and is_seed(adopted.path, 2)
        assert "adopted" in _events(store)
        assert target.samefile(adopted.path)
        assert save(store, 3).version == 3


def test_a_published_path_unknown_to_the_manifest_is_not_trusted(tmp_path: Path) -> None:
    root, target = tmp_path / "store", tmp_path / "elsewhere.keras"
    with CheckpointStore(root) as store:
        save(store, 1)
    assert run_in_child(_orphan, root, target) == 0
    with CheckpointStore(root) as store:
        assert store.get(2).epoch == 2
    assert not target.exists()


def test_a_damaged_orphan_is_quarantined_not_deleted(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
    assert run_in_child(_orphan, tmp_path) == 0
    (path,) = (path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith("00000002"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    other = tmp_path / "checkpoints" / "00000007-default.weights.h5"
    other.write_bytes(b"not HDF5 at all")
    with CheckpointStore(tmp_path) as store:
        assert [point.version for point in store.checkpoints(states=None)] == [1]
        assert _events(store).count("quarantined") == 2
    assert (tmp_path / "quarantine" / path.name).read_bytes() == content
    assert (tmp_path / "quarantine" / other.name).exists()


def test_a_payload_under_another_checkpoints_name_is_not_adopted(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        path = save(store, 1).path
    for name in ("00000005-default.keras", "00000001-other.keras"):
        (path.parent / name).write_bytes(path.read_bytes())
    with CheckpointStore(tmp_path) as store:
        assert [point.version for point in store.checkpoints(states=None)] == [1]
    assert len(list((tmp_path / "quarantine").iterdir())) == 2


def test_a_missing_payload_is_marked_and_its_row_stays(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        path = save(store, 1).path
        save(store, 2)
    aside = tmp_path / "aside"
    path.rename(aside)
    for _ in range(2):
        with CheckpointStore(tmp_path) as store:
            assert [point.version for point in store.checkpoints()] == [2]
            assert _events(store).count("missing") == 1
    assert _state(tmp_path) == [(1, "missing"), (2, "complete")]
    aside.rename(path)
    with CheckpointStore(tmp_path) as store:
        assert [point.version for point in store.checkpoints()] == [1, 2]


def _delete_and_die(root: Path) -> None:
    with CheckpointStore(root) as store:
        store._manifest.checkpoints.set_state([1], "deleting")
        os._exit(0)


def test_deletions_are_finished(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        save(store, 2)
    assert run_in_child(_delete_and_die, tmp_path) == 0
    with CheckpointStore(tmp_path) as store:
        assert [point.version for point in store.checkpoints(states=None)] == [2]
    assert Layout(tmp_path).payload_names() == ["00000002-default.keras"]


def _save_slowly(root: Path, go: Path) -> None:
    def wait(operation: str, path: Path, phase: str) -> None:
        if (operation, phase) == ("truncate", "after"):
            go.touch()
            os.read(os.open(go.with_suffix(".fifo"), os.O_RDONLY), 1)

    with CheckpointStore(root) as store, io_hook(wait):
        save(store, 2, run="slow")
    os._exit(0)


def test_files_of_a_living_writer_are_left_alone(tmp_path: Path) -> None:
    import multiprocessing

    root, go = tmp_path / "store", tmp_path / "go"
    with CheckpointStore(root) as store:
        save(store, 1)
    os.mkfifo(go.with_suffix(".fifo"))
    process = multiprocessing.get_context("forkserver").Process(target=_save_slowly, args=(root, go))
    process.start()
    descriptor = os.open(go.with_suffix(".fifo"), os.O_WRONLY)  # waits until the child reads
    with CheckpointStore(root) as store:
        save(store, 3)
    os.write(descriptor, b"x")
    os.close(descriptor)
    process.join(60)
    assert process.exitcode == 0
    with CheckpointStore(root) as store:
        assert sorted(point.epoch for point in store.checkpoints()) == [1, 2, 3]
        assert store.verify() == []


@pytest.mark.parametrize("operation", ["unlink", "rename"])
def test_a_failing_opening_raises_and_the_next_one_works(tmp_path: Path, operation: str) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        store._manifest.checkpoints.set_state([1], "deleting")
    (tmp_path / "checkpoints" / "00000009-x.keras").write_bytes(b"")

    def fail(seen: str, path: Path, phase: str) -> None:
        if seen == operation:
            raise OSError(5, "broken")

    with pytest.raises(OSError), io_hook(fail):
        CheckpointStore(tmp_path)
    with CheckpointStore(tmp_path) as store:
        assert store.checkpoints(states=None) == []
        save(store, 2)


def test_reading_opens_change_nothing(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        store._manifest.checkpoints.set_state([1], "deleting")
    (tmp_path / "tmp" / f"{'0' * 32}.1.keras").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with CheckpointStore(tmp_path, read_only=True) as store:
        store.checkpoints(), store.latest(), store.verify(), store.resume_point()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_published_path_that_the_user_removed_stays_removed(tmp_path: Path) -> None:
    root, target = tmp_path / "store", tmp_path / "shown.keras"
    with CheckpointStore(root) as store:
        save(store, 1, publish=target)
    target.unlink()
    with CheckpointStore(root):
        assert not target.exists()


def test_a_death_in_the_hook_is_noticed() -> None:
    assert dies_at(1, _fsync_here) is True
    assert dies_at(9, _fsync_here) is False


def _fsync_here() -> None:
    from ckptstore.storage.files import fsync_directory

    fsync_directory(Path.cwd())


def test_a_path_that_cannot_be_switched_does_not_prevent_opening(tmp_path: Path) -> None:
    root, target = tmp_path / "store", tmp_path / "shown.keras"
    target.mkdir()
    with CheckpointStore(root) as store, pytest.raises(OSError):
        save(store, 1, publish=target)
    with pytest.warns(UserWarning, match="does not show version 1 yet"), CheckpointStore(root) as store:
        assert [point.version for point in store.checkpoints()] == [1]
    target.rmdir()
    with CheckpointStore(root):
        assert is_seed(target, 1)


def test_another_stores_payload_under_a_used_version_is_quarantined(tmp_path: Path) -> None:
    for name, run in (("one", "a"), ("two", "b")):
        with CheckpointStore(tmp_path / name) as store:
            save(store, 1, run=run)
    (tmp_path / "two" / "checkpoints" / "00000001-b.keras").rename(
        tmp_path / "one" / "checkpoints" / "00000001-b.keras"
    )
    with CheckpointStore(tmp_path / "one") as store:
        assert [point.run for point in store.checkpoints()] == ["a"]
    assert (tmp_path / "one" / "quarantine" / "00000001-b.keras").exists()


def test_an_opening_waits_for_a_living_writer_that_switches_a_path(tmp_path: Path) -> None:
    """Writer and recovery both switch paths under the store's lock, so that they do not interfere."""
    from filelock import FileLock, Timeout

    root, target = tmp_path / "store", tmp_path / "shown.keras"
    locked: list[bool] = []

    def look(operation: str, path: Path, phase: str) -> None:
        if path.name == ".shown.keras.ckptstore":
            lock = FileLock(root / "locks" / "store.lock", timeout=0)
            try:
                lock.acquire()
                lock.release()
                locked.append(False)
            except Timeout:
                locked.append(True)

    with CheckpointStore(root) as store, io_hook(look):
        save(store, 1, publish=target)
    assert locked and all(locked)


def _die_before_commit(root: Path, target: Path) -> None:
    def die(operation: str, path: Path, phase: str) -> None:
        if (operation, phase, path.name) == ("fsync", "after", "tmp"):
            os._exit(0)

    with CheckpointStore(root) as store, io_hook(die):
        save(store, 2, run="other", publish=target)
    os._exit(1)


def test_adopting_an_orphan_does_not_switch_a_path_to_an_older_version(tmp_path: Path) -> None:
    root, target = tmp_path / "store", tmp_path / "shown.keras"
    with CheckpointStore(root) as store:
        save(store, 1, publish=target)
        assert run_in_child(_die_before_commit, root, target) == 0
        assert save(store, 3, publish=target).version == 3
    with CheckpointStore(root) as store:
        assert [point.version for point in store.checkpoints()] == [1, 2, 3]
        assert is_seed(target, 3)


def test_an_older_manifest_that_was_put_back_reuses_no_version(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
    (tmp_path / "quarantine" / "00000009-default.keras.1").write_bytes(b"damaged")
    with CheckpointStore(tmp_path) as store:
        assert save(store, 2).version == 10


def test_an_unreadable_orphan_does_not_prevent_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
    assert run_in_child(_orphan, tmp_path) == 0

    def broken(*arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as reading:
        reading.setattr(os, "preadv", broken)
        with (
            pytest.warns(UserWarning, match="cannot be read, and is left alone"),
            CheckpointStore(tmp_path) as store,
        ):
            assert [point.version for point in store.checkpoints(states=None)] == [1]
    # It was not taken for damaged.
    with CheckpointStore(tmp_path) as store:
        assert [point.version for point in store.checkpoints()] == [1, 2]


def _tag_and_die_before_commit(root: Path) -> None:
    def die(operation: str, path: Path, phase: str) -> None:
        if (operation, phase, path.name) == ("fsync", "after", "tmp"):
            os._exit(0)

    with CheckpointStore(root) as store, io_hook(die):
        save(store, 2, run="other", tags=("mine",))
    os._exit(1)


def test_an_orphan_does_not_take_a_tag_from_a_later_checkpoint(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        assert run_in_child(_tag_and_die_before_commit, tmp_path) == 0
        assert save(store, 3, tags=("mine",)).version == 3
    with CheckpointStore(tmp_path) as store:
        assert store.get("mine").version == 3
        assert store.get(2).tags == ()
