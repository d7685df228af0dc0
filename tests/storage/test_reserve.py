"""On a full disk the reserve is removed, so that a deletion can be recorded, which then frees more space."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.errors import DiskFullError
from ckptstore.records import Checkpoint
from ckptstore.retention import keep_last
from ckptstore.storage import reserve
from ckptstore.storage.files import free_bytes
from ckptstore.storage.layout import MANIFEST
from ckptstore.store.store import CheckpointStore
from crash.full_disks import can_mount, small_disk, take_bytes
from crash.invariants import violations
from crash.sample_stores import committer_of, is_seed, save
from crash.steps import dies_at, run_in_child


@pytest.fixture(scope="module")
def needs_mount() -> None:
    if not can_mount():
        pytest.skip("this process may not mount a small disk to fill")


@pytest.fixture(params=["tmpfs", "ext4"])
def root(request: pytest.FixtureRequest, needs_mount: None) -> Iterator[Path]:
    """A store with six checkpoints on a small disk of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="disk-") as folder,
        small_disk(request.param, Path(folder)) as disk,
    ):
        with CheckpointStore(disk / "store") as store:
            for seed in range(1, 7):
                save(store, seed)
        yield disk / "store"


def fill(root: Path) -> None:
    """Fill the disk to its last byte."""
    take_bytes(root.parent, 0)
    assert free_bytes(root) == 0


def make_room(root: Path) -> None:
    shutil.rmtree(root.parent / "ballast")


def versions(root: Path) -> list[int]:
    with CheckpointStore(root, read_only=True) as store:
        return [checkpoint.version for checkpoint in store.checkpoints(states=None)]


def is_intact(checkpoint: Checkpoint) -> bool:
    return is_seed(checkpoint.path, checkpoint.epoch)


def works_again(root: Path) -> None:
    """Check that the store is intact once there is room, and that the reserve is there again, with its blocks."""
    make_room(root)
    assert violations(root, is_intact=is_intact, save_again=lambda store: save(store, 50)) == []
    status = (root / "reserve").stat()
    assert status.st_size == reserve.NBYTES and status.st_blocks * 512 >= reserve.NBYTES


# --- a full disk --------------------------------------------------------------------------------------


def test_checkpoints_can_be_removed_from_a_full_disk(root: Path) -> None:
    with CheckpointStore(root) as store:
        fill(root)
        assert committer_of(store).retain("default", keep_last(2)) == [1, 2, 3, 4]
        assert not (root / "reserve").exists() and (free_bytes(root) or 0) > 0
    assert versions(root) == [5, 6]
    works_again(root)


def test_without_the_reserve_nothing_can_be_removed_from_a_full_disk(root: Path) -> None:
    """The disk of these tests is really full: the reserve makes the difference."""
    with CheckpointStore(root) as store:
        (root / "reserve").unlink()
        fill(root)
        with pytest.raises(DiskFullError):
            committer_of(store).retain("default", keep_last(2))
    assert versions(root) == [1, 2, 3, 4, 5, 6]
    works_again(root)


def test_deletions_that_a_crash_cut_short_are_finished_on_a_full_disk(root: Path) -> None:
    with CheckpointStore(root) as store:
        store._manifest.checkpoints.set_state([1, 2, 3], "deleting")
        fill(root)
    with CheckpointStore(root) as store:
        assert [checkpoint.version for checkpoint in store.checkpoints(states=None)] == [4, 5, 6]
        assert sorted(path.name[:8] for path in (root / "checkpoints").iterdir()) == [
            "00000004",
            "00000005",
            "00000006",
        ]
    works_again(root)


def _retain(root: Path) -> None:
    with CheckpointStore(root) as store:
        committer_of(store).retain("default", keep_last(2))


def test_a_kill_at_any_step_of_a_removal_from_a_full_disk_loses_nothing(root: Path) -> None:
    fill(root)
    seen = set()
    for at in range(2, 60, 3):
        # Each time from the state that the last kill left.
        with CheckpointStore(root) as store:
            before = [checkpoint.version for checkpoint in store.checkpoints()]
        if len(before) < 3:
            break
        seen.add(dies_at(at, _retain, root))
        with CheckpointStore(root) as store:
            assert store.verify() == [] and {5, 6} <= {
                checkpoint.version for checkpoint in store.checkpoints()
            }
    assert True in seen
    assert versions(root) == [5, 6]
    works_again(root)


def _save_and_keep_two(root: Path) -> None:
    with CheckpointStore(root) as store:
        save(store, 7, keep=keep_last(2))


def _save(root: Path) -> None:
    with CheckpointStore(root) as store, pytest.raises(DiskFullError):
        save(store, 7)


def test_a_restarted_run_on_a_full_disk_frees_what_it_does_not_keep(root: Path) -> None:
    fill(root)
    assert run_in_child(_save_and_keep_two, root) == 0
    assert [is_seed(path, 7) for path in sorted((root / "checkpoints").iterdir())] == [False, True]
    works_again(root)


def test_a_run_that_keeps_everything_fails_on_a_full_disk_and_loses_nothing(root: Path) -> None:
    (root / "reserve").unlink()
    fill(root)
    assert run_in_child(_save, root) == 0
    assert versions(root) == [1, 2, 3, 4, 5, 6]
    works_again(root)


def test_a_store_on_a_full_disk_opens_without_the_file_and_leaves_no_part_of_it(root: Path) -> None:
    (root / "reserve").unlink()
    fill(root)
    for _ in range(2):
        with CheckpointStore(root) as store:
            assert len(store.checkpoints()) == 6 and store.verify() == []
        assert not (root / "reserve").exists()
    works_again(root)


# --- the reserve itself --------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [None, 0, 1, reserve.NBYTES - 1, reserve.NBYTES, reserve.NBYTES + 1])
def test_an_incomplete_reserve_file_is_completed_at_the_next_opening(
    tmp_path: Path, nbytes: int | None
) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
    path = tmp_path / "reserve"
    path.unlink()
    if nbytes is not None:
        path.write_bytes(bytes(nbytes))
    inode = None if nbytes is None else path.stat().st_ino
    CheckpointStore(tmp_path, read_only=True).close()
    assert (path.stat().st_size if path.exists() else None) == nbytes
    CheckpointStore(tmp_path).close()
    assert path.read_bytes() == bytes(reserve.NBYTES)
    assert path.stat().st_blocks * 512 >= reserve.NBYTES
    if nbytes == reserve.NBYTES:
        assert path.stat().st_ino == inode


def test_the_reserve_is_released_only_for_the_manifest_and_only_once(tmp_path: Path) -> None:
    path, tried = tmp_path / "reserve", list[Path]()

    def fails(where: Path) -> None:
        tried.append(where)
        raise DiskFullError(path=where)

    assert reserve.ensure(path)
    for name, tries, stays in (("0.keras", 1, True), (MANIFEST, 2, False), (MANIFEST, 1, False)):
        tried.clear()
        with pytest.raises(DiskFullError):
            reserve.release_and_retry(path, lambda name=name: fails(tmp_path / name))  # type: ignore[misc]
        assert (len(tried), path.exists()) == (tries, stays)
    assert reserve.ensure(path) and reserve.release_and_retry(path, lambda: 5) == 5 and path.exists()
