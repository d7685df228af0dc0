"""A loop by hand on JAX: a jitted, stateless step; the state is put back into the model before each save."""

import jax
import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(51)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(48, 6)).astype("float32"), draw.integers(0, 3, 48)
model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(3)]
)
optimizer = keras.optimizers.Adam(0.01)
optimizer.build(model.trainable_variables)
loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compute(trainable, non_trainable, inputs, targets):
    predictions, non_trainable = model.stateless_call(trainable, non_trainable, inputs, training=True)
    return loss_fn(targets, predictions), non_trainable


@jax.jit
def train_step(state, inputs, targets):
    trainable, non_trainable, slots = state
    step = jax.value_and_grad(compute, has_aux=True)
    (loss, non_trainable), gradients = step(trainable, non_trainable, inputs, targets)
    trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
    return loss, (trainable, non_trainable, slots)


def values(variables):
    return [variable.value for variable in variables]


with ckptstore.CheckpointStore("runs/by-hand") as store:
    found = store.resume(model, optimizer=optimizer)
    state = (
        values(model.trainable_variables),
        values(model.non_trainable_variables),
        values(optimizer.variables),
    )
    for epoch in range(0 if found is None else found.epoch + 1, 6):
        order = np.random.permutation(48)
        for rows in order.reshape(6, 8):
            loss, state = train_step(state, x[rows], y[rows])
        groups = model.trainable_variables, model.non_trainable_variables, optimizer.variables
        for variables, group in zip(groups, state, strict=True):
            for variable, value in zip(variables, group, strict=True):
                variable.assign(value)
        store.save(model, optimizer=optimizer, epoch=epoch, metrics={"loss": float(loss)})
del state
