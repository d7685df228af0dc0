"""Records of runs and of the attempts at them: frozen, typed, without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from ckptstore.records.checkpoints import Checkpoint, json_number, json_time

RunState = Literal["running", "saving", "hung", "interrupted", "finished", "failed", "stopped"]
EndReason = Literal[
    "finished",
    "preempted",
    "interrupted",
    "killed",
    "oom",
    "disk_full",
    "nan",
    "exception",
    "hang",
    "unknown",
]
END_REASONS: tuple[EndReason, ...] = get_args(EndReason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One process that trained a run, from its start to its end.

    Attributes:
        run: Name of the run.
        attempt: Its number within the run; the first is 1.
        started_at: When its training began; aware, UTC.
        ended_at: When it ended, or was last known to be alive if it was killed; None while it trains.
        host: Name of the machine.
        pid: Id of the process on that machine.
        command: Program and arguments.
        directory: Working directory.
        git_commit: Commit of the working directory's repository, or None where there is none.
        git_dirty: True if the files differed from that commit; None where there is no repository.
        versions: Versions of Python, Keras, the backend (and its name) and packages that results depend on.
        devices: Names of the devices that it trained on.
        environment: Variables that tell where and how it ran, from a list of allowed names; never secrets.
        supervised: True if ``ckptstore run`` started it.
        resumed_from: Version of the checkpoint that it resumed from, or None if it began from scratch.
        batches_lost: Batches that the attempt before had trained behind that checkpoint; None where unknown.
        exit_code: The process's exit code; None where nobody saw it, or where a signal ended it.
        signal: Name of the signal that ended it, such as ``"SIGKILL"``, or None.
        reason: Probable reason of its end; None while it trains.
        detail: What is known beyond that: of an exception its type, message and last frames; the last lines of output;
            why a hang is believed to be one.
        log: File with its output, absolute, or None without a supervisor.
        diff: Compressed file with what differed from the commit, absolute, or None.
    """

    run: str
    attempt: int
    started_at: datetime
    ended_at: datetime | None = None
    host: str = ""
    pid: int = 0
    command: tuple[str, ...] = ()
    directory: str = ""
    git_commit: str | None = None
    git_dirty: bool | None = None
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    devices: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    supervised: bool = False
    resumed_from: int | None = None
    batches_lost: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    reason: EndReason | None = None
    detail: Mapping[str, Any] = field(default_factory=dict, hash=False)
    log: Path | None = None
    diff: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the attempt as the JSON object of the command line; times are ISO 8601 in UTC."""
        return {
            "run": self.run,
            "attempt": self.attempt,
            "started_at": json_time(self.started_at),
            "ended_at": None if self.ended_at is None else json_time(self.ended_at),
            "host": self.host,
            "pid": self.pid,
            "command": list(self.command),
            "directory": self.directory,
            "git_commit": self.git_commit,
            "git_dirty": self.git_dirty,
            "versions": dict(self.versions),
            "devices": list(self.devices),
            "environment": dict(self.environment),
            "supervised": self.supervised,
            "resumed_from": self.resumed_from,
            "batches_lost": self.batches_lost,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "reason": self.reason,
            "detail": dict(self.detail),
            "log": None if self.log is None else str(self.log),
            "diff": None if self.diff is None else str(self.diff),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAttempt:
    """The facts that are recorded when an attempt begins.

    Attributes:
        run: As for `Attempt`, like all that follow but the last two.
        started_at: When its training began.
        host: Name of the machine.
        pid: Id of the process.
        command: Program and arguments, without secrets.
        directory: Working directory.
        git_commit: Commit, if it is known by now.
        git_dirty: Whether the files differ from it, if that is known by now.
        versions: Versions of Python and packages.
        devices: Names of devices.
        environment: Variables that tell where and how it runs.
        supervised: True if ``ckptstore run`` started it.
        batches_lost: Batches that the attempt before had trained and that it trains again, if that is known by now.
        detail: What is known beyond that.
        log: File with its output, or None.
        diff: File with what differs from the commit, or None.
        boot_id: Id of the machine's boot, or None where it has none.
        oom_kills: How often the kernel had killed a process of its cgroup for want of memory; None where unknown.
    """

    run: str
    started_at: datetime
    host: str
    pid: int
    command: tuple[str, ...] = ()
    directory: str = ""
    git_commit: str | None = None
    git_dirty: bool | None = None
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    devices: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    supervised: bool = False
    batches_lost: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict, hash=False)
    log: Path | None = None
    diff: Path | None = None
    boot_id: str | None = None
    oom_kills: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAttempt:
    """An attempt whose end is not recorded, with what tells how it ended.

    Attributes:
        attempt: The attempt.
        boot_id: Id of the machine's boot when it began, or None.
        oom_kills: Kills for want of memory in its cgroup when it began, or None.
    """

    attempt: Attempt
    boot_id: str | None
    oom_kills: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How an attempt ended; as for `Attempt`.

    Attributes:
        reason: Probable reason.
        ended_at: When it ended, or was last known to be alive.
        exit_code: Exit code, or None.
        signal: Name of the signal that ended it, or None.
        detail: Added to the attempt's detail.
    """

    reason: EndReason
    ended_at: datetime
    exit_code: int | None = None
    signal: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOverview:
    """The newest facts that a manifest has about a run.

    Attributes:
        name: Its name.
        checkpoints: Number of its complete checkpoints.
        latest: The newest of them, or None.
        best: The best of them by the metric that its callback watches, or None.
        resume_point: The newest of them that carries training state, whatever became of its payload, or None.
        attempts: Number of its attempts.
        last_attempt: The newest of them, or None.
        is_finished: True if its newest checkpoint is one that finished a fit.
        stopped_at: When a supervisor gave it up, if nothing was trained since; aware, UTC.
        stop: What the supervisor recorded of that.
    """

    name: str
    checkpoints: int
    latest: Checkpoint | None
    best: Checkpoint | None
    resume_point: Checkpoint | None
    attempts: int
    last_attempt: Attempt | None
    is_finished: bool
    stopped_at: datetime | None
    stop: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run, and where it stands now.

    Attributes:
        name: Its name.
        state: ``"running"``, ``"saving"`` (its training waits for a save, or has ended and a save has not), ``"hung"``,
            ``"interrupted"`` (it can be resumed), ``"finished"``, ``"failed"`` (it ended by an error) or ``"stopped"``
            (a supervisor gave up, or a person stopped it). It rests on held locks and on the heartbeat.
        note: A word more on the state: what the training is doing, that a signal has stopped its process, for how long
            it has been silent, why it ended; an empty text where there is nothing to add.
        attempts: Number of its attempts.
        checkpoints: Number of its complete checkpoints.
        epoch: Zero-based index of the epoch that it is in, or was last known to be in; None before the first.
        batch: Zero-based index of the last finished batch of that epoch; None at the epoch's end, or before the first.
        step: Finished train batches so far, or None.
        steps_per_s: Train batches per second, lately; None if it does not train, or has just begun.
        latest: Its newest complete checkpoint, or None.
        best: Its best checkpoint by the metric that its callback watches, or None.
        resume_point: The checkpoint that it would resume from, or None.
        parent: The checkpoint that it was forked from, as ``"run:version"``, or None.
        epochs: Number of epochs that it trains to, or None where unknown.
        batches: Number of batches in an epoch, or None where unknown.
        last_attempt: Its newest attempt, or None.
    """

    name: str
    state: RunState
    attempts: int
    checkpoints: int
    note: str = ""
    epoch: int | None = None
    batch: int | None = None
    step: int | None = None
    steps_per_s: float | None = None
    latest: Checkpoint | None = None
    best: Checkpoint | None = None
    resume_point: Checkpoint | None = None
    parent: str | None = None
    epochs: int | None = None
    batches: int | None = None
    last_attempt: Attempt | None = None

    @property
    def is_active(self) -> bool:
        """True while a process trains it, though it may hang, or the last save of a training has not ended."""
        return self.state in ("running", "saving", "hung")

    @property
    def begun_at(self) -> datetime | None:
        """When its newest attempt began; of a run without one, when its newest checkpoint was saved, or None."""
        if self.last_attempt is not None:
            return self.last_attempt.started_at
        return None if self.latest is None else self.latest.created_at

    def to_json(self) -> dict[str, Any]:
        """Return the run as the JSON object of the command line."""
        return {
            "run": self.name,
            "state": self.state,
            "note": self.note,
            "attempts": self.attempts,
            "checkpoints": self.checkpoints,
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "steps_per_s": None if self.steps_per_s is None else json_number(self.steps_per_s),
            "latest": None if self.latest is None else self.latest.to_json(),
            "best": None if self.best is None else self.best.to_json(),
            "resume_point": None if self.resume_point is None else self.resume_point.to_json(),
            "parent": self.parent,
            "epochs": self.epochs,
            "batches": self.batches,
            "last_attempt": None if self.last_attempt is None else self.last_attempt.to_json(),
        }


def newest_run(runs: Iterable[Run]) -> Run | None:
    """Return the run that was begun last, of those that train, or else of all; None where there are none."""
    return max(
        runs, key=lambda run: (run.is_active, run.begun_at or datetime.min.replace(tzinfo=UTC)), default=None
    )
