"""Keeps SQLite intact over fork: no transaction is open when this process forks, and no connection is used after.

SQLite records in the process's memory which files it has locked. A child that is forked while any thread is inside a
transaction would inherit that record without the locks. It would then read unprotected, or wait for ever; and if it
closed such a connection, it would roll the parent's transaction back. So forking waits for the open transactions of
other threads, which are short, and new transactions wait for the fork. The child starts with fresh pools and leaves
the inherited connections alone.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from sqlalchemy import Engine, Pool


class _Gate:
    """Counts the open transactions of this process by thread, and the threads that are forking."""

    def __init__(self) -> None:
        # Acquired directly, not through the condition: an interrupt in its Python code could leave the lock held.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.open: Counter[int] = Counter()
        self.forking = 0
        self.engines: WeakSet[Engine] = WeakSet()
        self.abandoned: list[Pool] = []


_gate = _Gate()


@contextmanager
def no_fork() -> Iterator[None]:
    """Delay forks of this process until the block ends, except forks by the thread that is in it.

    Example:
        >>> with no_fork(), no_fork():
        ...     pass
    """
    me = threading.get_ident()
    with _gate.lock:
        # A nested block must not wait: the fork waits for the outer one.
        _gate.changed.wait_for(lambda: not _gate.forking or me in _gate.open)
        _gate.open[me] += 1
    try:
        yield
    finally:
        with _gate.lock:
            _gate.open[me] -= 1
            if not _gate.open[me]:
                del _gate.open[me]
            _gate.changed.notify_all()


def reset_in_child(engine: Engine) -> None:
    """Give `engine` a fresh pool in every forked child, for as long as the engine is in use."""
    with _gate.lock:
        _gate.engines.add(engine)


def _before_fork() -> None:
    me = threading.get_ident()
    _gate.lock.acquire()  # until the fork is done
    _gate.forking += 1
    _gate.changed.wait_for(lambda: all(thread == me for thread in _gate.open))


def _after_fork_in_parent() -> None:
    _gate.forking -= 1
    _gate.changed.notify_all()
    _gate.lock.release()


def _after_fork_in_child() -> None:
    me = threading.get_ident()
    _gate.lock = threading.RLock()
    _gate.changed = threading.Condition(_gate.lock)
    _gate.forking = 0
    _gate.open = Counter({me: _gate.open[me]}) if me in _gate.open else Counter()
    for engine in _gate.engines:
        # Kept for ever, so that nothing in this process closes the parent's connections.
        _gate.abandoned.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
