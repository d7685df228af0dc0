"""State of a data source: its own position, or the attributes that decide its order.

A source that can save its position is asked for it. Of others (a `keras.utils.PyDataset`, the parts of a torch
DataLoader) the few attributes are kept that may change from epoch to epoch. What lies deeper, such as a generator
inside a transformation, is not found.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras

from ckptstore.keras.state import tree
from ckptstore.keras.state.backend_arrays import as_numpy
from ckptstore.training.data.attributes import (
    LARGEST_NBYTES,
    copy_of,
    digest_of,
    is_scalar,
    is_watched,
    nbytes_of_indices,
    restore_attribute,
    run_time_attributes,
)

_METHODS = (("state_dict", "load_state_dict"), ("get_state", "set_state"))
_POSITION, _ATTRIBUTES, _UNCHANGED = "position", "attributes", "unchanged"
# Their arrays, tables and pipelines have no order of their own, or none that can be reached.
_LIBRARIES = {
    "builtins",
    "numpy",
    "jax",
    "jaxlib",
    "tensorflow",
    "torch",
    "pandas",
    "scipy",
    "polars",
    "pyarrow",
    "grain",
}
_TENSOR = ("torch", "Tensor")
_SETTINGS_OF_TORCHDATA = {
    "in_order",
    "next_iter_state",
    "snapshot_every_n_steps",
    "_initial_iter_for_state_dict",
}


def kind(source: Any) -> str:
    """Return how a data source's state can be restored.

    Returns:
        ``"position"``: it saves and loads its position itself, by ``state_dict``/``load_state_dict`` or
        ``get_state``/``set_state``. ``"attributes"``: its small run-time attributes are kept. ``"none"``: it has none;
        arrays and tf.data are such.

    Example:
        >>> import numpy as np
        >>> kind(np.zeros(3)), kind(keras.utils.PyDataset())
        ('none', 'attributes')
    """
    if _methods(source) is not None:
        return "position"
    if isinstance(source, keras.utils.PyDataset) or _is_torch(source, "DataLoader", "Dataset", "Sampler"):
        return "attributes"
    library = type(source).__module__.partition(".")[0] in _LIBRARIES
    iterates = any(hasattr(source, name) for name in ("__iter__", "__next__", "__getitem__"))
    if library or not iterates or not hasattr(source, "__dict__") or as_numpy(source) is not None:
        return "none"
    return "attributes"


def capture(source: Any) -> dict[str, Any] | None:
    """Return a data source's own state, its position or order, for `tree.pack`; None if it has none.

    A `ChangeTracker` leaves out what never changes.

    Args:
        source: What was given to ``fit``.

    Raises:
        Exception: What the source's own method raises.
    """
    return _captured(source, {})


def apply(source: Any, saved: Mapping[str, Any]) -> None:
    """Restore a data source's state: generators, arrays and lists in place, the rest by assignment.

    What cannot be set, and what was the same all the time and is another value now, stays as it is; one warning
    reports it.

    Args:
        source: What was given to ``fit``.
        saved: What `capture` returned, perhaps through `tree`.

    Raises:
        Exception: What the source's own method raises.

    Example:
        >>> class Batches(keras.utils.PyDataset):
        ...     epoch = 0
        >>> first, again = Batches(), Batches()
        >>> first.epoch = 5
        >>> apply(again, capture(first))
        >>> again.epoch
        5
    """
    problems: list[str] = []
    for place, holder in _parts(source):
        entry = saved.get(place, {})
        if _POSITION in entry and _methods(holder) is not None:
            set_position(holder, entry[_POSITION])
        for name, value in entry.get(_ATTRIBUTES, {}).items():
            reason = restore_attribute(holder, name, value)
            problems += [] if reason is None else [f"{place}{name}: {reason}"]
        problems += _differences(place, holder, entry.get(_UNCHANGED, {}))
    if problems:
        text = "; ".join(problems)
        warnings.warn(f"the data is not as it was when the checkpoint was saved: {text}", stacklevel=2)


def same_state(first: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Return True if two captures of one source are the same.

    Example:
        >>> data = keras.utils.PyDataset()
        >>> data.order = [1, 2]
        >>> before = capture(data)
        >>> data.order.reverse()
        >>> same_state(before, before), same_state(before, capture(data))
        (True, False)
    """
    (document, arrays), (document_too, arrays_too) = (tree.pack(saved, "data") for saved in (first, other))
    return bool(document == document_too) and all(
        array.tobytes() == arrays_too[name].tobytes() for name, array in arrays.items()
    )


def _differences(place: str, holder: Any, unchanged: Mapping[str, str]) -> Iterator[str]:
    live = dict(run_time_attributes(holder))
    for name, mark in unchanged.items():
        if name not in live:
            yield f"{place}{name} is missing"
        elif digest_of(live[name]) != mark:
            if is_scalar(live[name]):
                yield f"{place}{name} was {mark} and is {live[name]!r}"
            else:
                yield f"{place}{name} holds other integers"


# --- positions -------------------------------------------------------------------------------------


def reports_position(source: Any) -> bool:
    """Return True if iterators over a source continue at the position that it reports, with all random numbers.

    Those over a `keras.utils.PyDataset` do not: they count by themselves, and its state belongs to the epoch. A torch
    loader's workers begin with new generators, so that their dataset must have methods of its own.
    """
    if _methods(source) is None or isinstance(source, keras.utils.PyDataset):
        return False
    if not _is_torch(source, "DataLoader"):
        return True
    return source.num_workers == 0 or _methods(source.dataset) is not None


def keeps_workers(source: Any) -> bool:
    """Return True if a torch loader's processes live on from epoch to epoch, and their generators with them."""
    return _is_torch(source, "DataLoader") and source.num_workers > 0 and bool(source.persistent_workers)


def position(holder: Any) -> Any:
    """Return the position that a source or an iterator reports, for `tree.pack`.

    Raises:
        Exception: What its own method raises.
    """
    names = _methods(holder)
    assert names is not None
    return _without_tensors(getattr(holder, names[0])())


def set_position(holder: Any, saved: Any) -> None:
    """Set a source or an iterator to what `position` returned.

    Raises:
        Exception: What its own method raises.
    """
    names = _methods(holder)
    assert names is not None
    getattr(holder, names[1])(_with_tensors(saved))


def unreported_dataset(source: Any) -> Any:
    """Return the dataset of a torch loader whose position does not include it, or None."""
    dataset = source.dataset if _is_torch(source, "DataLoader") else None
    return dataset if _methods(dataset) is None else None


class ChangeTracker:
    """Keeps of a source's attributes only what has changed since training began.

    Settings (a batch size) and constant arrays (labels) so come from the code and are not stored at each save. Make it
    before anything is restored: what a restored run has changed would else look like something that never changes.

    Args:
        source: What was given to ``fit``.

    Attributes:
        left_out: Names of arrays and lists of integers that are left alone, being larger than 256 MiB.

    Example:
        >>> class Batches(keras.utils.PyDataset):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.size, self.order = 32, [0, 1, 2]
        >>> data = Batches()
        >>> tracker = ChangeTracker(data)
        >>> data.order.reverse()
        >>> tracker.capture()[""]["attributes"]
        {'order': [2, 1, 0]}
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._digests: dict[str, dict[str, str]] = {}
        self._noted: dict[str, Any] = {}
        self._noted_rest: dict[str, dict[str, Any]] = {}
        too_large = []
        for place, holder in _parts(source):
            values = dict(run_time_attributes(holder)) if _methods(holder) is None else {}
            self._digests[place] = {
                name: digest_of(inner)
                for name, inner in values.items()
                if is_watched(inner) and _is_small(inner)
            }
            too_large += [f"{place}{name}" for name, value in values.items() if not _is_small(value)]
        self.left_out: tuple[str, ...] = tuple(too_large)

    def capture(self) -> dict[str, Any] | None:
        """Return the source's present state, as `capture` does, less what has not changed.

        Raises:
            Exception: What the source's own method raises.
        """
        return _captured(self._source, self._digests)

    def note(self) -> None:
        """Remember the source's present state, for `capture_both`.

        Raises:
            Exception: What the source's own method raises.
        """
        self._noted = self.capture() or {}
        for place, holder in _parts(self._source):
            same = self._noted.get(place, {}).get(_UNCHANGED, {})
            self._noted_rest[place] = {name: copy_of(vars(holder)[name]) for name in same}

    def capture_both(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Return the source's state at the last `note`, and its present one.

        What has changed at one of them is kept of both: it can be set to the one from wherever the other has left it.

        Raises:
            Exception: What the source's own method raises.
        """
        noted = {place: entry.get(_ATTRIBUTES, {}) for place, entry in self._noted.items()}
        marks = {place: _without(known, noted.get(place, {})) for place, known in self._digests.items()}
        now = _captured(self._source, marks)
        then = {}
        for place, entry in self._noted.items():
            changed = _without(self._noted_rest[place], (now or {}).get(place, {}).get(_UNCHANGED, {}))
            then[place] = _moved(entry, changed) if changed else entry
        return then or None, now


def _without(named: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name not in names}


def _moved(entry: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry in which attributes that had not changed are among those that had."""
    attributes = {**entry[_ATTRIBUTES], **changed}
    return {_ATTRIBUTES: attributes, _UNCHANGED: _without(entry[_UNCHANGED], changed)}


def _captured(source: Any, marks: Mapping[str, Mapping[str, str]]) -> dict[str, Any] | None:
    found = {}
    for place, holder in _parts(source):
        if _methods(holder) is not None:
            found[place] = {_POSITION: position(holder)}
            continue
        entry = _changed(holder, marks.get(place, {}))
        if any(entry.values()):
            found[place] = entry
    return found or None


def _changed(holder: Any, marks: Mapping[str, str]) -> dict[str, Any]:
    attributes, unchanged = {}, {}
    for name, value in run_time_attributes(holder):
        if not _is_small(value):
            continue
        if is_watched(value) and marks.get(name) == digest_of(value):
            unchanged[name] = marks[name]
        else:
            attributes[name] = copy_of(value)
    return {_ATTRIBUTES: attributes, _UNCHANGED: unchanged}


def _is_small(value: Any) -> bool:
    return (nbytes_of_indices(value) or 0) <= LARGEST_NBYTES


# --- the parts of a source -------------------------------------------------------------------------


def _parts(source: Any) -> Iterator[tuple[str, Any]]:
    """Yield the objects that may hold state, each with the beginning of its attributes' names."""
    if kind(source) == "none":
        return
    if not _is_torch(source, "DataLoader"):
        yield "", source
        return
    # Not the loader itself: all its other attributes are settings, or give the position in an epoch.
    yield "", _Own(source)
    batches = source.batch_sampler
    inner = getattr(batches, "sampler", None)
    seen: list[Any] = []
    for place, part in (
        ("dataset.", source.dataset),
        ("sampler.", source.sampler),
        ("batch_sampler.", batches),
        ("batch_sampler.sampler.", inner),
    ):
        if part is not None and not any(part is other for other in seen) and kind(part) != "none":
            seen.append(part)
            yield place, part


class _Own:
    """The attributes of a torch loader that are not torch's or torchdata's, and its generator."""

    _loader: Any

    def __init__(self, loader: Any) -> None:
        known = _settings_of_loaders() - {"generator"}
        own = {name: value for name, value in vars(loader).items() if name not in known}
        self.__dict__.update(own, _loader=loader)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._loader, name, value)


@functools.cache
def _settings_of_loaders() -> frozenset[str]:
    """Return the names of the attributes that torch and torchdata give to every loader."""
    from torch.utils.data import DataLoader

    return frozenset(vars(DataLoader([0]))) | _SETTINGS_OF_TORCHDATA


def _methods(source: Any) -> tuple[str, str] | None:
    for names in _METHODS:
        if all(callable(getattr(source, name, None)) for name in names):
            return names
    return None


def _is_torch(source: Any, *names: str) -> bool:
    data = sys.modules.get("torch.utils.data")
    return any(isinstance(source, getattr(data, name, ())) for name in names)


def _without_tensors(value: Any) -> Any:
    """Return a position with torch's tensors as marked arrays: a loader wants them back as tensors."""
    if type(value) is dict:
        return {key: _without_tensors(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_tensors(item) for item in value)
    torch: Any = sys.modules.get("torch")
    return {_TENSOR: as_numpy(value)} if isinstance(value, getattr(torch, "Tensor", ())) else value


def _with_tensors(value: Any) -> Any:
    if type(value) is dict and set(value) == {_TENSOR}:
        import torch

        return torch.from_numpy(value[_TENSOR].copy())
    if type(value) is dict:
        return {key: _with_tensors(inner) for key, inner in value.items()}
    return type(value)(map(_with_tensors, value)) if type(value) in (list, tuple) else value
