"""Fits that two processes run together, as users write them; run by `process_groups`."""

from __future__ import annotations

import hashlib
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

EPOCHS, BATCHES, BATCH = 3, 4, 8
STEPS = EPOCHS * BATCHES


def made_model(distribution: str, units: int = 16) -> Any:
    """Return a compiled model with state of every kind, laid out over all devices of the job."""
    import keras

    devices = keras.distribution.list_devices()
    if distribution == "data":
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        )
    else:
        mesh = keras.distribution.DeviceMesh((len(devices) // 2, 2), ["batch", "model"], devices)
        layout = keras.distribution.LayoutMap(mesh)
        layout[".*dense.*kernel"] = (None, "model") if distribution == "model" else ("batch", "model")
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(
                layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
            )
        )
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(units, activation="relu", name="dense_in"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.25),
            keras.layers.Dense(4, name="dense_out"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return model


def model_without_configuration(distribution: str) -> Any:
    """Return a compiled model that Keras cannot describe, and that its first batch builds."""
    import keras

    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=keras.distribution.list_devices(), auto_shard_dataset=False)
    )
    keras.utils.set_random_seed(7)

    class Net(keras.Model):
        def __init__(self, activation: Callable[[Any], Any]) -> None:
            super().__init__()
            self.activation = activation
            self.inner, self.outer = keras.layers.Dense(8), keras.layers.Dense(4)

        def call(self, inputs: Any) -> Any:
            return self.outer(self.activation(self.inner(inputs)))

    model = Net(lambda values: 1.5 * keras.ops.relu(values))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def share_of_data(rank: int, batches: int = BATCHES) -> Any:
    """Return this process's share of each batch."""
    import keras

    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, BATCHES, BATCH, 8)), rng.normal(size=(2, BATCHES, BATCH, 4))

    class Share(keras.utils.PyDataset):
        def __len__(self) -> int:
            return batches

        def __getitem__(self, index: int) -> Any:
            return x[rank, index].astype("float32"), y[rank, index].astype("float32")

    return Share()


def digest(model: Any) -> str:
    """Return a digest of all values that this process holds, in order of the variables."""
    found = hashlib.sha256()
    for variable in (*model.variables, *model.optimizer.variables, *model.metrics_variables):
        shards = getattr(variable.value, "addressable_shards", None)
        for shard in shards or [variable.value]:
            found.update(np.ascontiguousarray(getattr(shard, "data", shard)).tobytes())
    return found.hexdigest()


class Failure(Exception):
    """The end of a fit in the middle, on every process."""


def at_step(step: int, action: Callable[[], None]) -> Any:
    """Return a callback that does something after a train batch, counted from its fit's beginning."""
    import keras

    class AtStep(keras.callbacks.Callback):
        steps = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.steps += 1
            if self.steps == step:
                action()

    return AtStep()


def train(
    rank: int,
    store: Path,
    distribution: str,
    *others: Any,
    make: Callable[[str], Any] = made_model,
    epochs: int = EPOCHS,
    **options: Any,
) -> dict[str, Any]:
    """Train, and return what this process ends with."""
    import ckptstore

    model = make(distribution)
    callback = ckptstore.StoreCheckpoint(store, "loss", save_freq=3, **options)
    found: dict[str, Any] = {"ended": "finished"}
    try:
        history = model.fit(
            share_of_data(rank), epochs=epochs, verbose=0, shuffle=False, callbacks=[callback, *others]
        )
        found["history"] = history.history
    except Failure:
        found["ended"] = "failure"
    except ckptstore.TrainingInterrupted as error:
        found["ended"] = [error.signal.name, error.code]
    found["digest"] = digest(model)
    found["resumed"] = None if callback.resumed_from is None else callback.resumed_from.step
    found["last"] = (
        None if callback.last is None else [callback.last.step, callback.last.format, callback.last.digest]
    )
    return found


def fail() -> None:
    """End a fit."""
    raise Failure


def exact(rank: int, folder: Path, scope: Any) -> dict[str, Any]:
    """Return undisturbed fits, one that an exception ends, one that a signal to process 1 stops, and their ends."""

    def sigterm() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    signals = [at_step(5, sigterm)] if rank == 1 else []
    return {
        "2d": train(rank, folder / "2d", "2d"),
        "2d failed": train(rank, folder / "failed", "2d", at_step(8, fail)),
        "2d resumed": train(rank, folder / "failed", "2d"),
        "data": train(rank, folder / "data", "data", background=False),
        "data stopped": train(rank, folder / "stopped", "data", *signals),
        "data resumed": train(rank, folder / "stopped", "data", background=False),
        "data stopped early": stopped_early(rank, folder / "early", sigterm),
        "data ended": train(rank, folder / "ended", "data", ends_on(0, rank, epoch=1)),
        "data ended again": train(rank, folder / "ended", "data", ends_on(0, rank, epoch=1), run="default"),
        **without_configuration(rank, folder),
    }


def ends_on(process: int, rank: int, *, epoch: int) -> Any:
    """Return a callback that ends the fit after an epoch, on one process alone."""
    import keras

    class Ends(keras.callbacks.Callback):
        def on_epoch_end(self, number: int, logs: Any = None) -> None:
            if (number, rank) == (epoch, process):
                self.model.stop_training = True

    return Ends()


def stopped_early(rank: int, store: Path, sigterm: Callable[[], None]) -> dict[str, Any]:
    """Return a fit whose process 1 gets a signal while the processes begin it."""
    from ckptstore.training.job.fit_job import FitJob

    def require_equal(job: FitJob, options: Any) -> None:
        if rank == 1:
            sigterm()

    with mock.patch.object(FitJob, "require_equal", require_equal):
        return train(rank, store, "data")


def without_configuration(rank: int, folder: Path) -> dict[str, Any]:
    """Return fits of a model that cannot be saved whole: undisturbed, ended by an exception, resumed."""

    def fit(store: str, *others: Any, **options: Any) -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = train(rank, folder / store, "data", *others, make=model_without_configuration, **options)
        return found | {"warned": [str(warning.message) for warning in caught]}

    return {
        "opaque": fit("opaque"),
        "opaque failed": fit("opaque-failed", at_step(8, fail)),
        "opaque resumed": fit("opaque-failed", save_weights_only=True),
    }


def refused(rank: int, folder: Path, scope: Any) -> dict[str, Any]:
    """Return how each fit ended that cannot be, and how long it took."""
    import ckptstore
    from ckptstore.training.job import beginning, fit_job

    fit_job.MEETING_LIMIT_S = 3.0

    def attempt(action: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            action()
            error = None
        except Exception as raised:
            error = [type(raised).__name__, str(raised)]
        return [error, time.monotonic() - began]

    def begin(*callbacks: Any, model: Any = None) -> Callable[[], Any]:
        return lambda: (model or distributed).fit(
            share_of_data(rank), verbose=0, shuffle=False, callbacks=[*callbacks]
        )

    distributed = made_model("data")
    found = {
        "ModelCheckpoint": attempt(begin(ckptstore.ModelCheckpoint(folder / "best.keras"))),
        "BackupAndRestore": attempt(begin(ckptstore.BackupAndRestore(folder / "backup"))),
    }
    store = folder / "store"
    for name, options in {
        "auto": {"save_freq": "auto"},
        "interval": {"save_interval": 1.0},
        "losses": {"on_bad_loss": "rollback"},
    }.items():
        found[name] = attempt(begin(ckptstore.StoreCheckpoint(store, **options)))
    found["must"] = attempt(begin(ckptstore.StoreCheckpoint(store, resume="must")))
    # A model that was changed: none of them begins.
    train(rank, folder / "ready", "data")
    other = made_model("data", units=32)
    found["mismatch"] = attempt(
        begin(ckptstore.StoreCheckpoint(folder / "ready", run="default"), model=other)
    )
    with_lora = made_model("data")
    with_lora.layers[0].enable_lora(2)
    with_lora.compile("adam", "mse")
    found["form of its own"] = attempt(
        begin(ckptstore.StoreCheckpoint(folder / "lora", background=False), at_step(1, fail), model=with_lora)
    )
    beginning.SIGHT_LIMIT_S = 0.5
    found["own store"] = attempt(
        begin(ckptstore.StoreCheckpoint(folder / f"own-{rank}"), at_step(1, fail), model=made_model("data"))
    )
    found["own save_freq"] = attempt(
        begin(
            ckptstore.StoreCheckpoint(folder / "freq", save_freq=2 + rank),
            at_step(1, fail),
            model=made_model("data"),
        )
    )
    found["own epochs"] = attempt(
        lambda: train(rank, folder / "epochs", "data", at_step(1, fail), epochs=2 + rank)
    )
    found["own batches"] = attempt(
        lambda: made_model("data").fit(
            share_of_data(rank, 2 + rank),
            verbose=0,
            callbacks=[ckptstore.StoreCheckpoint(folder / "batches")],
        )
    )
    if rank == 0:
        # The other process takes no part in this.
        found["alone"] = attempt(begin(ckptstore.StoreCheckpoint(store)))
    import keras

    keras.distribution.set_distribution(None)
    own = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    own.compile("adam", "mse")
    found["own weights"] = attempt(begin(ckptstore.StoreCheckpoint(store), model=own))
    return found
