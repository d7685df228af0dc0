"""Waits for the writer process of a dead trainer, which still owns the run until its last saves are committed."""

from __future__ import annotations

import os
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ckptstore.records import Holder
from ckptstore.system import messages

# A writer process outlives its trainer by one or two saves.
LIMIT_S = 120.0
_QUIET_S = 0.5
_POLL_S = 0.02
# Kernel and clock round differently.
_TOLERANCE = timedelta(seconds=5)


class PreviousWriterWait:
    """A bounded wait for the saves that a dead trainer has handed to its writer process.

    A trainer that is killed leaves its writer process, which owns the run until it has committed what it has. A new
    owner that did not wait would miss those checkpoints.

    Args:
        run: The run, for the line that is printed.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._began = time.monotonic()
        self._is_reported = False

    def may_continue(self, holder: Holder, *, here: bool) -> bool:
        """Wait for a moment; returns False where there is nothing to wait for, or no more time.

        Args:
            holder: The run's owner, as recorded in the manifest.
            here: True if a store of this process owns the run.
        """
        waited = time.monotonic() - self._began
        if here or waited > LIMIT_S or may_live(holder):
            return False
        if not self._is_reported and waited > _QUIET_S:
            self._is_reported = True
            messages.log(
                f"ckptstore: process {holder.pid}, which trained run {self._run!r}, has ended; "
                "waiting for its last checkpoint to be saved"
            )
        time.sleep(_POLL_S)
        return True


def may_live(holder: Holder) -> bool:
    """Return False if the process is certainly dead, or a zombie, or this one.

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
    """Return True if the process that has this pid now is dead, or was started later."""
    try:
        fields = Path(f"/proc/{holder.pid}/stat").read_text(encoding="ascii", errors="replace")
        boot = Path("/proc/stat").read_text(encoding="ascii", errors="replace")
        state, *rest = fields.rpartition(")")[2].split()
        seconds = int(boot.partition("btime ")[2].split()[0]) + int(rest[18]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return False  # without /proc nothing more is known
    return state in "ZX" or datetime.fromtimestamp(seconds, UTC) > holder.started_at + _TOLERANCE
