"""An endless Python generator that draws rows and flips them, with steps_per_epoch."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(47)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(50, 4, 4, 1)).astype("float32"), draw.integers(0, 2, (50, 1))


def batches(size):
    while True:
        rows = np.random.randint(0, len(x), size)
        images = x[rows]
        if np.random.random() < 0.5:
            images = images[:, :, ::-1]
        yield images, y[rows]


model = keras.Sequential(
    [
        keras.Input((4, 4, 1)),
        keras.layers.Conv2D(4, 2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
)
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
history = model.fit(
    batches(8),
    steps_per_epoch=6,
    epochs=3,
    validation_data=(x[:10], y[:10]),
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/generator", save_freq=4)],
)
