"""Fills a store with very many checkpoints quickly, and times queries on a store of that size.

    cd tools
    python -m bench.fill_manifest FOLDER 10000 1000000         fill stores of these sizes, and time all queries
    python -m bench.fill_manifest FOLDER 1000000 --fill-only   only fill; existing stores are not filled again

The manifest is a real one; payloads are empty files of the right size. There are ten metrics, and ten checkpoints in an
epoch; besides the run ``default`` there is a run ``short``, a thousand epochs with one checkpoint each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from crash.sample_stores import snapshot_of

METRICS = tuple(
    f"{prefix}{name}" for prefix in ("", "val_") for name in ("loss", "accuracy", "auc", "mae", "f1")
)
NBYTES = 1000
SAVES_AN_EPOCH = 10
SHORT = 1000
_START = datetime(2026, 1, 1, tzinfo=UTC)
_DIGEST = "xxh3_128:" + "0" * 32
_CHECKPOINT = (
    "INSERT INTO checkpoints (version, run_id, epoch, batch, step, created_at, file, nbytes, digest, format, state,"
    " resumable, pinned) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'keras', 'complete', 1, 0)"
)


def fill(folder: Path, count: int, *, payloads: int | None = None) -> None:
    """Create a store of `count` checkpoints in the run ``default``, after `SHORT` ones in ``short``.

    Args:
        folder: The store; must not exist.
        count: Number of checkpoints of ``default``.
        payloads: How many of the newest get a payload; None for all.
    """
    import ckptstore

    with ckptstore.CheckpointStore(folder):
        pass
    with closing(sqlite3.connect(folder / "manifest.sqlite")) as database, database:
        database.execute("PRAGMA cache_size = -500000")
        now = _START.isoformat(timespec="microseconds")
        database.execute("INSERT INTO runs (id, name, created_at) VALUES (1, 'short', ?)", (now,))
        database.execute("INSERT INTO runs (id, name, created_at) VALUES (2, 'default', ?)", (now,))
        database.executemany("INSERT INTO metric_names (id, name) VALUES (?, ?)", enumerate(METRICS, start=1))
        database.execute("INSERT INTO monitors (run_id, metric_id, mode) VALUES (2, 6, 'min')")
        database.executemany(_CHECKPOINT, _checkpoints(count))
        values = random.Random(count)
        database.executemany(
            "INSERT INTO metrics (version, metric_id, run_id, state, value) VALUES (?, ?, ?, 'complete', ?)",
            (
                (n, metric, 1 + (n > SHORT), values.random())
                for n in range(1, SHORT + count + 1)
                for metric in range(1, len(METRICS) + 1)
            ),
        )
        database.execute(
            "INSERT INTO epochs SELECT run_id, epoch, version, batch, step, created_at FROM checkpoints"
            " WHERE batch IS NULL"
        )
        database.execute(
            "INSERT INTO epoch_metrics SELECT epochs.run_id, epochs.epoch, metric_id, value FROM epochs"
            " JOIN metrics ON metrics.version = epochs.version"
        )
        database.execute(
            "INSERT INTO events (at, kind, run_id, version) SELECT created_at, 'saved', run_id, version"
            " FROM checkpoints"
        )
        database.execute("UPDATE store SET next_version = ?", (SHORT + count + 1,))
    for n in range(SHORT + count, 0 if payloads is None else max(0, SHORT + count - payloads), -1):
        descriptor = os.open(folder / _file(n), os.O_CREAT | os.O_WRONLY, 0o644)
        os.ftruncate(descriptor, NBYTES)
        os.close(descriptor)


def _checkpoints(count: int) -> Iterator[tuple[object, ...]]:
    for n in range(1, SHORT + count + 1):
        epoch, save = (n - 1, SAVES_AN_EPOCH - 1) if n <= SHORT else divmod(n - SHORT - 1, SAVES_AN_EPOCH)
        batch = None if save == SAVES_AN_EPOCH - 1 else 10 * save
        at = (_START + timedelta(minutes=n)).isoformat(timespec="microseconds")
        yield n, 1 + (n > SHORT), epoch, batch, 10 * n, at, _file(n), NBYTES, _DIGEST


def _file(version: int) -> str:
    return f"checkpoints/{version:08d}-{'short' if version <= SHORT else 'default'}.keras"


# --- timing ----------------------------------------------------------------------------------------------


def measure(folder: Path, repeat: int) -> dict[str, float]:
    """Return the median time in seconds of every query on a filled store.

    Args:
        folder: The store.
        repeat: Repetitions of each query, after one that does not count.
    """
    import ckptstore

    found: dict[str, float] = {}
    with ckptstore.CheckpointStore(folder, read_only=True) as store:
        queries: dict[str, Callable[[], object]] = {
            "latest": store.latest,
            "best": lambda: store.best("val_loss"),
            "best, of a run": lambda: store.best("val_accuracy", run="default"),
            "resume_point": store.resume_point,
            "best(k=10)": lambda: store.best("val_loss", k=10),
            "best(k=10), max": lambda: store.best("val_accuracy", k=10, run="default"),
            "history of 1,000 epochs": lambda: store.history("short"),
            "checkpoints(limit=20)": lambda: store.checkpoints(order_by="-version", limit=20),
        }
        for name, query in queries.items():
            found[name] = _median(query, repeat)
        found["history of all epochs"] = _median(store.history, 1)
        if len(store.run_names()) == 2:
            found["checkpoints(where=...), all"] = _median(
                lambda: sum(1 for _ in store.iterate(where="val_loss < 0.001 and epoch >= 5")), 1
            )
    listing = [sys.executable, "-m", "ckptstore", "ls", str(folder), "--limit", "20"]
    found["ckptstore ls --limit 20"] = _median(
        lambda: subprocess.run(listing, check=True, stdout=subprocess.DEVNULL), max(3, repeat // 4)
    )
    found["memory so far (MB)"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return found


def commits_in_turns(folders: Sequence[Path], repeat: int) -> dict[str, float]:
    """Time saves of a few bytes into several stores in turns, so that other load affects all alike."""
    from ckptstore import keep_every, keep_last

    found: dict[str, float] = {}
    with ExitStack() as opened:
        saves = [(folder.name, opened.enter_context(_saving(folder))) for folder in folders]
        for what, options in (
            ("commit", {}),
            ("commit, keeping all", {"keep": keep_last(5) | keep_every(steps=1)}),
        ):
            seconds: dict[str, list[float]] = {name: [] for name, _ in saves}
            for turn in range(10 * repeat + 1):
                for name, save in saves if turn % 2 else reversed(saves):
                    began = time.perf_counter()
                    save(**options)
                    seconds[name].append(time.perf_counter() - began)
            for name, taken in seconds.items():
                if options:
                    found[f"the policy's first, {name}"] = taken[0]
                found[f"{what}, {name}"] = statistics.median(taken[1:])
    return found


@contextmanager
def _saving(folder: Path) -> Iterator[Callable[..., None]]:
    """Yield a function that saves a few bytes; the store is opened without recovery."""
    from ckptstore.commit.committer import Committer
    from ckptstore.commit.request import SaveRequest
    from ckptstore.manifest.manifest import Manifest
    from ckptstore.storage.layout import Layout

    layout = Layout(folder)
    manifest = Manifest.open(layout.manifest)
    committer = Committer(layout, manifest)
    snapshot = snapshot_of(1)
    newest = manifest.checkpoints.latest("default")
    epochs = itertools.count(max(10**6, 0 if newest is None else newest.epoch + 1))

    def save(**options: Any) -> None:
        epoch = next(epochs)
        metrics = dict.fromkeys(METRICS, 2.0 + 1 / epoch)
        committer.commit(snapshot, SaveRequest(run="default", epoch=epoch, metrics=metrics, **options))

    try:
        yield save
    finally:
        committer.close()
        manifest.close()


def prune(folder: Path, count: int) -> dict[str, float]:
    """Time the command of a dry run on a store of `count` checkpoints that all have a payload, from start to end."""
    fill(folder, count)
    command = [
        sys.executable,
        "-m",
        "ckptstore",
        "prune",
        str(folder),
        "--run",
        "default",
        "--dry-run",
    ]
    options = ["--keep-last", "5", "--keep-best", "val_loss", "3", "--keep-every-epochs", "10"]
    found: dict[str, float] = {}
    for how in ((), ("--json",)):
        began = time.perf_counter()
        subprocess.run([*command, *options, *how], check=True, stdout=subprocess.DEVNULL)
        found[" ".join((f"prune --dry-run, {count:,}", *how))] = time.perf_counter() - began
    found["its memory (MB)"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    return found


def _median(work: Callable[[], object], repeat: int) -> float:
    seconds = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--fill-only", action="store_true")
    parser.add_argument("--prune", type=int, default=100_000, help="checkpoints of the dry run; 0 for none")
    parser.add_argument("--repeat", type=int, default=20)
    options = parser.parse_args(arguments)
    table: dict[str, dict[str, float]] = {}
    for count in options.counts:
        store = options.folder / str(count)
        began = time.perf_counter()
        if not store.exists():
            fill(store, count)
        table[str(count)] = {"filling": time.perf_counter() - began}
        if not options.fill_only:
            table[str(count)].update(measure(store, options.repeat))
    if not options.fill_only:
        folders = [options.folder / str(count) for count in options.counts]
        table["commits in turns"] = commits_in_turns(folders, options.repeat)
    if options.prune and not options.fill_only:
        shutil.rmtree(options.folder / "pruned", ignore_errors=True)
        table["prune"] = prune(options.folder / "pruned", options.prune)
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
