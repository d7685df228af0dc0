"""The screen of the command watch: shows what a thread sees of the store, and obeys the keys."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import IO

from ckptstore.cli.output import discard_stdout
from ckptstore.cli.terminal import Terminal, TerminalEndedError
from ckptstore.records import Observation
from ckptstore.report.watch_view import Choice, watch_view
from ckptstore.store.observer import StoreObserver

# The clock and the ages on the screen go on without a look at the store.
_REDRAW_S = 1.0
# A look that takes longer waits for another process, or for the disk, and the user is told.
_SLOW_LOOK_S = 3.0
_STEPS = {"n": 1, "j": 1, "down": 1, "p": -1, "k": -1, "up": -1}


def can_show(output: IO[str]) -> bool:
    """Return True if a stream is a terminal whose screen can be replaced."""
    return output.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def show(observer: StoreObserver, interval_s: float) -> int:
    """Show a store on the terminal until the user quits; returns the exit code, 128 + N after signal N.

    Args:
        observer: Looks at the store.
        interval_s: Seconds between two looks.
    """
    looks = _Looks(observer, interval_s)
    choice = Choice()
    try:
        with Terminal(sys.stdout, sys.stdin) as terminal:
            looks.start()
            while True:
                observation = looks.newest(choice)
                width, height = terminal.size
                view = watch_view(observation, choice, width=width, height=height, glyphs=terminal.glyphs)
                terminal.show(view)
                for key in terminal.wait(_REDRAW_S, also=looks.descriptor):
                    if key in ("q", "Q"):
                        return 0
                    choice = _obeyed(choice, key, observation)
    except TerminalEndedError as ended:
        if ended.signal == signal.SIGHUP:
            discard_stdout()  # nobody reads it any more
        return 128 + ended.signal
    finally:
        looks.stop()


def _obeyed(choice: Choice, key: str, observation: Observation) -> Choice:
    """Return the choice after a key."""
    if key in _STEPS:
        return choice.moved(observation, _STEPS[key])
    if key == "s":
        return choice.sorted_by_next()
    if key in ("?", "h"):
        return replace(choice, help=not choice.help)
    return replace(choice, help=False)


class _Looks(threading.Thread):
    """Looks at a store again and again in a thread, so that keys are obeyed while SQLite waits for a writer.

    Attributes:
        descriptor: Can be read when there is something new.
    """

    def __init__(self, observer: StoreObserver, interval_s: float) -> None:
        # A daemon: a look that waits must not delay the end of the program.
        super().__init__(name="ckptstore watch", daemon=True)
        self._observer, self._interval_s = observer, interval_s
        self.descriptor, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopped = threading.Event()
        self._chosen: str | None = None
        self._newest: Observation | None = None
        self._error: BaseException | None = None
        self._began_s = time.monotonic()
        self._is_looking = True

    def run(self) -> None:
        """Look until `stop`."""
        try:
            while not self._stopped.is_set():
                self._began_s, self._is_looking = time.monotonic(), True
                self._newest = self._observer.look(self._chosen)
                self._is_looking = False
                self._tell()
                self._stopped.wait(self._interval_s)
        except BaseException as error:
            self._error = error
            self._tell()

    def stop(self) -> None:
        """Stop; a look that waits is abandoned."""
        self._stopped.set()

    def newest(self, choice: Choice) -> Observation:
        """Return the newest observation, with the present time; what has ended the thread is raised.

        Args:
            choice: What the user looks at.
        """
        if self._error is not None:
            raise self._error
        with suppress(BlockingIOError):
            os.read(self.descriptor, 4096)
        now = datetime.now(UTC)
        newest = self._newest
        problem = None if newest is None else newest.problem
        if self._is_looking and time.monotonic() - self._began_s > _SLOW_LOOK_S:
            problem = "waiting for the store: another process is writing to it, or the disk is slow"
        if newest is None:
            return Observation(store=self._observer.path, at=now, problem=problem or "looking ...")
        chosen = choice.chosen(newest)
        self._chosen = None if chosen is None else chosen.run.name
        return replace(newest, at=now, problem=problem)

    def _tell(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._writer, b"!")
