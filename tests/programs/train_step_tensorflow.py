"""A train step of the model's own on TensorFlow, with trackers of its own for the metrics."""

import keras
import numpy as np
import tensorflow as tf

import ckptstore

keras.utils.set_random_seed(2)
loss_tracker = keras.metrics.Mean(name="loss")
mae_metric = keras.metrics.MeanAbsoluteError(name="mae")
loss_function = keras.losses.MeanSquaredError()


class CustomModel(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            predictions = self(x, training=True)
            loss = loss_function(y, predictions)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        loss_tracker.update_state(loss)
        mae_metric.update_state(y, predictions)
        return {"loss": loss_tracker.result(), "mae": mae_metric.result()}

    @property
    def metrics(self):
        return [loss_tracker, mae_metric]


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
