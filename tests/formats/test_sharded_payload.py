"""Tests of payloads that several processes write, for which threads stand, in local files and as objects in memory."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptstore.errors import CorruptPayloadError, InvalidArgumentError, SaveAbandonedError, StorageError
from ckptstore.formats import payload
from ckptstore.formats.description import digest_of
from ckptstore.formats.registry import by_name
from ckptstore.formats.sharded.grid import Grid, whole
from ckptstore.formats.sharded.shards import Report, ShardedVariable, Shards, member_of
from ckptstore.formats.snapshot import Snapshot, Variable
from ckptstore.storage.durable_writer import Written
from ckptstore.storage.files import io_hook
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.storage.payloads.interface import PayloadRef, PayloadStore
from object_payloads import Bucket, ObjectPayloadStore
from process_shards import (
    ARRAYS,
    DOCUMENTS,
    GRIDS,
    NAME,
    PROCESSES,
    SHARDING,
    InMemoryReports,
    opened,
    save_by_processes,
    snapshot_of_process,
    state_of,
)


@pytest.fixture(params=["local files", "objects in memory"])
def payloads(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PayloadStore]:
    if request.param == "objects in memory":
        yield ObjectPayloadStore(Bucket())
        return
    layout = Layout(tmp_path)
    for folder in (layout.checkpoints, layout.tmp, layout.quarantine):
        folder.mkdir()
    yield payloads_at(layout)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def test_what_three_processes_save_one_reads(payloads: PayloadStore) -> None:
    ref = save_by_processes(payloads, version=1, run="run")
    with ref.open() as stored, opened(ref) as found:
        assert set(stored.members) == {
            "description.json",
            *map(member_of, range(PROCESSES)),
            "documents/metadata.json",
            "documents/config.json",
            "documents/assets%2Flayers%2Fwords.txt",
        }
        assert found.format.verify(found) == []
        found.format.check_structure(found)
        variables = found.variables()
        assert list(variables) == list(ARRAYS)
        assert all(same(variables[path], array) for path, array in ARRAYS.items())
        assert all(same(value, ARRAYS[path]) for path, value in found.variables(set(ARRAYS)).items())
        assert found.layout() == {path: (array.shape, array.dtype.name) for path, array in ARRAYS.items()}
        assert found.documents() == DOCUMENTS
        assert found.processes == PROCESSES
        for process in range(PROCESSES):
            state = found.state(process)
            assert state is not None and state.document == {"process": process}
            assert same(state.arrays["keys"], state_of(process).arrays["keys"])
        assert found.state().document == {"process": 0}  # type: ignore[union-attr]
        for process in (-1, PROCESSES):
            with pytest.raises(InvalidArgumentError, match="process"):
                found.state(process)
        division = found.division()
        assert division is not None and division.shardings == {"layers/dense/vars/0": SHARDING}
        assert division.sizes == tuple(stored.members[member_of(process)] for process in range(PROCESSES))
        assert division.parts == {path: len(grid.owners) for path, grid in GRIDS.items()}


def test_each_process_writes_the_parts_that_it_owns_and_no_other(payloads: PayloadStore) -> None:
    ref = save_by_processes(payloads)
    with opened(ref) as found:
        for process in range(PROCESSES):
            member = found.member(process)  # type: ignore[attr-defined]
            owned = {f"{path}/{part.name}" for path, grid in GRIDS.items() for part in grid.parts_of(process)}
            assert set(member.layout()) == owned
            # It is a payload of its own, which says whose it is.
            assert by_name("weights").verify(member) == []
            described = member.description()
            assert (described["process"], described["processes"]) == (process, PROCESSES)


def test_the_description_has_a_digest_of_each_variable(payloads: PayloadStore) -> None:
    with opened(save_by_processes(payloads, version=1)) as found:
        variables = found.description()["variables"]
    grid, array = GRIDS["layers/dense/vars/1"], ARRAYS["layers/dense/vars/1"]
    lines = [
        f"{part.name} {digest_of(array[part.start[0] : part.stop[0]].tobytes())}\n" for part in grid.parts()
    ]
    assert variables["layers/dense/vars/1"]["digest"] == digest_of("".join(lines).encode())
    one = ARRAYS["layers/größe/vars/0"]
    assert variables["layers/größe/vars/0"] == {
        "shape": [],
        "dtype": "float64",
        "digest": digest_of(one.tobytes()),
    }


def test_a_region_is_read_from_the_parts_that_it_meets_alone(payloads: PayloadStore) -> None:
    path, array = "layers/dense/vars/0", ARRAYS["layers/dense/vars/0"]
    ref = save_by_processes(payloads)
    for top in range(9):
        for bottom in range(top, 9):
            for left, right in ((0, 6), (1, 5), (2, 4), (3, 3), (5, 6)):
                with opened(ref) as found:
                    out = np.zeros((12, 8), np.float32)
                    place = out[2 : 2 + bottom - top, 1 : 1 + right - left]
                    found.read_region(path, (top, left), (bottom, right), place)
                    assert (place == array[top:bottom, left:right]).all()
                    assert np.count_nonzero(out) == place.size
                    parts = GRIDS[path].parts_within((top, left), (bottom, right))
                    read = set(found._members)  # type: ignore[attr-defined]
                    assert read == {part.owner for part in parts}
    with opened(ref) as found:
        scalar = np.zeros((), np.float64)
        found.read_region("layers/größe/vars/0", (), (), scalar)
        assert scalar == 17.5


def test_regions_are_read_by_several_threads(payloads: PayloadStore) -> None:
    path = "layers/dense/vars/0"
    out = np.zeros((8, 6), np.float32)
    with opened(save_by_processes(payloads)) as found:

        def read(row: int) -> None:
            found.read_region(path, (row, 0), (row + 1, 6), out[row : row + 1])

        threads = [threading.Thread(target=read, args=(row,)) for row in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (out == ARRAYS[path]).all()


# --- copies and exports --------------------------------------------------------------------------


def written(payloads: PayloadStore, snapshot: Snapshot, name: str, **fields: Any) -> PayloadRef:
    session = payloads.session()
    session.renew()
    upload = session.begin(name)
    encoded = payload.encode(snapshot, fields)
    encoded.write_to(upload)
    assert upload.written.nbytes == encoded.nbytes
    session.commit(upload)
    session.close()
    return PayloadRef(payloads, name)


def test_a_copy_keeps_the_parts_and_the_state_of_each_process(payloads: PayloadStore) -> None:
    ref = save_by_processes(payloads, version=1)
    read: list[int] = []
    with ref.open() as stored:
        size, digest = stored.nbytes, stored.digest()
    with payload.decoded(ref, nbytes=size, digest=digest, progress=read.append) as found:
        copy = written(payloads, found.snapshot, "00000002-run.sharded", version=1)
        without = replace(found.snapshot, state=None)
        stateless = written(payloads, without, "00000003-run.sharded", version=1)
    assert sum(read) == size + sum(array.nbytes for array in ARRAYS.values()) * 2
    with copy.open() as stored:
        assert stored.digest() == digest
    with opened(stateless) as found:
        assert found.format.verify(found) == [] and found.processes == PROCESSES
        assert [found.state(process) for process in range(PROCESSES)] == [None] * PROCESSES


@pytest.mark.parametrize("format", ["keras", "weights"])
def test_it_is_exported_as_a_file_with_whole_variables(
    payloads: PayloadStore, format: Any, tmp_path: Path
) -> None:
    sharded, target = by_name("sharded"), tmp_path / f"x{by_name(format).suffix}"
    with save_by_processes(payloads, version=1, format="sharded").open() as stored:
        size = sharded.export_nbytes(stored, format)
        with target.open("wb") as file:
            sharded.export(stored, format, file, nbytes=stored.nbytes, digest=stored.digest())
        assert target.stat().st_size == size
        with pytest.raises(CorruptPayloadError), (tmp_path / "no").open("wb") as file:
            sharded.export(stored, format, file, nbytes=stored.nbytes, digest="xxh3_128:0")
    assert payload.verify_payload(target) == []
    with payload.open_payload(target) as found:
        assert all(same(found.variables()[path], array) for path, array in ARRAYS.items())
        assert (found.description()["version"], found.description()["format"]) == (1, format)
        assert found.state().document == {"process": 0}  # type: ignore[union-attr]
        assert found.processes == 1 and found.division() is None
        out = np.zeros((2, 3), np.float32)
        found.read_region("layers/dense/vars/0", (3, 2), (5, 5), out)
        assert (out == ARRAYS["layers/dense/vars/0"][3:5, 2:5]).all()


def test_every_dtype_is_divided_and_put_together(payloads: PayloadStore) -> None:
    """Also those that are stored as another dtype, and text, which is written whole."""
    values = np.arange(24).reshape(4, 6)
    arrays = {
        "bfloat16": values.astype(ml_dtypes.bfloat16),
        "float8_e4m3fn": values.astype(ml_dtypes.float8_e4m3fn),
        "float8_e5m2": values.astype(ml_dtypes.float8_e5m2),
        "int4": (values % 7).astype(ml_dtypes.int4),
        "bool": values > 3,
        "complex": values.astype(np.complex64),
    }
    grid = Grid(cuts=((0, 2, 4), (0, 5, 6)), owners=(0, 1, 2, 0))
    session = payloads.session()
    session.renew()
    upload, reports = session.begin(NAME), InMemoryReports()
    for process in (1, 2, 0):
        grids = dict.fromkeys(arrays, grid)
        snapshot = snapshot_of_process(process, reports, arrays=arrays, grids=grids)
        payload.encode(snapshot, {}).write_to(upload if process == 0 else payloads.join(upload.share()))
    session.commit(upload)
    with opened(PayloadRef(payloads, NAME)) as found:
        assert found.format.verify(found) == []
        for path, array in arrays.items():
            assert same(found.variables()[path], array)
            part = np.zeros((2, 4), array.dtype)
            found.read_region(path, (1, 2), (3, 6), part)
            assert same(part, np.ascontiguousarray(array[1:3, 2:6]))
    text = np.array(["x", "größe"], object)
    words = Variable(path="words", shape=(2,), dtype=text.dtype, read=lambda: text)
    ref = written(payloads, Snapshot(format="sharded", variables=(words,)), "00000002-run.sharded")
    with opened(ref) as found:
        assert (
            found.variables()["words"].tolist() == [b"x", "größe".encode()]
            and found.format.verify(found) == []
        )
        assert found.layout() == {"words": ((2,), "object")}


def test_memory_holds_one_variable_at_a_time(tmp_path: Path) -> None:
    payloads = ObjectPayloadStore(Bucket())
    large = {f"layers/{n}/vars/0": np.full((1024, 1024), n, np.float32) for n in range(8)}
    grids = {path: Grid(cuts=((0, 512, 1024), (0, 256, 1024)), owners=(0, 1, 2, 0)) for path in large}
    session = payloads.session()
    session.renew()
    upload, reports = session.begin(NAME), InMemoryReports()
    for process in (1, 2, 0):
        snapshot = snapshot_of_process(process, reports, arrays=large, grids=grids)
        payload.encode(snapshot, {}).write_to(upload if process == 0 else payloads.join(upload.share()))
    session.commit(upload)
    ref = PayloadRef(payloads, NAME)
    with ref.open() as stored:
        nbytes, digest = stored.nbytes, stored.digest()
        tracemalloc.start()
        try:
            with payload.open_variables(ref) as variables:
                for path, value in variables.items():
                    assert value[0, 0] == int(path.split("/")[1]) and value.shape == (1024, 1024)
            assert tracemalloc.get_traced_memory()[1] < 14 << 20
            tracemalloc.reset_peak()
            with (tmp_path / "x.keras").open("wb") as file:
                by_name("sharded").export(stored, "keras", file, nbytes=nbytes, digest=digest)
            assert (
                tracemalloc.get_traced_memory()[1] < 20 << 20
            )  # the parts of one variable, and the whole of it
        finally:
            tracemalloc.stop()


# --- damage --------------------------------------------------------------------------------------


def members_of(ref: PayloadRef) -> dict[str, bytes]:
    with ref.open() as stored:
        return {name: stored.member(name).read(0, nbytes) for name, nbytes in stored.members.items()}


def problems(members: dict[str, bytes]) -> list[str]:
    try:
        return payload.verify_payload(of_members(members))
    except CorruptPayloadError as error:
        return [error.reason]


def of_members(members: dict[str, bytes]) -> PayloadRef:
    """Return a payload of any members, whole or not."""
    bucket = Bucket()
    for name, data in members.items():
        bucket.put(f"payloads/{NAME}/{name}", data)
    bucket.put(f"payloads/{NAME}/", json.dumps(sorted(members)).encode())
    return PayloadRef(ObjectPayloadStore(bucket), NAME)


@pytest.fixture(scope="module")
def saved() -> dict[str, bytes]:
    return members_of(save_by_processes(ObjectPayloadStore(Bucket()), version=1))


def test_each_flipped_byte_of_each_member_is_found(saved: dict[str, bytes]) -> None:
    """Of an HDF5 file every seventh: `test_payload_damage` flips each byte of such files."""
    assert problems(saved) == []
    for name, data in saved.items():
        for position in range(0, len(data), 1 if len(data) < 2500 else 7):
            changed = bytearray(data)
            changed[position] ^= 0x10
            assert problems({**saved, name: bytes(changed)}), (name, position)


def test_each_flipped_value_is_named_with_its_member_and_part(saved: dict[str, bytes]) -> None:
    for path, grid in GRIDS.items():
        for part in grid.parts():
            values = np.ascontiguousarray(ARRAYS[path][tuple(map(slice, part.start, part.stop))]).tobytes()
            name = member_of(part.owner)
            if values and saved[name].count(values) == 1:
                changed = saved[name].replace(values, values[:-1] + bytes([values[-1] ^ 1]))
                (line,) = problems({**saved, name: changed})
                assert line == f"{name}: {path}/{part.name} differs from its digest"


def test_missing_foreign_and_unknown_members_are_named(saved: dict[str, bytes]) -> None:
    for name in saved:
        rest = {other: data for other, data in saved.items() if other != name}
        assert any(name in line and "missing" in line for line in problems(rest)), name
    assert problems({**saved, "notes.txt": b"x"}) == ["notes.txt is not in the description"]
    # Of another save: whole by itself, of the same size.
    other = members_of(save_by_processes(ObjectPayloadStore(Bucket()), version=2))
    for name in map(member_of, range(PROCESSES)):
        assert len(other[name]) == len(saved[name])
        (line,) = problems({**saved, name: other[name]})
        assert line == f"{name}: it is whole, but is not the member of this save"
    (line,) = problems({**saved, member_of(1): saved[member_of(2)]})
    assert line.startswith(f"{member_of(1)}: it has ")


def test_a_member_cut_short_is_found(saved: dict[str, bytes]) -> None:
    for name, data in saved.items():
        for length in {0, 1, len(data) // 2, len(data) - 1} & set(range(len(data))):
            assert problems({**saved, name: data[:length]}), (name, length)


def test_what_is_intact_is_read_beside_a_damaged_member(saved: dict[str, bytes]) -> None:
    """So a process whose part of the model is in other members can be told apart from one whose part is lost."""
    members = {**saved, member_of(1): saved[member_of(1)][:100]}
    with opened(of_members(members)) as found:
        assert same(found.variables()["optimizer/vars/1"], ARRAYS["optimizer/vars/1"])
        assert found.state(2).document == {"process": 2}  # type: ignore[union-attr]
        for read in (
            lambda: found.variables()["layers/dense/vars/0"],
            lambda: found.state(1),
            found.description,
        ):
            with pytest.raises(CorruptPayloadError, match=r"shards/00001.h5: it has 100 bytes"):
                read()


def test_a_decoded_variable_is_checked_when_it_is_read(saved: dict[str, bytes]) -> None:
    """Bytes that a disk returns may change after the payload was verified."""
    for path, grid in GRIDS.items():
        part = list(grid.parts())[-1]
        values = np.ascontiguousarray(ARRAYS[path][tuple(map(slice, part.start, part.stop))]).tobytes()
        if not values:
            continue
        name = member_of(part.owner)
        changed = saved[name].replace(values, values[:-1] + bytes([values[-1] ^ 1]))
        with opened(of_members({**saved, name: changed})) as found:
            snapshot = found.format.decode(found)
            (damaged,) = (variable for variable in snapshot.variables if variable.path == path)
            with pytest.raises(CorruptPayloadError, match=f"{name}: {path}/{part.name} differs"):
                damaged.read()
            assert all(same(one.read(), ARRAYS[one.path]) for one in snapshot.variables if one is not damaged)


# --- the meeting of the processes ----------------------------------------------------------------


def begun(payloads: PayloadStore) -> tuple[Any, Any]:
    session = payloads.session()
    session.renew()
    return session, session.begin(NAME)


def test_a_process_that_says_nothing_ends_the_save_at_the_limit(payloads: PayloadStore) -> None:
    session, upload = begun(payloads)
    reports = InMemoryReports()
    payload.encode(snapshot_of_process(2, reports), {}).write_to(payloads.join(upload.share()))
    encoded = payload.encode(snapshot_of_process(0, reports, limit_s=0.05), {})
    with pytest.raises(SaveAbandonedError, match=r"process 1 did not report within 0.05 s") as caught:
        encoded.write_to(upload)
    assert (caught.value.silent, caught.value.refused, caught.value.version) == ((1,), {}, 1)
    assert isinstance(caught.value, StorageError) and "next save" in caught.value.hint
    upload.abort()
    assert payloads.names() == []
    session.close()


def test_a_process_that_fails_says_so_and_nobody_waits_for_the_limit(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for folder in (layout.checkpoints, layout.tmp, layout.quarantine):
        folder.mkdir()
    payloads = payloads_at(layout)
    session, upload = begun(payloads)
    reports = InMemoryReports()

    def refuse(operation: str, path: Path, phase: str) -> None:
        if operation == "fsync" and path.name == "00001.h5":
            raise OSError(5, "planted")

    with io_hook(refuse), pytest.raises(StorageError):
        payload.encode(snapshot_of_process(1, reports), {}).write_to(payloads.join(upload.share()))
    encoded = payload.encode(snapshot_of_process(0, reports, limit_s=600), {})
    with pytest.raises(SaveAbandonedError, match=r"process 1: .*fsync failed: planted") as caught:
        encoded.write_to(upload)
    assert (caught.value.silent, [*caught.value.refused], caught.value.cause) == ((), [1], "storage")
    upload.abort()
    session.close()
    assert not list(layout.checkpoints.iterdir()) and not list(layout.tmp.iterdir())


def test_a_member_that_was_reported_and_is_not_there_is_not_committed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for folder in (layout.checkpoints, layout.tmp, layout.quarantine):
        folder.mkdir()
    payloads = payloads_at(layout)
    session, upload = begun(payloads)
    reports = InMemoryReports()
    payload.encode(snapshot_of_process(1, reports), {}).write_to(payloads.join(upload.share()))
    reports.post(Report(process=2, written=Written(nbytes=7, digest="xxh3_128:" + "0" * 32)))
    payload.encode(snapshot_of_process(0, reports), {}).write_to(upload)
    with pytest.raises(StorageError, match="not the members"):
        session.commit(upload)
    assert payloads.names() == []


def test_a_snapshot_of_other_parts_is_refused() -> None:
    snapshot = snapshot_of_process(1)
    for wrong in (snapshot.variables[:-1], (), snapshot.variables[::-1]):
        with pytest.raises(InvalidArgumentError, match="parts that process 1 owns"):
            payload.encode(replace(snapshot, variables=wrong), {})
    for name in ("process", "processes", "files", "encoding", "variables"):
        with pytest.raises(InvalidArgumentError, match="reserved"):
            payload.encode(snapshot, {name: 1})
    with pytest.raises(InvalidArgumentError, match="document's name"):
        payload.encode(replace(snapshot_of_process(0), documents={"../x": b""}), {})


def test_a_process_may_own_nothing(payloads: PayloadStore) -> None:
    one = np.arange(3, dtype=np.float32)
    variable = ShardedVariable(path="v", dtype=one.dtype, grid=whole((3,), owner=1))
    session, upload = begun(payloads)
    reports = InMemoryReports(2)
    for process in (1, 0):
        shards = Shards(variables=(variable,), process=process, processes=2, reports=reports)
        mine = (Variable(path="v", shape=(3,), dtype=one.dtype, read=lambda: one),) if process else ()
        snapshot = Snapshot(format="sharded", variables=mine, shards=shards)
        payload.encode(snapshot, {}).write_to(upload if process == 0 else payloads.join(upload.share()))
    session.commit(upload)
    with opened(PayloadRef(payloads, NAME)) as found:
        assert same(found.variables()["v"], one) and found.format.verify(found) == []
        assert found.state(0) is None and found.description()["state"] is None
