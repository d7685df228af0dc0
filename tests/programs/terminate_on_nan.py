"""A rate so high that the loss becomes NaN: TerminateOnNaN ends the training, and it stays ended."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(58)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.normal(size=(64, 1)).astype("float32")
model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(0.001), "mse")


def rate(epoch, current):
    return 1e20 if epoch == 3 else current


history = model.fit(
    x,
    y,
    batch_size=8,
    epochs=6,
    verbose=0,
    callbacks=[
        keras.callbacks.LearningRateScheduler(rate),
        keras.callbacks.TerminateOnNaN(),
        ckptstore.StoreCheckpoint("runs/nan", "loss", save_freq=3),
    ],
)
epochs = len(history.epoch)
