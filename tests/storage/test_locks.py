"""Locks exclude other processes, end with their process, and are not inherited."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ckptstore.errors import LockedError, RunLockedError, StoreLockedError
from ckptstore.storage.leases import Lease, remove_stale_files
from ckptstore.storage.locks import store_lock
from ckptstore.storage.run_lock import RunLock
from crash.steps import run_in_child


def _try_run(directory: Path) -> None:
    try:
        RunLock(directory, "digits")
    except RunLockedError:
        os._exit(3)
    os._exit(0)


def _leave_a_lease(directory: Path) -> None:
    lease = Lease(directory)
    lease.new_path(".keras").write_bytes(b"half")
    os._exit(0)


def test_a_run_has_one_writer_until_the_lock_is_released(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, "digits")
    assert run_in_child(_try_run, tmp_path) == 3
    with pytest.raises(RunLockedError):
        RunLock(tmp_path, "digits")
    RunLock(tmp_path, "other").release()
    lock.release()
    assert run_in_child(_try_run, tmp_path) == 0
    RunLock(tmp_path, "digits").release()


def test_the_store_lock_excludes_threads_and_times_out(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(10):
            with store_lock(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and len(most) == 40
    with (
        store_lock(tmp_path),
        pytest.raises(StoreLockedError) as caught,
        store_lock(tmp_path, timeout_s=0.02),
    ):
        pass
    assert isinstance(caught.value, LockedError) and isinstance(caught.value, TimeoutError)
    assert caught.value.waited_s == 0.02


def test_files_of_dead_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    assert run_in_child(_leave_a_lease, tmp_path) == 0
    assert len(list(tmp_path.iterdir())) == 2
    alive = Lease(tmp_path)
    writing = alive.new_path(".keras")
    writing.write_bytes(b"half")
    (tmp_path / "README").write_text("a person's")
    (tmp_path / f"{'0' * 32}.4.h5").write_text("without a lease")
    removed = remove_stale_files(tmp_path)
    assert len(removed) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"README", writing.name, f"{alive.id}.lease"}
    assert remove_stale_files(tmp_path) == []
    writing.unlink()
    alive.release()
    assert [path.name for path in tmp_path.iterdir()] == ["README"]


def test_a_forked_child_does_not_keep_a_lock_of_its_dead_parent(tmp_path: Path) -> None:
    """Data loader workers outlive a killed trainer for a moment, and the run must be free at once."""
    assert run_in_child(_fork_and_die, tmp_path) == 0
    grandchild = int((tmp_path / "pid").read_text())
    os.kill(grandchild, 0)
    try:
        RunLock(tmp_path, "digits").release()
    finally:
        os.kill(grandchild, 9)


def _fork_and_die(directory: Path) -> None:
    lock = RunLock(directory, "digits")
    assert lock.descriptor is not None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    (directory / "pid").write_text(str(child))
    os._exit(0)
