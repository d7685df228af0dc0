"""Many buffers are copied completely into one memory, by any threads; unsuitable ones are refused."""

from __future__ import annotations

import mmap
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from ckptstore.system import small_copies
from ckptstore.system.parallel_copy import ParallelCopy
from ckptstore.system.small_copies import SmallCopies, can_copy_buffers
from forbidden_calls import needs_the_number, output_of

pytestmark = pytest.mark.skipif(not can_copy_buffers(), reason="the kernel has no process_vm_readv")
MANY = 1 << 40
# More pieces, and more bytes, than one call takes; a call may end in the middle of equal sizes.
SIZES = [1, 4096, 17, *[512] * 1500, 5 << 20, 9 << 20, 3, *[70_000] * 400, 1]


def parts_of(sizes: list[int], gap: int = 5) -> list[slice]:
    begins = np.cumsum([0, *(size + gap for size in sizes)])
    return [slice(int(begin), int(begin) + size) for begin, size in zip(begins, sizes, strict=False)]


def buffers_of(sizes: list[int], seed: int) -> list[bytes]:
    return [np.random.default_rng((seed, index)).bytes(size) for index, size in enumerate(sizes)]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_all_buffers_are_copied_and_nothing_else_is_written(threads: int) -> None:
    parts = parts_of(SIZES)
    memory = mmap.mmap(-1, parts[-1].stop + 100)
    copies = SmallCopies(memory, parts, calls=threads)
    for seed in (1, 2):
        buffers = buffers_of(SIZES, seed)
        expected = np.zeros(len(memory), np.uint8)
        for part, buffer in zip(parts, buffers, strict=True):
            expected[part] = np.frombuffer(buffer, np.uint8)
        with copies.jobs(buffers) as jobs:
            ParallelCopy(threads)([], nbytes=MANY, more_jobs=jobs)
        assert np.array_equal(np.frombuffer(memory, np.uint8), expected)


def test_buffers_are_held_until_the_block_ends_and_no_longer() -> None:
    memory = mmap.mmap(-1, 4096)
    copies = SmallCopies(memory, [slice(0, 4), slice(8, 12)])
    held = [bytearray(b"some"), bytearray(b"more")]
    with copies.jobs(held) as jobs:
        first = next(iter(jobs))
        with pytest.raises(BufferError):
            held[1].clear()
        first()
    held[0].clear()
    held[1].clear()
    assert (memory[0:4], memory[8:12]) == (b"some", b"more")


def test_buffers_left_held_by_an_interrupt_are_released_by_the_next_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies = SmallCopies(mmap.mmap(-1, 4096), [slice(0, 4)])
    left = bytearray(b"some")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(copies, "_release", interrupted)
        with pytest.raises(KeyboardInterrupt), copies.jobs([left]) as jobs:
            list(jobs)
    with pytest.raises(BufferError):
        left.clear()
    with copies.jobs([b"more"]) as jobs:
        list(jobs)
    left.clear()


def test_a_block_left_open_does_not_release_the_buffers_of_another() -> None:
    copies = SmallCopies(mmap.mmap(-1, 4096), [slice(0, 4)])
    first, second = bytearray(b"some"), bytearray(b"more")
    opened = copies.jobs([first])
    list(opened.__enter__())
    with copies.jobs([second]) as jobs:
        list(jobs)
        first.clear()
        opened.__exit__(None, None, None)
        with pytest.raises(BufferError):
            second.clear()
    second.clear()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (np.zeros((2, 4), np.uint8).T, ValueError),
        (b"12345", ValueError),
        (b"", ValueError),
        ("1234", TypeError),
        (None, TypeError),
    ],
)
def test_an_unsuitable_buffer_is_refused_and_the_others_are_released(wrong: object, error: type) -> None:
    memory = mmap.mmap(-1, 4096)
    copies = SmallCopies(memory, parts_of([8, 4, 8]))
    before, behind = bytearray(8), bytearray(8)
    with pytest.raises(error), copies.jobs([before, wrong, behind]) as jobs:
        list(jobs)
    before.clear()
    behind.clear()
    # The object can be used again.
    with copies.jobs([b"one more", b"time", b"after it"]) as jobs:
        for job in jobs:
            job()
    assert memory[parts_of([8, 4, 8])[2]] == b"after it"


def test_memory_that_is_gone_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """As the memory of a file that was cut short: reading it directly would end the process."""
    path = tmp_path / "cut"
    path.write_bytes(b"x" * 3 * mmap.PAGESIZE)
    with path.open("r+b") as file:
        gone = mmap.mmap(file.fileno(), 0)
        file.truncate(mmap.PAGESIZE)
        copies = SmallCopies(mmap.mmap(-1, len(gone)), [slice(0, len(gone))])
        with copies.jobs([gone]) as jobs, pytest.raises(OSError, match="has copied") as caught:
            next(iter(jobs))()
    assert f"of {len(gone)} bytes" in str(caught.value)


def test_calls_respect_the_limit_of_the_kernel_and_leave_nothing_out() -> None:
    for sizes, calls in product((SIZES, [1] * 1024, [1] * 1025, [9 << 20] * 3, [7]), (1, 3)):
        groups = list(small_copies._groups(sizes, calls))
        assert [first for first, _, _ in groups[1:]] == [first + count for first, count, _ in groups[:-1]]
        assert sum(count for _, count, _ in groups) == len(sizes)
        assert sum(nbytes for _, _, nbytes in groups) == sum(sizes)
        assert max(count for _, count, _ in groups) <= 1024


@pytest.mark.parametrize("calls", [1, 2, 3, 7])
def test_calls_are_divided_evenly(calls: int) -> None:
    groups = list(small_copies._groups([60_000] * 700, calls))
    assert len(groups) == calls
    assert max(nbytes for _, _, nbytes in groups) <= 60_000 * (700 / calls + 1)


FORBIDDEN = """
import mmap
from ckptstore.system.small_copies import SmallCopies
from forbidden_calls import forbid

forbid("process_vm_readv")
try:
    with SmallCopies(mmap.mmap(-1, 4096), [slice(0, 3)]).jobs([b"one"]) as jobs:
        next(iter(jobs))()
except PermissionError as error:
    print("refused:", error)
"""


@needs_the_number
def test_a_forbidden_system_call_is_an_error() -> None:
    """As in a container that forbids reading the memory of processes."""
    assert output_of(FORBIDDEN) == "refused: [Errno 1] process_vm_readv has copied -1 of 3 bytes\n"
