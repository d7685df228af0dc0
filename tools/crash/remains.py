"""Finds what a training leaves behind: processes, held locks, temporary files, heartbeats, shared memory, damage."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from ckptstore.storage.heartbeat_file import is_held, is_saving
from ckptstore.storage.locks import is_locked
from crash.training_processes import environment, processes_of

_SHARED = Path("/dev/shm")


def shared_names() -> set[str]:
    """Return the names of the shared memory of this machine that Python or this package may have made."""
    found = set()
    for entry in _SHARED.iterdir() if _SHARED.is_dir() else ():
        if entry.name.startswith(("psm_", "sem.", "ckptstore")) and entry.is_file():
            found.add(entry.name)
    return found


def remains(folder: Path, store: Path, shared_before: set[str]) -> list[str]:
    """Return one line for each thing that is left of trainings that have ended.

    Args:
        folder: The folder of their files.
        store: Their store.
        shared_before: What `shared_names` returned before.
    """
    found = [f"process {pid} is left: {command}" for pid, command in processes_of(folder)]
    found += [f"{path} is left" for path in (store / "tmp").glob("*")]
    found += [f"{path.name} is still locked" for path in (store / "locks").glob("*") if is_locked(path)]
    found += [
        f"the heartbeat of run {path.name} is still held"
        for path in (store / "heartbeats").glob("*")
        if is_held(path) or is_saving(path)
    ]
    found += [f"{path} is left" for path in store.parent.glob(".ckptstore-*")]
    found += [
        f"shared memory is left: {name}" for name in shared_names() - shared_before if not _is_mapped(name)
    ]
    done = subprocess.run(
        [sys.executable, "-m", "ckptstore", "verify", str(store), "--json"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or not json.loads(done.stdout)["ok"]:
        found.append(f"ckptstore verify: {done.stdout} {done.stderr}")
    return found


def _is_mapped(name: str) -> bool:
    """Return True if a living process has a piece of shared memory: it is another program's."""
    text = str(_SHARED / name)
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if text in maps.read_text(errors="replace"):
                return True
    return False
