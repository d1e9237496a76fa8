"""One thread looks at a model while others train theirs: nobody is disturbed, then or later."""

import sys
from threading import Event, Thread
from time import sleep
from typing import ClassVar

import pytest
import torch
import torch._dynamo  # whose stance is the process's
from torch import nn

from pliant import ContinualBackprop, diagnose, trace
from pliant.base import process
from pliant.units.hooks import recording_paused
from tests.networks import NETWORKS, batch, enough, mlp, train


def attached(model, shape, **settings):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    often = {"replacement_rate": 0.1, "maturity_threshold": 5, "seed": 1, "example_inputs": torch.zeros(2, *shape)}
    return optimizer, ContinualBackprop(model, optimizer, **{**often, **settings})


class Beside:
    """Threads that do something again and again until the block ends. What they raise is raised here."""

    def __init__(self, *looks):
        self.over, self.raised, self.rounds = Event(), [], [0] * len(looks)
        self.threads = [Thread(target=self._run, args=pair) for pair in enumerate(looks)]

    def _run(self, number, look):
        try:
            while not self.over.is_set():
                look()
                self.rounds[number] += 1
        except BaseException as error:
            self.raised.append(error)

    def wait(self, rounds):
        while min(self.rounds) < rounds and not self.raised:
            sleep(0.01)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self.over.set()
        for thread in self.threads:
            thread.join()
        if self.raised:
            raise self.raised[0]


@pytest.fixture(autouse=True)
def often_switched():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def looks(shape):
    """Three ways to look at networks of one's own."""
    first, second, third = mlp(seed=2), mlp(seed=3), mlp(seed=4)
    x = torch.randn(4, 6)
    plan = trace(third, x)
    return [lambda: diagnose(first, x), lambda: trace(second, x), lambda: plan.verify(third, x, rounds=1)]


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_training_beside_threads_that_look_is_to_the_bit_that_alone(name):
    """No dropout: what is drawn from the process's random state is the process's."""
    build, shape = NETWORKS[name]
    alone, other = build(), build()
    for model in (alone, other):
        for module in model:
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    (stepper, cbp), (other_stepper, other_cbp) = attached(alone, shape), attached(other, shape)
    train(alone, stepper, range(100), shape)
    with Beside(*looks(shape)) as beside:
        train(other, other_stepper, range(100), shape)
    assert min(beside.rounds) >= 3
    enough(cbp)
    assert other_cbp.stats() == cbp.stats()
    for a, b in zip(alone.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_only_the_thread_that_looks_is_not_read():
    model = mlp()
    _, cbp = attached(model, (6,), attach=False)
    inside, done = Event(), Event()

    def look():
        with recording_paused():
            model(torch.ones(2, 6))
            inside.set()
            done.wait(60)

    with Beside(look) as beside:
        inside.wait(60)
        assert not any(cbp.recorded().values())
        model(torch.ones(2, 6))
        assert all(examples == 2 for examples in cbp.recorded().values())
        beside.over.set()
        done.set()


def switches():
    return (
        torch.get_rng_state().tolist(),
        torch._C._get_mkldnn_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch._dynamo.eval_frame._stance.stance,
    )


SEEN = []  # not in a model, where it would be put back


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.core, self.mix, self.last = nn.GRU(6, 5), nn.TransformerEncoderLayer(5, 1, 8, dropout=0.0), nn.Linear(5, 2)

    def forward(self, x):
        SEEN.append((torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled()))
        return self.last(self.mix(self.core(x)[0]))


def test_threads_that_look_at_once_leave_random_state_and_switches_as_they_were():
    models, x = [Recurrent() for _ in range(3)], torch.randn(3, 2, 6)
    before = switches()
    with Beside(*(lambda model=model: diagnose(model, x) for model in models)) as beside:
        beside.wait(4)
    assert switches() == before


def test_kernels_are_switched_only_where_the_model_has_them():
    """Convolutions elsewhere go on with the kernels they had."""

    class Shown(nn.Sequential):
        def forward(self, x):
            SEEN.append((torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled()))
            return super().forward(x)

    model = Shown(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    trace(model, torch.randn(3, 6))
    assert SEEN[-1] == (torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled())
    recurrent = Recurrent()
    trace(recurrent, torch.randn(3, 2, 6))
    assert SEEN[-1] == (False, False)


class Scaled(nn.Linear):
    """A layer whose reset is its own, so that fresh units are read off a copy of it that draws from the global generator."""

    def reset_parameters(self):
        with torch.no_grad():
            self.weight.normal_(0.0, 0.3)
            self.bias.zero_()


def own_reset():
    torch.manual_seed(0)
    return nn.Sequential(Scaled(6, 12), nn.ReLU(), Scaled(12, 9), nn.ReLU(), nn.Linear(9, 2))


def train_without_the_global_generators(model, optimizer):
    for step in range(60):
        x, y = batch(step, (6,))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def test_fresh_units_of_layers_with_a_reset_of_their_own_are_drawn_as_alone_in_every_thread():
    alone = own_reset()
    stepper, cbp = attached(alone, (6,))
    train_without_the_global_generators(alone, stepper)
    enough(cbp)
    others = [own_reset() for _ in range(2)]
    pairs = [attached(each, (6,)) for each in others]
    threads = [
        Thread(target=train_without_the_global_generators, args=(each, stepper))
        for each, (stepper, _) in zip(others, pairs, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in others:
        for a, b in zip(alone.parameters(), each.parameters(), strict=True):
            assert torch.equal(a, b)


def test_methods_can_be_built_and_taken_off_in_many_threads_at_once():
    def build():
        model = mlp()
        optimizer, cbp = attached(model, (6,))
        train(model, optimizer, range(2))
        cbp.detach()
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert not optimizer._optimizer_step_post_hooks

    with Beside(*[build] * 4) as beside:
        beside.wait(5)


def test_the_random_state_is_lent_to_one_thread_at_a_time():
    drawn = []

    def draw():
        with process.random_state(seed=7):
            drawn.append([torch.rand(()).item() for _ in range(20)])

    before = torch.get_rng_state()
    with Beside(draw, draw, draw) as beside:
        beside.wait(50)
    assert all(each == drawn[0] for each in drawn)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_type_of_the_process_stays_as_it_is_while_a_copy_runs_in_float64():
    class Noting(nn.Sequential):
        seen: ClassVar[set[torch.dtype]] = set()

        def forward(self, x):
            self.seen.add(torch.get_default_dtype())
            return super().forward(x + torch.zeros(6))

    net = Noting(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = trace(net, torch.randn(4, 6))
    assert plan.verify(net, torch.randn(4, 6)).rows[0].verdict == "exact"
    assert Noting.seen == {torch.float32}
