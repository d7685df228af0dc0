"""Pictures in folders, one for each class, read by image_dataset_from_directory with a validation split."""

from pathlib import Path

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(83)
draw = np.random.default_rng(0)
for label in ("cats", "dogs"):
    Path("pictures", label).mkdir(parents=True, exist_ok=True)
    for number in range(20):
        picture = draw.integers(0, 256, (8, 8, 3)).astype("uint8")
        keras.utils.save_img(f"pictures/{label}/{number}.png", picture)

train, validation = keras.utils.image_dataset_from_directory(
    "pictures", validation_split=0.2, subset="both", seed=1337, image_size=(8, 8), batch_size=8, verbose=False
)
model = keras.Sequential(
    [
        keras.Input((8, 8, 3)),
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dropout(0.25),
        layers.Dense(1, activation="sigmoid"),
    ]
)
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
history = model.fit(
    train.prefetch(2),
    validation_data=validation.prefetch(2),
    epochs=3,
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/pictures", "val_accuracy", save_freq=3)],
)
