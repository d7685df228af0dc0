"""What Keras would write for a model, before it is written, and one object's part of what it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedValue:
    """One value that Keras would write.

    Attributes:
        path: Its place in the HDF5 file.
        value: The live variable where Keras saves it as it is, else the array that was made for saving.
        owner: ``"model"`` or ``"optimizer"``.
    """

    path: str
    value: Any
    owner: str = "model"

    @property
    def is_variable(self) -> bool:
        """True when the value is the live variable itself."""
        return isinstance(self.value, keras.Variable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """What Keras would write for a model.

    Attributes:
        entries: In the order in which Keras writes them.
        attributes: Text attributes by HDF5 group.
        documents: Members of a ``.keras`` archive beside the weights, as far as they were asked for.
        exact: False when it came from the fallback, where the values are copies and not the variables.
        may_have_assets: Whether there are layers that may keep files, by now or later; asked for with the documents.
    """

    entries: tuple[CapturedValue, ...]
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    exact: bool = True
    may_have_assets: bool = False

    def saved_ids(self) -> frozenset[int]:
        """Identities of the variables that are saved as they are."""
        return frozenset(id(entry.value) for entry in self.entries if entry.is_variable)


class LazyGroup(Mapping[str, Any]):
    """What one object of a model loads: arrays by key, each read from the payload when it is asked for."""

    def __init__(self, variables: Mapping[str, Any], paths: Mapping[str, str]) -> None:
        self._variables = variables
        self._paths = paths

    def __getitem__(self, key: str) -> Any:
        value = self._variables[self._paths[key]]
        # Backends do not take these from numpy; float16 holds each of their values.
        is_array = isinstance(value, np.ndarray)
        return value.astype(np.float16) if is_array and value.dtype.name.startswith("float8") else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
