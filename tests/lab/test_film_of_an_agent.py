"""A film of an agent in a file: saved by PPO, or by Stable-Baselines3, of whose file nothing is executed unless it is trusted."""

import base64
import json
import pickle
import re
import zipfile

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="films of agents need gymnasium: pip install -e .[rl]")
pytest.importorskip("imageio", reason="films need imageio: pip install -e .[rl]")

import gymnasium
from torch import nn

from pliant.base.saving import save_state
from pliant.cli import main
from pliant.commands.agent_film import agent_scenes
from pliant.lab import LabError
from pliant.rl.environments import RewiredCartPole
from pliant.rl.ppo import PPO, preset

CARTS = "pliant/RewiredCartPole-v0"  # draws with NumPy alone
SETTINGS = preset("modern", rollout_steps=64, minibatch_size=64, hidden=(16, 16))


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    agents = PPO(RewiredCartPole(seeds=[3, 5], copies=2), SETTINGS)
    for _ in range(3):
        agents.iterate()
    file = tmp_path_factory.mktemp("saved") / "agents.pt"
    agents.save(file)
    return agents, file


def film(file, environment=CARTS, agent=None, seed=0, trust=False):
    return list(agent_scenes(file, environment, agent, seed, trust))


def ended(arguments):
    with pytest.raises(SystemExit) as raised:
        main([str(each) for each in arguments])
    return raised.value.code


# -- agents of PPO ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [3, 5])
def test_the_agent_of_a_seed_acts_as_it_does_greedily(agents, agent):
    agents, file = agents
    environment = gymnasium.make(CARTS, render_mode="rgb_array")
    seen, over, returns, pictures = environment.reset(seed=4)[0], False, 0.0, [environment.render()]
    while not over:
        action = agents.greedy_actions(np.broadcast_to(seen, (2, 1, 16)))[[3, 5].index(agent), 0]
        seen, reward, terminated, truncated, _ = environment.step(action)
        returns, over = returns + reward, terminated or truncated
        pictures.append(environment.render())
    scenes = film(file, agent=agent, seed=4)
    assert len(scenes) == len(pictures) > 5
    assert scenes[-1].words == f"step {len(pictures) - 1}   return {returns:.4g}"
    for scene, picture in zip(scenes, pictures, strict=True):
        np.testing.assert_array_equal(scene.picture, picture)


def test_by_default_the_first_agent_is_filmed(agents):
    _, file = agents
    assert film(file)[-1].words == film(file, agent=3)[-1].words


def test_the_command_films_an_agent_and_writes_beside_its_file(agents, tmp_path, capsys):
    file = tmp_path / "mine.pt"
    file.write_bytes(agents[1].read_bytes())
    assert ended(["watch", file, "--env", CARTS, "--agent", "5", "--seed", "4", "--frames", "3"]) == 0
    said = capsys.readouterr().out
    assert re.match(r"3 pictures   .*mine.gif   in the last: step 2   return 2", said)
    assert (tmp_path / "mine.gif").stat().st_size > 1000


def test_an_environment_is_made_by_a_function_in_a_file(agents, tmp_path):
    code = "import gymnasium\nimport pliant.rl.environments\n\n\ndef make(render_mode=None):\n"
    (tmp_path / "mine.py").write_text(code + f"    return gymnasium.make({CARTS!r}, render_mode=render_mode)\n")
    place = f"{tmp_path / 'mine.py'}"
    assert film(agents[1], f"{place}:make")[-1].words == film(agents[1])[-1].words
    with pytest.raises(LabError, match=r"did you mean 'make'"):
        film(agents[1], f"{place}:mke")
    with pytest.raises(LabError, match=r"which function or class in .*mine.py\? Write .*mine.py:make"):
        film(agents[1], place)


def test_agents_that_have_diverged_and_files_without_agents_are_named(agents, tmp_path):
    agents, file = agents
    state = agents.state_dict()
    state["acting"]["diverged_at"] = np.array([-1, 128])
    save_state(state, tmp_path / "diverged.pt")
    with pytest.raises(LabError, match="the agent with seed 5 diverged at step 128"):
        film(tmp_path / "diverged.pt", agent=5)
    assert film(tmp_path / "diverged.pt", agent=3)[-1].words == film(file, agent=3)[-1].words
    save_state({"something": 3}, tmp_path / "other.pt")
    with pytest.raises(LabError, match=r"holds no agents: PPO\.save writes them"):
        film(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(LabError, match=r"no study's folder, no model of Stable-Baselines3 and no agents"):
        film(tmp_path / "text.pt")
    with pytest.raises(LabError, match="has no agent with seed 4; it has 3, 5"):
        film(file, agent=4)
    with pytest.raises(LabError, match="these agents are not of Pendulum-v1"):
        film(file, "Pendulum-v1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{file}"], r"is a file: in which environment\? --env CartPole-v1"),
        (
            ["{file}", "--env", "CartPol-v1"],
            r"gymnasium makes no environment 'CartPol-v1' that draws images .*CartPole",
        ),
        (["{file}", "--env", CARTS, "--method", "bp"], "--method goes with a study"),
        (["{folder}", "--agent", "3"], "--agent goes with the file of an agent"),
        (["{folder}", "--trust"], "--trust goes with the file of an agent"),
        (["{folder}", "--env", CARTS], "with --env, give the file of an agent"),
        (["{folder}/nothing.zip", "--env", CARTS], "with --env, give the file of an agent"),
    ],
)
def test_what_does_not_go_together_is_a_line(agents, arguments, said, capsys):
    places = {"file": agents[1], "folder": agents[1].parent}
    assert ended(["watch", *(each.format(**places) for each in arguments)]) == 2
    heard = capsys.readouterr().err
    assert re.search(said, heard), heard
    assert heard.count("\n") == 1


def test_an_environment_that_draws_nothing_is_named(agents, tmp_path):
    (tmp_path / "blind.py").write_text(
        "from pliant.rl.environments.single import RewiredCart\n\n\nclass Blind(RewiredCart):\n"
        "    def __init__(self):\n        super().__init__()\n\n\n"
        "class Odd(RewiredCart):\n    def render(self):\n        return 'a picture'\n"
    )
    with pytest.raises(LabError, match=r"Blind draws no images: its render_mode is None, and has to be 'rgb_array'"):
        film(agents[1], f"{tmp_path / 'blind.py'}:Blind")
    with pytest.raises(LabError, match=r"Odd: render\(\) gives images .* this one gave 'a picture'"):
        film(agents[1], f"{tmp_path / 'blind.py'}:Odd")


# -- models of Stable-Baselines3 -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    return pytest.importorskip("stable_baselines3", reason="needs Stable-Baselines3: pip install -e .[sb3]")


def trained(models, kind, file, **settings):
    environment = gymnasium.make(CARTS)
    model = getattr(models, kind)("MlpPolicy", environment, seed=0, device="cpu", **settings)
    model.learn(64)
    model.save(file)
    return model


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("PPO", {"n_steps": 64}),
        ("A2C", {"policy_kwargs": {"net_arch": [8], "optimizer_kwargs": {"eps": 1e-6}}}),
        ("DQN", {"learning_starts": 10, "buffer_size": 100}),
    ],
)
def test_a_model_acts_as_it_predicts(models, kind, settings, tmp_path):
    model = trained(models, kind, tmp_path / "model.zip", **settings)
    environment = gymnasium.make(CARTS)
    seen, steps, over = environment.reset(seed=2)[0], 0, False
    while not over:
        seen, _, terminated, truncated, _ = environment.step(int(model.predict(seen, deterministic=True)[0]))
        steps, over = steps + 1, terminated or truncated
    assert film(tmp_path / "model.zip", seed=2)[-1].words == f"step {steps}   return {steps}"


@pytest.mark.parametrize(
    ("policy", "environment", "settings"),
    [
        ("CnnPolicy", lambda: envs().FakeImageEnv(screen_height=36, screen_width=36, n_channels=3), {}),
        ("MultiInputPolicy", lambda: envs().SimpleMultiObsEnv(), {}),
        ("MlpPolicy", lambda: gymnasium.make("Pendulum-v1"), {"use_sde": True}),
    ],
)
def test_policies_of_images_and_mappings_and_with_noise_of_their_own_act_as_they_predict(
    models, policy, environment, settings, tmp_path
):
    from pliant.integrations.sb3.saved import saved_policy

    environment = environment()
    model = models.PPO(policy, environment, n_steps=16, batch_size=8, device="cpu", seed=0, **settings)
    model.save(tmp_path / "model.zip")
    act = saved_policy(tmp_path / "model.zip", environment, "it")
    for seed in range(5):
        seen = environment.reset(seed=seed)[0]
        np.testing.assert_array_equal(act(seen), model.predict(seen, deterministic=True)[0])


def envs():
    from stable_baselines3.common import envs

    return envs


def test_a_model_of_another_environment_is_named(models, tmp_path):
    trained(models, "PPO", tmp_path / "model.zip", n_steps=64)
    with pytest.raises(LabError, match=r"model.zip \(ActorCriticPolicy\) is not of Pendulum-v1, with observations Box"):
        film(tmp_path / "model.zip", "Pendulum-v1")
    with pytest.raises(LabError, match=r"--agent 3: .* is one agent: leave it out"):
        film(tmp_path / "model.zip", agent=3)


class Touch:
    """A pickle that makes a file when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def with_pickled(file, name, value):
    """Change a setting of a model to a pickle of `value`."""
    with zipfile.ZipFile(file) as archive:
        held = {each: archive.read(each) for each in archive.namelist()}
    data = json.loads(held["data"])
    data[name] = {":type:": "", ":serialized:": base64.b64encode(value).decode()}
    held["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for each, bytes_of in held.items():
            archive.writestr(each, bytes_of)


def test_nothing_in_a_models_file_is_executed_unless_it_is_trusted(models, tmp_path, monkeypatch):
    code = tmp_path / "code"
    code.mkdir()
    (code / "touching.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(code))
    file = tmp_path / "model.zip"
    trained(models, "PPO", file, n_steps=64)
    for name in ("clip_range", "lr_schedule", "observation_space", "rollout_buffer_class"):
        with_pickled(file, name, pickle.dumps(Touch(tmp_path / name)))
    assert len(film(file)) > 2  # these are not read
    for name, pickled in (
        ("policy_kwargs", pickle.dumps({"net_arch": Touch(tmp_path / "policy_kwargs")})),
        ("policy_class", pickle.dumps(gymnasium.make)),
        ("policy_class", b"cos\nsystem\n."),
        ("policy_class", b"ctorch\nnn.os.system\n."),
        ("policy_class", b"ctouching\nPolicy\n."),  # another package, which importing it would run
        ("policy_class", b"ctorch\nload\n."),  # a function
        ("policy_class", b"ctorch.nn\nIdentity\n)R."),  # a call, of a class that may be named
        ("policy_class", b"damaged"),
    ):
        changed = tmp_path / "changed.zip"
        changed.write_bytes(file.read_bytes())
        with_pickled(changed, name, pickled)
        with pytest.raises(
            LabError, match=rf"{name} of .* is a pickle that could run code \(.*\): if the file is yours"
        ):
            film(changed)
    assert {each.name for each in tmp_path.iterdir()} == {"model.zip", "changed.zip", "code"}


def test_a_model_that_needs_its_pickles_is_loaded_when_it_is_trusted(models, tmp_path, capsys):
    model = trained(models, "PPO", tmp_path / "model.zip", n_steps=64, policy_kwargs={"activation_fn": Own})
    assert isinstance(model.policy.mlp_extractor.policy_net[1], nn.Tanh)
    arguments = ["watch", tmp_path / "model.zip", "--env", CARTS, "--frames", "2"]
    assert ended(arguments) == 2
    assert "it names tests.lab.test_film_of_an_agent.Own" in capsys.readouterr().err
    assert ended([*arguments, "--trust"]) == 0


class Own(nn.Tanh):
    """An activation function of one's own."""


def test_classic_control_is_drawn_by_pygame(models, tmp_path):
    pytest.importorskip("pygame", reason='classic control draws with pygame: pip install "gymnasium[classic-control]"')
    model = models.SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", buffer_size=10)
    model.save(tmp_path / "model.zip")
    assert ended(["watch", tmp_path / "model.zip", "--env", "Pendulum-v1", "--frames", "5"]) == 0
    assert (tmp_path / "model.gif").stat().st_size > 1000
