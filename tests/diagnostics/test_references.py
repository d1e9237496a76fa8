"""What a diagnosis is read beside, and where the numbers come from: fresh networks, saved states, loaders, a trial step."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import pliant
from pliant.diagnostics import diagnose, saturation, stagnant, update_ratio, volatile
from pliant.engine.fresh_copy import FreshCopy
from tests.networks import convnet, mlp
from tests.units.test_hard_cases import everything


def batch(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, Y = batch(64, 6), torch.arange(64) % 2


def grown(factor=10.0, **settings):
    model = mlp(**settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


def without_growth(rows):
    return [dict(vars(row), weight_growth=None) for row in rows]


# -- the reference --------------------------------------------------------------------------------------------------------------


def test_the_fresh_network_is_what_the_resets_draw_and_stands_below_each_row():
    model = grown()
    found = diagnose(model, X)
    fresh = diagnose(FreshCopy(model).draw(0), X, reference=None)
    assert found.reference.rows == fresh.rows
    for row, other in zip(found.rows, fresh.rows, strict=True):
        assert row.weight_growth == pytest.approx(row.weight_magnitude / other.weight_magnitude)
        assert row.weight_growth > 5
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["0", "fresh", "2", "fresh"]
    assert any(line.startswith("fresh: a new network beside it") for line in lines)


@pytest.mark.parametrize("reference", [None, False])
def test_no_reference_is_no_reference(reference):
    found = diagnose(mlp(), X, reference=reference)
    assert found.reference is None
    assert found.rows[0].weight_growth is None
    assert "fresh" not in str(found)


def test_a_model_a_builder_and_a_saved_state_serve_as_reference(tmp_path):
    model, start = grown(), mlp(seed=3)
    torch.save(start.state_dict(), tmp_path / "start.pt")
    alone = diagnose(start, X, reference=None).rows
    for reference in (
        start,
        lambda: copy.deepcopy(start),
        start.state_dict(),
        tmp_path / "start.pt",
        str(tmp_path / "start.pt"),
    ):
        found = diagnose(model, X, reference=reference)
        assert found.reference.rows == alone
        assert without_growth(found.rows) == without_growth(diagnose(model, X).rows)


def test_a_builder_may_draw_and_the_global_random_state_stays():
    model = grown().double()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = diagnose(model, X.double(), reference=lambda: nn.Sequential(*[copy.deepcopy(each) for each in mlp(seed=3)]))
    assert torch.equal(torch.get_rng_state(), before)
    assert found.reference.rows[0].weight_magnitude == pytest.approx(mlp(seed=3)[0].weight.abs().mean().item())


def test_where_no_reset_draws_a_parameter_the_table_says_so_and_shows_the_rest():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = nn.Parameter(batch(8, 6)), nn.Parameter(batch(2, 8))

        def forward(self, x):
            return F.linear(F.linear(x, self.w1).relu(), self.w2)

    found = diagnose(Raw(), X)
    assert found.reference is None
    assert "no fresh network beside it, give reference=a function that builds one: 'w1' (Raw) cannot be drawn" in str(
        found
    )
    assert diagnose(Raw(), X, reference=Raw).reference.rows[0].weight_magnitude == found.rows[0].weight_magnitude


def test_a_fresh_network_that_does_not_run_is_named_and_leaves_the_model_its_table():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            if self.net[0].weight.abs().max() < 1.0:
                raise ArithmeticError("too small")
            return self.net(x)

    model = Counts()
    with torch.no_grad():
        model.net[0].weight *= 10.0
    found = diagnose(model, X)
    assert found.reference is None
    assert "no fresh network beside it, give reference=a function that builds one: too small" in str(found)
    with pytest.raises(ArithmeticError, match="too small"):
        diagnose(model, X, reference=Counts)


def test_the_fresh_network_has_the_modes_and_in_evaluation_norms_that_have_seen_the_examples():
    model, x = convnet(), batch(32, 2, 8, 8) * 3.0 + 2.0
    for _ in range(50):
        model(x)
    model.eval()
    found = diagnose(model, x)
    assert found.reference.mode == "evaluation"
    # the same weights but for the draw: on statistics of no data, the features would be of another size
    assert found.rows[0].feature_norm == pytest.approx(found.reference.rows[0].feature_norm, rel=0.3)
    assert diagnose(model.train(), x).reference.mode == "training"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (nn.Linear(6, 2), "has no parameter '0.weight'"),
        (lambda: nn.Sequential(nn.Linear(6, 2)), "has no"),
        (lambda: 3, r"reference\(\) must build a model, it returned 3"),
        (3, "reference must be 'fresh', a model, a function that builds one"),
        (lambda one: mlp(), r"reference is called with(out| 0) arguments"),
        ("nowhere.pt", "reference: there is no file 'nowhere.pt'"),
        ({"0.weight": torch.zeros(3)}, "reference is of another model"),
    ],
)
def test_a_reference_that_is_none_is_one_clear_error(reference, message):
    model = mlp()
    before = everything(model)
    with pytest.raises((TypeError, ValueError), match=message):
        diagnose(model, X, reference=reference)
    assert everything(model) == before


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_models_have_a_reference_too(wrap):
    plain, wrapped = diagnose(grown(), X), diagnose(wrap(grown()), X)
    assert [row.weight_growth for row in wrapped.rows] == [row.weight_growth for row in plain.rows]
    optimizer = torch.optim.SGD(grown().parameters(), lr=0.1)
    model = wrap(grown())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepped = diagnose(model, X, Y, loss=F.cross_entropy, optimizer=optimizer)
    assert all(row.update_ratio > 0 for row in (*stepped.rows, *stepped.reference.rows))


def test_all_forms_hold_model_and_reference():
    found = diagnose(grown(), X)
    plain = found.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    frame = found.to_pandas()
    assert frame["network"].tolist() == ["model", "model", "fresh", "fresh"]
    assert frame["preactivation_std"].notna().all()
    assert found._repr_html_().count("<tr>") == 5
    titles = [axis.get_title() for axis in found.plot().axes]
    assert {"mean |w|", "growth", "std of z", "at ends"} <= {*titles}


# -- measures of the activity ----------------------------------------------------------------------------------------------------


def test_pre_activations_are_what_enters_the_function_wherever_it_is_read():
    model = mlp()
    z1 = model[0](X)
    z2 = model[2](z1.relu())
    first, second = diagnose(model, X).rows
    assert first.preactivation_std == pytest.approx(z1.std(correction=0).item(), rel=1e-5)
    assert second.preactivation_std == pytest.approx(z2.std(correction=0).item(), rel=1e-5)
    in_place = nn.Sequential(model[0], nn.ReLU(inplace=True), *model[2:])
    assert diagnose(in_place, X).rows[0].preactivation_std == pytest.approx(first.preactivation_std)
    parts = diagnose(model, [X[:10], X[10:]]).rows
    assert parts[0].preactivation_std == pytest.approx(first.preactivation_std)


def test_pre_activations_of_a_convolution_are_known_behind_pool_and_flatten():
    model, x = convnet().eval(), batch(16, 2, 8, 8)
    rows = diagnose(model, x).rows
    z1 = model[0][:2](x)
    z2 = model[1][:2](model[0](x))
    assert rows[0].preactivation_std == pytest.approx(z1.std(correction=0).item(), rel=1e-5)
    assert rows[1].preactivation_std == pytest.approx(z2.std(correction=0).item(), rel=1e-5)


def test_pre_activations_of_padding_do_not_count():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    x, real = batch(5, 4, 6), torch.ones(5, 4) == 1
    real[:, 2:] = False
    (row,) = diagnose(model, x, mask=real).rows
    assert row.preactivation_std == pytest.approx(model[0](x[:, :2]).std(correction=0).item(), rel=1e-5)


def test_a_norm_or_a_gate_has_no_pre_activation():
    gated = nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 2))
    assert all(row.preactivation_std is None for row in diagnose(gated, X).rows)


def test_saturation_is_graded_where_saturated_counts_whole_units():
    h = torch.tensor([[1.0, 0.0], [1.0, -1.0], [0.5, 0.2], [1.0, 0.1]])
    assert saturation(h).item() == pytest.approx(4 / 8)
    model = grown(100.0)
    rows = diagnose(model, X).rows
    assert rows[1].saturation == pytest.approx(saturation(model[:4](X)).item())
    assert rows[0].saturation is None


# -- loaders and targets ---------------------------------------------------------------------------------------------------------


def loader(**settings):
    return DataLoader(TensorDataset(X, Y), batch_size=24, **settings)


def test_a_loader_is_read_for_its_first_examples_and_the_forward_takes_x():
    found = diagnose(mlp(), loader())
    assert found.rows[0].n == 64
    for row, other in zip(found.rows, diagnose(mlp(), X).rows, strict=True):
        assert row.effective_rank == pytest.approx(other.effective_rank)
    assert diagnose(mlp(), loader(), examples=30).rows[0].n == 30


def test_a_loader_brings_its_targets_and_the_loss_is_over_all_examples():
    model = mlp()
    one, many = diagnose(model, X, Y, loss=F.cross_entropy), diagnose(model, loader(), loss=F.cross_entropy)
    assert many.network.loss == pytest.approx(one.network.loss) == pytest.approx(F.cross_entropy(model(X), Y).item())
    for row, other in zip(many.rows, one.rows, strict=True):
        assert row.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)


def test_reading_a_loader_that_shuffles_draws_nothing():
    generator = torch.Generator().manual_seed(1)
    for data in (loader(shuffle=True), loader(shuffle=True, generator=generator)):
        before, own = torch.get_rng_state(), generator.get_state()
        diagnose(mlp(), data)
        state = torch.get_rng_state()
        mlp()  # seeds
        torch.set_rng_state(state)
        assert torch.equal(own, generator.get_state())
        torch.manual_seed(0)
        first = [y.tolist() for _, y in data]
        torch.manual_seed(0)
        diagnose(mlp(), data, reference=None)
    assert first
    torch.manual_seed(9)
    model, before = mlp(), torch.get_rng_state()
    diagnose(model, loader(shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_that_are_mappings_give_the_forward_the_arguments_it_takes():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, features):
            return self.net(features)

    rows = [{"features": x, "label": y} for x, y in zip(X, Y, strict=True)]
    assert diagnose(Named(), DataLoader(rows, batch_size=16)).rows[0].n == 64
    loss = diagnose(Named(), DataLoader(rows, batch_size=16), loss=lambda output: output.square().mean()).network.loss
    assert loss == pytest.approx(mlp()(X).square().mean().item())
    with pytest.raises(ValueError, match="batches are x, label, and the forward of Named takes features"):
        diagnose(Named(), DataLoader([{"x": x, "label": y} for x, y in zip(X, Y, strict=True)], batch_size=16))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (iter(loader()), None, "x is a .*, which is used up by being read: give the DataLoader itself"),
        (DataLoader(TensorDataset(X, Y, Y)), None, "batches have 3 parts, and which of them the model takes"),
        (loader(), Y, "y is in the batches"),
        ([X, X], [Y], "y holds 1 targets for the 2 batches"),
        (X, Y, "y needs loss="),
        ("model.pt", None, "x is 'model.pt': give inputs of the model; a checkpoint's file goes to state="),
        (X, None, r"which cross_entropy does not take; where it takes a target too, give that: diagnose\(model, x, y"),
    ],
)
def test_data_that_cannot_be_understood_is_one_clear_error(x, y, message):
    with pytest.raises((TypeError, ValueError), match=message):
        diagnose(mlp(), x, y, loss=None if message.startswith("y needs") else F.cross_entropy)


# -- a step of the optimizer -----------------------------------------------------------------------------------------------------


def trained(optimizer=torch.optim.Adam, steps=30, **settings):
    model = mlp()
    stepper = optimizer(model.parameters(), **{"lr": 0.01, **settings})
    for _ in range(steps):
        stepper.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        stepper.step()
    return model, stepper


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad, torch.optim.RMSprop])
def test_the_trial_step_is_the_next_step_and_nothing_is_changed(optimizer):
    model, stepper = trained(optimizer)
    before, state = everything(model), copy.deepcopy(stepper.state_dict())
    found = diagnose(model, X[:32], loss=lambda output: F.cross_entropy(output, Y[:32]), optimizer=stepper)
    assert everything(model) == before
    assert str(stepper.state_dict()) == str(state)
    old = [parameter.detach().clone() for parameter in model.parameters()]
    stepper.zero_grad()
    F.cross_entropy(model(X[:32]), Y[:32]).backward()
    stepper.step()
    for row, layer, weight in zip(found.rows, (model[0], model[2]), (old[0], old[2]), strict=True):
        moved = layer.weight.detach() - weight
        assert row.update_ratio == pytest.approx((moved.norm() / weight.norm()).item(), rel=1e-4)
        ratio = update_ratio(moved.T, weight.T)
        assert (row.stagnant, row.volatile) == (stagnant(ratio).sum(), volatile(ratio).sum())
    assert found.network.loss_after == pytest.approx(F.cross_entropy(model(X[:32]), Y[:32]).item(), rel=1e-4)
    assert all(row.update_ratio > 0 for row in found.reference.rows)


def test_stale_state_of_adam_makes_small_steps_and_the_fresh_network_has_none():
    model, stepper = trained()
    for state in stepper.state.values():
        state["exp_avg_sq"].fill_(1e6)
    found = diagnose(model, X, Y, loss=F.cross_entropy, optimizer=stepper)
    assert all(row.stagnant == row.units for row in found.rows)
    assert all(row.stagnant < row.units / 2 for row in found.reference.rows)


def test_plasticity_is_the_share_of_each_sample_s_loss_that_one_step_takes_away():
    model, stepper = trained(torch.optim.SGD, steps=0, lr=0.5)
    found = diagnose(model, X, Y, loss=F.cross_entropy, optimizer=stepper, reference=None)
    before = F.cross_entropy(model(X[:32]), Y[:32], reduction="none")
    others = model(X[32:])
    F.cross_entropy(model(X[:32]), Y[:32]).backward()
    stepper.step()
    after = F.cross_entropy(model(X[:32]), Y[:32], reduction="none")
    assert found.network.plasticity == pytest.approx((1 - after / before).clamp(0, 1).mean().item(), rel=1e-4)
    assert found.network.churn == pytest.approx((model(X[32:]) - others).square().sum(1).mean().item(), rel=1e-4)
    assert "on 32 examples; plasticity: share of the loss it takes away, mean over samples" in str(found)


def test_a_loss_of_the_output_alone_gives_the_plasticity_of_the_batch_and_no_churn():
    model, stepper = trained(torch.optim.SGD, steps=0, lr=0.5)
    found = diagnose(
        model, X, loss=lambda output: F.cross_entropy(output, Y), optimizer=stepper, reference=None
    ).network
    assert found.churn is None
    assert found.plasticity == pytest.approx(1 - found.loss_after / found.loss)


def test_churn_of_several_outputs_is_that_of_the_logits():
    class Output(dict):
        __getattr__ = dict.get

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x, labels):
            logits = self.net(x)
            return Output(logits=logits, loss=F.cross_entropy(logits, labels))

    data = DataLoader([{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)], batch_size=32)
    named, plain = Named(), mlp()
    given = {"reference": None, "optimizer": torch.optim.SGD(named.parameters(), lr=0.5)}
    found = diagnose(named, data, loss=lambda output: output.loss, **given).network
    given["optimizer"] = torch.optim.SGD(plain.parameters(), lr=0.5)
    expected = diagnose(plain, X, Y, loss=F.cross_entropy, **given).network
    assert found.churn == pytest.approx(expected.churn, rel=1e-5)
    assert found.loss == pytest.approx(expected.loss)


def test_an_attached_method_neither_acts_nor_is_copied_by_a_trial_step():
    model, stepper = trained()
    cbp = pliant.ContinualBackprop(model, stepper, example_inputs=X, replacement_rate=0.5, maturity_threshold=0)
    before = cbp.stats()
    diagnose(model, X, Y, loss=F.cross_entropy, optimizer=stepper)
    assert cbp.stats() == before


def test_sharpness_is_the_largest_eigenvalue_of_the_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = batch(20, 3), torch.arange(20) % 2
    found = diagnose(model, x, y, loss=F.cross_entropy, sharpness=True, reference=None).network.sharpness
    names = [name for name, _ in model.named_parameters()]
    flat = torch.cat([each.detach().flatten() for each in model.parameters()])
    shapes = [each.shape for each in model.parameters()]

    def loss(vector):
        pieces = vector.split([math.prod(shape) for shape in shapes])
        held = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, held, (x,)), y)

    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    assert found == pytest.approx(values[values.abs().argmax()].item(), rel=0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"optimizer": torch.optim.SGD(mlp().parameters(), lr=0.1), "loss": F.cross_entropy},
            "optimizer steps no",
        ),
        ({"optimizer": "adam", "loss": F.cross_entropy}, "optimizer is a str"),
        ({"sharpness": True}, "sharpness needs loss"),
        ({"loss": lambda output, target, more: 0}, "loss is called with 2 arguments"),
        ({"loss": lambda output, target: 0.0}, "loss must give a tensor of one number"),
    ],
)
def test_odd_requests_for_a_step_are_one_clear_error(given, message):
    y = Y if "loss" in given else None
    with pytest.raises((TypeError, ValueError), match=message):
        diagnose(mlp(), X, y, **given)


def test_the_functions_of_updates_refuse_other_shapes():
    with pytest.raises(ValueError, match="update and weight must have one shape"):
        update_ratio(X, X[:3])
    assert_close(update_ratio(torch.zeros(2, 2), torch.zeros(2, 2)), torch.zeros(2, dtype=torch.float64))
