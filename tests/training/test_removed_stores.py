"""A store, or a part of it, removed under a living training, or before its next start: nothing is begun in silence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ckptstore
import small_fits
from writer_processes import needs_process

pytestmark = [
    pytest.mark.backend,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

# Trains once for each way of removing something at a batch, with saves in a process and without.
TRAININGS = """
import json, os, resource, shutil, sys, warnings
from pathlib import Path
import ckptstore, small_fits

root = Path(sys.argv[1])
FREE = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

def folders(store):
    for name in ("tmp", "locks", "quarantine"):
        shutil.rmtree(store / name)

def another_manifest(store):
    (store / "manifest.sqlite").unlink()
    ckptstore.CheckpointStore(root / "another").close()
    shutil.copy(root / "another" / "manifest.sqlite", store)

def another_store(store):
    shutil.rmtree(store)
    ckptstore.CheckpointStore(store).close()

REMOVALS = {
    "tmp": lambda store: shutil.rmtree(store / "tmp"),
    "folders": folders,
    "checkpoints": lambda store: shutil.rmtree(store / "checkpoints"),
    "manifest": lambda store: (store / "manifest.sqlite").unlink(),
    "another manifest": another_manifest,
    "another store": another_store,
    "store": shutil.rmtree,
    "put back": lambda store: store.rename(store.with_name("elsewhere")),
    "limit": lambda store: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY)),
}

def train(name, store, background):
    callback = ckptstore.StoreCheckpoint(store, run="default", save_freq=2, background=background, signals=())

    def remove():
        callback.wait()
        REMOVALS[name](store)

    def bring_back():
        try:
            callback.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, FREE)
            if name == "put back":
                store.with_name("elsewhere").rename(store)

    # The next save is the first that meets it: after batch 3, or, before any memory is there for it, after batch 1.
    first, then = (0, 2) if name == "limit" else (3, 4)
    hooks = (small_fits.AtBatch(first, remove), small_fits.AtBatch(then, bring_back))
    small_fits.fit(small_fits.model(), callback, *hooks, epochs=1)

found = {}
for name in REMOVALS:
    for background in (True, False):
        store = root / f"{name} {background}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                train(name, store, background)
                end = "well"
            except Exception as error:
                end = f"{type(error).__name__}: {error}"
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, FREE)
        found[f"{name} {background}"] = (end, [str(warning.message) for warning in caught])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def ends(root: Path) -> dict[str, tuple[str, list[str]]]:
    """Return how each training ended, and what it warned of."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRAININGS, str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[str, list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def versions(root: Path, name: str, *, intact: bool = True) -> list[int]:
    with ckptstore.CheckpointStore(root / name, read_only=True) as store:
        assert store.verify() == [] or not intact
        return [checkpoint.version for checkpoint in store.checkpoints()]


@pytest.mark.jax_is_enough
@pytest.mark.slow
@needs_process
@pytest.mark.parametrize("background", [True, False])
def test_what_is_removed_under_a_training_is_made_again_or_named(
    background: bool, root: Path, ends: dict[str, tuple[str, list[str]]]
) -> None:
    made_again = {
        "tmp": ["made again: tmp$"],
        "folders": ["default.lock was removed", "made again: tmp, quarantine$"],
        "checkpoints": [r"made again: checkpoints \(payloads lost: 1\)$"],
    }
    for name, said in made_again.items():
        end, warned = ends[f"{name} {background}"]
        assert end == "well", (name, end)
        _assert_said(warned, said)
        assert max(versions(root, f"{name} {background}", intact=name != "checkpoints")) >= 4
        assert list((root / f"{name} {background}" / "tmp").iterdir()) == []
    gone = {
        "manifest": "the manifest was removed.*ckptstore repair",
        "another manifest": "another manifest was put in its place",
        "another store": "another manifest was put in its place",
        "store": "the store was removed",
    }
    for name, reason in gone.items():
        end, warned = ends[f"{name} {background}"]
        _assert_said([end], [rf"^StoreRemovedError: .*{reason}"])
        failed = [text for text in warned if text.startswith("SAVING FAILED")]
        _assert_said(failed, [rf"\(1 in a row.*{reason}", rf"\(2 in a row.*{reason}"])
    assert not (root / f"store {background}").exists()
    for name in ("another manifest", "another store"):
        assert versions(root, f"{name} {background}", intact=False) == []


@pytest.mark.jax_is_enough
@pytest.mark.slow
@needs_process
@pytest.mark.parametrize("background", [True, False])
def test_saving_works_again_when_the_cause_is_gone(
    background: bool, root: Path, ends: dict[str, tuple[str, list[str]]]
) -> None:
    """A store that was moved away and back; a limit of the size of files, such as `ulimit -f`."""
    for name, reason in (("put back", "the store was removed"), ("limit", "`ulimit -f`|SQLITE_IOERR")):
        end, warned = ends[f"{name} {background}"]
        assert end == "well", (name, end)
        _assert_said(warned, [rf"SAVING FAILED \(1 in a row.*({reason})"])
        assert len(versions(root, f"{name} {background}")) >= 2, name


def _assert_said(texts: list[str], patterns: list[str]) -> None:
    assert len(texts) == len(patterns), texts
    for text, pattern in zip(texts, patterns, strict=True):
        assert re.search(pattern, text), (pattern, text)


def _fit(store: Path, **options: Any) -> None:
    callback = ckptstore.StoreCheckpoint(store, run="default", background=False, signals=(), **options)
    small_fits.fit(small_fits.model(), callback, epochs=1)


def test_a_run_that_must_go_on_begins_no_store(tmp_path: Path) -> None:
    with pytest.raises(ckptstore.StoreNotFoundError, match="no store here"):
        _fit(tmp_path / "store", resume="must")
    assert list(tmp_path.iterdir()) == []
    _fit(tmp_path / "store")
    _fit(tmp_path / "store", resume="must")
    with ckptstore.CheckpointStore(tmp_path / "another") as store:
        store.begin("default")
    with pytest.raises(ckptstore.CheckpointNotFoundError):
        _fit(tmp_path / "another", resume="must")


def test_a_store_that_is_gone_is_begun_again_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    _fit(tmp_path / "a")
    ckptstore.CheckpointStore.discard(tmp_path / "a")
    _fit(tmp_path / "a")
    _fit(tmp_path / "a")
    assert [warning for warning in recwarn if "is gone" in str(warning.message)] == []
    shutil.rmtree(tmp_path / "a")
    with pytest.warns(UserWarning, match="the store is gone .this process has used it before.*resume=.must"):
        _fit(tmp_path / "a")
    (tmp_path / "b" / "locks").mkdir(parents=True)
    (tmp_path / "b" / "locks" / "digits.lock").touch()
    with pytest.warns(UserWarning, match="its locks directory is left, with run digits"):
        _fit(tmp_path / "b")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with pytest.warns(UserWarning, match="SLURM_RESTART_COUNT=2, so that this job has run before"):
        _fit(tmp_path / "c")
