"""Compatibility of a payload with a model: the payload's variables against those that Keras would write for the model.

Errors name the first difference, with both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from ckptstore.errors import ModelMismatchError
from ckptstore.keras.private.capture import CapturedValue
from ckptstore.keras.state.arrays import shape_and_dtype
from ckptstore.keras.state.training_state import Assignment
from ckptstore.system.arrays import Array

Layout = Mapping[str, tuple[tuple[int, ...], str]]
_OPTIMIZER = "optimizer/"

_NOTHING = "nothing"
_COMPILE = (
    "the checkpoint holds an optimizer's state: compile the model, or pass optimizer= for a loop written by "
    "hand; the model was left as it was"
)
_NO_OPTIMIZER = (
    "the checkpoint holds no state for this optimizer; Checkpoint.load_weights(model) loads the weights "
    "alone; the model was left as it was"
)
_OTHER_OPTIMIZER = (
    "the optimizers differ: compile the model with the one that it was saved with, or load the weights alone "
    "with Checkpoint.load_weights(model); the model was left as it was"
)


def check(entries: Sequence[CapturedValue], layout: Layout, *, with_optimizer: bool = True) -> None:
    """Check that model and payload have the same variables, with the same shapes and dtypes.

    Arrays that a layer's own code makes for saving are not compared: only that code can tell if they are right.

    Args:
        entries: What Keras would write for the model.
        layout: The payload's variables.
        with_optimizer: False to leave out the optimizer that the model is compiled with, or that a loop passes.

    Raises:
        ModelMismatchError: They differ; names the first difference.
    """
    if not with_optimizer:
        entries = [entry for entry in entries if not entry.path.startswith(_OPTIMIZER)]
        layout = {path: found for path, found in layout.items() if not path.startswith(_OPTIMIZER)}
    for entry in entries:
        if entry.path not in layout:
            if entry.is_variable:
                _refuse(entry, None, _hint_for(entry.path, entries, layout))
        elif entry.is_variable and not _same(entry, layout[entry.path], any_dtype=False):
            _refuse(entry, layout[entry.path], _hint_for(entry.path, entries, layout))
    _check_nothing_left(entries, layout)


def check_weights(entries: Sequence[CapturedValue], layout: Layout, saved_slots: Collection[str]) -> None:
    """Check that the payload has all of a model's weights in their shapes; loading converts other dtypes.

    Args:
        entries: What Keras would write for the model.
        layout: The payload's variables.
        saved_slots: Groups of the payload that hold optimizers' variables.

    Raises:
        ModelMismatchError: It does not; names the first difference.
    """
    weights = [entry for entry in entries if entry.owner == "model"]
    for entry in weights:
        if entry.is_variable:
            found = layout.get(entry.path)
            if found is None or not _same(entry, found, any_dtype=True):
                _refuse(entry, found, "")
    slots = {entry.path for entry in entries if entry.owner == "optimizer"}
    others = {path: found for path, found in layout.items() if not _is_slot(path, slots, saved_slots)}
    _check_nothing_left(weights, others)


def optimizer_matches(entries: Sequence[CapturedValue], layout: Layout, saved_slots: Collection[str]) -> bool:
    """Return True if the payload has the state of exactly this optimizer, judged by shapes."""
    slots = {entry.path: entry for entry in entries if entry.owner == "optimizer"}
    saved = {path for path in layout if _is_slot(path, slots, saved_slots)}
    return saved == set(slots) and all(_same(slots[path], layout[path], any_dtype=False) for path in saved)


def match_in_order(
    live: Sequence[tuple[str, Any]], saved: Sequence[tuple[str, Array]], *, any_dtype: bool
) -> list[Assignment]:
    """Pair variables with arrays by their order.

    Raises:
        ModelMismatchError: A pair differs, or one side has more; names the first difference.
    """
    for (path, variable), (_, value) in zip(live, saved, strict=False):
        (shape, dtype), (saved_shape, saved_dtype) = shape_and_dtype(variable), shape_and_dtype(value)
        if shape != saved_shape or (dtype != saved_dtype and not any_dtype):
            raise ModelMismatchError(
                where=path, in_checkpoint=_text(saved_shape, saved_dtype), in_model=_text(shape, dtype)
            )
    if len(live) > len(saved):
        path, variable = live[len(saved)]
        raise ModelMismatchError(
            where=path, in_checkpoint=_NOTHING, in_model=_text(*shape_and_dtype(variable))
        )
    if len(saved) > len(live):
        path, value = saved[len(live)]
        raise ModelMismatchError(where=path, in_checkpoint=_text(*shape_and_dtype(value)), in_model=_NOTHING)
    return [
        Assignment(variable=variable, value=value)
        for (_, variable), (_, value) in zip(live, saved, strict=True)
    ]


def _check_nothing_left(entries: Iterable[CapturedValue], layout: Layout) -> None:
    known = {entry.path for entry in entries}
    # If a layer saves in its own way, only that layer knows which arrays belong to it.
    own = {entry.path.rpartition("/")[0] for entry in entries if not entry.is_variable}
    for path, (shape, dtype) in layout.items():
        if path not in known and path.rpartition("/")[0] not in own:
            has_optimizer = any(_is_slot(other, ()) for other in known)
            hint = "" if not _is_slot(path, ()) else _OTHER_OPTIMIZER if has_optimizer else _COMPILE
            raise ModelMismatchError(
                where=path, in_checkpoint=_text(shape, dtype), in_model=_NOTHING, hint=hint
            )


def _hint_for(path: str, entries: Iterable[CapturedValue], layout: Layout) -> str:
    slots = {entry.path for entry in entries if entry.owner == "optimizer"}
    if path not in slots:
        return ""
    return _OTHER_OPTIMIZER if any(_is_slot(other, slots) for other in layout) else _NO_OPTIMIZER


def _is_slot(path: str, slots: Iterable[str], groups: Collection[str] = ()) -> bool:
    return path.startswith(_OPTIMIZER) or path in slots or path.rpartition("/")[0] in groups


def _same(entry: CapturedValue, found: tuple[tuple[int, ...], str], *, any_dtype: bool) -> bool:
    shape, dtype = shape_and_dtype(entry.value)
    return shape == tuple(found[0]) and (any_dtype or dtype.name == found[1])


def _refuse(entry: CapturedValue, found: tuple[tuple[int, ...], str] | None, hint: str) -> NoReturn:
    raise ModelMismatchError(
        where=entry.path,
        in_checkpoint=_NOTHING if found is None else _text(*found),
        in_model=_text(*shape_and_dtype(entry.value)),
        hint=hint,
    )


def _text(shape: tuple[int, ...], dtype: str | np.dtype[Any]) -> str:
    return f"{tuple(shape)} {dtype}"
