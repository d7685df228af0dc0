"""Many processes on one store: writers that are killed and restarted, readers, openers, writers that fork.

Each records the results of its calls outside the store; afterwards the records are compared with the store.

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
_MIN_SAVES = 20
_MAX_EXTRA_S = 60.0  # for what was not done in the given time


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """A distribution of times, in seconds."""

    count: int
    median: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """Summarise measured times."""
        ordered = sorted(seconds) or [0.0]
        p99 = ordered[int(0.99 * (len(ordered) - 1))]
        return cls(count=len(seconds), median=statistics.median(ordered), p99=p99, maximum=ordered[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Counts and times of a run, and one line for each violation.

    Attributes:
        saves: Times of whole saves.
        waits: Time that each save waited for the store's lock, in total.
        reads: Times of single queries, by name.
        kills: Number of killed writers.
        openings: Number of openings for writing, while others wrote.
        refusals: Number of refusals of a second writer of a run.
        forks: Number of children forked by a process that was writing; they read.
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


class _Log:
    """A process's file of JSON lines beside the store; each line is written by one system call."""

    def __init__(self, folder: Path, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = os.open(folder / f"{name}.log", flags)

    def add(self, kind: str, **facts: Any) -> None:
        os.write(self._descriptor, f"{json.dumps({'kind': kind, **facts})}\n".encode())


_Task = Callable[[Path, _Log], None]


def _run_task(folder: Path, name: str, fault: str, task: _Task) -> None:
    """Run a process's task, and log whatever it raises."""
    plant(fault)
    log = _Log(folder, name)
    try:
        task(folder, log)
    except BaseException:
        log.add("error", text=traceback.format_exc())


def _until_stopped(folder: Path) -> Iterator[int]:
    """Count until the trial ends."""
    count = 0
    while not (folder / "stop").exists():
        yield count
        count += 1


# --- the processes ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Writer:
    """Saves in a loop, each writer with its own published path."""

    run: str

    def __call__(self, folder: Path, log: _Log) -> None:
        with CheckpointStore(folder / "store") as store:
            self.save_on(store, folder, log)

    def save_on(self, store: CheckpointStore, folder: Path, log: _Log) -> None:
        last = store.latest(self.run)
        first = 1 if last is None else last.epoch + 1
        for count in _until_stopped(folder):
            began = time.perf_counter()
            with _waiting() as waits:
                target = folder / f"{self.run}.keras"
                saved = save(store, first + count, run=self.run, publish=target, keep=keep_last(KEPT))
            log.add(
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
    """Measure how long this thread waits for the store's lock during the block."""
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
    """Saves in one thread while another forks children that read the store, as the workers of a data loader may."""

    def __call__(self, folder: Path, log: _Log) -> None:
        with CheckpointStore(folder / "store") as store:
            failed: list[str] = []

            def save_in_thread() -> None:
                try:
                    self.save_on(store, folder, log)
                except BaseException:
                    failed.append(traceback.format_exc())

            thread = threading.Thread(target=save_in_thread)
            thread.start()
            while thread.is_alive():
                for leave in (os._exit, None):
                    self._fork(store, log, leave)
            thread.join()
            if failed:
                log.add("error", text=failed[0])

    def _fork(self, store: CheckpointStore, log: _Log, leave: Callable[[int], None] | None) -> None:
        context = get_context("fork")
        child = context.Process(target=self._read, args=(store, log, leave))
        child.start()
        child.join()
        log.add("forked")
        if child.exitcode != 0:
            log.add("error", text=f"a forked child ended with {child.exitcode}")

    def _read(self, store: CheckpointStore, log: _Log, leave: Callable[[int], None] | None) -> None:
        try:
            store.latest(self.run)
            store.checkpoints()
        except BaseException:
            log.add("error", text=f"in a forked child: {traceback.format_exc()}")
        if leave is not None:
            leave(0)
        store.close()


def _read(folder: Path, log: _Log) -> None:
    """Query a store that stays open and one that is opened each time; versions may not go back."""
    newest = 0
    with CheckpointStore(folder / "store", read_only=True) as kept_open:
        for _ in _until_stopped(folder):
            with _timed(log, "open"):
                reopened = CheckpointStore(folder / "store", read_only=True)
            with reopened:
                for store in (kept_open, reopened):
                    with _timed(log, "latest"):
                        latest = store.latest()
                    with _timed(log, "best"):
                        store.best("loss", mode="min")
                    with _timed(log, "checkpoints"):
                        listed = store.checkpoints()
                    with _timed(log, "resume_point"):
                        store.resume_point()
                    if latest is None or latest.version < newest or listed[-1].version < latest.version:
                        log.add("error", text=f"after version {newest} a reader saw {latest}, {listed}")
                    newest = listed[-1].version


@contextmanager
def _timed(log: _Log, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    log.add("read", name=name, seconds=time.perf_counter() - began)


def _open(folder: Path, log: _Log) -> None:
    """Open for writing repeatedly: recovery runs while others write, and a second writer is refused."""
    for count in _until_stopped(folder):
        with CheckpointStore(folder / "store") as store:
            log.add("opened")
            if count % 10 == 9 and (folder / "writer-0.log").read_bytes():
                _try_second_writer(store, folder, log)


def _try_second_writer(store: CheckpointStore, folder: Path, log: _Log) -> None:
    # Not by the clock: among so many processes one that waits for nothing may also take seconds.
    with patch.object(time, "sleep", wraps=time.sleep) as sleep:
        try:
            store.claim("writer-0")  # never killed, so always at work
        except RunLockedError:
            log.add("refused")
            wrong = "had to wait before it was refused" if sleep.called else None
        else:
            wrong = "was not refused"
    if wrong and not (folder / "stop").exists():
        log.add("error", text=f"a second writer of one run {wrong}")


# --- the trial -------------------------------------------------------------------------------------------


def many_processes(
    *, seconds: float, writers: int = 8, readers: int = 3, seed: int = 1, fault: str = ""
) -> Result:
    """Run processes that write, read, open, fork and are killed on one store.

    Args:
        seconds: The duration.
        writers: Number of writers, each with its own run; a third are killed at random times, and restarted.
        readers: Number of readers, each with a store that stays open and one that it opens each time.
        seed: The seed of the times.
        fault: Of `planted_faults.FAULTS`, in every process.
    """
    preload()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-processes-") as parent:
        folder = Path(parent)
        with CheckpointStore(folder / "store") as store:
            save(store, 1, run="writer-0")
        kills = _run(folder, seconds, _tasks(writers, readers), random.Random(seed), fault)
        facts_by_kind = _read_logs(folder)
        found = [facts["text"] for facts in facts_by_kind["error"]]
        found += _wrong_saves(folder, facts_by_kind["saved"])
        reads = defaultdict(list)
        for facts in facts_by_kind["read"]:
            reads[facts["name"]].append(facts["seconds"])
        return Result(
            seconds=time.monotonic() - began,
            saves=Times.of([facts["seconds"] for facts in facts_by_kind["saved"]]),
            waits=Times.of([facts["waited"] for facts in facts_by_kind["saved"]]),
            reads={name: Times.of(times) for name, times in reads.items()},
            kills=kills,
            openings=len(facts_by_kind["opened"]),
            refusals=len(facts_by_kind["refused"]),
            forks=len(facts_by_kind["forked"]),
            violations=tuple(found),
        )


def _tasks(writers: int, readers: int) -> dict[str, _Task]:
    tasks: dict[str, _Task] = {f"writer-{n}": _Writer(f"writer-{n}") for n in range(writers - 1)}
    tasks["writer-that-forks"] = _ForkingWriter("writer-that-forks")
    return tasks | {f"reader-{n}": _read for n in range(readers)} | {"opener": _open}


def _run(folder: Path, seconds: float, tasks: dict[str, _Task], chosen: random.Random, fault: str) -> int:
    def start(name: str) -> BaseProcess:
        process = get_context("forkserver").Process(target=_run_task, args=(folder, name, fault, tasks[name]))
        process.start()
        return process

    # The writer that forks is among those that are killed.
    writers = [name for name in tasks if name.startswith("writer")]
    mortal = writers[-max(1, len(writers) // 3) :]
    running = {name: start(name) for name in tasks}
    kills, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(chosen.uniform(0.05, 0.6))
        name = chosen.choice(mortal)
        running[name].kill()
        running[name].join()
        kills += 1
        running[name] = start(name)
    # On a slow machine a process that is killed repeatedly may not have done its task yet.
    until = time.monotonic() + _MAX_EXTRA_S
    while not fault and not _is_enough(_read_logs(folder)) and time.monotonic() < until:
        time.sleep(0.1)
    (folder / "stop").touch()
    for name, process in running.items():
        process.join(90)
        if process.exitcode != 0:
            process.kill()
            _Log(folder, "trial").add("error", text=f"{name} ended with {process.exitcode}")
    return kills


def _is_enough(facts_by_kind: dict[str, list[dict[str, Any]]]) -> bool:
    all_kinds = all(facts_by_kind[kind] for kind in ("opened", "refused", "forked", "read"))
    return bool(facts_by_kind["error"]) or (all_kinds and len(facts_by_kind["saved"]) >= _MIN_SAVES)


def _read_logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all logged facts by kind; a killed process may have left half a line."""
    facts_by_kind = defaultdict(list)
    for path in folder.glob("*.log"):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                facts = json.loads(line)
                facts_by_kind[facts["kind"]].append(facts)
    return facts_by_kind


def _wrong_saves(folder: Path, facts_by_kind: list[dict[str, Any]]) -> list[str]:
    """Compare the reported saves with the store, and check it as after any crash."""
    versions = [facts["version"] for facts in facts_by_kind]
    twice = sorted({version for version in versions if versions.count(version) > 1})
    found = [f"versions were reported twice: {twice}"] if twice else []
    by_run = defaultdict(list)
    for facts in facts_by_kind:
        by_run[facts["run"]].append(Saved(**{name: facts[name] for name in ("version", "digest", "epoch")}))
    with CheckpointStore(folder / "store") as store:
        listed = {run: [checkpoint.version for checkpoint in store.checkpoints(run)] for run in by_run}
    must: list[Saved] = []
    for run, saved in by_run.items():
        if any(earlier.version >= later.version for earlier, later in pairwise(saved)):
            found.append(f"the versions of {run} go back: {[claim.version for claim in saved]}")
        # A save that was killed before its report may already have removed one more.
        newest = sorted({claim.version for claim in saved} | set(listed[run]))[-KEPT:]
        must += [claim for claim in saved if claim.version in newest]
    found += violations(
        folder / "store", must, is_intact=lambda checkpoint: is_seed(checkpoint.path, checkpoint.epoch)
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
