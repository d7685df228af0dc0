"""A training that is disturbed under `ckptstore run` ends by itself as one that nobody disturbed, with true records."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ckptstore.storage.heartbeat import Heartbeat
from ckptstore.storage.layout import Layout
from ckptstore.store.store import CheckpointStore
from crash.remains import remains, shared_names
from crash.sample_stores import save
from crash.supervision import Supervision
from crash.unattended import Result, compare_reasons, unattended

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")


@pytest.mark.slow
def test_a_disturbed_training_ends_by_itself_as_an_undisturbed_one() -> None:
    """Some disturbances, once; `tools/crash unattended` tries all, several times."""
    pytest.importorskip("jax")
    result = unattended(only=["kill", "kill-supervisor", "exception"], seed=1)
    assert result.violations == []
    assert {row.disturbance: (row.true, row.recorded) for row in result.rows} == {
        "SIGKILL of the training": ("killed", Counter(killed=1)),
        "SIGKILL of the supervisor": ("no end", Counter({"no end": 1})),
        "exception in the data": ("exception", Counter(exception=1)),
        "none: it finishes": ("finished", Counter(finished=1)),
    }


def test_whatever_is_left_behind_is_found(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with CheckpointStore(path) as store:
        save(store, 1)
    assert remains(tmp_path, path, shared_names()) == []
    (path / "tmp" / "1.keras").write_bytes(b"")
    (tmp_path / ".ckptstore-0").mkdir()
    heartbeat = Heartbeat.begin(Layout(path), "default", 1)
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout
    process.stdout.readline()  # a process that has only just begun has no command in /proc for an instant
    with (path / "locks" / "default.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = "\n".join(remains(tmp_path, path, shared_names()))
    process.kill()
    process.communicate()
    heartbeat.end()
    for text in (
        f"process {process.pid} is left",
        "1.keras is left",
        ".ckptstore-0 is left",
        "default.lock is still locked",
        "the heartbeat of run default is still held",
    ):
        assert text in found


def test_a_reason_that_is_not_the_true_one_is_found(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with CheckpointStore(path) as store:
        save(store, 1)
    training = Supervision(folder=tmp_path, store=path, epochs=1, hang_after_s=1.0)
    training.ended_by("token", "deadlock", "hang")
    result = Result()
    compare_reasons(training, result)
    assert result.violations == ["deadlock: 'nothing' is recorded, and not 'hang' (start token)"]
    assert [row.recorded for row in result.rows] == [Counter(nothing=1)]
