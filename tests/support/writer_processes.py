"""The processes that save in the background, found and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptstore.background.program import can_start

needs_process = pytest.mark.skipif(not can_start(), reason="this platform has no memfd or pidfd")


def writers(root: Path) -> list[int]:
    """Return the pids of the worker processes of a store."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "ckptstore.background" in words and str(root) in words:
            found.append(int(path.parent.name))
    return found
