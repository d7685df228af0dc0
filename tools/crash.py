#!/usr/bin/env python
"""Tries to lose a checkpoint, in every way that the other `crash_*` tools know, and says what was tried and found.

    tools/crash.py            a few minutes: some of each
    tools/crash.py --long     an hour and more: every system call, 300 random kills, three minutes of many processes
    tools/crash.py kills      these parts only

Needs Linux, and strace for `power`, `kills` and `errors`; root for `disks`. Ends with 1 where anything was violated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Part:
    """One tool: what it does, and its arguments for a short and for a long run."""

    what: str
    command: tuple[str, ...]
    short: tuple[str, ...] = ()
    long: tuple[str, ...] = ()


PARTS = {
    "steps": Part(
        "a process that dies, or meets an error, at every file-system step",
        ("-m", "pytest", "-q", "tests/test_crash.py", "tests/test_recovery.py", "tests/test_repair.py"),
    ),
    "machine": Part(
        "random histories against a plain model", ("-m", "pytest", "-q", "tests/test_state_machine.py")
    ),
    "power": Part(
        "power cuts, replayed from a recording",
        ("tools/crash_power.py",),
        ("--random", "2"),
        ("--random", "20"),
    ),
    "kills": Part(
        "SIGKILL at system calls of model.fit, and at random moments",
        ("tools/crash_kills.py",),
        ("--stride", "19", "--random", "30"),
        ("--stride", "1", "--random", "300"),
    ),
    "errors": Part(
        "system calls that fail", ("tools/crash_errors.py",), ("--stride", "13"), ("--stride", "1")
    ),
    "interrupts": Part(
        "saves that are interrupted at a call of a Python function, in a process that lives on",
        ("tools/crash_interrupts.py",),
        ("--stride", "499"),
        ("--stride", "13"),
    ),
    "disks": Part("disks that are really full", ("tools/crash_full_disks.py",)),
    "processes": Part(
        "many writers and readers, killed and started again",
        ("tools/crash_processes.py",),
        ("--seconds", "15"),
        ("--seconds", "180"),
    ),
}


def run(name: str, *, long: bool) -> tuple[bool, float]:
    """Run one part; returns whether nothing was violated, and the seconds that it took."""
    part = PARTS[name]
    print(f"\n== {name}: {part.what}", flush=True)
    examples = {"CKPTSTORE_MACHINE_EXAMPLES": "300"} if long else {}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *part.command, *(part.long if long else part.short)],
        cwd=HERE.parent,
        env={**os.environ, **examples},
        check=False,
    )
    return done.returncode == 0, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--long", action="store_true", help="try everything")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    results = {name: run(name, long=options.long) for name in options.parts or PARTS}
    print()
    for name, (held, seconds) in results.items():
        print(f"{name:10} {seconds:7.0f} s  {'held' if held else 'VIOLATED, see above'}")
    raise SystemExit(not all(held for held, _ in results.values()))


if __name__ == "__main__":
    main()
