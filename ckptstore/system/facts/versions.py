"""Versions of Python and of loaded packages, and the devices that a backend computes on; imports nothing."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from typing import Any

# What results depend on, as far as a script has loaded it.
_PACKAGES = (
    "keras", "numpy", "jax", "jaxlib", "torch", "tensorflow", "ckptstore", "h5py", "ml_dtypes", "scipy", "pandas",
    "sklearn", "grain", "datasets", "torchvision", "tensorflow_datasets", "keras_hub", "keras_cv", "keras_nlp",
    "keras_tuner", "transformers", "optax", "flax", "triton", "albumentations", "PIL", "cv2",
)  # fmt: skip
_MOST_DEVICES = 64


def versions() -> dict[str, str]:
    """Return the versions of Python, Keras and its backend, and of loaded packages, by name; ``backend`` is a name.

    Example:
        >>> versions()["python"] == platform.python_version()
        True
    """
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    backend = backend_name()
    if backend is not None:
        found["backend"] = backend
    for name in _PACKAGES:
        version = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(version, str):
            found[name] = version
    cuda = getattr(getattr(sys.modules.get("torch"), "version", None), "cuda", None)
    return {**found, "cuda": str(cuda)} if backend == "torch" and cuda else found


def backend_name() -> str | None:
    """Return the name of Keras' backend, or None where Keras is not loaded."""
    keras: Any = sys.modules.get("keras")
    try:
        return None if keras is None else str(keras.backend.backend())
    except AttributeError:
        return None  # it is being imported


def devices() -> tuple[str, ...]:
    """Return the devices of Keras' backend, such as ``"cuda:0 NVIDIA H100"``; call it where there is a model.

    A backend that has computed nothing yet would take its devices for the answer.
    """
    backend = backend_name()
    names = _NAMES.get(backend or "")
    module = sys.modules.get(backend or "")
    try:
        found = [] if names is None or module is None else list(names(module))
    except Exception:
        # A fact to show, and no reason to end a training: each release of a backend has its own errors.
        return ()
    return tuple(found[:_MOST_DEVICES])


def _of_jax(jax: Any) -> Iterator[str]:
    for device in jax.local_devices():
        kind = "" if device.platform == "cpu" else f" {device.device_kind}"
        yield f"{device.platform}:{device.id}{kind}"


def _of_torch(torch: Any) -> Iterator[str]:
    if torch.cuda.is_initialized():
        for number in range(torch.cuda.device_count()):
            yield f"cuda:{number} {torch.cuda.get_device_name(number)}"
    else:
        yield "cpu"


def _of_tensorflow(tensorflow: Any) -> Iterator[str]:
    for device in tensorflow.config.list_logical_devices():
        kind, _, number = device.name.partition("device:")[2].rpartition(":")
        yield f"{kind.lower()}:{number}"


_NAMES = {"jax": _of_jax, "torch": _of_torch, "tensorflow": _of_tensorflow}
