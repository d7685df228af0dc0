"""Heartbeat of a training: a small file that tells where it stands, and a kernel lock on it that tells that it lives.

The file is ``heartbeats/<run>``, 1024 bytes: a checksum, then one JSON object. It is overwritten in place, at each
change of phase and else at most every second. Nothing depends on it but what people and supervisors are shown: it is
never synced, what is torn or foreign reads as nothing, and a disk that refuses it never ends or delays a training.

The training holds a lock on the file's first byte (an open file description lock, ``F_OFD_SETLK``) for as long as it
lives, and a process that saves for it one on the second. A reader asks the kernel whether a lock is held, which takes
nothing and waits for nothing; a dead process holds none.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakSet

import xxhash

from ckptstore.records import PHASES, SILENCES, Beat, Phase
from ckptstore.storage.files import make_shown_directory
from ckptstore.storage.layout import Layout
from ckptstore.system import messages
from ckptstore.system.processes import boot_id, clock_s, process_state, start_ticks
from ckptstore.system.stack_dump import StackDump

NBYTES = 1024
INTERVAL_S = 1.0
# A write never costs more than this share of a training's time, however slow the disk; but one a minute is made.
_SHARE = 0.01
_LONGEST_INTERVAL_S = 60.0
# Seconds after which an older rate of steps counts for a third.
_RATE_S = 20.0
_READS = 3
_DIGEST_CHARACTERS = 16
_FLOCK = struct.Struct("hhqqi4x")
# The bytes of the file that are locked.
_TRAINING, _SAVING = 0, 1


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
                self._is_locked = _lock(self._descriptor, fcntl.F_WRLCK, _TRAINING)
            os.pwrite(self._descriptor, _encoded(self._fields()), 0)
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
            raise IsADirectoryError(21, "is no ordinary file", str(self._path))
        self._descriptor = descriptor

    def _close(self) -> None:
        descriptor, self._descriptor, self._is_locked = self._descriptor, -1, False
        if descriptor >= 0:
            with suppress(OSError):
                _lock(descriptor, fcntl.F_UNLCK, _TRAINING)
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


def _encoded(fields: dict[str, Any]) -> bytes:
    """Return the bytes of the file, without those metrics that there is no room for."""
    metrics = fields["metrics"]
    while True:
        text = json.dumps(fields, separators=(",", ":")).encode("ascii")
        if len(text) + _DIGEST_CHARACTERS + 2 <= NBYTES:
            break
        if not metrics:
            raise OSError(75, "the record is too long")
        metrics.popitem()
    body = text.ljust(NBYTES - _DIGEST_CHARACTERS - 2) + b"\n"
    return xxhash.xxh3_64_hexdigest(body).encode("ascii") + b" " + body


# --- reading -----------------------------------------------------------------------------------------


def read_heartbeat(path: Path) -> Beat | None:
    """Return what a heartbeat's file says; None if there is none, or it is torn or somebody else's. Changes nothing.

    Args:
        path: The file, ``Layout.heartbeats / run``.
    """
    for _ in range(_READS):  # a read may fall into a write
        content = _content(path)
        if content is None or len(content) != NBYTES:
            return None
        digest, _, body = content.partition(b" ")
        if digest == xxhash.xxh3_64_hexdigest(body).encode("ascii"):
            return _parsed(body)
    return None


def _content(path: Path) -> bytes | None:
    try:
        descriptor = _open_to_read(path)
    except OSError:
        return None
    try:
        return os.pread(descriptor, NBYTES + 1, 0)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _open_to_read(path: Path) -> int:
    # Not blocking: somebody may have put a pipe there.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _parsed(body: bytes) -> Beat | None:
    try:
        beat = Beat(**json.loads(body))
    except (ValueError, TypeError):
        return None  # of another version of this program
    return beat if beat.phase in PHASES else None


def is_held(path: Path) -> bool:
    """Return True if the training that writes a heartbeat's file is alive, since it holds the file's lock.

    It takes no lock, writes nothing and waits for nothing. Where the system has no such locks (macOS, some network file
    systems), the process id in the file is asked instead, with the start of that process where the system tells it; it
    means something on the same machine only, and elsewhere the answer is False.

    Args:
        path: The file, ``Layout.heartbeats / run``.
    """
    held = _is_locked(path, _TRAINING)
    if held is not None:
        return held
    beat = read_heartbeat(path)
    return beat is not None and _is_alive(beat)


def is_saving(path: Path) -> bool:
    """Return True if a process that saves for a training of this run is alive; the training itself may be dead.

    As `is_held`; where the system has no such locks, the answer is False.

    Args:
        path: The file, ``Layout.heartbeats / run``.
    """
    return bool(_is_locked(path, _SAVING))


def mark_saving(path: Path) -> int | None:
    """Let `is_saving` answer True until this process has closed the returned descriptor, or is dead.

    Several processes may do so at once.

    Args:
        path: The file, ``Layout.heartbeats / run``, which the training has made.

    Returns:
        The descriptor, or None if the file cannot be read, or not locked.
    """
    try:
        descriptor = _open_to_read(path)
    except OSError:
        return None
    if _lock(descriptor, fcntl.F_RDLCK, _SAVING):
        return descriptor
    os.close(descriptor)
    return None


def _is_alive(beat: Beat) -> bool:
    if beat.phase == "ended" or beat.host != socket.gethostname() or beat.boot_id != boot_id():
        return False
    return process_state(beat.pid, beat.started_ticks) != "gone"


# None on macOS.
_SET: int | None = getattr(fcntl, "F_OFD_SETLK", None)
_GET: int | None = getattr(fcntl, "F_OFD_GETLK", None)


def _lock(descriptor: int, kind: int, byte: int) -> bool:
    """Take or release a lock, without waiting; returns False if it cannot be had now."""
    if _SET is None:
        return False
    try:
        fcntl.fcntl(descriptor, _SET, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
    except OSError:
        return False
    return True


def _is_locked(path: Path, byte: int) -> bool | None:
    """Return True if an open file has a lock on a byte; None if the system or the file system has no such locks."""
    try:
        descriptor = _open_to_read(path)
    except OSError:
        return False
    try:
        if _GET is None:
            return None
        found = fcntl.fcntl(descriptor, _GET, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    kind: int = _FLOCK.unpack(found)[0]
    return kind != fcntl.F_UNLCK
