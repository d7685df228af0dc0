"""The order of the fits that this process makes on each store; it names the fits that were given no run.

The first such fit is the run "default", the next "default-2", and so on. A fit that an exception or an interrupt ended
keeps its place: the next fit takes it again, and resumes. So the same script, started again, gives each of its fits the
run that the fit had before.
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Protocol

from ckptstore.errors import InvalidArgumentError
from ckptstore.storage.layout import Layout

FIRST_RUN = "default"


class RunningFit(Protocol):
    """A fit that holds a place in the order."""

    @property
    def is_running(self) -> bool:
        """True while the fit runs: it is on the stack of a thread of this process."""


class FitOrder:
    """The fits of this process on one store.

    Attributes:
        is_explained: Whether the user was told how later fits are named.

    Example:
        >>> order = FitOrder()
        >>> order.next_run()
        'default'
        >>> order.complete("default")
        >>> order.next_run(), order.next_run(), order.has_completed("default")
        ('default-2', 'default-2', True)
    """

    def __init__(self) -> None:
        self._completed: dict[str, weakref.ref[object] | None] = {}
        self._unnamed: weakref.WeakValueDictionary[str, RunningFit] = weakref.WeakValueDictionary()
        self._number = 1
        self.is_explained = False

    def next_run(self) -> str:
        """Return the name of the first run that no fit of this process has brought to its end."""
        with _process.lock:
            return self._next_run()

    def begin_unnamed(self, fit: RunningFit) -> str:
        """Begin a fit that was given no run, and return the run that it is.

        Raises:
            InvalidArgumentError: Another one is running, in another thread or around this one: which of both is the
                first would change from start to start.
        """
        with _process.lock:
            for run, other in list(self._unnamed.items()):
                if other is not fit and other.is_running:
                    raise InvalidArgumentError(
                        argument="run",
                        value=None,
                        reason=f"another fit, or another callback of this fit, is writing run {run!r} of this store: "
                        "fits that run at once have no order to be named by",
                        hint="give each of them a name: run='...'",
                    )
            self._unnamed.clear()
            run = self._next_run()
            self._unnamed[run] = fit
            return run

    def complete(self, run: str, *, by: object = None) -> None:
        """Record that a fit of this run has ended, at its last epoch or stopped by a callback.

        Args:
            run: The run.
            by: The callback that saved it.
        """
        with _process.lock:
            self._completed[run] = None if by is None else weakref.ref(by)

    def has_completed(self, run: str) -> bool:
        """Return True if a fit of this process has brought the run to its end."""
        return run in self._completed

    def reopen(self, run: str, *, by: object = None) -> bool:
        """Record that another fit of a run begins; returns True if one has brought the run to its end before.

        Args:
            run: The run.
            by: The callback that saves it: only a fit of another callback counts.
        """
        with _process.lock:
            if run not in self._completed:
                return False
            callback = self._completed.pop(run)
            return callback is None or callback() is not by

    @property
    def is_in_use(self) -> bool:
        """True while a fit that was given no run is running."""
        return any(fit.is_running for fit in list(self._unnamed.values()))

    def _next_run(self) -> str:
        while _name(self._number) in self._completed:
            self._number += 1
        return _name(self._number)

    def _forget_running(self) -> None:
        self._unnamed.clear()


def fits_on(path: Path) -> FitOrder:
    """Return the order of the fits on the store at a path, however the path is spelled.

    A store that is not there, or was removed since, has none yet.
    """
    key = os.path.realpath(path)
    is_there = Layout(Path(key)).manifest.exists()
    with _process.lock:
        order = _process.orders.get(key)
        if order is None or (not is_there and not order.is_in_use):
            order = _process.orders[key] = FitOrder()
        return order


def _name(number: int) -> str:
    return FIRST_RUN if number == 1 else f"{FIRST_RUN}-{number}"


class _Process:
    """The orders of this process, by the stores' real paths."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.orders: dict[str, FitOrder] = {}

    def reset_in_child(self) -> None:
        """Count on from the parent's fits, none of which runs in this process."""
        self.lock = threading.Lock()
        for order in self.orders.values():
            order._forget_running()


_process = _Process()
os.register_at_fork(after_in_child=_process.reset_in_child)
