"""The processes of this machine as a tree: who descends from whom, who belongs to a session, who has a file open.

It is read from Linux' ``/proc``; elsewhere the tree is empty.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckptstore.system.processes import PARENT, SESSION, START_TICKS, STATE, stat_fields

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Process:
    """One process, as it was when it was looked at.

    Attributes:
        pid: Its id.
        parent: The id of its parent.
        session: The id of its session, which is the id of the process that began it.
        started_ticks: When it was started, in the kernel's clock ticks; tells it from a later process with its id.
        is_dead: True for a zombie, which only waits to be reaped.
    """

    pid: int
    parent: int
    session: int
    started_ticks: int
    is_dead: bool


def look_at(pid: int) -> Process | None:
    """Return one process; None if there is none, or the system does not tell.

    Example:
        >>> me = look_at(os.getpid())
        >>> me is None or me.parent == os.getppid()
        True
    """
    fields = stat_fields(pid)
    if fields is None:
        return None
    parent, session, ticks = (int(fields[place]) for place in (PARENT, SESSION, START_TICKS))
    return Process(pid, parent, session, ticks, is_dead=fields[STATE] in "ZXx")


def all_processes() -> dict[int, Process]:
    """Return the processes that this one can see, by id."""
    try:
        names = [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return {}
    return {found.pid: found for found in map(look_at, map(int, names)) if found is not None}


def related(ancestor: int, session: int | None) -> list[Process]:
    """Return the living descendants of a process and the living members of a session, without that process.

    Args:
        ancestor: Id of the process.
        session: Id of the session, or None.
    """
    processes = all_processes()
    children: dict[int, list[Process]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process)
    found = {process.pid: process for process in processes.values() if process.session == session}
    waiting = [ancestor]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            found[child.pid] = child
            waiting.append(child.pid)
    found.pop(ancestor, None)
    return [process for process in found.values() if not process.is_dead]


def descends_from(pid: int, ancestor: int) -> bool:
    """Return True if a process is another one, or descends from it, or belongs to the session that it began."""
    while (process := look_at(pid)) is not None:
        if ancestor in (pid, process.session):
            return True
        pid = process.parent
    return False


def command_of(pid: int) -> str:
    """Return the command line of a process, arguments joined by blanks; empty if it cannot be read."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .rstrip(b"\0")
            .replace(b"\0", b" ")
            .decode(errors="replace")
        )
    except OSError:
        return ""


def has_open(pid: int, directory: Path, suffix: str) -> bool:
    """Return True if a process has a file of a directory open whose name ends in `suffix`."""
    return any(Path(file).parent == directory and file.endswith(suffix) for file in _open_files(pid))


def holders_of(status: os.stat_result) -> list[Process]:
    """Return the processes that have a file open, of those that this user may look into.

    Args:
        status: The file's status, by which it is found whatever it is called.
    """
    return [process for process in all_processes().values() if _holds(process.pid, status)]


def _holds(pid: int, status: os.stat_result) -> bool:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.path.samestat(Path(f"/proc/{pid}/fd/{name}").stat(), status):
                    return True
    return False


def _open_files(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115 - may be no path


def adopt_orphans() -> bool:
    """Make this process the parent of its descendants whose parents die, as process 1 is; False where that cannot be.

    Without it they become children of process 1, and nothing tells whose they were.
    """
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False
