"""Captured parts of a model: the values, attributes and documents that Keras would write, before they are written.

`LazyGroup` is the way back: the values of one object, as its loading code reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedValue:
    """A value that Keras would write.

    Attributes:
        path: Its path in the HDF5 file.
        value: The live variable if Keras saves it unchanged, else the array that was made for saving.
        owner: ``"model"`` or ``"optimizer"``.
    """

    path: str
    value: Any
    owner: str = "model"

    @property
    def is_variable(self) -> bool:
        """True if the value is the live variable itself."""
        return isinstance(self.value, keras.Variable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Everything that Keras would write for a model.

    Attributes:
        entries: The values, in the order in which Keras writes them.
        attributes: Text attributes by HDF5 group.
        documents: Members of a ``.keras`` archive other than the weights, if they were requested.
        exact: False if it comes from the fallback, where all values are copies and not variables.
        may_have_assets: True if a layer may have files, now or later; known only with the documents.
    """

    entries: tuple[CapturedValue, ...]
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    exact: bool = True
    may_have_assets: bool = False

    def saved_ids(self) -> frozenset[int]:
        """Return the ids of the variables that are saved unchanged."""
        return frozenset(id(entry.value) for entry in self.entries if entry.is_variable)

    def optimizer_groups(self) -> list[str]:
        """Return the groups that hold optimizers' variables."""
        return list(
            dict.fromkeys(
                entry.path.rpartition("/")[0] for entry in self.entries if entry.owner == "optimizer"
            )
        )


class LazyGroup(Mapping[str, Any]):
    """Saved values of one object of a model: arrays by key, each read from the payload on access."""

    def __init__(self, variables: Mapping[str, Any], paths: Mapping[str, str]) -> None:
        self._variables = variables
        self._paths = paths

    def __getitem__(self, key: str) -> Any:
        value = self._variables[self._paths[key]]
        # Backends do not accept these from numpy; float16 can represent all of their values.
        is_array = isinstance(value, np.ndarray)
        return value.astype(np.float16) if is_array and value.dtype.name.startswith("float8") else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
