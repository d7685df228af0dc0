"""Tests that payloads and manifests from elsewhere are data: never run, never trusted, never a way out of the store."""

from __future__ import annotations

import ast
import errno
import functools
import os
import sqlite3
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckptstore.cli.main import main
from ckptstore.errors import CorruptManifestError, InvalidArgumentError, StorageError
from ckptstore.formats import payload
from ckptstore.formats.description import digest_of
from ckptstore.records import Checkpoint
from ckptstore.storage.files import io_hook
from ckptstore.storage.payloads.names import SUFFIXES
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import is_seed, save, snapshot_of
from hostile_payloads import HOSTILE, MIB, exchange, little_memory, sql
from manifests import files

ROOT = Path(__file__).resolve().parent.parent.parent


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Return the syntax trees of the package; only when a test asks, since every process collects this file."""
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
        for package in ("ckptstore", "migrations")
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a store with three checkpoints, the last one published next to it, among files of another user."""
    root = tmp_path / "deep" / "store"
    with CheckpointStore(root) as store:
        for seed in (1, 2, 3):
            save(store, seed, publish=root.parent / "shown.keras" if seed == 3 else None)
    for name in ("x", ".bashrc", "..bashrc.ckptstore", "y.keras"):
        (root.parent / name).write_text("somebody else's")
    return root


def outside(root: Path) -> dict[str, bytes]:
    """Return the files around a store, which no manifest and no payload may change."""
    found = files(root.parent.parent)
    return {
        name: data
        for name, data in found.items()
        if not name.startswith("deep/store/") and "shown" not in name
    }


def still_works(root: Path) -> list[Checkpoint]:
    """Open a store for writing, twice, and save; return the checkpoints that it listed at first."""
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
    """Yield file, name and node of every call in the package."""
    for file, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                yield f"{file}:{node.lineno}", name, node


# Two processes of one user exchange pickles, in the background; one packs rows, in memory without a name; and a forked
# child answers its parent through a pipe of theirs.
PICKLES_OF_ITS_OWN = (
    "ckptstore/background/",
    "ckptstore/manifest/retention/packed_checkpoints.py",
    "ckptstore/supervisor/forked_call.py",
)


def test_no_data_is_run_as_code() -> None:
    imported = {
        name.split(".")[0]
        for file, tree in sources().items()
        if not file.startswith(PICKLES_OF_ITS_OWN)
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


def test_values_reach_sql_as_parameters() -> None:
    """SQL text is constant; a PRAGMA takes no parameters, and gets our own constants."""
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


# --- payloads with false descriptions -------------------------------------------------------------------


def uuid_of(root: Path) -> str:
    with closing(sqlite3.connect(root / "manifest.sqlite")) as connection:
        return str(connection.execute("SELECT uuid FROM store").fetchone()[0])


def forge(root: Path, name: str = "00000008-default.keras", **changes: Any) -> Path:
    """Add a valid payload without a row to a store, with `changes` to its description; ... removes a field."""
    description = {
        "ckptstore": 1,
        "store": uuid_of(root),
        "version": 8,
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
        payload.encode(snapshot_of(9, format=kept.get("format", "keras")), kept).members[0].write(file)
    return path


def put_aside(root: Path, path: Path) -> None:
    """Check that opening quarantines a payload, and that the manifest can be rebuilt with it there."""
    assert [checkpoint.version for checkpoint in still_works(root)] == [1, 2, 3]
    aside = root / "quarantine" / path.name
    assert os.path.lexists(aside) and not os.path.lexists(path)
    aside.rename(path)
    (root / "manifest.sqlite").unlink()
    problems = CheckpointStore.rebuild(root)
    assert [problem.action for problem in problems[1:]] == ["put aside in quarantine"]
    assert os.path.lexists(aside)


def test_a_payload_that_was_not_forged_is_adopted(root: Path) -> None:
    forge(root, attempt=3)  # earlier payloads call the beginning so
    assert [checkpoint.version for checkpoint in still_works(root)] == [1, 2, 3, 8]
    with CheckpointStore(root) as store:
        assert store._manifest.beginnings.number("default") == 3
    assert is_seed(root.parent / "shown.keras", 9)


@pytest.mark.parametrize(
    "changes",
    [
        {"store": ...},
        {"store": "another"},
        {"store": None},
        {"version": "8"},
        {"version": 8.0},
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
        {"rollbacks": [[3]]},
        {"rollbacks": [[7, 3]]},
        {"rollbacks": 5},
        {"beginning": 0},
        {"beginning": "2"},
        {"beginning": True},
        {"beginning": None},
        {"attempt": 0},
    ],
    ids=str,
)
def test_a_payload_with_a_forged_description_is_quarantined(root: Path, changes: dict[str, Any]) -> None:
    before = outside(root)
    put_aside(root, forge(root, **changes))
    assert outside(root) == before


def test_a_payload_copied_from_another_store_is_not_adopted(root: Path, tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "other") as store:
        for seed in range(5):
            last = save(store, seed)
    copy = root / "checkpoints" / last.path.name
    copy.write_bytes(last.path.read_bytes())
    put_aside(root, copy)


# --- payloads with links to elsewhere, or false sizes ---------------------------------------------------


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.__name__)
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_a_payload_with_an_array_outside_the_file_is_quarantined(
    root: Path, suffix: str, hostile: Callable[..., None]
) -> None:
    path = forge(root, f"00000008-default{suffix}")
    exchange(path, hostile, root.parent / "elsewhere.h5")
    with little_memory():
        put_aside(root, path)


@pytest.mark.parametrize(
    ("document", "nbytes", "reason"),
    [
        ("config.json", 64 * MIB, "bytes that are not there"),
        ("assets/vocabulary.txt", 64 * MIB, "bytes that are not there"),
        ("../outside", 5, "has a member named"),
        ("/tmp/outside", 5, "has a member named"),
    ],
)
def test_an_archive_that_unpacks_to_much_or_elsewhere_is_quarantined(
    root: Path, document: str, nbytes: int, reason: str
) -> None:
    path, before = forge(root), outside(root)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {document: bytes(nbytes)}).items():
            archive.writestr(name, data, zipfile.ZIP_STORED if name.endswith(".h5") else zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MIB
    with little_memory():
        with CheckpointStore(root) as store:
            (event,) = store._manifest.events.find(kind="quarantined")
            assert event.detail is not None and reason in event.detail["reason"]
        (root / "quarantine" / path.name).rename(path)
        put_aside(root, path)
    assert outside(root) == before and not Path("/tmp/outside").exists()


@pytest.mark.parametrize("shape", ["[1048576, 1048576]", "[-7, -5]", "[7, 5, 0]", "[true, 35]"])
def test_a_description_of_another_shape_is_not_trusted(root: Path, shape: str) -> None:
    path = forge(root, "00000008-default.weights.h5")
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


# --- manifests from elsewhere ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["complete", "deleting", "missing", "damaged"])
@pytest.mark.parametrize(
    "file",
    [
        "../x",
        "{outside}/x",
        "checkpoints/../../y.keras",
        "checkpoints/00000002-../../y.keras",
        "quarantine/00000002-a.keras",
        "checkpoints/00000002-a\0b.keras",
        "checkpoints/00000002-" + "a" * 300 + ".keras",
        "checkpoints/.",
        "",
    ],
)
def test_a_row_cannot_name_a_file_that_is_not_a_payload_of_the_store(
    root: Path, file: str, state: str
) -> None:
    before, payloads = outside(root), files(root / "checkpoints")
    values = (file.format(outside=root.parent), state)
    sql(root, "UPDATE checkpoints SET file = ?, state = ? WHERE version = 2", *values)
    with pytest.raises(CorruptManifestError):
        CheckpointStore(root)
    with CheckpointStore(root, read_only=True) as store, pytest.raises(CorruptManifestError):
        store.checkpoints(states=None)
    CheckpointStore.rebuild(root)
    assert files(root / "checkpoints") == payloads
    assert [checkpoint.version for checkpoint in still_works(root)] == [1, 2, 3]
    assert outside(root) == before


@pytest.mark.parametrize("state", ["deleting", "damaged"])
def test_removing_a_payload_that_is_a_link_removes_only_the_link(root: Path, state: str) -> None:
    path, victim = root / "checkpoints" / "00000002-default.keras", root.parent / "x"
    path.unlink()
    path.symlink_to(victim)
    sql(root, "UPDATE checkpoints SET state = ? WHERE version = 2", state)
    before = outside(root)
    with CheckpointStore(root) as store:
        assert [checkpoint.version for checkpoint in store.checkpoints()] == [1, 3]
    assert not os.path.lexists(path) and outside(root) == before


@pytest.mark.parametrize(
    "path",
    [
        "../../.bashrc",
        "../.bashrc",
        "{outside}/x",
        "/",
        "..",
        "",
        "manifest.sqlite",
        "../a\0b.keras",
        "checkpoints/00000001-default.keras",
        "locks/x.keras",
        "../store/checkpoints/00000001-default.keras",
    ],
)
def test_a_path_where_nothing_may_be_published_is_not_replaced(root: Path, path: str) -> None:
    before, payloads, locks = outside(root), files(root / "checkpoints"), files(root / "locks")
    sql(root, "UPDATE published SET path = ?, pending = 1", path.format(outside=root.parent))
    with CheckpointStore(root) as store:
        assert store.published("default") == {}
    assert (outside(root), files(root / "checkpoints"), files(root / "locks")) == (before, payloads, locks)
    assert [checkpoint.version for checkpoint in still_works(root)] == [1, 2, 3]


@pytest.mark.parametrize(
    "name", ["a'; DROP TABLE tags; --", "x\0y", "", "latest", "1", "../../x", "%s", "{0}"]
)
def test_names_that_the_api_would_refuse_are_just_text(root: Path, name: str) -> None:
    before = outside(root)
    sql(
        root,
        "INSERT INTO tags (name, version, created_at) SELECT ?, 2, created_at FROM checkpoints LIMIT 1",
        name,
    )
    sql(root, "UPDATE runs SET name = ?", name)
    with CheckpointStore(root) as store:
        assert store.get(2).tags == (name,) and store.run_names() == (name,)
        point = store.resume_point(name)
        assert point is not None and (point.run, point.version) == (name, 3)
        store.tag(1, "mine")
        assert store.get("mine").version == 1
    assert [checkpoint.version for checkpoint in still_works(root)] == [1, 2, 3]
    assert outside(root) == before
    assert {path.name for path in (root / "locks").iterdir()} == {"store.lock", "default.lock"}


# --- names from a caller --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", "a\0b", "a\\b", "x\n", ".lock", "store"])
def test_no_name_leads_outside_a_store(root: Path, name: str) -> None:
    before = outside(root)
    with CheckpointStore(root) as store:
        contents = files(root)
        with pytest.raises(InvalidArgumentError):
            save(store, 4, run=name)
        assert store.latest(name) is None and store.resume_point(name) is None
        for command in (["show", str(root), name], ["latest", str(root), "--run", name]):
            assert main(command) == 3
        assert files(root) == contents
    assert outside(root) == before


# --- links and modes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False], ids=["link", "dangling"])
@pytest.mark.parametrize(
    "name",
    [
        "reserve",
        f"tmp/{'a' * 32}.lease",
        f"tmp/{'a' * 32}.1.keras",
        "checkpoints/00000004-default.keras",
        "checkpoints/00000008-default.keras",
        "quarantine/00000008-default.keras",
        "../shown.keras",
        "../.shown.keras.ckptstore",
    ],
)
def test_nothing_is_written_through_a_link(root: Path, name: str, exists: bool) -> None:
    link, victim = Path(os.path.normpath(root / name)), root.parent / ("x" if exists else "nothing")
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    before = outside(root)
    with CheckpointStore(root) as store:
        shown = save(store, 9, publish=root.parent / "shown.keras")
        assert [problem.detail for problem in store.verify()] == []
    assert not (root.parent / "shown.keras").is_symlink() and is_seed(root.parent / "shown.keras", 9)
    assert is_seed(shown.path, 9) and not shown.path.is_symlink()
    assert outside(root) == before


@pytest.mark.parametrize("name", ["locks/store.lock", "locks/default.lock"])
def test_a_lock_that_is_a_link_is_refused(root: Path, name: str) -> None:
    (root / name).unlink()
    (root / name).symlink_to(root.parent / "x")
    before = outside(root)
    with pytest.raises(StorageError, match="lock"), CheckpointStore(root) as store:
        save(store, 9)
    assert outside(root) == before


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_file_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with CheckpointStore(tmp_path / "store") as store:
            save(store, 1, publish=tmp_path / "shown.keras")
            with io_hook(refuse_links):
                save(store, 2, publish=tmp_path / "copied.keras")
            found = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    finally:
        os.umask(before)
    assert len(found) > 12
    for path, mode in found.items():
        full = 0o777 if path.is_dir() else 0o444 if path.suffix == ".keras" else 0o666
        if path.name.startswith("manifest.sqlite"):
            full = 0o644  # SQLite's mode of a new file
        assert mode == full & ~umask, path


def refuse_links(operation: str, path: Path, phase: str) -> None:
    if operation == "link":
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
