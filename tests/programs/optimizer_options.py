"""Gradient accumulation, clipping, weight decay and an average of the weights, in one optimizer; SwapEMAWeights."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(44)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(72, 8)).astype("float32"), draw.normal(size=(72, 1)).astype("float32")
model = keras.Sequential(
    [keras.Input((8,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
)
rate = keras.optimizers.schedules.ExponentialDecay(0.02, decay_steps=5, decay_rate=0.9, staircase=True)
optimizer = keras.optimizers.AdamW(
    rate,
    weight_decay=0.01,
    global_clipnorm=1.0,
    use_ema=True,
    ema_momentum=0.9,
    ema_overwrite_frequency=4,
    gradient_accumulation_steps=2,
)
model.compile(optimizer, "mse", metrics=["mae"])
history = model.fit(
    x,
    y,
    batch_size=8,
    epochs=3,
    validation_split=0.2,
    verbose=0,
    callbacks=[
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        ckptstore.StoreCheckpoint("runs/options", save_freq=3),
    ],
)
