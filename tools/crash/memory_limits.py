"""Control groups with a limit of their memory, in which the kernel kills what takes more."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST_S = 10.0


@contextmanager
def memory_group(limit: int) -> Iterator[Path | None]:
    """Make a control group below that of this process, for the block.

    Args:
        limit: Bytes of memory.

    Yields:
        Its directory; None where it cannot be made.
    """
    group = _make(limit)
    try:
        yield group
    finally:
        until_s = time.monotonic() + _LONGEST_S
        while group is not None and group.is_dir() and time.monotonic() < until_s:
            with suppress(OSError):  # the kernel forgets processes that have ended a little later
                group.rmdir()
                break
            time.sleep(0.05)


def _make(limit: int) -> Path | None:
    """Return a new group, of version 1 or 2 of control groups; None where it cannot be made."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, group = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup/memory" if number != "0" else "/sys/fs/cgroup")
        made = root / group.lstrip("/") / f"ckptstore-crash-{os.getpid()}"
        file = made / ("memory.limit_in_bytes" if number != "0" else "memory.max")
        with suppress(OSError):
            made.mkdir()
            if file.exists():
                file.write_text(str(limit))
                return made
        with suppress(OSError):
            made.rmdir()
    return None
