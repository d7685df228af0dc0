"""A small model with its data, and callbacks that act at a batch; also for scripts that tests start as processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

ROWS = 48


def another_process() -> None:
    """Forget the fits of this process: the next ones are those of a script that is started again."""
    from ckptstore.training.session import fit_order

    fit_order._process.orders.clear()


def data() -> dict[str, Any]:
    """Return inputs, targets and batch size of a fit."""
    draw = np.random.default_rng(0)
    return {
        "x": draw.normal(size=(ROWS, 3)).astype("float32"),
        "y": draw.normal(size=(ROWS, 1)).astype("float32"),
        "batch_size": 4,
    }


def model(units: int = 16) -> Any:
    """Return a compiled model with Dropout."""
    made = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(units), keras.layers.Dropout(0.1), keras.layers.Dense(1)]
    )
    made.compile("adam", "mse")
    return made


def fit(trained: Any, *callbacks: Any, **options: Any) -> Any:
    """Train a model on `data` for two epochs; options are those of ``model.fit``."""
    return trained.fit(**{**data(), "epochs": 2, "verbose": 0, **options}, callbacks=list(callbacks))


class AtBatch(keras.callbacks.Callback):  # type: ignore[misc]
    """Calls a function at the end of a batch of each epoch."""

    def __init__(self, batch: int, action: Callable[[], object]) -> None:
        super().__init__()
        self.batch = batch
        self.action = action

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self.batch:
            self.action()
