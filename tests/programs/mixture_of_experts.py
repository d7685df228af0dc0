"""A mixture of experts: a router with noise while training, a loss that balances the load."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(77)


class Router(layers.Layer):
    def __init__(self, experts, **kwargs):
        super().__init__(**kwargs)
        self.route = layers.Dense(experts)
        self.noise = layers.Dropout(0.1)
        self.experts = experts

    def call(self, inputs, training=False):
        chances = ops.softmax(self.noise(self.route(inputs), training=training), axis=-1)
        best = ops.one_hot(ops.argmax(chances, axis=-1), self.experts)
        density = ops.mean(best, axis=0)
        self.add_loss(self.experts * ops.mean(ops.mean(chances, axis=0) * density))
        return chances * best


class Switch(layers.Layer):
    def __init__(self, experts, units, **kwargs):
        super().__init__(**kwargs)
        self.experts = [
            keras.Sequential([layers.Dense(units, "relu"), layers.Dense(units)]) for _ in range(experts)
        ]
        self.router = Router(experts)

    def call(self, inputs, training=False):
        gates = self.router(inputs, training=training)
        outputs = ops.stack([expert(inputs) for expert in self.experts], axis=1)
        return ops.sum(outputs * ops.expand_dims(gates, -1), axis=1)


inputs = keras.Input((8,))
x = layers.LayerNormalization()(Switch(3, 8)(layers.Dense(8, "relu")(inputs)))
model = keras.Model(inputs, layers.Dense(3, "softmax")(layers.Dropout(0.2)(x)))
model.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy", metrics=["accuracy"])
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 8)).astype("float32"), draw.integers(0, 3, 64)
history = model.fit(
    x,
    y,
    batch_size=8,
    epochs=3,
    validation_split=0.25,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/switch", "val_accuracy", save_freq=4)],
)
