"""Capturing a model by Keras' own saving traversal, with a store that records instead of writing.

Keras can write a model only to a file. A checkpoint needs to know what would be written (names, arrays, attributes)
without a file and without a second copy of the state. Fallback: public Keras saves into memory, and the result is read
back. That is slower and copies the state, but is just as correct.
"""

from __future__ import annotations

import functools
import json
import textwrap
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import keras

from ckptstore.keras.private import fallback, modules
from ckptstore.keras.private.assets import collected_assets
from ckptstore.keras.private.capture import Capture, CapturedValue
from ckptstore.keras.private.optimizers import optimizers_of, variables_by_reference
from ckptstore.keras.private.skip_sets import cached_skip_sets
from ckptstore.system import messages

_METADATA, _CONFIG = "metadata.json", "config.json"


class NoConfigurationError(Exception):
    """Keras cannot make a model's configuration; the cause tells why."""


def capture_model(model: Any, *, optimizer: Any = None, documents: bool = False) -> Capture:
    """Return everything that Keras would write for `model`; nothing is written and no value is copied.

    Args:
        model: A built model.
        optimizer: An optimizer that the model does not know; it is placed where a compiled one would be.
        documents: True to include the configuration and the layers' assets.

    Raises:
        NoConfigurationError: The configuration cannot be made.
    """
    if modules.saving_lib is not None:
        try:
            return _traverse(model, optimizer, documents)
        except NoConfigurationError:
            raise
        except Exception as error:
            # If the model is at fault and not the private interface, the public one fails, too.
            found = _capture_publicly(model, optimizer, documents)
            _warn_of_fallback(f"{type(error).__name__}: {error}")
            return found
    _warn_of_fallback("keras.src.saving.saving_lib is not there")
    return _capture_publicly(model, optimizer, documents)


def config_documents(model: Any) -> dict[str, bytes] | None:
    """Return a model's configuration alone, as `capture_model` does; None in a Keras that cannot tell it.

    Raises:
        NoConfigurationError: The configuration cannot be made.
    """
    serialise = getattr(modules.saving_lib, "_serialize_model_as_json", None)
    if serialise is None:
        return None
    return _documents(model)


def _documents(model: Any) -> dict[str, bytes]:
    try:
        config, metadata = modules.saving_lib._serialize_model_as_json(model)
    except Exception as error:
        # Any error of the model's own code. One that public Keras does not raise is the private interface's.
        if isinstance(error, NotImplementedError) or not _is_serialisable(model):
            raise NoConfigurationError(_one_line(error)) from error
        raise
    return {_METADATA: metadata.encode(), _CONFIG: config.encode()}


def _one_line(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" …")


def _is_serialisable(model: Any) -> bool:
    try:
        json.dumps(keras.saving.serialize_keras_object(model))
    except Exception:
        return False
    return True


def _capture_publicly(model: Any, optimizer: Any, documents: bool) -> Capture:
    try:
        return fallback.capture(model, optimizer, documents)
    except NotImplementedError as error:
        raise NoConfigurationError(_one_line(error)) from error


@functools.cache
def _warn_of_fallback(reason: str) -> None:
    messages.warn(
        f"Keras {keras.__version__} saves in a way that ckptstore does not know ({reason}); "
        "models are saved into memory instead, which takes longer and copies the state",
        RuntimeWarning,
    )


def _traverse(model: Any, optimizer: Any, documents: bool) -> Capture:
    recorder = _recorder()
    members: dict[str, bytes] = {}
    if documents:
        members |= _documents(model)
    optimizers = optimizers_of(model, optimizer)
    visited: set[int] = set()
    with ExitStack() as stack:
        stack.enter_context(cached_skip_sets())
        stack.enter_context(variables_by_reference(optimizers))
        assets = stack.enter_context(collected_assets()) if documents else None
        modules.saving_lib._save_state(
            model, weights_store=recorder, assets_store=assets, inner_path="", visited_saveables=visited
        )
        if optimizer is not None:
            modules.saving_lib._save_state(
                optimizer,
                weights_store=recorder,
                assets_store=None,
                inner_path="optimizer",
                visited_saveables=visited,
            )
        if assets is not None:
            members |= assets.members()
    slots = {id(variable) for known in optimizers for variable in known.variables}
    entries = tuple(
        CapturedValue(
            path=f"{group}/{key}",
            value=value,
            owner="optimizer" if id(value) in slots or group.startswith("optimizer/") else "model",
        )
        for group, values in recorder.groups.items()
        for key, value in values.items()
    )
    return Capture(
        entries=entries,
        attributes=recorder.attributes,
        documents=members,
        may_have_assets=assets is not None and assets.directory is not None,
    )


def _recorder() -> Any:
    class Recorder(modules.saving_lib.H5IOStore):  # type: ignore[misc]
        """Keras' HDF5 store, as far as saving uses it, without a file; Keras checks the class."""

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
            # A plain dict, as Keras itself passes to layers when it saves to .npz.
            self.groups[group] = {}
            return self.groups[group]

        def close(self) -> None:
            """Do nothing: there is no file."""

    return Recorder()
