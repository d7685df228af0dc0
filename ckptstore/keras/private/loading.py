"""Keras' own walk over a model as it loads, over a payload that is open already.

Fallback: public Keras loads the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ckptstore.keras.private import fallback, modules
from ckptstore.keras.private.assets import asset_directory
from ckptstore.keras.private.capture import LazyGroup
from ckptstore.keras.private.skip_sets import cached_skip_sets


def load_variables(
    model: Any,
    path: Path,
    variables: Mapping[str, Any],
    *,
    optimizer: Any = None,
    assets: Mapping[str, bytes] | None = None,
    skip: Iterable[Any] = (),
) -> None:
    """Let the model's objects load their own state from a payload, as Keras has them do.

    Args:
        model: A model that fits.
        path: A ``.keras`` or ``.weights.h5`` payload.
        variables: What it holds, by path: arrays, or what else Keras assigns to a variable.
        optimizer: An optimizer that the model does not know.
        assets: Members of the archive to give to the layers that keep assets, by name.
        skip: Objects to leave alone.

    Raises:
        ValueError: From Keras or a layer: something could not be loaded. The model may be half changed.
    """
    if modules.saving_lib is None:
        fallback.load(model, path, optimizer)
        return
    failed: dict[int, tuple[Any, Exception]] = {}
    visited = {id(one) for one in skip}
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
        """Keras' HDF5 store, as far as loading sees it, over a payload that is open already."""

        def __init__(self) -> None:
            self.mode = "r"

        def __bool__(self) -> bool:
            return True

        def get(self, path: str) -> Mapping[str, Any]:
            return LazyGroup(variables, groups.get(path, {}))

        def has_path(self, path: str) -> bool:
            return any(group == path or group.startswith(f"{path}/") for group in groups)

        def close(self) -> None:
            """Whoever opened the payload closes it."""

    return Reader()
