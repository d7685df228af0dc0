"""Several inputs and outputs: losses, weights and metrics by the names of the outputs."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(17)
draw = np.random.default_rng(0)
n, words = 64, 20
title, body = draw.integers(0, words, (n, 5)), draw.integers(0, words, (n, 9))
tags = draw.integers(0, 2, (n, 3)).astype("float32")
targets = {
    "priority": draw.uniform(size=(n, 1)).astype("float32"),
    "department": draw.integers(0, 4, n),
    "length": draw.normal(size=(n, 2)).astype("float32"),
}

title_input, body_input = keras.Input((5,), name="title"), keras.Input((9,), name="body")
tags_input = keras.Input((3,), name="tags")
x = layers.concatenate(
    [
        layers.LSTM(6)(layers.Embedding(words, 8)(title_input)),
        layers.LSTM(6, dropout=0.2)(layers.Embedding(words, 8)(body_input)),
        tags_input,
    ]
)
model = keras.Model(
    [title_input, body_input, tags_input],
    {
        "priority": layers.Dense(1, activation="sigmoid", name="priority")(x),
        "department": layers.Dense(4, name="department")(x),
        "length": layers.Dense(2, name="length")(x),
    },
)
model.compile(
    keras.optimizers.RMSprop(1e-3),
    loss={
        "priority": keras.losses.BinaryCrossentropy(),
        "department": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "length": "mse",
    },
    loss_weights={"priority": 1.0, "department": 0.2, "length": 0.5},
    metrics={"department": ["accuracy"], "length": ["mae"]},
)
history = model.fit(
    {"title": title, "body": body, "tags": tags},
    targets,
    epochs=3,
    batch_size=8,
    validation_split=0.25,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/tickets", "val_department_loss", save_freq=4)],
)
