"""Submitted snapshots are committed in order, within bounds, whatever happens to the worker."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ckptstore import CheckpointStore, RunLockedError, StorageError, UnfinishedSaveError, keep_last
from ckptstore.background import process, worker
from ckptstore.background.program import WRITER_VARIABLE, can_start
from ckptstore.background.save_queue import SaveQueue
from ckptstore.background.worker import COMMIT_INTERVAL_S
from ckptstore.commit import committer
from ckptstore.commit.request import SaveRequest
from ckptstore.commit.retention.deletion import remove_marked
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import store_lock
from crash.invariants import violations
from crash.sample_stores import is_seed, save, snapshot_of
from forbidden_calls import needs_the_number, output_of
from writer_processes import needs_process, writers

KINDS = ["process", "thread"]


def may_lower_priority() -> bool:
    """Return True if a process may choose its own scheduling class."""
    script = "import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    with CheckpointStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(params=[pytest.param("process", marks=needs_process), "thread"])
def queue(request: Any, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[SaveQueue]:
    monkeypatch.setenv(WRITER_VARIABLE, request.param)
    made = store.open_save_queue("default")
    yield made
    made.close()


@pytest.fixture
def process_queue(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[SaveQueue]:
    if not can_start():
        pytest.skip("this platform has no memfd or pidfd")
    monkeypatch.delenv(WRITER_VARIABLE, raising=False)
    made = store.open_save_queue("default")
    yield made
    made.close()


def submit(
    queue: SaveQueue, seed: int, *, droppable: bool = False, best: bool = False, **request: Any
) -> Any:
    request = {"metrics": {"loss": float(seed)}, **request}
    return queue.submit(
        snapshot_of(seed), SaveRequest(run="default", epoch=seed, **request), droppable=droppable, best=best
    )


def epochs(store: CheckpointStore) -> list[int]:
    checkpoints = store.checkpoints()
    for checkpoint in checkpoints:
        assert is_seed(checkpoint.path, checkpoint.epoch)
    return [checkpoint.epoch for checkpoint in checkpoints]


# --- order -------------------------------------------------------------------------------------


def test_snapshots_are_committed_and_reported_in_order(queue: SaveQueue, store: CheckpointStore) -> None:
    numbers = [submit(queue, seed).number for seed in range(6)]
    queue.drain()
    outcomes = queue.outcomes()
    assert [outcome.number for outcome in outcomes] == numbers
    assert [outcome.checkpoint.epoch for outcome in outcomes if outcome.checkpoint] == list(range(6))
    assert epochs(store) == list(range(6))
    assert queue.pending == 0
    assert queue.outcomes() == []


def test_the_cost_of_a_save_is_in_the_manifest(queue: SaveQueue, store: CheckpointStore) -> None:
    submitted = submit(queue, 0)
    queue.drain()
    (checkpoint,) = store.checkpoints()
    assert checkpoint.blocked_s is not None
    assert checkpoint.total_s is not None
    assert 0 < checkpoint.blocked_s <= submitted.blocked_s
    assert checkpoint.blocked_s < checkpoint.total_s


def test_the_start_time_of_the_process_is_reported_once(process_queue: SaveQueue) -> None:
    for seed in range(3):
        submit(process_queue, seed)
    process_queue.drain()
    first, *others = (outcome.start_s for outcome in process_queue.outcomes())
    assert 0.01 < first < 60
    assert others == [0.0, 0.0]


# --- removal -------------------------------------------------------------------------------------


@pytest.fixture
def thread_queue(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[SaveQueue]:
    monkeypatch.setenv(WRITER_VARIABLE, "thread")
    made = store.open_save_queue("default")
    yield made
    made.close()


def test_a_save_is_reported_before_expired_checkpoints_are_removed(
    thread_queue: SaveQueue, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported = threading.Event()

    def remove(payloads: Any, expired: Any, **options: Any) -> None:
        assert reported.wait(60)
        remove_marked(payloads, expired, **options)

    monkeypatch.setattr(committer, "remove_marked", remove)
    for seed in range(3):
        submit(thread_queue, seed, keep=keep_last(1))
        thread_queue.drain()
    assert [(outcome.number, outcome.error) for outcome in thread_queue.outcomes()] == [
        (1, None),
        (2, None),
        (3, None),
    ]
    assert epochs(store) == [1, 2]
    payloads = store.path / "checkpoints"
    assert len(list(payloads.iterdir())) == 3
    reported.set()
    thread_queue.close()
    assert thread_queue.outcomes() == []
    assert len(list(payloads.iterdir())) == 2


def test_a_failed_removal_is_reported_after_its_save(
    thread_queue: SaveQueue, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(payloads: Any, expired: Any, **options: Any) -> None:
        raise StorageError(operation="unlink", path=expired[0].path, error=OSError(errno.EIO, "I/O error"))

    monkeypatch.setattr(committer, "remove_marked", remove)
    for seed in range(3):
        submit(thread_queue, seed, keep=keep_last(1))
    thread_queue.drain()
    thread_queue.close()
    outcomes = thread_queue.outcomes()
    assert [outcome.number for outcome in outcomes] == [1, 2, 3, 3]
    assert [outcome.error for outcome in outcomes[:3]] == [None, None, None]
    error = outcomes[3].error
    assert isinstance(error, UnfinishedSaveError)
    assert error.checkpoint.version == 3
    assert isinstance(outcomes[3].cause, StorageError)
    monkeypatch.undo()
    store.close()
    with CheckpointStore(store.path) as again:  # finishes
        assert epochs(again) == [1, 2]
        assert len(list((again.path / "checkpoints").iterdir())) == 2


def test_the_next_save_finishes_a_removal_that_failed(
    thread_queue: SaveQueue, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def remove(payloads: Any, expired: Any, **options: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise StorageError(
                operation="unlink", path=expired[0].path, error=OSError(errno.EIO, "I/O error")
            )
        remove_marked(payloads, expired, **options)

    monkeypatch.setattr(committer, "remove_marked", remove)
    for seed in range(4):
        # Each is saved: the removal after it, and its failure, may come late.
        submit(thread_queue, seed, keep=keep_last(1) if seed < 3 else None)
    thread_queue.drain()
    thread_queue.close()
    assert [outcome.number for outcome in thread_queue.outcomes()] == [1, 2, 3, 3, 4]
    assert epochs(store) == [1, 2, 3]
    assert len(list((store.path / "checkpoints").iterdir())) == 3


# --- back-pressure -----------------------------------------------------------------------------


def test_the_waiting_snapshot_is_replaced_by_a_newer_one(queue: SaveQueue, store: CheckpointStore) -> None:
    # While this lock is held, nothing can be committed.
    with store_lock(Layout(store.path).locks):
        first = submit(queue, 0, droppable=True)
        wait_until_begun(queue)
        second = submit(queue, 1, droppable=True)
        third = submit(queue, 2, droppable=True)
        fourth = submit(queue, 3, droppable=True)
        assert (first.dropped, second.dropped) == (None, None)
        assert (third.dropped, fourth.dropped) == (second.number, third.number)
        assert queue.pending == 2
    queue.drain()
    assert [outcome.number for outcome in queue.outcomes()] == [first.number, fourth.number]
    assert epochs(store) == [0, 3]


@pytest.mark.timeout(60)
def test_none_overtakes_one_that_is_older(queue: SaveQueue, store: CheckpointStore) -> None:
    """However often the waiting one was replaced, in either slot."""
    reported: list[int] = []
    count = 0
    while len(reported) < 8:
        count += 1
        submit(queue, 0, droppable=True, metrics={"loss": float(count)})
        time.sleep(0.002)  # as in a training step, so that a worker thread can run
        reported += [outcome.number for outcome in queue.outcomes()]
    queue.drain()
    reported += [outcome.number for outcome in queue.outcomes()]
    assert reported == sorted(reported)
    assert reported[-1] == count
    assert [checkpoint.metrics["loss"] for checkpoint in store.checkpoints()] == reported


def test_the_best_and_the_last_are_never_replaced(queue: SaveQueue, store: CheckpointStore) -> None:
    lock = store_lock(Layout(store.path).locks)
    with lock:
        submit(queue, 0, droppable=True)
        wait_until_begun(queue)
        submit(queue, 1, droppable=False)
        waiting = threading.Thread(target=submit, args=(queue, 2), kwargs={"droppable": True})
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()  # it waits for a slot
    waiting.join()
    queue.drain()
    assert epochs(store) == [0, 1, 2]


def test_the_best_is_replaced_only_by_a_better_one(queue: SaveQueue, store: CheckpointStore) -> None:
    with store_lock(Layout(store.path).locks):
        submit(queue, 0, droppable=True)
        wait_until_begun(queue)
        best = submit(queue, 1, droppable=True, best=True)
        better = submit(queue, 2, droppable=True, best=True)
        assert better.dropped == best.number
        # A step does not wait for a save that may be dropped; one that may not be dropped waits for a slot.
        assert submit(queue, 3, droppable=True) is None
        waiting = threading.Thread(target=submit, args=(queue, 4))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join()
    queue.drain()
    assert epochs(store) == [0, 2, 4]


def test_the_step_waits_with_backpressure_wait(store: CheckpointStore) -> None:
    queue = store.open_save_queue("default", backpressure="wait")
    with store_lock(Layout(store.path).locks):
        for seed in range(2):
            assert submit(queue, seed, droppable=True).dropped is None
        waiting = threading.Thread(target=submit, args=(queue, 2), kwargs={"droppable": True})
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join()
    queue.drain()
    queue.close()
    assert epochs(store) == [0, 1, 2]


def wait_until_begun(queue: SaveQueue) -> None:
    """Wait until the trainer can no longer withdraw the first message."""
    (message,) = queue._in_flight
    handoff = queue._slots[message.slot].handoff
    # Checked and not taken: a thread that found it taken would not check again.
    while handoff.is_pending():
        time.sleep(0.001)


@needs_process
def test_no_more_than_two_snapshots_are_in_memory(process_queue: SaveQueue, store: CheckpointStore) -> None:
    counts = set()
    with store_lock(Layout(store.path).locks):
        for seed in range(8):
            submit(process_queue, seed, droppable=True)
            counts.add(sum(slot.memory.nbytes > 0 for slot in process_queue._slots))
    process_queue.drain()
    assert max(counts) == 2
    assert len(process_queue._slots) == 2


# --- failures ----------------------------------------------------------------------------------


def test_the_worker_pauses_between_droppable_saves_unless_somebody_waits(
    queue: SaveQueue, store: CheckpointStore
) -> None:
    """A commit takes processor time from the training: ten commits a second are enough."""
    began = time.monotonic()
    for seed in range(3):
        submit(queue, seed, droppable=True)
        while queue.pending:
            queue.outcomes()
    assert time.monotonic() - began >= 2 * COMMIT_INTERVAL_S
    submit(queue, 3, droppable=True)
    submit(queue, 4, droppable=True)
    queue._worker.flush_up_to(5)  # type: ignore[union-attr]
    queue.drain()
    times = [checkpoint.created_at for checkpoint in store.checkpoints()]
    assert epochs(store) == [0, 1, 2, 3, 4] and times == sorted(times)


def test_a_save_that_may_not_be_dropped_is_saved_at_once(
    queue: SaveQueue, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that paused for the whole interval would not finish within the time limit."""
    monkeypatch.setattr(worker, "COMMIT_INTERVAL_S", 1000.0)
    submit(queue, 0, droppable=True)
    for seed in (1, 2, 3):
        submit(queue, seed)
    queue.drain()
    assert epochs(store) == [0, 1, 2, 3]


def test_the_worker_is_not_polled_at_every_batch(queue: SaveQueue, store: CheckpointStore) -> None:
    """A batch may take a millisecond, and asking a process takes some tens of microseconds."""
    with store_lock(Layout(store.path).locks):
        submit(queue, 1)
        assert queue._worker is not None
        polls: list[float] = []
        outcomes = queue._worker.outcomes
        queue._worker.outcomes = lambda timeout_s: polls.append(time.monotonic()) or outcomes(timeout_s)  # type: ignore
        while len(polls) < 3:
            assert queue.outcomes() == []
        assert all(later - earlier >= 0.02 for earlier, later in pairwise(polls))
    queue.drain()
    (outcome,) = queue.outcomes()
    assert outcome.checkpoint is not None and outcome.checkpoint.epoch == 1


def test_a_failure_is_reported_and_the_next_save_works(
    queue: SaveQueue, store: CheckpointStore, tmp_path: Path
) -> None:
    blocked = tmp_path / "there"
    blocked.mkdir()
    bad = submit(queue, 0, publish=blocked)
    good = submit(queue, 1)
    queue.drain()
    failed, saved = queue.outcomes()
    assert (failed.number, saved.number) == (bad.number, good.number)
    assert "could not be shown" in str(failed.error) or "showing it" in str(failed.error)
    assert failed.checkpoint is not None  # it is saved anyway
    assert saved.error is None
    assert epochs(store) == [0, 1]


def test_an_unreadable_message_fails_alone(queue: SaveQueue, store: CheckpointStore) -> None:
    with store_lock(Layout(store.path).locks):
        submit(queue, 0)
        wait_until_begun(queue)
        spoilt = submit(queue, 1)
        slot = queue._slots[queue._in_flight[-1].slot]
        assert slot.handoff.take()
        slot.memory.put(0, bytes(32))
        queue._worker.give(queue._in_flight[-1].slot)  # type: ignore[union-attr]
    queue.drain()
    good, bad = queue.outcomes()
    assert (good.error, bad.number, bad.checkpoint) == (None, spoilt.number, None)
    assert bad.error is not None
    submit(queue, 2)
    queue.drain()
    assert epochs(store) == [0, 2]


def test_a_tmp_that_cannot_be_made_again_is_a_failure(queue: SaveQueue, store: CheckpointStore) -> None:
    submit(queue, 0)
    queue.drain()
    assert queue.outcomes()[0].error is None
    tmp = Layout(store.path).tmp
    moved = tmp.with_name("moved")
    tmp.rename(moved)
    tmp.touch()
    submit(queue, 1)
    queue.drain()
    (outcome,) = queue.outcomes()
    tmp.unlink()
    moved.rename(tmp)
    assert isinstance(outcome.error, OSError)
    assert outcome.error.errno == errno.EEXIST
    submit(queue, 2)
    queue.drain()
    assert queue.outcomes()[0].error is None
    assert epochs(store) == [0, 2]


# --- the process ---------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    process_queue: SaveQueue, store: CheckpointStore, capfd: pytest.CaptureFixture[str]
) -> None:
    with store_lock(Layout(store.path).locks):
        submit(process_queue, 0)
        wait_until_begun(process_queue)
        submit(process_queue, 1)
        os.kill(process_queue._worker.pid, signal.SIGKILL)  # type: ignore[union-attr]
    process_queue.drain()
    assert [outcome.error for outcome in process_queue.outcomes()] == [None, None]
    assert epochs(store) == [0, 1]
    assert "has ended with -9; another one takes over" in capfd.readouterr().err
    process_queue.close()
    store.close()
    assert violations(store.path) == []


def test_a_new_worker_begins_with_the_older_snapshot_though_the_dead_one_had_taken_it(
    process_queue: SaveQueue, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer is held after it has started the new worker, until that has saved what it sees."""
    with store_lock(Layout(store.path).locks):
        submit(process_queue, 0)
        wait_until_begun(process_queue)
        submit(process_queue, 1)
        os.kill(process_queue._worker.pid, signal.SIGKILL)  # type: ignore[union-attr]
        process_queue._worker.process.wait()  # type: ignore[union-attr]
    start = process.WorkerProcess._start

    def held(*arguments: Any) -> Any:
        started = start(*arguments)
        assert started[1].poll(60)
        return started

    monkeypatch.setattr(process.WorkerProcess, "_start", held)
    process_queue.drain()
    assert [outcome.number for outcome in process_queue.outcomes()] == [1, 2]
    assert epochs(store) == [0, 1]


def test_a_worker_killed_after_its_commit_saves_nothing_twice(
    process_queue: SaveQueue, store: CheckpointStore
) -> None:
    submit(process_queue, 0)
    while not store.checkpoints():
        os.sched_yield()
    os.kill(process_queue._worker.pid, signal.SIGKILL)  # type: ignore[union-attr]
    process_queue._worker.process.wait()  # type: ignore[union-attr]
    submit(process_queue, 1)
    process_queue.drain()
    assert epochs(store) == [0, 1]


def test_a_worker_killed_several_times_is_replaced_by_a_thread(
    process_queue: SaveQueue, store: CheckpointStore
) -> None:
    for seed in range(3):
        submit(process_queue, seed)
        process_queue.drain()
        os.kill(process_queue._worker.pid, signal.SIGKILL)  # type: ignore[union-attr]
    submit(process_queue, 3)
    with pytest.warns(RuntimeWarning, match="by a thread of this process.*it has ended several times"):
        process_queue.drain()
    assert not process_queue.survives_trainer
    submit(process_queue, 4)
    process_queue.drain()
    assert epochs(store) == [0, 1, 2, 3, 4]


def test_a_thread_saves_with_one_warning_where_no_process_can_be_started(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.delenv(WRITER_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    queue = store.open_save_queue("default")
    for seed in range(3):
        submit(queue, seed)
    queue.drain()
    queue.close()
    assert epochs(store) == [0, 1, 2]
    warned = [
        str(warning.message) for warning in recwarn if "no process could be started" in str(warning.message)
    ]
    assert len(warned) == 1
    assert "/nowhere/python" in warned[0]


def test_no_process_is_left_at_the_end(process_queue: SaveQueue, store: CheckpointStore) -> None:
    submit(process_queue, 0)
    process_queue.drain()
    assert len(writers(store.path)) == 1
    process_queue.close()
    process_queue.close()
    assert writers(store.path) == []


def test_a_collected_queue_lets_its_process_finish(store: CheckpointStore) -> None:
    """In a reference cycle, such as a traceback makes: Python then finalizes its objects in any order."""
    if not can_start():
        pytest.skip("this platform has no memfd or pidfd")
    cycle: list[Any] = [store.open_save_queue("default")]
    cycle.append(cycle)
    with store_lock(Layout(store.path).locks):
        submit(cycle[0], 0)
        wait_until_begun(cycle[0])
        process_ref = weakref.ref(cycle[0]._worker.process)
        del cycle
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            gc.collect()
        assert [str(warning.message) for warning in warned] == []
        process = process_ref()
        assert process is not None
    process.wait()
    assert epochs(store) == [0]


def test_the_run_belongs_to_the_worker_until_its_saves_are_done(
    process_queue: SaveQueue, store: CheckpointStore, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also when the trainer releases it meanwhile, as a killed one does: the next trainer waits, and reports that."""
    with CheckpointStore(store.path) as other:
        claiming = threading.Thread(target=other.claim, args=("default",))
        with store_lock(Layout(store.path).locks):
            submit(process_queue, 0)
            wait_until_begun(process_queue)
            process_queue.close()
            store._ownership._locks.pop("default").release()
            claiming.start()
            printed = ""
            while "has ended" not in printed and claiming.is_alive():
                claiming.join(0.01)
                printed += capfd.readouterr().err
            assert claiming.is_alive()
        claiming.join()
        assert other.latest() is not None
        save(other, 1)
    assert epochs(store) == [0, 1]
    assert f"process {os.getpid()}, which trained run 'default', has ended; waiting" in printed


def test_a_worker_ignores_signals_meant_for_the_trainer(
    process_queue: SaveQueue, store: CheckpointStore
) -> None:
    submit(process_queue, 0)
    process_queue.drain()
    pid = process_queue._worker.pid  # type: ignore[union-attr]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(pid, number)
    submit(process_queue, 1)
    process_queue.drain()
    assert process_queue._worker.pid == pid  # type: ignore[union-attr]
    assert epochs(store) == [0, 1]


def worker_nice() -> int:
    return min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)


@pytest.mark.skipif(not may_lower_priority(), reason="no process may choose how it is scheduled here")
def test_a_worker_runs_at_lower_priority_than_the_training(process_queue: SaveQueue) -> None:
    submit(process_queue, 0)
    process_queue.drain()
    pid = process_queue._worker.pid  # type: ignore[union-attr]
    assert os.getpriority(os.PRIO_PROCESS, pid) == worker_nice()
    # A batch task does not preempt a training step when it wakes up.
    own = os.sched_getscheduler(0)
    assert os.sched_getscheduler(pid) == (os.SCHED_BATCH if own == os.SCHED_OTHER else own)


LOWER_PRIORITY = """
import os
from ckptstore.background import __main__ as program
from forbidden_calls import forbid

{before}
program._lower_priority()
print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))
"""


@needs_the_number
@needs_process
def test_a_worker_only_has_a_nice_value_where_scheduling_is_forbidden() -> None:
    script = LOWER_PRIORITY.format(before='forbid("sched_setscheduler")')
    assert output_of(script) == f"{worker_nice()} {os.sched_getscheduler(0)}\n"


@needs_process
def test_a_worker_keeps_a_lower_scheduling_class_of_the_training() -> None:
    script = LOWER_PRIORITY.format(before="os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))")
    assert output_of(script) == f"{worker_nice()} {os.SCHED_IDLE}\n"


def test_a_worker_imports_neither_keras_nor_a_backend(process_queue: SaveQueue) -> None:
    submit(process_queue, 0)
    process_queue.drain()
    pid = process_queue._worker.pid  # type: ignore[union-attr]
    mapped = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    assert "h5py" in mapped or "hdf5" in mapped or "numpy" in mapped
    for package in ("jaxlib", "torch", "tensorflow", "optree"):
        assert f"/{package}/" not in mapped


def test_a_forked_child_neither_waits_for_the_writer_nor_ends_it(
    process_queue: SaveQueue, store: CheckpointStore
) -> None:
    submit(process_queue, 0)
    if (pid := os.fork()) == 0:
        process_queue.drain()
        process_queue.close()
        os._exit(0 if process_queue.outcomes() == [] else 1)
    assert os.waitpid(pid, 0)[1] == 0
    submit(process_queue, 1)
    process_queue.drain()
    assert epochs(store) == [0, 1]


@pytest.mark.parametrize(
    ("kind", "collected"),
    [pytest.param("process", False, marks=needs_process), ("thread", False), ("thread", True)],
)
def test_exit_waits_for_saves_that_a_script_did_not_wait_for(
    kind: str, collected: bool, tmp_path: Path
) -> None:
    """No end of a fit, no `close`, and no main guard: the queue is drained when the interpreter exits."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path[:0] = {sys.path!r}
        from crash.sample_stores import snapshot_of
        from ckptstore import CheckpointStore
        from ckptstore.commit.request import SaveRequest
        print("once")
        store = CheckpointStore({str(tmp_path / "store")!r})
        queue = store.open_save_queue("default")
        for seed in range(2):
            queue.submit(snapshot_of(seed), SaveRequest(run="default", epoch=seed), droppable=False)
        if {collected}:
            del queue
        """)
    )
    environment = {**os.environ, WRITER_VARIABLE: kind}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "once\n"
    with CheckpointStore(tmp_path / "store", read_only=True) as store:
        assert epochs(store) == [0, 1]
    assert writers(tmp_path / "store") == []


AT_EXIT = """
import atexit, sys, threading
kept = []

def begin():
    from ckptstore import CheckpointStore
    from ckptstore.commit.request import SaveRequest
    from crash.sample_stores import snapshot_of
    store = CheckpointStore(sys.argv[1])
    queue = store.open_save_queue("default")
    queue.prepare(snapshot_of(0))
    queue.submit(snapshot_of(0), SaveRequest(run="default", epoch=0), droppable=False)
    kept.extend([store, queue])

def never_ends():
    begin()
    ready.set()
    while True:
        kept[1].outcomes()

{begin}
sys.exit(75)
"""
# Registered before the package is imported, it runs after all handlers of the package.
LAST_HANDLER = "atexit.register(begin); import ckptstore.store.store"
DAEMON_THREAD = """
ready = threading.Event()
threading.Thread(target=never_ends, daemon=True).start()
ready.wait()
"""


@pytest.mark.parametrize("kind", [pytest.param("process", marks=needs_process), "thread"])
@pytest.mark.parametrize(
    "begin", [LAST_HANDLER, DAEMON_THREAD], ids=["after all handlers", "in a daemon thread"]
)
def test_a_queue_that_is_open_when_the_interpreter_ends_does_not_keep_it(
    begin: str, kind: str, tmp_path: Path
) -> None:
    """Nothing starts a thread, or waits for one, while Python is finalized: it would wait for ever."""
    command = [sys.executable, "-c", AT_EXIT.format(begin=begin), tmp_path / "store"]
    environment = {**os.environ, WRITER_VARIABLE: kind}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (75, "")
    with CheckpointStore(tmp_path / "store") as store:
        store.claim("default")  # waits for a process that is still saving
        saved = epochs(store)
    assert saved == [0] or (kind == "thread" and begin == LAST_HANDLER and saved == [])


def test_a_long_wait_at_the_end_is_reported(queue: SaveQueue, store: CheckpointStore) -> None:
    lines: list[str] = []

    def release(text: str) -> None:
        lines.append(text)
        lock.release()

    lock = threading.Lock()
    lock.acquire()

    def hold() -> None:
        with store_lock(Layout(store.path).locks):
            held.set()
            lock.acquire()

    held = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    submit(queue, 0)
    queue.drain(release)
    holder.join()
    assert len(lines) == 1
    assert lines[0].startswith("waiting for 1 checkpoint of up to ")
    assert epochs(store) == [0]


def test_a_stopped_process_is_named_while_it_is_waited_for(
    process_queue: SaveQueue, store: CheckpointStore
) -> None:
    submit(process_queue, 0)
    process_queue.drain()
    pid = process_queue._worker.pid  # type: ignore[union-attr]
    os.kill(pid, signal.SIGSTOP)
    submit(process_queue, 1)
    lines: list[str] = []

    def resume(line: str) -> None:
        lines.append(line)
        os.kill(pid, signal.SIGCONT)

    process_queue.drain(resume)
    assert f"process {pid}, which saves it, is stopped: kill -CONT {pid}" in lines[0]
    assert epochs(store) == [0, 1]


def test_children_that_a_trainer_forks_keep_neither_the_run_nor_the_process(
    process_queue: SaveQueue, store: CheckpointStore
) -> None:
    """As multiprocessing and loaders do: the child lives on after the trainer has released everything."""
    submit(process_queue, 0)
    context = multiprocessing.get_context("fork")
    end = context.Event()
    child = context.Process(target=end.wait)
    child.start()
    try:
        submit(process_queue, 1)
        process_queue.drain()
        process_queue.close()
        assert writers(store.path) == []
        store.close()
        with CheckpointStore(store.path) as other:
            other.claim("default")
            assert epochs(other) == [0, 1]
        assert child.is_alive()
    finally:
        end.set()
        child.join()
    assert child.exitcode == 0


def test_the_store_can_save_directly_while_a_queue_saves(queue: SaveQueue, store: CheckpointStore) -> None:
    submit(queue, 0)
    save(store, 1)
    submit(queue, 2)
    queue.drain()
    assert sorted(epochs(store)) == [0, 1, 2]
    with pytest.raises(RunLockedError), CheckpointStore(store.path) as other:
        other.claim("default")
