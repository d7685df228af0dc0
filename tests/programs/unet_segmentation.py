"""Segmentation by a small U-net, the images given by a PyDataset."""

import math

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(25)
draw = np.random.default_rng(0)
images = draw.uniform(size=(48, 8, 8, 3)).astype("float32")
masks = np.eye(2, dtype="float32")[(images.mean(axis=-1) > 0.5).astype("int32")]


class Pets(keras.utils.PyDataset):
    def __init__(self, images, masks, batch_size, **kwargs):
        super().__init__(**kwargs)
        self.images, self.masks, self.batch_size = images, masks, batch_size

    def __len__(self):
        return math.ceil(len(self.images) / self.batch_size)

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return self.images[rows], self.masks[rows]


def get_model():
    inputs = keras.Input((8, 8, 3))
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(inputs)))
    down = layers.MaxPooling2D(2)(x)
    down = layers.SeparableConv2D(8, 3, padding="same", activation="relu")(down)
    up = layers.Conv2DTranspose(6, 3, strides=2, padding="same")(layers.BatchNormalization()(down))
    x = layers.add([up, layers.Conv2D(6, 1)(x)])
    return keras.Model(inputs, layers.Conv2D(2, 3, activation="softmax", padding="same")(x))


model = get_model()
model.compile(
    keras.optimizers.Adam(1e-3),
    "categorical_crossentropy",
    metrics=[keras.metrics.OneHotMeanIoU(2)],
)
history = model.fit(
    Pets(images[:40], masks[:40], 8),
    validation_data=Pets(images[40:], masks[40:], 4),
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/pets", save_best_only=True)],
)
