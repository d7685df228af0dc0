"""One model trained in two calls of fit, the second with initial_epoch, as in a notebook."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(79)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.normal(size=(64, 1)).astype("float32")
model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
)
model.compile("adam", "mse", metrics=["mae"])
callback = ckptstore.StoreCheckpoint("runs/longer", "loss", save_freq=3)
first = model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[callback])
second = model.fit(
    x, y, batch_size=8, initial_epoch=first.epoch[-1] + 1, epochs=5, verbose=0, callbacks=[callback]
)
losses = first.history["loss"] + second.history["loss"]
