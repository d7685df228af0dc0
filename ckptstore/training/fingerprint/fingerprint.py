"""The fingerprint of a run: at a resume it shows if the model is the one that was saved, and what else has changed."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from ckptstore import version
from ckptstore.errors import ModelMismatchError
from ckptstore.keras import private
from ckptstore.keras.state import optimizers
from ckptstore.training.fingerprint import devices, finished
from ckptstore.training.fingerprint.config import described, plain, without_counts
from ckptstore.training.fingerprint.difference import NOTHING, ConfigDifference, differences

_RATE = "learning_rate"
_OPTIONS = ("loss", "metrics", "weighted_metrics", "loss_weights")
_HINT = (
    "the model was left as it was; build it as it was when it was saved, start the run over and keep its checkpoints "
    "(resume='never'), or give it another run (run='...')"
)
_OTHER_OPTIMIZER = (
    "compile the model with the optimizer that it was saved with, or load its weights alone with "
    "Checkpoint.load_weights(model); the model was left as it was"
)


def take(model: Any) -> dict[str, Any]:
    """Return the fingerprint of a model and its training as plain JSON, the same in every process.

    No variable's values are read but an optimizer's own numbers, nothing is built, no random number is drawn. A part
    without a configuration is represented by its class.

    Args:
        model: A Keras model, built and compiled, as it is when training begins.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> take(model)["architecture"]["config"]["layers"][0]["config"]["units"]
        2
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of lambdas, which are not written here
        return {
            "architecture": _architecture(model),
            "optimizer": _optimizers(model),
            "learning_rates": optimizers.learning_rates(model),
            "compile": _compiled(model),
            "backend": keras.backend.backend(),
            "versions": _versions(model),
            devices.PART: devices.describe(model),
        }


def first_difference(
    saved: Mapping[str, Any], live: Mapping[str, Any], *, strict: bool = True
) -> ConfigDifference | None:
    """Return the first difference between two architectures, in the model's order; None where they are the same.

    Args:
        saved: The ``"architecture"`` of the checkpoint.
        live: That of the model.
        strict: False to ignore options that only one side has, as when another Keras made the other.

    Example:
        >>> layers = [keras.layers.Dense(2), keras.layers.Dense(3)]
        >>> one, other = (take(keras.Sequential([keras.Input((3,)), layer])) for layer in layers)
        >>> first_difference(one["architecture"], other["architecture"])
        ConfigDifference(where='layers[0] (Dense).units', in_checkpoint='2', in_model='3')
    """
    return next(differences(saved, live, strict=strict), None)


def check(saved: Mapping[str, Any] | None, live: Mapping[str, Any]) -> list[str]:
    """Return the changes since a checkpoint, one short line each; empty if there are none, or nothing is known.

    Args:
        saved: The fingerprint in the checkpoint; None in one that has none.
        live: The model's.

    Raises:
        ModelMismatchError: The architecture, or the optimizer's class, is another; names the first difference.
    """
    if saved is None:
        return []
    strict = _version(saved, "keras") == _version(live, "keras")
    found = first_difference(_part(saved, "architecture"), _part(live, "architecture"), strict=strict)
    if found is not None:
        raise ModelMismatchError(
            where=found.where, in_checkpoint=found.in_checkpoint, in_model=found.in_model, hint=_HINT
        )
    kinds = _kinds(saved), _kinds(live)
    if kinds[0] != kinds[1]:
        raise ModelMismatchError(
            where="optimizer",
            in_checkpoint=", ".join(kinds[0]) or NOTHING,
            in_model=", ".join(kinds[1]) or NOTHING,
            hint=_OTHER_OPTIMIZER,
        )
    return [
        f"{difference.where} {difference.in_checkpoint} -> {difference.in_model}"
        for difference in _drift(saved, live)
    ] + list(devices.changes(saved, live))


def _drift(saved: Mapping[str, Any], live: Mapping[str, Any]) -> Iterator[ConfigDifference]:
    saved_optimizers, live_optimizers = (side.get("optimizer") or [] for side in (saved, live))
    for number, (first, other) in enumerate(zip(saved_optimizers, live_optimizers, strict=False)):
        at = "optimizer" if len(live_optimizers) == 1 else f"optimizers[{number}]"
        yield from differences(first, other, at, strict=False)
    for part in ("compile", "versions"):
        yield from differences(_part(saved, part), _part(live, part))
    yield from differences(saved.get("backend"), live.get("backend"), "backend")
    yield from finished.data_differences(saved, live)


def _part(fingerprint: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = fingerprint.get(name)
    return found if isinstance(found, Mapping) else {}


def _version(fingerprint: Mapping[str, Any], package: str) -> object:
    return _part(fingerprint, "versions").get(package)


def _kinds(fingerprint: Mapping[str, Any]) -> list[str]:
    """Return the classes of the optimizers, each with those that it wraps."""
    kinds = []
    for optimizer in fingerprint.get("optimizer") or []:
        names, inner = [], optimizer
        while isinstance(inner, Mapping):
            names.append(str(inner.get("class")))
            inner = _part(inner, "config").get("inner_optimizer")
        kinds.append(" of ".join(names))
    return kinds


# --- taking ------------------------------------------------------------------------------------


def _architecture(model: Any) -> dict[str, Any]:
    found = described(model)
    if isinstance(found.get("config", {}).get("layers"), list):
        return found
    # The configuration of a subclass, if it has one, does not determine its variables.
    variables = (
        [
            [without_counts(str(variable.path)), list(variable.shape), str(variable.dtype)]
            for variable in model.weights
        ]
        if model.built
        else None
    )
    return {**found, "variables": variables}


def _optimizers(model: Any) -> list[dict[str, Any]]:
    """Return the optimizers, wrapped ones inside their wrappers; a learning rate that is a number is run-time state."""
    known = private.optimizers_of(model)
    wrapped = {id(getattr(optimizer, "inner_optimizer", None)) for optimizer in known}
    return [described(optimizer, run_time=(_RATE,)) for optimizer in known if id(optimizer) not in wrapped]


def _compiled(model: Any) -> dict[str, Any]:
    """Return how a model was compiled, each part as far as it is plain."""
    if not getattr(model, "compiled", False):
        return {}
    try:
        config = model.get_compile_config() or {}
    except Exception:
        # A user's loss without a configuration: it has a name anyway.
        config = {"loss": getattr(model, "loss", None)}
    found = {name: plain(config.get(name)) for name in _OPTIONS if config.get(name) is not None}
    for name in ("steps_per_execution", "jit_compile", "run_eagerly"):
        found[name] = plain(getattr(model, name, None))
    return found


def _versions(model: Any) -> dict[str, str]:
    backend = keras.backend.backend()
    module = sys.modules.get(backend)
    packages = {"keras": keras, "numpy": np, backend: module, "ckptstore": version}
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: str(getattr(package, "__version__", "unknown")) for name, package in packages.items()},
    }
    device = _device(model, backend, module)
    return found if device is None else {**found, "device": device}


def _device(model: Any, backend: str, module: Any) -> str | None:
    """Return the kind of device that the backend computes on; None if that is not known at once."""
    try:
        if backend == "jax":
            first = module.devices()[0]
            return "cpu" if first.platform == "cpu" else f"{first.platform}:{first.device_kind}"
        if backend == "torch" and model.built and model.weights:
            device = model.weights[0].value.device
            return f"gpu:{module.cuda.get_device_name(device)}" if device.type == "cuda" else str(device.type)
        if backend == "tensorflow":
            return "gpu" if module.config.list_logical_devices("GPU") else "cpu"
    except (AttributeError, RuntimeError):
        # A fact to show, and no reason to end a training: a mesh of devices, another release of the backend.
        return None
    return None
