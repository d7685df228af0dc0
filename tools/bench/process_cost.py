"""Cost of a measurement for this process and its children: processor time, memory, bytes written."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def children(pid: int | None = None) -> Iterator[int]:
    """Yield the living children of a process, and theirs."""
    for task in _texts(PROC / str(pid or os.getpid()) / "task", "children"):
        for child in map(int, task.split()):
            yield child
            yield from children(child)


def cpu_s() -> float:
    """Return the processor time of this process, of its ended children, and of its living ones."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = 0.0
    for child in children():
        with contextlib.suppress(OSError):  # it has ended
            # The process clock of Linux: all its threads, also ended ones, to the nanosecond.
            alive += time.clock_gettime((~child << 3) | 2)
    return time.process_time() + ended.ru_utime + ended.ru_stime + alive


def _texts(tasks: Path, name: str) -> Iterator[str]:
    with contextlib.suppress(OSError):  # it has ended, or there is no /proc
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):
                yield (task / name).read_text()


def written_bytes() -> int:
    """Return the bytes that this process and its living children have sent to disks so far."""
    return sum(_field(pid, "io", "write_bytes") for pid in (os.getpid(), *children()))


def trim_memory() -> None:
    """Return freed memory that the C library still holds to the system: with torch it can be as much as the state."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reset_peak() -> None:
    """Reset the memory peak to what is in use now, where the system can do so."""
    trim_memory()
    for pid in (os.getpid(), *children()):
        with contextlib.suppress(OSError):
            (PROC / str(pid) / "clear_refs").write_text("5")


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return _kilobytes("VmRSS") or _ru_maxrss()


def peak_bytes() -> int:
    """Return the peak since `reset_peak`; of children without shared memory, which is counted once, here."""
    own = _kilobytes("VmHWM") or _ru_maxrss()
    return own + sum(max(0, _kilobytes("VmHWM", pid) - _kilobytes("RssShmem", pid)) for pid in children())


def _kilobytes(field: str, pid: int | None = None) -> int:
    return _field(pid or os.getpid(), "status", field) * 1024


def _field(pid: int, file: str, field: str) -> int:
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / file).read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
    return 0


def _ru_maxrss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
