"""A payload that several processes open: each verifies a share, and what else it reads; together they miss nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from ckptstore.errors import CorruptPayloadError
from ckptstore.formats import payload
from ckptstore.formats.registry import by_name
from ckptstore.formats.sharded.shards import member_of
from ckptstore.storage.payloads.interface import PayloadRef
from object_payloads import Bucket, ObjectPayloadStore
from process_shards import ARRAYS, GRIDS, NAME, PROCESSES, save_by_processes


@pytest.fixture(scope="module")
def saved() -> dict[str, bytes]:
    with save_by_processes(ObjectPayloadStore(Bucket()), version=1).open() as stored:
        return {name: stored.member(name).read(0, nbytes) for name, nbytes in stored.members.items()}


@pytest.fixture(scope="module")
def whole(saved: dict[str, bytes]) -> tuple[int, str]:
    with of_members(saved).open() as stored:
        return stored.nbytes, stored.digest()


def of_members(members: dict[str, bytes]) -> PayloadRef:
    bucket = Bucket()
    for name, data in members.items():
        bucket.put(f"payloads/{NAME}/{name}", data)
    bucket.put(f"payloads/{NAME}/", json.dumps(sorted(members)).encode())
    return PayloadRef(ObjectPayloadStore(bucket), NAME)


def finders(members: dict[str, bytes], whole: tuple[int, str], processes: int) -> list[int]:
    """Return the processes that find damage in their shares."""
    found = []
    for process in range(processes):
        with of_members(members).open() as stored:
            try:
                by_name("sharded").verify_share(
                    stored, nbytes=whole[0], digest=whole[1], process=process, processes=processes
                )
            except CorruptPayloadError:
                found.append(process)
    return found


def flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 4
    return bytes(changed)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_a_flipped_byte_is_found_by_the_process_in_whose_share_it_is(
    saved: dict[str, bytes], whole: tuple[int, str], processes: int
) -> None:
    assert finders(saved, whole, processes) == []
    shares = {member_of(number): [number % processes] for number in range(PROCESSES)}
    for name, data in saved.items():
        # The small members are read by all: they prove what the others must be.
        expected = shares.get(name, list(range(processes)))
        for position in range(0, len(data), max(1, len(data) // 7)):
            changed = {**saved, name: flipped(data, position)}
            assert finders(changed, whole, processes) == expected, (name, position)


def test_other_members_or_those_of_another_save_are_found_by_all(
    saved: dict[str, bytes], whole: tuple[int, str]
) -> None:
    everyone = [0, 1]
    for name in saved:
        assert finders({key: data for key, data in saved.items() if key != name}, whole, 2) == everyone
        assert finders({**saved, name: saved[name][:-1]}, whole, 2) == everyone
    assert finders({**saved, "shards/00007.h5": b""}, whole, 2) == everyone
    assert finders(saved, (whole[0], "xxh3_128:0"), 2) == everyone
    with save_by_processes(ObjectPayloadStore(Bucket()), version=2).open() as stored:
        other = {name: stored.member(name).read(0, nbytes) for name, nbytes in stored.members.items()}
    assert finders(other, whole, 2) == everyone
    assert finders({**saved, member_of(1): other[member_of(1)]}, whole, 3) == [1]


def read(members: dict[str, bytes], regions: Iterable[Any], process: int) -> int:
    with payload.open_payload(of_members(members)) as opened:
        return opened.verify_regions(regions, process=process, processes=PROCESSES)


def test_parts_in_other_shares_are_verified_where_they_are_read_whole(saved: dict[str, bytes]) -> None:
    path, grid, array = "layers/dense/vars/0", GRIDS["layers/dense/vars/0"], ARRAYS["layers/dense/vars/0"]
    everything = [(path, (0, 0), array.shape)]
    for process in range(PROCESSES):
        others = [part for part in grid.parts() if part.owner != process]
        assert read(saved, everything, process) == sum(np.prod(part.shape) for part in others) * 4
    part = next(part for part in grid.parts() if part.owner == 1)
    values = np.ascontiguousarray(array[tuple(map(slice, part.start, part.stop))]).tobytes()
    name = member_of(1)
    changed = {**saved, name: saved[name].replace(values, flipped(values, 3))}
    with pytest.raises(CorruptPayloadError, match=f"{name}: {path}/{part.name} differs from its digest"):
        read(changed, [(path, part.start, part.stop)], 0)
    # The process in whose share it is has read all of it; another that reads only some of it leaves it to that one.
    assert read(changed, everything, 1) > 0
    assert read(changed, [(path, part.start, (part.stop[0] - 1, part.stop[1]))], 0) == 0


def test_each_process_verifies_a_file_whole(tmp_path: Any) -> None:
    with save_by_processes(ObjectPayloadStore(Bucket()), version=1, format="sharded").open() as stored:
        file = tmp_path / "x.weights.h5"
        with file.open("wb") as sink:
            by_name("sharded").export(stored, "weights", sink, nbytes=stored.nbytes, digest=stored.digest())
    with payload.open_payload(file) as opened:
        assert opened.verify_regions([("layers/dense/vars/1", (0,), (6,))], process=1, processes=2) == 0
    with payload.LooseFile(file).open() as stored:
        nbytes, digest = stored.nbytes, stored.digest()
        verify = by_name("weights").verify_share
        verify(stored, nbytes=nbytes, digest=digest, process=1, processes=2)
        with pytest.raises(CorruptPayloadError):
            verify(stored, nbytes=nbytes, digest="xxh3_128:0", process=1, processes=2)
