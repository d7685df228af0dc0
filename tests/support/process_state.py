"""The state of a process, and of models, that a program can see, as text: a callback must leave it as it was."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

# What the harness itself changes, or what each process has of its own.
_OWN_VARIABLES = {"CKPTSTORE_WRITER", "OLDPWD", "PWD", "_"}
_SIMPLE = (type(None), bool, int, float, str)
# Counters of what Keras makes while it traces a model: nobody looks anything up by these.
_TRACED = ("keras_tensor", "scratch_graph")
# Python adds it to a class when somebody asks for it.
_ASKED_FOR = ("__annotations__",)


def process_state() -> dict[str, str]:
    """Return what a program can see of its process, by what it is; of equal processes the texts are equal."""
    return {
        f"process: {name}": text
        for part in (_python(), _keras(), _backend(), _generators())
        for name, text in part.items()
    }


def model_state(name: str, model: Any) -> dict[str, str]:
    """Return the names of a model and of all in it, and which attributes it has.

    Args:
        name: The name that the script gives it.
        model: The model.
    """
    import keras

    layers = list(model._flatten_layers())
    names = [layer.name for layer in layers]
    variables = [variable.path for variable in (*model.variables, *model.metrics_variables)]
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, keras.optimizers.Optimizer):
        names.append(optimizer.name)
        variables += [variable.path for variable in optimizer.variables]
    parts = [*layers, *model.metrics, optimizer]
    return {
        f"{name}: names": repr((names, variables)),
        f"{name}: attributes": repr([sorted(map(_attribute, _attributes(part))) for part in parts]),
    }


def _attributes(part: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(part, "__dict__", {}).items()


def _attribute(item: tuple[str, Any]) -> str:
    name, value = item
    if isinstance(value, _SIMPLE):
        return f"{name}={value!r}"
    return f"{name}:{type(value).__module__}.{type(value).__qualname__}"


def _python() -> dict[str, str]:
    return {
        "environment": repr(sorted(item for item in os.environ.items() if item[0] not in _OWN_VARIABLES)),
        "umask": repr(_umask()),
        "warnings": repr(
            [(kind, _text(found), category.__name__) for kind, found, category, *_ in _filters()]
        ),
        "signals": repr([(int(number), _handler(number)) for number in sorted(signal.valid_signals())]),
        "hooks": repr(
            [sys.excepthook, sys.displayhook, threading.excepthook, sys.gettrace(), sys.getprofile()]
        ),
        "path": repr(sys.path),
        "numpy errors": repr(np.geterr()),
        "numpy printing": repr(sorted(np.get_printoptions().items(), key=str)),
        "recursion": repr(sys.getrecursionlimit()),
        "logging": repr([logging.root.level, logging.root.disabled, len(logging.root.handlers)]),
        "threads": repr(sorted(thread.name for thread in threading.enumerate() if not thread.daemon)),
    }


def _filters() -> list[Any]:
    return list(warnings.filters)


def _text(found: Any) -> str:
    return str(getattr(found, "pattern", found))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _handler(number: int) -> str:
    try:
        handler = signal.getsignal(number)
    except ValueError:
        return "none"
    return getattr(handler, "__qualname__", str(handler))


def _keras() -> dict[str, str]:
    import keras
    from keras.src.backend.common import global_state

    config = keras.config
    names = dict(global_state.get_global_attribute("object_name_uids") or {})
    state = {
        name: _kept(value)
        for name, value in vars(global_state.GLOBAL_STATE_TRACKER).items()
        if name != "object_name_uids" and not name.startswith("saving_attr_skip") and value not in (None, [])
    }
    return {
        "automatic names": repr(sorted(item for item in names.items() if item[0] not in _TRACED)),
        "names of tensors": repr([names.get(name) for name in _TRACED]),
        "state of Keras": repr(sorted(state.items())),
        "settings of Keras": repr(
            [
                keras.backend.backend(),
                config.floatx(),
                config.epsilon(),
                config.image_data_format(),
                config.dtype_policy().name,
                config.is_traceback_filtering_enabled(),
                config.is_interactive_logging_enabled(),
                keras.distribution.distribution(),
                sorted(keras.saving.get_custom_objects()),
            ]
        ),
        "classes of Keras": repr([sorted(_members(kind)) for kind in _classes()]),
        "methods of Keras": repr([list(map(_defined, _members(kind).values())) for kind in _classes()]),
    }


def _classes() -> list[Any]:
    import keras

    trainers = [kind for kind in keras.Model.__mro__ if kind.__module__.startswith("keras")]
    return [*trainers, keras.callbacks.CallbackList, keras.callbacks.Callback, keras.optimizers.Optimizer]


def _members(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if name not in _ASKED_FOR}


def _defined(value: Any) -> str:
    return getattr(value, "__module__", "") if isinstance(value, types.FunctionType) else ""


def _kept(value: Any) -> str:
    if isinstance(value, (*_SIMPLE, list, tuple)):
        return repr(value)
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


def _backend() -> dict[str, str]:
    found: dict[str, Any] = {}
    if "jax" in sys.modules:
        import jax

        found["settings of JAX"] = sorted((name, str(value)) for name, value in jax.config.values.items())
    torch = sys.modules.get("torch")
    if torch is not None:
        found["settings of torch"] = [
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_default_device(),
        ]
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None:
        found["settings of TensorFlow"] = [
            tensorflow.config.functions_run_eagerly(),
            tensorflow.config.experimental.get_synchronous_execution(),
            tensorflow.distribute.has_strategy(),
            tensorflow.config.optimizer.get_experimental_options(),
            tensorflow.get_logger().level,
        ]
    return {name: repr(value) for name, value in found.items()}


def _generators() -> dict[str, str]:
    from keras.src.utils import rng_utils

    from program_server import digest_of

    found: dict[str, Any] = {
        "generator of Python": repr(random.getstate()),
        "generator of numpy": repr(np.random.get_state(legacy=False)),
    }
    found["seed of Keras"] = repr(rng_utils.get_random_seed())
    torch = sys.modules.get("torch")
    if torch is not None:
        found["generator of torch"] = digest_of(torch.get_rng_state())
    context = sys.modules.get("tensorflow.python.eager.context")
    if context is not None:
        seeds = getattr(context.context(), "_rng", None)
        found["seeds of TensorFlow"] = repr((context.global_seed(), seeds and seeds.getstate()))
        made = getattr(sys.modules.get("tensorflow.python.ops.stateful_random_ops"), "global_generator", None)
        found["generator of TensorFlow"] = None if made is None else digest_of(made.state)
    return {name: str(value) for name, value in found.items()}
