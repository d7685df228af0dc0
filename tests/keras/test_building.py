"""Optimizers are found wherever a model holds them, and its layers are built again from a record."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ckptstore.keras.private import all_layers_built, build_from_record, build_record, optimizers_of


class Parts(keras.Model):  # type: ignore[misc]
    """Layers in attributes, lists and dicts; some make layers when they are built, some have several inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
        self.inner = {"recurrent": [keras.layers.Bidirectional(keras.layers.LSTM(2))]}
        self.attention = keras.layers.MultiHeadAttention(2, 2)

    def use(self) -> None:
        sequence = np.ones((4, 3, 2), "float32")
        self.head(np.ones((4, 5), "float32"))
        self.inner["recurrent"][0](sequence)
        self.attention(sequence, sequence)


def shapes(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(variable.name, tuple(variable.shape)) for variable in model.weights]


def test_layers_of_a_model_without_call_are_built_from_a_record() -> None:
    model, fresh = Parts(), Parts()
    assert build_record(model) == ""
    model.use()
    build_from_record(fresh, build_record(model))
    assert all_layers_built(fresh)
    assert shapes(fresh) == shapes(model)
    before = [id(variable) for variable in fresh.weights]
    build_from_record(fresh, build_record(model))  # nothing is built twice
    assert [id(variable) for variable in fresh.weights] == before


def test_a_model_that_is_built_when_it_is_made_needs_no_record() -> None:
    inputs = keras.Input((3,))
    assert build_record(keras.Model(inputs, keras.layers.Dense(2)(inputs))) == ""


def test_a_record_of_another_model_changes_nothing() -> None:
    model, other = Parts(), keras.Sequential([keras.layers.Dense(2)])
    model.use()
    build_from_record(other, '[[[7, 1], {"input_shape": [4, 5]}], [[0], {"input_shape": "none"}]]')
    assert not other.weights


def test_optimizers_are_found_in_containers_and_in_models_inside() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    inside = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    inside.compile(keras.optimizers.SGD(), "mse")
    outer = Parts()
    outer.compile(keras.optimizers.Adam(), "mse")
    first, second, third = (keras.optimizers.RMSprop() for _ in range(3))
    outer.turns = {"one": [first, (second,)], "model": inside}
    outer._hidden = [third, first]
    outer.replay = [[keras.optimizers.SGD()] for _ in range(2000)]  # data, which no save may go through
    found = optimizers_of(outer, keras.optimizers.Adam())
    assert set(map(id, found)) >= {
        id(outer.optimizer),
        id(first),
        id(second),
        id(third),
        id(inside.optimizer),
    }
    assert len(found) == 6
    assert found[0] is outer.optimizer
    assert found[-1] is inside.optimizer
    assert optimizers_of(model) == []
