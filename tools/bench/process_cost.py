"""What a measurement costs this process and those that it has started: processor time, memory, bytes written."""

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
    """Yield the processes that a process has started and that are alive, and those that they have started."""
    for task in _texts(PROC / str(pid or os.getpid()) / "task", "children"):
        for child in map(int, task.split()):
            yield child
            yield from children(child)


def cpu_s() -> float:
    """Return the processor time of this process, of its children that have ended, and of those that are alive."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = 0.0
    for child in children():
        with contextlib.suppress(OSError):  # it has ended
            # Linux' clock of a process: all its threads, those that have ended too, to the nanosecond.
            alive += time.clock_gettime((~child << 3) | 2)
    return time.process_time() + ended.ru_utime + ended.ru_stime + alive


def _texts(tasks: Path, name: str) -> Iterator[str]:
    with contextlib.suppress(OSError):  # it has ended, or there is no /proc
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):
                yield (task / name).read_text()


def written_bytes() -> int:
    """Return how many bytes this process and its living children have sent towards the disk so far."""
    return sum(_field(pid, "io", "write_bytes") for pid in (os.getpid(), *children()))


def give_back() -> None:
    """Have the C library give back what is freed and it holds still: with torch's temporaries as much as the state."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reset_peak() -> None:
    """Let the peak of the memory begin at what is in use now, where the system can."""
    give_back()
    for pid in (os.getpid(), *children()):
        with contextlib.suppress(OSError):
            (PROC / str(pid) / "clear_refs").write_text("5")


def resident_bytes() -> int:
    """Return what this process has in memory."""
    return _kilobytes("VmRSS") or _ru_maxrss()


def peak_bytes() -> int:
    """Return the peak since `reset_peak`; of children what they do not share, since the other end counts that."""
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
