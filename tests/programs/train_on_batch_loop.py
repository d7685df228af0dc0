"""A loop by hand with train_on_batch and test_on_batch, saved after each epoch; a file for the best."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(88)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(48, 6)).astype("float32"), draw.integers(0, 3, 48)
model = keras.Sequential(
    [
        keras.Input((6,)),
        keras.layers.Dense(8, "relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(3, "softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

with ckptstore.CheckpointStore("runs/batches") as store:
    found = store.resume(model)
    for epoch in range(0 if found is None else found.epoch + 1, 5):
        model.reset_metrics()
        for rows in np.random.permutation(40).reshape(5, 8):
            loss, accuracy = model.train_on_batch(x[rows], y[rows])
        model.reset_metrics()
        val_loss, val_accuracy = model.test_on_batch(x[40:], y[40:])
        metrics = {"loss": loss, "val_loss": val_loss, "val_accuracy": val_accuracy}
        store.save(
            model, epoch=epoch, metrics=metrics, keep=ckptstore.keep_last(2), monitor=("val_loss", "min")
        )
weights, optimizer = model.get_weights(), model.optimizer
