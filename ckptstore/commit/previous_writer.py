"""Whether the process that the manifest names as a run's writer is still there, or only what it left to be finished."""

from __future__ import annotations

import os
import socket
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ckptstore.records import Holder

# A process that saves beside a training outlives it by one or two saves.
PATIENCE_S = 120.0
_QUIET_S = 0.5
_POLL_S = 0.02
# Kernel and clock round differently.
_TOLERANCE = timedelta(seconds=5)


class Patience:
    """Waits, within bounds, for what a dead trainer has handed over to be saved.

    A trainer that is killed leaves the process that saves beside it, and that holds the run until it has committed
    what it has. Whoever takes the run next would miss those checkpoints if it did not wait.

    Args:
        run: The run, for the line that is printed.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._began = time.monotonic()
        self._said = False

    def lasts(self, holder: Holder, *, here: bool) -> bool:
        """Wait for a moment; returns False where there is nothing to wait for, or no more time.

        Args:
            holder: Who has the run, as the manifest says.
            here: Whether a store of this process has it.
        """
        waited = time.monotonic() - self._began
        if here or waited > PATIENCE_S or may_live(holder):
            return False
        if not self._said and waited > _QUIET_S:
            self._said = True
            print(
                f"ckptstore: process {holder.pid}, which trained run {self._run!r}, has ended; "
                "waiting for its last checkpoint to be saved",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(_POLL_S)
        return True


def may_live(holder: Holder) -> bool:
    """Return False where the process is certainly dead, or a zombie, or is this one.

    Example:
        >>> may_live(Holder(host="elsewhere", pid=1, started_at=datetime.now(UTC)))
        True
    """
    if holder.host != socket.gethostname():
        return True
    if holder.pid == os.getpid():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is there, and another user's
    return not _is_another(holder)


def _is_another(holder: Holder) -> bool:
    """Return whether what has this number now is dead, or was started later."""
    try:
        fields = Path(f"/proc/{holder.pid}/stat").read_text(encoding="ascii", errors="replace")
        boot = Path("/proc/stat").read_text(encoding="ascii", errors="replace")
        state, *rest = fields.rpartition(")")[2].split()
        seconds = int(boot.partition("btime ")[2].split()[0]) + int(rest[18]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return False  # without /proc nothing more is known
    return state in "ZX" or datetime.fromtimestamp(seconds, UTC) > holder.started_at + _TOLERANCE
