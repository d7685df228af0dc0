"""Queries and commits of a store with many checkpoints of ten metrics each."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_process
import xxhash

import ckptstore

METRICS = tuple(
    f"{prefix}{name}" for prefix in ("", "val_") for name in ("loss", "accuracy", "auc", "mae", "f1")
)
EPOCH_STEPS = 100
# Repetitions of what takes milliseconds, for each of what takes seconds.
QUERIES = 20


def fill(folder: Path, count: int) -> None:
    """Make a store with `count` checkpoints of ten metrics each; their payloads are empty, and whole."""
    with ckptstore.CheckpointStore(folder):
        pass
    values = random.Random(count)
    now = "2026-01-01T00:00:00.000000+00:00"
    nbytes, digest = 0, "xxh3_128:" + xxhash.xxh3_128(b"").hexdigest()
    with contextlib.closing(sqlite3.connect(folder / "manifest.sqlite")) as database, database:
        database.execute("INSERT INTO runs (id, name, created_at) VALUES (1, 'default', ?)", (now,))
        database.executemany("INSERT INTO metric_names (id, name) VALUES (?, ?)", enumerate(METRICS, start=1))
        database.executemany(
            "INSERT INTO checkpoints (version, run_id, epoch, batch, step, created_at, file, nbytes, digest,"
            " format, state, resumable, pinned)"
            " VALUES (?, 1, ?, NULL, ?, ?, ?, ?, ?, 'keras', 'complete', 1, 0)",
            (
                (n, n - 1, n * EPOCH_STEPS, now, f"checkpoints/{n:08d}-default.keras", nbytes, digest)
                for n in range(1, count + 1)
            ),
        )
        database.executemany(
            "INSERT INTO metrics (version, metric_id, run_id, state, value) VALUES (?, ?, 1, 'complete', ?)",
            ((n, m, values.random()) for n in range(1, count + 1) for m in range(1, len(METRICS) + 1)),
        )
        # What `history` is asked from: the last checkpoint of each epoch, which outlives its row.
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
        (folder / "checkpoints" / f"{n:08d}-default.keras").touch()


def measure(count: int, folder: Path, *, repeats: int) -> dict[str, Any]:
    """Ask a store of so many checkpoints everything that it can be asked."""
    place = folder / "store"
    began = time.perf_counter()
    fill(place, count)
    rows: dict[str, Any] = {"filled_s": time.perf_counter() - began}
    before = bench_process.resident_bytes()
    bench_process.reset_peak()
    with ckptstore.CheckpointStore(place, read_only=True) as store:
        questions: dict[str, Callable[[], object]] = {
            "latest": store.latest,
            "best": lambda: store.best("val_loss"),
            "resume_point": store.resume_point,
            "best(k=10)": lambda: store.best("val_loss", k=min(10, count)),
            "history": store.history,
        }
        assert len(store.history().epochs) == count
        assert len(store.best("val_loss", k=min(10, count))) == min(10, count)
        for name, ask in questions.items():
            rows[name] = timed(ask, repeats * (1 if name == "history" else QUERIES))
    rows["memory of queries"] = {"extra_bytes": max(0, bench_process.peak_bytes() - before)}
    rows["open for writing"] = timed(lambda: opened(place), repeats)
    rows["commit"] = commits(place, repeats * QUERIES)
    command = [sys.executable, "-m", "ckptstore.cli"]
    rows["ls --limit 20"] = timed_command([*command, "ls", str(place), "--limit", "20"], repeats)
    rows["prune --dry-run"] = timed_command(
        [*command, "prune", str(place), "--keep-last", "10", "--dry-run"], repeats
    )
    return rows


def opened(place: Path) -> bool:
    """Open for writing, with the recovery that this begins with, and close."""
    with ckptstore.CheckpointStore(place):
        return True


def timed(ask: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Time a call; the first one, which compiles statements and fills caches, by itself."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        found = ask()
        seconds.append(time.perf_counter() - began)
        assert found is not None
        del found
    return {"first_s": seconds[0], **spread(seconds[1:])}


def timed_command(command: list[str], repeats: int) -> dict[str, Any]:
    """Time a command from its start to its end."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - began)
        if done.returncode:
            reason = (done.stderr.strip() or "it failed").splitlines()[-1]
            return {"unavailable": f"not available: {reason}"}
    return {"first_s": seconds[0], **spread(seconds[1:])}


def commits(place: Path, repeats: int) -> dict[str, Any]:
    """Time saves of a model of a few bytes, whose cost is that of the commit."""
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    metrics = dict.fromkeys(METRICS, 0.5)
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
