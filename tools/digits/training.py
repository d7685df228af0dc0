"""The training of the demonstration, as a user would write it: one callback, and no branch for a restart.

`python tools/digits/training.py FOLDER` writes the store and, at the end of the training, ``result.json`` into a
folder. With ``--without-ckptstore`` it is the same script without that callback.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

SEED = 20
# The last digits, used neither for training nor for choosing the best checkpoint.
HELD_OUT = 297


def digits() -> tuple[Any, Any]:
    """Return the images, 8 by 8 with one channel and values from 0 to 1, and their digits."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype("float32")[..., None]
    order = np.random.default_rng(SEED).permutation(len(images))
    return images[order], bunch.target[order]


def train(callbacks: list[Any]) -> Any:
    """Train a small convolutional net; return the model and its History."""
    import keras

    keras.utils.set_random_seed(SEED)
    images, targets = digits()
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, activation="relu", padding="same"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, activation="relu", padding="same"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(
        images[:-HELD_OUT],
        targets[:-HELD_OUT],
        validation_split=0.2,
        epochs=30,
        batch_size=16,
        verbose=2,
        callbacks=[
            keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=3),
            keras.callbacks.EarlyStopping(monitor="val_loss", patience=10, restore_best_weights=True),
            *callbacks,
        ],
    )
    return model, history.history


def digest(model: Any) -> str:
    """Return the SHA-256 of all variables' bytes: weights, seed generators, optimizer, metrics."""
    import keras

    found = hashlib.sha256()
    for variable in [*model.variables, *model.optimizer.variables, *model.metrics_variables]:
        found.update(keras.ops.convert_to_numpy(variable.value).tobytes())
    return found.hexdigest()


def main() -> None:
    """Train, and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without-ckptstore", action="store_true")
    options = parser.parse_args()
    callbacks: list[Any] = []
    if not options.without_ckptstore:
        import ckptstore

        # Saves at the end of each epoch and every 50 ms within it; keeps the newest and the best. That is more often
        # than anybody needs, and waits for the disk, so that so short a training can be killed before it ends.
        keep = ckptstore.keep_last(6)
        callbacks = [
            ckptstore.StoreCheckpoint(
                options.folder, monitor="val_accuracy", save_interval=0.05, backpressure="wait", keep=keep
            )
        ]
    model, history = train(callbacks)
    result = {"variables": digest(model), "history": history}
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
