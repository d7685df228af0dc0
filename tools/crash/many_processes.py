"""Many processes on one store: writers that are killed and start again, readers, openers, writers that fork.

Each writes down what it was told, outside the store; afterwards all of it is compared with what is there.

    python tools/crash processes                    180 seconds
    python tools/crash processes --seconds 10 --writers 3
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ckptstore.errors import RunLockedError
from ckptstore.retention import keep_last
from ckptstore.storage.files import Phase, io_hook
from ckptstore.store.store import CheckpointStore
from crash.fork_server import preload
from crash.invariants import Saved, violations
from crash.planted_faults import FAULTS, plant
from crash.sample_stores import is_seed, save

KEPT = 3
_SAVES = 20  # fewer say little
_PATIENCE_S = 60.0  # for what was not done in time


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long something took, in seconds."""

    count: int
    median: float
    p99: float
    most: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """Summarise measured times."""
        ordered = sorted(seconds) or [0.0]
        p99 = ordered[int(0.99 * (len(ordered) - 1))]
        return cls(count=len(seconds), median=statistics.median(ordered), p99=p99, most=ordered[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was done, how long it took, and one line for each violation.

    Attributes:
        saves: Whole saves, with the time that each took.
        waits: How long each save waited for the store's lock, all its turns together.
        reads: One query each, by its name.
        kills: Of writers.
        openings: For writing, while others wrote.
        refusals: Of a second writer of a run.
        forks: Children of a process that was writing, which read.
    """

    seconds: float
    saves: Times
    waits: Times
    reads: dict[str, Times]
    kills: int
    openings: int
    refusals: int
    forks: int
    violations: tuple[str, ...]


class _Notes:
    """A file of JSON lines beside the store, of one process; each line is written by one call."""

    def __init__(self, folder: Path, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = os.open(folder / f"{name}.notes", flags)

    def add(self, kind: str, **facts: Any) -> None:
        os.write(self._descriptor, f"{json.dumps({'kind': kind, **facts})}\n".encode())


_Work = Callable[[Path, _Notes], None]


def _noting(folder: Path, name: str, fault: str, work: _Work) -> None:
    """Run a process's work; note whatever it raises."""
    plant(fault)
    notes = _Notes(folder, name)
    try:
        work(folder, notes)
    except BaseException:
        notes.add("error", text=traceback.format_exc())


def _until_stopped(folder: Path) -> Iterator[int]:
    """Count, until the whole trial is to end."""
    count = 0
    while not (folder / "stop").exists():
        yield count
        count += 1


# --- the processes ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Writer:
    """Saves in a loop, each time at its own path."""

    run: str

    def __call__(self, folder: Path, notes: _Notes) -> None:
        with CheckpointStore(folder / "store") as store:
            self.save_on(store, folder, notes)

    def save_on(self, store: CheckpointStore, folder: Path, notes: _Notes) -> None:
        last = store.latest(self.run)
        first = 1 if last is None else last.epoch + 1
        for count in _until_stopped(folder):
            began = time.perf_counter()
            with _waiting() as waits:
                target = folder / f"{self.run}.keras"
                saved = save(store, first + count, run=self.run, publish=target, keep=keep_last(KEPT))
            notes.add(
                "saved",
                run=self.run,
                version=saved.version,
                digest=saved.digest,
                epoch=saved.epoch,
                seconds=time.perf_counter() - began,
                waited=sum(waits),
            )


@contextmanager
def _waiting() -> Iterator[list[float]]:
    """Measure how long this thread waits for the store's lock meanwhile."""
    waits: list[float] = []
    me, began = threading.get_ident(), 0.0

    def note(operation: str, path: Path, phase: Phase) -> None:
        nonlocal began
        if operation == "lock" and path.name == "store.lock" and threading.get_ident() == me:
            if phase == "before":
                began = time.perf_counter()
            else:
                waits.append(time.perf_counter() - began)

    with io_hook(note):
        yield waits


class _ForkingWriter(_Writer):
    """Saves in one thread while another forks children that read the store, as a data loader's would."""

    def __call__(self, folder: Path, notes: _Notes) -> None:
        with CheckpointStore(folder / "store") as store:
            failed: list[str] = []

            def save_in_thread() -> None:
                try:
                    self.save_on(store, folder, notes)
                except BaseException:
                    failed.append(traceback.format_exc())

            thread = threading.Thread(target=save_in_thread)
            thread.start()
            while thread.is_alive():
                for leave in (os._exit, None):
                    self._fork(store, notes, leave)
            thread.join()
            if failed:
                notes.add("error", text=failed[0])

    def _fork(self, store: CheckpointStore, notes: _Notes, leave: Callable[[int], None] | None) -> None:
        context = get_context("fork")
        child = context.Process(target=self._read, args=(store, notes, leave))
        child.start()
        child.join()
        notes.add("forked")
        if child.exitcode != 0:
            notes.add("error", text=f"a forked child ended with {child.exitcode}")

    def _read(self, store: CheckpointStore, notes: _Notes, leave: Callable[[int], None] | None) -> None:
        try:
            store.latest(self.run)
            store.checkpoints()
        except BaseException:
            notes.add("error", text=f"in a forked child: {traceback.format_exc()}")
        if leave is not None:
            leave(0)
        store.close()


def _read(folder: Path, notes: _Notes) -> None:
    """Ask everything, of a store that is opened anew and of one that stays open; time may not run backwards."""
    newest = 0
    with CheckpointStore(folder / "store", read_only=True) as kept:
        for _ in _until_stopped(folder):
            with _timed(notes, "open"):
                anew = CheckpointStore(folder / "store", read_only=True)
            with anew:
                for store in (kept, anew):
                    with _timed(notes, "latest"):
                        latest = store.latest()
                    with _timed(notes, "best"):
                        store.best("loss", mode="min")
                    with _timed(notes, "checkpoints"):
                        listed = store.checkpoints()
                    with _timed(notes, "resume_point"):
                        store.resume_point()
                    if latest is None or latest.version < newest or listed[-1].version < latest.version:
                        notes.add("error", text=f"after version {newest} a reader saw {latest}, {listed}")
                    newest = listed[-1].version


@contextmanager
def _timed(notes: _Notes, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    notes.add("read", name=name, seconds=time.perf_counter() - began)


def _open(folder: Path, notes: _Notes) -> None:
    """Open for writing again and again: recovery runs while others write; and a second writer is refused."""
    for count in _until_stopped(folder):
        with CheckpointStore(folder / "store") as store:
            notes.add("opened")
            if count % 10 == 9 and (folder / "writer-0.notes").read_bytes():
                _try_to_write_too(store, folder, notes)


def _try_to_write_too(store: CheckpointStore, folder: Path, notes: _Notes) -> None:
    # Not by the clock: among so many others a process that waits for nothing may take seconds, too.
    with patch.object(time, "sleep", wraps=time.sleep) as sleep:
        try:
            store.claim("writer-0")  # never killed, so always at work
        except RunLockedError:
            notes.add("refused")
            wrong = "had to wait before it was refused" if sleep.called else None
        else:
            wrong = "was let in"
    if wrong and not (folder / "stop").exists():
        notes.add("error", text=f"a second writer of one run {wrong}")


# --- the trial -------------------------------------------------------------------------------------------


def many_processes(
    *, seconds: float, writers: int = 8, readers: int = 3, seed: int = 1, fault: str = ""
) -> Result:
    """Let processes write, read, open, fork and be killed on one store.

    Args:
        seconds: For how long.
        writers: Each with a run of its own; a third of them are killed at random moments, and start again.
        readers: Each with a store that stays open and one that it opens anew.
        seed: Of the moments.
        fault: Of `planted_faults.FAULTS`, in every process.
    """
    preload()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-processes-") as parent:
        folder = Path(parent)
        with CheckpointStore(folder / "store") as store:
            save(store, 1, run="writer-0")
        kills = _run(folder, seconds, _works(writers, readers), random.Random(seed), fault)
        told = _told(folder)
        found = [facts["text"] for facts in told["error"]]
        found += _of_the_saves(folder, told["saved"])
        reads = defaultdict(list)
        for facts in told["read"]:
            reads[facts["name"]].append(facts["seconds"])
        return Result(
            seconds=time.monotonic() - began,
            saves=Times.of([facts["seconds"] for facts in told["saved"]]),
            waits=Times.of([facts["waited"] for facts in told["saved"]]),
            reads={name: Times.of(times) for name, times in reads.items()},
            kills=kills,
            openings=len(told["opened"]),
            refusals=len(told["refused"]),
            forks=len(told["forked"]),
            violations=tuple(found),
        )


def _works(writers: int, readers: int) -> dict[str, _Work]:
    works: dict[str, _Work] = {f"writer-{n}": _Writer(f"writer-{n}") for n in range(writers - 1)}
    works["writer-that-forks"] = _ForkingWriter("writer-that-forks")
    return works | {f"reader-{n}": _read for n in range(readers)} | {"opener": _open}


def _run(folder: Path, seconds: float, works: dict[str, _Work], chosen: random.Random, fault: str) -> int:
    def start(name: str) -> BaseProcess:
        process = get_context("forkserver").Process(target=_noting, args=(folder, name, fault, works[name]))
        process.start()
        return process

    # The writer that forks is one of those that are killed.
    writers = [name for name in works if name.startswith("writer")]
    mortal = writers[-max(1, len(writers) // 3) :]
    running = {name: start(name) for name in works}
    kills, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(chosen.uniform(0.05, 0.6))
        name = chosen.choice(mortal)
        running[name].kill()
        running[name].join()
        kills += 1
        running[name] = start(name)
    # On a slow machine a process that is killed again and again may not have come to its work yet.
    until = time.monotonic() + _PATIENCE_S
    while not fault and not _is_enough(_told(folder)) and time.monotonic() < until:
        time.sleep(0.1)
    (folder / "stop").touch()
    for name, process in running.items():
        process.join(90)
        if process.exitcode != 0:
            process.kill()
            _Notes(folder, "trial").add("error", text=f"{name} ended with {process.exitcode}")
    return kills


def _is_enough(told: dict[str, list[dict[str, Any]]]) -> bool:
    all_kinds = all(told[kind] for kind in ("opened", "refused", "forked", "read"))
    return bool(told["error"]) or (all_kinds and len(told["saved"]) >= _SAVES)


def _told(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what was noted, by kind; a process that was killed may have left half a line."""
    told = defaultdict(list)
    for path in folder.glob("*.notes"):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                facts = json.loads(line)
                told[facts["kind"]].append(facts)
    return told


def _of_the_saves(folder: Path, told: list[dict[str, Any]]) -> list[str]:
    """Compare what was reported saved with what is there, and check the store as after any crash."""
    versions = [facts["version"] for facts in told]
    twice = sorted({version for version in versions if versions.count(version) > 1})
    found = [f"versions were reported twice: {twice}"] if twice else []
    by_run = defaultdict(list)
    for facts in told:
        by_run[facts["run"]].append(Saved(**{name: facts[name] for name in ("version", "digest", "epoch")}))
    with CheckpointStore(folder / "store") as store:
        listed = {run: [one.version for one in store.checkpoints(run)] for run in by_run}
    must: list[Saved] = []
    for run, saved in by_run.items():
        if any(earlier.version >= later.version for earlier, later in pairwise(saved)):
            found.append(f"the versions of {run} go back: {[one.version for one in saved]}")
        # A save that was killed before it reported may have let retention remove one more.
        newest = sorted({one.version for one in saved} | set(listed[run]))[-KEPT:]
        must += [one for one in saved if one.version in newest]
    found += violations(
        folder / "store", must, is_whole=lambda checkpoint: is_seed(checkpoint.path, checkpoint.epoch)
    )
    for run in by_run:
        with CheckpointStore(folder / "store", read_only=True) as store:
            latest = store.latest(run)
        if latest is None or not is_seed(folder / f"{run}.keras", latest.epoch):
            found.append(f"{run}.keras does not show {latest}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", choices=["", *FAULTS], default="", help="plant a fault")
    options = parser.parse_args()
    result = many_processes(**vars(options))
    print(result)
    raise SystemExit(bool(result.violations))


if __name__ == "__main__":
    main()
