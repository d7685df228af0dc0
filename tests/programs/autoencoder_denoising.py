"""A convolutional autoencoder that is first trained to copy, then to remove noise: two fits of one model."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(6)
clean = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype("float32")
noisy = np.clip(clean + 0.4 * np.random.normal(size=clean.shape), 0, 1).astype("float32")

inputs = keras.Input((8, 8, 1))
x = layers.Conv2D(6, 3, activation="relu", padding="same")(inputs)
x = layers.MaxPooling2D(2, padding="same")(x)
x = layers.Conv2DTranspose(6, 3, strides=2, activation="relu", padding="same")(x)
outputs = layers.Conv2D(1, 3, activation="sigmoid", padding="same")(x)
autoencoder = keras.Model(inputs, outputs)
autoencoder.compile("adam", "binary_crossentropy")

callback = ckptstore.StoreCheckpoint("runs/autoencoder", save_freq=3)
first = autoencoder.fit(
    clean,
    clean,
    epochs=2,
    batch_size=8,
    shuffle=True,
    validation_data=(clean, clean),
    verbose=0,
    callbacks=[callback],
)
between = autoencoder.predict(clean[:4], verbose=0)
second = autoencoder.fit(
    noisy,
    clean,
    epochs=3,
    batch_size=8,
    shuffle=True,
    validation_data=(noisy, clean),
    verbose=0,
    callbacks=[callback],
)
after = autoencoder.predict(noisy[:4], verbose=0)
