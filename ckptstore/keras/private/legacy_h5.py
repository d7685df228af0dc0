"""Writer of Keras' older whole-model HDF5 format, into a file that is already open.

Fallback: public Keras writes it, without an optimizer that the model does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import keras

from ckptstore.keras.private import modules


class _NamedFile(h5py.File):  # type: ignore[misc]
    """An open HDF5 file with a name that tells Keras the format."""

    def __str__(self) -> str:
        return "memory.h5"


def save_legacy_h5(model: Any, file: h5py.File, *, optimizer: Any = None) -> None:
    """Write a model in Keras' older whole-model format into an open, empty HDF5 file.

    Raises:
        NotImplementedError: From Keras: the model has no configuration.
    """
    with _compile_config_kept(model):
        if modules.legacy_h5 is None:
            keras.saving.save_model(model, _NamedFile(file.id))
            return
        modules.legacy_h5.save_model_to_hdf5(model, file)
        if optimizer is not None and "optimizer_weights" not in file:
            modules.legacy_h5.save_optimizer_weights_to_hdf5_group(file, optimizer)


@contextmanager
def _compile_config_kept(model: Any) -> Iterator[None]:
    """Restore the optimizer's configuration, which saving in the older format removes from the live model.

    Without it, whole models that are saved later load with Keras' default optimizer.
    """
    config: Any = getattr(getattr(model, "_compile_config", None), "config", None)
    kept = dict(config) if isinstance(config, dict) else {}
    try:
        yield
    finally:
        if kept:
            config.update(kept)
