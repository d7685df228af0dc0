"""Imbalanced classes: class weights and rare validation in one fit, sample weights in another."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(45)
draw = np.random.default_rng(0)
x = draw.normal(size=(96, 6)).astype("float32")
y = (draw.uniform(size=(96, 1)) < 0.1).astype("int32")
weights = draw.uniform(0.5, 2, 96).astype("float32")


def make(**compiled):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(12, "relu"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1, "sigmoid"),
        ]
    )
    metrics = [keras.metrics.Precision(name="precision"), keras.metrics.Recall(name="recall")]
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", **(compiled or {"metrics": metrics}))
    return model


by_class = make()
first = by_class.fit(
    x,
    y,
    batch_size=16,
    epochs=4,
    validation_split=0.25,
    validation_freq=2,
    class_weight={0: 1.0, 1: 9.0},
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/fraud", run="by-class", save_freq=4)],
)
by_sample = make(weighted_metrics=["accuracy"])
second = by_sample.fit(
    x,
    y,
    sample_weight=weights,
    batch_size=16,
    epochs=3,
    validation_data=(x[:16], y[:16], weights[:16]),
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/fraud", run="by-sample", save_freq=4)],
)
