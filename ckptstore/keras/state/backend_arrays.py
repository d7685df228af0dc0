"""Arrays of any backend that is already imported, as numpy arrays; imports no backend itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from ckptstore.keras.state.shards import is_on_several_devices, sharded_array
from ckptstore.system.arrays import Array


def as_numpy(value: Any) -> Array | None:
    """Return the values of a torch tensor, JAX array, TensorFlow tensor or Keras variable; None for anything else.

    The result is a view where numpy can view the memory.

    Raises:
        TypeError: It is no array in memory: it is sparse, symbolic, quantized, or a typed random key.
        RuntimeError: From the backend: its values are not available on this host.

    Example:
        >>> as_numpy([1.0]) is None
        True
    """
    keras, torch, jax, tensorflow = map(sys.modules.get, ("keras", "torch", "jax", "tensorflow"))
    if _is(value, keras, "Variable"):
        value = value.value
    if _is(value, torch, "Tensor"):
        return torch_array(value)
    if _is(value, jax, "Array"):
        return _jax_array(value)
    if _is(value, tensorflow, "Tensor") or _is(value, tensorflow, "Variable"):
        return _tensorflow_array(value)
    return value if isinstance(value, np.ndarray) else None


def is_in_host_memory(value: Any) -> bool:
    """Return True unless a value is on an accelerator, or in parts on several devices: reading it would transfer it.

    Example:
        >>> is_in_host_memory(np.zeros(3))
        True
    """
    torch, jax, tensorflow = map(sys.modules.get, ("torch", "jax", "tensorflow"))
    if _is(value, torch, "Tensor"):
        return bool(value.is_cpu)
    if _is(value, jax, "Array"):
        return not is_on_several_devices(value) and all(
            device.platform == "cpu" for device in value.devices()
        )
    if _is(value, tensorflow, "Tensor"):
        return "CPU" in str(getattr(value, "device", ""))
    return True


def _is(value: Any, module: Any, name: str) -> bool:
    # A module that is still being imported may lack the name, and then has no instances.
    kind = getattr(module, name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def torch_array(tensor: Any) -> Array:
    """Return a torch tensor's values, in C order; a view if they are in host memory in that order.

    Raises:
        TypeError: It is sparse or quantized, or of a type that numpy cannot express.
    """
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError("only dense tensors are arrays")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    if not hasattr(ml_dtypes, name):
        return np.asarray(tensor.numpy())
    # numpy lacks this dtype, and torch does not know ml_dtypes: the bits pass as integers of the same width.
    bits = {1: torch.uint8, 2: torch.int16}[tensor.element_size()]
    return np.asarray(tensor.view(bits).numpy().view(getattr(ml_dtypes, name)))


def torch_views(values: Iterable[Any]) -> list[Array | None]:
    """Return views of the tensors that numpy can view in host memory, and None for each other value."""
    import torch

    # Without gradients numpy may view any tensor; detaching one takes several times as long as the view.
    with torch.no_grad():
        return [_torch_view(torch, value) for value in values]


def _torch_view(torch: Any, value: Any) -> Array | None:
    if not isinstance(value, torch.Tensor) or not value.is_cpu or not value.is_contiguous():
        return None
    try:
        view: Array = value.numpy()
    except (TypeError, RuntimeError):
        return None  # a dtype that numpy lacks, sparse, conjugated
    return view


def _jax_array(value: Any) -> Array:
    import jax

    if isinstance(value, jax.core.Tracer):
        raise TypeError("it is symbolic")
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise TypeError("typed keys are not arrays; jax.random.key_data(key) is one")
    return sharded_array(value) if is_on_several_devices(value) else np.asarray(value, order="C")


def _tensorflow_array(value: Any) -> Array:
    if not hasattr(value, "numpy"):
        raise TypeError("it is symbolic")
    return np.asarray(value.numpy(), order="C")
