"""Several processes of a job that save into one store together: threads stand for them, messages stay in memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptstore import CheckpointStore
from ckptstore.background.save_queue import SaveQueue
from ckptstore.background.worker import Outcome
from ckptstore.commit.request import SaveRequest
from ckptstore.distributed.job import Job
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.service import ServiceMessages
from ckptstore.distributed.session import JobSession
from ckptstore.errors import MessagesLostError
from ckptstore.storage.files import io_hook
from process_shards import PROCESSES, snapshot_of_process


class CutMessages:
    """The messages of a process; those whose key has an end in `cut` do not get through."""

    def __init__(self, messages: ServiceMessages) -> None:
        self._messages = messages
        self.cut: tuple[str, ...] = ()
        self.process = messages.process
        self.reply_limit_s = messages.reply_limit_s

    def _check(self, keys: Any) -> None:
        if any(key.endswith(self.cut) for key in keys if self.cut):
            raise MessagesLostError(process=self.process, key=keys[0], service="memory", reason="planted")

    def put(self, key: str, value: str) -> None:
        self._check([key])
        self._messages.put(key, value)

    def get(self, key: str, limit_s: float) -> str:
        return self._messages.get(key, limit_s)

    def present(self, keys: Any) -> dict[str, str]:
        self._check([*keys])
        return self._messages.present(keys)

    def delete(self, keys: Any) -> None:
        self._messages.delete(keys)


class JobOfThreads:
    """The processes of a job, each with its queue; process 0 has the store open.

    Args:
        root: The store's directory.
        limit_s: The limit of a save.
    """

    def __init__(self, root: Path, *, limit_s: float = 20.0) -> None:
        self.root = root
        self.store = CheckpointStore(root)
        self.service = MemoryService()
        self.messages = [
            CutMessages(ServiceMessages(self.service, process=process, service="memory"))
            for process in range(PROCESSES)
        ]
        self.sessions = [
            JobSession(
                Job(kind="memory", by="memory", process=process, processes=PROCESSES, found_in="a test"),
                messages,
                "token",
                save_limit_s=limit_s,
            )
            for process, messages in enumerate(self.messages)
        ]
        leading, *others = self.sessions
        self.queues = [self.store.open_save_queue("default", backpressure="wait", job=leading)]
        self.queues += [SaveQueue(root, None, backpressure="wait", job=session) for session in others]
        self.step = 0

    def request(self, process: int, **options: Any) -> SaveRequest:
        """Return a process's request for its next save."""
        options = {"run": "default", "epoch": self.step, "step": self.step, **options}
        if process:
            options.pop("keep", None)
        return SaveRequest(job_save=self.sessions[process].next_save(), **options)

    def submit(self, process: int, **options: Any) -> None:
        """Take a snapshot of a process for its next save."""
        request = self.request(process, **options)
        self.queues[process].submit(snapshot_of_process(process), request, droppable=False)

    def save(self, **options: Any) -> list[Outcome]:
        """Save by all processes; returns the outcome of each."""
        self.step += 1
        for process in reversed(range(PROCESSES)):
            self.submit(process, **options)
        return [self.outcome(process) for process in range(PROCESSES)]

    def outcome(self, process: int) -> Outcome:
        """Wait for the one save that is under way, and return its outcome on a process."""
        self.queues[process].drain(lambda line: None)
        (found,) = self.queues[process].outcomes()
        return found

    def close(self, processes: Any = range(PROCESSES)) -> None:
        """End processes."""
        for process in processes:
            self.queues[process].close()
            assert self.queues[process].outcomes() == []
            if process == 0:
                self.store.close()

    def leftovers(self) -> list[str]:
        """Return what lies below ``tmp/`` but for leases."""
        return sorted(path.name for path in (self.root / "tmp").iterdir() if path.suffix != ".lease")


@contextmanager
def failing(
    file: str, operation: str, code: int, *, times: int = 1_000_000, while_there: Path | None = None
) -> Iterator[list[str]]:
    """Let a step on a file of this name fail for the first times, or while a path exists; yields what has failed."""
    failed: list[str] = []

    def fail(step: str, path: Path, phase: str) -> None:
        is_over = len(failed) >= times or not (while_there is None or while_there.exists())
        if (step, path.name, phase) == (operation, file, "before") and not is_over:
            failed.append(str(path))
            raise OSError(code, os.strerror(code))

    with io_hook(fail):
        yield failed


@contextmanager
def stalled(file: str, operation: str) -> Iterator[tuple[threading.Event, Callable[[], None]]]:
    """Stop the first such step on a file until it is released; yields what is set when it has come, and the release."""
    come, released = threading.Event(), threading.Event()

    def stop(step: str, path: Path, phase: str) -> None:
        if (step, path.name, phase) == (operation, file, "before") and not come.is_set():
            come.set()
            assert released.wait(60)

    with io_hook(stop):
        try:
            yield come, released.set
        finally:
            released.set()


def wait_until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
