"""A unit's own parameter may reach it through any function: it is redrawn with the unit, or the units are left alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

import pliant
from pliant.units import BN, AffineEntry


class Gated(nn.Module):
    """A hidden layer whose 8 units meet a parameter of 8 entries in a way of the test's choosing."""

    def __init__(self, meet, entries=8):
        super().__init__()
        self.hidden, self.out = nn.Linear(10, 8), nn.Linear(8, 3)
        self.s = nn.Parameter(0.3 * torch.randn(entries))
        self.t = nn.Parameter(0.3 * torch.randn(8))
        self.meet = meet

    def forward(self, x):
        return self.out(self.meet(self, torch.relu(self.hidden(x))))


def recurrence(decay):
    def run(net, h):
        state = torch.zeros(8)  # no unit's in the first step
        for _ in range(3):
            state = decay(net.s) * state + h
        return state

    return run


def filled_in_place(net, h):
    gate = torch.empty(8)
    gate[:4], gate[4:] = net.s[:4].exp(), 1 + net.s[4:]
    return h * gate


THEIRS = {
    "exp": lambda net, h: h * net.s.exp(),
    "sigmoid": lambda net, h: h * net.s.sigmoid(),
    "softplus": lambda net, h: h * F.softplus(net.s),
    "1 + s": lambda net, h: h * (1 + net.s),
    "2 * s": lambda net, h: h * (2 * net.s),
    "clamp": lambda net, h: h * net.s.clamp(-1, 1),
    "division": lambda net, h: h / (1 + net.s.exp()),
    "difference": lambda net, h: 1 - net.s - h,
    "constant mask": lambda net, h: h * (net.s * torch.arange(8).remainder(2)),
    "lerp": lambda net, h: torch.lerp(h, 2 * h, net.s.sigmoid()),
    "comparison": lambda net, h: h * (h > net.s.abs()),
    "where": lambda net, h: torch.where(net.s > 0, h, 0.1 * h),
    "masked_fill": lambda net, h: h.masked_fill(net.s > 0, 0.1),
    "maximum": lambda net, h: torch.maximum(h, net.s),
    "clamped by it": lambda net, h: h.clamp(max=net.s.exp()),
    "exponent": lambda net, h: (1 + h) ** net.s,
    "slope": lambda net, h: F.prelu(h - 0.5, net.s.exp()),
    "addcmul": lambda net, h: torch.addcmul(h, h, net.s.exp()),
    "complex number": lambda net, h: torch.polar(net.s.exp(), net.t).abs() * h,
    "einsum": lambda net, h: torch.einsum("bi,i->bi", h, net.s.exp()),
    "rms norm with 1 + w": lambda net, h: F.rms_norm(h, (8,), 1 + net.s),
    "layer norm with 1 + w": lambda net, h: F.layer_norm(h, (8,), 1 + net.s),
    "batch norm with 1 + w": lambda net, h: F.batch_norm(h, torch.zeros(8), torch.ones(8), 1 + net.s),
    "decay of a state that begins at 0": recurrence(lambda s: s),
    "function of such a decay": recurrence(torch.sigmoid),
    "in place": filled_in_place,
    "concatenation": lambda net, h: h * torch.cat([net.s[:4].exp(), net.s[4:]]),
    "element by element": lambda net, h: h * torch.stack([each.exp() for each in net.s]),
    "two roles": lambda net, h: h * net.s.exp() + net.s,
    "computed filter": lambda net, h: F.conv1d(h[:, :, None], net.s.exp()[:, None, None], groups=8).squeeze(-1),
    "gate from constants": lambda net, h: h * torch.sigmoid(net.s * torch.ones(4, 1)),
}
NOBODY_KNOWS = {
    "softmax": lambda net, h: h * net.s.softmax(0),
    "norm": lambda net, h: h * F.normalize(net.s, dim=0),
    "running sum": lambda net, h: h * net.s.cumsum(0),
    "order": lambda net, h: h[:, net.s.argsort()],
    "computed weight": lambda net, h: h @ net.s.exp().diag(),
    "glu": lambda net, h: F.glu(torch.cat([h, net.s.expand(len(h), 8)], -1)),
}


@pytest.mark.parametrize("meet", THEIRS.values(), ids=THEIRS)
def test_an_entry_that_reaches_one_unit_through_a_function_is_that_units_own(meet):
    torch.manual_seed(0)
    net, x = Gated(meet), torch.randn(4, 10)
    plan = pliant.trace(net, x)
    (group,) = plan.groups
    own = {each.part.parameter: each.part for each in group.affine if isinstance(each, AffineEntry)}
    assert "s" in own or "s" in [part.parameter for part in group.incoming]
    assert not plan.verify(net, x).wrong


@pytest.mark.parametrize("meet", NOBODY_KNOWS.values(), ids=NOBODY_KNOWS)
def test_units_end_where_a_parameter_reaches_them_through_what_cannot_be_told_apart(meet):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"'s'") as error:
        pliant.trace(Gated(meet), torch.randn(4, 10))
    assert "hidden.weight" in str(error.value)


def test_a_mean_over_a_parameter_is_nobodys_and_leaves_the_units_as_they_are():
    net = Gated(lambda net, h: h * net.s.mean())
    (group,) = pliant.trace(net, torch.randn(4, 10)).groups
    assert group.affine == []


def test_entries_follow_their_units_through_flips_and_indices():
    net = Gated(lambda net, h: h * net.s.flip(0).exp())
    (group,) = pliant.trace(net, torch.randn(4, 10)).groups
    assert group.affine[0].part.index == tuple((7 - unit,) for unit in range(8))


def test_a_unit_owns_the_row_that_reaches_it_through_a_norm_of_the_row():
    net = Gated(lambda net, h: h * net.s.softmax(1)[:, 0], entries=(8, 2))
    (group,) = pliant.trace(net, torch.randn(4, 10)).groups
    (own,) = group.affine
    assert (own.part.parameter, own.part.axis, own.part.repeat) == ("s", 0, 1)


def test_a_unit_owns_the_filter_that_reaches_it_through_a_fourier_transform():
    """A convolution as long as the signal, channel by channel: the kernel's row is the channel's."""

    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 2, 1)
            self.kernel, self.spectrum = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8, 7, 2))

        def forward(self, x):
            kernel = torch.fft.rfft(self.kernel, n=12) * torch.view_as_complex(self.spectrum)
            return self.b(torch.fft.irfft(torch.fft.rfft(self.a(x), n=12) * kernel, n=12)[..., :6])

    torch.manual_seed(0)
    net, x = Long(), torch.randn(2, 3, 6)
    plan = pliant.trace(net, x)
    (group,) = plan.groups
    assert {each.part.parameter for each in group.affine} == {"kernel", "spectrum"}
    assert plan.verify(net, x).rows[0].verdict == "exact"


def test_a_unit_owns_several_entries_of_a_state_space():
    net = Gated(lambda net, h: (h[..., None] * net.s.view(8, 2).exp()).sum(-1), entries=16)
    (group,) = pliant.trace(net, torch.randn(4, 10)).groups
    assert group.affine[0].part.repeat == 2


def test_a_bias_that_is_pruned_or_parametrized_is_the_units_own():
    plain = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.random_unstructured(plain[0], "bias", 0.3)
    parametrized = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    parametrize.register_parametrization(parametrized[0], "bias", nn.Softplus())
    for net, name in ((plain, "0.bias_orig"), (parametrized, "0.parametrizations.bias.original")):
        (group,) = pliant.trace(net, torch.randn(4, 10)).groups
        assert [each.part.parameter for each in group.affine] == [name]


def test_the_pruned_scale_of_a_batch_norm_goes_with_its_running_statistics():
    net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    prune.random_unstructured(net[1], "weight", 0.3)
    (group,) = pliant.trace(net, torch.randn(6, 10)).groups
    assert [str(each) for each in group.affine] == ["1", "1.weight_orig[i]"]
    assert isinstance(group.affine[0], BN)


@pytest.mark.parametrize("term", [lambda s: s.exp().sum(), lambda s: s], ids=["a function of it", "itself"])
def test_a_parameter_that_is_also_returned_leaves_its_units_alone(term):
    class Returned(Gated):
        def forward(self, x):
            return super().forward(x), term(self.s)

    with pytest.raises(ValueError, match=r"'s' is also used elsewhere"):
        pliant.trace(Returned(lambda net, h: h * net.s), torch.randn(4, 10), trial=False)


@pytest.mark.parametrize("pad", [(1, 1), (2, 0)], ids=["same", "causal"])
def test_a_depthwise_filter_behind_padding_is_its_channels(pad):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.d, self.b = nn.Conv1d(4, 8, 1), nn.Conv1d(8, 8, 3, groups=8), nn.Conv1d(8, 3, 1)

        def forward(self, x):
            return self.b(torch.relu(self.d(F.pad(torch.relu(self.a(x)), pad))))

    net, x = Padded(), torch.randn(2, 4, 12)
    plan = pliant.trace(net, x)
    (group,) = plan.groups
    assert [part.parameter for part in group.incoming] == ["a.weight", "d.weight", "a.bias", "d.bias"]
    assert plan.verify(net, x).rows[0].verdict == "exact"


def test_a_learned_token_beside_the_examples_goes_through_a_norm():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.norm = nn.Parameter(torch.zeros(1, 1, 6)), nn.LayerNorm(6)
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.norm(torch.cat([self.token.expand(len(x), 1, 6) * 2.0, x], dim=1))
            return self.b(torch.relu(self.a(x)))

    assert [group.name for group in pliant.trace(Token(), torch.randn(2, 4, 6)).groups] == ["a"]


# -- what a fresh unit's entries are ---------------------------------------------------------------------------------


def replaced(net, x, steps=12):
    """Trained a little, and all of its hidden units replaced once; what `s` was before, and is after."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    start = net.s.detach().clone()
    cbp = pliant.ContinualBackprop(net, optimizer, example_inputs=x, replacement_rate=1.0, maturity_threshold=steps - 1)
    for _ in range(steps - 1):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    trained = net.s.detach().clone()
    optimizer.zero_grad()
    (0.0 * net(x).sum()).backward()  # one step more, which moves nothing but the replaced
    optimizer.step()
    assert cbp.stats()["hidden"]["replaced"] == [8]
    return start, trained, net.s.detach()


def test_entries_of_a_replaced_unit_are_what_another_units_were_when_the_method_was_attached():
    torch.manual_seed(0)
    start, trained, after = replaced(Gated(lambda net, h: h * net.s.exp()), torch.randn(16, 10))
    assert not torch.equal(trained, start)
    assert set(after.tolist()) <= set(start.tolist())
    assert all(entry != own for entry, own in zip(after.tolist(), start.tolist(), strict=True))


def test_entries_of_a_replaced_unit_are_what_their_modules_reset_makes_of_them():
    class WithReset(Gated):
        def reset_parameters(self):
            nn.init.constant_(self.s, -4.0)

    torch.manual_seed(0)
    _, _, after = replaced(WithReset(lambda net, h: h * net.s.exp()), torch.randn(16, 10))
    assert after.tolist() == [-4.0] * 8


def test_a_reset_that_does_not_write_an_entry_says_nothing_of_it():
    class ResetsOthers(Gated):
        def reset_parameters(self):
            nn.init.zeros_(self.t)

    torch.manual_seed(0)
    start, _, after = replaced(ResetsOthers(lambda net, h: h * net.s.exp()), torch.randn(16, 10))
    assert set(after.tolist()) <= set(start.tolist())


@pytest.mark.parametrize("silenced", ["before", "after"])
def test_a_threshold_that_silenced_its_unit_lets_the_fresh_one_fire(silenced):
    torch.manual_seed(0)
    net, x = Gated(lambda net, h: h * (h > net.s.exp())), torch.randn(64, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    if silenced == "before":
        net.s.data[3] = 5.0  # e^5 = 148: this unit never fires
    cbp = pliant.ContinualBackprop(net, optimizer, example_inputs=x, replacement_rate=1 / 16, maturity_threshold=4)
    net.s.data[3] = 5.0
    for _ in range(12):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert cbp.stats()["hidden"]["replaced"][0] >= 1
    assert net.s[3] < 1.0


def test_units_that_began_alike_draw_nothing_for_their_own_entries():
    def trained(scale):
        torch.manual_seed(0)
        net, x = Gated(lambda net, h: scale(net.s) * h), torch.randn(16, 10)
        net.s.data.fill_(1.0)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        cbp = pliant.ContinualBackprop(
            net, optimizer, example_inputs=x, replacement_rate=0.5, maturity_threshold=1, seed=0
        )
        for _ in range(10):
            net(x).sum().backward()
            optimizer.step()
        assert cbp.stats()["hidden"]["replaced"][0] >= 20
        return net.hidden.weight

    assert torch.equal(trained(lambda s: s), trained(lambda s: 1.0))


def test_what_entries_started_from_is_saved_and_wins_over_a_model_that_has_trained():
    torch.manual_seed(0)
    net, x = Gated(lambda net, h: h * net.s.exp()), torch.randn(16, 10)
    start = net.s.detach().clone()
    first = pliant.ContinualBackprop(net, torch.optim.SGD(net.parameters(), 0.1), example_inputs=x)
    with torch.no_grad():
        net.s.add_(1.0)
    state = first.state_dict()
    first.detach()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    again = pliant.ContinualBackprop(
        net, optimizer, example_inputs=x, replacement_rate=1.0, maturity_threshold=1000, seed=0
    )
    assert torch.equal(again.redraw.state_dict()["borrowed"][0].flatten(), net.s.detach())
    again.load_state_dict(state)
    assert torch.equal(again.redraw.state_dict()["borrowed"][0].flatten(), start)


def test_a_raw_weight_that_its_modules_reset_does_not_write_is_never_drawn_from_what_was_learned():
    """A copy of the module, reset, would hold the weights as they have become."""

    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.scale = nn.Parameter(torch.randn(8, 10) / 10), nn.Parameter(torch.ones(8))
            self.out = nn.Linear(8, 3)

        def reset_parameters(self):
            nn.init.ones_(self.scale)

        def forward(self, x):
            return self.out(self.scale * torch.relu(x @ self.w.t()))

    torch.manual_seed(0)
    net, x = Raw(), torch.randn(16, 10)
    net.w.data.mul_(100.0)  # as if grown
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    net(x).sum().backward()
    optimizer.step()  # its state says that the network has trained
    cbp = pliant.ContinualBackprop(net, optimizer, example_inputs=x, replacement_rate=1.0, maturity_threshold=1)
    for _ in range(3):
        net(x).sum().backward()
        optimizer.step()
    assert cbp.stats()["w"]["replaced"][0] >= 8
    assert net.w.abs().max() <= 10**-0.5  # a raw weight starts like a Linear
