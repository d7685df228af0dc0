"""Character-level sequence to sequence with teacher forcing; then encoder and decoder taken from its layers."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(29)
draw = np.random.default_rng(0)
characters, steps, latent_dim = 7, 5, 8
source = np.eye(characters, dtype="float32")[draw.integers(0, characters, (64, steps))]
target = np.eye(characters, dtype="float32")[draw.integers(0, characters, (64, steps))]
shifted = np.roll(target, 1, axis=1)

encoder_inputs = keras.Input((None, characters))
_, state_h, state_c = keras.layers.LSTM(latent_dim, return_state=True)(encoder_inputs)
decoder_inputs = keras.Input((None, characters))
decoder_lstm = keras.layers.LSTM(latent_dim, return_sequences=True, return_state=True)
decoder_outputs, _, _ = decoder_lstm(decoder_inputs, initial_state=[state_h, state_c])
decoder_outputs = keras.layers.Dense(characters, activation="softmax")(decoder_outputs)
model = keras.Model([encoder_inputs, decoder_inputs], decoder_outputs)
model.compile("rmsprop", "categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    [source, shifted],
    target,
    batch_size=8,
    epochs=3,
    validation_split=0.25,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/s2s", save_freq=4)],
)
encoder_model = keras.Model(model.input[0], [state_h, state_c])
states = encoder_model.predict(source[:2], verbose=0)
