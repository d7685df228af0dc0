"""Heartbeat of a training: tells where it stands, and by a kernel lock that it lives.

It is written at each change of phase, and else at most every second. Nothing depends on it but what people and
supervisors are shown: a disk that refuses it never ends or delays a training. The file is that of `heartbeat_file`.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

from ckptstore.records import SILENCES, Phase
from ckptstore.storage.byte_locks import lock_byte, unlock_byte
from ckptstore.storage.files import make_shown_directory
from ckptstore.storage.heartbeat_file import TRAINING, encode, read_heartbeat
from ckptstore.storage.layout import Layout
from ckptstore.system import messages
from ckptstore.system.processes import boot_id, clock_s, start_ticks
from ckptstore.system.stack_dump import StackDump

INTERVAL_S = 1.0
# A write never costs more than this share of a training's time, however slow the disk; but one a minute is made.
_SHARE = 0.01
_LONGEST_INTERVAL_S = 60.0
# Seconds after which an older rate of steps counts for a third.
_RATE_S = 20.0


class Heartbeat:
    """The heartbeat of one attempt at a run; made by `begin`.

    No method raises, and between two writes none makes a system call. What cannot be written is reported once, and
    tried again a second later. A forked child has no part in it.

    Attributes:
        attempt: Number of the attempt; may be set later, and is written with the next sign of life.
        before: The heartbeat that the attempt before left, or None.
        epochs: Number of epochs that it trains to, or None.
        batches: Number of batches in an epoch, or None.
        sparse: True while signs of life come with saves alone.
    """

    def __init__(self, layout: Layout, run: str, attempt: int, *, sparse: bool) -> None:
        self.attempt = attempt
        self.epochs: int | None = None
        self.batches: int | None = None
        self.sparse = sparse
        self._layout = layout
        self._path = layout.heartbeats / run
        self._run = run
        self._stacks: StackDump | None = None
        self._descriptor = -1
        self._is_locked = False
        self._has_failed = False
        self._process = {
            "pid": os.getpid(),
            "started_ticks": start_ticks(),
            "host": socket.gethostname(),
            "boot_id": boot_id(),
        }
        self.before = read_heartbeat(self._path)
        slowest = {} if self.before is None else self.before.slowest_s
        self._slowest = {silence: slowest.get(silence, 0.0) for silence in SILENCES.values()}
        self._phase: Phase = "starting"
        self._phase_since_s = clock_s()
        self._epoch: int | None = None
        self._batch: int | None = None
        self._step: int | None = None
        self._metrics: Mapping[str, Any] = {}
        self._steps_per_s: float | None = None
        self._trained_s, self._trained = 0.0, 0
        self._last_s = time.monotonic()
        self._next_write_s = 0.0

    @classmethod
    def begin(cls, layout: Layout, run: str, attempt: int = 0, *, sparse: bool = False) -> Heartbeat:
        """Begin the heartbeat of an attempt, and hold its lock until `end` or the death of this process.

        Args:
            layout: The store's paths.
            run: The run, which the caller owns.
            attempt: Number of the attempt, or 0 where it has none.
            sparse: True if signs of life come with saves alone, so that a silence tells nothing.
        """
        heartbeat = cls(layout, run, attempt, sparse=sparse)
        _beating.add(heartbeat)
        heartbeat._stacks = StackDump.for_supervisor()
        heartbeat._write()
        return heartbeat

    @property
    def phase(self) -> Phase:
        """The phase that the training is in."""
        return self._phase

    def beat(
        self, epoch: int, batch: int | None, step: int | None, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Tell that a train batch has ended, and where.

        Args:
            epoch: Zero-based index of the epoch.
            batch: Zero-based index of the batch in it; None if the epoch has ended.
            step: Finished train batches of the run, or None.
            metrics: The logs; only what is a plain number in them is written, and nothing else is touched.
        """
        now = time.monotonic()
        is_training = self._phase == "training"
        if is_training:
            self._trained_s += now - self._last_s
            self._trained += 1 if step is None or self._step is None else step - self._step
        self._note_silence(now)
        self._epoch, self._batch, self._step = epoch, batch, step
        self.tell(metrics)
        if not is_training:
            self.enter("training")
        elif now >= self._next_write_s:
            self._write()

    def tell(self, metrics: Mapping[str, Any] | None) -> None:
        """Take note of logs; they are written with the next sign of life."""
        if metrics:
            self._metrics = metrics

    def alive(self) -> None:
        """Give a sign of life that is no finished train batch: a batch of a validation, or one that is skipped."""
        now = time.monotonic()
        self._note_silence(now)
        if now >= self._next_write_s:
            self._write()

    def enter(self, phase: Phase, *, epoch: int | None = None) -> Phase:
        """Begin a phase; returns the one before, so that a phase within another can return to it.

        Args:
            phase: The phase.
            epoch: Zero-based index of the epoch, where another begins.
        """
        before = self._phase
        if epoch is not None and epoch != self._epoch:
            self._epoch, self._batch = epoch, None
        if phase != before:
            self._note_silence(time.monotonic())
            self._phase, self._phase_since_s = phase, clock_s()
            self._write()
        return before

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Be in a phase for the block, and in the one before again after it."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def end(self) -> None:
        """Write that the training has ended, and release the lock. May be called again."""
        if self not in _beating:
            return
        if self._stacks is not None:
            self._stacks.close()
            self._stacks = None
        self.enter("ended")
        _beating.discard(self)
        self._close()

    def _note_silence(self, now: float) -> None:
        silence, self._last_s = now - self._last_s, now
        kind = SILENCES.get(self._phase)
        if kind is not None and silence > self._slowest[kind]:
            self._slowest[kind] = silence

    # --- the file ------------------------------------------------------------------------------------

    def _write(self) -> None:
        if self not in _beating:
            return
        began = time.monotonic()
        try:
            if not self._is_in_place():
                self._close()
                self._open()
            if not self._is_locked:
                self._is_locked = lock_byte(self._descriptor, TRAINING)
            os.pwrite(self._descriptor, encode(self._fields()), 0)
        except Exception as error:
            self._report(error)
        now = time.monotonic()
        pause_s = min(max(INTERVAL_S, (now - began) / _SHARE), _LONGEST_INTERVAL_S)
        self._next_write_s = now + pause_s

    def _is_in_place(self) -> bool:
        return self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink > 0

    def _open(self) -> None:
        directory = self._layout.heartbeats
        if not directory.is_dir():
            self._layout.require_manifest()  # nothing is made in the place of a store that was removed
            make_shown_directory(directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no ordinary file", str(self._path))
        self._descriptor = descriptor

    def _close(self) -> None:
        descriptor, self._descriptor, self._is_locked = self._descriptor, -1, False
        if descriptor >= 0:
            unlock_byte(descriptor, TRAINING)
            with suppress(OSError):
                os.close(descriptor)

    def _report(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            messages.log(
                f"{self._path}: the heartbeat of run {self._run!r} cannot be written ({error}); the training is not "
                "affected, but its state will not be shown"
            )

    def _fields(self) -> dict[str, Any]:
        return {
            "run": self._run,
            "attempt": self.attempt,
            **self._process,
            "at_s": round(clock_s(), 3),
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "phase": self._phase,
            "phase_since_s": round(self._phase_since_s, 3),
            "epoch": self._epoch,
            "batch": self._batch,
            "step": self._step,
            "epochs": self.epochs,
            "batches": self.batches,
            "steps_per_s": self._rate(),
            "slowest_s": {kind: round(longest, 3) for kind, longest in self._slowest.items() if longest},
            "dump": None if self._stacks is None else self._stacks.signal,
            "sparse": self.sparse,
            "metrics": _plain(self._metrics),
        }

    def _rate(self) -> float | None:
        """Return the steps per second, as an average in which older ones count for less and less."""
        trained_s, trained = self._trained_s, self._trained
        self._trained_s, self._trained = 0.0, 0
        if trained_s > 0 and trained > 0:
            rate, before = trained / trained_s, self._steps_per_s
            kept = math.exp(-trained_s / _RATE_S)
            self._steps_per_s = rate if before is None else kept * before + (1 - kept) * rate
        return None if self._steps_per_s is None else float(f"{self._steps_per_s:.4g}")

    def __del__(self) -> None:
        """Release the lock of a training that was dropped without an end."""
        if getattr(self, "_descriptor", -1) >= 0:
            with suppress(Exception):  # the interpreter may be ending
                if self._stacks is not None:
                    self._stacks.close()
                os.close(self._descriptor)


_beating: WeakSet[Heartbeat] = WeakSet()


def all_alive() -> None:
    """Give a sign of life of all trainings of this process, when one of them knows of a wait of all."""
    for heartbeat in list(_beating):
        heartbeat.alive()


def _leave_in_child() -> None:
    """Close the files in a forked child: the lock belongs to the open file, and would outlive the training."""
    for heartbeat in list(_beating):
        descriptor, heartbeat._descriptor = heartbeat._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)
    _beating.clear()


os.register_at_fork(after_in_child=_leave_in_child)


def _plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    # Nothing else is looked at: to turn an array into a number waits for its device.
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
    return {str(name): float(f"{value:.6g}") for name, value in numbers.items() if math.isfinite(value)}
