"""What Keras' train step on JAX has in hand is put into the variables, as Keras itself would do it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from ckptstore.keras_private import sync_train_state

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="is JAX's")


def _model(**options: Any) -> keras.Model:
    keras.utils.set_random_seed(3)
    layers = [
        keras.Input((4,)),
        keras.layers.Dense(3),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
    ]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"], **options)
    return model


def _values(model: keras.Model) -> list[np.ndarray]:
    held = (*model.variables, *model.metrics_variables, *model.optimizer.variables)
    return [np.array(variable.value) for variable in held]


class _Look(keras.callbacks.Callback):
    """Compares with a fit in which Keras does it; never asks for its model before."""

    def __init__(self, *, ours: bool) -> None:
        super().__init__()
        self.ours = ours
        self.seen: list[list[np.ndarray]] = []
        self.synced: list[bool] = []

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.inner = model

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.ours:
            sync_train_state(self)
            self.synced.append(self.inner._jax_state_synced)
        self.seen.append(_values(self.model))


def _fit(model: keras.Model, look: _Look) -> None:
    x = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    model.fit(x, x.sum(axis=1, keepdims=True), batch_size=8, epochs=2, verbose=0, callbacks=[look])


@pytest.mark.parametrize("eagerly", [False, True])
def test_the_variables_are_what_keras_would_have_made_them(eagerly: bool) -> None:
    looks = _Look(ours=False), _Look(ours=True)
    for look in looks:
        _fit(_model(run_eagerly=eagerly), look)
    assert len(looks[0].seen) == 6 and looks[1].synced == [True] * 6
    for theirs, ours in zip(looks[0].seen, looks[1].seen, strict=True):
        for expected, value in zip(theirs, ours, strict=True):
            np.testing.assert_array_equal(value, expected)
    assert not np.array_equal(looks[1].seen[0][0], looks[1].seen[1][0])


class _Narrow(_Look):
    """Makes the step's state one of another dtype."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        state = self.inner._jax_state
        state["trainable_variables"] = [value.astype("float16") for value in state["trainable_variables"]]
        super().on_train_batch_end(batch, logs)


def test_what_does_not_fit_is_left_to_keras() -> None:
    look = _Narrow(ours=True)
    _fit(_model(), look)
    assert look.synced == [False] * 6
    assert {value.dtype.name for value in look.seen[-1]} == {"float32", "uint32", "int32"}
