"""A table of numbers and categories: preprocessing layers adapted first and then part of the model."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(32)
draw = np.random.default_rng(0)
age, pressure = draw.normal(50, 10, (96, 1)), draw.normal(120, 20, (96, 1))
pain = draw.integers(0, 4, (96, 1))
target = draw.integers(0, 2, (96, 1))

normalize = layers.Normalization()
normalize.adapt(age)
buckets = layers.Discretization(bin_boundaries=[100, 120, 140], output_mode="one_hot")

inputs = {
    "age": keras.Input((1,), name="age"),
    "pressure": keras.Input((1,), name="pressure"),
    "pain": keras.Input((1,), name="pain", dtype="int64"),
}
features = layers.concatenate(
    [
        normalize(inputs["age"]),
        buckets(inputs["pressure"]),
        layers.CategoryEncoding(num_tokens=4, output_mode="one_hot")(inputs["pain"]),
    ]
)
x = layers.Dropout(0.5)(layers.Dense(16, activation="relu")(features))
model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
model.compile("adam", "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC(name="auc")])
history = model.fit(
    {"age": age, "pressure": pressure, "pain": pain},
    target,
    epochs=3,
    batch_size=8,
    validation_split=0.25,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/heart", "val_auc", mode="max", save_freq=4)],
)
