"""Batches by a shuffling torch DataLoader, and a validation loader."""

import keras
import numpy as np
import torch

import ckptstore

keras.utils.set_random_seed(49)
torch.manual_seed(49)  # Keras seeds torch on its own backend alone
draw = np.random.default_rng(0)
x = torch.tensor(draw.normal(size=(64, 6)), dtype=torch.float32)
y = torch.tensor(draw.integers(0, 3, 64))
train = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
validation = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:16], y[:16]), batch_size=8)
model = keras.Sequential(
    [
        keras.Input((6,)),
        keras.layers.Dense(8, "relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(3, "softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    train,
    validation_data=validation,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/loader", save_freq=3)],
)
