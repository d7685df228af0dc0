"""State of the user's own code that training changes and Keras does not track: found, saved and restored by its path.

That is a raw `tf.Variable`, tensors, arrays, numbers, lists and dicts on a model, a layer, an optimizer, a loss or a
metric, and in objects of the user's own classes that these hold. What training changes is found by a comparison with
the values at the beginning of the fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import CellType
from typing import Any

import keras

from ckptstore.keras import private
from ckptstore.keras.state import user_state_walk
from ckptstore.keras.state.generators import GeneratorState
from ckptstore.keras.state.user_state_values import digest
from ckptstore.keras.state.user_state_walk import Place

# Keys of the state.
_VALUES, _LOST = "values", "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserStateReport:
    """Values that could not be restored, or may have no effect.

    Attributes:
        lost: Paths of values that changed and could not be saved or restored, each with the reason.
        compiled: Paths of restored values that a compiled train step holds as constants.
    """

    lost: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()


class UserState:
    """The user's own state of one fit.

    Args:
        model: The model, before anything is restored into it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._roots: list[tuple[str, Any]] | None = None
        self._before = self._digests()
        self._restored: set[str] = set()
        # A compiled step runs the user's Python code only when it is traced, with the first batch.
        self._is_traced = not is_compiled(model)

    def batch_done(self) -> None:
        """Take what the first trace of a compiled step did as given: another process does it too."""
        if not self._is_traced:
            self._is_traced = True
            self._before = self._digests()

    def capture(self) -> dict[str, Any]:
        """Return what has changed since the beginning; empty if nothing has. Arrays are views."""
        values: dict[str, dict[Any, Any]] = {}
        lost: dict[str, str] = {}
        unsafe = set()
        for place in self._places():
            path = place.path
            if place.reason is None:
                if path not in self._restored and self._before.get(path) == _mark(place):
                    continue
                if digest(place.plain) is None:
                    lost[path] = "it cannot be saved without pickle"
                else:
                    values.setdefault(place.owner_path, {})[place.key] = place.plain
            elif self._before.get(path) != _mark(place):
                lost[path] = place.reason
                unsafe.add(place.owner_path)
        for owner in unsafe & values.keys():
            # "It is made" must not come back without what was made.
            for key in [key for key, value in values[owner].items() if isinstance(value, bool)]:
                del values[owner][key]
                lost[f"{owner}.{key}"] = "it may belong to what cannot be saved"
        return {name: found for name, found in ((_VALUES, values), (_LOST, lost)) if found}

    def restore(self, saved: Mapping[str, Any]) -> UserStateReport:
        """Restore what `capture` returned, and report what was not restored.

        Example:
            >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
            >>> model.batches = 0
            >>> state = UserState(model)
            >>> model.batches = 7
            >>> saved = state.capture()
            >>> model.batches = 0
            >>> state.restore(saved).lost, model.batches
            ((), 7)
        """
        lost = [f"{path} ({reason})" for path, reason in saved.get(_LOST, {}).items()]
        compiled = []
        self._roots = None
        live = list(self._places())
        owners = dict(self._known_roots())
        owners |= {place.owner_path: place.owner for place in live}
        places = {(place.owner_path, place.key): place for place in live}
        for owner_path, values in saved.get(_VALUES, {}).items():
            for key, value in values.items():
                place = places.get((owner_path, key))
                if place is None:
                    if owner_path not in owners:
                        lost.append(f"{owner_path}.{key} (nothing of that name is there now)")
                        continue
                    place = Place(owner_path=owner_path, owner=owners[owner_path], key=key, value=None)
                self._restored.add(place.path)
                if place.plain is not None and digest(place.plain) == digest(value):
                    continue
                try:
                    place.set(value)
                except Exception as error:
                    lost.append(f"{place.path} ({type(error).__name__}: {error})")
                    continue
                if is_compiled(self._model) and self._may_be_constant(place):
                    compiled.append(place.path)
        return UserStateReport(lost=tuple(lost), compiled=tuple(compiled))

    def _may_be_constant(self, place: Place) -> bool:
        """Return True if the user's code in a compiled step may have read a value when it was traced."""
        if hasattr(place.value, "assign") or isinstance(place.plain, GeneratorState):
            return False
        names = set(re.findall(r"\w+", place.path.partition(".")[2]))
        read = {name for _, root in self._known_roots() for name in private.names_read_by(type(root))}
        return isinstance(place.owner, CellType) or not names.isdisjoint(read)

    def _known_roots(self) -> list[tuple[str, Any]]:
        if self._roots is None:
            self._roots = user_state_walk.roots(self._model)
        return self._roots

    def _places(self) -> list[Place]:
        return list(user_state_walk.places(self._model, self._known_roots()))

    def _digests(self) -> dict[str, Any]:
        self._roots = None
        found = {place.path: _mark(place) for place in self._places()}
        self._roots = None
        return found


def _mark(place: Place) -> Any:
    """Return what differs once a value has changed.

    Of a value that cannot be saved it is what can be seen: its text, or which object it is, and how long.
    """
    found = digest(place.plain) if place.reason is None else None
    if found is not None:
        return found
    value = place.value
    # The user's code runs here, and datasets of unknown length raise.
    with suppress(Exception):
        if place.reason is None:
            return repr(value)
        return type(value).__name__, id(value), len(value)
    return type(value).__name__, id(value), 0


def is_compiled(model: Any) -> bool:
    """Return True if the model's train step runs the user's Python code only when it is traced."""
    return keras.backend.backend() in ("jax", "tensorflow") and not getattr(model, "run_eagerly", False)
