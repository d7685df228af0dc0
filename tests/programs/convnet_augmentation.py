"""Image classification from scratch: augmentation layers in the model, separable convolutions, residuals."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(7)
draw = np.random.default_rng(0)
images = draw.uniform(0, 255, (48, 8, 8, 3)).astype("float32")
labels = draw.integers(0, 2, (48, 1))


def make_model(shape):
    inputs = keras.Input(shape)
    x = layers.RandomFlip("horizontal")(inputs)
    x = layers.RandomTranslation(0.1, 0.1)(x)
    x = layers.Rescaling(1 / 255)(x)
    x = layers.GaussianNoise(0.05)(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    before = x = layers.Activation("relu")(x)
    x = layers.SeparableConv2D(8, 3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.add([x, layers.Conv2D(8, 1, strides=2, padding="same")(before)])
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.25)(x)
    return keras.Model(inputs, layers.Dense(1)(x))


model = make_model((8, 8, 3))
model.compile(
    optimizer=keras.optimizers.Adam(3e-4),
    loss=keras.losses.BinaryCrossentropy(from_logits=True),
    metrics=[keras.metrics.BinaryAccuracy(name="acc")],
)
history = model.fit(
    images,
    labels,
    batch_size=8,
    epochs=3,
    validation_data=(images[:16], labels[:16]),
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/cats", save_freq=3)],
)
