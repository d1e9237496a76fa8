"""With the rest of PyTorch: compiled, in mixed precision, checkpointed, accumulated, on several ranks; or a clear error."""

import copy
import shutil

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from pliant import ContinualBackprop, diagnose, trace
from tests.networks import NETWORKS, batch, enough, mlp, train
from tests.ranks import on_ranks

OFTEN = {"replacement_rate": 0.05, "maturity_threshold": 5, "seed": 1}


def attached(model, optimizer=None, shape=(6,), **settings):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    x = torch.zeros(2, *shape, dtype=next(model.parameters()).dtype)
    return optimizer, ContinualBackprop(model, optimizer, example_inputs=x, **{**OFTEN, **settings})


def utilities(cbp):
    return list(cbp.utilities().values())


def same_weights(first, second, **tolerance):
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


# -- torch.compile -----------------------------------------------------------------------------------------------------

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="no g++"))]


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # inductor's own
def test_a_model_compiled_with_the_method_attached_is_one_graph_and_trains_as_in_eager_mode(backend, dynamo):
    eager, other = mlp(dtype=torch.float64), mlp(dtype=torch.float64)
    stepper, cbp = attached(eager)
    compiled_stepper, compiled_cbp = attached(other)
    compiled = torch.compile(other, backend=backend)
    train(eager, stepper, range(60), dtype=torch.float64)
    train(compiled, compiled_stepper, range(60), dtype=torch.float64)
    enough(cbp)
    assert compiled_cbp.stats() == cbp.stats()
    same_weights(eager, other, rtol=1e-9, atol=1e-12)
    for a, b in zip(utilities(cbp), utilities(compiled_cbp), strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert dynamo["stats"]["unique_graphs"] == 1
    assert not dynamo["graph_break"]


def by_hand(loss, optimizer, cbp):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    cbp.step()


def in_a_closure(loss, optimizer, cbp):
    def closure():
        optimizer.zero_grad()
        found = loss()
        found.backward()
        return found

    optimizer.step(closure)


def as_a_rule(loss, optimizer, cbp):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


@pytest.mark.parametrize("whole_step", [as_a_rule, in_a_closure, by_hand])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script_method:DeprecationWarning", "ignore:The .grad attribute:UserWarning"
)
def test_a_compiled_training_step_forward_backward_and_optimizer_trains_as_in_eager_mode(kind, whole_step, dynamo):
    """Torch's own compiled Adam differs from its eager one by as much as is allowed here: it counts in float32."""

    def trained(compile_it):
        model = mlp(dtype=torch.float64)
        optimizer, cbp = attached(model, kind(model.parameters(), lr=0.01), attach=whole_step is not by_hand)

        def step(x, y):
            whole_step(lambda: nn.functional.mse_loss(model(x), y), optimizer, cbp)

        run = torch.compile(step, backend="eager") if compile_it else step
        for number in range(60):
            run(*(each.double() for each in batch(number, (6,))))
        return model, cbp

    (eager, cbp), (other, compiled_cbp) = trained(False), trained(True)
    enough(cbp)
    assert compiled_cbp.stats() == cbp.stats()
    same_weights(eager, other, rtol=1e-4, atol=1e-5)
    assert dynamo["frames"]["ok"] >= 1


def test_attaching_after_the_first_compiled_call_is_a_clear_error_at_the_first_step(dynamo):
    model = mlp()
    compiled = torch.compile(model, backend="aot_eager")
    x, _ = batch(0, (6,))
    compiled(x).sum().backward()
    optimizer, _ = attached(model)
    compiled(x).sum().backward()
    with pytest.raises(RuntimeError, match="attach before the first call of a compiled model"):
        optimizer.step()


# -- mixed precision ---------------------------------------------------------------------------------------------------


def test_under_autocast_statistics_are_kept_in_float32_and_agree_with_full_precision():
    full, mixed = mlp(), mlp()
    _, cbp = attached(full, attach=False)
    _, mixed_cbp = attached(mixed, attach=False)
    x, _ = batch(0, (6,), size=64)
    full(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed(x)
    cbp.step()
    mixed_cbp.step()
    for a, b in zip(utilities(cbp), utilities(mixed_cbp), strict=True):
        assert b.dtype == torch.float32
        assert_close(a, b, rtol=0.02, atol=1e-4)


def test_training_under_autocast_replaces_units():
    model = mlp()
    optimizer, cbp = attached(model)
    for step in range(60):
        x, y = batch(step, (6,))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    enough(cbp)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def scaled_step(model, optimizer, scaler, step, *, overflow=False):
    x, y = batch(step, (6,))
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y) * (torch.inf if overflow else 1.0)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("fused", [False, True])
def test_with_a_grad_scaler_training_is_that_without(kind, fused):
    plain, scaled = mlp(), mlp()
    stepper, cbp = attached(plain, kind(plain.parameters(), lr=0.01, fused=fused))
    scaled_stepper, scaled_cbp = attached(scaled, kind(scaled.parameters(), lr=0.01, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    train(plain, stepper, range(60))
    for step in range(60):
        torch.manual_seed(step)
        scaled_step(scaled, scaled_stepper, scaler, step)
    enough(cbp)
    assert scaled_cbp.stats() == cbp.stats()
    same_weights(plain, scaled, rtol=1e-4, atol=1e-6)


# -- ways to run the forward -------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, inner, *, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        first = self.inner[0](x)  # a reentrant checkpoint needs an input with a gradient
        return checkpoint(self.inner[1:], first, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant):
    plain, inner = mlp(dtype=torch.float64), mlp(dtype=torch.float64)
    stepper, cbp = attached(plain)
    other_stepper, other_cbp = attached(inner)
    train(plain, stepper, range(60), dtype=torch.float64)
    train(Checkpointed(inner, reentrant=reentrant), other_stepper, range(60), dtype=torch.float64)
    enough(cbp)
    assert other_cbp.stats() == cbp.stats()
    same_weights(plain, inner, rtol=1e-9, atol=1e-12)


def test_channels_last_changes_nothing():
    build, shape = NETWORKS["convnet"]
    plain, other = build().double(), build().double().to(memory_format=torch.channels_last)
    stepper, cbp = attached(plain, shape=shape)
    other_stepper, other_cbp = attached(other, shape=shape)
    train(plain, stepper, range(140), shape, dtype=torch.float64)
    train(other, other_stepper, range(140), shape, dtype=torch.float64)
    enough(cbp)
    assert other[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert other_cbp.stats() == cbp.stats()
    same_weights(plain, other, rtol=1e-7, atol=1e-10)


def test_deterministic_algorithms_are_respected():
    plain, strict = mlp(), mlp()
    stepper, cbp = attached(plain)
    train(plain, stepper, range(60))
    torch.use_deterministic_algorithms(True)
    try:
        strict_stepper, _ = attached(strict)
        train(strict, strict_stepper, range(60))
    finally:
        torch.use_deterministic_algorithms(False)
    enough(cbp)
    same_weights(plain, strict)


def test_a_schedule_of_step_sizes_goes_on_as_without():
    """A schedule to zero: after it nothing moves but what the method writes."""
    model = mlp()
    optimizer, cbp = attached(model, torch.optim.Adam(model.parameters(), lr=0.01))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=60)
    train(model, optimizer, range(60), after=schedule.step)
    enough(cbp)
    cbp.detach()
    before = copy.deepcopy(model)
    train(model, optimizer, range(60, 70))
    same_weights(before, model)


def test_a_module_that_is_called_by_keyword_is_read():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp()

        def forward(self, x):
            for layer in self.layers:
                x = layer(input=x)
            return x

    plain, keywords = mlp(), Keywords()
    stepper, cbp = attached(plain)
    other_stepper, _ = attached(keywords)
    train(plain, stepper, range(60))
    train(keywords, other_stepper, range(60))
    enough(cbp)
    same_weights(plain, keywords.layers)


def test_a_part_that_does_not_run_in_a_step_keeps_its_clock():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = mlp(seed=0), mlp(seed=1)
            self.both = True

        def forward(self, x):
            return self.a(x) + self.b(x) if self.both else self.a(x)

    model = Sometimes()
    optimizer, cbp = attached(model, replacement_rate=0.1)
    for step in range(180):
        model.both = step % 3 == 0
        train(model, optimizer, [step])
    steps = {name: group["steps"] for name, group in cbp.stats().items()}
    assert steps == {"a.0": 180, "a.2": 180, "b.0": 60, "b.2": 60}
    assert all((age <= steps[name]).all() for name, age in cbp.ages().items())
    enough(cbp, 20)


def test_a_consumer_that_does_not_run_in_a_step_leaves_its_mean_as_it_is():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(3, 1)
            self.which = "both"

        def forward(self, x):
            h = torch.relu(self.trunk(x))
            heads = {"both": (self.first, self.second), "first": (self.first,)}[self.which]
            return sum(head(h) for head in heads)

    model = TwoHeads()
    _, cbp = attached(model, shape=(2,), attach=False)
    model(torch.ones(4, 2))
    cbp.step()
    (group,) = cbp.groups
    before = cbp.score.mean(group).clone()
    model.which = "first"
    model(torch.full((4, 2), 3.0))
    cbp.step()
    after = cbp.score.mean(group)
    consumers = {part.part.parameter: each.columns for each in group.consumers for part in each.slices}
    assert_close(after[..., consumers["second.weight"]], before[..., consumers["second.weight"]])
    assert not torch.equal(after[..., consumers["first.weight"]], before[..., consumers["first.weight"]])


# -- several ranks -----------------------------------------------------------------------------------------------------


def one_rank_of_two(rank, folder):
    model = mlp()
    with pytest.raises(ValueError, match="2 ranks, and the model is no DistributedDataParallel: wrap it first"):
        attached(model)


def test_a_model_that_is_not_wrapped_is_an_error_among_several_ranks(tmp_path):
    on_ranks(one_rank_of_two, tmp_path)


# -- limits, each an error that names it -------------------------------------------------------------------------------


def test_a_sharded_model_is_an_error(tmp_path):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        fully_shard(model, mesh=mesh)
        with pytest.raises((ValueError, TypeError), match=r"shard|DTensor"):
            ContinualBackprop(model, optimizer, example_inputs=torch.zeros(2, 6))
    finally:
        dist.destroy_process_group()


def test_torch_func_over_an_attached_model_is_an_error():
    model = mlp()
    attached(model)
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.vmap(lambda x: model(x))(torch.zeros(3, 2, 6))


def test_weights_that_were_replaced_after_attaching_are_an_error():
    model = mlp()
    optimizer, _ = attached(model)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    model(torch.zeros(2, 6))
    with pytest.raises(RuntimeError, match=r"'0.weight' was replaced by another tensor after attaching"):
        optimizer.step()


def test_neither_or_both_of_groups_and_example_inputs_is_an_error():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="give either example_inputs=x"):
        ContinualBackprop(model, optimizer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_captured_in_a_cuda_graph_is_an_error_that_says_to_step_by_hand():
    model = mlp().cuda()
    x = torch.zeros(8, 6, device="cuda")
    optimizer = torch.optim.Adam(model.parameters(), capturable=True)
    cbp = ContinualBackprop(model, optimizer, example_inputs=x)

    def step():
        model(x).sum().backward()
        optimizer.step()

    def capture():
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            step()

    for _ in range(3):
        step()
    with pytest.raises(RuntimeError, match="attach=False, and call its step"):
        capture()
    cbp.detach()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_mode_in_which_a_model_is_looked_at_changes_nothing(mode):
    """As in a validation loop, which runs in inference mode and makes its inputs there."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4)

    def look(x):
        return [str(trace(net, x)), str(diagnose(net, x)), str(diagnose(net, x, loss=lambda y: y.square().mean()))]

    expected = look(x)
    with mode():
        inside = x.clone()
        assert look(inside) == expected
    assert look(inside) == expected


def test_a_method_attached_in_inference_mode_trains_as_one_attached_outside():
    def trained(mode):
        torch.manual_seed(0)
        net, x = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2)), torch.randn(16, 4)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        with mode():
            example = x.clone()
            cbp = ContinualBackprop(
                net, optimizer, example_inputs=example, replacement_rate=0.1, maturity_threshold=2, seed=0
            )
        for _ in range(40):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        assert sum(cbp.stats()["0"]["replaced"]) >= 20
        return [parameter.detach().clone() for parameter in net.parameters()]

    for inside, outside in zip(trained(torch.inference_mode), trained(torch.enable_grad), strict=True):
        assert torch.equal(inside, outside)


def test_a_model_made_in_inference_mode_is_refused_with_a_way_out():
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode, which cannot be trained"):
        trace(net, torch.zeros(2, 4))
