"""Disturbances of a supervised training, each with the reason that its record must give."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable

from ckptstore.system.processes import process_state
from crash.full_disks import take_bytes
from crash.supervision import GRACE_S, Supervision, Violation, kill, writers_of

Disturbance = Callable[[Supervision, random.Random], None]


def ends_training(
    how: str,
    reason: str,
    disturb: Callable[[Supervision, int], None],
    *,
    within_s: float = 1.0,
    while_it: str = "training",
) -> Disturbance:
    """Return a disturbance that ends the training, after which the supervisor starts it again.

    Args:
        how: Its name in the table.
        reason: The reason that its record must give.
        disturb: Disturbs the training with the given process id.
        within_s: The disturbance comes at a random time, at most so many seconds after the training is at work.
        while_it: The journal's word for that work.
    """

    def disturbance(training: Supervision, chosen: random.Random) -> None:
        pid, token = training.wait_for_training(while_it)
        time.sleep(chosen.uniform(0, within_s))
        training.ended_by(token, how, reason)
        disturb(training, pid)
        training.wait_for_death(pid, how)

    return disturbance


def ask_for(name: str) -> Callable[[Supervision, int], None]:
    """Return what asks the training to do something to itself."""
    return lambda training, pid: training.ask(name)


def kill_writer(training: Supervision, chosen: random.Random) -> None:
    pid, token = training.wait_for_training()
    time.sleep(chosen.uniform(0, 1))
    writer = training.until(lambda: next(iter(writers_of(pid)), None), "a process that saves")
    kill(writer)
    training.until(lambda: _other(writers_of(pid), writer), "another process that saves")
    _still(training, pid, token, "SIGKILL of the saving process")


def kill_supervisor(training: Supervision, chosen: random.Random) -> None:
    """Kill the supervisor; started again, it must take the training over."""
    pid, token = training.wait_for_training()
    time.sleep(chosen.uniform(0, 1))
    kill(training.supervisor)
    training.wait_for_supervisor()
    time.sleep(chosen.uniform(0, 1))
    training.start()
    _still(training, pid, token, "SIGKILL of the supervisor")
    time.sleep(1)
    _still(training, pid, token, "")


def kill_both(training: Supervision, chosen: random.Random) -> None:
    """Kill the supervisor and then the training, so that nobody sees how it ended."""
    pid, token = training.wait_for_training()
    time.sleep(chosen.uniform(0, 1))
    kill(training.supervisor)
    training.wait_for_supervisor()
    training.ended_by(token, "SIGKILL of both", "killed")
    kill(pid)
    training.wait_for_death(pid, "SIGKILL of both")
    training.start()


def stop_too_late(training: Supervision, chosen: random.Random) -> None:
    """Ask the supervisor to stop while the training is in a batch that lasts longer than the grace period."""
    pid, token = training.wait_for_training()
    time.sleep(chosen.uniform(0, 1))
    training.ask("long batch")
    training.ended_by(token, "SIGTERM, grace too short", "killed")
    kill(training.supervisor, signal.SIGTERM)
    training.wait_for_death(pid, f"SIGTERM and {GRACE_S:g} s")
    code = training.wait_for_supervisor()
    if code != 128 + signal.SIGKILL:
        raise Violation(f"the supervisor ended with {code} after its grace period:\n{training.log_end()}")
    training.start()


def pause(training: Supervision, chosen: random.Random) -> None:
    """Stop the training for longer than a hang may last, and continue it."""
    pid, token = training.wait_for_training()
    time.sleep(chosen.uniform(0, 1))
    kill(pid, signal.SIGSTOP)
    time.sleep(1.5 * training.hang_after_s)
    kill(pid, signal.SIGCONT)
    time.sleep(1)
    _still(training, pid, token, "SIGSTOP, then SIGCONT")


def fill_disk(training: Supervision, chosen: random.Random) -> None:
    """Fill the store's disk until the training has given up, and a little longer."""
    pid, token = training.wait_for_training()
    time.sleep(chosen.uniform(0, 1))
    training.ended_by(token, "full disk, freed later", "disk_full")
    ballast = take_bytes(training.store.parent)
    try:
        training.wait_for_death(pid, "its disk was full")
        time.sleep(chosen.uniform(1, 4))
    finally:
        shutil.rmtree(ballast)


DISTURBANCES: dict[str, Disturbance] = {
    "kill": ends_training("SIGKILL of the training", "killed", lambda _, pid: kill(pid), within_s=2.0),
    # It has not trained a batch yet, so that its start may have made no attempt.
    "kill-start": ends_training(
        "SIGKILL while it starts", "killed", lambda _, pid: kill(pid), while_it="start"
    ),
    "kill-writer": kill_writer,
    "kill-supervisor": kill_supervisor,
    "kill-both": kill_both,
    # It saves, and the supervisor starts it again.
    "stop-in-time": ends_training(
        "SIGTERM of the training", "preempted", lambda _, pid: kill(pid, signal.SIGTERM), within_s=2.0
    ),
    "stop-too-late": stop_too_late,
    "pause": pause,
    "deadlock": ends_training("deadlock in a callback", "hang", ask_for("deadlock")),
    "exception": ends_training(
        "exception in the data", "exception", ask_for("exception in the data"), within_s=2.0
    ),
    "disk-full": fill_disk,
    "out-of-memory": ends_training("out of memory", "oom", ask_for("out of memory")),
}


def _other(writers: list[int], killed: int) -> int | None:
    return next((writer for writer in writers if writer != killed), None)


def _still(training: Supervision, pid: int, token: str, disturbance: str) -> None:
    """Note a disturbance that must not have ended the training."""
    now, of = training.wait_for_training()
    if (now, of) != (pid, token) or process_state(pid, None) == "gone":
        raise Violation(f"{disturbance} has ended the training, process {pid}; {now} trains now")
    if disturbance:
        training.undisturbing.append(disturbance)
