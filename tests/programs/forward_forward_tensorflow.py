"""The forward-forward algorithm: each layer has an optimizer and a loss of its own, and trains itself."""

import keras
import numpy as np
import tensorflow as tf

import ckptstore

keras.utils.set_random_seed(75)


class FFDense(keras.layers.Layer):
    def __init__(self, units, epochs=3, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(units)
        self.relu = keras.layers.ReLU()
        self.optimizer = keras.optimizers.Adam(0.03)
        self.loss_metric = keras.metrics.Mean(name="loss")
        self.threshold, self.num_epochs = 1.5, epochs

    def call(self, x):
        direction = x / (tf.norm(x, axis=1, keepdims=True) + 1e-4)
        return self.relu(self.dense(direction))

    def forward_forward(self, positive, negative):
        for _ in range(self.num_epochs):
            with tf.GradientTape() as tape:
                g_positive = tf.reduce_mean(tf.square(self.call(positive)), axis=1)
                g_negative = tf.reduce_mean(tf.square(self.call(negative)), axis=1)
                logits = tf.concat([self.threshold - g_positive, g_negative - self.threshold], axis=0)
                loss = tf.reduce_mean(tf.math.softplus(logits))
            weights = self.dense.trainable_weights
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            self.loss_metric.update_state(loss)
        return self.call(positive), self.call(negative), self.loss_metric.result()


class FFNetwork(keras.Model):
    def __init__(self, dims, **kwargs):
        super().__init__(**kwargs)
        self.loss_tracker = keras.metrics.Mean(name="final_loss")
        self.layer_list = [keras.Input((dims[0],))]
        for units in dims[1:]:
            self.layer_list.append(FFDense(units))
        self.ff_layers = self.layer_list[1:]

    def overlay(self, x, labels):
        return tf.concat([tf.one_hot(labels, 4), x[:, 4:]], axis=1)

    def train_step(self, data):
        x, y = data
        wrong = tf.roll(y, 1, axis=0)
        positive, negative = self.overlay(x, y), self.overlay(x, wrong)
        for layer in self.ff_layers:
            positive, negative, loss = layer.forward_forward(positive, negative)
            self.loss_tracker.update_state(loss)
        return {"final_loss": self.loss_tracker.result()}

    def call(self, x):
        for layer in self.ff_layers:
            x = layer(x)
        return x


draw = np.random.default_rng(0)
x, y = draw.normal(size=(48, 12)).astype("float32"), draw.integers(0, 4, 48)
model = FFNetwork(dims=[12, 8, 8])
model.compile(optimizer=keras.optimizers.Adam(0.03), loss="mse")
model(x[:1])
for layer in model.ff_layers:
    layer.optimizer.build(layer.dense.trainable_weights)
history = model.fit(
    x,
    y,
    epochs=3,
    batch_size=8,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/ff", "final_loss", save_freq=4)],
)
optimizers = [layer.optimizer for layer in model.ff_layers]
