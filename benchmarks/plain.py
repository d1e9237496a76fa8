"""The same learners as anyone would write them in PyTorch: one network, one example at a time.

`autograd_loop` lets PyTorch find the gradient and takes |w| where it is asked for, as the released code of Dohare et al.
does; `by_hand_loop` writes the gradient out and takes |w| once for utility and log, which is faster. Otherwise both are
as fast as we could make them without leaving plain, readable PyTorch: fused optimizers, in-place updates, no modules, no
hooks. `Replacement` is the dense continual backpropagation of Dohare et al. (2024), in whole-layer operations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, mse_loss, relu

Layers = list[tuple[Tensor, Tensor]]  # weights (out, in) and biases (out,)
Log = list[list[Tensor]] | None  # sums of |w| of every matrix after every step, if wanted
DECAY, MATURITY, BETA1, BETA2, EPS = 0.99, 100, 0.9, 0.999, 1e-8


class Replacement:
    """Continual backpropagation after each update; `fresh(layer, number)` draws incoming weights."""

    def __init__(self, net: Layers, rate: float, fresh: Callable[[int, int], Tensor]) -> None:
        self.net, self.rate, self.fresh = net, rate, fresh
        self.age, self.mean, self.utility = ([torch.zeros_like(b) for _, b in net[:-1]] for _ in range(3))
        self.mature, self.replaced = [0] * (len(net) - 1), [0] * (len(net) - 1)

    def step(
        self, hidden: list[Tensor], outgoing: list[Tensor], forget: Callable[[int, Tensor], None] | None = None
    ) -> set[int]:
        """`outgoing[layer]` is the mean |w| that leaves each unit. Returns the matrices that replacing units has changed."""
        chosen: list[tuple[int, Tensor, Tensor]] = []
        for layer, h in enumerate(hidden):
            age = self.age[layer].add_(1)
            self.mean[layer].lerp_(h, 1 - DECAY)
            self.utility[layer].lerp_(outgoing[layer] * h.abs(), 1 - DECAY)
            eligible = age > MATURITY
            self.mature[layer] += int(eligible.sum())
            due = int(self.rate * self.mature[layer]) - self.replaced[layer]
            if due:
                seen = 1 - DECAY**age
                score = torch.where(eligible, self.utility[layer] / seen, torch.inf)
                units = score.sort(stable=True).indices[: min(due, int(eligible.sum()))]
                chosen.append((layer, units, (self.mean[layer] / seen)[units]))
        for layer, units, mean in chosen:
            self.net[layer + 1][1].add_(self.net[layer + 1][0][:, units] @ mean)
        for layer, units, _ in chosen:
            first = self.replaced[layer]
            self.net[layer][0][units] = torch.stack([self.fresh(layer, first + k) for k in range(len(units))])
            self.net[layer][1][units] = 0
            self.replaced[layer] += len(units)
        for layer, units, _ in chosen:
            self.net[layer + 1][0][:, units] = 0
            for average in (self.age[layer], self.mean[layer], self.utility[layer]):
                average[units] = 0
            if forget:
                forget(layer, units)
        return {matrix for layer, _, _ in chosen for matrix in (layer, layer + 1)}


class Adam:
    """Adam whose entries count their own steps, so that those of a replaced unit can start over."""

    def __init__(self, net: Layers, step_size: float) -> None:
        self.net, self.parameters, self.step_size = net, [p for pair in net for p in pair], step_size
        self.m, self.v = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.left1, self.left2 = ([torch.ones_like(p) for p in self.parameters] for _ in range(2))  # beta^steps

    def step(self, gradients: list[Tensor]) -> None:
        for p, g, m, v, a, b in zip(self.parameters, gradients, self.m, self.v, self.left1, self.left2, strict=True):
            m.lerp_(g, 1 - BETA1)
            v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            a.mul_(BETA1)
            b.mul_(BETA2)
            p.addcdiv_(m / (1 - a), (v / (1 - b)).sqrt_().add_(EPS), value=-self.step_size)

    def forget(self, layer: int, units: Tensor) -> None:
        for kept, value in ((self.m, 0), (self.v, 0), (self.left1, 1), (self.left2, 1)):
            kept[2 * layer][units] = kept[2 * layer + 1][units] = value
            kept[2 * layer + 2][:, units] = value


def autograd_loop(
    net: Layers, X: Tensor, y: Tensor, step_size: float, adam: Adam | None, replacement: Replacement | None, log: Log
) -> list[float]:
    """Losses before each update. Without replacement PyTorch's fused optimizers do the update."""
    parameters = [p.requires_grad_() for pair in net for p in pair]
    make = torch.optim.Adam if adam else torch.optim.SGD
    optimizer = make(parameters, lr=step_size, fused=True)
    losses: list[float] = []
    for x, target in zip(X, y, strict=True):
        hidden: list[Tensor] = []
        for W, b in net[:-1]:
            hidden.append(relu(linear(hidden[-1] if hidden else x, W, b)))
        out = linear(hidden[-1], *net[-1])
        loss = mse_loss(out, target) if target.is_floating_point() else cross_entropy(out, target)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            if adam and replacement:
                adam.step(list(gradients))
            else:
                for p, g in zip(parameters, gradients, strict=True):
                    p.grad = g
                optimizer.step()
            if replacement:
                outgoing = [V.abs().mean(0) for V, _ in net[1:]]
                replacement.step([h.detach() for h in hidden], outgoing, adam.forget if adam else None)
            if log is not None:
                log.append([W.abs().sum() for W, _ in net])
    return losses


class Sizes:
    """|w| of every matrix in memory of its own, so that none is allocated, summed once for utility and log."""

    def __init__(self, net: Layers) -> None:
        self.net, self.size = net, [torch.empty_like(W) for W, _ in net]
        self.ones = [torch.ones_like(b) for _, b in net]

    def leaving(self, matrix: int) -> Tensor:
        """Sums of |w| that leave each input of a matrix: a product, which is faster than a sum along columns."""
        return self.ones[matrix] @ torch.abs(self.net[matrix][0], out=self.size[matrix])

    def total(self, matrix: int) -> Tensor:
        return torch.abs(self.net[matrix][0], out=self.size[matrix]).sum()


@torch.inference_mode()
def by_hand_loop(
    net: Layers, X: Tensor, y: Tensor, step_size: float, adam: Adam | None, replacement: Replacement | None, log: Log
) -> list[float]:
    """The same with the gradient written out: rank-one updates in place, and |w| taken once for utility and log."""
    losses: list[float] = []
    sizes, labelled, changed = Sizes(net), not y.is_floating_point(), set(range(len(net)))
    leaving: list[Tensor] = []
    for x, target in zip(X, y.tolist() if labelled else y, strict=True):
        h = [x]
        for W, b in net[:-1]:
            h.append(torch.addmv(b, W, h[-1]).relu_())
        out = torch.addmv(net[-1][1], net[-1][0], h[-1])
        if not labelled:
            error = out - target
            losses.append(float(error @ error) / len(error))
            delta = error * (2 / len(error))
        else:
            logs = out.log_softmax(0)
            losses.append(-float(logs[target]))
            delta = logs.exp_()
            delta[target] -= 1
        gradients: list[Tensor] = []
        for layer in range(len(net) - 1, -1, -1):
            W, b = net[layer]
            below = (delta @ W).mul_(h[layer] > 0) if layer else None
            if adam:
                gradients = [torch.outer(delta, h[layer]), delta, *gradients]
            else:
                W.addr_(delta, h[layer], alpha=-step_size)
                b.sub_(delta, alpha=step_size)
            delta = below if below is not None else delta
        if adam:
            adam.step(gradients)
        if replacement:
            leaving = [sizes.leaving(matrix) for matrix in range(1, len(net))]
            outgoing = [sums / len(V) for sums, (V, _) in zip(leaving, net[1:], strict=True)]
            changed = {0} | replacement.step(h[1:], outgoing, adam.forget if adam else None)
        if log is not None:
            log.append([sizes.total(i) if i in changed else leaving[i - 1].sum() for i in range(len(net))])
    return losses
