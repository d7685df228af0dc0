"""Which runs this process writes: each is locked from its first save until the store is closed."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from ckptstore.commit.previous_writer import PreviousWriterWait
from ckptstore.errors import CheckpointStoreError, RefusedByLayerError, RunLockedError, StoreNotFoundError
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Holder
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import store_lock
from ckptstore.storage.reserve import release_and_retry
from ckptstore.storage.run_lock import RunLock, is_held_by_this_process
from ckptstore.validation import check_run


class RunOwnership:
    """The run locks that a store holds; a forked child holds none of them.

    Args:
        layout: The store's paths.
        manifest: The store's manifest, which records the owner of each run.
    """

    def __init__(self, layout: Layout, manifest: Manifest) -> None:
        self._layout = layout
        self._manifest = manifest
        self._locks: dict[str, RunLock] = {}
        self._pid = os.getpid()
        self._mutex = threading.RLock()
        self._started: set[str] = set()

    def claim(self, run: str) -> None:
        """Own a run, if this process does not already.

        If the run's last trainer has ended and its writer process is still saving, waits for that, at most two minutes.

        Raises:
            RunLockedError: Another writer owns the run; names it.
        """
        check_run(run)
        if self._pid != os.getpid():
            self._locks, self._pid, self._mutex = {}, os.getpid(), threading.RLock()
        with self._mutex:
            if run in self._locks:
                self._locks[run].keep_in_place()
            else:
                self._locks[run] = self._claimed(run)

    def lock_of(self, run: str) -> RunLock:
        """Return the lock of an owned run, with the claim, for a process that works for this one."""
        return self._locks[run]

    def _claimed(self, run: str) -> RunLock:
        lock = self._lock(run)
        try:
            holder = Holder(host=socket.gethostname(), pid=os.getpid(), started_at=datetime.now(UTC))
            with store_lock(self._layout.locks):
                if not os.path.lexists(self._layout.manifest):
                    # Its last run ended, and removed the store, after we had opened it.
                    raise StoreNotFoundError(path=self._layout.root)
                lock.claim = release_and_retry(
                    self._layout.reserve, partial(self._manifest.runs.claim, run, holder)
                )
        except BaseException:
            lock.release()
            raise
        return lock

    def _lock(self, run: str) -> RunLock:
        wait = PreviousWriterWait(run)
        while True:
            try:
                return RunLock(self._layout.locks, run)
            except RunLockedError as error:
                holder = self._manifest.runs.holder(run)
                if holder is None:
                    raise
                if not wait.may_continue(holder, here=is_held_by_this_process(self._layout.locks, run)):
                    raise RunLockedError(
                        run=run,
                        store=self._layout.root,
                        host=holder.host,
                        pid=holder.pid,
                        started_at=holder.started_at,
                    ) from error

    def begin(self, run: str) -> int:
        """Begin an owned run from scratch; returns the number of the beginning."""
        with store_lock(self._layout.locks):
            return release_and_retry(self._layout.reserve, partial(self._manifest.beginnings.begin, run))

    def record_start(self, run: str) -> None:
        """Remember that a run was resumed here, until `release` can record that it ended well."""
        self._started.add(run)

    def record_refusal(self, run: str, error: CheckpointStoreError) -> None:
        """Record that a start ended before anything was loaded, so that it does not count as a crash."""
        if not isinstance(error, RefusedByLayerError):
            with store_lock(self._layout.locks):
                self._manifest.events.add("ended", run=run)

    def forget_starts(self) -> None:
        """Let the starts so far count as crashes: an error ends the process."""
        self._started.clear()

    def release(self) -> None:
        """Release all runs, and record that those that were resumed here have ended well."""
        locks, self._locks = self._locks, {}
        if self._pid != os.getpid():
            return
        started, self._started = self._started, set()
        try:
            for run in sorted(started):
                # If this fails, one start too many is counted.
                with suppress(CheckpointStoreError), store_lock(self._layout.locks):
                    self._manifest.events.add("ended", run=run)
        finally:
            for lock in locks.values():
                lock.release()
