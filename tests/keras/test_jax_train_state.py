"""Tests that the state of Keras' train step on JAX reaches the variables as if Keras had written it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.keras.private import synced_train_state

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="is JAX's"),
    # Warnings from Keras' own code.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


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
    """Compares with a fit in which Keras does it; never accesses its model before."""

    def __init__(self, *, ours: bool) -> None:
        super().__init__()
        self.ours = ours
        self.seen: list[list[np.ndarray]] = []
        self.synced: list[bool] = []
        self.in_block = False

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.inner = model

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.ours:
            self.seen.append(_values(self.model))
            return
        self.in_block = True
        with synced_train_state(self.inner):
            self.synced.append(self.inner._jax_state_synced)
            self.seen.append(_values(self.model))
        self.in_block = False


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
    """Changes the dtype of the step's state."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        state = self.inner._jax_state
        state["trainable_variables"] = [value.astype("float16") for value in state["trainable_variables"]]
        super().on_train_batch_end(batch, logs)


@pytest.mark.parametrize(("look", "by_keras"), [(_Look, 0), (_Narrow, 6)])
def test_values_that_do_not_match_are_left_to_keras(
    monkeypatch: pytest.MonkeyPatch, look: type[_Look], by_keras: int
) -> None:
    found = look(ours=True)
    calls: list[bool] = []
    sync = keras.Model.jax_state_sync

    def counted(model: keras.Model) -> None:
        if found.in_block and not model._jax_state_synced:
            calls.append(True)
        sync(model)

    monkeypatch.setattr(keras.Model, "jax_state_sync", counted)
    _fit(_model(), found)
    assert len(calls) == by_keras
    assert found.synced == [True] * 6
    assert {value.dtype.name for value in found.seen[-1]} == {"float32", "uint32", "int32"}


class _Leave(_Look):
    """Records the state after the block, at the second batch."""

    def __init__(self, *, keep: bool, error: type[Exception] | None = None) -> None:
        super().__init__(ours=True)
        self.keep, self.error = keep, error
        self.left: list[bool] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch != 1:
            return
        with contextlib.suppress(ZeroDivisionError), synced_train_state(self.inner, keep=self.keep):
            assert self.inner._jax_state_synced
            if self.error is not None:
                raise self.error
        self.left.append(self.inner._jax_state_synced)
        assert [weight._value is None for weight in self.inner.weights] == [not self.left[-1]] * len(
            self.inner.weights
        )


@pytest.mark.parametrize(
    ("keep", "error", "stays"), [(False, None, False), (True, None, True), (False, ZeroDivisionError, True)]
)
def test_the_next_step_begins_with_what_keras_holds_unless_the_fit_ends(
    keep: bool, error: type[Exception] | None, stays: bool
) -> None:
    plain = _model()
    _fit(plain, _Look(ours=False))
    looked, look = _model(), _Leave(keep=keep, error=error)
    _fit(looked, look)
    assert look.left == [stays] * 2
    for expected, value in zip(_values(plain), _values(looked), strict=True):
        np.testing.assert_array_equal(value, expected)


class _Behind(keras.callbacks.Callback):
    """Assigns to a variable directly, which Keras ignores while nobody accesses the model."""

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.rate = model.optimizer.learning_rate

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            self.rate.assign(0.5)
        assert batch == 0 or float(self.rate.value) == 0.5


def test_a_save_does_not_affect_what_others_do_to_the_model(tmp_path: Path) -> None:
    found = []
    for ours in (False, True):
        model = _model()
        callbacks = [_Behind()]
        if ours:
            saving = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", save_freq=1, background=False)
            callbacks = [saving, _Behind()]
        x = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
        model.fit(x, x.sum(axis=1, keepdims=True), batch_size=8, epochs=2, verbose=0, callbacks=callbacks)
        found.append(_values(model))
    for expected, value in zip(*found, strict=True):
        np.testing.assert_array_equal(value, expected)
