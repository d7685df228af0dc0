"""Bytes that a thread reads ahead are those of the file, in order; the thread ends with the reading."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import xxhash

from ckptstore.errors import CorruptPayloadError
from ckptstore.storage import read_ahead
from ckptstore.storage.random_access import open_random_access

LARGE = 16 << 20
ALONE, AHEAD = 256 << 10, 1 << 20


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ckptstore-read"]


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"], autouse=True)
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(read_ahead, "usable_cores", lambda: request.param)
    return int(request.param)


@pytest.mark.parametrize(
    "nbytes", [0, 1, ALONE, ALONE + 1, LARGE - 1, LARGE, LARGE + 1, LARGE + 5 * AHEAD + 77]
)
def test_a_digest_is_of_all_bytes_in_their_order(nbytes: int, tmp_path: Path) -> None:
    data = os.urandom(1 << 16) * (nbytes // (1 << 16)) + os.urandom(nbytes % (1 << 16))
    (tmp_path / "file").write_bytes(data)
    seen: list[int] = []
    with open_random_access(tmp_path / "file") as file:
        assert file.digest(seen.append) == f"xxh3_128:{xxhash.xxh3_128(data).hexdigest()}"
    assert sum(seen) == nbytes
    assert not readers()


def test_another_thread_reads_the_next_part(cores: int) -> None:
    reads: list[tuple[int, str]] = []

    def read_into(offset: int, buffer: memoryview) -> None:
        reads.append((offset, threading.current_thread().name))
        buffer[:4] = (offset // len(buffer)).to_bytes(4, "little")

    with closing(read_ahead.parts(read_into, LARGE)) as parts:
        numbers = [int.from_bytes(part[:4], "little") for part in parts]
    assert numbers == list(range(len(numbers)))
    assert {name == "ckptstore-read" for _, name in reads} == {cores > 1}


def test_an_error_of_a_read_is_raised_where_its_part_is_asked_for() -> None:
    good = 3 * AHEAD

    def read_into(offset: int, buffer: memoryview) -> None:
        if offset >= good:
            raise OSError("the disk is gone")

    done = 0
    with closing(read_ahead.parts(read_into, LARGE)) as parts, pytest.raises(OSError, match="is gone"):
        for part in parts:
            done += len(part)
    assert done == good
    assert not readers()


def test_stopping_before_the_end_ends_the_thread() -> None:
    def read_into(offset: int, buffer: memoryview) -> None:
        buffer[0] = 1

    with pytest.raises(KeyboardInterrupt), closing(read_ahead.parts(read_into, LARGE)) as parts:
        for _ in parts:
            raise KeyboardInterrupt
    assert not readers()


def test_an_interrupt_while_the_thread_starts_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_into(offset: int, buffer: memoryview) -> None:
        buffer[0] = 1

    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # The start of a thread waits for such an event.
        patch.setattr(threading.Event, "wait", interrupted)
        parts = read_ahead.parts(read_into, LARGE)
        if read_ahead.usable_cores() > 1:
            with pytest.raises(KeyboardInterrupt):
                next(parts)
    # It cannot be joined: Python has not recorded that it has started.
    until = time.monotonic() + 10.0
    while readers() and time.monotonic() < until:
        time.sleep(0.001)
    assert not readers()


def test_all_bytes_are_read_where_no_thread_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    data = os.urandom(LARGE)
    (tmp_path / "file").write_bytes(data)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with open_random_access(tmp_path / "file") as file:
        assert file.digest() == f"xxh3_128:{xxhash.xxh3_128(data).hexdigest()}"


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(LARGE))

    def shorten(nbytes: int) -> None:
        os.truncate(path, LARGE // 2)

    with open_random_access(path) as file, pytest.raises(CorruptPayloadError, match="became shorter"):
        file.digest(shorten)
    assert not readers()
