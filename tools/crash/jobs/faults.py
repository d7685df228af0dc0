"""Disks that are full on one host, damaged checkpoints, a second job on a run, and a process of a dead job."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from ckptstore.store.store import CheckpointStore
from crash.jobs.disturbance import Action
from crash.jobs.launch import StartedJob, Violation, started
from crash.jobs.training import SAVE_FREQ
from crash.jobs.trials import DISTURBED_STEP, Row, Trials, said, steps_in, wrong_at_the_end

# How long a job may take to be refused, from its meeting on, in seconds.
REFUSAL_S = 20.0


def full_disk(trials: Trials, victim: int, action: Action) -> Row:
    """Let the disk of one host be full for an attempt at a save, or for the whole save."""
    point = f"< create shards/{victim:05d}.h5"
    row = Row(fault=f"{action}: disk of {victim} of {trials.processes}", point=point)
    plan = trials.plan(victim=victim, action=action, point=point)
    with started(plan) as job:
        ends = job.wait_for_ends()
        row.processes = {rank: said(job.log(rank)) or "nothing" for rank in range(trials.processes)}
        if not {f"{point} (2)", "< mkdir upload (2)"} & {*job.points()}:  # there was one attempt
            row.violations.append("the disk was not full")
    row.violations += trials.wrong_ends(ends) + trials.wrong_in(plan.store, job.claims())
    row.violations += wrong_at_the_end(plan.store)
    was_saved = DISTURBED_STEP in steps_in(plan.store)
    row.outcome = "committed by a later attempt" if was_saved else "abandoned"
    if was_saved != (action != "full"):
        row.violations.append(f"the save was {row.outcome}")
    if not was_saved:
        row.violations += [
            f"process {rank} does not say that the disk is full: {text}"
            for rank, text in row.processes.items()
            if "SAVING FAILED" not in text or "full" not in text
        ]
    return row


# --- damage ---------------------------------------------------------------------------------------


def _flip(member: Path, older: Path) -> None:
    data = bytearray(member.read_bytes())
    data[len(data) // 2] ^= 1
    member.write_bytes(data)


def _cut(member: Path, older: Path) -> None:
    member.write_bytes(member.read_bytes()[:-100])


def _remove(member: Path, older: Path) -> None:
    member.unlink()


def _exchange(member: Path, older: Path) -> None:
    shutil.copyfile(older, member)


DAMAGE: dict[str, Callable[[Path, Path], None]] = {
    "a bit flipped": _flip,
    "cut": _cut,
    "missing": _remove,
    "of another save": _exchange,
}


def interrupted(trials: Trials) -> Path:
    """Return the store of a job that was killed once it had saved twice."""
    plan = trials.plan(victim=0, action="kill", point="> save")
    with started(plan) as job:
        job.wait(lambda: job.processes[0].exitcode is not None, "the kill")
    found = trials.wrong_in(plan.store, job.claims())
    if found or steps_in(plan.store) != [SAVE_FREQ, DISTURBED_STEP]:
        raise Violation(f"{steps_in(plan.store)} were saved; {found}")
    return plan.store


def damaged(trials: Trials, store: Path, member: str, kind: str) -> Row:
    """Damage a member of the newest checkpoint in a copy of a store: all processes step back to the older one."""
    row = Row(fault=f"{kind}, of {trials.processes}", point=member)
    plan = trials.plan()
    shutil.copytree(store, plan.store)
    with CheckpointStore(plan.store, read_only=True) as opened:
        older, newest = opened.checkpoints()
    DAMAGE[kind](newest.path / member, older.path / member)
    with started(plan) as job:
        ends = job.wait_for_ends()
        row.processes = {rank: said(job.log(rank)) or "nothing" for rank in range(trials.processes)}
    row.violations += trials.wrong_ends(ends)
    resumed = {end.resumed for end in ends if end is not None}
    row.outcome = f"resumed at step {', '.join(map(str, resumed))}"
    if resumed != {older.step}:
        row.violations.append(f"it was {row.outcome} instead of {older.step}")
    if not list((plan.store / "quarantine").iterdir()):
        row.violations.append("the damaged checkpoint is not in quarantine")
    with CheckpointStore(plan.store) as opened:
        row.violations += [
            f"verify: {problem.detail}" for problem in opened.verify() if problem.version != newest.version
        ]
    if f"resumed version {older.version} of" not in row.processes[0]:
        row.violations.append("no line says what was resumed")
    if f"version {newest.version} is put aside" not in row.processes[0]:
        row.violations.append("no line says what is put aside")
    return row


# --- two jobs -------------------------------------------------------------------------------------


def second_job(trials: Trials) -> Row:
    """Start a job on a run that another job trains: it is refused, and the first is not disturbed."""
    row = Row(fault=f"a second job of {trials.processes}", point="during a training")
    first = trials.plan(pace_s=0.5)
    with started(first) as training:
        training.wait(lambda: bool(training.claims()), "a save of the first job")
        with started(trials.plan(first.store)) as second:
            second.wait(second.all_have_ended, "the refusal", REFUSAL_S)
            if training.all_have_ended():
                row.violations.append("the first job had ended by then")
            for rank in range(trials.processes):
                end = second.end_of(rank)
                kind, text = (end and end.error) or ("nothing", "")
                row.processes[rank] = f"{kind}: {text}"
                if kind != ("RunLockedError" if rank == 0 else "PeerFailedError"):
                    row.violations.append(f"process {rank} of the second job ended with {kind}: {text}")
        ends = training.wait_for_ends()
    row.outcome = "refused"
    row.violations += trials.wrong_ends(ends) + trials.wrong_in(first.store, training.claims())
    row.violations += wrong_at_the_end(first.store)
    return row


def process_of_a_dead_job(trials: Trials) -> Row:
    """Continue a stopped process of a dead job while the next job saves: nothing of it gets into a checkpoint."""
    victim = trials.processes - 1
    point = f"< create shards/{victim:05d}.h5"
    row = Row(fault=f"{victim} of a dead job continues", point=point)
    dead = trials.plan(victim=victim, action="stop", point=point)
    with started(dead) as old:
        old.wait(lambda: old.is_stopped(victim), "the stop")
        for rank in range(victim):
            old.signal(rank, signal.SIGKILL)
        old.wait(lambda: not any(process.is_alive() for process in old.processes[:victim]), "the kill")
        with started(trials.plan(dead.store, pace_s=0.3)) as job:
            job.wait(lambda: bool(job.claims()), "a save of the next job")
            old.signal(victim, signal.SIGCONT)
            ends = job.wait_for_ends()
            claims = job.claims() + old.claims()
        old.came(lambda: old.has_ended(victim), 10.0)
        row.processes = {victim: _how(old, victim)}
    row.outcome = "not mixed"
    row.violations += trials.wrong_ends(ends) + trials.wrong_in(dead.store, claims)
    row.violations += wrong_at_the_end(dead.store)
    return row


def _how(job: StartedJob, rank: int) -> str:
    end, exitcode = job.end_of(rank), job.processes[rank].exitcode
    if end is not None:
        return "finished" if end.error is None else end.error[0]
    return "waits" if exitcode is None else f"exit code {exitcode}"
