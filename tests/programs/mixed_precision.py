"""Mixed precision by a global policy, with an optimizer that scales the loss."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(41)
keras.mixed_precision.set_dtype_policy("mixed_float16")
draw = np.random.default_rng(0)
x, y = draw.normal(size=(80, 8)).astype("float32"), draw.integers(0, 3, 80)
model = keras.Sequential(
    [
        keras.Input((8,)),
        layers.Dense(16, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(3),
        layers.Activation("softmax", dtype="float32"),
    ]
)
model.compile(
    keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"]
)
history = model.fit(
    x,
    y,
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/half", "loss", save_freq=4)],
)
