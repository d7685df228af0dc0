"""The classic GAN loop by hand: two compiled models that share layers, and train_on_batch."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(5)
latent_dim, batch_size = 6, 16
real = np.random.default_rng(1).normal(size=(128, 10)).astype("float32")

discriminator = keras.Sequential([keras.Input((10,)), layers.Dense(12, "relu"), layers.Dense(1, "sigmoid")])
discriminator.compile(keras.optimizers.Adam(2e-3, beta_1=0.5), "binary_crossentropy", metrics=["accuracy"])
generator = keras.Sequential([keras.Input((latent_dim,)), layers.Dense(12, "relu"), layers.Dense(10)])
discriminator.trainable = False
noise = keras.Input((latent_dim,))
combined = keras.Model(noise, discriminator(generator(noise)))
combined.compile(keras.optimizers.Adam(2e-3, beta_1=0.5), "binary_crossentropy")

with ckptstore.CheckpointStore("runs/gan") as store:
    found = store.resume(combined, run="combined")
    if found is not None:
        # For its optimizer; saved before the other, which names it.
        store.restore(found.extra["discriminator"], discriminator)
    for epoch in range(0 if found is None else found.epoch + 1, 6):
        rows = np.random.randint(0, len(real), batch_size)
        fake = generator.predict(np.random.normal(size=(batch_size, latent_dim)), verbose=0)
        discriminator.train_on_batch(real[rows], np.ones((batch_size, 1)))
        discriminator.train_on_batch(fake, np.zeros((batch_size, 1)))
        combined.train_on_batch(np.random.normal(size=(batch_size, latent_dim)), np.ones((batch_size, 1)))
        kept = store.save(discriminator, run="discriminator", epoch=epoch, resumable=False)
        store.save(
            combined, run="combined", epoch=epoch, extra={"discriminator": kept.version if kept else 0}
        )
optimizers = [combined.optimizer, discriminator.optimizer]
