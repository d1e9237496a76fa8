"""A training step recorded once as a CUDA graph, then replayed: one launch in place of some hundred.

What the step reads and writes must stay at the same place in memory: inputs are copied into tensors that the step
knows, and optimizer state exists before. Replaying runs no Python, so a reset method is built with `attach=False` and
its `step()` called after each replay.

Untested on a device: the test that compares it with plain steps needs one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

WARM_UP = 3  # steps before recording, in which libraries choose their algorithms


def captured(step: Callable[[], None], undo: Callable[[], None]) -> Callable[[], None]:
    """`step` as a graph. It is warmed up by running it a few times; `undo` then puts back what it changed."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    undo()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records, and computes nothing
        step()
    return graph.replay
