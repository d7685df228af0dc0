"""Small models of the kinds that people train with a step of their own, on each backend that can train them.

Each is a function that returns a compiled model; `KINDS` names them. All train on the same data, see `DATA`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

BACKEND = keras.backend.backend()
FEATURES, CODE = 4, 2


def data(rows: int = 24) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {
        "x": draw.normal(size=(rows, FEATURES)).astype("float32"),
        "y": draw.normal(size=(rows, 1)).astype("float32"),
    }


class Turns(keras.Model):  # type: ignore[misc]
    """Trains by turns: each turn has a loss, an optimizer, and the part that it trains."""

    def turns(self) -> list[tuple[str, Callable[[Any], Any], Any, Any]]:
        return [("loss", self.loss_of, self.optimizer, self)]

    def loss_of(self, x: Any) -> Any:
        raise NotImplementedError

    def after_step(self) -> None:
        """Update what is not trained by gradients."""

    def train_step(self, *arguments: Any) -> Any:
        if BACKEND == "jax":
            return self.on_jax(*arguments)
        (x, *_) = keras.utils.unpack_x_y_sample_weight(*arguments)
        step = self.on_torch if BACKEND == "torch" else self.on_tensorflow
        logs = {name: step(x, *turn) for name, *turn in self.turns()}
        self.after_step()
        return logs

    def on_torch(self, x: Any, loss_of: Any, optimizer: Any, trained: Any) -> Any:
        import torch

        self.zero_grad()
        loss = loss_of(x)
        loss.backward()
        variables = trained.trainable_variables
        with torch.no_grad():
            optimizer.apply([variable.value.grad for variable in variables], variables)
        return loss.detach()

    def on_tensorflow(self, x: Any, loss_of: Any, optimizer: Any, trained: Any) -> Any:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = loss_of(x)
        variables = trained.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    def on_jax(self, state: Any, data: Any) -> Any:
        import jax

        trained, fixed, slots, metrics = state
        x = data[0] if isinstance(data, tuple) else data
        live = [*self.trainable_variables, *self.non_trainable_variables, *self.metrics_variables]
        ((_, loss_of, optimizer, part_of),) = self.turns()
        wanted = {id(variable) for variable in part_of.trainable_variables}
        chosen = [id(variable) in wanted for variable in self.trainable_variables]

        def loss_from(part: Any) -> Any:
            own = iter(part)
            values = [next(own) if mine else value for mine, value in zip(chosen, trained, strict=True)]
            mapping = list(zip(live, [*values, *fixed, *metrics], strict=True))
            with keras.StatelessScope(state_mapping=mapping) as scope:
                loss = loss_of(x)
            return loss, [scope.get_current_value(variable) for variable in live]

        part = [value for mine, value in zip(chosen, trained, strict=True) if mine]
        (loss, after), gradients = jax.value_and_grad(loss_from, has_aux=True)(part)
        part, slots = optimizer.stateless_apply(slots, gradients, part)
        own = iter(part)
        values = [next(own) if mine else value for mine, value in zip(chosen, after, strict=False)]
        mapping = list(zip(live, [*values, *after[len(trained) :]], strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self.after_step()
        after = [scope.get_current_value(variable) for variable in live]
        sizes = len(trained), len(trained) + len(fixed)
        return {"loss": loss}, (after[: sizes[0]], after[sizes[0] : sizes[1]], slots, after[sizes[1] :])


def perceptron(inputs: int | None, outputs: int, **named: Any) -> Any:
    """Return a small network; one without a number of inputs is built with its first batch."""
    first = [] if inputs is None else [keras.Input((inputs,))]
    return keras.Sequential([*first, layers.Dense(3, "tanh"), layers.Dense(outputs)], **named)


def inputs(number: int) -> int | None:
    """Return the number of inputs, or None on TensorFlow: there Keras trains models that are not built yet."""
    return None if BACKEND == "tensorflow" else number


def adam() -> Any:
    return keras.optimizers.Adam(0.01)


def compiled(model: Any, **options: Any) -> Any:
    if BACKEND != "tensorflow":
        # Keras asks for this where a model has no `call`.
        model.built = True
    model.compile(**{"optimizer": adam(), **options})
    return model


# --- the models --------------------------------------------------------------------------------------


class Autoencoder(keras.Model):  # type: ignore[misc]
    """Built with its first batch, and trained by Keras' own step."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = perceptron(None, CODE), perceptron(None, FEATURES)

    def call(self, x: Any) -> Any:
        return self.decoder(self.encoder(x))


def autoencoder() -> Any:
    model = Autoencoder()
    model.compile(adam(), "mse", metrics=["mae"])
    return model


class Sampling(layers.Layer):  # type: ignore[misc]
    """Draws from the distribution that an encoder describes; not registered."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, given: Any) -> Any:
        mean, log_variance = given
        return mean + ops.exp(0.5 * log_variance) * keras.random.normal(ops.shape(mean), seed=self.seed)


def encoder() -> Any:
    x = keras.Input((FEATURES,))
    mean, log_variance = layers.Dense(CODE)(x), layers.Dense(CODE)(x)
    return keras.Model(x, [mean, log_variance, Sampling()([mean, log_variance])])


class VariationalAutoencoder(Turns):
    """Given its parts, so that Keras cannot describe it; no `call`; metrics of its own."""

    def __init__(self, encoder: Any, decoder: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.reconstruction = keras.metrics.Mean(name="reconstruction")

    @property
    def metrics(self) -> list[Any]:
        return [self.reconstruction]

    def loss_of(self, x: Any) -> Any:
        mean, log_variance, code = self.encoder(x)
        loss = ops.mean(ops.square(self.decoder(code) - x))
        self.reconstruction.update_state(loss)
        return loss - 0.1 * ops.mean(1 + log_variance - ops.square(mean) - ops.exp(log_variance))


def variational() -> Any:
    return compiled(VariationalAutoencoder(encoder(), perceptron(inputs(CODE), FEATURES)))


class Gan(Turns):
    """Two optimizers, set in its own `compile`; only the critic of these two is trained with a penalty."""

    def __init__(self, generator: Any, critic: Any) -> None:
        super().__init__()
        self.generator, self.critic = generator, critic
        self.seed = keras.random.SeedGenerator(3)

    def compile(self, d_optimizer: Any, g_optimizer: Any, **options: Any) -> None:
        super().compile(**options)
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def turns(self) -> Any:
        yield "d_loss", self.critic_loss, self.d_optimizer, self.critic
        yield "g_loss", self.generator_loss, self.g_optimizer, self.generator

    def fake(self, x: Any) -> Any:
        return self.generator(keras.random.normal((4, CODE), seed=self.seed))

    def critic_loss(self, x: Any) -> Any:
        fake = self.fake(x)
        return ops.mean(self.critic(fake)) - ops.mean(self.critic(x)) + ops.mean(ops.square(self.critic(x)))

    def generator_loss(self, x: Any) -> Any:
        return -ops.mean(self.critic(self.fake(x)))


def gan() -> Any:
    model = Gan(perceptron(inputs(CODE), FEATURES), perceptron(inputs(FEATURES), 1))
    # Two draws of one compiled step on TensorFlow now and then change places, also in a plain fit.
    return compiled(
        model, optimizer=None, d_optimizer=adam(), g_optimizer=keras.optimizers.RMSprop(0.01),
        run_eagerly=BACKEND == "tensorflow",
    )  # fmt: skip


class CycleGan(Turns):
    """Its models and optimizers are in dicts and lists."""

    def __init__(self) -> None:
        super().__init__()
        self.generators = {side: perceptron(inputs(FEATURES), FEATURES) for side in ("there", "back")}
        self.critics = [perceptron(inputs(FEATURES), 1) for _ in range(2)]

    def compile(self, **options: Any) -> None:
        super().compile(**options)
        self.optimizers = {"generators": [adam(), adam()], "critics": [adam(), keras.optimizers.SGD(0.01)]}

    def turns(self) -> Any:
        for number, (side, generator) in enumerate(self.generators.items()):
            back = self.generators["back" if side == "there" else "there"]
            critic = self.critics[number]

            def cycle(x: Any, generator: Any = generator, back: Any = back, critic: Any = critic) -> Any:
                return ops.mean(ops.square(back(generator(x)) - x)) - ops.mean(critic(generator(x)))

            def judge(x: Any, generator: Any = generator, critic: Any = critic) -> Any:
                return ops.mean(ops.square(critic(x) - 1)) + ops.mean(ops.square(critic(generator(x))))

            optimizers = self.optimizers
            yield f"{side}_cycle", cycle, optimizers["generators"][number], generator
            yield f"{side}_judge", judge, optimizers["critics"][number], critic


def cycle_gan() -> Any:
    return compiled(CycleGan(), optimizer=None)


class Distiller(Turns):
    """A teacher that is not trained, and a student; its `call` is the student's."""

    def __init__(self, student: Any, teacher: Any) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.teacher.trainable = False

    def loss_of(self, x: Any) -> Any:
        return ops.mean(ops.square(self.student(x) - self.teacher(x)))

    def call(self, x: Any) -> Any:
        return self.student(x)


def distiller() -> Any:
    return compiled(Distiller(perceptron(inputs(FEATURES), 1), perceptron(FEATURES, 1)))


class Contrastive(Turns):
    """Two views of each row, by layers that draw; a projection head, and a temperature that is its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.augment = layers.GaussianNoise(0.1, seed=2)
        self.encoder, self.head = perceptron(inputs(FEATURES), 3), perceptron(inputs(3), 3)
        self.temperature = self.add_weight(shape=(), initializer="ones", name="temperature")

    def embed(self, x: Any) -> Any:
        return ops.normalize(self.head(self.encoder(self.augment(x, training=True))), axis=-1)

    def loss_of(self, x: Any) -> Any:
        similarity = ops.matmul(self.embed(x), ops.transpose(self.embed(x))) / self.temperature
        return ops.mean(keras.losses.sparse_categorical_crossentropy(
            ops.arange(ops.shape(x)[0]), similarity, from_logits=True
        ))  # fmt: skip


def contrastive() -> Any:
    return compiled(Contrastive())


class Diffusion(Turns):
    """A network, and its moving average, which is its copy and not trained by gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.normalizer = layers.Normalization()
        self.network = perceptron(FEATURES, FEATURES)
        self.ema_network = keras.models.clone_model(self.network)
        self.normalizer.adapt(data()["x"])
        self.seed = keras.random.SeedGenerator(5)

    def turns(self) -> Any:
        return [("loss", self.loss_of, self.optimizer, self.network)]

    def loss_of(self, x: Any) -> Any:
        x = self.normalizer(x)
        return ops.mean(ops.square(self.network(x + keras.random.normal((4, FEATURES), seed=self.seed)) - x))

    def after_step(self) -> None:
        for variable, average in zip(self.network.weights, self.ema_network.weights, strict=True):
            average.assign(0.9 * average + 0.1 * variable)


def diffusion() -> Any:
    model = compiled(Diffusion())
    model.optimizer.build(model.network.trainable_variables)
    return model


class Momentum(Turns):
    """Two encoders: one trained, one that follows it slowly; a predictor on top (as in BYOL)."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = perceptron(inputs(FEATURES), 3), perceptron(inputs(FEATURES), 3)
        self.predictor = perceptron(inputs(3), 3)
        self.target.trainable = False
        self.drop = layers.Dropout(0.2)

    def loss_of(self, x: Any) -> Any:
        online = self.predictor(self.online(self.drop(x, training=True)))
        return ops.mean(ops.square(online - ops.stop_gradient(self.target(x))))

    def after_step(self) -> None:
        for variable, slow in zip(self.online.weights, self.target.weights, strict=True):
            slow.assign(0.9 * slow + 0.1 * variable)


def momentum() -> Any:
    return compiled(Momentum())


def siamese() -> Any:
    """One encoder with two inputs, a lambda of the script's, and a head; Keras trains it."""
    shared, left = perceptron(FEATURES, 3), keras.Input((FEATURES,))
    right = layers.Lambda(lambda x: ops.flip(x, axis=-1), output_shape=(FEATURES,))(left)
    distance = layers.Subtract()([shared(left), shared(right)])
    model = keras.Model(left, layers.Dense(1)(layers.Dropout(0.2)(distance)))
    model.compile(adam(), lambda y, found: ops.mean(ops.square(y - found)), metrics=["mae"])
    return model


class Unconfigurable(keras.Model):  # type: ignore[misc]
    """Its configuration holds what is no plain value, and raises something of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = layers.Dense(3), layers.Dense(1)
        self.drop = layers.Dropout(0.2)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.out(self.drop(self.hidden(x), training=training))

    def get_config(self) -> dict[str, Any]:
        return {"act": object(), "missing": {}["no such key"]}


def unconfigurable() -> Any:
    model = Unconfigurable()
    model.compile(adam(), "mse")
    return model


class Agent(Turns):
    """A policy and a replay buffer in its own variables, filled by each step."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = perceptron(inputs(FEATURES), 2)
        self.buffer = self.add_weight(
            shape=(8, FEATURES), initializer="zeros", trainable=False, name="buffer"
        )
        self.filled = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="filled"
        )
        self.seed = keras.random.SeedGenerator(6)

    def loss_of(self, x: Any) -> Any:
        self.buffer.assign(ops.concatenate([self.buffer[4:], x], axis=0))
        self.filled.assign(self.filled + 4)
        rows = keras.random.randint((4,), 0, 8, seed=self.seed)
        taken = ops.take(ops.convert_to_tensor(self.buffer), rows, axis=0)
        return ops.mean(ops.logsumexp(self.policy(taken), axis=-1)) + ops.mean(ops.square(self.policy(x)))


def agent() -> Any:
    return compiled(Agent())


class Adversary(Turns):
    """One of its models is compiled with an optimizer of its own, and frozen while the other is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = perceptron(inputs(FEATURES), FEATURES), perceptron(inputs(FEATURES), 1)

    def compile(self, **options: Any) -> None:
        super().compile(**options)
        self.critic.compile(keras.optimizers.Adam(0.02))

    def turns(self) -> Any:
        self.critic.trainable = True
        yield "critic_loss", self.critic_loss, self.critic.optimizer, self.critic
        self.critic.trainable = False
        yield "loss", self.generator_loss, self.optimizer, self.generator

    def critic_loss(self, x: Any) -> Any:
        return ops.mean(self.critic(self.generator(x))) + ops.mean(ops.square(self.critic(x) - 1))

    def generator_loss(self, x: Any) -> Any:
        return -ops.mean(self.critic(self.generator(x)))


def adversary() -> Any:
    return compiled(Adversary())


KINDS: dict[str, Callable[[], Any]] = {
    found.__name__: found
    for found in (
        autoencoder, variational, distiller, contrastive, diffusion, momentum, siamese, unconfigurable, agent,
    )
}  # fmt: skip
if BACKEND != "jax":  # where Keras trains with one optimizer
    KINDS |= {found.__name__: found for found in (gan, cycle_gan, adversary)}


def optimizers(model: Any) -> list[Any]:
    """Return all optimizers in a model's attributes, in containers and in its own models, in a stable order."""
    found: dict[int, Any] = {}

    def visit(value: Any) -> None:
        if isinstance(value, keras.optimizers.Optimizer):
            found.setdefault(id(value), value)
            visit(getattr(value, "inner_optimizer", None))
        elif isinstance(value, dict):
            for inner in value.values():
                visit(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                visit(inner)

    for layer in model._flatten_layers():
        for name in sorted(vars(layer)):
            if not name.startswith("_"):
                visit(vars(layer)[name])
    return list(found.values())
