"""A table with FeatureSpace: string and integer categories, a cross, floats, all in a tf.data pipeline."""

import keras
import numpy as np
import tensorflow as tf
from keras.utils import FeatureSpace

import ckptstore

keras.utils.set_random_seed(33)
draw = np.random.default_rng(0)
table = {
    "sex": draw.integers(0, 2, 80),
    "age": draw.normal(50, 10, 80).astype("float32"),
    "thal": draw.choice(["fixed", "normal", "reversible"], 80),
}
target = draw.integers(0, 2, 80)
data = tf.data.Dataset.from_tensor_slices((table, target)).shuffle(80, seed=5)
train, validation = data.take(64).batch(8), data.skip(64).batch(8)

feature_space = FeatureSpace(
    features={
        "sex": "integer_categorical",
        "age": FeatureSpace.float_discretized(num_bins=5),
        "thal": "string_categorical",
    },
    crosses=[FeatureSpace.cross(feature_names=("sex", "thal"), crossing_dim=8)],
    output_mode="concat",
)
feature_space.adapt(train.map(lambda x, _: x))
ready = train.map(lambda x, y: (feature_space(x), y), num_parallel_calls=2).prefetch(2)
ready_validation = validation.map(lambda x, y: (feature_space(x), y))

encoded = feature_space.get_encoded_features()
x = keras.layers.Dropout(0.5)(keras.layers.Dense(8, activation="relu")(encoded))
training_model = keras.Model(encoded, keras.layers.Dense(1, activation="sigmoid")(x))
training_model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
history = training_model.fit(
    ready,
    epochs=3,
    validation_data=ready_validation,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/features", save_freq=4)],
)
