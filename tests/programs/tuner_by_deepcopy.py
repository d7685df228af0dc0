"""Trials as a tuner runs them: copies of the callbacks for each, hyperparameters that differ, the best one kept."""

import copy

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(15)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.normal(size=(64, 1)).astype("float32")
given = [
    keras.callbacks.EarlyStopping("loss", patience=3),
    ckptstore.StoreCheckpoint("runs/tuning", save_freq=3),
]


def build(units, rate):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(rate), "mse")
    return model


results = {}
for units, rate in [(4, 0.01), (8, 0.01), (8, 0.003)]:
    model = build(units, rate)
    callbacks = [copy.deepcopy(callback) for callback in given]
    history = model.fit(x, y, epochs=2, batch_size=8, validation_split=0.25, verbose=0, callbacks=callbacks)
    results[f"{units}/{rate}"] = history.history["val_loss"][-1]
best = min(results, key=results.get)
