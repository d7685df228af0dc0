"""The façade: queries, refs, locks and refusals."""

from __future__ import annotations

import math
import os
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import Connection, Executable, event

from ckptstore.commit.request import SaveRequest
from ckptstore.errors import (
    CheckpointNotFoundError,
    CorruptManifestError,
    InvalidArgumentError,
    MetricNotFoundError,
    NotAStoreError,
    ReadOnlyError,
    RunLockedError,
    SaveInProgressError,
    StorageError,
    StoreNotFoundError,
    UnfinishedSaveError,
)
from ckptstore.manifest.retention.run_rows import RunRows
from ckptstore.manifest.transactions import Transactions
from ckptstore.retention import Policy, keep_last
from ckptstore.storage.files import io_hook
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import committer_of, is_seed, save, snapshot_of
from crash.steps import run_in_child


@pytest.fixture
def store(tmp_path: Path):
    with CheckpointStore(tmp_path / "store") as store:
        yield store


def test_a_saved_checkpoint_has_the_values_given(store: CheckpointStore) -> None:
    before = datetime.now(UTC)
    point = save(
        store,
        4,
        run="digits",
        batch=7,
        step=107,
        metrics={"loss": 0.5, "inf": math.inf},
        tags=("b", "a"),
        extra={"x": [1]},
    )
    assert (point.version, point.run, point.epoch, point.batch, point.step) == (1, "digits", 4, 7, 107)
    assert point.metrics == {"loss": 0.5, "inf": math.inf}
    assert point.path == store.path / "checkpoints" / "00000001-digits.keras"
    assert point.nbytes == point.path.stat().st_size
    assert (point.tags, point.pinned, point.format, point.state) == (("a", "b"), False, "keras", "complete")
    assert point.resumable and point.extra == {"x": [1]}
    assert before <= point.created_at <= before + timedelta(minutes=1)
    assert 0 < point.blocked_s <= point.total_s < 60
    assert store.get(1) == point == store.get("1") == store.get("a") == store.get(point)
    assert list((store.path / "tmp").glob("*.keras")) == []


def test_versions_increase_and_are_never_reused(store: CheckpointStore) -> None:
    for seed in range(4):
        save(store, seed, keep=keep_last(1))
    root = store.path
    store.close()
    with CheckpointStore(root) as again:
        assert save(again, 9).version == 5


def test_latest_best_and_resume_point(store: CheckpointStore) -> None:
    assert store.latest() is None and store.resume_point() is None and store.best("loss") is None
    save(store, 1, metrics={"loss": 0.5, "accuracy": 0.1, "odd": 1}, run="a")
    save(store, 2, metrics={"loss": 0.2, "accuracy": 0.9, "odd": math.nan}, run="a")
    save(store, 3, metrics={"loss": 0.2, "accuracy": math.nan}, run="b")
    save(store, 4, metrics={}, run="b", state=False)
    assert (store.latest().version, store.latest("a").version) == (4, 2)
    assert (store.best("loss").version, store.best("loss", run="b").version) == (2, 3)
    assert (store.best("loss", mode="max").version, store.best("accuracy").version) == (1, 2)
    assert store.best("accuracy", run="b") is None
    assert (store.resume_point().version, store.resume_point("a").version) == (3, 2)
    assert store.run_names() == ("a", "b")
    with pytest.raises(MetricNotFoundError, match="accuracy, loss, odd"):
        store.best("auc")
    with pytest.raises(InvalidArgumentError, match="better low or high"):
        store.best("odd")
    with pytest.raises(InvalidArgumentError, match="mode"):
        store.best("loss", mode="low")  # type: ignore[arg-type]
    assert store.latest("nobody") is None and store.checkpoints("nobody") == []


def test_a_watched_metric_keeps_its_direction(store: CheckpointStore) -> None:
    save(store, 1, metrics={"odd": 1}, monitor=("odd", "max"))
    save(store, 2, metrics={"odd": 2})
    assert store.best("odd").version == 2


def test_a_resume_point_whose_payload_is_missing_or_truncated_is_skipped(store: CheckpointStore) -> None:
    for seed in (1, 2, 3):
        save(store, seed)
    store.get(3).path.unlink()
    os.truncate(store.get(2).path, 10)
    assert store.resume_point().version == 1


@pytest.mark.parametrize("ref", [2, "2", "nothing", "resume-point", "9" * 30, "best:"])
def test_unknown_refs(store: CheckpointStore, ref: object) -> None:
    save(store, 1, state=False)
    with pytest.raises((CheckpointNotFoundError, InvalidArgumentError)) as caught:
        store.get(ref)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ref", [None, 1.5, True, b"1"])
def test_refs_of_another_type(store: CheckpointStore, ref: object) -> None:
    with pytest.raises(InvalidArgumentError):
        store.get(ref)  # type: ignore[arg-type]


def test_tags_move_and_pins_hold(store: CheckpointStore) -> None:
    first, second = save(store, 1, tags=("production",)), save(store, 2, tags=("production",))
    assert store.get("production") == second and store.get(first.version).tags == ()
    store.tag(1, "production")
    assert store.get("production").version == 1
    store.pin(1)
    for seed in range(3, 7):
        save(store, seed, keep=keep_last(1), metrics={})
    assert [point.version for point in store.checkpoints()] == [1, 5, 6]
    store.pin(1, False)
    save(store, 7, keep=keep_last(1), metrics={})
    assert [point.version for point in store.checkpoints()] == [6, 7]
    for ref in ("production", 1):
        with pytest.raises(CheckpointNotFoundError):
            store.get(ref)


@pytest.mark.parametrize("shown", [False, True])
def test_a_disk_failure_during_retention_fails_the_save(
    store: CheckpointStore, tmp_path: Path, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite undoes the whole transaction when a SELECT meets an error of the disk; a ROLLBACK stands in for it."""

    def newest(view: Any, *arguments: Any, **options: Any) -> Any:
        view._connection.exec_driver_sql("ROLLBACK")
        raise RuntimeError("whatever this is taken for")

    save(store, 1, metrics={})
    options = {"publish": tmp_path / "shown.keras"} if shown else {}
    monkeypatch.setattr(RunRows, "newest", newest)
    with pytest.raises(UnfinishedSaveError if shown else StorageError, match="rolled back"):
        save(store, 2, metrics={}, keep=keep_last(1), **options)
    monkeypatch.undo()
    assert [checkpoint.epoch for checkpoint in store.checkpoints()] == ([1, 2] if shown else [1])
    save(store, 3, metrics={}, keep=keep_last(1), **options)
    assert [checkpoint.epoch for checkpoint in store.checkpoints()][-1] == 3 and store.verify() == []


@pytest.mark.parametrize("shown", [False, True])
def test_a_save_with_retention_takes_no_more_transactions_than_one_without(
    store: CheckpointStore, tmp_path: Path, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction costs four syncs; the rows of what is removed go with the next save's, or at the end."""
    options = {"publish": tmp_path / "shown.keras"} if shown else {}
    for seed in range(3):
        save(store, seed, metrics={}, keep=keep_last(2), **options)
    begun: list[str] = []
    writing = Transactions.writing

    def noted(transactions: Transactions, operation: str, **options: Any) -> Any:
        begun.append(operation)
        return writing(transactions, operation, **options)

    monkeypatch.setattr(Transactions, "writing", noted)
    save(store, 3, metrics={}, keep=keep_last(2), **options)
    assert begun == ["reserve_version", "add_checkpoint", *(["confirm_published"] if shown else [])]
    assert sorted(path.name[:8] for path in (store.path / "checkpoints").iterdir()) == [
        "00000003",
        "00000004",
    ]
    assert [checkpoint.version for checkpoint in store.checkpoints(states=None)] == [2, 3, 4]
    store.close()
    with CheckpointStore(store.path, read_only=True) as again:
        assert [checkpoint.version for checkpoint in again.checkpoints(states=None)] == [3, 4]


def test_a_save_makes_few_queries_and_builds_no_statement_twice(store: CheckpointStore) -> None:
    """Building a statement takes longer than executing it, and it is the training that waits."""
    executed: list[Executable] = []

    def note(connection: Connection, statement: Executable, *arguments: Any) -> None:
        executed.append(statement)

    event.listen(store._manifest._transactions._engine, "before_execute", note)
    saves = []
    for seed in range(6):
        executed.clear()
        save(store, seed, metrics={"loss": 9.0 - seed}, monitor=("loss", "min"), keep=keep_last(2))
        saves.append(list(executed))
    assert len(saves[-1]) <= 32
    assert [*map(id, saves[-1])] == [*map(id, saves[-2])]


def test_retention_keeps_best_and_what_is_shown(store: CheckpointStore, tmp_path: Path) -> None:
    values = [3.0, 1.0, 2.0, 4.0, 5.0, 6.0]
    for seed, value in enumerate(values):
        save(
            store, seed, metrics={"loss": value}, monitor=("loss", "min"), keep=keep_last(1),
            publish=tmp_path / "shown.keras" if seed == 2 else None,
        )  # fmt: skip
    assert [point.epoch for point in store.checkpoints()] == [1, 2, 4, 5]
    assert len(list((store.path / "checkpoints").iterdir())) == 4
    assert is_seed(tmp_path / "shown.keras", 2)


def _hold(root: Path, ready: Path) -> None:
    with CheckpointStore(root) as store:
        store.claim("digits")
        ready.touch()
        os.read(os.open(ready.with_suffix(".fifo"), os.O_RDONLY), 1)
    os._exit(0)


def test_a_second_writer_is_refused_at_once_and_the_owner_named(
    store: CheckpointStore, tmp_path: Path
) -> None:
    import multiprocessing

    ready = tmp_path / "ready"
    os.mkfifo(ready.with_suffix(".fifo"))
    process = multiprocessing.get_context("forkserver").Process(
        target=_hold, args=(store.path, ready), daemon=True
    )
    process.start()
    descriptor = os.open(ready.with_suffix(".fifo"), os.O_WRONLY)
    began = datetime.now(UTC)
    with pytest.raises(RunLockedError) as caught, patch.object(time, "sleep", wraps=time.sleep) as sleep:
        save(store, 1, run="digits")
    assert datetime.now(UTC) - began < timedelta(seconds=5)
    assert not sleep.called
    assert (caught.value.host, caught.value.pid) == (socket.gethostname(), process.pid)
    assert caught.value.started_at <= began
    assert store.checkpoints() == []
    save(store, 2, run="other")
    os.close(descriptor)
    process.join(60)
    assert process.exitcode == 0
    save(store, 3, run="digits")


def test_two_stores_of_one_process_exclude_each_other_too(store: CheckpointStore) -> None:
    save(store, 1)
    with CheckpointStore(store.path) as other, pytest.raises(RunLockedError) as caught:
        save(other, 2)
    assert caught.value.pid == os.getpid()


def test_threads_share_a_store(store: CheckpointStore) -> None:
    def work(number: int) -> None:
        for seed in range(5):
            save(store, seed, run=f"run{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    points = store.checkpoints()
    assert [point.version for point in points] == sorted({point.version for point in points})
    assert len(points) == 20 and store.verify() == []


def _save_some(root: Path, run: str) -> None:
    with CheckpointStore(root) as store:
        for seed in range(6):
            save(store, seed, run=run, keep=keep_last(2))
    os._exit(0)


def test_processes_share_a_store(store: CheckpointStore) -> None:
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_save_some, args=(store.path, f"run{n}")) for n in range(4)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        store.latest(), store.checkpoints()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [len(store.checkpoints(run)) for run in store.run_names()] == [2] * 4
    assert store.verify() == []


def _fork_and_read(root: Path) -> None:
    with CheckpointStore(root) as store:
        save(store, 1)
        child = os.fork()
        if child == 0:
            ok = store.latest().version == 1
            try:
                save(store, 2)
            except RunLockedError:
                os._exit(0 if ok else 1)
            os._exit(2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        save(store, 3)
        assert [point.epoch for point in store.checkpoints()] == [1, 3]
    os._exit(0)


def test_a_forked_child_reads_and_cannot_write_its_parents_run(tmp_path: Path) -> None:
    assert run_in_child(_fork_and_read, tmp_path) == 0


def _fork_while_a_thread_saves(root: Path) -> None:
    with CheckpointStore(root) as store:
        save(store, 1)
        inside, go = threading.Event(), threading.Event()

        def wait(operation: str, path: Path, phase: str) -> None:
            # Not in the child, whose copy of the event's lock may be taken for ever.
            if (operation, phase) == ("truncate", "before") and threading.current_thread() is thread:
                inside.set()
                go.wait()

        thread = threading.Thread(target=save, args=(store, 2))
        with io_hook(wait):
            thread.start()
            inside.wait()
            child = os.fork()
            if child == 0:
                save(store, 3, run="childs")
                os._exit(0)
            _, status = os.waitpid(child, 0)
            go.set()
            thread.join()
        assert os.waitstatus_to_exitcode(status) == 0
        assert sorted(point.epoch for point in store.checkpoints()) == [1, 2, 3]
    os._exit(0)


def test_a_child_forked_while_a_thread_saves_does_not_wait_for_it(tmp_path: Path) -> None:
    assert run_in_child(_fork_while_a_thread_saves, tmp_path) == 0


# --- what is refused, with one line and nothing changed -------------------------------------------------------


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    before = _tree(tmp_path)
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotAStoreError):
            CheckpointStore(path)
        with pytest.raises(StoreNotFoundError):
            CheckpointStore(path, read_only=True)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("read_only", [False, True])
def test_a_foreign_database_is_not_changed(tmp_path: Path, read_only: bool) -> None:
    with sqlite3.connect(tmp_path / "manifest.sqlite") as connection:
        connection.execute("create table mine (x)")
    connection.close()
    before = _tree(tmp_path)
    with pytest.raises(NotAStoreError):
        CheckpointStore(tmp_path, read_only=read_only)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "gone"])
def test_a_damaged_manifest_is_never_taken_for_an_empty_store(
    tmp_path: Path, damage: str, read_only: bool
) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
    manifest = tmp_path / "manifest.sqlite"
    content = manifest.read_bytes()
    manifest.write_bytes({"garbage": b"x" * 5000, "cut": content[:5000], "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        manifest.unlink()
    before = _tree(tmp_path)
    with pytest.raises(CorruptManifestError) as caught:
        CheckpointStore(tmp_path, read_only=read_only).checkpoints()
    assert "\n" not in str(caught.value)
    assert _tree(tmp_path) == before


def test_a_store_that_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        CheckpointStore(tmp_path / "nowhere", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_store_refuses_changes(store: CheckpointStore) -> None:
    save(store, 1)
    with CheckpointStore(store.path, read_only=True) as reader:
        for change in (lambda: reader.tag(1, "x"), lambda: reader.pin(1), lambda: reader.claim("a")):
            with pytest.raises(ReadOnlyError):
                change()
        assert reader.latest().version == 1


@pytest.mark.parametrize("name", ['"; DROP TABLE runs; --', "🎯", "a b", "%s", "' OR 1=1"])
def test_unusual_metric_names_are_allowed(store: CheckpointStore, name: str) -> None:
    save(store, 1, metrics={name: 2.0})
    assert store.best(name, mode="min").metrics == {name: 2.0}
    assert store.metric_names() == (name,)


def test_an_interrupted_snapshot_leaves_nothing(store: CheckpointStore) -> None:
    """A variable that cannot be read in the middle of the writing: an exception of the backend's, say."""
    from dataclasses import replace

    def explode():
        raise KeyboardInterrupt

    good = snapshot_of(1)
    bad = replace(good, variables=(*good.variables[:-1], replace(good.variables[-1], read=explode)))
    store.claim("default")
    with pytest.raises(KeyboardInterrupt):
        committer_of(store).commit(bad, SaveRequest(run="default", epoch=0))
    assert store.checkpoints() == [] and list((store.path / "checkpoints").iterdir()) == []
    assert [path.suffix for path in (store.path / "tmp").iterdir()] == [".lease"]
    assert save(store, 2).epoch == 2


def test_the_stores_own_files_are_never_published_over(store: CheckpointStore, tmp_path: Path) -> None:
    from ckptstore.storage.layout import require_outside

    (tmp_path / "link").symlink_to(store.path)
    inside = [
        store.path,
        store.path / "manifest.sqlite",
        store.path / "checkpoints" / "x",
        tmp_path,
        tmp_path / "link" / "a",
    ]
    for target in inside:
        with pytest.raises(InvalidArgumentError, match="lies in the store"):
            require_outside(store.path, target)
    assert require_outside(store.path, tmp_path / "best.keras") == tmp_path / "best.keras"
    assert require_outside(store.path, tmp_path / "store.keras") == tmp_path / "store.keras"


def test_a_checkpoint_marked_for_deletion_can_be_neither_pinned_nor_tagged(store: CheckpointStore) -> None:
    save(store, 1)
    store._manifest.checkpoints.set_state([1], "deleting")
    for change in (lambda: store.pin(1), lambda: store.tag(1, "mine")):
        with pytest.raises(CheckpointNotFoundError):
            change()


def test_a_path_has_one_name_whichever_way_the_store_was_opened(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    target = tmp_path / "best.keras"
    with CheckpointStore(tmp_path / "link" / "store") as store:
        save(store, 1, publish=target)
        assert store.published("default") == {target: 1}
    with CheckpointStore(tmp_path / "deep" / "er" / "store") as store:
        save(store, 2, publish=target)
        assert store.published("default") == {target: 2}


def test_retention_keeps_what_a_run_can_be_resumed_from(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1, keep=keep_last(2))
        for seed in (2, 3, 4):
            save(store, seed, state=False, keep=keep_last(2))
        assert [checkpoint.version for checkpoint in store.checkpoints()] == [1, 3, 4]
        assert store.resume_point().version == 1


def test_threads_of_one_store_save_to_one_run(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store, ThreadPoolExecutor(4) as pool:
        saved = list(pool.map(lambda seed: save(store, seed).version, range(1, 13)))
        assert (
            sorted(saved) == [checkpoint.version for checkpoint in store.checkpoints()] == list(range(1, 13))
        )


def test_a_signal_handler_that_saves_during_a_save_fails_at_once(tmp_path: Path) -> None:
    refused: list[str] = []

    def handler(operation: str, path: Path, phase: str) -> None:
        if (operation, phase) == ("rename", "before") and not refused:
            with pytest.raises(SaveInProgressError, match="while this thread is already saving") as caught:
                save(store, 9)
            refused.append(caught.value.hint)

    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        with io_hook(handler):
            save(store, 2)
        assert [checkpoint.epoch for checkpoint in store.checkpoints()] == [1, 2]
    assert "set a flag" in refused[0]


def test_a_policy_that_raises_says_that_the_checkpoint_is_saved(tmp_path: Path) -> None:
    def broken(checkpoints: object) -> set[int]:
        raise KeyError("policy")

    with CheckpointStore(tmp_path) as store:
        with pytest.raises(UnfinishedSaveError, match=r"version 1 is saved, but .* KeyError") as caught:
            save(store, 1, keep=Policy("broken", broken))
        assert caught.value.checkpoint == store.latest()


def test_names_as_long_as_the_file_system_allows_can_be_published(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 249 + ".keras")
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 1, publish=target)
    assert is_seed(target, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", target.name]


def test_without_locks_threads_of_one_process_still_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPTSTORE_WITHOUT_LOCKS", "1")
    with CheckpointStore(tmp_path) as store, CheckpointStore(tmp_path, read_only=True) as reader:
        with ThreadPoolExecutor(3) as pool:
            saves = [pool.submit(save, store, seed) for seed in range(1, 21)]
            reads = [pool.submit(reader.checkpoints) for _ in range(200)]
            assert all(future.result() is not None for future in (*saves, *reads))
        assert len(store.checkpoints()) == 20 and store.verify() == []


def test_a_module_of_torch_is_refused_with_the_way_to_save_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with CheckpointStore(tmp_path / "store") as store:
        with pytest.raises(
            InvalidArgumentError, match=r"Sequential.*\(pass a keras\.Model; .*TorchModuleWrapper"
        ):
            store.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), epoch=0)
        with pytest.raises(InvalidArgumentError, match=r"dict.*\(pass a keras\.Model\)"):
            store.save({}, epoch=0)
        assert store.checkpoints() == []
