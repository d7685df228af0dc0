"""Background saves of a fit: each is of one instant, and what was submitted is saved however the training ends."""

from __future__ import annotations

import copy
import gc
import hashlib
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.background.program import WRITER_VARIABLE, can_start
from ckptstore.commit import committer
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import store_lock
from ckptstore.training.saving.overhead_budget import OverheadBudget
from crash.kill_writer import writers
from small_fits import ROWS, AtBatch, another_process, data, fit, model

# Issued by Keras' own code on torch.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
needs_process = pytest.mark.skipif(not can_start(), reason="this platform has no memfd or pidfd")
only_torch = pytest.mark.skipif(keras.backend.backend() != "torch", reason="a loader of torch")


@pytest.fixture(autouse=True)
def kind(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keras.utils.set_random_seed(1)
    monkeypatch.setenv(WRITER_VARIABLE, getattr(request, "param", "process"))


# For tests whose result must be the same with a worker in a thread.
in_a_thread_too = pytest.mark.parametrize(
    "kind", [pytest.param("process", marks=needs_process), "thread"], indirect=True
)


def checkpoints(path: Path) -> list[ckptstore.Checkpoint]:
    with ckptstore.CheckpointStore(path, read_only=True) as store:
        return store.checkpoints()


def digest(variables: Any) -> str:
    state = hashlib.sha256()
    for variable in variables:
        state.update(np.array(keras.ops.convert_to_numpy(variable), copy=True).tobytes())
    return state.hexdigest()


def state_of(trained: Any) -> str:
    return digest([*trained.variables, *trained.optimizer.variables])


def weights_of(trained: Any) -> str:
    """Return the digest of what Keras itself loads: no seed generators."""
    return digest([*trained.weights, *trained.optimizer.variables])


class StateRecorder(keras.callbacks.Callback):  # type: ignore[misc]
    """Records the state after each batch, by the number of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[int, str] = {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.states[len(self.states) + 1] = state_of(self.model)


class StopAfter(keras.callbacks.Callback):  # type: ignore[misc]
    """Stops the training once so many checkpoints from the middle of its epoch are durable."""

    def __init__(self, path: Path, saver: ckptstore.StoreCheckpoint, *, saves: int) -> None:
        super().__init__()
        self.path, self.saver, self.saves = path, saver, saves
        self.batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches = batch + 1
        if self.batches % 500 == 0:
            self.saver.wait()
            self.model.stop_training = len(checkpoints(self.path)) >= self.saves


# --- one instant -------------------------------------------------------------------------------


@in_a_thread_too
def test_a_snapshot_is_of_one_instant_while_training_continues(tmp_path: Path) -> None:
    """A checkpoint written while the next steps run holds every variable as it was at the save, to the bit."""
    recorder = StateRecorder()
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=1, backpressure="wait")
    fit(model(256), callback, recorder)
    saved = [checkpoint for checkpoint in checkpoints(tmp_path) if checkpoint.batch is not None]
    assert [checkpoint.step for checkpoint in saved] == list(range(1, 2 * ROWS // 4 + 1))
    other = model(256)
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        for checkpoint in saved:
            store.restore(checkpoint.version, other)
            assert state_of(other) == recorder.states[checkpoint.step], checkpoint


@in_a_thread_too
@pytest.mark.timeout(120)
def test_saves_that_are_not_replaced_are_complete_and_in_order(tmp_path: Path) -> None:
    recorder = StateRecorder()
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=1)
    fit(model(256), callback, recorder, batch_size=1, epochs=8)
    saved = [checkpoint for checkpoint in checkpoints(tmp_path) if checkpoint.batch is not None]
    steps = [checkpoint.step for checkpoint in saved]
    assert steps == sorted(steps)
    assert 3 < len(steps) < 8 * ROWS / 2
    other = model(256)
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        for checkpoint in saved:
            store.restore(checkpoint.version, other)
            assert state_of(other) == recorder.states[checkpoint.step], checkpoint


def test_a_run_with_background_saves_equals_one_without_to_the_bit(tmp_path: Path) -> None:
    plain = model()
    alone = fit(plain)
    keras.utils.set_random_seed(1)
    saved = model()
    beside = fit(saved, ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=1))
    assert state_of(saved) == state_of(plain)
    assert beside.history == alone.history


# --- the end -----------------------------------------------------------------------------------


@in_a_thread_too
def test_everything_is_saved_when_fit_returns_and_no_process_is_left(tmp_path: Path) -> None:
    # Nothing is monitored: whether the first epoch's end is a best, and saved, would depend on the weights drawn.
    callback = ckptstore.StoreCheckpoint(tmp_path, save_freq=5, backpressure="wait")
    fit(model(), callback)
    assert [(checkpoint.epoch, checkpoint.batch) for checkpoint in checkpoints(tmp_path)] == [
        (0, 4), (0, 9), (1, 2), (1, 7), (1, None),
    ]  # fmt: skip
    assert callback.last is not None
    assert callback.last.batch is None
    assert writers(tmp_path) == []
    with ckptstore.CheckpointStore(tmp_path) as store:
        assert store.verify() == []
        store.claim("default")


def test_wait_returns_when_the_saves_so_far_are_durable(tmp_path: Path) -> None:
    seen = []
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=3, backpressure="wait")

    def list_steps() -> None:
        callback.wait()
        seen.append([checkpoint.step for checkpoint in checkpoints(tmp_path)])

    fit(model(), callback, AtBatch(8, list_steps), epochs=1)
    assert seen == [[3, 6, 9]] or seen == [[3, 6]]


def test_blocked_and_total_time_are_in_the_manifest(tmp_path: Path) -> None:
    fit(model(), ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=6))
    for checkpoint in checkpoints(tmp_path):
        assert checkpoint.blocked_s is not None
        assert checkpoint.total_s is not None
        assert 0 < checkpoint.blocked_s < checkpoint.total_s


def test_a_fit_ended_by_a_callback_has_saved_what_was_submitted(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=2, backpressure="wait")
    with pytest.raises(ZeroDivisionError):
        fit(model(), callback, AtBatch(4, fail))
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path)] == [2, 4, 5]
    assert writers(tmp_path) == []


@in_a_thread_too
def test_a_signal_during_the_wait_for_the_last_saves_takes_effect_after_them(tmp_path: Path) -> None:
    held, callback = threading.Event(), ckptstore.StoreCheckpoint(tmp_path, monitor="loss", verbose=0)
    handed = threading.Event()

    class AtTheEnd(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 0:
                holder.start()
                held.wait()

        def on_train_end(self, logs: Any = None) -> None:
            handed.set()

    def hold() -> None:
        with store_lock(Layout(tmp_path).locks):
            held.set()
            handed.wait()
            os.kill(os.getpid(), signal.SIGTERM)

    holder = threading.Thread(target=hold)
    with pytest.raises(ckptstore.TrainingInterrupted):
        fit(model(), callback, AtTheEnd(), epochs=1)
    holder.join()
    assert [(checkpoint.epoch, checkpoint.batch) for checkpoint in checkpoints(tmp_path)] == [(0, None)]


@needs_process
def test_saves_of_a_killed_trainer_are_finished_and_a_restart_waits_for_them(tmp_path: Path) -> None:
    """The script has no main guard. It dies with two snapshots in flight, and the next start has both."""
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path[:0] = {sys.path!r}
        import keras
        from pathlib import Path
        from small_fits import AtBatch, fit, model
        import ckptstore
        from ckptstore.storage.layout import Layout
        from ckptstore.storage.locks import store_lock

        keras.utils.set_random_seed(1)
        callback = ckptstore.StoreCheckpoint({str(tmp_path)!r}, monitor="loss", save_freq=3, backpressure="wait")
        # Nothing can be committed until this process is dead.
        lock = store_lock(Layout(Path({str(tmp_path)!r})).locks)
        dying = AtBatch(1, lock.__enter__), AtBatch(7, lambda: os.kill(os.getpid(), signal.SIGKILL))
        fit(model(), callback, *(dying if "die" in sys.argv else ()))
        print("resumed from", callback.resumed_from.step)
        """)
    # From standard input: there is no file that a child process could run again.
    runs = [
        subprocess.run(
            [sys.executable, "-", *words],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )
        for words in (["die"], [])
    ]
    assert runs[0].returncode == -signal.SIGKILL, runs[0].stderr
    assert runs[1].returncode == 0, runs[1].stderr
    assert "resumed from 6" in runs[1].stdout
    steps = [checkpoint.step for checkpoint in checkpoints(tmp_path)]
    assert steps == [*range(3, 25, 3), 24]
    assert writers(tmp_path) == []


# --- failures ----------------------------------------------------------------------------------


class NoTemporaryFolder(keras.callbacks.Callback):  # type: ignore[misc]
    """Puts a file in the place of the folder for temporary files at a batch, and restores it at another."""

    def __init__(self, callback: Any, rename_at: int, restore_at: int) -> None:
        super().__init__()
        self.callback = callback
        self.folder = Layout(callback.store_path).tmp
        self.rename_at, self.restore_at = rename_at, restore_at

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self.rename_at:
            self.callback.wait()
            self.folder.rename(self.folder.with_name("away"))
            self.folder.touch()
        if batch == self.restore_at:
            self.callback.wait()  # a failed save is tried again at once
            self.on_train_end()

    def on_train_end(self, logs: Any = None) -> None:
        away = self.folder.with_name("away")
        if away.exists():
            self.folder.unlink()
            away.rename(self.folder)


@in_a_thread_too
def test_a_failed_save_is_a_warning_and_training_continues(tmp_path: Path) -> None:
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=4, backpressure="wait")
    waiting = [AtBatch(batch, callback.wait) for batch in (5, 9)]
    with pytest.warns(UserWarning, match="training continues without"):
        fit(model(), callback, NoTemporaryFolder(callback, 4, 10), *waiting, epochs=1)
    steps = [checkpoint.step for checkpoint in checkpoints(tmp_path)]
    assert 4 in steps
    assert 8 not in steps
    assert steps[-1] == ROWS // 4


def test_a_failed_save_ends_the_training_if_the_user_asks_for_it(tmp_path: Path) -> None:
    callback = ckptstore.StoreCheckpoint(
        tmp_path, monitor="loss", save_freq=4, backpressure="wait", on_save_error="raise"
    )
    away = NoTemporaryFolder(callback, 4, 99)
    with pytest.raises(ckptstore.StorageError):
        fit(model(), callback, away, AtBatch(9, callback.wait), epochs=1)
    away.on_train_end()
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path)] == [4]
    assert writers(tmp_path) == []


@in_a_thread_too
def test_a_failure_of_the_last_save_is_raised_by_fit(tmp_path: Path) -> None:
    class AtTheEnd(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            callback.wait()
            tmp = Layout(tmp_path).tmp
            tmp.rename(tmp.with_name("away"))
            tmp.touch()

    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=4, on_save_error="raise")
    with pytest.raises(ckptstore.StorageError):
        fit(model(), callback, AtTheEnd(), epochs=1)


# --- how often ---------------------------------------------------------------------------------


def test_saves_that_come_too_fast_are_left_out_but_not_the_best_or_the_last(tmp_path: Path) -> None:
    class Holding(keras.callbacks.Callback):  # type: ignore[misc]
        """Holds the store's lock during each epoch, so that nothing is committed."""

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            callback.wait()
            self.go, held = threading.Event(), threading.Event()

            def hold() -> None:
                with store_lock(Layout(tmp_path).locks):
                    held.set()
                    self.go.wait()

            threading.Thread(target=hold).start()
            held.wait()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.go.set()

    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="val_loss", save_freq=1)
    fit(model(), callback, Holding(), epochs=3, validation_split=0.25)
    saved = checkpoints(tmp_path)
    per_epoch = 9
    assert len(saved) < 3 * per_epoch
    assert saved[-1].step == 3 * per_epoch
    validated = [checkpoint for checkpoint in saved if "val_loss" in checkpoint.metrics]
    best = min(checkpoint.metrics["val_loss"] for checkpoint in validated)
    assert best == callback.best


def test_auto_chooses_an_interval_and_records_it(tmp_path: Path) -> None:
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq="auto", max_overhead=0.9)
    # More rows than needed: the training stops after two saves, however slow the disk is.
    rows = {name: np.tile(values, (4000, 1)) for name, values in data().items() if name in ("x", "y")}
    ending = StopAfter(tmp_path, callback, saves=2)
    fit(model(), callback, ending, epochs=1, **rows)
    saved = checkpoints(tmp_path)
    assert len([checkpoint for checkpoint in saved if checkpoint.batch is not None]) >= 2
    assert saved[-1].batch is None
    assert saved[-1].step == ending.batches < 4000 * ROWS // 4
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        events = store._manifest.events.find(kind="interval")
    assert events
    versions = {checkpoint.version for checkpoint in saved}
    for event in events:
        assert event.version in versions
        assert event.detail is not None
        assert event.detail["batches"] >= 1
        assert event.detail["max_overhead"] == 0.9
        assert event.detail["step_s"] > 0
        assert event.detail["blocked_s"] > 0


def test_auto_counts_the_cost_of_starting_but_not_of_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(OverheadBudget, "charge", recording(calls, "charge", OverheadBudget.charge))
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq="auto", run="a")
    fit(model(), callback, epochs=1)
    assert len(calls) == 2  # the beginning of the fit, and of the epoch
    fit(model(), callback, epochs=2)
    assert callback.resumed_from is not None
    assert len(calls) == 2


def test_auto_tells_one_time_preparation_from_the_cost_of_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    hook_ends = OverheadBudget.hook_ends

    def recorded(budget: OverheadBudget, *, once: bool = False) -> None:
        calls.append(once)
        hook_ends(budget, once=once)

    monkeypatch.setattr(OverheadBudget, "hook_ends", recorded)
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq="auto")
    fit(model(), callback, epochs=2)
    assert calls == [True] + [False] * (len(calls) - 1)
    assert len(calls) > 2


def test_a_time_interval_is_kept_while_auto_only_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OverheadBudget, "is_quiet", lambda budget, batches: True)
    callback = ckptstore.StoreCheckpoint(
        tmp_path, monitor="loss", save_freq="auto", save_interval=1e-9, background=False
    )
    fit(model(), callback, epochs=1)
    batches = [checkpoint.batch for checkpoint in checkpoints(tmp_path) if checkpoint.batch is not None]
    assert len(batches) > 2
    assert batches == list(range(len(batches)))


def test_auto_counts_foreground_saves_and_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("saved", "not_saved"):
        monkeypatch.setattr(OverheadBudget, name, recording(calls, name, getattr(OverheadBudget, name)))
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq="auto", background=False)
    tmp = Layout(tmp_path).tmp
    away = tmp.with_name("away")

    def replace_folder_by_a_file() -> None:
        tmp.rename(away)
        tmp.touch()

    with pytest.warns(UserWarning, match="training continues without"):
        fit(model(), callback, AtBatch(0, replace_folder_by_a_file), epochs=1)
    # The last save is never left out.
    assert set(calls) == {"not_saved"}
    tmp.unlink()
    away.rename(tmp)
    fit(model(), callback, epochs=2)
    assert calls[-1] == "saved"


def recording(calls: list[str], name: str, method: Any) -> Any:
    def called(self: Any, *arguments: Any) -> None:
        calls.append(name)
        method(self, *arguments)

    return called


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_overhead", 0), ("max_overhead", 35), ("max_overhead", "much"), ("save_freq", "auto ")],
)
def test_invalid_intervals_are_refused(option: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ckptstore.InvalidArgumentError):
        ckptstore.StoreCheckpoint(tmp_path / "store", **{option: value})
    assert not (tmp_path / "store").exists()


# --- the drop-ins ------------------------------------------------------------------------------


@in_a_thread_too
def test_the_drop_in_publishes_each_file_when_it_is_durable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = ckptstore.ModelCheckpoint(
        tmp_path / "{epoch}.keras", monitor="loss", background=True, verbose=1
    )
    assert callback.background
    trained = model()
    fit(trained, callback, epochs=3)
    assert sorted(path.name for path in tmp_path.glob("*.keras")) == ["1.keras", "2.keras", "3.keras"]
    loaded = keras.saving.load_model(tmp_path / "3.keras")
    assert weights_of(loaded) == weights_of(trained)
    printed = capsys.readouterr().out
    for epoch in (1, 2, 3):
        assert f"Epoch {epoch}: finished saving model to {tmp_path}/{epoch}.keras" in printed
    assert callback.last is not None
    assert callback.last.epoch == 2
    assert writers(tmp_path) == []


def test_the_drop_in_keeps_the_best(tmp_path: Path) -> None:
    path = tmp_path / "best.keras"
    losses: list[float] = []
    recorder = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: losses.append(logs["val_loss"])
    )
    callback = ckptstore.ModelCheckpoint(path, save_best_only=True, background=True)
    fit(model(), callback, recorder, epochs=6, validation_split=0.25)
    assert callback.best == min(losses)
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        best = store.best("val_loss", mode="min")
        assert best is not None
        assert best.metrics["val_loss"] == min(losses)
    another_process()
    again = ckptstore.ModelCheckpoint(path, save_best_only=True, background=True)
    fit(model(), again, epochs=1, validation_split=0.25)
    assert again.best is not None
    assert again.best <= min(losses)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_the_h5_format_is_saved_in_the_foreground(tmp_path: Path) -> None:
    seen = []
    callback = ckptstore.ModelCheckpoint(tmp_path / "{epoch}.h5", monitor="loss", background=True)
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: seen.append(len(list(tmp_path.glob("*.h5"))))
    )
    fit(model(), callback, look)
    assert seen == [1, 2]


@in_a_thread_too
def test_a_fit_ended_by_an_exception_releases_the_run(tmp_path: Path) -> None:
    """The drop-in's `on_train_end` is not called; another callback, or the same, takes over the run after its saves."""

    def fail() -> None:
        raise ZeroDivisionError

    path = tmp_path / "{epoch}-{batch}.keras"
    for _ in range(2):
        # As in Keras, the count of batches since the last save continues from fit to fit.
        callback = ckptstore.ModelCheckpoint(path, monitor="loss", save_freq=4, background=True)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                fit(model(), callback, AtBatch(5, fail))
    fit(model(), callback, epochs=1)
    assert len(checkpoints(tmp_path)) == 2 * 3 + 3
    assert writers(tmp_path) == []


def test_a_fit_resumes_from_backups_made_in_the_background(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    plain = model()
    fit(plain)
    keras.utils.set_random_seed(1)
    with pytest.raises(ZeroDivisionError):
        fit(model(), ckptstore.BackupAndRestore(tmp_path, save_freq=5, background=True), AtBatch(7, fail))
    keras.utils.set_random_seed(1)
    resumed = model()
    fit(resumed, ckptstore.BackupAndRestore(tmp_path, save_freq=5, background=True))
    assert state_of(resumed) == state_of(plain)
    assert checkpoints_left(tmp_path) == 0


def checkpoints_left(path: Path) -> int:
    return len(list(path.rglob("*.weights.h5")))


# --- among others ------------------------------------------------------------------------------


def test_a_user_policy_is_applied(tmp_path: Path) -> None:
    pids = []

    def only_even(saved: Any) -> set[int]:
        pids.append(os.getpid())
        return {checkpoint.version for checkpoint in saved if checkpoint.epoch % 2 == 0}

    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", keep=only_even, backpressure="wait")
    fit(model(), callback, epochs=7)
    assert set(pids) == {os.getpid()}
    left = [checkpoint.epoch for checkpoint in checkpoints(tmp_path)]
    assert {0, 2, 4, 6} <= set(left)
    assert 1 not in left
    assert 3 not in left


@in_a_thread_too
def test_warnings_of_the_worker_reach_the_user(tmp_path: Path) -> None:
    keep = ckptstore.keep_best("val_lost", 1, mode="min")
    with pytest.warns(UserWarning, match="nothing is removed from run 'default'.*val_lost"):
        fit(model(), ckptstore.StoreCheckpoint(tmp_path, monitor="loss", keep=keep))


def test_a_user_policy_that_fails_ends_the_training_but_the_checkpoint_is_saved(
    tmp_path: Path,
) -> None:
    def broken(saved: Any) -> set[int]:
        raise ZeroDivisionError

    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", keep=broken, backpressure="wait")
    with pytest.raises(ckptstore.UnfinishedSaveError, match="removing what the policy does not keep"):
        fit(model(), callback, epochs=1)
    assert [checkpoint.epoch for checkpoint in checkpoints(tmp_path)] == [0]


@pytest.mark.parametrize("kind", ["thread"], indirect=True)
@pytest.mark.parametrize("epochs", [3, 4], ids=["after the last save", "after an earlier save"])
def test_a_failed_removal_is_reported_and_loses_nothing(
    epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(payloads: Any, expired: Any, **options: Any) -> None:
        raise ckptstore.StorageError(operation="unlink", path=expired[0].path, error=OSError("broken"))

    monkeypatch.setattr(committer, "remove_marked", remove)
    keep = ckptstore.keep_last(1)
    callback = ckptstore.StoreCheckpoint(tmp_path, keep=keep, backpressure="wait", monitor="loss")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fit(model(), callback, epochs=epochs)
    failures = [str(warning.message) for warning in warned if "SAVING FAILED" in str(warning.message)]
    assert len(failures) == epochs - 2
    assert "version 3 is saved, but removing what the policy does not keep failed" in failures[0]
    assert checkpoints(tmp_path)[-1].epoch == epochs - 1


@in_a_thread_too
def test_fits_in_two_threads_can_save_at_once(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def train(run: str) -> None:
        try:
            callback = ckptstore.StoreCheckpoint(
                tmp_path, monitor="loss", run=run, save_freq=4, backpressure="wait", signals=()
            )
            fit(model(), callback, epochs=2)
        except BaseException as error:
            failures.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=train, args=(run,)) for run in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    steps = [4, 8, 12, 16, 20, 24, 24]
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        for run in ("a", "b"):
            assert [checkpoint.step for checkpoint in store.checkpoints(run)] == steps
        assert store.verify() == []


def test_a_copy_of_a_callback_begins_its_own_saves(tmp_path: Path) -> None:
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=4, backpressure="wait")
    copies = []
    fit(model(), callback, AtBatch(5, lambda: copies.append(copy.copy(callback))), epochs=1)
    (copied,) = copies
    assert copied.background
    fit(model(), copied, epochs=2)
    assert checkpoints(tmp_path)[-1].step == 24


class Squares:
    """A data set of torch's kind that can be sent to a spawned process."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return np.full((3,), index, "float32"), np.full((1,), index**0.5, "float32")


@only_torch
@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_loaders_with_processes_of_their_own_do_no_harm(context: str, tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(Squares(), batch_size=4, num_workers=1, multiprocessing_context=context)  # type: ignore[arg-type]
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=2, backpressure="wait")
    trained = model()
    before = set(multiprocessing.active_children())
    trained.fit(loader, epochs=2, verbose=0, shuffle=False, callbacks=[callback])
    # Keras makes one iterator more than it uses, which ends with the fit.
    assert set(multiprocessing.active_children()) <= before
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path)] == [2, 4, 6, 8, 8]
    assert writers(tmp_path) == []


def test_memory_is_that_of_two_snapshots_and_is_released(tmp_path: Path) -> None:
    sizes: list[int] = []
    gc.collect()  # reference cycles of earlier fits hold memory too

    class Looking(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            background = callback._saves._in_background
            assert background is not None
            sizes.append(sum(slot.memory.nbytes for slot in background._queue._slots))

    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=1)
    trained = model(100_000)
    fit(trained, callback, Looking(), epochs=1)
    state = sum(
        math.prod(variable.shape) * 4 for variable in [*trained.variables, *trained.optimizer.variables]
    )
    assert state < max(sizes) <= 2 * (1.05 * state + 2_000_000)
    assert callback._saves._in_background is None
    assert mapped() == 0


def mapped() -> int:
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("ckptstore-snapshot")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert writers(tmp_path) == []
