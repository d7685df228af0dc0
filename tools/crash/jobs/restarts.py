"""A job that is started again with fewer or more processes: the same values, and a line that says what is not exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from crash.jobs.faults import interrupted
from crash.jobs.launch import Violation, started
from crash.jobs.trials import DISTURBED_STEP, Row, Trials, said, wrong_at_the_end


def restarted(before: Trials, store: Path, expected: dict[str, Any], processes: int) -> Row:
    """Start a job again in a copy of a store with another number of processes.

    Args:
        before: The trainings of as many processes as have saved.
        store: What they have saved.
        expected: The values that they had, whole.
        processes: With how many processes it is started again.
    """
    row = Row(fault=f"{before.processes} processes, then {processes}", point="between two trainings")
    plan = before.plan(processes=processes)
    shutil.copytree(store, plan.store)
    with started(plan) as job:
        ends = job.wait_for_ends()
        logs = [job.log(rank) for rank in range(processes)]
    row.processes = {rank: said(log) or "nothing" for rank, log in enumerate(logs)}
    for rank, end in enumerate(ends):
        if end is None or end.error is not None or end.resumed != DISTURBED_STEP:
            row.violations.append(f"process {rank} did not resume and finish: {end}\n{logs[rank]}")
    if row.violations:
        return row
    row.outcome = "equal values"
    row.violations += different(whole_values(plan.folder, processes), expected)
    if not any("exact" in log for log in logs):
        row.violations.append("no line says what is not exact")
    row.violations += wrong_at_the_end(plan.store)
    return row


def saved_values(trials: Trials) -> tuple[Path, dict[str, Any]]:
    """Return the store of an interrupted job, and the values with which as many processes resume it."""
    store = interrupted(trials)
    plan = trials.plan()
    shutil.copytree(store, plan.store)
    with started(plan) as job:
        ends = job.wait_for_ends()
    found = trials.wrong_ends(ends)
    if found:
        raise Violation("; ".join(found))
    return store, whole_values(plan.folder, trials.processes)


def whole_values(folder: Path, processes: int) -> dict[str, Any]:
    """Put the variables together that each process has written a part of, when it had resumed."""
    found: dict[str, Any] = {}
    for rank in range(processes):
        with np.load(folder / f"{rank}.npz") as parts:
            for key in parts.files:
                name, shape, where = json.loads(key)
                array = found.setdefault(name, np.zeros(shape, parts[key].dtype))
                array[tuple(slice(*one) for one in where)] = parts[key]
    return found


def different(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the names of variables that are not equal, to the bit."""
    if found.keys() != expected.keys():
        return [f"there are other variables: {sorted(found)} and {sorted(expected)}"]
    return [
        f"{name} is not equal"
        for name, value in expected.items()
        if value.shape != found[name].shape or value.tobytes() != found[name].tobytes()
    ]
