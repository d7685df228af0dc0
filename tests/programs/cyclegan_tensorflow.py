"""Four networks and four optimizers, given to compile by name, on TensorFlow."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import ckptstore

keras.utils.set_random_seed(74)


def network(width, name):
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.1), layers.Dense(width)], name=name
    )


class CycleGan(keras.Model):
    def __init__(self, generator_g, generator_f, discriminator_x, discriminator_y, weight=10.0):
        super().__init__()
        self.gen_g, self.gen_f = generator_g, generator_f
        self.disc_x, self.disc_y = discriminator_x, discriminator_y
        self.weight = weight

    def compile(
        self, gen_g_optimizer, gen_f_optimizer, disc_x_optimizer, disc_y_optimizer, gen_loss_fn, disc_loss_fn
    ):
        super().compile()
        self.optimizers = [gen_g_optimizer, gen_f_optimizer, disc_x_optimizer, disc_y_optimizer]
        self.gen_loss_fn, self.disc_loss_fn = gen_loss_fn, disc_loss_fn

    def train_step(self, data):
        real_x, real_y = data
        with tf.GradientTape(persistent=True) as tape:
            fake_y, fake_x = self.gen_g(real_x, training=True), self.gen_f(real_y, training=True)
            cycled_x, cycled_y = self.gen_f(fake_y, training=True), self.gen_g(fake_x, training=True)
            disc_fake_x, disc_fake_y = self.disc_x(fake_x, training=True), self.disc_y(fake_y, training=True)
            cycle = tf.reduce_mean(tf.abs(cycled_x - real_x)) + tf.reduce_mean(tf.abs(cycled_y - real_y))
            losses = {
                "G_loss": self.gen_loss_fn(disc_fake_y) + self.weight * cycle,
                "F_loss": self.gen_loss_fn(disc_fake_x) + self.weight * cycle,
                "D_X_loss": self.disc_loss_fn(self.disc_x(real_x, training=True), disc_fake_x),
                "D_Y_loss": self.disc_loss_fn(self.disc_y(real_y, training=True), disc_fake_y),
            }
        networks = (self.gen_g, self.gen_f, self.disc_x, self.disc_y)
        for loss, net, optimizer in zip(losses.values(), networks, self.optimizers, strict=True):
            weights = net.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return losses


def generator_loss(fake):
    return tf.reduce_mean((fake - 1) ** 2)


def discriminator_loss(real, fake):
    return (tf.reduce_mean((real - 1) ** 2) + tf.reduce_mean(fake**2)) * 0.5


model = CycleGan(network(6, "g"), network(6, "f"), network(1, "dx"), network(1, "dy"))
optimizers = [keras.optimizers.Adam(2e-3, beta_1=0.5) for _ in range(4)]
model.compile(*optimizers, gen_loss_fn=generator_loss, disc_loss_fn=discriminator_loss)
draw = np.random.default_rng(0)
horses, zebras = (draw.normal(size=(32, 6)).astype("float32") for _ in range(2))
data = tf.data.Dataset.zip(
    tuple(tf.data.Dataset.from_tensor_slices(rows).shuffle(32) for rows in (horses, zebras))
)
history = model.fit(
    data.batch(4),
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/cycle", "G_loss", save_freq=3)],
)
