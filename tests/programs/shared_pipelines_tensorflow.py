"""A baseline, pretraining without labels, a probe and fine-tuning, over pipelines that shuffle and share stages."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(34)
draw = np.random.default_rng(0)
labeled_x, labels = draw.normal(size=(32, 6)).astype("float32"), draw.integers(0, 3, 32)
unlabeled_x = draw.normal(size=(64, 6)).astype("float32")
unlabeled = tf.data.Dataset.from_tensor_slices(unlabeled_x).shuffle(64).batch(16)
labeled = tf.data.Dataset.from_tensor_slices((labeled_x, labels)).shuffle(32)
train, held_out = labeled.skip(8), labeled.take(8).batch(8)
doubled = train.map(lambda row, label: (2 * row, label)).batch(8)
both = tf.data.Dataset.zip((unlabeled, train.batch(8).repeat()))
endless = labeled.repeat().batch(8)
samples = []


def build_encoder():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.2), layers.Dense(4)]
    )


def build_classifier(encoder, rate):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3)(encoder(inputs)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


class Pretraining(keras.Model):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.loss_tracker = keras.metrics.Mean(name="loss")

    def train_step(self, data):
        rows, (few, _) = data
        rows = tf.concat([rows, few], axis=0)
        with tf.GradientTape() as tape:
            first = self.encoder(rows + tf.random.normal(tf.shape(rows), stddev=0.1), training=True)
            second = self.encoder(rows + tf.random.normal(tf.shape(rows), stddev=0.1), training=True)
            loss = ops.mean(ops.square(first - second)) - 0.1 * ops.mean(ops.std(first, axis=0))
        weights = self.encoder.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


class Samples(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        samples.append(float(tf.random.normal(())))

    def get_state(self):
        return {"samples": list(samples)}

    def set_state(self, state):
        samples[:] = state["samples"]


def train_on(model, data, **options):
    callbacks = [ckptstore.StoreCheckpoint("runs/shared", save_freq=2), Samples()]
    return model.fit(data, epochs=3, verbose=0, callbacks=callbacks, **options)


baseline = build_classifier(build_encoder(), 0.01)
first = train_on(baseline, doubled, validation_data=held_out)
encoder = build_encoder()
pretraining = Pretraining(encoder)
pretraining.compile(keras.optimizers.Adam(0.01))
second = train_on(pretraining, both)
encoder.trainable = False
probe = build_classifier(encoder, 0.01)
third = train_on(probe, endless, steps_per_epoch=3, validation_data=held_out)
encoder.trainable = True
tuned = build_classifier(encoder, 0.001)
fourth = train_on(tuned, endless, steps_per_epoch=3)
last_rows = np.concatenate([rows for rows, _ in doubled.as_numpy_iterator()])
drawn = float(tf.random.normal(()))
