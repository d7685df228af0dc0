"""The steps of a save in one process of a job: each file operation, message and transaction, before and after it.

The first two characters of a label tell which: ``<`` before a step, ``>`` behind it.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from ckptstore.commit.joined_save import JoinedSave
from ckptstore.commit.led_save import LedSave
from ckptstore.commit.request import SaveRequest
from ckptstore.distributed.service import ServiceMessages
from ckptstore.formats.snapshot import Snapshot
from ckptstore.records import Checkpoint
from ckptstore.storage.files import io_hook

# Gets the label of a step, and its path where it has one.
Do = Callable[[str, Path | None], None]


class Points:
    """Calls a function at each step of one save of this process.

    Args:
        number: The save, from 1.
        do: Gets the label of each step, such as ``"< fsync shards/00001.h5"``, and its path or None; may end or stop
            the process, or raise `OSError` at an operation on files.
    """

    def __init__(self, number: int, do: Do) -> None:
        self._number = number
        self._do = do
        self._thread: int | None = None
        self._seen = Counter[str]()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch the saves of this process for the block."""
        self._watch_messages()
        self._watch_transactions()
        self._watch_saves()
        with io_hook(lambda operation, path, phase: self._reach(phase, f"{operation} {_role(path)}", path)):
            yield

    def _reach(self, phase: str, step: str, path: Path | None = None) -> None:
        if threading.get_ident() != self._thread:
            return
        label = f"{'<' if phase == 'before' else '>'} {step}"
        self._seen[label] += 1
        self._do(label if self._seen[label] == 1 else f"{label} ({self._seen[label]})", path)

    def _around(self, step: str, call: Callable[[], Any]) -> Any:
        self._reach("before", step)
        result = call()
        self._reach("after", step)
        return result

    def _watch_messages(self) -> None:
        put, delete = ServiceMessages.put, ServiceMessages.delete

        def put_watched(messages: ServiceMessages, key: str, value: str) -> None:
            told = re.sub(r".*/(\d+)/(offer|answer|decision)", r"\2", key)
            self._around(f"tell {told}", lambda: put(messages, key, value))

        def delete_watched(messages: ServiceMessages, keys: Sequence[str]) -> None:
            self._around("delete messages", lambda: delete(messages, keys))

        ServiceMessages.put = put_watched  # type: ignore[method-assign, assignment]
        ServiceMessages.delete = delete_watched  # type: ignore[method-assign, assignment]

    def _watch_transactions(self) -> None:
        commit = Connection.commit

        def commit_watched(connection: Connection) -> None:
            self._around("COMMIT", lambda: commit(connection))

        Connection.commit = commit_watched  # type: ignore[method-assign, assignment]

    def _watch_saves(self) -> None:
        enter, leave, join = LedSave.__enter__, LedSave.__exit__, JoinedSave.save

        def enter_watched(led: LedSave) -> LedSave:
            if led._number == self._number:
                self._begin()
            return enter(led)

        def leave_watched(led: LedSave, *error: Any) -> None:
            leave(led, *error)
            if led._number == self._number:
                self._end()

        def join_watched(joined: JoinedSave, snapshot: Snapshot, request: SaveRequest) -> Checkpoint:
            if request.job_save != self._number:
                return join(joined, snapshot, request)
            self._begin()
            try:
                return join(joined, snapshot, request)
            finally:
                self._end()

        LedSave.__enter__ = enter_watched  # type: ignore[method-assign, assignment]
        LedSave.__exit__ = leave_watched  # type: ignore[method-assign]
        JoinedSave.save = join_watched  # type: ignore[method-assign, assignment]

    def _begin(self) -> None:
        self._thread = threading.get_ident()
        self._reach("before", "save")

    def _end(self) -> None:
        self._reach("after", "save")
        self._thread = None


def _role(path: Path) -> str:
    """Return a name for a path that is the same in each training."""
    if path.suffix == ".lease":
        return "lease"
    if path.parent.name in ("shards", "documents"):
        return f"{path.parent.name}/{path.name}"
    if path.parent.name == "tmp":
        return "upload"
    if path.parent.name == "checkpoints":
        return "payload"
    return path.name
