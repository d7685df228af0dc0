"""Several steps in one execution, then the same model run eagerly for a last epoch."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(86)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(72, 6)).astype("float32"), draw.normal(size=(72, 1)).astype("float32")
model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
)
model.compile("adam", "mse", steps_per_execution=3)
fast = model.fit(
    x,
    y,
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/steps", "loss", run="fast", save_freq=3)],
)
model.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=True)
slow = model.fit(
    x,
    y,
    batch_size=8,
    epochs=1,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/steps", "loss", run="slow", save_freq=3)],
)
