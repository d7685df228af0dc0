"""Watches one start of the command until it has ended: passes signals on, shows its output, ends it if it hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptstore.records import Beat, EndReason
from ckptstore.storage.heartbeat_file import is_held, read_heartbeat
from ckptstore.storage.layout import Layout
from ckptstore.supervisor.children import send
from ckptstore.supervisor.command import Command
from ckptstore.supervisor.hangs import Hang, HangWatch, Paused
from ckptstore.supervisor.output import OutputLog
from ckptstore.supervisor.policy import Limits
from ckptstore.supervisor.signals import SignalInbox
from ckptstore.supervisor.stack_dump import dump_stacks
from ckptstore.system.oom_kills import group_of, oom_counters, was_oom_kill
from ckptstore.system.process_tree import descends_from, look_at
from ckptstore.system.processes import boot_id, process_state

_FIRST_TICK_S, _TICK_S, _TICK_ON_TERMINAL_S = 0.02, 1.0, 0.1
# After a second signal the command is killed: the first was to let it save, the second says that nobody waits.
_AFTER_SECOND_S = 2.0


@dataclass(kw_only=True)
class Watched:
    """The facts that were seen of a start.

    Attributes:
        exit_code: As for `Command`.
        reason: The reason of its end if this process knows it, or None.
        detail: What is known beyond that.
        beat: The last heartbeat of its training, or None.
    """

    exit_code: int | None = None
    reason: EndReason | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    beat: Beat | None = None


class StartWatch:
    """Watches one start of the command.

    Args:
        command: The command.
        output: Its log, or None.
        layout: Returns the store, once there is one.
        run: The run, or None for any.
        limits: Grace period and limit for hangs.
        inbox: Wakes the wait, and has the signals to pass on.
        log: Called with each message.
        event: Called with kind, run and detail of what is to be recorded while the command runs.
    """

    def __init__(
        self,
        command: Command,
        output: OutputLog | None,
        *,
        layout: Callable[[], Layout | None],
        run: str | None,
        limits: Limits,
        inbox: SignalInbox,
        log: Callable[[str], object],
        event: Callable[[str, str | None, dict[str, Any]], object],
    ) -> None:
        self._command, self._output, self._layout, self._run = command, output, layout, run
        self._limits, self._inbox, self._log, self._event = limits, inbox, log, event
        self._hangs = HangWatch(limits.hang_after_s)
        self._look_at_s = time.monotonic()
        self._passed_on = 0
        self._kill_at_s: float | None = None
        self._was_killed = False
        self._group = ""
        self._oom_before: dict[str, int] = oom_counters(command.pid)
        self._seen = Watched()
        self._hang: Hang | None = None
        self._tick_s = _FIRST_TICK_S

    def until_end(self) -> Watched:
        """Watch the command until it has ended, and return what was seen."""
        while not self._command.look():
            self._pass_signals_on()
            busy = self._output is not None and self._tick_output()
            now = time.monotonic()
            self._note_group()
            if self._kill_at_s is not None and now >= self._kill_at_s:
                self._kill()
            if now >= self._look_at_s and self._hang is None:
                self._look_at_s = now + self._hangs.look_every_s
                self._look_for_hang(now)
            descriptors = () if self._command.descriptor is None else (self._command.descriptor,)
            self._inbox.wait(0.0 if busy else self._next_tick(now), descriptors)
        return self._ended()

    def _note_group(self) -> None:
        """Read the counters of a control group that the training has moved to."""
        pid = self._command.pid if self._seen.beat is None else self._seen.beat.pid
        group = group_of(pid)
        if group and group != self._group:
            self._group = group
            self._oom_before = {**oom_counters(pid), **self._oom_before}

    def _tick_output(self) -> bool:
        assert self._output is not None
        before = self._output.wrote
        busy = self._output.tick()
        if self._output.wrote != before and self._output.is_on_terminal:
            self._tick_s = _TICK_ON_TERMINAL_S  # a person looks on
        return busy

    def _next_tick(self, now: float) -> float:
        tick_s, self._tick_s = self._tick_s, min(2 * self._tick_s, _TICK_S)
        return tick_s if self._kill_at_s is None else max(0.0, min(tick_s, self._kill_at_s - now))

    def _pass_signals_on(self) -> None:
        for number, at_s in self._inbox.stops[self._passed_on :]:
            self._passed_on += 1
            self._tick_s = _FIRST_TICK_S
            self._command.send(number)
            if process_state(self._command.pid, None) == "stopped":
                self._command.send(signal.SIGCONT)  # else it could not obey
            limit_s = self._limits.grace_s if self._passed_on == 1 else _AFTER_SECOND_S
            kill_at_s = at_s + limit_s
            self._kill_at_s = kill_at_s if self._kill_at_s is None else min(self._kill_at_s, kill_at_s)

    def _kill(self) -> None:
        if not self._was_killed:
            self._log(
                f"the command has not ended within the grace period, and is killed: process {self._command.pid}"
            )
            self._seen.detail["killed_by"] = "ckptstore run, after the grace period"
        self._was_killed = True
        self._command.send(signal.SIGKILL)
        if self._hang is not None:
            self._signal_training(signal.SIGKILL)
        self._kill_at_s = time.monotonic() + 5.0  # one that waits in the kernel does not end at once

    # --- hangs ---------------------------------------------------------------------------------------

    def _look_for_hang(self, now: float) -> None:
        beat = self._find_beat()
        if beat is not None:
            self._seen.beat = beat
        state = "alive" if beat is None else process_state(beat.pid, beat.started_ticks)
        found = self._hangs.look(beat, state, now)
        if isinstance(found, Paused):
            self._report_pause(found)
        elif isinstance(found, Hang):
            self._end_hanging(found)

    def _find_beat(self) -> Beat | None:
        """Return the heartbeat of the training that the command runs, if it has one."""
        layout = self._layout()
        if layout is None:
            return None
        try:
            names = [self._run] if self._run is not None else os.listdir(layout.heartbeats)
        except OSError:
            return None
        paths = [layout.heartbeats / name for name in names]
        beats = [
            beat for path in paths if (beat := read_heartbeat(path)) is not None and self._is_ours(beat, path)
        ]
        return max(beats, key=lambda beat: beat.at_s, default=None)

    def _is_ours(self, beat: Beat, path: Path) -> bool:
        return beat.boot_id == boot_id() and descends_from(beat.pid, self._command.pid) and is_held(path)

    def _report_pause(self, found: Paused) -> None:
        beat = found.beat
        how = "stopped by a signal" if found.by == "stopped" else "held by a debugger"
        hint = f"; continue it: kill -CONT {beat.pid}" if found.by == "stopped" else ""
        self._log(f"run {beat.run}: process {beat.pid} is {how}, and is not taken for one that hangs{hint}")
        self._event("paused", beat.run, {"by": found.by, "pid": beat.pid, "phase": beat.phase})

    def _end_hanging(self, hang: Hang) -> None:
        beat, self._hang = hang.beat, hang
        where = f"no sign of life for {hang.silent_s:.0f} s while {beat.phase} (limit {hang.limit_s:.0f} s)"
        self._log(f"run {beat.run}: the training hangs: {where}; its stacks go to the log, then it is ended")
        if self._output is not None:
            self._output.append(
                f"\n--- ckptstore run: process {beat.pid}: {where}; where its threads stand:\n"
            )
        dumped = dump_stacks(beat, self._output, self._wait)
        self._seen.detail |= {
            "phase": beat.phase,
            "for_s": round(hang.silent_s, 1),
            "limit_s": hang.limit_s,
            "dump": dumped,
            "epoch": beat.epoch,
            "batch": beat.batch,
            "step": beat.step,
        }
        self._command.send(signal.SIGTERM)
        self._signal_training(signal.SIGTERM)
        self._kill_at_s = time.monotonic() + self._limits.grace_s
        self._tick_s = _FIRST_TICK_S

    def _wait(self, seconds: float) -> None:
        self._inbox.wait(seconds)
        if self._output is not None:
            self._output.show()

    def _signal_training(self, number: int) -> None:
        """Send a signal to the training if the command is not itself the training, but a shell around it."""
        beat = self._hang.beat if self._hang is not None else None
        process = None if beat is None or beat.pid == self._command.pid else look_at(beat.pid)
        if process is not None and beat is not None and process.started_ticks == beat.started_ticks:
            send(process, number)

    # --- the end -------------------------------------------------------------------------------------

    def _ended(self) -> Watched:
        while self._output is not None and self._output.show():
            pass  # before messages about the end
        seen = self._seen
        seen.exit_code = self._command.exit_code
        by_kill = seen.exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL, None)
        if self._hang is not None:
            seen.reason = "hang"
        elif by_kill and not self._was_killed and was_oom_kill(self._oom_before):
            seen.reason = "oom"
        elif self._was_killed:
            seen.reason = "killed"
        return seen
