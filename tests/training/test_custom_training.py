"""Models that are trained by a step of their own, built late or hard to describe: all are saved, and resume exactly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.errors import InvalidArgumentError, ModelNotReadyError, UnserialisableModelError
from custom_training import (
    BACKEND,
    CODE,
    FEATURES,
    KINDS,
    Distiller,
    Gan,
    Turns,
    adam,
    compiled,
    data,
    optimizers,
    perceptron,
    unconfigurable,
    variational,
)

pytestmark = [
    # What Keras' own code does on torch, and says of a model with a lambda.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning"),
    pytest.mark.usefixtures("forked_writers"),
]
AS_WEIGHTS = "ignore:model .* is not serialisable as a whole:UserWarning"
on_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="elsewhere Keras asks for a model that is built before its first batch"
)
MONITORED = {"gan": "g_loss", "cycle_gan": "there_cycle"}
# Much like the others: compiling them would take most of the time of this file.
SLOW = dict.fromkeys(("contrastive", "distiller", "momentum"), pytest.mark.slow)


class EndOfFitError(Exception):
    """Ends a fit."""


class End(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends a fit after a batch of its second epoch."""

    epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == (1, 1):
            raise EndOfFitError


@pytest.fixture(autouse=True, scope="module")
def sums_in_order() -> Iterator[None]:
    """Keep TensorFlow from joining sums: the last bit of two added losses depends on its threads then."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    yield
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True})


def fit(model: Any, *callbacks: Any, **options: Any) -> Any:
    given = {**data(12), "batch_size": 4, "epochs": 2, "verbose": 0, **options}
    return model.fit(**given, callbacks=list(callbacks))


def saving(path: Path, **options: Any) -> ckptstore.StoreCheckpoint:
    return ckptstore.StoreCheckpoint(path, **{"monitor": "loss", "background": False, **options})


def made(make: Any) -> Any:
    keras.utils.set_random_seed(1)
    return make()


def state(model: Any, history: Any) -> Any:
    slots = [variable for optimizer in optimizers(model) for variable in optimizer.variables]
    variables = [*model.variables, *model.metrics_variables, *slots]
    values = [np.array(keras.ops.convert_to_numpy(variable)).tobytes() for variable in variables]
    return values, history.history, history.epoch


def assert_exact(make: Any, path: Path, monitor: str = "loss", **options: Any) -> str:
    """Check that a fit that is ended in its second epoch ends as one that was not; return the payloads' format."""
    whole = made(make)
    expected = state(whole, fit(whole, **options))
    with pytest.raises(EndOfFitError):
        fit(made(make), saving(path, monitor=monitor, mode="min"), End(), **options)
    again, callback = made(make), saving(path, monitor=monitor, mode="min")
    history = fit(again, callback, **options)
    assert callback.resumed_from is not None
    assert (callback.resumed_from.epoch, callback.resumed_from.batch) == (1, 1)
    assert state(again, history) == expected
    return str(callback.resumed_from.format)


# --- exact -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(AS_WEIGHTS)
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW.get(kind, ())) for kind in KINDS])
def test_each_kind_resumes_exactly(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        # Keras says so when it loads nothing into an optimizer that it finds unbuilt.
        warnings.filterwarnings("error", message="Skipping variable loading")
        assert_exact(KINDS[kind], tmp_path, MONITORED.get(kind, "loss"))


class Judged(Distiller):
    """Has compiled metrics, which its step updates, and a layer that only its validation uses."""

    def __init__(self, **named: Any) -> None:
        super().__init__(perceptron(None, 1), perceptron(None, 1), **named)
        self.judge = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        raise NotImplementedError

    def turns(self) -> Any:
        return [("loss", self.loss_of, self.optimizer, self.student)]

    def loss_of(self, x: Any) -> Any:
        loss = super().loss_of(x)
        self.compute_metrics(x, self.teacher(x), self.student(x))
        return loss

    def train_step(self, *arguments: Any) -> Any:
        return {**super().train_step(*arguments), **self.get_metrics_result()}

    def test_step(self, arguments: Any) -> Any:
        return {"judged": keras.ops.mean(self.judge(self.student(arguments[0])))}


@on_tensorflow
@pytest.mark.parametrize("eager", [False, True])
def test_metrics_and_a_layer_that_the_first_batch_does_not_build(eager: bool, tmp_path: Path) -> None:
    def make() -> Any:
        return compiled(Judged(), metrics=["mae"], run_eagerly=eager)

    given = data(4)
    assert_exact(make, tmp_path, validation_data=(given["x"], given["y"]))


class Secretive(keras.layers.Layer):  # type: ignore[misc]
    """Makes its variable when it is called, and has no configuration of how it was built."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = None

    def get_build_config(self) -> None:
        """Return nothing."""

    def __call__(self, x: Any) -> Any:
        if self.scale is None:
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        return super().__call__(x)

    def call(self, x: Any) -> Any:
        return x * self.scale


class Scaled(Turns):
    """Its layers are known after a step alone; its step counts, and may look at values."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.network, self.scale = perceptron(FEATURES, FEATURES), Secretive()
        self.looks, self.steps = looks, 0

    def loss_of(self, x: Any) -> Any:
        loss = keras.ops.mean(keras.ops.square(self.scale(self.network(x)) - x))
        self.steps += 1
        return loss * (0.5 if self.looks and float(loss) > self.steps else 1)


@on_tensorflow
@pytest.mark.filterwarnings(AS_WEIGHTS)
@pytest.mark.parametrize("looks", [False, True])
def test_what_only_a_step_can_build_is_built_by_one_without_effect(looks: bool, tmp_path: Path) -> None:
    assert_exact(lambda: compiled(Scaled(looks), run_eagerly=looks), tmp_path)


# --- weights instead of the whole ----------------------------------------------------------------------


def test_what_cannot_be_described_is_saved_as_weights_with_one_warning(tmp_path: Path) -> None:
    model = made(unconfigurable)
    with pytest.warns(UserWarning, match="cannot|not serialisable as a whole") as found:
        fit(model, saving(tmp_path, background=True), epochs=3)
    (warned,) = [str(warning.message) for warning in found if "serialisable" in str(warning.message)]
    assert "KeyError: 'no such key'" in warned
    assert "Checkpoint.load_weights(model)" in warned
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        checkpoints = store.checkpoints()
        assert {checkpoint.format for checkpoint in checkpoints} == {"weights"}
        assert checkpoints[-1] == store.resume_point()
        # As the warning and the hint say.
        with pytest.raises(InvalidArgumentError, match=r"Checkpoint.load_weights\(model\)"):
            checkpoints[-1].load_model()
        other = unconfigurable()
        other(data()["x"])
        checkpoints[-1].load_weights(other)
    for saved, loaded in zip(model.weights, other.weights, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(saved), keras.ops.convert_to_numpy(loaded))


def test_a_file_for_the_whole_model_is_refused_before_training(tmp_path: Path) -> None:
    model = made(variational)
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables]
    with pytest.raises(
        UnserialisableModelError, match=r"NotImplementedError.*ends in \.weights\.h5"
    ) as error:
        fit(model, ckptstore.ModelCheckpoint(tmp_path / "best.keras"))
    assert error.value.model == model.name
    after = [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables]
    assert all(map(np.array_equal, before, after))
    # The hint is followed.
    fit(model, ckptstore.ModelCheckpoint(tmp_path / "best.weights.h5", save_weights_only=True), epochs=1)
    assert (tmp_path / "best.weights.h5").exists()
    with ckptstore.CheckpointStore(tmp_path / "by-hand") as store:
        with pytest.raises(UnserialisableModelError, match="format='weights'"):
            store.save(model, epoch=0)
        assert store.save(model, epoch=0, format="weights").format == "weights"


class BuiltLate(keras.Model):  # type: ignore[misc]
    """Its configuration needs what its `build` sets."""

    def __init__(self, width: int = 0, **named: Any) -> None:
        super().__init__(**named)
        self.out = keras.layers.Dense(1)

    def build(self, shape: Any) -> None:
        self.width = shape[-1]
        self.out.build(shape)
        self.built = True

    def call(self, x: Any) -> Any:
        return self.out(x)

    def get_config(self) -> dict[str, Any]:
        return {"width": self.width}


def test_a_configuration_that_is_known_once_the_model_is_built_is_saved(tmp_path: Path) -> None:
    def make() -> Any:
        model = BuiltLate()
        model.compile(adam(), "mse")
        return model

    assert assert_exact(make, tmp_path / "store") == "keras"
    fit(make(), ckptstore.ModelCheckpoint(tmp_path / "last.keras"), epochs=1)
    assert (tmp_path / "last.keras").exists()


# --- by hand -------------------------------------------------------------------------------------------


def late_gan() -> Any:
    """Return a GAN whose networks are not built, also on backends whose `fit` asks for that."""
    model = Gan(perceptron(None, FEATURES), perceptron(None, 1))
    model.compile(d_optimizer=adam(), g_optimizer=adam(), optimizer=None)
    return model


def test_a_model_without_call_is_saved_by_hand_and_resumed_before_it_is_built(tmp_path: Path) -> None:
    """All optimizers too, which have made no step in the process that resumes."""
    model = late_gan()
    with ckptstore.CheckpointStore(tmp_path) as store:
        with pytest.raises(ModelNotReadyError, match=r"build each of its layers .*sequential") as error:
            store.save(model, epoch=0, format="weights")
        assert "call it" not in str(error.value)
        # The hint is followed.
        model.generator.build((None, CODE))
        model.critic.build((None, FEATURES))
        for optimizer, part in ((model.d_optimizer, model.critic), (model.g_optimizer, model.generator)):
            optimizer.build(part.trainable_variables)
            optimizer.apply([variable + 1 for variable in part.trainable_variables])
        store.save(model, epoch=0, format="weights")
        fresh = late_gan()
        assert not fresh.weights
        assert store.resume(fresh) is not None
        fresh_again = late_gan()
        store.get("latest").load_weights(fresh_again)
    slots = [
        [variable for optimizer in optimizers(one) for variable in optimizer.variables]
        for one in (model, fresh)
    ]
    assert len(slots[0]) > 2 * len(model.trainable_variables)
    for saved, loaded in zip(*slots, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(saved), keras.ops.convert_to_numpy(loaded))
    for saved, *loaded in zip(model.weights, fresh.weights, fresh_again.weights, strict=True):
        for other in loaded:
            assert np.array_equal(keras.ops.convert_to_numpy(saved), keras.ops.convert_to_numpy(other))
    # Also where only the weights are wanted.
    uncompiled = Gan(perceptron(CODE, FEATURES), perceptron(FEATURES, 1))
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        store.get("latest").load_weights(uncompiled)
    assert np.array_equal(
        keras.ops.convert_to_numpy(uncompiled.weights[0]), keras.ops.convert_to_numpy(model.weights[0])
    )
