"""Interrupts a save (Ctrl-C, a notebook's stop button) at any call of a function, and goes on in the same process.

A process that lives on must hold no lock that others wait for, leave nothing in the way of its next save, and lose
nothing that it reported. Each interrupt's traceback is kept while that is checked, as notebooks keep it.

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
from crash.invariants import Saved, Shown, violations
from crash.sample_stores import is_seed, save


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How many saves were interrupted, how many calls one has, and one line for each violation."""

    interrupts: int
    calls: int
    seconds: float
    violations: tuple[str, ...]


class _Interruption:
    """Raises `KeyboardInterrupt` in this thread at its n-th call, or soon behind it; says where that was.

    The start of a function is one of the places where Python looks for signals. Inside contextlib's own few lines an
    interrupt leaves a block open for as long as the traceback lives: nothing that is written in Python can mend that.
    """

    def __init__(self, at: int) -> None:
        self.left = at
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        self.left -= 1
        if self.left <= 0 and not self.where and frame.f_code.co_filename != contextlib.__file__:
            sys.settrace(None)
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
            raise KeyboardInterrupt


def _led_to(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an error is of this kind, or came up while one was on its way, as zipfile's does in its own closing."""
    while error is not None and not isinstance(error, kind):
        error = error.__context__
    return error is not None


# --- another process, which would wait for what is still locked ------------------------------------------------------


def _look(root: Path, asked: Connection) -> None:
    """Say, each time that it is asked, which of a store's locks somebody holds."""
    while asked.recv():
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
        asked.send(held)


@contextmanager
def _looking(root: Path) -> Iterator[Callable[[], list[str]]]:
    ours, theirs = get_context("forkserver").Pipe()
    process = get_context("forkserver").Process(target=_look, args=(root, theirs))
    process.start()

    def look() -> list[str]:
        ours.send(True)
        held: list[str] = ours.recv()
        return held

    try:
        yield look
    finally:
        ours.send(False)
        process.join()


# --- interrupting ----------------------------------------------------------------------------------------------------


class _Trial:
    """A store that one process goes on with, whatever interrupts its saves."""

    def __init__(self, folder: Path, store: CheckpointStore, look: Callable[[], list[str]]) -> None:
        self.folder = folder
        self.store = store
        self.look = look
        self.violations: list[str] = []
        self.last = self.save(1)
        self.left: set[str] = set()

    def save(self, epoch: int) -> Saved:
        saved = save(self.store, epoch, publish=self.folder / "shown.keras", keep=keep_last(2))
        return Saved(version=saved.version, digest=saved.digest, epoch=saved.epoch)

    def interrupt(self, at: int) -> bool:
        """Interrupt a save at its call `at`, look, and save again; returns False where it had passed before."""
        interruption = _Interruption(at)
        sys.settrace(interruption)
        try:
            self.save(self.last.epoch + 1)
        except BaseException as error:
            sys.settrace(None)
            # The error, and with it all that its frames hold, lives as long as this block.
            found = [f"still locked is {held}" for held in self.look()]
            if not _led_to(error, KeyboardInterrupt):
                found.append(f"it became {error!r}")
        else:
            sys.settrace(None)
            found = []
        try:
            found += self._after()
        except CheckpointStoreError as error:
            found.append(f"the store does not work again: {error!r}")
        self.violations += [f"interrupted at call {at}, {interruption.where}: {line}" for line in found]
        return bool(interruption.where)

    def _after(self) -> Iterator[str]:
        listed = [one.epoch for one in self.store.checkpoints()]
        if self.last.epoch not in listed:
            yield f"{self.last} was reported saved and is not there"
        self.last = self.save(max(listed) + 1)
        left = {path.name for path in (self.folder / "store" / "tmp").iterdir() if path.suffix != ".lease"}
        yield from (f"{name} is left behind" for name in left - self.left)
        self.left = left


def interrupt_saves(*, stride: int = 1, first: int = 1, most: int | None = None) -> Result:
    """Interrupt a save at every so many calls, until one passes untouched.

    Args:
        stride: How many calls lie between two that are tried.
        first: The first call.
        most: How many interrupts; None for no end but the save's.
    """
    began, at, count = time.monotonic(), first, 0
    with tempfile.TemporaryDirectory(prefix="crash-interrupts-") as parent:
        folder = Path(parent)
        with CheckpointStore(folder / "store") as store, _looking(folder / "store") as look:
            trial = _Trial(folder, store, look)
            while count != most and trial.interrupt(at):
                count += 1
                at += stride
        found = trial.violations + violations(
            folder / "store",
            [trial.last],
            shown=Shown(path=folder / "shown.keras"),
            is_whole=lambda checkpoint: is_seed(checkpoint.path, checkpoint.epoch),
        )
    seconds = time.monotonic() - began
    return Result(interrupts=count, calls=at, seconds=seconds, violations=tuple(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stride", type=int, default=1, help="only every so many calls")
    parser.add_argument("--first", type=int, default=1, help="from which call on")
    parser.add_argument("--most", type=int, help="how many interrupts")
    options = parser.parse_args()
    result = interrupt_saves(stride=options.stride, first=options.first, most=options.most)
    print(result)
    raise SystemExit(bool(result.violations))


if __name__ == "__main__":
    main()
