"""A train step of the model's own on JAX, with the functional state of `fit`."""

import jax
import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(2)


class CustomModel(keras.Model):
    def loss_and_updates(self, trainable, non_trainable, x, y):
        predictions, non_trainable = self.stateless_call(trainable, non_trainable, x, training=True)
        return self.compute_loss(x, y, predictions), (predictions, non_trainable)

    def train_step(self, state, data):
        trainable, non_trainable, optimizer, metrics = state
        x, y = data
        step = jax.value_and_grad(self.loss_and_updates, has_aux=True)
        (loss, (predictions, non_trainable)), gradients = step(trainable, non_trainable, x, y)
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        logs, updated = {}, []
        for metric in self.metrics:
            mine = metrics[len(updated) : len(updated) + len(metric.variables)]
            if metric.name == "loss":
                mine = metric.stateless_update_state(mine, loss)
            else:
                mine = metric.stateless_update_state(mine, y, predictions)
            logs[metric.name] = metric.stateless_result(mine)
            updated += mine
        return logs, (trainable, non_trainable, optimizer, updated)


inputs = keras.Input((8,))
x = keras.layers.Dense(16, activation="relu")(inputs)
x = keras.layers.Dropout(0.5)(x)
model = CustomModel(inputs, keras.layers.Dense(1)(x))
model.compile("adam", "mse", metrics=["mae"])
draw = np.random.default_rng(0)
history = model.fit(
    draw.normal(size=(96, 8)),
    draw.normal(size=(96, 1)),
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/custom", save_freq=5)],
)
