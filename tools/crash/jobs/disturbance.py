"""Disturbs a process at a step of a save: it is killed or stopped, or its disk stalls or is full."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Literal

# "stall" is a disk that does not answer for a while, so that the thread that saves waits and the process is alive.
# "full once" is a full disk for the rest of an attempt, "full" for that of the save; "mount" is a real small one.
Action = Literal["record", "kill", "stop", "stall", "full once", "full", "mount"]
STALL_LIMIT_S, STALL_S = 2.0, 5.0
_NEEDS_ROOM = ("< create", "< reserve", "< write", "< truncate", "< fsync", "< mkdir")
_NEW_MOUNT_NAMESPACE = 0x00020000


class Disturbance:
    """Notes each step in a file, and disturbs this process at one of them.

    Args:
        action: What happens.
        point: The label of the step.
        journal: The file.
    """

    def __init__(self, action: Action, point: str, journal: Path) -> None:
        self._action = action
        self._point = point
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._is_full = False

    def __call__(self, label: str, path: Path | None) -> None:
        """Come to a step.

        Raises:
            OSError: The disk is full.
        """
        os.write(self._journal, f"{label}\n".encode())
        if label == self._point:
            self._disturb(path)
        if label.startswith("> save"):
            self._is_full = False
        if self._is_full and label.startswith(_NEEDS_ROOM):
            self._is_full = self._action == "full"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _disturb(self, path: Path | None) -> None:
        match self._action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                # To this thread: one to the process may reach another thread first, and this one some steps later.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            case "stall":
                time.sleep(STALL_S)
            case "full" | "full once":
                self._is_full = True
            case "mount":
                assert path is not None
                _mount_small_disk(path.parent)


def _mount_small_disk(folder: Path) -> None:
    """Put a disk of one page over a folder, which only this thread sees: a host of its own, whose disk is full."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNT_NAMESPACE) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder], check=True)
