"""Avalanche: plugins that attach methods while a strategy trains, and plasticity as a metric.

    from pliant.integrations.avalanche import ContinualBackpropPlugin
    Naive(model=model, optimizer=optimizer, plugins=[ContinualBackpropPlugin(replacement_rate=1e-4)]).train(experience)

A method is attached at the first batch, and stays so from one `train()` to the next. Avalanche adapts the model to each
experience (a classifier grows, a task gets a head) and gives the optimizer its new parameters: units are then found anew, and
those that stayed keep their ages and utilities. Activity is that of the strategy's own forward: evaluation in between, and what
plugins run before it, count for nothing. The strategy is pickled with the state of its plugins. See docs/integrations.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal, Unpack, cast

import torch
from torch import nn

from pliant.base.choices import one_of
from pliant.base.install import check_tested, how_to_install
from pliant.diagnostics import Monitor, diagnose
from pliant.integrations.attaching import Attachment, Method, Settings
from pliant.integrations.examples import Example, check_example, example_for, of_first_batch
from pliant.integrations.shares import shares
from pliant.methods import ContinualBackprop

_core: Any
_evaluation: Any
try:
    _core, _evaluation = import_module("avalanche.core"), import_module("avalanche.evaluation")
    is_multi_task_module: Any = import_module("avalanche.models.utils").is_multi_task_module
    _MetricValue: Any = import_module("avalanche.evaluation.metric_results").MetricValue
    _metric_name: Any = import_module("avalanche.evaluation.metric_utils").get_metric_name
except ImportError as error:
    raise ImportError(f"pliant.integrations.avalanche needs Avalanche: {how_to_install('avalanche')}") from error


class MethodPlugin(_core.SupervisedPlugin):
    """Any method while a strategy trains, such as `MethodPlugin(pliant.L2, strength=1e-4)`.

    Args:
        method: `method(model, optimizer, example_inputs=..., **settings)` builds it.
        example_inputs: what the model is run on to find its units, or a function of a batch that returns it. By default `mb_x`;
            for a model of several tasks, with each task that it was trained on.
        name: by which it is told from others of the strategy.
        settings: of the method.

    Raises at construction what the method raises for these settings, and `RuntimeError` for a version of Avalanche that this is
    not tested with; at the first batch, what the method raises for this model and its optimizer.
    """

    def __init__(
        self, method: Method, *, example_inputs: Example = None, name: str | None = None, **settings: Any
    ) -> None:
        super().__init__()
        check_tested("avalanche-lib", "0.6", "0.7")
        self._example = check_example(example_inputs)
        self._attachment = Attachment(method, settings, owner=type(self).__name__, name=name)
        self._last: Any = None  # example that units were found with
        self._parameters: dict[str, nn.Parameter] = {}  # those that the model had then
        self._tasks: list[int] = []  # that it was trained on then

    @property
    def method(self) -> Any:
        """The method; None before the first batch, and in a strategy that was saved, until it trains."""
        return self._attachment.method

    # -- what Avalanche calls ----------------------------------------------------------------------------------------

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._go_on(strategy)

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._go_on(strategy)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if not self._fits(strategy.model):
            given, model = self._example, strategy.model
            self._last = (
                _inputs(strategy)
                if given is None
                else example_for(given, lambda: strategy.mbatch, model, strategy.device)
            )
            with of_first_batch(given):
                self._attach(strategy)

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._attachment.drop_recorded()

    def after_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """To evaluate on classes to come lets a model grow, but gives them to the optimizer at the next training only."""
        is_between_trainings = strategy._eval_streams is None
        if is_between_trainings and self._attachment.is_attached and not self._fits(strategy.model):
            strategy.make_optimizer()
            self._attach(strategy)

    # -- attaching ---------------------------------------------------------------------------------------------------

    def _go_on(self, strategy: Any) -> None:
        """In a new process: with the model as it was saved, before it is adapted to what comes."""
        if not self._attachment.is_attached and self._attachment.state_dict() is not None and self._last is not None:
            self._attach(strategy)

    def _attach(self, strategy: Any) -> None:
        model, optimizer = strategy.model, strategy.optimizer
        if self._attachment.is_attached:
            self._attachment.retrace(model, optimizer, example_inputs=self._last)
        else:
            self._attachment.attach(model, optimizer, example_inputs=self._last, run=strategy)
        self._parameters, self._tasks = dict(model.named_parameters()), _tasks(model)

    def _fits(self, model: nn.Module) -> bool:
        """Whether it is attached to the parameters and the tasks that the model has now."""
        now, then = dict(model.named_parameters()), self._parameters
        same = now.keys() == then.keys() and all(now[name] is each for name, each in then.items())
        return self._attachment.is_attached and same and self._tasks == _tasks(model)

    def detach(self) -> None:
        """Remove every hook and keep the state, for when training is over; the next `train()` attaches again."""
        self._attachment.detach()

    # -- saving ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """That of the method, or, before the first batch of all, an empty one. A strategy's own checkpoint holds it already."""
        return self._attachment.state_dict() or {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` at the next first batch, which raises `ValueError` if the model has other units."""
        self._attachment.stash(dict(state))
        self._last = None

    def __getstate__(self) -> dict[str, Any]:
        """Settings, state and example; not the model, which the strategy saves."""
        return {**vars(self), "_parameters": {}}


class ContinualBackpropPlugin(MethodPlugin):
    """Continual backpropagation while a strategy trains.

    Args:
        example_inputs, name: see `MethodPlugin`, and what is raised.
        settings: of `pliant.ContinualBackprop` (`replacement_rate`, `maturity_threshold`, ...), with its defaults.
    """

    def __init__(
        self, *, example_inputs: Example = None, name: str | None = None, **settings: Unpack[Settings]
    ) -> None:
        given = cast(dict[str, Any], settings)
        super().__init__(ContinualBackprop, example_inputs=example_inputs, name=name, **given)


class PlasticityMonitorPlugin(MethodPlugin):
    """Measures of plasticity while a strategy trains, and a warning where one is worth a word: see `pliant.Monitor`.

    Args:
        example_inputs, name: see `MethodPlugin`, and what is raised.
        settings: of `pliant.Monitor` (`every`, `to`, `tau`, ...), with its defaults.
    """

    def __init__(self, *, example_inputs: Example = None, name: str | None = None, **settings: Any) -> None:
        super().__init__(Monitor, example_inputs=example_inputs, name=name, **settings)


class PlasticityMetrics(_evaluation.PluginMetric):
    """Shares of hidden units that are dead, dormant (ReDo's measure) and saturated, after each training experience.

    Of the last training batch, in evaluation mode; no random numbers are drawn. For an `EvaluationPlugin`, which reports them as
    `Plasticity_dead_share/train_phase/train_stream/Task000`, and so on.

    Args:
        at: "experience", or "epoch" for after each of these.
    """

    def __init__(self, at: Literal["experience", "epoch"] = "experience") -> None:
        super().__init__()
        check_tested("avalanche-lib", "0.6", "0.7")
        self._at = one_of("at", at, ("experience", "epoch"))
        self._shares: dict[str, float] = {}
        self._batch: Any = None  # an evaluation in between drops the strategy's

    def result(self) -> dict[str, float]:
        """The latest, by name."""
        return dict(self._shares)

    def reset(self) -> None:
        self._shares = {}

    def after_training_iteration(self, strategy: Any) -> None:
        self._batch = _inputs(strategy)

    def after_training_epoch(self, strategy: Any) -> Any:
        return self._measured(strategy) if self._at == "epoch" else None

    def after_training_exp(self, strategy: Any) -> Any:
        return self._measured(strategy) if self._at == "experience" else None

    def _measured(self, strategy: Any) -> list[Any]:
        if self._batch is None:
            return []
        self._shares = shares(diagnose(strategy.model, self._batch, reference=None).rows)
        step = strategy.clock.train_iterations
        return [
            _MetricValue(self, _metric_name(f"Plasticity_{name}", strategy), share, step)
            for name, share in self._shares.items()
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_batch": None}


def _inputs(strategy: Any) -> Any:
    """What the model is run on: the batch; where it has several tasks, the batch for each that it was trained on, at once."""
    inputs, tasks = strategy.mb_x, _tasks(strategy.model)
    if not tasks:
        return (inputs,)
    labels = torch.tensor(tasks, device=inputs.device).repeat_interleave(len(inputs))
    return inputs.repeat(len(tasks), *[1] * (inputs.dim() - 1)), labels


def _tasks(model: Any) -> list[int]:
    return sorted(model.known_train_tasks_labels) if is_multi_task_module(model) else []
