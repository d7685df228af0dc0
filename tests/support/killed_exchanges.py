"""Two processes meet, begin together and save, over a backend's own messages; one is killed or stopped at a message.

    python killed_exchanges.py FOLDER

does that for each message of each process, before it is sent and behind it, and prints a line of JSON for each trial:
what was done to whom, and how each process ended. A process that was stopped goes on when the other one has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckptstore.distributed.driver import drive
from ckptstore.distributed.messages import Messages
from ckptstore.distributed.resuming import Offer
from ckptstore.distributed.session import JobSession
from process_groups import BACKEND, _connect

# Where each process sends, in order: parts of keys.
SENT = {
    0: (
        "/meeting/",
        "/welcome",
        "resume/00000001/00000000/offer",
        "resume/00000001/00000000/decision",
        "/offer",
        "/decision",
    )
}
SENT |= {1: ("/join/", "resume/00000001/00000000/answer", "/answer")}
LIMIT_S = 3.0
# Above what all limits together make.
END_S = 45.0
TOGETHER = 6


@dataclass(frozen=True, slots=True)
class Trial:
    """A signal, and the message of a process that it strikes.

    Attributes:
        victim: The process.
        number: Which of its messages, in the order of `SENT`.
        behind: True for right behind the message, False for right before it.
        stops: True for SIGSTOP, False for SIGKILL.
    """

    victim: int
    number: int
    behind: bool
    stops: bool


TRIALS = [
    Trial(victim, number, behind, stops)
    for victim, sent in SENT.items()
    for number in range(len(sent))
    for behind in (False, True)
    for stops in (False, True)
]


class Struck:
    """Messages of a process that a signal strikes at one of them."""

    def __init__(self, messages: Messages, trial: Trial) -> None:
        self._messages = messages
        self._trial = trial
        self._left = list(SENT[trial.victim])
        self.process = messages.process
        self.reply_limit_s = messages.reply_limit_s

    def put(self, key: str, value: str) -> None:
        is_it = (
            self._is_next(key) and len(SENT[self._trial.victim]) - len(self._left) == self._trial.number + 1
        )
        if is_it and not self._trial.behind:
            self._strike()
        self._messages.put(key, value)
        if is_it and self._trial.behind:
            self._strike()

    def _is_next(self, key: str) -> bool:
        if not self._left or self._left[0] not in key:
            return False
        del self._left[0]
        return True

    def _strike(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP if self._trial.stops else signal.SIGKILL)

    def get(self, key: str, limit_s: float) -> str:
        return self._messages.get(key, limit_s)

    def present(self, keys: Sequence[str]) -> dict[str, str]:
        return self._messages.present(keys)

    def delete(self, keys: Sequence[str]) -> None:
        self._messages.delete(keys)


def a_fit(session: JobSession, folder: Path, ends: dict[str, Any]) -> None:
    """Begin together, and save; notes what this process knows in the end."""
    if session.job.is_leader:
        lead = session.lead_resume(Offer(version=7, store="s", limit_s=LIMIT_S))
        drive(lead)
        ends["resume"] = lead.state
        _raise(lead.error())
        number = session.next_save()
        save = session.lead_save(
            number, version=8, upload="u", fields={}, step=1, limit_s=LIMIT_S, commit_limit_s=LIMIT_S
        )
        drive(save)
        save.gather()
        drive(save)
        if save.state == "gathered":
            (folder / "committed").touch()
            save.committed()
            drive(save)
        ends["save"] = save.outcome is not None and save.outcome.committed
        _raise(save.error())
        return
    join = session.join_resume(limit_s=LIMIT_S)
    drive(join)
    if join.state == "offered":
        join.confirm()
        drive(join)
    ends["resume"] = join.state
    _raise(join.error())
    part = session.join_save(session.next_save(), step=1, limit_s=LIMIT_S)
    drive(part)
    if part.state == "announced":
        (folder / "part").touch()
        part.report(member="1.h5", nbytes=1, digest="d")
        drive(part)
    ends["save"] = part.outcome is not None and part.outcome.committed
    _raise(part.error())


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _child(rank: int, ports: list[int], folder: Path, trial: Trial) -> None:
    import keras

    from ckptstore.keras.private import find_job, messages_of

    ends: dict[str, Any] = {}
    try:
        with _connect(rank, ports):
            model = keras.Sequential() if BACKEND == "tensorflow" else None
        job = find_job(BACKEND, model)
        assert job is not None
        messages: Any = messages_of(job, reply_limit_s=LIMIT_S)
        # Both are connected: what comes now is what is tested.
        messages.put(f"ready/{rank}", "1")
        messages.get(f"ready/{1 - rank}", 60.0)
        if rank == 1:
            messages.put("set", "1")
        else:
            messages.get("set", 60.0)
        began = time.monotonic()
        if rank == trial.victim:
            messages = Struck(messages, trial)
        try:
            a_fit(JobSession.begin(job, messages, limit_s=LIMIT_S), folder, ends)
        except Exception as error:
            ends["error"] = [type(error).__name__, str(error), [*getattr(error, "silent", ())]]
        ends["seconds"] = time.monotonic() - began
    except BaseException:
        ends["failed"] = traceback.format_exc()
    (folder / f"{rank}.tmp").write_text(json.dumps(ends))
    (folder / f"{rank}.tmp").rename(folder / f"{rank}.json")
    # The first serves the messages of both.
    other = folder / f"{1 - rank}.json"
    while rank == 0 and trial.stops and not other.exists():
        time.sleep(0.02)
    os._exit(0)


class Running:
    """A trial that is running."""

    def __init__(self, trial: Trial, folder: Path) -> None:
        folder.mkdir()
        self.trial = trial
        self.folder = folder
        self.deadline = time.monotonic() + 60.0 + END_S
        self.ended: dict[int, int | None] = {}
        servers = [socket.socket() for _ in range(2)]
        for server in servers:
            server.bind(("127.0.0.1", 0))
        ports = [server.getsockname()[1] for server in servers]
        for server in servers:
            server.close()
        self.children = []
        for rank in range(2):
            self.children.append(os.fork())
            if self.children[-1] == 0:
                os.dup2(2, 1)
                _child(rank, ports, folder, trial)

    def is_over(self) -> bool:
        """Look after the processes; returns True when both have ended, or were killed for taking too long."""
        for rank, child in enumerate(self.children):
            if rank not in self.ended:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    self.ended[rank] = os.waitstatus_to_exitcode(status)
        other = 1 - self.trial.victim
        other_ended = other in self.ended or (self.folder / f"{other}.json").exists()
        if self.trial.stops and other_ended and self.trial.victim not in self.ended:
            os.kill(self.children[self.trial.victim], signal.SIGCONT)
        if len(self.ended) < 2 and time.monotonic() > self.deadline:
            for rank, child in enumerate(self.children):
                if rank not in self.ended:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    self.ended[rank] = None
        return len(self.ended) == 2

    def result(self) -> dict[str, Any]:
        """Return how it ended."""
        files = [self.folder / f"{rank}.json" for rank in range(2)]
        return {
            **asdict(self.trial),
            "codes": [self.ended[rank] for rank in range(2)],
            "ends": [json.loads(file.read_text()) if file.exists() else None for file in files],
            "committed": (self.folder / "committed").exists(),
            "part": (self.folder / "part").exists(),
        }


def results_of(backend: str, folder: Path) -> list[dict[str, Any]]:
    """Return how each trial ended."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, folder],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Run all trials, some at a time."""
    import keras  # noqa: F401

    import ckptstore.keras.private  # noqa: F401

    folder = Path(sys.argv[1])
    waiting = list(enumerate(TRIALS))
    running: list[Running] = []
    while waiting or running:
        while waiting and len(running) < TOGETHER:
            number, trial = waiting.pop(0)
            running.append(Running(trial, folder / str(number)))
        time.sleep(0.05)
        for one in [one for one in running if one.is_over()]:
            running.remove(one)
            print(json.dumps(one.result()), flush=True)


if __name__ == "__main__":
    main()
