"""scikit-learn's cross_val_score around a wrapped model; one callback for all folds."""

import keras
from keras.wrappers import SKLearnClassifier
from sklearn.datasets import load_iris
from sklearn.model_selection import StratifiedKFold, cross_val_score

import ckptstore

x, y = load_iris(return_X_y=True)


def build(X, y):
    keras.utils.set_random_seed(93)
    model = keras.Sequential(
        [keras.Input(X.shape[1:]), keras.layers.Dense(8, "relu"), keras.layers.Dense(3, "softmax")]
    )
    model.compile(keras.optimizers.Adam(0.02), "categorical_crossentropy")
    return model


fit = {
    "epochs": 2,
    "batch_size": 16,
    "verbose": 0,
    "callbacks": [ckptstore.StoreCheckpoint("runs/folds", "loss")],
}
folds = StratifiedKFold(3, shuffle=True, random_state=0)
scores = cross_val_score(SKLearnClassifier(build), x, y, cv=folds, params=fit)
