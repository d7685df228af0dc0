"""A metric of scikit-learn in a callback that predicts at each epoch's end and writes into the logs."""

import keras
import numpy as np
from sklearn.metrics import f1_score

import ckptstore

keras.utils.set_random_seed(85)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(80, 6)).astype("float32"), draw.integers(0, 3, 80)


class F1Score(keras.callbacks.Callback):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def on_epoch_end(self, epoch, logs=None):
        predicted = self.model.predict(self.x, verbose=0).argmax(axis=1)
        logs["val_f1"] = float(f1_score(self.y, predicted, average="macro"))


model = keras.Sequential(
    [
        keras.Input((6,)),
        keras.layers.Dense(8, "relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(3, "softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy")
history = model.fit(
    x[:64],
    y[:64],
    batch_size=8,
    epochs=4,
    verbose=0,
    callbacks=[
        F1Score(x[64:], y[64:]),
        ckptstore.StoreCheckpoint("runs/f1", monitor="val_f1", mode="max", save_freq=3),
        keras.callbacks.EarlyStopping("val_f1", mode="max", patience=3, restore_best_weights=True),
    ],
)
