"""State of a single random generator object: reading it, and setting it in place.

The live object stays the same, so all that share it see the state that was set. Reading draws nothing. `random_state`
does this for the global generators of all libraries together.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptstore.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True, eq=False)
class GeneratorState:
    """The state of a random generator.

    Attributes:
        kind: The kind of generator, such as ``"numpy.Generator/PCG64"`` or ``"random"``.
        state: Plain values and arrays.
    """

    kind: str
    state: Any

    def apply(self, generator: Any) -> None:
        """Set a live generator to this state.

        Raises:
            InvalidArgumentError: It is not a generator, or of another kind.

        Example:
            >>> generator = np.random.default_rng(5)
            >>> saved = state_of(generator)
            >>> first = generator.random()
            >>> saved.apply(generator)
            >>> generator.random() == first
            True
        """
        kind = kind_of(generator)
        if kind != self.kind:
            raise InvalidArgumentError(
                argument="generator",
                value=kind or type(generator).__name__,
                reason=f"the saved state is one of {self.kind}",
                hint="make the generator as it was when the state was saved",
            )
        _set(generator, self.kind, self.state)


def kind_of(value: Any) -> str | None:
    """Return the kind of a random generator, or None for anything else.

    Example:
        >>> kind_of(random.Random(1)), kind_of(np.random.default_rng()), kind_of(3)
        ('random', 'numpy.Generator/PCG64', None)
    """
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return "random"
    if isinstance(value, np.random.Generator):
        return f"numpy.Generator/{type(value.bit_generator).__name__}"
    if isinstance(value, np.random.RandomState):
        return f"numpy.RandomState/{value.get_state(legacy=False)['bit_generator']}"
    if isinstance(value, np.random.BitGenerator):
        return f"numpy/{type(value).__name__}"
    # Only if they are imported: otherwise there are no such objects.
    torch: Any = sys.modules.get("torch")
    keras: Any = sys.modules.get("keras")
    if isinstance(value, getattr(torch, "Generator", ())):
        return f"torch/{value.device.type}"  # type: ignore[union-attr]
    seeds = getattr(getattr(keras, "random", None), "SeedGenerator", ())
    return "keras" if isinstance(value, seeds) else None


def state_of(generator: Any) -> GeneratorState | None:
    """Return the state of a random generator, or None for anything else."""
    kind = kind_of(generator)
    return None if kind is None else GeneratorState(kind, _get(generator, kind))


def _get(generator: Any, kind: str) -> Any:
    family = kind.partition("/")[0]
    if family == "random":
        return generator.getstate()
    if family == "numpy.Generator":
        return generator.bit_generator.state
    if family == "numpy.RandomState":
        return generator.get_state(legacy=False)
    if family == "numpy":
        return generator.state
    if family == "torch":
        return generator.get_state().numpy().copy()
    from ckptstore.keras.state.arrays import host_array

    return host_array(generator.state).copy()


def _set(generator: Any, kind: str, state: Any) -> None:
    family = kind.partition("/")[0]
    if family == "random":
        generator.setstate(state)
    elif family == "numpy.Generator":
        generator.bit_generator.state = state
    elif family == "numpy.RandomState":
        generator.set_state(state)
    elif family == "numpy":
        generator.state = state
    elif family == "torch":
        import torch

        generator.set_state(torch.from_numpy(np.array(state)))
    else:
        from ckptstore.keras.state.assigning import assign

        assign(generator.state, state)
