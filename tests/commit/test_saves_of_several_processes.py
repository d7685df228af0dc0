"""Saves by several processes, from the snapshot to the commit: each failure of each, and what all of them know then."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ckptstore import CheckpointStore, keep_last
from ckptstore.background.save_queue import SaveQueue
from ckptstore.background.worker import Outcome
from ckptstore.commit import retry
from ckptstore.commit.joined_save import JoinedSave
from ckptstore.commit.led_save import LedSave
from ckptstore.commit.request import SaveRequest
from ckptstore.commit.retry import with_retries
from ckptstore.errors import (
    DiskFullError,
    InvalidArgumentError,
    SaveAbandonedError,
    SaveEndUnknownError,
    StorageError,
    StoreRemovedError,
)
from ckptstore.formats import payload
from ckptstore.records import Checkpoint
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.at import payload_of
from crash.sample_stores import snapshot_of
from job_of_threads import JobOfThreads, failing, stalled, wait_until
from process_shards import ARRAYS, PROCESSES, snapshot_of_process

ALL = range(PROCESSES)


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "DELAYS_S", (0.0, 0.0))


@pytest.fixture
def job(tmp_path: Path) -> Iterator[JobOfThreads]:
    """Three processes, that have saved once."""
    made = JobOfThreads(tmp_path / "store")
    saved_by_all(made.save())
    yield made
    made.close()


def saved_by_all(outcomes: list[Outcome]) -> Checkpoint:
    """Return the checkpoint that all processes know."""
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    (first, *others) = [outcome.checkpoint for outcome in outcomes]
    assert first is not None
    assert {str(other and other.to_json()) for other in others} == {str(first.to_json())}
    assert [type(other) for other in others] == [Checkpoint] * len(others)
    return first


def abandoned_by_all(outcomes: list[Outcome]) -> SaveAbandonedError:
    """Return the error that all processes but perhaps 0 know, in the same words."""
    errors = [outcome.error for outcome in outcomes]
    assert all(isinstance(error, SaveAbandonedError) for error in errors), errors
    assert len({str(error) for error in errors}) == 1, errors
    assert [outcome.checkpoint for outcome in outcomes] == [None] * len(outcomes)
    assert isinstance(errors[-1], SaveAbandonedError)
    return errors[-1]


def check(job: JobOfThreads, versions: int) -> None:
    """The store is whole, nothing is left behind, and the next save succeeds on all processes."""
    for session in job.sessions:
        session.save_limit_s = 20.0
    saved_by_all(job.save())
    assert len(job.store.checkpoints()) == versions + 1
    assert job.leftovers() == []
    assert job.store.verify() == []
    job.close()
    with CheckpointStore(job.root) as store:
        assert store.verify() == []
        assert not [*(job.root / "tmp").iterdir()]


# --- a save ---------------------------------------------------------------------------------------


def test_all_processes_have_the_same_checkpoints(job: JobOfThreads) -> None:
    known = [
        saved_by_all(job.save(metrics={"loss": 0.25, "nan": float("inf")}, extra={"a": [1]}))
        for _ in range(3)
    ]
    listed = job.store.checkpoints()[1:]
    assert known == listed
    for checkpoint in known:
        with payload.open_checkpoint(checkpoint) as opened:
            assert all((opened.variables()[path] == array).all() for path, array in ARRAYS.items())
            assert [opened.state(process).document for process in ALL] == [  # type: ignore[union-attr]
                {"process": process} for process in ALL
            ]
            # Each member carries the fields of process 0.
            fields = [opened.member_description(process) for process in ALL]  # type: ignore[attr-defined]
            for name in ("store", "version", "run", "metrics", "created_at", "extra"):
                assert len({str(one[name]) for one in fields}) == 1
    # The service holds the messages of a save or two.
    assert len(job.service.values) <= 2 * (1 + PROCESSES)
    check(job, 4)


def test_a_synchronous_save_goes_the_same_way(job: JobOfThreads) -> None:
    found: list[Any] = []

    def join(process: int) -> None:
        joined = JoinedSave(job.sessions[process], Layout(job.root))
        found.append(joined.save(snapshot_of_process(process), job.request(process)))

    others = [threading.Thread(target=join, args=[process]) for process in ALL[1:]]
    for thread in others:
        thread.start()
    request = job.request(0)
    assert request.job_save is not None
    with (
        failing("00002.h5", "fsync", errno.EIO, times=1) as failed,
        LedSave(job.sessions[0], request.job_save) as led,
    ):
        saved = with_retries(partial(job.store.commit, snapshot_of_process(0), request, led=led))
    for thread in others:
        thread.join()
    assert found == [saved] * 2
    assert len(failed) == 1
    check(job, 2)


def test_the_queue_of_a_job_replaces_nothing(job: JobOfThreads) -> None:
    with pytest.raises(InvalidArgumentError, match="a job of several processes"):
        SaveQueue(job.root, None, backpressure="replace", job=job.sessions[1])


def test_a_snapshot_of_another_number_of_processes_is_refused_before_it_is_announced(
    job: JobOfThreads,
) -> None:
    whole = snapshot_of(1, format="sharded")
    job.queues[0].submit(whole, job.request(0), droppable=False)
    for process in ALL[1:]:
        job.submit(process)
    outcomes = [job.outcome(process) for process in ALL]
    assert isinstance(outcomes[0].error, InvalidArgumentError)
    assert "is saved by a job of 3" in abandoned_by_all(outcomes[1:]).refused[0]
    check(job, 1)


def test_a_process_with_another_model_ends_the_save_at_once(job: JobOfThreads) -> None:
    other = {**ARRAYS, "layers/dense/vars/1": ARRAYS["layers/dense/vars/1"].astype("int32")}
    job.submit(0)
    job.queues[1].submit(snapshot_of_process(1, arrays=other), job.request(1), droppable=False)
    job.submit(2)
    error = abandoned_by_all([job.outcome(process) for process in ALL])
    assert [*error.refused] == [1]
    assert "has other variables than process 0" in error.refused[1]
    check(job, 1)


def test_a_request_without_a_number_is_refused(job: JobOfThreads) -> None:
    for process in ALL:
        job.queues[process].submit(
            snapshot_of_process(process), SaveRequest(run="default", epoch=1), droppable=False
        )
        assert isinstance(job.outcome(process).error, InvalidArgumentError)
    check(job, 1)


# --- a disk that is full, or fails ----------------------------------------------------------------


@pytest.mark.parametrize(("code", "cause"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "storage")])
def test_another_try_is_made_where_the_disk_of_another_process_fails(
    job: JobOfThreads, code: int, cause: str
) -> None:
    with failing("00001.h5", "create", code, times=2) as failed:
        checkpoint = saved_by_all(job.save())
    assert len(failed) == 2
    assert checkpoint.version == 4  # those of the first two tries are not used again
    with failing("00001.h5", "create", code) as failed:
        outcomes = job.save()
    error = abandoned_by_all(outcomes)
    assert len(failed) == 3
    assert (error.cause, error.silent, [*error.refused]) == (cause, (), [1])
    assert "shards/00001.h5: " in str(error)
    assert isinstance(outcomes[1].cause, DiskFullError if code == errno.ENOSPC else StorageError)
    check(job, 2)


@pytest.mark.parametrize("process", ALL)
def test_room_is_made_for_a_full_disk(job: JobOfThreads, process: int) -> None:
    for _ in range(3):
        saved_by_all(job.save())
    oldest = job.store.checkpoints()[0].path
    with failing(f"0000{process}.h5", "create", errno.ENOSPC, while_there=oldest) as failed:
        saved_by_all(job.save(keep=keep_last(1)))
    assert len(failed) == 1
    # The newest two stay whatever the policy says.
    assert [checkpoint.epoch for checkpoint in job.store.checkpoints()] == [4, 5]
    check(job, 2)


@pytest.mark.parametrize("operation", ["create", "fsync", "rename"])
def test_a_failure_of_process_0_is_told_to_all(job: JobOfThreads, operation: str) -> None:
    file = "00000002-default.sharded" if operation == "rename" else "description.json"
    with failing(file, operation, errno.EIO, times=1) as failed:
        saved_by_all(job.save())
    assert len(failed) == 1
    began = time.monotonic()
    with failing("description.json", "create", errno.EIO):
        outcomes = job.save()
    assert time.monotonic() - began < 10
    assert isinstance(outcomes[0].error, StorageError)
    error = abandoned_by_all(outcomes[1:])
    assert "description.json: create failed" in error.refused[0]
    check(job, 2)


# --- a process that is late, elsewhere, or gone ---------------------------------------------------


def test_a_process_that_says_nothing_ends_the_save_at_the_limit(tmp_path: Path) -> None:
    job = JobOfThreads(tmp_path / "store", limit_s=1.0)
    job.submit(0)
    job.submit(2)
    outcomes = [job.outcome(process) for process in (0, 2)]
    error = abandoned_by_all(outcomes)
    assert (error.silent, error.refused, error.cause) == ((1,), {}, "other")
    # One try: it would wait as long again.
    assert job.store.checkpoints() == []
    # It finds the save decided, and writes nothing.
    with failing("00001.h5", "create", errno.EIO) as failed:
        job.submit(1)
        assert str(job.outcome(1).error) == str(error)
    assert failed == []
    check(job, 0)


def test_a_process_at_another_step_ends_the_save_at_once(job: JobOfThreads) -> None:
    began = time.monotonic()
    for process in ALL:
        job.submit(process, step=7 if process == 1 else 8)
    error = abandoned_by_all([job.outcome(process) for process in ALL])
    assert time.monotonic() - began < 10
    assert error.refused == {1: "is at step 7, and step 8 was announced"}
    check(job, 1)


@pytest.mark.parametrize(("name", "position"), [("epoch", {"epoch": 7}), ("batch", {"epoch": 8, "batch": 7})])
def test_a_process_at_another_epoch_ends_a_save_of_a_loop_that_counts_no_steps(
    job: JobOfThreads, name: str, position: dict[str, int]
) -> None:
    for process in ALL:
        where = position if process == 1 else {"epoch": 8, "batch": 8 if name == "batch" else None}
        job.submit(process, step=None, **where)
    error = abandoned_by_all([job.outcome(process) for process in ALL])
    assert error.refused == {1: f"is at {name} 7, and {name} 8 was announced"}
    check(job, 1)


def test_nobody_waits_for_ever_for_a_process_0_that_is_gone(tmp_path: Path) -> None:
    job = JobOfThreads(tmp_path / "store", limit_s=0.2)
    job.submit(1)
    outcome = job.outcome(1)
    assert isinstance(outcome.error, SaveEndUnknownError)
    job.sessions[0].next_save()
    job.submit(2)
    assert isinstance(job.outcome(2).error, SaveEndUnknownError)
    check(job, 0)


@pytest.mark.parametrize("process", ALL)
def test_a_process_without_memory_for_its_copy_ends_the_save_at_once(
    job: JobOfThreads, process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(job.queues[process]._writer, "write", refuse)
    began = time.monotonic()
    with pytest.raises(StorageError, match="Cannot allocate memory"):
        job.submit(process)
    others = [other for other in ALL if other != process]
    for other in others:
        job.submit(other)
    error = abandoned_by_all([job.outcome(other) for other in others])
    assert time.monotonic() - began < 10
    assert "copying the snapshot failed: Cannot allocate memory" in error.refused[process]
    monkeypatch.undo()
    check(job, 1)


@pytest.mark.parametrize("operation", ["create", "fsync"])
@pytest.mark.parametrize("ends", [False, True], ids=["0 goes on", "0 ends"])
def test_a_process_that_was_stopped_leaves_nothing_behind(tmp_path: Path, operation: str, ends: bool) -> None:
    """It writes into an upload that process 0 has given up meanwhile."""
    job = JobOfThreads(tmp_path / "store", limit_s=1.0)
    with stalled("00001.h5", operation) as (come, release):
        for process in ALL:
            job.submit(process)
        assert come.wait(30)
        error = abandoned_by_all([job.outcome(process) for process in (0, 2)])
        assert error.silent == (1,)
        if ends:
            job.close([0])
            with CheckpointStore(job.root):
                assert not [path for path in (job.root / "tmp").iterdir() if path.suffix != ".lease"]
        release()
        assert str(job.outcome(1).error) == str(error)
    assert job.leftovers() == []
    if not ends:
        check(job, 0)
        return
    job.close([1, 2])
    with CheckpointStore(job.root) as store:
        assert store.checkpoints() == []
        assert not job.leftovers()


def test_a_member_that_is_begun_while_process_0_removes_the_upload_is_removed_by_the_next_save(
    tmp_path: Path,
) -> None:
    job = JobOfThreads(tmp_path / "store", limit_s=1.0)
    layout = Layout(job.root)
    with stalled("00001.h5", "create") as (come, release), stalled("shards", "rmdir") as (removing, remove):
        for process in ALL:
            job.submit(process)
        assert come.wait(30)
        assert removing.wait(30)
        release()
        wait_until(lambda: bool([*layout.tmp.glob("*/shards/00001.h5")]))
        remove()
        abandoned_by_all([job.outcome(process) for process in ALL])
    assert len(job.leftovers()) == 1
    check(job, 0)


# --- messages, and the store itself ---------------------------------------------------------------


def test_messages_that_are_lost_after_the_commit_make_no_failure_of_a_checkpoint(tmp_path: Path) -> None:
    job = JobOfThreads(tmp_path / "store", limit_s=1.0)
    job.messages[0].cut = ("/decision",)
    first, *others = job.save()
    assert first.error is None
    assert first.checkpoint == job.store.latest()
    assert [
        "version 1 is saved, but the other processes could not be told" in text for text in first.warnings
    ]
    for outcome in others:
        assert isinstance(outcome.error, SaveEndUnknownError)
        assert outcome.error.version == 1
    job.messages[0].cut = ()
    check(job, 1)


@pytest.mark.parametrize(
    ("process", "cut", "unknown"),
    [(0, "/0/offer", False), (0, "/answer/1", False), (1, "/0/offer", False), (1, "/answer/1", True)],
)
def test_messages_that_are_lost_before_the_commit_end_the_save(
    tmp_path: Path, process: int, cut: str, unknown: bool
) -> None:
    """A process whose report may have been sent cannot know the end; without it there is no checkpoint."""
    job = JobOfThreads(tmp_path / "store", limit_s=0.4)
    job.messages[process].cut = (cut,)
    errors = [outcome.error for outcome in job.save()]
    assert isinstance(errors[process], SaveEndUnknownError if unknown else SaveAbandonedError)
    assert unknown or "cannot reach memory" in str(errors[process])
    assert all(isinstance(error, SaveAbandonedError | SaveEndUnknownError) for error in errors)
    assert job.store.checkpoints() == []
    job.messages[process].cut = ()
    check(job, 0)


def test_a_store_that_was_removed_is_not_begun_again(job: JobOfThreads) -> None:
    aside = job.root.with_name("aside")
    job.root.rename(aside)
    for outcome in job.save():
        assert isinstance(outcome.error, StoreRemovedError), outcome.error
    assert not job.root.exists()
    # It was removed while it was saved to, and is seen by one process alone.
    aside.rename(job.root)
    saved_by_all(job.save())
    check(job, 2)


def test_a_store_that_is_removed_during_a_save_is_not_begun_again(job: JobOfThreads) -> None:
    with stalled("00001.h5", "create") as (come, release):
        for process in ALL:
            job.submit(process)
        assert come.wait(30)
        job.root.rename(job.root.with_name("aside"))
        release()
        outcomes = [job.outcome(process) for process in ALL]
    assert all(isinstance(outcome.error, StorageError) for outcome in outcomes)
    assert all(isinstance(outcome.error, StoreRemovedError) for outcome in outcomes[1:])
    assert not job.root.exists()


def test_a_store_that_was_replaced_is_not_written_to_by_the_others(job: JobOfThreads) -> None:
    job.close([0])
    job.root.rename(job.root.with_name("aside"))
    job.store = CheckpointStore(job.root)
    job.queues[0] = job.store.open_save_queue("default", backpressure="wait", job=job.sessions[0])
    with failing("00001.h5", "create", errno.EIO) as failed:
        outcomes = job.save()
    refused = abandoned_by_all(outcomes).refused
    assert refused
    # The first refusal ends the save, and another process may come too late to look at the store.
    for process, reason in refused.items():
        assert "another store was put in its place" in reason
        assert isinstance(outcomes[process].cause, StoreRemovedError)
    assert failed == []


def test_a_process_that_sees_another_directory_says_so(job: JobOfThreads, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with CheckpointStore(elsewhere):
        pass
    before = sorted(elsewhere.rglob("*"))
    job.queues[1].close()
    job.queues[1] = SaveQueue(elsewhere, None, backpressure="wait", job=job.sessions[1])
    error = abandoned_by_all(job.save())
    assert "process 0 writes there, and this process does not see it" in error.refused[1]
    assert sorted(elsewhere.rglob("*")) == before
    job.queues[1].close()
    job.queues[1] = SaveQueue(job.root, None, backpressure="wait", job=job.sessions[1])
    check(job, 1)


def test_a_record_of_a_checkpoint_survives_json(job: JobOfThreads) -> None:
    checkpoint = saved_by_all(
        job.save(metrics={"a": float("nan"), "b": float("-inf"), "c": 0.1}, tags=("x",))
    )
    twin = Checkpoint.from_json(checkpoint.to_json())
    assert twin.to_json() == checkpoint.to_json()
    assert {**twin.metrics, "a": 0} == {**checkpoint.metrics, "a": 0}
    moved = Checkpoint.from_json(checkpoint.to_json(), store=Path("/mnt/runs"))
    assert moved.path == Path("/mnt/runs/checkpoints") / checkpoint.payload
    assert payload_of(twin).name == checkpoint.payload
