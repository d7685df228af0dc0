"""Sequences of different lengths, padded and masked: embeddings that mask zeros, a bidirectional network."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(60)
draw = np.random.default_rng(0)
sequences = [draw.integers(1, 20, draw.integers(2, 9)).tolist() for _ in range(64)]
x = keras.utils.pad_sequences(sequences, maxlen=8, padding="post")
y = np.array([sum(row) % 2 for row in sequences])
model = keras.Sequential(
    [
        keras.Input((8,), dtype="int32"),
        layers.Embedding(20, 8, mask_zero=True),
        layers.SpatialDropout1D(0.1),
        layers.Bidirectional(layers.LSTM(4, return_sequences=True, recurrent_dropout=0.1)),
        layers.Bidirectional(layers.LSTM(4)),
        layers.Dense(1, activation="sigmoid"),
    ]
)
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
history = model.fit(
    x,
    y,
    batch_size=16,
    epochs=3,
    validation_split=0.25,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/masked", "val_accuracy", save_freq=2)],
)
