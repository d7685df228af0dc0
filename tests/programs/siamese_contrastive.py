"""A siamese network: one embedding for two inputs, their distance, and a contrastive loss made by a function."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(11)
draw = np.random.default_rng(0)
left, right = (draw.normal(size=(80, 8)).astype("float32") for _ in range(2))
same = draw.integers(0, 2, (80, 1)).astype("float32")


@keras.saving.register_keras_serializable("siamese")
class Distance(layers.Layer):
    def call(self, pair):
        first, second = pair
        squares = ops.sum(ops.square(first - second), axis=1, keepdims=True)
        return ops.sqrt(ops.maximum(squares, keras.config.epsilon()))


def contrastive(margin=1.0):
    def contrastive_loss(y_true, y_pred):
        return ops.mean(
            (1 - y_true) * ops.square(y_pred) + y_true * ops.square(ops.maximum(margin - y_pred, 0))
        )

    return contrastive_loss


inputs = keras.Input((8,))
x = layers.BatchNormalization()(inputs)
x = layers.Dense(10, activation="tanh")(x)
embedding = keras.Model(inputs, layers.Dense(4, activation="tanh")(x))
first, second = keras.Input((8,)), keras.Input((8,))
x = layers.BatchNormalization()(Distance()([embedding(first), embedding(second)]))
siamese = keras.Model([first, second], layers.Dense(1, activation="sigmoid")(x))
siamese.compile(loss=contrastive(margin=1), optimizer="RMSprop", metrics=["accuracy"])
history = siamese.fit(
    [left, right],
    same,
    validation_data=([left[:16], right[:16]], same[:16]),
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/siamese", save_freq=4)],
)
