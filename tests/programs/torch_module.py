"""A module of torch with batch normalization and dropout inside a Keras model."""

import keras
import numpy as np
import torch

import ckptstore

keras.utils.set_random_seed(81)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.dropout = torch.nn.Dropout(0.2)

    def forward(self, x):
        return self.dropout(torch.relu(self.norm(self.linear(x))))


class Model(keras.Model):
    def __init__(self):
        super().__init__()
        self.block = keras.layers.TorchModuleWrapper(Block())
        self.head = keras.layers.Dense(3, activation="softmax")

    def call(self, x):
        return self.head(self.block(x))


draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.integers(0, 3, 64)
model = Model()
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    x,
    y,
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/module", "loss", save_freq=3)],
)
statistics = list(model.block.module.state_dict().values())
