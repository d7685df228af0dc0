"""Tests of the HDF5 writer and reader, each against h5py and against the other."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptstore.errors import CorruptPayloadError, InvalidArgumentError
from ckptstore.formats.hdf5.dtypes import VLEN_STRING, read_type, stored_type
from ckptstore.formats.hdf5.reader import read_datasets
from ckptstore.formats.hdf5.writer import SUPERBLOCK_SIZE, Dataset, lay_out, superblock
from ckptstore.formats.sink import stored_bytes
from ckptstore.storage.random_access import InMemoryFile

PLAIN = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "S1", "S7"]
EXTENDED = [
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3b11fnuz",
    "float8_e5m2fnuz",
    "int4",
    "uint4",
]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def dataset_of(path: str, array: np.ndarray, attributes: tuple[tuple[str, str], ...] = ()) -> Dataset:
    kind = stored_type(array.dtype)
    assert kind is not None
    mark = (("dtype", kind.mark),) if kind.mark else ()
    return Dataset(path, array.shape, kind, attributes + mark)


def file_of(
    arrays: dict[str, np.ndarray],
    attributes: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (),
    dataset_attributes: dict[str, tuple[tuple[str, str], ...]] | None = None,
) -> bytes:
    """Return the bytes of an HDF5 file, written front to back."""
    datasets = [
        dataset_of(path, array, (dataset_attributes or {}).get(path, ())) for path, array in arrays.items()
    ]
    block = lay_out(datasets, attributes)
    data = bytearray(superblock(block.end))
    for dataset, offset, array, piece in zip(
        datasets, block.offsets, arrays.values(), block.pieces, strict=False
    ):
        data += piece
        assert len(data) == offset and offset % 64 == 0
        data += stored_bytes(array, dataset.kind).tobytes()
    data += block.pieces[-1]
    assert len(data) == block.end
    return bytes(data)


def bits(name: str, shape: tuple[int, ...] = (3, 4, 5)) -> np.ndarray:
    """Return values of every bit pattern of the dtype: NaNs with payloads, -0.0, subnormals."""
    dtype = dtype_of(name)
    raw = np.random.default_rng(7).integers(0, 256, (int(np.prod(shape)), dtype.itemsize), np.uint8)
    if name == "?":
        raw %= 2
    if name in ("int4", "uint4"):
        raw = (np.arange(raw.size, dtype=np.uint8) % 16).reshape(raw.shape)
        return raw.view(np.int8).astype(dtype).reshape(shape)
    return raw.reshape(-1).view(dtype).reshape(shape)


def same_bits(first: np.ndarray, other: np.ndarray) -> bool:
    return first.dtype == other.dtype and first.shape == other.shape and first.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", PLAIN)
def test_datatype_messages_are_what_h5py_writes(name: str) -> None:
    kind = stored_type(np.dtype(name))
    assert kind is not None
    # The encoded form begins with two bytes for its kind.
    assert kind.message == h5py.h5t.py_create(np.dtype(name), logical=True).encode()[2:]
    assert read_type(kind.message + b"\0\0\0\0", None) == kind


def test_opaque_types_are_what_h5py_writes() -> None:
    kind = stored_type(dtype_of("bfloat16"))
    assert kind is not None
    assert kind.message == h5py.h5t.py_create(dtype_of("bfloat16"), logical=True).encode()[2:]
    assert read_type(kind.message, "bfloat16") == kind
    unmarked = read_type(kind.message, None)
    assert unmarked is not None
    assert unmarked.dtype == np.dtype("V2")


@pytest.mark.parametrize("name", PLAIN)
def test_h5py_reads_every_bit(name: str) -> None:
    array = bits(name)
    with h5py.File(io.BytesIO(file_of({"group/values": array}))) as file:
        found = file["group/values"][()]
        assert found.dtype == array.dtype
        # h5py returns fixed text without its padding; numpy ignores it, too.
        assert np.array_equal(found, array) if name[0] == "S" else same_bits(found, array)


@pytest.mark.parametrize("name", PLAIN + EXTENDED)
def test_the_reader_reads_every_bit(name: str) -> None:
    from ckptstore.formats.contents import read_array

    array = bits(name)
    image = file_of({"group/values": array, "scalar": array.reshape(-1)[3].reshape(()), "none": array[:0]})
    source = InMemoryFile(memoryview(image))
    found = read_datasets(source)
    assert list(found) == ["group/values", "scalar", "none"]
    assert same_bits(read_array(source, found["group/values"]), array)
    assert same_bits(read_array(source, found["scalar"]), array.reshape(-1)[3].reshape(()))
    assert same_bits(read_array(source, found["none"]), array[:0])


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_is_stored_as_float16_without_loss(name: str) -> None:
    every = np.arange(256, dtype=np.uint8).view(dtype_of(name))
    kind = stored_type(every.dtype)
    assert kind is not None and kind.restore is not None
    stored = stored_bytes(every, kind).view("<f2")
    assert np.array_equal(stored.astype(np.float64), every.astype(np.float64), equal_nan=True)
    assert same_bits(kind.restore(stored), every)


def test_bfloat16_is_stored_as_keras_writes_it() -> None:
    array = bits("bfloat16")
    with h5py.File(io.BytesIO(file_of({"vars/0": array}))) as file:
        dataset = file["vars/0"]
        assert dataset.attrs["dtype"] == "bfloat16"
        assert same_bits(np.array(dataset, dtype=ml_dtypes.bfloat16), array)


@pytest.mark.parametrize(
    "array",
    [
        np.float32(1.5).reshape(()),
        np.zeros((0, 3), np.float32),
        np.zeros((2, 0), "?"),
        np.arange(2 * 3 * 1 * 2 * 2, dtype=np.int16).reshape(2, 3, 1, 2, 2),
        np.arange(24.0).reshape(4, 6)[::2, ::-3],
        np.arange(6.0).reshape(2, 3).T,
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.arange(6, dtype=">f8"),
    ],
    ids=["0-d", "empty", "empty bool", "5-d", "strided", "transposed", "big-endian int", "big-endian float"],
)
def test_shapes_and_orders(array: np.ndarray) -> None:
    with h5py.File(io.BytesIO(file_of({"a": array}))) as file:
        found = file["a"][()]
        assert found.shape == array.shape
        assert found.dtype == array.dtype.newbyteorder("<")
        assert np.array_equal(found, array)


@pytest.mark.parametrize("count", [0, 1, 10, 2_000, 20_000])
def test_groups_of_any_size(count: int) -> None:
    arrays = {f"vars/{index}": np.array(index) for index in range(count)}
    image = file_of(arrays, (("vars", (("name", "many"),)),))
    with h5py.File(io.BytesIO(image)) as file:
        group = file["vars"]
        assert len(group) == count
        assert sorted(group) == sorted(str(index) for index in range(count))
        for index in {0, count // 2, count - 1} & set(range(count)):
            assert str(index) in group
            assert group[str(index)][()] == index
        assert str(count) not in group
        assert "vars/x/y" not in file
    assert list(read_datasets(InMemoryFile(memoryview(image)))) == list(arrays)


def test_a_group_has_at_most_so_many_members() -> None:
    kind = stored_type(np.dtype("f4"))
    assert kind is not None
    with pytest.raises(InvalidArgumentError, match="more than 65,000"):
        lay_out([Dataset(str(index), (), kind) for index in range(65_001)])


def test_text_attributes_are_of_variable_length() -> None:
    texts = (("name", "dense"), ("leer", ""), ("ключ", "значение 🎈"), ("long", "x" * 100_000))
    groups = (("a/b", texts), ("", (("root", "yes"),)), ("empty/group", ()))
    image = file_of({"a/v": np.arange(3)}, groups, {"a/v": texts})
    with h5py.File(io.BytesIO(image)) as file:
        assert dict(file["a/b"].attrs) == dict(file["a/v"].attrs) == dict(texts)
        assert dict(file.attrs) == {"root": "yes"}
        assert len(file["empty/group"]) == 0
        assert h5py.check_string_dtype(file["a/b"].attrs.get_id("name").dtype) == ("utf-8", None)


def test_links_state_their_character_set() -> None:
    image = file_of({"plain": np.ones(1), "größe": np.ones(1)})
    with h5py.File(io.BytesIO(image)) as file:
        assert file.id.links.get_info(b"plain").cset == h5py.h5t.CSET_ASCII
        assert file.id.links.get_info("größe".encode()).cset == h5py.h5t.CSET_UTF8
        assert set(file) == {"plain", "größe"}


def test_reading_in_order_only_reads_forward() -> None:
    """Headers come before the values that they describe, those of groups without arrays in between."""
    arrays = {f"layers/dense_{index}/vars/{number}": np.ones(64) for index in range(3) for number in range(2)}
    groups = [
        (f"layers/{name}_{index}/vars", (("name", name),))
        for index in range(3)
        for name in ("dropout", "dense")
    ]
    groups.insert(0, ("vars", (("name", "model"),)))
    groups.append(("last/vars", (("name", "last"),)))
    image = file_of(arrays, tuple(groups))
    with h5py.File(io.BytesIO(image)) as file:
        places = []
        for index in range(3):
            places.append(h5py.h5o.get_info(file[f"layers/dropout_{index}/vars"].id).addr)
            for number in range(2):
                dataset = file[f"layers/dense_{index}/vars/{number}"]
                places += [h5py.h5o.get_info(dataset.id).addr, dataset.id.get_offset()]
        places.append(h5py.h5o.get_info(file["last/vars"].id).addr)
        assert file["last/vars"].attrs["name"] == "last"
    assert places == sorted(places)


def test_texts_of_many_heaps() -> None:
    groups = tuple((f"layer_{index}/vars", (("name", f"dense_{index}"),)) for index in range(9_000))
    with h5py.File(io.BytesIO(file_of({}, groups))) as file:
        for index in (0, 3_999, 4_000, 8_999):
            assert file[f"layer_{index}/vars"].attrs["name"] == f"dense_{index}"


def test_text_of_variable_length_in_a_file_of_h5py_is_found() -> None:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs["name"] = "text"
    assert VLEN_STRING in image.getvalue()


def test_libhdf5_may_change_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    arrays = {"vars/0": np.arange(5), "vars/1": bits("bfloat16"), "gone": np.ones(3)}
    groups = (("vars", (("name", "before"),)),)
    path.write_bytes(file_of(arrays, groups))
    with h5py.File(path, "r+") as file:
        file["vars"].attrs["name"] = "after, and longer than it was"
        file["vars/1"].attrs["more"] = "text"
        del file["gone"]
        for index in range(2, 60):
            file[f"vars/{index}"] = np.full(index, index)
        file["vars/0"][1] = -1
    with h5py.File(path) as file:
        assert file["vars"].attrs["name"] == "after, and longer than it was"
        assert dict(file["vars/1"].attrs) == {"dtype": "bfloat16", "more": "text"}
        assert list(file) == ["vars"] and len(file["vars"]) == 60
        assert np.array_equal(file["vars/0"], [0, -1, 2, 3, 4])
        assert np.array_equal(file["vars/59"], np.full(59, 59))


def test_two_blocks_are_one_file() -> None:
    first = lay_out([dataset_of("a", np.arange(3))], link_to_next="more")
    second = lay_out([dataset_of("b/c", np.arange(4))], address=first.end)
    data = bytearray(superblock(second.end))
    for block, count in ((first, 3), (second, 4)):
        data += block.pieces[0] + np.arange(count).tobytes() + block.pieces[1]
    assert first.address == SUPERBLOCK_SIZE and second.address == first.end
    with h5py.File(io.BytesIO(data)) as file:
        assert np.array_equal(file["a"], np.arange(3))
        assert np.array_equal(file["more/b/c"], np.arange(4))


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["a", "a"], "there twice"),
        (["a", "a/b"], "both a group and an array"),
        (["a/b", "a"], "there twice"),
        (["a//b"], "not a path of names"),
        (["/a"], "not a path of names"),
        (["a/./b"], "not a path of names"),
        (["a\0b"], "not a path of names"),
        (["x" * 60_001], "not a path of names"),
        (["\udc80"], "no UTF-8 form"),
        ([""], "not a path of names"),
        (["next"], "reserved name"),
    ],
)
def test_invalid_paths_are_refused(paths: list[str], reason: str) -> None:
    datasets = [dataset_of(path, np.arange(2)) for path in paths]
    with pytest.raises(InvalidArgumentError, match=reason):
        lay_out(datasets, link_to_next="next")


@pytest.mark.parametrize("text", ["\udc80", "a\0b"])
def test_invalid_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be a text in HDF5"):
        lay_out([], (("a", (("name", text),)),))


# --- random trees ----------------------------------------------------------------------------------

names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=300
).filter(lambda name: name != ".")
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    groups: set[str] = set()
    for path in draw(st.lists(paths, max_size=12, unique=True)):
        above = {path[:at] for at, character in enumerate(path) if character == "/"}
        if path not in groups and not above & set(found):
            groups |= above
            name = draw(st.sampled_from([name for name in PLAIN if name[0] != "S"]))
            found[path] = bits(name, draw(shapes))
    return found


@given(
    trees(),
    st.dictionaries(names, st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))),
)
def test_h5py_reads_any_tree(arrays: dict[str, np.ndarray], attributes: dict[str, str]) -> None:
    image = file_of(arrays, (("", tuple(attributes.items())),))
    seen: dict[str, np.ndarray] = {}
    with h5py.File(io.BytesIO(image)) as file:
        file.visititems(lambda name, item: seen.update({name: item[()]}) if hasattr(item, "dtype") else None)
        assert dict(file.attrs) == attributes
    assert set(seen) == set(arrays)
    assert all(same_bits(seen[path], array) for path, array in arrays.items())
    found = read_datasets(InMemoryFile(memoryview(image)))
    assert {path: (item.shape, item.kind.dtype) for path, item in found.items()} == {
        path: (array.shape, array.dtype) for path, array in arrays.items()
    }


@given(trees())
def test_the_reader_lists_what_h5py_wrote(arrays: dict[str, np.ndarray]) -> None:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for path, array in arrays.items():
            file[path] = array
    from ckptstore.formats.contents import read_array

    source = InMemoryFile(memoryview(image.getvalue()))
    found = read_datasets(source)
    assert set(found) == set(arrays)
    assert all(same_bits(read_array(source, found[path]), array) for path, array in arrays.items())


# --- refused files ---------------------------------------------------------------------------------


def refused(image: bytes) -> str:
    with pytest.raises(CorruptPayloadError) as caught:
        read_datasets(InMemoryFile(memoryview(image)))
    return caught.value.reason


def made_by_h5py(fill: Any, **options: Any) -> bytes:
    image = io.BytesIO()
    with h5py.File(image, "w", **options) as file:
        fill(file)
    return image.getvalue()


def soft_link(file: h5py.File) -> None:
    file["a"] = h5py.SoftLink("/b")


def external_link(file: h5py.File) -> None:
    file["a"] = h5py.ExternalLink("other.h5", "/b")


def hard_link_twice(file: h5py.File) -> None:
    file["a"] = np.arange(3)
    file["b"] = file["a"]


def cycle(file: h5py.File) -> None:
    group = file.create_group("a/b")
    group["c"] = file["a"]


def external_data(file: h5py.File) -> None:
    file.create_dataset("a", (3,), "f4", external=[("/etc/hostname", 0, 12)])


def virtual_data(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "b", (3,))
    file.create_virtual_dataset("a", layout)


def never_written(file: h5py.File) -> None:
    file.create_dataset("a", (1 << 40,), "f4")


def shape_bomb(file: h5py.File) -> None:
    file.create_dataset("a", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024), compression="gzip")


def named_type(file: h5py.File) -> None:
    file["t"] = np.dtype("f4")


def records(file: h5py.File) -> None:
    file["a"] = np.zeros(3, [("x", "f4"), ("y", "i8")])


@pytest.mark.parametrize(
    ("fill", "reason"),
    [
        (soft_link, "soft link"),
        (external_link, "link"),
        (hard_link_twice, "in two ways"),
        (cycle, "in two ways"),
        (external_data, "in another file"),
        (virtual_data, "superblock|stored in a way"),
        (never_written, "more than the file can hold"),
        (shape_bomb, "more than the file can hold"),
        (named_type, "neither a group nor an array"),
        (records, "datatype that Keras does not write"),
    ],
)
def test_forms_that_keras_never_writes_are_refused(fill: Any, reason: str) -> None:
    assert re.search(reason, refused(made_by_h5py(fill)))


def test_a_newer_form_of_hdf5_is_refused() -> None:
    assert "superblock" in refused(made_by_h5py(lambda file: None, libver="latest"))


def test_links_other_than_hard_ones_in_the_file_are_refused() -> None:
    image = bytearray(file_of({"values": np.arange(3)}))
    # A link message begins with version, flags and character set; link info has two bytes before addresses.
    link, info = image.index(b"\x06values") - 3, SUPERBLOCK_SIZE + 16 + 8
    soft = bytearray(image)
    soft[link : link + 3] = bytes([1, 0x18, 1])
    assert "soft or external link" in refused(bytes(soft))
    heap = bytearray(image)
    heap[info + 2 : info + 10] = (128).to_bytes(8, "little")
    assert "a heap of links is damaged" in refused(bytes(heap))


@pytest.mark.parametrize("count", [1, 8, 9, 100, 5_000])
def test_groups_with_names_that_are_not_ascii(count: int) -> None:
    """libhdf5 gives them a heap and an index; some links are removed again, so that both have holes."""
    names = {f"schicht_ä{index}" + "x" * (index % 200): index for index in range(count)}

    def many(file: h5py.File) -> None:
        group = file.create_group("g")
        for name, index in names.items():
            group[name] = index
        for name in list(names)[::7]:
            del group[name]

    found = read_datasets(InMemoryFile(memoryview(made_by_h5py(many))))
    assert set(found) == {f"g/{name}" for name in list(names) if names[name] % 7}


@given(st.data())
def test_damage_to_a_heap_of_links(data: st.DataObject) -> None:
    def many(file: h5py.File) -> None:
        for index in range(40):
            file[f"ä{index}" * 20] = index

    image = bytearray(made_by_h5py(many))
    places = [match.start() for match in re.finditer(b"FRHP|BTHD|BTLF|BTIN|FHIB|FHDB", image)]
    at = data.draw(st.sampled_from(places)) + data.draw(st.integers(0, 150))
    image[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    try:
        read_datasets(InMemoryFile(memoryview(image)))
    except CorruptPayloadError as error:
        assert error.reason


def test_compressed_arrays_are_listed_but_not_read() -> None:
    from ckptstore.formats.contents import read_array

    image = made_by_h5py(lambda file: file.create_dataset("a", data=np.arange(1000), compression="gzip"))
    source = InMemoryFile(memoryview(image))
    found = read_datasets(source)["a"]
    assert found.shape == (1000,)
    with pytest.raises(CorruptPayloadError, match="in chunks or compressed"):
        read_array(source, found)


def test_an_empty_array_of_absurd_shape_is_refused() -> None:
    kind = stored_type(np.dtype("f4"))
    assert kind is not None
    block = lay_out([Dataset("a", (0, 1 << 60), kind)])
    assert "more than the file can hold" in refused(superblock(block.end) + b"".join(block.pieces))


def test_reading_overlapping_parts_ends() -> None:
    """A header of thousands of continuations, each nearly as long as the file and one word further."""
    nbytes, count = 1 << 20, 5_000
    header = struct.pack("<BBHII4x", 1, 0, count, 1, 24 * count)
    parts = [
        struct.pack("<HHB3xQQ", 0x10, 16, 0, 200_000 + 8 * index, nbytes - 300_000) for index in range(count)
    ]
    image = (superblock(nbytes) + header + b"".join(parts)).ljust(nbytes, b"\0")
    assert refused(image) == "its HDF5 metadata are larger than they can be"


def test_values_beyond_the_end_are_refused() -> None:
    image = bytearray(file_of({"a": np.arange(3)}))
    layout = image.index(struct.pack("<BB", 3, 1), SUPERBLOCK_SIZE + 100)
    struct.pack_into("<Q", image, layout + 2, len(image) - 8)
    assert "bytes that are not there" in refused(bytes(image))


@pytest.mark.parametrize("image", [b"", b"\x89HDF\r\n\x1a\n", b"x" * 1000, bytes(1000)])
def test_other_files_are_refused(image: bytes) -> None:
    assert refused(image) == "it is not an HDF5 file"


@given(st.data())
def test_damage_raises_our_error_or_none(data: st.DataObject) -> None:
    image = bytearray(file_of({"a/b": np.arange(3), "c": bits("bfloat16", (4,))}, (("a", (("name", "x"),)),)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(image) - 1))
        image[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    length = data.draw(st.integers(0, len(image)))
    try:
        read_datasets(InMemoryFile(memoryview(image)[:length]))
    except CorruptPayloadError as error:
        assert error.reason
