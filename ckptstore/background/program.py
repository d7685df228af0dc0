"""The program of the writer's process: steps back behind the training, and only then imports what it needs.

Started by `ckptstore.background.process` with descriptors alone.
"""

from __future__ import annotations

import os
import signal
import sys

# Training comes first; but what is not written must be kept in memory.
NICE = 5
# What is meant for the trainer, which says itself when to end.
_IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE")


def main() -> None:
    """Run the program."""
    os.nice(NICE)
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    from ckptstore.background.writer import run

    run(sys.argv[1])
    # All is closed: taking the interpreter down would take longer than a trainer at its end should wait.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
