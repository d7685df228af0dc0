"""A train step of the model's own on torch: zero_grad, backward, and the optimizer of Keras."""

import keras
import numpy as np
import torch

import ckptstore

keras.utils.set_random_seed(2)


class CustomModel(keras.Model):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.mae_metric = keras.metrics.MeanAbsoluteError(name="mae")
        self.loss_fn = keras.losses.MeanSquaredError()

    def train_step(self, data):
        x, y = data
        self.zero_grad()
        predictions = self(x, training=True)
        loss = self.loss_fn(y, predictions)
        loss.backward()
        weights = list(self.trainable_weights)
        gradients = [weight.value.grad for weight in weights]
        with torch.no_grad():
            self.optimizer.apply(gradients, weights)
        self.loss_tracker.update_state(loss)
        self.mae_metric.update_state(y, predictions)
        return {"loss": self.loss_tracker.result(), "mae": self.mae_metric.result()}

    @property
    def metrics(self):
        return [self.loss_tracker, self.mae_metric]


inputs = keras.Input((8,))
x = keras.layers.Dense(16, activation="relu")(inputs)
x = keras.layers.Dropout(0.5)(x)
model = CustomModel(inputs, keras.layers.Dense(1)(x))
model.compile(optimizer="adam")
draw = np.random.default_rng(0)
history = model.fit(
    draw.normal(size=(96, 8)),
    draw.normal(size=(96, 1)),
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/custom", save_freq=5)],
)
