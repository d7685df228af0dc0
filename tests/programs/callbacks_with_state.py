"""Callbacks of the user's own: a warm-up that counts batches, averaged weights, best weights kept in memory."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(57)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.normal(size=(64, 1)).astype("float32")


class WarmUpCosine(keras.callbacks.Callback):
    def __init__(self, top, warm_up, total):
        super().__init__()
        self.top, self.warm_up, self.total = top, warm_up, total
        self.step = 0
        self.rates = []

    def on_train_batch_begin(self, batch, logs=None):
        rising = min(1.0, (self.step + 1) / self.warm_up)
        self.model.optimizer.learning_rate = (
            self.top * rising * 0.5 * (1 + np.cos(np.pi * self.step / self.total))
        )
        self.step += 1
        self.rates.append(float(self.model.optimizer.learning_rate))

    def get_state(self):
        return {"step": self.step, "rates": self.rates}

    def set_state(self, state):
        self.step, self.rates = state["step"], list(state["rates"])


class AveragedWeights(keras.callbacks.Callback):
    def __init__(self, start):
        super().__init__()
        self.start, self.count, self.average = start, 0, None

    def on_epoch_end(self, epoch, logs=None):
        if epoch < self.start:
            return
        weights = self.model.get_weights()
        if self.average is None:
            self.average = weights
        else:
            pairs = zip(self.average, weights, strict=True)
            self.average = [(mean * self.count + weight) / (self.count + 1) for mean, weight in pairs]
        self.count += 1

    def get_state(self):
        return {"count": self.count, "average": self.average}

    def set_state(self, state):
        self.count, self.average = state["count"], state["average"]


class StopAtMinimum(keras.callbacks.Callback):
    def __init__(self, patience):
        super().__init__()
        self.patience, self.best_weights = patience, None

    def on_train_begin(self, logs=None):
        self.wait, self.best = 0, np.inf

    def on_epoch_end(self, epoch, logs=None):
        if logs["loss"] < self.best:
            self.best, self.wait, self.best_weights = logs["loss"], 0, self.model.get_weights()
            return
        self.wait += 1
        if self.wait >= self.patience:
            self.model.stop_training = True
            self.model.set_weights(self.best_weights)

    def get_state(self):
        return {"wait": self.wait, "best": float(self.best), "best_weights": self.best_weights}

    def set_state(self, state):
        self.wait, self.best, self.best_weights = state["wait"], state["best"], state["best_weights"]


model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
)
model.compile(keras.optimizers.Adam(), "mse")
warm_up, averaged, stop = WarmUpCosine(0.02, 8, 40), AveragedWeights(1), StopAtMinimum(3)
history = model.fit(
    x,
    y,
    batch_size=8,
    epochs=5,
    verbose=0,
    callbacks=[warm_up, averaged, stop, ckptstore.StoreCheckpoint("runs/callbacks", "loss", save_freq=3)],
)
rates, average, best_weights = warm_up.rates, averaged.average, stop.best_weights
