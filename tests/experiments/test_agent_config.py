"""Experiments' settings of an agent, held to the library's presets."""

from typing import Any

import pytest
from pydantic import ValidationError

from pliant.experiments import locomotion
from pliant.experiments.agent_config import AgentConfig
from pliant.rl.ppo import PRESETS, Settings


@pytest.mark.parametrize("cell", locomotion._ARTICLE, ids=lambda cell: cell["method"])
def test_the_articles_agents_are_the_presets(cell: dict[str, Any]):
    name = cell["method"]
    assert AgentConfig(**cell).settings() == PRESETS["ppo" if name == "ppo" else f"ppo-{name}"]


def test_all_of_the_articles_presets_are_run():
    assert {"modern"} | {
        "ppo" if each["method"] == "ppo" else f"ppo-{each['method']}" for each in locomotion._ARTICLE
    } == PRESETS.keys()


def test_by_default_and_with_a_fresh_network_it_is_standard_ppo():
    assert AgentConfig().settings() == AgentConfig(method="fresh").settings() == Settings()


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"method": "cbp", "replacement_rate": 1e-3, "maturity_threshold": 7, "hand_over_mean": True, "decay_rate": 0.5},
         {"method": "cbp", "replacement_rate": 1e-3, "maturity_threshold": 7, "hand_over_mean": True, "decay_rate": 0.5}),
        ({"method": "redo", "tau": 0.2, "redo_period": 5, "optimizer_state": "fresh"},
         {"method": "redo", "tau": 0.2, "period": 5, "optimizer_state": "fresh"}),
        ({"method": "tuned-adam", "beta1": 0.5, "beta2": 0.5, "hidden": [8], "entropy_weight": 0.1},
         {"betas": (0.5, 0.5), "hidden": (8,), "entropy_weight": 0.1}),
    ],
    ids=["cbp", "redo", "tuned-adam"],
)  # fmt: skip
def test_what_is_set_reaches_ppo(given: dict[str, Any], read: dict[str, Any]):
    assert AgentConfig(**given).settings() == Settings(**read)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"redo_period": 5}, "redo_period is read by method redo, not ppo: leave it out"),
        ({"method": "redo", "tau": 0.1, "utility": "weight"}, "utility is read by method cbp, not redo"),
        ({"optimizer_state": "fresh"}, "optimizer_state is read by method cbp or redo, not ppo"),
        ({"tau": 0.1}, "tau is for method redo, not ppo"),
        ({"method": "cbp"}, "method cbp needs replacement_rate > 0"),
        ({"method": "tuned-adam"}, "has equal betas, not 0.9 and 0.999"),
    ],
)
def test_a_setting_that_the_method_does_not_read_is_refused(given: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        AgentConfig(**given)
