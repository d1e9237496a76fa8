import numpy as np
import pytest
import torch
from scipy import stats

from pliant.engine import normal_stream
from pliant.engine.normal_stream import random_bits, standard_normal
from pliant.streams import random_bits as plain_bits
from pliant.streams import stream_key


def test_the_bits_are_those_of_the_plain_stream():
    keys = [stream_key(3, "one"), stream_key(3, "another")]
    starts = torch.tensor([[key - 2**64 if key >= 2**63 else key] for key in keys])
    found = random_bits(starts, 5, 1000).numpy().view(np.uint64)
    for row, key in zip(found, keys, strict=True):
        assert (row == plain_bits(key, np.arange(5, 1005, dtype=np.uint64))).all()


def test_two_numbers_come_of_each_64_bits_by_box_and_muller():
    key = stream_key(0, "example")
    (bits,) = plain_bits(key, np.arange(1, dtype=np.uint64)).tolist()
    u, v = ((bits & 0xFFFFFF) + 1) / 2**24, (bits >> 40) / 2**24
    radius = np.sqrt(-2 * np.log(u))
    expected = [radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)]
    assert standard_normal([key], 2)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_number_depends_on_its_key_and_position_alone(monkeypatch):
    many = standard_normal([5, 6, 7], 70_001)
    assert torch.equal(standard_normal([6], 70_001)[0], many[1])
    assert torch.equal(standard_normal([6], 333)[0], many[1, :333])
    monkeypatch.setattr(normal_stream, "IN_CACHE", 10**9)
    assert torch.equal(standard_normal([5, 6, 7], 70_001), many)


def test_the_numbers_are_normal_and_keys_are_unrelated():
    drawn = standard_normal([stream_key(0, "step", step) for step in range(20)], 100_000).double()
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01
    correlations = torch.corrcoef(drawn) - torch.eye(20)
    assert correlations.abs().max() < 0.02
    neighbours = torch.corrcoef(torch.stack([drawn[:, :-1].flatten(), drawn[:, 1:].flatten()]))
    assert neighbours[0, 1].abs() < 0.005


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_looks_up_the_same_numbers():
    torch.testing.assert_close(standard_normal([5, 6], 100_001, "cuda").cpu(), standard_normal([5, 6], 100_001))
