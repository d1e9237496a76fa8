"""The ids under which gymnasium makes these environments.

Since gymnasium 1.0 nothing is registered by a package's mere presence: `import pliant.rl.environments` does it, and
so does the form `gymnasium.make("pliant.rl.environments:pliant/SlipperyAnt-v0")`.
"""

from __future__ import annotations

from importlib.util import find_spec

IDS: dict[str, tuple[str, dict[str, str]]] = {
    "pliant/SlipperyAnt-v0": ("SlipperyBody", {"body": "ant"}),
    "pliant/SlipperyHalfCheetah-v0": ("SlipperyBody", {"body": "half-cheetah"}),
    "pliant/SlipperyHopper-v0": ("SlipperyBody", {"body": "hopper"}),
    "pliant/SlipperyWalker2d-v0": ("SlipperyBody", {"body": "walker2d"}),
    "pliant/RewiredCartPole-v0": ("RewiredCart", {}),
}


def register() -> None:
    """Register the ids with gymnasium, where it is installed; once."""
    if find_spec("gymnasium") is None:
        return
    import gymnasium

    for name, (made_by, options) in IDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, f"pliant.rl.environments.single:{made_by}", kwargs=dict(options))
