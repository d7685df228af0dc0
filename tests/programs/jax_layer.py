"""A function of JAX with parameters and a state of its own, as a layer of a Keras model."""

import jax
import keras
import numpy as np
from keras.layers import JaxLayer

import ckptstore

keras.utils.set_random_seed(82)


def init(rng, inputs):
    params = {"w": 0.1 * jax.random.normal(rng, (inputs.shape[-1], 8)), "b": jax.numpy.zeros((8,))}
    return params, {"seen": jax.numpy.zeros(())}


def call(params, state, rng, inputs):
    kept = jax.random.bernoulli(rng, 0.8, inputs.shape)
    outputs = jax.nn.relu((inputs * kept) @ params["w"] + params["b"])
    return outputs, {"seen": state["seen"] + 1.0}


model = keras.Sequential(
    [keras.Input((6,)), JaxLayer(call, init, seed=4), keras.layers.Dense(3, activation="softmax")]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.integers(0, 3, 64)
history = model.fit(
    x,
    y,
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/jax", "loss", save_freq=3)],
)
