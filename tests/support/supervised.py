"""Commands under `ckptstore run`, as processes: what they do at each start, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Executes one argument at each start: steps such as `save`, `exit N` and `kill N`, joined by commas.
COMMAND = """
import os, sys
from pathlib import Path
starts = Path("starts")
start = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (start + 1))
for step in sys.argv[1:][min(start, len(sys.argv) - 2)].split(","):
    what, _, number = step.partition(" ")
    if what == "save":
        from crash.sample_stores import save
        from ckptstore.store.store import CheckpointStore
        with CheckpointStore("store") as store:
            save(store, start, run=number or "default", batch=start or None, step=10 * start)
    elif what == "say":
        print("said", number, flush=True)
    elif what == "kill":
        os.kill(os.getpid(), int(number))
    else:
        sys.exit(int(number))
"""

# A training that waits, saves when it is asked to stop, and ends as an interrupted one.
STOPPABLE = """
import os, sys, time
from pathlib import Path
from ckptstore.system.stop_signals import StopRequest
Path("starts").write_text("x")
with StopRequest() as stop:
    print("ready", os.getpid(), flush=True)
    while not stop.received:
        time.sleep(0.01)  # not pause(), which would miss a signal that came just before it
    Path("saved").write_text(stop.received.name)
    stop.deliver()
"""
# Long enough for a child to report its second signal before it is killed, also on a busy machine.
GRACE_S = 3
# A command that ignores all signals to stop.
STUBBORN = """
import os, signal, time
for kind in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(kind, lambda number, frame: print("got", number, flush=True))
print("ready", os.getpid(), flush=True)
while True:
    time.sleep(0.01)
"""


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ckptstore", "run", *map(str, arguments)]


class Ran:
    """Result of one run of the command."""

    def __init__(self, folder: Path, *arguments: object, timeout_s: float = 120) -> None:
        done = subprocess.run(
            command_line(*arguments),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        starts = folder / "starts"
        self.starts = len(starts.read_text()) if starts.exists() else 0

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def steps(folder: Path, *plan: str, options: tuple[object, ...] = ()) -> Ran:
    """Run a command that executes one item of `plan` at each start, and then repeats the last one."""
    return Ran(folder, "store", "--pause", 0, *options, "--", sys.executable, "-c", COMMAND, *plan)


class Running:
    """A running command, whose child has reported that it is ready, unless that is not waited for."""

    def __init__(
        self,
        folder: Path,
        script: str,
        *options: object,
        wait: bool = True,
        arguments: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        command = [sys.executable, "-c", script, *arguments]
        self.process = subprocess.Popen(
            command_line("store", "--pause", 0, *options, "--", *command),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,
        )
        assert self.process.stdout is not None
        self.child = int(self.process.stdout.readline().split()[1]) if wait else 0

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and stderr."""
        _, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stderr

    def clean_up(self) -> None:
        """Kill all processes, also when a test has failed."""
        for process in filter(None, (self.process.pid, self.child)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.communicate()


Start = Callable[..., Running]
