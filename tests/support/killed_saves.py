"""Two processes save into one store together; one of them is killed or stopped at a step of its own.

    python killed_saves.py FOLDER PROCESS EVERY

kills the process before each step that changes a file and each message, EVERY-th only, and stops it there in a second
trial, until the other one has ended. It prints a line of JSON for each: how the processes ended, and what the store
holds when it has been opened again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ckptstore import CheckpointStore
from ckptstore.commit.joined_save import JoinedSave
from ckptstore.commit.led_save import LedSave
from ckptstore.commit.request import SaveRequest
from ckptstore.commit.retry import with_retries
from ckptstore.distributed.job import Job
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.service import ServiceMessages
from ckptstore.distributed.session import JobSession
from ckptstore.formats import payload  # noqa: F401  (imported before the fork)
from ckptstore.records import Checkpoint
from ckptstore.storage.files import io_hook
from ckptstore.storage.layout import Layout
from crash.sample_stores import is_seed, save, shards_of

LIMIT_S = 1.0
# For a save that nothing strikes.
LONG_S = 30.0
TOGETHER = 8


class FolderService:
    """A key-value service in a folder, for processes; see `ckptstore.distributed.messages.KeyValueClient`."""

    def __init__(self, folder: Path, step: Any) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._step = step

    def put_once(self, key: str, value: str) -> str:
        self._step()
        path, own = self._folder / quote(key, safe=""), self._folder / f"of {os.getpid()}"
        own.write_text(value)
        with suppress(FileExistsError):
            os.link(own, path)
        self._step()
        return path.read_text()

    def fetch(self, keys: Sequence[str]) -> dict[str, str]:
        paths = {key: self._folder / quote(key, safe="") for key in keys}
        return {key: path.read_text() for key, path in paths.items() if path.exists()}

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            (self._folder / quote(key, safe="")).unlink(missing_ok=True)


class Steps:
    """Counts the steps of a process, and sends it a signal before one of them."""

    def __init__(self, strikes: int, number: signal.Signals) -> None:
        self.count = 0
        self._strikes = strikes
        self._signal = number

    def __call__(self, *step: Any) -> None:
        if step and step[2] != "before":
            return
        self.count += 1
        if self.count == self._strikes:
            os.kill(os.getpid(), self._signal)


def save_in(
    folder: Path, process: int, steps: Steps, service: Any = None, *, limit_s: float = LONG_S
) -> Checkpoint:
    """Save as one of the two processes."""
    job = Job(kind="memory", by="memory", process=process, processes=2, found_in="a test")
    service = FolderService(folder / "messages", steps) if service is None else service
    session = JobSession(
        job,
        ServiceMessages(service, process=process, service="a folder"),
        "token",
        save_limit_s=limit_s,
    )
    request = SaveRequest(run="default", epoch=2, step=2, job_save=session.next_save())
    snapshot = shards_of(2, processes=2)[process]
    with io_hook(steps):
        if process:
            return JoinedSave(session, Layout(folder / "store")).save(snapshot, request)
        with CheckpointStore(folder / "store") as store:
            store.claim("default")
            with LedSave(session, request.number_in_job()) as led:
                return with_retries(partial(store.commit, snapshot, request, led=led))


def _child(folder: Path, process: int, strikes: int, number: signal.Signals, limit_s: float) -> None:
    steps = Steps(strikes, number)
    end: dict[str, Any] = {}
    began = time.monotonic()
    try:
        end["version"] = save_in(folder, process, steps, limit_s=limit_s).version
    except Exception as error:
        end["error"] = type(error).__name__
        end["text"] = str(error) + ("" if hasattr(error, "hint") else traceback.format_exc())
    end |= {"steps": steps.count, "seconds": time.monotonic() - began}
    (folder / f"{process}.tmp").write_text(json.dumps(end))
    (folder / f"{process}.tmp").rename(folder / f"{process}.json")
    os._exit(0)


class Trial:
    """Two processes, of which one is struck at a step."""

    def __init__(self, folder: Path, sample: Path, victim: int, strikes: int, number: signal.Signals) -> None:
        shutil.copytree(sample, folder)
        self.folder = folder
        self.facts = {"victim": victim, "step": strikes, "signal": number.name}
        self.victim = victim
        self.ended: dict[int, int] = {}
        self.children = []
        for process in range(2):
            child = os.fork()
            if child == 0:
                os.dup2(2, 1)
                limit_s = LIMIT_S if strikes else LONG_S
                _child(folder, process, strikes if process == victim else 0, number, limit_s)
            self.children.append(child)

    def is_over(self) -> bool:
        """Look after the processes; one that is stopped continues when the other one has ended."""
        for process, child in enumerate(self.children):
            if process not in self.ended:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    self.ended[process] = os.waitstatus_to_exitcode(status)
        if 1 - self.victim in self.ended and self.victim not in self.ended:
            os.kill(self.children[self.victim], signal.SIGCONT)
        return len(self.ended) == 2

    def result(self) -> dict[str, Any]:
        """Open the store, save again, and return what was found."""
        files = [self.folder / f"{process}.json" for process in range(2)]
        ends = [json.loads(file.read_text()) if file.exists() else None for file in files]
        root = self.folder / "store"
        with CheckpointStore(root) as store:
            found = {
                "versions": [checkpoint.version for checkpoint in store.checkpoints()],
                "whole": all(is_seed(one.path, one.epoch) for one in store.checkpoints()),
                "problems": [problem.detail for problem in store.verify()],
                "left": [path.name for path in (root / "tmp").iterdir() if path.suffix != ".lease"],
            }
        again = self.folder / "again"
        again.mkdir()
        (again / "store").symlink_to(root)
        return {**self.facts, "codes": [self.ended[0], self.ended[1]], "ends": ends, **found, **_next(again)}


def _next(folder: Path) -> dict[str, Any]:
    """Save by a job that is started again, whose processes are threads here."""
    from concurrent.futures import ThreadPoolExecutor

    service = MemoryService()
    never = Steps(0, signal.SIGKILL)
    with ThreadPoolExecutor() as pool:
        other = pool.submit(save_in, folder, 1, never, service)
        first = save_in(folder, 0, never, service)
        return {"next": [first.version, other.result().version]}


def main() -> None:
    """Count the steps of a save that nothing strikes; then strike at each of them."""
    folder, victim, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    sample = folder / "sample"
    with CheckpointStore(sample / "store") as store:
        save(store, 1)
    untouched = Trial(folder / "untouched", sample, victim, 0, signal.SIGKILL)
    while not untouched.is_over():
        time.sleep(0.01)
    result = untouched.result()
    print(json.dumps(result), flush=True)
    waiting = [
        (step, number)
        for step in range(1, result["ends"][victim]["steps"] + 1, every)
        for number in (signal.SIGKILL, signal.SIGSTOP)
    ]
    running: list[Trial] = []
    while waiting or running:
        while waiting and len(running) < TOGETHER:
            step, number = waiting.pop(0)
            running.append(Trial(folder / f"{number.name}-{step}", sample, victim, step, number))
        time.sleep(0.01)
        for trial in [trial for trial in running if trial.is_over()]:
            running.remove(trial)
            print(json.dumps(trial.result()), flush=True)
            shutil.rmtree(trial.folder)


if __name__ == "__main__":
    main()
