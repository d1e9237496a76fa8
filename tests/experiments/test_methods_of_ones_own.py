"""A subclass of a shipped experiment with a method of its own never learns by another under that name."""

from typing import Any, Literal

import pandas
import pytest
from pydantic import ValidationError, create_model

from pliant.experiments import TABLE
from pliant.experiments.rewired_cart_pole import RewiredCartPole
from pliant.experiments.slowly_changing_regression import SlowlyChangingRegression
from pliant.lab import Context, LabError
from pliant.lab.study.settings import known_methods, selected
from pliant.lab.study.target import load, target
from pliant.rl.ppo.settings import preset

AGENTS = ("rewired-cart-pole", "slippery-ant", "slippery-cheetah", "ant", "hopper", "walker2d")
SMALL: dict[str, dict[str, Any]] = {
    "permuted-mnist": {"dataset": "small"},
    "input-permuted-mnist": {"dataset": "small"},
    "rare-context": {"dataset": "small"},
    "random-labels": {"dataset": "small", "images": 60, "batch_size": 10},
    "continual-imagenet": {"dataset": "small", "train_images": 20, "test_images": 6, "batch_size": 20},
}


def with_method(kind, **more):
    """The experiment with one more method, which nothing in it knows; `more`: what a subclass adds."""
    own = create_model("Own", __base__=kind.Config, method=(Literal["mine", *known_methods(kind.Config)], "mine"))
    return type("Mine", (kind,), {"Config": own, "runs": lambda self, profile: [self.Config()], **more})


@pytest.mark.parametrize("name", TABLE)
def test_a_method_that_an_experiment_does_not_know_is_refused_before_anything_runs(name):
    kind = type(load(target(TABLE[name].target)))
    with pytest.raises(
        LabError, match=r"method 'mine' is none of those known here \(.*cbp.*\): for one of your own override "
    ):
        selected(with_method(kind)(), "quick")


@pytest.mark.parametrize("name", [name for name in TABLE if name not in AGENTS])
def test_who_makes_the_learners_refuses_it_too(name, data):
    mine = with_method(type(load(target(TABLE[name].target))))()
    config = mine.Config(**SMALL.get(name, {}))
    with pytest.raises(LabError, match=r"method 'mine' is none of those .* override start, which makes the learners"):
        mine.start([config], Context(data=data))


@pytest.mark.parametrize("name", AGENTS)
def test_no_agent_has_a_method_that_its_settings_do_not_know(name):
    mine = with_method(type(load(target(TABLE[name].target))))
    with pytest.raises(ValidationError, match=r"method 'mine' is none of those .* override settings\(\) of the Config"):
        mine.Config()


def test_one_that_is_taken_care_of_runs_and_has_a_line_in_the_figure():
    mine = with_method(
        SlowlyChangingRegression,
        methods=(*SlowlyChangingRegression.methods, "mine"),
        start=lambda self, configs, context: SlowlyChangingRegression.start(
            self, [config.model_copy(update={"method": "bp"}) for config in configs], context
        ),
    )()
    (config,) = selected(mine, "quick", overrides=["steps=40000"])
    state = mine.start([config], Context())
    rows = pandas.concat([pandas.DataFrame(mine.advance(state)) for _ in range(2)])
    facts = {**config.model_dump(), "status": "done", "diverged_at": None, "commit": "c"}
    table = pandas.DataFrame({"run": 0, **facts, **{name: rows[name].to_numpy() for name in mine.columns}})
    figure = mine.figure(table)
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["mine"]


def test_an_agent_with_settings_of_its_own_runs():
    mine = with_method(RewiredCartPole, methods=(*RewiredCartPole.methods, "mine"))

    class Own(mine.Config, frozen=True):
        def settings(self):
            return preset("ppo-redo", hidden=self.hidden)

    mine.Config = Own
    (config,) = selected(mine(), "quick")
    assert config.settings().method == "redo"


@pytest.mark.parametrize(
    "name", ["slowly-changing-regression", "continual-imagenet", "rewired-cart-pole", "slippery-ant"]
)
def test_runs_of_several_settings_that_a_coarse_key_puts_together_are_refused(name, data):
    experiment = load(target(TABLE[name].target))
    first = experiment.Config(**SMALL.get(name, {}))
    other = first.model_copy(update={"step_size": 0.5, "seed": 1})
    if name == "slowly-changing-regression":
        other = first.model_copy(update={"activation": "tanh", "seed": 1})
    with pytest.raises(LabError, match=r"share a job.*see stack_key"):
        experiment.start([first, other], Context(data=data))
