"""Contrastive learning with a queue of features that the model keeps as a tensor of its own, on torch."""

import keras
import numpy as np
import torch
from keras import layers

import ckptstore

keras.utils.set_random_seed(22)


class NNCLR(keras.Model):
    def __init__(self, queue_size=24, width=6):
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((10,)), layers.Dense(12, "relu"), layers.Dense(width)])
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.feature_queue = torch.nn.functional.normalize(torch.randn(queue_size, width), dim=1)
        self.steps = 0
        self.built = True

    @property
    def metrics(self):
        return [self.loss_tracker]

    def train_step(self, data):
        x = data.float()
        self.zero_grad()
        first = torch.nn.functional.normalize(self.encoder(x + 0.1 * torch.randn_like(x)), dim=1)
        second = torch.nn.functional.normalize(self.encoder(x + 0.1 * torch.randn_like(x)), dim=1)
        nearest = self.feature_queue[(first.detach() @ self.feature_queue.T).argmax(dim=1)]
        temperature = 0.1 + 0.5 * 0.95**self.steps
        loss = torch.nn.functional.cross_entropy(nearest @ second.T / temperature, torch.arange(len(x)))
        loss.backward()
        weights = self.trainable_weights
        with torch.no_grad():
            self.optimizer.apply([weight.value.grad for weight in weights], weights)
        self.feature_queue = torch.cat([first.detach(), self.feature_queue[: -len(x)]])
        self.steps += 1
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


rows = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")
model = NNCLR()
model.compile(optimizer=keras.optimizers.Adam(1e-2))
history = model.fit(
    rows, batch_size=8, epochs=3, verbose=0, callbacks=[ckptstore.StoreCheckpoint("runs/nnclr", save_freq=3)]
)
queue, steps = model.feature_queue, model.steps
