"""Records the attempts that this process makes at the runs of an open store; a failure never ends a training."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ckptstore import version
from ckptstore.errors import RunTakenOverError, StoreRemovedError
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Attempt, EndReason, NewAttempt
from ckptstore.storage.heartbeat_file import read_heartbeat
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import store_lock
from ckptstore.storage.reserve import release_and_retry
from ckptstore.store.attempts import ending_process, own_log
from ckptstore.store.attempts.ends import by_error
from ckptstore.store.attempts.evidence import ends_by_evidence, is_of, oom_kills
from ckptstore.store.attempts.git_record import DiffKeeper, GitRecord
from ckptstore.system import messages
from ckptstore.system.facts.command import command_line
from ckptstore.system.facts.environment import variables
from ckptstore.system.facts.git import ask_git
from ckptstore.system.facts.versions import devices, versions
from ckptstore.system.processes import boot_id
from ckptstore.system.supervisor_variables import SUPERVISOR_VARIABLE

# Seconds that the end of a training waits for git, if it has not answered by then.
_WAIT_FOR_GIT_S = 1.0


@dataclass(slots=True)
class _OpenAttempt:
    """An attempt that this process makes.

    Attributes:
        number: Its number.
        step_before: Step that the attempt before had reached, or None.
        otherwise: The reason to record when the store is closed and nothing else is known.
        thread: The thread in which it began.
        git: Adds the facts that git tells, or None if they are known.
        planned: Reason and detail to record when the store is closed, however it is closed; or None.
    """

    number: int
    step_before: int | None
    otherwise: EndReason
    thread: int = field(default_factory=threading.get_ident)
    git: GitRecord | None = None
    planned: tuple[EndReason, dict[str, Any]] | None = None


class AttemptRecorder:
    """The attempts that a store's owner makes at its runs.

    An attempt begins with `begin` and ends when the store is closed, or before with `failed`; each is one transaction.
    A crash leaves it open, and the next attempt records how it ended. What cannot be recorded is reported once; it
    never ends a training.

    Args:
        layout: The store's paths.
        manifest: The store's manifest.
    """

    def __init__(self, layout: Layout, manifest: Manifest) -> None:
        self._layout = layout
        self._manifest = manifest
        self._open: dict[str, _OpenAttempt] = {}
        self._ended: set[str] = set()
        self._mutex = threading.RLock()
        self._pid = os.getpid()
        self._has_failed = False

    def number(self, run: str) -> int | None:
        """Return the number of the attempt that is being made at a run here, or None."""
        found = self._open.get(run) if self._pid == os.getpid() else None
        return None if found is None else found.number

    # --- the beginning -------------------------------------------------------------------------------

    def begin(self, run: str, *, otherwise: EndReason = "finished") -> int | None:
        """Record that an attempt begins, unless one is being made at the run; the caller owns the run.

        With it, the ends of the run's earlier attempts are recorded by evidence, where they have recorded none.

        Args:
            run: The run.
            otherwise: The reason to record when the store is closed without an error, and `plan` was not called.

        Returns:
            The attempt's number; None if it could not be recorded, or has ended.
        """
        with self._mutex:
            if self._pid != os.getpid() or run in self._ended:
                return None
            if run not in self._open:
                begun = self._reporting(run, partial(self._begin, run, otherwise))
                if begun is None:
                    self._ended.add(run)
                    return None
                self._open[run] = begun
                ending_process.add(self)
            return self._open[run].number

    def _begin(self, run: str, otherwise: EndReason) -> _OpenAttempt:
        question = ask_git()
        last = self._manifest.attempts.last(run)
        step_before = None if last is None else self._last_step_of(last)
        starts_over = self._manifest.checkpoints.latest(run) is None
        log = own_log.planned(self._layout)
        keeper = DiffKeeper(self._layout, None if last is None else last.diff)
        git = keeper.known_facts(question)
        begin = partial(
            self._manifest.attempts.begin,
            self._facts(run, log.path, batches_lost=step_before if starts_over else None, git=git or {}),
            ends=ends_by_evidence(self._layout, self._manifest, run),
            has_own_log=log.moves,
            at_least=own_log.lowest_number(self._layout, run),
        )
        number = self._locked(begin)
        begun = _OpenAttempt(number=number, step_before=step_before, otherwise=otherwise)
        if log.moves and not own_log.move(log, self._layout, run, number):
            self._add_facts(run, number, {"log": log.path})
        if git is None:
            begun.git = GitRecord(
                question, partial(keeper.facts, run, number), partial(self._add_facts, run, number)
            )
        return begun

    def _last_step_of(self, attempt: Attempt) -> int | None:
        """Return the step that an attempt had reached, as far as its heartbeat tells; None of one that is finished."""
        beat = read_heartbeat(self._layout.heartbeats / attempt.run)
        is_known = beat is not None and is_of(beat, attempt) and attempt.reason != "finished"
        return beat.step if beat is not None and is_known else None

    def _facts(
        self, run: str, log: Path | None, *, batches_lost: int | None, git: Mapping[Any, Any]
    ) -> NewAttempt:
        supervisor = os.environ.get(SUPERVISOR_VARIABLE)
        try:
            directory = str(Path.cwd())
        except OSError:
            directory = ""  # it was removed
        return NewAttempt(
            run=run,
            started_at=datetime.now(UTC),
            host=socket.gethostname(),
            pid=os.getpid(),
            command=command_line(),
            directory=directory.encode("utf-8", "backslashreplace").decode("utf-8"),
            versions=versions() | {"ckptstore": version.__version__},
            devices=devices(),
            environment=variables(),
            supervised=bool(supervisor),
            batches_lost=batches_lost,
            log=log,
            boot_id=boot_id(),
            oom_kills=oom_kills(),
            **{**git, "detail": git.get("detail", {}) | ({"start": supervisor} if supervisor else {})},
        )

    # --- facts that become known later ---------------------------------------------------------------

    def facts_of_resume(self, run: str, version: int, step: int | None) -> tuple[int, dict[Any, Any]] | None:
        """Return the number of a run's attempt, and what to record of its resume; None where none is being made.

        Args:
            run: The run.
            version: The checkpoint that it resumes from.
            step: The step of that, or None.
        """
        found = self._open.get(run) if self._pid == os.getpid() else None
        if found is None:
            return None
        before = found.step_before
        lost = None if before is None or step is None else max(0, before - step)
        return found.number, {"resumed_from": version, "batches_lost": lost}

    def _add_facts(self, run: str, number: int, facts: Mapping[Any, Any]) -> None:
        self._locked(partial(self._manifest.attempts.add_facts, run, number, facts))

    # --- the end -------------------------------------------------------------------------------------

    def plan(self, run: str, reason: EndReason, **detail: Any) -> None:
        """Set the reason to record when the store is closed, however it is closed; the first call counts."""
        found = self._open.get(run)
        if found is not None and found.planned is None:
            found.planned = reason, detail

    def failed(self, error: BaseException, run: str | None = None, *, thread: int | None = None) -> None:
        """Record that an exception has ended attempts, though the store is still open.

        Args:
            error: The exception.
            run: The run; None for all of them.
            thread: Only those that began in this thread; None for all of them.
        """
        for name, found in list(self._open.items()):
            if run in (None, name) and thread in (None, found.thread):
                self._end(name, *by_error(error))

    def close(self, error: BaseException | None = None) -> None:
        """Record the ends of all attempts that are being made: the store is being closed, perhaps by an exception."""
        for run, found in list(self._open.items()):
            by_default = (found.otherwise, {}) if error is None else by_error(error)
            self._end(run, *(found.planned or by_default))

    def _end(self, run: str, reason: EndReason, detail: Mapping[str, Any]) -> None:
        with self._mutex:
            found = self._open.pop(run, None)
            if not self._open:
                ending_process.remove(self)
            if found is None or self._pid != os.getpid():
                return
            self._ended.add(run)
        facts = {} if found.git is None else found.git.finish(_WAIT_FOR_GIT_S)
        end = partial(
            self._manifest.attempts.end, run, found.number, reason=reason, detail=detail, facts=facts
        )
        self._reporting(run, partial(self._locked, end))

    def _locked(self, change: Callable[[], Any]) -> Any:
        with store_lock(self._layout.locks):
            return release_and_retry(self._layout.reserve, change)

    def _reporting(self, run: str, record: Callable[[], Any]) -> Any:
        """Record something; what prevents that is reported once."""
        try:
            return record()
        except (RunTakenOverError, StoreRemovedError):
            return None  # the training reports that by itself
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                messages.log(
                    f"{self._layout.root}: the attempt at run {run!r} cannot be recorded ({error}); the training is "
                    "not affected"
                )
            return None
