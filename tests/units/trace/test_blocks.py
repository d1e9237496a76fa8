"""Blocks of a parameter as integers, against the sets of elements that they stand for."""

import pytest
import torch

from pliant.units.trace import blocks
from pliant.units.trace.labels import NONE

SHAPES = [(6,), (2, 3), (3, 1), (2, 3, 4), ()]


def held(shape, block):
    """The flat elements in a block."""
    every = torch.arange(torch.Size(shape).numel())
    digits = [int(each) for each in blocks.digits(shape, torch.tensor(block))]
    where = torch.unravel_index(every, shape or (1,))
    inside = torch.ones_like(every, dtype=torch.bool)
    for at, digit in zip(where, digits, strict=True):
        inside &= (at == digit - 1) | (digit == 0)
    return set(every[inside].tolist())


@pytest.mark.parametrize("shape", SHAPES)
def test_an_element_s_block_holds_this_element_alone(shape):
    every = torch.arange(torch.Size(shape).numel())
    found = blocks.elements(shape, every)
    assert [held(shape, int(block)) for block in found] == [{int(each)} for each in every]
    assert blocks.elements(shape, torch.tensor([NONE])).tolist() == [NONE]


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_known_is_all_of_the_parameter(shape):
    assert held(shape, blocks.MANY) == set(range(torch.Size(shape).numel()))


def test_two_blocks_meet_in_the_smallest_that_holds_both():
    a, b = (
        blocks.elements((2, 3), torch.tensor([0, 0, 0, NONE, 4])),
        blocks.elements((2, 3), torch.tensor([0, 2, 4, 5, NONE])),
    )
    found = blocks.both((2, 3), a, b)
    assert [held((2, 3), int(block)) for block in found] == [{0}, {0, 1, 2}, set(range(6)), {5}, {4}]


def test_along_an_axis_the_others_stay_known():
    every = blocks.elements((2, 3), torch.arange(6)).view(2, 3)
    assert [held((2, 3), int(block)) for block in blocks.along((2, 3), every, (1,)).flatten()] == [{0, 1, 2}, {3, 4, 5}]
    assert [held((2, 3), int(block)) for block in blocks.along((2, 3), every, (0,)).flatten()] == [
        {0, 3},
        {1, 4},
        {2, 5},
    ]
    assert held((2, 3), int(blocks.along((2, 3), every, (0, 1)))) == set(range(6))
    partly = torch.where(torch.tensor([[True, False, False], [False, False, False]]), every, NONE)
    assert blocks.along((2, 3), partly, (1,)).flatten().tolist() == [int(every[0, 0]), NONE]


def test_rows_are_told_by_their_axis_and_position():
    every = blocks.elements((2, 3), torch.arange(6)).view(2, 3)
    found = blocks.by_axes(
        (2, 3), torch.cat([blocks.along((2, 3), every, (1,)).flatten(), every[1, :1], torch.tensor([0, NONE])])
    )
    assert {axes: positions.tolist() for axes, positions in found.items()} == {
        (0,): [0, 1, NONE, NONE, NONE],
        (0, 1): [NONE, NONE, 3, NONE, NONE],
        (): [NONE, NONE, NONE, 0, NONE],
    }
