"""A metric and a loss as classes, a layer at the end that computes both, a regularizer for activity."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(59)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.integers(0, 2, (64, 1)).astype("float32")


class TruePositives(keras.metrics.Metric):
    def __init__(self, name="true_positives", **kwargs):
        super().__init__(name=name, **kwargs)
        self.count = self.add_weight(shape=(), initializer="zeros", name="count")
        self.largest = 0.0

    def update_state(self, y_true, y_pred, sample_weight=None):
        hits = ops.logical_and(ops.cast(y_true, "bool"), ops.greater(y_pred, 0.5))
        self.count.assign_add(ops.sum(ops.cast(hits, "float32")))

    def result(self):
        return self.count + 0.0

    def reset_state(self):
        self.count.assign(0.0)


class Endpoint(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.loss_fn = keras.losses.BinaryCrossentropy(from_logits=True)
        self.accuracy = keras.metrics.BinaryAccuracy(name="accuracy")
        self.hits = TruePositives()

    def call(self, logits, targets=None):
        if targets is not None:
            self.add_loss(self.loss_fn(targets, logits))
            self.accuracy.update_state(targets, ops.sigmoid(logits))
            self.hits.update_state(targets, ops.sigmoid(logits))
        return ops.sigmoid(logits)


inputs, targets = keras.Input((6,), name="inputs"), keras.Input((1,), name="targets")
hidden = layers.Dense(8, "relu", activity_regularizer=keras.regularizers.L2(1e-3))(inputs)
predictions = Endpoint(name="predictions")(layers.Dense(1)(layers.Dropout(0.2)(hidden)), targets)
model = keras.Model([inputs, targets], predictions)
model.compile("adam")
history = model.fit(
    {"inputs": x, "targets": y},
    batch_size=8,
    epochs=3,
    validation_data=({"inputs": x[:16], "targets": y[:16]},),
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/endpoint", "val_true_positives", mode="max", save_freq=3)],
)
