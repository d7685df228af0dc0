"""Large files lose their names at once and their blocks a little later, and saves still find the freed space."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ckptstore.commit.request import SaveRequest
from ckptstore.errors import StorageError
from ckptstore.formats.snapshot import Snapshot, Variable
from ckptstore.retention import keep_last
from ckptstore.storage import deferred_unlink
from ckptstore.storage.files import free_bytes, io_hook, link
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import committer_of
from crash.steps import dies_at
from mounts import mounted

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads Linux' /proc")
LARGE = 8 << 20


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Blocks are freed once this event is set, as on a slow device, but at a chosen time."""
    opened = threading.Event()
    close = deferred_unlink._Held.close

    def slowly(held: deferred_unlink._Held) -> None:
        assert opened.wait(60)
        close(held)

    deferred_unlink.wait()
    monkeypatch.setattr(deferred_unlink._Held, "close", slowly)
    yield opened
    opened.set()
    deferred_unlink.wait()
    deferred_unlink._renaming.clear()


def large(path: Path) -> Path:
    """Create a file that owns its blocks, also on a file system that stores no zeros."""
    path.write_bytes(os.urandom(LARGE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def open_files() -> list[str]:
    """Return the names of the large files that this process holds open."""
    names = []
    for path in Path("/proc/self/fd").iterdir():
        # One descriptor belongs to this listing; threads may close others meanwhile.
        with suppress(FileNotFoundError):
            names.append(path.readlink().name)
    return [name for name in names if "large" in name]


def removed_files() -> list[str]:
    """Return the large files among them that no longer have a name."""
    return [name for name in open_files() if name.endswith("(deleted)")]


def found_by_a_child() -> list[str]:
    """Return the names of the large files that a forked child holds open."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with suppress(BaseException):
            os.write(writer, "\n".join(open_files()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = pipe.read().splitlines()
    os.waitpid(child, 0)
    return found


def test_the_name_is_removed_at_once_and_the_blocks_are_free_after_wait(
    tmp_path: Path, gate: threading.Event
) -> None:
    path = large(tmp_path / "large")
    deferred_unlink.unlink(path)
    assert not path.exists()
    deferred_unlink.begin()
    assert len(removed_files()) == 1
    gate.set()
    deferred_unlink.wait()
    assert removed_files() == []
    assert deferred_unlink._held == set()


def test_small_files_and_those_with_another_name_are_not_held(tmp_path: Path, gate: threading.Event) -> None:
    small = tmp_path / "large by its name alone"
    small.write_bytes(b"x")
    first, other = large(tmp_path / "large"), tmp_path / "another name"
    content = first.read_bytes()
    link(first, other)
    for path in (small, first, tmp_path / "large, but not there"):
        deferred_unlink.unlink(path)
    assert removed_files() == []
    assert deferred_unlink._held == set()
    assert other.read_bytes() == content


def test_a_removal_that_fails_holds_nothing(tmp_path: Path) -> None:
    path = large(tmp_path / "large")

    def fail(operation: str, path: Path, phase: str) -> None:
        raise OSError(errno.EIO, "I/O error")

    with io_hook(fail), pytest.raises(StorageError, match="unlink"):
        deferred_unlink.unlink(path)
    deferred_unlink.begin()
    deferred_unlink.wait()
    assert deferred_unlink._held == set()
    assert path.stat().st_size == LARGE


def test_no_file_is_held_again_where_an_open_file_keeps_a_name(tmp_path: Path, gate: threading.Event) -> None:
    """As on NFS, which gives an open file another name."""
    first, second = large(tmp_path / "large 1"), large(tmp_path / "large 2")

    def rename(operation: str, path: Path, phase: str) -> None:
        if phase == "before":
            os.link(path, tmp_path / ".nfs0001")

    gate.set()
    with io_hook(rename):
        deferred_unlink.unlink(first)
    gate.clear()
    deferred_unlink.unlink(second)
    assert removed_files() == []
    deferred_unlink.wait()


def test_only_a_few_files_are_held_at_once(tmp_path: Path, gate: threading.Event) -> None:
    paths = [large(tmp_path / f"large {number}") for number in range(deferred_unlink._MAX_WAITING + 2)]
    for path in paths:
        deferred_unlink.unlink(path)
    assert len(removed_files()) == deferred_unlink._MAX_WAITING
    gate.set()
    deferred_unlink.begin()
    deferred_unlink.wait()
    assert removed_files() == []


def test_a_forked_child_keeps_no_blocks(tmp_path: Path, gate: threading.Event) -> None:
    deferred_unlink.unlink(large(tmp_path / "large"))
    deferred_unlink.begin()
    other = os.open(large(tmp_path / "large and open"), os.O_RDONLY)
    (tmp_path / "large and open").unlink()
    assert found_by_a_child() == ["large and open (deleted)"]
    # The parent's descriptors are unchanged.
    assert len(removed_files()) == 2
    os.close(other)
    gate.set()
    deferred_unlink.wait()
    assert removed_files() == []


def test_a_child_forked_before_the_unlink_keeps_no_blocks(tmp_path: Path, gate: threading.Event) -> None:
    path = large(tmp_path / "large")
    found = []

    def fork(operation: str, path: Path, phase: str) -> None:
        found.append((phase, len(open_files()), found_by_a_child()))

    with io_hook(fork):
        deferred_unlink.unlink(path)
    assert found == [("before", 1, []), ("after", 1, [])]
    gate.set()
    deferred_unlink.wait()


def test_a_child_does_not_close_another_file_with_the_same_descriptor_number(
    tmp_path: Path, gate: threading.Event
) -> None:
    """A thread has closed a descriptor, and not yet recorded that, when another thread opens a file and forks."""
    deferred_unlink.unlink(large(tmp_path / "large"))
    (held,) = deferred_unlink._held
    other = os.open(large(tmp_path / "large and open"), os.O_RDONLY)
    os.dup2(other, held.descriptor)  # closes the removed one first
    os.close(other)
    assert found_by_a_child() == ["large and open"]
    deferred_unlink._waiting.clear()
    deferred_unlink._held.clear()
    os.close(held.descriptor)


def test_no_file_is_held_where_an_open_file_has_no_status(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    fstat = os.fstat

    def stale(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if not status.st_nlink and descriptor in [held.descriptor for held in deferred_unlink._held]:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return status

    monkeypatch.setattr(os, "fstat", stale)
    gate.set()
    deferred_unlink.unlink(large(tmp_path / "large 1"))
    gate.clear()
    deferred_unlink.unlink(large(tmp_path / "large 2"))
    assert removed_files() == []
    assert not list(tmp_path.iterdir())


def test_blocks_are_freed_where_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    deferred_unlink.unlink(large(tmp_path / "large"))
    deferred_unlink.begin()
    assert removed_files() == []


def test_an_interrupted_wait_leaves_the_rest_to_the_next_wait(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    deferred_unlink.unlink(large(tmp_path / "large 1"))
    deferred_unlink.begin()
    while deferred_unlink._waiting:
        time.sleep(0.001)
    deferred_unlink.unlink(large(tmp_path / "large 2"))

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deferred_unlink.time, "sleep", interrupt)
        patch.setattr(deferred_unlink, "_close_waiting", lambda: None)
        with pytest.raises(KeyboardInterrupt):
            deferred_unlink.wait()
    assert len(removed_files()) == 2
    gate.set()
    deferred_unlink.wait()
    assert removed_files() == []


def test_a_signal_handler_that_waits_while_its_thread_closes_does_not_wait_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = deferred_unlink._Held.close
    handled: list[int] = []

    def interrupted(held: deferred_unlink._Held) -> None:
        # A handler runs between two steps of its thread; this one may close a store, for example.
        if not handled:
            handled.append(1)
            deferred_unlink.wait()
        close(held)

    monkeypatch.setattr(deferred_unlink._Held, "close", interrupted)
    deferred_unlink.unlink(large(tmp_path / "large"))
    waiting = threading.Thread(target=deferred_unlink.wait, daemon=True)
    waiting.start()
    waiting.join(30)
    assert not waiting.is_alive()
    assert removed_files() == []


# --- in stores ---------------------------------------------------------------------------------


@pytest.fixture
def waited(gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are freed only when a caller waits for them."""
    wait = deferred_unlink.wait

    def waiting() -> None:
        gate.set()
        wait()
        gate.clear()

    monkeypatch.setattr(deferred_unlink, "wait", waiting)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for three checkpoints, and not for a fourth."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=31m", "tmpfs") as disk:
        yield disk


def save(store: CheckpointStore, epoch: int, *, keep: int) -> None:
    value = np.ones(LARGE // 4, "float32")
    variable = Variable(path="vars/0", shape=value.shape, dtype=value.dtype, read=partial(np.asarray, value))
    snapshot = Snapshot(format="weights", variables=(variable,), attributes={}, documents={}, state=None)
    store.claim("default")
    committer_of(store).commit(snapshot, SaveRequest(run="default", epoch=epoch, keep=keep_last(keep)))


def test_a_save_can_use_the_space_that_the_save_before_has_freed(disk: Path, waited: None) -> None:
    held = set()
    with CheckpointStore(disk / "store") as store:
        for epoch in range(6):
            save(store, epoch, keep=2)
            held.add(len(deferred_unlink._held))
        assert [checkpoint.epoch for checkpoint in store.checkpoints()] == [4, 5]
    assert held == {0, 1}
    assert deferred_unlink._held == set()


def test_a_save_can_use_the_space_that_another_store_has_freed(disk: Path, waited: None) -> None:
    with CheckpointStore(disk / "first") as first, CheckpointStore(disk / "other") as other:
        for epoch in range(3):
            save(first, epoch, keep=1)
        assert len(deferred_unlink._held) == 1
        save(other, 0, keep=1)
        assert [len(store.checkpoints()) for store in (first, other)] == [2, 1]


def _save_next(root: Path) -> None:
    with CheckpointStore(root) as store:
        save(store, len(list((root / "checkpoints").iterdir())), keep=1)


def test_a_kill_at_any_step_of_a_save_that_removes_a_large_payload_loses_nothing(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with CheckpointStore(root) as store:
        for epoch in range(3):
            save(store, epoch, keep=1)
    at = newest = 0
    died = True
    while died:
        at += 1
        died = dies_at(at, _save_next, root)
        with CheckpointStore(root) as store:
            saved = store.checkpoints()
            assert store.verify() == []
            assert 2 <= len(saved) == len(list((root / "checkpoints").iterdir()))
            assert saved[-1].version >= newest
            newest = saved[-1].version
    assert at > 10


def test_retain_returns_when_the_space_is_free(disk: Path, waited: None) -> None:
    with CheckpointStore(disk / "store") as store:
        for epoch in range(3):
            save(store, epoch, keep=3)
        free = free_bytes(disk)
        assert store.retain("default", keep_last(1)) == [1]
        assert free_bytes(disk) >= free + LARGE


def test_blocks_are_freed_after_the_directory_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other writes to the device may wait while blocks are freed."""
    steps: list[str] = []
    close = deferred_unlink._Held.close

    def recorded(held: deferred_unlink._Held) -> None:
        steps.append("close")
        close(held)

    monkeypatch.setattr(deferred_unlink._Held, "close", recorded)
    with CheckpointStore(tmp_path / "store") as store:
        for epoch in range(2):
            save(store, epoch, keep=1)
        with io_hook(lambda operation, path, phase: steps.append(operation)):
            save(store, 2, keep=1)
            # Begun here, and not left to the next wait.
            for thread in threading.enumerate():
                if thread.name == "ckptstore-free":
                    thread.join()
        after_unlink = steps[steps.index("unlink") :]
    assert after_unlink.count("close") == 1
    assert after_unlink[-1] == "close"
    assert "fsync" in after_unlink
