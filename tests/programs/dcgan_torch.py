"""A GAN whose train step steps two optimizers, on torch; noise by torch's global generator."""

import keras
import numpy as np
import torch
from keras import layers

import ckptstore

keras.utils.set_random_seed(3)
latent_dim = 8
discriminator = keras.Sequential(
    [keras.Input((16,)), layers.Dense(16, "relu"), layers.Dropout(0.2), layers.Dense(1)], name="discriminator"
)
generator = keras.Sequential(
    [keras.Input((latent_dim,)), layers.Dense(16), layers.BatchNormalization(), layers.Dense(16, "tanh")],
    name="generator",
)


class GAN(keras.Model):
    def __init__(self, discriminator, generator, latent_dim):
        super().__init__()
        self.discriminator = discriminator
        self.generator = generator
        self.latent_dim = latent_dim
        self.d_loss_tracker = keras.metrics.Mean(name="d_loss")
        self.g_loss_tracker = keras.metrics.Mean(name="g_loss")
        self.built = True

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.loss_fn = loss_fn

    @property
    def metrics(self):
        return [self.d_loss_tracker, self.g_loss_tracker]

    def step(self, loss, network, optimizer):
        network.zero_grad()
        loss.backward()
        gradients = [weight.value.grad for weight in network.trainable_weights]
        with torch.no_grad():
            optimizer.apply(gradients, network.trainable_weights)

    def train_step(self, real):
        batch_size = real.shape[0]
        fake = self.generator(torch.randn(batch_size, self.latent_dim))
        labels = torch.cat([torch.ones(batch_size, 1), torch.zeros(batch_size, 1)])
        labels = labels + 0.05 * torch.rand(labels.shape)
        d_loss = self.loss_fn(labels, self.discriminator(torch.cat([fake.detach(), real.float()])))
        self.step(d_loss, self.discriminator, self.d_optimizer)

        fooled = self.discriminator(self.generator(torch.randn(batch_size, self.latent_dim)))
        g_loss = self.loss_fn(torch.zeros(batch_size, 1), fooled)
        self.step(g_loss, self.generator, self.g_optimizer)
        self.d_loss_tracker.update_state(d_loss)
        self.g_loss_tracker.update_state(g_loss)
        return {"d_loss": self.d_loss_tracker.result(), "g_loss": self.g_loss_tracker.result()}


rows = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
gan = GAN(discriminator, generator, latent_dim)
gan.compile(
    d_optimizer=keras.optimizers.Adam(1e-3),
    g_optimizer=keras.optimizers.RMSprop(1e-3),
    loss_fn=keras.losses.BinaryCrossentropy(from_logits=True),
)
history = gan.fit(
    rows, batch_size=8, epochs=3, verbose=0, callbacks=[ckptstore.StoreCheckpoint("runs/gan", save_freq=3)]
)
d_optimizer, g_optimizer = gan.d_optimizer, gan.g_optimizer
