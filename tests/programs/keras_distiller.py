"""Distillation with the Distiller that Keras has."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(87)


def network(width, name):
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(width, "relu"), layers.Dropout(0.1), layers.Dense(3, "softmax")],
        name=name,
    )


draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 8)).astype("float32"), draw.integers(0, 3, 64)
teacher, student = network(16, "teacher"), network(4, "student")
distiller = keras.distillation.Distiller(
    teacher=teacher,
    student=student,
    distillation_losses=keras.distillation.LogitsDistillation(temperature=3.0),
)
distiller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = distiller.fit(
    x,
    y,
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/distiller", "loss", save_freq=3)],
)
score = student.predict(x[:4], verbose=0)
