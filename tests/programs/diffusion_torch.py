"""Denoising diffusion with a moving average of the network, on torch, with keras.random and torch.randn."""

import keras
import numpy as np
import torch
from keras import layers

import ckptstore

keras.utils.set_random_seed(23)


def get_network():
    noisy, variance = keras.Input((8,)), keras.Input((1,))
    x = layers.Concatenate()([layers.Dense(12, "swish")(noisy), layers.Dense(4)(variance)])
    return keras.Model([noisy, variance], layers.Dense(8, kernel_initializer="zeros")(x))


class DiffusionModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.normalizer = layers.Normalization()
        self.network = get_network()
        self.ema_network = keras.models.clone_model(self.network)
        self.noise_loss_tracker = keras.metrics.Mean(name="n_loss")
        self.built = True

    @property
    def metrics(self):
        return [self.noise_loss_tracker]

    def train_step(self, rows):
        self.zero_grad()
        rows = self.normalizer(rows.float())
        noises = torch.randn(rows.shape)
        angles = keras.random.uniform((rows.shape[0], 1), 0.1, 1.4)
        noisy = torch.cos(angles) * rows + torch.sin(angles) * noises
        predicted = self.network([noisy, torch.sin(angles) ** 2], training=True)
        loss = torch.mean(torch.abs(noises - predicted))
        loss.backward()
        weights = self.network.trainable_weights
        with torch.no_grad():
            self.optimizer.apply([weight.value.grad for weight in weights], weights)
            for weight, ema_weight in zip(self.network.weights, self.ema_network.weights, strict=True):
                ema_weight.assign(0.9 * ema_weight + 0.1 * weight)
        self.noise_loss_tracker.update_state(loss)
        return {"n_loss": self.noise_loss_tracker.result()}


rows = np.random.default_rng(0).normal(2, 3, size=(64, 8)).astype("float32")
model = DiffusionModel()
model.compile(optimizer=keras.optimizers.AdamW(1e-3, weight_decay=1e-4))
model.normalizer.adapt(rows)
history = model.fit(
    rows,
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/ddim", "n_loss", save_freq=3)],
)
