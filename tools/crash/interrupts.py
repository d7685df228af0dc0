"""Interrupts a save (Ctrl-C, a notebook's stop button) at any function call, and continues in the same process.

The process must hold no lock that others wait for, leave nothing that blocks its next save, and lose nothing that it
has reported. The traceback of each interrupt is kept during the check, as notebooks keep it.

    python tools/crash interrupts                  every call of a save: half an hour
    python tools/crash interrupts --stride 499
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from ckptstore.errors import CheckpointStoreError
from ckptstore.retention import keep_last
from ckptstore.store.store import CheckpointStore
from crash.invariants import PublishedFile, Saved, violations
from crash.sample_stores import is_seed, save


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Number of interrupted saves, number of calls of a save, and one line for each violation."""

    interrupts: int
    calls: int
    seconds: float
    violations: tuple[str, ...]


class _Interruption:
    """Raises `KeyboardInterrupt` in this thread at its n-th call, or soon after it; `where` is the place.

    The start of a function is one of the places where Python checks for signals. An interrupt inside the few lines of
    contextlib leaves a block open as long as the traceback lives; no Python code can prevent that, so they are skipped.
    """

    def __init__(self, at: int) -> None:
        self._remaining = at
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        self._remaining -= 1
        if self._remaining <= 0 and not self.where and frame.f_code.co_filename != contextlib.__file__:
            sys.settrace(None)
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
            raise KeyboardInterrupt


def _was_raised_during(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Return True if an error is of a kind, or was raised while one was handled, as zipfile does when it closes."""
    while error is not None and not isinstance(error, kind):
        error = error.__context__
    return error is not None


# --- another process, which finds the locks that are still held ------------------------------------------------------


def _check_locks(root: Path, requests: Connection) -> None:
    """Answer each request with the locks of a store that are held."""
    while requests.recv():
        held = []
        with closing(
            sqlite3.connect(root / "manifest.sqlite", timeout=0, isolation_level=None)
        ) as connection:
            try:
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                held.append(f"the manifest: {error}")
        descriptor = os.open(root / "locks" / "store.lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.append("the store's lock")
        finally:
            os.close(descriptor)
        requests.send(held)


@contextmanager
def _lock_checker(root: Path) -> Iterator[Callable[[], list[str]]]:
    own_end, child_end = get_context("forkserver").Pipe()
    process = get_context("forkserver").Process(target=_check_locks, args=(root, child_end))
    process.start()

    def held_locks() -> list[str]:
        own_end.send(True)
        held: list[str] = own_end.recv()
        return held

    try:
        yield held_locks
    finally:
        own_end.send(False)
        process.join()


# --- interrupting ----------------------------------------------------------------------------------------------------


class _Trial:
    """A store that one process keeps using after interrupts of its saves."""

    def __init__(self, folder: Path, store: CheckpointStore, held_locks: Callable[[], list[str]]) -> None:
        self.folder = folder
        self.store = store
        self.held_locks = held_locks
        self.violations: list[str] = []
        self.last = self.save(1)
        self.left_behind: set[str] = set()

    def save(self, epoch: int) -> Saved:
        saved = save(self.store, epoch, publish=self.folder / "shown.keras", keep=keep_last(2))
        return Saved(version=saved.version, digest=saved.digest, epoch=saved.epoch)

    def interrupt(self, at: int) -> bool:
        """Interrupt a save at its call `at`, check, and save again; return False where the save had ended before."""
        interruption = _Interruption(at)
        sys.settrace(interruption)
        try:
            self.save(self.last.epoch + 1)
        except BaseException as error:
            sys.settrace(None)
            # The error, and everything that its frames hold, lives as long as this block.
            found = [f"still locked: {held}" for held in self.held_locks()]
            if not _was_raised_during(error, KeyboardInterrupt):
                found.append(f"it became {error!r}")
        else:
            sys.settrace(None)
            found = []
        try:
            found += self._save_again()
        except CheckpointStoreError as error:
            found.append(f"the store does not work again: {error!r}")
        self.violations += [f"interrupted at call {at}, {interruption.where}: {line}" for line in found]
        return bool(interruption.where)

    def _save_again(self) -> Iterator[str]:
        listed = [checkpoint.epoch for checkpoint in self.store.checkpoints()]
        if self.last.epoch not in listed:
            yield f"{self.last} was reported as saved and does not exist"
        self.last = self.save(max(listed) + 1)
        left = {path.name for path in (self.folder / "store" / "tmp").iterdir() if path.suffix != ".lease"}
        yield from (f"{name} is left behind" for name in left - self.left_behind)
        self.left_behind = left


def interrupt_saves(*, stride: int = 1, first: int = 1, most: int | None = None) -> Result:
    """Interrupt a save at every `stride`-th call, until one ends before its interrupt.

    Args:
        stride: Every how many calls.
        first: The first call to interrupt.
        most: Maximal number of interrupts; None for no limit.
    """
    began, at, count = time.monotonic(), first, 0
    with tempfile.TemporaryDirectory(prefix="crash-interrupts-") as parent:
        folder = Path(parent)
        with CheckpointStore(folder / "store") as store, _lock_checker(folder / "store") as held_locks:
            trial = _Trial(folder, store, held_locks)
            while count != most and trial.interrupt(at):
                count += 1
                at += stride
        found = trial.violations + violations(
            folder / "store",
            [trial.last],
            published=PublishedFile(path=folder / "shown.keras"),
            is_intact=lambda checkpoint: is_seed(checkpoint.path, checkpoint.epoch),
        )
    seconds = time.monotonic() - began
    return Result(interrupts=count, calls=at, seconds=seconds, violations=tuple(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stride", type=int, default=1, help="interrupt only every STRIDE-th call")
    parser.add_argument("--first", type=int, default=1, help="the first call to interrupt")
    parser.add_argument("--most", type=int, help="maximal number of interrupts")
    options = parser.parse_args()
    result = interrupt_saves(stride=options.stride, first=options.first, most=options.most)
    print(result)
    raise SystemExit(bool(result.violations))


if __name__ == "__main__":
    main()
