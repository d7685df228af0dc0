"""One call of fit for each epoch, with something printed between."""

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(14)
draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.normal(size=(64, 1)).astype("float32")
model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.3), keras.layers.Dense(1)]
)
model.compile("adam", "mse")
callback = ckptstore.StoreCheckpoint("runs/loop", monitor="loss", save_freq=3)
losses = []
for epoch in range(4):
    history = model.fit(x, y, epochs=1, batch_size=8, verbose=0, callbacks=[callback])
    losses.append(history.history["loss"][0])
    print(f"epoch {epoch}: {losses[-1]:.3f}")
