"""Contrastive learning with a queue of features in a plain tf.Variable, and a counter that drives the loss."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import ckptstore

keras.utils.set_random_seed(22)


class NNCLR(keras.Model):
    def __init__(self, queue_size=24, width=6):
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((10,)), layers.Dense(12, "relu"), layers.Dense(width)])
        self.augment = layers.GaussianNoise(0.1)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        start = np.random.normal(size=(queue_size, width)).astype("float32")
        self.feature_queue = tf.Variable(tf.math.l2_normalize(start, axis=1), trainable=False)
        self.steps = tf.Variable(0, dtype=tf.int64, trainable=False)

    @property
    def metrics(self):
        return [self.loss_tracker]

    def train_step(self, data):
        with tf.GradientTape() as tape:
            first, second = (
                tf.math.l2_normalize(self.encoder(self.augment(data, training=True), training=True), axis=1)
                for _ in range(2)
            )
            similar = tf.matmul(first, self.feature_queue, transpose_b=True)
            nearest = tf.gather(self.feature_queue, tf.argmax(similar, axis=1))
            temperature = 0.1 + 0.5 * tf.pow(0.95, tf.cast(self.steps, tf.float32))
            logits = tf.matmul(tf.stop_gradient(nearest), second, transpose_b=True) / temperature
            labels = tf.range(tf.shape(logits)[0])
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        weights = self.encoder.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.feature_queue.assign(tf.concat([first, self.feature_queue[: -tf.shape(first)[0]]], axis=0))
        self.steps.assign_add(1)
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


rows = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")
model = NNCLR()
model.compile(optimizer=keras.optimizers.Adam(1e-2))
history = model.fit(
    rows, batch_size=8, epochs=3, verbose=0, callbacks=[ckptstore.StoreCheckpoint("runs/nnclr", save_freq=3)]
)
queue, steps = model.feature_queue, model.steps
