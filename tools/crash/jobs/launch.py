"""Starts the processes of a training, waits for what they do, and ends them."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess

from ckptstore.system.processes import process_state
from crash.fork_server import CONTEXT, preload
from crash.invariants import Saved
from crash.jobs.training import End, Plan, work

LONGEST_S = 90.0
_LOOK_EVERY_S = 0.01
# How long the others are given to end after one that has met an error, in seconds.
_GRACE_S = 10.0
_MODULES = (
    "jax",
    "keras",
    "ckptstore.training.store_checkpoint",
    "ckptstore.keras.model.adapter",
    "crash.jobs.training",
)


class Violation(Exception):
    """Something that must not happen, and that ends a trial."""


@dataclass(slots=True)
class StartedJob:
    """A training under way.

    Attributes:
        plan: What each of its processes does.
        processes: The processes, by number.
    """

    plan: Plan
    processes: list[BaseProcess]

    def wait(self, condition: Callable[[], bool], event: str, limit_s: float = LONGEST_S) -> None:
        """Wait for something.

        Raises:
            Violation: It has not come within the limit.
        """
        if not self.came(condition, limit_s):
            raise Violation(f"waited {limit_s:g} s for {event}; the processes said:\n{self.logs()}")

    @staticmethod
    def came(condition: Callable[[], bool], limit_s: float) -> bool:
        """Return True as soon as something has come, and False if it has not within a limit."""
        until = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_EVERY_S)
        return True

    def has_ended(self, rank: int) -> bool:
        """Return True if a process has reported its end, or is gone."""
        return (self.plan.folder / f"{rank}.end").exists() or self.processes[rank].exitcode is not None

    def all_have_ended(self) -> bool:
        """Return True if all have."""
        return all(map(self.has_ended, range(len(self.processes))))

    def wait_for_ends(self) -> list[End | None]:
        """Wait until all processes have reported their ends, and return these; None for one that is gone.

        Where one has ended with an error, the others are given a moment: they may wait for it in an operation of all.

        Raises:
            Violation: They have not ended within the limit.
        """
        numbers = range(self.plan.processes)
        self.wait(lambda: self.all_have_ended() or any(map(self._has_failed, numbers)), "the end")
        self.came(self.all_have_ended, _GRACE_S)
        return [self.end_of(rank) for rank in numbers]

    def _has_failed(self, rank: int) -> bool:
        if not self.has_ended(rank):
            return False
        end = self.end_of(rank)
        return end is None or end.error is not None

    def is_stopped(self, rank: int) -> bool:
        """Return True if a process is stopped."""
        return process_state(self.processes[rank].pid or 0, None) == "stopped"

    def end_of(self, rank: int) -> End | None:
        """Return what a process has reported at its end; None if it was killed."""
        with suppress(FileNotFoundError):
            return End(**json.loads((self.plan.folder / f"{rank}.end").read_text()))
        return None

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to a process."""
        with suppress(ProcessLookupError):
            os.kill(self.processes[rank].pid or 0, number)

    def kill(self) -> None:
        """Kill all processes that are left, and wait for them."""
        for rank, process in enumerate(self.processes):
            if process.exitcode is None:
                self.signal(rank, signal.SIGKILL)
        for process in self.processes:
            process.join()

    def claims(self) -> list[Saved]:
        """Return the checkpoints that processes were told of."""
        found = {}
        for rank in range(len(self.processes)):
            path = self.plan.folder / f"{rank}.claims"
            text = path.read_text() if path.exists() else ""
            for line in text.splitlines(keepends=True):
                if line.endswith("\n"):
                    saved = Saved(**json.loads(line))
                    found[saved.version, saved.digest] = saved
        return list(found.values())

    def points(self) -> list[str]:
        """Return the steps that the victim has come to."""
        return (self.plan.folder / f"{self.plan.victim}.points").read_text().splitlines()

    def log(self, rank: int) -> str:
        """Return what a process has printed."""
        path = self.plan.folder / f"{rank}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def logs(self) -> str:
        """Return the end of what each process has printed."""
        return "\n".join(f"--- {rank}\n{self.log(rank)[-2000:]}" for rank in range(len(self.processes)))


@contextmanager
def started(plan: Plan) -> Iterator[StartedJob]:
    """Start a training; at the end of the block its processes are killed."""
    preload(_MODULES)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        plan = replace(plan, port=server.getsockname()[1])
    job = StartedJob(
        plan, [CONTEXT.Process(target=work, args=(rank, plan)) for rank in range(plan.processes)]
    )
    for process in job.processes:
        process.start()
    try:
        yield job
    finally:
        job.kill()


def finished(plan: Plan) -> list[End]:
    """Train to the end, and return what each process has reported.

    Raises:
        Violation: A process has ended in another way.
    """
    with started(plan) as job:
        ends = job.wait_for_ends()
        if any(end is None or end.error is not None for end in ends):
            raise Violation(f"the training did not finish:\n{job.logs()}")
        return [end for end in ends if end is not None]
