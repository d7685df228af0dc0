"""Contrastive learning with a linear probe, on TensorFlow: augmenters, a projection head, two optimizers."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(21)
width = 8


def augmenter(contrast):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.RandomFlip("horizontal"),
            layers.RandomTranslation(0.1, 0.1),
            layers.RandomContrast(contrast, value_range=(0, 1)),
        ]
    )


class ContrastiveModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.temperature = 0.1
        self.contrastive_augmenter = augmenter(0.5)
        self.classification_augmenter = augmenter(0.1)
        self.encoder = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(6, 3, 2, activation="relu"),
                layers.Flatten(),
                layers.Dense(width),
            ]
        )
        self.projection_head = keras.Sequential([keras.Input((width,)), layers.Dense(width)])
        self.linear_probe = keras.Sequential([keras.Input((width,)), layers.Dense(4)])

    def compile(self, contrastive_optimizer, probe_optimizer, **kwargs):
        super().compile(**kwargs)
        self.contrastive_optimizer = contrastive_optimizer
        self.probe_optimizer = probe_optimizer
        self.probe_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.contrastive_loss_tracker = keras.metrics.Mean(name="c_loss")
        self.contrastive_accuracy = keras.metrics.SparseCategoricalAccuracy(name="c_acc")
        self.probe_loss_tracker = keras.metrics.Mean(name="p_loss")
        self.probe_accuracy = keras.metrics.SparseCategoricalAccuracy(name="p_acc")

    @property
    def metrics(self):
        return [
            self.contrastive_loss_tracker,
            self.contrastive_accuracy,
            self.probe_loss_tracker,
            self.probe_accuracy,
        ]

    def contrastive_loss(self, first, second):
        first, second = ops.normalize(first, axis=1), ops.normalize(second, axis=1)
        similarities = ops.matmul(first, ops.transpose(second)) / self.temperature
        labels = ops.arange(ops.shape(first)[0])
        self.contrastive_accuracy.update_state(labels, similarities)
        losses = keras.losses.sparse_categorical_crossentropy(labels, similarities, from_logits=True)
        turned = keras.losses.sparse_categorical_crossentropy(
            labels, ops.transpose(similarities), from_logits=True
        )
        return ops.mean(losses + turned) / 2

    def train_step(self, data):
        images, labels = data
        first = self.contrastive_augmenter(images, training=True)
        second = self.contrastive_augmenter(images, training=True)
        with tf.GradientTape() as tape:
            loss = self.contrastive_loss(
                self.projection_head(self.encoder(first, training=True)),
                self.projection_head(self.encoder(second, training=True)),
            )
        weights = self.encoder.trainable_weights + self.projection_head.trainable_weights
        self.contrastive_optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.contrastive_loss_tracker.update_state(loss)
        with tf.GradientTape() as tape:
            features = self.encoder(self.classification_augmenter(images, training=True), training=False)
            logits = self.linear_probe(features, training=True)
            probe_loss = self.probe_loss(labels, logits)
        weights = self.linear_probe.trainable_weights
        self.probe_optimizer.apply_gradients(zip(tape.gradient(probe_loss, weights), weights, strict=True))
        self.probe_loss_tracker.update_state(probe_loss)
        self.probe_accuracy.update_state(labels, logits)
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data):
        images, labels = data
        logits = self.linear_probe(self.encoder(images, training=False), training=False)
        self.probe_loss_tracker.update_state(self.probe_loss(labels, logits))
        self.probe_accuracy.update_state(labels, logits)
        return {metric.name: metric.result() for metric in self.metrics[2:]}


draw = np.random.default_rng(0)
x, y = draw.uniform(size=(64, 8, 8, 1)).astype("float32"), draw.integers(0, 4, 64)
model = ContrastiveModel()
model.compile(contrastive_optimizer=keras.optimizers.Adam(), probe_optimizer=keras.optimizers.Adam())
history = model.fit(
    x,
    y,
    batch_size=16,
    epochs=3,
    validation_data=(x[:16], y[:16]),
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/simclr", monitor="val_p_acc", save_freq=3)],
)
optimizers = [model.contrastive_optimizer, model.probe_optimizer]
