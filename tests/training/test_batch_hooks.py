"""Our callbacks make Keras wait for no batch that it would not wait for without them."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.background.program import can_start
from ckptstore.formats.payload import read_state
from ckptstore.keras.private import fit_loop
from ckptstore.keras.state import training_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.usefixtures("forked_writers"),
]
# Elsewhere Keras calls all hooks in the thread that trains.
THREADED = keras.backend.backend() in ("jax", "torch")


class Listens(keras.callbacks.Callback):
    """Looks at batches, in any thread."""

    def __init__(self, *, async_safe: bool) -> None:
        super().__init__()
        self.async_safe = async_safe
        self.threads: set[int] = set()
        self.batches: list[int] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.threads.add(threading.get_ident())
        self.batches.append(batch)
        assert float(logs["loss"]) > 0

    def get_state(self) -> dict[str, Any]:
        return {"batches": sorted(self.batches)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.batches = list(state["batches"])


def _fit(folder: Path, *callbacks: Any, **options: Any) -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
    saver = ckptstore.StoreCheckpoint(folder, monitor="loss", **options)
    model.fit(x, x[:, :1], batch_size=2, epochs=2, verbose=0, callbacks=[*callbacks, saver])
    return saver


@pytest.mark.parametrize("async_safe", [True, False])
def test_hooks_are_called_where_keras_calls_them_without_us(tmp_path: Path, async_safe: bool) -> None:
    listens = Listens(async_safe=async_safe)
    _fit(tmp_path / "store", listens)
    assert sorted(listens.batches) == sorted([*range(6)] * 2)
    in_place = listens.threads == {threading.get_ident()}
    assert in_place is not (async_safe and THREADED)


class Slow(Listens):
    """Takes longer over a batch than training takes to save after it."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 3:
            time.sleep(0.05)
        super().on_train_batch_end(batch, logs)


def test_a_save_waits_for_hooks_in_another_thread(tmp_path: Path) -> None:
    """At a save every callback has seen all batches up to it."""
    _fit(tmp_path / "store", Slow(async_safe=True), save_freq=4, background=False)
    with ckptstore.CheckpointStore(tmp_path / "store", read_only=True) as store:
        first = store.checkpoints()[0]
    assert (first.epoch, first.batch) == (0, 3)
    saved = training_state.fit_values(read_state(first.path))["callbacks"]
    assert "'batches': [0, 1, 2, 3]" in str(saved)


class Signals(keras.callbacks.Callback):
    """Asks for a stop while Keras validates."""

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_save_in_a_validation_waits_for_hooks_of_the_training(tmp_path: Path) -> None:
    class SlowAtTheEnd(Listens):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 5:
                time.sleep(0.5)
            super().on_train_batch_end(batch, logs)

    x = np.ones((12, 3), "float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    saver = ckptstore.StoreCheckpoint(tmp_path / "store", monitor="loss", background=False)
    callbacks = [SlowAtTheEnd(async_safe=True), Signals(), saver]
    data = {"validation_data": (x, x[:, :1]), "batch_size": 2, "verbose": 0}
    model.evaluate(
        x, x[:, :1], batch_size=2, verbose=0
    )  # compiles, so that the first validation does not wait
    with pytest.raises(ckptstore.TrainingInterrupted):
        model.fit(x, x[:, :1], callbacks=callbacks, **data)
    with ckptstore.CheckpointStore(tmp_path / "store", read_only=True) as store:
        saved = training_state.fit_values(read_state(store.checkpoints()[-1].path))["callbacks"]
    assert "'batches': [0, 1, 2, 3, 4, 5]" in str(saved)


class Fails(Listens):
    """Fails in another thread."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        if batch == 3:
            raise RuntimeError("boom")


def test_an_error_in_another_thread_ends_the_fit_with_a_save(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with pytest.raises(RuntimeError, match="boom"):
        _fit(folder, Fails(async_safe=True), save_freq=4, background=False)
    with ckptstore.CheckpointStore(folder) as store:
        store.claim("default")  # nobody has the run any more
        assert [(checkpoint.epoch, checkpoint.batch) for checkpoint in store.checkpoints()] == [(0, 3)]


@pytest.mark.skipif(not THREADED, reason="Keras calls all hooks in the thread that trains")
def test_an_error_in_another_thread_is_raised_once(tmp_path: Path) -> None:
    """Keras' list keeps what it waits for, and a list made by hand lives longer than the fit that failed."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    saver = ckptstore.StoreCheckpoint(tmp_path / "store", monitor="loss", save_freq=4, background=False)
    given = [Fails(async_safe=True), saver]
    listed = keras.callbacks.CallbackList(given, add_history=True, model=model)
    x = np.ones((12, 3), "float32")
    with pytest.raises(RuntimeError, match="boom"):
        model.fit(x, x[:, :1], batch_size=2, verbose=0, callbacks=listed)
    assert model.fit(x, x[:, :1], batch_size=2, verbose=0, callbacks=listed).epoch == [0]
    assert sorted(given[0].batches) == [*range(6)]


class Ends(keras.callbacks.Callback):
    """Ends a fit while the disk hangs, by a signal or an error."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.saver: Any = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        writer = self.saver._saves._in_background._queue._worker.process.pid
        if batch == 0:
            os.kill(writer, signal.SIGSTOP)
            threading.Timer(0.5, os.kill, (writer, signal.SIGCONT)).start()
        if batch == 5 and self.how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if batch == 5 and self.how == "error":
            raise RuntimeError("boom")


@pytest.mark.skipif(not can_start(), reason="this platform has no memfd or pidfd")
@pytest.mark.parametrize("how", ["signal", "error"])
def test_the_last_save_is_not_left_out_for_the_best_that_waits(tmp_path: Path, how: str) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(1e-9), "mse")
    x = np.ones((16, 2), "float32")
    # The second batch is the best of all.
    y = np.array([[5.0]] * 2 + [[0.0]] * 2 + [[100.0]] * 12, "float32")
    saver, ends = ckptstore.StoreCheckpoint(tmp_path / "store", monitor="loss", save_freq=1), Ends(how)
    ends.saver = saver
    expected = ckptstore.TrainingInterrupted if how == "signal" else RuntimeError
    with pytest.raises(expected):
        model.fit(x, y, batch_size=2, shuffle=False, verbose=0, callbacks=[ends, saver])
    with ckptstore.CheckpointStore(tmp_path / "store", read_only=True) as store:
        assert [checkpoint.batch for checkpoint in store.checkpoints()][-1] == 5


@pytest.mark.skipif(not THREADED, reason="Keras calls all hooks in the thread that trains")
@pytest.mark.parametrize("looking", [False, True])
def test_a_save_waits_for_hooks_in_another_thread_where_somebody_has_such(
    looking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []

    def wait(futures: Any) -> Any:
        waited.append(len(futures))
        return concurrent.futures.wait(futures)

    monkeypatch.setattr(fit_loop, "wait", wait)
    _fit(tmp_path, *([Listens(async_safe=True)] if looking else []), save_freq=2)
    assert bool(waited) is looking
