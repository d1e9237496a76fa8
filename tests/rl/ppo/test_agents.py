"""Agents: against the plain implementation, alone and in a stack, and what they are asked and told."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pliant.lab.stored.checkpoint import to_bytes
from pliant.rl.environments import RewiredCartPole
from pliant.rl.ppo import MEASURES, PPO, Settings, preset
from tests.rl.ppo.environment import TWO_WAYS, LinearEnvironment, Padded
from tests.rl.ppo.plain import PlainPPO
from tests.rl.ppo.small import CBP, EVERY, MODERN, REDO, SMALL, in_every_group, parameters

# -- against the plain implementation -------------------------------------------------------------------------------------


def plain_twin(ppo: PPO, environment: LinearEnvironment) -> PlainPPO:
    plain = PlainPPO(environment, ppo.settings, ppo.seeds[0])
    with torch.no_grad():
        for name in ("actor", "critic"):
            linears = [layer for layer in getattr(plain.agent, name) if hasattr(layer, "weight")]
            for mine, theirs in zip(ppo.networks.stacks()[name].linears(), linears, strict=True):
                theirs.weight.copy_(mine.weight[0])
                theirs.bias.copy_(mine.bias[0])
    return plain


def distance(ppo: PPO, plain: PlainPPO) -> float:
    found = [0.0]
    for name in ("actor", "critic"):
        linears = [layer for layer in getattr(plain.agent, name) if hasattr(layer, "weight")]
        for mine, theirs in zip(ppo.networks.stacks()[name].linears(), linears, strict=True):
            found.append((mine.weight[0] - theirs.weight).abs().max().item())
            found.append((mine.bias[0] - theirs.bias).abs().max().item())
    if plain.continuous:
        found.append((ppo.networks.policy.log_std[0] - plain.agent.log_std).abs().max().item())
    return max(found)


@pytest.mark.parametrize("actions", TWO_WAYS, ids=["continuous", "discrete"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"time_limit": "bootstrap", "entropy_weight": 0.02, "max_gradient_norm": 0.5, "value_weight": 0.5},
        {"method": "cbp", "replacement_rate": 0.15, "maturity_threshold": 2, "weight_decay": 1e-3},
        {"method": "cbp", "replacement_rate": 0.15, "maturity_threshold": 2, "hand_over_mean": True,
         "count": "accumulate", "optimizer_state": "fresh"},
        {"advantage_epsilon": 0.5, "entropy_weight": 0.02},
        {"normalize_advantages": "none", "normalize_rewards": True},
        {**MODERN.as_dict(), "advantage_epsilon": 0.5},  # one that is felt: Adam does not ask how large a gradient is
    ],
    ids=["article", "bootstrap", "cbp", "cbp-fresh", "epsilon", "rewards", "modern"],
)  # fmt: skip
def test_whole_iterations_agree_with_a_plain_implementation(actions: Any, changes: dict[str, Any]):
    settings = replace(SMALL, **changes)
    ppo = PPO(LinearEnvironment([3], actions=actions), settings, seeds=[3], dtype=torch.float64)
    start = parameters(ppo)["actor.layers.1.weight"].clone()
    plain = plain_twin(ppo, LinearEnvironment([3], actions=actions))
    for _ in range(3):
        ppo.iterate()
        plain.iterate()
    assert distance(ppo, plain) < 1e-10
    assert (parameters(ppo)["actor.layers.1.weight"] - start).abs().max() > 1e-3
    if ppo.method is not None:
        assert in_every_group(ppo) >= 20


# -- alone and in a stack -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_an_agent_learns_alike_alone_and_among_eight(name: str, dtype: torch.dtype, tolerance: float):
    seeds = list(range(8))
    settings = replace(EVERY[name], epochs=6, rollout_steps=64, **({} if name == "redo" else {"replacement_rate": 0.5}))
    stack = PPO(LinearEnvironment(seeds), settings, seeds, dtype)
    alone = PPO(LinearEnvironment([5]), settings, [5], dtype)
    stacked_episodes, _ = stack.iterate()
    lone_episodes, _ = alone.iterate()
    for key, value in parameters(alone, 0).items():
        assert_close(parameters(stack, 5)[key], value, rtol=0, atol=tolerance)
    mine = stacked_episodes.agent == 5
    assert np.array_equal(stacked_episodes.returns[mine], lone_episodes.returns)
    assert np.array_equal(stacked_episodes.step[mine], lone_episodes.step)
    assert alone.method is not None
    assert stack.method is not None
    for group, row in alone.method.stats().items():
        assert row["replaced"][0] == stack.method.stats()[group]["replaced"][5]
    if name != "redo":
        assert in_every_group(alone) >= 20
    assert alone.replaced()[0] >= 20


def test_large_networks_learn_alike_alone_and_among_others():
    settings = preset("ppo-cbp", rollout_steps=128, epochs=6, maturity_threshold=2, replacement_rate=0.02)
    stack, alone = (PPO(LinearEnvironment(seeds), settings, seeds) for seeds in ([3, 4, 5], [5]))
    for ppo in (stack, alone):
        ppo.iterate()
    for key, value in parameters(alone, 0).items():
        assert_close(parameters(stack, 2)[key], value, rtol=0, atol=1e-5)
    assert in_every_group(alone) >= 20


def test_inputs_that_are_always_zero_cost_nothing_and_change_nothing():
    told, untold = (
        PPO(Padded(LinearEnvironment([0, 1]), padding), replace(CBP, weight_decay=1e-2), [0, 1], torch.float64)
        for padding in (2, 0)
    )
    for ppo in (told, untold):
        ppo.iterate()
        ppo.iterate()
    for key, value in parameters(untold).items():
        assert_close(parameters(told)[key], value, rtol=0, atol=1e-12)
    assert told.networks.actor.linears()[0].used == 3
    assert in_every_group(told) >= 20
    with pytest.raises(ValueError, match="padding=3, but the end of an observation was not 0"):
        PPO(Padded(LinearEnvironment([0]), 3), SMALL, [0]).iterate()


def test_acting_in_a_stack_is_to_the_bit_acting_alone():
    stack, alone = PPO(LinearEnvironment([4, 5, 6]), SMALL, [4, 5, 6]), PPO(LinearEnvironment([6]), SMALL, [6])
    stack.collect()
    alone.collect()
    for name in ("observations", "actions", "outputs"):
        mine, theirs = (getattr(each.acting.rollout, name) for each in (stack, alone))
        assert np.array_equal(mine[2], theirs[0])
    assert np.array_equal(stack.acting.rollout.rewards[:, 2], alone.acting.rollout.rewards[:, 0])


# -- where parameters lie -------------------------------------------------------------------------------------------------


def test_networks_are_neither_copied_nor_pickled_nor_put_elsewhere():
    ppo = PPO(LinearEnvironment([0]), SMALL, [0])
    before = to_bytes(ppo.state_dict())
    for module in (ppo.networks, ppo.networks.actor):
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                copied(module)
        for moved in (module.double, module.half, lambda module=module: module.to("meta")):
            with pytest.raises(
                TypeError, match=r"is torch.float32 on cpu, .* cannot become .*(float64|float16|on meta)"
            ):
                moved()
    assert to_bytes(ppo.state_dict()) == before
    assert ppo.networks.float() is ppo.networks  # nothing to do
    ppo.iterate()


def test_agents_act_by_their_weights_after_these_were_moved_by_torch():
    ppo, still = (PPO(LinearEnvironment([0]), SMALL, [0]) for _ in range(2))
    place = ppo.networks.actor.linears()[0].weight.data_ptr()
    ppo.networks.share_memory()
    assert ppo.networks.actor.linears()[0].weight.data_ptr() != place
    for each in (ppo, still):
        each.iterate()
        each.iterate()
    assert to_bytes(ppo.state_dict()) == to_bytes(still.state_dict())


@pytest.mark.parametrize("when", ["before a rollout", "amid one", "before an update"])
def test_a_parameter_that_was_put_elsewhere_in_memory_is_named(when: str):
    ppo = PPO(LinearEnvironment([0]), SMALL, [0])
    if when != "before a rollout":
        ppo.collect(5 if when == "amid one" else None)
    weight = ppo.networks.critic.linears()[1].weight
    weight.data = weight.data.clone()
    with pytest.raises(RuntimeError, match=r"'critic.layers.1.weight' lies elsewhere in memory .* parameter.copy_"):
        ppo.update() if when == "before an update" else ppo.collect()
    with pytest.raises(RuntimeError, match="lies elsewhere in memory"):
        ppo.greedy_actions()


# -- what is not finite ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["observations", "rewards", "parameters", "log_std"])
@pytest.mark.parametrize("name", EVERY)
def test_an_agent_that_diverges_leaves_the_others_as_they_were(name: str, what: str):
    seeds = [0, 1, 2]
    broken = (1, 40, what) if what in ("observations", "rewards") else None
    sound, hurt = (PPO(LinearEnvironment(seeds, broken=each), EVERY[name], seeds) for each in (None, broken))
    episodes = []
    for number in range(4):
        if number == 1 and broken is None:
            with torch.no_grad():
                parameters(hurt)["policy.log_std" if what == "log_std" else "actor.layers.0.weight"][1].fill_(np.nan)
        episodes.append([each.iterate()[0] for each in (sound, hurt)])
    expected = {"observations": 39 * 2, "rewards": 39 * 2}.get(what, 32 * 2)  # of two copies
    assert hurt.diverged_at.tolist() == [-1, expected, -1]
    assert sound.diverged_at.tolist() == [-1, -1, -1]
    for agent in (0, 2):
        for key, value in parameters(sound, agent).items():
            assert torch.equal(parameters(hurt, agent)[key], value)
    for whole, rest in episodes:
        mine = whole.agent != 1
        assert np.array_equal(whole.returns[mine], rest.returns[rest.agent != 1])
        assert (rest.step[rest.agent == 1] <= expected).all()
    assert in_every_group(sound) >= 20 or name == "redo"
    assert all(np.isfinite(given).all() for given in hurt.environments.given)  # type: ignore[attr-defined]


def test_a_loss_that_overflows_ends_its_agent_at_that_update():
    seeds = [0, 1]
    ppo = PPO(LinearEnvironment(seeds), SMALL, seeds)
    with torch.no_grad():
        parameters(ppo)["critic.layers.2.bias"][0].fill_(1e30)
    ppo.iterate()
    assert ppo.diverged_at.tolist() == [64, -1]


@pytest.mark.filterwarnings("error")
def test_a_spread_that_overflows_ends_its_agent_and_the_greedy_actions_do_not_need_it():
    ppo = PPO(LinearEnvironment([0, 1]), SMALL, [0, 1])
    with torch.no_grad():
        parameters(ppo)["policy.log_std"][0].fill_(1000.0)
    assert np.isfinite(ppo.greedy_actions()).all()
    ppo.iterate()
    assert (ppo.diverged_at >= 0).tolist() == [True, False]


def test_weights_that_the_last_step_breaks_end_their_agent(monkeypatch: pytest.MonkeyPatch):
    ppo = PPO(LinearEnvironment([0, 1]), replace(SMALL, epochs=1, minibatch_size=64), [0, 1])
    ppo.collect()
    monkeypatch.setattr(ppo.adam, "step", lambda: parameters(ppo)["critic.layers.0.bias"][1].fill_(np.inf))
    ppo.update()
    assert ppo.diverged_at.tolist() == [-1, 64]


# -- beginning anew -------------------------------------------------------------------------------------------------------


def test_an_agent_restarted_among_others_learns_as_a_fresh_one_does():
    seeds = [0, 1]
    settings = replace(SMALL, betas=(0.9, 0.999))
    some, all_anew = (PPO(LinearEnvironment(seeds), settings, seeds, torch.float64) for _ in range(2))
    for ppo in (some, all_anew):
        ppo.iterate()
    before = parameters(some, 0)["actor.layers.0.weight"].clone()
    some.restart([1])
    all_anew.restart()
    assert torch.equal(parameters(some, 0)["actor.layers.0.weight"], before)
    assert some.adam.own.tolist() == [12, 0]
    first = PPO(LinearEnvironment(seeds), settings, seeds, torch.float64)
    assert not torch.equal(parameters(some, 1)["actor.layers.0.weight"], parameters(first, 1)["actor.layers.0.weight"])
    for ppo in (some, all_anew):
        ppo.iterate()
    for key, value in parameters(all_anew, 1).items():
        assert_close(parameters(some, 1)[key], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_after_a_restart_of_all_nothing_is_left_of_the_past(name: str):
    settings = replace(EVERY[name], init="lecun")
    ppo = PPO(LinearEnvironment([0]), settings, [0], torch.float64)
    ppo.iterate()
    assert ppo.replaced()[0] >= 20 or name != "cbp"
    ppo.restart()
    assert ppo.adam.own.tolist() == [0]
    assert not ppo.adam.state_dict()["moments"]
    if name != "redo":
        assert ppo.method is not None
        assert all(each["mature"] == [0] for each in ppo.method.stats().values())
    ppo.iterate()
    assert np.isfinite(ppo.measures()["entropy"]).all()


def test_a_restart_amid_a_rollout_or_of_a_part_of_cbps_stack_is_refused():
    ppo = PPO(LinearEnvironment([0, 1]), CBP, [0, 1])
    with pytest.raises(ValueError, match="restarts with all agents of a stack or none"):
        ppo.restart([0])
    ppo.collect(3)
    with pytest.raises(RuntimeError, match="amid a rollout, 3 steps in"):
        ppo.restart()


@pytest.mark.parametrize("agents", [[0, 2], [-1]])
def test_an_agent_that_is_not_there_is_refused_before_any_begins_anew(agents: list[int]):
    ppo = PPO(LinearEnvironment([0, 1]), SMALL, [0, 1])
    before = {name: value.clone() for name, value in parameters(ppo).items()}
    with pytest.raises(ValueError, match="of 2: they are numbered from 0"):
        ppo.restart(agents)
    assert all(torch.equal(before[name], value) for name, value in parameters(ppo).items())


@pytest.mark.parametrize("state", ["fresh", "fill", "zero", "keep"])
def test_a_part_of_redos_stack_restarts_unless_fresh_units_count_their_own_steps(state: Any):
    seeds = [0, 1]
    settings = replace(REDO, optimizer_state=state)
    some, all_anew = (PPO(LinearEnvironment(seeds), settings, seeds, torch.float64) for _ in range(2))
    for ppo in (some, all_anew):
        ppo.iterate()
    all_anew.restart()
    if state == "fresh":
        with pytest.raises(
            ValueError, match=r"optimizer_state='fresh', .* Restart all agents, choose optimizer_state="
        ):
            some.restart([1])
        assert some.adam.own.tolist() == [12, 12]
        return
    some.restart([1])
    replaced = some.replaced()
    for ppo in (some, all_anew):
        ppo.iterate()
    assert (some.replaced() - replaced)[1] >= 20
    for key, value in parameters(all_anew, 1).items():
        assert_close(parameters(some, 1)[key], value, rtol=0, atol=1e-12)


def test_episodes_that_a_new_task_cuts_off_are_not_told_of():
    environment = RewiredCartPole(seeds=[0], copies=2)
    ppo = PPO(environment, replace(SMALL, rollout_steps=8), [0])
    ppo.iterate()
    environment.begin_task(1)
    ppo.forget_episodes()
    told = []
    for _ in range(12):
        told += [ppo.iterate()[0]]
    returns, lengths = (np.concatenate([getattr(each, name) for each in told]) for name in ("returns", "length"))
    assert len(returns) >= 4
    assert np.array_equal(returns, lengths)  # of reward 1 a step
    steps = np.concatenate([each.step for each in told])
    assert lengths[0] == steps[0] / 2 - 8


# -- what it is asked and told --------------------------------------------------------------------------------------------


def test_episodes_are_told_with_their_steps_and_undiscounted_returns():
    environment = LinearEnvironment([0], copies=1, limit=5)
    ppo = PPO(environment, replace(SMALL, rollout_steps=16), [0])
    first = ppo.collect(12)
    rest = ppo.collect()
    rewards = ppo.acting.rollout.rewards[:, 0, 0]
    ends = np.flatnonzero(ppo.acting.rollout.ended[:, 0, 0])
    assert np.concatenate([first.step, rest.step]).tolist() == (ends + 1).tolist()
    told = np.concatenate([first.returns, rest.returns])
    assert np.allclose(told, [part.sum() for part in np.split(rewards, ends + 1)[: len(ends)]])
    assert len(ends) >= 3


def test_a_clipped_action_is_what_the_environment_sees_and_the_drawn_one_is_learned_from():
    wide = {"log_std": 1.0}
    for clip in (False, True):
        environment = LinearEnvironment([0])
        ppo = PPO(environment, replace(SMALL, clip_actions=clip, **wide), [0])
        ppo.collect()
        given = np.stack(environment.given, axis=2)
        assert (np.abs(given).max() <= 1.0) == clip
        assert np.abs(ppo.acting.rollout.actions).max() > 1.0


def test_normalised_observations_are_of_mean_zero_and_size_one():
    ppo = PPO(LinearEnvironment([0, 1], copies=8), replace(MODERN, epochs=1), [0, 1])
    for _ in range(12):
        ppo.iterate()
    seen = ppo.acting.states().astype(np.float64)
    assert np.abs(seen.mean(1)).max() < 0.4
    assert np.abs(np.log(seen.std(1))).max() < 0.4


def test_measures_are_told_after_an_update_alone():
    ppo = PPO(LinearEnvironment([0, 1]), SMALL, [0, 1])
    with pytest.raises(RuntimeError, match="call it after update"):
        ppo.measures()
    _, update = ppo.iterate()
    found = ppo.measures()
    assert found.keys() == MEASURES.keys()
    assert all(values.shape == (2,) and np.isfinite(values).all() for values in found.values())
    assert (update.weight_change > 0).all()
    ppo.collect(1)
    with pytest.raises(RuntimeError, match="call it after update"):
        ppo.measures()


def test_learning_helps():
    """The environment pays for keeping x at 0."""
    seeds = [0, 1, 2]
    ppo = PPO(
        LinearEnvironment(seeds, copies=4, limit=20),
        replace(SMALL, rollout_steps=64, minibatch_size=64, log_std=-1.0),
        seeds,
    )
    means = []
    for _ in range(25):
        ppo.iterate()
        means.append(ppo.acting.rollout.rewards.mean((0, 2)))
    assert (np.mean(means[-5:], axis=0) > 0.6 * np.mean(means[:3], axis=0)).all()  # rewards are negative


@pytest.mark.parametrize("actions", TWO_WAYS, ids=["continuous", "discrete"])
def test_greedy_actions_are_asked_of_another_world_and_change_nothing(actions: Any):
    ppo = PPO(LinearEnvironment([0, 1], actions=actions), MODERN)
    for _ in range(3):
        ppo.iterate()
    ppo.collect(5)
    before = to_bytes(ppo.state_dict())
    here = ppo.environments.observations
    mine = ppo.greedy_actions()
    assert np.array_equal(ppo.greedy_actions(here), mine)
    several = ppo.greedy_actions(np.concatenate([here, np.ones((2, 3, 3))], axis=1))
    assert several.shape == (2, 5, *mine.shape[2:])
    assert_close(several[:, :2], mine)
    assert to_bytes(ppo.state_dict()) == before
    for wrong in (here[0], here[:1], here[..., :2]):
        with pytest.raises(ValueError, match=r"observations are \(agents, n, size\) = \(2, n, 3\), got "):
            ppo.greedy_actions(wrong)


def test_a_presets_name_is_taken_and_seeds_are_those_of_the_environments():
    environment = LinearEnvironment([4, 9], copies=1)
    ppo = PPO(environment, "ppo-cbp")
    assert (ppo.settings, ppo.seeds) == (preset("ppo-cbp"), [4, 9])
    assert PPO(environment, "ppo", seeds=[1, 2]).seeds == [1, 2]
    with pytest.raises(ValueError, match="did you mean 'ppo-cbp'"):
        PPO(environment, "ppo-cpb")
    with pytest.raises(TypeError, match="settings must be Settings or a preset's name, got a dict"):
        PPO(environment, {})  # type: ignore[arg-type]
    del environment.seeds
    with pytest.raises(ValueError, match="LinearEnvironment has no seeds; give seeds="):
        PPO(environment, "ppo")


def test_environments_of_another_kind_are_named_with_what_they_lack():
    class Others:
        observations = step = None

    with pytest.raises(
        TypeError, match=r"Others lacks agents, copies, observation_size, actions, and so .*docs/environments.md"
    ):
        PPO(Others(), "ppo")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seeds", "settings", "message"),
    [
        ([0, 1], SMALL, "2 seeds for environments of 1 agents"),
        (
            [0],
            replace(SMALL, minibatch_size=24),
            "a rollout has 64 states .rollout_steps 32 x 2 copies., which minibatch_size 24",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(seeds: list[int], settings: Settings, message: str):
    with pytest.raises(ValueError, match=message):
        PPO(LinearEnvironment([0]), settings, seeds)
