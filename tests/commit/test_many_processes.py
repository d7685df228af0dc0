"""Many writers, readers and openers on one store, some of them killed: none is harmed, none waits for a dead one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ckptstore.store.store import CheckpointStore
from crash import many_processes
from crash.sample_stores import save


@pytest.mark.slow
def test_writers_readers_and_openers_do_not_harm_each_other() -> None:
    """For a short while; `tools/crash processes` takes three minutes."""
    result = many_processes.many_processes(seconds=9)
    assert result.violations == ()
    assert result.saves.count >= 20
    assert result.kills >= 5
    assert min(result.openings, result.forks, result.refusals) > 0
    assert set(result.reads) == {"open", "latest", "best", "checkpoints", "resume_point"}


@pytest.mark.parametrize(
    ("fault", "found"), [("no store lock", "Error"), ("removes files in use", "No such file or directory")]
)
def test_a_planted_fault_is_found(fault: str, found: str) -> None:
    result = many_processes.many_processes(seconds=2, writers=4, readers=1, fault=fault)
    assert any(found in line for line in result.violations), result


def _fork_and_wait(root: Path, forked: Connection) -> None:
    store = CheckpointStore(root)
    save(store, 1)
    if os.fork() == 0:
        # The child itself says so: until it runs, it has the writer's locks, too.
        forked.send(os.getpid())
    signal.pause()


def test_a_child_that_outlives_its_killed_writer_keeps_nobody_from_writing(tmp_path: Path) -> None:
    """Such as a data loader's worker: it has inherited the writer's open files, but none of its locks."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    writer = context.Process(target=_fork_and_wait, args=(tmp_path / "store", sender))
    writer.start()
    child = receiver.recv()
    writer.kill()
    writer.join()
    try:
        began = time.monotonic()
        with CheckpointStore(tmp_path / "store") as store:
            assert list((store.path / "tmp").iterdir()) == []
            save(store, 2)
            assert [checkpoint.epoch for checkpoint in store.checkpoints()] == [1, 2]
        assert time.monotonic() - began < 10
    finally:
        os.kill(child, signal.SIGKILL)
