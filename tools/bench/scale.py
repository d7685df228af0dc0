"""Times of queries and commits in a store with many checkpoints of ten metrics each."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

import ckptstore
from bench import process_cost
from bench.machine import environment

METRICS = tuple(
    f"{prefix}{name}" for prefix in ("", "val_") for name in ("loss", "accuracy", "auc", "mae", "f1")
)
EPOCH_STEPS = 100
# The size of each payload, which is empty.
NBYTES = 1000
# Repetitions of a query that takes milliseconds, for each one of a command that takes seconds.
QUERIES = 20
# A measurement that takes longer is not repeated.
SLOW_S = 5.0
# Checkpoints beyond the size budget: two turns of a thousand, and some more.
OVER_BUDGET = 2500
COMMAND = [sys.executable, "-m", "bench.cli_memory"]


def fill(folder: Path, count: int) -> None:
    """Create a store with `count` checkpoints of ten metrics each; their payloads are empty, but intact."""
    with ckptstore.CheckpointStore(folder):
        pass
    values = random.Random(count)
    now = "2026-01-01T00:00:00.000000+00:00"
    digest = "xxh3_128:" + xxhash.xxh3_128(bytes(NBYTES)).hexdigest()
    with contextlib.closing(sqlite3.connect(folder / "manifest.sqlite")) as database, database:
        database.execute("INSERT INTO runs (id, name, created_at) VALUES (1, 'default', ?)", (now,))
        database.executemany("INSERT INTO metric_names (id, name) VALUES (?, ?)", enumerate(METRICS, start=1))
        database.executemany(
            "INSERT INTO checkpoints (version, run_id, epoch, batch, step, created_at, file, nbytes, digest,"
            " format, state, resumable, pinned)"
            " VALUES (?, 1, ?, NULL, ?, ?, ?, ?, ?, 'keras', 'complete', 1, 0)",
            (
                (n, n - 1, n * EPOCH_STEPS, now, f"checkpoints/{n:08d}-default.keras", NBYTES, digest)
                for n in range(1, count + 1)
            ),
        )
        database.executemany(
            "INSERT INTO metrics (version, metric_id, run_id, state, value) VALUES (?, ?, 1, 'complete', ?)",
            ((n, m, values.random()) for n in range(1, count + 1) for m in range(1, len(METRICS) + 1)),
        )
        # `history` reads these: the last checkpoint of each epoch, which outlives its row.
        database.execute(
            "INSERT INTO epochs (run_id, epoch, version, batch, step, created_at)"
            " SELECT run_id, epoch, version, batch, step, created_at FROM checkpoints"
        )
        database.execute(
            "INSERT INTO epoch_metrics (run_id, epoch, metric_id, value)"
            " SELECT metrics.run_id, epoch, metric_id, value FROM metrics JOIN checkpoints USING (version)"
        )
        database.execute("UPDATE store SET next_version = ?", (count + 1,))
    for n in range(1, count + 1):
        descriptor = os.open(folder / "checkpoints" / f"{n:08d}-default.keras", os.O_CREAT | os.O_WRONLY)
        os.ftruncate(descriptor, NBYTES)
        os.close(descriptor)


def measure(count: int, folder: Path, *, repeats: int) -> dict[str, Any]:
    """Time every query on a store of `count` checkpoints."""
    place = folder / "store"
    began = time.perf_counter()
    fill(place, count)
    rows: dict[str, Any] = {"filled_s": time.perf_counter() - began}
    before = process_cost.resident_bytes()
    process_cost.reset_peak()
    with ckptstore.CheckpointStore(place, read_only=True) as store:
        queries: dict[str, Callable[[], object]] = {
            "latest": store.latest,
            "best": lambda: store.best("val_loss"),
            "resume_point": store.resume_point,
            "best(k=10)": lambda: store.best("val_loss", k=min(10, count)),
        }
        assert len(store.best("val_loss", k=min(10, count))) == min(10, count)
        for name, query in queries.items():
            rows[name] = timed(query, repeats * QUERIES)
        rows["memory of queries"] = {"extra_bytes": max(0, process_cost.peak_bytes() - before)}
        process_cost.reset_peak()
        rows["history"] = timed(lambda: epochs(store, count), repeats)
        rows["history"]["extra_bytes"] = max(0, process_cost.peak_bytes() - before)
    rows["open for writing"] = timed(lambda: opened(place), repeats)
    rows["commit"] = commits(place, repeats * QUERIES)
    rows["ls --limit 20"] = timed_command(["ls", str(place), "--limit", "20"], repeats)
    for kept in ("10", str(count)):
        name = "prune --dry-run" if kept == "10" else "prune --dry-run, all stay"
        rows[name] = timed_command(["prune", str(place), "--keep-last", kept, "--dry-run"], repeats)
    return rows | budget_turns(place, count, repeats * QUERIES)


def epochs(store: ckptstore.CheckpointStore, count: int) -> bool:
    """Query the history; return True if it is complete."""
    return len(store.history().epochs) == count


def opened(place: Path) -> bool:
    """Open for writing, which runs recovery, and close."""
    with ckptstore.CheckpointStore(place):
        return True


def timed(query: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Time a call; the first one, which compiles statements and fills caches, is reported separately."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        found = query()
        seconds.append(time.perf_counter() - began)
        assert found
        del found
        if seconds[-1] > SLOW_S:
            break
    return {"first_s": seconds[0], **spread(seconds[1:] or seconds)}


def timed_command(arguments: list[str], repeats: int) -> dict[str, Any]:
    """Time a command from its start to its end, and measure its peak memory."""
    seconds, peaks = [], []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        done = subprocess.run(
            [*COMMAND, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )
        seconds.append(time.perf_counter() - began)
        *messages, peak = done.stderr.splitlines() or [""]
        if done.returncode:
            return {"unavailable": f"not available: {messages[-1] if messages else 'it failed'}"}
        peaks.append(int(peak))
        if seconds[-1] > SLOW_S:
            break
    return {"first_s": seconds[0], **spread(seconds[1:] or seconds), "extra_bytes": max(peaks)}


def small_model() -> Any:
    """Return a model of a few bytes, whose save costs as much as the commit."""
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    return model


def budget_turns(place: Path, count: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Time commits with a size budget: the first, which looks at everything, and later ones."""
    model, metrics = small_model(), dict.fromkeys(METRICS, 0.5)
    with contextlib.closing(sqlite3.connect(place / "manifest.sqlite")) as database:
        (total,) = database.execute("SELECT sum(nbytes) FROM checkpoints").fetchone()
    with ckptstore.CheckpointStore(place) as store:
        size = total - NBYTES * min(OVER_BUDGET, count // 2)
        keep = ckptstore.keep_last(3) | ckptstore.max_bytes(size)
        turns: list[tuple[float, int]] = []
        for number in range(repeats + 4):
            began = time.perf_counter()
            store.save(model, epoch=2 * 10**6 + number, metrics=metrics, format="weights", keep=keep)
            seconds = time.perf_counter() - began
            pruned = store.events(kind="pruned", limit=1)
            turns.append((seconds, len(pruned[0].detail["versions"]) if pruned and pruned[0].detail else 0))
    first, many = turns[0][0], [seconds for seconds, removed in turns[1:] if removed >= 1000]
    return {
        "commit, a size budget's first turn": {"first_s": first, **spread([first])},
        "commit, a thousand removed": spread(many) if many else {"unavailable": "there are too few"},
        "commit, a size budget's later turns": spread([seconds for seconds, _ in turns[4:]]),
    }


def commits(place: Path, repeats: int) -> dict[str, Any]:
    """Time saves of a model of a few bytes, which cost as much as the commit."""
    model, metrics = small_model(), dict.fromkeys(METRICS, 0.5)
    seconds = []
    with ckptstore.CheckpointStore(place) as store:
        for epoch in range(repeats + 1):
            began = time.perf_counter()
            store.save(model, epoch=10**6 + epoch, metrics=metrics, format="weights")
            seconds.append(time.perf_counter() - began)
    return {"first_s": seconds[0], **spread(seconds[1:])}


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median and the extremes."""
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}
