"""A worker in a process of its own, which ends its work when the trainer is killed.

It is started as a program of ours and not by `multiprocessing`, so that it neither runs the user's script again nor
has its memory; all that it gets is descriptors.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ckptstore.background.worker import Outcome
from ckptstore.background.worker_handle import FINISH, FLUSH_UP_TO, Slot
from ckptstore.storage.run_lock import RunLock

PROGRAM = "ckptstore.background"
_LAST_WORDS = 2000
# Libraries that start a thread per core as soon as they are imported are kept to one.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

# Those whose end nobody has seen yet: one of a fit that is collected has its end seen all the same, and no complaint of
# Python's that it runs.
_running: set[subprocess.Popen[bytes]] = set()


class WorkerProcess:
    """A worker in a process of its own.

    Args:
        root: The store's directory.
        slots: The slots for messages, with handoffs of both processes.
        lock: The run's, which the process holds for as long as it lives.
        again: True where the first messages may have been committed before.

    Raises:
        OSError: It cannot be started.
    """

    survives_trainer = True

    def __init__(
        self,
        root: Path,
        slots: tuple[Slot, ...],
        *,
        lock: RunLock | None,
        again: bool = False,
    ) -> None:
        if not sys.executable:
            raise FileNotFoundError("this interpreter does not know where its program is")
        self._slots = slots
        self._lock = lock
        self._log = os.memfd_create("ckptstore-writer-log", os.MFD_CLOEXEC)
        self.process, self._connection = self._start(root, again)
        _running.add(self.process)
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        if lock is not None:
            lock.shared = True

    def _start(self, root: Path, again: bool) -> tuple[subprocess.Popen[bytes], Any]:
        ours, theirs = socket.socketpair()
        trainer = os.pidfd_open(os.getpid())
        try:
            facts = {
                "root": str(root),
                "memories": [slot.memory.descriptor for slot in self._slots],
                "handoffs": [slot.handoff.descriptor for slot in self._slots],
                "connection": theirs.fileno(),
                "trainer": trainer,
                "again": again,
            }
            held = [*facts["memories"], *facts["handoffs"], theirs.fileno(), trainer]  # type: ignore[misc]
            if self._lock is not None and self._lock.descriptor is not None:
                held.append(self._lock.descriptor)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM, json.dumps(facts)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                pass_fds=held,
                start_new_session=True,
                env=_environment(),
            )
        except BaseException:
            ours.close()
            os.close(self._log)
            raise
        finally:
            theirs.close()
            os.close(trainer)
        return process, Connection(ours.detach())

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    def give(self, slot: int) -> None:
        """Give a slot, with a message in it, to the worker; from here on the trainer's death does not lose it."""
        self._slots[slot].handoff.give()

    def flush_up_to(self, number: int) -> None:
        """Let it not rest before messages up to a number."""
        self._tell(FLUSH_UP_TO + str(number).encode())

    def outcomes(self, timeout_s: float | None = 0.0) -> list[Outcome]:
        """Return what was done since, oldest first; see `Link`."""
        found: list[Outcome] = []
        if timeout_s == 0.0 and not self._poll.poll(0):
            return found  # at every batch: a microsecond
        try:
            # When it dies, its end of the connection closes; a fork of another thread may hold that open for a while.
            while timeout_s is None and not self._connection.poll(1.0):
                if not self.is_alive() and not self._connection.poll(0):
                    return found
            while self._connection.poll(timeout_s or 0.0):
                found.append(pickle.loads(self._connection.recv_bytes()))
                timeout_s = 0.0
        except (EOFError, ConnectionResetError):
            self.process.wait()
        return found

    def is_alive(self) -> bool:
        """Return False where it has died."""
        return self.process.poll() is None

    def exit_reason(self) -> str:
        """Return what is known of its death."""
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, _LAST_WORDS, max(0, size - _LAST_WORDS)).decode(errors="replace").strip()
        return f"the process that saves has ended with {self.process.returncode}" + (
            f": {text}" if text else ""
        )

    def finish(self) -> list[Outcome]:
        """End it, after what was posted; returns when it is gone, and the run's lock is this process's alone."""
        self._tell(FINISH)
        _see_the_end(self.process)
        left = self.outcomes(0.0)
        self._let_go()
        if self._lock is not None:
            self._lock.shared = False
        return left

    def detach(self) -> None:
        """Let it finish alone; a thread waits for its end, so that no zombie is left."""
        self._tell(FINISH)
        threading.Thread(
            target=_see_the_end, args=(self.process,), name="ckptstore-reaper", daemon=True
        ).start()
        self._let_go()

    def _tell(self, what: bytes) -> None:
        try:
            self._connection.send_bytes(what)
        except OSError:
            return  # it has ended already

    def _let_go(self) -> None:
        self._connection.close()
        os.close(self._log)


def _see_the_end(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    _running.discard(process)


def can_start() -> bool:
    """Return whether this platform has what a writer's process needs."""
    return all(hasattr(os, name) for name in ("memfd_create", "eventfd", "pidfd_open"))


def _environment() -> dict[str, str]:
    # Where the trainer found ckptstore, the writer finds it; the current directory is there under its own name.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**os.environ, **_ONE_THREAD, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}
