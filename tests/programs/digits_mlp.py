"""Digits with a small dense network: dropout, batch normalization, early stopping, a smaller rate on plateaus."""

import keras
from sklearn.datasets import load_digits

import ckptstore

keras.utils.set_random_seed(1)
images, labels = load_digits(return_X_y=True)
images = images[:320].astype("float32") / 16

model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    images,
    labels[:320],
    batch_size=32,
    epochs=8,
    validation_split=0.2,
    verbose=0,
    callbacks=[
        keras.callbacks.EarlyStopping(patience=2, min_delta=0.05, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=0.1),
        ckptstore.StoreCheckpoint("runs/digits", save_freq=4),
    ],
)
score = model.evaluate(images, labels[:320], verbose=0)
