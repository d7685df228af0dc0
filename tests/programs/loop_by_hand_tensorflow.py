"""A loop by hand on TensorFlow: GradientTape in a tf.function, metrics reset after each epoch."""

import keras
import numpy as np
import tensorflow as tf

import ckptstore

keras.utils.set_random_seed(52)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(48, 6)).astype("float32"), draw.integers(0, 3, 48)
model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(3)]
)
optimizer = keras.optimizers.Adam(0.01)
optimizer.build(model.trainable_variables)
loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
accuracy = keras.metrics.SparseCategoricalAccuracy()


@tf.function
def train_step(inputs, targets):
    with tf.GradientTape() as tape:
        logits = model(inputs, training=True)
        loss = loss_fn(targets, logits)
    optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
    accuracy.update_state(targets, logits)
    return loss


with ckptstore.CheckpointStore("runs/by-hand") as store:
    found = store.resume(model, optimizer=optimizer)
    for epoch in range(0 if found is None else found.epoch + 1, 6):
        for rows in np.random.permutation(48).reshape(6, 8):
            loss = train_step(x[rows], y[rows])
        store.save(
            model,
            optimizer=optimizer,
            epoch=epoch,
            metrics={"loss": float(loss), "accuracy": float(accuracy.result())},
        )
        accuracy.reset_state()
