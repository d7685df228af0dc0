"""Runs as a store returns them: what is read, how fast, and that reading changes nothing."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event

import ckptstore
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import FINISHED, Run
from ckptstore.storage.heartbeat import Heartbeat
from ckptstore.storage.layout import Layout
from manifests import add, new, new_attempt

RUNS, CHECKPOINTS = 20, 500
# Copies the first checkpoint of each run.
_FILL = f"""
PRAGMA foreign_keys = OFF;
CREATE TEMP TABLE first AS SELECT * FROM checkpoints;
CREATE TEMP TABLE first_metrics AS SELECT * FROM metrics;
CREATE TEMP TABLE rounds AS
    WITH RECURSIVE rounds(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM rounds WHERE n < {CHECKPOINTS - 1})
    SELECT n * {RUNS} AS shift FROM rounds;
INSERT INTO checkpoints
    (version, run_id, epoch, step, created_at, file, nbytes, digest, format, state, resumable, pinned)
    SELECT version + shift, run_id, epoch + shift, step + shift, created_at,
        printf('checkpoints/%08d', version + shift) || substr(file, 21), nbytes, digest, format, state, resumable,
        pinned
    FROM first, rounds;
INSERT INTO metrics (version, metric_id, run_id, state, value)
    SELECT version + shift, metric_id, run_id, state, value / shift FROM first_metrics, rounds;
UPDATE store SET next_version = {RUNS * CHECKPOINTS + 1};
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """The paths of an empty store."""
    ckptstore.CheckpointStore(tmp_path / "store").close()
    return Layout(tmp_path / "store")


@pytest.fixture
def manifest(layout: Layout) -> Iterator[Manifest]:
    """The store's manifest, open for writing."""
    manifest = Manifest.open(layout.manifest)
    yield manifest
    manifest.close()


def runs(layout: Layout) -> dict[str, Run]:
    with ckptstore.CheckpointStore(layout.root, read_only=True) as store:
        return {run.name: run for run in store.runs()}


def test_a_run_has_its_counts_its_best_and_its_resume_point(layout: Layout, manifest: Manifest) -> None:
    manifest.runs.set_monitors("a", {"val_loss": "min"})
    for number, loss in enumerate((0.5, 0.25, 0.75, 1.0)):
        version = manifest.reserve_version()
        row = new(version, "a", epoch=number, metrics={"val_loss": loss}, resumable=number < 3)
        (layout.root / row.file).write_bytes(bytes(row.nbytes))
        manifest.add_checkpoint(row)
    add(manifest, "b", metrics={"val_loss": 0.1})
    manifest.runs.set_monitors("empty", {"loss": "min"})
    found = runs(layout)
    assert list(found) == ["a", "b", "empty"]
    a = found["a"]
    assert a.latest is not None
    assert a.best is not None
    assert a.resume_point is not None
    assert (a.checkpoints, a.latest.version, a.best.version, a.resume_point.version) == (4, 4, 2, 3)
    assert (a.epoch, a.batch, a.step) == (3, None, 40)
    assert (a.state, a.attempts, a.last_attempt, a.parent) == ("interrupted", 0, None, None)
    # Nothing is watched in b, and its payload is lost.
    assert (found["b"].checkpoints, found["b"].best, found["b"].resume_point) == (1, None, None)
    empty = found["empty"]
    assert (empty.checkpoints, empty.latest, empty.best, empty.epoch, empty.step) == (
        0,
        None,
        None,
        None,
        None,
    )
    assert a.to_json()["latest"] == a.latest.to_json()
    assert {"run", "state", "note", "attempts", "steps_per_s", "parent"} <= set(a.to_json())


def test_where_the_payload_of_the_resume_point_is_lost_the_one_before_counts(
    layout: Layout, manifest: Manifest
) -> None:
    for _ in range(2):
        row = new(manifest.reserve_version(), "a")
        (layout.root / row.file).write_bytes(bytes(row.nbytes))
        manifest.add_checkpoint(row)
    (layout.root / row.file).unlink()
    found = runs(layout)["a"]
    assert found.latest is not None
    assert found.resume_point is not None
    assert (found.latest.version, found.resume_point.version) == (2, 1)


def test_a_run_is_finished_by_its_newest_checkpoint_alone(layout: Layout, manifest: Manifest) -> None:
    manifest.add_checkpoint(new(manifest.reserve_version(), "a"), more_events={FINISHED: {"epoch": 0}})
    assert runs(layout)["a"].state == "finished"
    manifest.beginnings.begin("a")
    assert runs(layout)["a"].state == "interrupted"
    manifest.add_checkpoint(new(manifest.reserve_version(), "a"), more_events={FINISHED: {"epoch": 0}})
    assert runs(layout)["a"].state == "finished"
    add(manifest, "a")
    assert runs(layout)["a"].state == "interrupted"


def test_a_supervisor_that_gave_up_counts_until_somebody_trains_again(
    layout: Layout, manifest: Manifest
) -> None:
    add(manifest, "a")
    number = manifest.attempts.begin(new_attempt("a", started_at=datetime.now(UTC)))
    manifest.attempts.end(
        "a", number, reason="exception", detail={"type": "ValueError", "message": "no data"}
    )
    assert (runs(layout)["a"].state, runs(layout)["a"].note) == ("failed", "ValueError: no data")
    manifest.events.add("stopped", run="a", detail={"reason": "no progress in 5 starts"})
    found = runs(layout)["a"]
    assert (found.state, found.note) == ("stopped", "no progress in 5 starts")
    assert found.attempts == 1
    assert found.last_attempt is not None
    assert found.last_attempt.reason == "exception"
    # By its attempt, which has saved nothing yet.
    manifest.attempts.begin(new_attempt("a", started_at=datetime.now(UTC) + timedelta(seconds=1)))
    assert (runs(layout)["a"].state, runs(layout)["a"].attempts) == ("interrupted", 2)
    manifest.events.add("stopped", run="b")
    assert runs(layout)["b"].state == "stopped"
    add(manifest, "b")
    assert runs(layout)["b"].state == "interrupted"


def test_a_living_training_is_shown_where_it_is(layout: Layout, manifest: Manifest) -> None:
    add(manifest, "a", epoch=1)
    heartbeat = Heartbeat.begin(layout, "a")
    starting = runs(layout)["a"]
    assert (starting.state, starting.epoch, starting.step, starting.steps_per_s) == ("running", 1, 10, None)
    heartbeat.epochs, heartbeat.batches = 10, 8
    heartbeat.beat(2, 3, 20, {"loss": 0.5})
    heartbeat.beat(2, 4, 21)
    heartbeat.enter("saving")
    found = runs(layout)["a"]
    assert (found.state, found.epoch, found.batch, found.step) == ("saving", 2, 4, 21)
    assert (found.epochs, found.batches) == (10, 8)
    assert found.steps_per_s is not None
    heartbeat.end()
    ended = runs(layout)["a"]
    assert (ended.state, ended.epoch, ended.batch, ended.step) == ("interrupted", 2, 4, 21)
    assert ended.steps_per_s is None
    add(manifest, "a", epoch=7, step=100)  # by a training whose heartbeat could not be written
    assert (runs(layout)["a"].epoch, runs(layout)["a"].step) == (7, 100)


def test_many_runs_and_checkpoints_cost_milliseconds_and_few_queries(
    layout: Layout, manifest: Manifest
) -> None:
    for number in range(RUNS):
        manifest.runs.set_monitors(f"run-{number}", {"val_loss": "min"})
        add(manifest, f"run-{number}", metrics={"val_loss": 1.0, "loss": 1.0})
    with sqlite3.connect(layout.manifest) as connection:  # one by one would take long
        connection.executescript(_FILL)
    for number in range(RUNS):
        manifest.attempts.begin(new_attempt(f"run-{number}"))
        Heartbeat.begin(layout, f"run-{number}").end()
        newest = manifest.checkpoints.latest(f"run-{number}")
        assert newest is not None
        newest.path.write_bytes(bytes(newest.nbytes))
    with ckptstore.CheckpointStore(layout.root, read_only=True) as store:
        statements: list[str] = []
        store.runs()
        engine = store._manifest._transactions._engine
        event.listen(engine, "before_cursor_execute", lambda *of: statements.append(of[2]))
        took_s = []
        for _ in range(5):
            statements.clear()
            began = time.process_time()
            found = store.runs()
            took_s.append(time.process_time() - began)
    assert len(found) == RUNS
    assert all(run.checkpoints == CHECKPOINTS and run.best is not None for run in found)
    # One for the best of each run, and a constant number: none for each checkpoint.
    assert len(statements) <= RUNS + 15
    assert min(took_s) < 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="traces system calls")
def test_reading_takes_no_lock_of_a_training_and_writes_nothing(layout: Layout, manifest: Manifest) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    add(manifest, "a")
    heartbeat = Heartbeat.begin(layout, "a")
    heartbeat.beat(0, 0, 1)
    log = layout.root.parent / "calls"
    program = "import sys, ckptstore\nwith ckptstore.CheckpointStore(sys.argv[1], read_only=True) as store:\n"
    program += "    print(store.runs()[0].state)"
    calls = "trace=openat,open,creat,flock,fcntl,pwrite64,write,ftruncate,unlink,rename,mkdir,fsync,fdatasync"
    command = [strace, "-f", "-y", "-o", str(log), "-e", calls, sys.executable, "-B", "-c", program]
    done = subprocess.run([*command, str(layout.root)], capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"this process may not trace: {done.stderr}")
    assert done.stdout == "running\n", done.stderr
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if str(layout.root) in line]
    assert any("F_OFD_GETLK" in line for line in lines)
    writing = [
        line for line in lines if re.search(r"O_WRONLY|O_RDWR|O_CREAT|\b(p?write(64)?|ftruncate)\(", line)
    ]
    writing += [
        line for line in lines if re.search(r"\b(unlink|rename|mkdir|f(data)?sync|flock|creat)\(", line)
    ]
    # SQLite's own shared lock on the manifest is the only lock.
    writing += [
        line for line in lines if "SETLK" in line and not ("manifest.sqlite" in line and "F_RDLCK" in line)
    ]
    assert not [line for line in writing if "F_UNLCK" not in line]
    heartbeat.end()
