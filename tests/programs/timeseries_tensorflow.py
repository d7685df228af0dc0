"""A forecast from windows that timeseries_dataset_from_array makes; EarlyStopping, and the store as a checkpoint."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(30)
series = np.cumsum(np.random.default_rng(0).normal(size=(160, 3)), axis=0).astype("float32")
series = (series - series.mean(axis=0)) / series.std(axis=0)


def windows(rows):
    return keras.utils.timeseries_dataset_from_array(
        rows[:-4], rows[8:, 0], sequence_length=6, sampling_rate=1, batch_size=16, shuffle=True, seed=3
    )


train, validation = windows(series[:110]), windows(series[110:])
inputs = keras.Input((6, 3))
model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.LSTM(6)(inputs)))
model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
history = model.fit(
    train,
    validation_data=validation,
    epochs=3,
    verbose=0,
    callbacks=[
        keras.callbacks.EarlyStopping(monitor="val_loss", min_delta=0, patience=5),
        ckptstore.StoreCheckpoint("runs/weather", save_freq=4),
    ],
)
