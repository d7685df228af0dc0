"""Saving and loading by public Keras alone, for a Keras whose private interfaces are unknown.

A model is saved into memory and read back. That is slower than `saving`, and copies the state.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np

from ckptstore.formats import payload
from ckptstore.keras.private.capture import Capture, CapturedValue, LazyGroup
from ckptstore.system.arrays import Array

_WEIGHTS_MEMBER = "model.weights.h5"


class _NamedMemory(io.BytesIO):
    """A file in memory with a name that tells Keras the format; no file can be created under that name."""

    def __init__(self, suffix: str) -> None:
        super().__init__()
        self._name = f"{os.devnull}/memory{suffix}"

    def __str__(self) -> str:
        return self._name


def _saved_model(model: Any) -> tuple[dict[str, bytes], io.BytesIO]:
    saved = _NamedMemory(".keras")
    keras.saving.save_model(model, saved)
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return members, io.BytesIO(members.pop(_WEIGHTS_MEMBER))


def _saved_weights(model: Any) -> io.BytesIO:
    saved = _NamedMemory(".weights.h5")
    try:
        model.save_weights(saved)
    except (OSError, TypeError):
        # Before Keras 3.10 weights alone need a real file; the whole model does not.
        return _saved_model(model)[1]
    return saved


def capture(model: Any, optimizer: Any, documents: bool) -> Capture:
    """Return what Keras writes for `model`, as copies; the arguments are those of `saving.capture_model`."""
    members, weights = ({}, _saved_weights(model)) if not documents else _saved_model(model)
    entries: list[CapturedValue] = []
    attributes: dict[str, dict[str, str]] = {}

    def visit(path: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            owner = "optimizer" if path.startswith("optimizer/") else "model"
            entries.append(CapturedValue(path=path, value=_read_dataset(node), owner=owner))
        elif node.attrs:
            attributes[path] = {name: str(value) for name, value in node.attrs.items()}

    with h5py.File(weights, "r") as file:
        file.visititems(visit)
    if optimizer is not None and not any(entry.owner == "optimizer" for entry in entries):
        store: dict[str, Any] = {}
        optimizer.save_own_variables(store)
        entries += [
            CapturedValue(path=f"optimizer/vars/{key}", value=value, owner="optimizer")
            for key, value in store.items()
        ]
    return Capture(entries=tuple(entries), attributes=attributes, documents=members, exact=False)


def _read_dataset(dataset: Any) -> Array:
    if dataset.attrs.get("dtype") == "bfloat16":
        return np.array(dataset, dtype=ml_dtypes.bfloat16)
    return np.array(dataset)


def load(model: Any, path: Path, optimizer: Any) -> None:
    """Load weights, and the state of an optimizer that the model does not know; no layers' assets."""
    model.load_weights(str(path))
    if optimizer is not None:
        place = "optimizer/vars/"
        with payload.open_variables(path) as variables:
            paths = {name.removeprefix(place): name for name in variables if name.startswith(place)}
            optimizer.load_own_variables(LazyGroup(variables, paths))
