#!/usr/bin/env python
"""Tries to lose a checkpoint in every known way, and reports what was tried and found.

    python tools/crash                        a few minutes: some of each
    python tools/crash --long                 more than an hour: every system call, 300 random kills, ...
    python tools/crash kills power            only these parts
    python tools/crash kills --stride 20      one part with its own options; `kills --help` lists them

Needs Linux, and strace for `power`, `kills`, `writers` and `errors`; root for `disks`. The exit code is 1 if anything
was violated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Part:
    """One part: what it does, its module and arguments, and further arguments for a short and for a long run."""

    description: str
    command: tuple[str, ...]
    short: tuple[str, ...] = ()
    long: tuple[str, ...] = ()


PARTS = {
    "steps": Part(
        "a process that dies, or meets an error, at every file-system step",
        (
            "pytest",
            "-q",
            "tests/commit/test_kill_at_each_step.py",
            "tests/commit/test_recovery.py",
            "tests/store/test_repair.py",
        ),
    ),
    "machine": Part(
        "random operations, compared with a simple model",
        ("pytest", "-q", "tests/commit/test_state_machine.py"),
    ),
    "power": Part(
        "power cuts, replayed from a recording",
        ("crash.power_cuts",),
        ("--random", "2"),
        ("--random", "20"),
    ),
    "kills": Part(
        "SIGKILL at system calls of model.fit, and at random times",
        ("crash.kill_training",),
        ("--stride", "19", "--random", "30"),
        ("--stride", "1", "--random", "300"),
    ),
    "writers": Part(
        "SIGKILL at system calls of the saving process, and at random times",
        ("crash.kill_writer",),
        ("--stride", "19", "--random", "10"),
        ("--stride", "1", "--random", "100"),
    ),
    "errors": Part("system calls that fail", ("crash.failing_calls",), ("--stride", "13"), ("--stride", "1")),
    "interrupts": Part(
        "saves that are interrupted at a Python function call, in a process that continues",
        ("crash.interrupts",),
        ("--stride", "499"),
        ("--stride", "13"),
    ),
    "disks": Part("disks that are really full", ("crash.full_disks",)),
    "structures": Part(
        "payloads whose structures overlap, nest, loop or lie about sizes",
        ("crash.structures",),
        ("--files", "1000"),
        ("--files", "50000"),
    ),
    "processes": Part(
        "many writers and readers, killed and restarted",
        ("crash.many_processes",),
        ("--seconds", "15"),
        ("--seconds", "180"),
    ),
    "unattended": Part(
        "a training under `ckptstore run`, disturbed in every known way",
        ("crash.unattended",),
        ("--rounds", "1"),
        ("--rounds", "5"),
    ),
    "jobs": Part(
        "trainings of several processes: kills and stops at each step of a save, full disks, damage, restarts",
        ("crash.jobs.matrix",),
        ("--stride", "9"),
        ("--rounds", "2"),
    ),
}


def run(name: str, *, long: bool, options: Sequence[str] = ()) -> tuple[bool, float]:
    """Run one part; return True if nothing was violated, and the seconds that it took.

    Args:
        name: A key of `PARTS`.
        long: True for the arguments of a long run.
        options: Arguments to use instead.
    """
    part = PARTS[name]
    print(f"\n== {name}: {part.description}", flush=True)
    examples = {"CKPTSTORE_MACHINE_EXAMPLES": "300"} if long else {}
    paths = [str(TOOLS), *filter(None, [os.environ.get("PYTHONPATH")])]
    module, *arguments = part.command
    # Not `-m` for our own modules: children of the fork server, which has imported them, would import them again.
    program = f"import sys; sys.argv[0] = 'crash {name}'; from {module} import main; main()"
    start = ["-m", module] if module == "pytest" else ["-c", program]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *start, *arguments, *(options or (part.long if long else part.short))],
        cwd=TOOLS.parent,
        env={**os.environ, **examples, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    return done.returncode == 0, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--long", action="store_true", help="try everything")
    if sys.argv[1:2] and sys.argv[1] in PARTS and sys.argv[2:3] and sys.argv[2] not in (*PARTS, "--long"):
        held, _ = run(sys.argv[1], long=False, options=sys.argv[2:])
        raise SystemExit(not held)
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
