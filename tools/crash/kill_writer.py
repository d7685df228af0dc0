"""Kills the saving process at each of its system calls, and trainer and writer together at random times.

python tools/crash writers                          every call, then 100 random kills
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
from crash.injection_points import Call, calls_in, one_of_each_name
from crash.invariants import violations
from crash.sample_stores import is_seed, snapshot_of
from crash.strace import MUTATING

SAVES = 3
MAX_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Number of kills, number of writers that ended before their kill, and one line for each violation."""

    kills: int
    ended_first: int
    violations: tuple[str, ...]


# --- the writer, at each of its calls ------------------------------------------------------------


def kill_at_calls(*, stride: int = 1, calls: str = MUTATING) -> Result:
    """Kill the first writer of a training at its first call that changes a file system, at its second, and so on.

    The trainer survives, and starts another one: in the end everything that was submitted exists, once.

    Args:
        stride: Try only every `stride`-th call, and one of each kind.
        calls: The calls, as for strace.
    """
    kills, ended_first, found = 0, 0, []
    with tempfile.TemporaryDirectory(prefix="crash-writers-") as name:
        folder = Path(name)
        log = folder / "log"
        save_through(folder / "untouched", folder / "python", [f"trace={calls}"], log)
        made = calls_in(log)
        chosen = sorted({*range(0, len(made), stride), *one_of_each_name(made)})
        last = Call(calls, 2 * max(call.nth for call in made) + 100)
        for call in [*(made[position] for position in chosen), last]:
            root = folder / f"{call.name}-{call.nth}"
            options = [f"trace={call.name}", f"inject={call.name}:signal=SIGKILL:when={call.nth}"]
            killed = save_through(root, folder / "python", options, Path(os.devnull))
            kills += killed
            ended_first += not killed
            found += [f"killed at {call.name} {call.nth}: {line}" for line in wrong_in(root, range(SAVES))]
    return Result(kills=kills, ended_first=ended_first, violations=tuple(found))


def save_through(root: Path, shim: Path, options: Sequence[str], log: Path) -> bool:
    """Save some snapshots through a writer that runs under strace; return True if it was killed."""
    shim.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        # Only the first writer is traced, not its successors.
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
            queue = store.open_save_queue("default")
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
    """Submit the snapshot of a seed; two are kept, so that every save also removes one."""
    request = SaveRequest(run="default", epoch=seed, metrics={"loss": float(-seed)}, keep=keep_last(2))
    queue.submit(snapshot_of(seed), request, droppable=False)


def wrong_in(root: Path, seeds: Sequence[int]) -> list[str]:
    """Return what is wrong with a store to which the snapshots of these seeds were submitted."""
    found = violations(root)
    with CheckpointStore(root) as store:
        saved = store.checkpoints()
    epochs = [checkpoint.epoch for checkpoint in saved]
    if epochs[-1:] != list(seeds[-1:]) or len(set(epochs)) != len(epochs):
        found.append(f"{list(seeds)} were submitted, and {epochs} exist")
    return found + [
        f"{checkpoint.path.name} is not the snapshot"
        for checkpoint in saved
        if not is_seed(checkpoint.path, checkpoint.epoch)
    ]


# --- trainer and writer, at random times -----------------------------------------------------------


def train_forever(root: Path) -> None:
    """Submit snapshots endlessly, and report what is submitted and what is durable; begin after the newest."""
    with CheckpointStore(root) as store:
        store.claim("default")
        newest = store.latest()
        began = saved = -1 if newest is None else newest.epoch
        queue = store.open_save_queue("default")
        for seed in itertools.count(began + 1):
            submit(queue, seed)
            for outcome in queue.outcomes():
                assert outcome.error is None, outcome.error
                assert outcome.checkpoint is not None
                saved = outcome.checkpoint.epoch
            pid = queue._worker.pid  # type: ignore[union-attr]
            print(json.dumps({"began": began, "submitted": seed, "saved": saved, "writer": pid}), flush=True)


def kill_at_random(*, kills: int, seed: int) -> Result:
    """Kill the trainer, the writer, or both, at random times; start again in the same store each time.

    What was reported as saved must exist after any kill; after a kill of the trainer alone, everything submitted.
    """
    chosen = random.Random(seed)
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="crash-writers-") as name:
        root = Path(name, "store")
        for kill in range(kills):
            victim = ("trainer", "both", "writer")[kill % 3]
            report, wrong = _killed(root, victim, chosen.uniform(0, 0.3))
            wrong += _left_behind(root) + violations(root)
            with CheckpointStore(root) as store:
                newest = store.latest()
            expected = report["saved"] if victim == "both" else report["submitted"]
            if newest is None or newest.epoch < expected:
                wrong.append(f"{report} was reported, and {newest} is the newest")
            elif not is_seed(newest.path, newest.epoch):
                wrong.append(f"{newest} is not the snapshot")
            found += [f"kill {kill} of seed {seed}, of {victim}: {line}" for line in wrong]
    return Result(kills=kills, ended_first=0, violations=tuple(found))


def _killed(root: Path, victim: str, after_s: float) -> tuple[dict[str, int], list[str]]:
    """Train, and kill; return the last report of the trainer, and its error if it had one."""
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
        report: dict[str, int] = json.loads(trainer.stdout.readline())
        time.sleep(after_s)
        if victim != "trainer":
            killed = report["writer"]
            os.kill(killed, signal.SIGKILL)
        while victim == "writer" and report["writer"] == killed:
            # The trainer starts another writer; only then is it killed too.
            report = json.loads(trainer.stdout.readline())
        trainer.kill()
        # Not communicate(): it ignores what readline() has read ahead, and begins in the middle of a line.
        output, errors = trainer.stdout.read(), trainer.stderr.read()
    for line in output.splitlines(keepends=True):
        if line.endswith("\n"):
            report = json.loads(line)
    return report, [errors.strip().splitlines()[-1]] if "Traceback" in errors else []


def _left_behind(root: Path) -> list[str]:
    """Wait for the writers to end; return those that still run after `MAX_WAIT_S`."""
    until = time.monotonic() + MAX_WAIT_S
    while left := writers(root):
        if time.monotonic() > until:
            return [f"process {pid} is left behind" for pid in left]
        time.sleep(0.01)
    return []


def writers(root: Path) -> list[int]:
    """Return the ids of the processes that save into a store."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            words = path.read_bytes().decode(errors="replace")
            if "ckptstore.background" in words and str(root) in words:
                found.append(int(path.parent.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stride", type=int, default=1, help="kill at every STRIDE-th call only; 0 for none")
    parser.add_argument("--random", type=int, default=100, help="number of random kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train_forever(options.train)
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
