"""Text, categories and numbers prepared by layers in tf.data: nothing there is random, and nothing is to be said."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import ckptstore

keras.utils.set_random_seed(62)
draw = np.random.default_rng(0)
words = np.array(["rain", "sun", "wind", "snow", "fog", "ice", "storm", "calm"])
texts = [" ".join(draw.choice(words, 6)) for _ in range(64)]
colours = draw.choice(["red", "green", "blue"], 64)
numbers = draw.normal(3, 2, size=(64, 2)).astype("float32")
labels = draw.integers(0, 2, 64)

vectorize = layers.TextVectorization(max_tokens=12, output_sequence_length=6)
vectorize.adapt(texts)
look_up = layers.StringLookup(output_mode="one_hot")
look_up.adapt(colours)
normalize = layers.Normalization()
normalize.adapt(numbers)
hashed, encode = layers.Hashing(5), layers.CategoryEncoding(num_tokens=5, output_mode="one_hot")
buckets = layers.Discretization(num_bins=4)
buckets.adapt(numbers[:, :1])
# Of these only the training is random.
augment = keras.Sequential([layers.GaussianNoise(0.5), layers.Rescaling(0.5)])


def prepare(text, colour, number, label):
    features = {
        "text": vectorize(text),
        "colour": look_up(colour),
        "hashed": encode(hashed(colour)),
        "numbers": augment(normalize(number), training=False),
        "bucket": buckets(number[:, :1]),
    }
    return features, label


data = tf.data.Dataset.from_tensor_slices((texts, colours, numbers, labels)).shuffle(64).batch(8)
data = data.map(prepare, num_parallel_calls=2).prefetch(2)

inputs = {
    "text": keras.Input((6,), dtype="int64", name="text"),
    "colour": keras.Input((look_up.vocabulary_size(),), name="colour"),
    "hashed": keras.Input((5,), name="hashed"),
    "numbers": keras.Input((2,), name="numbers"),
    "bucket": keras.Input((1,), name="bucket"),
}
parts = [layers.Flatten()(layers.Embedding(12, 3)(inputs["text"])), *list(inputs.values())[1:]]
model = keras.Model(inputs, layers.Dense(1, "sigmoid")(layers.Dropout(0.2)(layers.concatenate(parts))))
model.compile("adam", "binary_crossentropy")
history = model.fit(
    data,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/prepared", monitor="loss", save_freq=3)],
)
