"""The attempts in a manifest: begun, ended once, completed by what is found out later, kept by a rebuild."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ckptstore.errors import InvalidArgumentError, ReadOnlyError
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.salvage import salvage
from ckptstore.records import AttemptEnd
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from manifests import add, new_attempt

LATER = datetime(2026, 1, 2, 4, tzinfo=UTC)


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    manifest = Manifest.open(tmp_path / "manifest.sqlite")
    yield manifest
    assert manifest.integrity_problems() == []
    manifest.close()


def test_an_attempt_has_all_that_was_recorded_when_it_began(manifest: Manifest, tmp_path: Path) -> None:
    new = new_attempt(detail={"start": "token"}, supervised=True)
    assert manifest.attempts.begin(new, has_own_log=True) == 1
    (attempt,) = manifest.attempts.of_run("a")
    assert attempt.log == tmp_path / "logs" / "a" / "1.log" and attempt.diff is None
    for name in ("run", "started_at", "host", "pid", "command", "directory", "git_commit", "git_dirty", "versions",
                 "devices", "environment", "supervised", "detail"):  # fmt: skip
        assert getattr(attempt, name) == getattr(new, name), name
    assert attempt.reason is attempt.ended_at is attempt.resumed_from is attempt.batches_lost is None
    (open_,) = manifest.attempts.open_attempts()
    assert (open_.attempt, open_.boot_id, open_.oom_kills) == (attempt, "b-1", 2)
    assert json.loads(json.dumps(attempt.to_json()))["command"] == ["python", "train.py", "--epochs", "3"]


def test_attempts_are_counted_by_run_and_listed_in_the_order_of_their_begin(manifest: Manifest) -> None:
    for run, minute in (("a", 1), ("b", 0), ("a", 2)):
        manifest.attempts.begin(new_attempt(run, started_at=LATER + timedelta(minutes=minute)))
    assert [(found.run, found.attempt) for found in manifest.attempts.of_run()] == [
        ("b", 1),
        ("a", 1),
        ("a", 2),
    ]
    assert [found.attempt for found in manifest.attempts.of_run("a")] == [1, 2]
    assert manifest.attempts.of_run("c") == [] and manifest.attempts.last("c") is None
    assert manifest.attempts.counts() == {"a": 2, "b": 1}
    assert manifest.attempts.begin(new_attempt("a"), at_least=7) == 7
    last = manifest.attempts.last("a")
    assert last is not None and last.attempt == 7


def test_a_clock_that_is_set_back_changes_neither_order_nor_ends(manifest: Manifest) -> None:
    for hours in (2, 0):
        manifest.attempts.begin(new_attempt(started_at=LATER + timedelta(hours=hours)))
    assert [found.attempt for found in manifest.attempts.of_run("a")] == [1, 2]
    assert [found.attempt.attempt for found in manifest.attempts.open_attempts("a")] == [1, 2]
    assert manifest.attempts.end("a", 1, reason="killed", ended_at=LATER)
    first, _ = manifest.attempts.of_run("a")
    assert first.ended_at == first.started_at == LATER + timedelta(hours=2)


def test_facts_are_added_later(manifest: Manifest, tmp_path: Path) -> None:
    new = new_attempt(git_commit=None, git_dirty=None, detail={"start": "token"})
    number = manifest.attempts.begin(new)
    diff = tmp_path / "logs" / "a" / "1.diff.gz"
    facts: dict[Any, Any] = {"git_commit": "c0ffee", "git_dirty": False, "diff": diff, "detail": {"more": 1}}
    manifest.attempts.add_facts("a", number, facts)
    manifest.attempts.add_facts("a", number, {"log": Path("/elsewhere/output.log")})
    manifest.attempts.add_facts("a", 99, facts)
    (attempt,) = manifest.attempts.of_run("a")
    assert (attempt.git_commit, attempt.git_dirty, attempt.diff) == ("c0ffee", False, diff)
    assert attempt.log == Path("/elsewhere/output.log") and attempt.detail == {"start": "token", "more": 1}
    with closing(sqlite3.connect(manifest.path)) as database:
        shown = database.execute("SELECT run, log, diff, git_dirty FROM attempt_list").fetchall()
    assert shown == [("a", "/elsewhere/output.log", "logs/a/1.diff.gz", 0)]


def test_the_first_end_counts_and_a_later_one_adds_what_is_not_known(manifest: Manifest) -> None:
    number = manifest.attempts.begin(new_attempt(detail={"start": "token"}))
    end = manifest.attempts.end
    assert end("a", number, reason="finished", ended_at=LATER)
    assert not end("a", number, reason="killed", exit_code=1, detail={"output": ["bye"]})
    assert not end("a", number, reason="killed", exit_code=2, signal="SIGKILL")
    assert not end("a", 99, reason="killed")
    (attempt,) = manifest.attempts.of_run("a")
    assert (attempt.reason, attempt.ended_at, attempt.exit_code) == ("finished", LATER, 1)
    assert attempt.signal == "SIGKILL" and attempt.detail == {"start": "token", "output": ["bye"]}
    assert end("a", number, reason="hang", exit_code=9, overwrite=True)
    (attempt,) = manifest.attempts.of_run("a")
    assert (attempt.reason, attempt.exit_code) == ("hang", 9) and attempt.ended_at > LATER
    assert manifest.attempts.open_attempts() == []


def test_the_next_attempt_records_the_end_of_the_one_before_in_its_own_transaction(
    manifest: Manifest,
) -> None:
    first = manifest.attempts.begin(new_attempt())
    ends = {first: AttemptEnd(reason="oom", ended_at=LATER), 99: AttemptEnd(reason="oom", ended_at=LATER)}
    assert manifest.attempts.begin(new_attempt(), ends=ends) == 2
    assert [attempt.reason for attempt in manifest.attempts.of_run("a")] == ["oom", None]


def test_what_cannot_be_recorded_changes_nothing(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        manifest.attempts.begin(new_attempt(detail={"a": {1}}))
    assert manifest.runs.names() == ()
    number = manifest.attempts.begin(new_attempt())
    with pytest.raises(InvalidArgumentError, match="must be one of"):
        manifest.attempts.end("a", number, reason="bored")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        manifest.attempts.end("a", number, reason="nan", detail={"loss": float("nan")})
    with closing(Manifest.open(tmp_path / "manifest.sqlite", read_only=True)) as reader:
        assert reader.attempts.of_run("a")[0].reason is None
        with pytest.raises(ReadOnlyError, match="end_attempt"):
            reader.attempts.end("a", number, reason="killed")


# --- after a loss ------------------------------------------------------------------------------------


def test_a_rebuild_keeps_the_attempts_that_can_be_read(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 1)
        manifest = store._manifest
        number = manifest.attempts.begin(new_attempt("default", detail={"start": "ü"}), has_own_log=True)
        manifest.attempts.end("default", number, reason="disk_full", exit_code=1)
        for _ in range(4):
            manifest.attempts.begin(new_attempt("other"))
        before = store.attempts()
    path = tmp_path / "store" / "manifest.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA ignore_check_constraints = ON")
        change = "UPDATE attempts SET {} WHERE run_id = (SELECT id FROM runs WHERE name = 'other') AND attempt = {}"
        for values in ("command = '{'", "pid = 'x'", "started_at = 'today'", "reason = 'bored'"):
            number = ("command", "pid", "started_at", "reason").index(values.split()[0]) + 1
            database.execute(change.format(values, number))
        database.execute("UPDATE checkpoints SET epoch = -1")
    kept = [attempt for attempt in before if attempt.run == "default"]
    assert salvage(path).attempts == kept and len(kept) >= 1
    CheckpointStore.rebuild(tmp_path / "store")
    with CheckpointStore(tmp_path / "store") as store:
        assert [attempt for attempt in store.attempts("default") if attempt.reason != "unknown"][
            : len(kept)
        ] == kept
        assert store.attempts("other") == [] and store._manifest.integrity_problems() == []


def test_a_lost_manifest_loses_the_attempts_and_nothing_else(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        store._manifest.attempts.begin(new_attempt("default"))
    (tmp_path / "manifest.sqlite").unlink()
    CheckpointStore.rebuild(tmp_path)
    with CheckpointStore(tmp_path) as store:
        assert store.attempts() == [] and len(store.checkpoints()) == 1
        assert store._manifest.attempts.begin(new_attempt("default")) == 1


def test_an_attempt_outlives_the_checkpoints_of_its_run(manifest: Manifest) -> None:
    version = add(manifest)
    number = manifest.attempts.begin(new_attempt())
    manifest.attempts.add_facts("a", number, {"resumed_from": version, "batches_lost": 7})
    manifest.checkpoints.remove([version])
    (attempt,) = manifest.attempts.of_run("a")
    assert (attempt.resumed_from, attempt.batches_lost) == (version, 7)
