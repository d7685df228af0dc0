"""Trainings whose data makes the loss not finite, or spike, in children that may be killed; see `resume_runs`."""

from __future__ import annotations

import os
import signal
from typing import Any

# A number whose square is no number of 32 bits.
HUGE = 3e38


def data(bad: int | None, value: float = HUGE) -> tuple[Any, Any]:
    """Return inputs and targets of 30 batches of 8; one input holds a value that spoils its batch."""
    import numpy as np

    draw = np.random.default_rng(0)
    x = draw.normal(size=(240, 6)).astype("float32")
    y = (x @ draw.normal(size=(6, 1))).astype("float32")
    if bad is not None:
        x[bad] = value
    return x, y


def model(*, policy: str = "float32", **compiled: Any) -> Any:
    """Return a model with Dropout and moving statistics."""
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    made = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu", dtype=policy),
            layers.BatchNormalization(dtype=policy),
            layers.Dropout(0.2, dtype=policy),
            layers.Dense(1, dtype="float32"),
        ]
    )
    optimizer = keras.optimizers.Adam(0.01)
    if policy != "float32":
        # Keras does this by itself where the model has the policy, and not its layers.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    made.compile(optimizer, "mse", metrics=["mae"], **compiled)
    return made


def train(case: str, *, store: str, die_in: list[int] | None = None, waits: bool = False) -> dict[str, Any]:
    """Train with rollbacks, and return what it comes to.

    Args:
        case: ``"plain"``, ``"executions"`` of two batches, or ``"mixed"`` precision.
        store: The store.
        die_in: Epoch and batch before which the process kills itself, when all saves are durable.
        waits: True if a callback has Keras wait for each batch's result.
    """
    import keras

    import ckptstore
    from resume_runs import _digest

    made = model(
        policy="mixed_float16" if case == "mixed" else "float32",
        steps_per_execution=2 if case == "executions" else 1,
    )

    class Dies(keras.callbacks.Callback):  # type: ignore[misc]
        async_safe = not waits

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if [self.epoch, batch] == die_in:
                saver.wait()
                os.kill(os.getpid(), signal.SIGKILL)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            pass

    # Each save is made, so that a rollback goes to the same one in all runs.
    saver = ckptstore.StoreCheckpoint(
        store, save_freq=4, monitor="loss", backpressure="wait", on_bad_loss="rollback"
    )
    history = made.fit(*data(100), batch_size=8, epochs=3, verbose=0, callbacks=[saver, Dies()])
    with ckptstore.CheckpointStore(store, read_only=True) as opened:
        events = [event.detail for event in opened.events() if event.kind == "rolled_back"]
    return {
        "weights": _digest(made.variables),
        "optimizer": _digest(made.optimizer.variables),
        "history": {
            name: [float(value).hex() for value in values] for name, values in history.history.items()
        },
        "finite": all(float(value) < 1e6 for values in history.history.values() for value in values),
        "steps": int(keras.ops.convert_to_numpy(made.optimizer.iterations)),
        "rollbacks": [[event["from_step"], event["to_step"]] for event in reversed(events)],
    }
