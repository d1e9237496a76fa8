"""What is no example counts as none: padding behind a mask, and auxiliary calls of a module; each against sums written out."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from pliant import ContinualBackprop, ReDo, Tap, UnitGroup, chain_groups, recording_paused, trace
from pliant.units.forwards import fitted
from tests.networks import enough, steps
from tests.ranks import on_ranks
from tests.units.hard_cases import Net

OFTEN = {"replacement_rate": 0.05, "maturity_threshold": 5, "seed": 1}


def sentences(step, n=10, most=6, width=3):
    """A padded batch and its mask; what stands at padding is huge."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(n, most, width, generator=generator)
    lengths = torch.randint(1, most + 1, (n,), generator=generator)
    mask = torch.arange(most) < lengths[:, None]
    return torch.where(mask[..., None], x, 50.0), mask


class Pooled(nn.Module):
    """The mean over real tokens of a network of each token."""

    def __init__(self, width=3, seed=0, run=lambda part, *inputs: part(*inputs)):
        super().__init__()
        torch.manual_seed(seed)
        self.tokens = nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh())
        self.out = nn.Linear(8, 2)
        self.run = run

    def forward(self, x, mask=None):
        mask = torch.ones(x.shape[:2]) if mask is None else mask
        h = self.out(self.run(self.tokens, x))
        return (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def attached(model, example, optimizer=None, kind=ContinualBackprop, **settings):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.0)
    return kind(model, optimizer, example_inputs=example, attach=False, **settings)


def once(model, inputs, mask, **settings):
    """(mean, utility) of every group after one forward."""
    cbp = attached(model, inputs, decay_rate=0.0, mask=mask, **settings)
    model(*inputs)
    cbp.step()
    return [(cbp.score.mean(group)[0], cbp.score.value(group, [])[0]) for group in cbp.groups]


# -- padding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask", ["mask", lambda x, mask: mask, lambda x, mask: mask.float(), lambda x, mask: mask.long()]
)
def test_utilities_and_means_are_those_of_real_tokens(mask):
    model, (x, real) = Pooled(), sentences(0)
    found = once(model, (x, real), mask)
    first = model.tokens[1](model.tokens[0](x[real]))
    second = torch.tanh(model.tokens[2](first))
    for (mean, utility), h, weight in zip(
        found, (first, second), (model.tokens[2].weight, model.out.weight), strict=True
    ):
        assert_close(mean[:, 0], h.mean(0))
        assert_close(utility, h.abs().mean(0) * weight.abs().mean(0))


@pytest.mark.parametrize("utility", ["contribution", "zero_contribution", "adaptable_contribution"])
def test_training_on_padded_sentences_is_training_on_the_same_without_padding(utility):
    """Three real tokens each, in batches padded to six; float64, so that rounding chooses no unit."""
    runs = []
    for padded in (True, False):
        model = Pooled().double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        example = torch.zeros(2, 3, 3).double(), torch.ones(2, 3)
        cbp = ContinualBackprop(model, optimizer, example_inputs=example, mask="mask", utility=utility, **OFTEN)
        for step in range(80):
            x = torch.randn(10, 3, 3, generator=torch.Generator().manual_seed(step)).double()
            mask = torch.ones(10, 3)
            if padded:
                x, mask = F.pad(x, (0, 0, 0, 3), value=9.0), F.pad(mask, (0, 3))
            optimizer.zero_grad()
            model(x, mask).square().mean().backward()
            optimizer.step()
        enough(cbp)
        runs.append((cbp.stats(), model.state_dict()))
    assert runs[0][0] == runs[1][0]
    for name, value in runs[0][1].items():
        assert_close(value, runs[1][1][name], rtol=1e-8, atol=1e-10)


def test_a_padded_batch_equals_its_sentences_one_by_one():
    """Each at its own length, accumulated; without the mask the padding would make another number."""
    model, (x, real) = Pooled(), sentences(1)
    cbp = attached(model, (x, real), decay_rate=0.0)
    for tokens, mask in zip(x, real, strict=True):
        model(tokens[mask][None])
    cbp.step()
    for (mean, utility), group in zip(once(model, (x, real), "mask"), cbp.groups, strict=True):
        assert_close(mean, cbp.score.mean(group)[0])
        assert_close(utility, cbp.score.value(group, [])[0])
    (unmasked, _), *_ = once(model, (x, real), None)
    assert not torch.allclose(unmasked, once(model, (x, real), "mask")[0][0], rtol=0.1)


def test_nothing_that_stands_at_padding_matters_not_even_nan():
    model, (x, real) = Pooled(), sentences(2)
    broken = torch.where(real[..., None], x, torch.nan)
    for utility in ("contribution", "zero_contribution"):
        for one, other in zip(
            once(model, (x, real), "mask", utility=utility),
            once(model, (broken, real), "mask", utility=utility),
            strict=True,
        ):
            assert_close(one, other, rtol=0, atol=0)


def test_accumulated_batches_weigh_by_their_real_tokens():
    model, batches = Pooled(), [sentences(step) for step in range(3)]
    cbp = attached(model, batches[0], decay_rate=0.0, mask="mask")
    for x, real in batches:
        model(x, mask=real)
    cbp.step()
    every = torch.cat([x[real] for x, real in batches])
    assert_close(cbp.score.mean(cbp.groups[0])[0, :, 0], model.tokens[1](model.tokens[0](every)).mean(0))


def test_the_mean_that_is_handed_over_is_that_of_real_tokens():
    """With a unit gone, the consumer's mean over real tokens is what it was."""
    model, (x, real) = Pooled(), sentences(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(
        model,
        optimizer,
        example_inputs=(x, real),
        mask="mask",
        replacement_rate=0.25,
        maturity_threshold=0,
        include="tokens.0",
    )
    with recording_paused():
        before = model.tokens[:3](x[real]).mean(0)
    model(x, real).sum().backward()
    optimizer.step()
    assert cbp.stats()["tokens.0"]["replaced"] == [3]
    with recording_paused():
        after = model.tokens[:3](x[real]).mean(0)
    assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_an_example_with_one_row_counts_if_any_of_its_tokens_is_real():
    """A head on pooled tokens: the third example is nothing but padding."""
    model = Net(
        lambda net, x, mask: net.head(torch.relu(net.first(x.mean(1)))), first=nn.Linear(3, 6), head=nn.Linear(6, 2)
    )
    x, mask = torch.randn(4, 5, 3), torch.ones(4, 5, dtype=torch.bool)
    mask[2], mask[0, 1:] = False, False
    ((mean, _),) = once(model, (x, mask), lambda x, mask: mask)
    assert_close(mean[:, 0], torch.relu(model.first(x.mean(1)))[[0, 1, 3]].mean(0))


def test_the_shapes_a_mask_fits():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    layer = nn.Linear(1, 1)
    assert fitted(mask, (2, 3), Tap("a"), layer).tolist() == mask.tolist()
    assert fitted(mask, (2, 3, 2), Tap("a"), layer)[0].tolist() == [[True, True], [True, True], [False, False]]
    assert fitted(mask, (2,), Tap("a"), layer).tolist() == [True, False]
    assert fitted(mask, (6,), Tap("a"), layer).tolist() == [True, True, False, False, False, False]
    assert fitted(mask[0], (3,), Tap("a"), layer).tolist() == [True, True, False]  # one sentence without a batch
    assert fitted(mask[:, 0], (2, 5), Tap("a"), layer)[:, 4].tolist() == [True, False]  # of examples
    for shape in ((3, 2), (2, 4), (2, 1, 3), (7,), ()):
        with pytest.raises(
            ValueError, match=re.escape(f"mask: shape (2, 3) does not fit the input of 'a', which has {shape}")
        ):
            fitted(mask, shape, Tap("a"), layer)
    with pytest.raises(ValueError, match="does not fit"):  # its rows are in an order of its own
        fitted(mask, (6,), Tap("a"), nn.MultiheadAttention(2, 1))


def test_packed_sequences_hold_no_padding_and_what_is_padded_again_does():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.hidden, self.head = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 5), nn.Linear(5, 2)

        def pack(self, x, mask):
            return pack_padded_sequence(x, mask.sum(1), batch_first=True, enforce_sorted=False)

        def forward(self, x, mask):
            states = pad_packed_sequence(self.rnn(self.pack(x, mask))[0], batch_first=True, total_length=x.shape[1])[0]
            return self.head(torch.relu(self.hidden(states)))

    torch.manual_seed(0)
    model, (x, real) = Packed(), sentences(4)
    recurrent, feed_forward = (mean for mean, _ in once(model, (x, real), "mask"))
    states = model.rnn(model.pack(x, real))[0].data
    assert_close(recurrent, states.mean(0)[:, None].expand(6, 2))
    assert_close(feed_forward[:, 0], torch.relu(model.hidden(states)).mean(0))


@pytest.mark.parametrize("utility", ["contribution", "zero_contribution", "weight"])
def test_a_step_without_a_real_token_ages_units_and_leaves_averages(utility):
    model = Pooled()
    cbp = attached(model, sentences(0), mask="mask", utility=utility)
    for step in range(3):
        model(*sentences(step))
        cbp.step()
    group = cbp.groups[0]
    utilities, mean = cbp.utilities(), cbp.score.mean(group).clone()
    x, real = sentences(3)
    model(x, torch.zeros_like(real))
    cbp.step()
    assert steps(cbp) == 4
    assert_close(cbp.utilities(), utilities)
    assert_close(cbp.score.mean(group), mean, rtol=0, atol=0)


def test_redo_finds_no_unit_dormant_in_a_step_without_a_real_token():
    model, (x, real) = Pooled(), sentences(0)
    redo = attached(model, (x, real), kind=ReDo, period=2, mask="mask")
    model(x, real)
    redo.step()
    with torch.no_grad():
        model.tokens[0].bias += 100.0  # none is dormant now, and nothing shows it
    model(x, torch.zeros_like(real))
    redo.step()
    assert all(dormancy.all() for dormancy in redo.utilities().values())
    assert redo.stats()["tokens.2"]["replaced"] == [0]


def test_what_the_model_itself_multiplies_is_masked_too():
    """Read at an operand, in the model's own call: rows are (sentences x tokens)."""

    def run(net, x, mask):
        h = F.linear(F.linear(x, net.w1).relu(), net.w2)
        return (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    torch.manual_seed(0)
    model = Net(run, w1=nn.Parameter(torch.randn(6, 3)), w2=nn.Parameter(torch.randn(2, 6)))
    x, real = sentences(0)
    assert [tap.module for tap in trace(model, (x, real)).groups[0].taps] == [""]
    ((mean, _),) = once(model, (x, real), lambda x, mask: mask)
    assert_close(mean[:, 0], F.linear(x[real], model.w1).relu().mean(0))


def test_an_encoder_and_a_decoder_each_have_a_method_with_its_own_mask():
    model = Net(
        lambda net, q, a, q_mask, a_mask: net.encode(q).sum() + net.decode(a).sum(),
        encode=nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)),
        decode=nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)),
    )
    (q, q_mask), (a, a_mask) = sentences(1), sentences(2, most=4)
    inputs = q, a, q_mask, a_mask
    ((encoded, _),) = once(model, inputs, lambda q, a, q_mask, a_mask: q_mask, include="encode*")
    ((decoded, _),) = once(model, inputs, lambda q, a, q_mask, a_mask: a_mask, include="decode*")
    assert_close(encoded[:, 0], model.encode[:2](q[q_mask]).mean(0))
    assert_close(decoded[:, 0], model.decode[:2](a[a_mask]).mean(0))


def test_one_mask_for_each_call_of_a_shared_encoder():
    model = Net(
        lambda net, q, d: (net.encode(q[0]).sum(1) * net.encode(d[0]).sum(1)).sum(-1),
        encode=nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)),
    )
    q, d = sentences(1), sentences(2)
    ((mean, _),) = once(model, (q, d), lambda q, d: (q[1], d[1]))
    tokens = torch.cat([q[0][q[1]], d[0][d[1]]])
    assert_close(mean[:, 0], model.encode[:2](tokens).mean(0))
    with pytest.raises(ValueError, match=r"mask: 1 masks, one for each call, and 'encode.2' is called once more"):
        once(model, (q, d), lambda q, d: (q[1],))


@pytest.mark.parametrize("compiled", ["whole", "part"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's own
def test_a_masked_model_can_be_compiled(compiled):
    torch._dynamo.reset()
    runs = []
    for how in (None, compiled):
        model = Pooled()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        cbp = ContinualBackprop(model, optimizer, example_inputs=sentences(0), mask="mask", **OFTEN)
        if how == "part":
            model.tokens.compile(backend="eager", fullgraph=True)
        run = torch.compile(model, backend="eager", fullgraph=True) if how == "whole" else model
        for step in range(80):
            optimizer.zero_grad()
            run(*sentences(step)).square().mean().backward()
            optimizer.step()
        enough(cbp)
        runs.append((cbp.stats(), model.state_dict()))
    assert runs[0][0] == runs[1][0]
    for name, value in runs[0][1].items():
        assert_close(value, runs[1][1][name], rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


def a_rank(rank, folder):
    wrapped = DistributedDataParallel(Pooled())
    x, real = sentences(rank, n=(10, 4)[rank])
    cbp = attached(wrapped, (x, real), decay_rate=0.0, mask="mask")
    wrapped(x, real)
    cbp.step()
    torch.save([cbp.score.mean(group) for group in cbp.groups], f"{folder}/{rank}.pt")


def test_ranks_weigh_by_their_real_tokens(tmp_path):
    on_ranks(a_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    tokens = torch.cat([x[real] for x, real in (sentences(0, n=10), sentences(1, n=4))])
    for one, other, h in zip(first, second, (Pooled().tokens[:2](tokens), Pooled().tokens(tokens)), strict=True):
        assert torch.equal(one, other)
        assert_close(one[0, :, 0], h.mean(0))


# -- activation checkpointing runs parts again ---------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts_are_masked_by_their_own_forward(reentrant):
    def again(part, x):
        return checkpoint(part, x.requires_grad_(), use_reentrant=reentrant)

    found = []
    for run in (again, lambda part, x: part(x)):
        model = Pooled(run=run)
        cbp = attached(model, sentences(0), decay_rate=0.0, mask="mask")
        for step in range(3):  # accumulated: each backward behind its own forward
            model(*sentences(step)).sum().backward()
            with torch.no_grad():
                model(*sentences(9))
        cbp.step()
        found.append([cbp.score.value(group, []) for group in cbp.groups])
    assert_close(found[0], found[1])


def test_parts_that_run_again_behind_several_forwards_are_read_in_the_forward_alone():
    found = []
    for run in (lambda part, x: checkpoint(part, x, use_reentrant=False), lambda part, x: part(x)):
        model = Pooled(run=run)
        cbp = attached(model, sentences(0), decay_rate=0.0, mask="mask")
        (model(*sentences(0)).sum() + model(*sentences(1)).sum()).backward()
        cbp.step()
        found.append([cbp.score.value(group, []) for group in cbp.groups])
    assert_close(found[0], found[1], rtol=0, atol=0)


def test_reentrant_checkpointing_behind_several_forwards_is_an_error():
    model = Pooled(run=lambda part, x: checkpoint(part, x.requires_grad_(), use_reentrant=True))
    attached(model, sentences(0), mask="mask")
    both = model(*sentences(0)).sum() + model(*sentences(1)).sum()
    with pytest.raises(
        RuntimeError,
        match=r"several forwards with masks of their own wait for it: use checkpoint\(..., use_reentrant=False",
    ):
        both.backward()


# -- masks that are none ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ("maks", ValueError, r"takes no 'maks' \(did you mean 'mask'\?\), but x, mask"),
        ("src_key_padding_mask", ValueError, "True at padding, and here True is real"),
        (torch.ones(2, 2), TypeError, "a method sees many batches; give the name of an argument"),
    ],
)
def test_a_mask_that_no_forward_gives_is_an_error_at_construction(mask, error, message):
    with pytest.raises(error, match=message):
        attached(Pooled(), sentences(0), mask=mask)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            lambda x, mask: mask.T,
            ValueError,
            r"mask: shape \(6, 10\) does not fit the input of 'tokens.2', which has \(10, 6\)",
        ),
        (lambda x, mask: torch.where(mask, 0.0, -torch.inf), ValueError, "additive"),
        (lambda x, mask: torch.where(mask, 0.0, -1e9), ValueError, "additive"),
        (lambda x, mask: mask + 1, ValueError, "other numbers"),
        (lambda x, mask: mask.tolist(), TypeError, "not a list|not a bool"),
    ],
)
def test_a_mask_that_does_not_fit_is_an_error_at_the_first_forward(mask, error, message):
    model = Pooled()
    attached(model, sentences(0), mask=mask)
    with pytest.raises(error, match=message):
        model(*sentences(0))


def test_an_additive_mask_is_known_by_the_first_padding_it_hides():
    model, (x, real) = Pooled(), sentences(0)
    attached(model, (x, real), mask=lambda x, mask: torch.where(mask, 0.0, -torch.inf))
    model(x, torch.ones_like(real))
    with pytest.raises(ValueError, match="additive"):
        model(x, real)


def test_an_argument_that_a_forward_may_leave_out_hides_nothing_then():
    model, (x, real) = Pooled(), sentences(0)
    cbp = attached(model, (x, real), decay_rate=0.0, mask="mask")
    model(x)
    cbp.step()
    assert_close(cbp.score.mean(cbp.groups[0])[0, :, 0], model.tokens[:2](x).mean((0, 1)))


def test_a_name_that_only_keywords_hold_must_be_given():
    model = Net(lambda net, x, mask: net.inner(x, mask), inner=Pooled())
    model.forward = lambda *args, **kwargs: model.inner(*args, **kwargs)
    x, real = sentences(0)
    attached(model, {"x": x, "mask": real}, mask="mask")
    model(x=x, mask=real)
    with pytest.raises(RuntimeError, match="called without 'mask='"):
        model(x, real)


def test_a_call_outside_of_the_masked_forward_is_an_error_unless_nothing_is_read():
    model, (x, real) = Pooled(), sentences(0)
    attached(model, (x, real), mask="mask")
    model(x, real)
    with torch.no_grad():
        model.tokens(x)
    with recording_paused():
        model.tokens(x)
    other = Pooled()
    attached(other, (x, real), mask="mask")
    with pytest.raises(
        RuntimeError, match=r"'tokens.2' was called outside of the forward of Pooled, which the mask belongs to"
    ):
        other.tokens(x)


def test_a_loop_over_time_says_nothing_of_which_position_it_is_at():
    def run(net, x, mask):
        h = torch.zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = torch.tanh(net.enter(x[:, t]) + net.again(h))
        return net.head(h)

    model = Net(run, enter=nn.Linear(3, 6), again=nn.Linear(6, 6), head=nn.Linear(6, 2))
    attached(model, sentences(0), mask=lambda x, mask: mask)
    with pytest.raises(ValueError, match=r"several times in one forward, one row per example \(a loop over time\?\)"):
        model(*sentences(0))


def test_a_stack_of_runs_takes_no_mask():
    model = Pooled()
    model.tokens[0].weight = nn.Parameter(torch.randn(2, 12, 3))
    (group,) = chain_groups(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    stack = Net(lambda net, x: x, **{"0": nn.Module(), "2": nn.Module()})
    for name, shape in (("0", (2, 4, 3)), ("2", (2, 2, 4))):
        stack.get_submodule(name).weight = nn.Parameter(torch.zeros(shape))
        stack.get_submodule(name).bias = nn.Parameter(torch.zeros(shape[:2]))
    group = UnitGroup("0", group.incoming, group.outgoing, group.tap, runs=2)
    with pytest.raises(ValueError, match="mask: not for a stack of runs"):
        ContinualBackprop(stack, torch.optim.SGD(stack.parameters(), lr=0.1), groups=[group], mask=lambda x: x)


def test_copies_and_detached_models_carry_no_mask():
    model, (x, real) = Pooled(), sentences(0)
    cbp = attached(model, (x, real), mask="mask")
    copy.deepcopy(model).tokens(x)
    cbp.detach()
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    model.tokens(x)


def test_without_a_mask_and_auxiliary_calls_the_model_itself_has_no_hook():
    model = Pooled()
    attached(model, sentences(0))
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


# -- auxiliary calls ---------------------------------------------------------------------------------------------------------


def layers():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))


class Tail(nn.Module):
    """Its second product is seen by no module."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        return F.linear(F.linear(x, self.a).relu(), self.b)


AUXILIARY = {
    "identity behind": (lambda net, x: (net.mlp(x), net.mlp(torch.eye(5)).square().sum()), (True, False)),
    "zeros in front": (lambda net, x: net.mlp(torch.zeros(1, 5)).sum() + net.mlp(x), (False, True)),
    "a shape": (lambda net, x: net.mlp(x.new_zeros(3, 5)).numel() + net.mlp(x), (False, True)),
    "between two branches": (
        lambda net, x: net.mlp(x) + net.mlp(torch.eye(5)).mean() + net.mlp(-x),
        (True, False, True),
    ),
    "a weight": (lambda net, x: net.mlp(x) + F.linear(x, net.mlp(torch.eye(5)).t()), (True, False)),
    "a norm": (lambda net, x: net.mlp(x / net.mlp(torch.eye(5)).norm()), (False, True)),
    "a frozen probe": (lambda net, x: (net.mlp(x), net.mlp(net.probe)), (True, False)),
}


@pytest.mark.parametrize("how", AUXILIARY)
def test_only_calls_that_carry_the_inputs_are_examples(how):
    run, calls = AUXILIARY[how]
    torch.manual_seed(0)
    model = Net(run, mlp=layers(), probe=nn.Parameter(torch.randn(2, 5), requires_grad=False))
    x = torch.randn(6, 5)
    plan = trace(model, x)
    assert plan.groups[0].taps[0].calls == calls
    shown: list[torch.Tensor] = []
    handle = model.mlp[2].register_forward_pre_hook(lambda _, args: shown.append(args[0].detach()))
    ((mean, utility),) = once(model, (x,), None, include="mlp.0")
    handle.remove()
    shown = shown[-len(calls) :]  # the trace called it before
    h = torch.cat([each for each, counts in zip(shown, calls, strict=True) if counts])
    assert_close(mean[:, 0], h.mean(0))
    assert_close(utility, h.abs().mean(0) * model.mlp[2].weight.abs().mean(0))


def test_they_are_told_apart_at_operands_and_at_outputs_of_recurrent_modules():
    torch.manual_seed(0)
    model = Net(lambda net, x: (net.tail(torch.eye(5)).sum(), net.tail(x)), tail=Tail())
    x = torch.randn(6, 5)
    assert str(trace(model, x).groups[0].taps[0]) == "operand of 'tail.b', call 2 of 2"
    ((mean, _),) = once(model, (x,), None)
    assert_close(mean[:, 0], F.linear(x, model.tail.a).relu().mean(0))

    model = Net(
        lambda net, x: (net.head(net.rnn(torch.zeros(1, 2, 5))[0]).sum(), net.head(net.rnn(x)[0])),
        rnn=nn.LSTM(5, 8, batch_first=True), head=nn.Linear(8, 2),
    )  # fmt: skip
    x = torch.randn(4, 3, 5)
    ((mean, _),) = once(model, (x,), None)
    assert_close(mean, model.rnn(x)[0].mean((0, 1))[:, None].expand(8, 2))


def test_the_first_state_of_a_loop_is_read_as_before():
    """Zeros that a recurrent weight meets carry no inputs either, yet every example begins with them."""

    def run(net, x):
        h = torch.zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = torch.tanh(net.enter(x[:, t]) + net.again(h))
        return net.head(h)

    model = Net(run, enter=nn.Linear(3, 6), again=nn.Linear(6, 6), head=nn.Linear(6, 2))
    assert all(tap.calls is None for group in trace(model, torch.randn(4, 3, 3)).groups for tap in group.taps)


def test_a_generator_that_draws_its_own_noise_is_read():
    model = Net(lambda net, x: net.mlp(torch.randn(6, 5)), mlp=layers())
    assert trace(model, torch.zeros(1)).groups[0].taps[0].calls is None


def test_an_auxiliary_call_in_the_same_call_of_the_tapped_module_leaves_no_place_to_read():
    model = Net(
        lambda net, x: (F.linear(F.relu(net.a(torch.zeros(1, 5))), net.w).sum(), F.linear(F.relu(net.a(x)), net.w)),
        a=nn.Linear(5, 8), w=nn.Parameter(torch.randn(3, 8)),
    )  # fmt: skip
    with pytest.raises(ValueError, match="no module shows what w reads"):
        trace(model, torch.randn(6, 5), activity=True)


def sometimes():
    torch.manual_seed(0)
    net = Net(lambda net, x: (net.mlp(x), net.mlp(torch.eye(5)).sum() if net.regularized else 0), mlp=layers())
    net.regularized = True
    return net


def test_another_number_of_calls_than_traced_is_an_error():
    model, x = sometimes(), torch.randn(6, 5)
    attached(model, x)
    model.regularized = False
    with pytest.raises(RuntimeError, match=r"'mlp.2' was called 1 times in a forward, and 2 times when it was traced"):
        model(x)


def test_a_call_outside_of_the_forward_is_an_error_where_some_are_auxiliary_and_fine_where_none_is():
    model, x = sometimes(), torch.randn(6, 5)
    attached(model, x)
    with pytest.raises(
        RuntimeError, match=r"'mlp.2' was called outside of the forward of Net, which the order of its calls"
    ):
        model.mlp(x)
    with torch.no_grad():
        model.mlp(x)
    model.eval()
    model.mlp(x)
    plain = Net(lambda net, x: net.mlp(x), mlp=layers())
    cbp = attached(plain, x)
    plain.mlp(x)
    cbp.step()
    assert steps(cbp) == 1


def test_example_inputs_that_disagree_on_auxiliary_calls_leave_the_group_alone():
    model = Net(lambda net, x: (net.mlp(x), net.mlp(torch.eye(5)).sum() if len(x) > 3 else 0), mlp=layers())
    with pytest.raises(ValueError, match="differs between the example inputs"):
        trace(model, [torch.randn(2, 5), torch.randn(6, 5)])


def test_training_with_a_regularizer_on_an_identity_replaces_what_training_without_reading_it_does(monkeypatch):
    """The oracle sends the identity through under `recording_paused`, outside of the forward."""
    monkeypatch.setenv("PLIANT_NO_NUMBA", "1")  # to the bit; compiled, to rounding
    runs = []
    for inside in (True, False):
        torch.manual_seed(0)
        model = Net(lambda net, x: (net.mlp(x), net.mlp(torch.eye(5)) if net.inside else None), mlp=layers())
        model.inside = inside
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        cbp = ContinualBackprop(model, optimizer, example_inputs=torch.zeros(2, 5), **OFTEN)
        for step in range(80):
            x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
            y, eye = model(x)
            if eye is None:
                with recording_paused():
                    eye = model.mlp(torch.eye(5))
            optimizer.zero_grad()
            (y.square().mean() + 0.1 * eye.square().mean()).backward()
            optimizer.step()
        enough(cbp)
        runs.append(model.state_dict())
    for name, value in runs[0].items():
        assert_close(value, runs[1][name], rtol=0, atol=0)
