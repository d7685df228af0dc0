"""Counters of the kernel that tell whether it has killed a process for want of memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def oom_counters(pid: int | None = None) -> dict[str, int]:
    """Return the counters of out-of-memory kills that concern a process, by the file that they stand in.

    These are the counter of its control group (cgroup v2 or v1), where that can be read, and that of the machine.

    Args:
        pid: The process; None for this one.
    """
    files = [*_files_of_group(pid), Path("/proc/vmstat")]
    return {str(file): count for file in files if (count := _count(file)) is not None}


def group_of(pid: int | None = None) -> str:
    """Return the control groups of a process, as the kernel writes them; empty if it is gone, or has none."""
    try:
        return Path(f"/proc/{pid or 'self'}/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def was_oom_kill(before: Mapping[str, int]) -> bool:
    """Return True if the kernel has killed a process for want of memory since counters were read.

    A counter of the control group decides. Only where there is none, that of the machine does, and then the process
    that was killed may have been another one.

    Args:
        before: What `oom_counters` returned.

    Example:
        >>> was_oom_kill(oom_counters())
        False
    """
    groups = [file for file in before if file != "/proc/vmstat"]
    return any((_count(Path(file)) or 0) > before[file] for file in groups or before)


def _files_of_group(pid: int | None) -> list[Path]:
    found = []
    for line in group_of(pid).splitlines():
        number, controllers, group = line.split(":", 2)
        below = group.lstrip("/")
        if number == "0" and not controllers:
            found += [_CGROUPS / below / "memory.events", _CGROUPS / "unified" / below / "memory.events"]
        elif "memory" in controllers.split(","):
            found.append(_CGROUPS / "memory" / below / "memory.oom_control")
    # In a container the path may be that of the machine; the container's own group is then the root.
    return [file for file in found if file.exists()] or [
        file
        for file in (_CGROUPS / "memory.events", _CGROUPS / "memory" / "memory.oom_control")
        if file.exists()
    ]


def _count(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None
