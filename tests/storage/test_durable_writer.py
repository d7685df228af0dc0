"""A new file is reserved, digested, synced and read-only; or removed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import xxhash

from ckptstore.errors import DiskFullError, StorageError
from ckptstore.storage import durable_writer
from ckptstore.storage.durable_writer import DurableWriter
from ckptstore.storage.files import io_hook

needs_direct = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this platform has no O_DIRECT")


def is_memory(path: Path) -> bool:
    """Return True if a file is on a file system in memory."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    here = max((mount for mount in mounts if path.is_relative_to(mount[1])), key=lambda mount: len(mount[1]))
    return here[2] in ("tmpfs", "ramfs")


def test_bytes_digest_and_length(tmp_path: Path) -> None:
    path = tmp_path / "file"
    parts = [os.urandom(n) for n in (0, 1, 9 << 20, 100)]
    writer = DurableWriter(path, reserve=30 << 20)
    for part in parts:
        assert writer.write(part) == len(part)
    assert writer.tell() == sum(map(len, parts))
    written = writer.finish()
    content = b"".join(parts)
    assert path.read_bytes() == content
    assert written.nbytes == len(content)
    assert written.digest == f"xxh3_128:{xxhash.xxh3_128_hexdigest(content)}"
    assert path.stat().st_blocks * 512 < 10 << 20


def test_buffers_of_any_shape_are_written(tmp_path: Path) -> None:
    writer = DurableWriter(tmp_path / "file", reserve=0)
    arrays = [np.arange(6.0).reshape(2, 3), np.array(7), np.zeros((0, 4)), bytearray(b"x")]
    for array in arrays:
        writer.write(array)
    writer.finish()
    assert (tmp_path / "file").read_bytes() == b"".join(
        np.asarray(array).tobytes() for array in arrays[:3]
    ) + b"x"


def content_of(path: Path, sizes: Iterable[int]) -> tuple[bytes, str]:
    """Write random parts of these sizes to a file; returns the bytes, and the digest that the writer returns."""
    parts = [os.urandom(size) for size in sizes]
    writer = DurableWriter(path, reserve=0)
    for part in parts:
        given = bytearray(part)
        writer.write(given)
        given[:] = bytes(len(given))  # the writer has copied it
    return b"".join(parts), writer.finish().digest


SIZES = [
    pytest.param((1,), id="a byte"),
    pytest.param((durable_writer._BUFFER,), id="a buffer"),
    pytest.param((durable_writer._BUFFER - 1, 1, 4096), id="a buffer and a block"),
    pytest.param((5, 3 * durable_writer._BUFFER, 7), id="more than there are buffers"),
]


@pytest.mark.parametrize("sizes", SIZES)
def test_a_file_is_the_same_where_direct_writes_are_not_available(
    sizes: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0

    monkeypatch.setattr(durable_writer.fcntl, "fcntl", refuse)
    content, digest = content_of(tmp_path / "file", sizes)
    assert (tmp_path / "file").read_bytes() == content
    assert digest == f"xxh3_128:{xxhash.xxh3_128_hexdigest(content)}"


@needs_direct
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("failing", [1, 2, 4])
def test_a_file_is_the_same_where_a_direct_write_fails(
    failing: int, sizes: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems require other multiples, and the rest of a partial write is no multiple."""
    calls = 0
    write = os.write

    def refuse(descriptor: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            if calls == failing:
                return write(descriptor, data[:4096])
            if calls > failing:
                raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, data)

    monkeypatch.setattr(durable_writer.os, "write", refuse)
    content, digest = content_of(tmp_path / "file", sizes)
    assert (tmp_path / "file").read_bytes() == content
    assert digest == f"xxh3_128:{xxhash.xxh3_128_hexdigest(content)}"


@needs_direct
def test_nothing_of_the_file_stays_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content, _ = content_of(path, (5 << 20, 17))
    if is_memory(path):
        pytest.skip("this file system is in memory")
    library = ctypes.CDLL(None)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = -(-len(content) // mmap.PAGESIZE)
        resident = (ctypes.c_ubyte * pages)()
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        assert library.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), resident) == 0
        assert sum(page & 1 for page in resident) <= 1  # cutting the file to length reads the last page


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o444), (0o077, 0o400), (0o000, 0o444)])
def test_the_file_is_read_only_and_respects_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    old = os.umask(umask)
    try:
        DurableWriter(tmp_path / "file", reserve=1).finish()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(StorageError) as caught:
        DurableWriter(tmp_path / "file", reserve=1)
    assert caught.value.errno == errno.EEXIST
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("operation", ["create", "reserve", "write", "truncate", "fsync", "close"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failure_at_any_step_is_raised_and_leaves_no_file(
    tmp_path: Path, operation: str, code: int
) -> None:
    path = tmp_path / "file"

    def fail(seen: str, where: Path, phase: str) -> None:
        if (seen, phase) == (operation, "before"):
            raise OSError(code, os.strerror(code))

    with pytest.raises(StorageError) as caught, io_hook(fail):
        writer = DurableWriter(path, reserve=10)
        try:
            writer.write(b"x" * 100)
            writer.finish()
        except BaseException:
            writer.abort()
            raise
    assert caught.value.errno == code
    assert isinstance(caught.value, DiskFullError) == (code == errno.ENOSPC)
    assert not path.exists()


def test_the_caller_never_waits_for_a_writer_that_failed(tmp_path: Path) -> None:
    def fail(seen: str, where: Path, phase: str) -> None:
        if seen == "write":
            raise OSError(errno.EIO, "broken")

    with io_hook(fail):
        writer = DurableWriter(tmp_path / "file", reserve=0)
        with pytest.raises(StorageError):
            for _ in range(100):
                writer.write(bytes(1 << 20))
        writer.abort()


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="mounts a small tmpfs")
def test_a_full_disk_is_an_error_at_reservation_or_write(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(DiskFullError) as caught:
            DurableWriter(tmp_path / "file", reserve=2 << 20)
        assert caught.value.needed == 2 << 20
        assert caught.value.free is not None and caught.value.free <= 1 << 20
        writer = DurableWriter(tmp_path / "other", reserve=0)
        with pytest.raises(DiskFullError):
            for _ in range(4):
                writer.write(bytes(1 << 20))
            writer.finish()
        writer.abort()
        assert list(tmp_path.iterdir()) == []
        assert DurableWriter(tmp_path / "fits", reserve=1 << 19).finish().nbytes == 0
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_write_that_is_interrupted_at_any_call_can_be_aborted(tmp_path: Path) -> None:
    """An interrupt may leave the lock of a Python queue held, and the next caller would wait for ever."""
    for at in itertools.count(1):
        writer = DurableWriter(tmp_path / "file", reserve=0)
        left = at

        def interrupt(frame: FrameType, event: str, argument: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt

        def work(writer: DurableWriter = writer) -> None:
            sys.settrace(interrupt)
            try:
                for _ in range(6):
                    writer.write(bytes(100))
            except (KeyboardInterrupt, RuntimeError):  # the latter from a condition that was interrupted
                pass
            finally:
                sys.settrace(None)
            writer.abort()

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        worker.join(20)
        assert not worker.is_alive(), f"interrupted at call {at}"
        assert not (tmp_path / "file").exists()
        if left > 0:
            assert at > 20
            return
