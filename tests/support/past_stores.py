"""Small real stores, one for each revision of the schema, and the program that makes the newest.

    KERAS_BACKEND=jax python tests/support/past_stores.py

makes ``tests/manifest/stores/<revision>`` for the revision that the code writes, if there is none yet. Run it before a
new revision is added: an existing store is never made again, since only that revision's own code makes it as it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

STORES = Path(__file__).parent.parent / "manifest" / "stores"
RUN = "digits"


def model_of_the_stores() -> Any:
    """Return the model of all checkpoints in these stores, with Dropout's generator and an optimizer with slots."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, "relu", name="hidden"),
            keras.layers.Dropout(0.5, seed=1, name="dropout"),
            keras.layers.Dense(2, name="out"),
        ],
        name="past",
    )
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    return model


def fill(model: Any, seed: int) -> None:
    """Give every weight and every slot a value that follows from `seed`."""
    for number, variable in enumerate([*model.weights, *model.optimizer.variables]):
        variable.assign(value_of(variable, number, seed))


def value_of(variable: Any, number: int, seed: int) -> Any:
    """Return the value that `fill` assigns to the variable of this number."""
    values = seed * 1000 + number * 10 + np.arange(np.prod(variable.shape, dtype=int)) / 8
    return values.reshape(variable.shape).astype(variable.dtype)


def make(root: Path) -> None:
    """Make a store with two runs, an epoch's middle and its ends, a tag, a pin, NaN, and a version that is gone."""
    import ckptstore

    model = model_of_the_stores()
    with ckptstore.CheckpointStore(root) as store:
        fill(model, 1)
        store.save(model, epoch=0, step=10, metrics={"loss": 3.0, "val_loss": float("nan")}, run=RUN)
        fill(model, 2)
        store.save(
            model,
            epoch=1,
            batch=4,
            step=15,
            metrics={"loss": 2.0},
            run=RUN,
            tags=["paper"],
            extra={"lr": 0.1},
        )
        fill(model, 3)
        store.save(model, epoch=0, metrics={"loss": 9.0}, run="other", format="weights", weights_only=True)
        fill(model, 4)
        store.save(model, epoch=1, step=20, metrics={"loss": 2.5, "val_loss": 2.0}, run=RUN, format="weights")
        store.pin(1)
    for name in ("locks", "tmp", "quarantine"):
        shutil.rmtree(root / name)
    for name in ("reserve", "manifest.sqlite-journal"):
        (root / name).unlink(missing_ok=True)


if __name__ == "__main__":
    from ckptstore.manifest.schema import HEAD

    if (STORES / HEAD).exists():
        raise SystemExit(f"{STORES / HEAD} is there, and stays as it is")
    make(STORES / HEAD)
