"""Common to all trials of a job: an undisturbed training to compare with, and the checks after a disturbance."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ckptstore.store.store import CheckpointStore
from crash.invariants import Saved, violations
from crash.jobs.launch import StartedJob, Violation, finished
from crash.jobs.training import BATCHES, EPOCHS, SAVE_FREQ, End, Plan

STEPS = EPOCHS * BATCHES
# The step of the save that is disturbed.
DISTURBED_STEP = 2 * SAVE_FREQ


@dataclass(slots=True, kw_only=True)
class Row:
    """A disturbance at a step: the outcome of the save, how each process ended or what it said, and what was wrong.

    Attributes:
        fault: What happened, and to which process.
        point: The step.
        outcome: Of the save: ``"committed"``, ``"absent"``, or what else counts.
        processes: What each process did, by number.
        violations: One line for each.
    """

    fault: str
    point: str
    outcome: str = ""
    processes: dict[int, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


class Trials:
    """Trainings of one kind, in folders of their own.

    Args:
        folder: An empty folder.
        processes: The number of processes.
        fault: A planted fault.
    """

    def __init__(self, folder: Path, *, processes: int = 2, fault: str = "") -> None:
        self.folder = folder
        self.processes = processes
        self.fault = fault

    def plan(self, store: Path | None = None, **options: object) -> Plan:
        """Return the plan of a training, by default in a store of its own."""
        folder = Path(tempfile.mkdtemp(prefix=f"{self.processes}-", dir=self.folder))
        made = Plan(
            folder=folder,
            compiled=Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", self.folder), "jobs"),
            store=folder / "store" if store is None else store,
            processes=self.processes,
            fault=self.fault,
        )
        return replace(made, **options)  # type: ignore[arg-type]

    @cached_property
    def undisturbed(self) -> list[End]:
        """The ends of a training that nobody disturbs, on each process."""
        return finished(replace(self.plan(), fault=""))

    def steps_of(self, victim: int) -> list[str]:
        """Return the labels of the steps of a save in one process."""
        plan = self.plan(victim=victim)
        finished(plan)
        return StartedJob(plan, []).points()

    def wrong_in(self, store: Path, claims: Sequence[Saved]) -> list[str]:
        """Open a store after a crash, and return what is wrong with it."""
        return violations(store, claims)

    def wrong_ends(self, ends: Sequence[End | None]) -> list[str]:
        """Return how the ends of a training differ from those of an undisturbed one."""
        found = []
        for rank, (end, expected) in enumerate(zip(ends, self.undisturbed, strict=True)):
            if end is None or end.error is not None:
                found.append(f"process {rank} did not finish: {end}")
                continue
            if end.digest != expected.digest:
                found.append(f"process {rank} ends with other values than undisturbed")
            if end.history != expected.history:
                found.append(f"process {rank} has another History: {end.history}")
        return found

    def wrong_restart(self, store: Path, *, expected_step: int | None) -> list[str]:
        """Start a training again in a store, to its end; return what is wrong with that."""
        try:
            ends = finished(self.plan(store))
        except Violation as violation:
            return [f"started again: {violation}"]
        found = self.wrong_ends(ends)
        resumed = {end.resumed for end in ends}
        if resumed != {expected_step}:
            found.append(f"it was resumed at step {resumed} instead of {expected_step}")
        return found + wrong_at_the_end(store)


def wrong_at_the_end(store: Path) -> list[str]:
    """Return what is wrong with the store of a training that has finished."""
    found = violations(store)
    with CheckpointStore(store, read_only=True) as opened:
        newest = opened.latest()
    if newest is None or newest.step != STEPS:
        found.append(f"the newest checkpoint is {newest}")
    return found


def steps_in(store: Path) -> list[int | None]:
    """Return the steps of the checkpoints in a store, oldest first."""
    with CheckpointStore(store, read_only=True) as opened:
        return [checkpoint.step for checkpoint in opened.checkpoints()]


def said(log: str) -> str:
    """Return what this package has said in a process, in one line."""
    lines = [re.sub(r"^\S+:\d+: \w*Warning: ", "", line.strip()) for line in log.splitlines()]
    own = [
        line for line in lines if re.match(r"ckptstore: |SAVING FAILED|version \d|the run continues", line)
    ]
    return "; ".join(dict.fromkeys(own))
