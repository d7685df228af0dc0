"""The program of the worker process: lowers its priority, and only then imports what it needs.

Started by `ckptstore.background.process` with descriptors alone.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

# The training comes first; yet what is not written must be kept in memory, so the difference is small.
NICE = 5
# These signals are meant for the trainer, which tells this process itself when to end.
_IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE")


def main() -> None:
    """Run the program."""
    _lower_priority()
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    from ckptstore.background.process_loop import run

    run(sys.argv[1])
    # Everything is closed. Tearing the interpreter down would keep a trainer waiting at its end.
    sys.stderr.flush()
    os._exit(0)


def _lower_priority() -> None:
    # A container may forbid either.
    with suppress(OSError):
        os.nice(NICE)
    # A batch task does not preempt the training when it wakes up. Without this, where no core was idle, the step that
    # had just handed a snapshot over waited 2 ms, a whole slice of time.
    with suppress(OSError):
        if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


if __name__ == "__main__":
    main()
