"""Tests of tensors, variables and generators of the present backend as plain state, and back."""

from __future__ import annotations

import json
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest

from ckptstore.errors import InvalidArgumentError
from ckptstore.keras.state.backend_arrays import as_numpy
from ckptstore.keras.state.tree import pack, unpack

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
BACKEND = keras.backend.backend()
DTYPES = ["float32", "float16", "bfloat16", "int32", "uint8", "bool", "float8_e4m3fn", "float8_e5m2"]


def there_and_back(value: Any) -> Any:
    document, arrays = pack(value, "state")
    return unpack(json.loads(json.dumps(document, allow_nan=False)), arrays, "state")


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_restored_as_arrays(dtype: str) -> None:
    values = np.array([[0, 1, 2], [1, 0, 3]]).astype(getattr(ml_dtypes, dtype, dtype))
    tensor = keras.ops.convert_to_tensor(values.astype("float32"))
    tensor = keras.ops.cast(tensor, dtype)
    found = there_and_back({"t": tensor})["t"]
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape, found.tobytes()) == (values.dtype, values.shape, values.tobytes())


def test_variables_and_scalars_are_restored_as_arrays() -> None:
    variable = keras.Variable(np.arange(6, dtype="float32").reshape(2, 3), name="v")
    found = there_and_back([variable, keras.ops.sum(variable)])
    assert found[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found[1].shape == () and found[1] == 15
    variable.assign(variable * 0)
    assert found[0][1, 2] == 5


def test_a_seed_generator_is_set_in_place() -> None:
    generator = keras.random.SeedGenerator(3)
    generator.next()
    saved = there_and_back(generator)
    expected = [np.asarray(keras.ops.convert_to_numpy(generator.next())).tolist() for _ in range(2)]
    again = keras.random.SeedGenerator(99)
    saved.apply(again)
    assert [np.asarray(keras.ops.convert_to_numpy(again.next())).tolist() for _ in range(2)] == expected


@pytest.mark.skipif(BACKEND != "torch", reason="is torch's")
def test_kinds_of_torch_tensors() -> None:
    import torch

    generator = torch.Generator().manual_seed(3)
    torch.rand(3, generator=generator)
    saved = there_and_back(generator)
    expected = torch.rand(5, generator=generator).tolist()
    again = torch.Generator()
    saved.apply(again)
    assert torch.rand(5, generator=again).tolist() == expected
    with pytest.raises(InvalidArgumentError, match="torch/cpu"):
        saved.apply(np.random.default_rng())

    parameter = torch.nn.Parameter(torch.ones(2, 3).T)
    complex_ = torch.tensor([1 + 2j]).conj()
    found = there_and_back([parameter, complex_, torch.tensor(5, dtype=torch.uint16)])
    assert found[0].tolist() == [[1, 1]] * 3
    assert found[1].tolist() == [1 - 2j]
    assert found[2].dtype == np.uint16
    with pytest.raises(InvalidArgumentError, match=r"state\[0\]='torch.Tensor': .*only dense tensors"):
        pack([torch.eye(3).to_sparse()], "state")


@pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
def test_kinds_of_jax_arrays() -> None:
    import jax

    key = jax.random.key(3)
    with pytest.raises(InvalidArgumentError, match=r"state/key=.*jax\.random\.key_data\(key\)"):
        pack({"key": key}, "state")
    data = there_and_back(jax.random.key_data(key))
    assert (jax.random.wrap_key_data(data) == key).all()

    def traced(value: Any) -> Any:
        with pytest.raises(InvalidArgumentError, match="symbolic"):
            pack(value, "state")
        return value

    jax.jit(traced)(1.0)


def test_other_values_belong_to_no_backend() -> None:
    assert as_numpy(3) is None and as_numpy([1]) is None and as_numpy(object()) is None
