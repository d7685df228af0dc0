"""A fit under jax.distributed, in one process, that sends itself SIGTERM, as a cluster does before it takes a machine.

    python preempted_fit.py STORE PORT

prints the step after which the signal came, and what SIGTERM did behind the fit of the second start.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import jax

jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 1, 0)

import keras  # noqa: E402
import numpy as np  # noqa: E402

import ckptstore  # noqa: E402


class Preempt(keras.callbacks.Callback):
    """Sends the signal at the third batch of the first start."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 2 and not os.path.exists(f"{sys.argv[1]}/sent"):  # noqa: PTH110
            with open(f"{sys.argv[1]}/sent", "w", encoding="ascii"):  # noqa: PTH123
                print("sent", flush=True)
            signal.raise_signal(signal.SIGTERM)


keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
model.compile("sgd", "mse")
x = np.ones((64, 4), "float32")
callbacks = [ckptstore.StoreCheckpoint(sys.argv[1]), Preempt()]
model.fit(x, x[:, :2], epochs=2, batch_size=8, verbose=0, callbacks=callbacks)
print("trained", flush=True)
# Behind the fit the signal is JAX's again, which tells its own service and lets the process live.
signal.raise_signal(signal.SIGTERM)
print("alive", flush=True)
