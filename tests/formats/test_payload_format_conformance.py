"""Checks that every registered payload format must pass, over payloads that lie in memory rather than in files.

One of several members passes them too, though only tests have it.

Of a large member every seventh byte is flipped here; `test_payload_damage` flips every byte of the files.
"""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckptstore.errors import CorruptPayloadError, InvalidArgumentError
from ckptstore.formats.description import RESERVED, digest_of
from ckptstore.formats.payload_format import OpenPayload, PayloadFormat
from ckptstore.formats.registry import all_formats, by_content, by_file_name, by_name, format_of
from ckptstore.formats.snapshot import Snapshot, TrainingState, Variable
from ckptstore.storage.payloads.names import SUFFIXES, payload_suffix
from ckptstore.storage.payloads.stored import StoredPayload
from directory_format import DirectoryFormat, registered
from object_payloads import Bucket, ObjectPayloadStore

DIRECTORY = DirectoryFormat()
FORMATS = pytest.mark.parametrize(
    "format",
    [*all_formats(), DIRECTORY],
    ids=lambda format: "several members" if format is DIRECTORY else format.name,
)
DOCUMENTS = {"metadata.json": b'{"keras_version": "3"}', "config.json": b'{"class_name": "Functional"}'}
STATE = TrainingState(
    document={"epoch": 3, "loss": float("nan")}, arrays={"rng/keys": np.arange(4, dtype=np.uint32)}
)
ARRAYS = {
    "layers/dense/vars/0": np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32),
    "layers/dense/vars/1": np.arange(9, dtype=np.int8),
    "layers/größe/vars/0": np.array(17.5),
    "optimizer/vars/0": np.zeros((0, 3), np.float16),
}


@pytest.fixture(autouse=True)
def _registered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Register the format of several members for the tests of it."""
    if request.node.callspec.params["format"] is DIRECTORY:
        with registered(DIRECTORY):
            yield
    else:
        yield


def snapshot_for(
    format: PayloadFormat, arrays: Mapping[str, np.ndarray] = ARRAYS, state: TrainingState | None = STATE
) -> Snapshot:
    """Return a snapshot with all that a format can hold."""
    if format.keras_fills_it:

        def fill(file: h5py.File) -> None:
            file.attrs["model_config"] = "{}"
            for path, array in arrays.items():
                file[path] = array

        return Snapshot(format=format.name, fill=fill, state=state)
    return Snapshot(
        format=format.name,
        variables=tuple(
            Variable(path=path, shape=array.shape, dtype=array.dtype, read=partial(np.asarray, array))
            for path, array in arrays.items()
        ),
        attributes={"layers/dense/vars": {"name": "dense"}},
        documents=DOCUMENTS if format.has_documents else {},
        state=state,
    )


def members_of(format: PayloadFormat, snapshot: Snapshot, **description: Any) -> dict[str, bytes]:
    encoded = format.encode(snapshot, description)
    found = {}
    for member in encoded.members:
        for _ in range(2):  # it may be written again
            sink = io.BytesIO()
            member.write(sink)
            assert len(sink.getvalue()) == member.nbytes
        found[member.name] = sink.getvalue()
    assert sum(map(len, found.values())) == encoded.nbytes
    assert (found.keys() == {""}) is not format.is_directory
    return found


@contextmanager
def stored(format: PayloadFormat, members: Mapping[str, bytes], name: str = "") -> Iterator[StoredPayload]:
    """Open members as a payload, without a file."""
    name = name or f"00000001-run{format.suffix}"
    bucket = Bucket()
    for member, data in members.items():
        bucket.put(f"payloads/{name}/{member}" if member else f"payloads/{name}", data)
    if "" not in members:
        bucket.put(f"payloads/{name}/", json.dumps(sorted(members)).encode())
    with ObjectPayloadStore(bucket).open(name) as opened:
        yield opened


@contextmanager
def opened(format: PayloadFormat, members: Mapping[str, bytes]) -> Iterator[OpenPayload]:
    with stored(format, members) as payload, format.open(payload) as found:
        yield found


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and found.tobytes() == expected.tobytes()
    )


@FORMATS
def test_all_that_was_saved_is_read_back_bit_for_bit(format: PayloadFormat) -> None:
    with opened(format, members_of(format, snapshot_for(format), version=3)) as found:
        assert found.format is format and found.is_described()
        variables = found.variables()
        assert set(variables) == set(ARRAYS) == set(found.layout())
        assert all(same(variables[name], array) for name, array in ARRAYS.items())
        views = found.variables(set(ARRAYS))
        assert all(same(views[name], array) for name, array in ARRAYS.items())
        assert found.layout() == {name: (array.shape, array.dtype.name) for name, array in ARRAYS.items()}
        assert found.documents() == (DOCUMENTS if format.has_documents else {})
        state = found.state()
        assert state is not None and np.isnan(state.document["loss"]) and state.document["epoch"] == 3
        assert same(state.arrays["rng/keys"], STATE.arrays["rng/keys"])
        assert format.verify(found) == []
        format.check_structure(found)


@FORMATS
def test_the_description_has_the_fields_and_a_digest_of_each_part(format: PayloadFormat) -> None:
    with opened(format, members_of(format, snapshot_for(format), version=3, run="ä")) as found:
        description = found.description()
    assert (description["version"], description["run"]) == (3, "ä")
    assert description["variables"] == {
        name: {"shape": list(array.shape), "dtype": array.dtype.name, "digest": digest_of(array.tobytes())}
        for name, array in ARRAYS.items()
    }
    expected = DOCUMENTS if format.has_documents else {}
    assert description["documents"] == {name: digest_of(document) for name, document in expected.items()}
    assert set(description["state"]["arrays"]) == set(STATE.arrays)
    for name in RESERVED:
        with pytest.raises(InvalidArgumentError):
            format.encode(snapshot_for(format), {name: 1})


@FORMATS
def test_without_a_state_there_is_none(format: PayloadFormat) -> None:
    with opened(format, members_of(format, snapshot_for(format, state=None))) as found:
        assert found.state() is None and found.description()["state"] is None


@FORMATS
def test_equal_snapshots_make_equal_descriptions(format: PayloadFormat) -> None:
    first, second = (members_of(format, snapshot_for(format), version=1) for _ in range(2))
    with opened(format, first) as one, opened(format, second) as other:
        assert one.description() == other.description()


def problems(format: PayloadFormat, members: Mapping[str, bytes]) -> list[str]:
    """Return what verification finds, or raises."""
    try:
        with opened(format, members) as found:
            return format.verify(found)
    except CorruptPayloadError as error:
        return [error.reason]


def contents(format: PayloadFormat, members: Mapping[str, bytes]) -> Any:
    """Return all that a reader is given, or None where it is refused."""
    try:
        with opened(format, members) as found:
            state = found.state()
            arrays = {**found.variables(), **(state.arrays if state else {})}
            values = {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
            return values, found.documents(), state and json.dumps(state.document)
    except CorruptPayloadError:
        return None


@FORMATS
def test_a_flipped_byte_anywhere_is_found_or_changes_nothing(format: PayloadFormat) -> None:
    whole = members_of(format, snapshot_for(format), version=1)
    truth = contents(format, whole)
    for member, data in whole.items():
        for position in range(0, len(data), 1 if len(data) < 1000 else 7):
            changed = bytearray(data)
            changed[position] ^= 0x55
            damaged = {**whole, member: bytes(changed)}
            # An archive's directory also holds what nobody reads: a date, for one.
            assert problems(format, damaged) or contents(format, damaged) == truth, (member, position)


@FORMATS
def test_a_payload_cut_short_anywhere_is_found(format: PayloadFormat) -> None:
    whole = members_of(format, snapshot_for(format), version=1)
    for member, data in whole.items():
        lengths = {0, 1, 7, 8, 100, len(data) // 2, len(data) - 100, len(data) - 1}
        for length in lengths & set(range(len(data))):
            assert problems(format, {**whole, member: data[:length]}), (member, length)
    if format.is_directory:
        for member in whole:
            assert problems(format, {name: data for name, data in whole.items() if name != member})


@FORMATS
def test_each_flipped_value_is_named(format: PayloadFormat) -> None:
    whole = members_of(format, snapshot_for(format), version=1)
    values = ARRAYS["layers/dense/vars/0"].tobytes()
    member = next(name for name, data in whole.items() if values in data)
    changed = whole[member].replace(values, bytes([values[0] ^ 1]) + values[1:])
    assert any("layers/dense/vars/0" in line for line in problems(format, {**whole, member: changed}))


@FORMATS
def test_it_is_recognised_by_name_and_by_content(format: PayloadFormat) -> None:
    assert by_name(format.name) is format
    assert by_file_name(f"a.b{format.suffix}") is format is by_file_name(f"00000001-a{format.suffix}.2")
    assert SUFFIXES[format.name] == format.suffix == payload_suffix(f"x{format.suffix}")
    members = members_of(format, snapshot_for(format))
    with stored(format, members) as payload:
        assert format.recognises(payload) and format_of(payload) is format
    with stored(format, members, name="nameless") as payload:
        found = by_content(payload)
        assert found is not None and found.recognises(payload)
        # An HDF5 file of weights and one of a whole model begin alike; read, they are the same.
        with format_of(payload).open(payload) as content:
            assert set(content.layout()) == set(ARRAYS)
    with stored(format, {"": b"neither"}, name="nameless") as payload:
        assert by_content(payload) is None
        with pytest.raises(CorruptPayloadError, match="known format"):
            format_of(payload)


@FORMATS
def test_its_facts_are_consistent(format: PayloadFormat) -> None:
    assert format.exports_as[0] == format.name or format.is_directory
    assert format.streams(snapshot_for(format)) is not format.keras_fills_it
    assert "{file}" in format.loading_code or not format.loading_code
    assert format.is_whole_model or not format.has_documents
    if not format.has_documents:
        with pytest.raises(InvalidArgumentError, match="documents"):
            format.encode(replace(snapshot_for(format), documents=DOCUMENTS), {})


@FORMATS
def test_what_is_decoded_is_encoded_again_with_the_same_arrays(format: PayloadFormat) -> None:
    counted: list[int] = []
    with opened(format, members_of(format, snapshot_for(format), version=1)) as found:
        snapshot = format.decode(found, counted.append)
        assert snapshot.format == format.name
        again = members_of(format, snapshot, version=1)
        with opened(format, again) as copy:
            expected, copied = found.description(), copy.description()
            assert copied["variables"] == expected["variables"]
            assert copied["documents"] == expected["documents"]
            assert copied["state"] == expected["state"]
    if format.streams(snapshot):
        # Written twice, see `members_of`; another format may have to digest it before.
        times, rest = divmod(sum(counted), sum(array.nbytes for array in ARRAYS.values()))
        assert times >= 2 and not rest


@FORMATS
def test_what_it_exports_as_is_a_file_of_that_format(format: PayloadFormat) -> None:
    members = members_of(format, snapshot_for(format), version=1)
    if format is DIRECTORY:
        pytest.skip("it is exported by way of another format")
    for name in format.exports_as:
        target = by_name(name)
        with stored(format, members) as payload:
            sink, read = io.BytesIO(), []
            format.export(
                payload, name, sink, nbytes=payload.nbytes, digest=payload.digest(), progress=read.append
            )
            assert len(sink.getvalue()) == format.export_nbytes(payload, name)
            assert sum(read) == payload.nbytes
            with pytest.raises(CorruptPayloadError):
                format.export(payload, name, io.BytesIO(), nbytes=payload.nbytes, digest="xxh3_128:0")
        with opened(target, {"": sink.getvalue()}) as exported:
            variables = exported.variables()
            assert all(same(variables[path], array) for path, array in ARRAYS.items())


class _Discarding:
    """A sink that keeps nothing."""

    nbytes = 0

    def write(self, data: Any) -> None:
        self.nbytes += memoryview(data).nbytes


@FORMATS
def test_writing_and_reading_hold_one_variable_at_a_time(format: PayloadFormat, tmp_path: Path) -> None:
    if not format.streams(snapshot_for(format)):
        pytest.skip("it is made in memory, which `streams` says")
    large = {f"layers/{number}/vars/0": np.full((1 << 20,), number, np.float32) for number in range(16)}
    snapshot = snapshot_for(format, large, None)
    tracemalloc.start()
    try:
        for member in format.encode(snapshot, {}).members:
            sink = _Discarding()
            member.write(sink)
            assert sink.nbytes == member.nbytes
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()
    with opened(format, members_of(format, snapshot)) as found:
        tracemalloc.start()
        try:
            for name, value in found.variables().items():
                assert value[0] == int(name.split("/")[1])
            assert tracemalloc.get_traced_memory()[1] < 12 << 20
        finally:
            tracemalloc.stop()
