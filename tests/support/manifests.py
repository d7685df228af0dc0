"""Shared by the manifest's tests: checkpoints to insert, and work that dies in a forked child."""

from __future__ import annotations

import os
import signal
import sqlite3
import traceback
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ckptstore.manifest import engine, schema
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import NewAttempt, NewCheckpoint

DIED = 77


def new(version: int, run: str = "a", **fields: Any) -> NewCheckpoint:
    """Return a checkpoint to insert."""
    defaults: dict[str, Any] = {
        "version": version,
        "run": run,
        "epoch": version,
        "batch": None,
        "step": 10 * version,
        "metrics": {},
        "file": f"checkpoints/{version:08d}-{run}.keras",
        "nbytes": 1000 + version,
        "digest": f"xxh3_128:{version:032x}",
        "created_at": datetime(2026, 1, 2, 3, 4, 5, version, tzinfo=UTC),
        "format": "keras",
        "resumable": True,
    }
    return NewCheckpoint(**(defaults | fields))


def new_attempt(run: str = "a", **fields: Any) -> NewAttempt:
    """Return an attempt to begin."""
    defaults: dict[str, Any] = {
        "run": run,
        "started_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "host": "node7",
        "pid": 4711,
        "command": ("python", "train.py", "--epochs", "3"),
        "directory": "/home/me",
        "git_commit": "3f2a9c1",
        "git_dirty": True,
        "versions": {"python": "3.12.3", "keras": "3.15.0"},
        "devices": ("cuda:0",),
        "environment": {"KERAS_BACKEND": "jax"},
        "boot_id": "b-1",
        "oom_kills": 2,
    }
    return NewAttempt(**(defaults | fields))


def add(manifest: Manifest, run: str = "a", **fields: Any) -> int:
    """Reserve a version and insert a checkpoint; return the version."""
    version = manifest.reserve_version()
    manifest.add_checkpoint(new(version, run, **fields))
    return version


def in_fork(work: Callable[[], object]) -> int:
    """Run `work` in a forked child; return its exit code: 1 if it raised, negative for a signal."""
    with warnings.catch_warnings():
        # The test process may have threads; the children do nothing but SQLite and exit hard.
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at_statement(at: int) -> None:
    """End this process hard when SQLite begins its `at`-th statement from now, on whatever connection."""
    plain = engine.connect
    statements = 0

    def traced(path: Path, access: engine.Access) -> sqlite3.Connection:
        connection = plain(path, access)
        connection.set_trace_callback(count)
        return connection

    def count(statement: str) -> None:
        nonlocal statements
        statements += 1
        if statements == at:
            os._exit(DIED)

    for module in (engine, schema):
        module.connect = traced  # type: ignore[attr-defined]


def files(folder: Path) -> dict[str, bytes]:
    """Return the names and bytes of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def as_nobody(work: Callable[[], object]) -> int:
    """Run `work` in a forked child as a user who owns nothing; `in_fork`'s result."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become a user without rights")

    def unprivileged() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        work()

    return in_fork(unprivileged)


def leave_hot_journal(path: Path) -> None:
    """Kill a writer in the middle of a transaction, after pages of it were written into the database file."""

    def write_and_die() -> None:
        manifest = Manifest.open(path)
        with manifest._transactions.writing("test") as connection:
            connection.exec_driver_sql("PRAGMA cache_size = 1")
            connection.exec_driver_sql("UPDATE events SET kind = 'never committed'")
            connection.exec_driver_sql("UPDATE checkpoints SET digest = 'never committed', epoch = 999")
            os.kill(os.getpid(), signal.SIGKILL)

    before = path.read_bytes()
    assert in_fork(write_and_die) == -signal.SIGKILL
    assert path.with_name(f"{path.name}-journal").stat().st_size > 0
    assert path.read_bytes() != before


def steps_of(manifest: Manifest, call: Any) -> int:
    """Return how many thousands of SQLite's virtual-machine instructions a call takes."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    with manifest._transactions.reading() as connection:
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(tick, 10)
    call()
    driver.set_progress_handler(None, 10)
    return count


def fill(manifest: Manifest, size: int) -> None:
    """Insert many checkpoints at once; only the oldest tenth is complete, and a half of that resumable."""
    with manifest._transactions.writing("test") as connection:
        insert = connection.exec_driver_sql
        insert("INSERT INTO runs (id, name, created_at) VALUES (1, 'a', '2026-01-01T00:00:00+00:00')")
        insert("INSERT INTO metric_names VALUES (1, 'x'), (2, 'y')")
        insert(
            f"""
            WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {size})
            INSERT INTO checkpoints
            SELECT n, 1, n, NULL, n, '2026-01-01T00:00:00+00:00', printf('checkpoints/%08d-a.keras', n),
                1, 'digest', 'keras',
                CASE WHEN n <= {size} / 10 THEN 'complete' WHEN n % 2 THEN 'missing' ELSE 'deleting' END,
                n <= {size} / 20, 0, NULL, NULL, NULL
            FROM numbers
            """
        )
        insert(
            """
            INSERT INTO metrics
            SELECT version, 1, run_id, state, (version % 2 * 2 - 1) * version FROM checkpoints
            UNION ALL
            SELECT version, 2, run_id, state, CASE WHEN version < 3 THEN 1.0 END FROM checkpoints
            """
        )
        insert(f"UPDATE store SET next_version = {size + 1}")
