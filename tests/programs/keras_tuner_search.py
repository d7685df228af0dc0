"""A search by Keras Tuner: each trial trains under a run of its own, and a tuner started again finds its trials."""

import keras
import keras_tuner
import numpy as np

import ckptstore

keras.utils.set_random_seed(91)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.normal(size=(64, 1)).astype("float32")


def build(hp):
    keras.utils.set_random_seed(91)
    units = hp.Choice("units", [4, 8, 16])
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(hp.Float("rate", 1e-3, 1e-1, sampling="log")), "mse")
    return model


class Tuner(keras_tuner.RandomSearch):
    def run_trial(self, trial, *args, callbacks=(), **kwargs):
        saved = ckptstore.StoreCheckpoint("runs/search", run=f"trial-{trial.trial_id}", save_freq=3)
        return super().run_trial(trial, *args, callbacks=[*callbacks, saved], **kwargs)


tuner = Tuner(build, objective="val_loss", max_trials=3, seed=1, directory="search", project_name="units")
tuner.search(x, y, batch_size=8, epochs=2, validation_split=0.25, verbose=0)
scores = {trial_id: float(trial.score) for trial_id, trial in tuner.oracle.trials.items()}
