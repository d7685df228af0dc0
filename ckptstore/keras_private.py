"""All that ckptstore uses of Keras without Keras promising it, each with a fallback on what Keras promises.

Tried on Keras 3.10 to 3.15. Keras can write a model only to a file; a checkpoint needs to know what would be
written (names, arrays, attributes) without a second copy of the state and without a file. So `capture` runs
Keras' own walk over the model with a store that writes nothing down. Where the walk has changed its shape,
the same is read from what public Keras saves into memory: slower and with a copy, but never wrong.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import keras

from ckptstore import keras_public
from ckptstore.formats import payload
from ckptstore.formats.snapshot import Array
from ckptstore.keras_capture import Capture, Entry, ReadGroup


def _optional(name: str) -> Any:
    """Return a module of Keras' inside, or None in a Keras with another layout."""
    try:
        return import_module(name)
    except ImportError:
        return None


try:
    from keras.src.saving import saving_lib as _saving
except ImportError:  # pragma: no cover
    _saving = None
_global_state = _optional("keras.src.backend.common.global_state")
_legacy = _optional("keras.src.legacy.saving.legacy_h5_format")
_io_utils = _optional("keras.src.utils.io_utils")
_seeds = _optional("keras.src.random.seed_generator")

_METADATA, _CONFIG, _ASSETS = "metadata.json", "config.json", "assets"
_SKIPPING_TYPES = ("Operation", "Layer", "Functional", "Sequential", "Metric", "Optimizer", "Loss")


def capture(model: Any, *, optimizer: Any = None, documents: bool = False) -> Capture:
    """Take apart what Keras would write for `model`; nothing is written and the values are not copied.

    Args:
        model: A built model.
        optimizer: An optimizer that the model does not know; it goes where a compiled one would.
        documents: Also make the configuration and the layers' assets.

    Raises:
        NotImplementedError: From Keras: the model's configuration cannot be made.
    """
    if _saving is not None:
        try:
            return _walk(model, optimizer, documents)
        except NotImplementedError:
            raise
        except Exception as error:
            # Whether the model or the private interface is at fault shows when the public one is tried.
            found = keras_public.capture(model, optimizer, documents)
            _warn_of_fallback(f"{type(error).__name__}: {error}")
            return found
    _warn_of_fallback("keras.src.saving.saving_lib is not there")
    return keras_public.capture(model, optimizer, documents)


@functools.cache
def _warn_of_fallback(reason: str) -> None:
    warnings.warn(
        f"Keras {keras.__version__} saves in a way that ckptstore does not know ({reason}); "
        "it is asked to save into memory instead, which takes longer and copies the state",
        RuntimeWarning,
        stacklevel=4,
    )


# --- the walk ----------------------------------------------------------------------------------


def _walk(model: Any, optimizer: Any, documents: bool) -> Capture:
    recorder = _recorder()
    members: dict[str, bytes] = {}
    if documents:
        config, metadata = _saving._serialize_model_as_json(model)
        members |= {_METADATA: metadata.encode(), _CONFIG: config.encode()}
    optimizers = optimizers_of(model, optimizer)
    visited: set[int] = set()
    with ExitStack() as stack:
        stack.enter_context(_skip_sets_kept())
        stack.enter_context(_variables_by_reference(optimizers))
        assets = stack.enter_context(_collected_assets()) if documents else None
        _saving._save_state(
            model, weights_store=recorder, assets_store=assets, inner_path="", visited_saveables=visited
        )
        if optimizer is not None:
            _saving._save_state(
                optimizer,
                weights_store=recorder,
                assets_store=None,
                inner_path="optimizer",
                visited_saveables=visited,
            )
        if assets is not None:
            members |= assets.members()
    slots = {id(variable) for one in optimizers for variable in one.variables}
    entries = tuple(
        Entry(
            path=f"{group}/{key}",
            value=value,
            owner="optimizer" if id(value) in slots or group.startswith("optimizer/") else "model",
        )
        for group, values in recorder.groups.items()
        for key, value in values.items()
    )
    return Capture(entries=entries, attributes=recorder.attributes, documents=members)


def _recorder() -> Any:
    class Recorder(_saving.H5IOStore):  # type: ignore[misc]
        """Keras' HDF5 store, as far as saving sees it, without a file: the walk checks the class."""

        def __init__(self) -> None:
            self.mode = "w"
            self.groups: dict[str, dict[str, Any]] = {}
            self.attributes: dict[str, dict[str, str]] = {}

        def __bool__(self) -> bool:
            return True

        def make(self, path: str, metadata: Mapping[str, str] | None = None) -> dict[str, Any]:
            group = f"{path}/vars" if path else "vars"
            if group in self.groups:
                raise ValueError(f"two objects of the model are saved at the same place, {group}")
            if metadata:
                self.attributes[group] = dict(metadata)
            # A plain dict, which Keras itself hands to layers when it saves to .npz.
            self.groups[group] = {}
            return self.groups[group]

        def close(self) -> None:
            """There is nothing to close."""

    return Recorder()


@contextmanager
def _collected_assets() -> Iterator[Any]:
    """Give Keras a directory for assets, made only if some layer asks for it."""

    class Assets(_saving.DiskIOStore):  # type: ignore[misc]
        def __init__(self) -> None:
            self.mode = "w"
            self.directory: tempfile.TemporaryDirectory[str] | None = None

        def make(self, path: str) -> str:
            if self.directory is None:
                self.directory = tempfile.TemporaryDirectory(prefix="ckptstore-assets-")
            made = Path(self.directory.name, path)
            made.mkdir(parents=True, exist_ok=True)
            return str(made)

        def members(self) -> dict[str, bytes]:
            if self.directory is None:
                return {}
            root = Path(self.directory.name)
            files = sorted(path for path in root.rglob("*") if path.is_file())
            return {f"{_ASSETS}/{path.relative_to(root).as_posix()}": path.read_bytes() for path in files}

    assets = Assets()
    try:
        yield assets
    finally:
        if assets.directory is not None:
            assets.directory.cleanup()


@contextmanager
def _variables_by_reference(optimizers: Iterable[Any]) -> Iterator[None]:
    """Let optimizers that save in Keras' own way hand over their variables instead of copies of them."""
    own_way = keras.optimizers.Optimizer.save_own_variables
    changed = [one for one in optimizers if type(one).save_own_variables is own_way]
    for one in changed:
        # Straight into the instance, past the optimizer's own tracking of attributes.
        one.__dict__["save_own_variables"] = functools.partial(_hand_over, one)
    try:
        yield
    finally:
        for one in changed:
            one.__dict__.pop("save_own_variables", None)


def _hand_over(optimizer: Any, store: dict[str, Any]) -> None:
    for index, variable in enumerate(optimizer.variables):
        store[str(index)] = variable


@contextmanager
def _skip_sets_kept() -> Iterator[None]:
    """Spare Keras making a new Layer per saved object, to learn which of its attributes to pass over.

    It keeps these sets under one name and looks for them under another; they are lent to it under the second.
    """
    try:
        sets = {f"saving_attr_skiplist_{kind}": _skip_set(kind) for kind in _SKIPPING_TYPES}
        lent = {name: skipped for name, skipped in sets.items() if skipped is not None}
        before = {name: _global_state.get_global_attribute(name) for name in lent}
    except (AttributeError, TypeError, ImportError):
        yield
        return
    for name, skipped in lent.items():
        _global_state.set_global_attribute(name, skipped)
    try:
        yield
    finally:
        for name, value in before.items():
            _global_state.set_global_attribute(name, value)


@functools.cache
def _skip_set(kind: str) -> Any:
    try:
        return _saving.get_attr_skipset(kind)
    except ValueError:
        return None  # a kind that this Keras does not have


def optimizers_of(model: Any, optimizer: Any = None) -> list[Any]:
    """Return the optimizers that are saved with a model, wrapped ones after their wrappers."""
    found: list[Any] = []
    waiting = [*vars(model).values(), optimizer]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, keras.optimizers.Optimizer) and not any(one is other for other in found):
            found.append(one)
            waiting.append(getattr(one, "inner_optimizer", None))
    return found


# --- loading -----------------------------------------------------------------------------------


def load(
    model: Any,
    path: Path,
    *,
    optimizer: Any = None,
    assets: Mapping[str, bytes] | None = None,
    skip: Iterable[Any] = (),
) -> None:
    """Let the model's objects load their own state from a payload, as Keras has them do.

    Args:
        model: A model that fits.
        path: A ``.keras`` or ``.weights.h5`` payload.
        optimizer: An optimizer that the model does not know.
        assets: Members of the archive to give to the layers that keep assets, by name.
        skip: Objects to leave alone.

    Raises:
        ValueError: From Keras or a layer: something could not be loaded. The model may be half changed.
    """
    if _saving is None:
        keras_public.load(model, path, optimizer)
        return
    failed: dict[int, tuple[Any, Exception]] = {}
    visited = {id(one) for one in skip}
    with (
        payload.open_variables(path) as variables,
        _asset_directory(assets or {}) as directory,
        _skip_sets_kept(),
    ):
        for saveable, inner in ((model, ""), (optimizer, "optimizer")):
            if saveable is not None:
                _saving._load_state(
                    saveable,
                    weights_store=_reader(variables),
                    assets_store=None if directory is None else _saving.DiskIOStore(directory, mode="r"),
                    inner_path=inner,
                    visited_saveables=visited,
                    failed_saveables=set(),
                    error_msgs=failed,
                )
    if failed:
        saveable, error = next(iter(failed.values()))
        raise ValueError(f"{saveable}: {error}") from error


def _reader(variables: Mapping[str, Array]) -> Any:
    groups: dict[str, dict[str, str]] = {}
    for path in variables:
        group, _, key = f"/{path}".rpartition("/vars/")
        groups.setdefault(group[1:], {})[key] = path

    class Reader(_saving.H5IOStore):  # type: ignore[misc]
        """Keras' HDF5 store, as far as loading sees it, over a payload that is open already."""

        def __init__(self) -> None:
            self.mode = "r"

        def __bool__(self) -> bool:
            return True

        def get(self, path: str) -> Mapping[str, Array]:
            return ReadGroup(variables, groups.get(path, {}))

        def has_path(self, path: str) -> bool:
            return any(group == path or group.startswith(f"{path}/") for group in groups)

        def close(self) -> None:
            """Whoever opened the payload closes it."""

    return Reader()


@contextmanager
def _asset_directory(assets: Mapping[str, bytes]) -> Iterator[str | None]:
    files = {
        name.removeprefix(f"{_ASSETS}/"): data
        for name, data in assets.items()
        if name.startswith(f"{_ASSETS}/")
    }
    held: AbstractContextManager[str | None] = (
        tempfile.TemporaryDirectory(prefix="ckptstore-assets-") if files else nullcontext()
    )
    with held as directory:
        for name, data in files.items():
            target = Path(str(directory), name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        yield directory


# --- the older whole-model HDF5 ----------------------------------------------------------------


class _NamedFile(h5py.File):  # type: ignore[misc]
    """An open HDF5 file with a name for Keras to judge its format by."""

    def __str__(self) -> str:
        return "memory.h5"


def save_legacy(model: Any, file: h5py.File, *, optimizer: Any = None) -> None:
    """Write Keras' older whole-model format into an open, empty HDF5 file.

    Raises:
        NotImplementedError: From Keras: the model's configuration cannot be made.
    """
    with _compile_config_kept(model):
        if _legacy is None:
            keras.saving.save_model(model, _NamedFile(file.id))
            return
        _legacy.save_model_to_hdf5(model, file)
        if optimizer is not None and "optimizer_weights" not in file:
            _legacy.save_optimizer_weights_to_hdf5_group(file, optimizer)


@contextmanager
def _compile_config_kept(model: Any) -> Iterator[None]:
    """Put back what saving the older format takes out of the live model: the optimizer it was compiled with.

    Without that, whole models saved later load with Keras' default optimizer.
    """
    config: Any = getattr(getattr(model, "_compile_config", None), "config", None)
    kept = dict(config) if isinstance(config, dict) else {}
    try:
        yield
    finally:
        if kept:
            config.update(kept)


def global_seed(*, make: bool = False) -> Any:
    """Return the variable that unseeded operations draw from, or None; making it draws from Python's generator."""
    if _global_state is None or _seeds is None:  # pragma: no cover - a Keras with another layout
        return None
    found = _global_state.get_global_attribute("global_seed_generator")
    return getattr(_seeds.global_seed_generator() if found is None and make else found, "state", None)


def forget_global_seed() -> None:
    """Have Keras draw the seed of unseeded operations anew, from Python's generator, at their next use."""
    if global_seed() is not None:
        _global_state.set_global_attribute("global_seed_generator", None)


# --- messages --------------------------------------------------------------------------------


def print_message(text: str) -> None:
    """Print a line as Keras prints its own, following its switch for interactive logging."""
    (print if _io_utils is None else _io_utils.print_msg)(text)
