"""Collaborative filtering: embeddings of users and films in a model that is built by its first batch."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(56)
draw = np.random.default_rng(0)
x = np.stack([draw.integers(0, 12, 96), draw.integers(0, 20, 96)], axis=1)
y = draw.uniform(size=96).astype("float32")


class RecommenderNet(keras.Model):
    def __init__(self, users, films, size, **kwargs):
        super().__init__(**kwargs)
        options = {
            "embeddings_initializer": "he_normal",
            "embeddings_regularizer": keras.regularizers.l2(1e-6),
        }
        self.user_embedding = layers.Embedding(users, size, **options)
        self.user_bias = layers.Embedding(users, 1)
        self.film_embedding = layers.Embedding(films, size, **options)
        self.film_bias = layers.Embedding(films, 1)

    def call(self, inputs):
        user, film = inputs[:, 0], inputs[:, 1]
        dot = ops.sum(self.user_embedding(user) * self.film_embedding(film), axis=-1, keepdims=True)
        return ops.sigmoid(dot + self.user_bias(user) + self.film_bias(film))


model = RecommenderNet(12, 20, 4)
model.compile(loss=keras.losses.BinaryCrossentropy(), optimizer=keras.optimizers.Adam(0.01))
history = model.fit(
    x,
    y,
    batch_size=16,
    epochs=3,
    validation_data=(x[:16], y[:16]),
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/films", save_freq=4)],
)
