"""Tests of repeated copies of variables of every kind and size into several lists of targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ckptstore import CheckpointStore, StoreCheckpoint
from ckptstore.keras.model import copy_jax
from ckptstore.keras.model.copy import Copier
from ckptstore.keras.state.arrays import host_array, host_arrays, shape_and_dtype
from ckptstore.system import parallel_copy
from ckptstore.system.parallel_copy import ParallelCopy
from ckptstore.system.small_copies import SmallCopies
from forbidden_calls import needs_the_number, output_of
from shared_targets import shared_targets

# Warnings from Keras' own code.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
BACKEND = keras.backend.backend()
# Enough small arrays for more than one thread on torch.
SHAPES = [(), (0,), (3,), (2, 3), (700, 800), (513, 1025), *[(200, 60)] * 800]
DTYPES = ["float32", "float16", "bfloat16", "int32", "uint8", "bool"]


def variable(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    made = keras.Variable(np.zeros(shape), dtype=dtype, trainable=False, name="v")
    change(made, 1)
    return made


def change(variable: Any, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2 if variable.dtype == "bool" else 100, variable.shape)
    variable.assign(keras.ops.cast(keras.ops.convert_to_tensor(values.astype("float32")), variable.dtype))


def places(variables: list[Any]) -> list[np.ndarray]:
    return [np.zeros(*shape_and_dtype(variable)) for variable in variables]


def be_computed(variable: Any, step: Callable[[Any], Any]) -> None:
    """Give a variable a value that is still being computed when this returns, even if the machine halts meanwhile."""
    import jax

    compute = jax.jit(lambda x, steps: jax.lax.fori_loop(0, steps, lambda _, y: step(y), x))
    compute(variable.value, 1).block_until_ready()
    for doubled in range(8):
        variable._value = compute(variable.value * 0.5, 20_000 << doubled)
        if not variable._value.is_ready():
            return
    raise AssertionError("it is always there at once")


def assert_equal(targets: list[np.ndarray], variables: list[Any]) -> None:
    for target, variable in zip(targets, variables, strict=True):
        assert target.tobytes() == host_array(variable).tobytes(), variable.shape


@pytest.mark.parametrize("make", [places, shared_targets])
def test_all_present_values_are_copied_into_each_list_of_targets(make: Any) -> None:
    variables = [*(variable(shape) for shape in SHAPES), *(variable((5, 7), dtype) for dtype in DTYPES)]
    variables += [variable((900, 1000), dtype) for dtype in DTYPES]
    copier = Copier(variables)
    first, second = make(variables), make(variables)

    copier(first)
    assert_equal(first, variables)
    for seed, changed in enumerate(variables):
        change(changed, seed)
    copier(second)
    assert_equal(second, variables)
    copier(first)
    assert_equal(first, variables)


def test_values_that_are_not_variables_are_copied_too() -> None:
    values = [np.arange(3.0), variable((2,)), keras.ops.ones((1 << 19,))]
    targets = [np.zeros(3), np.zeros(2, "float32"), np.zeros(1 << 19, "float32")]
    Copier(values)(targets)
    assert targets[0].tolist() == [0.0, 1.0, 2.0]
    assert_equal(targets[1:2], values[1:2])
    assert targets[2].all()


def test_plain_numbers_are_copied_too() -> None:
    targets = [np.zeros((), int), np.zeros(2), np.zeros(2, "float32")]
    Copier([3, [1.5, 2.5], variable((2,))])(targets)
    assert targets[0] == 3
    assert targets[1].tolist() == [1.5, 2.5]


@keras.saving.register_keras_serializable("tests")
class Counting(keras.layers.Layer):  # type: ignore[misc]
    """Saves a plain number with its weight."""

    def build(self, shape: Any) -> None:
        self.weight = self.add_weight(shape=(2,))
        self.count = 3

    def call(self, inputs: Any) -> Any:
        return inputs * self.weight

    def save_own_variables(self, store: Any) -> None:
        store["0"] = self.weight
        store["count"] = self.count

    def load_own_variables(self, store: Any) -> None:
        self.weight.assign(store["0"])
        self.count = int(np.array(store["count"]))


def test_a_layer_that_saves_a_number_is_saved_in_the_background(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), Counting()])
    model.compile("sgd", "mse")
    x = np.ones((4, 2), "float32")
    model.fit(x, x, verbose=0, epochs=2, callbacks=[StoreCheckpoint(tmp_path, monitor="loss")])
    model.layers[-1].count = 0
    with CheckpointStore(tmp_path) as store:
        assert len(store.checkpoints()) == 2
        store.restore("latest", model)
    assert model.layers[-1].count == 3


@pytest.mark.parametrize("shape", [(4,), (1 << 20,)])
def test_a_value_of_another_dtype_is_not_cast(shape: tuple[int, ...]) -> None:
    ones = variable(shape)
    target = np.zeros(shape, "int32")
    with pytest.raises(TypeError):
        Copier([ones])([target])
    assert not target.any()


@pytest.mark.parametrize("shape", [(4,), (1 << 20,)])
def test_a_value_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    target = np.zeros(shape, "float32")
    with pytest.raises((ValueError, RuntimeError)):
        Copier([variable((3, *shape))])([target])
    # A shape that numpy and torch would broadcast.
    ones = variable(shape)
    copier = Copier([ones])
    copier([target])
    before = target.copy()
    if BACKEND != "tensorflow":
        places = [target]
        copier(places)
        _become(ones, ones.value[:1])
        with pytest.raises(ValueError, match="shape"):
            copier(places)
    assert np.array_equal(target, before)


@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
def test_an_array_without_a_buffer_is_copied_too() -> None:
    import jax
    from jax.experimental import layout

    plain = np.arange(12, dtype="float32").reshape(3, 4)
    odd = [np.asfortranarray(plain)]
    # JAX's CPU backend had no other layouts before that.
    if hasattr(layout, "Format"):
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        odd.append(jax.device_put(plain, layout.Format(layout.Layout((1, 0)), device)))
    for value in odd:
        values = [variable((3, 4)), value, variable((2,))]
        targets = shared_targets(values)
        copier = Copier(values)
        for _ in range(2):
            copier(targets)
            assert_equal(targets, values)
            targets[1][...] = 0


class Many:
    """Enough small values to be copied by more than one thread, on JAX.

    Attributes:
        values: What is copied.
        targets: Where to.
        copier: What copies them.
        plan: What it has found out for these targets.
    """

    def __init__(self, values: list[Any], *, threads: int = 2) -> None:
        self.values = values
        self.targets = shared_targets(values)
        self.copier = Copier(values)
        self.copier._parallel_copy = ParallelCopy(threads)
        self.copier.prepare(self.targets)
        (self.plan,) = (known for _, known in self.copier._known.values())
        assert self.plan._shared is not None

    def assert_copied(self) -> None:
        """Copy and compare."""
        self.copier(self.targets)
        assert_equal(self.targets, self.values)
        # Sharing was not given up.
        assert self.plan._shared is not None


def many_small() -> list[Any]:
    return [variable((200, 60)) for _ in range(800)]


@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
@pytest.mark.parametrize("threads", [2, 4])
def test_enough_small_arrays_are_copied_by_more_than_one_thread(threads: int) -> None:
    many = Many([variable(shape) for shape in SHAPES], threads=threads)
    (own,), shared = many.plan._mapped, many.plan._shared
    sizes = [target.nbytes for target in many.targets]
    small = sum(size for size in sizes if size < 1 << 20)
    large, helpers = sum(sizes) - small, threads - 1
    # The kernel is slower by this factor, so that helpers and loop end together.
    assert abs((large + 1.35 * shared.nbytes) / helpers - (small - shared.nbytes)) < 1 << 17
    assert 1 <= len(shared.copies._groups) <= helpers
    assert sorted([*own.places, *shared.places]) == [
        place for place, size in enumerate(sizes) if size < 1 << 20
    ]
    for seed in (1, 2):
        for value in many.values:
            change(value, seed)
        many.assert_copied()
    assert many.plan._shared is shared


MB = 1 << 20


@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
@pytest.mark.parametrize(
    ("small", "large", "threads", "calls"),
    [
        (40 * MB, 0, 2, 1),
        (100 * MB, 0, 4, 3),
        # There is enough to copy for one helper.
        (20 * MB, 0, 4, 1),
        (18 * MB, 0, 2, 0),
        (40 * MB, 0, 1, 0),
        # Helpers have enough to do with the large ones, or have time for one call.
        (40 * MB, 200 * MB, 4, 0),
        (50 * MB, 100 * MB, 4, 1),
    ],
)
def test_all_threads_end_together(small: int, large: int, threads: int, calls: int) -> None:
    shared, found = copy_jax._share(small, large=large, threads=threads)
    assert found == calls
    if found:
        helpers = min(threads - 1, (shared + large) // (8 * MB))
        assert (large + 1.35 * shared) / helpers == pytest.approx(small - shared)


@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
@pytest.mark.parametrize(
    ("sizes", "threads", "calls", "pieces"),
    [
        # No call takes more than 1,024 pieces, and between two of its own a thread would wait.
        ([10_000] * 8_000, 2, 1, 1024),
        ([10_000] * 8_000, 3, 2, 2048),
        # The loop copies all that are smaller than a page; the rest is worth one thread.
        ([4_000] * 12_000 + [60_000] * 200, 4, 1, 200),
    ],
)
def test_each_helper_has_one_call(sizes: list[int], threads: int, calls: int, pieces: int) -> None:
    targets = shared_targets([np.zeros(size // 8) for size in sizes])
    shared = copy_jax.JaxCopies(targets, threads=threads)._shared
    assert shared is not None
    assert (len(shared.copies._groups), len(shared.places)) == (calls, pieces)


@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
@pytest.mark.parametrize("place", [0, 1, 300, 799])
def test_only_the_array_without_a_buffer_is_copied_by_numpy(place: int) -> None:
    values = many_small()
    # Like an array of several devices, or of a device with its own memory.
    values[place] = np.asfortranarray(np.random.default_rng(0).random((200, 60), np.float32))
    many = Many(values)
    for seed in (1, 2):
        change(values[400], seed)
        many.assert_copied()
        assert many.plan._others == [place]


@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
def test_a_value_among_many_that_is_being_computed_is_waited_for() -> None:
    import jax

    many = Many(many_small())
    be_computed(many.values[many.plan._shared.places[5]], lambda y: jax.numpy.cos(y) * 0.9)
    many.assert_copied()


@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
def test_a_deleted_array_among_many_is_refused() -> None:
    many = Many(many_small())
    gone = many.values[many.plan._shared.places[5]]
    gone._value.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        many.copier(many.targets)
    # One failed copy does not affect the others.
    change(gone, 1)
    many.assert_copied()


@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
def test_several_threads_copy_the_state_of_a_fit_as_it_was_after_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps reuse the memory of the arrays that were copied, and write into it."""
    monkeypatch.setattr(parallel_copy, "MIN_BYTES_PER_THREAD", 1)
    monkeypatch.setattr(parallel_copy, "usable_cores", lambda: 2)
    monkeypatch.setattr(copy_jax, "MIN_BYTES_PER_THREAD", 1)
    monkeypatch.setattr(copy_jax, "_PAGE", 1)
    copied: list[int] = []
    jobs = SmallCopies.jobs
    monkeypatch.setattr(
        SmallCopies, "jobs", lambda self, values: copied.append(len(values)) or jobs(self, values)
    )
    seen: list[list[bytes]] = []

    class Sees(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(state(self.model))

    def state(model: Any) -> list[bytes]:
        return [host_array(variable).tobytes() for variable in (*model.variables, *model.optimizer.variables)]

    layers = [keras.layers.Dense(32) for _ in range(6)]
    model = keras.Sequential([keras.Input((32,)), *layers])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x = np.random.default_rng(0).random((16, 32), np.float32)
    saver = StoreCheckpoint(tmp_path, monitor="loss", save_freq=1, backpressure="wait")
    model.fit(x, x, batch_size=2, epochs=1, verbose=0, callbacks=[saver, Sees()])
    assert min(copied) > 10
    assert len(copied) >= 8
    with CheckpointStore(tmp_path) as store:
        saved = [checkpoint for checkpoint in store.checkpoints() if checkpoint.batch is not None]
        assert len(saved) == len(seen) == 8
        for checkpoint, expected in zip(saved, seen, strict=True):
            store.restore(checkpoint, model)
            assert state(model) == expected


FORBIDDEN = """
import numpy as np, jax
from ckptstore.system.parallel_copy import ParallelCopy
from ckptstore.keras.model.copy_jax import JaxCopies
from forbidden_calls import forbid
from shared_targets import shared_targets

values = [jax.numpy.full((200, 60), number, "float32") for number in range(800)]
targets = shared_targets(values)
copies = JaxCopies(targets, threads=2)
assert copies._shared is not None
forbid("process_vm_readv")
for _ in range(2):
    copies(values, ParallelCopy(2))
    assert all(np.array_equal(*pair) for pair in zip(targets, values, strict=True))
    assert copies._shared is None and not copies._others
    targets[700][...] = 0
print("copied")
"""


@needs_the_number
@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
def test_the_loop_copies_if_the_kernel_may_not() -> None:
    assert output_of(FORBIDDEN) == "copied\n"


@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
def test_a_deleted_array_is_refused() -> None:
    deleted = variable((3, 4))
    copier, targets = Copier([deleted]), shared_targets([deleted])
    copier(targets)
    deleted._value.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        copier(targets)


@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
def test_a_small_array_that_is_being_computed_is_waited_for() -> None:
    import jax

    computed = variable((64, 64))
    copier, targets = Copier([computed]), shared_targets([computed])
    be_computed(computed, lambda y: jax.numpy.tanh(y @ y))
    copier(targets)
    assert_equal(targets, [computed])


@pytest.mark.skipif(BACKEND != "torch", reason="torch casts what it copies")
def test_a_tensor_whose_dtype_has_changed_is_refused() -> None:
    ones = variable((4,))
    copier, places = Copier([ones]), [np.zeros(4, "float32")]
    copier(places)
    _become(ones, ones.value.double())
    with pytest.raises(TypeError, match="dtype"):
        copier(places)


def _become(variable: Any, value: Any) -> None:
    if BACKEND == "torch":
        variable._value.data = value.data
    else:
        variable._value = value


@pytest.mark.skipif(BACKEND != "torch", reason="is torch's")
def test_copies_in_threads_record_no_gradients() -> None:
    variables = [keras.Variable(np.ones((200, 100), "float32"), name="v") for _ in range(800)]
    targets = places(variables)
    copier = Copier(variables)
    copier(targets)
    (plan,) = (known for _, known in copier._known.values())
    assert len(plan._groups) > 2
    assert not any(tensor.requires_grad for group in plan._groups for tensor in group.targets)
    assert_equal(targets, variables)


def test_values_read_together_equal_those_read_one_by_one() -> None:
    values = [*(variable(shape) for shape in SHAPES[:6]), *(variable((5, 7), dtype) for dtype in DTYPES)]
    values += [np.arange(6.0).reshape(2, 3).T, keras.Variable([1.0, 2.0], trainable=True)]
    found = list(host_arrays(values))
    assert len(found) == len(values)
    for array, value in zip(found, values, strict=True):
        expected = host_array(value)
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        assert array.flags.c_contiguous
        assert array.tobytes() == expected.tobytes()


@pytest.mark.skipif(BACKEND != "torch", reason="is torch's")
def test_tensors_with_other_strides_are_read_correctly() -> None:
    import torch

    plain = torch.arange(6.0).reshape(2, 3)
    complex_ = torch.tensor([1 + 2j, 3 - 4j])
    for tensor in (plain.T, plain[:, ::2], complex_.conj(), complex_.conj().imag, plain.requires_grad_()):
        (found,) = host_arrays([tensor])
        assert found.flags.c_contiguous
        assert found.tolist() == tensor.tolist()
    (view,) = host_arrays([plain])
    assert np.shares_memory(view, plain.detach().numpy())
