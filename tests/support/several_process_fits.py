"""Attempts to save in one of several processes that train together; run by `process_groups`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

BACKEND = os.environ["KERAS_BACKEND"]


def attempts(rank: int, folder: Path, scope: Any) -> dict[str, Any]:
    """Return how each attempt to save ended."""
    import keras
    import numpy as np

    import ckptstore
    from ckptstore.training.job import fit_job

    fit_job.MEETING_LIMIT_S = 3.0
    with scope:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("adam", "mse")
    callbacks = {
        "StoreCheckpoint": lambda: ckptstore.StoreCheckpoint(folder / "store"),
        "ModelCheckpoint": lambda: ckptstore.ModelCheckpoint(folder / "models" / "best.keras"),
        "BackupAndRestore": lambda: ckptstore.BackupAndRestore(folder / "backup"),
    }
    data = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    found: dict[str, Any] = {}

    def attempt(name: str, action: Any) -> None:
        began = time.monotonic()
        try:
            action()
            error = None
        except Exception as raised:
            error = [type(raised).__name__, str(raised), getattr(raised, "process", None)]
        found[name] = [error, time.monotonic() - began]

    def train(callback: Any) -> None:
        if BACKEND == "tensorflow":
            # Keras' own fit fails there before it calls a callback, with or without one; other loops call them.
            hooks = keras.callbacks.CallbackList([callback], model=model)
            hooks.on_train_begin()
            hooks.on_train_end()
            return
        model.fit(*data, verbose=0, batch_size=4, callbacks=[callback])

    for name, made in callbacks.items():
        attempt(name, lambda made=made: train(made()))
    if rank == 0:
        # The other process takes no part in these.
        attempt("alone", lambda: train(callbacks["StoreCheckpoint"]()))
        with ckptstore.CheckpointStore(folder / "by-hand") as store:
            attempt("save", lambda: store.save(model, epoch=0))
    return found
