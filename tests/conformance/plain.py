"""Continual backpropagation once more, written plainly for chains of linear layers: what the checks must pass beside our own.

    age[i] += 1;   U[i] <- η U[i] + (1 - η) mean |h[i]| mean_k |V[k, i]|;   f[i] <- η f[i] + (1 - η) mean h[i]
    owed += ρ x (units with age > m);  for each whole unit owed, the mature one of the least U[i] / (1 - η^age[i]) goes

Each part is a method, so that a defective implementation overrides one.
"""

from itertools import pairwise
from math import sqrt

import torch
from torch import nn

from pliant.conformance import UnitResetAdapter


class Units:
    """What is remembered of the units that `layer` computes and `after` reads."""

    def __init__(self, layer, after):
        self.layer, self.after, self.h = layer, after, None
        count = len(layer.weight)
        self.utility, self.mean, self.age = torch.zeros(count), torch.zeros(count), torch.zeros(count)
        self.owed = 0.0

    def remembered(self):
        return {"utility": self.utility, "mean": self.mean, "age": self.age, "owed": self.owed}


class Plain(UnitResetAdapter):
    def attach(self, settings):
        self.settings = settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.units = {}
        for name, (layer, activation, after) in self.layers().items():
            self.units[name] = units = Units(layer, after)
            activation.register_forward_hook(self.recorder(units, activation))

    def layers(self):
        """Name of a hidden layer -> the layer, its activation, the layer that reads it."""
        if not isinstance(self.model, nn.Sequential) or any(
            isinstance(each, nn.Conv2d | nn.BatchNorm1d) for each in self.model
        ):
            raise NotImplementedError("chains of linear layers only")
        linear = [(name, each) for name, each in self.model.named_children() if isinstance(each, nn.Linear)]
        return {name: (layer, self.model[int(name) + 1], after) for (name, layer), (_, after) in pairwise(linear)}

    def recorder(self, units, activation):
        def record(module, inputs, output):
            if module is activation:  # and no copy of it
                units.h = output.detach()

        return record

    @torch.no_grad()
    def step(self):
        self.optimizer.step()
        self.reset()

    def reset(self):
        for units in self.units.values():
            self.update(units)
            self.replace(units, self.choose(units))

    # -- utility -------------------------------------------------------------------------------------------------

    def update(self, units):
        units.age += 1
        decay = self.decay()
        units.utility = decay * units.utility + (1 - decay) * self.contribution(units)
        units.mean = decay * units.mean + (1 - decay) * self.activity(units.h)

    def decay(self):
        return self.settings.decay_rate

    def activity(self, h):
        return h.flatten(0, -2).mean(0)

    def contribution(self, units):
        return self.activity(units.h.abs()) * units.after.weight.abs().mean(0)

    def corrected(self, average, units):
        return average / (1 - self.settings.decay_rate**units.age).clamp(min=1e-30)

    # -- selection -----------------------------------------------------------------------------------------------

    def mature(self, units):
        return units.age > self.settings.maturity_threshold

    def count(self, units, mature):
        units.owed += self.settings.replacement_rate * mature
        due = min(int(units.owed + 1e-9), mature)
        units.owed -= due
        return due

    def usefulness(self, units):
        return self.corrected(units.utility, units)

    def choose(self, units):
        mature = self.mature(units)
        due = self.count(units, int(mature.sum()))
        ranked = torch.where(mature, self.usefulness(units), torch.inf).sort(stable=True).indices
        return ranked[:due]

    # -- replacement ---------------------------------------------------------------------------------------------

    def replace(self, units, chosen):
        if not len(chosen):
            return
        self.hand_over(units, chosen)
        self.draw(units, chosen)
        self.cut(units, chosen)
        self.forget(units, chosen)
        self.renew(units, chosen)

    def hand_over(self, units, chosen):
        if units.after.bias is not None:
            mean = self.corrected(units.mean, units)[chosen]
            units.after.bias += units.after.weight[:, chosen] @ mean

    def draw(self, units, chosen):
        bound = 1 / sqrt(units.layer.weight[0].numel())
        shape = (len(chosen), *units.layer.weight.shape[1:])
        units.layer.weight[chosen] = bound * (2 * self.uniform(shape) - 1)
        if units.layer.bias is not None:
            units.layer.bias[chosen] = 0.0

    def uniform(self, shape):
        return torch.rand(shape, generator=self.generator)

    def cut(self, units, chosen):
        units.after.weight[:, chosen] = 0.0

    def forget(self, units, chosen):
        for parameter in (units.layer.weight, units.layer.bias, units.after.weight):
            for key, held in self.remembered(parameter).items():
                if isinstance(held, torch.Tensor) and held.shape == parameter.shape and self.forgets(key):
                    held[(slice(None), chosen) if parameter is units.after.weight else chosen] = 0.0

    def remembered(self, parameter):
        """What the optimizer holds of it."""
        return {} if parameter is None else self.optimizer.state[parameter]

    def forgets(self, key):
        return True

    def renew(self, units, chosen):
        units.age[chosen] = units.utility[chosen] = units.mean[chosen] = 0.0

    # -- saving --------------------------------------------------------------------------------------------------

    def state_dict(self):
        held = {name: units.remembered() for name, units in self.units.items()}
        return {"units": held, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        for name, held in state["units"].items():
            for key, value in held.items():
                setattr(self.units[name], key, value)
        self.generator.set_state(state["generator"])
