"""Methods inside Lightning's loop. In the environment of `make integrations`."""

import copy
import logging
import pickle
import signal
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="Lightning is not installed: make integrations")

from lightning.fabric import Fabric
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import SingleDeviceStrategy

import pliant
from pliant.integrations.lightning import (
    ContinualBackpropCallback,
    MethodCallback,
    PlasticityMonitorCallback,
    UnitResetCallback,
)
from tests.integrations.killed import (
    METHODS,
    OFTEN,
    data,
    differing,
    done,
    hooks,
    kill,
    leave,
    process,
    ranks,
    replaced,
    same_end,
)

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.filterwarnings("ignore"),  # Lightning's own advice: loader workers, loggers, checkpoint folders
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Net(LightningModule):
    """Two hidden layers; automatic optimization."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.relu(self.first(x)))))

    def loss(self, batch):
        return cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Manual(Net):
    """Manual optimization, with a closure every other batch."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        if batch_idx % 2:

            def closure():
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)
        else:
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


class TwoOptimizers(Manual):
    """One for each half of the parameters, in turns."""

    def training_step(self, batch, batch_idx):
        for each in self.optimizers():
            each.zero_grad()
            self.manual_backward(self.loss(batch))
            each.step()

    def configure_optimizers(self):
        lower = [*self.first.parameters(), *self.second.parameters()]
        return [torch.optim.Adam(lower, lr=0.01), torch.optim.SGD(self.head.parameters(), lr=0.05)]


class KillAt(Callback):
    def __init__(self, batches):
        self.left = batches

    def on_train_batch_end(self, *arguments):
        self.left -= 1
        if not self.left:
            kill()


KINDS = {"automatic": Net, "manual": Manual, "two optimizers": TwoOptimizers}
HOW = {
    "automatic": {},
    "manual": {},
    "two optimizers": {},
    "accumulated": {"accumulate_grad_batches": 3},
    "bf16": {"precision": "bf16-mixed"},
    "clipped": {"gradient_clip_val": 0.1},
}


def trainer(folder=None, callbacks=(), epochs=12, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    saving = [] if folder is None else [ModelCheckpoint(folder, save_last=True, every_n_epochs=1)]
    return Trainer(
        max_epochs=epochs,
        callbacks=[*callbacks, *saving],
        enable_checkpointing=folder is not None,
        **{**quiet, "num_sanity_val_steps": 0, **settings},
    )


def loader(size=8):
    return DataLoader(TensorDataset(*data()), batch_size=size)


def train(how, method, folder, *, kill_at=None, resume=False, epochs=12):
    """Fit, and leave the end in a file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    model = KINDS.get(how, Net)()
    maker, settings = METHODS[method]
    callback = MethodCallback(maker, **settings)
    at_step = [] if kill_at is None else [KillAt(kill_at)]
    last = f"{folder}/last.ckpt" if resume else None
    trainer(folder, [callback, *at_step], epochs, **HOW[how]).fit(
        model, loader(), loader(), ckpt_path=last, weights_only=True
    )
    leave(folder, model, callback.method)
    return callback, model


@pytest.mark.parametrize(
    ("how", "method"),
    [
        *((how, "continual backprop") for how in HOW),
        *(("automatic", each) for each in METHODS if each != "continual backprop"),
    ],
)
def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(how, method, tmp_path):
    callback, _ = train(how, method, tmp_path / "straight")
    assert done(callback.method)
    killed = tmp_path / "killed"
    assert process("test_lightning", f"train({how!r}, {method!r}, {str(killed)!r}, kill_at=61)") == -signal.SIGKILL
    assert (killed / "last.ckpt").exists()
    assert not (killed / "end.pt").exists()
    assert process("test_lightning", f"train({how!r}, {method!r}, {str(killed)!r}, resume=True)") == 0
    assert same_end(tmp_path / "straight", killed)


def test_without_the_state_a_resumed_run_ends_elsewhere_and_says_so(tmp_path, caplog):
    """So that the test above cannot pass by chance."""
    _, model = train("automatic", "continual backprop", tmp_path)
    train("automatic", "continual backprop", tmp_path / "half", epochs=6)
    checkpoint = torch.load(tmp_path / "half" / "last.ckpt", weights_only=False)
    key = "MethodCallback[ContinualBackprop]"
    assert checkpoint["callbacks"].pop(key)["counts"]
    torch.save(checkpoint, tmp_path / "half" / "last.ckpt")
    _, resumed = train("automatic", "continual backprop", tmp_path / "half", resume=True)
    assert differing(model.state_dict(), resumed.state_dict())
    assert f"last.ckpt holds no state of {key}, which begins anew" in caplog.text


# -- attached while it fits, and no longer -----------------------------------------------------------------------------------


def fit(model, *callbacks, epochs=2, loader=loader, **settings):
    trainer(None, callbacks, epochs, **settings).fit(model, loader())


def test_after_fitting_no_hook_is_left_and_the_method_tells_what_it_did():
    model, callback = Net(), ContinualBackpropCallback(**OFTEN)
    assert callback.method is None
    optimizers = []
    model.on_train_start = lambda: optimizers.extend(model.trainer.optimizers)
    fit(model, callback, epochs=12)
    assert replaced(callback.method) >= 20
    assert hooks(model, *optimizers) == 0


class Fail(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        raise ArithmeticError("in the middle")


def test_a_fit_that_raises_leaves_no_hook_and_the_next_goes_on():
    model, callback = Net(), ContinualBackpropCallback(**OFTEN)
    with pytest.raises(ArithmeticError):
        fit(model, callback, Fail())
    assert hooks(model) == 0
    fit(model, callback)
    assert {group["steps"] for group in callback.method.stats().values()} == {1 + 16}


@pytest.mark.parametrize(("how", "steps"), [("automatic", 16), ("manual", 16), ("accumulated", 6), ("bf16", 16)])
def test_its_clock_is_the_optimizer_step(how, steps):
    model, callback = KINDS.get(how, Net)(), ContinualBackpropCallback(**OFTEN)
    fit(model, callback, **HOW[how])
    assert {group["steps"] for group in callback.method.stats().values()} == {steps}


def test_validation_is_not_recorded():
    model, callback = Net(), ContinualBackpropCallback(**OFTEN)
    seen = []

    class Look(Callback):
        def on_validation_end(self, trainer, module):
            if callback.method is not None:
                seen.append(sum(callback.method.recorded().values()))

    quiet = trainer(None, [callback, Look()], 2, num_sanity_val_steps=2)
    quiet.fit(model, loader(), loader())
    assert seen == [0, 0]


def test_what_was_replaced_is_logged():
    model, callback = Net(), ContinualBackpropCallback(**OFTEN)
    seen = []
    model.on_train_epoch_end = lambda: seen.append(
        float(model.trainer.callback_metrics["pliant/ContinualBackprop/replaced"])
    )
    fit(model, callback, epochs=12, log_every_n_steps=1)
    assert seen[-1] == sum(sum(group["replaced"]) for group in callback.method.stats().values()) >= 40


def test_a_listener_is_told_of_each_replacement():
    found = []
    callback = ContinualBackpropCallback(on_replace=found.append, **OFTEN)
    fit(Net(), callback, epochs=12)
    total = sum(sum(group["replaced"]) for group in callback.method.stats().values())
    assert sum(len(each.units) for each in found) == total >= 40


def test_it_disturbs_no_random_number():
    """At rate 0 a fit ends as without a callback, dropout included."""

    class Dropping(Net):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    ends = []
    for callbacks in ([], [ContinualBackpropCallback(replacement_rate=0.0)], [MethodCallback(pliant.L2, strength=0.0)]):
        seed_everything(0, verbose=False)
        model = Dropping()
        fit(model, *callbacks, epochs=3, loader=lambda: DataLoader(TensorDataset(*data()), batch_size=8, shuffle=True))
        ends.append(model.state_dict())
    assert differing(ends[0], ends[1]) == differing(ends[0], ends[2]) == []


def test_with_the_older_package_name():
    older = pytest.importorskip("pytorch_lightning")

    class Old(older.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return cross_entropy(self(batch[0]), batch[1])

        configure_optimizers = Net.configure_optimizers

    callback = ContinualBackpropCallback(**OFTEN)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    fitting = older.Trainer(max_epochs=2, callbacks=[callback], enable_checkpointing=False, **quiet)
    fitting.fit(Old(), loader())
    assert list(callback.method.stats()) == ["net.0"]


def train_a_rank(folder):
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    model, callback = Net(), ContinualBackpropCallback(**OFTEN)
    fitting = trainer(None, [callback], 12, strategy="ddp", devices=2)
    fitting.fit(model, loader(4))
    assert fitting.world_size == 2
    assert replaced(callback.method) >= 20
    torch.save(model.state_dict(), f"{folder}/{fitting.global_rank}.pt")


def test_two_ranks_replace_the_same_units_and_stay_equal_to_the_bit(tmp_path):
    ranks("test_lightning", f"train_a_rank({str(tmp_path)!r})")
    assert differing(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2))) == []


class Logged(Logger):
    """What a tracker is told."""

    name = version = "logged"

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_hyperparams(self, *arguments): ...

    def log_metrics(self, metrics, step=None):
        self.values.setdefault(step, {}).update(metrics)


def test_a_monitor_measures_and_tells_the_loggers_of_the_trainer():
    callback, logged = PlasticityMonitorCallback(every=5), Logged()
    fit(Net(), callback, logger=logged)
    assert [row["step"] for row in callback.method.rows if row["group"] == "first"] == [1, 5, 10, 15]
    assert {1, 5, 10, 15} <= logged.values.keys()
    assert "pliant/first/dead_share" in logged.values[5]


def test_a_monitor_beside_a_method_writes_where_it_is_told(tmp_path):
    callback = PlasticityMonitorCallback(every=5, to=tmp_path / "measures.csv")
    fit(Net(), callback, ContinualBackpropCallback(**OFTEN), epochs=12)
    assert (tmp_path / "measures.csv").read_text().count("\n") == 1 + 2 * 20


# -- several methods ---------------------------------------------------------------------------------------------------------


def test_several_methods_at_once_are_saved_apart(tmp_path):
    model = Net()
    several = [
        ContinualBackpropCallback(**OFTEN),
        MethodCallback(pliant.L2, strength=0.01),
        UnitResetCallback(pliant.ReDo),
    ]
    trainer(tmp_path, several, 2).fit(model, loader())
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    expected = {"ContinualBackpropCallback[ContinualBackprop]", "MethodCallback[L2]", "MethodCallback[ReDo]"}
    assert expected <= held.keys()


def test_two_callbacks_of_one_method_need_two_names(tmp_path):
    first = ContinualBackpropCallback(include="first", **OFTEN)
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        trainer(tmp_path, [first, ContinualBackpropCallback(include="second", **OFTEN)])
    second = ContinualBackpropCallback(include="second", name="second", **OFTEN)
    trainer(tmp_path, [first, second], 2).fit(Net(), loader())
    assert [list(each.method.stats()) for each in (first, second)] == [["first"], ["second"]]
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert {f"ContinualBackpropCallback[{name}]" for name in ("ContinualBackprop", "second")} <= held.keys()


def test_two_callbacks_on_the_same_units_are_refused():
    with pytest.raises(ValueError, match="units of 'first' are already reset by a ContinualBackprop"):
        fit(Net(), ContinualBackpropCallback(**OFTEN), ContinualBackpropCallback(name="again", **OFTEN))


class Gan(LightningModule):
    """Two networks, two optimizers, no forward."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6))
        self.judge = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))

    def training_step(self, batch, batch_idx):
        one, other = self.optimizers()
        fake = self.generator(torch.randn(len(batch[0]), 4))
        one.zero_grad()
        self.manual_backward(-self.judge(fake).mean())
        one.step()
        other.zero_grad()
        self.manual_backward(self.judge(fake.detach()).mean() - self.judge(batch[0]).mean())
        other.step()

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=1e-3),
            torch.optim.Adam(self.judge.parameters(), lr=1e-3),
        ]


def test_networks_of_a_gan_are_said_one_by_one():
    of_generator = ContinualBackpropCallback(
        network=lambda module: module.generator,
        example_inputs=lambda batch: torch.zeros(2, 4),
        name="generator",
        **OFTEN,
    )
    of_judge = ContinualBackpropCallback(network=lambda module: module.judge, name="judge", **OFTEN)
    fit(Gan(), of_generator, of_judge, epochs=16)
    for each in (of_generator, of_judge):
        assert list(each.method.stats()) == ["0"]
        assert replaced(each.method) >= 20


class Embedding(LightningModule):
    """An autoencoder of which `forward`, for later use, is a half."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 6))

    def forward(self, x):
        return self.encoder(x)

    def training_step(self, batch, batch_idx):
        return (self.decoder(self.encoder(batch[0])) - batch[0]).square().mean()

    configure_optimizers = Net.configure_optimizers


def test_where_forward_is_not_all_that_trains_a_warning_says_what_to_do(caplog):
    with pytest.raises(RuntimeError, match=r"decoder.* never ran with the example inputs and trains now"):
        fit(Embedding(), ContinualBackpropCallback(**OFTEN))
    assert "forward of Embedding does not run 'decoder.0.weight'" in caplog.text
    assert "network=lambda module: nn.Sequential(module.encoder, module.decoder)" in caplog.text


def test_several_networks_in_a_row_are_one():
    callback = ContinualBackpropCallback(network=lambda module: nn.Sequential(module.encoder, module.decoder), **OFTEN)
    fit(Embedding(), callback, epochs=16)
    assert list(callback.method.stats()) == ["0.0", "0.2", "1.0"]
    assert replaced(callback.method) >= 20


def test_a_network_that_is_none_is_refused():
    with pytest.raises(
        TypeError, match=r"network= returned a list: it is a function of the module that returns a network"
    ):
        fit(Embedding(), ContinualBackpropCallback(network=lambda module: [module.encoder], **OFTEN))


# -- the example -------------------------------------------------------------------------------------------------------------


class ByName(Net):
    def forward(self, features, scale=1.0):
        return super().forward(features * scale)

    def loss(self, batch):
        return cross_entropy(self(batch["features"]), batch["label"])


def by_name():
    rows = [{"features": x, "label": y, "id": number} for number, (x, y) in enumerate(zip(*data(), strict=True))]
    return DataLoader(rows, batch_size=8)


def test_of_a_batch_by_name_the_forward_is_given_what_it_takes():
    callback = ContinualBackpropCallback(**OFTEN)
    fit(ByName(), callback, loader=by_name)
    assert list(callback.method.stats()) == ["first", "second"]


@pytest.mark.parametrize("example", [torch.zeros(2, 6), lambda batch: batch[0][:2], (torch.zeros(2, 6),)])
def test_an_example_may_be_given(example):
    callback = ContinualBackpropCallback(example_inputs=example, **OFTEN)
    fit(Net(), callback)
    assert list(callback.method.stats()) == ["first", "second"]


class Other(ByName):
    def forward(self, pixels, scale):
        return Net.forward(self, pixels * scale)

    def loss(self, batch):
        return cross_entropy(self(batch["features"], 1.0), batch["label"])


class Whole(Net):
    def forward(self, row):
        return super().forward(row["features"])

    def loss(self, batch):
        return cross_entropy(self(batch), batch["label"])


def test_a_forward_of_the_whole_batch_is_given_it():
    callback = ContinualBackpropCallback(**OFTEN)
    fit(Whole(), callback, loader=by_name)
    assert list(callback.method.stats()) == ["first", "second"]


def test_where_the_example_was_no_good_the_error_says_where_it_came_from():
    class Odd(Whole):
        def forward(self, pixels):
            return Net.forward(self, pixels)

    with pytest.raises(RuntimeError, match="the forward of Odd raised with the example inputs") as caught:
        fit(Odd(), ContinualBackpropCallback(**OFTEN), loader=by_name)
    assert (
        "what forward takes of the first batch. Say what it is run on with example_inputs=" in caught.value.__notes__[0]
    )


# -- what does not fit -------------------------------------------------------------------------------------------------------


class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        return self.loss(batch).requires_grad_()


class Nothing(Net):
    def configure_optimizers(self):
        return None


class OfAnother(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1)


class NoForward(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def training_step(self, batch, batch_idx):
        return self.net.loss(batch)

    configure_optimizers = Net.configure_optimizers


@pytest.mark.parametrize(
    ("model", "loader", "message"),
    [
        (Frozen, loader, "frozen|train"),
        (Nothing, loader, "Pass the optimizer that was built from this model's parameters"),
        (OfAnother, loader, "Pass the optimizer that was built from this model's parameters"),
        (NoForward, loader, r"NoForward defines no forward.*network=lambda module: module\.net"),
        (
            Other,
            by_name,
            "forward of Other takes 'pixels', and the first batch holds 'features', 'label', 'id'",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_changes_nothing(model, loader, message):
    model, callback = model(), ContinualBackpropCallback(**OFTEN)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError), match=message):
        fit(model, callback, loader=loader)
    assert hooks(model) == 0
    assert differing(before, model.state_dict()) == []


def test_a_strategy_that_holds_the_module_in_something_else_is_refused():
    class Holds(SingleDeviceStrategy):
        def setup(self, fitting):
            super().setup(fitting)
            self.model = nn.Sequential(self.model)

        def training_step(self, *arguments):
            return self.lightning_module.training_step(*arguments)

    model = Net()
    with pytest.raises(ValueError, match=r"Holds holds the module in a Sequential.* Use strategy='ddp'"):
        fit(model, ContinualBackpropCallback(**OFTEN), strategy=Holds(torch.device("cpu")))
    assert hooks(model) == 0


def test_a_second_model_is_refused():
    callback = ContinualBackpropCallback(**OFTEN)
    fit(Net(), callback)
    with pytest.raises(RuntimeError, match="this ContinualBackpropCallback has trained another model"):
        fit(Net(), callback)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    class Narrow(Net):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 12)

    trainer(tmp_path, [ContinualBackpropCallback(**OFTEN)], 2).fit(Net(), loader())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    callback = ContinualBackpropCallback(**OFTEN)
    callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    model = Narrow()
    with pytest.raises(ValueError, match="saved for other units"):
        fit(model, callback)
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContinualBackpropCallback(replacement_rat=0.1), "did you mean 'replacement_rate'"),
        (lambda: ContinualBackpropCallback(replacement_rate=2), r"replacement_rate must lie in \[0, 1\]"),
        (lambda: ContinualBackpropCallback(example_inputs=lambda: None), "example_inputs is called with 1 argument"),
        (lambda: ContinualBackpropCallback(network="net"), "network is a function of module, got 'net'"),
        (lambda: ContinualBackpropCallback(name=3), "name must be a text, got 3"),
        (lambda: MethodCallback(pliant.ContinualBackprop, attach=False), "attach: the callback sets these itself"),
        (lambda: MethodCallback(pliant.L2), "strength"),
        (lambda: MethodCallback(nn.Linear), "method must be one that is attached to a model"),
        (lambda: MethodCallback(pliant), "method must be one that is attached to a model"),
    ],
)
def test_bad_settings_are_refused_at_construction(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_version_that_it_is_not_tested_with_is_refused(monkeypatch):
    monkeypatch.setattr("pliant.base.install.version", lambda package: "3.1.0")
    with pytest.raises(RuntimeError, match=r'lightning 3\.1\.0 is installed, and .* pip install "lightning>=2\.5,<3"'):
        ContinualBackpropCallback(**OFTEN)


# -- Fabric: a loop of one's own ---------------------------------------------------------------------------------------------


def fabric_run(folder, *, steps, resume=False):
    seed_everything(0, verbose=False)
    fabric = Fabric(accelerator="cpu", devices=1)
    raw = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    model, optimizer = fabric.setup(raw, torch.optim.Adam(raw.parameters(), lr=0.01))
    cbp = pliant.ContinualBackprop(raw, optimizer, example_inputs=torch.zeros(2, 6), **OFTEN)
    state = {"model": model, "optimizer": optimizer, "cbp": cbp}
    if resume:
        fabric.load(folder / "state.ckpt", state)
    x, y = data()
    for _ in range(steps):
        optimizer.zero_grad()
        fabric.backward(cross_entropy(model(x), y))
        optimizer.step()
    fabric.save(folder / "state.ckpt", state)
    return raw, cbp


def test_in_a_loop_of_fabric_a_method_is_saved_with_the_rest(tmp_path):
    straight, cbp = fabric_run(tmp_path, steps=40)
    assert replaced(cbp) >= 20
    fabric_run(tmp_path, steps=20)
    resumed, again = fabric_run(tmp_path, steps=20, resume=True)
    assert again.stats() == cbp.stats()
    assert differing(straight.state_dict(), resumed.state_dict()) == []


def test_an_optimizer_that_lightning_wraps_is_unwrapped():
    model = Manual()
    found = []

    def attach():
        found.append(pliant.ContinualBackprop(model, model.optimizers(), example_inputs=torch.zeros(2, 6), **OFTEN))

    model.on_train_start = attach
    fit(model, epochs=6)
    assert replaced(found[0]) >= 20


def test_a_copy_and_a_pickle_have_the_state_and_not_the_model():
    callback = ContinualBackpropCallback(**OFTEN)
    fit(Net(), callback)
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert twin.method is None
        fit(Net(), twin)
        assert {group["steps"] for group in twin.method.stats().values()} == {32}
