"""Small environments of gymnasium for tests: a walk that ends at a wall, or is truncated; and ways of remembering it."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces


class Walk(gymnasium.Env):
    """x <- x + 0.2 a + noise: terminated beyond 1, truncated after 9 steps; the reward is -x²."""

    def __init__(self, limit=9, actions=None):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32) if actions is None else actions
        self.limit, self.given = limit, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age, self.x = 0, float(self.np_random.uniform(-0.5, 0.5))
        return self.seen(), {}

    def seen(self):
        return np.array([self.x, self.age])

    def step(self, action):
        self.given.append(action)
        self.age += 1
        self.x += 0.2 * float(np.sum(action)) + 0.1 * self.noise()
        return self.seen(), -(self.x**2), abs(self.x) > 1, self.age >= self.limit, {}

    def noise(self):
        return self.np_random.normal()


class Mood(Enum):
    CALM = 1
    WILD = 2


class Wind:
    """An object that an environment holds."""

    def __init__(self, walk):
        self.walk, self.past, self.random = walk, deque(maxlen=3), random.Random(5)

    def blow(self):
        self.past.append(self.random.gauss(0, 1))
        return sum(self.past)


@dataclass(frozen=True)
class Gust:
    strength: float


class Lull(Gust):
    """Of another class, with the same attributes."""


class Place(NamedTuple):
    across: float
    up: float


class WindyWalk(Walk):
    """It remembers in objects, lists of objects, deques, sets, mappings, members of an Enum and generators of several kinds."""

    def __init__(self):
        super().__init__()
        self.winds, self.mood, self.gust = [Wind(self), Wind(self)], Mood.CALM, Gust(0.1)
        self.legacy, self.visits, self.huge = np.random.RandomState(3), {(0, 1): {2, 3}}, 2**90
        self.name, self.place = np.array(["left", "right"]), Place(0.0, 0.5)

    def noise(self):
        self.mood = Mood.WILD if self.winds[0].blow() > 0 else Mood.CALM
        self.huge = self.huge * 5 % 2**97
        self.visits[0, 1] = {int(self.huge % 7)}
        self.name = self.name[::-1].copy()
        self.place = Place(self.place.up, -0.9 * self.place.across + 0.1)
        self.gust = Gust(
            self.place.up + self.gust.strength * 0.9 + 0.01 * (self.name[0] == "left") + 0.001 * sum(self.visits[0, 1])
        )
        return self.gust.strength + self.winds[1].blow() * self.mood.value + self.legacy.normal()


class Phases(Walk):
    """After some steps it holds an object of another class."""

    def __init__(self):
        super().__init__()
        self.phase, self.steps = Gust(0.5), 0

    def noise(self):
        self.steps += 1
        if self.steps == 400:
            self.phase = Lull(0.5)
        return self.np_random.normal()


class Buffered(Walk):
    """It writes all of its observations into one array."""

    def __init__(self):
        super().__init__()
        self.buffer = np.zeros(2)

    def seen(self):
        self.buffer[:] = super().seen()
        return self.buffer


class Sampling(Walk):
    """It draws from its own space of actions."""

    def noise(self):
        return float(self.action_space.sample()[0])


def _counter():
    n = 0
    while True:
        n += 1
        yield np.sin(n)


class Hidden(Walk):
    """It remembers in a generator of Python's, which nothing can read."""

    def __init__(self):
        super().__init__()
        self.hidden = _counter()

    def noise(self):
        return next(self.hidden)


class Telling(Hidden):
    """It tells its state when it is asked, all but gymnasium's own generator."""

    def __init__(self):
        super().__init__()
        self.told = 0

    def noise(self):
        self.told += 1
        return super().noise() + self.np_random.normal()

    def get_state(self):
        return {"told": self.told, "x": self.x, "age": self.age}

    def set_state(self, state):
        self.told, self.x, self.age = state["told"], state["x"], state["age"]
        self.hidden = _counter()
        for _ in range(self.told):
            next(self.hidden)


class Shared(Walk):
    """It draws from NumPy's global generator, which belongs to no environment."""

    def noise(self):
        return np.random.normal()  # noqa: NPY002
