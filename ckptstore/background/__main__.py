"""The program of the writer's process: steps back behind the training, and only then imports what it needs.

Started by `ckptstore.background.process` with descriptors alone.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

# Training comes first; but what is not written must be kept in memory.
NICE = 5
# What is meant for the trainer, which says itself when to end.
_IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE")


def main() -> None:
    """Run the program."""
    _step_back()
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    from ckptstore.background.process_loop import run

    run(sys.argv[1])
    # All is closed: taking the interpreter down would take longer than a trainer at its end should wait.
    sys.stderr.flush()
    os._exit(0)


def _step_back() -> None:
    os.nice(NICE)
    # A task of this kind does not take a core from the training when it wakes up: where none was idle, the step that
    # had just handed over waited 2 ms for that, a whole slice of time.
    with suppress(OSError):  # a container may forbid it; it is nice all the same
        if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


if __name__ == "__main__":
    main()
