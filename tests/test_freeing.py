"""Large files lose their name at once, and their blocks a little later; nobody finds the disk fuller for that."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from crash_snapshots import committer_of
from test_file_systems import mounted

from ckptstore import freeing
from ckptstore.errors import StorageError
from ckptstore.files import link, observed
from ckptstore.formats.snapshot import Snapshot, Variable
from ckptstore.freeing import Freeing
from ckptstore.retention import keep_last
from ckptstore.save_request import SaveRequest
from ckptstore.store import CheckpointStore

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks into Linux' /proc")
LARGE = 8 << 20


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Blocks are given back once it is set: as on a slow device, but not for chance to say when."""
    opened = threading.Event()
    close = freeing._close

    def slowly(waiting: list[freeing._Held]) -> None:
        assert opened.wait(60)
        close(waiting)

    monkeypatch.setattr(freeing, "_close", slowly)
    yield opened
    opened.set()


def large(path: Path) -> Path:
    path.write_bytes(b"x" * LARGE)
    os.sync()
    return path


def open_files() -> list[str]:
    """Return the names of the large files that this process holds open."""
    # One of them is of this listing, and is closed by then.
    names = [path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [name for name in names if "large" in name]


def removed_files() -> list[str]:
    """Return those that have no name any more."""
    return [name for name in open_files() if name.endswith("(deleted)")]


def found_by_a_child() -> list[str]:
    """Return what a forked child holds open of them."""
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


def test_the_name_goes_at_once_and_the_blocks_when_waited_for(tmp_path: Path, gate: threading.Event) -> None:
    path = large(tmp_path / "large")
    removal = Freeing()
    removal.unlink(path)
    assert not path.exists()
    removal.begin()
    assert len(removed_files()) == 1
    gate.set()
    removal.wait()
    assert removed_files() == []
    assert freeing._held == set()


def test_small_files_and_those_with_another_name_are_not_held(tmp_path: Path, gate: threading.Event) -> None:
    small = tmp_path / "large by its name alone"
    small.write_bytes(b"x")
    one, other = large(tmp_path / "large"), tmp_path / "another name"
    link(one, other)
    removal = Freeing()
    for path in (small, one, tmp_path / "large, but not there"):
        removal.unlink(path)
    assert removed_files() == []
    assert freeing._held == set()
    assert other.read_bytes() == b"x" * LARGE


def test_a_removal_that_fails_holds_nothing(tmp_path: Path) -> None:
    path = large(tmp_path / "large")

    def fail(operation: str, path: Path, phase: str) -> None:
        raise OSError(errno.EIO, "I/O error")

    removal = Freeing()
    with observed(fail), pytest.raises(StorageError, match="unlink"):
        removal.unlink(path)
    removal.begin()
    removal.wait()
    assert freeing._held == set()
    assert path.stat().st_size == LARGE


def test_where_a_name_outlives_its_removal_nothing_is_held_again(
    tmp_path: Path, gate: threading.Event
) -> None:
    """As on NFS, which gives a file that is open another name."""
    first, second = large(tmp_path / "large 1"), large(tmp_path / "large 2")

    def rename(operation: str, path: Path, phase: str) -> None:
        if phase == "before":
            os.link(path, tmp_path / ".nfs0001")

    gate.set()
    removal = Freeing()
    with observed(rename):
        removal.unlink(first)
    gate.clear()
    removal.unlink(second)
    assert removed_files() == []
    removal.wait()


def test_many_at_once_are_not_all_held(tmp_path: Path, gate: threading.Event) -> None:
    paths = [large(tmp_path / f"large {number}") for number in range(freeing._AT_ONCE + 2)]
    removal = Freeing()
    for path in paths:
        removal.unlink(path)
    assert len(removed_files()) == freeing._AT_ONCE
    gate.set()
    removal.begin()
    removal.wait()
    assert removed_files() == []


def test_a_forked_child_keeps_no_blocks(tmp_path: Path, gate: threading.Event) -> None:
    removal = Freeing()
    removal.unlink(large(tmp_path / "large"))
    removal.begin()
    other = os.open(large(tmp_path / "large and open"), os.O_RDONLY)
    (tmp_path / "large and open").unlink()
    assert found_by_a_child() == ["large and open (deleted)"]
    # The parent's own are as they were.
    assert len(removed_files()) == 2
    os.close(other)
    gate.set()
    removal.wait()
    assert removed_files() == []


def test_a_child_that_is_forked_before_the_name_is_gone_keeps_no_blocks_either(
    tmp_path: Path, gate: threading.Event
) -> None:
    path = large(tmp_path / "large")
    found = []

    def fork(operation: str, path: Path, phase: str) -> None:
        found.append((phase, len(open_files()), found_by_a_child()))

    removal = Freeing()
    with observed(fork):
        removal.unlink(path)
    assert found == [("before", 1, []), ("after", 1, [])]
    gate.set()
    removal.wait()


def test_a_save_finds_the_room_that_the_one_before_has_freed(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = Freeing.wait

    def waiting(removal: Freeing) -> None:
        gate.set()
        wait(removal)
        gate.clear()

    monkeypatch.setattr(Freeing, "wait", waiting)
    value = np.ones(LARGE // 4, "float32")
    variable = Variable(path="vars/0", shape=value.shape, dtype=value.dtype, read=partial(np.asarray, value))
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=31m", "tmpfs") as disk:
        with CheckpointStore(disk / "store") as store:
            store.claim("default")
            held = set()
            # There is room for two that are kept and one that is written, and for no fourth.
            for epoch in range(6):
                snapshot = Snapshot(
                    format="weights", variables=(variable,), attributes={}, documents={}, state=None
                )
                request = SaveRequest(run="default", epoch=epoch, keep=keep_last(2))
                committer_of(store).commit(snapshot, request)
                held.add(len(freeing._held))
            assert held == {0, 1}
            assert [one.epoch for one in store.checkpoints()] == [4, 5]
        assert freeing._held == set()
