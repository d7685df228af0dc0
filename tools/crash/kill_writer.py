"""Kills the process that saves beside a training at each of its system calls, and trainer and writer together.

python tools/crash writers                          every call, then 100 random moments
python tools/crash writers --stride 20 --random 10
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckptstore.background.save_queue import SaveQueue
from ckptstore.commit.request import SaveRequest
from ckptstore.retention import keep_last
from ckptstore.store.store import CheckpointStore
from crash.injection_points import Call, calls_in, one_of_each
from crash.invariants import violations
from crash.sample_stores import is_seed, snapshot_of
from crash.strace import MUTATING

SAVES = 3
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How often a writer was killed, how often it came to its end, and one line for each violation."""

    kills: int
    passed_untouched: int
    violations: tuple[str, ...]


# --- the writer, at each of its calls ------------------------------------------------------------


def kill_at_calls(*, stride: int = 1, calls: str = MUTATING) -> Result:
    """Kill the first writer of a training at its first call that changes a file system, at its second, and so on.

    The trainer lives, and starts another one: all that was handed over is there in the end, once.

    Args:
        stride: Only every so many calls, and one of each kind.
        calls: Which.
    """
    kills, untouched, found = 0, 0, []
    with tempfile.TemporaryDirectory(prefix="crash-writers-") as name:
        folder = Path(name)
        log = folder / "log"
        save_through(folder / "untouched", folder / "python", [f"trace={calls}"], log)
        made = calls_in(log)
        chosen = sorted({*range(0, len(made), stride), *one_of_each(made)})
        last = Call(calls, 2 * max(call.nth for call in made) + 100)
        for call in [*(made[place] for place in chosen), last]:
            root = folder / f"{call.name}-{call.nth}"
            options = [f"trace={call.name}", f"inject={call.name}:signal=SIGKILL:when={call.nth}"]
            killed = save_through(root, folder / "python", options, Path(os.devnull))
            kills += killed
            untouched += not killed
            found += [f"killed at {call.name} {call.nth}: {line}" for line in wrong_with(root, range(SAVES))]
    return Result(kills=kills, passed_untouched=untouched, violations=tuple(found))


def save_through(root: Path, shim: Path, options: Sequence[str], log: Path) -> bool:
    """Save some snapshots through a writer that runs under strace; returns whether that was killed."""
    shim.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        # The first one alone: what takes over is left in peace.
        if mkdir "$0.used" 2>/dev/null; then
            exec strace -f -qq -o {log} {" ".join(f"-e '{option}'" for option in options)} {sys.executable} "$@"
        fi
        exec {sys.executable} "$@"
        """)
    )
    shim.chmod(0o755)
    used = shim.with_name(f"{shim.name}.used")
    if used.exists():
        used.rmdir()
    real, sys.executable = sys.executable, str(shim)
    try:
        with CheckpointStore(root) as store:
            queue = store.saving_beside("default")
            queue.start()
            first = queue._worker
            for seed in range(SAVES):
                submit(queue, seed)
                queue.drain()
            errors = [outcome.error for outcome in queue.outcomes() if outcome.error is not None]
            queue.close()
            if errors:
                raise errors[0]
            return bool(first.process.returncode)  # type: ignore[union-attr]
    finally:
        sys.executable = real


def submit(queue: SaveQueue, seed: int) -> None:
    """Hand over the snapshot of a seed; two are kept, so that every save also removes."""
    request = SaveRequest(run="default", epoch=seed, metrics={"loss": float(-seed)}, keep=keep_last(2))
    queue.submit(snapshot_of(seed), request, droppable=False)


def wrong_with(root: Path, seeds: Sequence[int]) -> list[str]:
    """Return what is wrong with a store that these were handed over for."""
    found = violations(root)
    with CheckpointStore(root) as store:
        saved = store.checkpoints()
    epochs = [one.epoch for one in saved]
    if epochs[-1:] != list(seeds[-1:]) or len(set(epochs)) != len(epochs):
        found.append(f"{list(seeds)} were handed over, and {epochs} are there")
    return found + [
        f"{one.path.name} is not the snapshot" for one in saved if not is_seed(one.path, one.epoch)
    ]


# --- trainer and writer, at any moment -----------------------------------------------------------


def train_for_ever(root: Path) -> None:
    """Hand over snapshots without end, and say what is handed over and what durable; begin behind the newest."""
    with CheckpointStore(root) as store:
        store.claim("default")
        newest = store.latest()
        began = saved = -1 if newest is None else newest.epoch
        queue = store.saving_beside("default")
        for seed in itertools.count(began + 1):
            submit(queue, seed)
            for outcome in queue.outcomes():
                assert outcome.error is None, outcome.error
                assert outcome.checkpoint is not None
                saved = outcome.checkpoint.epoch
            pid = queue._worker.pid  # type: ignore[union-attr]
            print(json.dumps({"began": began, "handed": seed, "saved": saved, "writer": pid}), flush=True)


def kill_at_random(*, kills: int, seed: int) -> Result:
    """Kill the trainer, the writer, or both at once, at any moment; start again in the same store each time.

    What was reported saved must be there after any kill, and after one of the trainer all that was handed over.
    """
    chosen = random.Random(seed)
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="crash-writers-") as name:
        root = Path(name, "store")
        for kill in range(kills):
            whom = ("trainer", "both", "writer")[kill % 3]
            said, wrong = _killed(root, whom, chosen.uniform(0, 0.3))
            wrong += _left_behind(root) + violations(root)
            with CheckpointStore(root) as store:
                newest = store.latest()
            expected = said["saved"] if whom == "both" else said["handed"]
            if newest is None or newest.epoch < expected:
                wrong.append(f"{said} was said, and {newest} is the newest")
            elif not is_seed(newest.path, newest.epoch):
                wrong.append(f"{newest} is not the snapshot")
            found += [f"kill {kill} of seed {seed}, of {whom}: {line}" for line in wrong]
    return Result(kills=kills, passed_untouched=0, violations=tuple(found))


def _killed(root: Path, whom: str, after_s: float) -> tuple[dict[str, int], list[str]]:
    """Train, and kill; returns the last that the trainer said, and what it complained of."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-m", "crash.kill_writer", "--train", str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as trainer:
        assert trainer.stdout is not None
        assert trainer.stderr is not None
        said: dict[str, int] = json.loads(trainer.stdout.readline())
        time.sleep(after_s)
        if whom != "trainer":
            killed = said["writer"]
            os.kill(killed, signal.SIGKILL)
        while whom == "writer" and said["writer"] == killed:
            # It goes on with another one, and only then is killed too.
            said = json.loads(trainer.stdout.readline())
        trainer.kill()
        # Not communicate(), which does not know of what readline() has read ahead, and begins in the middle of a line.
        output, complaints = trainer.stdout.read(), trainer.stderr.read()
    for line in output.splitlines(keepends=True):
        if line.endswith("\n"):
            said = json.loads(line)
    return said, [complaints.strip().splitlines()[-1]] if "Traceback" in complaints else []


def _left_behind(root: Path) -> list[str]:
    """Wait for the writer to end; what is still there after a while is left behind."""
    until = time.monotonic() + PATIENCE_S
    while left := writers(root):
        if time.monotonic() > until:
            return [f"process {pid} is left behind" for pid in left]
        time.sleep(0.01)
    return []


def writers(root: Path) -> list[int]:
    """Return the processes that save into a store."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            words = path.read_bytes().decode(errors="replace")
            if "ckptstore.background" in words and str(root) in words:
                found.append(int(path.parent.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stride", type=int, default=1, help="only every so many calls; 0 for none")
    parser.add_argument("--random", type=int, default=100, help="how many random kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train_for_ever(options.train)
    results = []
    if options.stride:
        results.append(kill_at_calls(stride=options.stride))
        print(results[-1], flush=True)
    if options.random:
        results.append(kill_at_random(kills=options.random, seed=options.seed))
        print(results[-1], flush=True)
    raise SystemExit(any(result.violations for result in results))


if __name__ == "__main__":
    main()
