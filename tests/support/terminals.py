"""Commands that are run on a terminal."""

from __future__ import annotations

import contextlib
import os

# A command that shows its progress from the first byte on, not after a second.
AT_ONCE = """
import sys
from ckptstore.cli import main, output
output.PROGRESS_DELAY_S = 0.0
sys.exit(main.main(sys.argv[1:]))
"""


def all_of(terminal: int) -> bytes:
    """Return all that was written to a terminal, given its controlling end, until all writers have closed it."""
    written = b""
    with contextlib.suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as stream:  # EIO is its end
        while data := stream.read(65536):
            written += data
    return written
