"""Describes the devices of one process that hold a model: how many, as which mesh, and what is split over them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from ckptstore.training.fingerprint.config import plain, without_counts

PART = "devices"
_NUMBER, _SPLIT = "number", "split"
_OTHER_SUMS = "sums are added in another order there, so that what follows is not promised to be exact"


def describe(model: Any) -> dict[str, Any]:
    """Return the devices that hold a model's variables, as plain JSON; without variables, those of the distribution.

    Example:
        >>> describe(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
        {'number': '1', 'split': []}
    """
    describes = {"jax": _of_jax, "torch": _of_torch, "tensorflow": _of_tensorflow}
    number, split = describes.get(keras.backend.backend(), _of_one)(model)
    return {_NUMBER: number, _SPLIT: plain([list(pair) for pair in split]) if model.variables else None}


def changes(saved: Mapping[str, Any], live: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if a model lies on other devices than when it was saved, or is split in another way.

    Args:
        saved: The fingerprint in the checkpoint; an earlier version's says nothing of devices.
        live: The model's.

    Example:
        >>> two, four = ({"devices": {"number": number, "split": []}} for number in "24")
        >>> [line.partition(" (")[0] for line in changes(two, four)]
        ['devices 2 -> 4']
    """
    there, here = saved.get(PART), live.get(PART)
    if not isinstance(there, Mapping) or not isinstance(here, Mapping):
        return
    split = there.get(_SPLIT), here[_SPLIT]
    if there.get(_NUMBER) != here[_NUMBER]:
        yield f"devices {there.get(_NUMBER)} -> {here[_NUMBER]} ({_OTHER_SUMS})"
    elif None not in split and split[0] != split[1]:
        yield f"other variables are split over the {here[_NUMBER]} devices, or along other axes ({_OTHER_SUMS})"


Split = list[tuple[str, str]]


def _of_one(model: Any) -> tuple[str, Split]:
    return "1", []


def _of_jax(model: Any) -> tuple[str, Split]:
    shardings = [
        (without_counts(str(variable.path)), variable.value.sharding)
        for variable in model.variables
        if hasattr(variable.value, "sharding")
    ]
    meshes = {_mesh_text(sharding) for _, sharding in shardings} or {_distribution_text()}
    split = [
        # A specification itself is shown in another way by each version of JAX.
        (path, str(tuple(getattr(sharding, "spec", ()))))
        for path, sharding in shardings
        if not sharding.is_fully_replicated
    ]
    return " and ".join(sorted(meshes)), split


def _mesh_text(sharding: Any) -> str:
    return _text(len(sharding.device_set), dict(getattr(getattr(sharding, "mesh", None), "shape", {})))


def _distribution_text() -> str:
    """Return the mesh of Keras' distribution, which a model's variables will be made on."""
    distribution = keras.distribution.distribution()
    mesh = None if distribution is None else distribution.device_mesh
    if mesh is None:
        return "1"
    return _text(mesh.devices.size, dict(zip(mesh.axis_names, mesh.shape, strict=True)))


def _text(number: int, axes: Mapping[str, int]) -> str:
    if number == 1:
        return "1"
    return f"{number} ({', '.join(f'{axis} {size}' for axis, size in axes.items())})" if axes else str(number)


def _of_torch(model: Any) -> tuple[str, Split]:
    devices = [
        (without_counts(str(variable.path)), str(variable.value.device)) for variable in model.variables
    ]
    number = len({device for _, device in devices})
    return str(max(1, number)), devices if number > 1 else []


def _of_tensorflow(model: Any) -> tuple[str, Split]:
    tensorflow: Any = sys.modules.get("tensorflow")
    strategy = getattr(model, "distribute_strategy", None)
    if tensorflow is None or strategy is None or strategy.num_replicas_in_sync == 1:
        return "1", []
    return f"{strategy.num_replicas_in_sync} ({type(strategy).__name__})", []
