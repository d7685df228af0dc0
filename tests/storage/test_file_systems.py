"""A store tries what a file system supports, works without it where that is safe, and refuses the rest."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ckptstore.errors import ReadOnlyError, RunLockedError, StorageError, UnsafeFileSystemError
from ckptstore.retention import keep_last
from ckptstore.storage.files import io_hook
from ckptstore.storage.locks import WITHOUT_LOCKS
from ckptstore.store.store import CheckpointStore
from crash.invariants import PublishedFile, violations
from crash.sample_stores import is_seed, save
from crash.steps import dies_at
from crash.strace import available, run_traced
from manifests import files, leave_hot_journal
from mounts import mounted, run_or_fail


def is_intact(checkpoint: Any) -> bool:
    return is_seed(checkpoint.path, checkpoint.epoch)


def broken(root: Path, shown: Path) -> list[str]:
    """Return what is wrong with a store that a dead process left and that is used again."""
    return violations(
        root,
        published=PublishedFile(path=shown),
        is_intact=is_intact,
        save_again=lambda store: save(store, 99, publish=shown),
    )


# --- calls that a file system refuses -----------------------------------------------------------------


@pytest.fixture(scope="module")
def needs_strace() -> None:
    if not available():
        pytest.skip("strace is not available here, or may not attach")


def use(root: Path, shown: Path, report: Path, environment: dict[str, str]) -> None:
    """Save, open again, save and verify, in a process of its own; writes the result to `report`."""
    os.environ.update(environment)
    result: dict[str, Any] = {"error": None, "hint": "", "problems": []}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            for first in (1, 4):
                with CheckpointStore(root) as store:
                    for seed in range(first, first + 3):
                        save(store, seed, publish=shown, keep=keep_last(2))
                    point = store.resume_point()
                    assert point is not None and is_seed(point.path, first + 2) and is_seed(shown, first + 2)
                    result["problems"] += [problem.detail for problem in store.verify()]
        except StorageError as error:
            result |= {"error": type(error).__name__, "hint": error.hint, "path": error.path.name}
    result["warnings"] = [str(warning.message) for warning in warned]
    report.write_text(json.dumps(result))


WORKS = {"error": None, "hint": "", "problems": [], "warnings": []}


def use_where(folder: Path, call: str, code: str, *, only: str | None = None, **environment: str) -> Any:
    """Run `use` on a store where a system call fails; returns its result, and how many calls failed."""
    root, log = folder / "store", folder / "log"
    options = [] if only is None else ["-P", str(root / only)]
    options += ["-e", f"trace={call}", "-e", f"inject={call}:{code}"]
    arguments = (root, folder / "shown.keras", folder / "report", environment)
    assert run_traced(use, arguments, options, log=log) == 0
    return json.loads((folder / "report").read_text()), log.read_text().count("INJECTED")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store that has been used, and a path at which its newest checkpoint is published."""
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 0, publish=tmp_path / "shown.keras")
    return tmp_path


@pytest.mark.usefixtures("needs_strace")
@pytest.mark.parametrize("code", ["error=ENOLCK", "error=ENOSYS", "error=EOPNOTSUPP", "retval=0"])
def test_a_store_is_refused_and_unchanged_where_locks_are_missing_or_always_granted(
    folder: Path, code: str
) -> None:
    before = files(folder / "store")
    result, refused = use_where(folder, "flock", code)
    assert refused and result["error"] == "UnsafeFileSystemError" and f"{WITHOUT_LOCKS}=1" in result["hint"]
    assert files(folder / "store") == before
    assert broken(folder / "store", folder / "shown.keras") == []


@pytest.mark.usefixtures("needs_strace")
def test_only_directories_and_a_lock_file_are_made_where_there_are_no_locks(tmp_path: Path) -> None:
    result, _ = use_where(tmp_path, "flock", "error=ENOLCK")
    assert result["error"] == "UnsafeFileSystemError"
    assert files(tmp_path / "store") == {"locks/store.lock": b""}


@pytest.mark.usefixtures("needs_strace")
def test_a_run_whose_lock_does_not_work_is_not_written(folder: Path) -> None:
    result, refused = use_where(folder, "flock", "error=ENOLCK", only="locks/default.lock")
    assert refused and (result["error"], result["path"]) == ("UnsafeFileSystemError", "default.lock")
    assert broken(folder / "store", folder / "shown.keras") == []


@pytest.mark.usefixtures("needs_strace")
@pytest.mark.parametrize(
    ("call", "only"), [("flock", None), ("fcntl", "manifest.sqlite")], ids=["flock", "SQLite"]
)
def test_one_process_alone_may_work_without_locks_if_the_user_disables_them(
    folder: Path, call: str, only: str | None
) -> None:
    result, asked_for_locks = use_where(folder, call, "error=ENOLCK", only=only, **{WITHOUT_LOCKS: "1"})
    assert result == WORKS
    assert asked_for_locks == 0
    assert broken(folder / "store", folder / "shown.keras") == []


@pytest.mark.usefixtures("needs_strace")
def test_a_store_is_refused_where_sqlite_has_no_locks(folder: Path) -> None:
    before = files(folder / "store")
    result, refused = use_where(folder, "fcntl", "error=ENOSYS", only="manifest.sqlite")
    assert refused and result["error"] == "UnsafeFileSystemError" and f"{WITHOUT_LOCKS}=1" in result["hint"]
    assert files(folder / "store") == before


@pytest.mark.usefixtures("needs_strace")
@pytest.mark.parametrize("code", ["EPERM", "EMLINK", "ENOSYS"])
def test_a_copy_is_published_where_there_are_no_hard_links(folder: Path, code: str) -> None:
    result, refused = use_where(folder, "?link,linkat", f"error={code}")
    assert result == WORKS
    assert refused >= 6
    assert (folder / "shown.keras").stat().st_nlink == 1
    assert sorted(path.name for path in folder.iterdir()) == ["log", "report", "shown.keras", "store"]
    assert broken(folder / "store", folder / "shown.keras") == []


@pytest.mark.usefixtures("needs_strace")
@pytest.mark.parametrize("code", ["EINVAL", "EOPNOTSUPP"])
@pytest.mark.parametrize("directory", ["checkpoints", "tmp", ".."])
def test_a_directory_that_cannot_be_synced_is_a_warning_and_all_works(
    folder: Path, directory: str, code: str
) -> None:
    only = str(folder) if directory == ".." else directory
    result, refused = use_where(folder, "fsync", f"error={code}", only=only)
    assert refused >= 6
    assert result["warnings"] and all("cannot sync a directory" in line for line in result["warnings"])
    assert result | {"warnings": []} == WORKS
    assert broken(folder / "store", folder / "shown.keras") == []


@pytest.mark.usefixtures("needs_strace")
@pytest.mark.parametrize("code", ["EOPNOTSUPP", "ENOSYS", "EINVAL"])
def test_a_save_works_where_blocks_cannot_be_reserved(folder: Path, code: str) -> None:
    result, refused = use_where(folder, "fallocate", f"error={code}")
    assert result == WORKS
    assert refused >= 6
    assert broken(folder / "store", folder / "shown.keras") == []


# --- real file systems --------------------------------------------------------------------------------


@contextmanager
def image(folder: Path, make: tuple[str, ...]) -> Iterator[Path]:
    """Yield a loop device with a file system on it."""
    if shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not installed")
    file = folder / "image"
    with file.open("wb") as stream:
        stream.truncate(16 << 20)
    run_or_fail(*make, file)
    try:
        device = run_or_fail("losetup", "--find", "--show", file)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop device is available here: {error}")
    try:
        yield Path(device)
    finally:
        run_or_fail("losetup", "--detach", device)


@contextmanager
def _on_image(folder: Path, *, make: tuple[str, ...], by: str = "mount") -> Iterator[Path]:
    if shutil.which(by) is None:
        pytest.skip(f"{by} is not installed")
    with image(folder, make) as device, mounted(folder / "disk", device, by=by) as disk:
        yield disk


@contextmanager
def _tmpfs(folder: Path) -> Iterator[Path]:
    with mounted(folder / "disk", "-t", "tmpfs", "tmpfs") as disk:
        yield disk


@contextmanager
def _bind(folder: Path) -> Iterator[Path]:
    (folder / "behind").mkdir()
    with mounted(folder / "disk", "--bind", folder / "behind") as disk:
        yield disk


@contextmanager
def _fuse(folder: Path) -> Iterator[Path]:
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is not installed")
    (folder / "behind").mkdir()
    with mounted(folder / "disk", folder / "behind", by="bindfs") as disk:
        yield disk


@contextmanager
def _overlay(folder: Path) -> Iterator[Path]:
    """An overlay: the store is in the lower layer, and all changes go into the upper one."""
    lower = folder / "lower"
    with CheckpointStore(lower / "store") as store:
        save(store, 0, publish=lower / "shown.keras")
    before = files(lower)
    with mounted(folder / "layers", "-t", "tmpfs", "tmpfs") as upper:
        for name in ("upper", "work"):
            (upper / name).mkdir()
        options = f"lowerdir={lower},upperdir={upper}/upper,workdir={upper}/work"
        with mounted(folder / "disk", "-t", "overlay", "-o", options, "overlay") as disk:
            yield disk
    assert files(lower) == before


DISKS: dict[str, Callable[[Path], Any]] = {
    "tmpfs": _tmpfs,
    "ext4 without a journal": partial(_on_image, make=("mkfs.ext4", "-F", "-q", "-O", "^has_journal")),
    "vfat": partial(_on_image, make=("mkfs.vfat",)),
    "exFAT": partial(_on_image, make=("mkfs.exfat",), by="mount.exfat-fuse"),
    "bind mount": _bind,
    "overlay": _overlay,
    "FUSE": _fuse,
}


@pytest.fixture(params=DISKS)
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    # Not in tmp_path: its removal would fail on a mount that is still there.
    with tempfile.TemporaryDirectory(prefix="disk-") as folder, DISKS[request.param](Path(folder)) as disk:
        yield disk


def _die_while_saving(root: Path, shown: Path) -> None:
    with CheckpointStore(root) as store:
        for seed in (11, 12, 13):
            save(store, seed, publish=shown, keep=keep_last(2))


def test_a_store_works_and_recovers_on_this_file_system(disk: Path) -> None:
    root, shown = disk / "store", disk / "shown.keras"
    with CheckpointStore(root) as store:
        for seed in range(1, 5):
            checkpoint = save(store, seed, publish=shown, keep=keep_last(2))
            assert is_seed(shown, seed)
        assert store.get("latest") == checkpoint
    for at in (20, 45, 70, 95):
        assert dies_at(at, _die_while_saving, root, shown)
        assert broken(root, shown) == []
    with CheckpointStore(root, read_only=True) as store:
        assert store.verify() == [] and len(store.checkpoints()) >= 3
    with CheckpointStore(root) as first, CheckpointStore(root) as other:
        save(first, 20, run="a")
        with pytest.raises(RunLockedError):
            other.claim("a")


def test_a_path_on_another_file_system_holds_a_complete_copy_at_every_instant() -> None:
    with tempfile.TemporaryDirectory(prefix="disk-") as parent, _tmpfs(Path(parent)) as disk:
        root, shown = Path(parent) / "store", disk / "shown.keras"
        seen = set()

        def look(operation: str, path: Path, phase: str) -> None:
            seen.add(next(seed for seed in (1, 2) if is_seed(shown, seed)))

        with CheckpointStore(root) as store:
            save(store, 1, publish=shown)
            with io_hook(look):
                save(store, 2, publish=shown)
            assert seen == {1, 2} and is_seed(shown, 2)
            assert (shown.stat().st_nlink, shown.stat().st_mode) == (1, store.get(2).path.stat().st_mode)
        assert [path.name for path in disk.iterdir()] == ["shown.keras"]
        for at in (30, 40, 50, 60):
            assert dies_at(at, _die_while_saving, root, shown)
            assert broken(root, shown) == []


def test_a_store_spread_over_two_disks_is_refused_and_can_be_read() -> None:
    with tempfile.TemporaryDirectory(prefix="disk-") as parent:
        root = Path(parent) / "store"
        with CheckpointStore(root) as store:
            saved = save(store, 1)
        with mounted(root / "quarantine", "-t", "tmpfs", "tmpfs"):
            with pytest.raises(UnsafeFileSystemError, match="different file systems"):
                CheckpointStore(root)
            with CheckpointStore(root, read_only=True) as store:
                assert store.latest() == saved
        with CheckpointStore(root) as store:
            assert store.verify() == []


# --- file systems that cannot be written --------------------------------------------------------------


def _times(folder: Path) -> dict[str, tuple[int, int]]:
    found = [folder, *sorted(folder.rglob("*"))]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in found}


@contextmanager
def _not_writable(place: Path) -> Iterator[None]:
    run_or_fail("mount", "-o", "remount,ro", place)
    try:
        yield
    finally:
        run_or_fail("mount", "-o", "remount,rw", place)


READ_ONLY_DISKS = {name: DISKS[name] for name in ("tmpfs", "ext4 without a journal")}


@pytest.fixture(params=READ_ONLY_DISKS)
def used(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk with a store on it, in which a save was cut short."""
    with (
        tempfile.TemporaryDirectory(prefix="disk-") as folder,
        READ_ONLY_DISKS[request.param](Path(folder)) as disk,
    ):
        with CheckpointStore(disk / "store") as store:
            for seed in (1, 2):
                save(store, seed, publish=disk / "shown.keras", tags=("kept",))
        assert dies_at(20, _die_while_saving, disk / "store", disk / "shown.keras")
        yield disk


def test_a_store_that_cannot_be_written_can_be_read(used: Path) -> None:
    root = used / "store"
    with _not_writable(used):
        before, contents = _times(root), files(root)
        with CheckpointStore(root, read_only=True) as store:
            assert store.get("kept").version == store.best("loss", mode="max").version == 2  # type: ignore[union-attr]
            assert [checkpoint.epoch for checkpoint in store.checkpoints()][:2] == [1, 2]
            assert {problem.kind for problem in store.verify()} <= {"orphan"}
            with pytest.raises(ReadOnlyError):
                store.tag(1, "other")
        assert (_times(root), files(root)) == (before, contents)
        with pytest.raises(StorageError) as caught:
            CheckpointStore(root)
        assert caught.value.errno == errno.EROFS and "read_only=True" in caught.value.hint
        with pytest.raises(StorageError) as caught:
            CheckpointStore(used / "new")
        assert caught.value.errno == errno.EROFS
        assert (_times(root), files(root)) == (before, contents)
    assert broken(root, used / "shown.keras") == []


def test_a_store_whose_writer_died_in_mid_commit_says_why_it_cannot_be_read(used: Path) -> None:
    root = used / "store"
    with CheckpointStore(root) as store:
        listed = store.checkpoints()
    leave_hot_journal(root / "manifest.sqlite")
    with _not_writable(used):
        contents = files(root)
        for read_only in (True, False):
            with pytest.raises(StorageError, match="mid-commit") as caught:
                CheckpointStore(root, read_only=read_only)
            assert "open the store once where its directory can be written" in caught.value.hint
        assert files(root) == contents
    with CheckpointStore(root, read_only=True) as store:
        assert store.checkpoints() == listed
    assert broken(root, used / "shown.keras") == []
