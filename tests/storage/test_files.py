"""The steps that change the file system, and their errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import xxhash

from ckptstore.errors import CorruptPayloadError, DiskFullError, StorageError
from ckptstore.storage import files


def _failing(code: int, *operations: str):
    def hook(operation: str, path: Path, phase: str) -> None:
        if phase == "before" and operation in operations:
            raise OSError(code, os.strerror(code))

    return files.io_hook(hook)


def test_make_directory_syncs_every_parent_up_to_the_first_that_existed(tmp_path: Path) -> None:
    steps: list[tuple[str, Path]] = []
    with files.io_hook(
        lambda operation, path, phase: steps.append((operation, path)) if phase == "after" else None
    ):
        files.make_directory(tmp_path / "a" / "b")
    assert steps == [
        ("mkdir", tmp_path / "a"),
        ("fsync", tmp_path),
        ("mkdir", tmp_path / "a" / "b"),
        ("fsync", tmp_path / "a"),
    ]
    files.make_directory(tmp_path / "a" / "b")


def test_a_name_that_is_taken_is_never_renamed_onto(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.write_text("old")
    with pytest.raises(StorageError) as caught:
        files.rename_to_new(source, target)
    assert caught.value.errno == errno.EEXIST
    assert (source.read_text(), target.read_text()) == ("new", "old")


def test_a_name_taken_by_a_broken_link_is_taken(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError):
        files.rename_to_new(source, target)


def test_errors_name_operation_path_and_number(tmp_path: Path) -> None:
    with _failing(errno.EIO, "fsync"), pytest.raises(StorageError) as caught:
        files.fsync_directory(tmp_path)
    assert (caught.value.operation, caught.value.path, caught.value.errno) == ("fsync", tmp_path, errno.EIO)
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_a_full_disk_is_an_error_of_its_own(tmp_path: Path) -> None:
    with _failing(errno.ENOSPC, "mkdir"), pytest.raises(DiskFullError) as caught:
        files.make_directory(tmp_path / "a")
    assert caught.value.free is not None
    assert not (tmp_path / "a").exists()


def test_a_file_system_that_cannot_sync_directories_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.warns(UserWarning, match="cannot sync a directory"):
        files.fsync_directory(tmp_path)


def test_digest_file_reports_progress_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = os.urandom((4 << 20) + 17)
    path.write_bytes(content)
    parts: list[int] = []
    assert files.digest_file(path, parts.append) == f"xxh3_128:{xxhash.xxh3_128_hexdigest(content)}"
    assert parts == [4 << 20, 17]
    with pytest.raises(CorruptPayloadError, match="missing"):
        files.digest_file(tmp_path / "nowhere")


def test_an_unreadable_file_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        files.digest_file(tmp_path)
    assert caught.value.errno == errno.EISDIR


def test_unlink_of_a_missing_file_does_nothing(tmp_path: Path) -> None:
    files.unlink(tmp_path / "nowhere")
