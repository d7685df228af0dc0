"""The division of a model that one process holds, for a payload of shards: whole variables, and how each is sharded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckptstore.formats.sharded.grid import whole
from ckptstore.formats.sharded.shards import ShardedVariable, Shards
from ckptstore.formats.snapshot import Variable
from ckptstore.keras.model.copy_shards import shardings_of
from ckptstore.keras.private import raw_values
from ckptstore.keras.state.shards import described_sharding


class DividedModel:
    """A model's variables with their shardings, which are described again only where a script has changed one.

    Args:
        variables: The variables of the payload.
        values: Their live values, in the same order.
    """

    def __init__(self, variables: Sequence[Variable], values: Sequence[Any]) -> None:
        self._variables = variables
        self._values = values
        self._shardings: list[Any] | None = None
        self._shards = Shards(variables=())

    def shards(self) -> Shards:
        """Return the division as it is now; the same object while nothing changes."""
        values = raw_values(self._values)
        shardings = shardings_of(values)
        # A step may return an equal sharding in an object of its own; the comparison of lists looks for identity first.
        if shardings != self._shardings:
            self._shardings = shardings
            self._shards = Shards(
                variables=tuple(
                    ShardedVariable(
                        path=variable.path,
                        dtype=variable.dtype,
                        grid=whole(variable.shape),
                        sharding=described_sharding(sharding, len(variable.shape)),
                    )
                    for variable, sharding in zip(self._variables, shardings, strict=True)
                )
            )
        return self._shards
