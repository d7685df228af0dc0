"""Temporary directories for layers' assets, such as vocabularies, which Keras saves and loads as files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ckptstore.keras.private import modules

_DIRECTORY = "assets"


@contextmanager
def collected_assets() -> Iterator[Any]:
    """Yield an assets store for Keras' saving; its directory is created only if a layer uses it."""

    class Assets(modules.saving_lib.DiskIOStore):  # type: ignore[misc]
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
            return {f"{_DIRECTORY}/{path.relative_to(root).as_posix()}": path.read_bytes() for path in files}

    assets = Assets()
    try:
        yield assets
    finally:
        if assets.directory is not None:
            assets.directory.cleanup()


@contextmanager
def asset_directory(assets: Mapping[str, bytes]) -> Iterator[str | None]:
    """Write the assets among an archive's members to a directory that Keras loads them from; None if there are none."""
    files = {
        name.removeprefix(f"{_DIRECTORY}/"): data
        for name, data in assets.items()
        if name.startswith(f"{_DIRECTORY}/")
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
