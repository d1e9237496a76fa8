"""Any state comes back to the bit; any other bytes in its place are refused in a line."""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from pliant.lab.errors import LabError
from pliant.lab.stored.checkpoint import from_bytes, to_bytes
from pliant.lab.stored.store import stored_state
from tests.fuzz.odd import MANY, a_sentence
from tests.fuzz.own import same

dtypes = st.sampled_from(["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
arrays = dtypes.flatmap(
    lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
turned = arrays.map(lambda array: array.T)
tensors = st.sampled_from(["?", "u1", "i1", "i4", "i8", "f2", "f4", "f8"]).flatmap(
    lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)).map(
        torch.as_tensor
    )
)
halves = tensors.filter(lambda each: each.is_floating_point()).map(lambda each: each.to(torch.bfloat16))
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
scalars = st.one_of(st.integers(-9, 9).map(np.int16), st.floats(width=32).map(np.float32), st.booleans().map(np.bool_))
keys = st.one_of(
    st.sampled_from(["a", "b", "a.b", "0", 0, 1, "dict", "tuple", "array", "axes", "tensor"]),
    st.text(max_size=4),
    st.integers(),
)
values = st.recursive(
    st.one_of(plain, scalars, arrays, turned, tensors, halves),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)
states = st.dictionaries(keys, values, max_size=3)


@MANY
@given(state=states)
def test_a_state_comes_back_to_the_bit(state):
    assert same(from_bytes(to_bytes(state)), state)


@MANY
@given(state=states, data=st.data())
def test_bytes_that_are_no_state_are_refused(state, data):
    content = bytearray(to_bytes(state))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["change", "cut", "insert", "number"]))
        if how == "change":
            content[at] = data.draw(st.integers(0, 255))
        elif how == "cut" and at:
            del content[at : at + data.draw(st.integers(1, 9))]
        elif how == "insert":
            content[at:at] = data.draw(st.binary(max_size=9))
        else:
            content[:8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
        content = content or bytearray(b"x")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "000-1.safetensors").write_bytes(content)
        try:
            found = stored_state(Path(folder) / "000.sqlite", "000-1.safetensors", hashlib.sha256(content).hexdigest())
        except LabError as error:
            a_sentence(str(error))
        else:
            assert isinstance(found, dict)
