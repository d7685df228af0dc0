"""Tests of damaged or hostile payloads: every flipped byte is found, every error is one of ours."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptstore.errors import CorruptPayloadError
from ckptstore.formats import payload
from ckptstore.formats.description import digest_of
from ckptstore.formats.snapshot import Snapshot, TrainingState, Variable
from ckptstore.formats.zip_writer import WEIGHTS
from ckptstore.records import Format
from ckptstore.storage.payloads.names import SUFFIXES

FORMATS: tuple[Format, ...] = ("weights", "keras", "h5")
READERS = (
    payload.verify_payload,
    payload.read_description,
    payload.read_layout,
    payload.read_state,
    payload.read_documents,
)
ARRAYS = {
    "layers/dense/vars/0": np.arange(12, dtype=np.float32).reshape(3, 4),
    "layers/dense/vars/1": np.arange(4).astype(ml_dtypes.bfloat16),
    "layers/eight/vars/0": np.arange(9).astype(ml_dtypes.float8_e5m2),
    "optimizer/vars/0": np.array(3),
    "optimizer/vars/1": np.zeros((0, 2), np.float32),
}


def fill(file: h5py.File) -> None:
    file.attrs["model_config"] = "{}"
    file["model_weights/dense/kernel"] = np.arange(5, dtype=np.float32)
    file["model_weights/vocabulary"] = np.array(["x", "yy"], object)


def whole(format: Format) -> bytes:
    """Return a small payload with one of everything."""
    state = TrainingState(document={"epoch": 3}, arrays={"keys": np.arange(4, dtype=np.uint32)})
    variables = tuple(
        Variable(path=path, shape=array.shape, dtype=array.dtype, read=lambda array=array: array)
        for path, array in ARRAYS.items()
    )
    if format == "h5":
        snapshot = Snapshot(format=format, fill=fill, state=state)
    else:
        documents = {"metadata.json": b"{}", "config.json": b'{"a": 1}'} if format == "keras" else {}
        groups = {"layers/dense/vars": {"name": "dense"}}
        snapshot = Snapshot(
            format=format, variables=variables, attributes=groups, documents=documents, state=state
        )
    sink = io.BytesIO()
    payload.encode(snapshot, {"version": 1}).members[0].write(sink)
    return sink.getvalue()


WHOLE = {format: whole(format) for format in FORMATS}


def write(directory: Path, format: Format, data: bytes) -> Path:
    path = directory / f"payload{SUFFIXES[format]}"
    path.write_bytes(data)
    return path


def values(path: Path) -> dict[str, tuple[Any, ...]]:
    with payload.open_variables(path) as found:
        return {
            name: (array.dtype, array.shape, array.tobytes() if array.dtype != object else list(array.flat))
            for name, array in found.items()
        }


def try_all(path: Path) -> list[str]:
    """Read a payload in every way; return the problems that verification finds."""
    for read in (*READERS[1:], values):
        try:
            read(path)
        except CorruptPayloadError as error:
            assert error.reason and error.path == path
    return verified(path)


def verified(path: Path) -> list[str]:
    """Return the problems that verification finds or raises."""
    try:
        return payload.verify_payload(path)
    except CorruptPayloadError as error:
        return [error.reason]


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("format", FORMATS)
def test_every_flipped_byte_is_found(tmp_path: Path, format: Format, start: int) -> None:
    """All bytes of HDF5 file and documents; of an archive's directory, those that change what is read."""
    image = WHOLE[format]
    truth = values(write(tmp_path, format, image))
    bookkeeping = set(range(len(image)))
    if format == "keras":
        with zipfile.ZipFile(io.BytesIO(image)) as archive:
            for member in archive.infolist():
                begin = image.index(archive.read(member), member.header_offset)
                bookkeeping -= set(range(begin, begin + member.file_size))
    else:
        bookkeeping.clear()
    # Parallel tests share the work; a file of libhdf5 is larger, and has long empty ranges.
    for position in range(start, len(image), 4 * (1 if format != "h5" else 5)):
        damaged = bytearray(image)
        damaged[position] ^= 1 << (position % 8)
        path = write(tmp_path, format, bytes(damaged))
        problems = verified(path)
        if position in bookkeeping and not problems:
            assert values(path) == truth
        else:
            assert problems, position


@pytest.mark.parametrize("format", FORMATS)
def test_every_truncation_is_found(tmp_path: Path, format: Format) -> None:
    image = WHOLE[format]
    for length in range(0, len(image), 37 if format != "h5" else 211):
        assert try_all(write(tmp_path, format, image[:length]))
    assert try_all(write(tmp_path, format, image[:-1]))


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_after_the_end_are_found(tmp_path: Path, format: Format) -> None:
    assert try_all(write(tmp_path, format, WHOLE[format] + b"more")) or format == "keras"


@pytest.mark.parametrize("format", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_damage_raises_our_error_or_none(tmp_path: Path, format: Format, data: st.DataObject) -> None:
    image = bytearray(WHOLE[format])
    for _ in range(data.draw(st.integers(1, 8))):
        begin = data.draw(st.integers(0, len(image) - 1))
        image[begin : begin + 8] = data.draw(st.binary(max_size=12))
    try_all(write(tmp_path, format, bytes(image)))


@pytest.mark.parametrize("format", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=st.sampled_from([b"", b"\x89HDF\r\n\x1a\n", b"PK\3\4", b"PK\5\6"]), data=st.binary(max_size=400))
def test_garbage_raises_our_error(tmp_path: Path, format: Format, head: bytes, data: bytes) -> None:
    assert try_all(write(tmp_path, format, head + data))


def test_the_problems_name_what_is_damaged(tmp_path: Path) -> None:
    image = WHOLE["keras"]
    for needle, expected in (
        (ARRAYS["layers/dense/vars/0"].tobytes(), "layers/dense/vars/0 differs from its digest"),
        (b'{"epoch": 3}', "ckptstore/state/document differs from its digest"),
        (np.arange(4, dtype=np.uint32).tobytes(), "ckptstore/state/arrays/keys differs from its digest"),
        (b"GCOL", "the HDF5 metadata differ from their digest"),
    ):
        damaged = bytearray(image)
        damaged[damaged.index(needle) + 3] ^= 1
        path = write(tmp_path, "keras", bytes(damaged))
        problems = try_all(path)
        assert any(expected in problem for problem in problems) or needle == b"GCOL", problems
        assert any("CRC-32" in problem for problem in problems) or needle == b"GCOL", problems
        if b"epoch" in needle or b"\3\0\0\0" in needle:
            with pytest.raises(CorruptPayloadError, match=r"training state .*differs from its digest"):
                payload.read_state(path)
    damaged = bytearray(image)
    damaged[damaged.index(b'{"a": 1}') + 2] ^= 1
    problems = try_all(write(tmp_path, "keras", bytes(damaged)))
    assert "Bad CRC-32 for file 'config.json'" in problems[0]


def test_a_description_with_a_right_digest_is_not_trusted(tmp_path: Path) -> None:
    """The text's own digest is right, and still it is not one that we write."""
    for text in (
        b"[]",
        b"{}",
        b'{"variables": 1}',
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"variables": {"a": {}}}',
        b"x",
    ):
        seal = f'", "description": "xxh3_128:{digest_of(text).removeprefix("xxh3_128:")}"}}'
        path = tmp_path / "sealed.weights.h5"
        with h5py.File(path, "w") as file:
            file["ckptstore/description"] = np.frombuffer(text + seal.encode(), np.uint8)
        with pytest.raises(CorruptPayloadError, match="its description is not"):
            payload.read_description(path)


def test_a_description_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "other.weights.h5"
    for value in (np.float32(1), np.zeros(3), np.zeros(0, np.uint8), np.array(["x"], object)):
        with h5py.File(path, "w") as file:
            file["ckptstore/description"] = value
        with pytest.raises(CorruptPayloadError, match="its description is damaged"):
            payload.read_description(path)


# --- hostile archives ------------------------------------------------------------------------------


def archive(directory: Path, build: Callable[[zipfile.ZipFile], object]) -> Path:
    path = directory / "hostile.keras"
    with zipfile.ZipFile(path, "w") as file:
        build(file)
    return path


def weights() -> bytes:
    return WHOLE["weights"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../outside", "has a member named"),
        ("/etc/cron.d/x", "has a member named"),
        ("assets/../../x", "has a member named"),
        ("..\\x", "has a member named"),
        ("C:/x", "has a member named"),
    ],
)
def test_members_that_would_be_unpacked_elsewhere_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    path = archive(tmp_path, lambda file: (file.writestr(WEIGHTS, weights()), file.writestr(name, b"x")))
    for read in READERS:
        with pytest.raises(CorruptPayloadError, match=reason):
            read(path)


def test_two_members_of_one_name(tmp_path: Path) -> None:
    def build(file: zipfile.ZipFile) -> None:
        file.writestr(WEIGHTS, weights())
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr(WEIGHTS, weights())

    with pytest.raises(CorruptPayloadError, match="two members of one name"):
        payload.read_layout(archive(tmp_path, build))


def test_an_archive_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CorruptPayloadError, match="its archive has no model"):
        payload.read_layout(archive(tmp_path, lambda file: file.writestr("config.json", b"{}")))


def test_compressed_weights(tmp_path: Path) -> None:
    path = archive(tmp_path, lambda file: file.writestr(WEIGHTS, weights(), zipfile.ZIP_DEFLATED))
    with pytest.raises(CorruptPayloadError, match="is compressed"):
        payload.read_layout(path)


def test_a_compressed_document_is_read_and_a_bomb_is_not(tmp_path: Path) -> None:
    text = bytes(range(256)) * 20

    def build(file: zipfile.ZipFile) -> None:
        file.writestr(WEIGHTS, weights())
        file.writestr("config.json", text, zipfile.ZIP_DEFLATED)

    assert payload.read_documents(archive(tmp_path, build)) == {"config.json": text}

    def bomb(file: zipfile.ZipFile) -> None:
        file.writestr(WEIGHTS, weights())
        file.writestr("config.json", bytes(50 << 20), zipfile.ZIP_DEFLATED)

    with pytest.raises(CorruptPayloadError, match="bytes that are not there"):
        payload.read_documents(archive(tmp_path, bomb))


def test_a_member_that_claims_more_bytes_than_there_are(tmp_path: Path) -> None:
    path = archive(
        tmp_path, lambda file: (file.writestr(WEIGHTS, weights()), file.writestr("config.json", b"{}"))
    )
    image = bytearray(path.read_bytes())
    entry = image.rindex(b"PK\1\2")
    image[entry + 20 : entry + 28] = struct.pack("<II", 0x7FFFFFFF, 0x7FFFFFFF)
    path.write_bytes(image)
    with pytest.raises(CorruptPayloadError):
        payload.read_documents(path)


def test_exotic_compression_is_refused(tmp_path: Path) -> None:
    path = archive(
        tmp_path,
        lambda file: (
            file.writestr(WEIGHTS, weights()),
            file.writestr("config.json", b"{}", zipfile.ZIP_BZIP2),
        ),
    )
    with pytest.raises(CorruptPayloadError, match="in a way that Keras does not use"):
        payload.read_documents(path)


def test_members_missing_in_the_description_are_found(tmp_path: Path) -> None:
    path = write(tmp_path, "keras", WHOLE["keras"])
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("assets/extra.txt", b"x")
    assert payload.verify_payload(path) == ["assets/extra.txt is not in the description"]


def test_arrays_that_were_changed_with_h5py_are_found(tmp_path: Path) -> None:
    path = write(tmp_path, "weights", WHOLE["weights"])
    with h5py.File(path, "r+") as file:
        file["layers/dense/vars/0"][1, 2] = -1
        file["new"] = np.ones(2)
        del file["optimizer/vars/0"]
    problems = payload.verify_payload(path)
    assert "optimizer/vars/0 is missing" in problems
    assert "layers/dense/vars/0 differs from its digest" in problems
    assert "new is not in the description" in problems


def test_arrays_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "weights", WHOLE["weights"])
    with h5py.File(path) as file:
        places = [file[name].id.get_offset() for name in ("layers/dense/vars/0", "layers/dense/vars/1")]
    image = bytearray(path.read_bytes())
    at = image.index(struct.pack("<BBQ", 3, 1, places[1]))
    image[at + 2 : at + 10] = struct.pack("<Q", places[0])
    path.write_bytes(image)
    with pytest.raises(CorruptPayloadError, match="share bytes"):
        payload.verify_payload(path)
