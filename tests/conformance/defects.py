"""Implementations that are wrong in one thing each, as others' have been; each is told by the checks it fails."""

from itertools import pairwise

import torch
from torch import nn

from tests.conformance.plain import Plain

# -- which unit, and when -----------------------------------------------------------------------------------------------


class MostUseful(Plain):
    def usefulness(self, units):
        return -super().usefulness(units)


class CountsIncomingWeights(Plain):
    def contribution(self, units):
        return self.activity(units.h.abs()) * units.layer.weight.abs().mean(1)


class CountsWeightsAlone(Plain):
    def contribution(self, units):
        return units.after.weight.abs().mean(0)


class TakesTheLastOfEquals(Plain):
    def choose(self, units):
        mature = self.mature(units)
        due = self.count(units, int(mature.sum()))
        ranked = torch.where(mature, self.usefulness(units), torch.inf).flip(0).sort(stable=True).indices
        return len(mature) - 1 - ranked[:due]


class IgnoresDecay(Plain):
    def decay(self):
        return 0.0


class ComparesRawUtility(Plain):
    def usefulness(self, units):
        return units.utility


class KeepsUtility(Plain):
    def renew(self, units, chosen):
        units.age[chosen] = units.mean[chosen] = 0.0


class MatureOneStepEarly(Plain):
    def mature(self, units):
        return units.age >= self.settings.maturity_threshold


class KeepsAge(Plain):
    def renew(self, units, chosen):
        units.utility[chosen] = units.mean[chosen] = 0.0


# -- how many -----------------------------------------------------------------------------------------------------------


class TruncatesEachStep(Plain):
    def count(self, units, mature):
        return int(self.settings.replacement_rate * mature)


class AtLeastOne(Plain):
    def count(self, units, mature):
        return min(mature, max(1, super().count(units, mature)))


# -- weights ------------------------------------------------------------------------------------------------------------


class DrawsFromTheUnitInterval(Plain):
    def draw(self, units, chosen):
        super().draw(units, chosen)
        units.layer.weight[chosen] = self.uniform(units.layer.weight[chosen].shape)


class DrawsOneUnitForAll(Plain):
    def draw(self, units, chosen):
        super().draw(units, chosen)
        units.layer.weight[chosen] = units.layer.weight[chosen[0]].clone()


class KeepsBias(Plain):
    def draw(self, units, chosen):
        bias = None if units.layer.bias is None else units.layer.bias[chosen].clone()
        super().draw(units, chosen)
        if bias is not None:
            units.layer.bias[chosen] = bias


class DrawsTheOtherAxis(Plain):
    """Columns of the layer in front of the unit's own weights, too."""

    def draw(self, units, chosen):
        super().draw(units, chosen)
        inside = chosen[chosen < units.layer.weight.shape[1]]
        units.layer.weight[:, inside] = self.uniform((len(units.layer.weight), len(inside)))


class KeepsOutgoing(Plain):
    def cut(self, units, chosen):
        pass


class CutsTheWrongColumn(Plain):
    def cut(self, units, chosen):
        super().cut(units, chosen)
        units.after.weight[:, (chosen + 1) % len(units.age)] = 0.0


class HandsNothingOver(Plain):
    def hand_over(self, units, chosen):
        pass


class HandsSizeOver(Plain):
    """|h| for h, and not averaged over examples but summed."""

    def hand_over(self, units, chosen):
        units.after.bias += units.after.weight[:, chosen] @ units.h.abs().sum(0)[chosen]


class Unpaired(Plain):
    """Where nothing is known to read a unit, its incoming weights are drawn, and no more."""

    def contribution(self, units):
        return self.activity(units.h.abs()) if units.after is None else super().contribution(units)

    def replace(self, units, chosen):
        if units.after is not None:
            super().replace(units, chosen)
        elif len(chosen):
            self.draw(units, chosen)
            self.renew(units, chosen)


class ResetsTheOutputLayer(Unpaired):
    """All linear layers are hidden ones, unless the name says that one is a head."""

    def layers(self):
        name, last = list(self.model.named_children())[-1]
        return {**super().layers(), name: (last, last, None)}


class PairsByRegistration(Unpaired):
    """What is registered next and as wide is taken for what reads the units."""

    def layers(self):
        named = [(name, each) for name, each in self.model.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)]
        found = {}
        for (name, layer), (_, after) in pairwise(named):
            as_wide = isinstance(after, nn.Linear) and after.in_features == len(layer.weight)
            found[name] = (layer, layer, after if as_wide else None)
        return found

    def recorder(self, units, activation):
        record = super().recorder(units, activation)
        return lambda module, inputs, output: record(module, inputs, output.relu())

    def activity(self, h):
        return h.mean((0, 2, 3)) if h.dim() == 4 else super().activity(h)


class LeavesNorms(Plain):
    def layers(self):
        return {"0": (self.model[0], self.model[-2], self.model[-1])}


# -- the optimizer ------------------------------------------------------------------------------------------------------


class KeepsOptimizerState(Plain):
    def forgets(self, key):
        return False


class KeepsTheFirstMoment(Plain):
    def forgets(self, key):
        return key != "exp_avg"


class KeepsTheStepSizes(Plain):
    """The sizes of the old unit's gradients, by which the new one's steps are divided."""

    def forgets(self, key):
        return key != "exp_avg_sq"


class ForgetsEverything(Plain):
    def forget(self, units, chosen):
        for parameter in (units.layer.weight, units.after.weight):
            for held in self.remembered(parameter).values():
                if isinstance(held, torch.Tensor) and held.shape == parameter.shape:
                    held.zero_()


class FindsStateByPosition(Plain):
    def remembered(self, parameter):
        positions = {id(each): position for position, each in enumerate(self.model.parameters())}
        states = list(self.optimizer.state.values())
        return states[positions[id(parameter)]] if states and parameter is not None else {}


class ResetsBeforeTheStep(Plain):
    def step(self):
        with torch.no_grad():
            self.reset()
        self.optimizer.step()

    def forget(self, units, chosen):
        pass


class HalfAnOptimizer(torch.optim.Optimizer):
    def __init__(self, optimizer):
        self.optimizer, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state

    def step(self):
        self.optimizer.step()


class WrapsTheOptimizer(Plain):
    def attach(self, settings):
        super().attach(settings)
        self.optimizer = HalfAnOptimizer(self.optimizer)


# -- networks and batches -----------------------------------------------------------------------------------------------


class NeedsBiases(Plain):
    def attach(self, settings):
        super().attach(settings)
        for units in self.units.values():
            units.biases = units.layer.bias.detach()


class AveragesExamplesOneByOne(Plain):
    """A running average of the features as they are, with a batch axis."""

    def update(self, units):
        units.features = 0.99 * getattr(units, "features", torch.zeros_like(units.h)) + 0.01 * units.h
        super().update(units)


class TakesAxisOneForUnits(Plain):
    """Of any activity with more than two axes, as of a convolution."""

    def activity(self, h):
        if h.dim() == 2:
            return super().activity(h)
        found = torch.full((h.shape[-1],), torch.inf)
        found[: h.shape[1]] = h.transpose(0, 1).flatten(1).mean(1)
        return found


# -- training around it -------------------------------------------------------------------------------------------------


class KeepsTheGraph(Plain):
    """The features are an attribute of the network, with their history: no copy can be made of such a tensor."""

    def recorder(self, units, activation):
        def record(module, inputs, output):
            activation.features = output
            units.h = output.detach()

        return record


class ListensToCopies(Plain):
    def recorder(self, units, activation):
        def record(module, inputs, output):
            units.h = output.detach() if units.h is None else torch.cat([units.h, output.detach()])

        return record

    def update(self, units):
        super().update(units)
        units.h = None


class HoldsItsNeighbors(Plain):
    def attach(self, settings):
        super().attach(settings)
        self.model[1].out_layer = self.model[2]


class DrawsFromTheGlobalGenerator(Plain):
    def uniform(self, shape):
        return torch.rand(shape)


class IgnoresItsSeed(Plain):
    def attach(self, settings):
        super().attach(settings)
        self.generator.manual_seed(0)


class SavesNoAges(Plain):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        for units in self.units.values():
            units.age = torch.zeros_like(units.age)


FAILS = {  # the checks that tell each defect
    MostUseful: ["least-useful", "silent-first"],
    CountsIncomingWeights: ["least-useful"],
    CountsWeightsAlone: ["silent-first"],
    TakesTheLastOfEquals: ["ties"],
    IgnoresDecay: ["decay-rate"],
    ComparesRawUtility: ["bias-correction"],
    KeepsUtility: ["utility-starts-over"],
    MatureOneStepEarly: ["maturity"],
    KeepsAge: ["maturity"],
    TruncatesEachStep: ["fractions"],
    AtLeastOne: ["fractions", "rate-zero"],
    DrawsFromTheUnitInterval: ["incoming"],
    DrawsOneUnitForAll: ["incoming"],
    KeepsBias: ["incoming"],
    DrawsTheOtherAxis: ["others"],
    KeepsOutgoing: ["outgoing", "no-bias"],
    CutsTheWrongColumn: ["others"],
    HandsNothingOver: ["hand-over"],
    HandsSizeOver: ["hand-over"],
    ResetsTheOutputLayer: ["output-layer"],
    PairsByRegistration: ["branches", "convolution"],
    LeavesNorms: ["norm"],
    KeepsOptimizerState: ["state"],
    KeepsTheFirstMoment: ["state"],
    KeepsTheStepSizes: ["state", "fresh-units-learn"],
    ForgetsEverything: ["state"],
    FindsStateByPosition: ["state-by-parameter"],
    ResetsBeforeTheStep: ["outgoing", "state"],
    WrapsTheOptimizer: ["hooks"],
    NeedsBiases: ["no-bias"],
    AveragesExamplesOneByOne: ["smaller-batch"],
    TakesAxisOneForUnits: ["tokens"],
    KeepsTheGraph: ["copies"],
    ListensToCopies: ["copies"],
    HoldsItsNeighbors: ["saved-once"],
    DrawsFromTheGlobalGenerator: ["global-random-state", "seed"],
    IgnoresItsSeed: ["seed"],
    SavesNoAges: ["resume"],
}
