"""A masked autoencoder with a train step and a test step, but without `call`, on torch."""

import keras
import numpy as np
import torch
from keras import layers

import ckptstore

keras.utils.set_random_seed(9)


class MaskedAutoencoder(keras.Model):
    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential(
            [keras.Input((12,)), layers.Dense(8, activation="gelu"), layers.Dropout(0.1)]
        )
        self.decoder = keras.Sequential([keras.Input((8,)), layers.Dense(12)])
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.built = True

    @property
    def metrics(self):
        return [self.loss_tracker]

    def calculate_loss(self, patches, training):
        keep = (torch.rand(patches.shape) > 0.5).float()
        decoded = self.decoder(self.encoder(patches * keep, training=training))
        return torch.mean(((decoded - patches) * (1 - keep)) ** 2)

    def train_step(self, patches):
        patches = patches.float()
        self.zero_grad()
        loss = self.calculate_loss(patches, training=True)
        loss.backward()
        with torch.no_grad():
            self.optimizer.apply(
                [weight.value.grad for weight in self.trainable_weights], self.trainable_weights
            )
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, patches):
        self.loss_tracker.update_state(self.calculate_loss(patches.float(), training=False))
        return {"loss": self.loss_tracker.result()}


patches = np.random.default_rng(0).normal(size=(96, 12)).astype("float32")
model = MaskedAutoencoder()
model.compile(optimizer=keras.optimizers.AdamW(1e-3))
history = model.fit(
    patches,
    batch_size=8,
    epochs=3,
    validation_data=(patches[:24],),
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/mae", save_freq=5)],
)
