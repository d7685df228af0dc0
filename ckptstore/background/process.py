"""A worker in a process of its own, which finishes its work even when the trainer is killed.

It is started as a program (see `program`) and not by `multiprocessing`, so that it neither runs the user's script again
nor copies its memory. All that it gets is descriptors.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import subprocess
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ckptstore.background import program
from ckptstore.background.worker import Outcome
from ckptstore.background.worker_handle import FINISH, FLUSH_UP_TO, Slot
from ckptstore.storage.run_lock import RunLock

# Bytes of the worker's stderr that `exit_reason` quotes, from the end.
_LOG_TAIL = 2000
# Processes that nobody has waited for yet. They are kept here so that Python does not warn of a running process when
# the handle of a fit is garbage collected. The next start looks which have ended, so that one zombie is left at most.
_running: set[subprocess.Popen[bytes]] = set()


class WorkerProcess:
    """A worker in a process of its own.

    Args:
        root: The store's directory.
        slots: The slots for messages, with handoffs between processes.
        lock: The run's lock, which the process shares for as long as it lives, with the claim.
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
        self._slots = slots
        self._lock = lock
        _reap_ended()
        self.process, self._connection, self._log = self._start(root, maybe_committed)
        _running.add(self.process)
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        if lock is not None:
            lock.shared = True

    def _start(self, root: Path, maybe_committed: bool) -> tuple[subprocess.Popen[bytes], Any, int]:
        """Return the process, the connection to it, and a descriptor of what it prints; on an error all is closed."""
        with ExitStack() as ours, ExitStack() as passed_on:
            log = os.memfd_create("ckptstore-writer-log", os.MFD_CLOEXEC)
            ours.callback(os.close, log)
            our_end, worker_end = socket.socketpair()
            ours.callback(our_end.close)
            passed_on.callback(worker_end.close)
            trainer = os.pidfd_open(os.getpid())
            passed_on.callback(os.close, trainer)
            memories = [slot.memory.descriptor for slot in self._slots]
            handoffs = [slot.handoff.descriptor for slot in self._slots]
            config = {
                "root": str(root),
                "memories": memories,
                "handoffs": handoffs,
                "connection": worker_end.fileno(),
                "trainer": trainer,
                "maybe_committed": maybe_committed,
                "claim": None,
            }
            if self._lock is not None and self._lock.claim is not None:
                config["claim"] = asdict(self._lock.claim)
                config["lock"] = self._lock.descriptor
            passed: list[Any] = [*memories, *handoffs, worker_end.fileno(), trainer]
            if self._lock is not None and self._lock.descriptor is not None:
                passed.append(self._lock.descriptor)
            process = subprocess.Popen(
                program.command(config),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=passed,
                start_new_session=True,
                env=program.environment(),
            )
            ours.pop_all()
            return process, Connection(our_end.detach()), log

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

    def waiting_hint(self) -> str:
        """Return how to continue the process if a signal has stopped it; see `WorkerHandle`."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return ""
        is_stopped = fields.rpartition(")")[2].split()[:1] == ["T"]
        return (
            f"; process {self.pid}, which saves it, is stopped: kill -CONT {self.pid}" if is_stopped else ""
        )

    def finish(self) -> list[Outcome]:
        """End the process after what it was given; returns when the run's lock is this process's alone again."""
        self._send(FINISH)
        self.process.wait()
        _running.discard(self.process)
        left = self.outcomes(0.0)
        self._close()
        if self._lock is not None:
            self._lock.shared = False
        return left

    def detach(self) -> None:
        """Let the process finish its work alone. Waits for nothing: it may be called by the interpreter's exit."""
        self._send(FINISH)
        self._close()

    def _send(self, command: bytes) -> None:
        try:
            self._connection.send_bytes(command)
        except OSError:
            return  # it has ended already

    def _close(self) -> None:
        self._connection.close()
        os.close(self._log)


def _reap_ended() -> None:
    for process in list(_running):
        if process.poll() is not None:
            _running.discard(process)
