"""Text classification from raw strings: tf.data, TextVectorization adapted first, an end-to-end model after."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import ckptstore

keras.utils.set_random_seed(26)
words = [
    "a",
    "film",
    "that",
    "nobody",
    "wanted",
    "to",
    "see",
    "loved",
    "great",
    "bad",
    "good",
    "sad",
    "songs",
]
draw = np.random.default_rng(0)
texts = [" ".join(draw.choice(words, draw.integers(4, 12))) for _ in range(80)]
labels = draw.integers(0, 2, 80)
raw = tf.data.Dataset.from_tensor_slices((texts, labels)).shuffle(80, seed=1).batch(8)

vectorize = layers.TextVectorization(max_tokens=30, output_mode="int", output_sequence_length=10)
vectorize.adapt(raw.map(lambda text, label: text))
train = raw.map(lambda text, label: (vectorize(tf.expand_dims(text, -1)), label)).cache().prefetch(2)

inputs = keras.Input((None,), dtype="int64")
x = layers.Dropout(0.5)(layers.Embedding(30, 8)(inputs))
x = layers.Conv1D(8, 3, padding="valid", activation="relu", strides=2)(x)
x = layers.Dropout(0.5)(layers.Dense(8, activation="relu")(layers.GlobalMaxPooling1D()(x)))
model = keras.Model(inputs, layers.Dense(1, activation="sigmoid", name="predictions")(x))
model.compile(loss="binary_crossentropy", optimizer="adam", metrics=["accuracy"])
history = model.fit(
    train,
    validation_data=train,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/imdb", save_freq=4)],
)
strings = keras.Input((1,), dtype="string")
end_to_end = keras.Model(strings, model(vectorize(strings)))
end_to_end.compile(loss="binary_crossentropy", optimizer="adam", metrics=["accuracy"])
score = end_to_end.evaluate(raw, verbose=0)
