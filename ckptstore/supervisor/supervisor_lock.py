"""The lock that admits one supervisor for each run, and the one on the record of the command that it has started.

The supervisor's lock is its own. The lock of the record is inherited by the command: a supervisor that is started again
learns from it that the command still runs, and waits for that one.

Both files lie in the ``locks`` directory of the store; as long as there is none, in `waiting_directory`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from ckptstore.errors import StorageError, SupervisorRunningError
from ckptstore.storage.files import io_step, make_directory, remove_directory, unlink
from ckptstore.storage.layout import absolute
from ckptstore.storage.locks import NO_LOCKS, is_locked, locks_disabled, unsafe_file_system
from ckptstore.storage.run_lock import lock_in_place
from ckptstore.supervisor.command_record import CommandRecord, read_object, read_record
from ckptstore.supervisor.waiting_directory import layout_of, waiting_directories, waiting_directory
from ckptstore.system.process_tree import Process, holders_of

_TRIES, _TRY_AGAIN_S = 5, 0.02


class SupervisorLock:
    """The lock of the supervisor of a run; held until `release`, or until this process is dead.

    Args:
        path: The store, or the place where it will be.
        run: The run; None for all that have no supervisor of their own.

    Attributes:
        directory: Where the lock and the record lie.

    Raises:
        SupervisorRunningError: Another supervisor has it.
        UnsafeFileSystemError: This file system has no locks.
        StorageError: A file cannot be opened.
    """

    def __init__(self, path: Path, run: str | None) -> None:
        self._path, self._run = path, run
        layout = layout_of(path)
        self.directory = waiting_directory(path) if layout is None else layout.locks
        # One that began when there was no store yet has its lock elsewhere.
        for directory in waiting_directories(path):
            held = directory / self._name("supervisor")
            if directory != self.directory and is_locked(held):
                raise self._refusal(held)
        make_directory(self.directory, durable=False)
        self._descriptor = -1 if locks_disabled() else self._lock(self.directory / self._name("supervisor"))

    def _name(self, kind: str) -> str:
        return f"{self._run or ''}.{kind}"

    def _lock(self, path: Path) -> int:
        descriptor = self._lock_file(path)
        content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        with suppress(OSError):  # for people only
            os.pwrite(descriptor, content.ljust(200) + b"\n", 0)
        return descriptor

    def _lock_file(self, path: Path) -> int:
        try:
            for _ in range(_TRIES):
                with io_step("lock", path):
                    descriptor = lock_in_place(path)
                if descriptor >= 0:
                    break
                time.sleep(_TRY_AGAIN_S)  # somebody may only have looked whether it is held
        except StorageError as error:
            if error.errno in NO_LOCKS:
                raise unsafe_file_system(path, "has no working locks", error) from error
            raise
        if descriptor < 0:
            raise self._refusal(path)
        return descriptor

    def _refusal(self, path: Path) -> SupervisorRunningError:
        told = read_object(path) or {}
        host, pid = told.get("host"), told.get("pid")
        return SupervisorRunningError(
            store=absolute(self._path),
            run=self._run,
            host=host if isinstance(host, str) else None,
            pid=pid if isinstance(pid, int) else None,
        )

    def release(self) -> None:
        """Release the lock, and remove hidden directories in which nothing is left. May be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        # Also that of a supervisor that was killed, and whose command this one has taken over.
        for directory in waiting_directories(self._path):
            with suppress(StorageError):
                for kind in ("supervisor", "command"):
                    path = directory / self._name(kind)
                    is_own = kind == "supervisor" and directory == self.directory
                    if is_own or not is_locked(path):
                        unlink(path)
                remove_directory(directory)
        if descriptor >= 0:
            os.close(descriptor)

    # --- the command -------------------------------------------------------------------------------

    def record_paths(self) -> list[Path]:
        """Return where a record of a command may lie, the usual place first."""
        name = self._name("command")
        return [self.record_path, *(place / name for place in waiting_directories(self._path))]

    @property
    def record_path(self) -> Path:
        """Where the record of a command lies that is started now."""
        return self.directory / self._name("command")

    def new_record(self) -> int:
        """Return a descriptor with a lock for a command to inherit; -1 where locks are disabled.

        Raises:
            StorageError: The record cannot be opened.
            SupervisorRunningError: A command that cannot be seen from here holds it.
        """
        path = self.record_path
        if locks_disabled():
            with io_step("open", path):
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        return self._lock_file(path)

    def running_command(self) -> tuple[CommandRecord, list[Process]] | None:
        """Return the command that a supervisor before this one has left running, with the processes that hold its lock.

        The command itself may have ended, and only processes that it started may be left. Where the supervisor was
        killed before it could record the process id, the command is known by its lock.

        Raises:
            SupervisorRunningError: It runs on another machine or in another container, where it cannot be waited for.
        """
        for path in dict.fromkeys(self.record_paths()):
            record = read_record(path)
            if record is None or not (is_locked(path) or locks_disabled()):
                continue
            holders = holders_of(path.stat())
            if record.pid == 0 and holders:
                record = record.of_process(_first_of(holders).pid)
            if record.process() is not None or holders:
                return record, holders
            if not locks_disabled():
                raise self._refusal(path)
        return None


def _first_of(holders: list[Process]) -> Process:
    """Return the process of the command among those that hold its lock: it began a session, and started the others."""
    return min(holders, key=lambda found: (found.pid != found.session, found.started_ticks))


def has_supervisor(path: Path) -> bool:
    """Return True if a supervisor of a store, or a command that one has started, still runs.

    Args:
        path: The store, or the place where it will be.
    """
    layout = layout_of(path)
    places = [*waiting_directories(path), *([] if layout is None else [layout.locks])]
    return any(
        is_locked(lock)
        for place in places
        for pattern in ("*.supervisor", "*.command")
        for lock in place.glob(pattern)
    )
