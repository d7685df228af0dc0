"""State of a data source: its own position, or the attributes that decide its order.

`kind` tells which of the two a source has. A source with a pair of methods such as ``state_dict`` and
``load_state_dict`` reports its position itself. Of others (a `keras.utils.PyDataset`; the parts of a torch DataLoader),
`capture` copies the few attributes that may change from epoch to epoch, and `apply` restores them. `ChangeTracker`
leaves out those that have not changed since training began. State nested deeper, such as a generator inside a
transformation, is not found.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras

from ckptstore.keras.state import tree
from ckptstore.keras.state.backend_arrays import as_numpy
from ckptstore.system import messages
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

_STATE_METHODS = (("state_dict", "load_state_dict"), ("get_state", "set_state"))
_POSITION, _ATTRIBUTES, _UNCHANGED = "position", "attributes", "unchanged"
# Arrays, tables and pipelines of these libraries have no order of their own, or none that can be read.
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
_TORCHDATA_SETTINGS = {
    "in_order",
    "next_iter_state",
    "snapshot_every_n_steps",
    "_initial_iter_for_state_dict",
}


def kind(source: Any) -> str:
    """Return how a data source's state can be restored.

    Returns:
        ``"position"``: it saves and loads its position itself, by ``state_dict``/``load_state_dict`` or
        ``get_state``/``set_state``. ``"attributes"``: its small run-time attributes are saved. ``"none"``: it has no
        state to save, such as arrays and tf.data.

    Example:
        >>> import numpy as np
        >>> kind(np.zeros(3)), kind(keras.utils.PyDataset())
        ('none', 'attributes')
    """
    if _state_methods(source) is not None:
        return "position"
    if isinstance(source, keras.utils.PyDataset) or _is_torch(source, "DataLoader", "Dataset", "Sampler"):
        return "attributes"
    library = type(source).__module__.partition(".")[0] in _LIBRARIES
    iterates = any(hasattr(source, name) for name in ("__iter__", "__next__", "__getitem__"))
    if library or not iterates or not hasattr(source, "__dict__") or as_numpy(source) is not None:
        return "none"
    return "attributes"


def capture(source: Any) -> dict[str, Any] | None:
    """Return a data source's own state (position or order) for `tree.pack`; None if it has none.

    This includes attributes that never change; a `ChangeTracker` leaves them out.

    Args:
        source: The data that the caller gave to ``fit``.

    Raises:
        Exception: Any error of the source's own method.
    """
    return _capture_parts(source, {})


def apply(source: Any, saved: Mapping[str, Any]) -> None:
    """Restore a data source's state: generators, arrays and lists in place, other values by assignment.

    Two kinds of attributes stay as they are, and one warning names them: those that cannot be set, and those that never
    changed in the saved run but have another value now.

    Args:
        source: The data that the caller gave to ``fit``.
        saved: The result of `capture`, possibly after a round trip through `tree`.

    Raises:
        Exception: Any error of the source's own method.

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
    for prefix, holder in _stateful_parts(source):
        entry = saved.get(prefix, {})
        if _POSITION in entry and _state_methods(holder) is not None:
            set_position(holder, entry[_POSITION])
        for name, value in entry.get(_ATTRIBUTES, {}).items():
            reason = restore_attribute(holder, name, value)
            problems += [] if reason is None else [f"{prefix}{name}: {reason}"]
        problems += _differences(prefix, holder, entry.get(_UNCHANGED, {}))
    if problems:
        text = "; ".join(problems)
        messages.warn(f"the data is not as it was when the checkpoint was saved: {text}")


def same_state(first: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Return True if two captures of one source are equal.

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


def _differences(prefix: str, holder: Any, unchanged: Mapping[str, str]) -> Iterator[str]:
    live = dict(run_time_attributes(holder))
    for name, digest in unchanged.items():
        if name not in live:
            yield f"{prefix}{name} is missing"
        elif digest_of(live[name]) != digest:
            if is_scalar(live[name]):
                yield f"{prefix}{name} was {digest} and is {live[name]!r}"
            else:
                yield f"{prefix}{name} holds other integers"


# --- positions -------------------------------------------------------------------------------------


def reports_position(source: Any) -> bool:
    """Return True if new iterators over a source continue exactly at the position that it reports.

    Iterators over a `keras.utils.PyDataset` do not: they count batches themselves, and its state belongs to the whole
    epoch. Workers of a torch loader start with new random generators, so their dataset must report its own state.
    """
    if _state_methods(source) is None or isinstance(source, keras.utils.PyDataset):
        return False
    if not _is_torch(source, "DataLoader"):
        return True
    return source.num_workers == 0 or _state_methods(source.dataset) is not None


def keeps_workers(source: Any) -> bool:
    """Return True if a torch loader's workers, and their random generators, persist from epoch to epoch."""
    return _is_torch(source, "DataLoader") and source.num_workers > 0 and bool(source.persistent_workers)


def position(holder: Any) -> Any:
    """Return the position that a source or an iterator reports, for `tree.pack`.

    Raises:
        Exception: Any error of its own method.
    """
    names = _state_methods(holder)
    assert names is not None
    return _without_tensors(getattr(holder, names[0])())


def set_position(holder: Any, saved: Any) -> None:
    """Set a source or an iterator to a position that `position` returned.

    Raises:
        Exception: Any error of its own method.
    """
    names = _state_methods(holder)
    assert names is not None
    getattr(holder, names[1])(_with_tensors(saved))


def unreported_dataset(source: Any) -> Any:
    """Return a torch loader's dataset if the loader's position does not include its state, else None."""
    dataset = source.dataset if _is_torch(source, "DataLoader") else None
    return dataset if _state_methods(dataset) is None else None


class ChangeTracker:
    """Captures only those attributes of a source that have changed since training began.

    Settings (a batch size) and constant arrays (labels) come from the code, so they need not be stored at each save.
    Create the tracker before anything is restored. Otherwise attributes that the earlier run changed would look as if
    they never change.

    Args:
        source: The data that the caller gave to ``fit``.

    Attributes:
        left_out: Names of arrays and lists of integers that are not captured because they are larger than 256 MiB.

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
        self._noted_unchanged: dict[str, dict[str, Any]] = {}
        too_large = []
        for prefix, holder in _stateful_parts(source):
            values = dict(run_time_attributes(holder)) if _state_methods(holder) is None else {}
            self._digests[prefix] = {
                name: digest_of(value)
                for name, value in values.items()
                if is_watched(value) and _is_small(value)
            }
            too_large += [f"{prefix}{name}" for name, value in values.items() if not _is_small(value)]
        self.left_out: tuple[str, ...] = tuple(too_large)

    def capture(self) -> dict[str, Any] | None:
        """Return the source's current state, as `capture` does, without attributes that have not changed.

        Raises:
            Exception: Any error of the source's own method.
        """
        return _capture_parts(self._source, self._digests)

    def note(self) -> None:
        """Remember the source's current state for `capture_both`.

        Raises:
            Exception: Any error of the source's own method.
        """
        self._noted = self.capture() or {}
        for prefix, holder in _stateful_parts(self._source):
            same = self._noted.get(prefix, {}).get(_UNCHANGED, {})
            self._noted_unchanged[prefix] = {name: copy_of(vars(holder)[name]) for name in same}

    def capture_both(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Return the source's state at the last `note`, and its current state.

        An attribute that has changed at either time is captured for both, so that `apply` can go from one to the other.

        Raises:
            Exception: Any error of the source's own method.
        """
        noted = {prefix: entry.get(_ATTRIBUTES, {}) for prefix, entry in self._noted.items()}
        digests = {prefix: _without(known, noted.get(prefix, {})) for prefix, known in self._digests.items()}
        now = _capture_parts(self._source, digests)
        then = {}
        for prefix, entry in self._noted.items():
            changed = _without(self._noted_unchanged[prefix], (now or {}).get(prefix, {}).get(_UNCHANGED, {}))
            then[prefix] = _move_to_changed(entry, changed) if changed else entry
        return then or None, now


def _without(named: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name not in names}


def _move_to_changed(entry: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry whose attributes named in `changed` move from the unchanged to the changed ones."""
    attributes = {**entry[_ATTRIBUTES], **changed}
    return {_ATTRIBUTES: attributes, _UNCHANGED: _without(entry[_UNCHANGED], changed)}


def _capture_parts(source: Any, digests: Mapping[str, Mapping[str, str]]) -> dict[str, Any] | None:
    found = {}
    for prefix, holder in _stateful_parts(source):
        if _state_methods(holder) is not None:
            found[prefix] = {_POSITION: position(holder)}
            continue
        entry = _capture_attributes(holder, digests.get(prefix, {}))
        if any(entry.values()):
            found[prefix] = entry
    return found or None


def _capture_attributes(holder: Any, digests: Mapping[str, str]) -> dict[str, Any]:
    attributes, unchanged = {}, {}
    for name, value in run_time_attributes(holder):
        if not _is_small(value):
            continue
        if is_watched(value) and digests.get(name) == digest_of(value):
            unchanged[name] = digests[name]
        else:
            attributes[name] = copy_of(value)
    return {_ATTRIBUTES: attributes, _UNCHANGED: unchanged}


def _is_small(value: Any) -> bool:
    return (nbytes_of_indices(value) or 0) <= LARGEST_NBYTES


# --- the parts of a source -------------------------------------------------------------------------


def _stateful_parts(source: Any) -> Iterator[tuple[str, Any]]:
    """Yield the objects of a source that may hold state, each with the prefix of its attributes' names."""
    if kind(source) == "none":
        return
    if not _is_torch(source, "DataLoader"):
        yield "", source
        return
    # Not the loader itself: torch's and torchdata's attributes are settings, or the position in an epoch.
    yield "", _LoaderAttributes(source)
    batch_sampler = source.batch_sampler
    inner_sampler = getattr(batch_sampler, "sampler", None)
    seen: list[Any] = []
    for prefix, part in (
        ("dataset.", source.dataset),
        ("sampler.", source.sampler),
        ("batch_sampler.", batch_sampler),
        ("batch_sampler.sampler.", inner_sampler),
    ):
        if part is not None and not any(part is other for other in seen) and kind(part) != "none":
            seen.append(part)
            yield prefix, part


class _LoaderAttributes:
    """Attributes of a torch loader that neither torch nor torchdata defines, and its generator.

    Assignments go to the loader.
    """

    _loader: Any

    def __init__(self, loader: Any) -> None:
        known = _loader_settings() - {"generator"}
        own = {name: value for name, value in vars(loader).items() if name not in known}
        self.__dict__.update(own, _loader=loader)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._loader, name, value)


@functools.cache
def _loader_settings() -> frozenset[str]:
    """Return the names of the attributes that torch and torchdata set on every loader."""
    from torch.utils.data import DataLoader

    return frozenset(vars(DataLoader([0]))) | _TORCHDATA_SETTINGS


def _state_methods(source: Any) -> tuple[str, str] | None:
    for names in _STATE_METHODS:
        if all(callable(getattr(source, name, None)) for name in names):
            return names
    return None


def _is_torch(source: Any, *names: str) -> bool:
    data = sys.modules.get("torch.utils.data")
    return any(isinstance(source, getattr(data, name, ())) for name in names)


def _without_tensors(value: Any) -> Any:
    """Return a position with torch tensors as marked arrays; `_with_tensors` turns them into tensors again."""
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
