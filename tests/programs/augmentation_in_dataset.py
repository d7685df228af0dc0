"""Augmentation layers outside the model, called by a PyDataset for each batch."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(72)
draw = np.random.default_rng(0)
x, y = draw.uniform(size=(48, 4, 4, 1)).astype("float32"), draw.integers(0, 2, (48, 1))


class Augmented(keras.utils.PyDataset):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flip = layers.RandomFlip("horizontal_and_vertical")
        self.noise = layers.GaussianNoise(0.1)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        rows = slice(index * 8, index * 8 + 8)
        images = self.noise(self.flip(x[rows], training=True), training=True)
        return keras.ops.convert_to_numpy(images), y[rows]


model = keras.Sequential(
    [keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(6, "relu"), layers.Dropout(0.2), layers.Dense(1)]
)
model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
history = model.fit(
    Augmented(),
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/augmented", "loss", save_freq=4)],
)
