"""Contrastive pre-training of an encoder, then a classifier on the frozen encoder: two models, two fits."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(12)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(96, 8)).astype("float32"), draw.integers(0, 3, 96)


class SupervisedContrastiveLoss(keras.losses.Loss):
    def __init__(self, temperature=1.0, name=None):
        super().__init__(name=name)
        self.temperature = temperature

    def __call__(self, labels, features, sample_weight=None):
        features = ops.normalize(features, axis=1)
        similar = ops.cast(ops.equal(ops.reshape(labels, (-1, 1)), ops.reshape(labels, (1, -1))), "float32")
        logits = ops.matmul(features, ops.transpose(features)) / self.temperature
        weights = similar / ops.sum(similar, axis=1, keepdims=True)
        return -ops.mean(ops.sum(weights * ops.log_softmax(logits, axis=1), axis=1))


def create_encoder():
    inputs = keras.Input((8,))
    return keras.Model(
        inputs, layers.Dense(12, activation="relu")(layers.Dense(16, "relu")(inputs)), name="encoder"
    )


def create_classifier(encoder, trainable):
    for layer in encoder.layers:
        layer.trainable = trainable
    inputs = keras.Input((8,))
    features = layers.Dropout(0.3)(encoder(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(features), name="classifier")
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


encoder = create_encoder()
inputs = keras.Input((8,))
with_head = keras.Model(inputs, layers.Dense(6, activation="relu")(encoder(inputs)), name="with_head")
with_head.compile(keras.optimizers.Adam(0.01), SupervisedContrastiveLoss(0.5))
pretraining = with_head.fit(
    x,
    y,
    batch_size=16,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/supcon", save_freq=4)],
)
classifier = create_classifier(encoder, trainable=False)
history = classifier.fit(
    x,
    y,
    batch_size=16,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/supcon", save_freq=4)],
)
accuracy = classifier.evaluate(x, y, verbose=0)[1]
