"""Super-resolution by sub-pixel convolution; a callback collects the loss of each batch, and prints a mean."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(24)
large = np.random.default_rng(0).uniform(size=(48, 8, 8, 1)).astype("float32")
small = large.reshape(48, 4, 2, 4, 2, 1).mean(axis=(2, 4))


class DepthToSpace(layers.Layer):
    def __init__(self, block_size, **kwargs):
        super().__init__(**kwargs)
        self.block_size = block_size

    def call(self, inputs):
        n, (height, width, depth) = ops.shape(inputs)[0], inputs.shape[1:]
        size = self.block_size
        x = ops.reshape(inputs, (n, height, width, size, size, depth // size**2))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (n, height * size, width * size, depth // size**2))

    def get_config(self):
        return {**super().get_config(), "block_size": self.block_size}


class ESPCNCallback(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.means = []

    def on_epoch_begin(self, epoch, logs=None):
        self.loss = []

    def on_test_batch_end(self, batch, logs=None):
        self.loss.append(10 * np.log10(1 / logs["loss"]))

    def on_epoch_end(self, epoch, logs=None):
        self.means.append(float(np.mean(self.loss)))
        print(f"Mean PSNR for epoch: {self.means[-1]:.2f}")


inputs = keras.Input((4, 4, 1))
settings = {"activation": "relu", "kernel_initializer": "orthogonal", "padding": "same"}
x = layers.Conv2D(8, 5, **settings)(inputs)
x = layers.Conv2D(4, 3, **settings)(x)
outputs = DepthToSpace(2)(x)
model = keras.Model(inputs, outputs)
model.compile(keras.optimizers.Adam(learning_rate=0.001), keras.losses.MeanSquaredError())
psnr = ESPCNCallback()
history = model.fit(
    small,
    large,
    batch_size=8,
    epochs=4,
    validation_split=0.25,
    verbose=0,
    callbacks=[
        psnr,
        keras.callbacks.EarlyStopping("loss", patience=10),
        ckptstore.StoreCheckpoint("runs/espcn"),
    ],
)
means = psnr.means
