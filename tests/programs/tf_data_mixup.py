"""MixUp in tf.data: two shuffled data sets zipped, weights of the mix drawn by tf.random inside a map."""

import keras
import numpy as np
import tensorflow as tf

import ckptstore

keras.utils.set_random_seed(48)
draw = np.random.default_rng(0)
x = draw.normal(size=(64, 6)).astype("float32")
y = keras.utils.to_categorical(draw.integers(0, 3, 64), 3).astype("float32")


def mix(first, second):
    (x_one, y_one), (x_two, y_two) = first, second
    share = tf.random.uniform((tf.shape(x_one)[0], 1))
    return x_one * share + x_two * (1 - share), y_one * share + y_two * (1 - share)


def shuffled():
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(32).batch(8)


train = tf.data.Dataset.zip((shuffled(), shuffled())).map(mix).prefetch(tf.data.AUTOTUNE)
model = keras.Sequential(
    [
        keras.Input((6,)),
        keras.layers.Dense(8, "relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(3, "softmax"),
    ]
)
model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    train, epochs=3, verbose=0, callbacks=[ckptstore.StoreCheckpoint("runs/mixup", "loss", save_freq=3)]
)
