"""A callback of ours makes Keras wait for no batch that it would not wait for without."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore import training_state
from ckptstore.formats.payload import read_state

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
# Elsewhere Keras calls all hooks in the thread that trains.
THREADED = keras.backend.backend() in ("jax", "torch")


class Listens(keras.callbacks.Callback):
    """Looks at batches, in whichever thread that is."""

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
    """Takes longer over a batch than training takes to save behind it."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 3:
            time.sleep(0.05)
        super().on_train_batch_end(batch, logs)


def test_what_hooks_in_another_thread_have_seen_is_in_the_save(tmp_path: Path) -> None:
    """At a save every callback has seen all batches up to it."""
    _fit(tmp_path / "store", Slow(async_safe=True), save_freq=4, background=False)
    with ckptstore.CheckpointStore(tmp_path / "store", read_only=True) as store:
        first = store.checkpoints()[0]
    assert (first.epoch, first.batch) == (0, 3)
    saved = training_state.fit_values(read_state(first.path))["callbacks"]
    assert "'batches': [0, 1, 2, 3]" in str(saved)
