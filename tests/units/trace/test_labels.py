import torch
from torch import tensor
from torch.testing import assert_close

from pliant.units.trace.labels import NONE, Labels, by_position, compress, uniform


def three_atoms() -> Labels:
    labels = Labels()
    assert labels.atoms(3) == 0
    return labels


def test_an_atom_is_its_own_label():
    labels = three_atoms()
    assert labels.members(2) == {2}
    assert labels.union([2, 2, NONE]) == 2


def test_equal_sets_have_equal_labels_however_they_were_made():
    labels = three_atoms()
    assert labels.union([labels.union([0, 1]), 2]) == labels.union([2, 1, 0])
    assert labels.members(labels.union([0, 2])) == {0, 2}


def test_atoms_that_come_later_do_not_meet_the_labels_of_sets():
    labels = three_atoms()
    pair = labels.union([0, 1])
    later = labels.atoms(2)
    assert pair == 3
    assert later == 4
    assert labels.smallest().tolist() == [0, 1, 2, 0, 4, 5]


def test_join_is_the_union_of_what_meets_and_none_adds_nothing():
    labels = three_atoms()
    joined = labels.join(tensor([[0], [NONE]]), tensor([[1, 0, NONE]]))
    assert joined.tolist() == [[labels.union([0, 1]), 0, 0], [1, 0, NONE]]


def test_reduce_is_the_union_along_axes_and_keeps_the_others_apart():
    labels = three_atoms()
    heads = tensor([[0, 1], [2, NONE]])
    assert labels.reduce(heads, (1,)).tolist() == [[labels.union([0, 1])], [2]]
    assert labels.reduce(heads, (0, 1)).tolist() == [[labels.union([0, 1, 2])]]


def test_uniform_passes_over_what_has_no_label():
    assert uniform(tensor([[0, NONE], [0, 1]]), (0,)).tolist() == [[0, 1]]
    assert uniform(tensor([[0, 1], [1, 1]]), (0,)) is None


def test_compressed_labels_broadcast_back():
    full = tensor([[0, 1], [0, 1]])[:, :, None].expand(2, 2, 5)
    assert compress(full).shape == (1, 2, 1)
    assert_close(compress(full).expand(2, 2, 5), full)
    assert compress(tensor([[0, 1], [1, 0]])).shape == (2, 2)


def test_positions_have_a_label_only_if_no_other_axis_matters():
    channels = torch.arange(3).view(1, 3, 1).expand(2, 3, 4)
    assert by_position(channels, 1).tolist() == [0, 1, 2]
    assert by_position(channels, -1) is None
