"""Writes into the log of a training that hangs where each of its threads stands, as far as the system tells."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ckptstore.records import Beat
from ckptstore.supervisor.children import send
from ckptstore.supervisor.output import OutputLog
from ckptstore.system.process_tree import look_at

_WAIT_S, _PY_SPY_S = 5.0, 30.0
_MOST_THREADS = 100


def dump_stacks(beat: Beat, output: OutputLog | None, wait: Callable[[float], object]) -> list[str]:
    """Write the stacks of a training's threads into its log; returns what has written them.

    Args:
        beat: Its last heartbeat, which names the signal that makes it write the stacks of its Python threads.
        output: The log; without one, nothing is written but what the process itself writes.
        wait: Waits for a number of seconds.

    Returns:
        Of ``"faulthandler"`` (Python frames, by the process itself), ``"py-spy"`` (native frames too, where it is
        installed) and ``"kernel"`` (name, state and place in the kernel of each thread) those that have.
    """
    found = []
    before = 0 if output is None else os.fstat(output.descriptor).st_size
    if _asked(beat) and _has_answered(output, before, wait):
        found.append("faulthandler")
    if output is not None:
        if _by_py_spy(beat.pid, output):
            found.append("py-spy")
        if (text := _threads(beat.pid)) is not None:
            output.append(text)
            found.append("kernel")
    return found


def _asked(beat: Beat) -> bool:
    process = look_at(beat.pid)
    return beat.dump is not None and process is not None and send(process, beat.dump)


def _has_answered(output: OutputLog | None, before: int, wait: Callable[[float], object]) -> bool:
    """Wait for the stacks, which the process writes by itself; returns False if nothing came."""
    if output is None:
        wait(_WAIT_S)
        return True
    until = time.monotonic() + _WAIT_S
    size = before
    while time.monotonic() < until:
        wait(0.2)
        now = os.fstat(output.descriptor).st_size
        if now > before and now == size:
            return True
        size = now
    return size > before


def _by_py_spy(pid: int, output: OutputLog) -> bool:
    program = shutil.which("py-spy")
    if program is None:
        return False
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [program, "dump", "--native", "--pid", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=output.descriptor,
            stderr=output.descriptor,
            timeout=_PY_SPY_S,
            check=False,
        )
        return done.returncode == 0
    return False


def _threads(pid: int) -> str | None:
    """Return the threads of a process with name, state and the function of the kernel that each waits in."""
    try:
        threads = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    except OSError:
        return None
    lines = [f"Threads of process {pid} (name, state, where in the kernel):\n"]
    lines += [
        f"  {thread}: {_thread(Path(f'/proc/{pid}/task/{thread}'))}\n" for thread in threads[:_MOST_THREADS]
    ]
    return "".join(lines)


def _thread(directory: Path) -> str:
    with suppress(OSError, IndexError):
        name = (directory / "comm").read_text(errors="replace").strip()
        state = (directory / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        place = ""
        with suppress(OSError):
            place = (directory / "wchan").read_text(errors="replace").strip("0\n")
        return f"{name}, {state}{f', {place}' if place else ''}"
    return "has ended"
