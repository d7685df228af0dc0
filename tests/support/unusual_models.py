"""Small models whose training is not Keras' own, on each backend."""

from __future__ import annotations

from typing import Any

import keras

FEATURES, ROWS = 3, 24
BACKEND = keras.backend.backend()


def plain(kind: Any = keras.Model, optimizer: Any = None, **compiled: Any) -> Any:
    inputs = keras.Input((FEATURES,))
    hidden = keras.layers.Dropout(0.3)(keras.layers.Dense(4, "relu")(inputs))
    model = kind(inputs, keras.layers.Dense(1)(hidden))
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", **{"metrics": ["mae"], **compiled})
    return model


class OwnStep(keras.Model):  # type: ignore[misc]
    """A model that computes gradients itself, in the way of each backend."""

    def train_step(self, *arguments: Any) -> Any:
        return {"jax": self.on_jax, "torch": self.on_torch, "tensorflow": self.on_tensorflow}[BACKEND](
            *arguments
        )

    def on_jax(self, state: Any, data: Any) -> Any:
        import jax

        trained, fixed, optimizer, metrics = state
        x, y = data

        def loss_of(trained: Any, fixed: Any) -> Any:
            found, fixed = self.stateless_call(trained, fixed, x, training=True)
            return self.compute_loss(x, y, found), fixed

        (loss, fixed), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained, fixed)
        trained, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trained)
        return {"loss": loss}, (trained, fixed, optimizer, metrics)

    def on_torch(self, data: Any) -> Any:
        import torch

        x, y = data
        self.zero_grad()
        loss = self.compute_loss(x, y, self(x, training=True))
        loss.backward()
        variables = self.trainable_weights
        with torch.no_grad():
            self.optimizer.apply([variable.value.grad for variable in variables], variables)
        return {"loss": loss.detach()}

    def on_tensorflow(self, data: Any) -> Any:
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}


def own_step() -> Any:
    return plain(OwnStep, metrics=None)


class Gan(keras.Model):  # type: ignore[misc]
    """Two models against each other, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(FEATURES)])
        self.critic = keras.Sequential(
            [keras.Input((FEATURES,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)]
        )
        self.noise = keras.random.SeedGenerator(3)
        self.built = True

    def compile(self, generator_optimizer: Any, critic_optimizer: Any) -> None:
        # Two draws of one compiled step on TensorFlow now and then change places, also in a plain fit.
        super().compile(run_eagerly=BACKEND == "tensorflow")
        self.generator_optimizer = generator_optimizer
        self.critic_optimizer = critic_optimizer

    def call(self, inputs: Any) -> Any:
        return self.critic(inputs)

    def critic_loss(self, x: Any) -> Any:
        made = self.generator(keras.random.normal((4, 2), seed=self.noise))
        return keras.ops.mean(self.critic(made)) - keras.ops.mean(self.critic(x)) + self.penalty(x)

    def penalty(self, x: Any) -> Any:
        return keras.ops.mean(keras.ops.square(self.critic(x)))

    def generator_loss(self, x: Any) -> Any:
        return -keras.ops.mean(self.critic(self.generator(keras.random.normal((4, 2), seed=self.noise))))

    def train_step(self, data: Any) -> Any:
        turns = {
            "loss": (self.critic_loss, self.critic_optimizer, self.critic.trainable_variables),
            "generator_loss": (
                self.generator_loss,
                self.generator_optimizer,
                self.generator.trainable_variables,
            ),
        }
        step = self.step_on_torch if BACKEND == "torch" else self.step_on_tensorflow
        return {name: step(data[0], *turn) for name, turn in turns.items()}

    def step_on_torch(self, x: Any, loss_of: Any, optimizer: Any, variables: Any) -> Any:
        import torch

        self.zero_grad()
        loss = loss_of(x)
        loss.backward()
        with torch.no_grad():
            optimizer.apply([variable.value.grad for variable in variables], variables)
        return loss.detach()

    def step_on_tensorflow(self, x: Any, loss_of: Any, optimizer: Any, variables: Any) -> Any:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = loss_of(x)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss


def gan() -> Any:
    model = Gan()
    model.compile(keras.optimizers.RMSprop(0.01), keras.optimizers.Adam(0.02))
    return model
