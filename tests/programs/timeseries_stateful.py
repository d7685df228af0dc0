"""A stateful recurrent network, fed in order, whose states a callback resets after each epoch."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(31)
series = np.sin(np.arange(8 * 48) / 7).astype("float32")
x = series.reshape(8, 12, 4, 1).transpose(1, 0, 2, 3).reshape(96, 4, 1)
y = np.roll(x[:, -1], -8, axis=0)


class ResetStates(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        for layer in self.model.layers:
            if hasattr(layer, "reset_states"):
                layer.reset_states()
            elif hasattr(layer, "reset_state"):
                layer.reset_state()


model = keras.Sequential(
    [
        keras.Input(batch_shape=(8, 4, 1)),
        keras.layers.GRU(6, stateful=True, return_sequences=True),
        keras.layers.SimpleRNN(4, stateful=True, dropout=0.1),
        keras.layers.Dense(1),
    ]
)
model.compile("adam", "mse")
history = model.fit(
    x,
    y,
    batch_size=8,
    epochs=3,
    shuffle=False,
    verbose=0,
    callbacks=[ResetStates(), ckptstore.StoreCheckpoint("runs/stateful", monitor="loss", save_freq=5)],
)
