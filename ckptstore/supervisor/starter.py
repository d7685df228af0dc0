"""Starts the command with its log and its record, or takes over one that a supervisor before this one has started."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckptstore.errors import StorageError
from ckptstore.storage.files import truncate
from ckptstore.supervisor import children, start_logs
from ckptstore.supervisor.children import Reaper
from ckptstore.supervisor.command import Command
from ckptstore.supervisor.command_record import CommandRecord, record_of, write_record
from ckptstore.supervisor.leftovers import shown
from ckptstore.supervisor.output import OutputLog
from ckptstore.supervisor.policy import Limits
from ckptstore.supervisor.supervisor_lock import SupervisorLock
from ckptstore.system.process_tree import Process
from ckptstore.system.supervisor_variables import LOG_VARIABLE, SUPERVISOR_VARIABLE


@dataclass(slots=True, kw_only=True)
class Start:
    """One start of the command.

    Attributes:
        command: The process.
        output: Its log; None where none can be kept.
        token: The name of the start, which its attempts record.
        popen: The process as Python knows it; None if it was taken over.
        holders: Processes besides it that were found to belong to it, if it was taken over.
    """

    command: Command
    output: OutputLog | None
    token: str
    popen: subprocess.Popen[bytes] | None = None
    holders: tuple[Process, ...] = ()

    def finish(self, exit_code: int | None) -> None:
        """Tell Python that the process was reaped."""
        if self.popen is not None:
            self.popen.returncode = exit_code or 0


class Starter:
    """Starts a command, as often as it is asked to.

    Args:
        path: The store, or the place where it will be.
        command: Program and arguments.
        lock: The lock of the run's supervisor, and of the record of the command.
        reaper: Reaps it.
        limits: How much its logs may take.
        log: Called with each message.
        shown_on: A descriptor on which its output is shown, or None.
    """

    def __init__(
        self,
        path: Path,
        command: tuple[str, ...],
        lock: SupervisorLock,
        reaper: Reaper,
        *,
        limits: Limits,
        log: Callable[[str], object],
        shown_on: int | None,
    ) -> None:
        self._path, self._command, self._lock, self._reaper = path, command, lock, reaper
        self._limits, self._log, self._shown_on = limits, log, shown_on
        self._has_complained = False

    def start(self) -> Start:
        """Start the command.

        Raises:
            OSError: It cannot be started, `filename` is its name; its log is removed again.
            StorageError: Its record cannot be locked, since the store was removed; nothing was started.
            SupervisorRunningError: A command that was started before cannot be ended; nothing was started.
        """
        token = secrets.token_hex(8)
        record = self._lock.new_record()
        log = output = None
        try:
            log = self._begin_log(token)
            output = None if log is None else self._open(log)
            inode = 0 if output is None else os.fstat(output.descriptor).st_ino
            facts = record_of(self._command, str(log or ""), inode, token)
            # Before the start: if this process is killed right after it, the next one knows the command by its lock.
            self._write_record(record, facts)
            popen = children.start(
                self._command,
                environment=self._environment(token, log),
                output=self._shown_on if output is None else output.descriptor,
                passed=(record,),
                stdin=subprocess.DEVNULL if sys.stdin is None or sys.stdin.isatty() else None,
            )
            facts = facts.of_process(popen.pid)
            self._write_record(record, facts)
        except OSError:
            if log is not None and output is not None:
                output.close()
                start_logs.forget(log)
            raise
        finally:
            os.close(record)
        command = Command(facts, self._reaper, is_child=True)
        return Start(command=command, output=output, token=token, popen=popen)

    def take_over(self) -> Start | None:
        """Return the command that a supervisor before this one has left running; None where there is none.

        Raises:
            SupervisorRunningError: It runs where it cannot be waited for.
        """
        found = self._lock.running_command()
        if found is None:
            return None
        record, holders = found
        command = Command(record, self._reaper, is_child=False)
        log = start_logs.find_log(self._path, Path(record.log), record.inode) if record.log else None
        output = None if log is None else self._open(log, from_end=True)
        if record.process() is None:
            self._log(
                f"the command of a supervisor that was killed has ended, but not all of it: {shown(holders)}"
            )
        else:
            self._log(
                f"takes over a command that still runs: process {record.pid} ({' '.join(record.command)[:80]})"
            )
        return Start(command=command, output=output, token=record.token, holders=tuple(holders))

    def _write_record(self, descriptor: int, facts: CommandRecord) -> None:
        path = self._lock.record_path
        try:
            write_record(descriptor, path, facts)
        except OSError:  # a full disk: the record of an earlier start must not be taken for this one's
            with suppress(OSError):
                truncate(descriptor, path, 0)

    def _begin_log(self, token: str) -> Path | None:
        try:
            return start_logs.begin_log(self._path, token)
        except StorageError as error:
            if not self._has_complained:
                self._has_complained = True
                self._log(f"no log of the output is kept: {error}")
            return None

    def _open(self, log: Path, *, from_end: bool = False) -> OutputLog:
        return OutputLog(
            log, shown_on=self._shown_on, limit=self._limits.log_bytes, log=self._log, from_end=from_end
        )

    def _environment(self, token: str, log: Path | None) -> dict[str, str]:
        # Python would keep the last lines of a file in a buffer, and lose them when it is killed.
        environment = {"PYTHONUNBUFFERED": "1", **os.environ, SUPERVISOR_VARIABLE: token}
        environment.pop(LOG_VARIABLE, None)
        return environment if log is None else {**environment, LOG_VARIABLE: str(log)}
