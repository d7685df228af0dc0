"""A payload or a manifest from elsewhere is data: nothing in it is run, believed unseen, or led out of the store by."""

from __future__ import annotations

import ast
import os
import sqlite3
import stat
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from crash_snapshots import is_seed, save, snapshot_of
from manifests import files

from ckptstore.cli import main
from ckptstore.errors import CorruptManifestError, CorruptPayloadError, InvalidArgumentError
from ckptstore.files import digest_file
from ckptstore.formats import payload
from ckptstore.formats.description import digest_of
from ckptstore.records import SUFFIXES, Checkpoint, Format
from ckptstore.store import CheckpointStore

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
    for package in ("ckptstore", "migrations")
    for path in sorted((ROOT / package).rglob("*.py"))
}
MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with three checkpoints, the last of them shown beside it, and files of somebody else's around it."""
    root = tmp_path / "deep" / "store"
    with CheckpointStore(root) as store:
        for seed in (1, 2, 3):
            save(store, seed, publish=root.parent / "shown.keras" if seed == 3 else None)
    for name in ("x", ".bashrc", "..bashrc.ckptstore", "y.keras"):
        (root.parent / name).write_text("somebody else's")
    return root


def outside(root: Path) -> dict[str, bytes]:
    """Return what lies around a store, which no manifest and no payload may change."""
    found = files(root.parent.parent)
    return {
        name: data
        for name, data in found.items()
        if not name.startswith("deep/store/") and "shown" not in name
    }


def still_works(root: Path) -> list[Checkpoint]:
    """Open a store for writing, twice, and save; return what it listed at first."""
    with CheckpointStore(root) as store:
        listed = store.checkpoints(states=None)
        assert [problem.detail for problem in store.verify()] == []
        assert is_seed(save(store, 50).path, 50)
    with CheckpointStore(root) as store:
        assert store.verify() == [] and len(store.checkpoints(states=None)) == len(listed) + 1
    return listed


# --- the source ---------------------------------------------------------------------------------------

RUNS_WHAT_IT_READS = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
# Methods that take SQL as text.
SQL = {"execute", "executemany", "executescript", "exec_driver_sql", "text"}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Give file, name and node of every call in the package."""
    for file, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                yield f"{file}:{node.lineno}", name, node


def test_nothing_that_is_read_is_run() -> None:
    imported = {
        name.split(".")[0]
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
    }
    assert not imported & RUNS_WHAT_IT_READS
    found = list(calls())
    assert len(found) > 1000
    forbidden = [
        where
        for where, name, node in found
        if (isinstance(node.func, ast.Name) and name in ("eval", "exec", "compile", "__import__"))
        or any(keyword.arg in ("allow_pickle", "safe_mode") for keyword in node.keywords)
        or (
            isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func) in ("np.load", "numpy.load", "torch.load")
        )
        or name in ("enable_unsafe_deserialization", "system", "popen")
    ]
    assert forbidden == []


def test_values_are_given_to_sql_as_parameters() -> None:
    """Text of SQL is constant; a PRAGMA takes no parameters, and gets constants of ours."""
    made = [
        (where, ast.unparse(node.args[0]))
        for where, name, node in calls()
        if name in SQL and node.args and isinstance(node.args[0], ast.JoinedStr | ast.BinOp)
    ] + [
        (where, ast.unparse(node))
        for where, name, node in calls()
        if name in ("format", "join") and "SELECT" in ast.unparse(node).upper()
    ]
    assert made and [sql for _, sql in made if not sql.startswith(("f'PRAGMA ", 'f"PRAGMA '))] == []


# --- payloads that describe themselves falsely ----------------------------------------------------------


def uuid_of(root: Path) -> str:
    with closing(sqlite3.connect(root / "manifest.sqlite")) as connection:
        return str(connection.execute("SELECT uuid FROM store").fetchone()[0])


def forge(root: Path, name: str = "00000004-default.keras", **changes: Any) -> Path:
    """Put a whole payload without a row into a store; `changes` to its description, ... leaves a field out."""
    description = {
        "ckptstore": 1,
        "store": uuid_of(root),
        "version": 4,
        "run": "default",
        "epoch": 9,
        "batch": None,
        "step": None,
        "metrics": {"loss": 1.0},
        "created_at": "2026-01-02T03:04:05+00:00",
        "tags": [],
        "format": next(format for format, suffix in SUFFIXES.items() if name.endswith(suffix)),
        "resumable": True,
        "extra": None,
        "published": "../shown.keras",
    } | changes
    path = root / "checkpoints" / name
    kept = {field: value for field, value in description.items() if value is not ...}
    with path.open("wb") as file:
        payload.encode(snapshot_of(9, format=kept.get("format", "keras")), kept).write(file)
    return path


def put_aside(root: Path, path: Path) -> None:
    """Check that a payload is in quarantine after an opening, and that the manifest can be made again beside it."""
    assert [checkpoint.version for checkpoint in still_works(root)] == [1, 2, 3]
    aside = root / "quarantine" / path.name
    assert os.path.lexists(aside) and not os.path.lexists(path)
    aside.rename(path)
    problems = CheckpointStore.rebuild(root)
    assert [problem.action for problem in problems[1:]] == ["put aside in quarantine"]
    assert os.path.lexists(aside)


def test_a_payload_that_was_not_forged_is_taken_in(root: Path) -> None:
    forge(root)
    assert [checkpoint.version for checkpoint in still_works(root)] == [1, 2, 3, 4]
    assert is_seed(root.parent / "shown.keras", 9)


@pytest.mark.parametrize(
    "changes",
    [
        {"store": ...},
        {"store": "another"},
        {"store": None},
        {"version": "4"},
        {"version": 4.0},
        {"version": float("inf")},
        {"version": 5},
        {"run": "../x"},
        {"run": None},
        {"epoch": ...},
        {"epoch": -1},
        {"epoch": 2**63},
        {"metrics": [1]},
        {"metrics": None},
        {"metrics": {"a": 10**400}},
        {"metrics": {"a": [1]}},
        {"created_at": 5},
        {"created_at": "2026-01-02T03:04:05"},
        {"created_at": "0001-01-01T00:00:00+23:00"},
        {"tags": 5},
        {"tags": ["latest"]},
        {"extra": [1]},
        {"published": "a\0b.keras"},
        {"published": 5},
    ],
    ids=str,
)
def test_a_payload_whose_description_is_forged_is_put_aside(root: Path, changes: dict[str, Any]) -> None:
    before = outside(root)
    put_aside(root, forge(root, **changes))
    assert outside(root) == before


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("9223372036854775807-default.keras", 2**63 - 1),
        ("99999999999999999999999-default.keras", 10**23 - 1),
        ("00000000-default.keras", 0),
        ("000000004-default.keras", 4),
    ],
)
def test_a_payload_whose_name_no_row_can_have_is_put_aside(root: Path, name: str, version: int) -> None:
    put_aside(root, forge(root, name, version=version))


def test_a_payload_copied_from_another_store_is_not_taken_for_ours(root: Path, tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "other") as store:
        for seed in range(5):
            last = save(store, seed)
    copy = root / "checkpoints" / last.path.name
    copy.write_bytes(last.path.read_bytes())
    put_aside(root, copy)


# --- payloads that lead out of themselves, or claim what is not there -----------------------------------


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
    """A gibibyte of ones that takes no room."""
    file.create_dataset(
        name, (1 << 14, 1 << 14), "f4", chunks=(1 << 10, 1 << 10), compression="gzip", fillvalue=1
    )


HOSTILE = (external_link, soft_link, external_storage, virtual, absurd, inflated)


def exchange(path: Path, hostile: Callable[..., None], elsewhere: Path) -> None:
    """Replace the first array of a payload by what `hostile` makes."""
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
        file.visititems(lambda name, one: names.append(name) if isinstance(one, h5py.Dataset) else None)
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
    """Check that the block allocates next to nothing; numpy tells `tracemalloc` of its arrays."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.__name__)
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_an_array_that_lies_elsewhere_or_nowhere_is_put_aside(
    root: Path, suffix: str, hostile: Callable[..., None]
) -> None:
    path = forge(root, f"00000004-default{suffix}")
    exchange(path, hostile, root.parent / "elsewhere.h5")
    with little_memory():
        put_aside(root, path)


@pytest.mark.parametrize("document", ["config.json", "assets/vocabulary.txt", "../outside", "/tmp/outside"])
def test_an_archive_that_unpacks_to_much_or_elsewhere_is_put_aside(root: Path, document: str) -> None:
    path, before = forge(root), outside(root)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {document: bytes(64 * MIB)}).items():
            archive.writestr(name, data, zipfile.ZIP_STORED if name.endswith(".h5") else zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MIB
    with little_memory():
        put_aside(root, path)
    assert outside(root) == before and not Path("/tmp/outside").exists()


@pytest.mark.parametrize("shape", ["[1048576, 1048576]", "[-7, -5]", "[7, 5, 0]", "[true, 35]"])
def test_a_description_of_another_shape_is_not_believed(root: Path, shape: str) -> None:
    path = forge(root, "00000004-default.weights.h5")
    with h5py.File(path, "r+") as file:
        text = file["ckptstore/description"][()].tobytes()
        body = text.replace(b'"shape": [7, 5]', f'"shape": {shape}'.encode())[: -len(digest_of(b"")) - 2]
        assert shape.encode() in body
        sealed = body.removesuffix(b', "description": "')
        seal = f', "description": "{digest_of(sealed[:-1])}"}}'
        del file["ckptstore/description"]
        file["ckptstore/description"] = np.frombuffer(sealed + seal.encode(), np.uint8)
    with little_memory():
        put_aside(root, path)
