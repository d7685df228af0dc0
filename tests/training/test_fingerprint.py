"""A fingerprint is the same for the same model, in any process, and each kind of change is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import keras_zoo as zoo
from ckptstore.errors import ModelMismatchError
from ckptstore.keras.state import random_state
from ckptstore.training.fingerprint import devices, fingerprint
from ckptstore.training.fingerprint.config import described
from ckptstore.training.fingerprint.fingerprint import check, first_difference, take

# numpy 2 about Keras' own variables, on the way through Keras' own code.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

layers, regularizers = keras.layers, keras.regularizers
ZOO = [*zoo.WHOLE, "unconfigured"]
SUPPORT = Path(__file__).parent.parent / "support"

# What Keras draws from no generator, and counts from 0 in each process.
PRINT_ALL = """
import json, sys
import keras, keras_zoo as zoo
from ckptstore.training.fingerprint.fingerprint import take
keras.layers.Dense(1), keras.layers.Dropout(0.1)  # so that counts differ
models = {**zoo.WHOLE, "unconfigured": zoo.unconfigured}
with zoo.only_built():
    print(json.dumps({name: take(models[name]()) for name in sys.argv[1:]}))
"""


def built(name: str) -> Any:
    return {**zoo.WHOLE, "unconfigured": zoo.unconfigured}[name]()


def test_two_processes_give_the_same() -> None:
    """One has trained its models, the other has only built them."""
    names = ["dense", "several_ends", "nested", "recurrent", "subclassed", "unconfigured", "own_way"]
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": f"{SUPPORT}:{SUPPORT.parent.parent}"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRINT_ALL, *names],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    for name in names:
        assert theirs[name] == take(built(name)), name


@pytest.mark.parametrize("name", ZOO)
def test_a_model_made_again_is_the_same(name: str) -> None:
    """Under other counts, with other weights and seeds; and the fingerprint is plain JSON."""
    with zoo.only_built():
        first, second = take(built(name)), take(built(name))
    assert json.loads(json.dumps(first, allow_nan=False)) == first == second
    assert check(first, second) == []


@pytest.mark.parametrize("name", ["dense", "subclassed", "unconfigured"])
def test_taking_changes_nothing(name: str) -> None:
    model = built(name)
    before = zoo.state_of(model), random_state.capture()
    take(model)
    after = random_state.capture()
    assert zoo.state_of(model) == before[0]
    assert after.document == before[1].document
    assert all(np.array_equal(after.arrays[key], value) for key, value in before[1].arrays.items())
    unbuilt = keras.Sequential([layers.Dense(2)])
    take(unbuilt)
    assert not unbuilt.built


# --- architecture ------------------------------------------------------------------------------------


def sequential(*stack: Any) -> Any:
    return keras.Sequential([keras.Input((6,)), *stack])


def residual(first: str = "left", crossed: bool = False, end: str | None = None) -> Any:
    left, right = keras.Input((4,), name=first), keras.Input((4,), name="right")
    from_left, from_right = layers.Dense(4)(left), layers.Dense(4)(right)
    both = layers.Subtract()([from_right, from_left] if crossed else [from_left, from_right])
    return keras.Model([left, right], [from_left, from_right, layers.Dense(2, name=end)(both)])


def _step(value: Any) -> Any:
    return value


def _other_step(value: Any) -> Any:
    return value


@keras.saving.register_keras_serializable("ckptstore-tests")
class Options(layers.Layer):
    """Returns a configuration of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def call(self, inputs: Any) -> Any:
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.options}


class Plain(keras.Model):
    """A subclass without a configuration."""

    def __init__(self, *stack: Any) -> None:
        super().__init__()
        self.stack = list(stack)

    def call(self, inputs: Any) -> Any:
        for layer in self.stack:
            inputs = layer(inputs)
        return inputs


def plain(*stack: Any) -> Any:
    model = Plain(*stack)
    model(np.zeros((1, 6), "float32"))
    return model


Make = Callable[[], Any]
CHANGES: dict[str, tuple[Make, Make, str, str, str]] = {
    "option": (
        lambda: sequential(layers.Dense(4), layers.Dense(3), layers.Dropout(0.3)),
        lambda: sequential(layers.Dense(4), layers.Dense(3), layers.Dropout(0.5)),
        "layers[2] (Dropout).rate", "0.3", "0.5",
    ),
    "width": (
        lambda: sequential(layers.Dense(4)), lambda: sequential(layers.Dense(5)),
        "layers[0] (Dense).units", "4", "5",
    ),
    "activation": (
        lambda: sequential(layers.Dense(4, "relu")), lambda: sequential(layers.Dense(4, "tanh")),
        "layers[0] (Dense).activation", "relu", "tanh",
    ),
    "function": (
        lambda: sequential(layers.Dense(4, _step)), lambda: sequential(layers.Dense(4, _other_step)),
        "layers[0] (Dense).activation", "_step", "_other_step",
    ),
    "regularizer": (
        lambda: sequential(layers.Dense(4, kernel_regularizer="l2")),
        lambda: sequential(layers.Dense(4, kernel_regularizer=regularizers.L2(0.5))),
        "layers[0] (Dense).kernel_regularizer.l2", "0.01", "0.5",
    ),
    "regularizer that is new": (
        lambda: sequential(layers.Dense(4)), lambda: sequential(layers.Dense(4, kernel_regularizer="l2")),
        "layers[0] (Dense).kernel_regularizer", "None", "L2",
    ),
    "dtype policy": (
        lambda: sequential(layers.Dense(4)), lambda: sequential(layers.Dense(4, dtype="mixed_bfloat16")),
        "layers[0] (Dense).dtype.name", "float32", "mixed_bfloat16",
    ),
    "trainable": (
        lambda: sequential(layers.Dense(4)), lambda: sequential(layers.Dense(4, trainable=False)),
        "layers[0] (Dense).trainable", "true", "false",
    ),
    "class": (
        lambda: sequential(layers.Dense(4), layers.Dropout(0.1)),
        lambda: sequential(layers.Dense(4), layers.GaussianDropout(0.1)),
        "layers[1]", "Dropout", "GaussianDropout",
    ),
    "inserted": (
        lambda: sequential(layers.Dense(4), layers.Dense(3)),
        lambda: sequential(layers.Dense(4), layers.Dropout(0.1), layers.Dense(3)),
        "layers[1]", "nothing", "Dropout",
    ),
    "inserted, of the same class": (
        lambda: sequential(layers.Dense(4), layers.Dense(3)),
        lambda: sequential(layers.Dense(8), layers.Dense(4), layers.Dense(3)),
        "layers[0]", "nothing", "Dense",
    ),
    "appended": (
        lambda: sequential(layers.Dense(4)), lambda: sequential(layers.Dense(4), layers.Softmax()),
        "layers[1]", "nothing", "Softmax",
    ),
    "removed": (
        lambda: sequential(layers.Dense(4), layers.Dropout(0.1), layers.Dense(3)),
        lambda: sequential(layers.Dense(4), layers.Dense(3)),
        "layers[1]", "Dropout", "nothing",
    ),
    "changed, then appended": (
        lambda: sequential(layers.Dense(4)), lambda: sequential(layers.Dense(5), layers.Softmax()),
        "layers[0] (Dense).units", "4", "5",
    ),
    "nested": (
        lambda: sequential(keras.Sequential([layers.Dense(4), layers.Dropout(0.1)])),
        lambda: sequential(keras.Sequential([layers.Dense(4), layers.Dropout(0.2)])),
        "layers[0] (Sequential).layers[1] (Dropout).rate", "0.1", "0.2",
    ),
    "input": (
        lambda: keras.Sequential([keras.Input((6,)), layers.Dense(4)]),
        lambda: keras.Sequential([keras.Input((7,)), layers.Dense(4)]),
        "input.batch_shape[1]", "6", "7",
    ),
    "wiring": (
        residual, lambda: residual(crossed=True),
        "layers[4] (Subtract).inputs[0].args[0][0]", "layers[2]", "layers[3]",
    ),
    "chosen name": (residual, lambda: residual("up"), "layers[0] (InputLayer).name", "left", "up"),
    "name chosen now": (
        residual, lambda: residual(end="end"), "layers[5] (Dense).name", "nothing", "end",
    ),
    "kind of model": (
        lambda: sequential(layers.Dense(2)), residual, "model", "Sequential", "Functional",
    ),
    "own option": (
        lambda: sequential(Options(a=1)), lambda: sequential(Options(a=2)),
        f"layers[0] ({__name__}.Options).a", "1", "2",
    ),
    "own option that is new": (
        lambda: sequential(Options()), lambda: sequential(Options(a=0)),
        f"layers[0] ({__name__}.Options).a", "nothing", "0",
    ),
    "subclass": (lambda: zoo.Subclassed(4), lambda: zoo.Subclassed(5), "units", "4", "5"),
    "shape in a subclass": (
        lambda: plain(layers.Dense(4)), lambda: plain(layers.Dense(5)), "variables[0][1][1]", "4", "5",
    ),
    "variables of a subclass": (
        lambda: plain(layers.Dense(4)), lambda: plain(layers.Dense(4, use_bias=False)),
        "variables", "[[dense/kernel, [6, 4], float32], [dense/bias, [4], float32]]",
        "[[dense/kernel, [6, 4], float32]]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_named(name: str) -> None:
    before, after, where, in_checkpoint, in_model = CHANGES[name]
    saved, live = take(before()), take(after())
    with pytest.raises(ModelMismatchError) as caught:
        check(json.loads(json.dumps(saved)), live)
    found = caught.value
    assert (found.where, found.in_checkpoint, found.in_model) == (where, in_checkpoint, in_model)
    assert first_difference(saved["architecture"], saved["architecture"]) is None


SAME: dict[str, tuple[Make, Make]] = {
    "counts": (residual, residual),
    "initialisers": (
        lambda: sequential(layers.Dense(4)),
        lambda: sequential(
            layers.Dense(4, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(2.0))
        ),
    ),
    "seeds": (lambda: sequential(layers.Dropout(0.1, seed=1)), lambda: sequential(layers.Dropout(0.1, seed=2))),
    "wrapped": (
        lambda: keras.Sequential([keras.Input((3, 2)), layers.Bidirectional(layers.LSTM(2))]),
        lambda: keras.Sequential([keras.Input((3, 2)), layers.Bidirectional(layers.LSTM(2))]),
    ),
    "first batch": (
        lambda: zoo.trained(keras.Sequential([layers.Dense(3)])),
        lambda: built_on(5, keras.Sequential([layers.Dense(3)])),
    ),
    "lambda": (
        lambda: sequential(layers.Lambda(lambda value: value + 1)),
        lambda: sequential(layers.Lambda(lambda value: value + 1)),
    ),
}  # fmt: skip


def built_on(rows: int, model: Any) -> Any:
    model(np.zeros((rows, zoo.FEATURES), "float32"))
    return model


@pytest.mark.parametrize("name", SAME)
def test_changes_that_do_not_count(name: str) -> None:
    before, after = SAME[name]
    assert first_difference(take(before())["architecture"], take(after())["architecture"]) is None


def test_new_options_of_another_keras_are_no_change() -> None:
    saved, live = take(sequential(layers.Dense(4))), take(sequential(layers.Dense(4)))
    config = live["architecture"]["config"]["layers"][0]["config"]
    config["new_switch"] = None
    assert check(saved, live) == []
    config["new_number"] = 3
    with pytest.raises(ModelMismatchError, match="new_number"):
        check(saved, live)
    saved["versions"]["keras"] = "3.0"
    assert check(saved, live) == [f"keras 3.0 -> {keras.__version__}"]
    config["units"] = 5
    with pytest.raises(ModelMismatchError, match="units"):
        check(saved, live)


def test_a_configuration_that_only_one_side_can_tell_is_not_compared() -> None:
    model = zoo.Subclassed()
    saved = take(model)
    model.get_config = lambda: 1 / 0
    live = take(model)
    assert live["architecture"].keys() == {"class", "variables"}
    assert check(saved, live) == check(live, saved) == []


def test_configurations_of_any_shape_are_taken() -> None:
    odd = {
        "batch_shape": "ab",
        "layers": [1],
        "nan": float("nan"),
        "set": {"b", "a"},
        "object": object(),
        "map": {1: 2},
    }
    found = described(SimpleNamespace(get_config=lambda: odd))["config"]
    assert {key: found[key] for key in odd} == odd | {
        "nan": "NaN", "set": ["a", "b"], "object": "object", "map": {"1": 2}
    }  # fmt: skip


def test_long_values_are_compared_by_digest() -> None:
    words = [f"word{number}" for number in range(5000)]
    prints = [take(sequential(Options(words=(*words, last)))) for last in ("x", "x", "y")]
    assert prints[0] == prints[1] and len(json.dumps(prints[0])) < 5000
    with pytest.raises(ModelMismatchError, match=r"words is 5001 values, sha256:\w+ in the checkpoint"):
        check(prints[0], prints[2])


# --- optimizer, compilation, versions ----------------------------------------------------------------


def compiled(optimizer: Any = "adam", loss: Any = "mse", **how: Any) -> dict[str, Any]:
    model = sequential(layers.Dense(2))
    model.compile(optimizer, loss, **{"jit_compile": False, **how})
    return take(model)


def _loss(target: Any, guess: Any) -> Any:
    return keras.ops.mean(target - guess)


class NoConfig(keras.losses.Loss):
    """A loss that cannot return its configuration."""

    def call(self, target: Any, guess: Any) -> Any:
        return _loss(target, guess)

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError


optimizers = keras.optimizers
DRIFTS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], dict[str, Any]], list[str]]] = {
    "learning rate": (lambda: compiled(optimizers.Adam(0.1)), lambda: compiled(optimizers.Adam(0.2)), []),
    "optimizer": (
        lambda: compiled(optimizers.Adam()), lambda: compiled(optimizers.Adam(beta_1=0.8)),
        ["optimizer.beta_1 0.9 -> 0.8"],
    ),
    "schedule": (
        lambda: compiled(optimizers.Adam(optimizers.schedules.CosineDecay(0.1, 20))),
        lambda: compiled(optimizers.Adam(optimizers.schedules.CosineDecay(0.1, 30))),
        ["optimizer.learning_rate.decay_steps 20 -> 30"],
    ),
    "new schedule": (
        lambda: compiled(optimizers.Adam(0.1)),
        lambda: compiled(optimizers.Adam(optimizers.schedules.CosineDecay(0.1, 20))),
        ["optimizer.learning_rate a number -> CosineDecay"],
    ),
    "inner": (
        lambda: compiled(optimizers.LossScaleOptimizer(optimizers.Adam())),
        lambda: compiled(optimizers.LossScaleOptimizer(optimizers.Adam(epsilon=0.5))),
        ["optimizer.inner_optimizer.epsilon 1e-07 -> 0.5"],
    ),
    "loss": (compiled, lambda: compiled(loss="mae"), ["loss mse -> mae"]),
    "own loss": (compiled, lambda: compiled(loss=_loss), ["loss mse -> _loss"]),
    "loss without a configuration": (compiled, lambda: compiled(loss=NoConfig()), [f"loss mse -> {__name__}.NoConfig"]),
    "metrics": (
        lambda: compiled(metrics=["mae"]), lambda: compiled(metrics=["mae", keras.metrics.AUC()]),
        ["metrics [mae] -> [mae, AUC]"],
    ),
    "weights": (
        compiled, lambda: compiled(loss_weights=[0.5]), ["loss_weights nothing -> [0.5]"],
    ),
    "steps": (
        compiled, lambda: compiled(steps_per_execution=4), ["steps_per_execution 1 -> 4"],
    ),
    "compiler": (
        lambda: compiled(run_eagerly=False), lambda: compiled(run_eagerly=True), ["run_eagerly false -> true"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRIFTS)
def test_drift_is_one_line(name: str) -> None:
    before, after, lines = DRIFTS[name]
    saved = before()
    assert check(json.loads(json.dumps(saved)), after()) == lines
    assert check(saved, before()) == []


@pytest.mark.parametrize("name", zoo.OPTIMIZERS)
def test_every_optimizer_is_recognized(name: str) -> None:
    saved = compiled(zoo.OPTIMIZERS[name]())
    assert check(saved, compiled(zoo.OPTIMIZERS[name]())) == []
    if saved["optimizer"][0]["class"] != "SGD":
        with pytest.raises(ModelMismatchError) as caught:
            check(saved, compiled("sgd"))
        assert caught.value.where == "optimizer" and caught.value.in_model == "SGD"


def test_an_optimizer_inside_another_is_part_of_the_kind() -> None:
    saved = compiled(optimizers.LossScaleOptimizer(optimizers.SGD()))
    with pytest.raises(ModelMismatchError, match="LossScaleOptimizer of SGD in the checkpoint"):
        check(saved, compiled(optimizers.LossScaleOptimizer(optimizers.Adam())))


def test_versions_and_backend() -> None:
    saved, live = compiled(), compiled()
    assert live["backend"] == zoo.BACKEND
    assert live["versions"].keys() == {
        "python", "machine", "keras", "numpy", zoo.BACKEND, "ckptstore", "device"
    }  # fmt: skip
    assert "unknown" not in live["versions"].values()
    saved["versions"] |= {"keras": "3.14.0", "device": "gpu:NVIDIA H100"}
    del saved["versions"]["ckptstore"]
    saved["backend"] = "another"
    assert check(saved, live) == [
        f"keras 3.14.0 -> {keras.__version__}",
        f"ckptstore nothing -> {live['versions']['ckptstore']}",
        f"device gpu:NVIDIA H100 -> {live['versions']['device']}",
        f"backend another -> {zoo.BACKEND}",
    ]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="others do not place layers by hand")
def test_layers_on_other_devices_are_one_line() -> None:
    def model(second: str) -> Any:
        first = keras.layers.Dense(2, name="first")
        with keras.device("cpu"):
            first.build((None, 3))
        with keras.device(second):
            last = keras.layers.Dense(2, name="last")
            last.build((None, 2))
        made = keras.Model()
        made.first, made.last = first, last
        return made

    # The one device beside the CPU that every machine has.
    alone, split = (devices.describe(model(second)) for second in ("cpu", "meta"))
    assert (alone["number"], split["number"]) == ("1", "2")
    assert [place for _, place in split["split"]] == ["cpu", "cpu", "meta", "meta"]
    (line,) = devices.changes({"devices": alone}, {"devices": split})
    assert line.startswith("devices 1 -> 2 (")


def test_a_checkpoint_without_a_fingerprint_has_no_drift() -> None:
    assert check(None, compiled()) == []


@pytest.mark.parametrize("saved", [{}, {"architecture": 3, "optimizer": None, "versions": []}])
def test_a_fingerprint_of_another_shape_is_compared_all_the_same(saved: dict[str, Any]) -> None:
    with pytest.raises(ModelMismatchError):
        check(saved, compiled())


def test_a_model_that_is_not_compiled() -> None:
    found = take(sequential(layers.Dense(2)))
    assert found["optimizer"] == [] and found["compile"] == {}
    assert fingerprint.first_difference(found["architecture"], compiled()["architecture"]) is None
