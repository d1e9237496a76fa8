"""Agents that are saved go on as if nothing had been, or are refused and left as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pliant.lab.stored.checkpoint import from_bytes, to_bytes
from pliant.rl.environments import MujocoBatch, RewiredCartPole
from pliant.rl.ppo import PPO, preset
from tests.rl.ppo.environment import TWO_WAYS, LinearEnvironment
from tests.rl.ppo.small import EVERY, MODERN, REDO, SMALL, in_every_group


def resumed(ppo: PPO, actions: Any) -> PPO:
    """Through bytes, into fresh objects."""
    again = PPO(LinearEnvironment(ppo.seeds, actions=actions), ppo.settings, ppo.seeds)
    again.load_state_dict(from_bytes(to_bytes(ppo.state_dict())))
    return again


@pytest.mark.parametrize("actions", TWO_WAYS, ids=["continuous", "discrete"])
@pytest.mark.parametrize("name", EVERY)
def test_stopping_and_resuming_changes_nothing(name: str, actions: Any):
    seeds = [0, 7]
    straight, stopped = (PPO(LinearEnvironment(seeds, actions=actions), EVERY[name], seeds) for _ in range(2))
    episodes = [straight.iterate()[0] for _ in range(4)]
    told = [stopped.iterate()[0], stopped.iterate()[0], stopped.collect(11)]
    stopped = resumed(stopped, actions)  # amid a rollout
    told += [stopped.collect(2), stopped.collect()]
    stopped = resumed(stopped, actions)  # before an update
    stopped.update()
    stopped = resumed(stopped, actions)  # behind it
    told.append(stopped.iterate()[0])
    for column, whole in zip(zip(*told, strict=True), zip(*episodes, strict=True), strict=True):
        assert np.array_equal(np.concatenate(column), np.concatenate(whole))
    assert len(np.concatenate([each.agent for each in told])) >= 20
    assert straight.replaced().min() >= 20
    if name != "redo":
        assert in_every_group(straight) >= 20
    assert to_bytes(straight.state_dict()) == to_bytes(stopped.state_dict())


def test_ants_are_resumed_to_the_bit():
    pytest.importorskip("mujoco")
    settings = preset("ppo-cbp", rollout_steps=64, hidden=(32, 32), epochs=4, minibatch_size=8, maturity_threshold=2)
    settings = replace(settings, replacement_rate=0.05, time_limit="bootstrap")

    def begun() -> PPO:
        return PPO(MujocoBatch("ant", seeds=[0, 1], contact_forces=False, padding=84, time_limit=20), settings, [0, 1])

    straight, stopped = begun(), begun()
    straight.iterate()
    straight.iterate()
    stopped.iterate()
    stopped.collect(30)
    again = begun()
    again.load_state_dict(from_bytes(to_bytes(stopped.state_dict())))
    again.collect()
    again.update()
    assert in_every_group(straight) >= 20
    assert to_bytes(straight.state_dict()) == to_bytes(again.state_dict())


def test_agents_saved_in_a_file_go_on_to_the_bit(tmp_path: Path):
    seeds = [0, 7]
    straight, stopped, again = (PPO(LinearEnvironment(seeds), MODERN) for _ in range(3))
    for ppo in (straight, stopped):
        ppo.iterate()
        ppo.collect(11)
    stopped.save(tmp_path / "agents.pt")
    again.load(tmp_path / "agents.pt")
    for ppo in (straight, again):
        ppo.collect()
        ppo.update()
    assert in_every_group(straight) >= 20
    assert to_bytes(straight.state_dict()) == to_bytes(again.state_dict())
    assert [each.name for each in tmp_path.iterdir()] == ["agents.pt"]


def test_a_state_of_other_settings_is_refused_naming_those_that_differ():
    saved = PPO(LinearEnvironment([0]), SMALL, [0]).state_dict()
    with pytest.raises(ValueError, match=r"was saved with seeds \[0\]; here it is \[1\]"):
        PPO(LinearEnvironment([1]), SMALL, [1]).load_state_dict(saved)
    with pytest.raises(
        ValueError, match=r"saved with settings clip=0.2, method='none'; here it is clip=0.1, method='redo'$"
    ):
        PPO(LinearEnvironment([0]), replace(SMALL, method="redo", clip=0.1), [0]).load_state_dict(saved)
    older = {name: value for name, value in saved["settings"].items() if name != "clip"}
    with pytest.raises(ValueError, match=r"saved with settings clip='absent'; here it is clip=0.2"):
        PPO(LinearEnvironment([0]), SMALL, [0]).load_state_dict({**saved, "settings": older})


def test_what_is_no_state_of_a_ppo_is_refused():
    ppo = PPO(LinearEnvironment([0]), SMALL)
    with pytest.raises(ValueError, match="no state of a PPO: it has no format, settings, seeds"):
        ppo.load_state_dict({})
    state = ppo.state_dict()
    del state["adam"]
    with pytest.raises(ValueError, match=r"it has no adam$"):
        ppo.load_state_dict(state)


def test_a_state_of_another_dtype_shape_or_world_is_refused_and_leaves_all_as_it_was():
    def begun(copies: int = 2, time_limit: int = 500, **settings: Any) -> PPO:
        environment = RewiredCartPole(seeds=[0], copies=copies, time_limit=time_limit)
        return PPO(environment, replace(REDO, minibatch_size=8, **settings), [0])

    ppo = begun()
    ppo.iterate()
    ppo.collect(5)
    before = to_bytes(ppo.state_dict())
    wide = PPO(RewiredCartPole(seeds=[0], copies=2), ppo.settings, [0], torch.float64)
    larger = PPO(RewiredCartPole(seeds=[0], copies=2, inputs=7), ppo.settings, [0])
    for other, message in (
        (wide, r"saved with dtype torch.float64; here it is torch.float32"),
        (larger, r"parameter actor.layers.0.weight of shape \(1, 12, 7\); here it is of shape \(1, 12, 16\)"),
        (begun(copies=3), "saved with copies 3; here it is 2"),
        (begun(time_limit=20), "the state belongs to time_limit = 20; here it is 500"),
        (begun(hidden=(8, 8)), r"saved with settings hidden=\(8, 8\); here it is hidden=\(12, 10\)"),
    ):
        other.iterate()
        with pytest.raises(ValueError, match=message):
            ppo.load_state_dict(from_bytes(to_bytes(other.state_dict())))
        assert to_bytes(ppo.state_dict()) == before
