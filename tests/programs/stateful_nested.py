"""Stateful recurrent layers in a model inside the model, both ways, with cells of its own, and called twice."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(61)
x = np.random.default_rng(0).normal(size=(48, 5, 3)).astype("float32")
backwards = x[::-1].copy()
y = (x.sum(axis=(1, 2)) - backwards.mean(axis=(1, 2)))[:, None]


@keras.saving.register_keras_serializable("stateful_nested")
class DecayingCell(layers.Layer):
    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units
        self.state_size = [units, units]

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")
        self.recurrent = self.add_weight(shape=(self.units, self.units), name="recurrent")
        self.built = True

    def call(self, inputs, states):
        before, trace = states
        output = keras.ops.tanh(inputs @ self.kernel + before @ self.recurrent)
        return output, [output, 0.5 * trace + output]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def reset_all(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            reset_all(layer)
        elif hasattr(layer, "reset_state") and layer is not shared:
            layer.reset_state()  # Keras cannot reset the nested states of several cells


class ResetStates(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch % 2:
            reset_all(self.model)


sequence = keras.Input(batch_shape=(6, 5, 3))
both_ways = layers.Bidirectional(layers.LSTM(3, stateful=True, return_sequences=True))
encoder = keras.Model(sequence, both_ways(sequence), name="encoder")

first, second = keras.Input(batch_shape=(6, 5, 3)), keras.Input(batch_shape=(6, 5, 3))
shared = layers.RNN(
    [DecayingCell(4), layers.LSTMCell(3, recurrent_dropout=0.2), layers.GRUCell(4)],
    stateful=True,
    return_sequences=True,
)
joined = layers.concatenate([shared(encoder(first)), shared(encoder(second))])
model = keras.Model([first, second], layers.Dense(1)(layers.RNN(DecayingCell(3), stateful=True)(joined)))
model.compile(keras.optimizers.RMSprop(0.01), "mse")
history = model.fit(
    [x, backwards],
    y,
    batch_size=6,
    epochs=4,
    shuffle=False,
    verbose=0,
    callbacks=[ResetStates(), ckptstore.StoreCheckpoint("runs/nested", monitor="loss", save_freq=3)],
)
predicted = model.predict([x, backwards], batch_size=6, verbose=0)
