"""Augmentation layers outside the model, in a map of tf.data, as image classification from scratch does it."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import ckptstore

keras.utils.set_random_seed(71)
draw = np.random.default_rng(0)
images, labels = draw.uniform(size=(48, 8, 8, 3)).astype("float32"), draw.integers(0, 2, 48)
augmentation = [layers.RandomFlip("horizontal"), layers.RandomContrast(0.2, value_range=(0, 1))]


def augment(batch, label):
    for layer in augmentation:
        batch = layer(batch)
    return batch, label


train = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(48, seed=2).batch(8)
train = train.map(augment, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
model = keras.Sequential(
    [
        keras.Input((8, 8, 3)),
        layers.Conv2D(4, 3, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(1),
    ]
)
model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True), metrics=["accuracy"])
history = model.fit(
    train,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/cats", monitor="loss", save_freq=4)],
)
