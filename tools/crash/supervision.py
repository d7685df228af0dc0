"""A training under ``ckptstore run``, as a harness sees it: its supervisor, its processes, its journal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ckptstore.background.program import PROGRAM
from ckptstore.system.process_tree import command_of
from ckptstore.system.processes import process_state, start_ticks
from crash.training_processes import environment, processes_of

GRACE_S = 2.0
# Seconds that anything may take on a busy machine.
_LONGEST_S = 180.0
_LOOK_EVERY_S = 0.02
_T = TypeVar("_T")


class Violation(Exception):
    """Something that must not happen, and that ends the scenario."""


@dataclass(slots=True, kw_only=True)
class Cost:
    """The cost of supervisors: seconds of processor time, most bytes of memory, and seconds that they ran."""

    cpu_s: float = 0.0
    peak_bytes: int = 0
    ran_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class Supervision:
    """A training under a supervisor.

    Attributes:
        folder: Its folder, outside the store.
        store: The store.
        epochs: To how many epochs it trains.
        hang_after_s: For ``--hang-after``.
        group: Directory of the control group that it runs in, or None.
        truth: The true reason of each start that was ended, by its token, and the disturbance that ended it.
        undisturbing: Disturbances that must end no attempt, so far.
        cost: Of the supervisors so far.
    """

    folder: Path
    store: Path
    epochs: int
    hang_after_s: float
    group: Path | None = None
    truth: dict[str, tuple[str, str]] = field(default_factory=dict)
    undisturbing: list[str] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    _supervisor: subprocess.Popen[bytes] | None = None
    _began_s: float = 0.0
    _used: tuple[float, int] = (0.0, 0)

    # --- the supervisor ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the supervisor, always by the same command."""
        options = ["--pause", "0.1", "--grace", str(GRACE_S), "--hang-after", str(self.hang_after_s)]
        program = ["-m", "crash.unattended_training", str(self.folder), str(self.store), str(self.epochs)]
        command = [sys.executable, "-m", "ckptstore", "run", str(self.store), "--quiet", *options]
        command += ["--", sys.executable, *program]
        if self.group is not None:
            join = 'echo $$ > "$0" && exec "$@"'
            command = ["/bin/sh", "-c", join, str(self.group / "cgroup.procs"), *command]
        with (self.folder / "supervisor.log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                command, cwd=self.folder, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._began_s, self._used = time.monotonic(), (0.0, 0)

    @property
    def supervisor(self) -> int:
        """Process id of the supervisor."""
        assert self._supervisor is not None
        return self._supervisor.pid

    def exit_code(self) -> int | None:
        """Return the supervisor's exit code, negative for a signal; None while it runs."""
        assert self._supervisor is not None
        code = self._supervisor.poll()
        if code is None:
            with suppress(OSError, ValueError):
                self._used = max(self._used, _used(self.supervisor))  # one that is dying has no memory
        elif self._began_s:
            self.cost.cpu_s += self._used[0]
            self.cost.peak_bytes = max(self.cost.peak_bytes, self._used[1])
            self.cost.ran_s += time.monotonic() - self._began_s
            self._began_s = 0.0
        return code

    def wait_for_supervisor(self, longest_s: float = _LONGEST_S) -> int:
        """Wait for the supervisor's end; return its exit code."""
        return self.until(self.exit_code, "the supervisor ends", longest_s=longest_s, while_supervised=False)

    def until(
        self,
        answer: Callable[[], _T | None],
        what: str,
        *,
        longest_s: float = _LONGEST_S,
        while_supervised: bool = True,
    ) -> _T:
        """Wait for an answer that is not None.

        Args:
            answer: The question.
            what: What is waited for, for the message.
            longest_s: Seconds to wait at most.
            while_supervised: False if the supervisor may end meanwhile.

        Raises:
            Violation: It took too long, or the supervisor has ended.
        """
        until_s = time.monotonic() + longest_s
        while (found := answer()) is None:
            code = self.exit_code()
            if while_supervised and code is not None:
                raise Violation(f"the supervisor has ended with {code} before {what}:\n{self.log_end()}")
            if time.monotonic() > until_s:
                raise Violation(f"not within {longest_s:g} s: {what}:\n{self.log_end()}")
            time.sleep(_LOOK_EVERY_S)
        return found

    def log_end(self) -> str:
        """Return the last lines of the supervisor's messages."""
        lines = (self.folder / "supervisor.log").read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-12:])

    def end(self) -> None:
        """End whatever still runs: all processes are known by the folder."""
        with suppress(Violation):
            if self._supervisor is not None and self.exit_code() is None:
                kill(self.supervisor)
                self.wait_for_supervisor()
        for pid, _ in processes_of(self.folder):
            kill(pid)
            with suppress(Violation):
                self.wait_for_death(pid, "all was seen")

    # --- the training --------------------------------------------------------------------------------

    def journal(self, what: str) -> list[dict[str, Any]]:
        """Return what the trainings have written of one kind."""
        path = self.folder / "journal"
        text = path.read_text() if path.exists() else ""
        facts = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [fact for fact in facts if fact["what"] == what]

    def wait_for_training(self, what: str = "training") -> tuple[int, str]:
        """Wait until a living training has got somewhere; return its process id and the token of its start."""

        def living() -> tuple[int, str] | None:
            known = self.journal(what)
            last = known[-1] if known else None
            if last is None or last["start"] in self.truth or process_state(last["pid"], None) == "gone":
                return None
            return last["pid"], last["start"]

        if self.journal("end"):
            raise Violation("the training has ended before all disturbances")
        return self.until(living, f"a training that writes {what!r}")

    def ask(self, name: str) -> None:
        """Leave a mark, and wait until the training has taken it."""
        before = len(self.journal(name))
        (self.folder / name).touch()
        self.until(lambda: True if len(self.journal(name)) > before else None, f"the training takes {name!r}")

    def wait_for_death(self, pid: int, what: str) -> None:
        """Wait until a process is gone."""
        ticks = start_ticks(pid)
        self.until(
            lambda: True if process_state(pid, ticks) == "gone" else None,
            f"the training ends after {what}",
            while_supervised=False,
        )

    def ended_by(self, token: str, disturbance: str, reason: str) -> None:
        """Note the true reason of the end of a start."""
        self.truth[token] = disturbance, reason


def writers_of(pid: int) -> list[int]:
    """Return the process ids of the processes that save for a training."""
    return [child for child in _children(pid) if PROGRAM in command_of(child)]


def _children(pid: int) -> Sequence[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _used(pid: int) -> tuple[float, int]:
    """Return the processor time of a process without its children, and the most memory that it had, in bytes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    status = Path(f"/proc/{pid}/status").read_text()
    peaks = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), sum(peaks) << 10


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
