"""Tests of payloads of every format, written to sinks of every kind and read back, without Keras."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import CorruptPayloadError, InvalidArgumentError, StorageError
from ckptstore.formats import payload
from ckptstore.formats.snapshot import Snapshot, TrainingState, Variable
from ckptstore.formats.streamed_hdf5 import escaped, unescaped
from ckptstore.records import Format
from ckptstore.storage.durable_writer import DurableWriter
from ckptstore.storage.payloads.names import SUFFIXES

FORMATS: tuple[Format, ...] = ("keras", "weights", "h5")
DOCUMENTS = {"metadata.json": b'{"keras_version": "3"}', "config.json": b'{"class_name": "Functional"}'}
STATE = TrainingState(
    document={"epoch": 3, "logs": {"loss": float("nan"), "best": float("-inf")}, "text": "ä\u2028"},
    arrays={
        "generator/keys": np.arange(4, dtype=np.uint32),
        "": np.zeros((0, 2), np.float32),
        ".": np.array(7),
        "100 %/..//ключ": np.arange(3).astype(ml_dtypes.bfloat16),
        "\udc80\0": np.array([True, False]),
        "float8": np.arange(5).astype(ml_dtypes.float8_e4m3fn),
    },
)


def some_arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    return {
        "layers/dense/vars/0": generator.normal(size=(7, 5)).astype(np.float32),
        "layers/dense/vars/1": generator.integers(0, 1 << 16, 9, np.uint16).view(ml_dtypes.bfloat16),
        "layers/größe/vars/0": generator.integers(0, 1 << 32, 6, np.uint32).view(np.float32),
        "layers/transposed/vars/0": generator.normal(size=(4, 6)).T,
        "layers/strided/vars/0": np.arange(20, dtype=np.int8)[::-3],
        "layers/big/vars/0": np.arange(5, dtype=">f4"),
        "layers/eight/vars/0": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2),
        "optimizer/vars/0": np.array(17),
        "optimizer/vars/1": np.zeros((3, 0, 2), np.float16),
        "optimizer/vars/2": np.array([True, False, True]),
        "optimizer/vars/3": np.arange(4).astype(np.complex64),
    }


def variable(path: str, array: np.ndarray, **attributes: str) -> Variable:
    return Variable(
        path=path, shape=array.shape, dtype=array.dtype, read=lambda: array, attributes=attributes
    )


def snapshot_of(
    arrays: dict[str, np.ndarray], format: Format = "weights", state: TrainingState | None = STATE
) -> Snapshot:
    documents = DOCUMENTS if format == "keras" else {}
    if format == "h5":

        def fill(file: h5py.File) -> None:
            file.attrs["model_config"] = "{}"
            for path, array in arrays.items():
                file[path] = array

        return Snapshot(format=format, fill=fill, state=state)
    return Snapshot(
        format=format,
        variables=tuple(variable(path, array) for path, array in arrays.items()),
        attributes={"layers/dense/vars": {"name": "dense"}},
        documents=documents,
        state=state,
    )


def bytes_of(snapshot: Snapshot, **description: Any) -> bytes:
    encoded = payload.encode(snapshot, description)
    sink = io.BytesIO()
    encoded.members[0].write(sink)
    assert len(sink.getvalue()) == encoded.nbytes
    return sink.getvalue()


def saved(directory: Path, snapshot: Snapshot, **description: Any) -> Path:
    path = directory / f"payload{SUFFIXES[snapshot.format]}"
    path.write_bytes(bytes_of(snapshot, **description))
    return path


def little(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).reshape(array.shape)


def same(first: np.ndarray, other: np.ndarray) -> bool:
    return first.dtype == other.dtype and first.shape == other.shape and first.tobytes() == other.tobytes()


@pytest.mark.parametrize("format", ["keras", "weights"])
def test_everything_is_read_back_bit_for_bit(tmp_path: Path, format: Format) -> None:
    arrays = some_arrays()
    path = saved(tmp_path, snapshot_of(arrays, format), version=3, run="ä")
    with payload.open_variables(path) as found:
        assert list(found) == list(arrays)
        assert all(same(found[name], little(array)) for name, array in arrays.items())
        assert "layers" not in found and len(found) == len(arrays)
        with pytest.raises(KeyError):
            _ = found["layers/none"]
    assert payload.read_layout(path) == {
        name: (array.shape, array.dtype.name) for name, array in arrays.items()
    }
    assert payload.read_documents(path) == (DOCUMENTS if format == "keras" else {})
    assert payload.verify_payload(path) == []


@pytest.mark.parametrize("format", FORMATS)
def test_the_description_lists_the_contents(tmp_path: Path, format: Format) -> None:
    arrays = {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3), "100 %s/ä": np.array(1)}
    path = saved(
        tmp_path, snapshot_of(arrays, format), version=3, extra={"note": "50 %d", "nan": float("inf")}
    )
    found = payload.read_description(path)
    assert found["version"] == 3
    assert found["extra"] == {"note": "50 %d", "nan": float("inf")}
    assert found["variables"] == {
        name: {
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "digest": f"xxh3_128:{xxhash.xxh3_128_hexdigest(array.tobytes())}",
        }
        for name, array in arrays.items()
    }
    assert found["documents"] == {
        name: f"xxh3_128:{xxhash.xxh3_128_hexdigest(document)}"
        for name, document in (DOCUMENTS if format == "keras" else {}).items()
    }
    assert set(found["state"]["arrays"]) == set(STATE.arrays)
    assert payload.verify_payload(path) == []


@pytest.mark.parametrize("format", FORMATS)
def test_the_training_state_is_read_back(tmp_path: Path, format: Format) -> None:
    path = saved(tmp_path, snapshot_of(some_arrays() if format != "h5" else {"a": np.ones(3)}, format))
    found = payload.read_state(path)
    assert found is not None
    assert json.dumps(found.document) == json.dumps(STATE.document)
    assert list(found.arrays) == list(STATE.arrays)
    assert all(same(found.arrays[name], array) for name, array in STATE.arrays.items())


@pytest.mark.parametrize("format", FORMATS)
def test_without_training_state(tmp_path: Path, format: Format) -> None:
    path = saved(tmp_path, snapshot_of({"a": np.ones(3)}, format, state=None))
    assert payload.read_state(path) is None
    assert payload.read_description(path)["state"] is None
    assert payload.verify_payload(path) == []


def test_whole_model_h5_is_read_back(tmp_path: Path) -> None:
    arrays = {f"model_weights/schicht_ä{index}/kernel": np.full((index, 2), index) for index in range(12)}
    path = saved(tmp_path, snapshot_of(arrays, "h5"), version=1)
    with h5py.File(path) as file:
        assert file.attrs["model_config"] == "{}"
        assert all(np.array_equal(file[name], array) for name, array in arrays.items())
    with payload.open_variables(path) as found:
        assert set(found) == set(arrays)
        assert all(same(found[name], array) for name, array in arrays.items())
    assert payload.verify_payload(path) == []


@pytest.mark.parametrize("format", ["keras", "weights"])
def test_text_is_encoded_in_memory(tmp_path: Path, format: Format) -> None:
    words = np.array(["eins", "zwei", "", "drei ä"], object)
    arrays = {
        "vocabulary/words": words,
        "vocabulary/fixed": np.array(["a", "bc"]),
        "vocabulary/bytes": np.array([b"a", b"bc"]),
        "dense/vars/0": np.ones((2, 3), np.float32),
        "dense/vars/1": np.arange(3).astype(ml_dtypes.float8_e4m3fn),
    }
    path = saved(tmp_path, snapshot_of(arrays, format))
    assert payload.verify_payload(path) == []
    with payload.open_variables(path) as found:
        assert list(found["vocabulary/words"]) == [word.encode() for word in words]
        assert list(found["vocabulary/fixed"]) == [b"a", b"bc"]
        assert same(found["dense/vars/0"], arrays["dense/vars/0"])
        assert same(found["dense/vars/1"], arrays["dense/vars/1"])
    assert payload.read_state(path) is not None


@given(st.text())
def test_any_name_of_a_state_array_becomes_a_single_hdf5_name(name: str) -> None:
    assert unescaped(escaped(name)) == name
    assert escaped(name).isascii() and "/" not in escaped(name) and escaped(name) not in ("", ".")


@given(st.text(), st.text())
def test_different_names_stay_different(first: str, other: str) -> None:
    assert (escaped(first) == escaped(other)) == (first == other)


def test_equal_snapshots_make_equal_payloads() -> None:
    for format in FORMATS:
        assert bytes_of(snapshot_of({"a": np.ones(3)}, format), v=1) == bytes_of(
            snapshot_of({"a": np.ones(3)}, format), v=1
        )


def test_the_layout_is_cached_but_values_are_not() -> None:
    first, second = ({"a/b": np.full(5, value)} for value in (1, 2))
    payload_of_first, payload_of_second = bytes_of(snapshot_of(first)), bytes_of(snapshot_of(second))
    assert payload_of_first != payload_of_second
    with h5py.File(io.BytesIO(payload_of_second)) as file:
        assert np.array_equal(file["a/b"], second["a/b"])
    renamed = bytes_of(Snapshot(format="weights", variables=(variable("a/b", first["a/b"], more="text"),)))
    with h5py.File(io.BytesIO(renamed)) as file:
        assert file["a/b"].attrs["more"] == "text"


def test_our_group_is_separate_from_what_keras_reads() -> None:
    with h5py.File(io.BytesIO(bytes_of(snapshot_of({"vars/0": np.ones(2)}), epoch=4))) as file:
        assert set(file) == {"ckptstore", "vars", "layers"}
        assert json.loads(file["ckptstore/description"][()].tobytes())["epoch"] == 4
        assert file["layers/dense/vars"].attrs["name"] == "dense"


def test_zipfile_reads_the_archive(tmp_path: Path) -> None:
    path = saved(tmp_path, snapshot_of(some_arrays(), "keras"))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [*DOCUMENTS, "model.weights.h5"]
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("config.json") == DOCUMENTS["config.json"]
        with archive.open("model.weights.h5") as member, h5py.File(member, "r") as file:
            assert np.array_equal(file["layers/dense/vars/0"], some_arrays()["layers/dense/vars/0"])


def test_assets_are_members_too(tmp_path: Path) -> None:
    documents = {
        **DOCUMENTS,
        "assets/layers/text/vocabulary.txt": b"a\nb\n",
        "assets/leer": b"",
        "ä.txt": b"x",
    }
    snapshot = Snapshot(format="keras", variables=(variable("a", np.ones(2)),), documents=documents)
    path = saved(tmp_path, snapshot)
    assert payload.read_documents(path) == documents
    assert payload.verify_payload(path) == []


# --- the sink --------------------------------------------------------------------------------------


class Broken(io.BytesIO):
    """A sink whose n-th write fails, and which counts the calls after that."""

    def __init__(self, fails_at: int) -> None:
        super().__init__()
        self.left = fails_at
        self.error = OSError(28, "No space left on device")
        self.after = 0

    def write(self, data: Any) -> int:
        self.after += self.left < 0
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(data)


@pytest.mark.parametrize("format", FORMATS)
def test_a_sink_that_fails_anywhere(format: Format) -> None:
    arrays = {f"vars/{index}": np.full((1 << 17) + index, index, np.float32) for index in range(4)}
    encoded = payload.encode(snapshot_of(arrays, format), {})
    for fails_at in range(1000):
        sink = Broken(fails_at)
        try:
            encoded.members[0].write(sink)
        except OSError as error:
            assert error is sink.error
            assert sink.after == 0
            continue
        assert fails_at > 0
        break
    whole = io.BytesIO()
    encoded.members[0].write(whole)
    assert sink.getvalue() == whole.getvalue()


def test_a_variable_that_cannot_be_read_ends_the_archive() -> None:
    def read() -> np.ndarray:
        raise RuntimeError("the device is gone")

    broken = Variable(path="a", shape=(2,), dtype=np.dtype("f4"), read=read)
    encoded = payload.encode(Snapshot(format="keras", variables=(broken,), documents=DOCUMENTS), {})
    sink = io.BytesIO()
    with pytest.raises(RuntimeError, match="the device is gone"):
        encoded.members[0].write(sink)
    assert not zipfile.is_zipfile(sink)


@pytest.mark.parametrize("format", FORMATS)
def test_the_stores_own_writer(tmp_path: Path, format: Format) -> None:
    arrays = some_arrays() if format != "h5" else {"a": np.ones(5)}
    arrays["large"] = np.random.default_rng(0).normal(size=(1 << 20) + 7)
    encoded = payload.encode(snapshot_of(arrays, format), {"version": 1})
    path = tmp_path / f"payload{SUFFIXES[format]}"
    writer = DurableWriter(path, reserve=encoded.nbytes)
    encoded.members[0].write(writer)
    written = writer.finish()
    assert written.nbytes == encoded.nbytes == path.stat().st_size
    assert payload.verify_payload(path) == []
    with payload.open_variables(path) as found:
        assert same(found["large"], arrays["large"])


def test_variables_are_read_one_at_a_time_and_not_copied(tmp_path: Path) -> None:
    count, elements = 16, 1 << 20
    alive: set[int] = set()
    most = 0

    def read(index: int) -> np.ndarray:
        nonlocal most
        array = np.full(elements, index, np.float32)
        alive.add(index)
        most = max(most, len(alive))
        import weakref

        weakref.finalize(array, alive.discard, index)
        return array

    variables = tuple(
        Variable(
            path=f"vars/{index}",
            shape=(elements,),
            dtype=np.dtype("f4"),
            read=lambda index=index: read(index),
        )
        for index in range(count)
    )
    for format in ("weights", "keras"):
        documents = DOCUMENTS if format == "keras" else {}
        encoded = payload.encode(Snapshot(format=format, variables=variables, documents=documents), {})
        assert most == 0
        with (tmp_path / format).open("wb", buffering=0) as file:
            tracemalloc.start()
            encoded.members[0].write(file)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        # One variable of 4 MiB, and the previous one while it is written.
        assert most <= 2 and not alive
        assert peak < 3 * 4 * elements
        most = 0


@pytest.mark.parametrize("format", ["weights", "keras"])
def test_arrays_are_read_into_place(tmp_path: Path, format: Format) -> None:
    path = saved(tmp_path, snapshot_of({"a": np.ones(1 << 21, np.float32)}, format))
    with payload.open_variables(path) as found:
        tracemalloc.start()
        values = found["a"]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert values.nbytes <= peak < 1.1 * values.nbytes


class Sparse:
    """A file sink that writes zeros as holes."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.position = 0

    def write(self, data: Any) -> int:
        if len(data) < 1 << 20 or np.frombuffer(data, np.uint8).any():
            self.file.seek(self.position)
            assert self.file.write(data) == len(data)
        self.position += len(data)
        return len(data)

    def tell(self) -> int:
        return self.position


@pytest.mark.slow
def test_an_archive_of_more_than_four_gigabytes(tmp_path: Path) -> None:
    huge = np.zeros((1 << 30) + 5, np.float32)
    arrays = {"a/huge": huge, "b/after": np.arange(5)}
    encoded = payload.encode(snapshot_of(arrays, "keras"), {"version": 1})
    path = tmp_path / "huge.keras"
    with path.open("wb", buffering=0) as file:
        encoded.members[0].write(Sparse(file))
        file.truncate(encoded.nbytes)
    assert payload.read_description(path)["variables"]["a/huge"]["shape"] == [len(huge)]
    with payload.open_variables(path) as found:
        assert np.array_equal(found["b/after"], arrays["b/after"])
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("model.weights.h5").file_size > 1 << 32
        assert archive.read("config.json") == DOCUMENTS["config.json"]
        with archive.open("model.weights.h5") as member:
            assert member.read(8) == b"\x89HDF\r\n\x1a\n"
    path.unlink()


# --- refused snapshots -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["variables", "documents", "state", "structure", "description"])
def test_reserved_names_in_the_description(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="reserved name"):
        payload.encode(snapshot_of({}), {name: 1})


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", {"deep": np.float32(1)}])
def test_a_description_that_is_not_json(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="is not JSON"):
        payload.encode(snapshot_of({}), {"extra": value})
    with pytest.raises(InvalidArgumentError, match="is not JSON"):
        payload.encode(snapshot_of({}, state=TrainingState(document={"x": value}, arrays={})), {})


@pytest.mark.parametrize("format", ["weights", "keras"])
@pytest.mark.parametrize("path", ["ckptstore/x", "ckptstore", "a//b", "", ".", "a\0"])
def test_an_invalid_path_is_refused(format: Format, path: str) -> None:
    with pytest.raises(InvalidArgumentError):
        payload.encode(snapshot_of({path: np.ones(2)}, format), {})


@pytest.mark.parametrize("path", ["ckptstore/x", "a\0"])
def test_an_invalid_path_is_refused_in_memory(path: str) -> None:
    text = np.array(["text"], object)
    with pytest.raises(InvalidArgumentError):
        payload.encode(snapshot_of({path: text}), {})


def test_arrays_without_a_stored_form_are_refused() -> None:
    mixed = np.array([{}, 1], object)
    with pytest.raises(InvalidArgumentError, match="HDF5 cannot hold it"):
        payload.encode(snapshot_of({"a": mixed}), {})
    records = np.zeros(3, [("x", "f4")])
    with pytest.raises(InvalidArgumentError, match="datatype that Keras does not write"):
        payload.encode(snapshot_of({"a": records}), {})
    for values in (mixed, np.array(["text"]), records):
        for arrays in ({"a": np.ones(2)}, {"a": np.array(["text"], object)}):
            state = TrainingState(document={}, arrays={"x": values})
            with pytest.raises(InvalidArgumentError, match="is not a dtype of numbers"):
                payload.encode(snapshot_of(arrays, state=state), {})


def test_an_h5_model_that_could_not_be_verified_is_refused() -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("a", data=np.arange(100), chunks=True)

    with pytest.raises(InvalidArgumentError, match="in chunks or compressed"):
        payload.encode(Snapshot(format="h5", fill=fill), {})


@pytest.mark.parametrize("name", ["model.weights.h5", "../x", "/etc/passwd", "a\\..\\x", "C:\\x", "", "a//b"])
def test_documents_with_unsafe_names_are_refused(name: str) -> None:
    snapshot = Snapshot(format="keras", documents={"config.json": b"{}", name: b""})
    with pytest.raises(InvalidArgumentError, match="documents="):
        payload.encode(snapshot, {})


def test_only_archives_have_documents() -> None:
    with pytest.raises(InvalidArgumentError, match="archive has them"):
        payload.encode(Snapshot(format="weights", documents={"config.json": b"{}"}), {})


@pytest.mark.parametrize("values", [np.ones((3, 2), np.float32), np.ones((2, 3), np.float64)])
def test_a_variable_that_differs_from_the_snapshot_is_refused(values: np.ndarray) -> None:
    wrong = Variable(path="a", shape=(2, 3), dtype=np.dtype("f4"), read=lambda: values)
    encoded = payload.encode(Snapshot(format="weights", variables=(wrong,)), {})
    with pytest.raises(InvalidArgumentError, match="was announced as"):
        encoded.members[0].write(io.BytesIO())


# --- files of other kinds --------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("none.keras", "none.weights.h5", "none.h5"):
        with pytest.raises(CorruptPayloadError, match="the file is missing"):
            payload.read_description(tmp_path / name)


def test_a_directory_is_not_reported_as_damage(tmp_path: Path) -> None:
    (tmp_path / "a.h5").mkdir()
    with pytest.raises(StorageError, match="read failed"):
        payload.read_layout(tmp_path / "a.h5")


def test_an_hdf5_file_without_description(tmp_path: Path) -> None:
    path = tmp_path / "plain.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 3), np.float32)
        file["words"] = np.array(["x", "yy"], object)
    assert payload.read_layout(path) == {
        "layers/dense/vars/0": ((2, 3), "float32"),
        "words": ((2,), "object"),
    }
    with payload.open_variables(path) as found:
        assert list(found["words"]) == [b"x", b"yy"]
    for read in (payload.read_description, payload.read_state, payload.verify_payload):
        with pytest.raises(CorruptPayloadError, match="carries no description; ckptstore did not write it"):
            read(path)
