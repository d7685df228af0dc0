"""Training in eight bits: a quantized model, whose scales and histories of maxima change with each step."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(43)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 8)).astype("float32"), draw.integers(0, 3, 64)
model = keras.Sequential(
    [
        keras.Input((8,)),
        layers.Dense(16, activation="relu"),
        layers.Dropout(0.1),
        layers.Dense(3, activation="softmax"),
    ]
)
model.quantize("float8")
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    x,
    y,
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/float8", "loss", save_freq=3)],
)
