"""Tracing against the hand-written table of `hard_cases`: each group element by element, each omission by its reason."""

import re
from contextlib import nullcontext
from fnmatch import fnmatchcase

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pliant import ContinualBackprop
from pliant.units import BN, AffineEntry, Slice, UnitGroup, UnitMap
from pliant.units.entries import SelectedUnits
from pliant.units.trace import trace
from tests.units.hard_cases import BY_NAME, CASES, Along, Case, Elements, Net, Units

EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def traced(case: Case, **options: bool) -> tuple[nn.Module, UnitMap]:
    model, example = case.make()
    return model, trace(model, example, **{**case.options, **options})


# -- elements, ours by the definition of a slice, theirs by the table ------------------------------------------------


def numbered(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.numel()).view(tensor.shape)


def elements_of(part: Slice, parameter: Tensor) -> list[frozenset[int]]:
    """Flat numbers of what each unit owns, straight from the docstring of `Slice`."""
    seen = numbered(parameter).view(part.shape or parameter.shape)
    front = seen.movedim(part.axes, tuple(range(len(part.axes))))
    first = front.reshape(front.shape[: len(part.axes)].numel(), -1)
    index = torch.tensor(part.index) if part.index else torch.arange(len(first)).view(-1, part.repeat)
    return [frozenset(first[positions].flatten().tolist()) for positions in index]


def norm_elements(norm: BN, units: int) -> list[frozenset[int]]:
    index = torch.tensor(norm.index) if norm.index else torch.arange(units * norm.repeat).view(units, norm.repeat)
    return [frozenset(positions.tolist()) for positions in index]


def table_of(given: Along | Elements | None, default_axis: int, units: int, tensor: Tensor) -> list[frozenset[int]]:
    """The expectation of one name: by its table, or row (column) by row, several to a unit if there are several."""
    if isinstance(given, Elements):
        return [frozenset(each) for each in given.table]
    if given is None:
        repeat = tensor.shape[default_axis] // units
        assert units * repeat == tensor.shape[default_axis], "the hand-written table is wrong"
        given = Along(default_axis, [range(i * repeat, (i + 1) * repeat) for i in range(units)])
    numbers = numbered(tensor)
    return [
        frozenset(numbers.index_select(given.axis, torch.tensor([*each])).flatten().tolist()) for each in given.table
    ]


def expected_parts(units: Units, model: nn.Module) -> tuple[dict[str, list[frozenset[int]]], ...]:
    """Name -> elements of each unit: incoming with norms, outgoing."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    norms = {name: module.running_mean for name, module in model.named_modules() if hasattr(module, "running_mean")}
    known = {**tensors, **norms}
    incoming = {name: table_of(units.enter.get(name), 0, units.count, known[name]) for name in units.incoming.split()}
    outgoing = {name: table_of(units.leave.get(name), 1, units.count, known[name]) for name in units.outgoing.split()}
    return incoming, outgoing


def found_parts(group: UnitGroup, units: int, model: nn.Module) -> tuple[dict[str, list[frozenset[int]]], ...]:
    tensors = dict(model.named_parameters(remove_duplicate=False))
    own = [each.part for each in group.affine if isinstance(each, AffineEntry)]
    incoming = {part.parameter: elements_of(part, tensors[part.parameter]) for part in (*group.incoming, *own)}
    incoming.update((norm.module, norm_elements(norm, units)) for norm in group.affine if isinstance(norm, BN))
    outgoing = {part.parameter: elements_of(part, tensors[part.parameter]) for part in group.outgoing}
    return incoming, outgoing


def unit_by_unit(parts: tuple[dict[str, list[frozenset[int]]], ...]) -> set[tuple[object, ...]]:
    """Each unit as one value, so that two descriptions agree only if every unit's parts are aligned, in whatever order."""
    units = {len(table) for side in parts for table in side.values()}
    assert len(units) == 1, f"parts of one group disagree about the number of units: {units}"
    return {
        tuple((side, name, table[unit]) for side, part in enumerate(parts) for name, table in sorted(part.items()))
        for unit in range(units.pop())
    }


# -- the table -------------------------------------------------------------------------------------------------------


@EVERY_CASE
def test_the_groups_are_those_of_the_table(case):
    _, plan = traced(case)
    found = {frozenset(part.parameter for part in row.group.incoming): row for row in plan.rows}
    ours = {first: next((row for names, row in found.items() if first in names), None) for first in case.groups}
    assert [first for first, row in ours.items() if row is None] == [], str(plan)
    assert len(plan.rows) == len(case.groups), str(plan)
    assert {first: (row.units, row.group.kind) for first, row in ours.items()} == {
        first: (units.count, units.kind) for first, units in case.groups.items()
    }


@EVERY_CASE
def test_every_unit_owns_the_elements_of_the_table(case):
    model, plan = traced(case)
    for first, units in case.groups.items():
        row = next(row for row in plan.rows if first in [part.parameter for part in row.group.incoming])
        incoming, outgoing = expected_parts(units, model)
        ours = found_parts(row.group, row.units, model)
        assert (set(ours[0]), set(ours[1])) == (set(incoming), set(outgoing))
        assert unit_by_unit(ours) == unit_by_unit((incoming, outgoing)), str(plan)


@EVERY_CASE
def test_what_is_left_alone_has_its_reason(case):
    _, plan = traced(case)
    for pattern, reason in case.skipped.items():
        told = [each.reason for each in plan.skipped if any(fnmatchcase(name, pattern) for name in each.parameters)]
        assert told, f"{pattern} is not among what was left alone:\n{plan}"
        assert any(re.search(reason, each) for each in told), f"{pattern}: {told}"


@EVERY_CASE
def test_every_trainable_parameter_is_in_a_group_or_is_explained(case):
    model, plan = traced(case)
    grouped = {name for group in plan.groups for name in group.parameters()}
    grouped |= {
        f"{each.module}.{leaf}"
        for group in plan.groups
        for each in group.affine
        if isinstance(each, BN)
        for leaf in ("weight", "bias")
    }
    explained = {name for each in plan.skipped for name in each.parameters}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable - grouped - explained == set(), str(plan)


@EVERY_CASE
def test_what_is_one_number_a_unit_is_given_as_a_vector_behind_the_weights(case):
    """The engine sets vectors to 0 and draws everything else; the first slice is what it draws from."""
    model, plan = traced(case)
    for row in plan.rows:
        vectors = []
        for part in row.group.incoming:
            parameter = model.get_parameter(part.parameter)
            vectors.append(len(part.axes) == len(part.shape or parameter.shape))
            assert vectors[-1] == all(len(each) == part.repeat for each in elements_of(part, parameter)), part
        assert vectors == sorted(vectors), row.group.incoming
        assert not vectors[0], row.group.incoming


# -- taps: what is read is what the outgoing weights multiply ----------------------------------------------------------


@EVERY_CASE
def test_every_group_that_some_hook_sees_has_a_tap_for_each_outgoing_slice(case):
    _, plan = traced(case)
    unread = [group.incoming[0].parameter for group in plan.groups if not group.taps]
    assert unread == list(case.unread), str(plan)
    assert all(len(group.taps) in (0, len(group.outgoing)) for group in plan.groups), str(plan)


TAPS = {
    "mlp": {"0.weight": ("2", "input")},
    "the paper's convnet": {"0.weight": ("3", "input"), "6.weight": ("10", "input")},
    "functional mlp": {"w1": ("", "operand")},
    "transposed linear, addmm": {"0.weight": ("2", "input")},
    "lstm": {"core.weight_ih_l0": ("core", "output")},
    "multihead attention, heads": {"attention.in_proj_weight": ("attention", "operand")},
    "resnet-18": {"layer1.0.conv1.weight": ("layer1.0.conv2", "input")},
    "llama": {"gate.weight": ("down", "input")},
}


@pytest.mark.parametrize("name", TAPS)
def test_activity_is_read_where_the_brief_says(name):
    _, plan = traced(BY_NAME[name])
    for first, (module, at) in TAPS[name].items():
        group = next(group for group in plan.groups if first in [part.parameter for part in group.incoming])
        assert (module, at) in [(tap.module, tap.at) for tap in group.taps], group.taps


def floats(output: object) -> list[Tensor]:
    return [each for each in tree_leaves(output) if isinstance(each, Tensor) and each.is_floating_point()]


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # runs without oneDNN
@EVERY_CASE
def test_resets_run_in_every_group_and_leave_fresh_units_unread(case):
    model, example = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    settings = {"replacement_rate": 0.5, "maturity_threshold": 0, "hand_over_mean": False, "seed": 0}
    settings["utility"] = "weight" if case.unread else "contribution"
    with ContinualBackprop(model, optimizer, example_inputs=example, **case.options, **settings) as cbp:
        output = model(*example) if isinstance(example, tuple) else model(example)
        sum(each.square().mean() for each in floats(output)).backward()
        optimizer.step()
        assert len(cbp.groups) == len(case.groups)
        for group in cbp.groups:
            replaced = (cbp.ages()[group.name][0] == 0).nonzero().flatten()
            assert len(replaced) == group.units // 2
            chosen = SelectedUnits(torch.zeros_like(replaced), replaced, torch.ones(len(replaced)), [len(replaced)])
            assert all(not part.read(chosen).any() for part in group.outgoing), group.name


# -- the verifier ------------------------------------------------------------------------------------------------------


@EVERY_CASE
def test_the_verifier_finds_no_fault(case):
    model, plan = traced(case)
    _, example = case.make()
    verification = plan.verify(model, example)
    expected = {
        first: "approximate" if units.kind == "approximate" else "exact" for first, units in case.groups.items()
    }
    told = {row.group.name: row for row in verification.rows}
    for first, verdict in expected.items():
        name = next(g.name for g in plan.groups if first in [part.parameter for part in g.incoming])
        assert told[name].verdict == verdict, str(verification)
    assert not verification.wrong


# -- nothing goes through what is unknown ------------------------------------------------------------------------------


def test_no_group_goes_through_an_unknown_operation():
    _, plan = traced(BY_NAME["an unknown operation"])
    touched = {name for group in plan.groups for name in (part.parameter for part in group.incoming)}
    assert not touched & {"first.weight", "first.bias"}
    assert all(part.parameter != "second.weight" for group in plan.groups for part in group.outgoing)


# -- tracing leaves no trace -------------------------------------------------------------------------------------------


def everything(model: nn.Module) -> dict[str, object]:
    """All that tracing could have moved, in a form that `==` compares to the bit."""

    def bits(tensor: Tensor | None) -> object:
        return None if tensor is None else (tensor.dtype, tensor.shape, tensor.detach().contiguous().numpy().tobytes())

    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_forward_hooks_with_kwargs",
    )
    return {
        "parameters": {name: (id(each), each._version, bits(each)) for name, each in model.named_parameters()},
        "gradients": {
            name: (each.requires_grad, id(each.grad), bits(each.grad)) for name, each in model.named_parameters()
        },
        "buffers": {name: (id(each), bits(each)) for name, each in model.named_buffers()},
        "modes": {name: each.training for name, each in model.named_modules()},
        "hooks": {name: [list(getattr(each, hook)) for hook in hooks] for name, each in model.named_modules()},
        "attributes": {name: sorted(vars(each)) for name, each in model.named_modules()},
        "random": torch.get_rng_state().numpy().tobytes(),
        "gradients enabled": torch.is_grad_enabled(),
        "onednn": torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled(),
    }


def unusual(raising: bool) -> nn.Module:
    """A net in mixed modes, with gradients, buffers, dropout, a frozen part and a hook of the user's."""

    def run(net, x):
        h = net.drop(torch.relu(net.norm(net.first(x))))
        net.calls.add_(1)
        h = net.fourth(torch.relu(net.third(torch.relu(net.second(h)))))
        if raising:
            raise ArithmeticError("the sum is off by one")
        return h

    net = Net(
        run,
        first=nn.Linear(6, 8),
        norm=nn.BatchNorm1d(8),
        drop=nn.Dropout(0.5),
        second=nn.utils.parametrizations.spectral_norm(nn.Linear(8, 5)),
        third=nn.Linear(5, 4),
        fourth=nn.Linear(4, 2),
        idle=nn.Linear(2, 2),
    )
    net.register_buffer("calls", torch.zeros(1))
    net.idle.weight.requires_grad_(False)
    net.first.weight.grad = torch.ones(8, 6)
    net.norm.eval()
    net.idle.eval()
    net.first.register_forward_hook(lambda module, inputs, output: None)
    return net


@pytest.mark.parametrize("raising", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_tracing_leaves_everything_bitwise_as_it_was(raising, training):
    torch.manual_seed(3)
    model, x = unusual(raising), torch.randn(4, 6)
    model.drop.train(training)
    before, kept = everything(model), x.clone()
    with torch.set_grad_enabled(training):
        before["gradients enabled"] = training
        with pytest.raises(RuntimeError, match="off by one") if raising else nullcontext():
            trace(model, x)
        assert everything(model) == before
    assert torch.equal(x, kept)
    assert x.grad is None
    assert not x.requires_grad


@EVERY_CASE
def test_tracing_leaves_parameters_buffers_and_random_state_alone(case):
    model, example = case.make()
    before = everything(model)
    trace(model, example, **case.options)
    assert everything(model) == before


@EVERY_CASE
def test_tracing_twice_finds_the_same(case):
    model, example = case.make()
    assert trace(model, example, **case.options) == trace(model, example, **case.options)


@EVERY_CASE
def test_evaluation_mode_gives_the_same_groups(case):
    _, plan = traced(case)
    model, example = case.make()
    assert trace(model.eval(), example, **case.options).groups == plan.groups


# -- several examples, and inputs by name ------------------------------------------------------------------------------


def test_a_group_that_differs_between_examples_is_left_alone():
    def run(net, x):
        h = torch.relu(net.first(x))
        h = torch.relu(net.up(h) if x.sum() > 0 else net.down(h))
        return net.last(torch.relu(net.common(h)))

    parts = {"first": (6, 8), "up": (8, 5), "down": (8, 5), "common": (5, 4), "last": (4, 2)}
    model, x = Net(run, **{name: nn.Linear(*shape) for name, shape in parts.items()}), torch.ones(2, 6)
    assert [group.name for group in trace(model, x).groups] == ["first", "up", "common"]
    both = trace(model, [x, -x])
    assert [group.name for group in both.groups] == ["common"]
    reasons = {name: each.reason for each in both.skipped for name in each.parameters}
    assert "differs between the example inputs" in reasons["first.weight"]


def test_inputs_by_name_and_by_position_give_the_same_plan():
    model = Net(lambda net, a, b: net.last(torch.relu(net.first(a) + b)), first=nn.Linear(6, 8), last=nn.Linear(8, 2))
    named = nn.Module()
    named.forward = lambda *, a, b: model(a, b)
    named.add_module("inner", model)
    a, b = torch.randn(2, 6), torch.randn(2, 8)
    by_position, by_name = trace(model, (a, b)), trace(named, {"a": a, "b": b})
    assert [row.units for row in by_position.rows] == [row.units for row in by_name.rows] == [8]
    assert by_name.groups[0].incoming[0].parameter == "inner.first.weight"


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_forward_that_raises_is_told_with_its_own_words_and_what_we_did():
    with pytest.raises(RuntimeError, match=r"(?s)trac.*off by one") as caught:
        trace(unusual(raising=True), torch.randn(4, 6))
    assert isinstance(caught.value.__cause__, ArithmeticError)


def test_inputs_of_the_wrong_shape_are_told_with_torch_s_own_words():
    with pytest.raises(RuntimeError, match=r"(?s)trac.*shapes cannot be multiplied"):
        trace(BY_NAME["mlp"].make()[0], torch.randn(4, 5))


def test_a_network_without_hidden_units_is_an_error_that_shows_what_was_seen():
    with pytest.raises(ValueError, match=r"(?s)0\.weight.*output"):
        trace(nn.Sequential(nn.Linear(6, 2)), torch.randn(4, 6))


def test_inputs_on_another_device_are_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"(?s)(meta.*cpu|cpu.*meta)"):
        trace(BY_NAME["mlp"].make()[0], torch.randn(4, 6, device="meta"))


def test_a_pattern_that_matches_nothing_is_an_error():
    _, plan = traced(BY_NAME["mlp"])
    for edit in (plan.include, plan.exclude):
        with pytest.raises(ValueError, match=r"'encoder\.\*' matches no group and no parameter; groups: 0, 2"):
            edit("encoder.*")


def test_including_what_had_to_be_skipped_is_an_error_with_the_reason():
    _, plan = traced(BY_NAME["spectral norm"])
    with pytest.raises(ValueError, match=r"cannot be reset.*computed weight"):
        plan.include("2.parametrizations.weight.original")
    _, plan = traced(BY_NAME["mlp"])
    with pytest.raises(ValueError, match=r"cannot be reset.*output"):
        plan.include("4")


def test_include_and_exclude_keep_the_rest_of_the_plan():
    _, plan = traced(BY_NAME["mlp"])
    assert [group.name for group in plan.include("0").groups] == ["0"]
    assert [group.name for group in plan.exclude("0").groups] == ["2"]
