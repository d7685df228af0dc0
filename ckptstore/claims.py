"""The runs that this process writes: each is locked from its first save until the store is closed."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from functools import partial

from ckptstore.errors import RunLockedError
from ckptstore.layout import Layout
from ckptstore.locks import RunLock, store_lock
from ckptstore.manifest import Manifest
from ckptstore.names import check_run
from ckptstore.records import Holder
from ckptstore.reserve import give_up_for


class Claims:
    """The locks of runs; a forked child has none of them.

    Args:
        layout: Where the store lies.
        manifest: Its manifest, in which the holder of a run is noted.
    """

    def __init__(self, layout: Layout, manifest: Manifest) -> None:
        self._layout = layout
        self._manifest = manifest
        self._locks: dict[str, RunLock] = {}
        self._pid = os.getpid()

    def claim(self, run: str) -> None:
        """Become the writer of a run, if this process is not that yet.

        Raises:
            RunLockedError: Another writer has it; says who.
        """
        check_run(run)
        if self._pid != os.getpid():
            self._locks, self._pid = {}, os.getpid()
        if run in self._locks:
            return
        lock = self._lock(run)
        try:
            holder = Holder(host=socket.gethostname(), pid=os.getpid(), started_at=datetime.now(UTC))
            with store_lock(self._layout.locks):
                give_up_for(self._layout.reserve, partial(self._manifest.set_holder, run, holder))
        except BaseException:
            lock.release()
            raise
        self._locks[run] = lock

    def _lock(self, run: str) -> RunLock:
        try:
            return RunLock(self._layout.locks, run)
        except RunLockedError as error:
            holder = self._manifest.holder(run)
            if holder is None:
                raise
            raise RunLockedError(
                run=run,
                store=self._layout.root,
                host=holder.host,
                pid=holder.pid,
                started_at=holder.started_at,
            ) from error

    def release(self) -> None:
        """Let go of all runs."""
        locks, self._locks = self._locks, {}
        if self._pid == os.getpid():
            for lock in locks.values():
                lock.release()
