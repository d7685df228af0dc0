"""Logs that grow while their front becomes compressed parts: no byte is lost, and the disk is never filled."""

from __future__ import annotations

import errno
import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.errors import StorageError
from ckptstore.storage import log_files
from ckptstore.storage.files import io_hook
from ckptstore.storage.log_files import LogPart, create_log, finish, keep_within, parts_of, rotate
from ckptstore.storage.log_reader import LogReader, last_lines

PART = 128 << 10


class Growing:
    """A log, and everything that was ever written to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = create_log(path)
        self.written = b""

    def write(self, nbytes: int) -> None:
        line = b"%08d: some text of a training, such as a line of a progress bar\n"
        text = b"".join(line % number for number in range(nbytes // len(line)))
        os.write(self.descriptor, text)
        self.written += text

    def rotate(self) -> bool:
        return rotate(self.path, self.descriptor, PART)

    def text(self) -> bytes:
        with LogReader(self.path) as reader:
            return b"".join(reader.read())


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Growing]:
    growing = Growing(tmp_path / "3.log")
    yield growing
    os.close(growing.descriptor)


@pytest.fixture(params=["holes", "no holes"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no holes":

        def refuse(descriptor: int, mode: int, offset: int, nbytes: int) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(log_files, "_fallocate", refuse)
    return str(request.param)


@pytest.mark.usefixtures("file_system")
def test_a_rotated_log_reads_as_one_text_and_takes_less_room(log: Growing) -> None:
    for _ in range(5):
        log.write(200 << 10)
        while log.rotate():
            pass
    assert len(parts_of(log.path)) >= 4
    assert log.text() == log.written
    assert log.path.stat().st_blocks * 512 < 2 * PART
    first = parts_of(log.path)[0]
    assert log.written.startswith(gzip.decompress(first.path.read_bytes())), "gzip reads a part too"


def test_a_short_log_is_not_rotated(log: Growing) -> None:
    log.write(PART)
    assert not log.rotate()
    assert parts_of(log.path) == []


@pytest.mark.usefixtures("file_system")
def test_reading_goes_on_through_rotations(log: Growing) -> None:
    """As `logs -f` does, and the supervisor that shows what is written."""
    seen = b""
    with LogReader(log.path) as reader:
        for nbytes in (10 << 10, 300 << 10, 5 << 10, 400 << 10, 200 << 10):
            log.write(nbytes)
            if nbytes % 3:
                seen += b"".join(reader.read())
            while log.rotate():
                pass
        seen += b"".join(reader.read())
    assert seen == log.written


def test_what_becomes_a_hole_while_it_is_read_is_read_from_the_part(
    log: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has just read zeros from the live file when it looks for new parts."""
    log.write(300 << 10)
    with LogReader(log.path) as reader:
        read_live = reader._read_live

        def rotated_before_the_read() -> bytes:
            log.rotate()
            return read_live()

        monkeypatch.setattr(reader, "_read_live", rotated_before_the_read)
        assert b"".join(reader.read()) == log.written


def test_a_kill_at_any_step_of_a_rotation_loses_and_doubles_nothing(log: Growing) -> None:
    """Each step is left undone once; the next rotation finds what the one before has left."""
    step = 0
    while True:
        step += 1
        log.write(250 << 10)
        calls = 0

        class Killed(BaseException):
            pass

        def die(operation: str, path: Path, phase: str, last: int = step) -> None:
            nonlocal calls
            calls += 1
            if calls == last:
                raise Killed

        try:
            with io_hook(die):
                log.rotate()
        except Killed:
            assert log.text() == log.written, f"step {step}"
        else:
            break
    assert step > 8
    while log.rotate():
        pass
    assert log.text() == log.written
    assert sorted(path.name for path in log.path.parent.iterdir() if path.suffix == ".tmp") == []


def test_a_full_disk_leaves_the_log_as_it_was(log: Growing) -> None:
    log.write(300 << 10)

    def full(operation: str, path: Path, phase: str) -> None:
        if operation == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with io_hook(full), pytest.raises(StorageError):
        log.rotate()
    assert (log.text(), parts_of(log.path)) == (log.written, [])


def test_a_log_that_has_ended_is_written_again_without_its_hole(log: Growing) -> None:
    log.write(700 << 10)
    while log.rotate():
        pass
    log_files.reserve_ahead(log.descriptor, 1 << 20)
    finish(log.path, log.descriptor)
    assert log.text() == log.written
    assert log.path.stat().st_size < 2 * PART
    assert b"\0" not in log.path.read_bytes(), "whoever looks at it sees text"


def test_reserved_blocks_are_no_text(log: Growing) -> None:
    log.write(1000)
    log_files.reserve_ahead(log.descriptor, 1 << 20)
    assert log.path.stat().st_size == len(log.written)
    assert log.path.stat().st_blocks * 512 >= 1 << 20
    log.write(1000)
    assert log.text() == log.written
    finish(log.path, log.descriptor)
    assert log.path.stat().st_blocks * 512 <= 8192
    assert log.text() == log.written


def test_a_log_that_was_renamed_takes_its_parts_along(log: Growing) -> None:
    log.write(300 << 10)
    log.rotate()
    new = log.path.with_name("run-4.log")
    log.path.rename(new)
    assert log_files.path_of(log.descriptor, log.path) == new
    log_files.move_parts(log.path, new)
    log.path = new
    assert log.text() == log.written
    assert [part.path.name for part in parts_of(new)] == ["run-4.1.126976.log.gz"] or parts_of(new)


def test_the_oldest_text_goes_first_and_last_words_stay(tmp_path: Path) -> None:
    logs = []
    for number in (1, 2, 10):
        growing = Growing(tmp_path / f"{number}.log")
        growing.write(600 << 10)
        while growing.rotate():
            pass
        finish(growing.path, growing.descriptor)
        logs.append(growing)
    used = sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir())
    keep_within(tmp_path, used - (10 << 10), newest=logs[-1].path)
    assert len(parts_of(logs[0].path)) < len(parts_of(logs[1].path)), "a part of the oldest"
    assert logs[1].text() == logs[1].written
    keep_within(tmp_path, 350 << 10, newest=logs[-1].path)
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) <= 350 << 10
    assert logs[0].written.endswith(logs[0].text()) and len(logs[0].text()) >= 60 << 10, "its last words"
    keep_within(tmp_path, 100 << 10, newest=logs[-1].path)
    assert not logs[0].path.exists() and logs[2].written.endswith(logs[2].text())
    for growing in logs:
        os.close(growing.descriptor)


def test_a_removed_beginning_is_told(log: Growing) -> None:
    log.write(700 << 10)
    while log.rotate():
        pass
    parts_of(log.path)[0].path.unlink()
    with LogReader(log.path) as reader:
        text = b"".join(reader.read())
        assert reader.lost_front
    assert log.written.endswith(text)


def test_only_parts_of_this_log_are_parts(tmp_path: Path) -> None:
    for name in ("3.1.4096", "30.1.4096", "3.x.1", "3.2.8192", "3.10.0"):
        (tmp_path / f"{name}.log.gz").touch()
    (tmp_path / "3.diff.gz").touch()
    assert parts_of(tmp_path / "3.log") == [
        LogPart(1, 4096, tmp_path / "3.1.4096.log.gz"),
        LogPart(2, 8192, tmp_path / "3.2.8192.log.gz"),
        LogPart(10, 0, tmp_path / "3.10.0.log.gz"),
    ]
    assert parts_of(tmp_path / "nowhere" / "3.log") == []


def test_the_last_lines_are_what_a_terminal_would_show(tmp_path: Path) -> None:
    path = tmp_path / "1.log"
    bar = "\r".join(f"\x1b[1m{n}/9\x1b[0m loss: {n}" for n in range(1, 10))
    path.write_text(f"first\n{bar}\nbroken \udcff\n\n{'x' * 2000}\n", errors="surrogateescape")
    lines = last_lines(path, 3)
    assert lines == ["9/9 loss: 9", "broken �", "x" * 500]
