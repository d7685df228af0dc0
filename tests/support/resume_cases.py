"""Trainings of every kind that a resume must bring to the same bits: small, seeded, each with a random part."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

ROWS, FEATURES, CLASSES = 96, 6, 3
BATCH, EPOCHS = 8, 4
BACKEND = os.environ["KERAS_BACKEND"]


@dataclass
class Case:
    """One training: the model, what `fit` is called with, and how it is saved."""

    model: Any
    fit: dict[str, Any]
    callbacks: list[Any] = field(default_factory=list)
    save_freq: Any = 5
    place: int = 0  # of our callback among the others


CASES: dict[str, Callable[[], Case]] = {}
BACKENDS: dict[str, tuple[str, ...]] = {}
# Packages without which a case cannot run.
NEEDS: dict[str, str] = {}
# Backends, with a space between, on which a case is tried in the long mode only, since one very like it is tried there.
RARE: dict[str, str] = {}


def case(
    *backends: str, needs: str = "", rare: str = ""
) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    def known(make: Callable[[], Case]) -> Callable[[], Case]:
        CASES[make.__name__] = make
        RARE[make.__name__] = rare
        BACKENDS[make.__name__] = backends or ("jax", "torch", "tensorflow")
        NEEDS[make.__name__] = needs
        return make

    return known


# Why a warning at the resume says that the run is not exact.
INEXACT: dict[str, Callable[[], Case]] = {}


def inexact(*backends: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    def known(make: Callable[[], Case]) -> Callable[[], Case]:
        INEXACT[make.__name__] = make
        BACKENDS[make.__name__] = backends or ("jax", "torch", "tensorflow")
        return make

    return known


def is_installed(package: str) -> bool:
    return not package or importlib.util.find_spec(package) is not None


def rows(number: int = ROWS, *shape: int) -> tuple[Any, Any]:
    draw = np.random.default_rng(3)
    inputs = draw.normal(size=(number, *(shape or (FEATURES,)))).astype("float32")
    return inputs, draw.integers(0, CLASSES, number)


def dense(*middle: Any, optimizer: Any = None, **compiled: Any) -> Any:
    model = keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(8, "relu"), *middle, layers.Dense(CLASSES, "softmax")]
    )
    compiled = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **compiled}
    model.compile(optimizer or keras.optimizers.Adam(0.01), **compiled)
    return model


def on_arrays(model: Any, **fit: Any) -> dict[str, Any]:
    inputs, targets = rows()
    return {"x": inputs, "y": targets, "batch_size": BATCH, "epochs": EPOCHS, **fit}


@case()
def arrays() -> Case:
    model = dense(layers.BatchNormalization(), layers.Dropout(0.4))
    return Case(model, on_arrays(model, validation_split=0.25), place=0)


@case()
def stopping_early() -> Case:
    model = dense(layers.Dropout(0.2))
    watching = {"monitor": "val_loss"}
    callbacks = [
        keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True, **watching),
        keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5, **watching),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * (0.9 if epoch else 1.0)),
    ]
    return Case(model, on_arrays(model, validation_split=0.25, epochs=6), callbacks, "epoch", place=1)


@case(rare="torch tensorflow")
def stopping_early_in_batches() -> Case:
    made = stopping_early()
    made.save_freq, made.place = 4, 3
    return made


@case("jax", "tensorflow")  # torch has none
def several_steps_per_execution() -> Case:
    model = dense(layers.Dropout(0.3), steps_per_execution=4)
    return Case(model, on_arrays(model, batch_size=9), save_freq=4)


@case()
def schedule() -> Case:
    rate = keras.optimizers.schedules.CosineDecay(0.02, 40)
    model = dense(layers.Dropout(0.3), optimizer=keras.optimizers.SGD(rate, momentum=0.9))
    return Case(model, on_arrays(model), save_freq=7)


class Reshuffled(keras.utils.PyDataset):
    """Keeps its own order from epoch to epoch, and draws from the global generator too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inputs, self.targets = rows()
        self.order = np.arange(ROWS)
        self.draw = np.random.default_rng(11)

    def __len__(self) -> int:
        return ROWS // BATCH

    def __getitem__(self, index: int) -> Any:
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        return self.inputs[chosen], self.targets[chosen]

    def on_epoch_end(self) -> None:
        self.draw.shuffle(self.order)
        self.order = self.order[np.random.permutation(ROWS)]


@case()
def dataset() -> Case:
    return Case(dense(layers.Dropout(0.3)), {"x": Reshuffled(), "epochs": EPOCHS})


class Noisy(Reshuffled):
    """Draws for each batch from a generator of its own, also where Keras only looks at one."""

    def __getitem__(self, index: int) -> Any:
        inputs, targets = super().__getitem__(index)
        return inputs + self.draw.normal(size=inputs.shape).astype("float32"), targets


@case()
def validation_that_reshuffles() -> Case:
    model = dense(layers.Dropout(0.3))
    callbacks = [keras.callbacks.ReduceLROnPlateau(monitor="val_loss", patience=0, min_delta=0.01)]
    data = {"validation_data": Reshuffled(), "validation_steps": 3}
    return Case(model, on_arrays(model, **data), callbacks, save_freq=7)


@case()
def validation_that_draws() -> Case:
    model = dense(layers.Dropout(0.3))
    return Case(model, on_arrays(model, validation_data=Noisy()), save_freq=7)


@case(rare="jax torch")
def validation_that_draws_beside_a_dataset() -> Case:
    fit = {"x": Reshuffled(), "validation_data": Noisy(), "epochs": EPOCHS}
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=7)


@case()
def dataset_with_workers() -> Case:
    model = dense(layers.Dropout(0.3))
    # While Keras builds a model from the data, its workers run ahead, as far as chance has it, and what they have made
    # is handed out first: then no two runs are the same, with us or without.
    model.train_on_batch(*(array[:BATCH] for array in rows()))
    return Case(model, {"x": Reshuffled(workers=2), "epochs": 3, "shuffle": False})


@keras.saving.register_keras_serializable("tests")
class Jitter(layers.Layer):
    """Draws through keras.random."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(5)

    def call(self, inputs: Any) -> Any:
        return inputs + keras.random.normal(keras.ops.shape(inputs), stddev=0.1, seed=self.seed)


@case()
def several_outputs() -> Case:
    inputs = keras.Input((FEATURES,))
    hidden = layers.GaussianNoise(0.2)(Jitter()(layers.Dense(8, "tanh")(inputs)))
    model = keras.Model(
        inputs,
        {
            "kind": layers.Dense(CLASSES, "softmax", name="kind")(hidden),
            "size": layers.Dense(1, name="size")(hidden),
        },
    )
    model.compile(
        keras.optimizers.RMSprop(0.01, momentum=0.5),
        loss={"kind": "sparse_categorical_crossentropy", "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.3},
        weighted_metrics={"kind": ["accuracy"], "size": ["mae"]},
    )
    features, targets = rows()
    weights = np.random.default_rng(4).uniform(0.5, 1.5, ROWS).astype("float32")
    both = {"kind": targets, "size": features[:, :1]}
    fit = on_arrays(model, x=features, y=both, sample_weight={"kind": weights, "size": weights})
    return Case(model, fit)


@case()
def recurrent() -> Case:
    model = keras.Sequential(
        [
            keras.Input((5, FEATURES)),
            layers.LSTM(6, dropout=0.3, recurrent_dropout=0.3, return_sequences=True),
            layers.GRU(4, dropout=0.2),
            layers.Dense(CLASSES, "softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    inputs, targets = rows(40, 5, FEATURES)
    return Case(model, {"x": inputs, "y": targets, "batch_size": BATCH, "epochs": 3}, save_freq=3)


@case("jax", "tensorflow")
def recurrent_that_keeps_its_states() -> Case:
    # On torch Keras itself cannot: "modified by an inplace operation" in the second batch.
    inputs = np.random.default_rng(3).normal(size=(72, 3, FEATURES)).astype("float32")
    targets = inputs[:, 0, :CLASSES]
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(8, 3, FEATURES)),
            layers.LSTM(5, stateful=True, return_sequences=True),
            layers.GRU(4, stateful=True),
            layers.Dense(CLASSES),
        ]
    )
    model.compile("adam", "mse")
    return Case(model, {"x": inputs, "y": targets, "batch_size": 8, "epochs": EPOCHS, "shuffle": False})


@case()
def averaged_weights() -> Case:
    optimizer = keras.optimizers.Adam(0.02, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=7)
    model = dense(layers.Dropout(0.2), optimizer=optimizer)
    callbacks = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
    return Case(model, on_arrays(model, validation_split=0.25), callbacks, place=1)


@case()
def accumulated_gradients() -> Case:
    optimizer = keras.optimizers.AdamW(0.02, gradient_accumulation_steps=3, clipnorm=1.0)
    model = dense(layers.Dropout(0.2), optimizer=optimizer)
    return Case(model, on_arrays(model))


@case()
def mixed_precision() -> Case:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = dense(layers.Dropout(0.2), optimizer="adam")
    finally:
        keras.config.set_dtype_policy(before)
    return Case(model, on_arrays(model))


def stream() -> Iterator[tuple[Any, Any]]:
    inputs, targets = rows()
    draw = np.random.default_rng(8)
    while True:
        chosen = draw.integers(0, ROWS, BATCH)
        yield inputs[chosen], targets[chosen]


@case()
def generator_without_end() -> Case:
    return Case(
        dense(layers.Dropout(0.3)), {"x": stream(), "steps_per_epoch": 9, "epochs": EPOCHS}, save_freq=4
    )


@case()
def part_of_the_arrays_per_epoch() -> Case:
    model = dense(layers.Dropout(0.3))
    return Case(model, on_arrays(model, steps_per_epoch=6), save_freq=4)


@case()
def class_weights_and_rare_validation() -> Case:
    model = dense(layers.Dropout(0.3))
    inputs, targets = rows(24)
    fit = on_arrays(
        model,
        class_weight={0: 1.0, 1: 2.0, 2: 0.5},
        validation_data=(inputs, targets),
        validation_freq=2,
        epochs=5,
    )
    return Case(
        model, fit, [keras.callbacks.EarlyStopping(monitor="loss", patience=4)], save_freq="epoch", place=0
    )


@case("jax", "tensorflow")
def shuffled_in_batches() -> Case:
    model = dense(layers.Dropout(0.3))
    return Case(model, on_arrays(model, shuffle="batch"))


class Drawing(Noisy):
    """Draws for each batch, and from its own generator only."""

    def on_epoch_end(self) -> None:
        self.draw.shuffle(self.order)


def drawn() -> Iterator[tuple[Any, Any]]:
    inputs, targets = rows()
    while True:
        chosen = np.random.randint(0, ROWS, BATCH)
        yield inputs[chosen], targets[chosen]


@case(rare="jax torch")
def validation_that_draws_beside_a_generator() -> Case:
    fit = {"x": drawn(), "steps_per_epoch": 9, "validation_data": Drawing(), "epochs": EPOCHS}
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=7)


def noisy_rows(draw: Callable[[], Any]) -> Any:
    import torch

    torch.manual_seed(1)  # Keras seeds it on its own backend only
    inputs, targets = rows()

    class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rng = np.random.default_rng(2)

        def __len__(self) -> int:
            return ROWS

        def __getitem__(self, index: int) -> Any:
            # Drawn in the workers, each of which has a generator of its own.
            noise = draw() + self.rng.normal()
            return inputs[index] + np.float32(0.05 * noise), targets[index]

    return Rows()


def torch_noise() -> Any:
    import torch

    return torch.randn(FEATURES).numpy()


def loader(**kwargs: Any) -> Any:
    import torch

    return torch.utils.data.DataLoader(noisy_rows(torch_noise), batch_size=BATCH, shuffle=True, **kwargs)


@case("jax", "torch")
def loader_with_workers() -> Case:
    return Case(dense(layers.Dropout(0.3)), {"x": loader(num_workers=2), "epochs": 3}, save_freq=7)


# --- loaders that know their position ----------------------------------------------------------------


def stateful(data: Any = None, **kwargs: Any) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    data = noisy_rows(torch_noise) if data is None else data
    return StatefulDataLoader(data, batch_size=BATCH, **kwargs)


@case("jax", "torch", needs="torchdata")
def stateful_loader() -> Case:
    return Case(dense(layers.Dropout(0.3)), {"x": stateful(shuffle=True), "epochs": EPOCHS})


@case("jax", "torch", needs="torchdata", rare="jax")
def stateful_loader_saved_at_last_batches() -> Case:
    return Case(dense(layers.Dropout(0.3)), {"x": stateful(shuffle=True), "epochs": EPOCHS}, save_freq=6)


@case("jax", "torch", needs="torchdata", rare="jax")
def stateful_loader_saved_at_epochs() -> Case:
    data = stateful(shuffle=True)
    return Case(dense(layers.Dropout(0.3)), {"x": data, "epochs": EPOCHS}, save_freq="epoch")


@case("jax", "torch", needs="torchdata", rare="jax")
def stateful_loader_of_a_sampler() -> Case:
    import torch

    data = noisy_rows(torch_noise)
    sampler = torch.utils.data.RandomSampler(data)  # which draws its seed when an iterator begins
    return Case(dense(layers.Dropout(0.3)), {"x": stateful(data, sampler=sampler), "epochs": EPOCHS})


@case("jax", "torch", needs="torchdata", rare="jax")
def stateful_loader_with_workers() -> Case:
    data = stateful(shuffle=True, num_workers=2)
    return Case(dense(layers.Dropout(0.3)), {"x": data, "epochs": 3})


@case("jax", "torch", needs="torchdata", rare="jax")
def stateful_loader_over_epochs() -> Case:
    data = stateful(shuffle=True)
    fit = {"x": data, "steps_per_epoch": 4, "epochs": 6}
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=3)


@case("jax", "torch", needs="torchdata", rare="jax")
def stateful_loader_with_workers_over_epochs() -> Case:
    fit = {"x": stateful(shuffle=True, num_workers=2), "steps_per_epoch": 4, "epochs": 6}
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=3)


def stateful_stream() -> Any:
    import torch

    inputs, targets = rows()

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc]
        """Without a length; ends and starts over, each time in another order."""

        def __init__(self) -> None:
            self.rng = np.random.default_rng(4)
            self.at = 0

        def __iter__(self) -> Any:
            self.at = 0 if self.at == 39 else self.at
            return self

        def __next__(self) -> Any:
            if self.at == 39:
                raise StopIteration
            self.at += 1
            index = self.rng.integers(ROWS)
            return inputs[index], targets[index]

        def state_dict(self) -> dict[str, Any]:
            return {"rng": self.rng.bit_generator.state, "at": self.at}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.rng.bit_generator.state, self.at = state["rng"], state["at"]

    return Stream()


@case("jax", "torch", needs="torchdata")
def stateful_stream_of_unknown_length() -> Case:
    data = stateful(stateful_stream())
    return Case(dense(layers.Dropout(0.3)), {"x": data, "epochs": EPOCHS}, save_freq=3)


@case("jax", "torch", needs="torchdata", rare="jax")
def stateful_stream_with_workers() -> Case:
    data = stateful(stateful_stream(), num_workers=2)
    return Case(dense(layers.Dropout(0.3)), {"x": data, "epochs": 3}, save_freq=3)


@case("jax", "torch")
def own_loader() -> Case:
    import torch

    class Own(torch.utils.data.DataLoader):  # type: ignore[misc]
        """Continues at the position in its state, in its own order."""

        def __init__(self) -> None:
            super().__init__(noisy_rows(np.random.normal), batch_size=BATCH)
            self.draw = np.random.default_rng(6)
            self.order: Any = None
            self.at = 0
            self.goes_on = False

        def __iter__(self) -> Any:
            if not self.goes_on:
                self.order, self.at = self.draw.permutation(ROWS), 0
            self.goes_on = False
            return self.batches()

        def batches(self) -> Iterator[Any]:
            while self.at < ROWS:
                chosen = self.order[self.at : self.at + BATCH]
                self.at += BATCH
                yield self.collate_fn([self.dataset[int(index)] for index in chosen])

        def state_dict(self) -> dict[str, Any]:
            return {"order": self.order, "at": self.at, "draw": self.draw}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.order, self.at, self.goes_on = state["order"], state["at"], True
            state["draw"].apply(self.draw)

    return Case(dense(layers.Dropout(0.3)), {"x": Own(), "epochs": EPOCHS})


class Stateful(Noisy):
    """Reports its order, and what it draws for each batch."""

    def get_state(self) -> dict[str, Any]:
        return {"order": self.order.copy(), "draw": self.draw.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        self.order, self.draw.bit_generator.state = state["order"], state["draw"]


@case("jax", "torch", rare="jax")
def dataset_with_a_state() -> Case:
    return Case(dense(layers.Dropout(0.3)), {"x": Stateful(), "epochs": EPOCHS})


@case("jax", "torch", rare="jax")
def dataset_over_epochs() -> Case:
    fit = {"x": Reshuffled(), "steps_per_epoch": 3, "epochs": 4}  # one pass, in orders of several
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=2)


@case("jax", "torch", rare="jax")
def sampler_over_epochs() -> Case:
    import torch

    class Counting(torch.utils.data.Sampler):  # type: ignore[misc]
        """Draws its order by how often it was gone through."""

        def __init__(self) -> None:
            self.passes = 0

        def __len__(self) -> int:
            return ROWS

        def __iter__(self) -> Any:
            self.passes += 1
            return iter(np.random.default_rng(self.passes).permutation(ROWS).tolist())

    data = torch.utils.data.TensorDataset(*map(torch.from_numpy, rows()))
    data = torch.utils.data.DataLoader(data, batch_size=BATCH, sampler=Counting())
    fit = {"x": data, "steps_per_epoch": 3, "epochs": 4}  # one pass
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=2)


@case("jax", "torch", rare="jax")
def dataset_with_a_state_over_epochs() -> Case:
    fit = {"x": Stateful(), "steps_per_epoch": 5, "epochs": 5}
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=3)


# --- Grain -------------------------------------------------------------------------------------------


def grain_rows() -> list[Any]:
    return list(zip(*rows(), strict=True))


def grain_noise(row: Any, draw: Any) -> Any:
    return row[0] + draw.normal(size=FEATURES).astype("float32"), row[1]


def grain_map() -> Any:
    import grain

    return grain.MapDataset.source(grain_rows()).seed(5).shuffle().random_map(grain_noise)


@case("jax", "torch", needs="grain")
def grain_dataset() -> Case:
    return Case(dense(layers.Dropout(0.3)), {"x": grain_map().batch(BATCH), "epochs": EPOCHS})


@case("jax", "torch", needs="grain", rare="jax")
def grain_dataset_over_epochs() -> Case:
    fit = {"x": grain_map().repeat().batch(BATCH), "steps_per_epoch": 7, "epochs": EPOCHS}
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=4)


@case("jax", "torch", needs="grain", rare="jax")
def grain_iterable() -> Case:
    import grain

    # Drawn from a global generator: in this thread.
    data = grain_map().to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    data = data.map(lambda row: (row[0] + np.float32(np.random.normal()), row[1]))
    return Case(dense(layers.Dropout(0.3)), {"x": data.batch(BATCH), "epochs": EPOCHS})


@case("jax", "torch", needs="grain", rare="jax")
def grain_iterable_shuffled_in_windows() -> Case:
    import grain

    data = grain_map().to_iter_dataset()
    data = grain.experimental.WindowShuffleIterDataset(data, window_size=10, seed=3).batch(BATCH)
    return Case(dense(layers.Dropout(0.3)), {"x": data, "epochs": EPOCHS}, save_freq=6)


@case("jax", "torch", needs="grain", rare="jax")
def grain_iterable_over_epochs() -> Case:
    data = grain_map().repeat().to_iter_dataset().batch(BATCH)
    fit = {"x": data, "steps_per_epoch": 7, "epochs": EPOCHS}
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=4)


def grain_loader(epochs: int | None) -> Any:
    import grain

    class Noise(grain.transforms.RandomMap):  # type: ignore[misc]
        def random_map(self, row: Any, draw: Any) -> Any:
            return grain_noise(row, draw)

    return grain.DataLoader(
        data_source=grain_rows(),
        sampler=grain.samplers.IndexSampler(
            ROWS, shuffle=True, seed=2, num_epochs=epochs, shard_options=grain.sharding.NoSharding()
        ),
        operations=[Noise(), grain.transforms.Batch(BATCH)],
    )


@case("jax", "torch", needs="grain", rare="jax")
def loader_of_grain() -> Case:
    return Case(dense(layers.Dropout(0.3)), {"x": grain_loader(1), "epochs": EPOCHS})


@case("jax", "torch", needs="grain", rare="jax")
def loader_of_grain_over_epochs() -> Case:
    fit = {"x": grain_loader(None), "steps_per_epoch": 7, "epochs": EPOCHS}
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=4)


# --- state of the user's own, which Keras does not track ---------------------------------------------


class Memory:
    """An object of the user's own that a layer keeps."""

    def __init__(self) -> None:
        self.draw = np.random.default_rng(9)
        self.scales = [1.0]


class Remembering(layers.Layer):
    """Changes plain attributes, arrays and tensors with each training step that runs its code."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.memory, self.recent = 0, Memory(), deque([0.0], maxlen=3)
        self.total = np.zeros(2, "float32")
        self.tensor = keras.ops.zeros(2)
        if BACKEND == "torch":
            import torch

            self.raw = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
            self.register_buffer("count", torch.zeros(1))

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        self.calls += 1
        self.recent.append(0.1 * self.calls)
        self.memory.scales.append(self.memory.scales[-1] * 1.001)
        self.total += self.calls
        self.tensor = self.tensor + 0.1
        if BACKEND == "torch":
            self.raw.add_(0.01)
            self.count = self.count + 0.01
            inputs = inputs + self.raw + self.count
        noise = float(self.memory.draw.normal()) + sum(self.recent) + float(self.total[0]) / 1000
        return inputs * self.memory.scales[-1] + noise * self.tensor[0]


def annealed() -> Any:
    """Return a loss that remembers in its closure how often it was computed."""
    steps = 0

    def loss(targets: Any, outputs: Any) -> Any:
        nonlocal steps
        steps += 1
        return keras.losses.sparse_categorical_crossentropy(targets, outputs) * 1.01**steps

    return loss


@case(rare="jax tensorflow")
def state_of_the_users_own() -> Case:
    model = dense(Remembering(), loss=annealed(), run_eagerly=BACKEND != "torch")
    return Case(model, on_arrays(model, epochs=2, validation_split=0.25), save_freq=4)


class Counting(layers.Layer):
    """Counts and draws in TensorFlow's own variables."""

    def __init__(self) -> None:
        super().__init__()
        import tensorflow as tf

        self.steps = tf.Variable(0.0, trainable=False)
        self.draw = tf.random.Generator.from_seed(4)

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.steps.assign_add(1.0)
            inputs = inputs * (1.0 + 0.01 * self.steps) + 0.1 * self.draw.normal(keras.ops.shape(inputs))
        return inputs


@case("tensorflow")
def raw_variable_in_a_compiled_step() -> Case:
    model = dense(Counting())
    return Case(model, on_arrays(model))


class Noise(layers.Layer):
    """Draws by TensorFlow's own operations, which keep their state in the kernels of a compiled step."""

    def __init__(self, seed: int | None = 7) -> None:
        super().__init__()
        self.seed = seed

    def call(self, inputs: Any, training: bool = False) -> Any:
        import tensorflow as tf

        shape = tf.shape(inputs)
        noise = (
            tf.random.normal(shape, seed=self.seed)
            + tf.random.uniform(shape)
            + tf.random.truncated_normal(shape)
        )
        noise += tf.cast(tf.random.uniform(shape, 0, 9, tf.int32), tf.float32)
        return tf.nn.dropout(inputs + 0.05 * noise, 0.2)  # in validation too


@case("tensorflow")
def operations_of_tensorflow_that_draw() -> Case:
    model = dense(Noise())
    return Case(model, on_arrays(model, batch_size=10, validation_split=0.25))


@case("tensorflow", rare="tensorflow")
def operations_of_tensorflow_that_draw_in_several_steps() -> Case:
    model = dense(Noise(), steps_per_execution=3)
    return Case(model, on_arrays(model, batch_size=10))


@case("tensorflow", rare="tensorflow")
def operations_of_tensorflow_that_draw_without_a_graph() -> Case:
    model = dense(Noise(seed=None), run_eagerly=True)
    return Case(model, on_arrays(model, batch_size=10))


class OwnOptimizer(keras.Sequential):
    """Trains by an optimizer of its own; nobody steps the one that `compile` makes."""

    def train_step(self, data: Any) -> Any:
        import tensorflow as tf

        inputs, targets = data
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(targets, self(inputs, training=True))
            loss = tf.reduce_mean(losses)
        weights = self.trainable_weights
        self.own.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


@case("tensorflow")
def optimizer_that_nobody_steps() -> Case:
    model = OwnOptimizer([keras.Input((FEATURES,)), layers.Dropout(0.2), layers.Dense(CLASSES, "softmax")])
    model.own = keras.optimizers.Adam(0.01)
    model.compile()
    return Case(model, on_arrays(model))


# --- what cannot be exact, and is reported so ------------------------------------------------


@inexact("torch")
def loader_that_draws_beside_the_model() -> Case:
    return Case(dense(layers.Dropout(0.3)), {"x": loader(), "epochs": 3}, save_freq=7)


@inexact("jax", "torch")
def loader_with_lasting_workers() -> Case:
    data = loader(num_workers=2, persistent_workers=True)
    return Case(dense(layers.Dropout(0.3)), {"x": data, "epochs": 3}, save_freq=7)


@inexact("torch")
def validation_by_lasting_workers() -> Case:
    model = dense(layers.Dropout(0.3))
    data = loader(num_workers=1, persistent_workers=True)
    return Case(model, on_arrays(model, validation_data=data, epochs=3), save_freq=7)


@inexact()
def validation_by_a_generator() -> Case:
    model = dense(layers.Dropout(0.3))
    return Case(model, on_arrays(model, validation_data=stream(), validation_steps=2), save_freq=7)


@inexact()
def generator_of_an_unseeded_script() -> Case:
    np.random.seed()
    fit = {"x": drawn(), "steps_per_epoch": 9, "epochs": 3}
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=7)


class Anneals(keras.callbacks.Callback):
    """Sets attributes of its model."""

    def __init__(self, change: Callable[[Any, int], None]) -> None:
        super().__init__()
        self.change = change

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.change(self.model, epoch)


class Weighted(layers.Layer):
    """Reads a number that a callback changes: a constant in a compiled step."""

    weight = 1.0

    def call(self, inputs: Any) -> Any:
        return inputs * self.weight


@inexact("jax", "tensorflow")
def constant_of_a_compiled_step() -> Case:
    layer = Weighted()
    model = dense(layer)

    def change(model: Any, epoch: int) -> None:
        layer.weight = 1.0 + epoch

    return Case(model, on_arrays(model), [Anneals(change)], save_freq=4)


class Shuffling(layers.Layer):
    """Draws by an operation whose state nobody can read."""

    def call(self, inputs: Any) -> Any:
        import tensorflow as tf

        return inputs + 0.1 * tf.random.shuffle(inputs, seed=3)


@inexact("tensorflow")
def operation_of_tensorflow_with_a_hidden_state() -> Case:
    model = dense(Shuffling())
    return Case(model, on_arrays(model))


@inexact("tensorflow")
def operation_of_tensorflow_with_a_seed_without_a_graph() -> Case:
    model = dense(Noise(), run_eagerly=True)
    return Case(model, on_arrays(model))


@inexact("tensorflow")
def pipeline_that_augments() -> Case:
    noise = layers.GaussianNoise(0.1, seed=3)
    data = pipeline(seed=7).map(lambda inputs, targets: (noise(inputs, training=True), targets))
    return Case(dense(), {"x": data, "epochs": EPOCHS})


@inexact()
def object_of_a_library_on_a_model() -> Case:
    model = dense()
    model.stream = None

    def change(model: Any, epoch: int) -> None:
        model.stream = stream()

    return Case(model, on_arrays(model), [Anneals(change)], save_freq=4)


@inexact("tensorflow")
def validation_that_is_asked_ahead() -> Case:
    model = dense(layers.Dropout(0.3))
    return Case(model, on_arrays(model, validation_data=Noisy(), validation_steps=3), save_freq=7)


@inexact("tensorflow")
def dataset_that_is_asked_ahead_over_epochs() -> Case:
    fit = {"x": Reshuffled(), "steps_per_epoch": 3, "epochs": 7}
    return Case(dense(layers.Dropout(0.3)), fit, save_freq=8)


def pipeline(**shuffling: Any) -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(rows()).shuffle(40, **shuffling).batch(BATCH)


@case(needs="tensorflow")
def shuffled_pipeline() -> Case:
    return Case(dense(layers.Dropout(0.3)), {"x": pipeline(seed=7).prefetch(2), "epochs": EPOCHS})


@case(needs="tensorflow")
def pipeline_shuffled_by_the_global_seed() -> Case:
    return Case(dense(layers.Dropout(0.3)), {"x": pipeline(), "epochs": EPOCHS}, save_freq="epoch")


@case(needs="tensorflow")
def repeating_pipeline() -> Case:
    data = pipeline(seed=7).repeat()
    return Case(dense(layers.Dropout(0.3)), {"x": data, "steps_per_epoch": 7, "epochs": EPOCHS}, save_freq=4)


@case(needs="tensorflow")
def cached_pipeline() -> Case:
    data = pipeline(seed=7).cache().prefetch(2)  # keeps the order of its first pass
    validation = pipeline(seed=8).take(5).cache()
    fit = {"x": data, "validation_data": validation, "epochs": EPOCHS}
    return Case(dense(layers.Dropout(0.3)), fit)


@case("tensorflow")
def cached_pipeline_that_validates_too() -> Case:
    data = pipeline(seed=7).cache()
    return Case(
        dense(layers.Dropout(0.3)), {"x": data, "validation_data": data, "epochs": EPOCHS}, save_freq=7
    )


@case(needs="tensorflow")
def validation_by_a_shuffled_pipeline() -> Case:
    model = dense(layers.Dropout(0.3))
    callbacks = [keras.callbacks.ReduceLROnPlateau(monitor="val_loss", patience=0, min_delta=0.01)]
    # Other rows in each pass.
    return Case(model, on_arrays(model, validation_data=pipeline().take(5)), callbacks, save_freq=7)


# --- several devices of one process ----------------------------------------------------------------


@case("tensorflow")
def mirrored_over_two_devices() -> Case:
    import tensorflow as tf

    import ckptstore
    from ckptstore.training.fingerprint import devices

    [cpu] = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        # Each replica has moving statistics, and sums of metrics, of its own.
        model = dense(layers.BatchNormalization(), layers.Dropout(0.4))
    assert devices.describe(model)["number"] == "2 (MirroredStrategy)"
    folder = tempfile.TemporaryDirectory()
    best = ckptstore.ModelCheckpoint(Path(folder.name) / "best.keras", save_best_only=True)
    best.folder = folder  # removed with the callback
    return Case(model, on_arrays(model, validation_split=0.25), [best])


def distributed(distribute: Callable[[list[Any]], Any], number: int = 8) -> Case:
    # Read when JAX starts, which is when it is asked for its devices.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={number}"
    devices = keras.distribution.list_devices("cpu")
    assert len(devices) == number
    keras.distribution.set_distribution(distribute(devices))
    model = dense(layers.BatchNormalization(), layers.Dropout(0.4))
    return Case(model, on_arrays(model, validation_split=0.25))


@case("jax")
def data_parallel_over_eight_devices() -> Case:
    return distributed(lambda devices: keras.distribution.DataParallel(devices=devices))


def model_parallel(*shape: int, kernel: tuple[str | None, str | None]) -> Case:
    """Return a training whose first kernel is split over a mesh of devices."""

    def distribution(devices: list[Any]) -> Any:
        mesh = keras.distribution.DeviceMesh(shape, ("batch", "model")[-len(shape) :], devices)
        layout = keras.distribution.LayoutMap(mesh)
        layout[".*/dense/kernel"] = kernel
        return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name=mesh.axis_names[0])

    return distributed(distribution, int(np.prod(shape)))


@case("jax")
def model_parallel_over_eight_devices() -> Case:
    made = model_parallel(2, 4, kernel=("batch", "model"))
    kernel = made.model.layers[0].kernel.value
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(FEATURES // 2, 2)}
    return made


@case("jax")
def model_parallel_along_one_axis() -> Case:
    made = model_parallel(8, kernel=(None, "model"))
    kernel = made.model.layers[0].kernel.value
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(FEATURES, 1)}
    return made


@case("jax", rare="jax")
def model_parallel_over_four_devices() -> Case:
    return model_parallel(2, 2, kernel=("batch", "model"))
