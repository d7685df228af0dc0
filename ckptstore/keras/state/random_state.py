"""States of the global random generators that training draws from: Python's, numpy's, torch's, TensorFlow's, Keras'.

States are arrays and JSON, never pickles. Keras' layers have generators of their own (variables of the model); JAX has
no global one. Other sources cannot be captured here: an unseeded `numpy.random.default_rng()` of the user's, the
operating system's entropy, random operations for which TensorFlow keeps a state inside a `tf.function` of the user's.
Those in Keras' compiled steps are captured, see `ckptstore.keras.private.backends.tensorflow_random`. `generators` has
the state of a single generator object.
"""

from __future__ import annotations

import random
import sys
from array import array as machine_array
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptstore.keras.private import (
    eager_draws,
    generator_of_seeds,
    global_seed,
    reset_global_seed,
    step_draws,
)
from ckptstore.keras.state.arrays import host_array, shape_and_dtype
from ckptstore.keras.state.assigning import assign
from ckptstore.system.arrays import Array

# Name of the random operations in compiled steps.
STEPS = "tensorflow-steps"
# The seeds of operations that run eagerly.
_SEEDS = "tensorflow-eager"

# Name of the group among a training state's arrays.
GROUP = "generators"


@dataclass(frozen=True, slots=True)
class GlobalGenerators:
    """The states of all global generators at one instant.

    Attributes:
        document: JSON values, by generator.
        arrays: Arrays by name; each name begins with its generator's.
    """

    document: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)


def capture() -> GlobalGenerators:
    """Return the states of the generators that this process has now; nothing is drawn.

    Example:
        >>> before = capture()
        >>> first = random.random(), np.random.rand()
        >>> restore(before)
        []
        >>> bool(first == (random.random(), np.random.rand()))
        True
    """
    found = GlobalGenerators()
    _capture_python(found)
    _capture_numpy(found)
    if "torch" in sys.modules:
        _capture_torch(found)
    _capture_tensorflow(found)
    seed = global_seed()
    if seed is not None:
        found.arrays["keras"] = host_array(seed).copy()
    return found


def restore(saved: GlobalGenerators, *, leave: Collection[str] = ()) -> list[str]:
    """Restore the generators; return the names of those that this process does not have.

    Args:
        saved: The states from `capture`, perhaps of another process.
        leave: Names of generators not to restore, since another thread may be drawing from them.
    """
    left: list[str] = []
    # First, since creating it draws from Python's generator.
    if "keras" not in leave:
        if "keras" not in saved.arrays:
            reset_global_seed()
        elif not _restore_keras(saved.arrays["keras"]):
            left.append("keras")
    if "python" not in leave:
        _restore_python(saved)
    if "numpy" not in leave:
        _restore_numpy(saved)
    if "torch" in saved.arrays and "torch" not in leave:
        left += _restore_torch(saved.arrays)
    if "tensorflow" in saved.arrays and "tensorflow" not in leave:
        left += _restore_tensorflow(saved)
    return left + _restore_tensorflow_steps(saved, leave)


def names(states: GlobalGenerators) -> tuple[str, ...]:
    """Return the names of the generators whose states these are.

    Example:
        >>> {"python", "numpy"} <= set(names(capture()))
        True
    """
    return tuple(dict.fromkeys([*states.document, *(name.partition("/")[0] for name in states.arrays)]))


def same_state(name: str, first: GlobalGenerators, second: GlobalGenerators) -> bool:
    """Return True if a generator is in the same state in both.

    Example:
        >>> before = capture()
        >>> _ = random.random()
        >>> same_state("python", before, capture()), same_state("numpy", before, capture())
        (False, True)
    """
    return _state_of(name, first) == _state_of(name, second)


def _state_of(name: str, states: GlobalGenerators) -> tuple[Any, dict[str, tuple[str, bytes]]]:
    arrays = {
        key: (str(array.dtype), array.tobytes())
        for key, array in states.arrays.items()
        if key.partition("/")[0] == name
    }
    return states.document.get(name), arrays


def _restore_keras(value: Array) -> bool:
    seed = global_seed(make=True)
    if seed is None or shape_and_dtype(seed) != shape_and_dtype(value):
        return False
    assign(seed, value)
    return True


def from_training_state(document: Mapping[str, Any], arrays: Mapping[str, Array]) -> GlobalGenerators | None:
    """Return the generators' states in a training state, or None if there are none."""
    if GROUP not in document:
        return None
    prefix = f"{GROUP}/"
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return GlobalGenerators(dict(document[GROUP]), own)


# --- Python --------------------------------------------------------------------------------------


def _capture_python(found: GlobalGenerators) -> None:
    version, words, gauss = random.getstate()
    # By an array of Python's own, in a third of the time: this runs several times in an epoch.
    found.arrays["python"] = np.array(machine_array("I", words), np.uint32)
    found.document["python"] = {"version": version, "gauss": _hex(gauss)}


def _restore_python(saved: GlobalGenerators) -> None:
    facts = saved.document["python"]
    words = tuple(int(word) for word in saved.arrays["python"])
    random.setstate((facts["version"], words, _unhex(facts["gauss"])))


# --- numpy ---------------------------------------------------------------------------------------


def _capture_numpy(found: GlobalGenerators) -> None:
    state: Any = np.random.get_state(legacy=False)
    inner = {}
    for name, value in state["state"].items():
        if isinstance(value, np.ndarray):
            found.arrays[f"numpy/{name}"] = value.copy()
        else:
            inner[name] = int(value)
    rest = {name: value for name, value in state.items() if name not in ("state", "gauss")}
    found.document["numpy"] = {**rest, "state": inner, "gauss": _hex(state.get("gauss"))}


def _restore_numpy(saved: GlobalGenerators) -> None:
    facts = dict(saved.document["numpy"])
    arrays = {
        name.removeprefix("numpy/"): array
        for name, array in saved.arrays.items()
        if name.startswith("numpy/")
    }
    np.random.set_state({**facts, "state": {**facts["state"], **arrays}, "gauss": _unhex(facts["gauss"])})


def _hex(value: float | None) -> str | None:
    """Return a float as text that preserves all of its bits."""
    return None if value is None else float(value).hex()


def _unhex(text: str | None) -> Any:
    return None if text is None else float.fromhex(text)


# --- torch ---------------------------------------------------------------------------------------


def _capture_torch(found: GlobalGenerators) -> None:
    import torch

    found.arrays["torch"] = torch.get_rng_state().numpy().copy()
    # Asking a device that was never used would start it.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            found.arrays[f"torch-cuda/{number}"] = state.numpy().copy()


def _restore_torch(arrays: Mapping[str, Array]) -> list[str]:
    import torch

    torch.set_rng_state(torch.from_numpy(arrays["torch"].copy()))
    left = []
    for name, array in arrays.items():
        if name.startswith("torch-cuda/"):
            number = int(name.partition("/")[2])
            if torch.cuda.is_available() and number < torch.cuda.device_count():
                torch.cuda.set_rng_state(torch.from_numpy(array.copy()), number)
            else:
                left.append(name)
    return left


# --- TensorFlow ----------------------------------------------------------------------------------


def _tensorflow_generator() -> Any:
    """Return TensorFlow's global generator, or None if nobody used it yet; asking TensorFlow would create one."""
    module = sys.modules.get("tensorflow.python.ops.stateful_random_ops")
    return getattr(module, "global_generator", None)


def _capture_tensorflow(found: GlobalGenerators) -> None:
    generator = _tensorflow_generator()
    if generator is not None:
        found.arrays["tensorflow"] = generator.state.numpy().copy()
        found.document["tensorflow"] = {"algorithm": int(generator.algorithm)}
    draws = step_draws()
    if draws is not None:
        found.arrays.update({f"{STEPS}/{name}": state for name, state in draws.states().items()})
    seeds = generator_of_seeds()
    if seeds is not None:
        found.arrays[_SEEDS] = np.array(machine_array("I", seeds.getstate()[1]), np.uint32)
    unsaved = [
        name for operations in (draws, eager_draws()) if operations is not None for name in operations.unsaved
    ]
    if unsaved:
        found.document[STEPS] = unsaved


def _restore_tensorflow(saved: GlobalGenerators) -> list[str]:
    if "tensorflow" not in sys.modules:
        return ["tensorflow"]
    import tensorflow as tf

    state, algorithm = saved.arrays["tensorflow"], saved.document["tensorflow"]["algorithm"]
    generator = _tensorflow_generator()
    if generator is not None and int(generator.algorithm) == algorithm:
        generator.reset(state)  # in place: functions that were traced before hold its variable
    else:
        tf.random.set_global_generator(tf.random.Generator.from_state(state, algorithm))
    return []


def _restore_tensorflow_steps(saved: GlobalGenerators, leave: Collection[str]) -> list[str]:
    states = {
        name.partition("/")[2]: array for name, array in saved.arrays.items() if name.startswith(f"{STEPS}/")
    }
    draws, seeds = step_draws(), generator_of_seeds()
    if draws is not None and states and STEPS not in leave:
        draws.restore(states)
    if seeds is not None and _SEEDS in saved.arrays and _SEEDS not in leave:
        seeds.setstate((seeds.VERSION, tuple(map(int, saved.arrays[_SEEDS])), None))
    return [STEPS] if states and draws is None else []
