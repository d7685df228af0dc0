"""Loading by Keras' own traversal of a model, from a payload that is already open.

Fallback: public Keras loads the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ckptstore.keras.private import fallback, modules
from ckptstore.keras.private.assets import asset_directory
from ckptstore.keras.private.capture import LazyGroup
from ckptstore.keras.private.skip_sets import cached_skip_sets


def load_variables(
    model: Any,
    as_file: Callable[[], AbstractContextManager[Path]],
    variables: Mapping[str, Any],
    *,
    optimizer: Any = None,
    assets: Mapping[str, bytes] | None = None,
    skip: Iterable[Any] = (),
) -> None:
    """Have the model's objects load their own variables from a payload, as Keras does.

    Args:
        model: A model that matches the payload.
        as_file: Returns the payload as a local file for a block; only the fallback reads it.
        variables: The payload's variables by path: arrays, or anything else that Keras can assign to a variable.
        optimizer: An optimizer that the model does not know.
        assets: Members of the archive by name, for layers with assets.
        skip: Objects that are not loaded.

    Raises:
        ValueError: From Keras or a layer: something could not be loaded. The model may be half changed.
    """
    if modules.saving_lib is None:
        with as_file() as path:
            fallback.load(model, path, optimizer)
        return
    failed: dict[int, tuple[Any, Exception]] = {}
    visited = {id(saveable) for saveable in skip}
    with asset_directory(assets or {}) as directory, cached_skip_sets():
        for saveable, inner in ((model, ""), (optimizer, "optimizer")):
            if saveable is not None:
                modules.saving_lib._load_state(
                    saveable,
                    weights_store=_reader(variables),
                    assets_store=None
                    if directory is None
                    else modules.saving_lib.DiskIOStore(directory, mode="r"),
                    inner_path=inner,
                    visited_saveables=visited,
                    failed_saveables=set(),
                    error_msgs=failed,
                )
    if failed:
        saveable, error = next(iter(failed.values()))
        raise ValueError(f"{saveable}: {error}") from error


def _reader(variables: Mapping[str, Any]) -> Any:
    groups: dict[str, dict[str, str]] = {}
    for path in variables:
        group, _, key = f"/{path}".rpartition("/vars/")
        groups.setdefault(group[1:], {})[key] = path

    class Reader(modules.saving_lib.H5IOStore):  # type: ignore[misc]
        """Keras' HDF5 store, as far as loading uses it, on an open payload."""

        def __init__(self) -> None:
            self.mode = "r"

        def __bool__(self) -> bool:
            return True

        def get(self, path: str) -> Mapping[str, Any]:
            return LazyGroup(variables, groups.get(path, {}))

        def has_path(self, path: str) -> bool:
            return any(group == path or group.startswith(f"{path}/") for group in groups)

        def close(self) -> None:
            """Do nothing: the payload is closed by its owner."""

    return Reader()
