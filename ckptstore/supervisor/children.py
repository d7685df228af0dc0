"""The children of the supervisor: starts and reaps them, adopted orphans included, as process 1 of a container must."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from ckptstore.system.process_tree import Process, look_at


class Reaper:
    """Collects the exit status of every child of this process, so that none stays a zombie.

    It reaps all children, and so belongs into a process of its own.
    """

    def __init__(self) -> None:
        self._codes: dict[int, int] = {}

    def collect(self) -> bool:
        """Reap the children that have ended, without waiting; returns True if there are others that still run."""
        with suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0] != 0:
                self._codes[reaped[0]] = os.waitstatus_to_exitcode(reaped[1])
            return True
        return False

    def exit_code(self, pid: int) -> int | None:
        """Return the exit code of a child that was reaped, negative for the signal that killed it; else None."""
        return self._codes.get(pid)

    def forget(self) -> None:
        """Forget the exit codes seen so far: their ids may be used again."""
        self._codes.clear()


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: int | None,
    passed: Sequence[int] = (),
    stdin: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own.

    A terminal's Ctrl-C then reaches the supervisor alone, and the command through it, rather than twice; and the
    command's own children (workers of a data loader, a saving process) get no signal at all, so that they can still
    save. The command outlives the supervisor.

    Args:
        command: Program and arguments.
        environment: Its environment.
        output: A descriptor for its output and its errors; None for those of this process.
        passed: Descriptors that it inherits.
        stdin: A descriptor or ``subprocess.DEVNULL`` for its input; None for that of this process.

    Raises:
        OSError: It cannot be started.
    """
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=output,
        stderr=output,
        env=environment,
        pass_fds=passed,
        start_new_session=True,
    )


def send(process: Process, number: int) -> bool:
    """Send a signal to a process, and never to a later one with its id; returns False if it is gone."""
    if not hasattr(os, "pidfd_open"):
        with suppress(OSError):
            os.kill(process.pid, number)
            return True
        return False
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = look_at(process.pid)
        if now is not None and now.started_ticks != process.started_ticks:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_descriptor(pid: int) -> int | None:
    """Return a descriptor that becomes readable when a process ends; None where the system has none."""
    with suppress(OSError, AttributeError):
        return os.pidfd_open(pid)
    return None
