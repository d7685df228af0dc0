"""The demonstration: a training on real digits is killed in the middle, and the store it leaves is asked.

A small convolutional net learns scikit-learn's 1,797 handwritten digits in a process of its own, with
`ckptstore.ModelCheckpoint`. While it writes a checkpoint it gets SIGKILL. What is left is then looked at with
the `ckptstore` command, and the best checkpoint is loaded by plain Keras, in a process without ckptstore.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPT = str(Path(__file__).resolve())
EPOCHS = 40
# The kill comes during the save of one of these epochs, counted from 1.
KILL_BETWEEN = (6, 9)
PATIENCE_S = 120.0
# The last so many digits are used neither for training nor for choosing the best checkpoint.
HELD_OUT = 297
SEED = 20


def digits() -> tuple[Any, Any]:
    """Return the images, 8 by 8 with one channel and values from 0 to 1, and what digits they are."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype("float32")[..., None]
    order = np.random.default_rng(SEED).permutation(len(images))
    return images[order], bunch.target[order]


def train() -> None:
    """Train with a checkpoint an epoch; this is all that a user of the drop-in writes."""
    import keras

    import ckptstore

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
    model.fit(
        images[:-HELD_OUT],
        targets[:-HELD_OUT],
        validation_split=0.2,
        epochs=EPOCHS,
        batch_size=32,
        verbose=2,
        callbacks=[
            ckptstore.ModelCheckpoint(
                "models/{epoch:02d}-{val_accuracy:.4f}.keras", monitor="val_accuracy", mode="max"
            )
        ],
    )


def evaluate(file: str) -> None:
    """Load a checkpoint with Keras alone and print its accuracy on the digits held out."""
    import keras

    images, targets = digits()
    model = keras.models.load_model(file)
    _, accuracy = model.evaluate(images[-HELD_OUT:], targets[-HELD_OUT:], verbose=0)
    assert "ckptstore" not in sys.modules
    print(f"{round(accuracy * HELD_OUT)} of {HELD_OUT} held-out digits right: {accuracy:.2%}")


def being_written(folder: Path) -> list[str]:
    """Return the payloads that are being written at this instant, or were when their writer died."""
    try:
        names = os.listdir(folder / "models" / ".ckptstore" / "tmp")
    except FileNotFoundError:
        return []
    return [name for name in names if not name.endswith(".lease")]


def saved(folder: Path) -> int:
    """Return how many checkpoints have come to their final names."""
    return len(list((folder / "models" / ".ckptstore" / "checkpoints").glob("*.keras")))


def train_and_kill(folder: Path) -> None:
    """Start the training and kill it while it writes a checkpoint."""
    after = random.SystemRandom().randint(*KILL_BETWEEN) - 1
    command = [sys.executable, SCRIPT, "--train"]
    with subprocess.Popen(command, cwd=folder) as training:
        deadline = time.monotonic() + PATIENCE_S
        while training.poll() is None and time.monotonic() < deadline and saved(folder) < after:
            time.sleep(0.01)
        while training.poll() is None and time.monotonic() < deadline and not being_written(folder):
            pass
        if training.poll() is not None:
            raise SystemExit(f"the training ended by itself, with {training.returncode}")
        training.kill()
    when = "in the middle of a save" if being_written(folder) else "in the middle of training"
    print(f"\n-- killed with SIGKILL {when}; {saved(folder)} checkpoints had been saved --")


def shown(folder: Path, *arguments: str) -> str:
    """Run the real command, show it as one would type it, and return what it printed."""
    print(f"\n$ ckptstore {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "ckptstore.cli", *arguments]
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True
    )
    print(done.stdout, end="", flush=True)
    return done.stdout


def demonstrate(folder: Path) -> None:
    """Run the whole demonstration in a folder."""
    began = time.monotonic()
    train_and_kill(folder)
    shown(folder, "ls", "models")
    best = shown(folder, "best", "models", "--metric", "val_accuracy").splitlines()[0]
    shown(folder, "resume-point", "models")
    shown(folder, "verify", "models")
    print("\n-- the best checkpoint, loaded by plain Keras --", flush=True)
    subprocess.run([sys.executable, SCRIPT, "--evaluate", best], cwd=folder, check=True)
    print(f"\n({time.monotonic() - began:.0f} s, in {folder})")


def main() -> None:
    """Parse the command line; the options are for the processes that the demonstration starts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where to train; a temporary folder by itself")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--evaluate", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train()
    elif options.evaluate:
        evaluate(options.evaluate)
    elif options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        demonstrate(options.folder.resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="ckptstore-demo-") as folder:
            demonstrate(Path(folder))


if __name__ == "__main__":
    main()
