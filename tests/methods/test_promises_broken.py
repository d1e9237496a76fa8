"""The grid can fail: a small method that keeps every promise, and ways to break one, each of which is noticed."""

from dataclasses import replace

import pytest
import torch
from torch.optim import Optimizer

import pliant
from tests.methods import promises
from tests.methods.promises import PROMISES, Method, on_parameters, resets_units, row_of
from tests.methods.runs import Cell
from tests.ranks import on_ranks


class Noise:
    """Adds noise to the parameters after each step that was taken, looked up by (seed, step)."""

    def __init__(self, model, optimizer, *, size, seed):
        if size < 0:
            raise ValueError("size must be 0 or more")
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        plain = getattr(model, "_orig_mod", model)
        self.shapes = {name: list(parameter.shape) for name, parameter in plain.named_parameters()}
        if not {*model.parameters()} & {*stepped(self.optimizers)}:
            raise ValueError("the optimizer steps none of these parameters")
        self.size, self.seed, self.steps = size, seed, 0
        self.handles = [each.register_step_post_hook(self.after) for each in self.optimizers]

    def after(self, optimizer, args, kwargs):
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not found_inf.any():
            self.steps += 1
            self.act(optimizer)

    @torch.no_grad()
    def act(self, optimizer):
        for parameter in stepped([optimizer]):
            parameter += self.size * self.noise(parameter)

    def noise(self, parameter):
        generator = torch.Generator().manual_seed(1000 * self.seed + self.steps)
        return torch.randn(parameter.shape, generator=generator).to(parameter)

    def detach(self):
        for handle in self.handles:
            handle.remove()

    def state_dict(self):
        return {"kind": "noise", "shapes": self.shapes, "seed": self.seed, "steps": self.steps}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.detach()

    def load_state_dict(self, state):
        if state.get("kind") != "noise" or state["shapes"] != self.shapes or "format" in state:
            raise ValueError("saved for something else")
        self.seed, self.steps = state["seed"], state["steps"]

    def __deepcopy__(self, memo):
        raise TypeError("build a new one, and load this one's state_dict()")

    def __reduce__(self):
        raise TypeError("save its state_dict()")


def stepped(optimizers):
    return [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]


def row(kind):
    return Method(
        "noise", on_parameters(kind), settings={"size": 0.01, "seed": 1}, off={"size": 0.0}, wrong={"size": -1.0}
    )


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_a_sound_method_of_one_s_own_keeps_every_promise(promise):
    promise(Cell(row(Noise), "mlp", "adam"))


# -- broken on purpose ---------------------------------------------------------------------------------------------------


class DrawsFromTheGlobalGenerator(Noise):
    def noise(self, parameter):
        return torch.randn_like(parameter)


class DrawsAsItPleases(Noise):
    def noise(self, parameter):
        return torch.randn(parameter.shape, generator=(own := torch.Generator(), own.seed())[0]).to(parameter)


class IgnoresItsSeed(Noise):
    def noise(self, parameter):
        self.seed = 0
        return super().noise(parameter)


class ForgetsItsCountOfSteps(Noise):
    def load_state_dict(self, state):
        super().load_state_dict({**state, "steps": 0})


class CountsSkippedSteps(Noise):
    def after(self, optimizer, args, kwargs):
        self.steps += 1
        self.act(optimizer)


class LeavesAHookBehind(Noise):
    def detach(self):
        for handle in self.handles[1:]:
            handle.remove()


class AttachesBeforeItChecks(Noise):
    def __init__(self, model, optimizer, **settings):
        for each in [optimizer] if isinstance(optimizer, Optimizer) else optimizer:
            each.register_step_post_hook(self.after)
        super().__init__(model, optimizer, **settings)


class WritesFloat32(Noise):
    def act(self, optimizer):
        for parameter in stepped([optimizer]):
            parameter.data = parameter.data.float() + self.size * self.noise(parameter).float()


class ActsWhenOff(Noise):
    def __init__(self, model, optimizer, *, size, seed):
        super().__init__(model, optimizer, size=max(size, 1e-3), seed=seed)


class CopiesStillFeedIt(Noise):
    """A hook on the model, which copies of it take along, counts forwards."""

    def __init__(self, model, optimizer, **settings):
        super().__init__(model, optimizer, **settings)
        self.forwards = 0
        self.handles.append(model.register_forward_pre_hook(lambda *_: setattr(self, "forwards", self.forwards + 1)))

    def state_dict(self):
        return {**super().state_dict(), "forwards": self.forwards}


class IsCopied(Noise):
    def __deepcopy__(self, memo):
        return self


class AcceptsAnyState(Noise):
    def load_state_dict(self, state):
        self.steps = state.get("steps", 0)


class IsChangedByAStateItRefuses(Noise):
    def load_state_dict(self, state):
        self.steps = state.get("steps", 0)
        super().load_state_dict(state)


class IsChangedByWiderStates(Noise):
    def load_state_dict(self, state):
        super().load_state_dict({**state, "shapes": self.shapes})


class IgnoresTheClosure(Noise):
    """Adds to the gradient that is there before the step, and a closure makes another."""

    def __init__(self, model, optimizer, **settings):
        super().__init__(model, optimizer, **settings)
        self.detach()
        self.handles = [each.register_step_pre_hook(self.after) for each in self.optimizers]

    def act(self, optimizer):
        for parameter in stepped([optimizer]):
            if parameter.grad is not None:
                parameter.grad += self.size * self.noise(parameter)


class ActsAtEachBackward(Noise):
    """Adds to each gradient that comes in, however many make a step."""

    def __init__(self, model, optimizer, **settings):
        super().__init__(model, optimizer, **settings)
        self.detach()
        self.handles = [
            parameter.register_hook(lambda gradient: gradient + self.size) for parameter in stepped(self.optimizers)
        ]


class RemovesHooksOfOthers(Noise):
    def __init__(self, model, optimizer, **settings):
        for each in [optimizer] if isinstance(optimizer, Optimizer) else optimizer:
            each._optimizer_step_post_hooks.clear()
        super().__init__(model, optimizer, **settings)


class SavesTheCountOfOneOptimizer(Noise):
    def __init__(self, model, optimizer, **settings):
        super().__init__(model, optimizer, **settings)
        self.counts = dict.fromkeys(self.optimizers, 0)

    def act(self, optimizer):
        self.counts[optimizer] += 1
        self.steps = self.counts[optimizer]
        super().act(optimizer)
        self.steps = self.counts[self.optimizers[0]]

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.counts = dict.fromkeys(self.optimizers, self.steps)


class DoesNotKnowACompiledModel(Noise):
    def __init__(self, model, optimizer, *, size, seed):
        super().__init__(model, optimizer, size=0.0 if hasattr(model, "_orig_mod") else size, seed=seed)


BROKEN = {
    DrawsFromTheGlobalGenerator: promises.it_leaves_the_global_random_state_alone,
    DrawsAsItPleases: promises.it_repeats_with_its_seed,
    IgnoresItsSeed: promises.another_seed_gives_another_network,
    ForgetsItsCountOfSteps: promises.it_resumes_to_the_bit,
    CountsSkippedSteps: promises.a_fused_step_that_a_grad_scaler_skips_is_none,
    LeavesAHookBehind: promises.detached_it_leaves_no_hook_and_training_is_plain,
    AttachesBeforeItChecks: promises.a_construction_that_fails_leaves_no_hook,
    WritesFloat32: promises.it_keeps_dtype_and_device,
    ActsWhenOff: promises.off_it_changes_nothing,
    CopiesStillFeedIt: promises.a_copy_of_the_model_is_inert,
    IsCopied: promises.a_copy_of_the_method_is_refused,
    AcceptsAnyState: promises.a_foreign_state_is_refused_and_changes_nothing,
    IsChangedByAStateItRefuses: promises.a_foreign_state_is_refused_and_changes_nothing,
    IsChangedByWiderStates: promises.a_state_of_other_sizes_is_refused_and_changes_nothing,
    IgnoresTheClosure: promises.a_closure_changes_nothing,
    ActsAtEachBackward: promises.accumulated_gradients_are_those_of_the_joint_batch,
    RemovesHooksOfOthers: promises.built_after_continual_backprop_it_keeps_its_word,
    SavesTheCountOfOneOptimizer: promises.it_goes_with_two_optimizers,
    DoesNotKnowACompiledModel: promises.a_compiled_model_trains_as_in_eager_mode,
}

NOTICED = (AssertionError, RuntimeError, pytest.fail.Exception)  # a float32 weight ends a forward in half precision


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_method_that_breaks_a_promise_is_noticed(kind):
    with pytest.raises(NOTICED):
        BROKEN[kind](Cell(row(kind), "mlp", "adam"))


def a_rank_to_itself(rank, folder):
    alone = replace(row_of("continual backprop"), build=resets_units(pliant.ContinualBackprop, process_group=None))
    with pytest.raises(AssertionError, match="the ranks differ"):
        promises.ranks_stay_equal(Cell(alone, "mlp", "adam"), rank)


def test_ranks_that_do_not_share_their_statistics_are_noticed(tmp_path):
    on_ranks(a_rank_to_itself, tmp_path)


# -- with the effect commented out ---------------------------------------------------------------------------------------

ABOUT_NO_EFFECT = [
    promises.a_copy_of_the_method_is_refused,
    promises.a_state_of_other_sizes_is_refused_and_changes_nothing,
]


@pytest.mark.parametrize(
    ("promise", "method"),
    [
        pytest.param(promise, method, id=f"{promise.__name__}: {method.name}")
        for method in (row_of("redo"), row_of("shrink and perturb"))
        for promise in PROMISES
        if promise not in ABOUT_NO_EFFECT and promise.__name__ not in method.cannot
    ],
)
def test_a_method_that_does_nothing_keeps_no_promise(promise, method):
    nothing = replace(method, settings={**method.settings, **method.off})
    with pytest.raises(NOTICED):
        promise(Cell(nothing, "mlp", "adam"))
