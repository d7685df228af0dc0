"""`Leaving`: a process leaves a step that cannot end, together with the other processes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from ckptstore.distributed.job import Job
from ckptstore.distributed.session import JobSession
from ckptstore.keras.private import is_in_framework, leave_together
from ckptstore.system import messages

# How long the training thread stays in one call of the framework before it counts as waiting for a process that has
# given up; then no step of this fit can end, but one may be compiled, or a result copied from the device.
STUCK_S = 10.0
# That of an exception that nobody catches.
_EXIT_CODE = 1


class Leaving:
    """Ends a process whose training thread waits for ever in native code, where no exception can reach it.

    The framework would end it too, on JAX by an abort, but only when the other processes have waited for it at their
    exits for 5 minutes. This waits until each of the others is at its exit, or in such a step, and then leaves with
    them: what they do before, such as to clean up, is not disturbed. A save under way is waited for. What is lost is
    what an abort loses: blocks of ``finally``, functions registered with `atexit`.

    Args:
        job: The processes. Leaving together is possible on JAX alone; elsewhere this does nothing.
        session: The saves of this fit.

    Attributes:
        before: Called with the error before this process leaves.
    """

    def __init__(self, job: Job, session: JobSession) -> None:
        self._job = job
        self._session = session
        self._agreements = session.agreements
        self._thread = threading.get_ident()
        self._frame: FrameType | None = None
        self._instruction = -1
        self._since = 0.0
        self._has_told = False
        self.before: Callable[[BaseException], object] = lambda error: None

    def look(self, error: BaseException) -> None:
        """Leave if the training thread is in a step that cannot end; called by another thread again and again.

        Args:
            error: Why it cannot end.

        Raises:
            DistributedError: The messages do not get through.
        """
        if self._job.kind != "jax" or self.stuck_s(time.monotonic()) < STUCK_S or self._session.is_saving:
            return
        if not self._has_told:
            self._has_told = True
            messages.log(
                f"ckptstore: process {self._job.process} has been in one step for {STUCK_S:g} s, which cannot end; it "
                f"leaves with exit code {_EXIT_CODE} when all other processes exit"
            )
            with suppress(Exception):  # what cannot be recorded must not keep it
                self.before(error)
            self._agreements.exits()
        if self._agreements.all_exit(self._job.processes):
            self._leave()

    def _leave(self) -> None:
        with suppress(Exception):  # one of them has come to another end
            leave_together()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(_EXIT_CODE)

    def stuck_s(self, now: float) -> float:
        """Return for how many seconds the training thread has been seen in one and the same call of the framework."""
        frame = sys._current_frames().get(self._thread)
        if frame is None or not is_in_framework(frame):
            self._frame = None
            return 0.0
        if frame is not self._frame or frame.f_lasti != self._instruction:
            self._frame, self._instruction, self._since = frame, frame.f_lasti, now
        return now - self._since
