"""Two trainings of one run, since the locks of the first were removed: the manifest tells which of them may save."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.errors import RunLockedError, RunTakenOverError
from ckptstore.storage.locks import WITHOUT_LOCKS
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from writer_processes import needs_process

pytestmark = [pytest.mark.backend, pytest.mark.jax_is_enough, pytest.mark.slow]

# Trains the same run in each of several ways; pauses, and is told when to continue.
TRAININGS = """
import os, signal, sys, time, warnings
from pathlib import Path
import ckptstore, small_fits

root = Path(sys.argv[1])

def pause():
    print("paused", flush=True)
    sys.stdin.readline()

def fit(name, kill=False, again=False):
    callback = ckptstore.StoreCheckpoint(
        root / name, save_freq=2, run="default", keep=ckptstore.keep_last(1), signals=()
    )
    def at_batch():
        callback.wait()
        if kill:
            os.kill(callback._saves._in_background._queue._worker.pid, signal.SIGKILL)
        pause()
    def at_later_batch():
        if again:
            callback.wait()
            pause()
    small_fits.fit(
        small_fits.model(), callback, small_fits.AtBatch(5, at_batch), small_fits.AtBatch(9, at_later_batch), epochs=1
    )

def by_hand(name):
    model = small_fits.model()
    with ckptstore.CheckpointStore(root / name) as store:
        store.save(model, epoch=0)
        pause()
        store.save(model, epoch=1, keep=ckptstore.keep_last(1))

def in_thread(name):
    os.environ["CKPTSTORE_WRITER"] = "thread"
    fit(name)
    del os.environ["CKPTSTORE_WRITER"]

for name, train in (
    ("process", fit),
    ("killed writer", lambda name: fit(name, kill=True)),
    ("thread", in_thread),
    ("by hand", by_hand),
    ("alone", lambda name: fit(name, again=True)),
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            train(name)
        except ckptstore.CheckpointStoreError as error:
            print(type(error).__name__, error.pid, flush=True)
        else:
            print("ended well", sum("it is locked again" in str(w.message) for w in caught), flush=True)
"""


class Trainings:
    """The process that trains, in its first store's pause."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._log = (root / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAININGS, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            self._log.seek(0)
            raise AssertionError(self._log.read())
        return line

    def let_continue(self) -> None:
        """End its pause."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        self._log.close()


@pytest.fixture
def trainings(tmp_path: Path) -> Iterator[Trainings]:
    started = Trainings(tmp_path)
    yield started
    started.close()


@needs_process
def test_the_older_of_two_writers_is_refused_by_its_next_commit(trainings: Trainings) -> None:
    """With each kind of writer; what the newer one saved stays, and so does its resume point."""
    for name in ("process", "killed writer", "thread", "by hand"):
        assert trainings.line() == "paused"
        root = trainings.root / name
        shutil.rmtree(root / "locks")
        with CheckpointStore(root) as store:
            before = [checkpoint.version for checkpoint in store.checkpoints()]
            assert before, name
            ours = [save(store, number).version for number in (7, 8, 9)]
            trainings.let_continue()
            assert trainings.line() == f"RunTakenOverError {os.getpid()}", name
            assert [checkpoint.version for checkpoint in store.checkpoints()] == [*before, *ours], name
            ours.append(save(store, 10).version)
        with CheckpointStore(root) as store:
            assert [checkpoint.version for checkpoint in store.checkpoints()] == [*before, *ours], name
            assert list((root / "tmp").iterdir()) == []
            assert store.verify() == []
    # Nobody else came: the training locks its run again, with one warning, and goes on.
    assert trainings.line() == "paused"
    shutil.rmtree(trainings.root / "alone" / "locks")
    trainings.let_continue()
    assert trainings.line() == "paused"
    with (
        CheckpointStore(trainings.root / "alone") as store,
        pytest.raises(RunLockedError, match=f"is being written by process {trainings.process.pid} on"),
    ):
        store.claim("default")
    trainings.let_continue()
    assert trainings.line() == "ended well 1"


def test_without_locks_the_older_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WITHOUT_LOCKS, "1")
    with CheckpointStore(tmp_path) as older, CheckpointStore(tmp_path) as younger:
        save(older, 0)
        save(younger, 1)
        with pytest.raises(RunTakenOverError):
            save(older, 2)
        save(younger, 3)
        assert [checkpoint.epoch for checkpoint in younger.checkpoints()] == [0, 1, 3]
