"""Speech recognition with the CTC loss, decoded at the end of each epoch by a callback that predicts."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(84)
draw = np.random.default_rng(0)
spectrograms = draw.normal(size=(40, 12, 6)).astype("float32")
texts = draw.integers(1, 5, (40, 4))


class Evaluation(keras.callbacks.Callback):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def on_epoch_end(self, epoch, logs=None):
        predictions = self.model.predict(self.rows, verbose=0)
        print("".join(str(token) for token in predictions[0].argmax(axis=-1)))


inputs = keras.Input((12, 6))
x = layers.BatchNormalization()(layers.Conv1D(8, 3, padding="same", use_bias=False)(inputs))
x = layers.Bidirectional(layers.GRU(6, return_sequences=True))(layers.ReLU()(x))
model = keras.Model(inputs, layers.Dense(6)(layers.Dropout(0.2)(x)))
model.compile(keras.optimizers.Adam(1e-3), loss=keras.losses.CTC())
history = model.fit(
    spectrograms,
    texts,
    batch_size=8,
    epochs=3,
    validation_data=(spectrograms[:8], texts[:8]),
    verbose=0,
    callbacks=[Evaluation(spectrograms[:4]), ckptstore.StoreCheckpoint("runs/speech", save_freq=4)],
)
