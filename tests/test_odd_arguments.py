"""Odd arguments of everything public that acts on a model: one sentence that names the setting, and nothing is changed.

Each parameter of each callable, as `inspect.signature` finds it, is given every odd value but those that fit it (`FITS`). So a
new method is covered by itself, and a new parameter must say here what fits it.
"""

import copy
import inspect
import random
import typing

import numpy as np
import pytest
import torch
from torch import nn

import pliant
from pliant import conformance, diagnostics, methods, optimizers
from pliant import nn as layers
from pliant.engine.after_step import Period
from pliant.engine.optimizer_state import OptimizerState
from pliant.engine.planning import Where
from pliant.engine.redraw import Redraw
from pliant.engine.score import Dormancy, RunningUtility
from pliant.engine.select import ReplacementRate, Threshold
from tests.networks import mlp

X, VALUES = torch.ones(4, 6), torch.ones(3)


class Anything:
    """Of no kind that any argument takes."""


ODD = {
    "None": None,
    "True": True,
    "minus one": -1,
    "a half": 0.5,
    "two and a half": 2.5,
    "three": 3,
    "nan": float("nan"),
    "inf": float("inf"),
    "minus inf": float("-inf"),
    "huge": 10**400,
    "a number as text": "1e-4",
    "an empty text": "",
    "a long text": "nothing known" * 50,
    "bytes": b"zero",
    "an empty list": [],
    "a list of texts": ["nothing known"],
    "a list of numbers": [1, 2],
    "an empty mapping": {},
    "a mapping": {"a": 1},
    "a set": {3},
    "an object": Anything(),
    "a class": Anything,
    "a function of nothing": lambda: None,
    "a function of five": lambda a, b, c, d, e: None,
    "a scalar tensor": torch.tensor(0.5),
    "a vector": torch.ones(3),
    "an empty tensor": torch.ones(0, 6),
    "a boolean tensor": torch.ones(3, dtype=torch.bool),
    "a complex tensor": torch.ones(2, 2, dtype=torch.complex64),
    "an array": np.ones(3),
    "a device": torch.device("cpu"),
    "an optimizer of something else": torch.optim.SGD(nn.Linear(3, 1).parameters(), lr=0.1),
    "a model": nn.Linear(3, 3),
}


def real(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def between(low, high, *, below=False):
    return lambda value: real(value) and (low <= value < high if below else low <= value <= high)


def at_least(low):
    return lambda value: real(value) and low <= value < float("inf")


def above(low):
    return lambda value: real(value) and low < value < float("inf")


def whole(low):
    return lambda value: real(value) and low <= value < 2**62 and value == value // 1


def or_none(fits):
    return lambda value: value is None or fits(value)


def flag(value):
    return isinstance(value, bool)


def seed(value):
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def tensor(*shape):
    """A real one, of so many axes or more, none of them empty."""
    return lambda value: (
        isinstance(value, torch.Tensor) and value.dim() >= shape[0] and not value.is_complex() and value.numel() > 0
    )


def module(value):
    """It may be one; what torch says of one that does not fit is torch's."""
    return isinstance(value, nn.Module)


def nothing(value):
    return False


def never_odd(value):
    return True


FITS = {  # by the name of a parameter: which odd values it may well take
    "replacement_rate": between(0, 1),
    "maturity_threshold": whole(0),
    "decay_rate": between(0, 1, below=True),
    "observe_every": whole(1),
    "candidates": whole(0),
    "tau": at_least(0),
    "share": between(0, 1),
    "above": at_least(0),
    "period": or_none(whole(1)),
    "strength": at_least(0),
    "noise_std": at_least(0),
    "shrink": between(0, 1),
    "least": between(0, 1),
    "filters": nothing,
    "gamma_step_size": at_least(0),
    "rank_step_size": at_least(0),
    "spread": lambda value: above(0)(value) and value <= 1,
    "inner_steps": whole(1),
    "samples": whole(1),
    "hand_over_mean": flag,
    "biases": flag,
    "of": nothing,
    "gaps": nothing,
    "transform": nothing,
    "rejection": between(0, 1),
    "shortest": whole(0),
    "longest": whole(1),
    "sharpness": at_least(0),
    "threshold": at_least(0),
    "power": above(0),
    "target": at_least(0),
    "bias_power": at_least(2),
    "scale": at_least(0),
    "kappa": above(0),
    "utility": nothing,
    "count": nothing,
    "eligible": nothing,
    "optimizer_state": nothing,
    "policy": nothing,
    "source": nothing,
    "toward": nothing,
    "how": nothing,
    "activation": nothing,
    "init": nothing,
    "statistics": flag,
    "strict": flag,
    "residual": flag,
    "heads": flag,
    "trial": flag,
    "attach": flag,
    "affine": flag,
    "layer_scaling": flag,
    "layer_norm": flag,
    "input_norm": flag,
    "include": lambda value: isinstance(value, list) and not value,
    "exclude": lambda value: isinstance(value, list) and not value,
    "seed": or_none(seed),
    "process_group": or_none(nothing),
    "mask": or_none(nothing),
    "on_replace": or_none(module),
    "runs": or_none(whole(1)),
    "parameters": or_none(nothing),
    "groups": or_none(nothing),
    "model": module,
    "head": module,
    "optimizer": nothing,
    "score": nothing,
    "select": nothing,
    "redraw": nothing,
    "forget": nothing,
    "loss": or_none(module),
    "h": tensor(2),
    "g": tensor(2),
    "s": lambda value: tensor(1)(value) or (isinstance(value, torch.Tensor) and value.dim() > 1 and not value.numel()),
    "features": lambda value: tensor(2)(value) or (isinstance(value, torch.Tensor) and value.shape == (0, 6)),
    "size": never_odd,  # of `share_of_layer`, arithmetic on any tensor
    "axis": lambda value: seed(value) and value in (-1, 0, 1),
    "leading": lambda value: seed(value) and value == 0,
    "units": whole(1),
    "decay_forward": between(0, 1, below=True),
    "decay_backward": between(0, 1, below=True),
    "eps": at_least(0),
    "lr": at_least(0),
    "weight_decay": at_least(0),
    "beta_utility": between(0, 1, below=True),
    "sigma": at_least(0),
    "protecting": flag,
    "factor": at_least(0),
    "maximum": nothing,
    "gamma": between(0, 1),
    "lamda": between(0, 1),
    "beta2": or_none(between(0, 1, below=True)),
    "betas": nothing,
    "base_optimizer": lambda value: isinstance(value, torch.optim.Optimizer),
    "inputs": whole(1),
    "outputs": whole(1),
    "kernel": whole(1),
    "stride": whole(1),
    "padding": whole(0),
    "device": never_odd,  # torch's own
    "dtype": never_odd,
    "y": or_none(nothing),
    "every": whole(1),
    "rows": whole(1),
    "warn": flag,
    "to": or_none(lambda value: isinstance(value, list) and not value),
    "state": or_none(nothing),
    "reference": lambda value: value is None or module(value),
    "examples": whole(1),
    "update": nothing,
    "weight": nothing,
    "ratio": lambda value: tensor(1)(value) or (isinstance(value, torch.Tensor) and not value.numel()),
    "below": at_least(0),
    "weights": lambda value: isinstance(value, torch.Tensor),
    "gradients": lambda value: isinstance(value, torch.Tensor),
    "fresh": or_none(nothing),
    "checkpoints": or_none(lambda value: isinstance(value, dict) and not value),
    "treatments": or_none(lambda value: isinstance(value, dict) and not value),
    "tasks": or_none(nothing),
    "budget": or_none(nothing),  # whole numbers, but none of these is enough
    "seeds": whole(3),
    "factors": lambda value: value in ([1, 2], {3}) if isinstance(value, list | set) else tensor(1)(value),
    "examples_used": whole(2),
    "batch_size": or_none(whole(1)),
    "adapter": nothing,
    "margin": at_least(0),
    "dim": seed,
    "a": between(0, 1),
    "c": above(0),
    "p": above(0),
    "shape": lambda value: value in ([1, 2], {3}) if isinstance(value, list | set) else whole(1)(value),
    "decay": between(0, 1),
    "progress": or_none(flag),
}
OTHERS = {  # where the same name takes something else
    **{(name, "eps"): above(0) for name in ("ObGD", "TRAC")},
    ("TRAC", "scale"): above(0),
    ("ObGD", "kappa"): at_least(0),
    ("ReDo", "period"): whole(1),
    ("Threshold", "period"): whole(1),
    ("diagnose", "sharpness"): lambda value: value is False,  # True needs a loss
    ("GraMa", "period"): whole(1),
    ("FIRE", "optimizer"): or_none(nothing),
    ("DASH", "optimizer"): or_none(nothing),
    ("SelfNormalizedResets", "period"): whole(1),
    ("PartialResets", "period"): whole(1),
    ("UnitReset", "period"): whole(1),
    ("L2ER", "features"): nothing,
    ("inject_plasticity", "head"): nothing,
    ("inject_plasticity", "seed"): seed,
    ("inject_plasticity", "init"): or_none(module),
    ("reset_network", "seed"): seed,
    ("reset_head", "seed"): seed,
    ("reset_network", "init"): or_none(module),
    ("reset_head", "init"): or_none(module),
    ("reset_network", "optimizer"): or_none(nothing),
    ("reset_head", "optimizer"): or_none(nothing),
    ("diagnose", "optimizer"): or_none(nothing),
    ("AID", "p"): between(0, 1),
    ("InputNorm", "eps"): above(0),
    ("StackedLinear", "runs"): whole(1),
    ("StackedConv2d", "runs"): whole(1),
    ("features", "h"): lambda value: tensor(1)(value) or (isinstance(value, torch.Tensor) and not value.numel()),
    ("reset_optimizer", "optimizer"): lambda value: isinstance(value, torch.optim.Optimizer),
}
SAID_AS = {
    "policy": ["optimizer_state"],
    "tasks": ["task"],
    "weights": ["argument 0"],
    "gradients": ["argument 0"],
}  # in errors
UNTRIED = {"example_inputs", "x", "params"}  # the first two have a test of their own below, the last is torch's own


def unit_reset(model, optimizer, **settings):
    parts = {"score": Dormancy(), "select": Threshold(0.1, 2), "redraw": Redraw(hand_over_mean=False)}
    return pliant.UnitReset(model, optimizer, **{**parts, "forget": OptimizerState(), **settings})


def attached(**right):
    return lambda model, optimizer: {"model": model, "optimizer": optimizer, **right}


CALLS = {
    "ContinualBackprop": (methods.ContinualBackprop, attached(example_inputs=X)),
    "RandomReplacement": (methods.RandomReplacement, attached(example_inputs=X)),
    "ReDo": (methods.ReDo, attached(example_inputs=X)),
    "UnitReset": (unit_reset, attached(example_inputs=X)),
    "Monitor": (pliant.Monitor, attached(example_inputs=X)),
    "L2": (methods.L2, attached(strength=0.1)),
    "ShrinkAndPerturb": (methods.ShrinkAndPerturb, attached(noise_std=0.1)),
    "GraMa": (methods.GraMa, attached(example_inputs=X)),
    "SelfNormalizedResets": (methods.SelfNormalizedResets, attached(example_inputs=X)),
    "PartialResets": (methods.PartialResets, attached(example_inputs=X)),
    "Spectral": (methods.Spectral, attached(strength=0.1)),
    "L2ER": (methods.L2ER, attached(strength=0.1, rank_step_size=0.1, features=["1"])),
    "Wasserstein": (methods.Wasserstein, attached(strength=0.1)),
    "Parseval": (methods.Parseval, attached(strength=0.1, parameters="*.weight")),
    "WeightClipping": (methods.WeightClipping, attached()),
    "NormalizeAndProject": (methods.NormalizeAndProject, attached(parameters="*.weight")),
    "HareAndTortoise": (methods.HareAndTortoise, attached()),
    "SelectiveReinitialization": (methods.SelectiveReinitialization, attached()),
    "FIRE": (methods.FIRE, attached()),
    "SoftResets": (methods.SoftResets, attached(gamma_step_size=0.1, spread=0.5)),
    "DASH": (methods.DASH, attached()),
    "inject_plasticity": (methods.inject_plasticity, attached(head="4", seed=1)),
    "reset_network": (methods.reset_network, attached(seed=1)),
    "reset_head": (methods.reset_head, lambda model, optimizer: {"head": model[4], "optimizer": optimizer, "seed": 1}),
    "reset_optimizer": (methods.reset_optimizer, lambda model, optimizer: {"optimizer": optimizer}),
    "UPGD": (optimizers.UPGD, lambda model, optimizer: {"params": model.parameters()}),
    "ObGD": (optimizers.ObGD, lambda model, optimizer: {"params": model.parameters()}),
    "TRAC": (optimizers.TRAC, lambda model, optimizer: {"base_optimizer": optimizer}),
    "RunningUtility": (RunningUtility, lambda model, optimizer: {}),
    "ReplacementRate": (ReplacementRate, lambda model, optimizer: {}),
    "Threshold": (Threshold, lambda model, optimizer: {"tau": 0.1, "period": 2}),
    "Redraw": (Redraw, lambda model, optimizer: {}),
    "OptimizerState": (OptimizerState, lambda model, optimizer: {}),
    "diagnose": (pliant.diagnose, lambda model, optimizer: {"model": model, "x": X}),
    "probe_plasticity": (
        pliant.probe_plasticity,
        attached(x=X, y=torch.zeros(4).long(), tasks="own", seeds=3, factors=(1.0,), budget=240, progress=False),
    ),
    "check": (conformance.check, lambda model, optimizer: {"adapter": methods.ContinualBackprop}),
    "CReLU": (layers.CReLU, lambda model, optimizer: {}),
    "DeepFourier": (layers.DeepFourier, lambda model, optimizer: {}),
    "AID": (layers.AID, lambda model, optimizer: {}),
    "SmoothLeakyReLU": (layers.SmoothLeakyReLU, lambda model, optimizer: {}),
    "InputNorm": (layers.InputNorm, lambda model, optimizer: {"shape": 3}),
    "convert": (layers.convert, lambda model, optimizer: {"model": model, "example_inputs": X, "activation": "aid"}),
    "decay_groups": (layers.decay_groups, lambda model, optimizer: {"model": model, "weight_decay": 0.1}),
    "OnlineNorm1d": (layers.OnlineNorm1d, lambda model, optimizer: {"units": 3}),
    "StackedLinear": (layers.StackedLinear, lambda model, optimizer: {"runs": 2, "inputs": 3, "outputs": 2}),
    "StackedConv2d": (
        layers.StackedConv2d,
        lambda model, optimizer: {"runs": 2, "inputs": 3, "outputs": 2, "kernel": 1},
    ),
}
MORE = {"update": {"weight": X}}  # right arguments beside the first
MEASURES = [
    name for name in diagnostics.__all__ if inspect.isfunction(getattr(diagnostics, name)) and name not in CALLS
]
for measure in MEASURES:
    first = next(iter(inspect.signature(getattr(diagnostics, measure)).parameters))
    CALLS[measure] = (
        getattr(diagnostics, measure),
        lambda model, optimizer, name=first: {name: VALUES if name in ("s", "ratio") else X} | MORE.get(name, {}),
    )


def parameters_of(name):
    """Their names, those of `**where` and `**period` too."""
    function = pliant.UnitReset if name == "UnitReset" else CALLS[name][0]
    found = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            kinds = {"where": Where, "period": Period}
            found += typing.get_type_hints(kinds[parameter.name])
        else:
            found.append(parameter.name)
    return found


def fits(name, parameter):
    return OTHERS.get((name, parameter), FITS.get(parameter))


PAIRS = [(name, parameter) for name in CALLS for parameter in parameters_of(name) if parameter not in UNTRIED]


def test_every_public_method_and_measure_is_tried():
    missing = {*methods.__all__, *optimizers.__all__} - CALLS.keys()
    assert not missing, f"give right arguments of {missing} in CALLS"


@pytest.mark.parametrize(("name", "parameter"), PAIRS)
def test_an_odd_argument_is_named_and_nothing_is_changed(name, parameter):
    assert fits(name, parameter) is not None, f"say in FITS what fits '{parameter}' of {name}"
    wrong = []
    for kind, odd in ODD.items():
        if fits(name, parameter)(odd):
            continue
        found = refused(name, parameter, odd)
        wrong += [] if found is None else [f"{kind}: {found}"]
    assert not wrong, "\n".join(wrong)


def refused(name, parameter, odd):
    """None if the call is refused as it should; else what is wrong."""
    function, right = CALLS[name]
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    given = {**right(model, optimizer), parameter: odd}
    if parameter == "groups" and odd is not None:
        given.pop("example_inputs", None)
    positional = [given.pop(each) for each in ("weights", "gradients") if each in given]
    before = copy.deepcopy(model.state_dict()), state_of_random_numbers()
    try:
        function(*positional, **given)
    except (TypeError, ValueError) as error:
        said = str(error)
        if not any(name in said for name in (parameter, *SAID_AS.get(parameter, ()))):
            return f"{type(error).__name__} does not name '{parameter}': {said}"
        if ("\n" in said and not said.startswith("include")) or len(said) > 700:
            return f"not one sentence: {said}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        return "accepted"
    after = copy.deepcopy(model.state_dict()), state_of_random_numbers()
    if any(not torch.equal(before[0][key], after[0][key]) for key in before[0]):
        return "the model was changed"
    if before[1] != after[1]:
        return "numbers were drawn from a global generator"
    if hooks(model, optimizer):
        return "a hook was left"
    return None


def state_of_random_numbers():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def hooks(model, optimizer):
    of_model = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())
    return of_model + len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


@pytest.mark.parametrize(
    "name", ["ContinualBackprop", "RandomReplacement", "ReDo", "UnitReset", "L2", "ShrinkAndPerturb"]
)
def test_an_argument_of_a_wrong_name_is_an_error(name):
    function, right = CALLS[name]
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(TypeError, match="'maturity_treshold'"):
        function(**right(model, optimizer), maturity_treshold=3)
    assert hooks(model, optimizer) == 0


def test_the_nearest_name_is_suggested():
    model = mlp()
    with pytest.raises(TypeError, match=r"^ReDo takes no argument 'exlude' \(did you mean 'exclude'\?\)$"):
        pliant.ReDo(model, torch.optim.SGD(model.parameters()), example_inputs=X, exlude="4")


EXAMPLES = {
    "a scalar": torch.tensor(0.5),
    "an empty batch": torch.ones(0, 6),
    "a list with an empty batch": [X, torch.ones(0, 6)],
    "another width": torch.ones(4, 5),
    "another dtype": torch.ones(4, 6, dtype=torch.int64),
    "a number": 3,
    "a text": "1e-4",
    "an array": np.ones((4, 6)),
    "one too many": (X, X),
    "an unknown keyword": {"x": X},
    "None in a list": [X, None],
    "an empty list": [],
}


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("name", ["ContinualBackprop", "ReDo", "diagnose", "convert"])
def test_odd_examples_are_named_and_nothing_is_changed(name, kind):
    """What the model itself raises on them is passed on with a word on where."""
    function, right = CALLS[name]
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    before, drawn = copy.deepcopy(model.state_dict()), state_of_random_numbers()
    parameter = "x" if name == "diagnose" else "example_inputs"
    with pytest.raises(
        (TypeError, ValueError, RuntimeError),
        match=rf"example.inputs|{parameter} holds no|x is an empty|x is '1e-4'|x is a tuple",
    ) as error:
        function(**{**right(model, optimizer), parameter: EXAMPLES[kind]})
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[key], held) for key, held in model.state_dict().items())
    assert state_of_random_numbers() == drawn
    assert hooks(model, optimizer) == 0
