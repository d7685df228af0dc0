"""Programs that call `fit` several times with one store: folds, epochs one by one, stages, scikit-learn.

Each is written as its user would: one callback, and no name for a run. `resume_runs` starts them, and may kill them.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

import ckptstore

ROWS = 48
Fits = Iterator[dict[str, Any]]


class Program:
    """The common parts of the programs: data, models, one fit after the other.

    Args:
        store: The store; None for plain Keras.
        die_in: The number of the fit, from 0, and the batch of it in this process at which the process kills itself.
        saving: Arguments of `StoreCheckpoint`.
    """

    def __init__(self, store: str | None, die_in: list[int] | None, saving: dict[str, Any]) -> None:
        keras.utils.set_random_seed(5)
        draw = np.random.default_rng(0)
        self.x = draw.normal(size=(ROWS, 4)).astype("float32")
        self.y = (self.x.sum(axis=1, keepdims=True) > 0).astype("float32")
        self._store = store
        self._die_in = die_in
        self._saving = {"monitor": "loss", "save_freq": 2, **saving}
        self.runs: list[str | None] = []
        self._fits = 0

    def model(self) -> Any:
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(6, "relu"),
                keras.layers.Dropout(0.2),
                keras.layers.Dense(1, "sigmoid"),
            ]
        )
        model.compile("adam", "binary_crossentropy")
        return model

    def callbacks(self) -> list[Any]:
        if self._store is None:
            return []
        return [ckptstore.StoreCheckpoint(self._store, **self._saving)]

    def fit(self, model: Any, x: Any, y: Any, *others: Any, **options: Any) -> dict[str, Any]:
        ours = self.callbacks()
        callbacks = [*ours, *others, _Killer(self._fits, self._die_in)]
        self._fits += 1
        history = model.fit(x, y, **{"batch_size": 8, "verbose": 0, "callbacks": callbacks, **options})
        self.runs += [callback.run for callback in ours]
        digest = hashlib.sha256()
        for variable in [*model.variables, *model.optimizer.variables]:
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
        return {
            "state": digest.hexdigest(),
            "history": {
                name: [float(value).hex() for value in found] for name, found in history.history.items()
            },
            "epochs": history.epoch,
            "evaluated": float(model.evaluate(self.x, self.y, verbose=0)).hex(),
        }


class _Killer(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, fit: int, die_in: list[int] | None) -> None:
        super().__init__()
        self._left = die_in[1] if die_in is not None and die_in[0] == fit else 0

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        pass

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def folds(program: Program) -> Fits:
    """Cross-validation by a loop, with early stopping, which puts the best weights back."""
    for fold in range(3):
        test = np.arange(ROWS) % 3 == fold
        stopping = keras.callbacks.EarlyStopping(
            "val_loss", patience=0, min_delta=0.05, restore_best_weights=True
        )
        yield program.fit(
            program.model(),
            program.x[~test],
            program.y[~test],
            *([stopping] if fold == 1 else []),
            validation_data=(program.x[test], program.y[test]),
            epochs=3,
        )


def epochs(program: Program) -> Fits:
    """One call of `fit` for each epoch, on one model, whose learning rate a callback changes."""
    model = program.model()
    for _ in range(3):
        falling = keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=10.0, factor=0.5)
        yield program.fit(model, program.x, program.y, falling, epochs=1)


def stages(program: Program) -> Fits:
    """Fine-tuning: a part of the model, then all of it with a lower rate; the epochs count on."""
    model = program.model()
    model.layers[0].trainable = False
    model.compile("adam", "binary_crossentropy")
    yield program.fit(model, program.x, program.y, epochs=2)
    model.layers[0].trainable = True
    model.compile(keras.optimizers.Adam(1e-4), "binary_crossentropy")
    yield program.fit(model, program.x, program.y, epochs=4, initial_epoch=2)
    yield program.fit(model, program.x, program.y, epochs=6, initial_epoch=4)


def continued(program: Program) -> Fits:
    """The same model trained on by a second call, with data from a generator that draws from numpy's generator."""

    def batches() -> Iterator[tuple[Any, Any]]:
        while True:
            rows = np.random.randint(0, ROWS, 8)
            yield program.x[rows], program.y[rows]

    model = program.model()
    for first in (0, 2, 4):
        options = {"initial_epoch": first, "epochs": first + 2, "batch_size": None, "steps_per_epoch": 6}
        yield program.fit(model, batches(), None, **options)


PROGRAMS: dict[str, Callable[[Program], Fits]] = {
    program.__name__: program for program in (folds, epochs, stages, continued)
}


def train(
    case: str,
    *,
    store: str | None = None,
    die_in: list[int] | None = None,
    saving: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a program, and return what each of its fits comes to, and the names of their runs."""
    program = Program(store, die_in, saving or {})
    fits = list(PROGRAMS[case](program))
    return {"fits": fits, "runs": program.runs}
