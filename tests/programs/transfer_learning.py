"""Transfer learning in stages: a new head on a frozen base, then the base unfrozen, compiled again, trained on."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(16)
draw = np.random.default_rng(0)
x, y = draw.uniform(size=(64, 8, 8, 3)).astype("float32"), draw.integers(0, 2, (64, 1))
base = keras.Sequential(
    [
        keras.Input((8, 8, 3)),
        layers.Conv2D(6, 3, activation="relu"),
        layers.BatchNormalization(),
        layers.GlobalAveragePooling2D(),
    ],
    name="base",
)
base.trainable = False

inputs = keras.Input((8, 8, 3))
features = base(layers.RandomFlip("horizontal")(inputs), training=False)
model = keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.2)(features)))
loss = keras.losses.BinaryCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(), loss, metrics=[keras.metrics.BinaryAccuracy()])
callbacks = [ckptstore.StoreCheckpoint("runs/transfer", save_freq=3)]
head = model.fit(x, y, epochs=2, batch_size=8, validation_split=0.25, verbose=0, callbacks=callbacks)

base.trainable = True
model.compile(keras.optimizers.Adam(1e-5), loss, metrics=[keras.metrics.BinaryAccuracy()])
fine = model.fit(x, y, epochs=2, batch_size=8, validation_split=0.25, verbose=0, callbacks=callbacks)
