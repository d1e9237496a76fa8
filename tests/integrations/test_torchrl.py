"""Methods inside the Trainer of TorchRL, with PPO. In the environment of `make integrations`."""

import signal

import pytest
import torch
from torch import nn

pytest.importorskip("torchrl.trainers", reason="TorchRL is not installed: make integrations")

from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.modules import OneHotCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE
from torchrl.trainers import Trainer

import pliant
from tests.integrations.killed import METHODS, differing, kill, process, replaced

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

FRAMES, TOTAL, EVERY, DIES_AT = 32, 32 * 30, 32 * 10, 32 * 24


class Frames:
    """A collector whose environment is noise, so that it has a state to be saved."""

    init_random_frames = 0

    def __init__(self, actor, dies_at=None):
        self.actor, self.dies_at, self.generator, self.count = actor, dies_at, torch.Generator().manual_seed(0), 0

    def __iter__(self):
        while True:
            seen = torch.randn(FRAMES + 1, 4, generator=self.generator)
            done = torch.zeros(FRAMES, 1, dtype=torch.bool)
            batch = TensorDict({"observation": seen[:-1]}, [FRAMES])
            with torch.no_grad():
                self.actor(batch)
            reward = (seen[:-1, :1] * batch["action"][:, :1]).clone()
            batch["next"] = TensorDict(
                {"observation": seen[1:], "reward": reward, "done": done, "terminated": done}, [FRAMES]
            )
            self.count += FRAMES
            if self.count == self.dies_at:
                kill()
            yield batch

    def state_dict(self):
        return {"frames": self.generator.get_state(), "random": torch.get_rng_state(), "count": self.count}

    def load_state_dict(self, state):
        self.generator.set_state(state["frames"])
        torch.set_rng_state(state["random"])
        self.count = state["count"]

    def set_seed(self, seed):
        return seed

    def shutdown(self, **how): ...

    def update_policy_weights_(self, *weights): ...


def network(outputs):
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs))


def trainer(method, file=None, dies_at=None, functional=True):
    """PPO, and one method per network, as in docs/integrations.md."""
    torch.manual_seed(0)
    nets = {"actor": network(2), "critic": network(1)}
    actor = ProbabilisticActor(
        TensorDictModule(nets["actor"], ["observation"], ["logits"]),
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
    )
    critic = ValueOperator(nets["critic"], in_keys=["observation"])
    loss = ClipPPOLoss(actor, critic, functional=functional)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    made = Trainer(
        collector=Frames(actor, dies_at),
        total_frames=TOTAL,
        frame_skip=1,
        optim_steps_per_batch=4,
        loss_module=loss,
        optimizer=optimizer,
        progress_bar=False,
        save_trainer_file=file,
        save_trainer_interval=EVERY,
    )
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    made.register_op("pre_epoch", advantage)
    methods = {}
    if method is not None:
        kind, settings = METHODS[method]
        for number, (name, net) in enumerate(nets.items()):
            seed = {"seed": number} if "seed" in settings else {}
            example = {} if kind in (pliant.L2, pliant.ShrinkAndPerturb) else {"example_inputs": torch.zeros(2, 4)}
            methods[name] = kind(net, optimizer, **example, **settings | seed)
            made.register_module(f"pliant_{name}", methods[name])
    return made, methods, optimizer


def start_and_die(method, file):
    trainer(method, file, DIES_AT)[0].train()


@pytest.mark.parametrize("method", METHODS)
def test_what_was_killed_goes_on_to_the_bit(method, tmp_path):
    file = str(tmp_path / "trainer.pt")
    assert process("test_torchrl", f"start_and_die({method!r}, {file!r})") == -signal.SIGKILL
    straight, methods, _ = trainer(method)
    straight.train()

    resumed, again, _ = trainer(method)
    torch.manual_seed(99)
    resumed.load_from_file(file, weights_only=False)
    assert EVERY <= resumed.collected_frames < DIES_AT
    before = {name: replaced(each) for name, each in again.items() if isinstance(each, pliant.UnitReset)}
    resumed.train()
    assert differing(straight.loss_module.state_dict(), resumed.loss_module.state_dict()) == []
    assert resumed.collected_frames == TOTAL
    for name, count in before.items():
        assert count >= 20
        assert replaced(again[name]) - count >= 20
        assert again[name].stats() == methods[name].stats()
