"""Tests that an archive written in one pass is byte for byte what `zipfile` would write."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.formats import zip_writer
from ckptstore.formats.zip_reader import KerasArchive
from ckptstore.formats.zip_writer import WEIGHTS, archive_nbytes, crc32, write_archive
from ckptstore.storage.random_access import open_random_access

DOCUMENTS = {"metadata.json": b'{"keras_version": "3"}', "config.json": b"{}", "assets/wörter.txt": b""}
WEIGHT_BYTES = bytes(range(256)) * 5


def ours(documents: Mapping[str, bytes], weights: bytes) -> bytes:
    file = io.BytesIO()
    parts = [weights[begin : begin + 100] for begin in range(0, len(weights), 100)]
    write_archive(file, documents, len(weights), lambda write: [write(part) for part in parts])
    return file.getvalue()


class Stream(io.BytesIO):
    """A file that cannot seek, like a payload's sink."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation


def theirs(documents: Mapping[str, bytes], weights: bytes) -> bytes:
    file = Stream()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in [*documents.items(), (WEIGHTS, weights)]:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=len(data) > zipfile.ZIP64_LIMIT) as member:
                member.write(data)
    return file.getvalue()


@pytest.mark.parametrize("limit", [None, 700, 20], ids=["plain", "weights of 64 bits", "all of 64 bits"])
def test_the_archive_is_what_zipfile_writes(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if limit is not None:
        # In place of the two gigabytes from which on fields have 64 bits.
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
        monkeypatch.setattr(zip_writer, "_LIMIT_64", limit)
    written = ours(DOCUMENTS, WEIGHT_BYTES)
    assert written == theirs(DOCUMENTS, WEIGHT_BYTES)
    assert len(written) == archive_nbytes(DOCUMENTS, len(WEIGHT_BYTES))


def test_the_archive_is_what_zipfile_writes_with_very_many_members() -> None:
    documents = {f"assets/{number}": b"" for number in range(66_000)}
    assert ours(documents, b"hdf") == theirs(documents, b"hdf")


def test_all_members_pass_the_checks_of_zipfile() -> None:
    with zipfile.ZipFile(io.BytesIO(ours(DOCUMENTS, WEIGHT_BYTES))) as archive:
        assert archive.testzip() is None
        assert archive.read(WEIGHTS) == WEIGHT_BYTES


def test_weights_of_another_size_than_announced_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has 3 bytes where 4 were announced"):
        write_archive(io.BytesIO(), {}, 4, lambda write: write(b"hdf"))


@given(st.binary(max_size=500), st.integers(0, 2**32 - 1))
def test_checksums_are_those_of_zlib(data: bytes, start: int) -> None:
    assert crc32(data, start) == zlib.crc32(data, start)
    assert crc32(memoryview(np.frombuffer(data, np.uint8)), start) == zlib.crc32(data, start)


def test_an_archive_of_very_many_assets_is_read(tmp_path: Path) -> None:
    """Its directory alone is larger than a megabyte."""
    scope = "/".join(["layer_scope"] * 14)
    documents = {f"assets/{scope}/{number}.txt": b"word\n" * 100 for number in range(6_000)}
    path = tmp_path / "model.keras"
    path.write_bytes(ours(documents, b"hdf"))
    with open_random_access(path) as file:
        archive = KerasArchive(file)
        assert len(archive.documents()) == 6_000
        assert archive.weights()[1] == 3
