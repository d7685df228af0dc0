"""Facts that the figures depend on: machine, file system, versions, and other load."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

# File systems in memory, where fsync does nothing.
IN_MEMORY = ("tmpfs", "ramfs")
PACKAGES = ("ckptstore", "keras", "orbax-checkpoint", "numpy", "h5py", "sqlalchemy")

TOOLS = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """Return the environment of a process that runs a module of this package."""
    paths = [str(TOOLS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def facts(folder: Path, backends: Sequence[str]) -> dict[str, Any]:
    """Return the facts that the figures depend on."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "machine": platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": file_system(folder),
        "load": load(),
        "python": platform.python_version(),
        **{name: version(name) for name in (*PACKAGES, *backends)},
    }


def print_facts(found: dict[str, Any], console: Console) -> None:
    """Print the facts, with a warning where the figures would mean little."""
    shown = found | {"memory": f"{found['memory_bytes'] / 2**30:.0f} GiB"}
    del shown["memory_bytes"]
    console.print(", ".join(f"{name} {value}" for name, value in shown.items()), soft_wrap=True)
    if found["file_system"] in IN_MEMORY:
        console.print(
            f"[bold red]WARNING[/]: {found['file_system']} is memory, not a disk: use --dir", soft_wrap=True
        )
    if found["load"] > found["cores"] / 2:
        console.print(
            f"[bold red]WARNING[/]: other processes are running (load {found['load']:.1f}); figures will vary",
            soft_wrap=True,
        )
    console.print()


def load() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def memory_bytes() -> int:
    """Return the size of the memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def file_system(folder: Path) -> str:
    """Return the type of a folder's file system, or "unknown"."""
    done = subprocess.run(
        ["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def version(package: str) -> str:
    """Return the version of a package, or "none"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
