"""Admission of one supervisor for each run, and the record of the command that it has started.

Both are locked files. The supervisor's lock is its own. The lock of the record is inherited by the command: a
supervisor that is started again learns from it that the command still runs, and waits for that one.

They lie in the ``locks`` directory of the store. As long as there is no store, they lie in a hidden directory beside
the place where it will be, since a script may look whether that place exists.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckptstore.errors import CheckpointStoreError, StorageError, StoreNotFoundError, SupervisorRunningError
from ckptstore.storage import files
from ckptstore.storage.files import io_step, make_directory, remove_directory, unlink
from ckptstore.storage.layout import DROP_IN_DIRECTORY, Layout, absolute, find_store
from ckptstore.storage.locks import NO_LOCKS, locks_disabled, unsafe_file_system
from ckptstore.storage.run_lock import lock_in_place
from ckptstore.system.process_tree import Process, holders_of, look_at
from ckptstore.system.processes import boot_id, start_ticks

_RECORD_BYTES = 1 << 16
_TRIES, _TRY_AGAIN_S = 5, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """The facts about a command that a supervisor has started.

    Attributes:
        pid: Its process id, which is also the id of its session.
        started_ticks: When that process was started, in the kernel's clock ticks; None where unknown.
        boot_id: The kernel's id of this start of the machine; None where it has none.
        host: Name of the machine.
        command: Program and arguments.
        log: The file with its output; empty where there is none.
        inode: The number of that file, by which it is found when it was renamed.
        token: The name of this start, which its attempts record.
    """

    pid: int
    started_ticks: int | None
    boot_id: str | None
    host: str
    command: tuple[str, ...]
    log: str
    inode: int
    token: str

    def process(self) -> Process | None:
        """Return the process; None if it has ended, or is one of another machine."""
        if self.host != socket.gethostname() or self.boot_id != boot_id():
            return None
        found = look_at(self.pid)
        same = found is not None and not found.is_dead and found.started_ticks == self.started_ticks
        return found if same else None


def record_of(pid: int, command: tuple[str, ...], log: str, inode: int, token: str) -> CommandRecord:
    """Return the record of a command that has just been started."""
    return CommandRecord(
        pid=pid,
        started_ticks=start_ticks(pid),
        boot_id=boot_id(),
        host=socket.gethostname(),
        command=command,
        log=log,
        inode=inode,
        token=token,
    )


def waiting_directory(path: Path) -> Path:
    """Return the hidden directory for a store that is not there yet: in it, or above it where a directory exists."""
    store = absolute(path)
    place = next((above for above in (store, *store.parents) if above.is_dir()), store.parent)
    return place / _hidden_name(store)


def _hidden_name(store: Path) -> str:
    # The folder of a drop-in callback and the store in it are one.
    folder = store.parent if store.name == DROP_IN_DIRECTORY else store
    digest = hashlib.blake2b(os.fsencode(os.path.realpath(folder)), digest_size=6).hexdigest()
    return f".ckptstore-{digest}"


def waiting_directories(path: Path) -> list[Path]:
    """Return the hidden directories of this kind that there are."""
    store = absolute(path)
    return [found for above in (store, *store.parents) if (found := above / _hidden_name(store)).is_dir()]


def layout_of(path: Path) -> Layout | None:
    """Return the store at a path, if there is one."""
    try:
        return Layout(find_store(path))
    except CheckpointStoreError as error:
        if isinstance(error, StoreNotFoundError):
            return None
        raise


class Claim:
    """The right to supervise a run of a store; held until `release`, or until this process is dead.

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
            if directory != self.directory:
                self._refuse_if_held(directory / self._name("supervisor"))
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

    def _refuse_if_held(self, path: Path) -> None:
        if is_locked(path):
            raise self._refusal(path)

    def _refusal(self, path: Path) -> SupervisorRunningError:
        told = _content(path) or {}
        host, pid = told.get("host"), told.get("pid")
        return SupervisorRunningError(
            store=absolute(self._path),
            run=self._run,
            host=host if isinstance(host, str) else None,
            pid=pid if isinstance(pid, int) else None,
        )

    def release(self) -> None:
        """Give the claim up, and remove hidden directories in which nothing is left. May be called again."""
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

        The command itself may have ended, and only processes that it started may be left.

        Raises:
            SupervisorRunningError: It runs on another machine or in another container, where it cannot be waited for.
        """
        for path in dict.fromkeys(self.record_paths()):
            content = _content(path)
            if content is None or not (is_locked(path) or locks_disabled()):
                continue
            with suppress(TypeError, KeyError):
                record = CommandRecord(**{**content, "command": tuple(content["command"])})
                holders = holders_of(path.stat())
                if record.process() is not None or holders:
                    return record, holders
                if not locks_disabled():
                    raise self._refusal(path)
        return None


def write_record(descriptor: int, path: Path, record: CommandRecord) -> None:
    """Write the record of a command; not durable, as no process outlives a power cut."""
    content = json.dumps(asdict(record)).encode()
    if len(content) > _RECORD_BYTES:
        content = json.dumps({**asdict(record), "command": [*record.command[:1], "..."]}).encode()
    os.pwrite(descriptor, content + b"\n", 0)
    files.truncate(descriptor, path, len(content) + 1)


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock of a file. Takes it for an instant, and only if the file is there."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _content(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes()[:_RECORD_BYTES])
        return found if isinstance(found, dict) else None
    return None


def supervised_runs(path: Path) -> Iterator[str]:
    """Yield the names of the locks of a store's supervisors and commands that are held."""
    layout = layout_of(path)
    places = [*waiting_directories(path), *([] if layout is None else [layout.locks])]
    for place in places:
        for lock in (*place.glob("*.supervisor"), *place.glob("*.command")):
            if is_locked(lock):
                yield lock.name
