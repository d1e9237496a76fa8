"""The recipes of docs/integrations.md for libraries without hooks for it. In the environment of `make integrations`."""

import copy
import importlib

import pytest
import torch

import pliant
from tests.integrations.killed import OFTEN, differing, ranks, replaced

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


def test_rsl_rl_goes_on_to_the_bit_with_the_state_beside_its_own():
    pytest.importorskip("rsl_rl.algorithms", reason="rsl-rl is not installed: make integrations")
    straight = RslRl()
    straight.learn(6)
    resumed = RslRl()
    for part in range(2):
        if part:
            saved = copy.deepcopy((resumed.save(), resumed.frames.get_state(), torch.get_rng_state()))
            half = [replaced(each) for each in resumed.methods.values()]
            resumed = RslRl()
            resumed.load(saved[0])
            resumed.frames.set_state(saved[1])
            torch.set_rng_state(saved[2])
        resumed.learn(3)
    now = [replaced(each) for each in resumed.methods.values()]
    assert min(half) >= 20
    assert min(after - before for after, before in zip(now, half, strict=True)) >= 20
    for name in ("actor", "critic"):
        assert differing(getattr(straight.alg, name).state_dict(), getattr(resumed.alg, name).state_dict()) == []


class RslRl:
    """PPO of rsl-rl in an environment that is noise, with a method for each of its networks."""

    def __init__(self, rank=0, **together):
        from rsl_rl.algorithms import PPO
        from rsl_rl.models import MLPModel
        from rsl_rl.storage import RolloutStorage
        from tensordict import TensorDict

        torch.manual_seed(0)
        self.frames = torch.Generator().manual_seed(1 + rank)
        self.dict = TensorDict
        seen = self.observe()
        groups, hidden = {"actor": ["policy"], "critic": ["policy"]}, {"hidden_dims": [16, 16], "activation": "elu"}
        normal = {"class_name": "rsl_rl.modules.GaussianDistribution", "init_std": 1.0}
        actor = MLPModel(seen, groups, "actor", 2, distribution_cfg=normal, obs_normalization=True, **hidden)
        critic = MLPModel(seen, groups, "critic", 1, obs_normalization=True, **hidden)
        self.alg = PPO(actor, critic, RolloutStorage("rl", 8, 16, seen, [2], "cpu"), num_learning_epochs=5, **together)
        group = torch.distributed.group.WORLD if together else "auto"
        self.methods = {
            name: pliant.ContinualBackprop(
                net.mlp,
                self.alg.optimizer,
                example_inputs=torch.zeros(2, 4),
                **OFTEN | {"seed": number},
                process_group=group,
            )
            for number, (name, net) in enumerate({"actor": actor, "critic": critic}.items())
        }

    def observe(self):
        return self.dict({"policy": torch.randn(8, 4, generator=self.frames)}, [8])

    def learn(self, rollouts):
        for _ in range(rollouts):
            seen = self.observe()
            with torch.inference_mode():
                for _ in range(16):
                    actions = self.alg.act(seen)
                    reward = (seen["policy"][:, :2] * actions).sum(1)
                    seen = self.observe()
                    self.alg.process_env_step(seen, reward, torch.zeros(8, dtype=torch.bool), {})
                self.alg.compute_returns(seen)
            self.alg.train_mode()
            self.alg.update()

    def save(self):
        return {**self.alg.save(), "pliant": {name: each.state_dict() for name, each in self.methods.items()}}

    def load(self, saved):
        self.alg.load(saved, None, strict=True)
        for name, each in self.methods.items():
            each.load_state_dict(saved["pliant"][name])


def learn_together(folder):
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    learner = RslRl(rank, multi_gpu_cfg={"global_rank": rank, "local_rank": rank, "world_size": world})
    learner.learn(3)
    counts = {name: replaced(each) for name, each in learner.methods.items()}
    torch.save({**learner.save(), "replaced": counts}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_of_rsl_rl_replace_the_same_units(tmp_path):
    pytest.importorskip("rsl_rl.algorithms", reason="rsl-rl is not installed: make integrations")
    ranks("test_recipes", f"learn_together({str(tmp_path)!r})")
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert min(one["replaced"].values()) >= 20
    for name in ("actor", "critic"):
        mine, theirs = (
            {key: value for key, value in each[f"{name}_state_dict"].items() if "normalizer" not in key}
            for each in (one, other)  # each normalizes by the observations of its own
        )
        assert differing(mine, theirs) == []


def test_skrl_saves_and_loads_the_method_with_the_agent(tmp_path):
    pytest.importorskip("skrl.agents.torch.ppo", reason="skrl is not installed: make integrations")
    agent, cbp = skrl_agent(tmp_path)
    skrl_train(agent, 256)
    assert replaced(cbp) >= 20
    agent.save(str(tmp_path / "agent.pt"))
    again, other = skrl_agent(tmp_path)
    again.load(str(tmp_path / "agent.pt"))
    assert other.stats() == cbp.stats()
    assert differing(agent.policy.state_dict(), again.policy.state_dict()) == []
    skrl_train(again, 256)
    assert replaced(other) - replaced(cbp) >= 20


def skrl_agent(folder):
    from skrl.agents.torch.ppo import PPO, PPO_CFG
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model

    gym = importlib.import_module("gymnasium")
    observations, actions = gym.spaces.Box(-1.0, 1.0, (4,)), gym.spaces.Box(-1.0, 1.0, (2,))
    spaces = {"observation_space": observations, "state_space": observations, "action_space": actions, "device": "cpu"}

    def network(outputs):
        return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ELU(), torch.nn.Linear(16, outputs))

    class Policy(GaussianMixin, Model):
        def __init__(self):
            Model.__init__(self, **spaces)
            GaussianMixin.__init__(self)
            self.net, self.log_std = network(2), torch.nn.Parameter(torch.zeros(2))

        def compute(self, inputs, role):
            return self.net(inputs["observations"]), {"log_std": self.log_std}

    class Value(DeterministicMixin, Model):
        def __init__(self):
            Model.__init__(self, **spaces)
            DeterministicMixin.__init__(self)
            self.net = network(1)

        def compute(self, inputs, role):
            return self.net(inputs["observations"]), {}

    torch.manual_seed(0)
    models = {"policy": Policy(), "value": Value()}
    memory = RandomMemory(memory_size=16, num_envs=8, device="cpu")
    cfg = PPO_CFG(rollouts=16, learning_epochs=5, mini_batches=4)
    cfg.experiment.directory, cfg.experiment.write_interval, cfg.experiment.checkpoint_interval = str(folder), 0, 0
    agent = PPO(models=models, memory=memory, cfg=cfg, **spaces)
    agent.init()
    agent.enable_training_mode(True)
    cbp = pliant.ContinualBackprop(models["policy"].net, agent.optimizer, example_inputs=torch.zeros(2, 4), **OFTEN)
    agent.checkpoint_modules["pliant"] = cbp
    return agent, cbp


def skrl_train(agent, steps):
    seen = torch.randn(8, 4)
    for step in range(steps):
        agent.pre_interaction(timestep=step, timesteps=steps)
        with torch.no_grad():
            actions, _ = agent.act(seen, None, timestep=step, timesteps=steps)
            reward, done, coming = (
                (seen[:, :2] * actions).sum(1, keepdim=True),
                torch.zeros(8, 1, dtype=torch.bool),
                torch.randn(8, 4),
            )
            agent.record_transition(
                observations=seen, states=None, actions=actions, rewards=reward, next_observations=coming, next_states=None,
                terminated=done, truncated=done, infos={}, timestep=step, timesteps=steps,
            )  # fmt: skip
        agent.post_interaction(timestep=step, timesteps=steps)
        seen = coming
