"""Supervises a command: starts it, or takes it over, and starts it again until it is done or that is no use."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptstore.alerts.alerts import Alerts
from ckptstore.errors import NotAStoreError, StorageError
from ckptstore.records import Beat
from ckptstore.report import text
from ckptstore.storage.files import free_bytes
from ckptstore.storage.heartbeat_file import read_heartbeat
from ckptstore.storage.layout import Layout, absolute
from ckptstore.supervisor import end_reasons, start_logs
from ckptstore.supervisor.children import Reaper
from ckptstore.supervisor.leftovers import Leftovers, is_saving, is_training, shown
from ckptstore.supervisor.notices import Notices
from ckptstore.supervisor.outcome import Progress, SupervisedOutcome
from ckptstore.supervisor.policy import End, Limits, Restart, RestartPolicy, Stop, grown_pause_s
from ckptstore.supervisor.signals import SignalInbox
from ckptstore.supervisor.start_watch import StartWatch, Watched
from ckptstore.supervisor.starter import Start, Starter
from ckptstore.supervisor.store_access import (
    EndFacts,
    StartEnd,
    StoreState,
    count_saved,
    look,
    record_end,
    record_event,
)
from ckptstore.supervisor.supervisor_lock import SupervisorLock
from ckptstore.supervisor.waiting_directory import layout_of
from ckptstore.system.facts.secrets import without_passwords
from ckptstore.system.process_tree import adopt_orphans
from ckptstore.system.stop_signals import TRY_AGAIN

_STOPPED_BY = (-signal.SIGTERM, -signal.SIGUSR1)
_DISK_LOOK_EVERY_S = 5.0
_LAST_ALERTS_S = 10.0
_MIB = 1 << 20
# A machine that is short of processes, memory or descriptors, or whose network file system is away, recovers.
_PASSING = frozenset({
    errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY, errno.ESTALE, errno.EIO, errno.ETIMEDOUT
})  # fmt: skip
_LONGEST_WITHOUT_ROOM_S, _FIRST_PAUSE_S = 3600.0, 1.0


@dataclass(slots=True, kw_only=True)
class _Ended:
    """How a start ended: for the policy, and for the record."""

    end: End
    facts: EndFacts
    log: Path | None


def supervise(
    path: Path,
    command: Sequence[str],
    limits: Limits,
    *,
    log: Callable[[str], object],
    run: str | None = None,
    shown_on: int | None = None,
    alerts: Alerts | None = None,
    metrics_file: Path | None = None,
) -> SupervisedOutcome:
    """Run a command, and restart it after each crash, until it ends well or a restart makes no sense.

    It is restarted after a crash, a kill, a hang and exit code 75; not if it is done, if a signal asked this process
    for a stop (which is passed on), and if `RestartPolicy` sees no use in it. If a command that a supervisor before
    this one has started still runs, that one is watched instead of a second.

    It handles signals, and reaps all children of this process: it is for a process of its own, and for its main thread.

    Args:
        path: The store that the command writes to; there may be none yet.
        command: Program and arguments.
        limits: When to give up.
        log: Called with each message.
        run: The run whose checkpoints count as progress; None for all.
        shown_on: A descriptor on which the command's output is shown, besides its log; None for none.
        alerts: Tells people what becomes of the command, and writes `metrics_file`; None for neither.
        metrics_file: A file for metrics of the store's runs, absolute, or None.

    Raises:
        NotAStoreError: The path is a file, lies below one, or is another program's database; nothing was started.
        SupervisorRunningError: Another supervisor has this run; nothing was started.
        OSError: The command cannot be started; `filename` is its name.
    """
    _check_no_file_in_the_way(path)
    adopt_orphans()
    lock = SupervisorLock(path, run)
    if alerts is not None:
        alerts.watch(absolute(path), run, metrics_file=metrics_file)
    try:
        with SignalInbox() as inbox:
            return _Supervision(
                path, command, limits, lock, inbox, log=log, run=run, shown_on=shown_on, alerts=alerts
            ).run()
    finally:
        lock.release()
        if alerts is not None:
            alerts.close(_LAST_ALERTS_S)


def _check_no_file_in_the_way(path: Path) -> None:
    store = absolute(path)
    for above in (store, *store.parents):
        if above.exists() and not above.is_dir():
            raise NotAStoreError(path=above, reason="it is a file, not a directory")


class _Supervision:
    """The supervision of one command; see `supervise`."""

    def __init__(
        self,
        path: Path,
        command: Sequence[str],
        limits: Limits,
        lock: SupervisorLock,
        inbox: SignalInbox,
        *,
        log: Callable[[str], object],
        run: str | None,
        shown_on: int | None,
        alerts: Alerts | None,
    ) -> None:
        self._path, self._command, self._limits, self._run = path, tuple(command), limits, run
        self._inbox, self._log, self._is_shown = inbox, log, shown_on is not None
        self._reaper = Reaper()
        self._locks = lock.directory
        self._starter = Starter(
            path, self._command, lock, self._reaper, limits=limits, log=log, shown_on=shown_on
        )
        self._notices = Notices(alerts, path, run)
        self._leftovers = Leftovers(inbox, self._reaper, log=log, grace_s=limits.grace_s, alerts=alerts)
        self._policy = RestartPolicy(limits)
        self._ends: Counter[str] = Counter()
        self._full_starts = 0
        self._said: set[str] = set()

    def run(self) -> SupervisedOutcome:
        """Run the command to its end."""
        state = look(self._path, self._run) if layout_of(self._path) is not None else StoreState()
        self._complain_of_store(state.complaint)
        progress = Progress(state)
        start = self._starter.take_over() or self._starter.start()
        while True:
            ended = self._watch(start, progress)
            self._ends[ended.end.reason] += 1
            decision = self._policy.after(ended.end)
            if isinstance(decision, Stop):
                return self._outcome(ended, decision, progress)
            if not self._wait(decision, ended):
                stop = Stop(reason="signal", text="a signal asked to stop")
                self._policy.restarts -= 1
                return self._outcome(ended, stop, progress, code=TRY_AGAIN)
            try:
                started = self._start_again()
            except OSError as error:
                code = None
                text = str(error) if self._locks.is_dir() else f"{self._locks} was removed"
                if error.filename == self._command[0]:
                    code = 127 if isinstance(error, FileNotFoundError) else 126
                    text = f"it cannot be started any more: {error.strerror}"
                stop = Stop(reason="cannot_start", text=text)
                return self._outcome(ended, stop, progress, code=code)
            if started is None:
                stop = Stop(reason="signal", text="a signal asked to stop")
                return self._outcome(ended, stop, progress, code=TRY_AGAIN)
            start = started

    def _start_again(self) -> Start | None:
        """Start the command; tries again while the machine has no room for a process. None after a signal to stop.

        Raises:
            OSError: As `Starter.start`, or there was no room for an hour.
        """
        until = time.monotonic() + _LONGEST_WITHOUT_ROOM_S
        failures = 0
        while True:
            try:
                return self._starter.start()
            except OSError as error:
                if error.errno not in _PASSING or time.monotonic() >= until:
                    raise
                self._complain(f"the command cannot be started now, and is tried again: {error.strerror}")
            if not self._inbox.pause(grown_pause_s(_FIRST_PAUSE_S, failures)):
                return None
            failures += 1

    def _complain(self, text: str) -> None:
        """Log what is wrong, once."""
        if text not in self._said:
            self._said.add(text)
            self._log(text)

    def _complain_of_store(self, complaint: str | None) -> None:
        if complaint is not None:
            self._complain(f"the store cannot be read or written: {complaint}")

    # --- one start -----------------------------------------------------------------------------------

    def _watch(self, start: Start, progress: Progress) -> _Ended:
        """Watch a start to its end, end what it leaves behind, and record how it ended."""
        watch = StartWatch(
            start.command,
            start.output,
            layout=self._layout,
            run=self._run,
            limits=self._limits,
            inbox=self._inbox,
            log=self._log,
            event=self._record_event,
        )
        seen = watch.until_end()
        self._follow_into_background(start, seen)
        layout = self._layout()
        locks = None if layout is None else Path(os.path.realpath(layout.locks))
        self._leftovers.end(start.command.pid, locks, also=start.holders)
        log = None if start.output is None else start.output.path
        lines = [] if start.output is None else [without_passwords(line) for line in start.output.close()]
        start.finish(seen.exit_code)
        self._reaper.forget()
        try:
            log = start_logs.move_to_store(self._path, log)
        except StorageError as error:
            self._complain(str(error))
        record = StartEnd(
            token=start.token,
            exit_code=seen.exit_code,
            reason=seen.reason,
            detail=seen.detail,
            output=tuple(lines),
            log=None if log is None else str(log),
        )
        facts = record_end(self._path, self._run, record)
        self._complain_of_store(facts.state.complaint)
        return _Ended(end=self._conclude(seen, facts, lines, progress), facts=facts, log=log)

    def _follow_into_background(self, start: Start, seen: Watched) -> None:
        """Wait for processes that the command has left, where they and not the command do the training."""
        if seen.exit_code != 0:
            return
        layout = self._layout()
        locks = None if layout is None else Path(os.path.realpath(layout.locks))
        left = [
            found
            for found in self._leftovers.settled(start.command.pid, locks)
            if not is_saving(found, locks)
        ]
        trains = any(is_training(process, locks) for process in left)
        if left and (trains or self._has_nothing_saved()):
            self._log(
                f"the command ended with exit code 0 and has left processes, which are waited for: {shown(left)}; "
                "the training should not go into the background"
            )
            tick = (lambda: None) if start.output is None else start.output.tick
            seen.exit_code = self._leftovers.wait_for(left, start.command.pid, locks, tick)

    def _has_nothing_saved(self) -> bool:
        return self._layout() is None or look(self._path, self._run).newest == 0

    def _conclude(self, seen: Watched, facts: EndFacts, lines: Sequence[str], progress: Progress) -> End:
        code = end_reasons.exit_code_of(seen.exit_code, facts.attempt)
        stopped = self._inbox.stop_requested
        if stopped and code in _STOPPED_BY:
            # The job got the signal twice, directly and through us; the second came while it was ending.
            code = TRY_AGAIN
        beat = self._last_beat(seen, facts)
        return end_reasons.end_of(
            code,
            seen.reason,
            facts.attempt,
            lines,
            progressed=progress.check(facts.state),
            stop_requested=stopped,
            step=None if beat is None else beat.step,
            at_s=time.monotonic(),
        )

    def _last_beat(self, seen: Watched, facts: EndFacts) -> Beat | None:
        layout = self._layout()
        if layout is None or facts.attempt is None:
            return seen.beat
        return read_heartbeat(layout.heartbeats / facts.attempt.run) or seen.beat

    def _layout(self) -> Layout | None:
        try:
            return layout_of(self._path)
        except (OSError, NotAStoreError):
            return None

    def _record_event(self, kind: str, run: str | None, detail: dict[str, Any]) -> None:
        self._complain_of_store(record_event(self._path, kind, run, detail))

    # --- between two starts --------------------------------------------------------------------------

    def _wait(self, restart: Restart, ended: _Ended) -> bool:
        """Wait for the next start; returns False if a signal has asked for a stop meanwhile."""
        how = end_reasons.in_words(ended.end.exit_code, ended.end.reason)
        number = self._policy.restarts + 1
        where = _where_it_begins(ended.facts.state)
        if restart.for_disk:
            then = f"when there is room on the disk again, {where}"
            self._tell_restart(ended, how, number, then)
            return self._wait_for_disk(restart.pause_s, ended.facts.state)
        self._full_starts = 0
        then = f"in {restart.pause_s:.3g} s, {where}" if restart.pause_s else where
        self._tell_restart(ended, how, number, then)
        return self._inbox.pause(restart.pause_s)

    def _tell_restart(self, ended: _Ended, how: str, number: int, then: str) -> None:
        comma = ", " if then.startswith("in ") else " "
        self._log(f"{how}; start {number}{comma}{then}")
        self._notices.ended(ended.end, ended.facts, then=f"start {number}{comma}{then}")
        self._notices.restarting(ended.end, ended.facts, number=number, how=then)

    def _wait_for_disk(self, longest_s: float, state: StoreState) -> bool:
        directory = next(above for above in (self._path, *absolute(self._path).parents) if above.is_dir())
        point = state.resume_point
        now = free_bytes(directory) or 0
        needed = now + _MIB if point is None else point.nbytes + point.nbytes // 5 + _MIB
        until = time.monotonic() + longest_s
        # Where free space is no sign, as with a quota, starts come after longer and longer pauses.
        pause_s = min(grown_pause_s(_DISK_LOOK_EVERY_S, self._full_starts), longest_s)
        self._full_starts += 1
        while self._inbox.pause(min(pause_s, max(0.0, until - time.monotonic()))):
            if (free_bytes(directory) or 0) >= needed or time.monotonic() >= until:
                return True
        return False

    # --- the end -------------------------------------------------------------------------------------

    def _outcome(
        self, ended: _Ended, stop: Stop, progress: Progress, *, code: int | None = None
    ) -> SupervisedOutcome:
        exit_code = ended.end.exit_code if code is None else code
        how = end_reasons.in_words(ended.end.exit_code, ended.end.reason)
        if stop.reason is None:
            if ended.facts.state.newest == 0:
                self._log(f"{how}, but no checkpoint is in {absolute(self._path)}: was it to save there?")
            elif ended.end.reason != "finished":
                self._log(f"{how}, but {end_reasons.unfinished(ended.end.reason, ended.facts.attempt)}")
        elif code == TRY_AGAIN:
            self._log(f"not restarted: {stop.text}")
        else:
            self._log(f"{how}; not restarted: {stop.text}")
        self._notices.stopped(ended.end, ended.facts, stop, restarts=self._policy.restarts)
        is_final = stop.reason not in (None, "signal") or (
            stop.reason == "signal" and self._inbox.stops[0][0] == signal.SIGINT
        )
        if is_final:
            run = self._run if ended.facts.attempt is None else ended.facts.attempt.run
            detail = {"reason": stop.reason, "message": stop.text, "restarts": self._policy.restarts}
            self._record_event("stopped", run, detail)
        if stop.reason is None and self._layout() is None and self._is_shown and ended.log is not None:
            start_logs.forget(ended.log)  # it is done, and has no store that could keep it
        saved = count_saved(self._path, self._run, progress.first or 0) if progress.has_new else 0
        return SupervisedOutcome(
            exit_code=exit_code if exit_code >= 0 else 128 - exit_code,
            restarts=self._policy.restarts,
            checkpoints=saved,
            resume_point=ended.facts.state.resume_point,
            stopped=stop.reason,
            message=stop.text,
            ends=dict(self._ends),
            log=ended.log,
        )


def _where_it_begins(state: StoreState) -> str:
    point = state.resume_point
    if point is None:
        return "begins from scratch: there is no resume point yet"
    age = text.age_text((datetime.now(UTC) - point.created_at).total_seconds())
    return f"resumes from version {point.version}: {text.position_text(point)}, {age} old"
