"""Tests that plain state of any kind becomes JSON and arrays, and is restored bit for bit."""

from __future__ import annotations

import enum
import json
import math
import random
import struct
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats import payload
from ckptstore.formats.snapshot import Snapshot, TrainingState
from ckptstore.keras.state.generators import GeneratorState
from ckptstore.keras.state.tree import pack, unpack

ROOT = Path(__file__).resolve().parent.parent.parent
EXTENDED = [
    np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4", "uint4")
]
PLAIN_DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.byte_string_dtypes(min_len=1, max_len=5),
    hnp.unicode_string_dtypes(min_len=1, max_len=5),
    hnp.datetime64_dtypes(),
    hnp.timedelta64_dtypes(),
    st.just(np.dtype(np.longdouble)),
)
DTYPES = PLAIN_DTYPES | hnp.array_dtypes(PLAIN_DTYPES, max_size=3)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def bits(draw: st.DrawFn) -> np.ndarray:
    """Return arrays of ml_dtypes with any bits."""
    raw = draw(hnp.arrays(np.uint8, SHAPES))
    dtype = draw(st.sampled_from(EXTENDED))
    return np.resize(raw, (*raw.shape, dtype.itemsize)).astype(np.uint8).view(dtype).reshape(raw.shape)


ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)) | bits()
TEXT = st.text(st.characters(exclude_categories=()))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**53 - 2, 2**64 + 2)
    | st.floats()
    | st.complex_numbers()
    | TEXT
    | st.binary(max_size=200)
    | PLAIN_DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, ()).map(lambda array: array[()]))
    | bits().filter(lambda array: array.size).map(lambda array: array.reshape(-1)[0])
)
KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.binary(),
    lambda keys: st.lists(keys, max_size=3).map(tuple) | st.frozensets(keys, max_size=3),
    max_leaves=5,
)
TREES = st.recursive(
    SCALARS | ARRAYS,
    lambda trees: (
        st.lists(trees, max_size=4)
        | st.lists(trees, max_size=4).map(tuple)
        | st.dictionaries(KEYS, trees, max_size=4)
        | st.dictionaries(KEYS, trees, max_size=4).map(OrderedDict)
        | st.lists(trees, max_size=4).map(lambda some: deque(some, len(some) + 1))
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
        | st.lists(st.integers(-(2**63), 2**63), min_size=60, max_size=70)
        | st.lists(st.floats(), min_size=60, max_size=70).map(tuple)
    ),
    max_leaves=12,
)


def round_trip(value: Any) -> Any:
    document, arrays = pack(value, "state")
    assert all(name.startswith("state/") for name in arrays)
    return unpack(json.loads(json.dumps(document, allow_nan=False)), arrays, "state")


def exact(value: Any) -> Any:
    """Return a form of a value that equals another one only if both values are the same bit for bit."""
    kind = type(value)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return kind, array.dtype, array.shape, array.tobytes()
    if kind is float:
        return kind, "nan" if math.isnan(value) else struct.pack("d", value)
    if kind is complex:
        return kind, exact(value.real), exact(value.imag)
    if isinstance(value, dict):
        return kind, [(exact(key), exact(inner)) for key, inner in value.items()]
    if isinstance(value, list | tuple | deque):
        return kind, [exact(item) for item in value], getattr(value, "maxlen", None)
    return kind, value


@given(TREES)
def test_any_state_is_restored_bit_for_bit(value: Any) -> None:
    assert exact(round_trip(value)) == exact(value)


@given(ARRAYS)
def test_arrays_of_every_dtype_are_restored_and_writable(array: np.ndarray) -> None:
    found = round_trip([array, array.T])
    assert exact(found) == exact([array, array.T])
    assert all(copy.flags.writeable and not np.shares_memory(copy, array) for copy in found)


AT_HAND = [
    [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1e308, 0.1],
    [True, False, 1, 0, None],
    [10**5000, -(10**5000), 2**63, 2**53, 2**53 + 1],
    ["", "\ud83d\ude00", "😀", "\udc80", "\0", "ä\u2028"],
    [b"", b"\0\xff", bytes(range(256)) * 3],
    {1: "int", "1": "text", 1.5: 2, None: 3, (1, ("a", None)): 4, True + 1: 5, frozenset({1}): 6},
    {"z": 1, "a": 2, "m": {"y": [], "b": ()}},
    [set(), {1, 2, 3}, {10**5000, "a"}, {"a", b"a", None, (1,)}, frozenset({"x"}), set(range(100))],
    [list(range(1000)), tuple(range(1000)), [1.5] * 100, [1, True] * 50, [1, 2.0] * 50, [2**64] * 100],
    [np.float32(0.1), np.str_("a\0"), np.bytes_(b"a\0"), np.bool_(True), np.datetime64("2020-01-01"), np.str_()],
    [np.array("ab"), np.array([b"a", b""]), np.zeros((0, 3), "S4"), np.array(5), np.arange(6).reshape(2, 3).T],
    [np.zeros(2, [("a", ">f4", (2,)), ("b", ml_dtypes.bfloat16)]), np.zeros(2, np.dtype("i1,f8", align=True))],
    [np.array([b"abc", b"d"], "V3"), np.void(b"abc"), np.zeros(2, "V0"), np.zeros(2, []), np.longdouble(1) / 3],
    [deque([1, 2], maxlen=2), deque(), OrderedDict(b=1, a=2), Counter("abca")],
]  # fmt: skip


@pytest.mark.parametrize("value", AT_HAND, ids=range(len(AT_HAND)))
def test_values_that_hypothesis_rarely_generates(value: Any) -> None:
    assert exact(round_trip(value)) == exact(value)


def test_a_defaultdict_keeps_its_default() -> None:
    found = round_trip(defaultdict(list, a=[1]))
    found["b"].append(2)
    assert found == {"a": [1], "b": [2]}


def test_many_numbers_become_one_array() -> None:
    document, arrays = pack({"order": list(range(10_000)), "losses": [0.5] * 100}, "data")
    assert {name: (array.dtype, len(array)) for name, array in arrays.items()} == {
        "data/0": (np.int64, 10_000),
        "data/1": (np.float64, 100),
    }
    assert len(json.dumps(document)) < 100


def test_arrays_are_not_copied_to_be_packed() -> None:
    array = np.zeros(5)
    _, arrays = pack([array], "a")
    assert arrays["a/0"] is array


def test_the_document_does_not_depend_on_hashes() -> None:
    program = (
        "from ckptstore.keras.state.tree import pack; print(pack({'a', 'bc', 'def', ('g',), None}, 's'))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            cwd=ROOT,
        ).stdout
        for seed in "123"
    }
    assert len(seen) == 1


def test_a_payload_can_hold_it(tmp_path: Path) -> None:
    value = {"all": AT_HAND, "bits": [np.arange(16, dtype=np.uint8).view(dtype) for dtype in EXTENDED]}
    document, arrays = pack(value, "callbacks/ä:0")
    state = TrainingState(document={"callbacks": document}, arrays=arrays)
    path = tmp_path / "payload.weights.h5"
    with path.open("wb") as file:
        payload.encode(Snapshot(format="weights", state=state), {}).members[0].write(file)
    found = payload.read_state(path)
    assert found is not None
    assert exact(unpack(found.document["callbacks"], found.arrays, "callbacks/ä:0")) == exact(value)


# --- random generators -----------------------------------------------------------------------------

GENERATORS = {
    **{
        name: lambda name=name: np.random.Generator(getattr(np.random, name)(7))
        for name in ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
    },
    "RandomState": lambda: np.random.RandomState(7),
    "RandomState of PCG64": lambda: np.random.RandomState(np.random.PCG64(7)),
    "random": lambda: random.Random(7),
}


def draws(generator: Any) -> list[float]:
    if isinstance(generator, random.Random):
        return [generator.random(), generator.gauss(0, 1), generator.randrange(10**30)]
    return [generator.standard_normal(), *generator.permutation(50), generator.uniform()]


@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_are_set_in_place(kind: str) -> None:
    generator = GENERATORS[kind]()
    draws(generator)
    if not isinstance(generator, np.random.RandomState | random.Random):
        generator.integers(5, dtype=np.uint32)  # leaves half a word
    saved = round_trip({"g": generator})["g"]
    assert isinstance(saved, GeneratorState)
    expected = [draws(generator), draws(generator)]
    again = GENERATORS[kind]()
    saved.apply(again)
    assert [draws(again), draws(again)] == expected
    round_trip(saved).apply(generator)
    assert [draws(generator), draws(generator)] == expected


def test_a_bit_generator() -> None:
    generator = np.random.PCG64(3)
    saved = round_trip(generator)
    expected = generator.random_raw(3).tolist()
    saved.apply(generator)
    assert generator.random_raw(3).tolist() == expected


def test_a_generator_of_another_kind_is_refused() -> None:
    saved = round_trip(np.random.default_rng(1))
    other = np.random.Generator(np.random.Philox(1))
    before = other.bit_generator.state["state"]["counter"].tolist()
    with pytest.raises(InvalidArgumentError, match=r"Generator/Philox'.*is one of numpy\.Generator/PCG64"):
        saved.apply(other)
    assert other.bit_generator.state["state"]["counter"].tolist() == before
    with pytest.raises(InvalidArgumentError, match="list"):
        saved.apply([])


# --- refused values --------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1


class Thing:
    pass


Pair = namedtuple("Pair", "a b")
ITSELF: list[Any] = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("value", "place", "named"),
    [
        (Thing(), "", "test_state_tree.Thing"),
        ([1, {"a": (0, Thing())}], r"\[1\]/a\[1\]", "Thing"),
        ({"foo": [0, 0, 0, print]}, r"/foo\[3\]", "builtin_function_or_method"),
        (Colour.RED, "", "Colour"),
        (Pair(1, 2), "", "Pair"),
        ({"rng": random.SystemRandom()}, "/rng", "SystemRandom"),
        ([np.array([object()])], r"\[0\]", "dtype object"),
        ([np.ma.masked_array([1], [True])], r"\[0\]", "MaskedArray"),
        ({"a": {Thing(): 1}}, "/a", "a key of type test_state_tree.Thing"),
        ([{(1, Thing())}], r"\[0\]", "Thing"),
        (defaultdict(Thing), "", "defaultdict of other than a built-in type"),
        (ITSELF, r"\[0\]\[0\]\[0\].*", "contains itself"),
    ],
)
def test_the_error_says_where_and_what(value: Any, place: str, named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^callbacks/My:0{place}='[^']*': ") as caught:
        pack(value, "callbacks/My:0")
    assert named in str(caught.value)
    assert "get_state() and set_state(state)" in caught.value.hint


@pytest.mark.parametrize(
    "document",
    [{"new": 1}, {"array": 7}, {}, {"int": "x"}, {"scalar": ["<f4", "AAAAAAA="]}, {"scalar": ["no", ""]}],
)
def test_an_unreadable_document_raises_our_error(document: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="not a state that this ckptstore can read"):
        unpack([document], {}, "x")


def test_no_backend_is_imported() -> None:
    program = (
        "import sys; from ckptstore.keras.state.tree import pack, unpack; unpack(*pack([1, {2: 3.0}], 'a'), 'a');"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"keras", "torch", "jax", "tensorflow"} & set(done.stdout.split())
