"""`observe_every`: averages that take in every k-th step of a group, and everything else at each."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import ContinualBackprop, RandomReplacement, chain_groups
from pliant.engine import taken_steps
from tests.methods.promises import PROMISES, row_of
from tests.methods.runs import Cell
from tests.networks import enough, mlp, train

CONTINUAL_BACKPROP = row_of("continual backprop")
EVERY_SECOND = replace(CONTINUAL_BACKPROP, settings={**CONTINUAL_BACKPROP.settings, "observe_every": 2})


class TwoUnits:
    """Two hidden units that pass on what they are shown, read with weights -0.5 and 3; nothing learns."""

    def __init__(self, kind=ContinualBackprop, *, fused=False, **settings):
        self.model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        with torch.no_grad():
            self.model[0].weight.copy_(torch.eye(2))
            self.model[0].bias.zero_()
            self.model[2].weight.copy_(torch.tensor([[-0.5, 3.0]]))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, fused=fused)
        settings = {
            "replacement_rate": 0.0,
            "decay_rate": 0.5,
            "observe_every": 2,
            "groups": chain_groups(self.model),
            **settings,
        }
        self.method = kind(
            self.model, self.optimizer, init=lambda name, shape, generator: torch.ones(shape), seed=0, **settings
        )

    def show(self, *activities):
        """A step for each, in which both units are so active."""
        for activity in activities:
            self.model(torch.full((3, 2), activity)).sum().backward()
            self.optimizer.step()
        return self

    def utilities(self):
        return self.method.utilities()["0"][0]

    def means(self):
        return self.method.score.mean(self.method.groups[0])[0, :, 0]


def test_an_average_takes_in_every_second_step_at_its_decay_squared_and_is_corrected_by_those_alone():
    units, sizes = TwoUnits(), torch.tensor([0.5, 3.0])
    assert not units.show(10.0).utilities().any()  # nothing was observed so far
    assert_close(units.show(2.0).utilities(), 2.0 * sizes)
    assert_close(units.show(99.0).utilities(), 2.0 * sizes)
    # 0.75 x (0.25 x 2 + 4) / (1 - 0.25²)
    assert_close(units.show(4.0).utilities(), 3.6 * sizes)
    assert_close(units.means(), torch.tensor([3.6, 3.6]))
    assert units.method.ages()["0"].tolist() == [[4, 4]]


def test_a_unit_that_is_new_between_two_observations_is_worth_what_the_next_one_says():
    units = TwoUnits(
        replacement_rate=1 / 6, maturity_threshold=2
    )  # of 2 mature units from step 3 on: 1 is due in step 5
    units.show(1.0, 1.0, 1.0, 1.0, 7.0)
    assert units.method.ages()["0"].tolist() == [[0, 5]]
    assert units.method.stats()["0"]["replaced"] == [1]
    with torch.no_grad():
        units.model[2].weight[0, 0] = 2.0
    units.show(5.0)  # the new unit sums its two inputs
    assert_close(units.utilities()[0], torch.tensor(2.0 * 10.0))
    assert_close(units.means()[0], torch.tensor(10.0))


def test_what_is_handed_over_is_the_mean_of_observed_steps():
    units = TwoUnits(RandomReplacement, replacement_rate=0.25, maturity_threshold=2)  # 1 is due in step 4
    before = units.model[2].bias.item()
    units.show(9.0, 2.0, 9.0, 4.0)
    assert units.method.stats()["0"]["replaced"] == [1]
    replaced = units.method.ages()["0"][0].argmin()
    assert units.model[2].bias.item() - before == pytest.approx([-0.5, 3.0][replaced] * 3.6)


def test_between_observations_nothing_is_recorded():
    units = TwoUnits()
    recorded = []
    for _ in range(4):
        units.model(torch.ones(3, 2)).sum().backward()
        recorded.append(units.method.recorded()["0"])
        units.optimizer.step()
    assert recorded == [0, 3, 0, 3]


def test_a_group_that_does_not_run_keeps_its_clock():
    units = TwoUnits().show(1.0)
    units.model.eval()
    units.show(8.0, 8.0)
    units.model.train()
    assert_close(units.show(2.0).utilities(), 2.0 * torch.tensor([0.5, 3.0]))
    assert units.method.ages()["0"].tolist() == [[2, 2]]


def test_as_many_units_go_at_the_same_steps():
    told = []
    for every in (1, 3):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        seen = []
        method = ContinualBackprop(
            model,
            optimizer,
            groups=chain_groups(model),
            replacement_rate=0.05,
            maturity_threshold=5,
            observe_every=every,
            seed=0,
            on_replace=lambda each, seen=seen: seen.append((each.group, each.step, len(each.units))),
        )
        train(model, optimizer, range(100))
        enough(method)
        told.append((seen, method.stats()))
    assert told[0] == told[1]


@pytest.mark.parametrize("taken", [[1, 1, 1, 1], [1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 0, 1, 1]])
def test_steps_that_the_device_alone_knows_of_are_counted_in_time(monkeypatch, taken):
    """As on CUDA, where the host learns of a step when the next one ends."""
    monkeypatch.setattr(taken_steps, "known_at_once", lambda flag: False)
    units = TwoUnits(fused=True)
    observed = iter([9.0, 2.0, 9.0, 4.0])
    for was in taken:
        units.optimizer.found_inf = torch.tensor(0.0 if was else 1.0)
        units.show(next(observed) if was else 50.0)
    assert units.method.stats()["0"]["steps"] == 4
    assert_close(units.utilities(), 3.6 * torch.tensor([0.5, 3.0]))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_with_a_mask_a_unit_without_a_real_position_stays_as_useful_as_it_was(monkeypatch, every, late):
    monkeypatch.setattr(taken_steps, "known_at_once", lambda flag: not late)
    units = TwoUnits(fused=True, observe_every=every, mask=lambda x: units.real)
    units.optimizer.found_inf = torch.tensor(0.0)
    units.real = torch.tensor([True, True, False])
    before = units.show(9.0, 2.0, 9.0, 4.0).utilities().clone()
    assert before.all()
    units.real = torch.zeros(3, dtype=torch.bool)
    assert_close(units.show(70.0, 70.0).utilities(), before)


def test_it_is_part_of_the_state():
    units = TwoUnits().show(9.0, 2.0, 9.0)
    state = units.method.state_dict()
    again = TwoUnits()
    again.method.load_state_dict(state)
    assert_close(again.show(4.0).utilities(), 3.6 * torch.tensor([0.5, 3.0]))
    with pytest.raises(ValueError, match="was saved with observe_every = 2, here it is 1"):
        TwoUnits(observe_every=1).method.load_state_dict(state)


def test_a_state_of_a_version_without_it_observed_every_step():
    state = TwoUnits(observe_every=1).show(1.0, 2.0).method.state_dict()
    assert "observe_every" not in state["settings"]
    again = TwoUnits(observe_every=1)
    again.method.load_state_dict(state)
    assert again.method.ages()["0"].tolist() == [[2, 2]]
    with pytest.raises(ValueError, match="was saved with observe_every = 1, here it is 2"):
        TwoUnits().method.load_state_dict(state)


@pytest.mark.parametrize("kind", [ContinualBackprop, RandomReplacement])
def test_a_unit_must_not_be_mature_before_it_is_observed(kind):
    with pytest.raises(ValueError, match="observe_every is 5 steps, but units older than maturity_threshold, 3 steps"):
        TwoUnits(kind, observe_every=5, maturity_threshold=3)
    TwoUnits(kind, observe_every=4, maturity_threshold=3)


@pytest.mark.parametrize(
    "promise", [each for each in PROMISES if each.__name__ not in EVERY_SECOND.cannot], ids=lambda each: each.__name__
)
def test_promises_are_kept(promise):
    promise(Cell(EVERY_SECOND, "mlp", "adam"))
