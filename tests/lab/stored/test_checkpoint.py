"""What a state may hold comes back as it was, to the bit; what it may not is refused by name."""

import numpy as np
import pytest
import torch

from pliant.lab.stored.checkpoint import from_bytes, to_bytes


def test_numbers_strings_and_containers_come_back_with_their_types():
    state = {"a": 1, "b": 2**100, "c": -0.1, "d": True, "e": None, "f": "ü", "g": [1, (2, "x")], "h": {3: {"y": ()}}}
    back = from_bytes(to_bytes(state))
    assert back == state
    assert type(back["g"][1]) is tuple
    assert type(back["d"]) is bool


def test_nan_and_infinity_come_back():
    back = from_bytes(to_bytes({"numbers": [float("nan"), float("-inf")], "array": np.array([np.nan, -np.inf])}))
    assert np.isnan(back["numbers"][0])
    assert back["numbers"][1] == -np.inf
    np.testing.assert_array_equal(back["array"], [np.nan, -np.inf])


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_arrays_keep_dtype_shape_and_bits_and_can_be_written_to(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype) * np.ones((), dtype)
    array = np.asarray(array)
    back = from_bytes(to_bytes({"x": array}))["x"]
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    back[...] = 0


def test_memory_order_comes_back_because_sums_depend_on_it():
    fortran = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    channels_last = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    back = from_bytes(to_bytes({"a": fortran, "t": channels_last}))
    assert back["a"].strides == fortran.strides
    assert back["t"].stride() == channels_last.stride()
    np.testing.assert_array_equal(back["a"], fortran)
    assert torch.equal(back["t"], channels_last)


def test_tensors_and_arrays_share_a_file_and_stay_apart():
    weights = torch.randn(2, 3, dtype=torch.bfloat16)
    state = {"optimizer": {"state": {0: {"m": weights, "again": weights[:1]}}}, "ages": np.arange(3), "n": np.int64(7)}
    back = from_bytes(to_bytes(state))
    assert torch.equal(back["optimizer"]["state"][0]["m"], weights)
    assert torch.equal(back["optimizer"]["state"][0]["again"], weights[:1])
    assert isinstance(back["ages"], np.ndarray)
    assert isinstance(back["n"], np.int64)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.Philox, np.random.MT19937])
def test_a_generator_goes_on_where_it_was(kind, seed):
    stream = np.random.Generator(kind(seed))
    stream.standard_normal(3)
    resumed = np.random.Generator(kind(99))
    resumed.bit_generator.state = from_bytes(to_bytes({"stream": stream.bit_generator.state}))["stream"]
    np.testing.assert_array_equal(resumed.standard_normal(5), stream.standard_normal(5))


def test_entries_that_stand_at_one_place_by_their_names_stay_apart():
    state = {"a.b": np.array([1]), "a": {"b": np.array([2])}, "0": np.int8(3), 0: np.int8(4), "0'": np.int8(5)}
    found = from_bytes(to_bytes(state))
    assert [found["a.b"].item(), found["a"]["b"].item()] == [1, 2]
    assert (found["0"], found[0], found["0'"]) == (3, 4, 5)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"rng": np.random.default_rng()}}, r"state\.a\.rng is a Generator"),
        ({"a": [1, {2, 3}]}, r"state\.a\.1 is a set"),
        ({"a": np.array([object()])}, r"state\.a is a ndarray object"),
        ({"a": np.array(["x"])}, r"state\.a is a ndarray <U1"),
        ({"a": {1.5: 2}}, r"state\.a has the key 1\.5"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_its_name(state, message):
    with pytest.raises(TypeError, match=message):
        to_bytes(state)
