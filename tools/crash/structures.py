"""Reads files whose structures lie: heaps, trees, tables, sizes and offsets that overlap, nest, loop or are too large.

A fuzzer of bytes hardly ever makes a file that is consistent enough to be read far. This one finds the fields of a
whole file by watching which metadata the reader reads, and exchanges what stands there: an offset for that of another
structure, a size for a larger one. What is read must end, by itself or by our error, and cost a small multiple of the
file's size in memory and time.

    python tools/crash structures                 some thousand files
    python tools/crash structures --files 100000
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import signal
import struct
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from unittest import mock

import h5py
import numpy as np

from ckptstore.errors import CorruptPayloadError
from ckptstore.formats import payload
from ckptstore.formats.hdf5.metadata import Metadata
from ckptstore.formats.payload import open_payload
from ckptstore.storage.random_access import RandomAccessFile
from crash.sample_stores import snapshot_of

# Bytes of memory for each byte of the file, and besides: what Python's objects cost that stand for a few bytes each.
MEMORY_FACTOR, MEMORY_BESIDES = 40, 8 << 20
# Seconds of processor time for each MiB of the file, and besides, while `tracemalloc` watches.
SECONDS_PER_MIB, SECONDS_BESIDES = 8.0, 1.0
# Seconds after which a file counts as endless.
_ENDLESS_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Files that were read, those among them that were refused, the seconds, and one line for each violation."""

    files: int
    refused: int
    seconds: float
    violations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Peak memory in bytes and processor time in seconds of a read, and why the file was refused, or nothing."""

    nbytes: int
    seconds: float
    refusal: str


# --- whole files -------------------------------------------------------------------------------------


def whole_files(directory: Path) -> dict[str, bytes]:
    """Return files of every form that the reader knows, by name."""
    found = {}
    for name, format in (("ours.keras", "keras"), ("ours.weights.h5", "weights")):
        sink = io.BytesIO()
        payload.encode(snapshot_of(1, format=format), {"version": 1}).members[0].write(sink)  # type: ignore[arg-type]
        found[name] = sink.getvalue()
    for name, letters in (("tables.weights.h5", "plain"), ("heaps.weights.h5", "größe")):
        path = directory / name
        with h5py.File(path, "w", libver="earliest") as file:
            for number in range(30):
                # Of nine links or more, libhdf5 keeps those in a heap whose names are not all ASCII.
                group = file.create_group(f"layers/{letters} {number}")
                group["vars/0"] = np.arange(number + 3.0)
                group["vars/0"].attrs["dtype"] = "float64"
            file.create_dataset(
                "texts", data=np.array(["one", "two", "three"], object), dtype=h5py.string_dtype()
            )
        found[name] = path.read_bytes()
    return found


# --- lies --------------------------------------------------------------------------------------------


def structures_of(image: bytes, path: Path) -> list[tuple[int, int]]:
    """Return offset and size of each piece of metadata that a reader of a whole file reads."""
    found: list[tuple[int, int]] = []

    def watched(method: Callable[..., bytes]) -> Callable[..., bytes]:
        def read(self: Metadata, offset: int, count: int) -> bytes:
            assert isinstance(self._source, RandomAccessFile)
            found.append((self._source._start + offset, count))
            return method(self, offset, count)

        return read

    path.write_bytes(image)
    with (
        mock.patch.object(Metadata, "take", watched(Metadata.take)),
        mock.patch.object(Metadata, "read", watched(Metadata.read)),
    ):
        read_all(path)
    found += [(at, 16) for at in _positions(image, b"GCOL")]
    # The directory of an archive, its members' heads, and its end.
    for signature, size in ((b"PK\1\2", 46), (b"PK\3\4", 30), (b"PK\5\6", 22)):
        found += [(at, size) for at in _positions(image, signature)]
    return found


def _positions(image: bytes, signature: bytes) -> Iterator[int]:
    at = image.find(signature)
    while at >= 0:
        yield at
        at = image.find(signature, at + 1)


def lie(image: bytes, structures: list[tuple[int, int]], draw: random.Random) -> bytes:
    """Return an image with one to four fields of its structures exchanged."""
    changed = bytearray(image)
    for _ in range(draw.choice((1, 1, 2, 4))):
        offset, size = draw.choice(structures)
        if size < 2:
            continue
        if draw.random() < 0.1:  # one structure in the place of another
            source, count = draw.choice(structures)
            count = min(count, size)
            changed[offset : offset + count] = image[source : source + count]
            continue
        width = draw.choice([width for width in (2, 4, 8, 8) if width <= size])
        at = offset + draw.randrange(0, size - width + 1, 2)
        before = int.from_bytes(image[at : at + width], "little")
        target, target_size = draw.choice(structures)
        value = draw.choice(
            (
                target,
                target + draw.choice((-8, 8, 16, 24)),
                offset,
                target_size,
                before + draw.choice((-8, -1, 1, 8, 16)),
                before * 2,
                before // 2,
                0,
                len(image),
                len(image) - at,
                (1 << 8 * width) - 1,
                1 << (8 * width - 1),
            )
        )
        changed[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(changed)


# --- reading -----------------------------------------------------------------------------------------


def read_all(path: Path) -> None:
    """Read everything that a payload holds: lists, documents, values."""
    with open_payload(path) as found:
        for name in found.variables():
            found.variables()[name]
        found.documents()
        found.state() if found.is_described() else None


def cost_of(path: Path) -> Cost:
    """Read a file, and return what that costs.

    Raises:
        Exception: Any but our own error is a violation.
    """
    refusal = ""
    tracemalloc.start()
    began = time.thread_time()
    try:
        read_all(path)
    except CorruptPayloadError as error:
        refusal = error.reason
    finally:
        seconds = time.thread_time() - began
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return Cost(nbytes=peak, seconds=seconds, refusal=refusal)


def violations_of(name: str, path: Path) -> tuple[list[str], str]:
    """Return one line for each bound that reading a file breaks, and why it was refused."""
    size = path.stat().st_size
    try:
        with _ending():
            cost = cost_of(path)
    except Exception as error:
        return [f"{name}: {type(error).__name__}: {error}"], ""
    found = []
    if cost.nbytes > MEMORY_FACTOR * size + MEMORY_BESIDES:
        found.append(f"{name}: reading {size:,} bytes takes {cost.nbytes:,} bytes of memory")
    if cost.seconds > SECONDS_PER_MIB * size / (1 << 20) + SECONDS_BESIDES:
        found.append(f"{name}: reading {size:,} bytes takes {cost.seconds:.1f} s")
    return found, cost.refusal


class _ending:
    """Raises in a block that takes processor time without end."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGVTALRM, self._end)
        signal.setitimer(signal.ITIMER_VIRTUAL, _ENDLESS_S)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, self._before)

    def _end(self, signal_number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"reading takes over {_ENDLESS_S} s")


def fuzz_structures(*, files: int, seed: int = 0) -> Result:
    """Read so many files that lie.

    Args:
        files: The number of files.
        seed: Of the random choices.
    """
    draw, began = random.Random(seed), time.monotonic()
    violations: list[str] = []
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        wholes = whole_files(Path(folder))
        structures = {name: structures_of(image, Path(folder, name)) for name, image in wholes.items()}
        for number in range(files):
            name = draw.choice(sorted(wholes))
            path = Path(folder, f"{number % 8}-{name}")
            path.write_bytes(lie(wholes[name], structures[name], draw))
            found, refusal = violations_of(f"file {number} of seed {seed} ({name})", path)
            violations += found
            refused += bool(refusal)
    return Result(
        files=files, refused=refused, seconds=time.monotonic() - began, violations=tuple(violations)
    )


# --- bombs -------------------------------------------------------------------------------------------

# Bytes of each bomb, about: small, since what they cost grows with the square of it.
BOMB_NBYTES = 1 << 20


def overlapping_heaps(path: Path) -> None:
    """Texts in heaps that all reach to the file's end."""
    count = 1000
    with h5py.File(path, "w", libver="earliest") as file:
        for number in range(count):
            file[f"{number}"] = np.zeros(2)
            file[f"{number}"].attrs["dtype"] = "xx"
        file["blob"] = np.zeros(BOMB_NBYTES, "u1")
        offset = file["blob"].id.get_offset()
    image = bytearray(path.read_bytes())
    # Each heap holds one text, which begins with the next heap.
    for place in range(0, 32 * count, 32):
        size = BOMB_NBYTES - place
        head = struct.pack("<4sB3xQHHIQ", b"GCOL", 1, size, 1, 1, 0, size - 32)
        image[offset + place : offset + place + 32] = head
    _repoint(image, lambda number: (offset + 32 * number, 1))
    path.write_bytes(image)


def one_text_for_all(path: Path) -> None:
    """One long text that every element of an array refers to."""
    count = 2000
    with h5py.File(path, "w", libver="earliest") as file:
        kind = h5py.string_dtype()
        file.create_dataset("long", data=np.array(["y" * (BOMB_NBYTES // 2)], object), dtype=kind)
        long = file["long"].id.get_offset()
        file["many"] = np.zeros(16 * count, "u1")
        offset = file["many"].id.get_offset()
        file.create_dataset("texts", (count,), kind)
        # Its values are not allocated, so that the layout message can be made to point to those of "many".
    image = bytearray(path.read_bytes())
    length, address, index = struct.unpack_from("<IQI", image, long)
    image[offset : offset + 16 * count] = struct.pack("<IQI", length - 1, address, index) * count
    layout = struct.pack("<BBQQ", 3, 1, (1 << 64) - 1, 16 * count)
    at = image.find(layout)
    image[at : at + len(layout)] = struct.pack("<BBQQ", 3, 1, offset, 16 * count)
    path.write_bytes(image)


def nested_groups(path: Path) -> None:
    """Groups within groups, each with a long name and an array: paths that grow with the square of the file."""
    depth = 900
    with h5py.File(path, "w", libver="earliest") as file:
        group = file
        for _ in range(depth):
            group["a"] = np.float32(0)
            group = group.create_group("n" * 200)


def suffixes_of_one_name(path: Path) -> None:
    """A table of members whose names are the ends of one long name."""
    count, length = 1000, BOMB_NBYTES // 2
    with h5py.File(path, "w", libver="earliest") as file:
        for number in range(count):
            file[f"{number:04}"] = np.float32(0)
        file["n" * length] = np.float32(0)
    image = bytearray(path.read_bytes())
    (heap,) = struct.unpack_from("<Q", image, 88)
    (start,) = struct.unpack_from("<Q", image, heap + 24)
    name = image.find(b"n" * 1000, start) - start
    number = 0
    for node in _positions(bytes(image), b"SNOD"):
        for entry in range(struct.unpack_from("<H", image, node + 6)[0]):
            struct.pack_into("<Q", image, node + 8 + 40 * entry, name + number)
            number += 1
    path.write_bytes(image)


def overlapping_members(path: Path) -> None:
    """An archive whose members are all the same bytes."""
    sink, draw = io.BytesIO(), random.Random(0)
    payload.encode(snapshot_of(1), {"version": 1}).members[0].write(sink)
    with zipfile.ZipFile(sink, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "assets/0", b"".join(b"x" * 99 + bytes([draw.randrange(256)]) for _ in range(10_000))
        )
        member = archive.getinfo("assets/0")
        for number in range(1, 500):
            again = zipfile.ZipInfo(f"assets/{number}")
            for field in ("compress_type", "CRC", "compress_size", "file_size", "header_offset", "flag_bits"):
                setattr(again, field, getattr(member, field))
            archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
    path.write_bytes(sink.getvalue())


def many_members(path: Path) -> None:
    """An archive with no more than a directory."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(30_000):
            archive.writestr(f"{number}", b"")


def _repoint(image: bytearray, place: Callable[[int], tuple[int, int]]) -> None:
    """Let each text of an attribute ``dtype`` begin elsewhere."""
    for number, at in enumerate(list(_positions(bytes(image), b"dtype\0"))):
        # Behind the name: datatype and dataspace, then a length, an address and an index.
        end = image.find(struct.pack("<I", 2), at)
        while end >= 0 and end - at < 120 and struct.unpack_from("<I", image, end + 12)[0] in (0, 0xFFFFFFFF):
            end = image.find(struct.pack("<I", 2), end + 1)
        address, index = place(number)
        struct.pack_into("<IQI", image, end, 2, address, index)


BOMBS: dict[str, Callable[[Path], None]] = {
    "overlapping heaps.weights.h5": overlapping_heaps,
    "one text for all.weights.h5": one_text_for_all,
    "nested groups.weights.h5": nested_groups,
    "suffixes of one name.weights.h5": suffixes_of_one_name,
    "overlapping members.keras": overlapping_members,
    "many members.keras": many_members,
}


def try_bombs() -> dict[str, tuple[list[str], str]]:
    """Read files that are built to cost much; return the violations of each, and why it was refused."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name, build in BOMBS.items():
            path = Path(folder, name)
            build(path)
            found[name] = violations_of(name, path)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=4000, help="files that lie; 4000 by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # A bomb that works must not take the machine with it.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    violations: list[str] = []
    for name, (found, refusal) in try_bombs().items():
        print(f"{name}: {refusal or 'read'}")
        violations += found
    result = fuzz_structures(files=options.files, seed=options.seed)
    violations += result.violations
    print(f"{result.files} files that lie, {result.refused} refused, in {result.seconds:.0f} s")
    for line in violations:
        print(f"VIOLATED {line}")
    raise SystemExit(bool(violations))


if __name__ == "__main__":
    main()
