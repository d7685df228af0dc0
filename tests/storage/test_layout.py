"""The paths of a store, and paths that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptstore import CheckpointStore
from ckptstore.errors import CorruptManifestError, InvalidArgumentError, NotAStoreError, StoreNotFoundError
from ckptstore.storage.layout import Layout, absolute, find_store
from ckptstore.storage.payloads.names import SUFFIXES, parse_payload_name, payload_name


def test_make_and_find(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "runs" / "digits")
    layout.make()
    layout.make()
    assert sorted(path.name for path in layout.root.iterdir()) == [
        "checkpoints",
        "locks",
        "quarantine",
        "tmp",
    ]
    with pytest.raises(StoreNotFoundError):
        find_store(layout.root)
    layout.manifest.touch()
    assert find_store(layout.root) == layout.root


def test_the_store_of_a_drop_in_callback_is_found_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path / "models" / ".ckptstore")
    layout.make()
    layout.manifest.touch()
    monkeypatch.chdir(tmp_path)
    assert find_store("models") == find_store(layout.root) == layout.root


def test_a_file_is_not_a_store_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotAStoreError) as caught:
            Layout(root).make()
        assert caught.value.path == tmp_path / "file"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_payloads_without_a_manifest_are_never_taken_for_an_empty_store(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make()
    (layout.checkpoints / "00000001-a.keras").write_bytes(b"")
    with pytest.raises(CorruptManifestError):
        layout.make()


@pytest.mark.parametrize("format", SUFFIXES)
def test_payload_names_are_read_as_they_are_written(format: str) -> None:
    for version, run in ((1, "a"), (123456789, "lr=0.1-b"), (7, "a.b")):
        file = payload_name(version, run, format)  # type: ignore[arg-type]
        assert parse_payload_name(file) == (version, run, format)


def test_other_names_are_not_payloads(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make()
    for name in (
        "README",
        "1-a.keras",
        "00000001-a.txt",
        "00000001.keras",
        ".00000001-a.keras",
        "00000000-a.keras",
        "000000008-a.keras",
        "٠٠٠٠٠٠٠٧-a.keras",
        "9223372036854775808-a.keras",
        "00000001-a b.keras",
    ):
        (layout.checkpoints / name).touch()
    assert layout.payload_names() == []
    with pytest.raises(ValueError, match="README"):
        parse_payload_name("README")


def test_a_home_that_nobody_expanded_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in ("~", "~/runs/a", Path("~/runs/a"), "~root/a"):
        with pytest.raises(InvalidArgumentError, match="a shell expands and Python does not") as caught:
            CheckpointStore(path)
        assert caught.value.hint == f"os.path.expanduser({os.fspath(path)!r})"
    with pytest.raises(InvalidArgumentError, match="is empty"):
        CheckpointStore("")
    assert list(tmp_path.iterdir()) == []
    # What no shell would expand is a name, and so is what is there already.
    assert absolute("~nobody-has-this-name/a") == tmp_path / "~nobody-has-this-name/a"
    assert absolute("a/~/b") == tmp_path / "a/~/b"
    (tmp_path / "~").mkdir()
    assert absolute("~/runs/a") == tmp_path / "~/runs/a"
