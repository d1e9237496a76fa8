"""Environments of gymnasium for PPO: an id, an environment, a function that makes one, or a `VectorEnv`.

Copy c of an agent begins with `reset(seed=...)`, with a seed that is keyed by the agent's seed and c, and goes on with plain
resets. Where an episode ends, terminated or truncated, the next begins at once, whatever the autoreset mode of a `VectorEnv`
(`gymnasium_copies`); what the last action led to is in the `Transition`. Spaces: `gymnasium_spaces`.

A state holds what the environments remember (`gymnasium_state`) where putting it back is exact. This is tried, when a state is
first asked for, on two more of the same environment: one is put into the other's state, and both take the same steps. Where they
differ a warning says so, once, and agents that are loaded go on with new episodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened, shown
from pliant.base.install import how_to_install
from pliant.base.memory import refuse_too_large
from pliant.base.process import other_random_states, random_state
from pliant.base.saving import all_or_nothing, count_in, entry
from pliant.rl.environments.base import ActionSpace, Discrete, Floats, Transition
from pliant.rl.environments.counts import check_counts, one_seed_each
from pliant.rl.environments.gymnasium_copies import AllAtOnce, Copies, OneByOne, mode_of
from pliant.rl.environments.gymnasium_spaces import Actions, Observations
from pliant.rl.environments.gymnasium_state import NotSaved, digests, put_back, read
from pliant.rl.environments.options import refuse_other_settings
from pliant.streams import generator

_log = logging.getLogger("pliant")
BEFORE, AFTER = 30, 150  # steps of a trial: before a state is read, and after it was put back


class GymnasiumBatch:
    """`copies` of an environment of gymnasium for each of `len(seeds)` agents, as PPO takes them.

    Args:
        environment: an id, as in `gymnasium.make(id)`; a function without arguments that makes an environment, or its class; a
            `gymnasium.vector.VectorEnv`, whose environments are given to the agents in order; or an environment, which is one
            copy for one agent.
        seeds: one for each agent.
        copies: of each agent; None is 1, and of a `VectorEnv` as many as it has.

    Raises `TypeError` for what is no such environment, and `ValueError` for spaces that PPO has no use for, or numbers of agents
    and copies that the environment is not for.

    >>> carts = GymnasiumBatch("CartPole-v1", seeds=[0, 1, 2], copies=4)
    >>> carts.observations.shape, carts.step(np.zeros((3, 4), int)).rewards.sum()
    ((3, 4, 4), np.float64(12.0))
    """

    def __init__(self, environment: Any, *, seeds: Sequence[int] = (0,), copies: int | None = None) -> None:
        self.seeds = one_seed_each(seeds)
        check_counts(self.seeds, {} if copies is None else {"copies": copies}, least={})
        self._made = made = _made(environment, self.seeds, copies)
        self._copies, self.name, self.copies = made.copies, made.name, made.copies.count // self.agents
        self._observed = Observations(self._copies.observation_space, self.name)
        self._acted = Actions(self._copies.action_space, self.name)
        self._exact: bool | None = None  # whether putting a state back is; None until it is tried
        self._spare: Copies | None = None  # that states are tried on
        self._fresh: Mapping[str, bytes] = {}  # digests of an environment that is newly made, or as it was given
        self._waiting: tuple[int, Floats] | None = None  # steps and observations of a state whose episodes cannot go on
        self._begin(0)
        if not made.anew:
            with suppress(NotSaved):  # which is said when a state is asked for
                self._fresh = digests(self._copies.remembered[0], "environment")

    @property
    def agents(self) -> int:
        return len(self.seeds)

    @property
    def observation_size(self) -> int:
        return self._observed.size

    @property
    def actions(self) -> ActionSpace:
        return self._acted.actions

    @property
    def steps(self) -> int:
        """Of each copy, since the beginning."""
        return self._waiting[0] if self._waiting else self._steps

    @property
    def observations(self) -> Floats:
        """What the agents see now, (agents, copies, observation_size)."""
        if self._waiting is not None:
            self._begin(self._waiting[0])
        return self._now

    @property
    def interrupted(self) -> Floats | None:
        """The observations at which the state last loaded had episodes that cannot go on; None where it goes on with them."""
        return None if self._waiting is None else self._waiting[1].copy()

    def _begin(self, steps: int) -> None:
        """Begin new episodes in all copies."""
        found = self._copies.reset(self._seeds(steps))
        self._now, self._steps, self._waiting = self._shaped(self._observed.rows(found)), steps, None

    def _seeds(self, steps: int) -> list[int]:
        """Of the resets of all copies after so many steps."""
        places = [(seed, copy) for seed in self.seeds for copy in range(self.copies)]
        drawn = [generator(seed, "reset of an environment", copy, steps) for seed, copy in places]
        return [int(each.integers(2**31)) for each in drawn]

    def step(self, actions: NDArray[Any], /) -> Transition:
        """Take a step everywhere; `actions` (agents, copies), or (agents, copies, size), in [-1, 1] where they are bounded."""
        shape = (
            (self.agents, self.copies)
            if isinstance(self.actions, Discrete)
            else (*self._now.shape[:2], self.actions.size)
        )
        if np.shape(actions) != shape:
            raise ValueError(f"{self.name}: actions of shape {np.shape(actions)}; here they are of shape {shape}")
        if self._waiting is not None:
            self._begin(self._waiting[0])
        led = self._copies.step(self._acted.given(np.asarray(actions).reshape(self._copies.count, *shape[2:])))
        self._steps += 1
        reached = self._observed.rows(led.observations)
        self._now = self._shaped(reached if led.begun is led.observations else self._observed.rows(led.begun))
        return Transition(*map(self._shaped, (reached, led.rewards, led.terminated, led.truncated)))

    def _shaped(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(self.agents, self.copies, *values.shape[1:])

    def close(self) -> None:
        for each in (self._copies, self._spare):
            if each is not None:
                each.close()

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The whole state, where it can be saved; a warning says, once, where it cannot."""
        return {
            "settings": self._settings,
            "steps": self.steps,
            "observations": self._now.copy() if self._waiting is None else self._waiting[1].copy(),
            "remembered": None if self._waiting else self._remembered(),
        }

    @property
    def _settings(self) -> dict[str, str]:
        spaces = {name: str(getattr(self._copies, name)) for name in ("observation_space", "action_space")}
        return {"environment": self.name, "seeds": str(self.seeds), "copies": str(self.copies)} | spaces

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from there: to the bit, or with new episodes where theirs could not be saved (`interrupted`).

        Raises ValueError, with nothing changed, where the state is of another environment.
        """
        refuse_other_settings(state["settings"], self._settings)
        steps, seen, remembered = count_in(state, "steps"), entry(state, "observations", self._now), state["remembered"]
        if remembered is not None:
            if not isinstance(remembered, Mapping):
                raise ValueError(
                    f"'remembered' of this state is {shown(remembered)}, and nothing that environments remember"
                )
            put_back(remembered, self._copies.remembered)
            self._steps, self._now, self._waiting = steps, seen, None
        elif steps == self._steps and np.array_equal(seen, self._now, equal_nan=True):
            self._waiting = None  # it is there already
        else:
            self._waiting = (steps, seen)  # nothing is begun before it is looked at: this state may yet be refused

    def _remembered(self) -> Any:
        """What the environments remember, as plain data; None where that cannot be saved, or not be put back."""
        if self._exact is False:
            return None
        try:
            if self._exact is None:
                self._try()
            plain = _plain(self._copies, self._fresh)
            self._check(plain)
        except NotSaved as error:
            _log.warning(
                "%s: what it remembers cannot be saved (%s): agents that are loaded go on with new episodes",
                self.name,
                error,
            )
            plain, self._exact = None, False
        else:
            self._exact = True
        return plain

    def _check(self, plain: Any) -> None:
        """Put each into another environment, begun alike. Raises `NotSaved` where it cannot be, as after a change of objects."""
        spare, seeds = cast(Copies, self._spare), self._seeds(0)
        with random_state(), other_random_states():
            for number, each in enumerate(plain["list"]):
                try:
                    spare.reset(seeds[number : number + spare.count])
                    put_back({"list": [each]}, spare.remembered)
                except Exception as error:  # whatever an environment raises on a reset
                    raise NotSaved(str(error)) from error

    def _try(self) -> None:
        """Put one environment into the state of another and step both. Raises `NotSaved` where they differ."""
        digests(self._copies.remembered[0], "environment")  # what cannot even be compared is named before any is made
        try:
            with random_state(), other_random_states():
                one, other = self._made.another(), self._made.another()
                fresh = _digests(other) if self._made.anew else self._fresh
                equal = _go_on_alike(one, other, self._acted, fresh)
        except NotSaved:
            raise
        except Exception as error:  # of an environment of any kind, that may be none to have twice
            raise NotSaved(f"trying it raised {type(error).__name__}: {shortened(error)}") from error
        if not equal:
            raise NotSaved("it goes on in another way when its attributes are put back")
        self._fresh, self._spare = fresh, other


def _plain(copies: Copies, fresh: Mapping[str, bytes]) -> Any:
    return {"list": [read(each, "environment", fresh) for each in copies.remembered]}


def _digests(copies: Copies) -> dict[str, bytes]:
    """Of what is the same after two resets."""
    found: list[dict[str, bytes]] = []
    for seed in range(2):
        copies.reset([seed] * copies.count)
        found.append(digests(copies.remembered[0], "environment"))
    return dict(found[0].items() & found[1].items())


def _go_on_alike(one: Copies, other: Copies, acted: Actions, fresh: Mapping[str, bytes]) -> bool:
    draws = np.random.default_rng(0)
    seeds = list(range(one.count))

    def actions() -> NDArray[Any]:
        if isinstance(acted.actions, Discrete):
            return acted.given(draws.integers(acted.actions.count, size=one.count))
        return acted.given(draws.uniform(-1, 1, (one.count, acted.actions.size)))

    for each in (one, other):
        each.reset(seeds)
    for _ in range(BEFORE):
        one.step(actions())
    put_back(_plain(one, fresh), other.remembered)
    alike = True
    for _ in range(AFTER):
        chosen = actions()
        led = zip(one.step(chosen), other.step(chosen), strict=True)
        alike = alike and all(np.array_equal(mine, its) for mine, its in led)
    one.close()
    return alike


# -- what is given -------------------------------------------------------------------------------------------------------


class _Made(NamedTuple):
    copies: Copies
    another: Callable[[], Copies]  # of the same kind, to try things on
    anew: bool  # whether that is made as the first was, and is no copy of it
    name: str


def is_of_gymnasium(given: object) -> bool:
    """Whether it is for `GymnasiumBatch` to make environments of: an id, a function, or an object of gymnasium's."""
    return (
        isinstance(given, str)
        or callable(given)
        or "gymnasium" in {each.__module__.partition(".")[0] for each in type(given).__mro__}
    )


def _made(given: Any, seeds: Sequence[int], copies: int | None) -> _Made:
    try:
        import gymnasium
        from gymnasium.envs.registration import EnvSpec
    except ImportError as error:
        raise ImportError(f"environments of gymnasium need gymnasium: {how_to_install('rl')}") from error

    if isinstance(given, gymnasium.vector.VectorEnv):
        return _of_vector(cast(Any, given), seeds, copies)
    count = len(seeds) * (copies or 1)
    refuse_too_large(f"{count} environments (seeds, copies)", 4000 * count)
    if isinstance(given, gymnasium.Env):
        one = cast(Any, given)
        if count > 1:
            raise ValueError(
                f"{_name(one)} is one environment, and {len(seeds)} agents with {copies or 1} copies each need {count}: give a "
                f"function that makes one, such as lambda: gymnasium.make({_name(one)!r}), or the id"
            )
        return _Made(OneByOne([one]), lambda: OneByOne([deepcopy(one)]), False, _name(one))
    if isinstance(given, str | EnvSpec):
        make: Callable[[], Any] = partial(_by_id, given)
    elif callable(given):
        make = given
    else:
        raise TypeError(
            f"{shown(given)} is no environment: give one of pliant.rl.environments, or with their interface "
            f"(docs/environments.md), an environment of gymnasium, an id such as 'CartPole-v1', a function that makes one, or, "
            f"for several, a gymnasium.vector.SyncVectorEnv of such functions"
        )
    made = [make() for _ in range(count)]
    for each in made:
        if not isinstance(each, gymnasium.Env):
            raise TypeError(f"{shown(given)} made {shown(each)}, and no gymnasium.Env")
    if len({id(each) for each in made}) < count:
        raise ValueError(f"{shown(given)} gave the same environment twice: it has to make a new one at each call")
    return _Made(OneByOne(made), lambda: OneByOne([make()]), True, _name(made[0]))


def _by_id(given: Any) -> Any:
    import gymnasium

    try:
        return gymnasium.make(given)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ValueError(f"gymnasium makes no environment {shown(given)}: {shortened(error, 300)}") from error


def _of_vector(given: Any, seeds: Sequence[int], copies: int | None) -> _Made:
    """A `VectorEnv`, or single ones in its place where it cannot begin the episode of one copy alone."""
    name, count = _name(given), int(given.num_envs)
    if count % len(seeds):
        raise ValueError(f"{name} has {count} environments, which {len(seeds)} agents (seeds) cannot share evenly")
    if copies not in (None, count // len(seeds)):
        raise ValueError(
            f"{name} has {count} environments, {count // len(seeds)} for each of {len(seeds)} agents, and not copies={copies}: "
            f"leave copies out"
        )
    if mode_of(given) is None:
        raise ValueError(
            f"{name} does not say when it begins the next episode: it has no metadata['autoreset_mode'], as VectorEnvs of "
            f"gymnasium 1.1 and later have"
        )
    made = AllAtOnce(given)
    if made.begins_alone(range(count)):
        return _Made(made, lambda: AllAtOnce(deepcopy(given)), False, name)
    spec = given.spec
    if spec is None or spec.entry_point is None or given.unwrapped is not given:
        raise ValueError(
            f"{name} begins the next episode one step late and cannot be told to begin one earlier: make it with "
            f"autoreset_mode SAME_STEP, or give a function that makes one environment, and copies={count // len(seeds)}"
        )
    return _made(_single_of(spec), seeds, count // len(seeds))


def _single_of(spec: Any) -> Callable[[], Any]:
    """Makes one of the environments that `gymnasium.make_vec` made many of at once."""
    import gymnasium

    told = {name: each for name, each in spec.kwargs.items() if name not in ("num_envs", "vectorization_mode")}
    plain = deepcopy(spec)
    plain.kwargs = {}
    return lambda: gymnasium.make(plain, **told)


def _name(environment: Any) -> str:
    spec = environment.spec
    return type(environment.unwrapped).__name__ if spec is None else str(spec.id)
