"""Cross-validation: a new model for each fold, scored on the rows that it has not seen."""

import keras
import numpy as np
from sklearn.datasets import load_iris
from sklearn.model_selection import KFold

import ckptstore

keras.utils.set_random_seed(13)
x, y = load_iris(return_X_y=True)
x = x.astype("float32")


def build_model():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


scores, models, histories = [], [], []
for train, test in KFold(3, shuffle=True, random_state=0).split(x):
    model = build_model()
    history = model.fit(
        x[train],
        y[train],
        validation_data=(x[test], y[test]),
        epochs=2,
        batch_size=16,
        verbose=0,
        callbacks=[ckptstore.StoreCheckpoint("runs/folds", save_freq=4)],
    )
    scores.append(model.evaluate(x[test], y[test], verbose=0)[1])
    models.append(model)
    histories.append(history)
mean_score = float(np.mean(scores))
