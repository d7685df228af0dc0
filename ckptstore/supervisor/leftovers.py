"""Processes that a command leaves behind when it ends: ends them, but waits for one that saves or trains."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptstore.alerts.alerts import Alerts
from ckptstore.background.program import PROGRAM
from ckptstore.supervisor.children import Reaper, send
from ckptstore.supervisor.signals import SignalInbox
from ckptstore.system.facts.secrets import without_passwords
from ckptstore.system.process_tree import Process, command_of, descends_from, has_open, look_at, related

# A save that takes longer is left alone: it holds the run's lock, and the next training waits for that.
_LONGEST_SAVE_S = 600.0
# For processes that are ending by themselves: to free much memory may take that long.
_LONGEST_END_S = 5.0
_LOOK_AGAIN_S, _TICK_S = 0.1, 1.0
_LOOKS = 20


class Leftovers:
    """The processes that are left of a command.

    Args:
        inbox: Wakes the waiting; a second signal that asks for a stop cuts it short.
        reaper: Reaps those that are children of this process.
        log: Called with each message.
        grace_s: Seconds that a process has between SIGTERM and SIGKILL.
        alerts: Has a process of its own, which is none of the command's; None for none.
    """

    def __init__(
        self,
        inbox: SignalInbox,
        reaper: Reaper,
        *,
        log: Callable[[str], object],
        grace_s: float,
        alerts: Alerts | None = None,
    ) -> None:
        self._alerts = alerts
        self._inbox, self._reaper, self._log, self._grace_s = inbox, reaper, log, grace_s
        # A shell that has started other programs, and then executes this one, leaves its children to this process.
        self._earlier = related(os.getpid(), None)

    def find(self, session: int) -> list[Process]:
        """Return the command's processes: descendants of this process, and members of the command's session."""
        for _ in range(_LOOKS):
            has_children = self._reaper.collect()
            found = [process for process in related(os.getpid(), session) if not self._is_another(process)]
            # A process that forks and ends while the list is read leaves no trace in it; the kernel knows of its child.
            if found or not has_children:
                return found
        return []

    def _is_another(self, process: Process) -> bool:
        """Return True for a process that is none of the command's: one that sends alerts, or was here before it."""
        sender = None if self._alerts is None else self._alerts.pid
        others = [earlier.pid for earlier in self._earlier if _lives(earlier)]
        return any(descends_from(process.pid, pid) for pid in (sender, *others) if pid is not None)

    def wait_for(
        self, processes: Sequence[Process], session: int, locks: Path | None, tick: Callable[[], object]
    ) -> int:
        """Wait for processes that have gone on in the background, passing signals on; return the exit code.

        That is the first exit code that is not 0, as far as this process is told of them.

        Args:
            processes: The processes; those that they start are waited for too.
            session: The command's session.
            locks: The directory of the store's locks, or None where there is no store.
            tick: Called about every second.
        """
        passed_on = len(self._inbox.stops)
        seen = {process.pid for process in processes}
        while waiting := [found for found in self.find(session) if not is_saving(found, locks)]:
            seen |= {process.pid for process in waiting}
            for number, _ in self._inbox.stops[passed_on:]:
                for process in waiting:
                    send(process, number)
            passed_on = len(self._inbox.stops)
            if passed_on > 1:
                for process in waiting:
                    send(process, signal.SIGKILL)
            self._inbox.wait(_TICK_S)
            tick()
        return next((code for pid in sorted(seen) if (code := self._reaper.exit_code(pid))), 0)

    def end(self, session: int, locks: Path | None, *, also: Sequence[Process] = ()) -> None:
        """End what is left: SIGTERM, after the grace period SIGKILL; a process that saves is waited for.

        Args:
            session: The command's session.
            locks: The directory of the store's locks, or None where there is no store.
            also: More processes that may be left.
        """
        found = self._settled(session, locks, also)
        savers = [process for process in found if is_saving(process, locks)]
        others = [process for process in found if process not in savers]
        if others:
            self._log(f"the command has left processes behind, which are ended: {shown(others)}")
            for process in others:
                send(process, signal.SIGTERM)
                send(process, signal.SIGCONT)
        until = time.monotonic() + self._grace_s
        self._wait(others, until)
        while others := [left for left in self._left(session, also) if not is_saving(left, locks)]:
            for process in others:
                send(process, signal.SIGKILL)
            if not self._wait(others, time.monotonic() + 5.0):
                self._log(
                    f"processes do not end even by SIGKILL, since they wait in the kernel: {shown(others)}"
                )
                break
        self._wait_for_savers(savers)

    def settled(self, session: int, locks: Path | None) -> list[Process]:
        """Return the command's processes without those that end by themselves: they are given a moment for that."""
        return self._settled(session, locks, ())

    def _settled(self, session: int, locks: Path | None, also: Sequence[Process]) -> list[Process]:
        found = self._left(session, also)
        if ending := [process for process in found if _is_ending(process, locks)]:
            self._wait(ending, time.monotonic() + _LONGEST_END_S)
            found = self._left(session, also)
        return found

    def _left(self, session: int, also: Sequence[Process]) -> list[Process]:
        more = {process.pid: process for process in also if _lives(process)}
        return list({**more, **{process.pid: process for process in self.find(session)}}.values())

    def _wait_for_savers(self, savers: list[Process]) -> None:
        began = time.monotonic()
        if not self._wait(savers, began + 5.0):
            self._log(f"waiting for the save that the command has left: process {savers[0].pid}")
            if not self._wait(savers, began + _LONGEST_SAVE_S):
                self._log(
                    f"process {savers[0].pid} still saves after {_LONGEST_SAVE_S:g} s; it is left alone"
                )

    def _wait(self, processes: Sequence[Process], until: float) -> bool:
        """Wait for the ends of processes; returns True if all have ended in time."""
        while any(map(_lives, processes)):
            left_s = until - time.monotonic()
            if left_s <= 0 or len(self._inbox.stops) > 1:
                return False
            self._inbox.wait(min(left_s, _LOOK_AGAIN_S))
            self._reaper.collect()
        return True


def is_saving(process: Process, locks: Path | None) -> bool:
    """Return True for the process that saves for a training: it holds the lock of its run."""
    return locks is not None and PROGRAM in command_of(process.pid) and has_open(process.pid, locks, ".lock")


def _is_ending(process: Process, locks: Path | None) -> bool:
    """Return True for a process that the kernel is tearing down, and for one that has saved and ends.

    The first has no command line any more.
    """
    command = command_of(process.pid)
    return not command or (PROGRAM in command and not is_saving(process, locks))


def is_training(process: Process, locks: Path | None) -> bool:
    """Return True for a process that holds the lock of a run and is not the one that saves for it."""
    return locks is not None and not is_saving(process, locks) and has_open(process.pid, locks, ".lock")


def shown(processes: Sequence[Process]) -> str:
    """Return processes as text for a message: the first three, and the number of the others."""
    commands = [without_passwords(command_of(process.pid))[:60] for process in processes[:3]]
    texts = [
        f"{process.pid} ({command or 'unknown'})"
        for process, command in zip(processes, commands, strict=False)
    ]
    more = f" and {len(processes) - 3} more" if len(processes) > 3 else ""
    return ", ".join(texts) + more


def _lives(process: Process) -> bool:
    now = look_at(process.pid)
    return now is not None and not now.is_dead and now.started_ticks == process.started_ticks
