"""A process that is killed at a step of a save, or stopped for longer than the limit."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Sequence

from crash.jobs.disturbance import STALL_LIMIT_S, STALL_S
from crash.jobs.launch import StartedJob, started
from crash.jobs.trials import DISTURBED_STEP, Row, Trials, said, steps_in, wrong_at_the_end
from crash.strace import KILLED

# How long the others may take to end after a kill, in seconds; the limit of a save is below it.
REACTION_S = 30.0
COMMIT = "COMMIT (2)"  # the first one reserves the version


def kill_at(trials: Trials, victim: int, point: str) -> Row:
    """Kill a process at a step, check the store, and start the job again."""
    row = Row(fault=f"kill of {victim} of {trials.processes}", point=point)
    plan = trials.plan(victim=victim, action="kill", point=point, limit_s=STALL_LIMIT_S)
    with started(plan) as job:
        job.wait(lambda: job.has_ended(victim), f"the kill at {point}")
        began = time.monotonic()
        job.came(job.all_have_ended, REACTION_S)
        for rank, process in enumerate(job.processes):
            row.processes[rank] = _end_of(job, rank, process.exitcode, time.monotonic() - began)
        if job.processes[victim].exitcode != KILLED:
            row.violations.append(f"it was not killed:\n{job.log(victim)}")
    left = sorted(path.name for path in (plan.store / "tmp").glob("*"))
    claims = job.claims()
    row.violations += trials.wrong_in(plan.store, claims)
    steps = steps_in(plan.store)
    row.outcome = "committed" if DISTURBED_STEP in steps else "absent"
    row.violations += _wrong_outcome(job, victim, point, row.outcome)
    if left:
        row.outcome += ", swept"
    row.violations += trials.wrong_restart(plan.store, expected_step=max(filter(None, steps), default=None))
    return row


def _end_of(job: StartedJob, rank: int, exitcode: int | None, seconds: float) -> str:
    end = job.end_of(rank)
    if end is not None:
        return "finished" if end.error is None else end.error[0]
    if exitcode is None:
        return f"waits after {seconds:.0f} s"
    return "killed" if exitcode == KILLED else f"exit code {exitcode}"


def _wrong_outcome(job: StartedJob, victim: int, point: str, outcome: str) -> Iterator[str]:
    """Before the payload has its name there is no checkpoint, and from the COMMIT on there is one."""
    reached = job.points()
    if victim == 0:
        if f"> {COMMIT}" in reached and outcome != "committed":
            yield "it was committed, and is absent"
        if "< rename payload" not in reached[:-1] and outcome == "committed":
            yield f"it exists, and was not finished at {point}"
    elif "< tell answer/" not in "".join(reached[:-1]) and outcome == "committed":
        yield f"it exists without the part of process {victim}"


def stop_at(trials: Trials, victim: int, point: str) -> Row:
    """Stop a process at a step for longer than the limit, and continue it: the training goes on to its end."""
    row = Row(fault=f"stop of {victim} of {trials.processes}", point=point)
    plan = trials.plan(victim=victim, action="stop", point=point, limit_s=STALL_LIMIT_S)
    with started(plan) as job:
        job.wait(lambda: job.is_stopped(victim) or job.has_ended(victim), f"the stop at {point}")
        if not job.is_stopped(victim):
            row.violations.append(f"it was not stopped:\n{job.log(victim)}")
        time.sleep(STALL_S)
        job.signal(victim, signal.SIGCONT)
        _finish(trials, job, row)
    return row


def stall_at(trials: Trials, victim: int, point: str) -> Row:
    """Let the thread that saves wait at a step for longer than the limit, as for a disk; the process is alive."""
    row = Row(fault=f"stall of {victim} of {trials.processes}", point=point)
    plan = trials.plan(victim=victim, action="stall", point=point, limit_s=STALL_LIMIT_S)
    with started(plan) as job:
        _finish(trials, job, row)
        if point not in job.points():
            row.violations.append("the step was not reached")
    return row


def _finish(trials: Trials, job: StartedJob, row: Row) -> None:
    """Wait for the end of a training that goes on, and check it and its store."""
    ends, store = job.wait_for_ends(), job.plan.store
    row.processes = {rank: said(job.log(rank)) or "nothing" for rank in range(trials.processes)}
    row.violations += trials.wrong_ends(ends) + trials.wrong_in(store, job.claims()) + wrong_at_the_end(store)
    row.outcome = "committed" if DISTURBED_STEP in steps_in(store) else "abandoned"
    if row.outcome == "committed":
        row.violations += [
            f"process {rank} says that the save failed, and it was committed: {text}"
            for rank, text in row.processes.items()
            if re.search(r"this checkpoint was not saved[^;]* save 2\b", text)
        ]


def distinct(points: Sequence[str]) -> list[str]:
    """Return the steps that leave different states: what is before a step is behind the one before it.

    Behind a message others act at once; so that counts as well. The first process that comes there makes ``shards``.
    """
    return [
        point
        for point in points
        if point.startswith(("<", "> tell", "> save")) and "mkdir shards" not in point
    ]
