"""A Wasserstein GAN with gradient penalty: several steps of the critic for each of the generator, on torch."""

import keras
import numpy as np
import torch
from keras import layers

import ckptstore

keras.utils.set_random_seed(73)


class WGAN(keras.Model):
    def __init__(self, critic, generator, latent_dim, extra_steps=2, weight=10.0):
        super().__init__()
        self.critic, self.generator = critic, generator
        self.latent_dim, self.extra_steps, self.weight = latent_dim, extra_steps, weight
        self.built = True

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def gradient_penalty(self, real, fake):
        share = torch.rand(len(real), 1)
        mixed = (real + share * (fake - real)).requires_grad_(True)
        (gradients,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
        return torch.mean((torch.sqrt(torch.sum(gradients**2, dim=1) + 1e-8) - 1) ** 2)

    def train_step(self, real):
        real = real.float()
        for _ in range(self.extra_steps):
            fake = self.generator(torch.randn(len(real), self.latent_dim)).detach()
            d_loss = self.critic(fake).mean() - self.critic(real).mean()
            d_loss = d_loss + self.weight * self.gradient_penalty(real, fake)
            self.apply(d_loss, self.critic, self.d_optimizer)
        g_loss = -self.critic(self.generator(torch.randn(len(real), self.latent_dim))).mean()
        self.apply(g_loss, self.generator, self.g_optimizer)
        return {"d_loss": d_loss.detach(), "g_loss": g_loss.detach()}

    def apply(self, loss, network, optimizer):
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            optimizer.apply(
                [weight.value.grad for weight in network.trainable_weights], network.trainable_weights
            )


critic = keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh"), layers.Dense(1)])
generator = keras.Sequential([keras.Input((3,)), layers.Dense(8, "relu"), layers.Dense(6)])
wgan = WGAN(critic, generator, latent_dim=3)
d_optimizer, g_optimizer = (keras.optimizers.Adam(2e-3, beta_1=0.5, beta_2=0.9) for _ in range(2))
wgan.compile(d_optimizer=d_optimizer, g_optimizer=g_optimizer)
rows = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")
history = wgan.fit(
    rows,
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/wgan", "d_loss", save_freq=4)],
)
