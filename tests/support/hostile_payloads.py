"""Payloads and manifests as an attacker would make them."""

from __future__ import annotations

import sqlite3
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import h5py
import numpy as np

MIB = 1 << 20


def external_link(file: h5py.File, name: str, elsewhere: Path) -> None:
    file[name] = h5py.ExternalLink(str(elsewhere), "/values")


def soft_link(file: h5py.File, name: str, elsewhere: Path) -> None:
    file["values"] = np.full((4, 3), 7, "f4")
    file[name] = h5py.SoftLink("/values")


def external_storage(file: h5py.File, name: str, elsewhere: Path) -> None:
    file.create_dataset(name, (4, 3), "f4", external=[(str(elsewhere), 0, 48)])


def virtual(file: h5py.File, name: str, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource(str(elsewhere), "values", (4, 3))
    file.create_virtual_dataset(name, layout)


def absurd(file: h5py.File, name: str, elsewhere: Path) -> None:
    file.create_dataset(name, (1 << 40,), "f4")


def inflated(file: h5py.File, name: str, elsewhere: Path) -> None:
    """Create a gibibyte of ones that takes no space."""
    file.create_dataset(
        name, (1 << 14, 1 << 14), "f4", chunks=(1 << 10, 1 << 10), compression="gzip", fillvalue=1
    )


HOSTILE = (external_link, soft_link, external_storage, virtual, absurd, inflated)


def exchange(path: Path, hostile: Callable[..., None], elsewhere: Path) -> None:
    """Replace the first array of a payload with what `hostile` makes."""
    with h5py.File(elsewhere, "w") as file:
        file["values"] = np.full((4, 3), 7, "f4")
    path.chmod(0o644)
    weights, members = path, {}
    if path.suffix == ".keras":
        weights = path.with_suffix(".part")
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        weights.write_bytes(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, member: names.append(name) if isinstance(member, h5py.Dataset) else None)
        name = next(name for name in names if name.endswith(("vars/0", "kernel")))
        del file[name]
        hostile(file, name, elsewhere)
    if members:
        members["model.weights.h5"] = weights.read_bytes()
        weights.unlink()
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)


@contextmanager
def little_memory() -> Iterator[None]:
    """Check that the block allocates almost nothing; numpy reports its arrays to `tracemalloc`."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def sql(root: Path, statement: str, *values: object) -> None:
    """Change a manifest as an attacker would."""
    with closing(sqlite3.connect(root / "manifest.sqlite")) as connection, connection:
        connection.execute(statement, values)
