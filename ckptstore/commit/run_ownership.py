"""The runs that this process writes: each is locked from its first save until the store is closed."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from ckptstore.commit.previous_writer import Patience
from ckptstore.errors import CheckpointStoreError, RunLockedError, StoreNotFoundError
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Holder
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import store_lock
from ckptstore.storage.reserve import release_and_retry
from ckptstore.storage.run_lock import RunLock, is_held_by_this_process
from ckptstore.validation import check_run


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
        self._busy = threading.RLock()
        self._started: set[str] = set()

    def claim(self, run: str) -> None:
        """Become the writer of a run, if this process is not that yet.

        Where its last writer has ended, and what it left is still being saved, that is waited for, at most two minutes.

        Raises:
            RunLockedError: Another writer has it; says who.
        """
        check_run(run)
        if self._pid != os.getpid():
            self._locks, self._pid, self._busy = {}, os.getpid(), threading.RLock()
        with self._busy:
            if run not in self._locks:
                self._locks[run] = self._claimed(run)

    def lock_of(self, run: str) -> RunLock:
        """Return the lock of a claimed run, for a process that works for this one."""
        return self._locks[run]

    def _claimed(self, run: str) -> RunLock:
        lock = self._lock(run)
        try:
            holder = Holder(host=socket.gethostname(), pid=os.getpid(), started_at=datetime.now(UTC))
            with store_lock(self._layout.locks):
                if not os.path.lexists(self._layout.manifest):
                    # Its last run has ended and taken the store with it, between our opening and this.
                    raise StoreNotFoundError(path=self._layout.root)
                release_and_retry(self._layout.reserve, partial(self._manifest.set_holder, run, holder))
        except BaseException:
            lock.release()
            raise
        return lock

    def _lock(self, run: str) -> RunLock:
        patience = Patience(run)
        while True:
            try:
                return RunLock(self._layout.locks, run)
            except RunLockedError as error:
                holder = self._manifest.holder(run)
                if holder is None:
                    raise
                if not patience.lasts(holder, here=is_held_by_this_process(self._layout.locks, run)):
                    raise RunLockedError(
                        run=run,
                        store=self._layout.root,
                        host=holder.host,
                        pid=holder.pid,
                        started_at=holder.started_at,
                    ) from error

    def begin(self, run: str) -> int:
        """Begin a new attempt at a claimed run; returns its number."""
        with store_lock(self._layout.locks):
            return release_and_retry(self._layout.reserve, partial(self._manifest.begin_attempt, run))

    def note_start(self, run: str) -> None:
        """Remember that a run was resumed here, until `release` can say that it ended well."""
        self._started.add(run)

    def forget_starts(self) -> None:
        """Let the starts so far count as crashes: an error ends the process."""
        self._started.clear()

    def release(self) -> None:
        """Let go of all runs; those that were resumed here have ended well."""
        locks, self._locks = self._locks, {}
        if self._pid != os.getpid():
            return
        started, self._started = self._started, set()
        try:
            for run in sorted(started):
                # At worst one start too many is counted.
                with suppress(CheckpointStoreError), store_lock(self._layout.locks):
                    self._manifest.add_event("ended", run=run)
        finally:
            for lock in locks.values():
                lock.release()
