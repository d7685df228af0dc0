"""Attempts of a store: ends by evidence, lost batches, logs of supervised starts, and what cannot be recorded."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ckptstore.errors import StorageError
from ckptstore.records import Attempt, Beat, OpenAttempt
from ckptstore.storage.heartbeat import Heartbeat
from ckptstore.storage.layout import Layout
from ckptstore.store.attempts import own_log
from ckptstore.store.attempts.ends import by_error
from ckptstore.store.attempts.evidence import Machine, end_by_evidence
from ckptstore.store.attempts.recorder import AttemptRecorder
from ckptstore.store.store import CheckpointStore
from ckptstore.system.processes import boot_id
from crash.sample_stores import save
from manifests import new_attempt

BEGAN = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
NOW = BEGAN + timedelta(hours=5)
OPEN = OpenAttempt(
    attempt=Attempt(run="a", attempt=3, started_at=BEGAN, host="node7", pid=4711), boot_id="b-1", oom_kills=2
)
MACHINE = Machine(host="node7", boot_id="b-1", clock_s=9000.0, now=NOW, oom_kills=2)
BEAT = Beat(
    run="a", attempt=3, pid=4711, started_ticks=1, host="node7", boot_id="b-1", at_s=8940.0,
    written_at="2026-01-02T06:00:00+00:00", phase="training", phase_since_s=1.0, epoch=2, batch=5, step=105,
)  # fmt: skip
STOOD = {"phase": "training", "epoch": 2, "batch": 5, "step": 105}
RESTARTED = STOOD | {"machine": "was restarted"}


@pytest.mark.parametrize(
    ("beat", "saved_after_h", "machine", "reason", "after_s", "detail"),
    [
        (BEAT, None, MACHINE, "killed", 5 * 3600 - 60, STOOD),
        (BEAT, None, replace(MACHINE, oom_kills=3), "oom", 5 * 3600 - 60, STOOD),
        (BEAT, None, replace(MACHINE, boot_id="b-2", oom_kills=9), "killed", 3 * 3600, RESTARTED),
        (BEAT, None, replace(MACHINE, host="node8", boot_id="b-2"), "killed", 3 * 3600, STOOD),
        (BEAT, None, replace(MACHINE, oom_kills=None), "killed", 5 * 3600 - 60, STOOD),
        (replace(BEAT, phase="ended"), None, MACHINE, "unknown", 5 * 3600 - 60, STOOD | {"phase": "ended"}),
        (replace(BEAT, attempt=2), 2, MACHINE, "killed", 2 * 3600, {}),
        (replace(BEAT, attempt=0, pid=1), 2, MACHINE, "killed", 2 * 3600, {}),
        (replace(BEAT, attempt=0), None, MACHINE, "killed", 5 * 3600 - 60, STOOD),
        (replace(BEAT, boot_id=None, written_at="soon"), None, MACHINE, "killed", 0, STOOD),
        (None, 2, MACHINE, "killed", 2 * 3600, {}),
        (None, None, MACHINE, "killed", 0, {}),
        (None, 7, MACHINE, "killed", 5 * 3600, {}),  # a clock that was set back
    ],
)  # fmt: skip
def test_the_end_of_a_killed_attempt_follows_from_what_it_left(
    beat: Beat | None,
    saved_after_h: int | None,
    machine: Machine,
    reason: str,
    after_s: int,
    detail: dict[str, Any],
) -> None:
    saved_at = None if saved_after_h is None else BEGAN + timedelta(hours=saved_after_h)
    end = end_by_evidence(OPEN, beat, saved_at, machine)
    assert (end.reason, end.ended_at, dict(end.detail)) == (
        reason,
        BEGAN + timedelta(seconds=after_s),
        detail,
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EDQUOT, "quota"), "disk_full"),
        (OSError(errno.EIO, "io"), "exception"),
        (SystemExit(3), "exception"),
        (ExceptionGroup("many", [ValueError(), OSError(errno.ENOSPC, "full")]), "disk_full"),
    ],
)
def test_the_reason_that_an_exception_stands_for(error: BaseException, reason: str) -> None:
    try:
        raise RuntimeError("later") from error
    except RuntimeError as caught:
        assert by_error(caught)[0] == reason


def test_frames_are_the_last_and_the_users_own() -> None:
    def deep(depth: int) -> None:
        if depth == 0:
            raise ValueError("x" * 5000)
        deep(depth - 1)

    try:
        deep(20)
    except ValueError as error:
        detail = by_error(error)[1]
    assert len(detail["frames"]) == 5 and len(detail["message"]) == 1000
    assert all(str(Path(__file__)) in frame and "deep" in frame for frame in detail["frames"])


# --- through a store -----------------------------------------------------------------------------------


def dead(root: Path, *, step: int, ended: bool = False) -> None:
    """Leave an attempt as a killed process does, with its heartbeat and one checkpoint of step 10."""
    with CheckpointStore(root) as store:
        store.claim("default")
        fields = {"host": os.uname().nodename, "boot_id": boot_id(), "oom_kills": None, "pid": os.getpid()}
        number = store._manifest.attempts.begin(
            new_attempt("default", started_at=datetime.now(UTC), **fields)
        )
        save(store, 1, step=10)
        heartbeat = Heartbeat.begin(store._layout, "default", number)
        heartbeat.beat(1, 4, step)
        heartbeat._next_write_s = 0.0
        heartbeat.alive()
        if ended:
            heartbeat.end()
        else:
            heartbeat._close()


def test_the_next_attempt_records_what_the_dead_one_lost(tmp_path: Path) -> None:
    dead(tmp_path, step=17)
    with CheckpointStore(tmp_path, read_only=True) as store:
        (seen,) = store.attempts()
        assert (seen.reason, seen.detail["step"]) == ("killed", 17)
        assert store._manifest.attempts.of_run()[0].reason is None
    with CheckpointStore(tmp_path) as store:
        store.claim("default")
        assert store.recorder.begin("default") == 2
        assert store.recorder.begin("default") == store.recorder.number("default") == 2
        assert store.load_newest_resume_point(lambda checkpoint: None, "default").version == 1
    first, second = CheckpointStore(tmp_path, read_only=True).attempts()
    assert first.reason == "killed" and abs(first.ended_at - seen.ended_at) < timedelta(seconds=2)
    assert (second.resumed_from, second.batches_lost, second.reason) == (1, 7, "finished")


def test_an_attempt_whose_heartbeat_is_held_is_shown_as_running(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        store.claim("default")
        number = store.recorder.begin("default")
        heartbeat = Heartbeat.begin(store._layout, "default", number or 0)
        with CheckpointStore(tmp_path, read_only=True) as reader:
            assert reader.attempts()[0].reason is None
        heartbeat.end()
        with CheckpointStore(tmp_path, read_only=True) as reader:
            assert reader.attempts()[0].reason is None  # it is about to record its end


def test_the_attempt_that_saved_a_checkpoint(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        assert store.attempt_of(save(store, 1)) is None
        store.recorder.begin("default")
        found = store.attempt_of(save(store, 2))
        assert found is not None and found.attempt == 1


def test_what_cannot_be_recorded_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with CheckpointStore(tmp_path) as store:
        store.claim("default")
        store.claim("other")

        def fail(*_: object, **__: object) -> None:
            raise StorageError(operation="write", path=tmp_path, error=OSError(errno.EIO, "broken"))

        monkeypatch.setattr(store._manifest.attempts, "begin", fail)
        assert store.recorder.begin("default") is None and store.recorder.begin("other") is None
        save(store, 1)
    said = capfd.readouterr().err
    assert said.count("cannot be recorded") == 1 and "the training is not affected" in said


def test_a_forked_child_records_nothing(tmp_path: Path) -> None:
    from manifests import in_fork

    with CheckpointStore(tmp_path) as store:
        store.claim("default")
        store.recorder.begin("default")
        recorder: AttemptRecorder = store.recorder

        def child() -> None:
            assert recorder.begin("default") is None and recorder.number("default") is None
            recorder.close(ValueError())

        assert in_fork(child) == 0
        assert store.attempts()[0].reason is None


def test_a_discarded_store_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with CheckpointStore(root) as store:
        store.recorder.begin("default")
        (root / "logs" / "default").mkdir(parents=True)
        (root / "logs" / "default" / "1.diff.gz").touch()
    assert CheckpointStore.discard(root) and not root.exists()


# --- the log of a supervised start -----------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log as a supervisor begins one for the store in ``tmp_path / "store"``."""
    CheckpointStore(tmp_path / "store").close()
    path = tmp_path / "store" / "logs" / ".starts" / "20260102-token.log"
    path.parent.mkdir(parents=True)
    path.write_text("hello\n")
    monkeypatch.setenv("CKPTSTORE_LOG", str(path))
    monkeypatch.setenv("CKPTSTORE_SUPERVISOR", "token")
    return path


def test_the_first_attempt_of_a_start_names_the_log(tmp_path: Path, log: Path) -> None:
    root = tmp_path / "store"
    with CheckpointStore(root) as store:
        for run in ("a", "b"):
            store.claim(run)
            store.recorder.begin(run)
        first, second = store.attempts()
        assert first.log == second.log == root / "logs" / "a" / "1.log" == Path(os.environ["CKPTSTORE_LOG"])
        assert first.supervised and first.detail["start"] == "token"
    assert first.log.read_text() == "hello\n" and not log.exists()


def test_the_log_of_another_store_keeps_its_name(tmp_path: Path, log: Path) -> None:
    with CheckpointStore(tmp_path / "other") as store:
        store.recorder.begin("a")
        assert store.attempts()[0].log == log and log.exists()


def test_numbers_go_on_behind_files_of_attempts_that_a_lost_manifest_knew(tmp_path: Path, log: Path) -> None:
    kept = tmp_path / "store" / "logs" / "a" / "7.log"
    kept.parent.mkdir()
    kept.write_text("old")
    with CheckpointStore(tmp_path / "store") as store:
        assert store.recorder.begin("a") == 8
    assert kept.read_text() == "old" and (kept.parent / "8.log").read_text() == "hello\n"


@pytest.mark.parametrize("given", ["", "relative.log", "/nowhere/x.log"])
def test_a_log_that_is_none_is_not_recorded(tmp_path: Path, given: str) -> None:
    layout = Layout(tmp_path)
    assert own_log.planned(layout, {"CKPTSTORE_LOG": given}) == own_log.OwnLog()
    assert own_log.lowest_number(layout, "a") == 1


def test_a_log_that_cannot_be_renamed_stays(tmp_path: Path, log: Path) -> None:
    (tmp_path / "store" / "logs" / "a").write_text("in the way")
    with CheckpointStore(tmp_path / "store") as store:
        assert store.recorder.begin("a") == 1
        assert store.attempts()[0].log == log and log.exists()
