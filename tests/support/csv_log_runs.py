"""Trainings with two `CSVLogger`, one that empties its file and one that appends, in children; see `resume_runs`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any


def train(
    case: str, *, folder: str, store: str | None = None, die_after: int | None = None
) -> dict[str, Any]:
    """Train 4 epochs of 5 batches, and return the rows of both files.

    Args:
        case: ``"one fit"``, or ``"two fits"`` of one script, which write the same files.
        folder: Where the files are.
        store: Where to save and resume; None for plain Keras.
        die_after: The batch of this process after which it kills itself.
    """
    import keras
    import numpy as np

    import ckptstore
    from small_fits import model

    batches = 0

    class Dies(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            nonlocal batches
            batches += 1
            if batches == die_after:
                os.kill(os.getpid(), signal.SIGKILL)

    files = [Path(folder) / "empties.csv", Path(folder) / "appends.csv"]
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.ones((20, 1))
    for seed in (1, 2) if case == "two fits" else (1,):
        keras.utils.set_random_seed(seed)
        # One before the callback that saves, and one behind it.
        callbacks: list[Any] = [
            keras.callbacks.CSVLogger(files[0]),
            Dies(),
            keras.callbacks.CSVLogger(files[1], append=True),
        ]
        if store is not None:
            callbacks.insert(
                1, ckptstore.StoreCheckpoint(store, monitor="loss", save_freq=3, backpressure="wait")
            )
        model().fit(x, y, batch_size=4, epochs=4, verbose=0, callbacks=callbacks)
    return {"rows": [file.read_text() for file in files]}
