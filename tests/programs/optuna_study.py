"""A study of Optuna in a database: trials that a crash interrupted are tried again, under the run that they had."""

import keras
import numpy as np
import optuna
from optuna.trial import TrialState

import ckptstore

optuna.logging.set_verbosity(optuna.logging.ERROR)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.normal(size=(64, 1)).astype("float32")


def objective(trial):
    keras.utils.set_random_seed(92)
    run = trial.user_attrs.get("run", f"trial-{trial.number}")
    trial.set_user_attr("run", run)
    units = trial.suggest_categorical("units", [4, 8, 16])
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(trial.suggest_float("rate", 1e-3, 1e-1, log=True)), "mse")
    callback = ckptstore.StoreCheckpoint("runs/study", run=run, save_freq=3)
    history = model.fit(x, y, batch_size=8, epochs=2, validation_split=0.25, verbose=0, callbacks=[callback])
    return history.history["val_loss"][-1]


study = optuna.create_study(study_name="units", storage="sqlite:///study.db", load_if_exists=True)
for trial in study.get_trials(states=[TrialState.RUNNING]):
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
for units in (4, 8, 16):
    study.enqueue_trial({"units": units, "rate": 0.01}, skip_if_exists=True)
study.optimize(objective, n_trials=3 - len(study.get_trials(states=[TrialState.COMPLETE])))
values = {str(trial.params): trial.value for trial in study.get_trials(states=[TrialState.COMPLETE])}
