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


def kill_training(training: Supervision, chosen: random.Random) -> None:
    pid, token = training.wait_for_training()
    time.sleep(chosen.uniform(0, 2))
    training.ended_by(token, "SIGKILL of the training", "killed")
    kill(pid)
    training.wait_for_death(pid, "SIGKILL")


def kill_start(training: Supervision, chosen: random.Random) -> None:
    """Kill a training that has not trained a batch yet, so that its start may have made no attempt."""
    pid, token = training.wait_for_training("start")
    time.sleep(chosen.uniform(0, 1))
    training.ended_by(token, "SIGKILL while it starts", "killed")
    kill(pid)
    training.wait_for_death(pid, "SIGKILL")


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


def stop_in_time(training: Supervision, chosen: random.Random) -> None:
    """Ask the training itself to stop; it saves, and the supervisor starts it again."""
    pid, token = training.wait_for_training()
    time.sleep(chosen.uniform(0, 2))
    training.ended_by(token, "SIGTERM of the training", "preempted")
    kill(pid, signal.SIGTERM)
    training.wait_for_death(pid, "SIGTERM")


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


def deadlock(training: Supervision, chosen: random.Random) -> None:
    pid, token = training.wait_for_training()
    time.sleep(chosen.uniform(0, 1))
    training.ended_by(token, "deadlock in a callback", "hang")
    training.ask("deadlock")
    training.wait_for_death(pid, "a deadlock")


def raise_in_data(training: Supervision, chosen: random.Random) -> None:
    pid, token = training.wait_for_training()
    time.sleep(chosen.uniform(0, 2))
    training.ended_by(token, "exception in the data", "exception")
    training.ask("exception in the data")
    training.wait_for_death(pid, "an exception")


def take_memory(training: Supervision, chosen: random.Random) -> None:
    pid, token = training.wait_for_training()
    time.sleep(chosen.uniform(0, 1))
    training.ended_by(token, "out of memory", "oom")
    training.ask("out of memory")
    training.wait_for_death(pid, "it took all memory")


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
    "kill": kill_training,
    "kill-start": kill_start,
    "kill-writer": kill_writer,
    "kill-supervisor": kill_supervisor,
    "kill-both": kill_both,
    "stop-in-time": stop_in_time,
    "stop-too-late": stop_too_late,
    "pause": pause,
    "deadlock": deadlock,
    "exception": raise_in_data,
    "disk-full": fill_disk,
    "out-of-memory": take_memory,
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
