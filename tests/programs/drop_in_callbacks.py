"""Keras' two callbacks replaced by ours of the same names, with Keras' arguments; the best file loaded at the end."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(80)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.normal(size=(64, 1)).astype("float32")
model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
)
model.compile(keras.optimizers.Adam(0.01), "mse")
history = model.fit(
    x,
    y,
    batch_size=8,
    epochs=4,
    validation_split=0.25,
    verbose=0,
    callbacks=[
        ckptstore.BackupAndRestore("backup", save_freq=4),
        ckptstore.ModelCheckpoint("models/best.keras", monitor="val_loss", save_best_only=True),
    ],
)
best = keras.models.load_model("models/best.keras")
score = best.evaluate(x, y, verbose=0)
