"""A PyDataset with workers that shuffles itself at the end of each epoch."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(46)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.normal(size=(64, 1)).astype("float32")


class Rows(keras.utils.PyDataset):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.order = np.arange(64)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        rows = self.order[index * 8 : (index + 1) * 8]
        return x[rows], y[rows]

    def on_epoch_end(self):
        np.random.shuffle(self.order)


model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
)
model.compile("adam", "mse")
model.train_on_batch(x[:8], y[:8])
history = model.fit(
    Rows(workers=2, max_queue_size=4),
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/rows", "loss", save_freq=3)],
)
