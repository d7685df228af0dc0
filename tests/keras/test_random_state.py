"""Tests that global random generators are restored bit for bit, and a resumed loop draws the same numbers."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.keras.private import reset_global_seed
from ckptstore.keras.state import random_state
from ckptstore.keras.state.arrays import host_array

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    """Restore the generators for the other tests."""
    before = random_state.capture()
    yield
    random_state.restore(before)


def _draws() -> list[Any]:
    drawn: list[Any] = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal()]
    drawn.append(np.array(keras.ops.convert_to_numpy(keras.random.normal((3,)))).tobytes())
    if keras.backend.backend() == "torch":
        import torch

        drawn.append(torch.rand(2).numpy().tobytes())
    return drawn


@pytest.mark.parametrize("odd", [False, True], ids=["even", "with half a pair of normals drawn"])
def test_what_is_drawn_next_is_the_same(odd: bool) -> None:
    keras.utils.set_random_seed(3)
    _draws()
    if odd:
        random.gauss(0, 1)
        np.random.standard_normal()
    saved = random_state.capture()
    first = [_draws(), _draws()]
    assert random_state.restore(saved) == []
    assert [_draws(), _draws()] == first
    assert first[0] != first[1]


def test_reading_the_states_draws_nothing() -> None:
    _draws()
    first, second = random_state.capture(), random_state.capture()
    assert first.document == second.document
    assert set(first.arrays) == set(second.arrays) >= {"python", "keras"}
    assert all(np.array_equal(array, second.arrays[name]) for name, array in first.arrays.items())


def test_the_states_are_json_and_arrays() -> None:
    saved = random_state.capture()
    again = random_state.GlobalGenerators(
        json.loads(json.dumps(saved.document, allow_nan=False)),
        {
            name: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
            for name, array in saved.arrays.items()
        },
    )
    first = _draws()
    random_state.restore(again)
    assert _draws() == first


def test_a_bit_generator_of_another_kind_is_restored() -> None:
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(5))
        saved = random_state.capture()
        first = np.random.rand(3).tolist()
        random_state.restore(saved)
        assert np.random.rand(3).tolist() == first
        assert json.loads(json.dumps(saved.document)) == saved.document
    finally:
        np.random.set_bit_generator(before)


def test_generators_that_cannot_be_restored_are_named() -> None:
    saved = random_state.capture()
    saved.arrays["keras"] = np.zeros(5, "int8")
    saved.arrays["torch-cuda/99"] = np.zeros(5, "uint8")
    left = random_state.restore(saved)
    assert left == (["keras", "torch-cuda/99"] if "torch" in saved.arrays else ["keras"])


def _model() -> keras.Model:
    keras.utils.set_random_seed(11)
    reset_global_seed()  # not every Keras does so itself
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse")
    return model


def _train(model: keras.Model, epochs: range, store: ckptstore.CheckpointStore | None = None) -> list[float]:
    """Train in a loop written by hand that shuffles with numpy and augments with Python and Keras."""
    losses = []
    x = np.arange(48, dtype="float32").reshape(12, 4) / 48
    for epoch in epochs:
        order = np.random.permutation(len(x))
        noise = keras.ops.convert_to_numpy(keras.random.normal(x.shape)) * random.random()
        for start in range(0, len(x), 4):
            batch = (x + noise)[order[start : start + 4]]
            losses.append(float(model.train_on_batch(batch, batch[:, :1])))
        if store is not None:
            store.save(model, epoch=epoch, metrics={"loss": losses[-1]})
    return losses


def _bits(model: keras.Model) -> list[bytes]:
    return [host_array(variable).tobytes() for variable in (*model.variables, *model.optimizer.variables)]


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_loop_continues_bit_for_bit(tmp_path: Path, stop: int) -> None:
    whole = _model()
    expected = _train(whole, range(5))
    with ckptstore.CheckpointStore(tmp_path) as store:
        first = _model()
        assert store.resume(first, "a") is None
        losses = _train(first, range(stop))
        store.save(first, epoch=stop - 1, run="a")
        _train(first, range(stop, 5))  # lost in the crash
    random.seed(99)
    np.random.seed(99)
    with ckptstore.CheckpointStore(tmp_path) as store:
        again = _model()
        again.optimizer.build(again.trainable_variables)
        resumed = store.resume(again, "a")
        assert resumed.epoch == stop - 1
        losses += _train(again, range(resumed.epoch + 1, 5))
    assert losses == expected
    assert _bits(again) == _bits(whole)


def test_restoring_a_checkpoint_leaves_the_generators_alone(tmp_path: Path) -> None:
    model = _model()
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(model, epoch=0)
        before = random_state.capture()
        expected = _draws()
        random_state.restore(before)
        store.restore("latest", model)
        store.restore("resume-point", model)
        assert _draws() == expected


def test_a_global_seed_that_did_not_exist_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn from Python's generator at its first use, and must be again after the restore."""
    from keras.src.backend.common import global_state

    monkeypatch.setattr(global_state.GLOBAL_STATE_TRACKER, "global_seed_generator", None, raising=False)
    saved = random_state.capture()
    assert "keras" not in saved.arrays
    first = _draws()
    random_state.restore(saved)
    assert _draws() == first


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the generator is TensorFlow's")
@pytest.mark.parametrize("remade", [False, True], ids=["in place", "after another kind took its place"])
def test_the_global_generator_of_tensorflow(monkeypatch: pytest.MonkeyPatch, remade: bool) -> None:
    import tensorflow as tf
    from tensorflow.python.ops import stateful_random_ops

    monkeypatch.setattr(stateful_random_ops, "global_generator", None)
    assert "tensorflow" not in random_state.capture().arrays
    assert stateful_random_ops.global_generator is None  # reading creates none
    tf.random.set_global_generator(tf.random.Generator.from_seed(5, alg="philox"))
    draw = tf.function(lambda: tf.random.get_global_generator().normal((3,)))
    draw()
    saved = random_state.capture()
    first = [draw().numpy().tobytes() for _ in range(2)]
    if remade:
        tf.random.set_global_generator(tf.random.Generator.from_seed(5, alg="threefry"))
    assert random_state.restore(saved) == []
    if remade:
        draw = tf.function(lambda: tf.random.get_global_generator().normal((3,)))
    assert [draw().numpy().tobytes() for _ in range(2)] == first
    assert first[0] != first[1]


def test_a_generator_of_tensorflow_is_named_without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = random_state.capture()
    saved.arrays["tensorflow"] = np.zeros(3, np.int64)
    saved.document["tensorflow"] = {"algorithm": 1}
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    assert random_state.restore(saved) == ["tensorflow"]
    assert "tensorflow" not in sys.modules
