"""PPO with continual backpropagation on the ant: eight stacked agents beside one as anyone would write it, one thread, one run.

    python benchmarks/ppo.py

Two others, each one agent with continual backpropagation in whole-layer operations:

    lean    PyTorch without waste: fused Adam, no distribution objects, values and old log-probabilities in one batch after the
            rollout, which is shuffled once an epoch
    usual   as it is usually written, CleanRL's PPO for one: distribution objects, a value and a log-probability at every step,
            which the update takes as they are, Adam as it comes

The article's networks and lengths: 111 inputs of which 84 are zeros, 2 x 256 ReLU units, rollouts of 2,048 steps, 10 epochs of 16
minibatches. Its rate too (1e-4), but a maturity of 100 gradient steps, so that units are replaced from the first update on.

First ours and the lean one learn in float64 from the same weights and noise, from a short rollout on an ant, and are compared
(the usual one draws noise of its own; what it kept is compared with what the lean one would find); only then is anything
timed, the contestants taking turns. Times are of the processor, for one agent; ratios are medians of the
ratios within a turn. Acting is timed in a world that costs nothing, whole iterations with the others in gymnasium's Ant.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median, quantiles
from time import process_time
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from pliant.rl.environments import Continuous, MujocoBatch, Transition
from pliant.rl.ppo import PPO, Settings, preset
from pliant.streams import generator, stream_key

AGENTS, TURNS, WARM_UP, PADDING = 8, 8, 2, 84
GOALS = {"update": 2.0, "acting": 5.0, "whole iteration": 1.9}


# -- the plain agent --------------------------------------------------------------------------------------------------


def mlp(sizes: list[int]) -> nn.Sequential:
    first, second, third, last = sizes
    return nn.Sequential(
        nn.Linear(first, second), nn.ReLU(), nn.Linear(second, third), nn.ReLU(), nn.Linear(third, last)
    )


class Replacement:
    """Continual backpropagation on one network, after each step."""

    def __init__(self, nets: list[nn.Sequential], settings: Settings, draws: torch.Generator) -> None:
        self.settings, self.draws = settings, draws
        self.layers = [(net[at], net[at + 2]) for net in nets for at in (0, 2)]
        zeros = [torch.zeros(layer.out_features, dtype=layer.weight.dtype) for layer, _ in self.layers]
        self.age, self.mean, self.utility = ([each.clone() for each in zeros] for _ in range(3))
        self.mature_steps, self.replaced = [0] * len(zeros), [0] * len(zeros)

    @torch.no_grad()
    def step(self, hidden: list[Tensor]) -> None:
        decay, chosen = self.settings.decay_rate, []
        for at, ((_, reader), h) in enumerate(zip(self.layers, hidden, strict=True)):
            mean = h.mean(0)
            self.age[at] += 1
            self.mean[at].lerp_(mean, 1 - decay)
            self.utility[at].lerp_(reader.weight.abs().mean(0) * mean, 1 - decay)
            mature = self.age[at] > self.settings.maturity_threshold
            self.mature_steps[at] += int(mature.sum())
            due = int(self.settings.replacement_rate * self.mature_steps[at]) - self.replaced[at]
            if due:
                score = torch.where(mature, self.utility[at] / (1 - decay ** self.age[at]), torch.inf)
                chosen.append((at, score.sort(stable=True).indices[:due]))
        for at, units in chosen:
            layer, reader = self.layers[at]
            bound = (3 / layer.in_features) ** 0.5
            fresh = torch.empty(len(units), layer.in_features, dtype=layer.weight.dtype)
            layer.weight[units] = fresh.uniform_(-bound, bound, generator=self.draws)
            layer.bias[units] = 0
            self.replaced[at] += len(units)
        for at, units in chosen:
            self.layers[at][1].weight[:, units] = 0
            for average in (self.age[at], self.mean[at], self.utility[at]):
                average[units] = 0


class Plain:
    """One agent. `world` is what `pliant.rl.environments` calls one, of one agent and one copy, or gymnasium's."""

    def __init__(self, world: Any, size: int, actions: int, settings: Settings, seed: int, like: PPO) -> None:
        self.world, self.settings, self.seed, self.rollouts = world, settings, seed, 0
        self.dtype = next(like.networks.parameters()).dtype
        self.actor, self.critic = (mlp([size, *settings.hidden, out]).to(self.dtype) for out in (actions, 1))
        self.log_std = nn.Parameter(torch.zeros(actions, dtype=self.dtype))
        with torch.no_grad():
            for mine, theirs in zip((self.actor, self.critic), like.networks.stacks().values(), strict=True):
                for layer, source in zip((mine[0], mine[2], mine[4]), theirs.linears(), strict=True):
                    layer.weight.copy_(source.weight[0])
                    layer.bias.copy_(source.bias[0])
        self.parameters = [self.log_std, *self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(
            self.parameters,
            lr=settings.step_size,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        draws = torch.Generator().manual_seed(stream_key(seed, "fresh units"))
        self.replacement = Replacement([self.actor, self.critic], settings, draws)
        steps = settings.rollout_steps
        self.observations = torch.zeros(steps + 1, size, dtype=self.dtype)
        self.drawn, self.means = (torch.zeros(steps, actions, dtype=self.dtype) for _ in range(2))
        self.rewards, self.ended = np.zeros(steps), np.zeros(steps)

    def log_probability(self, means: Tensor, actions: Tensor) -> Tensor:
        return (-0.5 * ((actions - means) * (-self.log_std).exp()).square() - self.log_std - 0.9189385332046727).sum(-1)

    @torch.no_grad()
    def collect(self) -> None:
        shape = (self.settings.rollout_steps, 1, self.log_std.shape[0])
        noise = generator(self.seed, "action noise", self.rollouts).standard_normal(shape)[:, 0]
        noise, spread = torch.from_numpy(noise).to(self.dtype), self.log_std.exp()
        for step in range(self.settings.rollout_steps):
            seen = self.observations[step]
            seen.copy_(torch.from_numpy(self.world.seen))
            mean = self.means[step] = self.actor(seen)
            action = self.drawn[step] = mean + spread * noise[step]
            self.rewards[step], self.ended[step] = self.world.take(action.numpy())
        self.observations[-1] = torch.from_numpy(self.world.seen)
        self.rollouts += 1

    def update(self) -> None:
        with torch.no_grad():
            batch = self.batch()
        draws, size = generator(self.seed, "minibatch order", self.rollouts - 1), self.settings.minibatch_size
        for _ in range(self.settings.epochs):
            order = torch.from_numpy(draws.permutation(self.settings.rollout_steps))
            for x, actions, old, gain, targets in zip(*(each[order].split(size) for each in batch), strict=True):
                self.step(x, actions, old, gain, targets)

    def batch(self) -> tuple[Tensor, ...]:
        return self.learned_from(
            self.critic(self.observations).squeeze(-1), self.log_probability(self.means, self.drawn)
        )

    def learned_from(self, of_states: Tensor, old: Tensor) -> tuple[Tensor, ...]:
        """The rollout as a batch, from the values of its states and of the one behind it, and its actions' log-probabilities."""
        values = of_states.double().numpy()
        gain, ahead, gamma, trace = np.zeros(len(self.rewards)), 0.0, self.settings.discount, self.settings.trace_decay
        for step in reversed(range(len(gain))):
            goes_on = 1.0 - self.ended[step]
            error = self.rewards[step] + gamma * goes_on * values[step + 1] - values[step]
            gain[step] = ahead = error + gamma * trace * goes_on * ahead
        targets, gain = gain + values[:-1], (gain - gain.mean()) / gain.std(ddof=1)
        gain, targets = (torch.from_numpy(each).to(self.dtype) for each in (gain, targets))
        return self.observations[:-1], self.drawn, old, gain, targets

    def step(self, x: Tensor, actions: Tensor, old: Tensor, gain: Tensor, targets: Tensor) -> None:
        hidden = []
        outputs = []
        for net in (self.actor, self.critic):
            first = net[1](net[0](x))
            second = net[3](net[2](first))
            hidden += [first.detach(), second.detach()]
            outputs.append(net[4](second))
        ratio = (self.log_probability(outputs[0], actions) - old).exp()
        policy = torch.maximum(-ratio * gain, -ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip) * gain)
        loss = policy.mean() + (targets - outputs[1].squeeze(-1)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.replacement.step(hidden)


class Usual(Plain):
    """As it is usually written (CleanRL's PPO is): distribution objects, values at every step, Adam as it comes."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        settings = self.settings
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=settings.step_size, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.old, self.values = (torch.zeros(settings.rollout_steps, dtype=self.dtype) for _ in range(2))

    def log_probability(self, means: Tensor, actions: Tensor) -> Tensor:
        return torch.distributions.Normal(means, self.log_std.expand_as(means).exp()).log_prob(actions).sum(-1)

    @torch.no_grad()
    def collect(self) -> None:
        for step in range(self.settings.rollout_steps):
            seen = torch.tensor(self.world.seen, dtype=self.dtype)
            mean = self.actor(seen)
            distribution = torch.distributions.Normal(mean, self.log_std.exp())
            action = distribution.sample()
            self.old[step] = distribution.log_prob(action).sum(-1)
            self.values[step] = self.critic(seen)[0]
            self.observations[step], self.means[step], self.drawn[step] = seen, mean, action
            self.rewards[step], self.ended[step] = self.world.take(action.numpy())
        self.observations[-1] = torch.from_numpy(self.world.seen)
        self.rollouts += 1

    def batch(self) -> tuple[Tensor, ...]:
        """From what was found at every step."""
        return self.learned_from(torch.cat([self.values, self.critic(self.observations[-1])]), self.old)


# -- worlds -----------------------------------------------------------------------------------------------------------


class OneOf:
    """One copy of ours, as the plain agent takes it: `seen`, and `take` an action for a reward and whether that was the end."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    @property
    def seen(self) -> np.ndarray:
        return self.batch.observations[0, 0]

    def take(self, action: np.ndarray) -> tuple[float, bool]:
        after = self.batch.step(action[None, None].astype(np.float64))
        return after.rewards[0, 0], bool(after.terminated[0, 0] or after.truncated[0, 0])


class Gymnasium:
    """gymnasium's ant, padded."""

    def __init__(self, seed: int) -> None:
        self.ant = gymnasium.make("Ant-v5", include_cfrc_ext_in_observation=False, contact_cost_weight=0)
        self.seen = np.zeros(27 + PADDING)
        self.seen[:27], _ = self.ant.reset(seed=seed)

    def take(self, action: np.ndarray) -> tuple[float, bool]:
        observation, reward, terminated, truncated, _ = self.ant.step(action)
        ended = terminated or truncated
        self.seen[:27] = self.ant.reset()[0] if ended else observation
        return float(reward), ended


class Free:
    """A world that costs nothing: what is seen goes round a table, and an episode never ends."""

    def __init__(self, agents: int) -> None:
        self.agents, self.copies, self.observation_size, self.actions = agents, 1, 27 + PADDING, Continuous(8)
        table = generator(0, "free world").standard_normal((64, 1, 1, self.observation_size))
        table[..., 27:] = 0
        self.padding = PADDING
        never, ones = np.zeros((agents, 1), bool), np.ones((agents, 1))
        self.after = [Transition(np.repeat(each, agents, 0), ones, never, never) for each in table]
        self.steps, self.observations = 0, self.after[0].observations

    def step(self, actions: np.ndarray) -> Transition:
        self.steps += 1
        after = self.after[self.steps % 64]
        self.observations = after.observations
        return after


def ants(agents: int) -> MujocoBatch:
    return MujocoBatch("ant", seeds=range(agents), contact_forces=False, padding=PADDING)


# -- comparing, timing ------------------------------------------------------------------------------------------------

SETTINGS = preset("ppo-cbp", maturity_threshold=100, count="accumulate")


def compare() -> None:
    """An iteration in float64: weights to 1e-9, the same units replaced. A longer one is chaos: rounding grows on an ant."""
    short = preset("ppo-cbp", rollout_steps=64, minibatch_size=16, maturity_threshold=10, replacement_rate=4e-3)
    short = replace(short, count="accumulate")
    ours = PPO(ants(AGENTS), short, list(range(AGENTS)), torch.float64)
    plain = Plain(OneOf(ants(1)), 27 + PADDING, 8, short, 0, ours)
    ours.iterate()
    plain.collect()
    plain.update()
    told = [group["replaced"][0] for group in ours.method.stats().values()]
    apart = max(
        (mine.weight[0] - layer.weight).abs().max().item()
        for stack, net in zip(ours.networks.stacks().values(), (plain.actor, plain.critic), strict=True)
        for mine, layer in zip(stack.linears(), (net[0], net[2], net[4]), strict=True)
    )
    print(f"after 64 steps on the ant and 40 of Adam, in float64: {apart:.1e} apart at most, units replaced {told}")
    assert told == plain.replacement.replaced
    assert min(told) >= 20
    assert apart < 1e-9, "the contestants do not compute the same"
    usual = Usual(OneOf(ants(1)), 27 + PADDING, 8, short, 0, ours)
    usual.collect()
    with torch.no_grad():
        for kept, found in zip(usual.batch(), Plain.batch(usual), strict=True):
            assert (kept - found).abs().max() < 1e-9, "what the usual contestant kept is not what the lean one finds"


def seconds(work: Any) -> float:
    start = process_time()
    work()
    return process_time() - start


def tell(who: str, what: str, ours: Any, theirs: Any) -> None:
    ratios = list(theirs / ours)
    low, _, high = quantiles(ratios, n=4)
    goal = GOALS.get(what)
    verdict = "" if goal is None else f", goal {goal}: {'reached' if median(ratios) >= goal else 'NOT reached'}"
    times = f"ours {median(ours):7.1f}   {who:5} {median(theirs):7.1f}"
    print(f"{what:27} {times}   x{median(ratios):.2f} ({low:.2f}-{high:.2f}){verdict}")


def main() -> None:
    torch.set_num_threads(1)
    compare()
    seeds, size, steps = list(range(AGENTS)), 27 + PADDING, SETTINGS.rollout_steps
    ours, ours_free = PPO(ants(AGENTS), SETTINGS, seeds), PPO(Free(AGENTS), SETTINGS, seeds)
    size_of = (size, 8, SETTINGS, 0, ours)
    others = {"lean": Plain(Gymnasium(0), *size_of), "usual": Usual(Gymnasium(0), *size_of)}
    free = {"lean": Plain(OneOf(Free(1)), *size_of), "usual": Usual(OneOf(Free(1)), *size_of)}
    own = Plain(OneOf(ants(1)), *size_of)
    times: dict[str, list[float]] = {}
    for turn in range(WARM_UP + TURNS):
        found = {
            "collect": seconds(ours.collect) / AGENTS,
            "update": seconds(ours.update) / AGENTS,
            "acting": seconds(lambda: ours_free.collect(512)) / AGENTS * steps / 512,
            "own": seconds(own.collect) + seconds(own.update),
        }
        for name, agent in others.items():
            found[f"{name} collect"], found[f"{name} update"] = seconds(agent.collect), seconds(agent.update)
            found[f"{name} acting"] = seconds(free[name].collect)
        if ours_free.full:
            ours_free.acting.begin_rollout()  # nothing is learned there
        for name, value in found.items() if turn >= WARM_UP else ():
            times.setdefault(name, []).append(value)
    t = {name: np.array(values) for name, values in times.items()}
    print(f"{AGENTS} agents; units replaced in each group of the first: ours", end=" ")
    print([group["replaced"][0] for group in ours.method.stats().values()], end=" ")
    print({name: agent.replacement.replaced for name, agent in others.items()})
    assert min(min(group["replaced"]) for group in ours.method.stats().values()) >= 20
    assert min(min(agent.replacement.replaced) for agent in others.values()) >= 20
    whole = t["collect"] + t["update"]
    for name in others:
        tell(name, "update", 1e3 * t["update"], 1e3 * t[f"{name} update"])
        tell(name, "acting", 1e6 * t["acting"] / steps, 1e6 * t[f"{name} acting"] / steps)
        tell(name, "whole iteration", 1e3 * whole, 1e3 * (t[f"{name} collect"] + t[f"{name} update"]))
    tell("lean", "whole iteration in our ant", 1e3 * whole, 1e3 * t["own"])
    print(f"simulation is {1e3 * median(t['collect'] - t['acting']):.0f} ms of our iteration")
    print("update, whole iteration: ms for one agent; acting: us for one agent's step")


if __name__ == "__main__":
    main()
