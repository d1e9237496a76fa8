"""A method of one's own: stepped, counted, saved and restarted like those of the library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pliant import ContinualBackprop
from pliant.lab.stored.checkpoint import to_bytes
from pliant.rl.ppo import PPO
from pliant.rl.ppo.settings import READ_BY
from tests.rl.ppo.environment import LinearEnvironment
from tests.rl.ppo.small import CBP, REDO, SMALL, in_every_group


class EveryOther:
    """Begins a unit of each agent's first group anew at every other step; it fails to load where `strict`."""

    def __init__(self, networks: Any, optimizer: Any, groups: Any, seeds: Any, strict: bool = False) -> None:
        self.weight = dict(networks.named_parameters())[groups[0].incoming[0].parameter]
        self.steps, self.restarts, self.seeds, self.strict = np.array(0), 0, seeds, strict

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        if self.steps % 2 == 0:
            self.weight[:, int(self.steps) % self.weight.shape[1]] = 0.1

    def stats(self) -> Any:
        return {"first": {"replaced": [int(self.steps) // 2 for _ in self.seeds]}}

    def restart(self) -> None:
        self.restarts += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.strict and state["steps"] > 20:
            raise ValueError("steps of another method")
        self.steps = state["steps"].copy()


def test_a_method_of_ones_own_is_stepped_counted_saved_and_restarted(tmp_path: Path):
    seeds = [0, 7]
    straight, stopped, again, plain = (
        PPO(LinearEnvironment(seeds), SMALL, method=None if number == 3 else EveryOther) for number in range(4)
    )
    for ppo in (straight, stopped):
        ppo.iterate()
        ppo.iterate()
    assert straight.replaced().tolist() == [12, 12]  # 24 steps of Adam
    stopped.save(tmp_path / "agents.pt")
    again.load(tmp_path / "agents.pt")
    for ppo in (straight, again):
        ppo.iterate()
    assert to_bytes(straight.state_dict()) == to_bytes(again.state_dict())
    assert again.replaced().tolist() == [18, 18]
    with pytest.raises(ValueError, match="replacement of units on; here it is off"):
        plain.load(tmp_path / "agents.pt")
    with pytest.raises(ValueError, match="replacement of units off; here it is on"):
        again.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="EveryOther restarts with all agents of a stack or none"):
        again.restart([1])
    again.restart()
    assert again.method.restarts == 1  # type: ignore[union-attr]


def test_a_public_method_given_as_ones_own_does_as_by_its_settings():
    def cbp(networks: Any, optimizer: Any, groups: Any, seeds: Any) -> ContinualBackprop:
        own = {name: getattr(CBP, name) for name in READ_BY if "cbp" in READ_BY[name]}
        return ContinualBackprop(networks, optimizer, groups=groups, seed=seeds, attach=False, init=CBP.init, **own)

    named, own = PPO(LinearEnvironment([0, 7]), CBP), PPO(LinearEnvironment([0, 7]), replace(SMALL), method=cbp)
    for ppo in (named, own):
        for _ in range(3):
            ppo.iterate()
        ppo.restart()
        for _ in range(2):
            ppo.iterate()
    assert in_every_group(named) >= 20
    assert to_bytes({**named.state_dict(), "settings": {}}) == to_bytes({**own.state_dict(), "settings": {}})


def test_a_state_that_a_method_refuses_leaves_all_as_it_was():
    ppo = PPO(LinearEnvironment([0]), SMALL, method=lambda *parts: EveryOther(*parts, strict=True))
    other = PPO(LinearEnvironment([0]), SMALL, method=EveryOther)
    ppo.iterate()
    ppo.collect(5)
    for _ in range(3):
        other.iterate()
    before = to_bytes(ppo.state_dict())
    with pytest.raises(ValueError, match="steps of another method"):
        ppo.load_state_dict(other.state_dict())
    assert to_bytes(ppo.state_dict()) == before


class Forgetful(EveryOther):
    """Has nothing to remember before its first step."""

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps.copy()} if self.steps else {}


def test_a_method_whose_state_is_empty_at_first_is_still_a_method():
    def begun(**own: Any) -> PPO:
        return PPO(LinearEnvironment([0]), SMALL, **own)

    empty = begun(method=Forgetful).state_dict()
    with pytest.raises(ValueError, match="replacement of units on; here it is off"):
        begun().load_state_dict({**empty, "method": {"steps": np.array(1)}})
    later = begun(method=Forgetful)
    later.iterate()
    again = begun(method=Forgetful)
    again.load_state_dict(later.state_dict())
    assert again.method.steps == later.method.steps > 0  # type: ignore[union-attr]
    begun().load_state_dict({**begun().state_dict(), "method": {}})  # as states were written before


def test_a_damaged_state_is_refused_and_the_rollout_just_learned_from_can_still_be_measured():
    ppo = PPO(LinearEnvironment([0]), SMALL)
    ppo.iterate()
    state = ppo.state_dict()
    with pytest.raises(ValueError, match="this state lacks 'count'"):
        ppo.load_state_dict({**state, "adam": {}})
    assert to_bytes(ppo.state_dict()) == to_bytes(state)
    ppo.measures()


def test_a_method_that_lacks_something_or_stands_beside_another_is_refused():
    with pytest.raises(TypeError, match=r"a object, lacks step, stats, restart, state_dict, load_state_dict"):
        PPO(LinearEnvironment([0]), SMALL, method=lambda *parts: object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="method='redo' is not called with the networks"):
        PPO(LinearEnvironment([0]), SMALL, method="redo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method= stands beside settings of method redo"):
        PPO(LinearEnvironment([0]), REDO, method=EveryOther)
