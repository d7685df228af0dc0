"""Denoising diffusion with a moving average of the network, and noise by tf.random inside the train step."""

import keras
import numpy as np
import tensorflow as tf
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

    def compile(self, **kwargs):
        super().compile(**kwargs)
        self.noise_loss_tracker = keras.metrics.Mean(name="n_loss")

    @property
    def metrics(self):
        return [self.noise_loss_tracker]

    def train_step(self, rows):
        rows = self.normalizer(rows, training=True)
        batch_size = tf.shape(rows)[0]
        noises = tf.random.normal((batch_size, 8))
        angles = tf.random.uniform((batch_size, 1), 0.1, 1.4)
        noisy = tf.cos(angles) * rows + tf.sin(angles) * noises
        with tf.GradientTape() as tape:
            predicted = self.network([noisy, tf.sin(angles) ** 2], training=True)
            loss = self.loss(noises, predicted)
        weights = self.network.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.noise_loss_tracker.update_state(loss)
        for weight, ema_weight in zip(self.network.weights, self.ema_network.weights, strict=True):
            ema_weight.assign(0.9 * ema_weight + 0.1 * weight)
        return {metric.name: metric.result() for metric in self.metrics}


rows = np.random.default_rng(0).normal(2, 3, size=(64, 8)).astype("float32")
model = DiffusionModel()
model.compile(
    optimizer=keras.optimizers.AdamW(1e-3, weight_decay=1e-4), loss=keras.losses.mean_absolute_error
)
model.normalizer.adapt(rows)
history = model.fit(
    rows,
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/ddim", "n_loss", save_freq=3)],
)
