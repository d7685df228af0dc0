"""A published path is a complete file at every instant."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ckptstore.errors import StorageError
from ckptstore.storage.files import io_hook
from ckptstore.storage.publish import copy_file, publish, remove_leftover


@pytest.fixture
def payloads(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    return tmp_path / "one", tmp_path / "two"


def test_publishing_moves_a_hard_link(tmp_path: Path, payloads: tuple[Path, Path]) -> None:
    target = tmp_path / "deep" / "best"
    for payload in payloads:
        publish(payload, target)
        assert target.samefile(payload)
    publish(payloads[1], target)
    assert [path.name for path in target.parent.iterdir()] == ["best"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_a_copy_is_made_where_links_are_not_available(
    tmp_path: Path, payloads: tuple[Path, Path], code: int
) -> None:
    def refuse(operation: str, path: Path, phase: str) -> None:
        if operation == "link":
            raise OSError(code, os.strerror(code))

    target = tmp_path / "best"
    with io_hook(refuse):
        publish(payloads[0], target)
    assert target.read_text() == "one"
    assert not target.samefile(payloads[0])


def test_other_errors_leave_the_old_file(tmp_path: Path, payloads: tuple[Path, Path]) -> None:
    target = tmp_path / "best"
    publish(payloads[0], target)
    for operation in ("link", "rename"):

        def fail(seen: str, path: Path, phase: str, operation=operation) -> None:
            if (seen, phase) == (operation, "before"):
                raise OSError(errno.EIO, "broken")

        with pytest.raises(StorageError), io_hook(fail):
            publish(payloads[1], target)
        assert target.samefile(payloads[0])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "one", "two"]


def test_a_temporary_name_left_by_a_crash_does_no_harm(tmp_path: Path, payloads: tuple[Path, Path]) -> None:
    target, temporary = tmp_path / "best", tmp_path / ".best.ckptstore"
    temporary.write_text("half")
    publish(payloads[0], target)
    assert target.samefile(payloads[0])
    temporary.write_text("half")
    remove_leftover(target)
    remove_leftover(target)
    assert not temporary.exists()


def test_copy_returns_the_digest(tmp_path: Path, payloads: tuple[Path, Path]) -> None:
    from ckptstore.storage.files import digest_file

    assert copy_file(payloads[0], tmp_path / "copy") == digest_file(payloads[0])
    with pytest.raises(StorageError):
        copy_file(payloads[0], tmp_path / "copy")
