"""Small Keras models of every sort that checkpoints must support, each trained a little."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

BACKEND = os.environ.get("KERAS_BACKEND", "jax")
FEATURES = 6
CLASSES = 3
_untrained: list[bool] = []


def data(rows: int = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    x = generator.normal(size=(rows, FEATURES)).astype("float32")
    return x, np.argmax(x[:, :CLASSES], axis=1).astype("int32")


def stack(*hidden: Any, name: str | None = None) -> keras.Model:
    return keras.Sequential([keras.Input((FEATURES,)), *hidden, keras.layers.Dense(CLASSES)], name=name)


def trained(model: keras.Model, optimizer: Any = "adam", epochs: int = 1) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Without compilation, which takes longer than everything else together.
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    x, y = data()
    if _untrained:
        model(x[:4])
        model.optimizer.build(model.trainable_variables)
        return model
    with untraced(model):
        model.fit(x, y, batch_size=4, epochs=epochs, verbose=0)
    return model


@contextmanager
def only_built() -> Iterator[None]:
    """Make models that are compiled and built with their optimizers, but not trained, which takes longest."""
    _untrained.append(True)
    try:
        yield
    finally:
        _untrained.pop()


@contextmanager
def untraced(model: keras.Model) -> Iterator[None]:
    """Train without TensorFlow's tracing, which takes as long; afterwards the model is as if it had been traced."""
    model.run_eagerly = BACKEND == "tensorflow" and "float8" not in str(model.layers[0].dtype_policy)
    try:
        yield
    finally:
        model.run_eagerly, model.train_function = False, None


def dense(optimizer: Any = "adam", name: str | None = None, units: int = 5) -> keras.Model:
    layers = (keras.layers.Dense(units, activation="relu"), keras.layers.Dropout(0.3))
    return trained(stack(*layers, name=name), optimizer)


def policy(name: str) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        with under(name):
            return trained(stack(keras.layers.Dense(5)))

    return build


@contextmanager
def under(name: str) -> Iterator[None]:
    """Set Keras' global policy of that name, if there is one: loading reads it to decide on loss scaling."""
    before = keras.config.dtype_policy()
    if "float16" in name or name == "float64":
        keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def convolution() -> keras.Model:
    return trained(
        stack(
            keras.layers.Reshape((FEATURES, 1)),
            keras.layers.Conv1D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.GaussianNoise(0.1),
            keras.layers.Flatten(),
        )
    )


def recurrent() -> keras.Model:
    return trained(stack(keras.layers.Reshape((FEATURES, 1)), keras.layers.GRU(3)))


def nested() -> keras.Model:
    inner = keras.Sequential([keras.layers.Dense(4), keras.layers.Dropout(0.2)], name="inner")
    return trained(stack(inner, keras.layers.Activation("relu")))


def several_ends() -> keras.Model:
    left, right = keras.Input((FEATURES,), name="left"), keras.Input((2,), name="right")
    both = keras.layers.concatenate([keras.layers.Dense(4)(left), keras.layers.Dense(4)(right)])
    ends = {
        "kind": keras.layers.Dense(CLASSES, name="kind")(both),
        "size": keras.layers.Dense(1, name="size")(both),
    }
    model = keras.Model([left, right], ends)
    model.compile(
        "rmsprop",
        {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"},
        metrics={"kind": ["accuracy"], "size": ["mae"]},
    )
    x, y = data()
    with untraced(model):
        model.fit([x, x[:, :2]], {"kind": y, "size": x[:, :1]}, batch_size=4, verbose=0)
    return model


@keras.saving.register_keras_serializable("ckptstore-tests")
class Subclassed(keras.Model):
    """Layers in attributes, lists and dicts, and a list in a list."""

    def __init__(self, units: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.first = keras.layers.Dense(units)
        self.rest = [keras.layers.Dense(units), keras.layers.Dropout(0.5)]
        self.ends = {"end": keras.layers.Dense(CLASSES)}

    def call(self, inputs: Any, training: bool = False) -> Any:
        hidden = self.first(inputs)
        for layer in self.rest:
            hidden = (
                layer(hidden, training=training) if isinstance(layer, keras.layers.Dropout) else layer(hidden)
            )
        return self.ends["end"](hidden)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def subclassed() -> keras.Model:
    return trained(Subclassed())


class Unconfigured(keras.Model):
    """A subclass that Keras cannot describe: its argument is no plain value."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs)


def unconfigured() -> keras.Model:
    return trained(Unconfigured(keras.layers.Dense(CLASSES)))


@keras.saving.register_keras_serializable("ckptstore-tests")
class Vocabulary(keras.layers.Layer):
    """Keeps words in a file, as lookups and tokenizers do, and passes its input on."""

    def __init__(self, words: Any = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.words = list(words)

    def call(self, inputs: Any) -> Any:
        return inputs

    def save_assets(self, dir_path: str) -> None:
        Path(dir_path, "words.txt").write_text("\n".join(self.words))

    def load_assets(self, dir_path: str) -> None:
        self.words = Path(dir_path, "words.txt").read_text().split("\n")


def vocabulary() -> keras.Model:
    return trained(stack(Vocabulary(["ape", "bee"]), keras.layers.Dense(4)))


@keras.saving.register_keras_serializable("ckptstore-tests")
class OwnWay(keras.layers.Layer):
    """Saves a count, scaled, and nothing else of its own; refuses a count of -1."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, inputs: Any) -> Any:
        return inputs * self.scale

    def save_own_variables(self, store: Any) -> None:
        store["twice"] = np.asarray(keras.ops.convert_to_numpy(self.count)) * 2
        store["scale"] = self.scale

    def load_own_variables(self, store: Any) -> None:
        self.scale.assign(store["scale"])
        if float(np.array(store["twice"])) < 0:
            raise ValueError("a negative count")
        self.count.assign(np.array(store["twice"]) / 2)


def own_way() -> keras.Model:
    return trained(stack(OwnWay(), keras.layers.Dense(4)))


def lora() -> keras.Model:
    model = stack(keras.layers.Dense(8, name="wide"))
    model.get_layer("wide").enable_lora(2)
    return trained(model)


def quantized(mode: str) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        model = stack(keras.layers.Dense(8), keras.layers.Dropout(0.1))
        for layer in model.layers[::2]:
            layer.quantize(mode)
        if mode == "float8":
            return trained(model)
        model.compile("adam", keras.losses.MeanSquaredError())
        model.optimizer.build(model.trainable_variables)
        return model

    return build


WHOLE: dict[str, Callable[[], keras.Model]] = {
    "dense": dense,
    "convolution": convolution,
    "recurrent": recurrent,
    "nested": nested,
    "several_ends": several_ends,
    "subclassed": subclassed,
    "vocabulary": vocabulary,
    "own_way": own_way,
    "lora": lora,
    "int8": quantized("int8"),
    "float8": quantized("float8"),
    "float16": policy("float16"),
    "bfloat16": policy("bfloat16"),
    "mixed_float16": policy("mixed_float16"),
    "mixed_bfloat16": policy("mixed_bfloat16"),
}
if BACKEND != "jax":  # where 64-bit types have to be switched on
    WHOLE["float64"] = policy("float64")

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    name: getattr(keras.optimizers, name)
    for name in (
        "SGD", "RMSprop", "Adam", "AdamW", "Adadelta", "Adagrad", "Adamax", "Adafactor", "Nadam", "Ftrl",
        "Lion", "Lamb", "Muon",
    )
    if hasattr(keras.optimizers, name)
}  # fmt: skip
OPTIMIZERS |= {
    "momentum": lambda: keras.optimizers.SGD(momentum=0.9, nesterov=True),
    "amsgrad": lambda: keras.optimizers.Adam(amsgrad=True),
    "average": lambda: keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=3),
    "accumulated": lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
    "scheduled": lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 20)),
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
}


def bits(value: Any) -> tuple[tuple[int, ...], str, bytes]:
    """Return a variable or array bit for bit."""
    from ckptstore.keras.state.arrays import host_array

    array = host_array(value)
    return array.shape, array.dtype.name, array.tobytes()


def state_of(model: keras.Model, optimizer: Any = None) -> list[tuple[tuple[int, ...], str, bytes]]:
    """Return every variable of a model bit for bit, including seeds and the optimizer's."""
    optimizer = optimizer or getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer else [])]
    return [bits(variable) for variable in variables]


def scrambled(model: keras.Model, optimizer: Any = None) -> keras.Model:
    """Change every number in a model; return it."""
    optimizer = optimizer or getattr(model, "optimizer", None)
    for variable in [*model.variables, *(optimizer.variables if optimizer else [])]:
        value = np.array(keras.ops.convert_to_numpy(variable))
        variable.assign(~value if value.dtype == bool else (value + 1).astype(value.dtype))
    return model
