"""A worker in a process of its own, which finishes its work even when the trainer is killed.

It is started as ``python -m ckptstore.background`` and not by `multiprocessing`, so that it neither runs the user's
script again nor copies its memory. All that it gets is descriptors.
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
# Bytes of the worker's stderr that `exit_reason` quotes, from the end.
_LOG_TAIL = 2000
# Some libraries start a thread for each core when they are imported; these variables keep them to one.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

# Processes that nobody has waited for yet. They are kept here so that Python does not warn of a running process when
# the handle of a fit is garbage collected.
_running: set[subprocess.Popen[bytes]] = set()


class WorkerProcess:
    """A worker in a process of its own.

    Args:
        root: The store's directory.
        slots: The slots for messages, with handoffs between processes.
        lock: The run's lock, which the process shares for as long as it lives.
        maybe_committed: True if a worker before this one may have committed the first messages.

    Raises:
        OSError: The process cannot be started.
    """

    survives_trainer = True

    def __init__(
        self,
        root: Path,
        slots: tuple[Slot, ...],
        *,
        lock: RunLock | None,
        maybe_committed: bool = False,
    ) -> None:
        if not sys.executable:
            raise FileNotFoundError("sys.executable, the path of this interpreter, is not known")
        self._slots = slots
        self._lock = lock
        self._log = os.memfd_create("ckptstore-writer-log", os.MFD_CLOEXEC)
        self.process, self._connection = self._start(root, maybe_committed)
        _running.add(self.process)
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        if lock is not None:
            lock.shared = True

    def _start(self, root: Path, maybe_committed: bool) -> tuple[subprocess.Popen[bytes], Any]:
        our_end, worker_end = socket.socketpair()
        trainer = os.pidfd_open(os.getpid())
        try:
            config = {
                "root": str(root),
                "memories": [slot.memory.descriptor for slot in self._slots],
                "handoffs": [slot.handoff.descriptor for slot in self._slots],
                "connection": worker_end.fileno(),
                "trainer": trainer,
                "maybe_committed": maybe_committed,
            }
            passed = [*config["memories"], *config["handoffs"], worker_end.fileno(), trainer]  # type: ignore[misc]
            if self._lock is not None and self._lock.descriptor is not None:
                passed.append(self._lock.descriptor)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM, json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                pass_fds=passed,
                start_new_session=True,
                env=_environment(),
            )
        except BaseException:
            our_end.close()
            os.close(self._log)
            raise
        finally:
            worker_end.close()
            os.close(trainer)
        return process, Connection(our_end.detach())

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def give(self, slot: int) -> None:
        """Give a slot, with a message in it, to the worker; from now on the trainer's death does not lose it."""
        self._slots[slot].handoff.give()

    def flush_up_to(self, number: int) -> None:
        """Commit messages up to a number without a pause."""
        self._send(FLUSH_UP_TO + str(number).encode())

    def outcomes(self, timeout_s: float | None = 0.0) -> list[Outcome]:
        """Return the outcomes since the last call, oldest first; see `WorkerHandle`."""
        found: list[Outcome] = []
        if timeout_s == 0.0 and not self._poll.poll(0):
            return found  # called at every batch; takes a microsecond
        try:
            # Its death closes its end of the connection, but a fork in another thread may keep that open for a while.
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
        """Return False if the process has died."""
        return self.process.poll() is None

    def exit_reason(self) -> str:
        """Return why it has died, as far as that is known."""
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, _LOG_TAIL, max(0, size - _LOG_TAIL)).decode(errors="replace").strip()
        return f"the process that saves has ended with {self.process.returncode}" + (
            f": {text}" if text else ""
        )

    def finish(self) -> list[Outcome]:
        """End the process after what it was given; returns when the run's lock is this process's alone again."""
        self._send(FINISH)
        _reap(self.process)
        left = self.outcomes(0.0)
        self._close()
        if self._lock is not None:
            self._lock.shared = False
        return left

    def detach(self) -> None:
        """Let the process finish its work alone; a thread waits for its end, so that no zombie is left."""
        self._send(FINISH)
        threading.Thread(target=_reap, args=(self.process,), name="ckptstore-reaper", daemon=True).start()
        self._close()

    def _send(self, command: bytes) -> None:
        try:
            self._connection.send_bytes(command)
        except OSError:
            return  # it has ended already

    def _close(self) -> None:
        self._connection.close()
        os.close(self._log)


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    _running.discard(process)


def can_start() -> bool:
    """Return True if this platform has the system calls that a worker process needs."""
    return all(hasattr(os, name) for name in ("memfd_create", "eventfd", "pidfd_open"))


def _environment() -> dict[str, str]:
    # The worker imports from the same places as the trainer. An empty entry means the current directory.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**os.environ, **_ONE_THREAD, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}
