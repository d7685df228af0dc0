"""A vector-quantized autoencoder: a codebook as a weight, a straight-through estimate, a commitment loss."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(76)


class VectorQuantizer(layers.Layer):
    def __init__(self, embeddings, width, beta=0.25, **kwargs):
        super().__init__(**kwargs)
        self.number, self.width, self.beta = embeddings, width, beta

    def build(self, input_shape):
        self.codebook = self.add_weight(
            shape=(self.width, self.number), initializer="uniform", name="codebook"
        )

    def call(self, x):
        distances = (
            ops.sum(x**2, axis=1, keepdims=True)
            + ops.sum(self.codebook**2, axis=0)
            - 2 * ops.matmul(x, self.codebook)
        )
        chosen = ops.one_hot(ops.argmin(distances, axis=1), self.number)
        quantized = ops.matmul(chosen, ops.transpose(self.codebook))
        commitment = ops.mean((ops.stop_gradient(quantized) - x) ** 2)
        self.add_loss(self.beta * commitment + ops.mean((quantized - ops.stop_gradient(x)) ** 2))
        return x + ops.stop_gradient(quantized - x)

    def get_config(self):
        return {**super().get_config(), "embeddings": self.number, "width": self.width, "beta": self.beta}


inputs = keras.Input((8,))
encoded = layers.Dense(4)(layers.Dense(8, "relu")(inputs))
outputs = layers.Dense(8)(layers.Dense(8, "relu")(VectorQuantizer(6, 4, name="vq")(encoded)))
model = keras.Model(inputs, outputs)
model.compile("adam", "mse")
rows = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
history = model.fit(
    rows,
    rows,
    epochs=3,
    batch_size=8,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/vq", "loss", save_freq=3)],
)
