"""A unit's limit is a quantile of its own gaps between firings."""

import pytest
import torch
from torch import nn, tensor

from pliant import SelfNormalizedResets
from pliant.engine.firing_score import limits
from tests.networks import replaced


@pytest.mark.parametrize(
    ("gaps", "rejection", "limit"),
    [
        # of ten gaps seven were 1 step, two were 2 and one was 4: P(gap >= 1) = 1, >= 2: 0.3, >= 3 and >= 4: 0.1, >= 5: 0
        ([0, 7, 2, 0, 1, 0, 0], 1.0, 0),
        ([0, 7, 2, 0, 1, 0, 0], 0.9, 2),
        ([0, 7, 2, 0, 1, 0, 0], 0.3, 2),
        ([0, 7, 2, 0, 1, 0, 0], 0.29, 3),
        ([0, 7, 2, 0, 1, 0, 0], 0.1, 3),
        ([0, 7, 2, 0, 1, 0, 0], 0.09, 6),  # a share of 0.09 cannot be told from ten gaps: the longest
        ([0, 70, 20, 0, 10, 0, 0], 0.09, 5),  # from a hundred it can
        ([0, 0, 0, 0, 0, 0, 0], 0.5, 6),
        ([0, 9, 0, 0, 0, 0, 1], 0.1, 2),
        ([0, 9, 0, 0, 0, 0, 2], 0.1, 6),  # two of eleven were longer than all that is counted
    ],
)
def test_the_limit_is_the_least_silence_as_rare_as_the_rejection_rate(gaps, rejection, limit):
    assert limits(tensor([gaps]), rejection, shortest=0).tolist() == [limit]


def test_the_limit_is_at_least_the_shortest():
    assert limits(tensor([[0, 9, 0, 1, 0, 0]]), 0.1, shortest=4).tolist() == [4]


def fired(pattern, **settings):
    """A method, and the steps at which it reset the one unit, which fires at each 1 of the pattern; other units always do."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(tensor([[1.0], [0.0], [0.0]]))
        model[0].bias.copy_(tensor([0.0, 1.0, 1.0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    given = {"shortest": 0, "longest": 6, **settings}
    method = SelfNormalizedResets(model, optimizer, example_inputs=torch.ones(1, 1), init=one, **given)
    resets = []
    for step, fires in enumerate(pattern):
        x = tensor([[1.0 if fires == "1" else -1.0], [-1.0]])  # one example of two is enough
        model(x).sum().backward()
        optimizer.step()
        if method.ages()["0"][0, 0] == 0:
            resets.append(step)
    assert method.ages()["0"][0, 1:].tolist() == [len(pattern)] * 2
    return method, resets


def one(name, shape, generator):
    return torch.ones(shape)


def test_a_unit_is_reset_in_the_step_in_which_its_silence_reaches_its_limit():
    """Gaps 1, 1, 2, 1, 1, 2 and two silent steps: P(gap >= 2) = 1/3."""
    assert fired("11011101" + "00", rejection=0.34)[1] == [9]
    assert fired("11011101" + "00", rejection=0.33)[1] == []  # P(gap >= 3) = 0


def test_before_its_law_is_known_a_unit_is_given_the_longest():
    assert fired("11" + "00000", rejection=0.3)[1] == []
    assert fired("11" + "000000", rejection=0.3)[1] == [7]


def test_a_unit_that_never_fires_is_reset_after_the_longest_and_again():
    assert fired("0" * 14, rejection=0.0)[1] == [5, 11]


def test_a_reset_unit_has_no_history():
    method, _ = fired("11011101" + "00", rejection=0.34)
    (counts,), (silent,) = (list(kept.values()) for kept in (method.score._counts, method.score._silent))
    assert counts[0].sum(-1).tolist() == [0, 10, 10]
    assert silent.tolist() == [[0, 0, 0]]


def test_gaps_without_a_silent_step_count_or_not():
    """Gaps 1, 1, 2, 1, 2, 1, 1 and silence: of all, P(gap >= 2) = 2/7; of the silent ones it is 1, and P(gap >= 3) = 0."""
    assert fired("111011011100" + "000", rejection=0.5, gaps="all")[1] == [11]
    assert fired("111011011100" + "000", rejection=0.5, gaps="silent")[1] == [12]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rejection": 1.5}, r"rejection must lie in \[0, 1\]"),
        ({"longest": 0}, "longest must be 1 or more whole optimizer steps"),
        ({"longest": 5, "shortest": 6}, "shortest must be at most longest, 5, got 6"),
        ({"gaps": "none"}, "unknown gaps 'none'; known: all, silent"),
    ],
)
def test_bad_settings_are_named(settings, message):
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(ValueError, match=message):
        SelfNormalizedResets(model, optimizer, example_inputs=torch.ones(1, 1), **settings)


def test_it_counts_what_it_replaces():
    assert replaced(fired("0" * 14, rejection=0.0)[0]) == {"0": 2}
