"""LoRA: a network trained in full, then only low-rank additions to its frozen weights."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(42)
draw = np.random.default_rng(0)
x, y = draw.integers(0, 20, (64, 6)), draw.integers(0, 3, 64)
model = keras.Sequential(
    [
        keras.Input((6,), dtype="int32"),
        layers.Embedding(20, 8),
        layers.EinsumDense("abc,cd->abd", output_shape=(6, 8), bias_axes="d"),
        layers.Flatten(),
        layers.Dense(12, activation="relu"),
        layers.Dropout(0.1),
        layers.Dense(3, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
full = model.fit(
    x, y, epochs=1, batch_size=8, verbose=0, callbacks=[ckptstore.StoreCheckpoint("runs/lora", run="full")]
)
for layer in model.layers:
    if hasattr(layer, "enable_lora"):
        layer.enable_lora(rank=2)
    else:
        layer.trainable = False
model.compile(keras.optimizers.AdamW(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
tuned = model.fit(
    x,
    y,
    epochs=3,
    batch_size=8,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/lora", run="tuned", monitor="loss", save_freq=3)],
)
