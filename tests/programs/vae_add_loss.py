"""A variational autoencoder whose sampling layer adds the divergence to the loss."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(4)


class Sampling(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_variance = inputs
        self.add_loss(-0.5 * ops.mean(1 + log_variance - ops.square(mean) - ops.exp(log_variance)))
        epsilon = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * epsilon


class VariationalAutoencoder(keras.Model):
    def __init__(self, width, latent_dim, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(12, activation="relu")
        self.mean = layers.Dense(latent_dim)
        self.log_variance = layers.Dense(latent_dim)
        self.sampling = Sampling()
        self.decoder = keras.Sequential([layers.Dense(12, activation="relu"), layers.Dense(width)])

    def call(self, inputs):
        x = self.hidden(inputs)
        return self.decoder(self.sampling((self.mean(x), self.log_variance(x))))


rows = np.random.default_rng(0).normal(size=(96, 10)).astype("float32")
vae = VariationalAutoencoder(10, 3)
vae.compile(keras.optimizers.Adam(1e-3), loss=keras.losses.MeanSquaredError())
history = vae.fit(
    rows,
    rows,
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/vae", monitor="loss", save_freq=5)],
)
