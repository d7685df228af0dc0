"""Kills, stops and damages jobs: trainings of two and four real processes that save sharded checkpoints.

A process is killed at each step of a save: each operation on files, message and transaction. After each kill the store
must open by itself and be whole, no checkpoint that a process was told of may be lost, and the job, started again, must
end with the values and the History of one that nobody disturbed, to the bit. Processes are also stopped for longer than
the limit of a save; the disk of one host is full; members of checkpoints are damaged, missing or of another save; two
jobs meet in one run; jobs are started again with fewer and more processes; and a process of a dead job continues.

    python tools/crash jobs                        everything, once: some 20 minutes
    python tools/crash jobs --rounds 3
    python tools/crash jobs --only kills --stride 5
    python tools/crash jobs --only kills --fault "row before rename"       a planted fault, which must be found

Needs JAX; a disk that is really full needs permission to mount.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from crash.full_disks import can_mount
from crash.jobs.faults import (
    DAMAGE,
    damaged,
    full_disk,
    interrupted,
    process_of_a_dead_job,
    second_job,
)
from crash.jobs.kills import distinct, kill_at, stall_at, stop_at
from crash.jobs.launch import Violation
from crash.jobs.planted import FAULTS
from crash.jobs.restarts import restarted, saved_values
from crash.jobs.trials import Row, Trials

# Characters of a column.
_CELL = 20

Trial = Callable[[], Row]
# Of four processes only these are killed, and at these steps: what their number changes is in the messages.
_KILLS_OF_FOUR = {
    0: ("< tell offer", "< create description.json", "< rename payload", "< COMMIT (2)", "< tell decision"),
    3: ("< create shards/00003.h5", "< tell answer/3", "> tell answer/3"),
}
_STALLS = {
    0: ("< tell offer", "< fsync shards/00000.h5", "< rename payload", "< COMMIT (2)", "< tell decision"),
    1: ("< fsync shards/00001.h5", "< tell answer/1"),
}


def kills(folder: Path, fault: str, stride: int) -> Iterator[Trial]:
    """Yield a trial for each step of a save at which a process is killed."""
    two = Trials(folder, fault=fault)
    for victim in (0, 1):
        for point in distinct(two.steps_of(victim))[::stride]:
            yield partial(kill_at, two, victim, point)
    if stride == 1:
        four = Trials(folder, processes=4, fault=fault)
        for victim, points in _KILLS_OF_FOUR.items():
            for point in points:
                yield partial(kill_at, four, victim, point)


def stops(folder: Path, fault: str, stride: int) -> Iterator[Trial]:
    """Yield a trial for each step of a save at which a process is stopped, and for some at which its disk stalls."""
    two = Trials(folder, fault=fault)
    for victim in (0, 1):
        for point in distinct(two.steps_of(victim))[::stride]:
            if "documents" not in point:  # as other files
                yield partial(stop_at, two, victim, point)
    for victim, points in _STALLS.items():
        for point in points[::stride]:
            yield partial(stall_at, two, victim, point)


def disks(folder: Path, fault: str, stride: int) -> Iterator[Trial]:
    """Yield a trial for each kind of full disk, on each host."""
    two = Trials(folder, fault=fault)
    for victim in (0, 1):
        yield partial(full_disk, two, victim, "full once")
        yield partial(full_disk, two, victim, "full")
    if can_mount():
        yield partial(full_disk, two, 1, "mount")


def damage(folder: Path, fault: str, stride: int) -> Iterator[Trial]:
    """Yield a trial for each kind of damage to each member."""
    two = Trials(folder, fault=fault)
    store = interrupted(Trials(folder))
    members = ("shards/00001.h5", "shards/00000.h5", "description.json")
    for member, kind in [(member, kind) for member in members for kind in DAMAGE][::stride]:
        yield partial(damaged, two, store, member, kind)


def meetings(folder: Path, fault: str, stride: int) -> Iterator[Trial]:
    """Yield the trials in which two jobs use one run."""
    two = Trials(folder, fault=fault)
    yield partial(second_job, two)
    yield partial(process_of_a_dead_job, two)


def restarts(folder: Path, fault: str, stride: int) -> Iterator[Trial]:
    """Yield a trial for each change of the number of processes."""
    for before, after in ((2, (1, 4)), (4, (2,))):
        trials = Trials(folder, processes=before, fault=fault)
        store, values = saved_values(trials)
        for processes in after:
            yield partial(restarted, trials, store, values, processes)


PARTS: dict[str, Callable[[Path, str, int], Iterator[Trial]]] = {
    "kills": kills,
    "stops": stops,
    "disks": disks,
    "damage": damage,
    "meetings": meetings,
    "restarts": restarts,
}


def tried(trials: Iterator[Trial]) -> Iterator[Row]:
    """Carry trials out, and print each row."""
    while True:
        try:
            trial = next(trials, None)
            if trial is None:
                return
            row = trial()
        except Violation as violation:
            row = Row(fault="trial", point="", violations=[str(violation)])
        show(row)
        yield row


def show(row: Row) -> None:
    """Print a row of the matrix: each process in a column, or below it where that needs a line."""
    cells = dict(sorted(row.processes.items()))
    is_short = all(len(text) <= _CELL for text in cells.values())
    columns = "  ".join(f"{rank}: {text:<{_CELL}}" for rank, text in cells.items()) if is_short else ""
    print(f"{row.fault:<24} {row.point:<34} {row.outcome:<22} {columns}".rstrip(), flush=True)
    for text in dict.fromkeys(() if is_short else cells.values()):
        ranks = ", ".join(str(rank) for rank, other in cells.items() if other == text)
        print(f"    {ranks}: {text}", flush=True)
    for line in row.violations:
        print(f"VIOLATED {line}", flush=True)


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each fault: how often it was tried, and the outcomes."""
    for fault in dict.fromkeys(row.fault for row in rows):
        of_this = [row for row in rows if row.fault == fault]
        outcomes = dict.fromkeys(row.outcome for row in of_this)
        counts = ", ".join(
            f"{outcome} {sum(row.outcome == outcome for row in of_this)}" for outcome in outcomes
        )
        wrong = sum(bool(row.violations) for row in of_this)
        yield f"{fault:<28} {len(of_this):>4} rounds: {counts}; {wrong} violated"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often each is tried; once by default")
    parser.add_argument("--stride", type=int, default=1, help="try every STRIDE-th step or kind only")
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        default=[],
        metavar="PART",
        help=f"of {', '.join(PARTS)}; may be repeated",
    )
    parser.add_argument("--fault", choices=FAULTS, default="", help="a fault to plant in every process")
    options = parser.parse_args()
    os.environ.update(KERAS_BACKEND="jax", JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3")
    began, rows = time.monotonic(), list[Row]()
    for part in options.only or PARTS:
        with tempfile.TemporaryDirectory(prefix="crash-jobs-") as name:
            for _ in range(options.rounds):
                rows += tried(PARTS[part](Path(name), options.fault, options.stride))
    print()
    for line in summary(rows):
        print(line)
    print(f"{len(rows)} trials in {time.monotonic() - began:.0f} s")
    raise SystemExit(any(row.violations for row in rows))


if __name__ == "__main__":
    main()
