"""Tests that a save finds the variables and configuration that Keras and a new capture would find."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import unusual_models
from ckptstore import CheckpointStore, StoreCheckpoint
from ckptstore.errors import ModelNotReadyError
from ckptstore.keras import private
from ckptstore.keras.model import snapshots as keras_snapshots
from ckptstore.keras.private import optimizers_of, raw_values, variables_by_kind
from ckptstore.keras.state import optimizers
from ckptstore.store.model_adapter import adapter_for

# Warnings from Keras' own code.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


class _NamesOnlyOthers(keras.Model):  # type: ignore[misc]
    """Overrides the list of its trained variables only: one layer is in neither list."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = keras.layers.Dense(2), keras.layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        return self.other(self.one(inputs))

    @property
    def trainable_variables(self) -> list[Any]:
        return self.other.trainable_variables


class _OwnAnswer(_NamesOnlyOthers):
    """Trains only one of its layers, whatever the flags say, and lists the other one as not trained."""

    @property
    def non_trainable_variables(self) -> list[Any]:
        return self.one.variables


def _plain() -> keras.Model:
    inner = keras.Sequential([keras.layers.Dense(2), keras.layers.BatchNormalization()])
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    x = keras.ops.ones((2, 4))
    model.fit(x, keras.ops.ones((2, 1)), verbose=0)
    return model


def _frozen_layer() -> keras.Model:
    model = _plain()
    model.layers[0].trainable = False
    return model


def _frozen() -> keras.Model:
    model = _plain()
    model.trainable = False
    return model


def _frozen_outside() -> keras.Model:
    model = _frozen()
    model.layers[0].trainable = True
    return model


def _own_answer() -> keras.Model:
    model = _OwnAnswer()
    model(keras.ops.ones((2, 4)))
    return model


@pytest.mark.parametrize("make", [_plain, _frozen_layer, _frozen, _frozen_outside, _own_answer])
def test_variables_are_those_of_keras_in_its_order(make: Any) -> None:
    model = make()
    found = variables_by_kind(model)
    expected = model.trainable_variables, model.non_trainable_variables, model.metrics_variables
    assert [list(map(id, ones)) for ones in found] == [list(map(id, ones)) for ones in expected]
    assert found[1]


def test_values_of_variables_are_read_and_others_returned_unchanged() -> None:
    variable = keras.Variable([1.0, 2.0])
    found = raw_values([variable, 5])
    assert found[0] is variable.value
    assert found[1] == 5


def test_a_variable_without_a_value_yet_is_initialized() -> None:
    with keras.StatelessScope():
        later = keras.Variable("ones", shape=(2,))
        assert later._value is None
        assert keras.ops.convert_to_numpy(raw_values([later])[0]).tolist() == [1.0, 1.0]


def test_trained_variables_follow_freezing_and_unfreezing() -> None:
    model = _plain()
    places = {id(variable): place for place, variable in enumerate(model.variables)}
    every = [places[id(variable)] for variable in model.trainable_variables]
    assert optimizers.trained_indices(model) == [every]

    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    assert optimizers.trained_indices(model) == [[]]
    model.optimizer.build(model.trainable_variables)
    assert optimizers.trained_indices(model) == [every[-2:]]
    model.layers[0].trainable = True
    assert optimizers.trained_indices(model) == [every[-2:]]


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="on JAX a step trains with one optimizer")
def test_two_optimizers_train_their_own_variables() -> None:
    model = unusual_models.gan()
    model.fit(np.ones((8, unusual_models.FEATURES)), np.ones(8), verbose=0)
    found = optimizers.trained_indices(model)
    variables = model.variables
    for optimizer, places in zip(optimizers_of(model), found, strict=True):
        assert [id(variables[place]) for place in places] == [
            id(variable) for variable in optimizer._trainable_variables
        ]
    _, generator, critic = map(set, found)
    assert {id(variables[place]) for place in generator | critic} == set(map(id, model.trainable_variables))
    assert not generator & critic


def test_a_configuration_that_changes_with_the_trained_variables_is_saved_again(tmp_path: Path) -> None:
    # A model whose variables keep their order when others of them are trained.
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    snapshots = adapter_for(model).snapshots()

    def trainable_in_payload() -> bool:
        with CheckpointStore(tmp_path) as store:
            snapshot, request = store.prepare(model, epoch=0, snapshots=snapshots)
            saved = store.commit(snapshot, request)
            with zipfile.ZipFile(saved.path) as archive:
                config = json.loads(archive.read("config.json"))
        (dense,) = (layer for layer in config["config"]["layers"] if layer["class_name"] == "Dense")
        return bool(dense["config"]["trainable"])

    assert trainable_in_payload()
    model.layers[-1].trainable = False
    assert not trainable_in_payload()
    model.layers[-1].trainable = True
    assert trainable_in_payload()


def config_of(snapshot: Any) -> Any:
    return json.loads(snapshot.documents["config.json"])["config"]


def test_a_changed_configuration_is_saved_at_the_epochs_end_without_another_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Even if epochs are short.
    monkeypatch.setattr(keras_snapshots, "_DOCUMENTS_SHARE", 1e9)
    walks: list[Any] = []
    walk = private.capture_model
    monkeypatch.setattr(private, "capture_model", lambda *a, **k: walks.append(a) or walk(*a, **k))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    snapshots = adapter_for(model).snapshots()

    def rate(*, in_epoch: bool) -> float:
        layers = config_of(snapshots.take(model, format="keras", in_epoch=in_epoch))["layers"]
        return float(layers[1]["config"]["rate"])

    assert rate(in_epoch=True) == 0.5
    model.layers[0].rate = 0.25
    # A training step never waits for a configuration.
    assert rate(in_epoch=True) == 0.5
    assert rate(in_epoch=False) == rate(in_epoch=True) == 0.25
    assert len(walks) == 1
    # An earlier configuration does not describe new variables.
    model.pop()
    model.add(keras.layers.Dense(2))
    model.build((None, 4))
    units = config_of(snapshots.take(model, format="keras", in_epoch=True))["layers"][-1]["config"]["units"]
    assert units == 2
    assert len(walks) == 2


def test_a_configuration_that_can_no_longer_be_made_is_reported_at_the_epochs_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keras_snapshots, "_DOCUMENTS_SHARE", 1e9)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    snapshots = adapter_for(model).snapshots()
    snapshots.take(model, format="keras")

    def refuses() -> Any:
        raise NotImplementedError

    model.layers[0].get_config = refuses
    assert snapshots.take(model, format="keras", in_epoch=True).documents
    with pytest.raises(ModelNotReadyError, match="serialisable"):
        snapshots.take(model, format="keras")


@keras.saving.register_keras_serializable("tests")
class _LearnsWords(keras.layers.Layer):  # type: ignore[misc]
    """Saves a file once it has words."""

    words = ""

    def call(self, inputs: Any) -> Any:
        return inputs

    def save_assets(self, path: str) -> None:
        if self.words:
            Path(path, "words.txt").write_text(self.words, encoding="utf-8")


@pytest.mark.parametrize("in_epoch", [False, True])
def test_files_of_layers_are_current(in_epoch: bool) -> None:
    """Otherwise a resume would continue with the words of some batches before."""
    model = keras.Sequential([keras.Input((4,)), _LearnsWords(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    snapshots = adapter_for(model).snapshots()
    assert len(snapshots.take(model, format="keras").documents) == 2
    for words in ("a few", "a few more"):
        model.layers[0].words = words
        documents = snapshots.take(model, format="keras", in_epoch=in_epoch).documents
        assert words.encode() in documents.values()


def test_a_save_within_an_epoch_makes_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_snapshots, "_DOCUMENTS_SHARE", 1e9)
    made: list[Any] = []
    make = private.config_documents
    monkeypatch.setattr(private, "config_documents", lambda model: made.append(model) or make(model))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((12, 4), np.float32)
    callback = StoreCheckpoint(tmp_path, monitor="loss", save_freq=1, background=False)
    model.fit(x, x[:, :1], batch_size=2, epochs=2, verbose=0, callbacks=[callback])
    with CheckpointStore(tmp_path) as store:
        assert len(store.checkpoints()) > 12
    # Before training and at its end; epochs that do not end with a save have none.
    assert len(made) == 2


def test_a_variable_in_no_list_of_the_model_is_found_at_each_save() -> None:
    model = _NamesOnlyOthers()
    model(keras.ops.ones((2, 4)))
    model.compile("sgd", "mse")
    snapshots = adapter_for(model).snapshots()
    assert len(snapshots.take(model, format="weights").variables) > 4

    other = keras.layers.Dense(2)
    other.build((2, 4))
    other.kernel.assign(keras.ops.full((4, 2), 7.0))
    model._tracker.unlock()
    model.one = other
    model._tracker.lock()

    taken = snapshots.take(model, format="weights")
    assert any((array == 7.0).all() for array in taken.values() if array.shape == (4, 2))


def test_flags_of_layers_are_saved_if_the_whole_model_is_frozen() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.trainable = False
    snapshots = adapter_for(model).snapshots()

    def flags() -> list[bool]:
        config = json.loads(snapshots.take(model, format="keras").documents["config.json"])
        return [
            layer["config"]["trainable"]
            for layer in config["config"]["layers"]
            if layer["class_name"] == "Dense"
        ]

    assert flags() == [False, False]
    model.layers[0].trainable = True
    assert flags() == [True, False]
